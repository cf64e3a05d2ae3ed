//! One round, seen by the parent: starts the ranks, injects faults, and watches.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use graccl::{Error, Result};

use super::fault;
use super::plan::{Break, Plan, Rng};
use super::rank::Event;
use super::usage::Usage;
use crate::launch;

/// A rank of which nothing is heard for so long hangs: it runs a few hundred calls a second.
const HANG: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(2);
/// A look that comes so much later than it should is late.
const LATE: Duration = Duration::from_millis(100);
/// A machine on which this process's looks were late by so much in all has no time for ranks either: that deadlines
/// passed says nothing then.
const STARVED: Duration = Duration::from_secs(3);
/// Longest stop of a rank, and that of some: longer than a host is taken for dead.
const STOP: Duration = Duration::from_millis(1500);
const LONG_STOP: Duration = Duration::from_secs(8);
/// What a rank is told that lives, but not with the others.
const EXCLUDED: &str = "the other ranks exclude this one";
/// Memory that a process may gain while it does the same over and over, KiB.
const GROWTH: i64 = 32 << 10;

/// What a round has done, and what was wrong with it.
#[derive(Default)]
pub struct Outcome {
    pub calls: BTreeMap<String, u64>,
    pub faults: BTreeMap<&'static str, u64>,
    /// Recoveries: eras after the first, of one rank each.
    pub eras: u64,
    pub wrong: u64,
    pub hangs: u64,
    pub leaks: u64,
    /// Errors without a fault that explains them, and ranks that ended.
    pub errors: u64,
    /// Hangs and passed deadlines while the machine was starved: they end the round, and count for nothing.
    pub starved: u64,
    /// Most memory that a rank gained between two quarters of a round, KiB.
    pub growth: i64,
    pub complaints: Vec<String>,
    /// What was done to whom, and when.
    pub done: Vec<String>,
}

impl Outcome {
    pub fn failed(&self) -> bool {
        self.wrong + self.hangs + self.leaks + self.errors > 0
    }
}

struct Rank {
    child: Child,
    orders: Option<ChildStdin>,
    heard: Instant,
    total: u64,
    calls: BTreeMap<String, u64>,
    delays: u64,
    era: Option<u32>,
    /// It has met an error, and its next era has not begun.
    troubled: bool,
    stopped_until: Option<Instant>,
    /// The last time, or the beginning.
    stopped_at: Instant,
    killed: bool,
    done: bool,
    ended: bool,
    /// After the acts of one era.
    acts: Vec<Usage>,
}

impl Rank {
    fn alive(&self) -> bool {
        !self.killed && !self.ended && !self.done
    }
}

/// All ranks are killed and waited for when this goes out of scope.
struct Ranks(Vec<Rank>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for r in &mut self.0 {
            let _ = r.child.kill();
            let _ = r.child.wait();
        }
    }
}

/// What is still to be injected.
struct Faults {
    r: Rng,
    /// When something breaks: from the beginning of the round.
    breaks: Vec<Duration>,
    next_stop: Option<Instant>,
}

impl Faults {
    fn new(plan: &Plan, start: Instant) -> Faults {
        let mut r = Rng::of(&[plan.seed, 4]);
        let most = match plan.breaks {
            Break::Nothing => 0,
            Break::Kill => plan.np - 1,
            Break::Cut | Break::Part | Break::Abort => 6,
        };
        let mut breaks = Vec::new();
        for _ in 0..most.min(1 + r.below(6)) {
            let at = Duration::from_millis(300) + r.time(plan.length * 6 / 10);
            // Some close behind another: while ranks are still busy with that.
            let at = match breaks.last() {
                Some(&last) if r.percent(30) => last + r.time(Duration::from_millis(40)),
                _ => at,
            };
            breaks.push(at);
        }
        breaks.sort_unstable();
        let next_stop = plan.stops.then(|| start + Duration::from_millis(500));
        Faults { r, breaks, next_stop }
    }
}

fn spawn(program: &Path, plan: &Plan, np: Option<usize>, logs: &Path) -> Result<Vec<(Child, File)>> {
    let (key, port) = (launch::random_key()?, launch::free_port()?.to_string());
    let mut all: Vec<(Child, File)> = Vec::new();
    for rank in 0..plan.np {
        let log = logs.join(format!("rank-{rank}.log"));
        let log = File::create(&log).map_err(|e| Error::io(format!("cannot write {}", log.display()), &e))?;
        let copy = || log.try_clone().map_err(|e| Error::io("cannot duplicate a descriptor", &e));
        let mut c = Command::new(program);
        c.args(["stress", "--seed", &plan.seed.to_string(), "--rank", &rank.to_string()]);
        c.args(["--time", &plan.length.as_secs().to_string()]);
        c.args(np.iter().flat_map(|n| ["--np".to_string(), n.to_string()]));
        for name in launch::FOREIGN.iter().chain(&["GRACCL_ALGO"]) {
            c.env_remove(name);
        }
        c.env("RANK", rank.to_string())
            .env("WORLD_SIZE", plan.np.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", &port)
            .env("GRACCL_KEY", &key)
            .env("GRACCL_HOST_ID", format!("h{}", plan.hosts[rank]))
            .env("GRACCL_TRANSPORT", plan.transport)
            .env("GRACCL_ENCRYPT", u8::from(plan.encrypt).to_string())
            .env("GRACCL_DETERMINISTIC", u8::from(plan.deterministic).to_string())
            // Who has lost both who could tell it that it is excluded waits so long.
            .env("GRACCL_TIMEOUT", if plan.breaks == Break::Part { "15" } else { "1800" })
            .env("GRACCL_VERIFY", u8::from(plan.verify).to_string())
            .env("RUST_BACKTRACE", "1")
            // So that the C library gives back what is freed, and growth means something.
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(copy()?);
        match plan.simd[rank] {
            "" => c.env_remove("GRACCL_SIMD"),
            level => c.env("GRACCL_SIMD", level),
        };
        // SAFETY: only an async-signal-safe call between fork and exec.
        unsafe {
            c.pre_exec(|| {
                // No rank outlives us.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        match c.spawn() {
            Ok(child) => all.push((child, log)),
            Err(e) => {
                for (c, _) in &mut all {
                    let _ = c.kill().and_then(|()| c.wait());
                }
                return Err(Error::io("cannot start a rank", &e));
            }
        }
    }
    Ok(all)
}

/// Moves lines of all ranks into a channel.
fn listen(ranks: &mut [(Child, File)]) -> Receiver<(usize, String)> {
    let (tx, rx) = channel();
    for (rank, (child, _)) in ranks.iter_mut().enumerate() {
        if let Some(out) = child.stdout.take() {
            let tx = tx.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(std::result::Result::ok) {
                    if tx.send((rank, line)).is_err() {
                        return;
                    }
                }
            });
        }
    }
    rx
}

/// Runs a round. `np`: as given on the command line. `logs`: an empty folder for the ranks' output.
pub fn run(plan: &Plan, np: Option<usize>, logs: &Path) -> Result<Outcome> {
    let program = launch::own_program()?;
    let start = Instant::now();
    let mut children = spawn(&program, plan, np, logs)?;
    let events = listen(&mut children);
    let ranks = children.into_iter().map(|(mut child, _)| Rank {
        orders: child.stdin.take(),
        child,
        heard: start,
        total: 0,
        calls: BTreeMap::new(),
        delays: 0,
        era: None,
        troubled: false,
        stopped_until: None,
        stopped_at: start,
        killed: false,
        done: false,
        ended: false,
        acts: Vec::new(),
    });
    let mut round = Round {
        plan,
        start,
        ranks: Ranks(ranks.collect()),
        faults: Faults::new(plan, start),
        outcome: Outcome::default(),
        broken: false,
        program,
        logs,
        looked: start,
        late: Duration::ZERO,
    };
    while !round.over() {
        let mut wait = TICK;
        while let Ok((rank, line)) = events.recv_timeout(wait) {
            round.hear(rank, &line);
            wait = Duration::ZERO;
        }
        round.inject();
        round.look();
    }
    // Those that were killed are gone in a moment; so are the last lines.
    while let Ok((rank, line)) = events.recv_timeout(Duration::from_millis(50)) {
        round.hear(rank, &line);
    }
    let Round { ranks, mut outcome, .. } = round;
    for r in &ranks.0 {
        for (name, n) in &r.calls {
            *outcome.calls.entry(name.clone()).or_default() += n;
        }
        if r.delays > 0 {
            *outcome.faults.entry("delay").or_default() += r.delays;
        }
    }
    drop(ranks);
    let left = children_left();
    if left > 0 {
        outcome.leaks += 1;
        outcome.complaints.push(format!("{left} processes are left"));
    }
    Ok(outcome)
}

struct Round<'a> {
    plan: &'a Plan,
    start: Instant,
    ranks: Ranks,
    faults: Faults,
    outcome: Outcome,
    /// Something was made to fail.
    broken: bool,
    program: PathBuf,
    logs: &'a Path,
    /// The last look, and how late all of them were together.
    looked: Instant,
    late: Duration,
}

impl Round<'_> {
    fn over(&self) -> bool {
        let stop = self.outcome.hangs + self.outcome.errors + self.outcome.starved > 0;
        stop || self.ranks.0.iter().all(|r| r.ended)
    }

    fn complain(&mut self, rank: usize, what: &str) {
        let at = self.start.elapsed().as_secs_f64();
        self.outcome.complaints.push(format!("{at:.3} s, rank {rank}: {what}"));
    }

    fn fault(&mut self, kind: &'static str, rank: usize, more: &str) {
        *self.outcome.faults.entry(kind).or_default() += 1;
        let at = self.start.elapsed().as_secs_f64();
        self.outcome.done.push(format!("{at:.3} s, rank {rank}: {kind}{more}"));
    }

    /// One more deadline that passed, or the outcome of one.
    fn expired(&mut self, rank: usize, what: &str, count: fn(&mut Outcome) -> &mut u64) {
        if self.late < STARVED {
            *count(&mut self.outcome) += 1;
            return self.complain(rank, what);
        }
        self.outcome.starved += 1;
        let late = self.late.as_secs_f64();
        self.complain(
            rank,
            &format!("{what}; but the machine is starved: looks were late by {late:.1} s in all"),
        );
    }

    fn hear(&mut self, rank: usize, line: &str) {
        let Ok(event) = serde_json::from_str::<Event>(line) else { return };
        let now = Instant::now();
        let r = &mut self.ranks.0[rank];
        match event {
            Event::Era { number, .. } => {
                (r.heard, r.era, r.troubled) = (now, Some(number), false);
                r.acts.clear();
                self.outcome.eras += u64::from(number > 0);
            }
            Event::Trouble { code, text } => {
                (r.heard, r.troubled) = (now, true);
                // A rank whose connection was cut may learn so from a communicator that it shrinks in an act.
                let excluded = code == "InvalidUsage" && text.contains(EXCLUDED);
                let explained =
                    self.broken && (excluded || matches!(code.as_str(), "RemoteError" | "Aborted"));
                let what = format!("{code}: {text}");
                if !explained && code == "Timeout" {
                    self.expired(rank, &what, |o| &mut o.errors);
                } else if !explained {
                    self.outcome.errors += 1;
                    self.complain(rank, &what);
                }
            }
            Event::Calls { calls, delays } => {
                let total = calls.values().sum();
                if total > r.total {
                    r.heard = now;
                }
                (r.total, r.calls, r.delays) = (total, calls, delays);
            }
            Event::Wrong(what) => {
                self.outcome.wrong += 1;
                self.complain(rank, &format!("wrong result: {what}"));
            }
            Event::Act(usage) => {
                r.heard = now;
                r.acts.push(usage);
                self.grown(rank);
            }
            Event::Done(usage) => {
                (r.heard, r.done) = (now, true);
                if usage.too_much() {
                    self.outcome.leaks += 1;
                    self.complain(rank, &format!("left after the last communicator: {usage:?}"));
                }
            }
        }
    }

    /// Whether a rank holds more and more in an era: its last quarter against its second.
    fn grown(&mut self, rank: usize) {
        let acts = &self.ranks.0[rank].acts;
        let n = acts.len();
        if n < 12 {
            return;
        }
        let most = |part: &[Usage]| {
            part.iter().fold(Usage::default(), |a, b| Usage {
                private: a.private.max(b.private),
                shared: a.shared.max(b.shared),
                memfds: a.memfds.max(b.memfds),
                descriptors: a.descriptors.max(b.descriptors),
                threads: a.threads.max(b.threads),
            })
        };
        let more = most(&acts[n * 3 / 4..]).since(&most(&acts[n / 4..n / 2]));
        let kib = more.private.max(more.shared).max(more.memfds);
        self.outcome.growth = self.outcome.growth.max(kib);
        // Connections come as pairs of ranks first meet.
        let peers = self.plan.np as i64;
        if kib > GROWTH || more.descriptors > 2 * peers || more.threads > 2 {
            self.outcome.leaks += 1;
            self.complain(
                rank,
                &format!("after {n} acts it holds more than after a quarter of them: {more:?}"),
            );
            self.ranks.0[rank].acts.clear();
        }
    }

    fn inject(&mut self) {
        let now = Instant::now();
        for r in &mut self.ranks.0 {
            if r.stopped_until.is_some_and(|t| t <= now) {
                r.stopped_until = None;
                // It could not be heard meanwhile. Only that counts: who is stopped often may hang all the same.
                r.heard = (r.heard + (now - r.stopped_at)).min(now);
                fault::signal(r.child.id(), libc::SIGCONT);
            }
        }
        if self.faults.next_stop.is_some_and(|t| t <= now) {
            let pause = self.faults.r.time(Duration::from_secs(3));
            self.faults.next_stop = Some(now + pause);
            if let Some(rank) = self.choose(|r| r.stopped_until.is_none()) {
                let r = &mut self.ranks.0[rank];
                fault::signal(r.child.id(), libc::SIGSTOP);
                let most = if self.faults.r.percent(5) { LONG_STOP } else { STOP };
                let pause = self.faults.r.time(most);
                (r.stopped_at, r.stopped_until) = (now, Some(now + pause));
                self.fault("stop", rank, &format!(" for {:.3} s", pause.as_secs_f64()));
            }
        }
        // Nothing breaks while ranks join: an attempt to join cannot be repaired.
        let joined = |r: &Rank| r.era.is_some();
        if !self.ranks.0.iter().all(joined)
            || self.faults.breaks.first().is_none_or(|&t| t > self.start.elapsed())
        {
            return;
        }
        match self.plan.breaks {
            Break::Nothing => {}
            Break::Kill => {
                let Some(rank) = self.choose(|_| true) else { return };
                self.broken = true;
                self.ranks.0[rank].killed = true;
                fault::signal(self.ranks.0[rank].child.id(), libc::SIGKILL);
                self.fault("kill", rank, "");
            }
            Break::Cut | Break::Part => {
                // As above.
                let living = || self.ranks.0.iter().filter(|r| r.alive());
                if living().any(|r| r.troubled || Some(r.era) != living().next().map(|r| r.era)) {
                    return;
                }
                let Some(rank) = self.choose(|_| true) else { return };
                self.broken = true;
                if let Some(what) = fault::cut(self.ranks.0[rank].child.id(), &mut self.faults.r) {
                    self.fault("cut", rank, &format!(", {what}"));
                }
            }
            Break::Abort => {
                let Some(rank) = self.choose(|_| true) else { return };
                self.broken = true;
                let order = self.faults.r.next();
                if let Some(orders) = &mut self.ranks.0[rank].orders
                    && writeln!(orders, "{order}").is_ok()
                {
                    self.fault("abort", rank, "");
                }
            }
        }
        self.faults.breaks.remove(0);
    }

    /// One of the ranks that live and that `fit`.
    fn choose(&mut self, fit: impl Fn(&Rank) -> bool) -> Option<usize> {
        let all: Vec<usize> =
            (0..self.ranks.0.len()).filter(|&i| self.ranks.0[i].alive() && fit(&self.ranks.0[i])).collect();
        (!all.is_empty()).then(|| self.faults.r.pick(&all))
    }

    /// Ranks that ended, and ranks that hang.
    fn look(&mut self) {
        let since = self.looked.elapsed();
        if since > LATE {
            self.late += since;
        }
        self.looked = Instant::now();
        for rank in 0..self.ranks.0.len() {
            let r = &mut self.ranks.0[rank];
            if r.ended {
                continue;
            }
            if let Ok(Some(status)) = r.child.try_wait() {
                r.ended = true;
                let killed = r.killed;
                let what = format!("ended: {status}; see its log");
                // With 1 where it has met an error.
                if !killed && status.code() == Some(1) {
                    self.expired(rank, &what, |o| &mut o.errors);
                } else if !killed && !status.success() {
                    self.outcome.errors += 1;
                    self.complain(rank, &what);
                }
            } else if r.stopped_until.is_none() && !r.killed && r.heard.elapsed() > HANG {
                self.expired(rank, &format!("nothing moved for {} s", HANG.as_secs()), |o| &mut o.hangs);
                let status = Command::new(&self.program).arg("status").output();
                let text =
                    status.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
                self.outcome.complaints.push(format!("graccl status:\n{text}"));
                let threads = threads(&self.ranks.0[rank].child);
                self.complain(rank, &format!("its threads sleep in {threads}"));
                for (rank, r) in self.ranks.0.iter().enumerate().filter(|(_, r)| !r.ended) {
                    stacks(&r.child, &self.logs.join(format!("rank-{rank}.stacks")));
                }
                return;
            }
        }
    }
}

/// Threads of a process and the kernel's functions that they sleep in.
fn threads(child: &Child) -> String {
    let mut all = Vec::new();
    for t in std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten() {
        let read =
            |name: &str| std::fs::read_to_string(t.path().join(name)).unwrap_or_default().trim().to_string();
        all.push(format!("{} {}", read("comm"), read("wchan")));
    }
    all.join(", ")
}

/// Writes where a process's threads are, if there is a debugger to tell.
fn stacks(child: &Child, to: &Path) {
    let Ok(file) = File::create(to) else { return };
    // Else it would wait for the process to go on.
    fault::signal(child.id(), libc::SIGCONT);
    let debugger = ["--kill-after=5", "60", "gdb", "--batch", "-ex", "thread apply all backtrace", "-p"];
    let done = Command::new("timeout")
        .args(debugger)
        .arg(child.id().to_string())
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(Stdio::null())
        .status();
    if !done.is_ok_and(|s| s.success()) {
        let _ = std::fs::remove_file(to);
    }
}

/// Children of ours that are still there.
fn children_left() -> usize {
    let own = std::process::id().to_string();
    let of_ours = |entry: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let rest = stat.rsplit_once(") ")?.1;
        Some(rest.split(' ').nth(1)? == own)
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of_ours).filter(|x| *x).count()
}

//! `graccl stress`: random calls under injected faults, every result checked.
//!
//! ```text
//! plan   a round, from its seed       job    the parent: starts ranks, injects faults, watches
//! rank   a rank: eras, acts           seat   a thread of it: batches of calls
//! op     one call, its data           fault  what is done to a process from outside
//! ```

mod fault;
mod job;
mod op;
mod plan;
mod rank;
mod seat;
mod usage;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use clap::Args;
use graccl::{Error, Result};
use serde_json::json;

use plan::Plan;

#[derive(Args)]
#[command(after_help = "\
A round is a job of 2 to 8 ranks here. Everything about it follows from its seed: hosts (emulated),
transport, encryption, threads, calls, and the faults. The first round has the seed that is given,
the next one the number after it. A round that fails prints its seed, and `--seed` with it repeats
it, but for the times at which things happen.

Faults: ranks that sleep before calls; ranks that are stopped (SIGSTOP) for up to 1.5 s; ranks
killed, and the others shrink their communicator and go on; connections shut down, and the ranks
join anew; communicators aborted while they are in use.

A round in which deadlines pass while this program itself is not woken in time, by seconds, is cut
short: the machine is starved. It counts neither as passed nor as failed.

Exit status: 0 if all results were right, nothing hung and nothing leaked; else 1.")]
pub struct StressArgs {
    /// Seed of the first round [default: from the clock]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long, seconds. The last round is cut short, but not below 3 s
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    time: u64,
    /// Ranks of every round [default: 2 to 8, by the seed]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=64))]
    np: Option<u64>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Be this rank of a round
    #[arg(long, hide = true)]
    rank: Option<usize>,
}

/// Complaints of a round that are shown; all are kept with the logs.
const SHOWN: usize = 20;

/// Sums of all rounds.
#[derive(Default)]
struct Sums {
    rounds: u64,
    calls: BTreeMap<String, u64>,
    faults: BTreeMap<&'static str, u64>,
    eras: u64,
    wrong: u64,
    hangs: u64,
    leaks: u64,
    errors: u64,
    starved: u64,
    growth: i64,
    failed: Vec<u64>,
}

/// `graccl stress`.
pub fn main(a: &StressArgs) -> Result<u8> {
    let np = a.np.map(|n| n as usize);
    let seed = a.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |t| t.as_millis() as u64)
    });
    if let Some(rank) = a.rank {
        let mut plan = Plan::new(seed, np);
        plan.length = plan.length.min(Duration::from_secs(a.time));
        return rank::main(&plan, rank);
    }
    let start = Instant::now();
    let mut sums = Sums::default();
    let logs = std::env::temp_dir().join(format!("graccl-stress-{}", std::process::id()));
    while start.elapsed() < Duration::from_secs(a.time) {
        let mut plan = Plan::new(seed.wrapping_add(sums.rounds), np);
        let left = Duration::from_secs(a.time).saturating_sub(start.elapsed());
        plan.length = plan.length.min(left.max(Duration::from_secs(3)));
        let dir = logs.join(plan.seed.to_string());
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(format!("cannot make {}", dir.display()), &e))?;
        let began = Instant::now();
        let o = job::run(&plan, np, &dir)?;
        let calls: u64 = o.calls.values().sum();
        let faults: Vec<String> = o.faults.iter().map(|(k, n)| format!("{n} {k}")).collect();
        say(
            a.json,
            &format!(
                "seed {}: {}: {calls} calls in {:.1} s{}{}, {}",
                plan.seed,
                plan.text(),
                began.elapsed().as_secs_f64(),
                if faults.is_empty() { "" } else { ", faults: " },
                faults.join(", "),
                match o.failed() {
                    true => "FAILED",
                    false if o.starved > 0 => "cut short: the machine is starved",
                    false => "ok",
                }
            ),
        );
        if o.failed() {
            for c in o.complaints.iter().take(SHOWN) {
                say(a.json, &format!("  {}", c.replace('\n', "\n  ")));
            }
            let np = np.map_or(String::new(), |n| format!(" --np {n}"));
            say(
                a.json,
                &format!(
                    "  again: graccl stress --seed {}{np} --time {}; logs: {}",
                    plan.seed,
                    plan.length.as_secs(),
                    dir.display()
                ),
            );
            let _ = std::fs::write(dir.join("complaints"), o.complaints.join("\n"));
            let _ = std::fs::write(dir.join("faults"), o.done.join("\n"));
            sums.failed.push(plan.seed);
        } else {
            let _ = std::fs::remove_dir_all(&dir);
        }
        sums.add(o);
    }
    // Gone if no round failed.
    let _ = std::fs::remove_dir(&logs);
    sums.print(a.json, start.elapsed());
    Ok(u8::from(!sums.failed.is_empty()))
}

/// Progress: not on stdout if that is for JSON.
fn say(json: bool, text: &str) {
    // Nobody may be reading any more.
    let _ = if json { writeln!(std::io::stderr(), "{text}") } else { writeln!(std::io::stdout(), "{text}") };
}

impl Sums {
    fn add(&mut self, o: job::Outcome) {
        self.rounds += 1;
        for (name, n) in o.calls {
            *self.calls.entry(name).or_default() += n;
        }
        for (name, n) in o.faults {
            *self.faults.entry(name).or_default() += n;
        }
        self.eras += o.eras;
        self.wrong += o.wrong;
        self.hangs += o.hangs;
        self.leaks += o.leaks;
        self.errors += o.errors;
        self.starved += u64::from(o.starved > 0);
        self.growth = self.growth.max(o.growth);
    }

    fn print(&self, as_json: bool, time: Duration) {
        let total: u64 = self.calls.values().sum();
        if as_json {
            let value = json!({
                "format": 1,
                "seconds": time.as_secs_f64(),
                "rounds": self.rounds,
                "calls": total,
                "calls_by_name": self.calls,
                "faults": self.faults,
                "recoveries": self.eras,
                "wrong": self.wrong,
                "hangs": self.hangs,
                "leaks": self.leaks,
                "errors": self.errors,
                "starved": self.starved,
                "growth_kib": self.growth,
                "failed_seeds": self.failed,
            });
            let _ = writeln!(std::io::stdout(), "{value}");
            return;
        }
        let list = |m: Vec<String>| if m.is_empty() { "none".into() } else { m.join(", ") };
        let calls = list(self.calls.iter().map(|(k, n)| format!("{n} {k}")).collect());
        let faults = list(self.faults.iter().map(|(k, n)| format!("{n} {k}")).collect());
        say(
            false,
            &format!(
                "{} rounds in {:.0} s: {total} calls of a rank: {calls}\nfaults: {faults}; {} recoveries of a \
                 rank\nwrong results {}, hangs {}, leaks {}, other errors {}; most memory gained {} KiB",
                self.rounds,
                time.as_secs_f64(),
                self.eras,
                self.wrong,
                self.hangs,
                self.leaks,
                self.errors,
                self.growth
            ),
        );
        if self.starved > 0 {
            say(false, &format!("rounds cut short because the machine was starved: {}", self.starved));
        }
    }
}

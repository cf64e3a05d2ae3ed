//! What ends a wait with an error: deaths, disagreement, broken links, deadlines; and how a failure goes
//! round.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::call::{Key, marked};
use super::super::fabric::Gone;
use super::super::words::Saying;
use crate::exec::Blocked;
use crate::record;
use crate::schedule::{self};
use crate::transport::{Fault, Link};
use crate::{Code, Error, Result};

use super::prepare::Plan;
use super::{Inner, Stage, Task, guarded};

/// Between looks at the words and the deadlines while nothing moves.
const CHECK: Duration = Duration::from_millis(1);
/// The same while some calls move: others may stand still.
const CHECK_MOVING: Duration = Duration::from_millis(10);
/// A wait this long makes ranks compare their calls.
const LONG: Duration = Duration::from_secs(1);
/// How long the calls of other ranks may take to come in once ranks are known to disagree.
const SETTLE: Duration = Duration::from_millis(200);
/// Calls before the last one of which messages may still be under way.
const RECENT: u32 = 64;
/// How long the cause of a broken connection may take to go round.
const RUMOUR: Duration = Duration::from_millis(100);

/// What is known of a task that stands still.
#[derive(Default)]
pub struct Watch {
    pub(super) since: Option<Instant>,
    pub(super) told: bool,
    /// In which pass a peer that is waited for is known to be gone.
    pub(super) gone: Option<u32>,
    pub(super) fault: Option<Instant>,
    pub(super) disagree: Option<Instant>,
    pub(super) passes: u32,
}

/// While calls are under way: since when nothing moves, or it was looked why; and the last look.
pub struct Checked {
    still: Instant,
    looked: Instant,
}

impl Inner {
    /// What a rank told as the reason of its failure, or else `e`.
    pub(super) fn cause(&self, e: Error) -> Error {
        let until = Instant::now() + 3 * RUMOUR;
        loop {
            self.fabric.pump();
            self.fabric.listen();
            if let Some(told) = self.told() {
                return told;
            }
            if Instant::now() > until {
                return e;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn gone(&self, peer: u32) -> Option<Gone> {
        let member = self.members[peer as usize] as usize;
        if self.post.open().left.contains(&member) {
            return Some(Gone::Left);
        }
        self.fabric.conn(member).is_some_and(|c| c.dead()).then_some(Gone::Died)
    }

    /// A rank that is waited for is gone.
    pub(super) fn lost(&self, rank: u32, gone: Gone, position: String) -> Error {
        let conn = self.fabric.conn(self.members[rank as usize] as usize);
        // What is known of the connection says more: it may have been changed on its way.
        let why = conn.and_then(|c| c.tcp()?.broken()).map_or(String::new(), |why| format!(": {why}"));
        let (what, hint) = match gone {
            Gone::Left => (
                format!("rank {rank} has destroyed its communicator, but its part is needed"),
                "all ranks must make the same calls before they destroy a communicator",
            ),
            Gone::Died => (
                format!("rank {rank} died, or lost its connection{why}"),
                "look at that rank's output for the cause; this communicator cannot be used any more, but it can \
                 be shrunk to the ranks that live",
            ),
        };
        Error::remote(what).who(position).hint(hint)
    }

    fn rank_of(&self, member: usize) -> usize {
        self.members.iter().position(|&m| m as usize == member).unwrap_or(member)
    }

    /// The failure that another rank told.
    pub(super) fn told(&self) -> Option<Error> {
        let letters = self.post.open();
        let (from, code, text) = letters.abort.as_ref()?;
        Some(
            Error::new(remote_code(*code), text.clone()).who(format!("told by rank {}", self.rank_of(*from))),
        )
    }

    /// Tells all connected ranks.
    pub(super) fn tell(&self, saying: Saying) {
        let word = self.word(saying);
        for &m in &self.members {
            if let Some(c) = self.fabric.conn(m as usize) {
                c.tell(&word);
            }
        }
    }

    /// Looks at everything that may end a wait with an error. `moved`: some call has moved, if not all.
    pub(super) fn check(&mut self, moved: bool) -> Result<()> {
        let now = Instant::now();
        let last = self.checked.get_or_insert(Checked { still: now, looked: now });
        if moved {
            last.still = now;
        }
        // Not at once: most waits are shorter than a look at all peers.
        if now - last.still < CHECK && now - last.looked < CHECK_MOVING {
            return Ok(());
        }
        *last = Checked { still: now, looked: now };
        // Words also come over connections that these calls do not use.
        self.fabric.pump();
        self.fabric.listen();
        if let Some(e) = self.told() {
            return Err(e);
        }
        if let Some(mut task) = self.queue.pop_front() {
            let r = guarded(|| self.look(&mut task, now));
            self.queue.push_front(task);
            r?;
        }
        for i in 0..self.side.len() {
            let Some(mut task) = self.side.pop_front() else { break };
            let r = guarded(|| self.look(&mut task, now));
            self.side.push_back(task);
            if let Err(e) = r {
                // As they were.
                self.side.rotate_right(i + 1);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Tells the ranks that have asked of which call a message of ours is.
    fn answer(&self) {
        let asked = std::mem::take(&mut self.post.open().asked);
        for (member, fingerprint) in asked {
            // Later calls first. Uneven ones are not kept: their messages say themselves what they are.
            let found = (0..RECENT).map(|i| self.seq.wrapping_sub(i)).find_map(|seq| {
                let collectives = self.prepared.iter().filter(|p| p.key.verb.collective().is_some());
                let mut of_it = collectives.filter(|p| p.fingerprint(seq) == fingerprint);
                Some((seq, of_it.next()?.key.text()))
            });
            if let Some((seq, text)) = found
                && let Some(c) = self.fabric.conn(member)
            {
                c.tell(&self.word(Saying::Mine { fingerprint, seq, text }));
            }
        }
    }

    /// One task that stands still.
    fn look(&mut self, task: &mut Task, now: Instant) -> Result<()> {
        self.answer();
        let since = *task.watch.since.get_or_insert(now);
        let waited = now - since;
        // It may just have moved, beside others.
        if !waited.is_zero() {
            self.show(task, waited);
        }
        if let Stage::Running { engine, .. } = &task.stage {
            if let Some(b) = engine.blocked().iter().find(|b| b.fault).copied() {
                return self.fault(task, b, now);
            }
            for b in engine.blocked() {
                let peer = self.owner[b.link as usize];
                if let Some(gone) = self.gone(peer) {
                    // Its last messages came before that word, but maybe after the lanes were looked at.
                    if *task.watch.gone.get_or_insert(task.watch.passes) != task.watch.passes {
                        if gone == Gone::Died {
                            self.recorder.death(peer);
                        }
                        return Err(self.lost(peer, gone, position(task)));
                    }
                }
            }
        }
        if waited > LONG {
            if !task.watch.told {
                task.watch.told = true;
                self.tell(Saying::Call { seq: task.seq, text: task.work.text() });
            }
            self.compare(task, now)?;
        }
        if waited > self.config.timeout {
            if let Stage::Connecting(_) = task.stage {
                return Err(self.unmet(task));
            }
            let peer = match &task.stage {
                Stage::Running { engine, .. } => engine.blocked().first().map(|b| b.link),
                _ => None,
            };
            let peer =
                peer.map(|l| format!(", waits for rank {}", self.owner[l as usize])).unwrap_or_default();
            return Err(Error::timeout(format!("nothing moved for {:.1} s", waited.as_secs_f64()))
                .who(position(task) + &peer)
                .hint(
                    "see what the rank that is waited for is doing; GRACCL_TIMEOUT (seconds) sets the limit",
                ));
        }
        Ok(())
    }

    /// Shows the first of the calls that stand still to whoever looks from outside.
    fn show(&self, task: &Task, waited: Duration) {
        if task.work.key.verb.collective().is_none() && !self.queue.is_empty() {
            return;
        }
        let (at, peers) = match &task.stage {
            Stage::Running { engine, .. } => {
                let peers = engine.blocked().iter().map(|b| self.owner[b.link as usize]);
                (engine.blocked().first().copied(), peers.collect())
            }
            Stage::Connecting(plan) => (None, self.missing(plan)),
            Stage::Fresh => return,
        };
        self.recorder.stuck(&record::Position {
            seq: task.seq,
            lane: at.map_or(0, |b| b.lane as u32),
            tile: at.map_or(0, |b| b.tile),
            op: at.map_or(0, |b| b.op),
            peers: &peers,
            waited,
            limit: Some(self.config.timeout),
            text: &|| place(task),
        });
    }

    /// Ranks that a plan needs links to that are not there.
    fn missing(&self, plan: &Plan) -> Vec<u32> {
        let mut peers: Vec<u32> = plan
            .ends()
            .into_iter()
            .filter(|end| !self.ports.contains_key(end))
            .map(|(peer, _)| peer)
            .collect();
        peers.dedup();
        peers
    }

    /// The error of a task that never got its links.
    fn unmet(&self, task: &Task) -> Error {
        let Stage::Connecting(plan) = &task.stage else { return Error::internal("links were there") };
        let peer = self.missing(plan).first().copied().unwrap_or(0);
        let mut e = placed(self.fabric.late(self.members[peer as usize] as usize), task);
        if !e.hint.contains("GRACCL_TIMEOUT") {
            e.hint += "; GRACCL_TIMEOUT (seconds) sets the limit";
        }
        e
    }

    /// A link is broken, or its message belongs to another call.
    fn fault(&mut self, task: &mut Task, b: Blocked, now: Instant) -> Result<()> {
        let first = task.watch.fault.is_none();
        let since = *task.watch.fault.get_or_insert(now);
        let rank = self.owner[b.link as usize] as usize;
        let who = position(task);
        match self.links[b.link as usize].fault() {
            Some(Fault::Fingerprint { got }) => {
                let member = self.members[rank] as usize;
                // The peer will find the same, or is told now. It may have gone on since, and what it calls by now
                // is not the reason then: so it is asked.
                if first {
                    task.watch.told = true;
                    self.tell(Saying::Call { seq: task.seq, text: task.work.text() });
                    if let Some(c) = self.fabric.conn(member) {
                        c.tell(&self.word(Saying::Whose { fingerprint: got }));
                    }
                }
                let owned = self.post.open().owned.get(&(member, got)).cloned();
                if let Some((seq, text)) = owned {
                    if seq != task.seq || task.work.key.verb.collective().is_none() {
                        return Err(mismatch(format!(
                            "this rank's call {} is {}, and gets a message of rank {rank}'s call {seq}, {text}",
                            task.seq,
                            task.work.text()
                        )));
                    }
                    self.post.open().calls.insert(member, (seq, text));
                }
                self.compare(task, now)?;
                if now - since > LONG || self.gone(rank as u32).is_some() {
                    return Err(mismatch(stray(task, rank, got)));
                }
                Ok(())
            }
            Some(Fault::Length { got }) => Err(Error::internal(format!(
                "rank {rank} sent a message of {got} bytes, another length was expected"
            ))
            .who(who)
            .hint("run with GRACCL_VERIFY=1 and report this")),
            Some(Fault::Broken(text)) => {
                // The words may know better: an orderly abort with its reason.
                if now - since < RUMOUR {
                    return Ok(());
                }
                Err(Error::remote(format!("the connection to rank {rank} broke: {text}"))
                    .who(who)
                    .hint("look at that rank's output for the cause"))
            }
            None => Err(Error::internal("a link reports a fault that it does not have").who(who)),
        }
    }

    /// An error once it is known which ranks call something else.
    fn compare(&self, task: &mut Task, now: Instant) -> Result<()> {
        let own = task.work.text();
        let letters = self.post.open();
        if task.work.key.verb.collective().is_none() {
            return Ok(());
        }
        let mut calls: Vec<(&str, Vec<usize>)> = vec![(&own, vec![self.rank])];
        let (mut heard, mut connected) = (0, 0);
        for (rank, &m) in self.members.iter().enumerate() {
            connected += usize::from(self.fabric.conn(m as usize).is_some_and(|c| !c.dead()));
            let Some((seq, text)) = letters.calls.get(&(m as usize)) else { continue };
            if *seq != task.seq || text.starts_with("send") || text.starts_with("recv") {
                continue;
            }
            heard += 1;
            match calls.iter_mut().find(|(t, _)| t == text) {
                Some((_, ranks)) => ranks.push(rank),
                None => calls.push((text, vec![rank])),
            }
        }
        if calls.len() == 1 {
            return Ok(());
        }
        // Who is the odd one is clear when all have spoken.
        if now - *task.watch.disagree.get_or_insert(now) < SETTLE && heard < connected {
            return Ok(());
        }
        calls.sort_by_key(|(_, ranks)| (ranks.len(), ranks[0]));
        if let Some(&other) = calls.iter().flat_map(|(_, ranks)| ranks).find(|&&r| r != self.rank) {
            self.recorder.mismatch(task.seq, other as u32);
        }
        let parts: Vec<String> = calls
            .iter_mut()
            .map(|(text, ranks)| {
                ranks.sort_unstable();
                let list: Vec<String> = ranks.iter().map(usize::to_string).collect();
                let (who, verb) = if list.len() == 1 { ("rank", "calls") } else { ("ranks", "call") };
                format!("{who} {} {verb} {text}", list.join(", "))
            })
            .collect();
        Err(mismatch(format!("as call {}, {}", task.seq, parts.join("; "))))
    }

    /// Where the first task stands.
    pub fn position(&self) -> String {
        match self.queue.front().or(self.side.front()) {
            Some(t) => position(t),
            None => format!("rank {}", self.rank),
        }
    }

    /// Makes the communicator unusable, tells the others why, and ends all that is under way: see `settle`.
    /// Does not wait.
    #[cold]
    pub fn fail(&mut self, e: &Error) {
        if self.failed.is_some() {
            return;
        }
        // What another rank told is passed on as it is.
        let told = e.who.starts_with("told by");
        let text = if told { e.what.clone() } else { format!("rank {} failed: {e}", self.rank) };
        let saying = Saying::Abort { code: e.code as i32, text };
        self.tell(saying.clone());
        self.failed = Some(e.clone());
        self.failed_at = Some(Instant::now());
        self.written = (0..self.links.len() as u32).collect();
        self.settle();
        for c in &self.tcp {
            c.pump();
        }
        // Who is not connected may be waiting for us.
        super::super::progress::announce(&self.fabric, self.word(saying), &self.members);
        self.recorder.failed(e);
    }

    /// Ends the calls of a failed communicator, each as soon as nothing refers to its buffers any more. A rank that is
    /// stopped in the middle of writing into one goes on with that when it runs again, also if it has lost its
    /// connections meanwhile: so that call ends when it has written, when its process has ended, or when the
    /// communicator's timeout is over. Until then whoever drives the communicator asks again. True if any ended.
    pub(super) fn settle(&mut self) -> bool {
        let Some(e) = &self.failed else { return false };
        let patient = self.failed_at.is_some_and(|at| at.elapsed() < self.config.timeout);
        self.written.retain(|&l| {
            let link = &mut self.links[l as usize];
            if link.abandon(false) {
                return false;
            }
            let member = self.members[self.owner[l as usize] as usize] as usize;
            let writes = patient && self.fabric.conn(member).is_some_and(|c| c.lives());
            if !writes {
                link.abandon(true);
            }
            writes
        });
        let written = |task: &Task| match &task.stage {
            Stage::Running { prepared, .. } => prepared.bound.links.iter().any(|l| self.written.contains(l)),
            _ => false,
        };
        let before = self.finished.len();
        for tasks in [&mut self.queue, &mut self.side] {
            let (stay, end) = std::mem::take(tasks).into_iter().partition(|task| written(task));
            let end: VecDeque<Box<Task>> = end;
            *tasks = stay;
            self.finished.extend(end.into_iter().map(|task| (task.done, Err(e.clone()))));
        }
        self.finished.len() > before
    }

    /// Looks for news of other ranks' failures and deaths, without any call under way.
    pub fn news(&mut self) {
        self.fabric.pump();
        self.fabric.listen();
        if self.failed.is_some() {
            return;
        }
        let died = (0..self.size() as u32).find(|&p| self.gone(p) == Some(Gone::Died));
        let e = self.told().or_else(|| died.map(|p| self.lost(p, Gone::Died, format!("rank {}", self.rank))));
        if let Some(e) = e {
            self.fail(&e);
        }
    }
}

/// The error with the place where it happened, unless it was told by another rank.
pub(super) fn placed(mut e: Error, task: &Task) -> Error {
    if !e.who.contains("told by") {
        let at = position(task);
        e.who = if e.who.is_empty() { at } else { format!("{}, {at}", e.who) };
    }
    e
}

/// What call a task is, and where in it.
fn position(task: &Task) -> String {
    format!("call {}: {}, {}", task.seq, task.work.text(), place(task)).trim_end_matches(", ").into()
}

/// A message from `rank` with a fingerprint that is not the task's.
fn stray(task: &Task, rank: usize, got: u32) -> String {
    let own = format!("call {}, {}", task.seq, task.work.text());
    if let Stage::Running { prepared, .. } = &task.stage
        && task.work.between_two()
        && let Some(sent) = marked(got ^ prepared.fingerprint(task.seq))
    {
        let Key { dtype, .. } = task.work.key;
        let expected = task.work.expects(rank);
        return format!(
            "rank {rank} sent {sent} where this rank's {own}, expects {expected} {} of it (if rank {rank} called the same)",
            dtype.name()
        );
    }
    format!("rank {rank} sent a message of another call than this rank's {own}")
}

/// Where in its call a task is; empty if that says nothing.
fn place(task: &Task) -> String {
    match &task.stage {
        Stage::Fresh | Stage::Connecting(_) => "connecting".into(),
        Stage::Running { prepared, engine, .. } => {
            let Some(b) = engine.blocked().first() else { return String::new() };
            let route = &prepared.route;
            let step = match route.program.lanes.get(b.lane) {
                Some(lane) => schedule::describe(lane, b.op as usize),
                None => String::new(),
            };
            let name = route.algorithm.map_or("message", |a| a.name);
            format!("{name}, tile {} of {}, step {}: {step}", b.tile, prepared.tiling.tiles(), b.op)
        }
    }
}

pub fn after_failure(e: &Error) -> Error {
    Error { what: format!("the communicator failed earlier: {}", e.what), ..e.clone() }
        .hint("destroy it and make a new one, or shrink it to the ranks that live")
}

pub fn aborted(position: String) -> Error {
    Error::new(Code::Aborted, "the communicator was aborted here")
        .who(position)
        .hint("destroy it; make a new one to go on")
}

/// Part of this library, or memory that was lent to it, is not as it should be.
pub fn panicked() -> Error {
    Error::internal("graccl panicked while calls of this communicator were under way")
        .hint("the panic's own message says where; report it, with GRACCL_DEBUG=warn if it does not show")
}

fn mismatch(what: String) -> Error {
    Error::usage(format!("ranks disagree: {what}"))
        .hint("all ranks must make the same calls in the same order, with the same count, type and operation, and the same GRACCL_ALGO and GRACCL_TRANSPORT")
}

/// The code of another rank's failure as it concerns us.
fn remote_code(code: i32) -> Code {
    const SAME: [Code; 3] = [Code::InvalidUsage, Code::Timeout, Code::Aborted];
    SAME.into_iter().find(|c| *c as i32 == code).unwrap_or(Code::RemoteError)
}

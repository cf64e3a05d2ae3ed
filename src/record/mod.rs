//! The flight recorder: what this process's communicators are doing, for others to read while it hangs.
//!
//! A process has one anonymous memfd, "graccl-status", that it maps and writes to. Whoever may look
//! into the process (the same user) finds it in `/proc/PID/fd` and reads it there: [`snapshot`] does
//! that, `graccl status` shows it. The process takes no part in being read, so it may be stuck, stopped
//! or deep in somebody else's code. Nothing is left behind when it ends.
//!
//! Writing costs a call four plain stores. Texts are written once per shape of a call
//! ([`Recorder::plan`]); the clock is read for calls that are worth it, and where a rank waits long.
//!
//! # How a communicator uses it
//!
//! ```no_run
//! # use std::time::Duration;
//! # use graccl::record::{Identity, Position, Recorder, Shape, State};
//! # let (job, context, rank, size, world, hosts) = (1, 2, 0, 2, [0, 1], ["a", "a"]);
//! # let error = graccl::Error::internal("");
//! // Before it joins, so that a job that hangs there is seen as well; `job` is 0 if it is not known yet.
//! let mut me = Identity { job, context: 0, parent: None, rank, size, world: &[], hosts: &[] };
//! let r = Recorder::open(&me);
//! // When all ranks have joined.
//! me = Identity { context, world: &world, hosts: &hosts, ..me };
//! r.identify(&me);
//! r.state(State::Ready);
//! // Where a call is prepared; the plan is kept with what was prepared.
//! let plan = r.plan(&Shape {
//!     text: "all_reduce of 10 float (sum)",
//!     algorithm: "direct",
//!     tiles: 1,
//!     bytes: 40,
//!     bus: 1.0,
//!     collective: true,
//! });
//! // Every call. The last argument: read the clock (from 64 KiB on).
//! r.begin(17, plan, false);
//! // Where it waits: at most every millisecond, in the look at peers, clock and abort flag.
//! r.stuck(&Position {
//!     seq: 17,
//!     lane: 0,
//!     tile: 0,
//!     op: 3,
//!     peers: &[1],
//!     waited: Duration::from_millis(3),
//!     limit: Some(Duration::from_secs(300)),
//!     text: &|| "direct, tile 0 of 1, step 3: waits for chunk 1 from rank 1".into(),
//! });
//! r.moved(); // when it goes on; costs a load if nothing was recorded as stuck
//! r.end(17, plan);
//! // After the others have been told: with a trace it takes a moment.
//! r.failed(&error);
//! ```
//!
//! Methods take `&self` and any thread may call them, but it is the thread that holds the
//! communicator's lock that makes calls begin and end: two that do so at once may lose a count. If the
//! system refuses the memory, everything works and nobody sees it.

pub mod layout;
mod memory;
pub mod snapshot;
mod trace;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::Error;
use layout::*;
use memory::{Record, now};

#[doc(hidden)]
pub use snapshot::{fuzz_patches, fuzz_read};

/// Who a communicator is.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The same on all ranks of the job, and public. 0: not known yet.
    pub job: u64,
    /// The same on all ranks of the communicator; within the job no other one has it.
    pub context: u64,
    /// Context of the communicator that this one was made of.
    pub parent: Option<u64>,
    /// This rank, and how many there are.
    pub rank: usize,
    pub size: usize,
    /// For every rank, its rank in the job's first communicator. Empty: the same.
    pub world: &'a [u32],
    /// For every rank, the name of its host. Empty: not known yet.
    pub hosts: &'a [&'a str],
}

/// What calls of one kind have in common.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// As "all_reduce of 10 float (sum)". For a collective the same on all ranks: readers take
    /// different texts of one call for a mistake of the program.
    pub text: &'a str,
    pub algorithm: &'a str,
    pub tiles: u32,
    /// The size that algbw counts, and busbw / algbw, both as in nccl-tests.
    pub bytes: u64,
    pub bus: f64,
    /// Its number counts the communicator's collectives, so it means the same call on all ranks.
    /// Otherwise (a send, a receive) it is this rank's own count.
    pub collective: bool,
}

/// What [`Recorder::plan`] made of a shape. The default is one that nobody knows the text of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Low half of a call's word.
    word: u32,
    bytes: u64,
}

/// What a communicator is up to, apart from calls.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not all ranks are there.
    Joining = 0,
    Ready = 1,
    /// Unusable, after an error.
    Failed = 2,
    /// Its calls are over, and others have been told.
    Finished = 3,
}

impl State {
    /// One word, for people and for JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Joining => "joining",
            State::Ready => "ready",
            State::Failed => "failed",
            State::Finished => "finished",
        }
    }
}

/// What an event says.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A communicator was opened.
    Init = 1,
    /// A communicator was dropped.
    Destroy = 2,
    /// A call began, and ended. Only of calls that are timed.
    Begin = 3,
    End = 4,
    /// The same of calls that run beside others.
    Start = 5,
    Finish = 6,
    /// A call waits for long, and goes on.
    Stuck = 7,
    Moved = 8,
    Fail = 9,
    /// A rank makes another call than this one.
    Mismatch = 10,
    /// A rank is dead.
    Death = 11,
}

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::Init,
        Kind::Destroy,
        Kind::Begin,
        Kind::End,
        Kind::Start,
        Kind::Finish,
        Kind::Stuck,
        Kind::Moved,
        Kind::Fail,
        Kind::Mismatch,
        Kind::Death,
    ];

    /// One word, for people and for JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Init => "init",
            Kind::Destroy => "destroy",
            Kind::Begin => "begin",
            Kind::End => "end",
            Kind::Start => "start",
            Kind::Finish => "finish",
            Kind::Stuck => "stuck",
            Kind::Moved => "moved",
            Kind::Fail => "fail",
            Kind::Mismatch => "mismatch",
            Kind::Death => "death",
        }
    }
}

/// Where a call stands still.
pub struct Position<'a> {
    /// Number of the call.
    pub seq: u32,
    pub lane: u32,
    pub tile: u32,
    pub op: u32,
    /// Ranks of this communicator that are waited for, those of all blocked lanes; the first is that of
    /// the text. Some are kept ([`layout::PEERS`]).
    pub peers: &'a [u32],
    /// For how long, and for how long in all before it is an error.
    pub waited: Duration,
    pub limit: Option<Duration>,
    /// The place for people: only asked for when it is another one than last time.
    pub text: &'a dyn Fn() -> String,
}

/// The record of one communicator. Dropping it removes it from the list.
pub struct Recorder {
    entry: *const Entry,
    /// Where the entry lies, if not in memory of our own that nobody sees.
    home: Option<(&'static Record, usize)>,
    _own: Option<Box<Entry>>,
    /// Which of the process's communicators, from 0.
    serial: u32,
    stuck: AtomicBool,
    /// Every call is timed.
    traced: bool,
    rank: AtomicU32,
}

// SAFETY: the pointer is to `_own` or to a mapping that stays; an entry is made of atomics.
unsafe impl Send for Recorder {}
unsafe impl Sync for Recorder {}

impl Recorder {
    /// Begins the record of a communicator, in the state `Joining`.
    pub fn open(me: &Identity) -> Recorder {
        let home = memory::record().and_then(|r| Some((r, r.take()?)));
        let own = home.is_none().then(|| {
            // SAFETY: zeros are a value of every atomic.
            unsafe { Box::new(std::mem::zeroed::<Entry>()) }
        });
        let entry: *const Entry = match (&home, &own) {
            (Some((r, i)), _) => r.entry(*i),
            (_, own) => &**own.as_ref().expect("made above"),
        };
        let serial = home.map_or(0, |(r, _)| r.opened.fetch_add(1, Ordering::Relaxed));
        let recorder = Recorder {
            entry,
            home,
            _own: own,
            serial,
            stuck: AtomicBool::new(false),
            traced: home.is_some() && trace::wanted().is_some(),
            rank: AtomicU32::new(0),
        };
        if let Some((r, i)) = home {
            r.live.fetch_add(1, Ordering::Relaxed);
            let (e, hot) = (r.entry(i), &r.entry(i).hot);
            for w in hot.open.iter().chain(&hot.last).chain([&hot.calls, &hot.bytes]) {
                w.store(0, Ordering::Relaxed);
            }
            hot.state.store(State::Joining as u32, Ordering::Relaxed);
            guarded(&e.stuck.version, || e.stuck.on.store(0, Ordering::Relaxed));
            guarded(&e.error.version, || e.error.when.store(0, Ordering::Relaxed));
            e.identity.opened.store(now(), Ordering::Relaxed);
            recorder.fill(me);
            r.publish(i);
            recorder.event(Kind::Init, now(), 0, 0, None);
        }
        recorder
    }

    /// Says who the communicator is, once more is known than when it was opened.
    pub fn identify(&self, me: &Identity) {
        if let Some((r, i)) = self.home
            && !r.forked()
        {
            r.hide(i);
            self.fill(me);
            r.publish(i);
        }
    }

    fn fill(&self, me: &Identity) {
        let id = &self.entry().identity;
        let set = |to: &AtomicU32, v: usize| to.store(v as u32, Ordering::Relaxed);
        id.job.store(me.job, Ordering::Relaxed);
        id.context.store(me.context, Ordering::Relaxed);
        id.parent.store(me.parent.unwrap_or(0), Ordering::Relaxed);
        set(&id.has_parent, me.parent.is_some() as usize);
        set(&id.rank, me.rank);
        set(&id.size, me.size);
        // Ranks in runs: consecutive ones, and those with equal distances, take one.
        let (mut n, mut at) = (0, 0);
        while at < me.world.len() && n < RUNS {
            let step = |i: usize| Some(me.world.get(i + 1)?.wrapping_sub(me.world[i]));
            let (first, by) = (at, step(at).unwrap_or(0));
            at += 1;
            while at < me.world.len() && step(at - 1) == Some(by) {
                at += 1;
            }
            set(&id.run[n].at, first);
            set(&id.run[n].first, me.world[first] as usize);
            set(&id.run[n].step, by as usize);
            n += 1;
        }
        set(&id.runs, n);
        let mut names: Vec<&str> = Vec::new();
        let mut n = 0;
        for (at, host) in me.hosts.iter().enumerate() {
            if n == HOST_RUNS {
                break;
            }
            if at > 0 && me.hosts[at - 1] == *host {
                continue;
            }
            let known = names.iter().position(|name| name == host).unwrap_or_else(|| {
                names.push(host);
                names.len() - 1
            });
            // Past the table readers are told that they do not know.
            if let Some(text) = id.host.get(known) {
                text.set(host);
            }
            set(&id.host_run[n].at, at);
            set(&id.host_run[n].host, known);
            n += 1;
        }
        set(&id.host_runs, n);
        set(&id.hosts, names.len().min(HOSTS));
        self.rank.store(me.rank as u32, Ordering::Relaxed);
        if self.traced {
            trace::communicator(self.serial, me);
        }
    }

    #[inline]
    fn entry(&self) -> &Entry {
        // SAFETY: see `entry`'s field; it lives as long as we do.
        unsafe { &*self.entry }
    }

    /// Describes a shape of calls. Texts are kept for the last [`layout::PLANS`] shapes of the process;
    /// calls of older ones are still recorded, without their texts.
    pub fn plan(&self, shape: &Shape) -> Plan {
        let own = if shape.collective { 0 } else { OWN };
        let mut plan = Plan { word: own, bytes: shape.bytes };
        let Some((r, _)) = self.home else { return plan };
        let id = r.next_plan();
        let slot = r.plan(id);
        let written = guarded(&slot.version, || {
            slot.id.store(id | own, Ordering::Relaxed);
            slot.bytes.store(shape.bytes, Ordering::Relaxed);
            slot.bus.store(shape.bus.to_bits(), Ordering::Relaxed);
            slot.tiles.store(shape.tiles, Ordering::Relaxed);
            slot.algorithm.set(shape.algorithm);
            slot.text.set(shape.text);
        });
        if written {
            plan.word |= id;
        }
        plan
    }

    /// A call begins. `seq`: its number, which no other call of its kind that is under way has. `timed`:
    /// worth reading the clock for (25 ns).
    #[inline]
    pub fn begin(&self, seq: u32, plan: Plan, timed: bool) {
        self.enter(seq, plan, timed, Kind::Begin);
    }

    /// The call of this number is over.
    #[inline]
    pub fn end(&self, seq: u32, plan: Plan) {
        self.leave(seq, plan, Kind::End);
    }

    /// As [`begin`](Self::begin), for a call beside which others may begin.
    #[inline]
    pub fn start(&self, seq: u32, plan: Plan, timed: bool) {
        self.enter(seq, plan, timed, Kind::Start);
    }

    /// The started call of this number is over.
    #[inline]
    pub fn finish(&self, seq: u32, plan: Plan) {
        self.leave(seq, plan, Kind::Finish);
    }

    #[inline]
    fn enter(&self, seq: u32, plan: Plan, timed: bool, kind: Kind) {
        let hot = &self.entry().hot;
        let word = u64::from(seq) << 32 | u64::from(plan.word);
        hot.last[usize::from(plan.word & OWN != 0)].store(word, Ordering::Relaxed);
        // Not a locked addition: who calls holds the communicator's lock.
        let add = |to: &AtomicU64, v: u64| {
            to.store(to.load(Ordering::Relaxed).wrapping_add(v), Ordering::Relaxed);
        };
        add(&hot.calls, 1);
        add(&hot.bytes, plan.bytes);
        if timed | self.traced {
            return self.enter_timed(seq, word, plan.bytes, kind);
        }
        // Of two calls the older one stays: it is the one that the other waits for.
        let open = &hot.open[place(seq, plan)];
        if open.load(Ordering::Relaxed) == 0 {
            open.store(word, Ordering::Relaxed);
        }
    }

    #[cold]
    #[inline(never)]
    fn enter_timed(&self, seq: u32, word: u64, bytes: u64, kind: Kind) {
        let hot = &self.entry().hot;
        let word = word | u64::from(TIMED);
        let at = place(seq, Plan { word: word as u32, bytes });
        let time = now();
        if hot.open[at].load(Ordering::Relaxed) == 0 {
            hot.since[at].store(time, Ordering::Relaxed);
            hot.open[at].store(word, Ordering::Release);
        }
        self.event(kind, time, word, bytes, None);
    }

    #[inline]
    fn leave(&self, seq: u32, plan: Plan, kind: Kind) {
        let open = &self.entry().hot.open[place(seq, plan)];
        let word = u64::from(seq) << 32 | u64::from(plan.word);
        let found = open.load(Ordering::Relaxed);
        if found == word {
            open.store(0, Ordering::Relaxed);
        } else {
            self.leave_timed(open, word | u64::from(TIMED), plan.bytes, kind);
        }
        self.moved();
    }

    #[cold]
    #[inline(never)]
    fn leave_timed(&self, open: &AtomicU64, word: u64, bytes: u64, kind: Kind) {
        let ours = open.load(Ordering::Relaxed) == word;
        if ours {
            open.store(0, Ordering::Relaxed);
        }
        if ours || self.traced {
            self.event(kind, now(), word, bytes, None);
        }
    }

    /// The call at hand (the oldest, of several) stands still. Costs a look at the clock and a few
    /// stores, so it may be called every millisecond.
    #[cold]
    pub fn stuck(&self, p: &Position) {
        let s = &self.entry().stuck;
        let time = now();
        let first = p.peers.first().copied().unwrap_or(u32::MAX);
        let npeers = p.peers.len().min(PEERS) as u32;
        let same = s.on.load(Ordering::Relaxed) != 0
            && [(&s.seq, p.seq), (&s.lane, p.lane), (&s.tile, p.tile), (&s.op, p.op), (&s.npeers, npeers)]
                .iter()
                .all(|(a, b)| a.load(Ordering::Relaxed) == *b)
            && p.peers.iter().zip(&s.peers).all(|(a, b)| *a == b.load(Ordering::Relaxed));
        if same {
            // A word of its own: no reader can see half of it.
            s.looked.store(time, Ordering::Relaxed);
            return;
        }
        let text = (p.text)();
        guarded(&s.version, || {
            for (to, v) in [(&s.seq, p.seq), (&s.lane, p.lane), (&s.tile, p.tile), (&s.op, p.op)] {
                to.store(v, Ordering::Relaxed);
            }
            s.npeers.store(npeers, Ordering::Relaxed);
            for (to, v) in s.peers.iter().zip(p.peers) {
                to.store(*v, Ordering::Relaxed);
            }
            let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
            s.since.store(time.saturating_sub(ns(p.waited)), Ordering::Relaxed);
            s.looked.store(time, Ordering::Relaxed);
            s.limit.store(p.limit.map_or(u64::MAX, ns), Ordering::Relaxed);
            s.text.set(&text);
            s.on.store(1, Ordering::Relaxed);
        });
        if !self.stuck.swap(true, Ordering::Relaxed) {
            self.event(Kind::Stuck, time, u64::from(p.seq) << 32, 0, Some(first));
        }
    }

    /// What stood still goes on.
    #[inline]
    pub fn moved(&self) {
        if self.stuck.load(Ordering::Relaxed) {
            self.unstick();
        }
    }

    #[cold]
    #[inline(never)]
    fn unstick(&self) {
        if self.stuck.swap(false, Ordering::Relaxed) {
            let s = &self.entry().stuck;
            let call = u64::from(s.seq.load(Ordering::Relaxed)) << 32;
            guarded(&s.version, || s.on.store(0, Ordering::Relaxed));
            self.event(Kind::Moved, now(), call, 0, None);
        }
    }

    /// Another state. For `Failed` there is [`failed`](Self::failed), which also says why.
    pub fn state(&self, state: State) {
        self.entry().hot.state.store(state as u32, Ordering::Relaxed);
    }

    /// The communicator became unusable. What it stood at stays to be seen. Writes the trace, if one is
    /// wanted: so tell the other ranks first.
    #[cold]
    pub fn failed(&self, e: &Error) {
        let f = &self.entry().error;
        let text = e.to_string();
        // Somebody who writes at the same time has failed for a reason of his own: one is enough.
        guarded(&f.version, || {
            f.code.store(e.code as u32, Ordering::Relaxed);
            f.when.store(now(), Ordering::Relaxed);
            f.text.set(&text);
        });
        self.state(State::Failed);
        self.event(Kind::Fail, now(), 0, 0, None);
        if let Some((r, _)) = self.home
            && self.traced
        {
            trace::write(r);
        }
    }

    /// This rank and `peer` make different calls of the number `seq`.
    #[cold]
    pub fn mismatch(&self, seq: u32, peer: u32) {
        self.event(Kind::Mismatch, now(), u64::from(seq) << 32, 0, Some(peer));
    }

    /// `peer` has died.
    #[cold]
    pub fn death(&self, peer: u32) {
        self.event(Kind::Death, now(), 0, 0, Some(peer));
    }

    fn event(&self, kind: Kind, time: u64, call: u64, bytes: u64, peer: Option<u32>) {
        if let Some((r, _)) = self.home {
            let who = u64::from(self.serial) << 32 | u64::from(peer.unwrap_or(u32::MAX));
            r.event(kind, time, call, bytes, who);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let Some((r, i)) = self.home else { return };
        if r.forked() {
            return;
        }
        self.event(Kind::Destroy, now(), 0, 0, None);
        r.free(i);
        if r.live.fetch_sub(1, Ordering::Relaxed) == 1 && self.traced {
            trace::write(r);
        }
    }
}

/// Where a call's word goes: collectives and this rank's own calls have numbers apart.
#[inline]
fn place(seq: u32, plan: Plan) -> usize {
    (seq as usize ^ (plan.word & OWN) as usize >> 27) % OPEN
}

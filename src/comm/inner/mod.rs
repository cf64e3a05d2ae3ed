//! The working part of a communicator: prepares calls, runs them, and sees what goes wrong. Used by one
//! thread at a time, under the communicator's lock.
//!
//! ```text
//! call -> prepared? -- yes, and nothing else under way --> runs on the caller's thread
//!                  \-- no --> Task: fresh -> connecting -> running -> over      advanced by any thread
//!
//! mod      calls under way      prepare  algorithm, links, geometry      trouble  waits that end in errors
//! ```
//!
//! Collectives run one after the other, in the order of the calls. Sends and receives run beside them, those
//! with the same peer in the same direction one after the other.

mod prepare;
mod trouble;
#[cfg(test)]
mod trouble_tests;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::Shared;
use super::call::{Buffers, Key, QUICK, Verb, Work};
use super::config::{Config, TransportChoice};
use super::fabric::{Fabric, Post, Remains};
use super::pause::{Manner, Need};
use super::request::Done;
use super::words::{Saying, Word};
use crate::exec::{Blocked, Engine, Idle, Launch, Pack, Pause, Progress, Ran};
use crate::memory::Block;
use crate::record::{self, Identity, Recorder, State};
use crate::reduce::{self};
use crate::schedule::{self, Groups};
use crate::transport::AnyLink;
use crate::transport::tcp::TcpConn;
use crate::tune::{Choice, Layout};
use crate::{Error, Result};

pub use prepare::Prepared;
use prepare::{Plan, Route, RouteKey};
use trouble::{Checked, Watch, placed};
pub use trouble::{aborted, after_failure, panicked};

/// Outputs from this size on are stored past the caches when not in place: they exceed L2. In place too, where
/// nothing of what is stored was read before, but only from where they exceed L3: 16 MiB took 416 us instead
/// of 680.
const STREAM_MIN: usize = 1 << 20;
const STREAM_GATHER_MIN: usize = 16 << 20;

/// A call under way.
pub struct Task {
    work: Work,
    seq: u32,
    stage: Stage,
    done: Arc<Done>,
    /// What the flight recorder was told that it is, once it has begun.
    recorded: Option<record::Plan>,
    /// The input times this rank's factor, where it has no other place: only to be kept.
    _scaled: Vec<u8>,
    watch: Watch,
}

enum Stage {
    Fresh,
    Connecting(Box<Plan>),
    Running { prepared: Arc<Prepared>, engine: Box<Engine>, scratch: Vec<u8> },
}
enum Step {
    Over,
    Moved,
    Stuck,
}

/// See the module's text.
pub struct Inner {
    /// What it is the working part of.
    pub me: Weak<Shared>,
    pub fabric: Arc<Fabric>,
    pub ctx: u64,
    /// The ranks' numbers in the family.
    pub members: Vec<u32>,
    pub rank: usize,
    pub config: Config,
    pub layout: Layout,
    pub manner: Manner,
    post: Arc<Post>,
    recorder: Recorder,
    links: Vec<AnyLink>,
    /// The rank of each link.
    owner: Vec<u32>,
    /// First link by rank and port.
    ports: HashMap<(u32, u8), u32>,
    blocks: Vec<Block>,
    /// The memory of the first link of each rank and port, of which the first so many have huge pages.
    bases: Vec<*mut u8>,
    huge: usize,
    /// Bytes that its slots are taken to hold.
    held: usize,
    tcp: Vec<TcpConn>,
    routes: HashMap<RouteKey, Arc<Route>>,
    canonical: HashMap<RouteKey, bool>,
    prepared: Vec<Arc<Prepared>>,
    by_key: HashMap<Key, u32>,
    quick: [u32; QUICK],
    engine: Box<Engine>,
    scratch: Vec<u8>,
    seq: u32,
    /// Number of sends to and receives from each rank.
    points: HashMap<u32, [u32; 2]>,
    queue: VecDeque<Box<Task>>,
    side: VecDeque<Box<Task>>,
    /// Calls that are over and whose waiters have not been told.
    pub finished: Vec<(Arc<Done>, Result<()>)>,
    pub failed: Option<Error>,
    failed_at: Option<Instant>,
    /// Links whose peers may be writing into the memory of calls that failed, which have not ended therefore.
    written: Vec<u32>,
    /// How calls of its collective are done, whatever else would be chosen.
    forced: Option<Choice>,
    checked: Option<Checked>,
    /// Splits and shrinks of this one that were called. Apart: ranks may meet a failure after different
    /// numbers of splits, and must agree about shrinks then.
    pub splits: u32,
    pub shrinks: u32,
    /// The progress thread has it on its list.
    pub listed: bool,
}

// SAFETY: the raw pointers go to arenas that live as long as the links, or to callers' buffers, which the
// callers leave to the communicator until their calls are over.
unsafe impl Send for Inner {}

/// Yields of a blocking call before it lets other threads at the communicator: where ranks outnumber cores
/// most waits end there, and to leave a call under way costs some allocations.
const YIELDS: u32 = 16;

/// What a blocking call does while it has the communicator for itself: it spins for a short time, and
/// yields a few times.
struct Spin<'a> {
    left: u32,
    most: u32,
    yields: u32,
    tcp: &'a [TcpConn],
}

impl Idle for Spin<'_> {
    #[inline]
    fn idle(&mut self, _: &mut [AnyLink], blocked: &[Blocked]) -> Result<Pause> {
        for c in self.tcp {
            if c.pump() {
                return Ok(Pause::Again);
            }
        }
        if blocked.iter().any(|b| b.fault) {
            return Ok(Pause::Leave);
        }
        if self.left > 0 {
            self.left -= 1;
            std::hint::spin_loop();
        } else if self.yields > 0 {
            self.yields -= 1;
            std::thread::yield_now();
        } else {
            return Ok(Pause::Leave);
        }
        Ok(Pause::Again)
    }

    #[inline]
    fn moved(&mut self) {
        self.left = self.most;
    }
}

impl Inner {
    /// For `rank` of the family's `members`. `parent`: the context of the communicator that it was made
    /// from.
    pub fn new(
        fabric: Arc<Fabric>,
        ctx: u64,
        parent: Option<u64>,
        members: Vec<u32>,
        rank: usize,
        config: Config,
        recorder: Recorder,
    ) -> Inner {
        let names: Vec<&str> =
            members.iter().map(|&m| fabric.boot.members[m as usize].hostname.as_str()).collect();
        recorder.identify(&Identity {
            job: fabric.boot.job(),
            context: ctx,
            parent,
            rank,
            size: members.len(),
            world: &members,
            hosts: &names,
        });
        recorder.state(State::Ready);
        let hosts: Vec<u32> = members.iter().map(|&m| fabric.boot.hosts[m as usize]).collect();
        let groups = Groups::new(&hosts);
        // Emulated hosts share the machine's cores: their names differ only after the slash.
        fn machine(name: &str) -> &str {
            name.split('/').next().unwrap_or(name)
        }
        // All of the job's: those of other communicators want the cores, too, and of two ranks of this one that
        // are bound to one core, who spins keeps the other from answering.
        let everyone = fabric.boot.members.iter().map(|m| machine(&m.hostname));
        let local = everyone.filter(|m| *m == machine(names[rank])).count();
        let all_tcp = config.transport == TransportChoice::Tcp;
        let any_tcp = members.len() > 1 && (all_tcp || groups.len() > 1);
        let all_tcp = any_tcp && (all_tcp || hosts.len() == groups.len());
        let layout = Layout { groups, any_tcp, all_tcp };
        let manner = Manner::new(local, any_tcp);
        let post = fabric.join(ctx);
        Inner {
            me: Weak::new(),
            fabric,
            ctx,
            members,
            rank,
            config,
            layout,
            manner,
            post,
            recorder,
            links: Vec::new(),
            owner: Vec::new(),
            ports: HashMap::new(),
            blocks: Vec::new(),
            bases: Vec::new(),
            huge: 0,
            held: 0,
            tcp: Vec::new(),
            routes: HashMap::new(),
            canonical: HashMap::new(),
            prepared: Vec::new(),
            by_key: HashMap::new(),
            quick: [u32::MAX; QUICK],
            engine: Box::default(),
            scratch: Vec::new(),
            seq: 0,
            points: HashMap::new(),
            queue: VecDeque::new(),
            side: VecDeque::new(),
            finished: Vec::new(),
            failed: None,
            failed_at: None,
            written: Vec::new(),
            forced: None,
            checked: None,
            splits: 0,
            shrinks: 0,
            listed: false,
        }
    }

    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Counts calls, of all kinds.
    pub fn calls(&self) -> u32 {
        self.points.values().flatten().fold(self.seq, |n, &p| n.wrapping_add(p))
    }

    /// Gives back the memory that its messages took, unless calls are under way. Later calls work as
    /// before. The other ranks need not do the same.
    pub fn cool(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        for l in &mut self.links {
            if let AnyLink::Shm(l) = l {
                l.trim();
            }
        }
        // The next call of any kind passes `warm`.
        self.quick = [u32::MAX; QUICK];
        (self.huge, self.held) = (0, 0);
        self.scratch = Vec::new();
        true
    }

    /// No call is under way, and no peer writes for one that a panic has ended.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.side.is_empty() && self.written.is_empty()
    }

    // ---- calls ----

    /// Carries out a call at once, if it is prepared and nothing else is under way: `Some(None)`. If it
    /// has to wait for long it is left under way, to be waited for. `None`: nothing was done.
    ///
    /// # Safety
    /// The buffers are as [`Communicator::call`](super::Communicator::call) asks for.
    #[inline]
    pub unsafe fn run_prepared(
        &mut self,
        key: &Key,
        send: *const u8,
        recv: *mut u8,
    ) -> Option<Option<Arc<Done>>> {
        let p = self.prepared.get(self.quick[key.quick()] as usize)?;
        if p.key != *key || !self.queue.is_empty() || self.failed.is_some() {
            return None;
        }
        let buffers = p.fit.check(send, recv)?;
        self.seq = self.seq.wrapping_add(1);
        if self.scratch.len() < p.scratch {
            self.scratch.resize(p.scratch, 0);
        }
        let launch = launch(p, &buffers, self.seq, self.scratch.as_mut_ptr(), self.manner.inner_spin());
        let most = self.manner.spin;
        let mut spin = Spin { left: most, most, yields: YIELDS, tcp: &self.tcp };
        self.recorder.begin(self.seq, p.record, p.timed);
        // SAFETY: buffers by the caller's promise; scratch as sized above; links as bound.
        match unsafe { self.engine.run(&launch, &mut self.links, &mut spin) } {
            Ok(Ran::Done) => {
                self.recorder.end(self.seq, p.record);
                Some(None)
            }
            // `Spin` has no errors.
            Ok(Ran::Left) | Err(_) => {
                let prepared = p.clone();
                let work = Work { key: *key, buffers, each: None, factor: None };
                Some(Some(self.leave_running(work, prepared)))
            }
        }
    }

    #[cold]
    fn leave_running(&mut self, work: Work, prepared: Arc<Prepared>) -> Arc<Done> {
        let done = Arc::new(Done::default());
        let engine = std::mem::take(&mut self.engine);
        let scratch = if prepared.scratch > 0 { std::mem::take(&mut self.scratch) } else { Vec::new() };
        let recorded = Some(prepared.record);
        let stage = Stage::Running { prepared, engine, scratch };
        let watch = Watch::default();
        let task =
            Task { work, seq: self.seq, stage, done: done.clone(), recorded, _scaled: Vec::new(), watch };
        self.queue.push_back(Box::new(task));
        done
    }

    /// Puts a call behind those under way.
    #[cold]
    pub fn enqueue(&mut self, mut work: Work, done: Arc<Done>) {
        if let Some(e) = &self.failed {
            self.finished.push((done, Err(after_failure(e))));
            return;
        }
        let mut scaled = Vec::new();
        if let Some(factor) = work.factor.take() {
            // SAFETY: the buffers are the call's from here on.
            scaled = unsafe { scale(&mut work, factor, self.members.len(), self.rank) };
        }
        let point = match work.key.verb {
            Verb::Send => Some(0),
            Verb::Recv => Some(1),
            _ => None,
        };
        let (stage, watch) = (Stage::Fresh, Watch::default());
        match point {
            None => {
                self.seq = self.seq.wrapping_add(1);
                let task = Task { work, seq: self.seq, stage, done, recorded: None, _scaled: scaled, watch };
                self.queue.push_back(Box::new(task));
            }
            Some(direction) => {
                let number = &mut self.points.entry(work.key.root).or_default()[direction];
                *number = number.wrapping_add(1);
                let task = Task { work, seq: *number, stage, done, recorded: None, _scaled: scaled, watch };
                self.side.push_back(Box::new(task));
            }
        }
    }

    /// Lets everything under way advance as far as it can. True if anything moved or ended.
    pub fn advance(&mut self, abort: &AtomicBool) -> bool {
        if self.is_idle() {
            return false;
        }
        if self.failed.is_some() {
            self.fabric.listen();
            return self.settle();
        }
        let mut moved = false;
        let mut pumped = false;
        for c in &self.tcp {
            pumped |= c.pump();
        }
        if pumped {
            // What came may be what another thread waits for in `ppoll`.
            super::pause::wake(self.fabric.own);
        }
        let mut result = self.advance_queue(&mut moved).and_then(|()| self.advance_side(&mut moved));
        if result.is_ok() {
            if abort.load(Ordering::Relaxed) {
                result = Err(aborted(self.position()));
            } else if self.is_idle() {
                self.checked = None;
            } else {
                result = self.check(moved);
            }
        }
        if let Err(e) = result {
            self.fail(&e);
            moved = true;
        }
        moved | pumped
    }

    fn advance_queue(&mut self, moved: &mut bool) -> Result<()> {
        while let Some(mut task) = self.queue.pop_front() {
            match guarded(|| self.step(&mut task)) {
                Ok(Step::Over) => {
                    *moved = true;
                    self.retire(*task);
                    continue;
                }
                Ok(Step::Moved) => *moved = true,
                Ok(Step::Stuck) => {}
                Err(e) => {
                    self.queue.push_front(task);
                    return Err(e);
                }
            }
            self.queue.push_front(task);
            break;
        }
        Ok(())
    }

    fn advance_side(&mut self, moved: &mut bool) -> Result<()> {
        let mut waiting = VecDeque::new();
        let mut result = Ok(());
        let mut busy: Vec<(Verb, u32)> = Vec::new();
        while let Some(mut task) = self.side.pop_front() {
            let lane = (task.work.key.verb, task.work.key.root);
            if result.is_err() || busy.contains(&lane) {
                waiting.push_back(task);
                continue;
            }
            match guarded(|| self.step(&mut task)) {
                Ok(Step::Over) => {
                    *moved = true;
                    self.retire(*task);
                    continue;
                }
                Ok(Step::Moved) => *moved = true,
                Ok(Step::Stuck) => {}
                Err(e) => result = Err(e),
            }
            busy.push(lane);
            waiting.push_back(task);
        }
        self.side = waiting;
        result
    }

    /// Tells the flight recorder that a task has begun.
    fn record(&self, task: &mut Task, plan: record::Plan, timed: bool) {
        if task.recorded.replace(plan).is_none() {
            match task.work.key.verb.collective() {
                Some(_) => self.recorder.begin(task.seq, plan, timed),
                None => self.recorder.start(task.seq, plan, timed),
            }
        }
    }

    fn retire(&mut self, task: Task) {
        if let Some(plan) = task.recorded {
            match task.work.key.verb.collective() {
                Some(_) => self.recorder.end(task.seq, plan),
                None => self.recorder.finish(task.seq, plan),
            }
        }
        if let Stage::Running { engine, scratch, .. } = task.stage {
            // The first of several runs on with its own; one is enough to keep.
            self.engine = engine;
            if scratch.len() > self.scratch.len() {
                self.scratch = scratch;
            }
        }
        self.finished.push((task.done, Ok(())));
    }

    fn step(&mut self, task: &mut Task) -> Result<Step> {
        let mut moved = false;
        if !matches!(task.stage, Stage::Running { .. }) {
            let prepared = match self.prepare(task) {
                Ok(p) => p,
                Err(e) => return Err(placed(e, task)),
            };
            let Some(prepared) = prepared else { return Ok(Step::Stuck) };
            self.record(task, prepared.record, prepared.timed);
            let mut engine = std::mem::take(&mut self.engine);
            let scratch = vec![0; prepared.scratch];
            engine.start(&launch(&prepared, &task.work.buffers, task.seq, std::ptr::null_mut(), 0));
            task.stage = Stage::Running { prepared, engine, scratch };
            task.watch = Watch::default();
            moved = true;
        }
        let Stage::Running { prepared, engine, scratch } = &mut task.stage else {
            return Err(Error::internal("a task that is neither here nor there"));
        };
        let launch =
            launch(prepared, &task.work.buffers, task.seq, scratch.as_mut_ptr(), self.manner.inner_spin());
        task.watch.passes = task.watch.passes.wrapping_add(1);
        // SAFETY: the buffers are the task's until it is over; scratch as prepared; links as bound.
        match unsafe { engine.pass(&launch, &mut self.links) } {
            Progress::Done => Ok(Step::Over),
            Progress::Moved => {
                task.watch = Watch::default();
                self.recorder.moved();
                Ok(Step::Moved)
            }
            Progress::Stuck if moved => Ok(Step::Moved),
            Progress::Stuck => Ok(Step::Stuck),
        }
    }

    fn word(&self, saying: Saying) -> Word {
        Word { ctx: self.ctx, saying }
    }

    /// What a thread that drives this communicator may be woken by.
    pub fn need(&self, need: &mut Need) {
        for task in self.queue.front().into_iter().chain(&self.side) {
            match &task.stage {
                Stage::Running { engine, .. } => {
                    for b in engine.blocked() {
                        match self.links[b.link as usize] {
                            AnyLink::Shm(_) => need.shm = true,
                            AnyLink::Other(_) => need.tcp = true,
                        }
                    }
                }
                _ => need.other = true,
            }
        }
        need.tcp |= self.tcp.iter().any(TcpConn::wants_write);
    }

    pub fn fds(&self, fds: &mut Vec<libc::pollfd>) {
        self.fabric.fds(fds);
    }

    /// Says goodbye; what peers may still use comes back.
    pub fn leave(self) -> Remains {
        self.tell(Saying::Bye);
        // Who is connected says goodbye, too, and may have a link to us that we do not know of.
        let others = self.members.iter().map(|&m| m as usize).filter(|&m| m != self.fabric.rank);
        let peers = others.filter(|&m| self.fabric.conn(m).is_some()).collect();
        Remains {
            fabric: self.fabric,
            ctx: self.ctx,
            post: self.post,
            peers,
            links: self.links,
            blocks: self.blocks,
        }
    }

    #[cfg(test)]
    pub fn links_mut(&mut self) -> &mut Vec<AnyLink> {
        &mut self.links
    }

    /// What the survivors tell each other: see `split`.
    pub fn post(&self) -> &Arc<Post> {
        &self.post
    }
}

/// A panic as an error: the task that it happened in is not lost then, and whoever waits for it is told.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()))
}

#[inline]
fn launch<'a>(p: &'a Prepared, buffers: &Buffers, seq: u32, scratch: *mut u8, spin: u32) -> Launch<'a> {
    let in_place = buffers.in_place;
    let gathers = p.key.verb == Verb::Do(schedule::Collective::AllGather);
    let stream_min = match (in_place, gathers) {
        (false, _) => STREAM_MIN,
        (true, true) => STREAM_GATHER_MIN,
        (true, false) => usize::MAX,
    };
    Launch {
        bound: &p.bound,
        tiling: &p.tiling,
        kernel: p.kernel,
        esize: p.esize,
        input: buffers.send,
        output: buffers.recv,
        scratch,
        scratch_stride: [p.image, p.images],
        divide: p.divide,
        spin,
        fp: p.fingerprint(seq),
        stream: p.output >= stream_min,
        // In place a peer writes its reply into our buffer, where the reply belongs. Apart, it would
        // write into the caller's input; and lines of an input that are only read cost their
        // owner more to rewrite than staging them costs.
        by_ref_shm: in_place && p.ref_safe && p.reply_safe,
        by_ref_other: p.ref_safe,
        pack: p.wire.map(|wire| {
            let rest = scratch.wrapping_add(p.images * p.bound.ways() as usize);
            let work = rest.wrapping_add(rest.align_offset(64));
            Pack { wire, work, residual: buffers.residual }
        }),
    }
}

/// Multiplies the input by this rank's factor: into the output where that takes it, into the memory that
/// is returned otherwise.
///
/// # Safety
/// The call's buffers may be read and written.
unsafe fn scale(work: &mut Work, factor: crate::Factor, n: usize, rank: usize) -> Vec<u8> {
    use schedule::Collective::*;
    let Key { verb, root, count, dtype, .. } = work.key;
    let Some(c) = verb.collective() else { return Vec::new() };
    let count = match &work.each {
        Some(each) => each.send.iter().map(|e| e.at + e.count).max().unwrap_or(0),
        None => c.send_blocks(n, root as usize, rank) * count,
    };
    let takes = matches!(c, AllReduce | Scan) || (c == Reduce && rank == root as usize);
    let mut kept = Vec::new();
    let to = if takes {
        work.buffers.recv
    } else {
        kept = vec![0u8; count * dtype.size()];
        kept.as_mut_ptr()
    };
    // SAFETY: `count` elements each, the same memory or apart.
    unsafe { reduce::scale(dtype, to, work.buffers.send, count, factor) };
    work.buffers.send = to;
    work.buffers.in_place = takes;
    kept
}

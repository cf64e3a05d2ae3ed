//! The working part of a communicator: prepares calls, runs them, and sees what goes wrong. Used by one
//! thread at a time, under the communicator's lock.
//!
//! ```text
//! call -> prepared? -- yes, and nothing else under way --> runs on the caller's thread
//!                  \-- no --> Task: fresh -> connecting -> running -> over      advanced by any thread
//! ```
//!
//! Collectives run one after the other, in the order of the calls. Sends and receives run beside them, those
//! with the same peer in the same direction one after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::PlanInfo;
use super::call::{Key, QUICK, Verb, Work};
use super::config::{Config, TransportChoice};
use super::fabric::{Conn, Data, Fabric, Gone, Post, Remains};
use super::pause::{Manner, Need};
use super::request::Done;
use super::words::{Saying, Word};
use crate::exec::{BlockSpan, Blocked, Bound, Engine, Idle, Launch, Pause, Progress, Ran, Tiling};
use crate::memory::{Block, make_huge};
use crate::reduce::{self, Kernel};
use crate::schedule::{self, Algorithm, Arg, ArgKind, Groups, Lane, Op, Program};
use crate::transport::shm::{self, LINK_BYTES, ShmLink};
use crate::transport::tcp::TcpConn;
use crate::transport::{AnyLink, Fault, Link};
use crate::tune::{self, Choice, Layout};
use crate::{Code, DataType, Error, RedOp, Result};

/// Links to one peer on one port: one for each tile that may be worked on at a time.
pub const WAYS_MAX: u32 = 4;
/// The port of sends and receives; schedules use those below.
const POINT_PORT: u8 = 7;
/// Prepared calls that are kept; beyond it all are forgotten (a job with ever new counts).
const PREPARED_MAX: usize = 4096;
/// Outputs from this size on are stored past the caches when not in place: they exceed L2.
const STREAM_MIN: usize = 1 << 20;
/// Calls from this size on are worth 2 MiB pages under the slots (10-25 % at 1-4 MiB).
const HUGE_MIN: usize = 512 << 10;
/// Between looks at the clock, the words and the abort flag while nothing moves.
const CHECK: Duration = Duration::from_millis(1);
/// A wait this long makes ranks compare their calls.
const LONG: Duration = Duration::from_secs(1);
/// How long the calls of other ranks may take to come in once ranks are known to disagree.
const SETTLE: Duration = Duration::from_millis(200);
/// How long the cause of a broken connection may take to go round.
const RUMOUR: Duration = Duration::from_millis(100);
/// How long the last messages of a rank that is gone may still be on their way through TCP.
const STRAGGLE: Duration = Duration::from_millis(500);

/// What carries out an algorithm here: bound to links.
struct Route {
    algorithm: Option<&'static Algorithm>,
    bound: Arc<Bound>,
    program: Arc<Program>,
    /// Longest message of any rank, in chunks.
    longest: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct RouteKey {
    verb: Verb,
    root: u32,
    algorithm: &'static str,
    ways: u32,
}

/// Everything about a call that does not change from one time to the next.
pub struct Prepared {
    key: Key,
    route: Arc<Route>,
    tiling: Tiling,
    kernel: Kernel,
    /// Bytes of one scratch image, and of all of them.
    image: usize,
    scratch: usize,
    /// Output bytes of this rank.
    output: usize,
    ref_safe: bool,
    reply_safe: bool,
    /// Fingerprint of everything but the call's number.
    print: u32,
}

/// A call under way.
pub struct Task {
    work: Work,
    seq: u32,
    stage: Stage,
    done: Arc<Done>,
    /// The input times this rank's factor, where it has no other place: only to be kept.
    _scaled: Vec<u8>,
    watch: Watch,
}

enum Stage {
    Fresh,
    Connecting(Box<Plan>),
    Running { prepared: Arc<Prepared>, engine: Box<Engine>, scratch: Vec<u8> },
}

/// What was chosen for a call, before its links are there.
struct Plan {
    key: RouteKey,
    choice: Option<Choice>,
    program: Arc<Program>,
    longest: u32,
}

/// What is known of a task that stands still.
#[derive(Default)]
struct Watch {
    since: Option<Instant>,
    told: bool,
    /// Since when, and in which pass, a peer that is waited for is known to be gone.
    gone: Option<(Instant, u32)>,
    fault: Option<Instant>,
    disagree: Option<Instant>,
    passes: u32,
}

enum Step {
    Over,
    Moved,
    Stuck,
}

/// See the module's text.
pub struct Inner {
    pub fabric: Arc<Fabric>,
    pub ctx: u64,
    /// The ranks' numbers in the family.
    pub members: Vec<u32>,
    pub rank: usize,
    pub config: Config,
    pub layout: Layout,
    pub manner: Manner,
    post: Arc<Post>,
    links: Vec<AnyLink>,
    /// The rank of each group of `WAYS_MAX` links.
    owner: Vec<u32>,
    /// First link by rank and port.
    ports: HashMap<(u32, u8), u32>,
    blocks: Vec<Block>,
    /// Memory of links whose pages could be huge.
    small: Vec<*mut u8>,
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
    checked: Option<Instant>,
    /// Communicators made from this one.
    pub children: u32,
    /// The progress thread has it on its list.
    pub listed: bool,
}

// SAFETY: the raw pointers go to arenas that live as long as the links, or to callers' buffers, which the
// callers leave to the communicator until their calls are over.
unsafe impl Send for Inner {}

/// What a blocking call does while it has the communicator for itself: it spins for a short time.
struct Spin<'a> {
    left: u32,
    most: u32,
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
        if self.left == 0 || blocked.iter().any(|b| b.fault) {
            return Ok(Pause::Leave);
        }
        self.left -= 1;
        std::hint::spin_loop();
        Ok(Pause::Again)
    }

    #[inline]
    fn moved(&mut self) {
        self.left = self.most;
    }
}

fn named(config: &Config, c: schedule::Collective) -> Option<&'static Algorithm> {
    config.algorithm.as_ref().and_then(|name| Algorithm::by_name(c, name))
}

impl Inner {
    /// For `rank` of the family's `members`.
    pub fn new(fabric: Arc<Fabric>, ctx: u64, members: Vec<u32>, rank: usize, config: Config) -> Inner {
        let hosts: Vec<u32> = members.iter().map(|&m| fabric.boot.hosts[m as usize]).collect();
        let groups = Groups::new(&hosts);
        // Emulated hosts share the machine's cores: their names differ only after the slash.
        let machine = |m: u32| fabric.boot.members[m as usize].hostname.split('/').next();
        let local = members.iter().filter(|&&m| machine(m) == machine(members[rank])).count();
        let all_tcp = config.transport == TransportChoice::Tcp;
        let any_tcp = members.len() > 1 && (all_tcp || groups.len() > 1);
        let all_tcp = any_tcp && (all_tcp || hosts.len() == groups.len());
        let layout = Layout { groups, any_tcp, all_tcp };
        let manner = Manner::new(local, any_tcp);
        let post = fabric.join(ctx);
        Inner {
            fabric,
            ctx,
            members,
            rank,
            config,
            layout,
            manner,
            post,
            links: Vec::new(),
            owner: Vec::new(),
            ports: HashMap::new(),
            blocks: Vec::new(),
            small: Vec::new(),
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
            checked: None,
            children: 0,
            listed: false,
        }
    }

    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// No call is under way.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.side.is_empty()
    }

    // ---- calls ----

    /// Carries out a call at once, if it is prepared, nothing else is under way and it does not have to
    /// wait for long. Otherwise it is under way, and `Some` is to be waited for.
    ///
    /// # Safety
    /// The buffers are as [`Communicator::call`](super::Communicator::call) asks for.
    #[inline]
    pub unsafe fn run(&mut self, work: Work) -> Result<Option<Arc<Done>>> {
        if let Some(e) = &self.failed {
            return Err(after_failure(e));
        }
        let quick = self.quick[work.key.quick()] as usize;
        if let Some(p) = self.prepared.get(quick)
            && p.key == work.key
            && self.queue.is_empty()
            && work.each.is_none()
            && work.factor.is_none()
            && work.key.verb.collective().is_some()
        {
            self.seq = self.seq.wrapping_add(1);
            if self.scratch.len() < p.scratch {
                self.scratch.resize(p.scratch, 0);
            }
            let scratch = self.scratch.as_mut_ptr();
            let launch = launch(p, &work, self.seq, scratch, self.members.len(), &self.manner);
            let most = self.manner.spin;
            let mut spin = Spin { left: most, most, tcp: &self.tcp };
            // SAFETY: buffers by the caller's promise; scratch as sized above; links as bound.
            match unsafe { self.engine.run(&launch, &mut self.links, &mut spin) }? {
                Ran::Done => return Ok(None),
                Ran::Left => {
                    let prepared = p.clone();
                    return Ok(Some(self.leave_running(work, prepared)));
                }
            }
        }
        let done = Arc::new(Done::default());
        self.enqueue(work, done.clone());
        Ok(Some(done))
    }

    #[cold]
    fn leave_running(&mut self, work: Work, prepared: Arc<Prepared>) -> Arc<Done> {
        let done = Arc::new(Done::default());
        let engine = std::mem::take(&mut self.engine);
        let scratch = if prepared.scratch > 0 { std::mem::take(&mut self.scratch) } else { Vec::new() };
        let stage = Stage::Running { prepared, engine, scratch };
        let watch = Watch::default();
        let task = Task { work, seq: self.seq, stage, done: done.clone(), _scaled: Vec::new(), watch };
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
                let task = Task { work, seq: self.seq, stage, done, _scaled: scaled, watch };
                self.queue.push_back(Box::new(task));
            }
            Some(direction) => {
                let number = &mut self.points.entry(work.key.root).or_default()[direction];
                *number = number.wrapping_add(1);
                let task = Task { work, seq: *number, stage, done, _scaled: scaled, watch };
                self.side.push_back(Box::new(task));
            }
        }
    }

    /// Lets everything under way advance as far as it can. True if anything moved or ended.
    pub fn advance(&mut self, abort: &AtomicBool) -> bool {
        if self.is_idle() {
            return false;
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
            } else if moved {
                self.checked = None;
            } else {
                result = self.check();
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
            let step = self.step(&mut task);
            match step {
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
            match self.step(&mut task) {
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

    fn retire(&mut self, task: Task) {
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
            let mut engine = std::mem::take(&mut self.engine);
            let scratch = vec![0; prepared.scratch];
            engine.start(&launch(
                &prepared,
                &task.work,
                task.seq,
                std::ptr::null_mut(),
                self.members.len(),
                &self.manner,
            ));
            task.stage = Stage::Running { prepared, engine, scratch };
            task.watch = Watch::default();
            moved = true;
        }
        let Stage::Running { prepared, engine, scratch } = &mut task.stage else {
            return Err(Error::internal("a task that is neither here nor there"));
        };
        let launch =
            launch(prepared, &task.work, task.seq, scratch.as_mut_ptr(), self.members.len(), &self.manner);
        task.watch.passes = task.watch.passes.wrapping_add(1);
        // SAFETY: the buffers are the task's until it is over; scratch as prepared; links as bound.
        match unsafe { engine.pass(&launch, &mut self.links) } {
            Progress::Done => Ok(Step::Over),
            Progress::Moved => {
                task.watch = Watch::default();
                Ok(Step::Moved)
            }
            Progress::Stuck if moved => Ok(Step::Moved),
            Progress::Stuck => Ok(Step::Stuck),
        }
    }

    // ---- preparing ----

    fn choose(&mut self, key: &Key, bytes: Option<usize>) -> Result<Choice> {
        let collective = key.verb.collective().ok_or_else(|| Error::internal("a choice for a message"))?;
        let choice = match named(&self.config, collective) {
            Some(a) => tune::forced(&self.layout, a),
            None => tune::choose(collective, &self.layout, bytes),
        };
        if !self.config.deterministic || !collective.reduces() || self.canonical(key, choice.algorithm) {
            return Ok(choice);
        }
        let candidates: Vec<_> = tune::deterministic(collective, &self.layout, bytes).collect();
        for a in candidates {
            if self.canonical(key, a) {
                return Ok(tune::forced(&self.layout, a));
            }
        }
        Err(Error::usage(format!("no algorithm of {} is deterministic for these ranks", collective.name())))
    }

    /// The algorithm folds adjacent pairs of ranks.
    fn canonical(&mut self, key: &Key, a: &'static Algorithm) -> bool {
        let route = RouteKey { verb: key.verb, root: key.root, algorithm: a.name, ways: 0 };
        if let Some(&known) = self.canonical.get(&route) {
            return known;
        }
        let programs = a.programs(&self.layout.groups, key.root as usize);
        let is = schedule::is_canonical(a.collective, key.root as usize, &programs);
        self.canonical.insert(route, is);
        is
    }

    /// This rank's program of an algorithm, proved if the configuration asks for it, and the longest message of
    /// any rank.
    fn program(&self, key: &Key, a: &'static Algorithm) -> Result<(Arc<Program>, u32)> {
        for ways in 1..=WAYS_MAX {
            let route = RouteKey { verb: key.verb, root: key.root, algorithm: a.name, ways };
            if let Some(r) = self.routes.get(&route) {
                return Ok((r.program.clone(), r.longest));
            }
        }
        let (groups, root) = (&self.layout.groups, key.root as usize);
        if self.config.verify {
            schedule::verify(a, groups, root)
                .map_err(|e| Error::internal(format!("{} is refused for this job: {e}", a.name)))?;
        }
        let longest = (0..self.size()).map(|r| tune::longest_message(&a.program(r, groups, root)));
        let longest = longest.max().unwrap_or(0);
        Ok((Arc::new(a.program(self.rank, groups, root)), longest))
    }

    fn room(&self, c: &Choice) -> usize {
        if self.layout.all_tcp { c.message } else { c.message.min(shm::MESSAGE) }
    }

    /// How a call will be carried out.
    pub fn plan(&mut self, work: &Work) -> Result<PlanInfo> {
        let bytes = work.each.is_none().then(|| work.known_bytes(self.size()));
        let choice = self.choose(&work.key, bytes)?;
        let (program, longest) = self.program(&work.key, choice.algorithm)?;
        let block = work.key.count * work.key.dtype.size();
        let tiles = tune::tiles(block, program.chunks, longest, self.room(&choice));
        let transport = match (self.size(), self.layout.any_tcp, self.layout.all_tcp) {
            (1, ..) => "self",
            (_, false, _) => "shm",
            (_, true, true) => "tcp",
            (_, true, false) => "shm+tcp",
        };
        Ok(PlanInfo { algorithm: choice.algorithm.name, transport, tiles, ways: choice.ways.min(tiles) })
    }

    /// Everything that a task needs to run; `None` while links are missing.
    fn prepare(&mut self, task: &mut Task) -> Result<Option<Arc<Prepared>>> {
        let key = task.work.key;
        let cached = task.work.each.is_none();
        if cached && let Some(&i) = self.by_key.get(&key) {
            self.quick[key.quick()] = i;
            return Ok(Some(self.prepared[i as usize].clone()));
        }
        if matches!(task.stage, Stage::Fresh) {
            task.stage = Stage::Connecting(Box::new(self.think(&task.work)?));
        }
        let Stage::Connecting(plan) = &task.stage else {
            return Err(Error::internal("a running task is prepared again"));
        };
        let route = match self.routes.get(&plan.key) {
            Some(r) => r.clone(),
            None => match self.bind(plan)? {
                Some(r) => r,
                None => return Ok(None),
            },
        };
        let prepared = Arc::new(self.shape(&task.work, plan, route));
        if cached {
            if self.prepared.len() >= PREPARED_MAX {
                self.prepared.clear();
                self.by_key.clear();
                self.quick = [u32::MAX; QUICK];
            }
            let i = self.prepared.len() as u32;
            self.prepared.push(prepared.clone());
            self.by_key.insert(key, i);
            self.quick[key.quick()] = i;
        }
        Ok(Some(prepared))
    }

    fn think(&mut self, work: &Work) -> Result<Plan> {
        let key = &work.key;
        if key.verb.collective().is_none() {
            let route = RouteKey { verb: key.verb, root: key.root, algorithm: "", ways: 1 };
            let program = Arc::new(point_program(key.verb == Verb::Send, key.root));
            return Ok(Plan { key: route, choice: None, program, longest: 1 });
        }
        let bytes = work.each.is_none().then(|| work.known_bytes(self.size()));
        let choice = self.choose(key, bytes)?;
        let (program, longest) = self.program(key, choice.algorithm)?;
        let mut ways = choice.ways.min(WAYS_MAX);
        if bytes.is_some() {
            let block = key.count * key.dtype.size();
            ways = ways.min(tune::tiles(block, program.chunks, longest, self.room(&choice)));
        }
        let route = RouteKey { verb: key.verb, root: key.root, algorithm: choice.algorithm.name, ways };
        Ok(Plan { key: route, choice: Some(choice), program, longest })
    }

    /// Binds a program to links; `None` while some are missing.
    fn bind(&mut self, plan: &Plan) -> Result<Option<Arc<Route>>> {
        let mut ends: Vec<(u32, u8)> = Vec::new();
        for lane in &plan.program.lanes {
            for op in &lane.ops {
                for a in lane.srcs(op).iter().chain(lane.dsts(op)) {
                    let peers = match a.kind {
                        ArgKind::Recv => 1,
                        ArgKind::Send => a.count as usize,
                        _ => 0,
                    };
                    let ix = a.ix as usize;
                    ends.extend(lane.peers[ix..ix + peers].iter().map(|&p| (p, a.port)));
                }
            }
        }
        ends.sort_unstable();
        ends.dedup();
        let mut missing = false;
        for (peer, port) in ends {
            // All of them are begun before any is waited for.
            missing |= self.open(peer, port)?.is_none();
        }
        if missing {
            return Ok(None);
        }
        let ports = &self.ports;
        let bound = Bound::new(&plan.program, plan.key.ways, &mut |peer, port| {
            ports.get(&(peer, port)).copied().ok_or_else(|| Error::internal("a link that was not opened"))
        })?;
        let route = Arc::new(Route {
            algorithm: plan.choice.map(|c| c.algorithm),
            bound: Arc::new(bound),
            program: plan.program.clone(),
            longest: plan.longest,
        });
        self.routes.insert(plan.key, route.clone());
        Ok(Some(route))
    }

    fn word(&self, saying: Saying) -> Word {
        Word { ctx: self.ctx, saying }
    }

    /// The first of the links to a rank on a port, opened if need be; `None` while the peer is awaited.
    fn open(&mut self, peer: u32, port: u8) -> Result<Option<u32>> {
        if let Some(&first) = self.ports.get(&(peer, port)) {
            return Ok(Some(first));
        }
        let member = self.members[peer as usize] as usize;
        let fabric = self.fabric.clone();
        let conn = match fabric.connect(member) {
            Ok(Some(c)) => c,
            Ok(None) => return Ok(None),
            // That peer may have told others why it gave up, and they us: the cause says more.
            Err(e) if e.code == Code::RemoteError => return Err(self.cause(e)),
            Err(e) => return Err(e),
        };
        let lower = fabric.rank < member;
        let theirs = || self.post.open().links.get(&(member, u32::from(port))).copied();
        let first = self.links.len() as u32;
        match &conn.data {
            Data::Tcp(t) => {
                let number = if lower {
                    let n = conn.link_numbers(WAYS_MAX);
                    conn.tell(&self.word(Saying::Link { port: port.into(), place: n.into() }));
                    n
                } else {
                    match theirs() {
                        Some(n) => n as u32,
                        None => return self.awaited(&conn, peer),
                    }
                };
                for way in 0..WAYS_MAX {
                    self.links.push(AnyLink::Other(Box::new(t.link(number.wrapping_add(way))?)));
                }
                if !self.tcp.iter().any(|c| c.fd() == t.fd()) {
                    self.tcp.push(t.clone());
                }
            }
            Data::Shm(arena) => {
                let total = WAYS_MAX as usize * LINK_BYTES;
                let base = if lower {
                    let b = fabric.own.alloc(total)?;
                    self.blocks.push(b);
                    conn.tell(&self.word(Saying::Link { port: port.into(), place: b.offset as u64 }));
                    // SAFETY: our own block.
                    unsafe { fabric.own.base().add(b.offset) }
                } else {
                    let Some(offset) = theirs() else { return self.awaited(&conn, peer) };
                    let fits = arena.at(offset as usize, total).filter(|_| offset % 4096 == 0);
                    fits.ok_or_else(|| {
                        Error::remote("a peer placed a link outside its memory").who(format!("rank {peer}"))
                    })?
                };
                self.small.push(base);
                let bell = arena.page().cast_const().cast();
                for way in 0..WAYS_MAX as usize {
                    // SAFETY: a zeroed stretch of LINK_BYTES in the lower rank's arena; arena and bell
                    // stay mapped through the Arc that the link keeps.
                    let link = unsafe {
                        let base = base.add(way * LINK_BYTES);
                        ShmLink::new(base, lower, fabric.own, arena.clone(), bell, self.manner.crowded)
                    };
                    self.links.push(AnyLink::Shm(link));
                }
            }
        }
        self.owner.push(peer);
        self.ports.insert((peer, port), first);
        Ok(Some(first))
    }

    /// The lower rank is on its way through the same call, or gone.
    fn awaited(&mut self, conn: &Conn, peer: u32) -> Result<Option<u32>> {
        self.fabric.pump();
        self.fabric.listen();
        match self.gone(peer) {
            Some(gone) if !self.post.open().links.keys().any(|(r, _)| *r == conn.rank) => {
                Err(self.cause(lost(peer as usize, gone, String::new())))
            }
            _ => Ok(None),
        }
    }

    /// What a rank told as the reason of its failure, or else `e`.
    fn cause(&self, e: Error) -> Error {
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

    fn shape(&mut self, work: &Work, plan: &Plan, route: Arc<Route>) -> Prepared {
        let (key, n) = (&work.key, self.size());
        let size = key.dtype.size();
        let room = plan.choice.as_ref().map_or(shm::MESSAGE, |c| self.room(c));
        let tiles = |count: usize| tune::tiles(count * size, route.program.chunks, plan.longest, room);
        let root = key.root as usize;
        let even = if work.each.is_none() { tiles(key.count) } else { 0 };
        let spans: Vec<BlockSpan> = route
            .bound
            .blocks()
            .iter()
            .map(|&b| {
                let Some(c) = key.verb.collective() else {
                    return BlockSpan { count: key.count, tiles: even, input: 0, output: 0 };
                };
                let b = b as usize;
                let (sent, got) = (c.sent(n, root, self.rank, b), c.received(n, root, self.rank, b));
                match &work.each {
                    None => {
                        let at = |i: Option<usize>| i.unwrap_or(0) * key.count * size;
                        BlockSpan { count: key.count, tiles: even, input: at(sent), output: at(got) }
                    }
                    Some(each) => {
                        let (sent, got) = (sent.map(|i| each.send[i]), got.map(|i| each.recv[i]));
                        let count = sent.or(got).map_or(0, |e| e.count);
                        let at = |e: Option<super::Extent>| e.map_or(0, |e| e.at * size);
                        let tiles = if count == 0 { 0 } else { tiles(count) };
                        BlockSpan { count, tiles, input: at(sent), output: at(got) }
                    }
                }
            })
            .collect();
        let tiling = Tiling::new(&spans, size, route.program.chunks);
        let nrecv = key.verb.collective().map_or(1, |c| c.recv_blocks(n, root, self.rank));
        let output = if work.each.is_some() { 0 } else { nrecv * key.count * size };
        if spans.iter().map(|s| s.count * size).max().unwrap_or(0) >= HUGE_MIN {
            for p in self.small.drain(..) {
                // SAFETY: the first link's memory of a peer and port, mapped as long as its links.
                unsafe { make_huge(p, LINK_BYTES) };
            }
        }
        let image = tiling.scratch_bytes();
        let scratch = route.program.scratch as usize * image * route.bound.ways() as usize;
        let kernel = match (key.verb.collective(), self.config.deterministic) {
            (None, _) => reduce::kernel(DataType::U8, RedOp::Sum),
            (_, true) => reduce::kernel_pairs(key.dtype, key.op),
            (_, false) => reduce::kernel(key.dtype, key.op),
        };
        // A send's receiver says something else.
        let what = match key.verb {
            Verb::Send | Verb::Recv => format!("point {} {:?}", key.count, key.dtype),
            _ => format!("{} {:?}", work.text(), key.op),
        };
        let RouteKey { algorithm, ways, .. } = plan.key;
        let tiles = if work.each.is_none() { even } else { 0 };
        let text = format!("{what} {algorithm} {tiles} {ways} {}", self.config.deterministic);
        Prepared {
            key: *key,
            tiling,
            kernel,
            image,
            scratch,
            output,
            ref_safe: route.algorithm.is_none_or(|a| a.ref_safe),
            reply_safe: route.algorithm.is_none_or(|a| a.reply_safe),
            print: fnv(text.as_bytes()),
            route,
        }
    }

    // ---- trouble ----

    fn gone(&self, peer: u32) -> Option<Gone> {
        let member = self.members[peer as usize] as usize;
        if self.post.open().left.contains(&member) {
            return Some(Gone::Left);
        }
        self.fabric.conn(member).is_some_and(|c| c.dead()).then_some(Gone::Died)
    }

    fn rank_of(&self, member: usize) -> usize {
        self.members.iter().position(|&m| m as usize == member).unwrap_or(member)
    }

    /// The failure that another rank told.
    fn told(&self) -> Option<Error> {
        let letters = self.post.open();
        let (from, code, text) = letters.abort.as_ref()?;
        Some(
            Error::new(remote_code(*code), text.clone()).who(format!("told by rank {}", self.rank_of(*from))),
        )
    }

    /// Tells all connected ranks.
    fn tell(&self, saying: Saying) {
        let word = self.word(saying);
        for &m in &self.members {
            if let Some(c) = self.fabric.conn(m as usize) {
                c.tell(&word);
            }
        }
    }

    /// Looks at everything that may end a wait with an error.
    fn check(&mut self) -> Result<()> {
        let now = Instant::now();
        // Not at once: most waits are shorter than a look at all peers.
        if now - *self.checked.get_or_insert(now) < CHECK {
            return Ok(());
        }
        self.checked = Some(now);
        // Words also come over connections that these calls do not use.
        self.fabric.pump();
        self.fabric.listen();
        if let Some(e) = self.told() {
            return Err(e);
        }
        if let Some(mut task) = self.queue.pop_front() {
            let r = self.look(&mut task, now);
            self.queue.push_front(task);
            r?;
        }
        for i in 0..self.side.len() {
            let Some(mut task) = self.side.pop_front() else { break };
            let r = self.look(&mut task, now);
            self.side.push_back(task);
            if let Err(e) = r {
                // As they were.
                self.side.rotate_right(i + 1);
                return Err(e);
            }
        }
        Ok(())
    }

    /// One task that stands still.
    fn look(&mut self, task: &mut Task, now: Instant) -> Result<()> {
        let since = *task.watch.since.get_or_insert(now);
        let waited = now - since;
        if let Stage::Running { engine, .. } = &task.stage {
            if let Some(b) = engine.blocked().iter().find(|b| b.fault).copied() {
                return self.fault(task, b, now);
            }
            for b in engine.blocked() {
                let peer = self.owner[(b.link / WAYS_MAX) as usize];
                if let Some(gone) = self.gone(peer) {
                    // Its last messages may have come since the lanes were looked at, or be under way.
                    let (seen, pass) = *task.watch.gone.get_or_insert((now, task.watch.passes));
                    let tcp = matches!(self.links[b.link as usize], AnyLink::Other(_));
                    let broken = tcp && self.links[b.link as usize].fault().is_some();
                    let silent = if tcp { broken || now - seen > STRAGGLE } else { true };
                    if pass != task.watch.passes && silent {
                        return Err(lost(peer as usize, gone, position(task)));
                    }
                }
            }
        }
        if waited > LONG {
            if !task.watch.told {
                task.watch.told = true;
                self.tell(Saying::Call { seq: task.seq, text: task.work.text() });
            }
            self.compare(task, None, now)?;
        }
        if waited > self.config.timeout {
            if let Stage::Connecting(_) = task.stage {
                return Err(self.unmet(task));
            }
            let peer = match &task.stage {
                Stage::Running { engine, .. } => engine.blocked().first().map(|b| b.link / WAYS_MAX),
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

    /// The error of a task that never got its links.
    fn unmet(&self, task: &Task) -> Error {
        let Stage::Connecting(plan) = &task.stage else { return Error::internal("links were there") };
        let mut peers: Vec<u32> = plan.program.lanes.iter().flat_map(|l| l.peers.clone()).collect();
        peers.sort_unstable();
        let peer = peers.into_iter().find(|p| !self.ports.keys().any(|(r, _)| r == p));
        let peer = peer.unwrap_or(0);
        let mut e = placed(self.fabric.late(self.members[peer as usize] as usize), task);
        if !e.hint.contains("GRACCL_TIMEOUT") {
            e.hint += "; GRACCL_TIMEOUT (seconds) sets the limit";
        }
        e
    }

    /// A link is broken, or its message belongs to another call.
    fn fault(&mut self, task: &mut Task, b: Blocked, now: Instant) -> Result<()> {
        let since = *task.watch.fault.get_or_insert(now);
        let rank = self.owner[(b.link / WAYS_MAX) as usize] as usize;
        let who = position(task);
        match self.links[b.link as usize].fault() {
            Some(Fault::Fingerprint { .. }) => {
                // The peer will find the same, or is told now; its answer says what it called.
                if !task.watch.told {
                    task.watch.told = true;
                    self.tell(Saying::Call { seq: task.seq, text: task.work.text() });
                }
                self.compare(task, Some(rank), now)?;
                if now - since > LONG || self.gone(rank as u32).is_some() {
                    return Err(mismatch(format!(
                        "rank {rank} sent a message of another call than this rank's call {}, {}",
                        task.seq,
                        task.work.text()
                    )));
                }
                Ok(())
            }
            Some(Fault::Length { got }) if task.work.each.is_some() => {
                Err(mismatch(format!("rank {rank} sent {got} bytes of a block that has another count here"))
                    .who(who))
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

    /// An error once it is known which ranks call something else (`with`: that rank, whatever its number).
    fn compare(&self, task: &mut Task, with: Option<usize>, now: Instant) -> Result<()> {
        let own = task.work.text();
        let letters = self.post.open();
        if let Some(rank) = with
            && let Some((seq, text)) = letters.calls.get(&(self.members[rank] as usize))
            && (*seq != task.seq || task.work.key.verb.collective().is_none())
        {
            return Err(mismatch(format!(
                "this rank's call {} is {own}, rank {rank}'s call {seq} is {text}",
                task.seq
            )));
        }
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

    /// Makes the communicator unusable, ends all that is under way, and tells the others why.
    #[cold]
    pub fn fail(&mut self, e: &Error) {
        if self.failed.is_some() {
            return;
        }
        let saying = Saying::Abort { code: e.code as i32, text: format!("rank {} failed: {e}", self.rank) };
        self.tell(saying.clone());
        // Nothing may refer to the callers' buffers after their calls have returned.
        for l in &mut self.links {
            l.abandon();
        }
        for c in &self.tcp {
            c.pump();
        }
        // Who is not connected may be waiting for us.
        super::progress::announce(&self.fabric, self.word(saying), &self.members);
        self.failed = Some(e.clone());
        for task in std::mem::take(&mut self.queue).into_iter().chain(std::mem::take(&mut self.side)) {
            self.finished.push((task.done, Err(e.clone())));
        }
    }

    /// Looks for news of other ranks' failures and deaths, without any call under way.
    pub fn news(&mut self) {
        self.fabric.pump();
        self.fabric.listen();
        if self.failed.is_some() {
            return;
        }
        let died = (0..self.size() as u32).find(|&p| self.gone(p) == Some(Gone::Died));
        let e =
            self.told().or_else(|| died.map(|p| lost(p as usize, Gone::Died, format!("rank {}", self.rank))));
        if let Some(e) = e {
            self.fail(&e);
        }
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
        let mut peers: Vec<usize> = self.owner.iter().map(|&p| self.members[p as usize] as usize).collect();
        peers.sort_unstable();
        peers.dedup();
        Remains {
            fabric: self.fabric,
            ctx: self.ctx,
            post: self.post,
            peers,
            links: self.links,
            blocks: self.blocks,
        }
    }

    /// What the survivors tell each other: see `split`.
    pub fn post(&self) -> &Arc<Post> {
        &self.post
    }
}

/// A send or a receive as a schedule: one op.
fn point_program(send: bool, peer: u32) -> Program {
    let local = |kind| Arg { kind, port: 0, ix: 0, count: 0 };
    let message = |kind, count| Arg { kind, port: POINT_PORT, ix: 0, count };
    let args = if send {
        vec![local(ArgKind::In), message(ArgKind::Send, 1)]
    } else {
        vec![message(ArgKind::Recv, 0), local(ArgKind::Out)]
    };
    let ops = vec![Op { at: 0, len: 1, arg: 0, nsrc: 1, ndst: 1, complete: false }];
    Program { lanes: vec![Lane { ops, args, peers: vec![peer] }], blocks: 1, chunks: 1, scratch: 0 }
}

#[inline]
fn launch<'a>(
    p: &'a Prepared,
    work: &Work,
    seq: u32,
    scratch: *mut u8,
    n: usize,
    manner: &Manner,
) -> Launch<'a> {
    let in_place = work.in_place;
    Launch {
        bound: &p.route.bound,
        tiling: &p.tiling,
        kernel: p.kernel,
        esize: work.key.dtype.size(),
        input: work.send,
        output: work.recv,
        scratch,
        scratch_stride: [p.image, if p.scratch == 0 { 0 } else { p.scratch / p.route.bound.ways() as usize }],
        divide: if work.key.op == RedOp::Avg { n as u32 } else { 1 },
        spin: manner.inner_spin(),
        fp: p.print ^ seq.wrapping_mul(0x9e37_79b1),
        stream: !in_place && p.output >= STREAM_MIN,
        // In place a peer writes its reply into our buffer, where the reply belongs. Apart, it would
        // write into the caller's input; and lines of an input that are only read cost their
        // owner more to rewrite than staging them costs.
        by_ref_shm: in_place && p.ref_safe && p.reply_safe,
        by_ref_other: p.ref_safe,
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
        work.recv
    } else {
        kept = vec![0u8; count * dtype.size()];
        kept.as_mut_ptr()
    };
    // SAFETY: `count` elements each, the same memory or apart.
    unsafe { reduce::scale(dtype, to, work.send, count, factor) };
    work.send = to;
    work.in_place = takes;
    kept
}

/// The error with the place where it happened, unless it was told by another rank.
fn placed(mut e: Error, task: &Task) -> Error {
    if !e.who.contains("told by") {
        let at = position(task);
        e.who = if e.who.is_empty() { at } else { format!("{}, {at}", e.who) };
    }
    e
}

/// What call a task is, and where in it.
fn position(task: &Task) -> String {
    let text = format!("call {}: {}", task.seq, task.work.text());
    match &task.stage {
        Stage::Fresh | Stage::Connecting(_) => text + ", connecting",
        Stage::Running { prepared, engine, .. } => {
            let Some(b) = engine.blocked().first() else { return text };
            let route = &prepared.route;
            let step = match route.program.lanes.get(b.lane) {
                Some(lane) => schedule::describe(lane, b.op as usize),
                None => String::new(),
            };
            let name = route.algorithm.map_or("message", |a| a.name);
            format!("{text}, {name}, tile {} of {}, step {}: {step}", b.tile, prepared.tiling.tiles(), b.op)
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

/// A rank that is waited for is gone.
pub fn lost(rank: usize, gone: Gone, position: String) -> Error {
    let (what, hint) = match gone {
        Gone::Left => (
            format!("rank {rank} has destroyed its communicator, but its part is needed"),
            "all ranks must make the same calls before they destroy a communicator",
        ),
        Gone::Died => (
            format!("rank {rank} died, or lost its connection"),
            "look at that rank's output for the cause; this communicator cannot be used any more, but it can be \
             shrunk to the ranks that live",
        ),
    };
    Error::remote(what).who(position).hint(hint)
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

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, &b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

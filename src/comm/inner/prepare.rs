//! What a call needs before it runs: an algorithm, links to the peers, and where everything lies. Kept, so
//! that the next call of the same shape finds it.

use std::sync::Arc;

use super::super::PlanInfo;

use super::super::call::{Fit, Key, QUICK, Verb, Work, fnv, mark};
use super::super::config::Config;
use super::super::fabric::{Conn, Data, WAYS_MAX, WIDE, ways_of};
use super::super::warm;
use super::super::words::Saying;
use crate::exec::{BlockSpan, Bound, Packs, Tiling};
use crate::memory::make_huge;
use crate::record::{self, Shape};
use crate::reduce::{self, Kernel, Wire};
use crate::schedule::{self, Algorithm, Arg, ArgKind, Lane, Op, Program};
use crate::transport::AnyLink;
use crate::transport::shm::{self, LINK_BYTES, ShmLink};
use crate::tune::{self, Choice};
use crate::{Code, DataType, Error, RedOp, Result};

use super::{Inner, Stage, Task};

/// The port of sends and receives; schedules use those below.
const POINT_PORT: u8 = 7;
/// Calls from this size on are timed for the flight recorder.
const TIMED_MIN: usize = 64 << 10;
/// Prepared calls that are kept; beyond it all are forgotten (a job with ever new counts).
const PREPARED_MAX: usize = 4096;
/// Calls from this size on, with messages from this size on, are worth 2 MiB pages under the slots (10-25 %
/// at 1-4 MiB between two ranks). They take the memory of all slots, so most of it should be used.
const HUGE_MIN: usize = 512 << 10;
const HUGE_MESSAGE: usize = 128 << 10;

/// What carries out an algorithm here: bound to links.
pub struct Route {
    pub(super) algorithm: Option<&'static Algorithm>,
    pub(super) bound: Arc<Bound>,
    pub(super) program: Arc<Program>,
    /// Longest message of any rank, in chunks.
    pub(super) longest: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteKey {
    pub(super) verb: Verb,
    pub(super) root: u32,
    pub(super) algorithm: &'static str,
    pub(super) ways: u32,
    /// Messages between hosts are packed.
    pub(super) packs: bool,
}

/// Everything about a call that does not change from one time to the next.
pub struct Prepared {
    pub(super) key: Key,
    pub(super) fit: Fit,
    pub(super) route: Arc<Route>,
    pub(super) bound: Arc<Bound>,
    pub(super) tiling: Tiling,
    pub(super) kernel: Kernel,
    /// Bytes of an element.
    pub(super) esize: usize,
    /// Ranks that complete values are divided by.
    pub(super) divide: u32,
    /// Bytes of one scratch image, of those of a way, and of all of them.
    pub(super) image: usize,
    pub(super) images: usize,
    pub(super) scratch: usize,
    /// How messages between hosts are packed. Its working memory comes after all scratch.
    pub(super) wire: Option<Wire>,
    /// Output bytes of this rank.
    pub(super) output: usize,
    /// Huge pages under the slots are worth it; bytes that the slots take, without them.
    pub(super) huge: bool,
    pub(super) held: usize,
    pub(super) ref_safe: bool,
    pub(super) reply_safe: bool,
    /// What the flight recorder knows of it, and whether it reads the clock.
    pub(super) record: record::Plan,
    pub(super) timed: bool,
    /// Fingerprint of everything but the call's number.
    pub(super) print: u32,
}

/// What was chosen for a call, before its links are there.
pub struct Plan {
    pub(super) key: RouteKey,
    pub(super) choice: Option<Choice>,
    pub(super) program: Arc<Program>,
    pub(super) longest: u32,
    /// What the flight recorder knows of it.
    pub(super) record: record::Plan,
}

impl Prepared {
    /// The fingerprint of a call.
    #[inline]
    pub(super) fn fingerprint(&self, seq: u32) -> u32 {
        self.print ^ seq.wrapping_mul(0x9e37_79b1)
    }
}

impl Plan {
    /// The ranks and ports that it needs links to, sorted.
    pub(super) fn ends(&self) -> Vec<(u32, u8)> {
        let wide = if self.key.ways > 1 { WIDE } else { 0 };
        let mut ends = Vec::new();
        for lane in &self.program.lanes {
            for a in lane.ops.iter().flat_map(|op| lane.srcs(op).iter().chain(lane.dsts(op))) {
                let peers = match a.kind {
                    ArgKind::Recv => 1,
                    ArgKind::Send => a.count as usize,
                    _ => 0,
                };
                let ix = a.ix as usize;
                ends.extend(lane.peers[ix..ix + peers].iter().map(|&p| (p, a.port | wide)));
            }
        }
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}

fn named(config: &Config, c: schedule::Collective) -> Option<&'static Algorithm> {
    config.algorithm.as_ref().and_then(|name| Algorithm::by_name(c, name))
}

impl Inner {
    /// Calls are done so from now on, whatever was prepared.
    pub fn force(&mut self, choice: Option<Choice>) {
        self.forced = choice;
        self.forget();
    }

    fn forget(&mut self) {
        self.prepared.clear();
        self.by_key.clear();
        self.quick = [u32::MAX; QUICK];
    }

    fn choose(&mut self, key: &Key, bytes: Option<usize>) -> Result<Choice> {
        let collective = key.verb.collective().ok_or_else(|| Error::internal("a choice for a message"))?;
        if self.packs(key) {
            return self.choose_packing(key);
        }
        let frozen = || {
            let table = self.config.profile.as_ref()?;
            table.choose(collective, &self.layout, bytes?)
        };
        // A rank between the two that know how long a block is would not know it.
        let fits = |a: &Algorithm| bytes.is_some() || !collective.rooted() || !a.hierarchical;
        let choice = match (self.forced, named(&self.config, collective)) {
            (Some(c), _) if c.algorithm.collective == collective && fits(c.algorithm) => c,
            (_, Some(a)) if fits(a) => tune::forced(&self.layout, a),
            _ => frozen().unwrap_or_else(|| tune::choose(collective, &self.layout, bytes)),
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

    /// Messages between hosts are packed, and there are some.
    fn packs(&self, key: &Key) -> bool {
        key.wire.is_some() && self.layout.groups.len() > 1
    }

    fn choose_packing(&self, key: &Key) -> Result<Choice> {
        let refused = |what: String, hint: &str| Err(Error::usage(what).who(key.text()).hint(hint));
        if self.config.deterministic {
            let what = "results that depend on the hosts are not deterministic".into();
            return refused(what, "make the call without a wire form, or turn deterministic off");
        }
        match named(&self.config, schedule::Collective::AllReduce) {
            Some(a) if !a.packs => {
                let what = format!("{} rounds more than twice, or not for all ranks alike", a.name);
                refused(what, "use GRACCL_ALGO=auto, direct or hier_direct")
            }
            Some(a) => Ok(tune::forced(&self.layout, a)),
            None => Ok(tune::packing(&self.layout)),
        }
    }

    /// The algorithm folds adjacent pairs of ranks.
    fn canonical(&mut self, key: &Key, a: &'static Algorithm) -> bool {
        let route = RouteKey { verb: key.verb, root: key.root, algorithm: a.name, ways: 0, packs: false };
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
            for packs in [false, true] {
                let route = RouteKey { verb: key.verb, root: key.root, algorithm: a.name, ways, packs };
                if let Some(r) = self.routes.get(&route) {
                    return Ok((r.program.clone(), r.longest));
                }
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
        tune::room(&self.layout, c.message)
    }

    /// How a call will be carried out.
    pub fn plan(&mut self, work: &Work) -> Result<PlanInfo> {
        let bytes = work.each.is_none().then(|| work.known_bytes(self.size()));
        let choice = self.choose(&work.key, bytes)?;
        let (program, longest) = self.program(&work.key, choice.algorithm)?;
        let block = work.key.count * work.key.dtype.size();
        let tiles = tune::tiles(block, program.chunks, longest, self.room(&choice));
        let transport = self.layout.transport();
        Ok(PlanInfo { algorithm: choice.algorithm.name, transport, tiles, ways: choice.ways.min(tiles) })
    }

    /// Everything that a task needs to run; `None` while links are missing.
    pub(super) fn prepare(&mut self, task: &mut Task) -> Result<Option<Arc<Prepared>>> {
        let key = task.work.key;
        let cached = task.work.each.is_none();
        if cached && let Some(&i) = self.by_key.get(&key) {
            let prepared = self.prepared[i as usize].clone();
            self.warm(&prepared);
            self.quick[key.quick()] = i;
            return Ok(Some(prepared));
        }
        if matches!(task.stage, Stage::Fresh) {
            let plan = self.think(&task.work)?;
            // From here on it can be seen waiting.
            self.record(task, plan.record, true);
            task.stage = Stage::Connecting(Box::new(plan));
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
        self.warm(&prepared);
        if cached {
            if self.prepared.len() >= PREPARED_MAX {
                self.forget();
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
            let route = RouteKey { verb: key.verb, root: key.root, algorithm: "", ways: 1, packs: false };
            let program = Arc::new(point_program(key.verb == Verb::Send, key.root));
            let record = self.describe(work, "message", 1);
            return Ok(Plan { key: route, choice: None, program, longest: 1, record });
        }
        let bytes = work.each.is_none().then(|| work.known_bytes(self.size()));
        let choice = self.choose(key, bytes)?;
        let (program, longest) = self.program(key, choice.algorithm)?;
        let block = key.count * key.dtype.size();
        let tiles = tune::tiles(block, program.chunks, longest, self.room(&choice));
        let most = if bytes.is_some() { tiles.min(WAYS_MAX) } else { WAYS_MAX };
        let ways = choice.ways.min(most);
        let record = self.describe(work, choice.algorithm.name, tiles);
        let packs = self.packs(key);
        let route =
            RouteKey { verb: key.verb, root: key.root, algorithm: choice.algorithm.name, ways, packs };
        Ok(Plan { key: route, choice: Some(choice), program, longest, record })
    }

    /// What a call is, for the flight recorder.
    fn describe(&self, work: &Work, algorithm: &str, tiles: u32) -> record::Plan {
        let collective = work.key.verb.collective();
        self.recorder.plan(&Shape {
            text: &work.text(),
            algorithm,
            tiles,
            bytes: work.known_bytes(self.size()) as u64,
            bus: collective.map_or(1.0, |c| c.bus_factor(self.size())),
            collective: collective.is_some(),
        })
    }

    /// Binds a program to links; `None` while some are missing.
    fn bind(&mut self, plan: &Plan) -> Result<Option<Arc<Route>>> {
        let mut missing = false;
        for (peer, port) in plan.ends() {
            // All of them are begun before any is waited for.
            missing |= self.open(peer, port)?.is_none();
        }
        if missing {
            return Ok(None);
        }
        let (ports, hosts) = (&self.ports, self.layout.groups.numbers());
        let far = |peer: u32| hosts[peer as usize] != hosts[self.rank];
        let wide = if plan.key.ways > 1 { WIDE } else { 0 };
        let mut link = |peer, port| {
            let first = ports.get(&(peer, port | wide)).copied();
            first.ok_or_else(|| Error::internal("a link that was not opened"))
        };
        let packs: Packs = if plan.key.packs { Some(&far) } else { None };
        let bound = Bound::new(&plan.program, plan.key.ways, &mut link, packs)?;
        let route = Arc::new(Route {
            algorithm: plan.choice.map(|c| c.algorithm),
            bound: Arc::new(bound),
            program: plan.program.clone(),
            longest: plan.longest,
        });
        self.routes.insert(plan.key, route.clone());
        Ok(Some(route))
    }

    /// The first of the links to a rank on a port, opened if need be; `None` while the peer is awaited.
    fn open(&mut self, peer: u32, port: u8) -> Result<Option<u32>> {
        if let Some(&first) = self.ports.get(&(peer, port)) {
            return Ok(Some(first));
        }
        let ways = ways_of(port);
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
        let theirs = || self.post.open().links.get(&(member, port)).copied();
        let first = self.links.len() as u32;
        match &conn.data {
            Data::Tcp(t) => {
                let number = if lower {
                    let n = conn.link_numbers(ways);
                    conn.tell(&self.word(Saying::Link { port: port.into(), place: n.into() }));
                    n
                } else {
                    match theirs() {
                        Some(n) => n as u32,
                        None => return self.awaited(&conn, peer, port),
                    }
                };
                for way in 0..ways {
                    self.links.push(AnyLink::Other(Box::new(t.link(number.wrapping_add(way))?)));
                }
                if !self.tcp.iter().any(|c| c.fd() == t.fd()) {
                    self.tcp.push(t.clone());
                }
            }
            Data::Shm(arena) => {
                let total = ways as usize * LINK_BYTES;
                let base = if lower {
                    let b = fabric.own.alloc(total)?;
                    self.blocks.push(b);
                    conn.tell(&self.word(Saying::Link { port: port.into(), place: b.offset as u64 }));
                    // SAFETY: our own block.
                    unsafe { fabric.own.base().add(b.offset) }
                } else {
                    let Some(offset) = theirs() else { return self.awaited(&conn, peer, port) };
                    let fits = arena.at(offset as usize, total).filter(|_| offset % 4096 == 0);
                    fits.ok_or_else(|| {
                        Error::remote("a peer placed a link outside its memory").who(format!("rank {peer}"))
                    })?
                };
                self.bases.push(base);
                let bell = arena.page().cast_const().cast();
                for way in 0..ways as usize {
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
        self.owner.resize(self.links.len(), peer);
        self.ports.insert((peer, port), first);
        Ok(Some(first))
    }

    /// The lower rank is on its way through the same call, or gone.
    fn awaited(&mut self, conn: &Conn, peer: u32, port: u8) -> Result<Option<u32>> {
        self.fabric.pump();
        self.fabric.listen();
        match self.gone(peer) {
            Some(gone) if !self.post.open().links.contains_key(&(conn.rank, port)) => {
                Err(self.cause(self.lost(peer, gone, String::new())))
            }
            _ => Ok(None),
        }
    }

    /// A call is about to use the slots: memory that they lack is accounted for, and of the right kind.
    fn warm(&mut self, prepared: &Prepared) {
        if prepared.held > self.held {
            warm::take(&self.me, prepared.held - self.held, self.calls());
            self.held = prepared.held;
        }
        if prepared.huge {
            for &p in &self.bases[self.huge..] {
                // SAFETY: the first link's memory of a peer and port, mapped as long as its links.
                unsafe { make_huge(p, LINK_BYTES) };
            }
            self.huge = self.bases.len();
        }
    }

    /// Bytes that the slots of a call take, half of what they are: the peer counts the other half.
    fn held_by(&self, bound: &Bound, tiling: &Tiling, message: usize, huge: bool) -> usize {
        if shm::inline(message) {
            return 0;
        }
        // One slot for each message that may be under way in a direction, and its pages' ends.
        let flying = tiling.tiles().div_ceil(bound.ways()).clamp(1, shm::DEPTH) as usize;
        let slots = flying * (message + 4096);
        let shm = bound.links.iter().filter(|&&l| matches!(self.links[l as usize], AnyLink::Shm(_))).count();
        shm * if huge { slots.max(LINK_BYTES / 2) } else { slots }
    }

    fn shape(&mut self, work: &Work, plan: &Plan, route: Arc<Route>) -> Prepared {
        let (key, n) = (&work.key, self.size());
        let size = key.dtype.size();
        let room = match &plan.choice {
            Some(c) => self.room(c),
            None => {
                let hosts = self.layout.groups.numbers();
                let local = !self.layout.all_tcp && hosts[key.root as usize] == hosts[self.rank];
                tune::point(local, key.count * size)
            }
        };
        let tiles = |count: usize| tune::tiles(count * size, route.program.chunks, plan.longest, room);
        let root = key.root as usize;
        let even = if work.each.is_none() { tiles(key.count) } else { 0 };
        let two = work.between_two();
        let mark = |count: usize| if two { mark(count, key.dtype) } else { 0 };
        let spans: Vec<BlockSpan> = route
            .bound
            .blocks()
            .iter()
            .map(|&b| {
                let Some(c) = key.verb.collective() else {
                    return BlockSpan {
                        count: key.count,
                        tiles: even,
                        input: 0,
                        output: 0,
                        mark: mark(key.count),
                    };
                };
                let b = b as usize;
                let (sent, got) = (c.sent(n, root, self.rank, b), c.received(n, root, self.rank, b));
                match &work.each {
                    None => {
                        let at = |i: Option<usize>| i.unwrap_or(0) * key.count * size;
                        BlockSpan { count: key.count, tiles: even, input: at(sent), output: at(got), mark: 0 }
                    }
                    Some(each) => {
                        let (sent, got) = (sent.map(|i| each.send[i]), got.map(|i| each.recv[i]));
                        let count = sent.or(got).map_or(0, |e| e.count);
                        let at = |e: Option<crate::Extent>| e.map_or(0, |e| e.at * size);
                        let tiles = if count == 0 { 0 } else { tiles(count) };
                        BlockSpan { count, tiles, input: at(sent), output: at(got), mark: mark(count) }
                    }
                }
            })
            .collect();
        let tiling = Tiling::new(&spans, size, route.program.chunks);
        let nrecv = key.verb.collective().map_or(1, |c| c.recv_blocks(n, root, self.rank));
        let output = if work.each.is_some() { 0 } else { nrecv * key.count * size };
        let message = tiling.span_bytes(plan.longest.min(route.program.chunks.max(1)));
        let largest = spans.iter().map(|s| s.count * size).max().unwrap_or(0);
        let huge = largest >= HUGE_MIN && message >= HUGE_MESSAGE;
        let held = self.held_by(&route.bound, &tiling, message, huge);
        let image = tiling.scratch_bytes();
        let images = route.program.scratch as usize * image;
        let wire = key.wire.filter(|_| plan.key.packs);
        let packing = wire.map_or(0, |_| route.bound.pack_bytes(&tiling) + 64);
        let scratch = images * route.bound.ways() as usize + packing;
        let fit = match (key.verb, &work.each) {
            (Verb::Do(c), None) => Fit::of(c, root, self.rank, n, key.count * size),
            // A barrier has no buffers; the others are checked by themselves.
            _ => Fit::default(),
        };
        let kernel = match (key.verb.collective(), self.config.deterministic) {
            (None, _) => reduce::kernel(DataType::U8, RedOp::Sum),
            (_, true) => reduce::kernel_pairs(key.dtype, key.op),
            (_, false) => reduce::kernel(key.dtype, key.op),
        };
        // A send's receiver says something else.
        let what = match key.verb {
            Verb::Send | Verb::Recv => "point".into(),
            _ => format!("{} {:?}", work.text(), key.op),
        };
        let RouteKey { algorithm, ways, .. } = plan.key;
        let tiles = if two { 0 } else { even };
        let text = format!("{what} {algorithm} {tiles} {ways} {}", self.config.deterministic);
        Prepared {
            key: *key,
            fit,
            bound: route.bound.clone(),
            tiling,
            kernel,
            esize: size,
            divide: if key.op == RedOp::Avg { n as u32 } else { 1 },
            image,
            images,
            scratch,
            wire,
            output,
            huge,
            held,
            record: plan.record,
            timed: work.known_bytes(n) >= TIMED_MIN,
            ref_safe: route.algorithm.is_none_or(|a| a.ref_safe),
            reply_safe: route.algorithm.is_none_or(|a| a.reply_safe),
            print: fnv(text.as_bytes()),
            route,
        }
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

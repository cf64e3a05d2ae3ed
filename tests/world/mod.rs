//! Drives one engine per rank over a virtual-time world, and checks every byte.

mod buffer;
pub mod hand;
mod reference;

use std::collections::HashMap;
use std::ops::Range;

use graccl::exec::{BlockSpan, Blocked, Bound, Engine, Idle, Launch, Pack, Pause, Progress, Ran, Tiling};
use graccl::memory::{self, Block, PeerArena, arena};
use graccl::reduce::{self, Wire};
use graccl::schedule::{Algorithm, Groups, Program, describe};
use graccl::transport::shm::{Doorbell, LINK_BYTES, ShmLink};
use graccl::transport::virtual_time::{Options, World};
use graccl::transport::{AnyLink, Link};
use graccl::{Collective, DataType, RedOp};

use buffer::{BEFORE, Buffer, Memory};
use reference::{Reference, decode, reference, values};

/// splitmix64
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn flip(&mut self) -> bool {
        self.next() & 1 == 0
    }
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What runs: a listed algorithm, or a schedule that a test has written by hand.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub collective: Collective,
    pub name: &'static str,
    pub min_depth: u32,
    pub hierarchical: bool,
    pub ref_safe: bool,
    pub reply_safe: bool,
    pub packs: bool,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Listed(&'static Algorithm),
    /// The program of a rank of so many.
    Hand(fn(usize, usize) -> Program),
}

impl From<&'static Algorithm> for Schedule {
    fn from(a: &'static Algorithm) -> Schedule {
        Schedule {
            collective: a.collective,
            name: a.name,
            min_depth: a.min_depth,
            hierarchical: a.hierarchical,
            ref_safe: a.ref_safe,
            reply_safe: a.reply_safe,
            packs: a.packs,
            source: Source::Listed(a),
        }
    }
}

impl Schedule {
    pub fn program(&self, rank: usize, groups: &Groups, root: usize) -> Program {
        match self.source {
            Source::Listed(a) => a.program(rank, groups, root),
            Source::Hand(program) => program(rank, groups.n()),
        }
    }
}

/// Elements and tiles of a block.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub count: usize,
    /// With 0, nothing happens to the block even if it has elements.
    pub tiles: u32,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub schedule: Schedule,
    pub root: usize,
    /// Of all blocks of the collective.
    pub blocks: Vec<Size>,
    pub dtype: DataType,
    pub op: RedOp,
    pub ways: u32,
    pub in_place: bool,
    pub by_ref: bool,
    pub stream: bool,
    /// Floats whose sums round: compared between ranks to the bit, with the reference nearly.
    pub rough: bool,
    /// Bytes that the buffers are off a cache line, and up to so many between blocks (besides guards).
    pub shift: usize,
    /// Blocks lie in any order.
    pub shuffled: bool,
    /// Messages between hosts are in this form; with a hierarchy hosts are the groups, else ranks. Only
    /// rough sums and averages of f32.
    pub pack: Option<Wire>,
    /// Packing keeps what it lost.
    pub residual: bool,
    /// Begun with `Engine::run`, which is left when it has stood still so often.
    pub leave: Option<u32>,
}

impl Call {
    pub fn tiles(&self) -> u32 {
        self.blocks.iter().map(|b| b.tiles).max().unwrap_or(0)
    }

    /// Ranks whose values the result on `rank` holds.
    fn folded(&self, n: usize, rank: usize) -> usize {
        if self.schedule.collective.reduces() { self.schedule.collective.folded(n, rank) } else { 1 }
    }
}

#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub groups: Groups,
    pub calls: Vec<Call>,
    pub options: Options,
    pub cuts: Vec<(u64, u32, Option<u32>)>,
    pub corrupt: Option<(u32, u32, u32)>,
    /// On links of shared memory, which need none of the options above.
    pub shm: bool,
}

#[derive(Debug)]
pub enum End {
    /// All calls, with the right results.
    Finished,
    Failed(String),
    /// Nothing can happen any more; what the rank's lanes wait for.
    Deadlock(String),
}

pub struct Outcome {
    pub ends: Vec<End>,
    /// Virtual time at the end.
    pub time: u64,
}

const WAYS: u32 = 4;

/// All links of shared memory of a case: blocks by lower rank, upper rank, port and way.
#[derive(Default)]
struct Shm(HashMap<(u32, u32, u8, u32), Block>);

static AWAKE: Doorbell = Doorbell::new();

impl Shm {
    fn link(&mut self, me: u32, peer: u32, port: u8, way: u32) -> AnyLink {
        let a = arena().expect("an arena");
        let name = (me.min(peer), me.max(peer), port, way);
        let block = self.0.entry(name).or_insert_with(|| a.alloc(LINK_BYTES).expect("memory"));
        let mapped = PeerArena::map(a.id(), a.size(), None).expect("our own");
        // SAFETY: a zeroed block, which is freed after the links.
        AnyLink::Shm(unsafe { ShmLink::new(a.base().add(block.offset), me < peer, a, mapped, &AWAKE, false) })
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        for block in self.0.values() {
            assert!(arena().expect("an arena").free(block.offset));
        }
    }
}

/// One side of a call: where its pointer points, and where its blocks lie.
#[derive(Default)]
struct Side {
    /// Offset of the pointer in the memory; none if it has no blocks.
    base: Option<usize>,
    /// Blocks, and where they are in the memory.
    blocks: Vec<(usize, Range<usize>)>,
}

impl Side {
    fn new(blocks: impl Iterator<Item = usize>, memory: &Buffer) -> Side {
        let blocks: Vec<_> = blocks.map(|b| (b, memory.find(b).expect("the memory has the block"))).collect();
        Side { base: blocks.iter().map(|b| b.1.start).min(), blocks }
    }
    fn find(&self, block: usize) -> Option<Range<usize>> {
        self.blocks.iter().find(|b| b.0 == block).map(|b| b.1.clone())
    }
    /// Byte offset of a block from the pointer; nonsense where it is not there.
    fn offset(&self, block: usize) -> usize {
        self.find(block).map_or(usize::MAX - 12_345, |at| at.start - self.base.expect("it has a block"))
    }
    fn ptr(&self, memory: &mut Buffer) -> *mut u8 {
        self.base.map_or(std::ptr::null_mut(), |at| memory.all[at..].as_mut_ptr())
    }
}

/// One call of one rank.
struct Part {
    call: Call,
    program: Program,
    bound: Bound,
    tiling: Tiling,
    /// Of every block of the input.
    given: HashMap<usize, Vec<u8>>,
    input: Side,
    output: Side,
    /// The memory of the input, unless in place; that of the output.
    memory: [Buffer; 2],
    scratch: Buffer,
    /// For packing.
    work: Memory,
    residual: Vec<f32>,
    /// What the call gave, by block; the buffers have been used for something else since.
    result: HashMap<usize, Vec<u8>>,
    input_kept: bool,
    fp: u32,
}

impl Part {
    fn new(case: &Case, i: usize, call: Call, me: usize, number: &mut dyn FnMut(u32, u8) -> u32) -> Part {
        let (n, c, size) = (case.groups.n(), call.schedule.collective, call.dtype.size());
        let program = call.schedule.program(me, &case.groups, call.root);
        assert_eq!(program.blocks as usize, call.blocks.len(), "{c:?}");
        let ways = call.ways.min(call.tiles()).max(1);
        let host = |r: usize| if call.schedule.hierarchical { case.groups.numbers()[r] } else { r as u32 };
        let far = |peer: u32| host(peer as usize) != host(me);
        let packs: Option<&dyn Fn(u32) -> bool> = if call.pack.is_some() { Some(&far) } else { None };
        let bound =
            Bound::new(&program, ways, &mut |peer, port| Ok(number(peer, port)), packs).expect("bound");
        let all = || 0..call.blocks.len();
        let sent: Vec<usize> = all().filter(|&b| c.sent(n, call.root, me, b).is_some()).collect();
        let received: Vec<usize> = all().filter(|&b| c.received(n, call.root, me, b).is_some()).collect();
        let mut r = Random(case.seed ^ (i as u64) << 20 ^ (me as u64) << 40);
        let sized = |list: &[usize]| -> Vec<(usize, usize)> {
            list.iter().map(|&b| (b, call.blocks[b].count * size)).collect()
        };
        let mut union = [&sent[..], &received[..]].concat();
        union.sort_unstable();
        union.dedup();
        let (first, second) = if call.in_place { (&[][..], &union[..]) } else { (&sent[..], &received[..]) };
        let mut memory = [first, second].map(|list| Buffer::new(&sized(list), &call, &mut r, case.shm));
        let from = usize::from(call.in_place);
        let input = Side::new(sent.iter().copied(), &memory[from]);
        let output = Side::new(received.iter().copied(), &memory[1]);
        let mut given = HashMap::new();
        for (b, at) in &input.blocks {
            let bytes = values(&call, case.seed + i as u64, n, me, *b);
            memory[from].all[at.clone()].copy_from_slice(&bytes);
            given.insert(*b, bytes);
        }
        let spans: Vec<BlockSpan> = bound
            .blocks()
            .iter()
            .map(|&b| {
                let (b, Size { count, tiles }) = (b as usize, call.blocks[b as usize]);
                BlockSpan { count, tiles, input: input.offset(b), output: output.offset(b), mark: b as u32 }
            })
            .collect();
        let tiling = Tiling::new(&spans, size, program.chunks);
        let bytes = tiling.scratch_bytes() * (program.scratch * ways) as usize;
        let scratch = Buffer::new(&[(0, bytes)], &call, &mut r, false);
        let fp = mix(case.seed + i as u64) as u32;
        let work = bound.pack_bytes(&tiling);
        let work = Memory::Arena(memory::alloc(work).expect("memory"), work);
        let residual = vec![0.0; if call.residual { call.blocks[0].count } else { 0 }];
        let (result, input_kept) = (HashMap::new(), false);
        Part {
            call,
            program,
            bound,
            tiling,
            given,
            input,
            output,
            memory,
            scratch,
            work,
            residual,
            result,
            input_kept,
            fp,
        }
    }

    fn launch(&mut self, ranks: usize) -> Launch<'_> {
        let image = self.tiling.scratch_bytes();
        let by_ref = self.call.by_ref;
        Launch {
            bound: &self.bound,
            tiling: &self.tiling,
            kernel: reduce::kernel(self.call.dtype, self.call.op),
            esize: self.call.dtype.size(),
            input: self.input.ptr(&mut self.memory[usize::from(self.call.in_place)]),
            output: self.output.ptr(&mut self.memory[1]),
            scratch: self.scratch.all[self.scratch.blocks[0].1.start..].as_mut_ptr(),
            scratch_stride: [image, image * self.program.scratch as usize],
            divide: if self.call.op == RedOp::Avg { ranks as u32 } else { 1 },
            fp: self.fp,
            stream: self.call.stream,
            by_ref_shm: by_ref && self.call.in_place && self.call.schedule.reply_safe,
            by_ref_other: by_ref,
            spin: 0,
            pack: self.call.pack.map(|wire| Pack {
                wire,
                work: self.work.as_mut_ptr(),
                residual: if self.call.residual { self.residual.as_mut_ptr() } else { std::ptr::null_mut() },
            }),
        }
    }

    /// Takes the result away.
    fn end(&mut self) {
        let bytes = |m: &Buffer, at: &Range<usize>| m.all[at.clone()].to_vec();
        self.result = self.output.blocks.iter().map(|(b, at)| (*b, bytes(&self.memory[1], at))).collect();
        let from = &self.memory[usize::from(self.call.in_place)];
        let overwritten = |b| self.call.in_place && self.output.find(b).is_some();
        let kept = |(b, at): &(usize, Range<usize>)| overwritten(*b) || bytes(from, at) == self.given[b];
        self.input_kept = self.input.blocks.iter().all(kept);
        for m in &mut self.memory {
            m.scribble();
        }
        self.scratch.scribble();
    }
}

/// Leaves after some passes in which nothing moved.
struct Leaver(u32);

impl Idle for Leaver {
    fn idle(&mut self, _links: &mut [AnyLink], _blocked: &[Blocked]) -> graccl::Result<Pause> {
        self.0 = self.0.saturating_sub(1);
        Ok(if self.0 == 0 { Pause::Leave } else { Pause::Again })
    }
    fn moved(&mut self) {}
}

struct Rank {
    engine: Engine,
    links: Vec<AnyLink>,
    parts: Vec<Part>,
    at: usize,
    /// The call at hand has begun.
    begun: bool,
    end: Option<End>,
}

impl Rank {
    fn new(case: &Case, world: &World, shm: &mut Shm, me: usize, change: &dyn Fn(usize, &mut Call)) -> Rank {
        let (n, mut links) = (case.groups.n(), Vec::new());
        let mut numbers: HashMap<(u32, u8), u32> = HashMap::new();
        let mut number = |peer: u32, port: u8| {
            *numbers.entry((peer, port)).or_insert_with(|| {
                links.extend((0..WAYS).map(|way| match case.shm {
                    true => shm.link(me as u32, peer, port, way),
                    false => world.link(me as u32, peer, port, way),
                }));
                links.len() as u32 - WAYS
            })
        };
        // Links are numbered in any order.
        let mut r = Random(case.seed ^ (me as u64) << 32);
        for _ in 0..r.below(n as u64) {
            let peer = r.below(n as u64) as u32;
            if peer != me as u32 {
                number(peer, 0);
            }
        }
        let part = |(i, call): (usize, &Call)| {
            let mut call = call.clone();
            change(me, &mut call);
            Part::new(case, i, call, me, &mut number)
        };
        let parts: Vec<Part> = case.calls.iter().enumerate().map(part).collect();
        let end = parts.is_empty().then_some(End::Finished);
        Rank { engine: Engine::default(), links, parts, at: 0, begun: false, end }
    }

    /// One pass; whether something moved.
    fn pass(&mut self, ranks: usize) -> bool {
        let leave = self.parts[self.at].call.leave;
        let launch = self.parts[self.at].launch(ranks);
        let begins = !std::mem::replace(&mut self.begun, true);
        let progress = match leave {
            Some(patience) if begins => {
                // SAFETY: buffers live until the world has ended, links are those that were bound.
                match unsafe { self.engine.run(&launch, &mut self.links, &mut Leaver(patience)) } {
                    Ok(Ran::Done) => Progress::Done,
                    // What it has done is not known.
                    Ok(Ran::Left) => return true,
                    Err(e) => panic!("{e}"),
                }
            }
            _ => {
                if begins {
                    self.engine.start(&launch);
                }
                // SAFETY: as above.
                unsafe { self.engine.pass(&launch, &mut self.links) }
            }
        };
        match progress {
            Progress::Moved => true,
            Progress::Stuck => {
                if let Some(b) = self.engine.blocked().iter().find(|b| b.fault) {
                    let fault = self.links[b.link as usize].fault();
                    self.end = Some(End::Failed(format!("call {}: {fault:?}", self.at)));
                }
                false
            }
            Progress::Done => {
                self.parts[self.at].end();
                self.at += 1;
                self.begun = false;
                if self.at == self.parts.len() {
                    self.end = Some(End::Finished);
                }
                true
            }
        }
    }

    fn position(&self) -> String {
        let p = &self.parts[self.at];
        let one = |b: &Blocked| {
            let step = if b.tile < p.tiling.tiles() {
                describe(&p.program.lanes[b.lane], b.op as usize)
            } else {
                "link not idle".into()
            };
            format!("lane {} tile {} op {} ({step})", b.lane, b.tile, b.op)
        };
        let blocked: Vec<String> = self.engine.blocked().iter().map(one).collect();
        format!("call {}: {}", self.at, blocked.join("; "))
    }
}

pub fn run(case: &Case) -> Outcome {
    run_with(case, &|_, _| {})
}

/// `change(rank, call)` may make a rank's calls differ.
pub fn run_with(case: &Case, change: &dyn Fn(usize, &mut Call)) -> Outcome {
    let n = case.groups.n();
    let world = World::new(case.options.clone());
    for &(at, rank, peer) in &case.cuts {
        world.cut(at, rank, peer);
    }
    if let Some((from, to, skip)) = case.corrupt {
        world.corrupt(from, to, skip);
    }
    let mut r = Random(case.seed ^ 0x5eed);
    let mut shm = Shm::default();
    let mut ranks: Vec<Rank> = (0..n).map(|me| Rank::new(case, &world, &mut shm, me, change)).collect();
    // One rank may be slow, and ranks come in any order.
    let slow = r.below(2 * n as u64) as usize;
    let (mut rounds, mut still) = (0, 0);
    while ranks.iter().any(|r| r.end.is_none()) {
        rounds += 1;
        assert!(rounds < 10_000_000, "no end\n{case:#?}");
        let (mut moved, first) = (false, r.below(n as u64) as usize);
        for i in 0..n {
            let me = (first + i) % n;
            if ranks[me].end.is_some() {
                continue;
            }
            if me == slow && r.below(4) != 0 {
                moved = true;
                continue;
            }
            moved |= ranks[me].pass(n);
            if matches!(ranks[me].end, Some(End::Failed(_))) {
                // It leaves: the others hear of it soon.
                world.cut(world.now() + 1, me as u32, None);
                moved = true;
            }
        }
        // Messages may arrive while others are still busy; shared memory has no clock, but a rank may
        // have to look twice.
        still = if moved { 0 } else { still + 1 };
        let more = (!moved || r.below(8) == 0) && world.advance();
        if still > 3 && !more {
            for rank in ranks.iter_mut().filter(|r| r.end.is_none()) {
                rank.end = Some(End::Deadlock(rank.position()));
            }
        }
    }
    let finished: Vec<usize> = (0..n).filter(|&i| matches!(ranks[i].end, Some(End::Finished))).collect();
    for (i, call) in case.calls.iter().enumerate() {
        // Results of a block that fold the same ranks are the same.
        let mut known: HashMap<(usize, usize), (Reference, usize)> = HashMap::new();
        for &me in &finished {
            let folded = call.folded(n, me);
            for &block in ranks[me].parts[i].result.keys() {
                let (expected, first) =
                    known.entry((block, folded)).or_insert_with(|| (reference(case, i, block, folded), me));
                check(&ranks[me].parts[i], block, &ranks[*first].parts[i].result[&block], expected, n)
                    .unwrap_or_else(|e| panic!("rank {me}, call {i}, block {block}: {e}\n{case:#?}"));
            }
            assert!(ranks[me].parts[i].input_kept, "rank {me}, call {i}: the input was changed\n{case:#?}");
        }
    }
    for (me, rank) in ranks.iter().enumerate() {
        for p in &rank.parts {
            let guarded = p.memory.iter().chain([&p.scratch]).all(Buffer::guarded);
            assert!(guarded, "rank {me} wrote beyond its blocks\n{case:#?}");
        }
    }
    let ends = ranks.into_iter().map(|r| r.end.expect("all have ended")).collect();
    Outcome { ends, time: world.now() }
}

fn check(p: &Part, block: usize, first: &[u8], expected: &Reference, n: usize) -> Result<(), String> {
    let got = &p.result[&block][..];
    if p.call.blocks[block].tiles == 0 {
        let before = vec![BEFORE; got.len()];
        let before = if p.call.in_place { p.given.get(&block).unwrap_or(&before) } else { &before };
        return if got == before { Ok(()) } else { Err("it was changed, but is to be skipped".into()) };
    }
    if got != first {
        return Err("other bits than on the first rank".into());
    }
    let size = p.call.dtype.size();
    match expected {
        Reference::Exact(bytes) => match got.iter().zip(bytes).position(|(a, b)| a != b) {
            Some(at) => Err(format!("element {} is wrong", at / size)),
            None => Ok(()),
        },
        Reference::Near(values) => {
            for (i, (x, scale)) in values.iter().enumerate() {
                let y = decode(p.call.dtype, &got[i * size..][..size]);
                let eps = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-3, 1.2e-7, 2.3e-16, 8e-3][p.call.dtype as usize];
                // Contributions and partial sums are packed once and the sum once; a block's largest value
                // is at most three times the magnitude of any (see `rough`).
                let eps = eps
                    + match p.call.pack {
                        None => 0.0,
                        Some(Wire::F16) => 2.0 / 2048.0,
                        Some(Wire::Bf16) => 2.0 / 256.0,
                        Some(Wire::Int8) => 2.0 * 3.0 / 127.0,
                    } / (n as f64 + 2.0);
                // The reference itself is computed in f64.
                if (y - x).abs()
                    > scale * (eps + 2.3e-16) * (n as f64 + 2.0) + 1e-7 * f64::from(u8::from(size == 2))
                {
                    return Err(format!("element {i} is {y}, {x} was expected"));
                }
            }
            Ok(())
        }
    }
}

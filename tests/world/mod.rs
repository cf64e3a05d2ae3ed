//! Drives one engine per rank over a virtual-time world, and checks every byte.

use std::collections::HashMap;

use graccl::exec::{BlockSpan, Bound, Engine, Launch, Progress, Tiling};
use graccl::memory::{self, Block, PeerArena, arena};
use graccl::reduce;
use graccl::schedule::{Algorithm, Groups, Program, describe};
use graccl::transport::shm::{Doorbell, LINK_BYTES, ShmLink};
use graccl::transport::virtual_time::{Options, World};
use graccl::transport::{AnyLink, Link};
use graccl::{DataType, RedOp};

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

#[derive(Clone, Debug)]
pub struct Call {
    pub algorithm: &'static Algorithm,
    pub count: usize,
    pub dtype: DataType,
    pub op: RedOp,
    pub tiles: u32,
    pub ways: u32,
    pub in_place: bool,
    pub by_ref: bool,
    pub stream: bool,
    /// Floats whose sums round: compared between ranks to the bit, with the reference nearly.
    pub rough: bool,
    /// Bytes that the buffers are off a cache line.
    pub shift: usize,
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
const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0x5c;

/// Heap memory, or memory that peers can map.
enum Memory {
    Heap(Vec<u8>),
    Arena(*mut u8, usize),
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Arena(p, _) = self {
            // SAFETY: allocated by `Buffer::new`; the links that used it are gone or never look again.
            unsafe { memory::free(*p) }.expect("freed once");
        }
    }
}

impl std::ops::Deref for Memory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Memory::Heap(v) => v,
            // SAFETY: our own block.
            Memory::Arena(p, len) => unsafe { std::slice::from_raw_parts(*p, *len) },
        }
    }
}

impl std::ops::DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(v) => v,
            // SAFETY: our own block.
            Memory::Arena(p, len) => unsafe { std::slice::from_raw_parts_mut(*p, *len) },
        }
    }
}

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

/// Memory with guard bytes around it.
struct Buffer {
    all: Memory,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize, shift: usize, shm: bool) -> Buffer {
        let size = len + 2 * GUARD + 64 + shift;
        let mut all = if shm {
            Memory::Arena(memory::alloc(size).expect("memory"), size)
        } else {
            Memory::Heap(vec![0; size])
        };
        all.fill(GUARD_BYTE);
        let start = GUARD + shift + all.as_ptr().addr().wrapping_neg() % 64;
        Buffer { all, start, len }
    }
    fn ptr(&mut self) -> *mut u8 {
        self.all[self.start..].as_mut_ptr()
    }
    fn bytes(&self) -> &[u8] {
        &self.all[self.start..][..self.len]
    }
    fn scribble(&mut self) {
        self.all[self.start..][..self.len].fill(0xee);
    }
    fn guarded(&self) -> bool {
        let (a, b) = (&self.all[..self.start], &self.all[self.start + self.len..]);
        a.iter().chain(b).all(|&b| b == GUARD_BYTE)
    }
}

/// One call of one rank.
struct Part {
    call: Call,
    program: Program,
    bound: Bound,
    tiling: Tiling,
    given: Vec<u8>,
    input: Buffer,
    output: Buffer,
    /// What the call gave; the buffers have been used for something else since.
    result: Vec<u8>,
    input_kept: bool,
    fp: u32,
}

impl Part {
    fn launch(&mut self, ranks: usize) -> Launch<'_> {
        let output = self.output.ptr();
        let input = if self.call.in_place { output } else { self.input.ptr() };
        assert_eq!(self.program.scratch, 0, "no algorithm has scratch; give it some here");
        Launch {
            bound: &self.bound,
            tiling: &self.tiling,
            kernel: reduce::kernel(self.call.dtype, self.call.op),
            esize: self.call.dtype.size(),
            input,
            output,
            scratch: std::ptr::null_mut(),
            scratch_stride: [0; 2],
            divide: if self.call.op == RedOp::Avg { ranks as u32 } else { 1 },
            fp: self.fp,
            stream: self.call.stream,
            by_ref_shm: self.call.by_ref && self.call.in_place && self.call.algorithm.reply_safe,
            by_ref_other: self.call.by_ref,
            spin: 0,
        }
    }
}

struct Rank {
    engine: Engine,
    links: Vec<AnyLink>,
    parts: Vec<Part>,
    at: usize,
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
            let program = call.algorithm.program(me, &case.groups, 0);
            let ways = call.ways.min(call.tiles);
            let bound = Bound::new(&program, ways, &mut |peer, port| Ok(number(peer, port))).expect("bound");
            let span = BlockSpan { count: call.count, tiles: call.tiles, input: 0, output: 0 };
            let tiling = Tiling::new(&vec![span; bound.blocks().len()], call.dtype.size(), program.chunks);
            let given: Vec<u8> = (0..call.count)
                .flat_map(|e| {
                    let x = element(&call, case.seed + i as u64, n, me, e);
                    let bits = if call.rough && float(call.dtype) {
                        round(call.dtype, rough(x))
                    } else {
                        encode(call.dtype, x)
                    };
                    bits.to_le_bytes().into_iter().take(call.dtype.size())
                })
                .collect();
            let mut input = Buffer::new(if call.in_place { 0 } else { given.len() }, call.shift, case.shm);
            let mut output = Buffer::new(given.len(), call.shift / 2, case.shm);
            let to = if call.in_place { &mut output } else { &mut input };
            let start = to.start;
            to.all[start..start + given.len()].copy_from_slice(&given);
            let fp = mix(case.seed + i as u64) as u32;
            let (result, input_kept) = (vec![], false);
            Part { call, program, bound, tiling, given, input, output, result, input_kept, fp }
        };
        let parts: Vec<Part> = case.calls.iter().enumerate().map(part).collect();
        let mut rank = Rank { engine: Engine::default(), links, parts, at: 0, end: None };
        rank.begin(n);
        rank
    }

    fn begin(&mut self, ranks: usize) {
        match self.parts.get_mut(self.at) {
            Some(p) => self.engine.start(&p.launch(ranks)),
            None => self.end = Some(End::Finished),
        }
    }

    /// One pass; whether something moved.
    fn pass(&mut self, ranks: usize) -> bool {
        let launch = self.parts[self.at].launch(ranks);
        // SAFETY: buffers live until the world has ended, links are those that were bound.
        match unsafe { self.engine.pass(&launch, &mut self.links) } {
            Progress::Moved => true,
            Progress::Stuck => {
                if let Some(b) = self.engine.blocked().iter().find(|b| b.fault) {
                    let fault = self.links[b.link as usize].fault();
                    self.end = Some(End::Failed(format!("call {}: {fault:?}", self.at)));
                }
                false
            }
            Progress::Done => {
                let p = &mut self.parts[self.at];
                p.result = p.output.bytes().to_vec();
                p.input_kept = p.call.in_place || p.input.bytes() == p.given;
                p.input.scribble();
                p.output.scribble();
                self.at += 1;
                self.begin(ranks);
                true
            }
        }
    }

    fn position(&self) -> String {
        let p = &self.parts[self.at];
        let one = |b: &graccl::exec::Blocked| {
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
        let expected = finished.first().map(|_| reference(call, case.seed + i as u64, n));
        for &me in &finished {
            let (p, first) = (&ranks[me].parts[i], &ranks[finished[0]].parts[i]);
            check(p, &first.result, expected.as_ref().expect("some rank finished"), n)
                .unwrap_or_else(|e| panic!("rank {me}, call {i}: {e}\n{case:#?}"));
        }
    }
    for (me, rank) in ranks.iter().enumerate() {
        for p in &rank.parts {
            assert!(p.input.guarded() && p.output.guarded(), "rank {me} wrote beyond its buffers\n{case:#?}");
        }
    }
    let ends = ranks.into_iter().map(|r| r.end.expect("all have ended")).collect();
    Outcome { ends, time: world.now() }
}

fn check(p: &Part, first: &[u8], expected: &Reference, n: usize) -> Result<(), String> {
    let got = &p.result[..];
    if !p.input_kept {
        return Err("the input was changed".into());
    }
    if got != first {
        return Err("other bits than on the first rank".into());
    }
    let size = p.call.dtype.size();
    match expected {
        Reference::Exact(bytes) => match got.iter().zip(bytes).position(|(a, b)| a != b) {
            Some(at) => Err(format!("element {} of {} is wrong", at / size, p.call.count)),
            None => Ok(()),
        },
        Reference::Near(values) => {
            for (i, (x, scale)) in values.iter().enumerate() {
                let y = decode(p.call.dtype, &got[i * size..][..size]);
                let eps = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-3, 1.2e-7, 2.3e-16, 8e-3][p.call.dtype as usize];
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

// ---- scalar reference ----

enum Reference {
    Exact(Vec<u8>),
    /// Value, and the sum of magnitudes that bounds its error.
    Near(Vec<(f64, f64)>),
}

fn float(d: DataType) -> bool {
    matches!(d, DataType::F16 | DataType::Bf16 | DataType::F32 | DataType::F64)
}

/// Element `e` of `rank`, as an integer that the type holds. For exact floats, one whose reduction is
/// exact in any order.
fn element(c: &Call, seed: u64, n: usize, rank: usize, e: usize) -> i128 {
    let h = |r: usize| mix(seed ^ (r as u64) << 40 ^ (e as u64).wrapping_mul(0x9e37_79b9));
    let x = h(rank);
    if !float(c.dtype) {
        return wrap(c.dtype, i128::from(x as i64));
    }
    if c.rough {
        return i128::from(x as i32);
    }
    match c.op {
        RedOp::Sum => i128::from(x % 9) - 4,
        RedOp::Prod => {
            let two = if (rank + e) % n < 3 { 2 } else { 1 };
            if x & 1 == 0 { two } else { -two }
        }
        RedOp::Avg => {
            // A common value and differences that cancel in pairs: the average is the common value.
            let common = i128::from(h(1000) % 9) - 4;
            let other = i128::from(h(2000 + rank / 2) % 5);
            if rank + 1 == n && n % 2 == 1 {
                common
            } else {
                common + if rank.is_multiple_of(2) { other } else { -other }
            }
        }
        _ => i128::from(x % 511) - 255,
    }
}

/// A float of magnitude 1/2 to 1 1/2 that does not add up exactly.
fn rough(x: i128) -> f64 {
    let m = 0.5 + (x as i32 as f64).abs() / 2f64.powi(31);
    if x & 1 == 0 { m } else { -m }
}

fn wrap(d: DataType, x: i128) -> i128 {
    match d {
        DataType::I8 => i128::from(x as i8),
        DataType::U8 => i128::from(x as u8),
        DataType::I32 => i128::from(x as i32),
        DataType::U32 => i128::from(x as u32),
        DataType::I64 => i128::from(x as i64),
        DataType::U64 => i128::from(x as u64),
        _ => x,
    }
}

fn reference(c: &Call, seed: u64, n: usize) -> Reference {
    if c.rough && float(c.dtype) {
        let one = |e| {
            let x = |r| {
                decode(
                    c.dtype,
                    &round(c.dtype, rough(element(c, seed, n, r, e))).to_le_bytes()[..c.dtype.size()],
                )
            };
            let all = || (0..n).map(x);
            let sum = || (all().sum::<f64>(), all().map(f64::abs).sum::<f64>());
            match c.op {
                RedOp::Sum => sum(),
                RedOp::Avg => (sum().0 / n as f64, sum().1 / n as f64),
                RedOp::Prod => (all().product(), all().product::<f64>().abs()),
                RedOp::Max => (all().fold(f64::MIN, f64::max), 1.0),
                RedOp::Min => (all().fold(f64::MAX, f64::min), 1.0),
            }
        };
        return Reference::Near((0..c.count).map(one).collect());
    }
    let one = |e| {
        let mut acc = element(c, seed, n, 0, e);
        for rank in 1..n {
            let x = element(c, seed, n, rank, e);
            acc = match c.op {
                RedOp::Sum | RedOp::Avg => wrap(c.dtype, acc + x),
                RedOp::Prod => wrap(c.dtype, acc.wrapping_mul(x)),
                RedOp::Max => acc.max(x),
                RedOp::Min => acc.min(x),
            };
        }
        if c.op == RedOp::Avg { acc / n as i128 } else { acc }
    };
    let bytes = |e| encode(c.dtype, one(e)).to_le_bytes().into_iter().take(c.dtype.size());
    Reference::Exact((0..c.count).flat_map(bytes).collect())
}

/// The bits of an integer that the type holds exactly.
fn encode(d: DataType, x: i128) -> u64 {
    if float(d) { round(d, x as f64) } else { x as u64 }
}

/// The bits of `x`, rounded down in magnitude.
fn round(d: DataType, x: f64) -> u64 {
    let sign = u64::from(x < 0.0) << 15;
    match d {
        DataType::F64 => x.to_bits(),
        DataType::F32 => u64::from((x as f32).to_bits()),
        DataType::Bf16 => u64::from((x as f32).to_bits() >> 16),
        _ if x == 0.0 => 0,
        // f16, in its normal range.
        _ => sign | (((x.abs() as f32).to_bits() - (112 << 23)) >> 13) as u64,
    }
}

fn decode(d: DataType, b: &[u8]) -> f64 {
    let half = || u32::from(u16::from_le_bytes([b[0], b[1]]));
    match d {
        DataType::F64 => f64::from_le_bytes(b.try_into().expect("8 bytes")),
        DataType::F32 => f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))),
        DataType::Bf16 => f64::from(f32::from_bits(half() << 16)),
        _ => {
            let (sign, exp, man) = (half() >> 15, (half() >> 10) & 31, f64::from(half() & 1023));
            let v = if exp == 0 {
                man * 2f64.powi(-24)
            } else {
                (1.0 + man / 1024.0) * 2f64.powi(exp as i32 - 15)
            };
            if sign == 1 { -v } else { v }
        }
    }
}

//! Which algorithm carries out a call, and into how many tiles it is cut.
//!
//! A profile's frozen [`Table`], which `graccl tune` made ([`Profile`]), or else built-in constants, measured
//! (see `docs/design.md`). The choice depends only on what all ranks know alike (ranks, hosts, bytes, the
//! profile), never on a rank's own buffers or on a fresh measurement: so all ranks choose the same, and the
//! same job gives the same bits every time.

mod fit;
mod predict;
mod profile;
mod table;

pub use predict::{Candidate, Predictor};
#[doc(hidden)]
pub use profile::fuzz_profile;
pub use profile::{Profile, Run};
pub use table::{Place, Table};

use crate::schedule::{self, Algorithm, ArgKind, Collective, Groups, Program};
use crate::transport::shm;

/// What all ranks know about the communicator.
#[derive(Clone, Debug)]
pub struct Layout {
    pub groups: Groups,
    /// Some / all messages go over TCP.
    pub any_tcp: bool,
    pub all_tcp: bool,
}

impl Layout {
    /// "shm", "tcp" or "shm+tcp"; "self" with one rank.
    pub fn transport(&self) -> &'static str {
        match (self.groups.n(), self.any_tcp, self.all_tcp) {
            (1, ..) => "self",
            (_, false, _) => "shm",
            (_, true, true) => "tcp",
            (_, true, false) => "shm+tcp",
        }
    }
}

/// A decision: algorithm, tiles worked on at a time, and the largest message to aim at (bytes).
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    pub algorithm: &'static Algorithm,
    pub ways: u32,
    pub message: usize,
}

impl PartialEq for Choice {
    fn eq(&self, other: &Choice) -> bool {
        std::ptr::eq(self.algorithm, other.algorithm)
            && (self.ways, self.message) == (other.ways, other.message)
    }
}

impl Eq for Choice {}

fn named(collective: Collective, name: &str) -> &'static Algorithm {
    Algorithm::by_name(collective, name).expect("a built-in choice names a built-in algorithm")
}

/// Largest message where nothing else is known to be better: it stays in a core's L2, and fits a slot
/// of shared memory.
const MESSAGE: usize = 256 << 10;
/// Just below 2 MiB: fewer waits for one another than with shorter messages, and on loopback few enough bytes
/// in flight to stay in the caches. With more than two ranks there are more messages in flight.
const TCP_MESSAGE: usize = 2_000_000;
const TCP_MANY: usize = 512 << 10;
/// Just below a GSO packet: better with many ranks and large buffers.
const TCP_PACKET: usize = 64_000;

/// Where data go one way only one rank copies in while the other one copies out: in four messages, as
/// long as these are worth their headers.
fn one_way(bytes: usize) -> usize {
    (bytes / 4).clamp(16 << 10, MESSAGE)
}

/// The largest message of a send of `bytes`; `local`: through shared memory.
pub fn point(local: bool, bytes: usize) -> usize {
    if local { one_way(bytes) } else { TCP_MESSAGE }
}

/// Chooses for a call of `bytes`: of the larger of its buffers. `None` where ranks do not know that alike
/// (gather, scatter and all_to_all with uneven counts).
pub fn choose(collective: Collective, layout: &Layout, bytes: Option<usize>) -> Choice {
    let n = layout.groups.n();
    let known = bytes.unwrap_or(usize::MAX);
    let shm = !layout.any_tcp;
    let one = layout.groups.len() == 1;
    let hosts = !layout.all_tcp && layout.any_tcp;
    let message = match (layout.all_tcp, n) {
        (true, ..=2) => TCP_MESSAGE,
        (true, _) => TCP_MANY,
        (false, _) => MESSAGE,
    };
    use Collective::*;
    let (name, ways, message) = match (collective, n, known) {
        (AllReduce, ..) => return choose_all_reduce(layout, known),
        (ReduceScatter | AllGather, ..) if hosts && bytes.is_some() => ("hier_2d", 2, message),
        (Broadcast | Reduce, ..) if hosts => ("hier_leader", 2, message),
        (ReduceScatter | AllGather, 17.., 1048576..) if bytes.is_some() => ("ring", 2, message),
        (AllGather, ..=2, 4194304..) if shm => ("direct", 2, message),
        (Broadcast | Reduce | Gather | Scatter, ..=2, _) if shm => ("direct", 1, one_way(known)),
        (Scan | Exscan, ..=2, _) if shm => ("chain", 1, one_way(known)),
        (AllGather, 3..=8, 1048576..) if one && layout.all_tcp && bytes.is_some() => ("ring", 2, MESSAGE),
        (ReduceScatter, 3..=8, 1048576..) if one && layout.all_tcp => ("direct", 4, MESSAGE),
        (Broadcast | Reduce, 3..=8, ..=65536) if one => ("direct", 1, message),
        (Broadcast, 3..=8, _) if one => ("tree", 1, MESSAGE),
        (Reduce, 3..=8, ..=262144) if one && layout.all_tcp => ("direct", 1, message),
        (Reduce, 3..=8, _) if one => ("reduce_scatter_gather", 1, message),
        (Broadcast | Reduce, 5.., ..=262144) => ("tree", 1, message),
        (Broadcast, 3.., _) => ("scatter_allgather", 1, message),
        (Reduce, 3.., _) => ("reduce_scatter_gather", 1, message),
        (Scan | Exscan, ..) => ("chain", 1, message),
        _ => ("direct", 1, message),
    };
    Choice { algorithm: named(collective, name), ways, message }
}

fn choose_all_reduce(layout: &Layout, bytes: usize) -> Choice {
    let (name, ways, message) = match (layout.all_tcp, layout.any_tcp, layout.groups.n(), bytes) {
        (true, _, ..=2, ..=262144) => ("one_shot", 1, TCP_MESSAGE),
        (true, _, 3.., ..=16384) => ("recursive_doubling", 1, TCP_MANY),
        (true, _, ..=2, _) => ("direct", 1, TCP_MESSAGE),
        (true, _, _, ..=4194304) => ("direct", 1, TCP_MANY),
        (true, ..) => ("direct", 4, TCP_PACKET),
        (false, true, _, ..=32768) => ("recursive_doubling", 1, MESSAGE),
        (false, true, ..) => ("hier_2d", 4, MESSAGE),
        (false, false, ..=2, ..=32768) | (false, false, ..=8, ..=16384) => ("one_shot", 1, MESSAGE),
        (false, false, 9.., ..=16384) => ("recursive_doubling", 1, MESSAGE),
        (false, false, ..=16, _) => ("direct", 1, MESSAGE),
        (false, false, ..) => ("halving_doubling", 2, MESSAGE),
    };
    Choice { algorithm: named(Collective::AllReduce, name), ways, message }
}

/// For an all_reduce whose messages between hosts are packed.
pub fn packing(layout: &Layout) -> Choice {
    let several = layout.groups.iter().any(|g| g.len() > 1);
    let name = if several { "hier_direct" } else { "direct" };
    Choice { algorithm: named(Collective::AllReduce, name), ways: 4, message: MESSAGE }
}

/// Algorithms to try, in this order, when results must not depend on the choice: the first that folds
/// adjacent pairs of these ranks is taken. The last always does.
pub fn deterministic(
    collective: Collective,
    layout: &Layout,
    bytes: Option<usize>,
) -> impl Iterator<Item = &'static Algorithm> {
    let large = bytes.is_none_or(|b| b > 32768) && layout.groups.n() > 2;
    let names = match collective {
        Collective::AllReduce if large => ["hier_2d", "halving_doubling", "direct"],
        Collective::AllReduce => ["recursive_doubling", "one_shot", "direct"],
        _ => ["hier_2d", "tree", "direct"],
    };
    names.into_iter().filter_map(move |name| Algorithm::by_name(collective, name))
}

/// For a forced algorithm.
pub fn forced(layout: &Layout, algorithm: &'static Algorithm) -> Choice {
    Choice { algorithm, ways: if layout.any_tcp { 4 } else { 2 }, message: MESSAGE }
}

/// The largest message that can be had, where `message` is aimed at.
pub fn room(layout: &Layout, message: usize) -> usize {
    if layout.all_tcp { message } else { message.min(shm::MESSAGE) }
}

/// The longest message of a program, in chunks.
pub fn longest_message(p: &Program) -> u32 {
    let moves = |a: &schedule::Arg| matches!(a.kind, ArgKind::Recv | ArgKind::Send);
    p.lanes
        .iter()
        .flat_map(|l| l.ops.iter().filter(|o| l.srcs(o).iter().chain(l.dsts(o)).any(moves)))
        .map(|o| o.len)
        .max()
        .unwrap_or(0)
}

/// Tiles for `bytes`, so that a message of `longest` of the `chunks` chunks has at most `message` bytes,
/// and a few cache lines more where cutting in lines lengthens it.
pub fn tiles(bytes: usize, chunks: u32, longest: u32, message: usize) -> u32 {
    let largest = (bytes as u128 * u128::from(longest)).div_ceil(u128::from(chunks.max(1)));
    largest.div_ceil(message as u128).clamp(1, 1 << 24) as u32
}

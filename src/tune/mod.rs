//! Which algorithm carries out a call, and into how many tiles it is cut.
//!
//! Built-in constants, measured (see `docs/design.md`). The choice depends only on what all ranks
//! know alike (ranks, hosts, bytes), never on a rank's own buffers or on a fresh measurement: so all
//! ranks choose the same, and the same job gives the same bits every time.

use crate::schedule::{self, Algorithm, ArgKind, Collective, Groups, Program};

/// What all ranks know about the communicator.
#[derive(Clone, Debug)]
pub struct Layout {
    pub groups: Groups,
    /// Some / all messages go over TCP.
    pub any_tcp: bool,
    pub all_tcp: bool,
}

/// A decision: algorithm, tiles worked on at a time, and the largest message to aim at (bytes).
#[derive(Clone, Copy)]
pub struct Choice {
    pub algorithm: &'static Algorithm,
    pub ways: u32,
    pub message: usize,
}

fn named(name: &str) -> &'static Algorithm {
    schedule::Algorithm::by_name(Collective::AllReduce, name)
        .expect("a built-in choice names a built-in algorithm")
}

/// Largest message where nothing else is known to be better: it stays in a core's L2, and fits a slot
/// of shared memory.
const MESSAGE: usize = 256 << 10;
/// On loopback half a megabyte in flight keeps the bytes in the caches.
const TCP_MESSAGE: usize = 512 << 10;
/// Just below a GSO packet: better with many ranks and large buffers.
const TCP_PACKET: usize = 64_000;

/// Chooses for an allreduce of `bytes`.
pub fn choose(layout: &Layout, bytes: usize) -> Choice {
    let (name, ways, message) = match (layout.all_tcp, layout.any_tcp, layout.groups.n(), bytes) {
        (true, _, ..=2, ..=262144) => ("one_shot", 1, TCP_MESSAGE),
        (true, _, 3.., ..=16384) => ("recursive_doubling", 1, TCP_MESSAGE),
        (true, _, ..=2, _) | (true, _, _, ..=4194304) => ("direct", 1, TCP_MESSAGE),
        (true, ..) => ("direct", 4, TCP_PACKET),
        (false, true, _, ..=32768) => ("recursive_doubling", 1, MESSAGE),
        (false, true, ..) => ("hier_2d", 4, MESSAGE),
        (false, false, ..=2, ..=32768) | (false, false, ..=8, ..=16384) => ("one_shot", 1, MESSAGE),
        (false, false, 9.., ..=16384) => ("recursive_doubling", 1, MESSAGE),
        (false, false, ..=16, _) => ("direct", 1, MESSAGE),
        (false, false, ..) => ("halving_doubling", 2, MESSAGE),
    };
    Choice { algorithm: named(name), ways, message }
}

/// For a forced algorithm.
pub fn forced(layout: &Layout, algorithm: &'static Algorithm) -> Choice {
    Choice { algorithm, ways: if layout.any_tcp { 4 } else { 2 }, message: MESSAGE }
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

//! Which algorithm carries out a call, and into how many tiles it is cut.
//!
//! Built-in constants, measured (see `docs/design.md`). The choice depends only on what all ranks
//! know alike (ranks, hosts, bytes), never on a rank's own buffers or on a fresh measurement: so all
//! ranks choose the same, and the same job gives the same bits every time.

use crate::schedule::{self, Algorithm, ArgKind, Groups, Program};

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
    schedule::Algorithm::by_name(name).expect("a built-in choice names a built-in algorithm")
}

/// Chooses for an allreduce of `bytes`.
pub fn choose(layout: &Layout, bytes: usize) -> Choice {
    let n = layout.groups.n();
    let hosts = layout.groups.len();
    let c = |name, ways, message| Choice { algorithm: named(name), ways, message };
    if layout.any_tcp && !layout.all_tcp && hosts > 1 {
        return if bytes <= 32 << 10 {
            c("recursive_doubling", 1, 256 << 10)
        } else {
            c("hier_2d", 4, 256 << 10)
        };
    }
    if layout.all_tcp {
        // On loopback half a megabyte in flight keeps the bytes in the caches; with many ranks and large
        // buffers, messages just below a GSO packet do.
        return match (n, bytes) {
            (..=2, ..=262144) => c("one_shot", 1, 512 << 10),
            (3.., ..=16384) => c("recursive_doubling", 1, 512 << 10),
            (..=2, _) | (_, ..=4194304) => c("direct", 1, 512 << 10),
            _ => c("direct", 4, 64_000),
        };
    }
    match (n, bytes) {
        (..=2, ..=32768) => c("one_shot", 1, 256 << 10),
        (3..=8, ..=16384) => c("one_shot", 1, 256 << 10),
        (9.., ..=16384) => c("recursive_doubling", 1, 256 << 10),
        (..=16, _) => c("direct", 1, 256 << 10),
        _ => c("halving_doubling", 2, 256 << 10),
    }
}

/// For a forced algorithm.
pub fn forced(layout: &Layout, algorithm: &'static Algorithm) -> Choice {
    Choice { algorithm, ways: if layout.any_tcp { 4 } else { 2 }, message: 256 << 10 }
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

/// Tiles for `bytes`, so that a message of `longest` of the `chunks` chunks has at most `message` bytes.
pub fn tiles(bytes: usize, chunks: u32, longest: u32, message: usize) -> u32 {
    // Rounding to cache lines may lengthen a span by a line.
    let largest = (bytes as u128 * u128::from(longest)).div_ceil(u128::from(chunks.max(1)));
    largest.div_ceil(message as u128).clamp(1, 1 << 24) as u32
}

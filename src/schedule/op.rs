//! The one instruction of a schedule, and the programs made of it.
//!
//! An [`Op`] gathers sources (spans of local memory, or messages from peers), folds them from left
//! to right with the collective's reduction, and writes the result to all its destinations (local
//! spans, or messages to peers). Copy, send, receive and receive-reduce-send are special cases.
//! Spans count in *chunks*; bytes, types and pointers enter when a program is bound.

/// What an operand is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ArgKind {
    /// The op's chunks of the caller's input. Source only.
    In = 0,
    /// The op's chunks of the caller's output. May be the same memory as `In`.
    Out = 1,
    /// The op's chunks of scratch image `ix`.
    Scratch = 2,
    /// The next message from `Lane::peers[ix]` on `port`. Source only.
    Recv = 3,
    /// The next message to each of `Lane::peers[ix..ix + count]` on `port`. Destination only.
    Send = 4,
}

/// One operand. What `ix` and `count` mean is said at each [`ArgKind`]; where nothing is said, they are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arg {
    pub kind: ArgKind,
    /// Distinguishes channels between the same two ranks (a tree's up and down, for example).
    pub port: u8,
    pub ix: u16,
    pub count: u16,
}

/// One step: fold `nsrc` sources, write `ndst` destinations, all of them chunks `at..at + len`.
///
/// Its operands are `args[arg..arg + nsrc]` (sources, in fold order) and then `ndst` destinations.
/// It fires when every `Recv` has a message and every `Send` has room. All destinations get the
/// same bytes. In place, an op whose only source is `In` must not write `Out`: that is the same memory,
/// and others may be reading it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Op {
    /// First chunk, and number of chunks: of every operand, messages too. Within one block.
    pub at: u32,
    pub len: u32,
    /// Index of the first operand in [`Lane::args`].
    pub arg: u32,
    pub nsrc: u16,
    pub ndst: u16,
    /// The folded value holds every rank's contribution, and is the first to do so on its way:
    /// averaging (and later casts and wire rounding) happen here, once.
    pub complete: bool,
}

/// A straight line of steps that one rank runs in order, once per tile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lane {
    pub ops: Vec<Op>,
    pub args: Vec<Arg>,
    /// Ranks that this lane talks to.
    pub peers: Vec<u32>,
}

impl Lane {
    /// The sources of `op`, in fold order.
    #[inline]
    pub fn srcs(&self, op: &Op) -> &[Arg] {
        let a = op.arg as usize;
        &self.args[a..a + op.nsrc as usize]
    }
    /// The destinations of `op`.
    #[inline]
    pub fn dsts(&self, op: &Op) -> &[Arg] {
        let a = op.arg as usize + op.nsrc as usize;
        &self.args[a..a + op.ndst as usize]
    }
}

/// What one rank does in a collective.
///
/// A collective's data are [blocks](super::Collective). The tile loop cuts every block into tiles and
/// every tile into `chunks` chunks (both by [`cut`](super::cut)); chunk `c` of block `b` has number `b *
/// chunks + c`. Each lane runs its ops for tile 0, then for tile 1, and so on; where blocks have
/// different numbers of tiles, the ops of a block that has no such tile are left out, on all ranks. Lanes
/// of one program run concurrently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Program {
    pub lanes: Vec<Lane>,
    /// Blocks of the collective, those of other ranks too.
    pub blocks: u32,
    /// Chunks per block.
    pub chunks: u32,
    /// Scratch images: each has room for a tile of every block that this rank stores in it.
    pub scratch: u32,
}

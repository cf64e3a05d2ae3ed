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
    /// `Op::len` chunks of the caller's input from chunk `at`. Source only.
    In = 0,
    /// `Op::len` chunks of the caller's output from chunk `at`. May be the same memory as `In`.
    Out = 1,
    /// `Op::len` chunks of scratch image `ix` from chunk `at`.
    Scratch = 2,
    /// The next message from `Lane::peers[ix]` on `port`. Source only.
    Recv = 3,
    /// The next message to each of `Lane::peers[ix..ix + at]` on `port`. Destination only.
    Send = 4,
}

/// One operand, 8 bytes. What `ix` and `at` mean is said at each [`ArgKind`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arg {
    pub kind: ArgKind,
    /// Distinguishes channels between the same two ranks (a tree's up and down, for example).
    pub port: u8,
    pub ix: u16,
    pub at: u32,
}

/// One step: fold `nsrc` sources, write `ndst` destinations, each `len` chunks long.
///
/// Its operands are `args[arg..arg + nsrc]` (sources, in fold order) and then `ndst` destinations.
/// It fires when every `Recv` has a message and every `Send` has room. All destinations get the
/// same bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Op {
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
/// The tile loop cuts the buffer into tiles and every tile into `chunks` chunks (both by
/// [`cut`](super::cut)); each lane runs its ops for tile 0, then for tile 1, and so on. Lanes of one
/// program run concurrently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Program {
    pub lanes: Vec<Lane>,
    pub chunks: u32,
    /// Scratch images, each as large as a tile.
    pub scratch: u32,
}

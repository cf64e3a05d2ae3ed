//! One call of a collective, as data.

use std::sync::Arc;

use crate::schedule::Collective;
use crate::{DataType, RedOp, Reduction};

/// A call of a collective: what every form of it (blocking, non-blocking, in a group) is made of.
///
/// Its pointers are not owned: see [`Communicator::call`](super::Communicator::call).
#[derive(Clone, Debug)]
pub struct Call {
    pub collective: Collective,
    /// Rank; 0 for collectives without a root.
    pub root: usize,
    /// May be null where this rank sends, or receives, nothing.
    pub send: *const u8,
    pub recv: *mut u8,
    pub counts: Counts,
    pub dtype: DataType,
    /// For collectives that do not reduce: `RedOp::Sum`.
    pub op: Reduction,
}

/// Elements of the blocks of a call. Which blocks there are: [`Collective`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Counts {
    /// Every block has this many, and blocks lie one behind the other.
    Even(usize),
    /// Each block of this rank's send buffer, each of its receive buffer (the forms `_v`). A buffer of
    /// which this rank has no blocks has an empty list.
    Each { send: Arc<[Extent]>, recv: Arc<[Extent]> },
}

/// Where a block lies in its buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    pub at: usize,
    pub count: usize,
}

// SAFETY: a call is only a description; who runs it promises that the buffers may be used from there.
unsafe impl Send for Call {}

impl Call {
    /// A call with equal blocks, without a root or with root 0.
    pub fn new(
        collective: Collective,
        send: *const u8,
        recv: *mut u8,
        count: usize,
        dtype: DataType,
        op: impl Into<Reduction>,
    ) -> Call {
        Call { collective, root: 0, send, recv, counts: Counts::Even(count), dtype, op: op.into() }
    }

    /// The same with another root.
    pub fn root(self, root: usize) -> Call {
        Call { root, ..self }
    }

    /// A call that only moves data.
    pub fn moving(
        collective: Collective,
        send: *const u8,
        recv: *mut u8,
        count: usize,
        dtype: DataType,
    ) -> Call {
        Call::new(collective, send, recv, count, dtype, RedOp::Sum)
    }
}

impl Extent {
    /// Blocks of these counts, one behind the other.
    pub fn packed(counts: &[usize]) -> Arc<[Extent]> {
        let mut at = 0;
        let extents = counts.iter().map(|&count| {
            let e = Extent { at, count };
            at = at.saturating_add(count);
            e
        });
        extents.collect()
    }
}

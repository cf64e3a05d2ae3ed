//! What can be timed, as a table: which blocks of data a rank gives and gets, and what that costs.

use std::marker::PhantomData;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use graccl::{Call, Collective, Communicator, DataType, RedOp, Result};

use super::buffer::Buffers;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Do(Collective),
    /// Every rank sends to the next one and receives from the one before, as in nccl-tests.
    SendRecv,
    Barrier,
}

/// Whether send and receive buffer are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    OutOfPlace,
    InPlace,
}

use Operation::*;

static ALL: [Operation; 12] = [
    Do(Collective::AllReduce),
    Do(Collective::ReduceScatter),
    Do(Collective::AllGather),
    Do(Collective::Broadcast),
    Do(Collective::Reduce),
    Do(Collective::Gather),
    Do(Collective::Scatter),
    Do(Collective::AllToAll),
    SendRecv,
    Barrier,
    Do(Collective::Scan),
    Do(Collective::Exscan),
];

impl ValueEnum for Operation {
    fn value_variants<'a>() -> &'a [Operation] {
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.name());
        // As nccl-tests' programs are called.
        Some(match self {
            Do(Collective::AllToAll) => value.alias("alltoall"),
            SendRecv => value.alias("sendrecv"),
            Do(Collective::AllReduce) => value.alias("allreduce"),
            _ => value,
        })
    }
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Do(c) => c.name(),
            SendRecv => "send_recv",
            Barrier => "barrier",
        }
    }

    /// The collective whose algorithms it runs by.
    pub fn algorithms(self) -> Option<Collective> {
        match self {
            Do(c) => Some(c),
            SendRecv => None,
            Barrier => Some(Collective::AllReduce),
        }
    }

    pub fn reduces(self) -> bool {
        matches!(self, Do(c) if c.reduces())
    }

    /// Whether it can reduce with `op`.
    pub fn takes(self, op: RedOp) -> bool {
        matches!(self, Do(c) if c.reduces() && (op != RedOp::Avg || c.completes()))
    }

    pub fn rooted(self) -> bool {
        matches!(self, Do(c) if c.rooted())
    }

    /// The ways in which its buffers can lie. What has none is called out of place.
    pub fn placements(self) -> &'static [Placement] {
        match self {
            Do(Collective::AllToAll) | SendRecv | Barrier => &[Placement::OutOfPlace],
            Do(_) => &[Placement::OutOfPlace, Placement::InPlace],
        }
    }

    /// Number of blocks of all ranks together.
    pub fn blocks(self, n: usize) -> usize {
        match self {
            Do(c) => c.blocks(n),
            SendRecv => n,
            Barrier => 0,
        }
    }

    /// Blocks in the largest buffer of any rank: nccl-tests' size.
    pub fn widest(self, n: usize) -> usize {
        match self {
            Do(c) => (0..n).map(|r| c.send_blocks(n, 0, r).max(c.recv_blocks(n, 0, r))).max().unwrap_or(0),
            SendRecv => 1,
            Barrier => 0,
        }
    }

    /// The blocks in the send buffer of `rank`, in their order.
    pub fn sent(self, n: usize, root: usize, rank: usize) -> Vec<usize> {
        match self {
            Do(c) => (0..c.blocks(n)).filter(|&b| c.sent(n, root, rank, b).is_some()).collect(),
            SendRecv => vec![rank],
            Barrier => Vec::new(),
        }
    }

    /// The blocks in the receive buffer of `rank`, in their order.
    pub fn received(self, n: usize, root: usize, rank: usize) -> Vec<usize> {
        match self {
            Do(c) => (0..c.blocks(n)).filter(|&b| c.received(n, root, rank, b).is_some()).collect(),
            SendRecv => vec![(rank + n - 1) % n],
            Barrier => Vec::new(),
        }
    }

    /// Where the send and the receive buffer of `rank` begin in the one that both are in place, in blocks:
    /// the smaller one is the rank's own block of the larger.
    pub fn starts(self, rank: usize) -> (usize, usize) {
        match self {
            Do(Collective::AllGather | Collective::Gather) => (rank, 0),
            Do(Collective::ReduceScatter | Collective::Scatter) => (0, rank),
            _ => (0, 0),
        }
    }

    /// Ranks whose contributions the results of `rank` hold: the first so many.
    pub fn folded(self, n: usize, rank: usize) -> usize {
        match self {
            Do(c) => c.folded(n, rank),
            SendRecv | Barrier => n,
        }
    }

    /// busbw / algbw of nccl-tests.
    pub fn bus_factor(self, n: usize) -> f64 {
        match self {
            Do(c) => c.bus_factor(n),
            SendRecv => 1.0,
            Barrier => 0.0,
        }
    }
}

/// What a row is about.
#[derive(Clone, Copy, Debug)]
pub struct What {
    pub operation: Operation,
    /// Elements of a block.
    pub count: usize,
    pub dtype: DataType,
    pub op: RedOp,
    pub root: usize,
}

impl What {
    /// Bytes of a block.
    pub fn block(&self) -> usize {
        self.count * self.dtype.size()
    }

    /// Bytes of the largest buffer of any of `n` ranks.
    pub fn bytes(&self, n: usize) -> usize {
        self.operation.widest(n) * self.block()
    }

    /// The call that shows how it is planned; of `send_recv` only the transport is true.
    pub fn planned(&self) -> Call {
        let (send, recv) = (std::ptr::null(), std::ptr::null_mut());
        let collective = self.operation.algorithms().unwrap_or(Collective::AllReduce);
        Call::new(collective, send, recv, self.count, self.dtype, self.op).root(self.root)
    }
}

/// A call of this rank with everything that it needs: made once, carried out many times.
pub struct Ready<'a> {
    step: Step,
    buffers: PhantomData<&'a mut Buffers>,
}

enum Step {
    Call(Call),
    SendRecv { send: *const u8, recv: *mut u8, count: usize, dtype: DataType, next: usize, previous: usize },
    Barrier,
}

impl Ready<'_> {
    /// On `rank` of `n`.
    pub fn new<'a>(
        what: &What,
        n: usize,
        rank: usize,
        place: Placement,
        buffers: &'a mut Buffers,
    ) -> Ready<'a> {
        let whole = 0..what.bytes(n);
        let recv = buffers.recv.slice_mut(whole.clone()).as_mut_ptr();
        let (send, recv) = match place {
            Placement::OutOfPlace => (buffers.send.slice(whole).as_ptr(), recv),
            Placement::InPlace => {
                let (s, r) = what.operation.starts(rank);
                (recv.wrapping_add(s * what.block()).cast_const(), recv.wrapping_add(r * what.block()))
            }
        };
        let What { count, dtype, op, root, .. } = *what;
        let step = match what.operation {
            Do(c) => Step::Call(Call::new(c, send, recv, count, dtype, op).root(root)),
            SendRecv => Step::SendRecv {
                send,
                recv,
                count,
                dtype,
                next: (rank + 1) % n,
                previous: (rank + n - 1) % n,
            },
            Barrier => Step::Barrier,
        };
        Ready { step, buffers: PhantomData }
    }

    /// Carries it out.
    #[inline]
    pub fn run(&self, comm: &Communicator) -> Result<()> {
        match &self.step {
            // SAFETY: the blocks that a rank has lie in the buffers, which are borrowed for as long as this
            // lives and initialised.
            Step::Call(call) => unsafe { comm.call(call) },
            &Step::SendRecv { send, recv, count, dtype, next, previous } => {
                graccl::group_start()?;
                // SAFETY: as above. The group ends here, whatever happens.
                let calls = unsafe {
                    comm.send_raw(send, count, dtype, next)
                        .and_then(|()| comm.recv_raw(recv, count, dtype, previous))
                };
                graccl::group_end().and(calls)
            }
            Step::Barrier => comm.barrier(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_hold_their_blocks_in_every_placement() {
        for operation in ALL {
            for n in 1..6 {
                for (root, rank) in (0..n).flat_map(|root| (0..n).map(move |rank| (root, rank))) {
                    let (sent, got) = (operation.sent(n, root, rank), operation.received(n, root, rank));
                    let (s, r) = operation.starts(rank);
                    let widest = operation.widest(n);
                    assert!(sent.len() <= widest && got.len() <= widest, "{operation:?}");
                    assert!(sent.iter().chain(&got).all(|&b| b < operation.blocks(n)), "{operation:?}");
                    if operation.placements().len() > 1 {
                        assert!(s + sent.len() <= widest && r + got.len() <= widest, "{operation:?}");
                        // In place, a block that is held before and after is the same memory.
                        for (i, b) in sent.iter().enumerate() {
                            let after = got.iter().position(|g| g == b);
                            assert!(after.is_none_or(|j| s + i == r + j), "{operation:?} {n} {root} {rank}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_and_factors_are_those_of_nccl_tests() {
        for (name, blocks, factor) in [
            ("all_reduce", 1, 1.5),
            ("reduce_scatter", 4, 0.75),
            ("all_gather", 4, 0.75),
            ("broadcast", 1, 1.0),
            ("reduce", 1, 1.0),
            ("gather", 4, 0.75),
            ("scatter", 4, 0.75),
            ("all_to_all", 4, 0.75),
            ("send_recv", 1, 1.0),
        ] {
            let operation = *ALL.iter().find(|o| o.name() == name).unwrap();
            assert_eq!((operation.widest(4), operation.bus_factor(4)), (blocks, factor), "{name}");
        }
    }
}

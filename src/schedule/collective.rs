//! What the collectives are: which blocks of data they move, and who holds them before and after.

/// A collective operation on `n` ranks.
///
/// Its data are *blocks*, numbered for all ranks together. A rank's send buffer holds some of them, in
/// the order of their numbers, and its receive buffer some. A block of the result is the fold of that
/// block over all ranks that hold it before; the collectives that move data without folding have one
/// such rank for each block.
///
/// | collective | blocks | send buffer of rank `r` | receive buffer of rank `r` |
/// |---|---|---|---|
/// | all_reduce | 1 | 0 | 0 |
/// | reduce_scatter | n | all | r |
/// | all_gather | n | r | all |
/// | all_to_all | n² | r·n .. r·n + n | r, n + r, 2n + r, ... |
/// | broadcast | 1 | 0 on the root | 0 |
/// | reduce | 1 | 0 | 0 on the root |
/// | gather | n | r | all on the root |
/// | scatter | n | all on the root | r |
/// | scan, exscan | 1 | 0 | 0: the fold of ranks 0..=r, of ranks 0..r (none on rank 0) |
///
/// A block that a rank holds before and after is the same memory when the call is in place.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Collective {
    AllReduce = 0,
    ReduceScatter = 1,
    AllGather = 2,
    AllToAll = 3,
    Broadcast = 4,
    Reduce = 5,
    Gather = 6,
    Scatter = 7,
    Scan = 8,
    Exscan = 9,
}

impl Collective {
    pub const ALL: [Collective; 10] = [
        Collective::AllReduce,
        Collective::ReduceScatter,
        Collective::AllGather,
        Collective::AllToAll,
        Collective::Broadcast,
        Collective::Reduce,
        Collective::Gather,
        Collective::Scatter,
        Collective::Scan,
        Collective::Exscan,
    ];

    /// "all_reduce", ...
    pub const fn name(self) -> &'static str {
        match self {
            Collective::AllReduce => "all_reduce",
            Collective::ReduceScatter => "reduce_scatter",
            Collective::AllGather => "all_gather",
            Collective::AllToAll => "all_to_all",
            Collective::Broadcast => "broadcast",
            Collective::Reduce => "reduce",
            Collective::Gather => "gather",
            Collective::Scatter => "scatter",
            Collective::Scan => "scan",
            Collective::Exscan => "exscan",
        }
    }

    /// The collective of this name.
    pub fn by_name(name: &str) -> Option<Collective> {
        Collective::ALL.into_iter().find(|c| c.name() == name)
    }

    /// It folds values; the others only move them.
    pub const fn reduces(self) -> bool {
        use Collective::*;
        matches!(self, AllReduce | ReduceScatter | Reduce | Scan | Exscan)
    }

    /// It folds values, and what is folded over all ranks is folded no further: averages can be divided
    /// there. A scan's prefixes are results on one rank and a part of the next one's.
    pub const fn completes(self) -> bool {
        use Collective::*;
        matches!(self, AllReduce | ReduceScatter | Reduce)
    }

    /// It has a root.
    pub const fn rooted(self) -> bool {
        use Collective::*;
        matches!(self, Broadcast | Reduce | Gather | Scatter)
    }

    /// Number of blocks.
    pub const fn blocks(self, n: usize) -> usize {
        use Collective::*;
        match self {
            AllReduce | Broadcast | Reduce | Scan | Exscan => 1,
            ReduceScatter | AllGather | Gather | Scatter => n,
            AllToAll => n * n,
        }
    }

    /// Position of `block` in the send buffer of `rank`, in blocks; `None` if it is not there.
    pub const fn sent(self, n: usize, root: usize, rank: usize, block: usize) -> Option<usize> {
        use Collective::*;
        match self {
            AllReduce | ReduceScatter | Reduce | Scan | Exscan => Some(block),
            AllGather | Gather if block == rank => Some(0),
            AllToAll if block / n == rank => Some(block % n),
            Broadcast | Scatter if rank == root => Some(block),
            _ => None,
        }
    }

    /// Position of `block` in the receive buffer of `rank`, in blocks; `None` if it does not get there.
    pub const fn received(self, n: usize, root: usize, rank: usize, block: usize) -> Option<usize> {
        use Collective::*;
        match self {
            AllReduce | Broadcast | AllGather | Scan => Some(block),
            Exscan if rank > 0 => Some(block),
            ReduceScatter | Scatter if block == rank => Some(0),
            AllToAll if block % n == rank => Some(block / n),
            Reduce | Gather if rank == root => Some(block),
            _ => None,
        }
    }

    /// Blocks in the send buffer of `rank`.
    pub const fn send_blocks(self, n: usize, root: usize, rank: usize) -> usize {
        use Collective::*;
        match self {
            AllReduce | Reduce | Scan | Exscan | AllGather | Gather => 1,
            ReduceScatter | AllToAll => n,
            Broadcast if rank == root => 1,
            Scatter if rank == root => n,
            Broadcast | Scatter => 0,
        }
    }

    /// Blocks in the receive buffer of `rank`.
    pub const fn recv_blocks(self, n: usize, root: usize, rank: usize) -> usize {
        use Collective::*;
        match self {
            AllReduce | Broadcast | Scan | ReduceScatter | Scatter => 1,
            AllGather | AllToAll => n,
            Exscan => (rank > 0) as usize,
            Reduce if rank == root => 1,
            Gather if rank == root => n,
            Reduce | Gather => 0,
        }
    }

    /// busbw / algbw of nccl-tests, where algbw counts the larger buffer: what the busiest link carries of
    /// it at least (nccl-tests, doc/PERFORMANCE.md).
    pub fn bus_factor(self, n: usize) -> f64 {
        use Collective::*;
        let part = (n as f64 - 1.0) / n as f64;
        match self {
            AllReduce => 2.0 * part,
            ReduceScatter | AllGather | AllToAll | Gather | Scatter => part,
            Broadcast | Reduce | Scan | Exscan => 1.0,
        }
    }

    /// Ranks whose values of a block the result on `rank` folds: `0..n`, or those before it.
    pub const fn folded(self, n: usize, rank: usize) -> usize {
        match self {
            Collective::Scan => rank + 1,
            Collective::Exscan => rank,
            _ => n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_up_without_gaps() {
        for c in Collective::ALL {
            assert_eq!(Collective::by_name(c.name()), Some(c));
            for n in 1..6 {
                for root in 0..n {
                    for rank in 0..n {
                        let blocks = 0..c.blocks(n);
                        let sent: Vec<usize> =
                            blocks.clone().filter_map(|b| c.sent(n, root, rank, b)).collect();
                        let got: Vec<usize> = blocks.filter_map(|b| c.received(n, root, rank, b)).collect();
                        assert_eq!(sent, (0..c.send_blocks(n, root, rank)).collect::<Vec<_>>(), "{c:?}");
                        assert_eq!(got, (0..c.recv_blocks(n, root, rank)).collect::<Vec<_>>(), "{c:?}");
                    }
                }
            }
        }
    }
}

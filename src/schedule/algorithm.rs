//! The list of algorithms, and the groups that hierarchies are built on.

use super::build::Builder;
use super::collective::Collective;
use super::compose;
use super::op::Program;
use super::stages::tree::{self, Place};
use super::stages::{chain, direct, doubling, ring};

/// How ranks group: by the host that they run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    of: Vec<u32>,
    members: Vec<Vec<u32>>,
}

impl Groups {
    /// All `n` ranks in one group.
    pub fn flat(n: usize) -> Groups {
        Groups::new(&vec![0; n])
    }

    /// Ranks with the same host number are a group. Groups are numbered in the order of their first
    /// ranks; host numbers may be any.
    pub fn new(host_of_rank: &[u32]) -> Groups {
        let mut seen = std::collections::HashMap::new();
        let mut groups = Groups { of: Vec::with_capacity(host_of_rank.len()), members: Vec::new() };
        for (rank, host) in host_of_rank.iter().enumerate() {
            let group = *seen.entry(host).or_insert(groups.members.len());
            if group == groups.members.len() {
                groups.members.push(Vec::new());
            }
            groups.members[group].push(rank as u32);
            groups.of.push(group as u32);
        }
        groups
    }

    /// Consecutive ranks in groups of `size`; the last group has what is left.
    pub fn blocks(n: usize, size: usize) -> Groups {
        Groups::new(&(0..n).map(|r| (r / size.max(1)) as u32).collect::<Vec<_>>())
    }

    /// Number of ranks.
    pub fn n(&self) -> usize {
        self.of.len()
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// There are no ranks.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Group number of every rank.
    pub fn numbers(&self) -> &[u32] {
        &self.of
    }

    /// The members of `rank`'s group, in rank order.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn of(&self, rank: usize) -> &[u32] {
        &self.members[self.of[rank] as usize]
    }

    /// The members of a group, in rank order.
    pub(super) fn group(&self, number: usize) -> &[u32] {
        &self.members[number]
    }

    /// The members of every group, in rank order.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.members.iter().map(Vec::as_slice)
    }
}

/// An algorithm for a collective: a name, what is promised of it, and how to build it.
pub struct Algorithm {
    pub collective: Collective,
    /// Algorithms of different collectives may have the same name.
    pub name: &'static str,
    /// One line on what it is good for.
    pub about: &'static str,
    /// Messages that every channel must be able to hold; proved to be enough. With one less, it
    /// deadlocks where this is more than 1.
    pub min_depth: u32,
    /// Uses the groups; the others take all ranks as equal.
    pub hierarchical: bool,
    /// A receiver may read the sender's memory instead of a copy, also in place: the `Out` span that
    /// an op stores together with its sends, or else the only source of an op, when that is local.
    /// Proved for all such messages at once, and so for any of them: fewer references read less.
    pub ref_safe: bool,
    /// Besides, an op that receives from a peer and sends to the same peer on the same port may write
    /// that message right into the memory that it read the received one from (`Out`, or `In` in
    /// place, of a block that it gets), or, where it was a copy, over that copy.
    pub reply_safe: bool,
    /// Messages between hosts may be in a form that rounds: whatever the groups, a contribution is packed
    /// once before its sum is complete, and each sum is completed by one rank, which rounds it for all.
    /// Proved with the rest.
    pub packs: bool,
    /// Chunks of a block.
    chunks: fn(&Groups) -> u32,
    /// Called for two ranks and more. The number is the root.
    build: fn(&mut Builder, &Groups, usize),
}

impl Algorithm {
    /// The program of `rank`. Depends on nothing but the arguments; on `root` only where the collective
    /// has one.
    ///
    /// # Panics
    /// If `rank` or `root` is not one of the groups' ranks.
    pub fn program(&self, rank: usize, groups: &Groups, root: usize) -> Program {
        assert!(rank < groups.n() && root < groups.n(), "rank {rank}, root {root} of {}", groups.n());
        let root = if self.collective.rooted() { root } else { 0 };
        let mut b = Builder::new(self.collective, root, rank, groups.n(), (self.chunks)(groups));
        match groups.n() {
            1 => b.alone(),
            _ => (self.build)(&mut b, groups, root),
        }
        b.finish()
    }

    /// The programs of all ranks: for verifying, printing and simulating.
    pub fn programs(&self, groups: &Groups, root: usize) -> Vec<Program> {
        (0..groups.n()).map(|rank| self.program(rank, groups, root)).collect()
    }

    /// The algorithm of this name for a collective.
    pub fn by_name(collective: Collective, name: &str) -> Option<&'static Algorithm> {
        algorithms_of(collective).find(|a| a.name == name)
    }
}

impl std::fmt::Debug for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.collective.name(), self.name)
    }
}

/// All algorithms of all collectives.
pub fn algorithms() -> &'static [Algorithm] {
    &ALGORITHMS
}

/// The algorithms of one collective.
pub fn algorithms_of(collective: Collective) -> impl Iterator<Item = &'static Algorithm> {
    ALGORITHMS.iter().filter(move |a| a.collective == collective)
}

/// What most algorithms have in common: one message on a channel is enough, and messages may be
/// references.
const COMMON: Algorithm = Algorithm {
    collective: Collective::AllReduce,
    name: "",
    about: "",
    min_depth: 1,
    hierarchical: false,
    ref_safe: true,
    reply_safe: true,
    packs: false,
    chunks: |_| 1,
    build: |_, _, _| {},
};

/// Parts of as many chunks as there are ranks: the blocks of a collective that has one for each rank.
fn each(b: &mut Builder, stage: impl FnOnce(&mut Builder)) {
    b.parts(b.size() as u32, stage);
}

/// Numbers the members from the root on: the root is member 0.
fn from_root(b: &mut Builder, root: usize, stage: impl FnOnce(&mut Builder)) {
    let n = b.size();
    let members: Vec<u32> = (0..n).map(|m| ((root + m) % n) as u32).collect();
    b.on(&members, true, stage);
}

static ALGORITHMS: [Algorithm; 35] = [
    Algorithm {
        collective: Collective::AllReduce,
        name: "one_shot",
        about: "everyone sends all to everyone: one hop, for tiny messages and few ranks",
        ref_safe: false,
        reply_safe: false,
        build: |b, _, _| direct::one_shot(b),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllReduce,
        name: "direct",
        about: "reduce_scatter and allgather between all pairs: two hops, least traffic, n messages",
        min_depth: 2,
        packs: true,
        chunks: |g| g.n() as u32,
        build: |b, _, _| {
            each(b, |b| {
                direct::reduce_scatter(b);
                direct::allgather(b);
            })
        },
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllReduce,
        name: "ring",
        about: "least traffic, to neighbours only, but 2(n-1) hops: for large messages",
        min_depth: 2,
        chunks: |g| g.n() as u32,
        build: |b, _, _| {
            each(b, |b| {
                ring::reduce_scatter(b);
                ring::allgather(b);
            })
        },
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllReduce,
        name: "recursive_doubling",
        about: "log2(n) hops with the whole buffer each: for small messages and many ranks",
        ref_safe: false,
        reply_safe: false,
        build: |b, _, _| doubling::recursive_doubling(b),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllReduce,
        name: "halving_doubling",
        about: "2 log2(n) hops, least traffic where n is a power of two: for medium messages",
        min_depth: 2,
        chunks: |g| doubling::halving_chunks(g.n()),
        build: |b, _, _| doubling::halving_doubling(b),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllReduce,
        name: "double_tree",
        about: "two binary trees, pipelined: 2 log2(n) hops, for medium messages and many ranks",
        chunks: |_| 2,
        build: |b, _, _| tree::double_tree(b),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllReduce,
        name: "hier_2d",
        about: "reduce_scatter in each host, allreduce across hosts on every rail, allgather in each host",
        min_depth: 2,
        hierarchical: true,
        chunks: compose::hier_2d_chunks,
        build: |b, g, _| compose::hier_2d(b, g),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllReduce,
        name: "hier_direct",
        about: "as hier_2d, but hosts send directly to each other: fewer hops, and a message for each host",
        min_depth: 2,
        hierarchical: true,
        packs: true,
        chunks: compose::hier_2d_chunks,
        build: |b, g, _| compose::hier_direct(b, g),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllReduce,
        name: "hier_leader",
        about: "reduce to one rank a host, ring of these, broadcast: one connection in and out of a host",
        min_depth: 2,
        hierarchical: true,
        chunks: compose::hier_leader_chunks,
        build: |b, g, _| compose::hier_leader(b, g),
        ..COMMON
    },
    Algorithm {
        collective: Collective::ReduceScatter,
        name: "direct",
        about: "every rank adds up its own block: one hop, least traffic, n messages",
        build: |b, _, _| each(b, direct::reduce_scatter),
        ..COMMON
    },
    Algorithm {
        collective: Collective::ReduceScatter,
        name: "ring",
        about: "least traffic, to neighbours only, but n-1 hops: for large messages",
        min_depth: 2,
        build: |b, _, _| each(b, ring::reduce_scatter),
        ..COMMON
    },
    Algorithm {
        collective: Collective::ReduceScatter,
        name: "hier_2d",
        about: "each host adds up its values before they cross, on the rail of the rank that they are for",
        hierarchical: true,
        build: |b, g, _| each(b, |b| compose::reduce_scatter_2d(b, g)),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllGather,
        name: "direct",
        about: "everyone sends its block to everyone: one hop, n messages",
        build: |b, _, _| each(b, direct::allgather),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllGather,
        name: "ring",
        about: "to neighbours only, but n-1 hops: for large messages",
        min_depth: 2,
        build: |b, _, _| each(b, ring::allgather),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllGather,
        name: "bruck",
        about: "log2(n) hops, to log2(n) ranks: for small messages and many ranks",
        build: |b, _, _| each(b, doubling::allgather),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllGather,
        name: "hier_2d",
        about: "every block crosses to each other host once, on its rank's rail, and is passed on there",
        hierarchical: true,
        build: |b, g, _| each(b, |b| compose::all_gather_2d(b, g)),
        ..COMMON
    },
    Algorithm {
        collective: Collective::AllToAll,
        name: "direct",
        about: "everyone sends to everyone: one hop, n messages",
        build: |b, _, _| b.parts((b.size() * b.size()) as u32, direct::all_to_all),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Broadcast,
        name: "direct",
        about: "the root sends all to everyone: one hop, for few ranks",
        build: |b, _, root| {
            from_root(b, root, |b| tree::broadcast(b, &Place::wide(b.me(), b.size(), b.size())))
        },
        ..COMMON
    },
    Algorithm {
        collective: Collective::Broadcast,
        name: "tree",
        about: "a binary tree, pipelined: log2(n) hops, for small messages and many ranks",
        build: |b, _, root| from_root(b, root, |b| tree::broadcast(b, &Place::wide(b.me(), b.size(), 2))),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Broadcast,
        name: "scatter_allgather",
        about: "the root sends everything once, the others exchange it: two hops, for large messages",
        chunks: |g| (g.n() as u32 - 1).max(1),
        build: |b, _, root| {
            from_root(b, root, |b| {
                b.parts(b.size() as u32 - 1, direct::scatter_allgather);
                b.keep(0);
            })
        },
        ..COMMON
    },
    Algorithm {
        collective: Collective::Broadcast,
        name: "hier_leader",
        about: "to one rank a host, and from there on: one connection in and out of a host",
        hierarchical: true,
        build: |b, g, root| compose::broadcast_leaders(b, g, root),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Reduce,
        name: "direct",
        about: "everyone sends all to the root: one hop, for few ranks",
        build: |b, _, root| direct::reduce(b, root),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Reduce,
        name: "tree",
        about: "a binary tree, pipelined: log2(n) hops, for small messages and many ranks",
        build: |b, _, root| from_root(b, root, |b| tree::reduce(b, &Place::wide(b.me(), b.size(), 2))),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Reduce,
        name: "reduce_scatter_gather",
        about: "everyone but the root adds up a part and sends it there: two hops, for large messages",
        chunks: |g| (g.n() as u32 - 1).max(1),
        build: |b, _, root| {
            from_root(b, root, |b| b.parts(b.size() as u32 - 1, direct::reduce_scatter_gather))
        },
        ..COMMON
    },
    Algorithm {
        collective: Collective::Reduce,
        name: "hier_leader",
        about: "each host adds up its values before they cross: one connection in and out of a host",
        hierarchical: true,
        build: |b, g, root| compose::reduce_leaders(b, g, root),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Gather,
        name: "direct",
        about: "everyone sends its block to the root: one hop",
        build: |b, _, root| each(b, |b| direct::gather(b, root)),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Gather,
        name: "hier_leader",
        about: "through one rank a host: one connection in and out of a host",
        hierarchical: true,
        build: |b, g, root| each(b, |b| compose::gather_leaders(b, g, root)),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Scatter,
        name: "direct",
        about: "the root sends everyone its block: one hop",
        build: |b, _, root| each(b, |b| direct::scatter(b, root)),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Scatter,
        name: "hier_leader",
        about: "through one rank a host: one connection in and out of a host",
        hierarchical: true,
        build: |b, g, root| each(b, |b| compose::scatter_leaders(b, g, root)),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Scan,
        name: "direct",
        about: "everyone sends all to the ranks after it: one hop, for tiny messages and few ranks",
        ref_safe: false,
        reply_safe: false,
        build: |b, _, _| direct::scan(b, false),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Scan,
        name: "chain",
        about: "from each rank to the next, pipelined: least traffic, n-1 hops, for large messages",
        build: |b, _, _| chain::scan(b),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Scan,
        name: "doubling",
        about: "log2(n) hops with the whole buffer each: for small messages and many ranks",
        ref_safe: false,
        reply_safe: false,
        build: |b, _, _| chain::scan_doubling(b),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Exscan,
        name: "direct",
        about: "everyone sends all to the ranks after it: one hop, for tiny messages and few ranks",
        ref_safe: false,
        reply_safe: false,
        build: |b, _, _| direct::scan(b, true),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Exscan,
        name: "chain",
        about: "from each rank to the next, pipelined: least traffic, n hops, for large messages",
        ref_safe: false,
        reply_safe: false,
        build: |b, _, _| chain::exscan(b, chain::scan),
        ..COMMON
    },
    Algorithm {
        collective: Collective::Exscan,
        name: "doubling",
        about: "log2(n) hops with the whole buffer each: for small messages and many ranks",
        ref_safe: false,
        reply_safe: false,
        build: |b, _, _| chain::exscan(b, chain::scan_doubling),
        ..COMMON
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_numbered_by_first_rank() {
        let g = Groups::new(&[7, 3, 7, 9, 3]);
        assert_eq!((g.n(), g.len(), g.numbers()), (5, 3, &[0, 1, 0, 2, 1][..]));
        assert_eq!(g.iter().collect::<Vec<_>>(), [&[0, 2][..], &[1, 4], &[3]]);
        assert_eq!(g.of(4), [1, 4]);
        assert_eq!(Groups::blocks(5, 2), Groups::new(&[1, 1, 2, 2, 0]));
    }

    #[test]
    fn names_are_unique_and_found() {
        for a in algorithms() {
            assert!(std::ptr::eq(Algorithm::by_name(a.collective, a.name).unwrap(), a), "{a:?}");
        }
        for c in Collective::ALL {
            assert!(Algorithm::by_name(c, "direct").is_some());
        }
        assert!(Algorithm::by_name(Collective::AllReduce, "none").is_none());
    }
}

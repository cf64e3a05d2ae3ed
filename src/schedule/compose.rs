//! Hierarchies: algorithms for ranks that live in groups (hosts), composed of stages.
//!
//! ```text
//! hier_2d: 2 groups of 3, parts a b c; one rail per member of a group
//!
//!                    group 0                       group 1
//! reduce_scatter     a: 0   b: 1   c: 2            a: 3   b: 4   c: 5        inside each group
//! allreduce          a: 0 <-> 3     b: 1 <-> 4     c: 2 <-> 5                across, on all rails
//! allgather          a, b, c: 0 1 2                a, b, c: 3 4 5            inside each group
//!
//! hier_leader
//! reduce             0 <- 1, 2                     3 <- 4, 5                 to the first of a group
//! allreduce          0 <-> 3                                                 a ring of leaders
//! broadcast          0 -> 1, 2                     3 -> 4, 5
//! ```
//!
//! `hier_2d` sends across groups what a ring of groups would, spread over all members. There are as
//! many rails as the smallest group has members; the members of a larger group beyond these own no
//! part, and hand theirs to those that do. `hier_leader` has one connection in and out of a group.

use super::algorithm::Groups;
use super::build::Builder;
use super::stages::{direct, ring, tree};

/// Up to this many members talk directly to each other; more form a ring. Direct stages have two
/// hops instead of 2(n-1), but a message, a slot and a connection for every pair.
const DIRECT: usize = 8;

fn reduce_scatter(b: &mut Builder) {
    if b.size() <= DIRECT { direct::reduce_scatter(b) } else { ring::reduce_scatter(b) }
}

fn allgather(b: &mut Builder) {
    if b.size() <= DIRECT { direct::allgather(b) } else { ring::allgather(b) }
}

fn rails(groups: &Groups) -> usize {
    groups.iter().map(<[u32]>::len).min().unwrap_or(1)
}

/// Every rail's part is cut again, once for each group.
pub fn hier_2d_chunks(groups: &Groups) -> u32 {
    (rails(groups) * groups.len()) as u32
}

pub fn hier_2d(b: &mut Builder, groups: &Groups) {
    let rails = rails(groups);
    let group = groups.of(b.me());
    let alone = groups.len() == 1;
    b.parts(rails as u32, |b| b.on(group, alone, reduce_scatter));
    for rail in 0..rails {
        let members: Vec<u32> = groups.iter().map(|g| g[rail]).collect();
        b.zoom(rail as u32, rails as u32, groups.len() as u32, |b| {
            b.on(&members, true, |b| {
                reduce_scatter(b);
                allgather(b);
            });
        });
    }
    b.parts(rails as u32, |b| b.on(group, alone, allgather));
}

/// The leaders' ring cuts into one part for each group.
pub fn hier_leader_chunks(groups: &Groups) -> u32 {
    groups.len() as u32
}

pub fn hier_leader(b: &mut Builder, groups: &Groups) {
    let group = groups.of(b.me());
    let leaders: Vec<u32> = groups.iter().map(|g| g[0]).collect();
    let alone = groups.len() == 1;
    b.on(group, alone, |b| tree::reduce(b, &tree::wide(b.me(), b.size(), DIRECT - 1)));
    b.parts(groups.len() as u32, |b| {
        b.on(&leaders, true, |b| {
            ring::reduce_scatter(b);
            ring::allgather(b);
        });
    });
    b.on(group, alone, |b| tree::broadcast(b, &tree::wide(b.me(), b.size(), DIRECT - 1)));
}

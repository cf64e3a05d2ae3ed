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
//! part, and hand theirs to those that do. In `hier_direct` the groups are no ring, but send directly to
//! each other. `hier_leader` has one connection in and out of a group.
//!
//! With one block for each rank there is nothing to cut, and every value crosses to another group once:
//!
//! ```text
//! all_gather hier_2d      block of 1:   1 -> 0, 2;   1 -> 4, and 4 -> 3, 5
//! reduce_scatter hier_2d  block of 1:   3, 5 -> 4, who adds its own, -> 1;   0, 2 -> 1, who adds all
//!
//! hier_leader, root 1     broadcast     1 -> 0, 2;   1 -> 3, and 3 -> 4, 5
//!                         reduce        the same, backwards, with a sum at 3 and at 1
//!                         scatter       1 -> 0, 2;   1 -> 3 blocks 3, 4, 5, and 3 -> 4, 5
//!                         gather        the same, backwards
//! ```

use super::algorithm::Groups;
use super::build::{Builder, Src};
use super::stages::tree::{self, Place};
use super::stages::{direct, ring};

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
    two_levels(b, groups, |b| {
        reduce_scatter(b);
        allgather(b);
    });
}

/// However many groups there are, every value crosses twice: to where it is summed, and back.
pub fn hier_direct(b: &mut Builder, groups: &Groups) {
    two_levels(b, groups, |b| {
        direct::reduce_scatter(b);
        direct::allgather(b);
    });
}

fn two_levels(b: &mut Builder, groups: &Groups, across: impl Fn(&mut Builder)) {
    let rails = rails(groups);
    let group = groups.of(b.me());
    let alone = groups.len() == 1;
    b.parts(rails as u32, |b| b.on(group, alone, reduce_scatter));
    for rail in 0..rails {
        let members: Vec<u32> = groups.iter().map(|g| g[rail]).collect();
        b.zoom(rail as u32, rails as u32, groups.len() as u32, |b| {
            b.on(&members, true, &across);
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
    b.on(group, alone, |b| tree::reduce(b, &Place::wide(b.me(), b.size(), DIRECT - 1)));
    b.parts(groups.len() as u32, |b| {
        b.on(&leaders, true, |b| {
            ring::reduce_scatter(b);
            ring::allgather(b);
        });
    });
    b.on(group, alone, |b| tree::broadcast(b, &Place::wide(b.me(), b.size(), DIRECT - 1)));
}

/// The groups in turn, beginning with the one after (or, with `backwards`, before) `rank`'s own, which is
/// not among them.
fn foreign(groups: &Groups, rank: usize, backwards: bool) -> impl Iterator<Item = &[u32]> {
    let (own, g) = (groups.numbers()[rank] as usize, groups.len());
    (1..g).map(move |d| groups.group((own + if backwards { g - d } else { d }) % g))
}

/// The member of `group` that is on the same rail as the `i`-th of another group.
fn on_rail(group: &[u32], i: usize) -> usize {
    group[i % group.len()] as usize
}

/// A rank's place in its group.
fn place_in(group: &[u32], rank: usize) -> usize {
    group.iter().position(|&r| r as usize == rank).expect("a member of its group")
}

/// Every rank sends its block to its group and to its rail; what comes on a rail is passed on to the group.
///
/// All members of a group take the foreign blocks in the same order. So whoever is furthest behind
/// finds room and a message, and channels that hold one message are enough.
pub fn all_gather_2d(b: &mut Builder, groups: &Groups) {
    let me = b.me();
    let group = groups.of(me);
    let mine = place_in(group, me);
    let mates: Vec<usize> = (1..group.len()).map(|d| group[(mine + d) % group.len()] as usize).collect();
    let rail: Vec<usize> = foreign(groups, me, false).map(|g| on_rail(g, mine)).collect();
    b.send(me, &[&rail[..], &mates[..]].concat());
    b.keep(me);
    for &mate in mates.iter().rev() {
        b.recv(mate, mate);
    }
    for other in foreign(groups, me, true) {
        for (i, &block) in other.iter().enumerate() {
            match on_rail(group, i) {
                via if via == me => b.pass(block as usize, block as usize, &mates),
                via => b.recv(block as usize, via),
            }
        }
    }
}

/// The way back: for every foreign block, the group's member on the rail of the block's owner adds up the
/// group's values and sends the sum to the owner; the owner adds its group's values and these sums. In the
/// same order everywhere, as in [`all_gather_2d`].
pub fn reduce_scatter_2d(b: &mut Builder, groups: &Groups) {
    let me = b.me();
    let group = groups.of(me);
    let mine = place_in(group, me);
    let src = |r: &u32| if *r as usize == me { Src::Mine } else { Src::From(*r as usize) };
    let own: Vec<Src> = group.iter().map(src).collect();
    for other in foreign(groups, me, false) {
        for (i, &block) in other.iter().enumerate() {
            match on_rail(group, i) {
                via if via == me && own.len() > 1 => b.relay(block as usize, &own, block as usize, false),
                via if via == me => b.send(block as usize, &[block as usize]),
                via => b.send(block as usize, &[via]),
            }
        }
    }
    for d in 1..group.len() {
        let to = group[(mine + d) % group.len()] as usize;
        b.send(to, &[to]);
    }
    let partial = |g: &[u32]| if g == group { own.clone() } else { vec![Src::From(on_rail(g, mine))] };
    b.fold(me, &groups.iter().flat_map(partial).collect::<Vec<_>>(), true);
}

/// The first of each group; the root is the first of its own.
fn leader(group: &[u32], root: usize) -> usize {
    if group.contains(&(root as u32)) { root } else { group[0] as usize }
}

/// The group with its leader first.
fn led(group: &[u32], root: usize) -> Vec<usize> {
    let leader = leader(group, root);
    let rest = group.iter().map(|&r| r as usize).filter(|&r| r != leader);
    std::iter::once(leader).chain(rest).collect()
}

/// A tree of ranks: one of the leaders, and one in every group, with up to `DIRECT - 1` children each.
fn leaders_tree(b: &Builder, groups: &Groups, root: usize) -> Place {
    let me = b.me();
    let mut leaders = vec![root];
    leaders.extend(foreign(groups, root, false).map(|g| leader(g, root)));
    let place = |ranks: &[usize]| {
        let at = ranks.iter().position(|&r| r == me)?;
        Some(Place::wide(at, ranks.len(), DIRECT - 1).renamed(ranks))
    };
    let inside = place(&led(groups.of(me), root)).expect("in its group");
    match place(&leaders) {
        None => inside,
        // Away from the group first: that takes longest.
        Some(across) => Place { after: [across.after, inside.after].concat(), ..across },
    }
}

pub fn broadcast_leaders(b: &mut Builder, groups: &Groups, root: usize) {
    tree::broadcast(b, &leaders_tree(b, groups, root));
}

pub fn reduce_leaders(b: &mut Builder, groups: &Groups, root: usize) {
    tree::reduce(b, &leaders_tree(b, groups, root));
}

/// The ranks of the groups that the root is not in, in the order in which their blocks go through the
/// leaders: first one of each group, then the next one of each.
fn through_leaders(groups: &Groups, root: usize) -> Vec<usize> {
    let led: Vec<Vec<usize>> = foreign(groups, root, false).map(|g| led(g, root)).collect();
    let longest = led.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|i| led.iter().filter_map(move |g| g.get(i).copied())).collect()
}

pub fn scatter_leaders(b: &mut Builder, groups: &Groups, root: usize) {
    let me = b.me();
    let lead = leader(groups.of(me), root);
    if me == root {
        for block in through_leaders(groups, root) {
            b.send(block, &[leader(groups.of(block), root)]);
        }
        for &block in &led(groups.of(root), root)[1..] {
            b.send(block, &[block]);
        }
        b.keep(root);
    } else if me == lead {
        b.recv(me, root);
        for &block in &led(groups.of(me), root)[1..] {
            b.pass(block, root, &[block]);
        }
    } else {
        b.recv(me, lead);
    }
}

pub fn gather_leaders(b: &mut Builder, groups: &Groups, root: usize) {
    let me = b.me();
    let lead = leader(groups.of(me), root);
    if me == root {
        b.keep(root);
        for &block in &led(groups.of(root), root)[1..] {
            b.recv(block, block);
        }
        for block in through_leaders(groups, root) {
            b.recv(block, leader(groups.of(block), root));
        }
    } else if me == lead {
        b.send(me, &[root]);
        for &block in &led(groups.of(me), root)[1..] {
            b.pass(block, block, &[root]);
        }
    } else {
        b.send(me, &[lead]);
    }
}

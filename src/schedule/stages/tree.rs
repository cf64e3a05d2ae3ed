//! Trees: values go up and are summed on the way, the result goes down.
//!
//! ```text
//! double tree, 6 members: two binary trees in the order of the members, each for one half
//!
//!        tree 0 (first half)                  tree 1 (second half) is its mirror image
//!              3                                        2
//!          1       5                                0       4
//!        0   2   4                                    1   3   5
//!
//! up:    leaves send, inner members send  left + own + right  to their parent
//! root:  keeps the sum and sends it to its children in the same op
//! down:  all others keep what comes from their parent and send it on to their children
//! ```
//!
//! Every member is an inner one in at most one of the two trees, so that links and sums are shared
//! evenly. 2 log2(n) hops, and both directions of all links are busy once many tiles are under way.
//! Up and down are lanes of their own: tile 2 goes up while tile 1 comes down.
//!
//! Broadcast and reduce go down or up one tree whose root is member 0; tiles follow each other.

use super::super::build::{Builder, Src};

/// One member's place in a tree. Children before and after it in the order of the sum.
pub struct Place {
    pub parent: Option<usize>,
    pub before: Vec<usize>,
    pub after: Vec<usize>,
}

impl Place {
    /// In a tree of `n` members whose root is member 0 and whose members have up to `arity` children: a
    /// star for up to `arity + 1` members.
    pub fn wide(me: usize, n: usize, arity: usize) -> Place {
        let first = me * arity + 1;
        Place {
            parent: (me > 0).then(|| (me - 1) / arity),
            before: vec![],
            after: (first..(first + arity).min(n)).collect(),
        }
    }

    /// The same place where member `i` is called `names[i]`.
    pub fn renamed(&self, names: &[usize]) -> Place {
        let all = |members: &[usize]| members.iter().map(|&m| names[m]).collect();
        Place { parent: self.parent.map(|m| names[m]), before: all(&self.before), after: all(&self.after) }
    }

    fn children(&self) -> Vec<usize> {
        [&self.before[..], &self.after[..]].concat()
    }
}

/// The root gets the sum of part 0 of all members.
pub fn reduce(b: &mut Builder, place: &Place) {
    let from = |m: &usize| Src::From(*m);
    let mut srcs: Vec<Src> = place.before.iter().map(from).collect();
    srcs.push(Src::Mine);
    srcs.extend(place.after.iter().map(from));
    match place.parent {
        Some(parent) if srcs.len() == 1 => b.send(0, &[parent]),
        Some(parent) => b.relay(0, &srcs, parent, false),
        None if srcs.len() > 1 => b.fold(0, &srcs, true),
        None => {}
    }
}

/// All members get part 0 of the root.
pub fn broadcast(b: &mut Builder, place: &Place) {
    match place.parent {
        Some(parent) => b.pass(0, parent, &place.children()),
        None => {
            b.send(0, &place.children());
            b.keep(0);
        }
    }
}

/// Two trees on two halves.
pub fn double_tree(b: &mut Builder) {
    let (me, n) = (b.me(), b.size());
    for tree in 0..2 {
        let place = if tree == 0 { in_order(me, n, &|m| m) } else { in_order(me, n, &|m| twin(m, n)) };
        let (up, down) = (2 * tree, 2 * tree + 1);
        // The root answers in the op that completes the sum, so from the lane that goes up.
        let answer = if place.parent.is_none() { up } else { down };
        b.zoom(tree as u32, 2, 1, |b| {
            b.lane(up, up as u8, |b| reduce(b, &place));
            b.lane(answer, down as u8, |b| broadcast(b, &place));
        });
    }
}

/// Where member `m` stands in the second tree. The members at even places are leaves, and mirroring
/// (an even number of members) or shifting by one (an odd number) takes odd places to even ones.
fn twin(m: usize, n: usize) -> usize {
    if n.is_multiple_of(2) { n - 1 - m } else { (m + 1) % n }
}

/// The place of member `me` in the binary tree whose order from left to right is that of
/// `place_of`, a permutation of the `n` members.
fn in_order(me: usize, n: usize, place_of: &dyn Fn(usize) -> usize) -> Place {
    let member = |place: usize| (0..n).find(|&m| place_of(m) == place).expect("a permutation");
    // From the root down: the subtree at hand has the places lo..lo + size, its root splits it.
    let (mut lo, mut size, mut parent) = (0, n, None);
    let split = |size: usize| (1 << size.ilog2()) - 1;
    loop {
        let here = lo + split(size);
        let right = lo + size - here - 1;
        if place_of(me) == here {
            let before = if here > lo { vec![member(lo + split(here - lo))] } else { vec![] };
            let after = if right > 0 { vec![member(here + 1 + split(right))] } else { vec![] };
            return Place { parent: parent.map(member), before, after };
        }
        parent = Some(here);
        (lo, size) = if place_of(me) < here { (lo, here - lo) } else { (here + 1, right) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_inner_in_at_most_one_tree() {
        for n in 1..200 {
            for m in 0..n {
                let inner = |p: Place| !p.children().is_empty();
                let both = inner(in_order(m, n, &|m| m)) && inner(in_order(m, n, &|m| twin(m, n)));
                assert!(!both, "member {m} of {n}");
            }
        }
    }

    #[test]
    fn parents_and_children_agree_and_depth_is_logarithmic() {
        for n in 1..130usize {
            let places: Vec<Place> = (0..n).map(|m| in_order(m, n, &|m| twin(m, n))).collect();
            let mut roots = 0;
            for m in 0..n {
                let (mut up, mut hops) = (m, 0);
                while let Some(parent) = places[up].parent {
                    assert!(places[parent].children().contains(&up));
                    (up, hops) = (parent, hops + 1);
                }
                roots += usize::from(places[m].parent.is_none());
                assert!(hops <= n.ilog2(), "{hops} hops from {m} of {n}");
                for child in places[m].children() {
                    assert_eq!(places[child].parent, Some(m));
                }
            }
            assert_eq!(roots, 1);
        }
    }
}

//! Direct stages: every member talks to every other one, each value goes one hop.
//!
//! ```text
//! 3 members, parts a b c; part x of member i is xi; a reduced part is written A
//!
//!            member 0              member 1              member 2
//! scatter    b0 ->1, c0 ->2        c1 ->2, a1 ->0        a2 ->0, b2 ->1
//! reduce     A = a0+a1+a2          B = b0+b1+b2          C = c0+c1+c2
//! gather     A ->1,2               B ->2,0               C ->0,1          (in the op of the sum)
//!            B from 1, C from 2    C from 2, A from 0    A from 0, B from 1
//!
//! one_shot   a0 ->1,2              a1 ->2,0              a2 ->0,1         (one part, not cut)
//!            A = a0+a1+a2          A = a0+a1+a2          A = a0+a1+a2     (all compute the same)
//! ```
//!
//! The bytes of a ring in two hops, and each sum in one pass in rank order. Sends are staggered, so
//! that no member is everyone's first target. `one_shot` is one hop, for what is small.

use super::super::build::{Builder, Src};

/// The other members, beginning with the next one.
fn others(b: &Builder) -> Vec<usize> {
    (1..b.size()).map(|d| (b.me() + d) % b.size()).collect()
}

/// All members in order.
fn everyone(b: &Builder) -> Vec<Src> {
    (0..b.size()).map(|m| if m == b.me() { Src::Mine } else { Src::From(m) }).collect()
}

/// Member `i` sums part `i` of all members.
pub fn reduce_scatter(b: &mut Builder) {
    if b.size() == 1 {
        return;
    }
    for to in others(b) {
        if to < b.count() {
            b.send(to, &[to]);
        }
    }
    if b.me() < b.count() {
        b.fold(b.me(), &everyone(b), true);
    }
}

/// Member `i` hands out part `i`.
pub fn allgather(b: &mut Builder) {
    let others = others(b);
    if b.me() < b.count() {
        b.send(b.me(), &others);
    }
    for from in others {
        if from < b.count() {
            b.recv(from, from);
        }
    }
}

/// Every member sends all it has to all others and sums everything itself.
pub fn one_shot(b: &mut Builder) {
    if b.size() == 1 {
        return;
    }
    b.send(0, &others(b));
    b.fold(0, &everyone(b), true);
}

//! Direct stages: every member talks to every other one, each value goes one hop.
//!
//! ```text
//! 3 members, parts a b c; part x of member i is xi; a reduced part is written A
//!
//!                  member 0              member 1              member 2
//! reduce_scatter   b0 ->1, c0 ->2        c1 ->2, a1 ->0        a2 ->0, b2 ->1
//!                  A = a0+a1+a2          B = b0+b1+b2          C = c0+c1+c2
//! allgather        A ->1,2               B ->2,0               C ->0,1      (in the op of the sum)
//!                  C from 2, B from 1    A from 0, C from 2    B from 1, A from 0
//!
//! one_shot         a0 ->1,2              a1 ->2,0              a2 ->0,1     (one part, not cut)
//!                  A = a0+a1+a2          A = a0+a1+a2          A = a0+a1+a2 (all compute the same)
//!
//! all_to_all       01 ->1, 02 ->2        12 ->2, 10 ->0        20 ->0, 21 ->1   (from, to)
//!                  20 from 2, 10 from 1  01 from 0, 21 from 2  12 from 1, 02 from 0
//!
//! scan             a0 ->1,2              a1 ->2
//!                  a0                    a0+a1                 a0+a1+a2
//! ```
//!
//! The bytes of a ring in one hop each way, and each sum in one pass in rank order. Member `i` sends to
//! `i + 1` first, then to `i + 2`, and hears from `i - 1` first: no member is everyone's first target.
//! `one_shot` and `scan` are for what is small: everyone sends all it has.

use super::super::build::{Builder, Src};

/// The other members, beginning with the next one.
fn after(b: &Builder) -> Vec<usize> {
    (1..b.size()).map(|d| (b.me() + d) % b.size()).collect()
}

/// The other members, beginning with the one before: the order in which their first sends come.
fn before(b: &Builder) -> Vec<usize> {
    after(b).into_iter().rev().collect()
}

/// Members in the order of their ranks, as sources.
fn in_order(b: &Builder, members: std::ops::Range<usize>) -> Vec<Src> {
    let mut members: Vec<usize> = members.collect();
    members.sort_unstable_by_key(|&m| b.rank(m));
    members.into_iter().map(|m| if m == b.me() { Src::Mine } else { Src::From(m) }).collect()
}

fn everyone(b: &Builder) -> Vec<Src> {
    in_order(b, 0..b.size())
}

/// Member `i` sums part `i` of all members.
pub fn reduce_scatter(b: &mut Builder) {
    if b.size() == 1 {
        return;
    }
    for to in after(b) {
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
    if b.me() < b.count() {
        b.send(b.me(), &after(b));
        b.keep(b.me());
    }
    for from in before(b) {
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
    b.send(0, &after(b));
    b.fold(0, &everyone(b), true);
}

/// Member `root` sums part 0 of all members.
pub fn reduce(b: &mut Builder, root: usize) {
    if b.me() == root { b.fold(0, &everyone(b), true) } else { b.send(0, &[root]) }
}

/// Part `i * size + j` goes from member `i` to member `j`.
pub fn all_to_all(b: &mut Builder) {
    let (me, n) = (b.me(), b.size());
    for to in after(b) {
        b.send(me * n + to, &[to]);
    }
    b.keep(me * n + me);
    for from in before(b) {
        b.recv(from * n + me, from);
    }
}

/// Part `i` goes to member `i`, from `root`.
pub fn scatter(b: &mut Builder, root: usize) {
    if b.me() != root {
        return b.recv(b.me(), root);
    }
    for to in after(b) {
        b.send(to, &[to]);
    }
    b.keep(root);
}

/// Part `i` goes from member `i` to `root`.
pub fn gather(b: &mut Builder, root: usize) {
    if b.me() != root {
        return b.send(b.me(), &[root]);
    }
    b.keep(root);
    for from in after(b) {
        b.recv(from, from);
    }
}

/// Everyone sends part 0 to all members after it, and sums what it gets: with its own value, or, with
/// `exclusive`, without.
pub fn scan(b: &mut Builder, exclusive: bool) {
    let me = b.me();
    b.send(0, &(me + 1..b.size()).collect::<Vec<_>>());
    match me {
        0 => b.keep(0),
        _ => b.fold(0, &in_order(b, 0..me + usize::from(!exclusive)), false),
    }
}

/// Member 0 hands member `i` part `i - 1`, and the members exchange these: twice the bytes of a
/// broadcast from member 0, but half of them are sent by others.
pub fn scatter_allgather(b: &mut Builder) {
    let me = b.me();
    if me == 0 {
        for to in 1..b.size() {
            b.send(to - 1, &[to]);
        }
        return;
    }
    b.recv(me - 1, 0);
    b.send(me - 1, &after(b).into_iter().filter(|&m| m != 0).collect::<Vec<_>>());
    for from in before(b).into_iter().filter(|&m| m != 0) {
        b.recv(from - 1, from);
    }
}

/// The way back: member `i` sums part `i - 1` of all members, for member 0.
pub fn reduce_scatter_gather(b: &mut Builder) {
    let me = b.me();
    for to in after(b).into_iter().filter(|&m| m != 0) {
        b.send(to - 1, &[to]);
    }
    if me > 0 {
        return b.relay(me - 1, &everyone(b), 0, true);
    }
    for from in 1..b.size() {
        b.recv(from - 1, from);
    }
}

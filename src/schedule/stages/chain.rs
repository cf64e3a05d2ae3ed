//! Chains: a value goes from each member to the next one, which adds its own.
//!
//! ```text
//! scan, 4 members       0              1                  2                  3
//!                       a0 kept, ->1   a0+a1 kept, ->2    (a0+a1)+a2, ->3    ((a0+a1)+a2)+a3
//!
//! scan doubling         a0 ->1         a1 ->2             a2 ->3             a3
//!                       a0 ->2         a0+a1 ->3          a1+a2              a2+a3
//!                       a0             a0+a1              a0+(a1+a2)         (a0+a1)+(a2+a3)
//!
//! exscan                a0 ->1         a1 ->2             a2 ->3             -
//!                       -              a0                 a1                 a2
//!                                      members 1 2 3: a scan of what they have got
//! ```
//!
//! The chain sends least, n - 1 hops, and its tiles follow each other. Doubling has log2(n) hops. An
//! exclusive scan is an inclusive one of values that were handed on by one member first: that keeps the
//! member's own value out of it without memory of its own, also in place.

use super::super::build::{Builder, Src};

/// How a stage makes member `i` hold the fold of part 0 over members `0..=i`.
type Scan = fn(&mut Builder);

pub fn scan(b: &mut Builder) {
    let (me, n) = (b.me(), b.size());
    match me {
        0 => {}
        _ => b.fold(0, &[Src::From(me - 1), Src::Mine], false),
    }
    if me + 1 < n {
        b.send(0, &[me + 1]);
    }
    b.keep(0);
}

/// After the step of distance `d`, members hold the fold of up to `2 d` members that end with them.
pub fn scan_doubling(b: &mut Builder) {
    let (me, n) = (b.me(), b.size());
    let mut d = 1;
    while d < n {
        if me + d < n {
            b.send(0, &[me + d]);
        }
        if me >= d {
            b.fold(0, &[Src::From(me - d), Src::Mine], false);
        }
        d *= 2;
    }
    b.keep(0);
}

pub fn exscan(b: &mut Builder, scan: Scan) {
    let (me, n) = (b.me(), b.size());
    if me + 1 < n {
        b.send(0, &[me + 1]);
    }
    if me > 0 {
        b.recv(0, me - 1);
    }
    let rest: Vec<u32> = (1..n).map(|m| b.rank(m) as u32).collect();
    b.on(&rest, false, scan);
}

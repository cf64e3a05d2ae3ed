//! Rings: everything goes from each member to the next one.
//!
//! ```text
//! 4 members, parts a b c d; part x of member i is xi; a reduced part is written A
//!
//!            member 0        member 1        member 2        member 3
//! step 0     d0 ->1          a1 ->2          b2 ->3          c3 ->0
//! step 1     c3+c0 ->1       d0+d1 ->2       a1+a2 ->3       b2+b3 ->0
//! step 2     b..+b0 ->1      c..+c1 ->2      d..+d2 ->3      a..+a3 ->0
//! step 3     A = a..+a0      B = b..+b1      C = c..+c2      D = d..+d3     reduce_scatter ends
//!            A ->1           B ->2           C ->3           D ->0          (in the same op)
//! step 4     D kept, ->1     A kept, ->2     B kept, ->3     C kept, ->0
//! step 5     C kept, ->1     ...
//! step 6     B kept          ...                                            allgather ends
//! ```
//!
//! Least traffic (2(n-1)/n of the buffer per link), only neighbours, but 2(n-1) hops. Most ops
//! receive and send at once all around a cycle, so channels need two slots.

use super::super::build::{Builder, Src};

/// Part `c` starts at member `c + 1` and ends at member `c`.
pub fn reduce_scatter(b: &mut Builder) {
    let (me, n) = (b.me(), b.size());
    let (next, prev) = ((me + 1) % n, (me + n - 1) % n);
    if n == 1 {
        return;
    }
    for step in 0..n {
        let c = (me + 2 * n - 1 - step) % n;
        if c >= b.count() {
            continue;
        }
        match step {
            0 => b.send(c, &[next]),
            _ if step < n - 1 => b.relay(c, &[Src::From(prev), Src::Mine], next, false),
            _ => b.fold(c, &[Src::From(prev), Src::Mine], true),
        }
    }
}

/// Part `c` starts at member `c` and ends at member `c - 1`.
pub fn allgather(b: &mut Builder) {
    let (me, n) = (b.me(), b.size());
    let (next, prev) = ((me + 1) % n, (me + n - 1) % n);
    if n == 1 {
        return;
    }
    for step in 0..n {
        let c = (me + n - step) % n;
        if c >= b.count() {
            continue;
        }
        match step {
            0 => {
                b.send(c, &[next]);
                b.keep(c);
            }
            _ if step < n - 1 => b.pass(c, prev, &[next]),
            _ => b.recv(c, prev),
        }
    }
}

//! Doublings: partners at distance 1, 2, 4, ... exchange what they have.
//!
//! ```text
//! 4 members, the whole buffer a                    4 members, the buffer in halves and quarters
//! recursive_doubling                               halving_doubling
//!
//!  0    1    2    3                                0         1         2         3
//!  a0<->a1   a2<->a3                               lower<-   ->upper   lower<-   ->upper    half
//!  a01  a01  a23  a23    (lower rank's first)      1st<-     3rd<-     ->2nd     ->4th      quarter
//!  a01<----->a23                                   (each holds one reduced quarter; now back)
//!       a01<----->a23                              1st<-------------->2nd                   quarter
//!  A    A    A    A                                          3rd<-------------->4th         quarter
//!                                                  lower<-->upper      lower<-->upper       half
//! ```
//!
//! log2(n) hops with all the bytes, and 2 log2(n) hops with a ring's bytes. Near partners exchange
//! the big halves, far partners the small ones, and the sum is that of adjacent pairs.
//! Where the number of members is no power of two, the upper ones of the first few adjacent pairs
//! hand their values to the lower ones, and get the result from them at the end:
//!
//! ```text
//! 6 members      0 <- 1    2 <- 3    4    5         then 0, 2, 4, 5 go on as four
//! ```
//!
//! An allgather needs no such care (Bruck's algorithm, for any number of members): member `i` sends what
//! it has, the parts of members `i, i - 1, ...`, to member `i + d`, for d = 1, 2, 4, ...
//!
//! ```text
//! allgather, 5 members, what member 4 has:      4     4 3     4 3 2 1     4 3 2 1 0
//! ```

use super::super::build::{Builder, Src};

/// Latency: every step exchanges the whole buffer.
pub fn recursive_doubling(b: &mut Builder) {
    with_power_of_two(b, |b, me, size, member| {
        let mut bit = 1;
        while bit < size {
            let partner = member(me ^ bit);
            b.send(0, &[partner]);
            b.fold(0, &in_order(b, partner), bit * 2 == size);
            bit *= 2;
        }
    });
}

/// Bandwidth: every step exchanges half of what the step before did, and back again.
pub fn halving_doubling(b: &mut Builder) {
    with_power_of_two(b, |b, me, size, member| halve(b, 1, me, size, member));
}

/// Parts that [`halving_doubling`] cuts into with `n` members.
pub fn halving_chunks(n: usize) -> u32 {
    core_size(n) as u32
}

fn halve(b: &mut Builder, bit: usize, me: usize, size: usize, member: &dyn Fn(usize) -> usize) {
    if bit == size {
        return;
    }
    let partner = member(me ^ bit);
    let mine = usize::from(me & bit != 0);
    b.parts(2, |b| {
        b.send(1 - mine, &[partner]);
        b.fold(mine, &in_order(b, partner), bit * 2 == size);
        b.zoom(mine as u32, 2, 1, |b| halve(b, bit * 2, me, size, member));
        b.send(mine, &[partner]);
        b.recv(1 - mine, partner);
    });
}

/// Member `i` hands out part `i`: ceil(log2(n)) hops, n - 1 messages in and out.
pub fn allgather(b: &mut Builder) {
    let (me, n) = (b.me(), b.size());
    let mut d = 1;
    while d < n {
        let (to, from) = ((me + d) % n, (me + n - d) % n);
        // One out, one in: so channels that hold one message are enough.
        for back in 0..d.min(n - d) {
            b.send((me + n - back) % n, &[to]);
            b.recv((from + n - back) % n, from);
        }
        d *= 2;
    }
    b.keep(me);
}

/// My value and the partner's, lower member first: both compute the same bits.
fn in_order(b: &Builder, partner: usize) -> [Src; 2] {
    if b.me() < partner { [Src::Mine, Src::From(partner)] } else { [Src::From(partner), Src::Mine] }
}

fn core_size(n: usize) -> usize {
    1 << n.ilog2()
}

/// Runs `stage(b, my number, size, number -> member)` on a power of two of the members; the others
/// hand in their values before, and get the result after.
fn with_power_of_two(
    b: &mut Builder,
    stage: impl FnOnce(&mut Builder, usize, usize, &dyn Fn(usize) -> usize),
) {
    let (me, size) = (b.me(), core_size(b.size()));
    let extra = b.size() - size;
    let paired = me < 2 * extra;
    if paired && me % 2 == 1 {
        b.send(0, &[me - 1]);
        b.recv(0, me - 1);
        return;
    }
    if paired {
        b.fold(0, &[Src::Mine, Src::From(me + 1)], false);
    }
    let number = if paired { me / 2 } else { me - extra };
    stage(b, number, size, &|k| if k < extra { 2 * k } else { k + extra });
    if paired {
        b.send(0, &[me + 1]);
    }
}

//! Proofs that the data does what it is for: it is exact in every order, and faults show.

use super::*;

const RANKS: [usize; 8] = [1, 2, 3, 4, 5, 8, 33, 64];
/// More than a period, so that repeating is seen too where it matters.
const COUNT: usize = 257;

fn problems(ranks: &[usize]) -> impl Iterator<Item = Problem> {
    let all = ranks.iter().flat_map(|&ranks| {
        DataType::ALL
            .into_iter()
            .flat_map(move |dtype| RedOp::ALL.map(|op| Problem { dtype, op, ranks, seed: 77 }))
    });
    all.collect::<Vec<_>>().into_iter()
}

/// Whether the type can count so many ranks, with some choice for each: 8-bit floats only up to 4 or 8.
/// With more, contributions to a sum are equal, and some of them zero.
fn counts(p: &Problem) -> bool {
    let sums = matches!(p.op, RedOp::Sum | RedOp::Avg);
    float_limits(p.dtype).is_none_or(|(digits, _)| !sums || 2 * p.ranks <= 1 << digits)
}

/// Rounds to what the type holds, as an implementation does after every hop.
fn rounded(p: &Problem, x: Num) -> Num {
    match (p.dtype, x) {
        (DataType::F16, Num::Float(f)) => Num::Float(f16::from_f32(f as f32).to_f64()),
        (DataType::Bf16, Num::Float(f)) => Num::Float(bf16::from_f32(f as f32).to_f64()),
        (DataType::F8E4M3 | DataType::F8E5M2, Num::Float(f)) => {
            Num::Float(f8_value(p.dtype, f8_nearest(p.dtype, f)))
        }
        (DataType::F32, Num::Float(f)) => Num::Float(f64::from(f as f32)),
        _ => x,
    }
}

/// Folds numbers in a random binary tree over a random order of ranks.
fn fold_at_random(p: &Problem, column: &[Num], mut random: u64) -> Num {
    let mut pool = column.to_vec();
    while pool.len() > 1 {
        random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let a = pool.swap_remove(random as usize % pool.len());
        let i = (random >> 32) as usize % pool.len();
        pool[i] = rounded(p, p.fold2(a, pool[i]));
    }
    pool[0]
}

fn bytes(p: &Problem, values: impl IntoIterator<Item = Num>) -> Vec<u8> {
    let mut out = Vec::new();
    values.into_iter().for_each(|v| encode(p.dtype, v, &mut out));
    out
}

fn columns(p: &Problem, count: usize) -> Vec<Vec<Num>> {
    let mut column = Vec::new();
    (0..count)
        .map(|i| {
            p.column(i, &mut column);
            column.clone()
        })
        .collect()
}

/// Fraction of elements that differ from the right result when each column is reduced by `f`.
fn seen(p: &Problem, f: impl Fn(usize, &[Num]) -> Num) -> f64 {
    let got = bytes(p, columns(p, COUNT).iter().enumerate().map(|(i, c)| p.finish(f(i, c))));
    p.expected(COUNT).compare(&got).count as f64 / COUNT as f64
}

fn fold(p: &Problem, values: impl IntoIterator<Item = Num>) -> Num {
    values.into_iter().reduce(|a, b| rounded(p, p.fold2(a, b))).unwrap()
}

#[test]
fn every_order_gives_the_same_bits() {
    for p in problems(&RANKS).chain(problems(&[100, 257, 300])) {
        let wrong = seen(&p, |i, c| fold_at_random(&p, c, i as u64));
        assert_eq!(wrong, 0.0, "{p:?}");
    }
}

#[test]
fn every_order_of_the_first_ranks_gives_the_same_bits() {
    for p in problems(&RANKS).filter(|p| p.op != RedOp::Avg) {
        for first in [1, p.ranks.div_ceil(2), p.ranks - 1] {
            if first == 0 {
                continue;
            }
            let folds = columns(&p, COUNT).into_iter().enumerate();
            let got = bytes(&p, folds.map(|(i, c)| fold_at_random(&p, &c[..first], i as u64)));
            assert_eq!(p.folded(first, COUNT).compare(&got).count, 0, "{p:?}: {first}");
        }
    }
}

#[test]
fn parts_of_a_long_vector_are_its_blocks() {
    let p = Problem { dtype: DataType::F32, op: RedOp::Sum, ranks: 3, seed: 5 };
    for (pattern, from) in [(p.input(1, 5 * PERIOD), 2 * PERIOD - 7), (p.bits(100), 40)] {
        let count = from + 20;
        let mut whole = vec![0; count * 4];
        pattern.fill(&mut whole);
        let mut part = vec![0; 20 * 4];
        pattern.fill_from(from, &mut part);
        assert_eq!(part, whole[from * 4..]);
        part[9 * 4] ^= 1;
        assert_eq!(pattern.compare_from(from, &part), Mismatch { count: 1, first: Some(9) });
        assert_eq!(pattern.show(from + 9), show_element(&whole[(from + 9) * 4..][..4]));
        assert!(pattern.compare_from(from + 1, &whole[from * 4..]).count > 15);
    }
}

#[test]
fn inputs_are_exact_in_the_type() {
    for p in problems(&RANKS) {
        for (i, column) in columns(&p, COUNT).iter().enumerate() {
            assert!(column.iter().all(|&x| rounded(&p, x) == x), "{p:?}: {i}");
            assert!(
                !column.contains(&Num::Float(0.0)) || matches!(p.op, RedOp::Min | RedOp::Max) || !counts(&p),
                "{p:?}: {i}"
            );
        }
    }
}

#[test]
fn a_quotient_is_exact() {
    for p in problems(&RANKS).filter(|p| p.op == RedOp::Avg && float_limits(p.dtype).is_some() && counts(p)) {
        for column in columns(&p, COUNT) {
            let q = p.finish(fold(&p, column));
            assert_eq!(rounded(&p, q), q, "{p:?}");
        }
    }
}

/// Least fraction of elements in which a fault of one rank must show.
fn due(p: &Problem) -> f64 {
    match (p.op, float_limits(p.dtype)) {
        (RedOp::Sum | RedOp::Prod, _) => 1.0,
        // An average hides contributions smaller than its last digit.
        (RedOp::Avg, Some(_)) => 0.5,
        (RedOp::Avg, None) => 0.4,
        // Each rank has the extreme of every n-th element, but for ties.
        (RedOp::Min | RedOp::Max, _) => 0.6 / p.ranks as f64,
    }
}

#[test]
fn a_missing_rank_is_seen() {
    for p in problems(&RANKS[1..]).filter(counts) {
        for missing in [0, p.ranks / 2, p.ranks - 1] {
            let others = |c: &[Num]| (0..p.ranks).filter(|&r| r != missing).map(|r| c[r]).collect::<Vec<_>>();
            let got = seen(&p, |_, c| fold(&p, others(c)));
            assert!(got >= due(&p), "{p:?}: {missing}: {got}");
        }
    }
}

#[test]
fn a_doubled_rank_is_seen() {
    // Min and max do not change when a value comes twice: nothing can be seen.
    // The last rank may always have 1, and an average of 2 is too coarse to show a second 1.
    let hidden = |p: &Problem| {
        p.op == RedOp::Avg && float_limits(p.dtype).is_some_and(|(digits, _)| 1 << digits == 2 * p.ranks)
    };
    let sums = |p: &Problem| !matches!(p.op, RedOp::Min | RedOp::Max);
    for p in problems(&RANKS).filter(counts).filter(|p| sums(p) && !hidden(p)) {
        for twice in [0, p.ranks - 1] {
            let got = seen(&p, |_, c| fold(&p, c.iter().copied().chain([c[twice]])));
            assert!(got >= due(&p), "{p:?}: {twice}: {got}");
        }
    }
}

#[test]
fn one_rank_in_another_s_place_is_seen() {
    for p in problems(&RANKS[1..]).filter(counts) {
        let got = seen(&p, |_, c| fold(&p, (0..p.ranks).map(|r| c[if r == 0 { p.ranks - 1 } else { r }])));
        // With few bits and many ranks, some of their values are equal.
        assert!(got > 0.0, "{p:?}: {got}");
    }
}

#[test]
fn a_wrong_rank_of_one_element_is_found_at_its_place() {
    for p in problems(&[2, 7]).filter(|p| p.op == RedOp::Sum) {
        let got = bytes(
            &p,
            columns(&p, COUNT).iter().enumerate().map(|(i, c)| fold(&p, c[usize::from(i == 99)..].to_vec())),
        );
        assert_eq!(p.expected(COUNT).compare(&got), Mismatch { count: 1, first: Some(99) }, "{p:?}");
    }
}

/// Integer averages over many ranks have few values or one: nothing is left to tell apart.
fn varies(p: &Problem) -> bool {
    !(p.op == RedOp::Avg && p.dtype.size() == 1 && p.ranks > 8)
}

#[test]
fn elements_at_the_wrong_place_are_seen() {
    for p in problems(&RANKS).filter(varies) {
        let size = p.dtype.size();
        let good = {
            let mut b = vec![0; COUNT * size];
            p.expected(COUNT).fill(&mut b);
            b
        };
        let compare = |b: &[u8]| p.expected(COUNT).compare(b).count;
        assert_eq!(compare(&good), 0);
        // Off by one element, both ways.
        let mut shifted = good.clone();
        shifted.rotate_left(size);
        assert!(compare(&shifted) > COUNT / 3, "{p:?}: {}", compare(&shifted));
        shifted.rotate_right(2 * size);
        assert!(compare(&shifted) > COUNT / 3, "{p:?}");
        // Two chunks of 16 elements swapped.
        let mut swapped = good.clone();
        let (a, b) = swapped.split_at_mut(128 * size);
        a[..16 * size].swap_with_slice(&mut b[..16 * size]);
        assert!(compare(&swapped) > 0, "{p:?}");
        // The last element not written.
        let mut short = good.clone();
        short[(COUNT - 1) * size..].fill(0x5a);
        assert_eq!(compare(&short), 1, "{p:?}");
    }
}

#[test]
fn chunks_far_apart_differ() {
    let p = Problem { dtype: DataType::F32, op: RedOp::Sum, ranks: 4, seed: 1 };
    let count = 1 << 20;
    let mut buffer = vec![0; count * 4];
    p.expected(count).fill(&mut buffer);
    assert_eq!(p.expected(count).compare(&buffer).count, 0);
    for chunk in [1 << 10, 1 << 14, 1 << 16, 1 << 18] {
        let mut b = buffer.clone();
        let (low, high) = b.split_at_mut(chunk * 4);
        low.swap_with_slice(&mut high[..chunk * 4]);
        assert!(p.expected(count).compare(&b).count > chunk, "{chunk}");
    }
}

#[test]
fn stale_buffers_are_seen() {
    for p in problems(&RANKS[1..]).filter(counts) {
        let wrong = |buffer: &Pattern| {
            let mut b = vec![0; COUNT * p.dtype.size()];
            buffer.fill(&mut b);
            p.expected(COUNT).compare(&b).count
        };
        // A rank's own input left as it was, in place.
        for rank in [0, p.ranks - 1] {
            let least = if matches!(p.op, RedOp::Min | RedOp::Max) { 2 } else { 3 };
            assert!(wrong(&p.input(rank, COUNT)) > COUNT / least / 2, "{p:?}");
        }
        // The result of the check before.
        if varies(&p) {
            assert!(wrong(&Problem { seed: 78, ..p }.expected(COUNT)) > COUNT / 4, "{p:?}");
        }
        // Memory that nobody wrote.
        let mut zero = vec![0u8; COUNT * p.dtype.size()];
        let unwritten = p.expected(COUNT).compare(&zero).count;
        assert!(unwritten > COUNT / 4 || !varies(&p), "{p:?}: {unwritten}");
        zero.fill(0x5a);
        assert!(p.expected(COUNT).compare(&zero).count > COUNT / 2, "{p:?}");
    }
}

#[test]
fn the_fixed_point_stays() {
    for p in problems(&RANKS) {
        let b = p.fixed_point().bytes;
        let one = match (p.op, float_limits(p.dtype)) {
            (RedOp::Sum | RedOp::Avg, Some(_)) => Num::Float(0.0),
            (_, Some(_)) => Num::Float(1.0),
            (RedOp::Sum | RedOp::Avg, None) => Num::Int(0),
            _ => Num::Int(1),
        };
        let reduced = p.finish(fold(&p, vec![one; p.ranks]));
        assert_eq!(bytes(&p, [reduced]), b[..p.dtype.size()], "{p:?}");
    }
}

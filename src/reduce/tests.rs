//! Every kernel of every level that this CPU has, against a reference that works one element at a
//! time, in other ways than the kernels.

use super::elem::{Byte, Half};
use super::*;

/// xorshift64*
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }
}

/// Exponent and mantissa bits of a float type.
fn format(t: DataType) -> Option<(u32, u32)> {
    match t {
        DataType::F16 => Some((5, 10)),
        DataType::Bf16 => Some((8, 7)),
        DataType::F32 => Some((8, 23)),
        DataType::F64 => Some((11, 52)),
        DataType::F8E4M3 => Some((4, 3)),
        DataType::F8E5M2 => Some((5, 2)),
        _ => None,
    }
}

fn signed(t: DataType) -> bool {
    matches!(t, DataType::I8 | DataType::I32 | DataType::I64)
}

/// Any bits; for floats a third of them zeros, infinities, NaNs, subnormals and numbers near 1.
fn random(t: DataType, rng: &mut Rng) -> u64 {
    let bits = rng.next() >> (64 - 8 * t.size());
    let Some((e, m)) = format(t) else { return bits };
    let (exp, man) = (((1u64 << e) - 1) << m, (1u64 << m) - 1);
    let sign = bits & (1 << (e + m));
    match rng.below(18) {
        0 => sign,
        1 => sign | exp,
        2 => sign | exp | (bits & man).max(1),
        3 => sign | (bits & man),
        4 => sign | (bits & man) | (1 << m),
        5 => sign | (bits & man) | (exp >> 1 & exp),
        _ => bits,
    }
}

/// The format that has neither infinities nor NaNs but one.
const FN: (u32, u32) = (4, 3);

/// The number of a code below 0x7f of [`FN`].
fn fn_abs(code: u64) -> f64 {
    let (exp, man) = ((code >> 3) as i32, (code & 7) as f64);
    if exp == 0 { man / 512.0 } else { (1.0 + man / 8.0) * 2f64.powi(exp - 7) }
}

/// The number that `bits` of a float type (f32 at most) mean.
fn decode(bits: u64, (e, m): (u32, u32)) -> f64 {
    let (exp, man) = (bits >> m & ((1 << e) - 1), (bits & ((1 << m) - 1)) as f64);
    let bias = (1i32 << (e - 1)) - 1;
    let abs = if (e, m) == FN {
        if bits & 0x7f == 0x7f { f64::NAN } else { fn_abs(bits & 0x7f) }
    } else if exp == (1 << e) - 1 {
        if man == 0.0 { f64::INFINITY } else { f64::NAN }
    } else if exp == 0 {
        man * 2f64.powi(1 - bias - m as i32)
    } else {
        (man + 2f64.powi(m as i32)) * 2f64.powi(exp as i32 - bias - m as i32)
    };
    if bits >> (e + m) == 1 { -abs } else { abs }
}

/// The nearest value of a float type of 16 or 8 bits, ties to even.
fn encode(v: f64, (e, m): (u32, u32)) -> u64 {
    let bias = (1i32 << (e - 1)) - 1;
    let (sign, inf) = ((v.is_sign_negative() as u64) << (e + m), ((1u64 << e) - 1) << m);
    if v.is_nan() {
        return inf | ((1 << m) - 1);
    }
    let a = v.abs();
    if (e, m) == FN {
        // The nearest of all, of two the one with the even code.
        let near = |c: &u64| ((a.min(448.0) - fn_abs(*c)).abs(), c & 1);
        return sign | (0..0x7f).min_by(|x, y| near(x).partial_cmp(&near(y)).unwrap()).unwrap();
    }
    if a.is_infinite() {
        return sign | inf;
    }
    let exp = if a < 2f64.powi(1 - bias) { 1 - bias } else { a.log2().floor() as i32 };
    // log2 may have rounded up to the next whole number.
    let exp = if exp > 1 - bias && 2f64.powi(exp) > a { exp - 1 } else { exp };
    let ulp = 2f64.powi(exp - m as i32);
    let steps = (a / ulp).round_ties_even();
    if steps * ulp >= 2f64.powi(bias + 1) {
        return sign | inf;
    }
    // A subnormal has exponent 0 and no hidden bit, so the sum below counts on for both.
    sign | ((((exp + bias - 1) as u64) << m) + steps as u64)
}

fn fold_float<F: Copy + PartialOrd>(
    op: RedOp,
    a: F,
    b: F,
    nan: F,
    neg: impl Fn(F) -> bool,
    calc: [F; 2],
) -> F {
    let (lo, hi) = if a < b || (a == b && neg(a)) { (a, b) } else { (b, a) };
    match op {
        RedOp::Sum | RedOp::Avg => calc[0],
        RedOp::Prod => calc[1],
        _ if a.partial_cmp(&b).is_none() => nan,
        RedOp::Min => lo,
        RedOp::Max => hi,
    }
}

/// The folded value's bits; `None` for any NaN.
fn reference(t: DataType, op: RedOp, v: &[u64], ranks: u32) -> Option<u64> {
    if v.len() == 1 && ranks <= 1 {
        return Some(v[0]);
    }
    let Some(f) = format(t) else {
        let shift = 128 - 8 * t.size() as u32;
        let wrap =
            |x: i128| if signed(t) { x << shift >> shift } else { ((x as u128) << shift >> shift) as i128 };
        let folded = v.iter().map(|x| wrap(*x as i128)).reduce(|a, b| match op {
            RedOp::Sum | RedOp::Avg => wrap(a + b),
            RedOp::Prod => wrap(a.wrapping_mul(b)),
            RedOp::Max => a.max(b),
            RedOp::Min => a.min(b),
        });
        let r = folded.unwrap() / ranks.max(1) as i128;
        return Some(r as u64 & (u64::MAX >> (64 - 8 * t.size())));
    };
    if t == DataType::F64 {
        let r = v
            .iter()
            .map(|x| f64::from_bits(*x))
            .reduce(|a, b| fold_float(op, a, b, f64::NAN, |x| x.is_sign_negative(), [a + b, a * b]));
        let r = r.unwrap() / ranks.max(1) as f64;
        return (!r.is_nan()).then_some(r.to_bits());
    }
    let r = v
        .iter()
        .map(|x| decode(*x, f) as f32)
        .reduce(|a, b| fold_float(op, a, b, f32::NAN, |x| x.is_sign_negative(), [a + b, a * b]));
    let r = r.unwrap() / ranks.max(1) as f32;
    (!r.is_nan()).then(|| if t == DataType::F32 { r.to_bits() as u64 } else { encode(r as f64, f) })
}

/// As [`reference`], folding balanced adjacent pairs, level by level.
fn reference_pairs(t: DataType, op: RedOp, v: &[u64], ranks: u32) -> Option<u64> {
    if v.len() <= 2 {
        return reference(t, op, v, ranks);
    }
    let nan = || encode_nan(t);
    let next: Vec<u64> = v
        .chunks(2)
        .map(|p| if p.len() == 1 { p[0] } else { reference(t, op, p, 1).unwrap_or_else(nan) })
        .collect();
    reference_pairs(t, op, &next, ranks)
}

fn encode_nan(t: DataType) -> u64 {
    match t {
        DataType::F64 => f64::NAN.to_bits(),
        _ => encode(f64::NAN, format(t).unwrap()),
    }
}

fn is_nan(t: DataType, bits: u64) -> bool {
    format(t).is_some_and(|(e, m)| {
        let inf = ((1u64 << e) - 1) << m;
        if (e, m) == FN {
            return bits & 0x7f == 0x7f;
        }
        bits & (inf | ((1 << m) - 1)) > inf
    })
}

fn get(t: DataType, b: &[u8], i: usize) -> u64 {
    let mut v = [0; 8];
    v[..t.size()].copy_from_slice(&b[i * t.size()..(i + 1) * t.size()]);
    u64::from_le_bytes(v)
}

/// One buffer: `len` elements at a random address, between guards.
struct Buf {
    bytes: Vec<u8>,
    at: usize,
}

impl Buf {
    fn new(t: DataType, len: usize, rng: &mut Rng) -> Buf {
        let at = 64 + if rng.below(2) == 0 { rng.below(64) } else { rng.below(64) / t.size() * t.size() };
        let mut bytes = vec![0xa5; at + len * t.size() + 64];
        for i in 0..len {
            let v = random(t, rng).to_le_bytes();
            bytes[at + i * t.size()..][..t.size()].copy_from_slice(&v[..t.size()]);
        }
        Buf { bytes, at }
    }
}

/// The reference of a kernel's order.
type Order = fn(DataType, RedOp, &[u64], u32) -> Option<u64>;

/// Calls a kernel with random data, addresses and aliases, and compares all memory afterwards.
fn check(
    (k, order): (Kernel, Order),
    t: DataType,
    op: RedOp,
    (nsrc, ndst): (usize, usize),
    len: usize,
    rng: &mut Rng,
    what: &str,
) {
    let (mut bufs, nt): (Vec<Buf>, _) =
        ((0..nsrc + ndst).map(|_| Buf::new(t, len, rng)).collect(), rng.below(2) == 0);
    // Destination j is its own buffer or, often, the source j + turn.
    let turn = rng.below(nsrc);
    let dst: Vec<usize> =
        (0..ndst).map(|j| if j < nsrc && rng.below(3) == 0 { (j + turn) % nsrc } else { nsrc + j }).collect();
    let ranks =
        if op == RedOp::Avg { [1, 2, 3, 7, 8, 100, 1000, 70_000][rng.below(8)] } else { rng.below(2) as u32 };
    let mut want: Vec<Vec<u8>> = bufs.iter().map(|b| b.bytes.clone()).collect();
    let values: Vec<Option<u64>> = (0..len)
        .map(|i| {
            let v: Vec<u64> = bufs[..nsrc].iter().map(|b| get(t, &b.bytes[b.at..], i)).collect();
            order(t, op, &v, ranks)
        })
        .collect();
    let ptr: Vec<*mut u8> = bufs.iter_mut().map(|b| b.bytes[b.at..].as_mut_ptr()).collect();
    let srcs: Vec<*const u8> = ptr[..nsrc].iter().map(|p| p.cast_const()).collect();
    let dsts: Vec<*mut u8> = dst.iter().map(|i| ptr[*i]).collect();
    // SAFETY: the buffers have `len` elements each; aliases are exact.
    unsafe { k(dsts.as_ptr(), ndst, srcs.as_ptr(), nsrc, len, ranks, nt) };
    let case = || format!("{what} {t:?} {op:?} {nsrc}->{ndst} len {len} ranks {ranks} nt {nt} dst {dst:?}");
    for &d in &dst {
        for (i, value) in values.iter().enumerate() {
            let at = bufs[d].at + i * t.size();
            let got = get(t, &bufs[d].bytes[at..], 0);
            match value {
                Some(v) => assert_eq!(got, *v, "{} element {i}", case()),
                None => assert!(is_nan(t, got), "{} element {i}: {got:x} is no NaN", case()),
            }
            want[d][at..at + t.size()].copy_from_slice(&got.to_le_bytes()[..t.size()]);
        }
    }
    for (b, want) in bufs.iter().zip(&want) {
        assert!(b.bytes == *want, "{} wrote where it should not", case());
    }
}

fn kernels(level: &'static Level) -> impl Iterator<Item = (DataType, RedOp, Kernel)> {
    let k = move |t, op| level.rows[t as usize].fold[column(op)];
    DataType::ALL.into_iter().flat_map(move |t| RedOp::ALL.map(|op| (t, op, k(t, op))))
}

#[test]
fn all_levels_match_the_reference() {
    let mut rng = Rng(1);
    for (l, level) in levels().into_iter().enumerate() {
        for (t, op, k) in kernels(level) {
            for len in 0..=200 {
                for _ in 0..if cfg!(debug_assertions) { 1 } else { 3 } {
                    let (nsrc, ndst) = (1 + rng.below(5), 1 + rng.below(3));
                    check(
                        (k, reference),
                        t,
                        op,
                        (nsrc, ndst),
                        len,
                        &mut rng,
                        &format!("level {l} {}", level.name),
                    );
                }
            }
        }
    }
}

#[test]
fn many_sources_and_destinations() {
    let mut rng = Rng(2);
    for level in levels() {
        for (t, op, k) in kernels(level) {
            check((k, reference), t, op, (64, 1), 1000, &mut rng, level.name);
            check((k, reference), t, op, (9, 8), 1000, &mut rng, level.name);
            check((k, reference), t, op, (1, 7), 1000, &mut rng, level.name);
        }
    }
}

/// Every value of a 16-bit type, and every point where its rounding changes, plus one f32 ulp.
#[test]
fn rounding_of_every_16_bit_value() {
    for t in [DataType::F16, DataType::Bf16] {
        let f = format(t).unwrap();
        let value = |b: u16| decode(b as u64, f);
        for b in 0..=u16::MAX {
            let v = value(b);
            let (low, high, round): (_, _, fn(f32) -> u32) = if t == DataType::F16 {
                (F16::low(0xabcd_0000 | b as u32), F16::high((b as u32) << 16 | 0xabcd), F16::round)
            } else {
                (Bf16::low(0xabcd_0000 | b as u32), Bf16::high((b as u32) << 16 | 0xabcd), Bf16::round)
            };
            if v.is_nan() {
                assert!(low.is_nan() && high.is_nan() && is_nan(t, round(low) as u64), "{t:?} {b:x}");
                continue;
            }
            assert_eq!((low as f64).to_bits(), v.to_bits(), "{t:?} {b:x}");
            assert_eq!((high as f64).to_bits(), v.to_bits(), "{t:?} {b:x}");
            let next = value(b.wrapping_add(1));
            let middle = if next.is_finite() { ((v + next) / 2.0) as f32 } else { low };
            for x in [low, low.next_up(), middle.next_down(), middle, middle.next_up()] {
                assert_eq!(round(x) as u64, encode(x as f64, f), "{t:?} {b:x} {x:e}");
            }
        }
    }
    assert_eq!((F16::round(65519.99), F16::round(65520.0)), (0x7bff, 0x7c00));
    assert_eq!(Bf16::round(f32::MAX), 0x7f80);
}

/// AVX512-BF16 takes subnormals for zero; also in the last lane, alone.
#[test]
fn bf16_subnormals_survive() {
    for level in levels() {
        for at in 0..64 {
            let (mut a, b, mut out) = ([0x3f80u16; 64], [0u16; 64], [0u16; 64]);
            a[at] = 0x8003;
            let k = level.rows[DataType::Bf16 as usize].fold[SUM as usize];
            let (d, s) = (out.as_mut_ptr().cast::<u8>(), [a.as_ptr().cast::<u8>(), b.as_ptr().cast()]);
            // SAFETY: 64 elements each.
            unsafe { k(&d, 1, s.as_ptr(), 2, 64, 0, false) };
            assert_eq!(out, a, "{} lane {at}", level.name);
        }
    }
}

#[test]
fn copy_copies() {
    let mut rng = Rng(3);
    for len in (0..300).chain([4096, 10_000]) {
        for nt in [false, true] {
            let src = Buf::new(DataType::U8, len, &mut rng);
            let mut dst = Buf::new(DataType::U8, len, &mut rng);
            let mut want = dst.bytes.clone();
            want[dst.at..dst.at + len].copy_from_slice(&src.bytes[src.at..][..len]);
            // SAFETY: `len` bytes each.
            unsafe { copy(dst.bytes[dst.at..].as_mut_ptr(), src.bytes[src.at..].as_ptr(), len, nt) };
            store_fence();
            assert!(dst.bytes == want, "len {len} nt {nt}");
        }
    }
}

#[test]
fn table_is_indexed_by_type_and_op() {
    assert!(levels().iter().any(|l| l.name == level()));
    for (t, op, k) in kernels(chosen()) {
        assert!(std::ptr::fn_addr_eq(kernel(t, op), k), "{t:?} {op:?}");
        let pairs = chosen().rows[t as usize].pairs[column(op)];
        assert!(std::ptr::fn_addr_eq(kernel_pairs(t, op), pairs), "{t:?} {op:?}");
        check((kernel(t, op), reference), t, op, (3, 2), 50, &mut Rng(4), level());
    }
}

/// Every code of an 8-bit type, and every point where its rounding changes, plus one f32 ulp.
#[test]
fn rounding_of_every_8_bit_value() {
    fn all<B: Byte>(t: DataType) {
        let f = format(t).unwrap();
        for b in 0..=u8::MAX {
            let (v, got) = (decode(b as u64, f), B::widen(0xabcd_ef00 | b as u32));
            if v.is_nan() {
                assert!(got.is_nan() && is_nan(t, B::round(got) as u64), "{t:?} {b:x}");
                continue;
            }
            assert_eq!((got as f64).to_bits(), v.to_bits(), "{t:?} {b:x}");
            let next = decode(b.wrapping_add(1) as u64, f);
            let middle = if next.is_finite() { ((v + next) / 2.0) as f32 } else { got };
            for x in [got, got.next_up(), middle.next_down(), middle, middle.next_up()] {
                assert_eq!(B::round(x) as u64, encode(x as f64, f), "{t:?} {b:x} {x:e}");
            }
        }
        // All upper halves of an f32, and what is near them.
        for half in 0..=u16::MAX {
            for low in [0, 1, 0x8000, 0xffff] {
                let x = f32::from_bits((half as u32) << 16 | low);
                let got = B::round(x) as u64;
                if x.is_nan() {
                    assert!(is_nan(t, got), "{t:?} {x:e} {got:x}");
                } else {
                    assert_eq!(got, encode(x as f64, f), "{t:?} {x:e}");
                }
            }
        }
    }
    all::<elem::E4m3>(DataType::F8E4M3);
    all::<elem::E5m2>(DataType::F8E5M2);
    let (e4m3, e5m2) = (elem::E4m3::round, elem::E5m2::round);
    // The largest numbers and what lies above.
    assert_eq!([448.0, 464.0, 1e30, f32::INFINITY, -1e30].map(e4m3), [0x7e, 0x7e, 0x7e, 0x7e, 0xfe]);
    assert_eq!([57344.0, 61439.0, 61440.0, f32::INFINITY, -1e30].map(e5m2), [0x7b, 0x7b, 0x7c, 0x7c, 0xfc]);
    // Least numbers, half of them.
    assert_eq!([1.0 / 512.0, 1.0 / 1024.0, 3.0 / 2048.0].map(e4m3), [1, 0, 1]);
    assert_eq!([1.0 / 65536.0, 1.0 / 131072.0, 3.0 / 262144.0].map(e5m2), [1, 0, 1]);
}

#[test]
fn every_pair_of_8_bit_values() {
    let (a, b): (Vec<u8>, Vec<u8>) = (0..=u16::MAX).map(|i| ((i >> 8) as u8, i as u8)).unzip();
    for level in levels() {
        for (t, op, k) in kernels(level).filter(|(t, ..)| t.size() == 1) {
            let (mut out, srcs) = (vec![0u8; a.len()], [a.as_ptr(), b.as_ptr()]);
            // SAFETY: all have as many elements of one byte.
            unsafe {
                k(&out.as_mut_ptr(), 1, srcs.as_ptr(), 2, a.len(), 3 * (op == RedOp::Avg) as u32, false)
            };
            for i in 0..a.len() {
                let ranks = if op == RedOp::Avg { 3 } else { 0 };
                let what = || format!("{} {t:?} {op:?} {:x} {:x}: {:x}", level.name, a[i], b[i], out[i]);
                match reference(t, op, &[a[i] as u64, b[i] as u64], ranks) {
                    Some(v) => assert_eq!(out[i] as u64, v, "{}", what()),
                    None => assert!(is_nan(t, out[i] as u64), "{}", what()),
                }
            }
        }
    }
}

#[test]
fn pairs_match_the_reference() {
    let mut rng = Rng(5);
    for level in levels() {
        for (t, op, _) in kernels(level) {
            let k: (Kernel, Order) = (level.rows[t as usize].pairs[column(op)], reference_pairs);
            for nsrc in (1..=17).chain([64]) {
                for len in [0, 1, rng.below(100), 600 + rng.below(600)] {
                    check(k, t, op, (nsrc, 1 + rng.below(2)), len, &mut rng, level.name);
                }
            }
            // Several blocks of the widest type; more destinations than are written at once.
            check(k, t, op, (7, 1), 6000 / t.size() + rng.below(50), &mut rng, level.name);
            check(k, t, op, (3, 10), 700, &mut rng, level.name);
            check(k, t, op, (65, 3), 100, &mut rng, level.name);
        }
    }
}

/// It makes no difference how many sources come at a time.
#[test]
fn pairs_of_parts_are_the_pairs_of_all() {
    let mut rng = Rng(6);
    for (t, op, _) in kernels(chosen()) {
        let (k, len) = (kernel_pairs(t, op), 300);
        let fold = |v: &[Vec<u8>]| {
            let (srcs, mut out): (Vec<_>, _) = (v.iter().map(|b| b.as_ptr()).collect(), v[0].clone());
            // SAFETY: all have `len` elements.
            unsafe { k(&out.as_mut_ptr(), 1, srcs.as_ptr(), srcs.len(), len, 0, false) };
            out
        };
        for n in [2, 3, 5, 8, 11, 16, 19] {
            let number = |rng: &mut Rng| loop {
                let x = random(t, rng);
                // NaNs may differ in their payload.
                if !is_nan(t, x) {
                    break x.to_le_bytes();
                }
            };
            let column = |rng: &mut Rng| (0..len).flat_map(|_| number(rng)[..t.size()].to_vec()).collect();
            let v: Vec<Vec<u8>> = (0..n).map(|_| column(&mut rng)).collect();
            let all = fold(&v);
            for group in [1, 2, 4, 8] {
                let parts: Vec<Vec<u8>> = v.chunks(group).map(fold).collect();
                for (i, (x, y)) in all.chunks(t.size()).zip(fold(&parts).chunks(t.size())).enumerate() {
                    let nan = is_nan(t, get(t, x, 0)) && is_nan(t, get(t, y, 0));
                    assert!(nan || x == y, "{t:?} {op:?} {n} by {group}, element {i}: {x:x?} {y:x?}");
                }
            }
        }
    }
}

/// A product with a factor, its bits; `None` for NaN.
fn reference_scale(t: DataType, x: u64, factor: Factor) -> Option<u64> {
    match (factor, format(t)) {
        (Factor::Int(f), None) => Some(x.wrapping_mul(f as u64) & (u64::MAX >> (64 - 8 * t.size()))),
        (Factor::Float(f), Some(_)) if t == DataType::F64 => {
            let r = f64::from_bits(x) * f;
            (!r.is_nan()).then_some(r.to_bits())
        }
        (Factor::Float(f), Some(format)) => {
            let r = decode(x, format) as f32 * f as f32;
            let bits =
                |r: f32| if t == DataType::F32 { r.to_bits() as u64 } else { encode(r as f64, format) };
            (!r.is_nan()).then(|| bits(r))
        }
        _ => unreachable!("the factor does not fit"),
    }
}

#[test]
fn products_with_a_factor() {
    let mut rng = Rng(7);
    for level in levels() {
        for t in DataType::ALL {
            let floats = [0.5, -3.0, 1.0 / 3.0, 0.0, 1e-9, 1e300, f64::INFINITY, f64::NAN].map(Factor::Float);
            let ints = [0, 1, -1, 3, 300, i64::MIN, i64::MAX, 0x1234_5678_9abc].map(Factor::Int);
            for factor in if t.is_float() { floats } else { ints } {
                assert!(factor.fits(t).is_ok());
                for len in [0, 1, 7, 16, 63, 64, 200 + rng.below(200)] {
                    let (src, mut dst) = (Buf::new(t, len, &mut rng), Buf::new(t, len, &mut rng));
                    let mut same = Buf { bytes: src.bytes.clone(), at: src.at };
                    let k = level.rows[t as usize].scale;
                    // SAFETY: `len` elements each.
                    unsafe {
                        k(dst.bytes[dst.at..].as_mut_ptr(), src.bytes[src.at..].as_ptr(), len, factor);
                        let p = same.bytes[same.at..].as_mut_ptr();
                        k(p, p, len, factor);
                    }
                    for i in 0..len {
                        let x = get(t, &src.bytes[src.at..], i);
                        for out in [&dst, &same] {
                            let got = get(t, &out.bytes[out.at..], i);
                            let what = || format!("{} {t:?} {factor:?} {x:x}: {got:x}", level.name);
                            match reference_scale(t, x, factor) {
                                Some(v) => assert_eq!(got, v, "{}", what()),
                                None => assert!(is_nan(t, got), "{}", what()),
                            }
                        }
                    }
                    for b in [&dst, &same] {
                        let mut guards = b.bytes[..b.at].iter().chain(&b.bytes[b.at + len * t.size()..]);
                        assert!(guards.all(|g| *g == 0xa5), "{} {t:?} len {len}", level.name);
                    }
                }
            }
        }
    }
    let mut x = [1.5f32, -2.0];
    let p = x.as_mut_ptr().cast::<u8>();
    // SAFETY: two elements.
    unsafe { scale(DataType::F32, p, p, 2, Factor::Float(2.0)) };
    assert_eq!(x, [3.0, -4.0]);
    assert!(Factor::Int(1).fits(DataType::F8E5M2).is_err() && Factor::Float(1.0).fits(DataType::U8).is_err());
}

#[test]
fn conversions_round_as_the_kernels_do() {
    let mut rng = Rng(77);
    for level in levels() {
        for (t, to, from) in [(DataType::F16, 0, 1), (DataType::Bf16, 2, 3)] {
            for len in [1, 7, 16, 33, 1000] {
                // One more than is touched, and off any alignment.
                let mut wide = vec![0u8; 4 * len + 5];
                for i in 0..len {
                    let v = random(DataType::F32, &mut rng) as u32;
                    wide[1 + 4 * i..][..4].copy_from_slice(&v.to_le_bytes());
                }
                let mut small = vec![0xa5u8; 2 * len + 3];
                let mut back = vec![0xa5u8; 4 * len + 5];
                // SAFETY: the buffers have `len` elements behind their first byte.
                unsafe {
                    (level.conversions[to])(small.as_mut_ptr().add(1), wide.as_ptr().add(1), len);
                    (level.conversions[from])(back.as_mut_ptr().add(1), small.as_ptr().add(1), len);
                }
                assert_eq!(
                    (small[0], small[2 * len + 1], back[0], back[4 * len + 1]),
                    (0xa5, 0xa5, 0xa5, 0xa5)
                );
                for i in 0..len {
                    let x = f32::from_bits(get(DataType::F32, &wide[1..], i) as u32);
                    let (y, z) = (get(t, &small[1..], i), get(DataType::F32, &back[1..], i) as u32);
                    if x.is_nan() {
                        assert!(is_nan(t, y) && f32::from_bits(z).is_nan(), "{t:?} {x} {y:#x}");
                    } else {
                        assert_eq!(y, encode(x.into(), format(t).unwrap()), "{} {t:?} {x}", level.name);
                        assert_eq!(
                            f64::from(f32::from_bits(z)),
                            decode(y, format(t).unwrap()),
                            "{t:?} {y:#x}"
                        );
                    }
                }
            }
        }
    }
}

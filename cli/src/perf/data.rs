//! Inputs whose reduction has one exactly known result, in whatever order it is computed.
//!
//! So results can be compared bit by bit, and nothing hides in a tolerance:
//!
//! | op | floats: every partial result is exact | integers (they wrap, which is exact) |
//! |---|---|---|
//! | sum | m * s, m in 1..=2^p/n, s = a sign and a power of two per element; p = the type's digits | odd |
//! | avg | the same, but pairs of ranks have q+d, q-d, so that sum = n*q and the quotient q is exact | any |
//! | prod | -(2^e), the exponents' absolute sum within the type's range | 3 mod 4 |
//! | min, max | any m * s; the extreme is unique and its place goes round the ranks | any, the same |
//!
//! All contributions to a float sum have one sign, none is zero, and those to a product are all
//! negative: a rank that is missing or counted twice changes *every* element. Values depend on the
//! element and on a seed that is new for every check, so swapped chunks and stale results differ.
//! They repeat after [`PERIOD`] elements, a prime, which makes filling and comparing as fast as
//! memory; chunks are never that far apart. The blocks of a collective are consecutive parts of one
//! long vector.
//!
//! What is only moved has random bits, NaNs among them: nobody may look at them.

use std::ops::Range;

use graccl::{DataType, RedOp};
use half::{bf16, f16};

/// Elements after which the values repeat.
pub const PERIOD: usize = 16381;

/// What is reduced.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub dtype: DataType,
    pub op: RedOp,
    /// Number of ranks.
    pub ranks: usize,
    pub seed: u64,
}

/// One contribution or result, as a number. Integers are typed: within the type's range.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Num {
    Int(i128),
    Float(f64),
}

/// Bytes of up to [`PERIOD`] elements, which repeat.
#[derive(Clone)]
pub struct Pattern {
    bytes: Vec<u8>,
    size: usize,
}

/// Scrambles the bits of `x` (the finalizer of splitmix64).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn hash(seed: u64, element: usize, rank: usize) -> u64 {
    let x = mix(seed.wrapping_add((element as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    mix(x ^ (rank as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93))
}

/// Binary digits of a float type's significand, and the largest exponent that is safe both ways.
fn float_limits(dtype: DataType) -> Option<(u32, i32)> {
    match dtype {
        DataType::F16 => Some((11, 14)),
        DataType::Bf16 => Some((8, 126)),
        DataType::F8E4M3 => Some((4, 6)),
        DataType::F8E5M2 => Some((3, 14)),
        DataType::F32 => Some((24, 126)),
        DataType::F64 => Some((53, 1022)),
        _ => None,
    }
}

/// The value of the integer type that `x` wraps to.
fn wrap(dtype: DataType, x: i128) -> i128 {
    match dtype {
        DataType::I8 => x as i8 as i128,
        DataType::U8 => x as u8 as i128,
        DataType::I32 => x as i32 as i128,
        DataType::U32 => x as u32 as i128,
        DataType::I64 => x as i64 as i128,
        DataType::U64 => x as u64 as i128,
        _ => unreachable!("not an integer type"),
    }
}

/// The number that a code of an 8-bit float type means, for those that are finite.
fn f8_value(dtype: DataType, code: u8) -> f64 {
    let (digits, bias) = if dtype == DataType::F8E4M3 { (3, 7) } else { (2, 15) };
    let (exponent, mantissa) = (i32::from(code & 0x7f) >> digits, f64::from(code & ((1 << digits) - 1)));
    let (whole, exponent) = if exponent == 0 { (0.0, 1) } else { (1.0, exponent) };
    let abs = (whole + mantissa / 2f64.powi(digits)) * 2f64.powi(exponent - bias);
    if code & 0x80 == 0 { abs } else { -abs }
}

/// The code of the nearest finite number, of two that are as near the even one: found by trying all.
fn f8_nearest(dtype: DataType, x: f64) -> u8 {
    let codes = if dtype == DataType::F8E4M3 { 0..0x7f } else { 0..0x7c_u8 };
    let far = |code: &u8| ((f8_value(dtype, *code) - x.abs()).abs(), code & 1);
    let nearest = codes.min_by(|a, b| far(a).partial_cmp(&far(b)).expect("no NaN")).expect("a code");
    nearest | u8::from(x.is_sign_negative()) << 7
}

/// Appends the element's bytes. Floats are exact in the type, but for averages that are not
/// representable, which are rounded to nearest.
fn encode(dtype: DataType, value: Num, out: &mut Vec<u8>) {
    match (dtype, value) {
        (DataType::F16, Num::Float(x)) => out.extend_from_slice(&f16::from_f64(x).to_ne_bytes()),
        (DataType::Bf16, Num::Float(x)) => out.extend_from_slice(&bf16::from_f64(x).to_ne_bytes()),
        (DataType::F8E4M3 | DataType::F8E5M2, Num::Float(x)) => out.push(f8_nearest(dtype, x)),
        (DataType::F32, Num::Float(x)) => out.extend_from_slice(&(x as f32).to_ne_bytes()),
        (DataType::F64, Num::Float(x)) => out.extend_from_slice(&x.to_ne_bytes()),
        (_, Num::Int(x)) => {
            let x = x as u64;
            match dtype.size() {
                1 => out.push(x as u8),
                4 => out.extend_from_slice(&(x as u32).to_ne_bytes()),
                _ => out.extend_from_slice(&x.to_ne_bytes()),
            }
        }
        _ => unreachable!("a float for an integer type"),
    }
}

impl Problem {
    /// What every rank contributes to one element.
    fn column(&self, element: usize, out: &mut Vec<Num>) {
        out.clear();
        let (n, common) = (self.ranks, hash(self.seed, element, usize::MAX - 1));
        let random = |rank| hash(self.seed, element, rank);
        match (float_limits(self.dtype), self.op) {
            (None, RedOp::Sum) => out.extend((0..n).map(|r| self.int(random(r) | 1))),
            (None, RedOp::Avg) => out.extend((0..n).map(|r| self.int(random(r)))),
            (None, RedOp::Prod) => out.extend((0..n).map(|r| self.int(random(r) | 3))),
            (None, RedOp::Min | RedOp::Max) => {
                out.extend((0..n).map(|r| self.int(random(r))));
                self.place_extreme(element, out, |x| match x {
                    Num::Int(i) => Num::Int(wrap(self.dtype, i + if self.op == RedOp::Max { -1 } else { 1 })),
                    float => float,
                });
            }
            (Some((digits, _)), RedOp::Min | RedOp::Max) => {
                let scale = scale(common);
                // Never zero: which of +0 and -0 is the smaller is not our question.
                let number =
                    |h: u64| (h >> (64 - digits) | 1) as f64 * if h & 1 == 0 { scale } else { -scale };
                out.extend((0..n).map(|r| Num::Float(number(random(r)))));
                self.place_extreme(element, out, |x| match x {
                    Num::Float(f) => Num::Float(f + if self.op == RedOp::Max { -scale } else { scale }),
                    int => int,
                });
            }
            (Some((digits, _)), RedOp::Sum | RedOp::Avg) => {
                let scale = if common & 1 == 0 { scale(common) } else { -scale(common) };
                let bound = 1u64 << digits;
                let each = bound / n as u64;
                if each == 0 {
                    // More ranks than the type can count: only some contribute to an element.
                    let first = common as usize % n;
                    let inside = |r: usize| (r + n - first) % n < bound as usize;
                    out.extend((0..n).map(|r| Num::Float(if inside(r) { scale } else { 0.0 })));
                } else if self.op == RedOp::Sum {
                    out.extend((0..n).map(|r| Num::Float((1 + random(r) % each) as f64 * scale)));
                } else {
                    // At least 2 where possible, so that no contribution is the quotient itself.
                    let least = each.min(2);
                    let q = least + (common >> 8) % (each - least + 1);
                    let delta = |pair: usize| if q > 1 { 1 + random(pair) % (q - 1) } else { 0 };
                    // An odd rank out gives to rank 0.
                    let odd = if n % 2 == 1 && n > 1 { delta(n / 2) } else { 0 };
                    out.extend((0..n).map(|r| {
                        let m = match (r ^ 1 < n, r & 1) {
                            (true, 0) => q + delta(r / 2) + if r == 0 { odd } else { 0 },
                            (true, _) => q - delta(r / 2),
                            (false, _) => q - odd,
                        };
                        Num::Float(m as f64 * scale)
                    }));
                }
            }
            (Some((_, exponent)), RedOp::Prod) => {
                let active = n.min(exponent as usize);
                let each = exponent as u64 / active as u64;
                let first = common as usize % n;
                out.extend((0..n).map(|r| {
                    let e = (random(r) % (2 * each + 1)) as i32 - each as i32;
                    Num::Float(-2f64.powi(if (r + n - first) % n < active { e } else { 0 }))
                }));
            }
        }
    }

    fn int(&self, h: u64) -> Num {
        Num::Int(wrap(self.dtype, h.into()))
    }

    /// Makes the extreme of `column` unique (`less` makes a number less extreme by one unit), and
    /// gives it to rank (element + seed) mod n, so that every rank has it now and then.
    fn place_extreme(&self, element: usize, column: &mut [Num], less: impl Fn(Num) -> Num) {
        let extreme = column.iter().copied().reduce(|a, b| self.fold2(a, b)).expect("a rank");
        let owner = (element as u64).wrapping_add(self.seed) % self.ranks as u64;
        // If all are equal, at the type's other end even, nothing is less extreme.
        if column.iter().all(|&x| x == extreme) {
            return;
        }
        let at = column.iter().position(|&x| x == extreme).expect("it is one of them");
        for x in column.iter_mut().filter(|x| **x == extreme) {
            *x = less(extreme);
        }
        column[at] = column[owner as usize];
        column[owner as usize] = extreme;
    }

    /// The operation on two numbers, without rounding; `Avg` sums.
    fn fold2(&self, a: Num, b: Num) -> Num {
        match (a, b) {
            (Num::Int(a), Num::Int(b)) => Num::Int(wrap(
                self.dtype,
                match self.op {
                    RedOp::Sum | RedOp::Avg => a + b,
                    RedOp::Prod => a.wrapping_mul(b),
                    RedOp::Min => a.min(b),
                    RedOp::Max => a.max(b),
                },
            )),
            (Num::Float(a), Num::Float(b)) => Num::Float(match self.op {
                RedOp::Sum | RedOp::Avg => a + b,
                RedOp::Prod => a * b,
                RedOp::Min => a.min(b),
                RedOp::Max => a.max(b),
            }),
            _ => unreachable!("one type per problem"),
        }
    }

    /// The result from the fold of all contributions.
    fn finish(&self, folded: Num) -> Num {
        match folded {
            Num::Int(x) if self.op == RedOp::Avg => Num::Int(x / self.ranks as i128),
            Num::Float(x) if self.op == RedOp::Avg => Num::Float(x / self.ranks as f64),
            x => x,
        }
    }

    fn pattern(&self, count: usize, mut pick: impl FnMut(&[Num]) -> Num) -> Pattern {
        let size = self.dtype.size();
        let mut bytes = Vec::with_capacity(count.min(PERIOD) * size);
        let mut column = Vec::with_capacity(self.ranks);
        for element in 0..count.min(PERIOD) {
            self.column(element, &mut column);
            encode(self.dtype, pick(&column), &mut bytes);
        }
        Pattern { bytes, size }
    }

    /// What `rank` contributes to `count` elements.
    pub fn input(&self, rank: usize, count: usize) -> Pattern {
        self.pattern(count, |column| column[rank])
    }

    /// The result of a reduction of all ranks.
    pub fn expected(&self, count: usize) -> Pattern {
        self.folded(self.ranks, count)
    }

    /// The fold over the first `ranks`, of which there is one at least, finished if these are all.
    pub fn folded(&self, ranks: usize, count: usize) -> Pattern {
        self.pattern(count, |column| {
            let folded = column[..ranks].iter().copied().reduce(|a, b| self.fold2(a, b)).expect("a rank");
            if ranks == self.ranks { self.finish(folded) } else { folded }
        })
    }

    /// The sum over the first `ranks`, at least one, each times -1.
    pub fn negated(&self, ranks: usize, count: usize) -> Pattern {
        self.pattern(count, |column| {
            let folded = column[..ranks].iter().copied().reduce(|a, b| self.fold2(a, b)).expect("a rank");
            match folded {
                Num::Int(x) => Num::Int(wrap(self.dtype, -x)),
                Num::Float(x) => Num::Float(-x),
            }
        })
    }

    /// Random bits.
    pub fn bits(&self, count: usize) -> Pattern {
        let size = self.dtype.size();
        let random = |element| hash(self.seed, element, 0).to_ne_bytes();
        let bytes = (0..count.min(PERIOD)).flat_map(|element| random(element).into_iter().take(size));
        Pattern { bytes: bytes.collect(), size }
    }

    /// A value that the operation leaves as it is, however often: timed loops reduce in place, and
    /// must not drift to infinity or to slow denormals.
    pub fn fixed_point(&self) -> Pattern {
        let one = u8::from(!matches!(self.op, RedOp::Sum | RedOp::Avg));
        let value = match float_limits(self.dtype) {
            Some(_) => Num::Float(one.into()),
            None => Num::Int(one.into()),
        };
        let mut bytes = Vec::new();
        encode(self.dtype, value, &mut bytes);
        Pattern { bytes: bytes.repeat(1024), size: self.dtype.size() }
    }
}

/// A power of two per element, in the exponent range of every type's sums: 2^-6 .. 2^1.
fn scale(common: u64) -> f64 {
    2f64.powi((common >> 1 & 7) as i32 - 6)
}

/// Wrong elements of a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    pub count: usize,
    /// Index of the first one.
    pub first: Option<usize>,
}

impl Pattern {
    /// The same byte everywhere.
    pub fn plain(byte: u8, dtype: DataType) -> Pattern {
        Pattern { bytes: vec![byte; dtype.size() * 1024], size: dtype.size() }
    }

    /// Calls `each` with the ranges of `len` bytes and the bytes that belong there, where the first is that of
    /// element `from`.
    fn walk(&self, from: usize, len: usize, mut each: impl FnMut(Range<usize>, &[u8])) {
        let period = self.bytes.len();
        let mut at = from % (period / self.size) * self.size;
        let mut done = 0;
        while done < len {
            let part = (period - at).min(len - done);
            each(done..done + part, &self.bytes[at..at + part]);
            done += part;
            at = 0;
        }
    }

    /// Fills `buffer`, whole elements, from element `from` on.
    pub fn fill_from(&self, from: usize, buffer: &mut [u8]) {
        self.walk(from, buffer.len(), |range, bytes| buffer[range].copy_from_slice(bytes));
    }

    /// Compares `buffer` bit by bit with the elements from `from` on.
    pub fn compare_from(&self, from: usize, buffer: &[u8]) -> Mismatch {
        let mut found = Mismatch::default();
        self.walk(from, buffer.len(), |range, bytes| {
            let part = &buffer[range.clone()];
            if part == bytes {
                return;
            }
            let pairs = part.chunks(self.size).zip(bytes.chunks(self.size));
            for (i, _) in pairs.enumerate().filter(|(_, (a, b))| a != b) {
                found.count += 1;
                found.first.get_or_insert(range.start / self.size + i);
            }
        });
        found
    }

    /// Fills `buffer` from the first element on.
    pub fn fill(&self, buffer: &mut [u8]) {
        self.fill_from(0, buffer);
    }

    /// Compares `buffer` with the elements from the first on.
    pub fn compare(&self, buffer: &[u8]) -> Mismatch {
        self.compare_from(0, buffer)
    }

    /// The bytes of one element, as a number in hex.
    pub fn show(&self, index: usize) -> String {
        let at = index * self.size % self.bytes.len();
        show_element(&self.bytes[at..at + self.size])
    }
}

/// An element's bits in hex, most significant first.
pub fn show_element(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().rev().map(|b| format!("{b:02x}")).collect();
    format!("0x{digits}")
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;

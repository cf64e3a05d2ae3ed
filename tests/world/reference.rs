//! What a call should give, worked out one element at a time.

use graccl::{DataType, RedOp};

use super::{Call, Case, mix};

/// A rank's values of a block.
pub fn values(call: &Call, seed: u64, n: usize, rank: usize, block: usize) -> Vec<u8> {
    let one = |e| {
        let x = element(call, seed, n, rank, block << 24 | e);
        let bits =
            if call.rough && float(call.dtype) { round(call.dtype, rough(x)) } else { encode(call.dtype, x) };
        bits.to_le_bytes().into_iter().take(call.dtype.size())
    };
    (0..call.blocks[block].count).flat_map(one).collect()
}

pub enum Reference {
    Exact(Vec<u8>),
    /// Value, and the sum of magnitudes that bounds its error.
    Near(Vec<(f64, f64)>),
}

fn float(d: DataType) -> bool {
    matches!(d, DataType::F16 | DataType::Bf16 | DataType::F32 | DataType::F64)
}

/// Element `e` of `rank`, as an integer that the type holds. For exact floats, one whose reduction is
/// exact in any order.
fn element(c: &Call, seed: u64, n: usize, rank: usize, e: usize) -> i128 {
    let h = |r: usize| mix(seed ^ (r as u64) << 40 ^ (e as u64).wrapping_mul(0x9e37_79b9));
    let x = h(rank);
    if !float(c.dtype) {
        return wrap(c.dtype, i128::from(x as i64));
    }
    if c.rough {
        return i128::from(x as i32);
    }
    match c.op {
        RedOp::Sum => i128::from(x % 9) - 4,
        RedOp::Prod => {
            let two = if (rank + e) % n < 3 { 2 } else { 1 };
            if x & 1 == 0 { two } else { -two }
        }
        RedOp::Avg => {
            // A common value and differences that cancel in pairs: the average is the common value.
            let common = i128::from(h(1000) % 9) - 4;
            let other = i128::from(h(2000 + rank / 2) % 5);
            if rank + 1 == n && n % 2 == 1 {
                common
            } else {
                common + if rank.is_multiple_of(2) { other } else { -other }
            }
        }
        _ => i128::from(x % 511) - 255,
    }
}

/// A float of magnitude 1/2 to 1 1/2 that does not add up exactly.
fn rough(x: i128) -> f64 {
    let m = 0.5 + (x as i32 as f64).abs() / 2f64.powi(31);
    if x & 1 == 0 { m } else { -m }
}

fn wrap(d: DataType, x: i128) -> i128 {
    match d {
        DataType::I8 => i128::from(x as i8),
        DataType::U8 => i128::from(x as u8),
        DataType::I32 => i128::from(x as i32),
        DataType::U32 => i128::from(x as u32),
        DataType::I64 => i128::from(x as i64),
        DataType::U64 => i128::from(x as u64),
        _ => x,
    }
}

/// What ranks `0..folded` give for a block; where nothing is reduced, what the one rank that has it gives.
pub fn reference(case: &Case, i: usize, block: usize, folded: usize) -> Reference {
    let (c, seed, n) = (&case.calls[i], case.seed + i as u64, case.groups.n());
    let count = c.blocks[block].count;
    if !c.schedule.collective.reduces() {
        let has = |rank: &usize| c.schedule.collective.sent(n, c.root, *rank, block).is_some();
        return Reference::Exact(values(c, seed, n, (0..n).find(has).expect("somebody has it"), block));
    }
    let element = |rank, e| element(c, seed, n, rank, block << 24 | e);
    if c.rough && float(c.dtype) {
        let one = |e| {
            let x =
                |r| decode(c.dtype, &round(c.dtype, rough(element(r, e))).to_le_bytes()[..c.dtype.size()]);
            let all = || (0..folded).map(x);
            let sum = || (all().sum::<f64>(), all().map(f64::abs).sum::<f64>());
            match c.op {
                RedOp::Sum => sum(),
                RedOp::Avg => (sum().0 / folded as f64, sum().1 / folded as f64),
                RedOp::Prod => (all().product(), all().product::<f64>().abs()),
                RedOp::Max => (all().fold(f64::MIN, f64::max), 1.0),
                RedOp::Min => (all().fold(f64::MAX, f64::min), 1.0),
            }
        };
        return Reference::Near((0..count).map(one).collect());
    }
    let one = |e| {
        let mut acc = element(0, e);
        for rank in 1..folded {
            let x = element(rank, e);
            acc = match c.op {
                RedOp::Sum | RedOp::Avg => wrap(c.dtype, acc + x),
                RedOp::Prod => wrap(c.dtype, acc.wrapping_mul(x)),
                RedOp::Max => acc.max(x),
                RedOp::Min => acc.min(x),
            };
        }
        if c.op == RedOp::Avg { acc / folded as i128 } else { acc }
    };
    let bytes = |e| encode(c.dtype, one(e)).to_le_bytes().into_iter().take(c.dtype.size());
    Reference::Exact((0..count).flat_map(bytes).collect())
}

/// The bits of an integer that the type holds exactly.
fn encode(d: DataType, x: i128) -> u64 {
    if float(d) { round(d, x as f64) } else { x as u64 }
}

/// The bits of `x`, rounded down in magnitude.
fn round(d: DataType, x: f64) -> u64 {
    let sign = u64::from(x < 0.0) << 15;
    match d {
        DataType::F64 => x.to_bits(),
        DataType::F32 => u64::from((x as f32).to_bits()),
        DataType::Bf16 => u64::from((x as f32).to_bits() >> 16),
        _ if x == 0.0 => 0,
        // f16, in its normal range.
        _ => sign | (((x.abs() as f32).to_bits() - (112 << 23)) >> 13) as u64,
    }
}

pub fn decode(d: DataType, b: &[u8]) -> f64 {
    let half = || u32::from(u16::from_le_bytes([b[0], b[1]]));
    match d {
        DataType::F64 => f64::from_le_bytes(b.try_into().expect("8 bytes")),
        DataType::F32 => f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))),
        DataType::Bf16 => f64::from(f32::from_bits(half() << 16)),
        _ => {
            let (sign, exp, man) = (half() >> 15, (half() >> 10) & 31, f64::from(half() & 1023));
            let v = if exp == 0 {
                man * 2f64.powi(-24)
            } else {
                (1.0 + man / 1024.0) * 2f64.powi(exp as i32 - 15)
            };
            if sign == 1 { -v } else { v }
        }
    }
}

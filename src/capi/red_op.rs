//! Reductions that a program makes.

use std::ffi::c_void;

use super::handle::Entry;
use super::types::{data_type, unknown};
use super::{DataTypeInt, RedOpInt, ResultInt, entry, graccl_comm_t, graccl_red_op_t, handle};
use crate::{DataType, Error, Factor, RedOp, Reduction, Result};

/// The first number of graccl_red_op_create_pre_mul_sum.
const FIRST_MADE_OP: RedOpInt = 1000;

#[cold]
#[inline(never)]
fn unknown_made_op(op: RedOpInt) -> Error {
    Error::argument(format!("op = {op} is not a reduction of this communicator"))
        .hint("pass a number that graccl_red_op_create_pre_mul_sum gave for it and that was not destroyed")
}

/// The reduction that `op` names: an operation, or one that was made for this communicator and type.
#[inline]
pub(super) fn reduction(entry: &Entry, op: RedOpInt, data_type: DataType) -> Result<Reduction> {
    match RedOp::from_raw(op) {
        Some(op) => Ok(op.into()),
        None => made_reduction(entry, op, data_type),
    }
}

#[cold]
#[inline(never)]
fn made_reduction(entry: &Entry, op: RedOpInt, data_type: DataType) -> Result<Reduction> {
    if op < FIRST_MADE_OP || op == graccl_red_op_t::GRACCL_RED_OP_LIMIT as RedOpInt {
        return unknown("op", op, "graccl_red_op_t");
    }
    match entry.made_ops().by_number.get(&op) {
        Some(&(made_for, factor)) if made_for == data_type => Ok(Reduction::pre_mul_sum(factor)),
        Some((made_for, _)) => Err(Error::argument(format!(
            "op = {op} was made for {}, not for {}",
            made_for.name(),
            data_type.name()
        ))
        .hint("make one for each type")),
        None => Err(unknown_made_op(op)),
    }
}

/// The value of a float of up to 16 bits with this many bits of exponent and of mantissa.
fn small_float(bits: u16, exponent: u32, mantissa: u32) -> f64 {
    let sign = if bits >> (exponent + mantissa) & 1 == 1 { -1.0 } else { 1.0 };
    let (most, e) = ((1 << exponent) - 1, i32::from(bits >> mantissa) & ((1 << exponent) - 1));
    let fraction = f64::from(bits & ((1 << mantissa) - 1)) / f64::from(1 << mantissa);
    let bias = most / 2;
    sign * match e {
        _ if e == most && fraction == 0.0 => f64::INFINITY,
        _ if e == most => f64::NAN,
        0 => fraction * 2f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2f64.powi(e - bias),
    }
}

/// The value of an 8-bit float that uses its largest exponent for numbers: only S.1111.111 is none.
fn e4m3(bits: u8) -> f64 {
    match bits & 0x7f {
        0x7f => f64::NAN,
        // As if the exponent were one less, and twice that.
        b if b >= 0x78 => 2.0 * small_float(u16::from(bits - 8), 4, 3),
        _ => small_float(bits.into(), 4, 3),
    }
}

/// Reads a factor. That of an unsigned type keeps its bits: products wrap, so they are the same.
///
/// # Safety
/// `scalar` is readable for an element of the type, aligned or not.
unsafe fn factor(data_type: DataType, scalar: *const c_void) -> Factor {
    macro_rules! read {
        ($t:ty) => {
            // SAFETY: the caller's promise.
            unsafe { scalar.cast::<$t>().read_unaligned() }
        };
    }
    match data_type {
        DataType::I8 => Factor::Int(read!(i8).into()),
        DataType::U8 => Factor::Int(read!(u8).into()),
        DataType::I32 => Factor::Int(read!(i32).into()),
        DataType::U32 => Factor::Int(read!(u32).into()),
        DataType::I64 => Factor::Int(read!(i64)),
        DataType::U64 => Factor::Int(read!(u64) as i64),
        DataType::F16 => Factor::Float(small_float(read!(u16), 5, 10)),
        DataType::F32 => Factor::Float(read!(f32).into()),
        DataType::F64 => Factor::Float(read!(f64)),
        DataType::Bf16 => Factor::Float(small_float(read!(u16), 8, 7)),
        DataType::F8E4M3 => Factor::Float(e4m3(read!(u8))),
        DataType::F8E5M2 => Factor::Float(small_float(read!(u8).into(), 5, 2)),
    }
}

/// Makes a reduction that multiplies this rank's contributions by a factor before they are summed.
/// Ranks may have different factors, but in a call either all or none must use such a reduction.
///
/// @param op Where to put it: a number from 1000 on, to be passed as op to functions that reduce, on
///        this communicator and with this type alone.
/// @param scalar The factor, one element of the type, in the caller's memory; read during this call
///        only. Products are rounded to the type.
/// @param data_type Its type.
/// @param comm The communicator.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, unknown type); GRACCL_INVALID_USAGE (destroyed).
///
/// It lives until graccl_red_op_destroy, or as long as comm. Not collective: a rank's number for it
/// says nothing to the others.
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_red_op_create_pre_mul_sum(
    op: *mut RedOpInt,
    scalar: *const c_void,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    entry!(graccl_red_op_create_pre_mul_sum on comm, not_null [op, scalar], {
        let data_type = self::data_type(data_type)?;
        // SAFETY: scalar is not null, and C's caller says that it is an element.
        let factor = unsafe { factor(data_type, scalar) };
        let number = made(&mut handle::glance(comm)?.made_ops(), data_type, factor)?;
        // SAFETY: op is not null, and C's caller says that it can be written.
        unsafe { op.write(number) };
        Ok(())
    })
}

fn made(ops: &mut handle::MadeOps, data_type: DataType, factor: Factor) -> Result<RedOpInt> {
    let number = ops.made.checked_add(FIRST_MADE_OP);
    let number = number.ok_or_else(|| Error::usage("no more numbers for reductions on this communicator"))?;
    ops.made += 1;
    ops.by_number.insert(number, (data_type, factor));
    Ok(number)
}

/// Forgets a reduction that graccl_red_op_create_pre_mul_sum made. Calls that were made with it are not
/// affected.
///
/// @param op Its number, invalid from now on. It is not given again.
/// @param comm The communicator that it was made for.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, or not a reduction of this communicator);
///         GRACCL_INVALID_USAGE (comm was destroyed).
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_red_op_destroy(op: RedOpInt, comm: *mut graccl_comm_t) -> ResultInt {
    entry!(graccl_red_op_destroy on comm, not_null [], {
        match handle::glance(comm)?.made_ops().by_number.remove(&op) {
            Some(_) => Ok(()),
            None => Err(unknown_made_op(op)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_have_their_values() {
        // Worked out by hand from the formats' definitions.
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333251953125),
            (0x7bff, 65504.0),
            (0x0001, 2f64.powi(-24)),
            (0x7c00, f64::INFINITY),
        ] {
            assert_eq!(small_float(bits, 5, 10), value, "{bits:#x}");
        }
        assert!(small_float(0x7e00, 5, 10).is_nan());
        for (bits, value) in [(0x38, 1.0), (0xb8, -1.0), (0x7e, 448.0), (0xf8, -256.0), (1, 2f64.powi(-9))] {
            assert_eq!(e4m3(bits), value, "{bits:#x}");
        }
        assert!(e4m3(0xff).is_nan());
        // Every bfloat16 is the upper half of a float.
        for bits in 0..=u16::MAX {
            let value = f64::from(f32::from_bits(u32::from(bits) << 16));
            let found = small_float(bits, 8, 7);
            assert!(found == value || found.is_nan() && value.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn factors_keep_their_values() {
        fn read<T>(data_type: DataType, scalar: T) -> Factor {
            assert_eq!(size_of::<T>(), data_type.size());
            // SAFETY: an element of the type.
            unsafe { factor(data_type, (&raw const scalar).cast()) }
        }
        assert_eq!(read(DataType::I8, -3i8), Factor::Int(-3));
        assert_eq!(read(DataType::U32, u32::MAX), Factor::Int(0xffff_ffff));
        assert_eq!(read(DataType::U64, u64::MAX), Factor::Int(-1));
        assert_eq!(read(DataType::F32, 0.25f32), Factor::Float(0.25));
        assert_eq!(read(DataType::Bf16, 0xbf80u16), Factor::Float(-1.0));
    }
}

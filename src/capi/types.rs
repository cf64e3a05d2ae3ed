//! Element types and operations, as numbers.

use std::ffi::c_int;

use super::same_values;
use crate::{DataType, Error, RedOp, Result};

/// Type of one element. The values are those of ncclDataType_t.
#[repr(C)]
pub enum graccl_data_type_t {
    /// int8_t
    GRACCL_INT8 = 0,
    /// uint8_t
    GRACCL_UINT8 = 1,
    /// int32_t
    GRACCL_INT32 = 2,
    /// uint32_t
    GRACCL_UINT32 = 3,
    /// int64_t
    GRACCL_INT64 = 4,
    /// uint64_t
    GRACCL_UINT64 = 5,
    /// IEEE 754 binary16, summed in float.
    GRACCL_FLOAT16 = 6,
    /// float
    GRACCL_FLOAT32 = 7,
    /// double
    GRACCL_FLOAT64 = 8,
    /// The upper half of a float, summed in float.
    GRACCL_BFLOAT16 = 9,
    /// 4 bits of exponent, no infinities, summed in float; more than 448 becomes 448.
    GRACCL_FLOAT8E4M3 = 10,
    /// 5 bits of exponent, summed in float; more than 57344 becomes infinite.
    GRACCL_FLOAT8E5M2 = 11,
}

same_values!(DataType, graccl_data_type_t:
    I8 GRACCL_INT8,
    U8 GRACCL_UINT8,
    I32 GRACCL_INT32,
    U32 GRACCL_UINT32,
    I64 GRACCL_INT64,
    U64 GRACCL_UINT64,
    F16 GRACCL_FLOAT16,
    F32 GRACCL_FLOAT32,
    F64 GRACCL_FLOAT64,
    Bf16 GRACCL_BFLOAT16,
    F8E4M3 GRACCL_FLOAT8E4M3,
    F8E5M2 GRACCL_FLOAT8E5M2
);

/// How contributions are combined. The values are those of ncclRedOp_t.
///
/// Integers wrap on overflow. Minimum and maximum of floats are NaN if any contribution is NaN.
#[repr(C)]
pub enum graccl_red_op_t {
    /// Sum.
    GRACCL_SUM = 0,
    /// Product.
    GRACCL_PROD = 1,
    /// Maximum.
    GRACCL_MAX = 2,
    /// Minimum.
    GRACCL_MIN = 3,
    /// Sum divided by the number of ranks; for integers truncated toward zero.
    GRACCL_AVG = 4,
    /// Not an operation: makes room for the numbers of graccl_red_op_create_pre_mul_sum.
    GRACCL_RED_OP_LIMIT = 0x7fffffff,
}

same_values!(RedOp, graccl_red_op_t:
    Sum GRACCL_SUM,
    Prod GRACCL_PROD,
    Max GRACCL_MAX,
    Min GRACCL_MIN,
    Avg GRACCL_AVG
);

/// In the header: `graccl_data_type_t`.
pub type DataTypeInt = c_int;

/// In the header: `graccl_red_op_t`.
pub type RedOpInt = c_int;

#[cold]
#[inline(never)]
pub(super) fn unknown<T>(argument: &str, value: c_int, type_name: &str) -> Result<T> {
    Err(Error::argument(format!("{argument} = {value} is not a {type_name}"))
        .hint(format!("pass one of the constants of {type_name}")))
}

#[inline]
pub(super) fn data_type(value: DataTypeInt) -> Result<DataType> {
    match DataType::from_raw(value) {
        Some(t) => Ok(t),
        None => unknown("data_type", value, "graccl_data_type_t"),
    }
}

//! Collectives, element types and reduction operations.

use std::ffi::{c_int, c_void};

use super::{ResultInt, entry, graccl_comm_t, handle, null, same_values};
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
fn unknown<T>(argument: &str, value: c_int, type_name: &str) -> Result<T> {
    Err(Error::argument(format!("{argument} = {value} is not a {type_name}"))
        .hint(format!("pass one of the constants of {type_name}")))
}

#[inline]
fn data_type(value: DataTypeInt) -> Result<DataType> {
    match DataType::from_raw(value) {
        Some(t) => Ok(t),
        None => unknown("data_type", value, "graccl_data_type_t"),
    }
}

#[inline]
fn red_op(value: RedOpInt) -> Result<RedOp> {
    match RedOp::from_raw(value) {
        Some(op) => Ok(op),
        None => unknown("op", value, "graccl_red_op_t"),
    }
}

/// Reduces the ranks' send buffers, element by element, into every rank's recv buffer.
///
/// All ranks of the communicator call it with the same count, type and operation. The result has the
/// same bits on all ranks. Blocks until this rank's result is complete.
///
/// @param send This rank's contribution, count elements; only read.
/// @param recv The result, count elements. May equal send (in place); other overlaps are refused.
/// @param count Elements, not bytes. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param op How they are combined.
/// @param comm The communicator.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, overlap, unknown type or operation, more
///         bytes than can be addressed): nothing was sent and comm can still be used;
///         GRACCL_INVALID_USAGE (the ranks disagree about the call), GRACCL_REMOTE_ERROR (a rank
///         died), GRACCL_TIMEOUT, GRACCL_ABORTED, GRACCL_SYSTEM_ERROR: recv is undefined, comm can
///         only be destroyed.
///
/// The buffers stay the caller's. Memory from graccl_mem_alloc saves a copy between ranks of one host.
///
/// Thread-safety: threads may share comm; their calls are carried out one after the other, and must
/// have the same order on all ranks. No other thread may touch the buffers during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_reduce(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    entry!(graccl_all_reduce on comm, not_null [], {
        // SAFETY: comm is not destroyed during the call: the header asks for that.
        let live = unsafe { handle::live(comm) }?;
        let (data_type, op) = (self::data_type(data_type)?, red_op(op)?);
        if count != 0 && (send.is_null() || recv.is_null()) {
            return Err(null(if send.is_null() { "send" } else { "recv" }));
        }
        // SAFETY: the buffers have count elements and are not touched meanwhile: as above.
        unsafe { live.all_reduce_raw(send.cast(), recv.cast(), count, data_type, op) }
    })
}

/// Waits until all ranks of the communicator have called it.
///
/// @param comm The communicator.
/// @return GRACCL_SUCCESS, or an error as from graccl_all_reduce.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_barrier(comm: *mut graccl_comm_t) -> ResultInt {
    entry!(graccl_barrier on comm, not_null [], {
        // SAFETY: comm is not destroyed during the call: the header asks for that.
        unsafe { handle::live(comm) }?.barrier()
    })
}

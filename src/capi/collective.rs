//! Collectives, element types and reduction operations.

use std::ffi::{c_int, c_void};

use super::call::{self, collective, folding, moving, rooted};
use super::handle::Entry;
use super::{ResultInt, entry, graccl_comm_t, graccl_request_t, handle, null, same_values};
use crate::Collective::{
    AllGather, AllReduce, AllToAll, Broadcast, Exscan, Gather, Reduce, ReduceScatter, Scan, Scatter,
};
use crate::{DataType, Error, RedOp, Reduction, Result};

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
fn unknown<T>(argument: &str, value: c_int, type_name: &str) -> Result<T> {
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

/// The first number of graccl_red_op_create_pre_mul_sum.
pub(super) const FIRST_MADE_OP: RedOpInt = 1000;

#[cold]
#[inline(never)]
pub(super) fn unknown_made_op(op: RedOpInt) -> Error {
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
///         only be destroyed, or shrunk if a rank died.
///
/// The buffers stay the caller's. Memory from graccl_mem_alloc saves a copy between ranks of one host.
///
/// Thread-safety: threads may share comm; their calls are carried out one after the other, and must
/// have the same order on all ranks. No other thread may touch the buffers during the call. Another
/// thread may abort or destroy comm meanwhile: the call then gives GRACCL_ABORTED.
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
        let entry = handle::live(comm)?;
        let data_type = self::data_type(data_type)?;
        let op = match RedOp::from_raw(op) {
            Some(op) => op,
            // SAFETY: as below.
            None => return unsafe { all_reduce_made(&entry, send, recv, count, data_type, op) },
        };
        if count != 0 && (send.is_null() || recv.is_null()) {
            return Err(null(if send.is_null() { "send" } else { "recv" }));
        }
        // SAFETY: the buffers have count elements and are not touched meanwhile: the header asks for that.
        unsafe { entry.comm.all_reduce_raw(send.cast(), recv.cast(), count, data_type, op) }
    })
}

/// The same with a reduction that was made: apart, so that the common way stays short.
///
/// # Safety
/// As `Communicator::call`.
#[cold]
unsafe fn all_reduce_made(
    entry: &Entry,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataType,
    op: RedOpInt,
) -> Result<()> {
    let call = folding(entry, AllReduce, send, recv, count, data_type as DataTypeInt, op)?;
    // SAFETY: the caller's promise.
    unsafe { entry.comm.call(&call) }
}

/// graccl_all_reduce without waiting: starts it and returns at once.
///
/// @param send As graccl_all_reduce; in use until the call is over.
/// @param recv As graccl_all_reduce; in use until the call is over.
/// @param count As graccl_all_reduce.
/// @param data_type As graccl_all_reduce.
/// @param op As graccl_all_reduce.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return GRACCL_SUCCESS: the call is under way, and how it ends is what the request gives;
///         GRACCL_INVALID_ARGUMENT (also for NULL as request), GRACCL_INVALID_USAGE (comm was
///         destroyed, or too many requests) or the error of a communicator that failed before:
///         nothing was started.
///
/// Thread-safety: as graccl_all_reduce. No other thread may touch the buffers until the call is
/// over, and nor may this one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_reduce_async(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_all_reduce_async on comm to request, |entry| {
        folding(entry, AllReduce, send, recv, count, data_type, op)
    })
}

/// Reduces the ranks' send buffers, element by element, and gives every rank one block of the
/// result: rank r gets the elements from r * recv_count on. All ranks call it with the same
/// arguments, apart from the buffers.
///
/// @param send This rank's contribution, recv_count elements for each rank; only read, except in
///        place.
/// @param recv This rank's block of the result, recv_count elements. In place: recv == send + rank
///        * recv_count (in elements); the rest of send is left as it was. Other overlaps are
///        refused.
/// @param recv_count Elements of one block. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param op How they are combined.
/// @param comm The communicator.
/// @return As graccl_all_reduce.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_reduce_scatter(
    send: *const c_void,
    recv: *mut c_void,
    recv_count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_reduce_scatter on comm, |entry| {
        folding(entry, ReduceScatter, send, recv, recv_count, data_type, op)
    })
}

/// graccl_reduce_scatter without waiting: starts it and returns at once.
///
/// @param send As graccl_reduce_scatter; in use until the call is over.
/// @param recv As graccl_reduce_scatter; in use until the call is over.
/// @param recv_count As graccl_reduce_scatter.
/// @param data_type As graccl_reduce_scatter.
/// @param op As graccl_reduce_scatter.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_reduce_scatter_async(
    send: *const c_void,
    recv: *mut c_void,
    recv_count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_reduce_scatter_async on comm to request, |entry| {
        folding(entry, ReduceScatter, send, recv, recv_count, data_type, op)
    })
}

/// graccl_reduce_scatter with blocks of different sizes.
///
/// @param send This rank's contribution: the blocks of all ranks, one behind the other; only read,
///        except in place.
/// @param recv This rank's block of the result, recv_counts[rank] elements. In place: where this
///        rank's block lies in send. Other overlaps are refused.
/// @param recv_counts Elements of each rank's block, the same numbers on all ranks. May be 0.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param op How they are combined.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for counts or displacements that do
///         not fit in memory, and for a NULL array of counts.
///
/// Buffers and arrays stay the caller's; the arrays are read during the call only.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_reduce_scatter_v(
    send: *const c_void,
    recv: *mut c_void,
    recv_counts: *const usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_reduce_scatter_v on comm, |entry| {
        call::reduce_scatter_v(entry, send, recv, recv_counts, data_type, op)
    })
}

/// graccl_reduce_scatter_v without waiting: starts it and returns at once.
///
/// @param send As graccl_reduce_scatter_v; in use until the call is over.
/// @param recv As graccl_reduce_scatter_v; in use until the call is over.
/// @param recv_counts As graccl_reduce_scatter_v; read during this call only.
/// @param data_type As graccl_reduce_scatter_v.
/// @param op As graccl_reduce_scatter_v.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_reduce_scatter_v_async(
    send: *const c_void,
    recv: *mut c_void,
    recv_counts: *const usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_reduce_scatter_v_async on comm to request, |entry| {
        call::reduce_scatter_v(entry, send, recv, recv_counts, data_type, op)
    })
}

/// Gives every rank the blocks of all ranks, in the order of the ranks.
///
/// @param send This rank's block, send_count elements; only read.
/// @param recv The blocks of all ranks, send_count elements for each. In place: send == recv + rank
///        * send_count (in elements). Other overlaps are refused.
/// @param send_count Elements of one block, the same on all ranks. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param comm The communicator.
/// @return As graccl_all_reduce.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_gather(
    send: *const c_void,
    recv: *mut c_void,
    send_count: usize,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_all_gather on comm, |entry| moving(AllGather, send, recv, send_count, data_type))
}

/// graccl_all_gather without waiting: starts it and returns at once.
///
/// @param send As graccl_all_gather; in use until the call is over.
/// @param recv As graccl_all_gather; in use until the call is over.
/// @param send_count As graccl_all_gather.
/// @param data_type As graccl_all_gather.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_gather_async(
    send: *const c_void,
    recv: *mut c_void,
    send_count: usize,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_all_gather_async on comm to request, |entry| {
        moving(AllGather, send, recv, send_count, data_type)
    })
}

/// graccl_all_gather with blocks of different sizes.
///
/// @param send This rank's block, recv_counts[rank] elements; only read. In place: where this
///        rank's block lies in recv. Other overlaps are refused.
/// @param recv The blocks of all ranks; elements between them are left as they were.
/// @param recv_counts Elements of each rank's block, the same numbers on all ranks. May be 0.
/// @param recv_displs Where each rank's block lies in recv, in elements from its start, one number
///        for each rank; NULL: one behind the other in the order of the ranks. Blocks must not
///        overlap. Ranks may differ.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for counts or displacements that do
///         not fit in memory, and for a NULL array of counts.
///
/// Buffers and arrays stay the caller's; the arrays are read during the call only.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_gather_v(
    send: *const c_void,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_all_gather_v on comm, |entry| {
        call::all_gather_v(entry, send, recv, recv_counts, recv_displs, data_type)
    })
}

/// graccl_all_gather_v without waiting: starts it and returns at once.
///
/// @param send As graccl_all_gather_v; in use until the call is over.
/// @param recv As graccl_all_gather_v; in use until the call is over.
/// @param recv_counts As graccl_all_gather_v; read during this call only.
/// @param recv_displs As graccl_all_gather_v; read during this call only.
/// @param data_type As graccl_all_gather_v.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_gather_v_async(
    send: *const c_void,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_all_gather_v_async on comm to request, |entry| {
        call::all_gather_v(entry, send, recv, recv_counts, recv_displs, data_type)
    })
}

/// Copies the root's send buffer into every rank's recv buffer.
///
/// @param send On the root: what to copy, count elements; only read. Not used on other ranks, where
///        it may be NULL.
/// @param recv The copy, count elements, on the root as well. In place: on the root recv == send.
///        Other overlaps are refused.
/// @param count Elements, the same on all ranks. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param root The root's rank, the same on all ranks.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_broadcast(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_broadcast on comm, |entry| {
        rooted(entry, Broadcast, send, recv, count, data_type, root)
    })
}

/// graccl_broadcast without waiting: starts it and returns at once.
///
/// @param send As graccl_broadcast; in use until the call is over.
/// @param recv As graccl_broadcast; in use until the call is over.
/// @param count As graccl_broadcast.
/// @param data_type As graccl_broadcast.
/// @param root As graccl_broadcast.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_broadcast_async(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_broadcast_async on comm to request, |entry| {
        rooted(entry, Broadcast, send, recv, count, data_type, root)
    })
}

/// Reduces the ranks' send buffers, element by element, into the root's recv buffer.
///
/// @param send This rank's contribution, count elements; only read.
/// @param recv On the root: the result, count elements. In place: recv == send. Other overlaps are
///        refused. Not used on other ranks, where it may be NULL.
/// @param count Elements, the same on all ranks. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param op How they are combined.
/// @param root The root's rank, the same on all ranks.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_reduce(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    root: c_int,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_reduce on comm, |entry| {
        folding(entry, Reduce, send, recv, count, data_type, op)
            .and_then(|call| Ok(call.root(call::rank_of(entry, "root", root)?)))
    })
}

/// graccl_reduce without waiting: starts it and returns at once.
///
/// @param send As graccl_reduce; in use until the call is over.
/// @param recv As graccl_reduce; in use until the call is over.
/// @param count As graccl_reduce.
/// @param data_type As graccl_reduce.
/// @param op As graccl_reduce.
/// @param root As graccl_reduce.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_reduce_async(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    root: c_int,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_reduce_async on comm to request, |entry| {
        folding(entry, Reduce, send, recv, count, data_type, op)
            .and_then(|call| Ok(call.root(call::rank_of(entry, "root", root)?)))
    })
}

/// Gives the root the blocks of all ranks, in the order of the ranks.
///
/// @param send This rank's block, send_count elements; only read.
/// @param recv On the root: the blocks of all ranks, send_count elements for each. In place: on the
///        root send == recv + root * send_count (in elements). Other overlaps are refused. Not used
///        on other ranks, where it may be NULL.
/// @param send_count Elements of one block, the same on all ranks. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param root The root's rank, the same on all ranks.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_gather(
    send: *const c_void,
    recv: *mut c_void,
    send_count: usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_gather on comm, |entry| rooted(entry, Gather, send, recv, send_count, data_type, root))
}

/// graccl_gather without waiting: starts it and returns at once.
///
/// @param send As graccl_gather; in use until the call is over.
/// @param recv As graccl_gather; in use until the call is over.
/// @param send_count As graccl_gather.
/// @param data_type As graccl_gather.
/// @param root As graccl_gather.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_gather_async(
    send: *const c_void,
    recv: *mut c_void,
    send_count: usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_gather_async on comm to request, |entry| {
        rooted(entry, Gather, send, recv, send_count, data_type, root)
    })
}

/// graccl_gather with blocks of different sizes.
///
/// @param send This rank's block, send_count elements; only read. In place: on the root, where its
///        block lies in recv. Other overlaps are refused.
/// @param send_count Elements of this rank's block: what the root has as recv_counts[rank]. May be
///        0.
/// @param recv On the root: the blocks of all ranks; elements between them are left as they were.
///        Not used on other ranks, where it may be NULL.
/// @param recv_counts On the root: elements of each rank's block. Not used on other ranks, where it
///        may be NULL.
/// @param recv_displs On the root: where each rank's block lies in recv, in elements from its
///        start; NULL: one behind the other in the order of the ranks. Blocks must not overlap.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param root The root's rank, the same on all ranks.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank, for
///         counts or displacements that do not fit in memory, and on the root for a NULL array of
///         counts.
///
/// Buffers and arrays stay the caller's; the arrays are read during the call only.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_gather_v(
    send: *const c_void,
    send_count: usize,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_gather_v on comm, |entry| {
        call::gather_v(entry, send, send_count, recv, recv_counts, recv_displs, data_type, root)
    })
}

/// graccl_gather_v without waiting: starts it and returns at once.
///
/// @param send As graccl_gather_v; in use until the call is over.
/// @param send_count As graccl_gather_v.
/// @param recv As graccl_gather_v; in use until the call is over.
/// @param recv_counts As graccl_gather_v; read during this call only.
/// @param recv_displs As graccl_gather_v; read during this call only.
/// @param data_type As graccl_gather_v.
/// @param root As graccl_gather_v.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_gather_v_async(
    send: *const c_void,
    send_count: usize,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_gather_v_async on comm to request, |entry| {
        call::gather_v(entry, send, send_count, recv, recv_counts, recv_displs, data_type, root)
    })
}

/// Gives every rank one block of the root's send buffer: rank r gets the elements from r *
/// recv_count on.
///
/// @param send On the root: the blocks of all ranks, recv_count elements for each; only read. Not
///        used on other ranks, where it may be NULL.
/// @param recv This rank's block, recv_count elements. In place: on the root recv == send + root *
///        recv_count (in elements). Other overlaps are refused.
/// @param recv_count Elements of one block, the same on all ranks. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param root The root's rank, the same on all ranks.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_scatter(
    send: *const c_void,
    recv: *mut c_void,
    recv_count: usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_scatter on comm, |entry| {
        rooted(entry, Scatter, send, recv, recv_count, data_type, root)
    })
}

/// graccl_scatter without waiting: starts it and returns at once.
///
/// @param send As graccl_scatter; in use until the call is over.
/// @param recv As graccl_scatter; in use until the call is over.
/// @param recv_count As graccl_scatter.
/// @param data_type As graccl_scatter.
/// @param root As graccl_scatter.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_scatter_async(
    send: *const c_void,
    recv: *mut c_void,
    recv_count: usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_scatter_async on comm to request, |entry| {
        rooted(entry, Scatter, send, recv, recv_count, data_type, root)
    })
}

/// graccl_scatter with blocks of different sizes.
///
/// @param send On the root: the blocks of all ranks; only read. Not used on other ranks, where it
///        may be NULL.
/// @param send_counts On the root: elements of each rank's block. Not used on other ranks, where it
///        may be NULL.
/// @param send_displs On the root: where each rank's block lies in send, in elements from its
///        start; NULL: one behind the other in the order of the ranks.
/// @param recv This rank's block, recv_count elements. In place: on the root, where its block lies
///        in send. Other overlaps are refused.
/// @param recv_count Elements of this rank's block: what the root has as send_counts[rank]. May be
///        0.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param root The root's rank, the same on all ranks.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank, for
///         counts or displacements that do not fit in memory, and on the root for a NULL array of
///         counts.
///
/// Buffers and arrays stay the caller's; the arrays are read during the call only.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_scatter_v(
    send: *const c_void,
    send_counts: *const usize,
    send_displs: *const usize,
    recv: *mut c_void,
    recv_count: usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_scatter_v on comm, |entry| {
        call::scatter_v(entry, send, send_counts, send_displs, recv, recv_count, data_type, root)
    })
}

/// graccl_scatter_v without waiting: starts it and returns at once.
///
/// @param send As graccl_scatter_v; in use until the call is over.
/// @param send_counts As graccl_scatter_v; read during this call only.
/// @param send_displs As graccl_scatter_v; read during this call only.
/// @param recv As graccl_scatter_v; in use until the call is over.
/// @param recv_count As graccl_scatter_v.
/// @param data_type As graccl_scatter_v.
/// @param root As graccl_scatter_v.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_scatter_v_async(
    send: *const c_void,
    send_counts: *const usize,
    send_displs: *const usize,
    recv: *mut c_void,
    recv_count: usize,
    data_type: DataTypeInt,
    root: c_int,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_scatter_v_async on comm to request, |entry| {
        call::scatter_v(entry, send, send_counts, send_displs, recv, recv_count, data_type, root)
    })
}

/// Gives every rank one block from every rank: block r of send goes to rank r, and block r of recv
/// comes from rank r.
///
/// @param send A block for each rank, count elements each; only read.
/// @param recv A block from each rank, count elements each. There is no in-place form: it must not
///        overlap send.
/// @param count Elements of one block, the same on all ranks. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param comm The communicator.
/// @return As graccl_all_reduce.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_to_all(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_all_to_all on comm, |entry| moving(AllToAll, send, recv, count, data_type))
}

/// graccl_all_to_all without waiting: starts it and returns at once.
///
/// @param send As graccl_all_to_all; in use until the call is over.
/// @param recv As graccl_all_to_all; in use until the call is over.
/// @param count As graccl_all_to_all.
/// @param data_type As graccl_all_to_all.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_to_all_async(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_all_to_all_async on comm to request, |entry| {
        moving(AllToAll, send, recv, count, data_type)
    })
}

/// graccl_all_to_all with blocks of different sizes.
///
/// @param send The blocks for the ranks; only read.
/// @param send_counts Elements for each rank. May be 0.
/// @param send_displs Where each rank's block lies in send, in elements from its start, one number
///        for each rank; NULL: one behind the other in the order of the ranks.
/// @param recv The blocks from the ranks; elements between them are left as they were. There is no
///        in-place form: it must not overlap send.
/// @param recv_counts Elements from each rank r: what rank r has as send_counts[rank]. May be 0.
/// @param recv_displs Where each rank's block lies in recv, in elements from its start, one number
///        for each rank; NULL: one behind the other in the order of the ranks. Blocks must not
///        overlap.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for counts or displacements that do
///         not fit in memory, and for a NULL array of counts.
///
/// Buffers and arrays stay the caller's; the arrays are read during the call only.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_to_all_v(
    send: *const c_void,
    send_counts: *const usize,
    send_displs: *const usize,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_all_to_all_v on comm, |entry| {
        call::all_to_all_v(entry, send, send_counts, send_displs, recv, recv_counts, recv_displs, data_type)
    })
}

/// graccl_all_to_all_v without waiting: starts it and returns at once.
///
/// @param send As graccl_all_to_all_v; in use until the call is over.
/// @param send_counts As graccl_all_to_all_v; read during this call only.
/// @param send_displs As graccl_all_to_all_v; read during this call only.
/// @param recv As graccl_all_to_all_v; in use until the call is over.
/// @param recv_counts As graccl_all_to_all_v; read during this call only.
/// @param recv_displs As graccl_all_to_all_v; read during this call only.
/// @param data_type As graccl_all_to_all_v.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_all_to_all_v_async(
    send: *const c_void,
    send_counts: *const usize,
    send_displs: *const usize,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_all_to_all_v_async on comm to request, |entry| {
        call::all_to_all_v(entry, send, send_counts, send_displs, recv, recv_counts, recv_displs, data_type)
    })
}

/// Reduces, element by element, the send buffers of the ranks up to and including each rank into
/// that rank's recv buffer.
///
/// @param send This rank's contribution, count elements; only read.
/// @param recv The result of ranks 0 .. rank, count elements. In place: recv == send. Other
///        overlaps are refused.
/// @param count Elements, the same on all ranks. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param op How they are combined.
/// @param comm The communicator.
/// @return As graccl_all_reduce.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_scan(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_scan on comm, |entry| folding(entry, Scan, send, recv, count, data_type, op))
}

/// graccl_scan without waiting: starts it and returns at once.
///
/// @param send As graccl_scan; in use until the call is over.
/// @param recv As graccl_scan; in use until the call is over.
/// @param count As graccl_scan.
/// @param data_type As graccl_scan.
/// @param op As graccl_scan.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_scan_async(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_scan_async on comm to request, |entry| {
        folding(entry, Scan, send, recv, count, data_type, op)
    })
}

/// Reduces, element by element, the send buffers of the ranks before each rank into that rank's
/// recv buffer.
///
/// @param send This rank's contribution, count elements; only read.
/// @param recv The result of ranks 0 .. rank-1, count elements. In place: recv == send. Other
///        overlaps are refused. Left as it was on rank 0, where it may be NULL.
/// @param count Elements, the same on all ranks. With 0 the pointers may be NULL.
/// @param data_type Type of the elements, at least aligned as C aligns it.
/// @param op How they are combined.
/// @param comm The communicator.
/// @return As graccl_all_reduce.
///
/// The buffers stay the caller's.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_exscan(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    collective!(graccl_exscan on comm, |entry| folding(entry, Exscan, send, recv, count, data_type, op))
}

/// graccl_exscan without waiting: starts it and returns at once.
///
/// @param send As graccl_exscan; in use until the call is over.
/// @param recv As graccl_exscan; in use until the call is over.
/// @param count As graccl_exscan.
/// @param data_type As graccl_exscan.
/// @param op As graccl_exscan.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
///        an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_exscan_async(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    collective!(graccl_exscan_async on comm to request, |entry| {
        folding(entry, Exscan, send, recv, count, data_type, op)
    })
}

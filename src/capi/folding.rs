//! Collectives that reduce: all_reduce, reduce_scatter, reduce, scan and exscan.

use std::ffi::{c_int, c_void};

use super::call::{self, collective, folding};
use super::handle::Entry;
use super::types;
use super::{DataTypeInt, RedOpInt, ResultInt, entry, graccl_comm_t, graccl_request_t, handle, null};
use crate::Collective::{AllReduce, Exscan, Reduce, ReduceScatter, Scan};
use crate::{DataType, RedOp, Result};

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
        let data_type = types::data_type(data_type)?;
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

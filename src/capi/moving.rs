//! Collectives that only move: all_gather, broadcast, gather, scatter and all_to_all.

use std::ffi::{c_int, c_void};

use super::call::{self, collective, moving, rooted};
use super::{DataTypeInt, ResultInt, graccl_comm_t, graccl_request_t};
use crate::Collective::{AllGather, AllToAll, Broadcast, Gather, Scatter};

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

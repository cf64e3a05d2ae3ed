//! Messages from one rank to another, and barriers.

use std::ffi::{c_int, c_void};

use super::call::rank_of;
use super::request::{self, Started};
use super::types::data_type;
use super::{DataTypeInt, ResultInt, entry, graccl_comm_t, graccl_request_t, handle};
use crate::{Error, Request, Result, group_end, group_start};

/// Sends elements to a rank, which receives as many of that type with graccl_recv. Returns when the buffer
/// may be used again, which may be before the peer has them, or only when it receives: two ranks that
/// both send before they receive may wait for ever (graccl_send_recv does not).
///
/// @param send What to send, count elements; only read.
/// @param count Elements. With 0 send may be NULL; the receive must have 0, too.
/// @param data_type Type of the elements.
/// @param peer The rank to send to: another than this one.
/// @param comm The communicator.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a peer that is not a rank or is this
///         one.
///
/// Messages between two ranks arrive in the order in which they were sent. The buffer stays the caller's.
///
/// Thread-safety: as graccl_all_reduce; sends and receives are not ordered with collectives, and wait
/// for none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_send(
    send: *const c_void,
    count: usize,
    data_type: DataTypeInt,
    peer: c_int,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    entry!(graccl_send on comm, not_null [], {
        let entry = handle::live(comm)?;
        let (data_type, peer) = (self::data_type(data_type)?, rank_of(&entry, "peer", peer)?);
        // SAFETY: the buffer has count elements and is not written meanwhile: the header asks for that.
        unsafe { entry.comm.send_raw(send.cast(), count, data_type, peer) }
    })
}

/// graccl_send without waiting: starts it and returns at once.
///
/// @param send As graccl_send; in use until the call is over.
/// @param count As graccl_send.
/// @param data_type As graccl_send.
/// @param peer As graccl_send.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_send_async(
    send: *const c_void,
    count: usize,
    data_type: DataTypeInt,
    peer: c_int,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    entry!(graccl_send_async on comm, not_null [request], {
        // SAFETY: request is not null, and C's caller says that it can be written.
        unsafe { request.write(std::ptr::null_mut()) };
        let entry = handle::live(comm)?;
        let (data_type, peer) = (self::data_type(data_type)?, rank_of(&entry, "peer", peer)?);
        // SAFETY: as graccl_send, until the request says that the call is over.
        let start = || unsafe { entry.comm.start_send(send.cast(), count, data_type, peer) };
        // SAFETY: as at the first write.
        unsafe { request.write(request::start(comm, || Ok(start()?.into()))?) };
        Ok(())
    })
}

/// Receives elements that a rank sends with graccl_send.
///
/// @param recv Where to put them, count elements.
/// @param count Elements, as many as are sent. With 0 recv may be NULL.
/// @param data_type Type of the elements, the same as at the sender.
/// @param peer The rank to receive from: another than this one.
/// @param comm The communicator.
/// @return As graccl_send; GRACCL_INVALID_USAGE also when another count or type was sent.
///
/// The buffer stays the caller's.
///
/// Thread-safety: as graccl_send.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_recv(
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    peer: c_int,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    entry!(graccl_recv on comm, not_null [], {
        let entry = handle::live(comm)?;
        let (data_type, peer) = (self::data_type(data_type)?, rank_of(&entry, "peer", peer)?);
        // SAFETY: the buffer has count elements and is not touched meanwhile: the header asks for that.
        unsafe { entry.comm.recv_raw(recv.cast(), count, data_type, peer) }
    })
}

/// graccl_recv without waiting: starts it and returns at once.
///
/// @param recv As graccl_recv; in use until the call is over.
/// @param count As graccl_recv.
/// @param data_type As graccl_recv.
/// @param peer As graccl_recv.
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_recv_async(
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    peer: c_int,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    entry!(graccl_recv_async on comm, not_null [request], {
        // SAFETY: request is not null, and C's caller says that it can be written.
        unsafe { request.write(std::ptr::null_mut()) };
        let entry = handle::live(comm)?;
        let (data_type, peer) = (self::data_type(data_type)?, rank_of(&entry, "peer", peer)?);
        // SAFETY: as graccl_recv, until the request says that the call is over.
        let start = || unsafe { entry.comm.start_recv(recv.cast(), count, data_type, peer) };
        // SAFETY: as at the first write.
        unsafe { request.write(request::start(comm, || Ok(start()?.into()))?) };
        Ok(())
    })
}

/// A send and a receive at once: a group of two.
struct Exchange {
    send: *const u8,
    send_count: usize,
    dest: usize,
    recv: *mut u8,
    recv_count: usize,
    source: usize,
    data_type: crate::DataType,
}

impl Exchange {
    #[allow(clippy::too_many_arguments)]
    fn new(
        entry: &handle::Entry,
        send: *const c_void,
        send_count: usize,
        dest: c_int,
        recv: *mut c_void,
        recv_count: usize,
        source: c_int,
        data_type: DataTypeInt,
    ) -> Result<Exchange> {
        let data_type = self::data_type(data_type)?;
        let (dest, source) = (rank_of(entry, "dest", dest)?, rank_of(entry, "source", source)?);
        if [dest, source].contains(&entry.comm.rank()) {
            return Err(Error::argument("a rank cannot send to itself").hint("copy the memory"));
        }
        // All that can be wrong with one half has to be found before the other is part of the group.
        for (name, count, null) in
            [("send", send_count, send.is_null()), ("recv", recv_count, recv.is_null())]
        {
            if null && count != 0 {
                return Err(super::null(name));
            }
            if count > isize::MAX as usize / data_type.size() {
                return Err(Error::argument(format!("{name}_count = {count} elements do not fit in memory"))
                    .hint("the count is in elements; a negative number may have been passed"));
            }
        }
        let (from, to) = (send.addr(), recv.addr());
        let (sent, got) = (send_count * data_type.size(), recv_count * data_type.size());
        if sent != 0 && got != 0 && from < to.saturating_add(got) && to < from.saturating_add(sent) {
            return Err(Error::argument("send and recv overlap").hint("pass buffers that are apart"));
        }
        Ok(Exchange { send: send.cast(), send_count, dest, recv: recv.cast(), recv_count, source, data_type })
    }

    /// # Safety
    /// As `Communicator::call`.
    unsafe fn run(&self, entry: &handle::Entry) -> Result<()> {
        group_start()?;
        // SAFETY: the caller's promise.
        let both = unsafe {
            let sent = entry.comm.send_raw(self.send, self.send_count, self.data_type, self.dest);
            sent.and_then(|()| entry.comm.recv_raw(self.recv, self.recv_count, self.data_type, self.source))
        };
        both.and(group_end())
    }

    /// # Safety
    /// As `Communicator::start`.
    unsafe fn start(&self, entry: &handle::Entry) -> Result<Started> {
        group_start()?;
        // SAFETY: the caller's promise.
        let both = unsafe {
            let sent = entry.comm.start_send(self.send, self.send_count, self.data_type, self.dest);
            sent.and_then(|send: Request| {
                let recv = entry.comm.start_recv(self.recv, self.recv_count, self.data_type, self.source)?;
                Ok(Started(send, Some(recv)))
            })
        };
        let ended = group_end();
        let both = both?;
        ended.map(|()| both)
    }
}

/// Sends to one rank and receives from another (or the same), both at once: a group of two. So all ranks
/// may call it side by side, for example around a ring.
///
/// @param send What to send, send_count elements; only read.
/// @param send_count Elements. With 0 send may be NULL.
/// @param dest The rank to send to.
/// @param recv Where to put what is received, recv_count elements. Must not overlap send.
/// @param recv_count Elements, as many as source sends. With 0 recv may be NULL.
/// @param source The rank to receive from. Neither may be this rank.
/// @param data_type Type of the elements of both.
/// @param comm The communicator.
/// @return As graccl_recv.
///
/// The other side may be graccl_send, graccl_recv or graccl_send_recv. The buffers stay the caller's.
///
/// Thread-safety: as graccl_send.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_send_recv(
    send: *const c_void,
    send_count: usize,
    dest: c_int,
    recv: *mut c_void,
    recv_count: usize,
    source: c_int,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    entry!(graccl_send_recv on comm, not_null [], {
        let entry = handle::live(comm)?;
        let both = Exchange::new(&entry, send, send_count, dest, recv, recv_count, source, data_type)?;
        // SAFETY: the buffers are as the header asks.
        unsafe { both.run(&entry) }
    })
}

/// graccl_send_recv without waiting: starts both and returns at once.
///
/// @param send As graccl_send_recv; in use until the call is over.
/// @param send_count As graccl_send_recv.
/// @param dest As graccl_send_recv.
/// @param recv As graccl_send_recv; in use until the call is over.
/// @param recv_count As graccl_send_recv.
/// @param source As graccl_send_recv.
/// @param data_type As graccl_send_recv.
/// @param comm The communicator.
/// @param request Where to put the request of both, over when both are; the caller's to end: see
///        graccl_request_t. NULL after an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_send_recv_async(
    send: *const c_void,
    send_count: usize,
    dest: c_int,
    recv: *mut c_void,
    recv_count: usize,
    source: c_int,
    data_type: DataTypeInt,
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    entry!(graccl_send_recv_async on comm, not_null [request], {
        // SAFETY: request is not null, and C's caller says that it can be written.
        unsafe { request.write(std::ptr::null_mut()) };
        let entry = handle::live(comm)?;
        let both = Exchange::new(&entry, send, send_count, dest, recv, recv_count, source, data_type)?;
        // SAFETY: as graccl_send_recv, until the request says that the call is over; request as above.
        unsafe { request.write(request::start(comm, || both.start(&entry))?) };
        Ok(())
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
    entry!(graccl_barrier on comm, not_null [], { handle::live(comm)?.comm.barrier() })
}

/// graccl_barrier without waiting: its request is over when all ranks have called it.
///
/// @param comm The communicator.
/// @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after an error.
/// @return As graccl_all_reduce_async.
///
/// Thread-safety: as graccl_all_reduce_async.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_barrier_async(
    comm: *mut graccl_comm_t,
    request: *mut *mut graccl_request_t,
) -> ResultInt {
    entry!(graccl_barrier_async on comm, not_null [request], {
        // SAFETY: request is not null, and C's caller says that it can be written.
        unsafe { request.write(std::ptr::null_mut()) };
        let entry = handle::live(comm)?;
        // SAFETY: there is no buffer.
        let started = unsafe { request::start(comm, || Ok(entry.comm.start_barrier()?.into())) }?;
        // SAFETY: as at the first write.
        unsafe { request.write(started) };
        Ok(())
    })
}

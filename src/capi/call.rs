//! From the arguments of a C function to a [`Call`], and how a call is made: now, or as a request.
//!
//! Each collective has two exported functions. Both consist of one line, `collective!`, which names the
//! function below that understands the arguments. (They are not made by a macro because cbindgen would
//! not see them.)

use std::ffi::{c_int, c_void};
use std::slice;
use std::sync::Arc;

use super::handle::Entry;
use super::null;
use super::red_op::reduction;
use super::types::{DataTypeInt, RedOpInt, data_type};
use crate::{Call, Collective, Counts, Error, Extent, Result};

/// The body of a collective: the blocking form, and with `to request` the other.
macro_rules! collective {
    ($function:ident on $comm:ident, |$entry:ident| $call:expr) => {
        $crate::capi::entry!($function on $comm, not_null [], {
            let $entry = &*$crate::capi::handle::live($comm)?;
            // SAFETY: the arguments are what the header asks for. (Those with arrays need it, others do not.)
            #[allow(unused_unsafe)]
            let call = unsafe { $call }?;
            // SAFETY: as above, also that nobody else touches the buffers during the call.
            unsafe { $entry.comm.call(&call) }
        })
    };
    ($function:ident on $comm:ident to $request:ident, |$entry:ident| $call:expr) => {
        $crate::capi::entry!($function on $comm, not_null [$request], {
            // SAFETY: request is not null, and C's caller says that it can be written.
            unsafe { $request.write(std::ptr::null_mut()) };
            let $entry = &*$crate::capi::handle::live($comm)?;
            // SAFETY: the arguments are what the header asks for. (Those with arrays need it, others do not.)
            #[allow(unused_unsafe)]
            let call = unsafe { $call }?;
            // SAFETY: as above, also that nobody else touches the buffers until the request says so.
            let started = unsafe {
                $crate::capi::request::start($comm, || Ok($entry.comm.start(&call)?.into()))
            }?;
            // SAFETY: as at the first write.
            unsafe { $request.write(started) };
            Ok(())
        })
    };
}
pub(super) use collective;

/// A rank or number of ranks, as C gives it, within `range`.
pub(super) fn checked(argument: &str, value: c_int, range: std::ops::Range<c_int>) -> Result<usize> {
    if range.contains(&value) {
        return Ok(value as usize);
    }
    Err(Error::argument(format!("{argument} = {value} is not in {} .. {}", range.start, range.end - 1)))
}

/// A rank of this communicator.
pub(super) fn rank_of(entry: &Entry, argument: &str, value: c_int) -> Result<usize> {
    entry.comm.known()?;
    checked(argument, value, 0..entry.comm.size() as c_int)
}

/// A collective that moves data, without a root.
pub(super) fn moving(
    collective: Collective,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
) -> Result<Call> {
    Ok(Call::moving(collective, send.cast(), recv.cast(), count, self::data_type(data_type)?))
}

/// The same with a root.
pub(super) fn rooted(
    entry: &Entry,
    collective: Collective,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    root: c_int,
) -> Result<Call> {
    Ok(moving(collective, send, recv, count, data_type)?.root(rank_of(entry, "root", root)?))
}

/// A collective that reduces, without a root.
pub(super) fn folding(
    entry: &Entry,
    collective: Collective,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: DataTypeInt,
    op: RedOpInt,
) -> Result<Call> {
    let data_type = self::data_type(data_type)?;
    let op = reduction(entry, op, data_type)?;
    Ok(Call::new(collective, send.cast(), recv.cast(), count, data_type, op))
}

/// The counts of all ranks, as C gives them.
///
/// # Safety
/// `counts` is null or has an element for each rank.
unsafe fn of_ranks<'a>(entry: &Entry, name: &'static str, counts: *const usize) -> Result<&'a [usize]> {
    if counts.is_null() {
        return Err(null(name));
    }
    entry.comm.known()?;
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { slice::from_raw_parts(counts, entry.comm.size()) })
}

/// The blocks of a buffer: `counts` of them at `displs`, or one behind the other where that is null.
///
/// # Safety
/// Each is null or has an element for each rank.
unsafe fn extents(
    entry: &Entry,
    name: &'static str,
    counts: *const usize,
    displs: *const usize,
) -> Result<Arc<[Extent]>> {
    // SAFETY: the caller's promise.
    let counts = unsafe { of_ranks(entry, name, counts) }?;
    if displs.is_null() {
        return Ok(Extent::packed(counts));
    }
    // SAFETY: not null, and the caller's promise.
    let displs = unsafe { slice::from_raw_parts(displs, counts.len()) };
    Ok(counts.iter().zip(displs).map(|(&count, &at)| Extent { at, count }).collect())
}

/// The only block of a buffer.
fn single(count: usize) -> Arc<[Extent]> {
    Extent::packed(&[count])
}

/// A buffer in which this rank has nothing.
fn nothing() -> Arc<[Extent]> {
    Arc::new([])
}

/// # Safety
/// The array is null or has an element for each rank.
pub(super) unsafe fn reduce_scatter_v(
    entry: &Entry,
    send: *const c_void,
    recv: *mut c_void,
    recv_counts: *const usize,
    data_type: DataTypeInt,
    op: RedOpInt,
) -> Result<Call> {
    let call = folding(entry, Collective::ReduceScatter, send, recv, 0, data_type, op)?;
    // SAFETY: the caller's promise.
    let counts = unsafe { of_ranks(entry, "recv_counts", recv_counts) }?;
    let recv = single(counts[entry.comm.rank()]);
    Ok(Call { counts: Counts::Each { send: Extent::packed(counts), recv }, ..call })
}

/// # Safety
/// Each array is null or has an element for each rank.
pub(super) unsafe fn all_gather_v(
    entry: &Entry,
    send: *const c_void,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
) -> Result<Call> {
    let call = moving(Collective::AllGather, send, recv, 0, data_type)?;
    // SAFETY: the caller's promise.
    let recv = unsafe { extents(entry, "recv_counts", recv_counts, recv_displs) }?;
    Ok(Call { counts: Counts::Each { send: single(recv[entry.comm.rank()].count), recv }, ..call })
}

/// # Safety
/// On the root, each array is null or has an element for each rank.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn gather_v(
    entry: &Entry,
    send: *const c_void,
    send_count: usize,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
    root: c_int,
) -> Result<Call> {
    let call = rooted(entry, Collective::Gather, send, recv, 0, data_type, root)?;
    let recv = match entry.comm.rank() == call.root {
        // SAFETY: the caller's promise.
        true => unsafe { extents(entry, "recv_counts", recv_counts, recv_displs) }?,
        false => nothing(),
    };
    Ok(Call { counts: Counts::Each { send: single(send_count), recv }, ..call })
}

/// # Safety
/// On the root, each array is null or has an element for each rank.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn scatter_v(
    entry: &Entry,
    send: *const c_void,
    send_counts: *const usize,
    send_displs: *const usize,
    recv: *mut c_void,
    recv_count: usize,
    data_type: DataTypeInt,
    root: c_int,
) -> Result<Call> {
    let call = rooted(entry, Collective::Scatter, send, recv, 0, data_type, root)?;
    let send = match entry.comm.rank() == call.root {
        // SAFETY: the caller's promise.
        true => unsafe { extents(entry, "send_counts", send_counts, send_displs) }?,
        false => nothing(),
    };
    Ok(Call { counts: Counts::Each { send, recv: single(recv_count) }, ..call })
}

/// # Safety
/// Each array is null or has an element for each rank.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn all_to_all_v(
    entry: &Entry,
    send: *const c_void,
    send_counts: *const usize,
    send_displs: *const usize,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    data_type: DataTypeInt,
) -> Result<Call> {
    let call = moving(Collective::AllToAll, send, recv, 0, data_type)?;
    // SAFETY: the caller's promise.
    let counts = unsafe {
        Counts::Each {
            send: extents(entry, "send_counts", send_counts, send_displs)?,
            recv: extents(entry, "recv_counts", recv_counts, recv_displs)?,
        }
    };
    Ok(Call { counts, ..call })
}

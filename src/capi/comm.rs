//! Version, unique id, and the life of a communicator.

use std::ffi::c_int;
use std::ptr;

use super::{NO_COMM, ResultInt, config, entry, graccl_comm_t, graccl_config_t, handle};
use crate::{Communicator, Error, Result, UniqueId};

/// Bytes of a graccl_unique_id_t.
pub const GRACCL_UNIQUE_ID_BYTES: usize = 128;

/// Names a communicator to be. One process makes it with graccl_get_unique_id and gives the bytes to
/// all ranks by any means. It serves once. It holds a secret key: whoever has it can join.
#[repr(C)]
pub struct graccl_unique_id_t {
    /// To be copied, not to be read.
    pub internal: [u8; GRACCL_UNIQUE_ID_BYTES],
}

// The table hands out references to communicators from any thread.
const _: () = {
    const fn shareable<T: Send + Sync>() {}
    shareable::<Communicator>();
};

const fn number(digits: &str) -> c_int {
    match c_int::from_str_radix(digits, 10) {
        Ok(number) => number,
        Err(_) => panic!("the crate's version consists of numbers"),
    }
}

const VERSION: c_int = 10_000 * number(env!("CARGO_PKG_VERSION_MAJOR"))
    + 100 * number(env!("CARGO_PKG_VERSION_MINOR"))
    + number(env!("CARGO_PKG_VERSION_PATCH"));

/// The version of the library that runs, which may differ from the GRACCL_VERSION of the header that
/// the caller was compiled with.
///
/// @param version Where to put it: 10000 * major + 100 * minor + patch.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT.
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_get_version(version: *mut c_int) -> ResultInt {
    entry!(graccl_get_version on NO_COMM, not_null [version], {
        // SAFETY: version is not null, and C's caller says that it can be written.
        unsafe { version.write(VERSION) };
        Ok(())
    })
}

/// Makes the name of one new communicator, to be given to every rank. This process listens for the
/// ranks from now on and must live until all have joined; it may be a rank itself or not. Processes
/// that it forks afterwards cannot use graccl: fork first.
///
/// @param id Where to put it.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT; GRACCL_SYSTEM_ERROR (no port, no file descriptor).
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_get_unique_id(id: *mut graccl_unique_id_t) -> ResultInt {
    entry!(graccl_get_unique_id on NO_COMM, not_null [id], {
        let made = UniqueId::create()?;
        // SAFETY: id is not null, and C's caller says that it can be written.
        unsafe { id.write(graccl_unique_id_t { internal: made.0 }) };
        Ok(())
    })
}

/// A rank or number of ranks, as C gives it, within `range`.
fn checked(argument: &str, value: c_int, range: std::ops::Range<c_int>) -> Result<usize> {
    if range.contains(&value) {
        return Ok(value as usize);
    }
    Err(Error::argument(format!("{argument} = {value} is not in {} .. {}", range.start, range.end - 1)))
}

/// Carries out an init function: `make` joins, the ticket goes to `comm`.
///
/// # Safety
/// `comm` can be written.
unsafe fn init(comm: *mut *mut graccl_comm_t, make: impl FnOnce() -> Result<Communicator>) -> Result<()> {
    // SAFETY: the caller's promise, here and below.
    unsafe { comm.write(ptr::null_mut()) };
    let ticket = handle::insert(make()?)?;
    unsafe { comm.write(ticket) };
    Ok(())
}

/// # Safety
/// As [`config::settings`].
unsafe fn join(
    nranks: c_int,
    id: graccl_unique_id_t,
    rank: c_int,
    config: *const graccl_config_t,
) -> Result<Communicator> {
    let size = checked("nranks", nranks, 1..c_int::MAX)?;
    let rank = checked("rank", rank, 0..nranks)?;
    // SAFETY: the caller's promise.
    let settings = unsafe { config::settings(config) }?;
    Communicator::init_rank(&UniqueId(id.internal), rank, size, &settings)
}

/// Joins the communicator that id names. Collective: returns when all ranks have joined.
///
/// @param comm Where to put the communicator; NULL after an error.
/// @param nranks Number of ranks, the same on all.
/// @param id From graccl_get_unique_id, the same bytes on all ranks.
/// @param rank This process's number, 0 .. nranks-1, on each rank another.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT; GRACCL_INVALID_USAGE (the ranks disagree, or a rank
///         was given twice); GRACCL_TIMEOUT (the text names the ranks that did not come);
///         GRACCL_REMOTE_ERROR; GRACCL_SYSTEM_ERROR.
///
/// Settings come from the environment: see graccl_config_t. The caller owns the communicator until
/// graccl_comm_destroy.
///
/// Thread-safety: may be called by any thread; threads of one process may be different ranks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_init_rank(
    comm: *mut *mut graccl_comm_t,
    nranks: c_int,
    id: graccl_unique_id_t,
    rank: c_int,
) -> ResultInt {
    entry!(graccl_comm_init_rank on NO_COMM, not_null [comm], {
        // SAFETY: comm is not null, and C's caller says that it can be written; a null config is allowed.
        unsafe { init(comm, || join(nranks, id, rank, ptr::null())) }
    })
}

/// graccl_comm_init_rank with settings.
///
/// @param comm Where to put the communicator; NULL after an error.
/// @param nranks Number of ranks, the same on all.
/// @param id From graccl_get_unique_id, the same bytes on all ranks.
/// @param rank This process's number, 0 .. nranks-1, on each rank another.
/// @param config Settings, started from GRACCL_CONFIG_INITIALIZER; NULL is the same as all unset. Stays
///        the caller's and is not used after the call.
/// @return As graccl_comm_init_rank; GRACCL_INVALID_ARGUMENT also for a setting that makes no sense.
///
/// Thread-safety: as graccl_comm_init_rank.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_init_rank_config(
    comm: *mut *mut graccl_comm_t,
    nranks: c_int,
    id: graccl_unique_id_t,
    rank: c_int,
    config: *const graccl_config_t,
) -> ResultInt {
    entry!(graccl_comm_init_rank_config on NO_COMM, not_null [comm], {
        // SAFETY: comm is not null, and C's caller says that it can be written, and that config is null
        // or an initialised struct.
        unsafe { init(comm, || join(nranks, id, rank, config)) }
    })
}

/// Joins as the launcher's environment says: that of `graccl run`, torchrun (RANK, WORLD_SIZE,
/// LOCAL_RANK, MASTER_ADDR, MASTER_PORT), mpirun or srun. No unique id is needed. Collective: returns
/// when all ranks have joined.
///
/// @param comm Where to put the communicator; NULL after an error.
/// @return As graccl_comm_init_rank; GRACCL_INVALID_ARGUMENT also for an environment that makes no
///         sense.
///
/// Settings come from the environment too. The caller owns the communicator until
/// graccl_comm_destroy.
///
/// Thread-safety: one thread of a process at a time, since the environment makes it one rank.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_init_env(comm: *mut *mut graccl_comm_t) -> ResultInt {
    entry!(graccl_comm_init_env on NO_COMM, not_null [comm], {
        // SAFETY: a null config is allowed; comm is not null, and C's caller says that it can be written.
        unsafe { init(comm, || Communicator::init_env(&config::settings(ptr::null())?)) }
    })
}

/// This process's number in the communicator.
///
/// @param comm The communicator.
/// @param rank Where to put it: 0 .. size-1.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_rank(comm: *const graccl_comm_t, rank: *mut c_int) -> ResultInt {
    entry!(graccl_comm_rank on comm.cast_mut(), not_null [rank], {
        // SAFETY: rank is not null, and C's caller says that it can be written.
        unsafe { rank.write(handle::shared(comm)?.comm.rank() as c_int) };
        Ok(())
    })
}

/// Number of ranks in the communicator.
///
/// @param comm The communicator.
/// @param size Where to put it.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_size(comm: *const graccl_comm_t, size: *mut c_int) -> ResultInt {
    entry!(graccl_comm_size on comm.cast_mut(), not_null [size], {
        // SAFETY: size is not null, and C's caller says that it can be written.
        unsafe { size.write(handle::shared(comm)?.comm.size() as c_int) };
        Ok(())
    })
}

/// Leaves the communicator and frees what belongs to it. Waits a short while for the other ranks to
/// leave too. Ranks that still need this one for a call get GRACCL_REMOTE_ERROR, so let all finish
/// first.
///
/// @param comm The communicator, invalid from now on; using it again is GRACCL_INVALID_USAGE. NULL
///        does nothing.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (destroyed before).
///
/// Memory from graccl_mem_alloc is not freed.
///
/// Thread-safety: no other thread may be inside graccl_all_reduce or graccl_barrier on comm: to stop
/// them, call graccl_comm_abort and wait for them to return. All other functions may run meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_destroy(comm: *mut graccl_comm_t) -> ResultInt {
    entry!(graccl_comm_destroy on comm, not_null [], {
        if !comm.is_null() {
            drop(handle::remove(comm)?);
        }
        Ok(())
    })
}

/// Fails the calls under way on the communicator and all later ones with GRACCL_ABORTED, here and, as
/// soon as they hear of it, on the other ranks. Does not wait. The communicator must still be
/// destroyed (unlike with ncclCommAbort).
///
/// @param comm The communicator.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
///
/// Thread-safety: may be called by any thread at any time, also while others are inside a call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_abort(comm: *mut graccl_comm_t) -> ResultInt {
    entry!(graccl_comm_abort on comm, not_null [], {
        handle::shared(comm)?.comm.abort();
        Ok(())
    })
}

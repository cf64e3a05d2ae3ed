//! Version, unique id, and the life of a communicator.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::call::{checked, rank_of};
use super::handle::Entry;
use super::{NO_COMM, ResultInt, config, entry, error, graccl_comm_t, graccl_config_t, handle, null, panics};
use crate::{Code, Communicator, Config, Error, Result, UniqueId, bootstrap};

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

/// Carries out an init function. `begin` gives the communicator, and whether to wait for the others. The
/// ticket goes to `comm` before that, so that another thread can abort.
///
/// # Safety
/// `comm` can be written.
unsafe fn init(
    comm: *mut *mut graccl_comm_t,
    begin: impl FnOnce() -> Result<(Communicator, bool)>,
) -> Result<()> {
    panics::install();
    // SAFETY: the caller's promise; others may read it from now on.
    let out = unsafe { AtomicPtr::from_ptr(comm) };
    out.store(ptr::null_mut(), Ordering::Relaxed);
    let (begun, blocking) = begin()?;
    let ticket = handle::insert(Entry::new(begun))?;
    let entry = handle::live(ticket)?;
    out.store(ticket, Ordering::Release);
    if !blocking {
        return Err(Error::new(Code::InProgress, "the other ranks are still joining")
            .hint("ask graccl_comm_get_async_error until it is over"));
    }
    // In a group its end waits.
    let joined = entry.comm.wait_ready();
    drop(entry);
    if joined.is_err() {
        out.store(ptr::null_mut(), Ordering::Relaxed);
        // Another thread may have destroyed it: that is why it was not ready.
        let _ = handle::remove(ticket);
    }
    joined
}

/// # Safety
/// As [`config::settings`].
unsafe fn join(
    nranks: c_int,
    id: graccl_unique_id_t,
    rank: c_int,
    config: *const graccl_config_t,
) -> Result<(Communicator, bool)> {
    let size = checked("nranks", nranks, 1..c_int::MAX)?;
    let rank = checked("rank", rank, 0..nranks)?;
    // SAFETY: the caller's promise.
    let settings = unsafe { config::settings(config) }?;
    let begun = Communicator::begin_rank(&UniqueId(id.internal), rank, size, &settings.config)?;
    Ok((begun, settings.blocking))
}

/// Joins the communicator that id names. Collective: returns when all ranks have joined.
///
/// @param comm Where to put the communicator; NULL after an error. It is there before the other ranks are
///        waited for, so that another thread can read it (as a volatile or atomic pointer), and abort
///        or destroy it.
/// @param nranks Number of ranks, the same on all.
/// @param id From graccl_get_unique_id, the same bytes on all ranks.
/// @param rank This process's number, 0 .. nranks-1, on each rank another.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT; GRACCL_INVALID_USAGE (the ranks disagree, or a rank
///         was given twice); GRACCL_TIMEOUT (the text names the ranks that did not come);
///         GRACCL_REMOTE_ERROR; GRACCL_ABORTED (by another thread); GRACCL_SYSTEM_ERROR.
///
/// Settings come from the environment: see graccl_config_t. The caller owns the communicator until
/// graccl_comm_destroy. In a group it returns at once, and graccl_group_end waits: if that gives an
/// error, comm must still be destroyed.
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
/// @param comm Where to put the communicator; NULL after an error. As graccl_comm_init_rank.
/// @param nranks Number of ranks, the same on all.
/// @param id From graccl_get_unique_id, the same bytes on all ranks.
/// @param rank This process's number, 0 .. nranks-1, on each rank another.
/// @param config Settings, started from GRACCL_CONFIG_INITIALIZER; NULL is the same as all unset. Stays
///        the caller's and is not used after the call.
/// @return As graccl_comm_init_rank; GRACCL_INVALID_ARGUMENT also for a setting that makes no sense;
///         with config->blocking = 0 GRACCL_IN_PROGRESS: comm is there and must be destroyed, but the
///         other ranks may not be. Ask graccl_comm_get_async_error until it gives something else; all
///         that may be called on comm before are graccl_comm_rank, graccl_comm_size, graccl_comm_abort
///         and graccl_comm_destroy.
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
/// @param comm Where to put the communicator; NULL after an error. As graccl_comm_init_rank.
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
        let begin = || {
            let (config, job) = (Config::from_env()?, bootstrap::from_env()?);
            Ok((Communicator::begin_rank(&job.id, job.rank, job.size, &config)?, true))
        };
        // SAFETY: comm is not null, and C's caller says that it can be written.
        unsafe { init(comm, begin) }
    })
}

/// Puts communicators into the table: all or none.
fn insert_all(made: Vec<Communicator>) -> Result<Vec<*mut graccl_comm_t>> {
    let mut tickets = Vec::with_capacity(made.len());
    for comm in made {
        match handle::insert(Entry::new(comm)) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => {
                tickets.into_iter().for_each(|ticket| drop(handle::remove(ticket)));
                return Err(error);
            }
        }
    }
    Ok(tickets)
}

/// Makes one communicator whose ranks are all in this process: for threads, or for one thread that makes
/// the calls of all ranks in groups (graccl_group_start).
///
/// @param comms Where to put the communicators, nranks of them: number i is rank i. All NULL after an
///        error.
/// @param nranks Number of ranks, 1 .. 4096.
/// @param config Settings, started from GRACCL_CONFIG_INITIALIZER; NULL is the same as all unset. Stays
///        the caller's and is not used after the call. Its blocking must not be 0.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT; GRACCL_SYSTEM_ERROR.
///
/// The caller owns the communicators, each until its graccl_comm_destroy.
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_init_all(
    comms: *mut *mut graccl_comm_t,
    nranks: c_int,
    config: *const graccl_config_t,
) -> ResultInt {
    entry!(graccl_comm_init_all on NO_COMM, not_null [comms], {
        panics::install();
        let size = checked("nranks", nranks, 1..4097)?;
        // SAFETY: comms is not null, and C's caller says that nranks can be written.
        let comms = unsafe { std::slice::from_raw_parts_mut(comms.cast::<MaybeUninit<_>>(), size) };
        comms.fill(MaybeUninit::new(ptr::null_mut()));
        // SAFETY: C's caller says that config is null or an initialised struct.
        let settings = unsafe { config::settings(config) }?;
        if !settings.blocking {
            return Err(Error::argument("config.blocking = 0 is not possible here")
                .hint("leave it at GRACCL_UNSET: all ranks are in this process, so none is waited for"));
        }
        let tickets = insert_all(Communicator::init_all(size, &settings.config)?)?;
        comms.iter_mut().zip(tickets).for_each(|(out, ticket)| _ = out.write(ticket));
        Ok(())
    })
}

/// As a colour of graccl_comm_split: this rank gets no communicator.
pub const GRACCL_SPLIT_NOCOLOR: c_int = -1;

/// The body of a function that makes a communicator from another.
///
/// # Safety
/// `out` can be written; `config` as [`config::inherited`].
unsafe fn derive(
    comm: *mut graccl_comm_t,
    out: *mut *mut graccl_comm_t,
    config: *const graccl_config_t,
    make: impl FnOnce(&Entry) -> Result<Option<Communicator>>,
) -> Result<()> {
    // SAFETY: the caller's promise, here and below.
    unsafe { out.write(ptr::null_mut()) };
    let entry = handle::live(comm)?;
    unsafe { config::inherited(config) }?;
    if let Some(made) = make(&entry)? {
        let ticket = handle::insert(Entry::new(made))?;
        unsafe { out.write(ticket) };
    }
    Ok(())
}

/// Parts the ranks of a communicator into new ones: ranks that give the same colour are together.
/// Collective: all ranks of comm call it.
///
/// @param comm The communicator. It stays usable.
/// @param color 0 or more, or GRACCL_SPLIT_NOCOLOR.
/// @param key Decides this rank's number among those of its colour: they are in the order of their
///        keys, and of their ranks in comm where keys are equal.
/// @param out Where to put the new communicator; NULL with GRACCL_SPLIT_NOCOLOR and after an error.
/// @param config NULL, or all unset: the new communicator has the settings of comm.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for another negative colour, and for
///         settings.
///
/// The new communicator shares connections and memory with comm, but not its calls; either may be
/// destroyed first. The caller owns it until graccl_comm_destroy. What graccl_red_op_create_pre_mul_sum
/// made for comm stays with comm.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_split(
    comm: *mut graccl_comm_t,
    color: c_int,
    key: c_int,
    out: *mut *mut graccl_comm_t,
    config: *const graccl_config_t,
) -> ResultInt {
    entry!(graccl_comm_split on comm, not_null [out], {
        let split = |entry: &Entry| {
            let color = match color {
                GRACCL_SPLIT_NOCOLOR => None,
                _ => Some(checked("color", color, 0..c_int::MAX).or_else(|error| match color {
                    c_int::MAX => Ok(c_int::MAX as usize),
                    _ => Err(error.hint("or pass GRACCL_SPLIT_NOCOLOR for none")),
                })? as u32),
            };
            entry.comm.split(color, key)
        };
        // SAFETY: out is not null, and C's caller says that it can be written, and that config is null or
        // an initialised struct.
        unsafe { derive(comm, out, config, split) }
    })
}

/// Makes a communicator of the same ranks whose calls are apart from those of the first, for example for
/// another thread. Collective: all ranks of comm call it.
///
/// @param comm The communicator. It stays usable.
/// @param out Where to put the new communicator; NULL after an error.
/// @return As graccl_all_reduce.
///
/// What is shared and who owns it: as graccl_comm_split.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_dup(
    comm: *mut graccl_comm_t,
    out: *mut *mut graccl_comm_t,
) -> ResultInt {
    entry!(graccl_comm_dup on comm, not_null [out], {
        // SAFETY: out is not null, and C's caller says that it can be written.
        unsafe { derive(comm, out, ptr::null(), |entry| entry.comm.duplicate().map(Some)) }
    })
}

/// After ranks have died or hang: makes a communicator of those that live, in the same order. Collective
/// among the survivors, whose comm may have failed; calls under way on it must have returned.
///
/// @param comm The communicator; to be destroyed afterwards if it has failed.
/// @param exclude Ranks of comm that shall not be in the new one, because they are known to be dead or
///        are not wanted; those do not call this. Survivors may give different lists: who is in any
///        is out, and so are ranks that do not answer. May be NULL if count is 0. Read during the
///        call only.
/// @param count Number of ranks in exclude; 0 or more.
/// @param out Where to put the new communicator; NULL after an error.
/// @param config NULL, or all unset: the new communicator has the settings of comm.
/// @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a number in exclude that is not a rank,
///         or is this one, and for settings.
///
/// What is shared and who owns it: as graccl_comm_split.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_shrink(
    comm: *mut graccl_comm_t,
    exclude: *const c_int,
    count: c_int,
    out: *mut *mut graccl_comm_t,
    config: *const graccl_config_t,
) -> ResultInt {
    entry!(graccl_comm_shrink on comm, not_null [out], {
        let shrink = |entry: &Entry| {
            let count = checked("count", count, 0..entry.comm.size() as c_int + 1)?;
            if count > 0 && exclude.is_null() {
                return Err(null("exclude"));
            }
            let given = match count {
                0 => &[],
                // SAFETY: not null, and C's caller says that it has count elements.
                _ => unsafe { std::slice::from_raw_parts(exclude, count) },
            };
            let ranks: Result<Vec<usize>> =
                given.iter().map(|&rank| rank_of(entry, "a rank in exclude", rank)).collect();
            let ranks = ranks?;
            if ranks.contains(&entry.comm.rank()) {
                return Err(Error::argument("exclude has this rank itself")
                    .hint("who is not to be in the new communicator does not call this"));
            }
            entry.comm.shrink(&ranks).map(Some)
        };
        // SAFETY: as graccl_comm_split.
        unsafe { derive(comm, out, config, shrink) }
    })
}

/// Waits until the calls under way are over, and tells the other ranks that no more come from this one.
/// Only graccl_comm_destroy, graccl_comm_abort and questions are allowed after it.
///
/// @param comm The communicator; must still be destroyed.
/// @return As graccl_all_reduce.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_finalize(comm: *mut graccl_comm_t) -> ResultInt {
    entry!(graccl_comm_finalize on comm, not_null [], { handle::live(comm)?.comm.finalize() })
}

/// Asks, without waiting, how the communicator is.
///
/// @param comm The communicator.
/// @param result Where to put it: GRACCL_SUCCESS if it can be used; GRACCL_IN_PROGRESS if the other ranks are
///        still joining (config->blocking = 0); otherwise the error that made it unusable, with its text in
///        graccl_last_error: it can only be destroyed, or shrunk if all ranks had joined.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_get_async_error(
    comm: *mut graccl_comm_t,
    result: *mut ResultInt,
) -> ResultInt {
    entry!(graccl_comm_get_async_error on comm, not_null [result], {
        let state = {
            let entry = handle::glance(comm)?;
            match entry.comm.ready() {
                Ok(false) => Err(Error::new(Code::InProgress, "the other ranks are still joining")),
                Ok(true) => entry.comm.failure().map_or(Ok(()), Err),
                Err(error) => Err(error),
            }
        };
        let code = match state {
            Ok(()) => Code::Success,
            Err(error) => {
                error::record(comm, &error.to_string());
                error.code
            }
        };
        // SAFETY: result is not null, and C's caller says that it can be written.
        unsafe { result.write(code as ResultInt) };
        Ok(())
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
        unsafe { rank.write(handle::glance(comm)?.comm.rank() as c_int) };
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
        unsafe { size.write(handle::glance(comm)?.comm.size() as c_int) };
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
/// Memory from graccl_mem_alloc is not freed. Calls that were started and are not over (graccl_request_t)
/// are waited for: call graccl_comm_abort before if they shall not be, but for what it says. Their requests
/// stay, and must still be ended.
///
/// Thread-safety: may be called by any thread at any time, but not in a callback. Other threads' blocking
/// calls on comm are aborted as by graccl_comm_abort, and have returned when this returns.
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
/// soon as they hear of it, on the other ranks. Does not wait; but a call whose memory another rank writes to
/// just then is over when that is. The communicator must still be destroyed (unlike with ncclCommAbort).
///
/// @param comm The communicator.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
///
/// Thread-safety: may be called by any thread at any time, also while others are inside a call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_comm_abort(comm: *mut graccl_comm_t) -> ResultInt {
    entry!(graccl_comm_abort on comm, not_null [], {
        handle::glance(comm)?.comm.abort();
        Ok(())
    })
}

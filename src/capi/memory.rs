//! Memory that the ranks of one host share.

use std::ffi::c_void;

use super::{NO_COMM, ResultInt, entry};
use crate::memory;

/// Allocates memory that the other ranks of this host can reach directly, so that collectives on it
/// need no staging copy. Any graccl call takes it, and so does everything else that takes memory.
///
/// @param ptr Where to put the address: zeroed memory, aligned to 4096 bytes or more. NULL after an
///        error.
/// @param bytes Size in bytes; 0 gives an address that may only be freed.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, or more bytes than there can be);
///         GRACCL_SYSTEM_ERROR.
///
/// The caller owns it until graccl_mem_free. It is not bound to a communicator.
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_mem_alloc(ptr: *mut *mut c_void, bytes: usize) -> ResultInt {
    entry!(graccl_mem_alloc on NO_COMM, not_null [ptr], {
        // SAFETY: ptr is not null, and C's caller says that it can be written.
        unsafe { ptr.write(std::ptr::null_mut()) };
        let memory = memory::alloc(bytes)?;
        // SAFETY: as above.
        unsafe { ptr.write(memory.cast()) };
        Ok(())
    })
}

/// Frees what graccl_mem_alloc gave.
///
/// @param ptr An address that graccl_mem_alloc gave, or NULL, which does nothing.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (not from graccl_mem_alloc, or freed before).
///
/// Thread-safety: may be called by any thread, when no call that uses the memory is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_mem_free(ptr: *mut c_void) -> ResultInt {
    entry!(graccl_mem_free on NO_COMM, not_null [], {
        // SAFETY: C's caller says that ptr came from graccl_mem_alloc and is no longer used.
        unsafe { memory::free(ptr.cast()) }
    })
}

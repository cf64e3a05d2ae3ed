//! Message buffers: one pool per connection, last in first out.
//!
//! Sends and receives of all links take from the same stack, so that the buffer that was used
//! last, and is still in cache, is used next. Buffers are made when first needed and only grow; what
//! piled up while nobody took messages is given back.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

const ALIGN: usize = 64;
const SMALLEST: usize = 4096;

/// Memory for one message, aligned to a cache line. Its bytes start out undefined.
pub(super) struct Buf {
    ptr: NonNull<u8>,
    size: usize,
}

impl Buf {
    fn new(len: usize) -> Buf {
        let size = len.max(SMALLEST).next_power_of_two();
        let layout = Buf::layout(size);
        // SAFETY: the layout's size is not 0.
        let Some(ptr) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        Buf { ptr, size }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, ALIGN).expect("message capacities are far below isize::MAX")
    }

    pub fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.ptr.as_ptr(), Buf::layout(self.size)) };
    }
}

/// Bytes of free buffers that are kept.
const KEEP: usize = 64 << 20;

/// Free buffers of one connection.
#[derive(Default)]
pub(super) struct Pool {
    free: Vec<Buf>,
    bytes: usize,
}

impl Pool {
    /// A buffer of at least `len` bytes. A free one that is too small is replaced, so that after a
    /// few large messages nothing is allocated any more.
    pub fn get(&mut self, len: usize) -> Buf {
        if let Some(b) = self.free.pop() {
            self.bytes -= b.size;
            if b.size >= len {
                return b;
            }
        }
        Buf::new(len)
    }

    pub fn put(&mut self, b: Buf) {
        if self.bytes + b.size <= KEEP {
            self.bytes += b.size;
            self.free.push(b);
        }
    }
}

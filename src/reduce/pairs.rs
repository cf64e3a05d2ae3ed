//! Folding in pairs: calls of the kernel for two sources, block by block, so that what lies between
//! them stays in the first cache. Values there are elements, and so rounded.

use super::Kernel;
use super::lanes::Args;
use std::mem::MaybeUninit;

/// Bytes that are folded at a time: enough to make the calls cheap, and less than a page, so that a
/// frame of the stack needs no probe.
const BLOCK: usize = 2048;

/// One value of every element of a block.
#[repr(align(64))]
struct Block(MaybeUninit<[u8; BLOCK]>);

impl Block {
    #[inline]
    fn new() -> Block {
        Block(MaybeUninit::uninit())
    }
    #[inline]
    fn ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

/// A part of every source's elements.
struct Part {
    kernel: Kernel,
    /// First byte.
    at: usize,
    /// Elements.
    len: usize,
}

/// Folds three sources or more into all destinations by `kernel`, whose elements have `size` bytes.
///
/// # Safety
/// As for a [`Kernel`].
pub(super) unsafe fn fold(a: &Args, kernel: Kernel, size: usize) {
    // Non-temporal stores want whole lines, so blocks after the first begin at one.
    // SAFETY: there is a destination.
    let head = if a.nt { unsafe { *a.dsts }.addr() % 64 / size * size } else { 0 };
    let (mut at, mut bytes) = (0, BLOCK - head);
    while at < a.bytes {
        bytes = bytes.min(a.bytes - at);
        // SAFETY: the kernel's contract. All sources' parts are read before a destination's is
        // written, by a call that has the aliases which the contract allows.
        unsafe {
            let srcs = std::slice::from_raw_parts(a.srcs, a.nsrc);
            let part = Part { kernel, at, len: bytes / size };
            let (mut left, mut right) = (Block::new(), Block::new());
            let halves = part.halves(srcs, left.ptr(), right.ptr());
            part.store(a, halves);
        }
        at += bytes;
        bytes = BLOCK;
    }
}

impl Part {
    /// The values of the left and the right half of `srcs`, two or more: each where the only source is,
    /// or in the block that is given. The left half is the largest power of two below the number.
    unsafe fn halves(&self, srcs: &[*const u8], left: *mut u8, right: *mut u8) -> [*const u8; 2] {
        let (l, r) = srcs.split_at(srcs.len().next_power_of_two() / 2);
        // SAFETY: the caller's promise.
        unsafe { [self.value(l, left), self.value(r, right)] }
    }

    unsafe fn value(&self, srcs: &[*const u8], out: *mut u8) -> *const u8 {
        // SAFETY: sources have the part; a block has room for it, and is its own destination's alias
        // at most.
        unsafe {
            if let [one] = srcs {
                return one.add(self.at);
            }
            let mut right = Block::new();
            let halves = self.halves(srcs, out, right.ptr());
            (self.kernel)(&out, 1, halves.as_ptr(), 2, self.len, 0, false);
            out
        }
    }

    /// Folds the last pair.
    unsafe fn store(&self, a: &Args, halves: [*const u8; 2]) {
        let mut dsts = [std::ptr::null_mut(); 8];
        // SAFETY: destinations have the part; they do not overlap.
        unsafe {
            for first in (0..a.ndst).step_by(dsts.len()) {
                let n = dsts.len().min(a.ndst - first);
                let done: *const u8 = dsts[0];
                for (i, d) in dsts[..n].iter_mut().enumerate() {
                    *d = (*a.dsts.add(first + i)).add(self.at);
                }
                if first == 0 {
                    (self.kernel)(dsts.as_ptr(), n, halves.as_ptr(), 2, self.len, a.ranks, a.nt);
                } else {
                    // A half may be a source that is a destination too, and gone.
                    (self.kernel)(dsts.as_ptr(), n, &done, 1, self.len, 0, false);
                }
            }
        }
    }
}

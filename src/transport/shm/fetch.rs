//! Asking the processor for lines early.

/// `x`, of which the compiler does not know that it equals something else.
#[inline(always)]
pub(super) fn opaque(x: u8) -> u8 {
    let mut y = usize::from(x);
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) y, options(nomem, nostack, preserves_flags, pure)) };
    y as u8
}

/// Fetches the line at `p` for writing.
#[inline(always)]
pub(super) fn prefetch_write(p: *mut u8) {
    // In assembly, because for the x86-64 baseline the intrinsic becomes a prefetch for reading. It has no
    // effect on memory, and 64-bit processors without it take it for a no-op.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch cannot fault.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) p, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

#[inline]
pub(super) fn prefetch_read(p: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast_const().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

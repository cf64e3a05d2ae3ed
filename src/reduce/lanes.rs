//! Registers full of elements, and the loop that runs a kernel over them.

// Loops over register arrays are indexed: the compiler unrolls them early, so that the arrays become
// registers. Iterator chains are unrolled too late, and the arrays stay in memory (a tenth the speed).
#![allow(clippy::needless_range_loop)]

use super::elem::{Byte, Elem, Half, PROD};
use crate::types::Factor;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of, transmute_copy};

/// A register of elements as it lies in memory (`Raw`) and as it is folded (`Acc`).
///
/// The methods are inlined into functions that enable an instruction set; implementations that use
/// intrinsics belong to a table that is chosen only where the CPU has them.
pub(super) trait Lanes {
    type Raw: Copy;
    type Acc: Copy;
    /// Bytes of one element.
    const SIZE: usize;
    /// Registers in `Acc`.
    const WIDTH: usize;
    /// # Safety
    /// As all methods: the CPU has the instructions that the implementation uses.
    unsafe fn widen(raw: Self::Raw) -> Self::Acc;
    /// # Safety
    /// See [`widen`](Lanes::widen).
    unsafe fn narrow(acc: Self::Acc) -> Self::Raw;
    /// # Safety
    /// See [`widen`](Lanes::widen).
    unsafe fn fold<const OP: u8>(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// # Safety
    /// See [`widen`](Lanes::widen).
    unsafe fn div(a: Self::Acc, ranks: u32) -> Self::Acc;
    /// The factor in all lanes.
    /// # Safety
    /// See [`widen`](Lanes::widen).
    unsafe fn factor(f: Factor) -> Self::Acc;
}

/// `N` elements of type `E`, held in the register type `R`: written element by element, of which the
/// compiler makes the register's instructions.
pub(super) struct Arr<E, R, const N: usize>(PhantomData<(E, R)>);

impl<E: Elem, R: Copy, const N: usize> Lanes for Arr<E, R, N> {
    type Raw = R;
    type Acc = R;
    const SIZE: usize = size_of::<E>();
    const WIDTH: usize = 1;
    #[inline(always)]
    unsafe fn widen(raw: R) -> R {
        raw
    }
    #[inline(always)]
    unsafe fn narrow(acc: R) -> R {
        acc
    }
    #[inline(always)]
    unsafe fn fold<const OP: u8>(a: R, b: R) -> R {
        const { assert!(size_of::<R>() == size_of::<[E; N]>()) };
        // SAFETY: as large, and any bits are a number.
        unsafe {
            let (mut a, b) = (transmute_copy::<R, [E; N]>(&a), transmute_copy::<R, [E; N]>(&b));
            for i in 0..N {
                a[i] = a[i].fold::<OP>(b[i]);
            }
            transmute_copy(&a)
        }
    }
    #[inline(always)]
    unsafe fn div(a: R, ranks: u32) -> R {
        // SAFETY: as `fold`.
        unsafe { transmute_copy(&transmute_copy::<R, [E; N]>(&a).map(|x| x.div(ranks))) }
    }
    #[inline(always)]
    unsafe fn factor(f: Factor) -> R {
        // SAFETY: as `fold`.
        unsafe { transmute_copy(&[E::factor(f); N]) }
    }
}

/// How a register of small floats becomes `K` of f32 and back, rounded once to nearest even.
pub(super) trait Convert<R, const K: usize> {
    /// # Safety
    /// See [`Lanes::widen`].
    unsafe fn widen(raw: R) -> [R; K];
    /// # Safety
    /// See [`Lanes::widen`].
    unsafe fn narrow(acc: [R; K]) -> R;
}

/// Floats of 16 bits (`K` = 2) or 8 (`K` = 4), converted by `C`, that fold in `K` registers of `N` f32.
pub(super) struct Small<C, R, const N: usize, const K: usize>(PhantomData<(C, R)>);

impl<C: Convert<R, K>, R: Copy, const N: usize, const K: usize> Lanes for Small<C, R, N, K> {
    type Raw = R;
    type Acc = [R; K];
    const SIZE: usize = 4 / K;
    const WIDTH: usize = K;
    #[inline(always)]
    unsafe fn widen(raw: R) -> [R; K] {
        // SAFETY: the caller's promise.
        unsafe { C::widen(raw) }
    }
    #[inline(always)]
    unsafe fn narrow(acc: [R; K]) -> R {
        // SAFETY: the caller's promise.
        unsafe { C::narrow(acc) }
    }
    #[inline(always)]
    unsafe fn fold<const OP: u8>(mut a: [R; K], b: [R; K]) -> [R; K] {
        for k in 0..K {
            // SAFETY: the caller's promise.
            a[k] = unsafe { Arr::<f32, R, N>::fold::<OP>(a[k], b[k]) };
        }
        a
    }
    #[inline(always)]
    unsafe fn div(mut a: [R; K], ranks: u32) -> [R; K] {
        for k in 0..K {
            // SAFETY: the caller's promise.
            a[k] = unsafe { Arr::<f32, R, N>::div(a[k], ranks) };
        }
        a
    }
    #[inline(always)]
    unsafe fn factor(f: Factor) -> [R; K] {
        // SAFETY: the caller's promise.
        unsafe { [Arr::<f32, R, N>::factor(f); K] }
    }
}

/// Conversion without special instructions. The low halves of the `N` words go to one register, the
/// high halves to the other (bytes: to four), so that nothing has to be shuffled.
pub(super) struct Words<H, const N: usize>(PhantomData<H>);

impl<H: Half, R: Copy, const N: usize> Convert<R, 2> for Words<H, N> {
    #[inline(always)]
    unsafe fn widen(raw: R) -> [R; 2] {
        const { assert!(size_of::<R>() == size_of::<[u32; N]>()) };
        // SAFETY: as large, and any bits are a number.
        unsafe {
            let w: [u32; N] = transmute_copy(&raw);
            let (mut low, mut high) = ([0.0; N], [0.0; N]);
            for i in 0..N {
                low[i] = H::low(w[i]);
            }
            for i in 0..N {
                high[i] = H::high(w[i]);
            }
            [transmute_copy(&low), transmute_copy(&high)]
        }
    }
    #[inline(always)]
    unsafe fn narrow(acc: [R; 2]) -> R {
        // SAFETY: as `widen`.
        unsafe {
            let (low, high): ([f32; N], [f32; N]) = (transmute_copy(&acc[0]), transmute_copy(&acc[1]));
            let mut w = [0; N];
            for i in 0..N {
                w[i] = H::round(low[i]) | H::round(high[i]) << 16;
            }
            transmute_copy(&w)
        }
    }
}

impl<B: Byte, R: Copy, const N: usize> Convert<R, 4> for Words<B, N> {
    #[inline(always)]
    unsafe fn widen(raw: R) -> [R; 4] {
        const { assert!(size_of::<R>() == size_of::<[u32; N]>()) };
        // SAFETY: as large, and any bits are a number.
        unsafe {
            let w: [u32; N] = transmute_copy(&raw);
            let mut acc = [raw; 4];
            for k in 0..4 {
                let mut part = [0.0; N];
                for i in 0..N {
                    part[i] = B::widen(w[i] >> (8 * k));
                }
                acc[k] = transmute_copy(&part);
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn narrow(acc: [R; 4]) -> R {
        // SAFETY: as `widen`.
        unsafe {
            let mut w = [0; N];
            for k in 0..4 {
                let part: [f32; N] = transmute_copy(&acc[k]);
                for i in 0..N {
                    w[i] |= B::round(part[i]) << (8 * k);
                }
            }
            transmute_copy(&w)
        }
    }
}

/// How floats of 16 bits are made of f32 and become f32 again, in their order: in [`Words`] neighbours
/// part, which does not matter where the same conversion puts them together again.
pub(super) trait Pack {
    /// # Safety
    /// Buffers are valid for `len` elements and do not overlap; the CPU has the instructions.
    unsafe fn narrow(dst: *mut u8, src: *const u8, len: usize);
    /// # Safety
    /// See [`narrow`](Pack::narrow).
    unsafe fn widen(dst: *mut u8, src: *const u8, len: usize);
}

/// Element by element, of which the compiler makes vectors.
impl<H: Half> Pack for H {
    #[inline(always)]
    unsafe fn narrow(dst: *mut u8, src: *const u8, len: usize) {
        let (dst, src) = (dst.cast::<u16>(), src.cast::<f32>());
        for i in 0..len {
            // SAFETY: the caller's promise.
            unsafe { dst.add(i).write_unaligned(H::round(src.add(i).read_unaligned()) as u16) };
        }
    }
    #[inline(always)]
    unsafe fn widen(dst: *mut u8, src: *const u8, len: usize) {
        let (dst, src) = (dst.cast::<f32>(), src.cast::<u16>());
        for i in 0..len {
            // SAFETY: the caller's promise.
            unsafe { dst.add(i).write_unaligned(H::low(src.add(i).read_unaligned().into())) };
        }
    }
}

/// Arguments of a kernel, lengths and positions in bytes.
pub(super) struct Args {
    pub dsts: *const *mut u8,
    pub ndst: usize,
    pub srcs: *const *const u8,
    pub nsrc: usize,
    pub bytes: usize,
    pub ranks: u32,
    pub nt: bool,
}

/// Registers per step of the main loop.
const UNROLL: usize = 4;

/// Folds all sources into all destinations, in one pass.
///
/// `NS` and `ND` fix the numbers of sources and destinations at compile time; 0 leaves them to the
/// arguments. `NS` = 1 is the plain copy, which skips a destination that is the source.
///
/// # Safety
/// Buffers are valid for `bytes` (a whole number of elements), destinations are the same memory as
/// a source or disjoint from it, and the CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn drive<L: Lanes, const OP: u8, const NS: usize, const ND: usize>(a: &Args) {
    // SAFETY: the caller's promises; every register is loaded from all sources before it is stored,
    // so exact aliases see old values only.
    unsafe {
        let reg = size_of::<L::Raw>();
        let mut lp = Loop::<L, OP, NS, ND> {
            // Local copies: the compiler cannot know that no destination holds the pointers.
            src: *a.srcs.cast(),
            dst: *a.dsts.cast(),
            a,
            nt: false,
            lanes: PhantomData,
        };
        let mut at = 0;
        if a.nt {
            // Non-temporal stores need an aligned address: a part of a register leads up to it.
            let head = lp.dst(0).addr().wrapping_neg() % reg;
            if head.is_multiple_of(L::SIZE) && a.bytes >= head + reg {
                lp.nt = true;
                lp.part(0, head);
                at = head;
            }
        }
        // A step of 8-bit floats is long, and has no registers to spare.
        while L::WIDTH < 4 && a.bytes - at >= UNROLL * reg {
            lp.step::<UNROLL>(at);
            at += UNROLL * reg;
        }
        while a.bytes - at >= reg {
            lp.step::<1>(at);
            at += reg;
        }
        lp.part(at, a.bytes - at);
    }
}

struct Loop<'a, L, const OP: u8, const NS: usize, const ND: usize> {
    src: [*const u8; NS],
    dst: [*mut u8; ND],
    a: &'a Args,
    nt: bool,
    lanes: PhantomData<L>,
}

impl<L: Lanes, const OP: u8, const NS: usize, const ND: usize> Loop<'_, L, OP, NS, ND> {
    #[inline(always)]
    unsafe fn src(&self, i: usize) -> *const u8 {
        // SAFETY: callers stay below the number of sources.
        if NS > 0 { self.src[i] } else { unsafe { *self.a.srcs.add(i) } }
    }
    #[inline(always)]
    unsafe fn dst(&self, i: usize) -> *mut u8 {
        // SAFETY: callers stay below the number of destinations.
        if ND > 0 { self.dst[i] } else { unsafe { *self.a.dsts.add(i) } }
    }
    #[inline(always)]
    unsafe fn load(&self, p: *const u8, at: usize) -> L::Acc {
        // SAFETY: callers stay within the buffer.
        unsafe { L::widen(p.add(at).cast::<L::Raw>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_part(&self, i: usize, at: usize, bytes: usize) -> L::Acc {
        // SAFETY: callers stay within the buffer.
        unsafe { L::widen(load_part(self.src(i).add(at), bytes)) }
    }

    /// `U` registers at byte `at`.
    #[inline(always)]
    unsafe fn step<const U: usize>(&self, at: usize) {
        // SAFETY: `drive`'s promises, and `at + U` registers are within the buffers.
        unsafe {
            let p = self.src(0);
            let mut acc = [self.load(p, at); U];
            for u in 1..U {
                acc[u] = self.load(p, at + u * size_of::<L::Raw>());
            }
            for i in 1..if NS > 0 { NS } else { self.a.nsrc } {
                let p = self.src(i);
                for u in 0..U {
                    acc[u] = L::fold::<OP>(acc[u], self.load(p, at + u * size_of::<L::Raw>()));
                }
            }
            let raw = self.finish(acc);
            for i in 0..if ND > 0 { ND } else { self.a.ndst } {
                let d = self.dst(i);
                if NS == 1 && d.cast_const() == p {
                    continue;
                }
                let d = d.add(at).cast::<L::Raw>();
                if i == 0 && self.nt {
                    for u in 0..U {
                        stream(d.add(u), raw[u]);
                    }
                } else {
                    for u in 0..U {
                        d.add(u).write_unaligned(raw[u]);
                    }
                }
            }
        }
    }

    /// Fewer bytes than a register at byte `at`.
    #[inline(always)]
    unsafe fn part(&self, at: usize, bytes: usize) {
        if bytes == 0 {
            return;
        }
        // SAFETY: as `step`.
        unsafe {
            let mut acc = self.load_part(0, at, bytes);
            for i in 1..if NS > 0 { NS } else { self.a.nsrc } {
                acc = L::fold::<OP>(acc, self.load_part(i, at, bytes));
            }
            let raw = self.finish([acc]);
            for i in 0..if ND > 0 { ND } else { self.a.ndst } {
                let d = self.dst(i);
                if NS == 1 && d.cast_const() == self.src(0) {
                    continue;
                }
                copy_part::<L::Raw>(d.add(at), raw.as_ptr().cast(), bytes);
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<const U: usize>(&self, mut acc: [L::Acc; U]) -> [L::Raw; U] {
        // SAFETY: `drive`'s promise about instructions.
        unsafe {
            if NS != 1 && self.a.ranks > 1 {
                for u in 0..U {
                    acc[u] = L::div(acc[u], self.a.ranks);
                }
            }
            let mut raw = [L::narrow(acc[0]); U];
            for u in 1..U {
                raw[u] = L::narrow(acc[u]);
            }
            raw
        }
    }
}

/// Multiplies `bytes` from `src` by `factor`, into `dst`.
///
/// # Safety
/// Both are valid for `bytes` (a whole number of elements), and are the same memory or disjoint; the
/// CPU has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn scale<L: Lanes>(dst: *mut u8, src: *const u8, bytes: usize, factor: Factor) {
    // SAFETY: the caller's promises.
    unsafe {
        let factor = L::factor(factor);
        let mut at = 0;
        while bytes - at >= size_of::<L::Raw>() {
            let raw = src.add(at).cast::<L::Raw>().read_unaligned();
            let raw = L::narrow(L::fold::<PROD>(L::widen(raw), factor));
            dst.add(at).cast::<L::Raw>().write_unaligned(raw);
            at += size_of::<L::Raw>();
        }
        if at < bytes {
            let raw = load_part(src.add(at), bytes - at);
            let raw = L::narrow(L::fold::<PROD>(L::widen(raw), factor));
            copy_part::<L::Raw>(dst.add(at), (&raw const raw).cast(), bytes - at);
        }
    }
}

/// The first `bytes` of a register, fewer than it has; the rest is zero.
#[inline(always)]
unsafe fn load_part<R: Copy>(p: *const u8, bytes: usize) -> R {
    // SAFETY: masked loads touch only `bytes`; only tables of CPUs that have registers of this size
    // use them. All bits zero is a valid register.
    unsafe {
        // Where there are masks: a register read back from several short stores waits for them.
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::*;
            if size_of::<R>() == 64 {
                return transmute_copy(&_mm512_maskz_loadu_epi8((1 << bytes) - 1, p.cast()));
            }
            if size_of::<R>() == 32 && bytes.is_multiple_of(4) {
                let index = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
                let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(bytes as i32), index);
                return transmute_copy(&_mm256_maskload_epi32(p.cast(), mask));
            }
        }
        let mut raw = MaybeUninit::<R>::zeroed();
        copy_part::<R>(raw.as_mut_ptr().cast(), p, bytes);
        raw.assume_init()
    }
}

/// Copies less than a register (at most 64 bytes) without a call: one move for each bit of `bytes`.
#[inline(always)]
unsafe fn copy_part<R>(mut dst: *mut u8, mut src: *const u8, bytes: usize) {
    macro_rules! moves {
        ($($n:literal),*) => { $(
            if $n < size_of::<R>() && bytes & $n != 0 {
                // SAFETY: the pieces add up to `bytes`, which both sides have.
                unsafe {
                    dst.cast::<[u8; $n]>().write(src.cast::<[u8; $n]>().read());
                    (dst, src) = (dst.add($n), src.add($n));
                }
            }
        )* };
    }
    moves!(32, 16, 8, 4, 2, 1);
    let _ = (dst, src);
}

/// Stores past the cache where the CPU can. The address is aligned to the register.
#[inline(always)]
unsafe fn stream<R: Copy>(p: *mut R, r: R) {
    // SAFETY: the caller's pointer; only tables of CPUs that have registers of this size use it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::*;
            match size_of::<R>() {
                64 => _mm512_stream_si512(p.cast(), std::mem::transmute_copy(&r)),
                32 => _mm256_stream_si256(p.cast(), std::mem::transmute_copy(&r)),
                _ => _mm_stream_si128(p.cast(), std::mem::transmute_copy(&r)),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        p.write(r)
    }
}

//! Reduction kernels: fold any number of buffers element by element into any number of others.
//!
//! [`kernel`] gives the function for a type and an operation on this CPU. The results have the same
//! bits on every instruction set (a NaN is a NaN, its payload may differ): sources fold from left to
//! right, nothing is fused, floats of 16 and 8 bits fold in f32 and are rounded once, to nearest even.
//! [`kernel_pairs`] folds in an order, and rounds at points, that do not depend on how many sources
//! come to one call.

mod elem;
mod lanes;
mod pairs;
#[cfg(test)]
mod tests;
mod wire;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use wire::Wire;

use crate::types::{DataType, Factor, RedOp};
use elem::{Bf16, E4m3, E5m2, F16, MAX, MIN, PROD, SUM};
use lanes::{Args, Arr, Convert, Lanes, Pack, Small, Words, drive};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256i, __m512i};
use std::sync::OnceLock;

/// Folds `srcs[0..nsrc]` from left to right and writes the result to all of `dsts[0..ndst]`.
///
/// Arguments: `dsts`, `ndst`, `srcs`, `nsrc`, `len` in elements, `ranks`, `nt`. The folded value is
/// divided by `ranks` if that is more than 1. With `nt`, `dsts[0]` is written past the cache where
/// the CPU can (if it is aligned to the element): call [`store_fence`] before others are told.
/// One source and no division is a copy; a destination that is that source is not touched.
///
/// # Safety
/// All buffers are valid for `len` elements, `nsrc` and `ndst` are at least 1. A destination is
/// exactly the same memory as a source or overlaps none, and destinations do not overlap each other.
/// No alignment is needed.
pub type Kernel = unsafe fn(
    dsts: *const *mut u8,
    ndst: usize,
    srcs: *const *const u8,
    nsrc: usize,
    len: usize,
    ranks: u32,
    nt: bool,
);

/// A product: destination, source, length in elements, factor. See [`scale`].
type Scale = unsafe fn(*mut u8, *const u8, usize, Factor);

/// A conversion: destination, source, length in elements. See [`Wire`].
type Conversion = unsafe fn(*mut u8, *const u8, usize);

/// The functions of one type.
struct Row {
    /// By operation.
    fold: [Kernel; 4],
    /// By operation.
    pairs: [Kernel; 4],
    scale: Scale,
}

/// One instruction set's kernels.
struct Level {
    name: &'static str,
    /// By [`DataType`].
    rows: [Row; 12],
    /// From f32 to f16 and back, to bf16 and back, to blocks of int8 and back: see [`Wire`].
    conversions: [Conversion; 6],
}

/// The fold of the lanes `L`, to be inlined where an instruction set is enabled.
#[inline(always)]
unsafe fn fold<L: Lanes, const OP: u8>(a: &Args) {
    // SAFETY: the kernel's contract.
    unsafe {
        match (a.nsrc, a.ndst) {
            (2, 1) => drive::<L, OP, 2, 1>(a),
            (2, 2) => drive::<L, OP, 2, 2>(a),
            _ => drive::<L, OP, 0, 0>(a),
        }
    }
}

/// One source to all destinations, in registers of bytes `L`; to be inlined like [`fold`].
#[inline(always)]
unsafe fn spread<L: Lanes>(a: &Args) {
    // SAFETY: the kernel's contract.
    unsafe {
        match a.ndst {
            1 if !a.nt => copy(*a.dsts, *a.srcs, a.bytes, false),
            1 => drive::<L, SUM, 1, 1>(a),
            2 => drive::<L, SUM, 1, 2>(a),
            _ => drive::<L, SUM, 1, 0>(a),
        }
    }
}

/// A module that compiles kernels for one instruction set: `$bytes` to a register `$reg`.
macro_rules! isa {
    ($name:ident, $bytes:literal, $reg:ty $(, $feature:literal)?) => {
        #[allow(dead_code)] // Some modules are for one type only.
        mod $name {
            use super::*;

            $(#[target_feature(enable = $feature)])?
            unsafe fn kernel<L: Lanes, const OP: u8>(
                dsts: *const *mut u8,
                ndst: usize,
                srcs: *const *const u8,
                nsrc: usize,
                len: usize,
                ranks: u32,
                nt: bool,
            ) {
                let a = Args { dsts, ndst, srcs, nsrc, bytes: len * L::SIZE, ranks, nt };
                // SAFETY: the kernel's contract; the table is chosen only where the CPU has the features.
                unsafe { if nsrc == 1 && ranks <= 1 { copies(&a) } else { fold::<L, OP>(&a) } }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn copies(a: &Args) {
                // SAFETY: as `kernel`.
                unsafe { spread::<Arr<u8, $reg, $bytes>>(a) }
            }
            unsafe fn pairs<L: Lanes, const OP: u8>(
                dsts: *const *mut u8,
                ndst: usize,
                srcs: *const *const u8,
                nsrc: usize,
                len: usize,
                ranks: u32,
                nt: bool,
            ) {
                let kernel = kernel::<L, OP>;
                // SAFETY: the kernel's contract.
                unsafe {
                    if nsrc <= 2 {
                        return kernel(dsts, ndst, srcs, nsrc, len, ranks, nt);
                    }
                    let a = Args { dsts, ndst, srcs, nsrc, bytes: len * L::SIZE, ranks, nt };
                    pairs::fold(&a, kernel, L::SIZE)
                }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn scale<L: Lanes>(dst: *mut u8, src: *const u8, len: usize, factor: Factor) {
                // SAFETY: the contract of `super::scale`; the table is chosen as for `kernel`.
                unsafe { lanes::scale::<L>(dst, src, len * L::SIZE, factor) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn narrow<C: Pack>(dst: *mut u8, src: *const u8, len: usize) {
                // SAFETY: the contract of `Wire::encode`; the table is chosen as for `kernel`.
                unsafe { C::narrow(dst, src, len) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn widen<C: Pack>(dst: *mut u8, src: *const u8, len: usize) {
                // SAFETY: as `narrow`.
                unsafe { C::widen(dst, src, len) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn narrow8(dst: *mut u8, src: *const u8, len: usize) {
                // SAFETY: the contract of `Wire::encode`; the table is chosen as for `kernel`.
                unsafe { wire::narrow8(dst, src, len) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn widen8(dst: *mut u8, src: *const u8, len: usize) {
                // SAFETY: the contract of `Wire::decode`; the table is chosen as for `kernel`.
                unsafe { wire::widen8(dst, src, len) }
            }
            pub const fn conversions<F: Pack, B: Pack>() -> [Conversion; 6] {
                [narrow::<F>, widen::<F>, narrow::<B>, widen::<B>, narrow8, widen8]
            }
            pub const fn row<L: Lanes>() -> Row {
                Row {
                    fold: [kernel::<L, SUM>, kernel::<L, PROD>, kernel::<L, MAX>, kernel::<L, MIN>],
                    pairs: [pairs::<L, SUM>, pairs::<L, PROD>, pairs::<L, MAX>, pairs::<L, MIN>],
                    scale: scale::<L>,
                }
            }
            pub const fn half<C: Convert<$reg, 2>>() -> Row {
                row::<Small<C, $reg, { $bytes / 4 }, 2>>()
            }
            pub const fn byte<C: Convert<$reg, 4>>() -> Row {
                row::<Small<C, $reg, { $bytes / 4 }, 4>>()
            }
            pub const fn rows(f16: Row, bf16: Row, e4m3: Row, e5m2: Row) -> [Row; 12] {
                [
                    row::<Arr<i8, $reg, $bytes>>(),
                    row::<Arr<u8, $reg, $bytes>>(),
                    row::<Arr<i32, $reg, { $bytes / 4 }>>(),
                    row::<Arr<u32, $reg, { $bytes / 4 }>>(),
                    row::<Arr<i64, $reg, { $bytes / 8 }>>(),
                    row::<Arr<u64, $reg, { $bytes / 8 }>>(),
                    f16,
                    row::<Arr<f32, $reg, { $bytes / 4 }>>(),
                    row::<Arr<f64, $reg, { $bytes / 8 }>>(),
                    bf16,
                    e4m3,
                    e5m2,
                ]
            }
        }
    };
}

/// The scalar level's register.
#[cfg(target_arch = "aarch64")]
type Reg16 = std::arch::aarch64::uint8x16_t;
#[cfg(target_arch = "x86_64")]
type Reg16 = std::arch::x86_64::__m128i;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Reg16 = [u64; 2];

isa!(scalar, 16, Reg16);
static SCALAR: Level = Level {
    name: if cfg!(target_arch = "aarch64") { "neon" } else { "scalar" },
    rows: scalar::rows(
        scalar::half::<Words<F16, 4>>(),
        scalar::half::<Words<Bf16, 4>>(),
        scalar::byte::<Words<E4m3, 4>>(),
        scalar::byte::<Words<E5m2, 4>>(),
    ),
    conversions: scalar::conversions::<F16, Bf16>(),
};

#[cfg(target_arch = "x86_64")]
isa!(avx2, 32, __m256i, "avx2,f16c");
#[cfg(target_arch = "x86_64")]
static AVX2: Level = Level {
    name: "avx2",
    rows: avx2::rows(
        avx2::half::<x86::F16c>(),
        avx2::half::<x86::Bf16Avx2>(),
        avx2::byte::<x86::ByteAvx2<E4m3>>(),
        avx2::byte::<x86::ByteAvx2<E5m2>>(),
    ),
    conversions: avx2::conversions::<x86::F16cPack<8>, Bf16>(),
};

#[cfg(target_arch = "x86_64")]
isa!(avx512, 64, __m512i, "avx512f,avx512bw,avx512vl,avx512dq");
#[cfg(target_arch = "x86_64")]
static AVX512: Level = Level {
    name: "avx512",
    rows: avx512::rows(
        avx512::half::<x86::F16c>(),
        avx512::half::<Words<Bf16, 16>>(),
        avx512::byte::<Words<E4m3, 16>>(),
        avx512::byte::<Words<E5m2, 16>>(),
    ),
    conversions: avx512::conversions::<x86::F16cPack<16>, Bf16>(),
};

#[cfg(target_arch = "x86_64")]
isa!(avx512bf16, 64, __m512i, "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16");
#[cfg(target_arch = "x86_64")]
isa!(avx512vbmi, 64, __m512i, "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi");
#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Level = Level {
    name: "avx512",
    rows: avx512::rows(
        avx512::half::<x86::F16c>(),
        avx512bf16::half::<x86::Bf16Avx512>(),
        avx512vbmi::byte::<x86::Vbmi<E4m3>>(),
        avx512vbmi::byte::<x86::Vbmi<E5m2>>(),
    ),
    conversions: avx512::conversions::<x86::F16cPack<16>, Bf16>(),
};

/// The levels that this CPU has, best first.
fn levels() -> Vec<&'static Level> {
    let mut v = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") {
            // Intel's Cooper Lake has only the first.
            if has!("avx512bf16") && has!("avx512vbmi") {
                v.push(&AVX512_BF16);
            }
            v.push(&AVX512);
        }
        if has!("avx2") && has!("f16c") {
            v.push(&AVX2);
        }
    }
    v.push(&SCALAR);
    v
}

/// The level in use: the best one, unless the environment variable `GRACCL_SIMD` names another.
fn chosen() -> &'static Level {
    static LEVEL: OnceLock<&'static Level> = OnceLock::new();
    LEVEL.get_or_init(|| {
        let levels = levels();
        let cap = std::env::var("GRACCL_SIMD").ok();
        *levels.iter().find(|l| Some(l.name) == cap.as_deref()).unwrap_or(&levels[0])
    })
}

/// The operation's place in a row.
#[inline]
fn column(op: RedOp) -> usize {
    if op == RedOp::Avg { SUM as usize } else { op as usize }
}

/// The kernel for a type and an operation, for the CPU that this runs on. `Avg` folds as `Sum`: the
/// caller passes the number of ranks with the fold that completes the value.
#[inline]
pub fn kernel(dtype: DataType, op: RedOp) -> Kernel {
    chosen().rows[dtype as usize].fold[column(op)]
}

/// As [`kernel`], but sources fold as balanced adjacent pairs, and every pair's value is rounded to
/// the element type.
///
/// The pairs are (0,1), (2,3), ..., then pairs of their values, and so on; an odd last one passes up
/// unchanged. A division comes before the rounding of the last pair, whose value is the result. So it
/// makes no difference whether one call folds all sources, or several calls fold aligned groups of
/// 2^i of them and another one their results.
#[inline]
pub fn kernel_pairs(dtype: DataType, op: RedOp) -> Kernel {
    chosen().rows[dtype as usize].pairs[column(op)]
}

/// Multiplies `len` elements of `src` by `factor`, into `dst`. Small floats multiply in f32; every
/// product is rounded once to the element type, or wraps. [`Factor::fits`] says which factors make
/// sense; others convert as Rust's `as` does.
///
/// # Safety
/// Both are valid for `len` elements of the type, and are the same memory or do not overlap. No
/// alignment is needed.
pub unsafe fn scale(dtype: DataType, dst: *mut u8, src: *const u8, len: usize, factor: Factor) {
    // SAFETY: the caller's promises; the table is of this CPU.
    unsafe { (chosen().rows[dtype as usize].scale)(dst, src, len, factor) }
}

/// Name of the instruction set in use: "avx512", "avx2" or "scalar" (the target's baseline: SSE2 on
/// x86-64, NEON on aarch64, which reports "neon").
pub fn level() -> &'static str {
    chosen().name
}

/// Copies `bytes` from `src` to `dst`, past the cache if `nt` (then see [`store_fence`]).
///
/// # Safety
/// Both are valid for `bytes` and are the same memory or do not overlap.
#[inline]
pub unsafe fn copy(dst: *mut u8, src: *const u8, bytes: usize, nt: bool) {
    // SAFETY: the caller's promises; kernels copy one source to one destination.
    unsafe {
        if nt {
            kernel(DataType::U8, RedOp::Sum)(&dst, 1, &src, 1, bytes, 0, true)
        } else if dst.cast_const() != src {
            std::ptr::copy_nonoverlapping(src, dst, bytes)
        }
    }
}

/// Orders non-temporal stores before later stores. Needed before a flag that publishes them, and
/// before the application is told that its buffer is ready.
#[inline]
pub fn store_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
}

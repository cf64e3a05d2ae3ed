//! Conversions of 16-bit floats by x86 instructions.

use super::elem::Bf16;
use super::lanes::{Convert, Words};
use std::arch::x86_64::*;

/// Half precision by F16C, or by AVX-512's form of it.
pub(super) struct F16c;

impl Convert<__m256i> for F16c {
    #[inline(always)]
    unsafe fn widen(raw: __m256i) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (_mm256_castsi256_si128(raw), _mm256_extracti128_si256::<1>(raw));
            [_mm256_castps_si256(_mm256_cvtph_ps(low)), _mm256_castps_si256(_mm256_cvtph_ps(high))]
        }
    }
    #[inline(always)]
    unsafe fn narrow(acc: [__m256i; 2]) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_castsi256_ps(acc[0]));
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_castsi256_ps(acc[1]));
            _mm256_set_m128i(high, low)
        }
    }
}

impl Convert<__m512i> for F16c {
    #[inline(always)]
    unsafe fn widen(raw: __m512i) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (_mm512_castsi512_si256(raw), _mm512_extracti64x4_epi64::<1>(raw));
            [_mm512_castps_si512(_mm512_cvtph_ps(low)), _mm512_castps_si512(_mm512_cvtph_ps(high))]
        }
    }
    #[inline(always)]
    unsafe fn narrow(acc: [__m512i; 2]) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_castsi512_ps(acc[0]));
            let high = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_castsi512_ps(acc[1]));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
}

/// bfloat16 by AVX2: [`Words`], spelled out where the compiler does not find the vectors.
pub(super) struct Bf16Avx2;

impl Convert<__m256i> for Bf16Avx2 {
    #[inline(always)]
    unsafe fn widen(raw: __m256i) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            [_mm256_slli_epi32::<16>(raw), _mm256_and_si256(raw, _mm256_set1_epi32(0xffff_0000_u32 as i32))]
        }
    }
    #[inline(always)]
    unsafe fn narrow(acc: [__m256i; 2]) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(round(acc[0])), round(acc[1])) }
    }
}

/// The rounded value in the high 16 bits, rubbish below.
#[inline(always)]
unsafe fn round(b: __m256i) -> __m256i {
    // SAFETY: the caller's promise: AVX2.
    unsafe {
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(b), _mm256_set1_epi32(1));
        let r = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let v = _mm256_castsi256_ps(b);
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        _mm256_blendv_epi8(r, _mm256_or_si256(b, _mm256_set1_epi32(0x40_0000)), nan)
    }
}

/// bfloat16 by AVX512-BF16, whose conversion takes subnormal numbers for zero: these go the long way.
pub(super) struct Bf16Avx512;

impl Convert<__m512i> for Bf16Avx512 {
    #[inline(always)]
    unsafe fn widen(raw: __m512i) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe { <Words<Bf16, 16> as Convert<__m512i>>::widen(raw) }
    }
    #[inline(always)]
    unsafe fn narrow(acc: [__m512i; 2]) -> __m512i {
        const SUBNORMAL: i32 = 0x20;
        #[rustfmt::skip]
        const INTERLEAVE: [u16; 32] = [
            0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31,
        ];
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (_mm512_castsi512_ps(acc[0]), _mm512_castsi512_ps(acc[1]));
            let small = _mm512_fpclass_ps_mask::<SUBNORMAL>(low) | _mm512_fpclass_ps_mask::<SUBNORMAL>(high);
            if small != 0 {
                // Inline: a call would spill every register around it.
                unlikely();
                return <Words<Bf16, 16> as Convert<__m512i>>::narrow(acc);
            }
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_permutexvar_epi16(std::mem::transmute::<[u16; 32], __m512i>(INTERLEAVE), both)
        }
    }
}

/// Marks the branch that calls it as cold.
#[cold]
fn unlikely() {}

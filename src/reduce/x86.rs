//! Conversions of small floats by x86 instructions.

use super::elem::{Bf16, Byte};
use super::lanes::{Convert, Words};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Half precision by F16C, or by AVX-512's form of it.
pub(super) struct F16c;

impl Convert<__m256i, 2> for F16c {
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

impl Convert<__m512i, 2> for F16c {
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

impl Convert<__m256i, 2> for Bf16Avx2 {
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

impl Convert<__m512i, 2> for Bf16Avx512 {
    #[inline(always)]
    unsafe fn widen(raw: __m512i) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe { <Words<Bf16, 16> as Convert<__m512i, 2>>::widen(raw) }
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
                return <Words<Bf16, 16> as Convert<__m512i, 2>>::narrow(acc);
            }
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_permutexvar_epi16(std::mem::transmute::<[u16; 32], __m512i>(INTERLEAVE), both)
        }
    }
}

/// Marks the branch that calls it as cold.
#[cold]
fn unlikely() {}

/// 8-bit floats by AVX512-VBMI, which looks each up in a table of bfloat16, that is upper halves of f32.
///
/// Registers are, for every 16 bytes of an element's register: bytes 0, 2, 4, 6, then 1, 3, 5, 7, then
/// 8 and on, likewise. Packing two registers of words makes that order of four.
pub(super) struct Vbmi<B>(PhantomData<B>);

impl<B: Byte> Vbmi<B> {
    /// Lower and upper bytes of the values of codes 0..128.
    const TABLES: [[u8; 128]; 2] = {
        let mut t = [[0; 128]; 2];
        let mut code = 1;
        while code < 128 {
            let exp = (code >> B::DIGITS) as u32;
            let bits = if code >= B::SPECIAL as usize {
                0x7f80 | code << (7 - B::DIGITS)
            } else if exp > 0 {
                (code << (7 - B::DIGITS)) + ((127 - B::BIAS as usize) << 7)
            } else {
                // `code` times the least number; its own highest bit is hidden.
                let high = code.ilog2();
                (((128 - B::BIAS - B::DIGITS + high) as usize) << 7) | (code << (7 - high) & 0x7f)
            };
            t[0][code] = bits as u8;
            t[1][code] = (bits >> 8) as u8;
            code += 1;
        }
        t
    };
}

impl<B: Byte> Convert<__m512i, 4> for Vbmi<B> {
    #[inline(always)]
    unsafe fn widen(raw: __m512i) -> [__m512i; 4] {
        // SAFETY: the caller's promise; registers and tables are bytes.
        unsafe {
            let [low, high]: [[__m512i; 2]; 2] = std::mem::transmute(Self::TABLES);
            let sign = _mm512_and_si512(raw, _mm512_set1_epi8(0x80_u8 as i8));
            let low = _mm512_permutex2var_epi8(low[0], raw, low[1]);
            let high = _mm512_or_si512(_mm512_permutex2var_epi8(high[0], raw, high[1]), sign);
            let halves = [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)];
            let even = |h| _mm512_slli_epi32::<16>(h);
            let odd = |h| _mm512_and_si512(h, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [even(halves[0]), odd(halves[0]), even(halves[1]), odd(halves[1])]
        }
    }
    /// [`Byte::round`], with saturating packs instead of the comparison at its end.
    #[inline(always)]
    unsafe fn narrow(acc: [__m512i; 4]) -> __m512i {
        const EXP: i32 = 0x7f80_0000;
        let least = (128 - B::BIAS as i32) << 23;
        // SAFETY: the caller's promise.
        unsafe {
            let round = |v: __m512i| {
                let a = _mm512_and_si512(v, _mm512_set1_epi32(0x7fff_ffff));
                let a = _mm512_min_ps(_mm512_set1_ps(B::MAX), _mm512_castsi512_ps(a));
                let e = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(EXP));
                let e = _mm512_max_epi32(e, _mm512_set1_epi32(least));
                let magic = _mm512_add_epi32(e, _mm512_set1_epi32((B::SHIFT as i32) << 23));
                let digits = _mm512_castps_si512(_mm512_add_ps(a, _mm512_castsi512_ps(magic)));
                // The lower bits of e are zero, and NaN's digits do not count.
                let e = _mm512_srl_epi32(e, _mm_cvtsi32_si128(B::SHIFT as i32));
                _mm512_add_epi32(_mm512_and_si512(digits, _mm512_set1_epi32(0xff)), e)
            };
            // Words of both registers in turns: those of the first moved down, or the second's up.
            let words = |even, odd| _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
            let signs = |even, odd| _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(even), 0xaaaa_aaaa, odd);
            let base = _mm512_set1_epi16((least >> B::SHIFT) as i16);
            let low = _mm512_sub_epi16(words(round(acc[0]), round(acc[1])), base);
            let high = _mm512_sub_epi16(words(round(acc[2]), round(acc[3])), base);
            let abs = _mm512_min_epu8(_mm512_packus_epi16(low, high), _mm512_set1_epi8(0x7f));
            let sign = _mm512_packs_epi16(signs(acc[0], acc[1]), signs(acc[2], acc[3]));
            // Where the mask is set the sign, else the rest.
            _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(0x80_u8 as i8), sign, abs)
        }
    }
}

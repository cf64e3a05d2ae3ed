//! Conversions of small floats by x86 instructions.

use super::elem::{Bf16, Byte, F16};
use super::lanes::{Convert, Pack, Words};
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

/// Half precision by F16C in order, `N` at a time: 8, or 16 with AVX-512.
pub(super) struct F16cPack<const N: usize>;

impl<const N: usize> Pack for F16cPack<N> {
    #[inline(always)]
    unsafe fn narrow(dst: *mut u8, src: *const u8, len: usize) {
        let whole = len - len % N;
        // SAFETY: the caller's promise.
        unsafe {
            for i in (0..whole).step_by(N) {
                let (to, from) = (dst.add(2 * i), src.add(4 * i));
                if N == 16 {
                    let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(from.cast()));
                    _mm256_storeu_si256(to.cast(), half);
                } else {
                    let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from.cast()));
                    _mm_storeu_si128(to.cast(), half);
                }
            }
            <F16 as Pack>::narrow(dst.add(2 * whole), src.add(4 * whole), len - whole)
        }
    }
    #[inline(always)]
    unsafe fn widen(dst: *mut u8, src: *const u8, len: usize) {
        let whole = len - len % N;
        // SAFETY: the caller's promise.
        unsafe {
            for i in (0..whole).step_by(N) {
                let (to, from) = (dst.add(4 * i), src.add(2 * i));
                if N == 16 {
                    _mm512_storeu_ps(to.cast(), _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())));
                } else {
                    _mm256_storeu_ps(to.cast(), _mm256_cvtph_ps(_mm_loadu_si128(from.cast())));
                }
            }
            <F16 as Pack>::widen(dst.add(4 * whole), src.add(2 * whole), len - whole)
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
            let odd = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            [
                _mm512_slli_epi32::<16>(halves[0]),
                _mm512_and_si512(halves[0], odd),
                _mm512_slli_epi32::<16>(halves[1]),
                _mm512_and_si512(halves[1], odd),
            ]
        }
    }
    /// [`Byte::round`], with saturating packs instead of the comparison at its end.
    #[inline(always)]
    unsafe fn narrow(acc: [__m512i; 4]) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let base = _mm512_set1_epi16((Self::LEAST >> B::SHIFT) as i16);
            let (low, high) = (Self::words(acc[0], acc[1]), Self::words(acc[2], acc[3]));
            let abs = _mm512_packus_epi16(_mm512_sub_epi16(low, base), _mm512_sub_epi16(high, base));
            let abs = _mm512_min_epu8(abs, _mm512_set1_epi8(0x7f));
            let sign = _mm512_packs_epi16(signs(acc[0], acc[1]), signs(acc[2], acc[3]));
            // Where the mask is set the sign, else the rest.
            _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(0x80_u8 as i8), sign, abs)
        }
    }
}

// Functions, not closures: these would not have the caller's instructions.
impl<B: Byte> Vbmi<B> {
    /// The bits of the least normal number, in f32.
    const LEAST: i32 = (128 - B::BIAS as i32) << 23;

    /// The rounded codes of two registers, too large by the code of `LEAST` in f32, in turns.
    #[inline(always)]
    unsafe fn words(even: __m512i, odd: __m512i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_or_si512(Self::round(even), _mm512_slli_epi32::<16>(Self::round(odd))) }
    }
    #[inline(always)]
    unsafe fn round(v: __m512i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let a = _mm512_and_si512(v, _mm512_set1_epi32(0x7fff_ffff));
            let a = _mm512_min_ps(_mm512_set1_ps(B::MAX), _mm512_castsi512_ps(a));
            let e = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7f80_0000));
            let e = _mm512_max_epi32(e, _mm512_set1_epi32(Self::LEAST));
            let magic = _mm512_add_epi32(e, _mm512_set1_epi32((B::SHIFT as i32) << 23));
            let digits = _mm512_castps_si512(_mm512_add_ps(a, _mm512_castsi512_ps(magic)));
            let digits = _mm512_and_si512(digits, _mm512_set1_epi32(0xff));
            _mm512_add_epi32(digits, _mm512_srl_epi32(e, _mm_cvtsi32_si128(B::SHIFT as i32)))
        }
    }
}

/// The upper halves of two registers in turns: the signs are what matters.
#[inline(always)]
unsafe fn signs(even: __m512i, odd: __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(even), 0xaaaa_aaaa, odd) }
}

/// 8-bit floats by AVX2: [`Words`], spelled out where the compiler does not find the vectors.
pub(super) struct ByteAvx2<B>(PhantomData<B>);

impl<B: Byte> ByteAvx2<B> {
    /// Byte `K` of every word.
    #[inline(always)]
    unsafe fn widen_byte<const K: i32>(raw: __m256i) -> __m256i {
        let up = B::SHIFT as i32 - 8 * K;
        // SAFETY: the caller's promise.
        unsafe {
            let at = if up > 0 {
                _mm256_sll_epi32(raw, _mm_cvtsi32_si128(up))
            } else {
                _mm256_srl_epi32(raw, _mm_cvtsi32_si128(-up))
            };
            let abs = _mm256_and_si256(at, _mm256_set1_epi32(0x7f << B::SHIFT));
            let factor = _mm256_castsi256_ps(_mm256_set1_epi32((254 - B::BIAS as i32) << 23));
            let v = _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(abs), factor));
            // The product of a code that is no number has the bits of its mantissa.
            let special = _mm256_cmpgt_epi32(abs, _mm256_set1_epi32(((B::SPECIAL as i32) << B::SHIFT) - 1));
            let v = _mm256_or_si256(v, _mm256_and_si256(special, _mm256_set1_epi32(0x7f80_0000)));
            let sign = _mm256_sll_epi32(raw, _mm_cvtsi32_si128(24 - 8 * K));
            _mm256_or_si256(v, _mm256_and_si256(sign, _mm256_set1_epi32(i32::MIN)))
        }
    }
    /// [`Byte::round`], in byte `K` of every word.
    #[inline(always)]
    unsafe fn round<const K: i32>(v: __m256i) -> __m256i {
        let least = (128 - B::BIAS as i32) << 23;
        // SAFETY: the caller's promise.
        unsafe {
            let a = _mm256_and_si256(v, _mm256_set1_epi32(0x7fff_ffff));
            let a = _mm256_min_ps(_mm256_set1_ps(B::MAX), _mm256_castsi256_ps(a));
            let e = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7f80_0000));
            let e = _mm256_max_epi32(e, _mm256_set1_epi32(least));
            let magic = _mm256_add_epi32(e, _mm256_set1_epi32((B::SHIFT as i32) << 23));
            let digits = _mm256_castps_si256(_mm256_add_ps(a, _mm256_castsi256_ps(magic)));
            let digits = _mm256_and_si256(digits, _mm256_set1_epi32(0xff));
            let e = _mm256_sub_epi32(e, _mm256_set1_epi32(least));
            let r = _mm256_add_epi32(digits, _mm256_srl_epi32(e, _mm_cvtsi32_si128(B::SHIFT as i32)));
            let r = _mm256_min_epi32(r, _mm256_set1_epi32(0x7f));
            let sign = _mm256_and_si256(_mm256_srli_epi32::<24>(v), _mm256_set1_epi32(0x80));
            _mm256_sll_epi32(_mm256_or_si256(r, sign), _mm_cvtsi32_si128(8 * K))
        }
    }
}

impl<B: Byte> Convert<__m256i, 4> for ByteAvx2<B> {
    #[inline(always)]
    unsafe fn widen(raw: __m256i) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (Self::widen_byte::<0>(raw), Self::widen_byte::<1>(raw));
            [a, b, Self::widen_byte::<2>(raw), Self::widen_byte::<3>(raw)]
        }
    }
    #[inline(always)]
    unsafe fn narrow(acc: [__m256i; 4]) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_or_si256(Self::round::<0>(acc[0]), Self::round::<1>(acc[1]));
            let high = _mm256_or_si256(Self::round::<2>(acc[2]), Self::round::<3>(acc[3]));
            _mm256_or_si256(low, high)
        }
    }
}

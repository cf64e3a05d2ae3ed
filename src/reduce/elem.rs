//! What one element is and how two of them fold: the arithmetic that every instruction set shares.

use crate::types::Factor;

/// Fold operations as const generic arguments; the numbers are `RedOp`'s.
pub(super) const SUM: u8 = 0;
pub(super) const PROD: u8 = 1;
pub(super) const MAX: u8 = 2;
pub(super) const MIN: u8 = 3;

/// A type that elements are folded in.
pub(super) trait Elem: Copy {
    /// The factor as a number of this type. One that does not fit the type converts as `as` does.
    fn factor(f: Factor) -> Self;
    /// `self OP other`.
    fn fold<const OP: u8>(self, other: Self) -> Self;
    /// Divided by the number of ranks; integers truncate toward zero.
    fn div(self, ranks: u32) -> Self;
}

/// `$div` divides a value by the number of ranks (at least 2).
macro_rules! int {
    ($div:ident; $($t:ident),*) => { $(
        impl Elem for $t {
            #[inline(always)]
            fn factor(f: Factor) -> Self {
                match f {
                    Factor::Float(x) => x as Self,
                    Factor::Int(x) => x as Self,
                }
            }
            #[inline(always)]
            fn fold<const OP: u8>(self, b: Self) -> Self {
                match OP {
                    SUM => self.wrapping_add(b),
                    PROD => self.wrapping_mul(b),
                    MAX => if self > b { self } else { b },
                    _ => if self < b { self } else { b },
                }
            }
            #[inline(always)]
            fn div(self, ranks: u32) -> Self {
                $div!(self, ranks, $t)
            }
        }
    )* };
}
/// Vectors divide only floats. The rounded quotient is below the next integer, from which the exact
/// one is at least 1/ranks away: more than f32's half ulp for 8 bits, and f64's for 32.
macro_rules! div8 {
    ($v:expr, $ranks:expr, $t:ident) => {
        // SAFETY: the quotient is no larger than the value.
        unsafe { ($v as f32 / $ranks as f32).to_int_unchecked::<i32>() as $t }
    };
}
macro_rules! div32 {
    ($v:expr, $ranks:expr, $t:ident) => {
        // SAFETY: at least 2 ranks, so the quotient is within half the type's range.
        unsafe { ($v as f64 / $ranks as f64).to_int_unchecked::<i32>() as $t }
    };
}
macro_rules! div64 {
    ($v:expr, $ranks:expr, $t:ident) => {
        $v / $ranks as $t
    };
}
int!(div8; i8, u8);
int!(div32; i32, u32);
int!(div64; i64, u64);

/// Minimum and maximum: a comparison that fails picks `b`, so the two orders differ exactly when
/// the values are equal (then they agree but for the sign of zero) or one is NaN.
macro_rules! float {
    ($($t:ident),*) => { $(
        impl Elem for $t {
            #[inline(always)]
            fn factor(f: Factor) -> Self {
                match f {
                    Factor::Float(x) => x as Self,
                    Factor::Int(x) => x as Self,
                }
            }
            #[inline(always)]
            fn fold<const OP: u8>(self, b: Self) -> Self {
                let a = self;
                match OP {
                    SUM => a + b,
                    PROD => a * b,
                    MAX => {
                        let x = if a > b { a } else { b }.to_bits() & if b > a { b } else { a }.to_bits();
                        if a.is_nan() | b.is_nan() { $t::NAN } else { $t::from_bits(x) }
                    }
                    // NaN bits survive the "or" with anything.
                    _ => $t::from_bits(if a < b { a } else { b }.to_bits() | if b < a { b } else { a }.to_bits()),
                }
            }
            #[inline(always)]
            fn div(self, ranks: u32) -> Self {
                self / ranks as $t
            }
        }
    )* };
}
float!(f32, f64);

/// A 16-bit float, folded in f32. `u32` arguments hold two of them, the halves in memory order.
pub(super) trait Half {
    /// The value in the low 16 bits of `w`; other bits are ignored.
    fn low(w: u32) -> f32;
    /// The value in the high 16 bits of `w`.
    fn high(w: u32) -> f32;
    /// Rounded to nearest, ties to even; the result is in the low 16 bits and the rest is zero.
    fn round(v: f32) -> u32;
}

/// A choice without a branch, which would keep the compiler from making vectors.
#[inline(always)]
fn select(c: bool, yes: u32, no: u32) -> u32 {
    let mask = (c as u32).wrapping_neg();
    yes & mask | no & !mask
}

pub(super) struct Bf16;

impl Half for Bf16 {
    #[inline(always)]
    fn low(w: u32) -> f32 {
        f32::from_bits(w << 16)
    }
    #[inline(always)]
    fn high(w: u32) -> f32 {
        f32::from_bits(w & 0xffff_0000)
    }
    #[inline(always)]
    fn round(v: f32) -> u32 {
        let b = v.to_bits();
        select(v.is_nan(), (b >> 16) | 0x40, b.wrapping_add(0x7fff + ((b >> 16) & 1)) >> 16)
    }
}

pub(super) struct F16;

impl Half for F16 {
    #[inline(always)]
    fn low(w: u32) -> f32 {
        // The exponent's bias differs by 112; a product also turns subnormals into normal numbers.
        let abs = (w & 0x7fff) << 13;
        let v = (f32::from_bits(abs) * f32::from_bits((127 + 112) << 23)).to_bits();
        let v = select(abs >= 0x7c00 << 13, abs | 0x7f80_0000, v);
        f32::from_bits(v | (w & 0x8000) << 16)
    }
    #[inline(always)]
    fn high(w: u32) -> f32 {
        F16::low(w >> 16)
    }
    #[inline(always)]
    fn round(v: f32) -> u32 {
        let abs = v.to_bits() & 0x7fff_ffff;
        // Normal: rebias, round on 13 bits; a carry may make it infinite, as it should.
        let normal = abs.wrapping_sub(112 << 23).wrapping_add(0xfff + ((abs >> 13) & 1)) >> 13;
        // Subnormal: adding 0.5 makes the f32 adder round at 2^-24.
        let sub = (f32::from_bits(abs) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let huge = select(abs > 0x7f80_0000, 0x7e00, 0x7c00);
        let r = select(abs < 0x3880_0000, sub, normal);
        let r = select(abs >= 0x4780_0000, huge, r);
        r | (v.to_bits() >> 16 & 0x8000)
    }
}

/// An 8-bit float, folded in f32: a sign, an exponent, and `DIGITS` bits of mantissa.
pub(super) trait Byte {
    const DIGITS: u32;
    const BIAS: u32;
    /// Least code, without sign, that is no finite number.
    const SPECIAL: u32;
    /// What larger numbers are taken for, before they are rounded.
    const MAX: f32;
    /// The exponent field moves so far up to be f32's.
    const SHIFT: u32 = 23 - Self::DIGITS;

    /// The value in the low 8 bits of `w`; other bits are ignored.
    #[inline(always)]
    fn widen(w: u32) -> f32 {
        // As `F16::low`.
        let abs = (w & 0x7f) << Self::SHIFT;
        let v = (f32::from_bits(abs) * f32::from_bits((254 - Self::BIAS) << 23)).to_bits();
        let v = select(abs >= Self::SPECIAL << Self::SHIFT, abs | 0x7f80_0000, v);
        f32::from_bits(v | (w & 0x80) << 24)
    }
    /// Rounded to nearest, ties to even; the result is in the low 8 bits and the rest is zero.
    #[inline(always)]
    fn round(v: f32) -> u32 {
        let a = v.abs();
        // Comparisons that are false let NaN pass.
        let a = if Self::MAX < a { Self::MAX } else { a };
        // The power of two below, or that of the subnormals. Adding it, moved so far up that f32's last
        // digit is the last of ours, makes the f32 adder round, and leaves the count of these digits.
        let least = f32::from_bits((128 - Self::BIAS) << 23);
        let e = f32::from_bits(a.to_bits() & 0x7f80_0000);
        let e = if e > least { e } else { least }.to_bits();
        let digits = (a + f32::from_bits(e.wrapping_add(Self::SHIFT << 23))).to_bits() & 0xff;
        // The count has the hidden bit, so it carries into the exponent as it should. NaN exceeds 0x7f.
        let r = digits + (e >> Self::SHIFT) - (least.to_bits() >> Self::SHIFT);
        (if r > 0x7f { 0x7f } else { r }) | (v.to_bits() >> 24 & 0x80)
    }
}

pub(super) struct E4m3;

impl Byte for E4m3 {
    const DIGITS: u32 = 3;
    const BIAS: u32 = 7;
    const SPECIAL: u32 = 0x7f;
    const MAX: f32 = 448.0;
}

pub(super) struct E5m2;

impl Byte for E5m2 {
    const DIGITS: u32 = 2;
    const BIAS: u32 = 15;
    const SPECIAL: u32 = 0x7c;
    /// The code after the largest number is infinity.
    const MAX: f32 = 65536.0;
}

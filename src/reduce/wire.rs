//! Shorter forms of f32 for slow networks.
//!
//! Each form is its own fixed point: what was decoded encodes to the same again, whatever the lengths of the
//! messages are (if they begin on multiples of [`BLOCK`] elements). So a value that is passed on is not
//! rounded a second time, and everyone who gets it has the same bits.
//!
//! ```text
//! Int8, a block of 16:   16 numbers of 8 bits, and the exponent of what they are multiplied by
//! a message:             all exponents, then all numbers
//! ```

use crate::types::DataType;

/// Elements that share an exponent: a cache line of f32, the unit in which buffers are cut.
pub const BLOCK: usize = 16;

/// How f32 travel between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// Rounded to nearest: an error of at most 2^-11 of a value between 6.1e-5 and 65504; larger
    /// values become infinite.
    F16,
    /// Rounded to nearest: an error of at most 2^-8 of a value.
    Bf16,
    /// Blocks of 16 with a common scale, a power of two: an error of at most 1/127 of the block's
    /// largest absolute value. A block with an infinity or a NaN becomes NaN.
    Int8,
}

impl Wire {
    pub const ALL: [Wire; 3] = [Wire::F16, Wire::Bf16, Wire::Int8];

    /// "half", "bfloat16", "int8".
    pub fn name(self) -> &'static str {
        match self {
            Wire::F16 => DataType::F16.name(),
            Wire::Bf16 => DataType::Bf16.name(),
            Wire::Int8 => DataType::I8.name(),
        }
    }

    pub fn by_name(name: &str) -> Option<Wire> {
        Wire::ALL.into_iter().find(|w| w.name() == name)
    }

    /// Bytes of a long message, divided by those of its f32.
    pub fn ratio(self) -> f64 {
        self.bytes(BLOCK) as f64 / (4 * BLOCK) as f64
    }

    /// Bytes of a message of `len` elements.
    #[inline]
    pub fn bytes(self, len: usize) -> usize {
        match self {
            Wire::F16 | Wire::Bf16 => 2 * len,
            Wire::Int8 => len + len.div_ceil(BLOCK),
        }
    }

    /// Encodes `len` elements. With a `residual` of as many elements it is added first, and becomes what
    /// was lost (0 where that is no number): the next time makes up for it.
    ///
    /// # Safety
    /// `dst` is valid for [`Wire::bytes`], `src` and a residual for `len` f32, aligned to 4 bytes; none overlap.
    pub unsafe fn encode(self, dst: *mut u8, src: *const f32, len: usize, residual: Option<*mut f32>) {
        let Some(residual) = residual else {
            // SAFETY: the caller's promise.
            return unsafe { self.narrow(dst, src, len) };
        };
        // A piece at a time: it stays in the first cache.
        const PIECE: usize = 64 * BLOCK;
        let mut sum = [0f32; PIECE];
        let mut packed = [0u8; 2 * PIECE];
        let mut back = [0f32; PIECE];
        let numbers = dst.wrapping_add(len.div_ceil(BLOCK));
        for at in (0..len).step_by(PIECE) {
            let n = PIECE.min(len - at);
            // SAFETY: the piece lies within the caller's buffers; pieces begin on blocks.
            unsafe {
                let (src, residual) = (src.add(at), residual.add(at));
                for (i, s) in sum[..n].iter_mut().enumerate() {
                    *s = *src.add(i) + *residual.add(i);
                }
                self.narrow(packed.as_mut_ptr(), sum.as_ptr(), n);
                self.decode(back.as_mut_ptr(), packed.as_ptr(), n);
                for i in 0..n {
                    let lost = sum[i] - back[i];
                    *residual.add(i) = if lost.is_finite() { lost } else { 0.0 };
                }
                match self {
                    Wire::Int8 => {
                        let blocks = n.div_ceil(BLOCK);
                        packed.as_ptr().copy_to_nonoverlapping(dst.add(at / BLOCK), blocks);
                        packed.as_ptr().add(blocks).copy_to_nonoverlapping(numbers.add(at), n);
                    }
                    _ => packed.as_ptr().copy_to_nonoverlapping(dst.add(2 * at), 2 * n),
                }
            }
        }
    }

    /// # Safety
    /// As `encode`.
    unsafe fn narrow(self, dst: *mut u8, src: *const f32, len: usize) {
        let which = match self {
            Wire::F16 => 0,
            Wire::Bf16 => 2,
            Wire::Int8 => 4,
        };
        // SAFETY: the caller's promise; the table is of this CPU.
        unsafe { (super::chosen().conversions[which])(dst, src.cast(), len) }
    }

    /// Decodes a message of `len` elements.
    ///
    /// # Safety
    /// `src` is valid for [`Wire::bytes`], `dst` for `len` f32, aligned to 4 bytes; they do not overlap.
    pub unsafe fn decode(self, dst: *mut f32, src: *const u8, len: usize) {
        let which = match self {
            Wire::F16 => 1,
            Wire::Bf16 => 3,
            Wire::Int8 => 5,
        };
        // SAFETY: the caller's promise; the table is of this CPU.
        unsafe { (super::chosen().conversions[which])(dst.cast(), src, len) }
    }
}

/// The exponent of a block that has a value which is no number.
const NONE: u8 = 255;
/// Added to a small number it leaves the number, rounded to nearest even, in the low bits.
const ROUND: f32 = 12_582_912.0;

/// The exponent of a block's scale, as f32 has it: the least scale that brings `largest` to 127 at most. 0:
/// the scale is 0.
#[inline(always)]
fn exponent(largest: u32) -> u8 {
    let (e, fraction) = ((largest >> 23) as i32, largest & 0x7f_ffff);
    match e {
        255 => NONE,
        _ if largest == 0 => 0,
        // 127 is 1.984375 * 64.
        _ => (e - 6 + i32::from(fraction > 0x7e_0000)).max(1) as u8,
    }
}

/// Written for the compiler to make vectors of; to be inlined where an instruction set is enabled.
///
/// # Safety
/// As [`Wire::encode`].
#[inline(always)]
pub(super) unsafe fn narrow8(dst: *mut u8, src: *const u8, len: usize) {
    let (blocks, src) = (len.div_ceil(BLOCK), src.cast::<f32>());
    for b in 0..blocks {
        let n = BLOCK.min(len - b * BLOCK);
        let mut x = [0f32; BLOCK];
        // SAFETY: the block lies within the buffers.
        unsafe {
            let from = src.add(b * BLOCK);
            if n == BLOCK {
                x = from.cast::<[f32; BLOCK]>().read_unaligned();
            } else {
                from.copy_to_nonoverlapping(x.as_mut_ptr(), n);
            }
            let mut bits = [0u32; BLOCK];
            for i in 0..BLOCK {
                bits[i] = x[i].to_bits() & 0x7fff_ffff;
            }
            let mut largest = 0;
            for b in bits {
                largest = largest.max(b);
            }
            let e = exponent(largest);
            dst.add(b).write(e);
            // For 0 any number will do: all values are 0. For NONE nothing matters.
            let inverse = f32::from_bits((254 - u32::from(e).min(253)) << 23);
            let mut q = [0u8; BLOCK];
            for i in 0..BLOCK {
                q[i] = (x[i] * inverse + ROUND).to_bits() as u8;
            }
            let to = dst.add(blocks + b * BLOCK);
            if n == BLOCK {
                to.cast::<[u8; BLOCK]>().write_unaligned(q);
            } else {
                q.as_ptr().copy_to_nonoverlapping(to, n);
            }
        }
    }
}

/// # Safety
/// As [`Wire::decode`].
#[inline(always)]
pub(super) unsafe fn widen8(dst: *mut u8, src: *const u8, len: usize) {
    let (blocks, dst) = (len.div_ceil(BLOCK), dst.cast::<f32>());
    for b in 0..blocks {
        let n = BLOCK.min(len - b * BLOCK);
        // SAFETY: the block lies within the buffers.
        unsafe {
            let e = src.add(b).read();
            let scale = if e == NONE { f32::NAN } else { f32::from_bits(u32::from(e) << 23) };
            let from = src.add(blocks + b * BLOCK).cast::<i8>();
            let mut q = [0i8; BLOCK];
            if n == BLOCK {
                q = from.cast::<[i8; BLOCK]>().read_unaligned();
            } else {
                from.copy_to_nonoverlapping(q.as_mut_ptr(), n);
            }
            let mut x = [0f32; BLOCK];
            for i in 0..BLOCK {
                x[i] = f32::from(q[i]) * scale;
            }
            let to = dst.add(b * BLOCK);
            if n == BLOCK {
                to.cast::<[f32; BLOCK]>().write_unaligned(x);
            } else {
                x.as_ptr().copy_to_nonoverlapping(to, n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of all sizes, and blocks of zeros, of tiny ones, and with one that is no number.
    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed | 1;
        let mut next = || {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            s
        };
        (0..n)
            .map(|i| {
                let unit = next() as f32 / u32::MAX as f32 * 2.0 - 1.0;
                match i / BLOCK % 5 {
                    0 => unit,
                    1 => unit * 2f32.powi((next() % 30) as i32 - 15),
                    2 => 0.0,
                    3 => f32::from_bits(next() % 0x0100_0000),
                    _ => (next() % 255) as f32 - 127.0,
                }
            })
            .collect()
    }

    fn round(wire: Wire, x: &[f32], residual: Option<&mut [f32]>) -> (Vec<u8>, Vec<f32>) {
        let mut packed = vec![0xa5; wire.bytes(x.len()) + 1];
        let mut back = vec![0f32; x.len()];
        // SAFETY: all have the lengths asked for.
        unsafe {
            wire.encode(packed.as_mut_ptr(), x.as_ptr(), x.len(), residual.map(<[f32]>::as_mut_ptr));
            assert_eq!(packed.pop(), Some(0xa5));
            wire.decode(back.as_mut_ptr(), packed.as_ptr(), x.len());
        }
        (packed, back)
    }

    #[test]
    fn errors_are_within_the_bounds() {
        for wire in Wire::ALL {
            for n in [1, 15, 16, 17, 100, 5000] {
                let x = values(n, n as u32);
                let (_, back) = round(wire, &x, None);
                for (block, got) in x.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                    let most = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                    for (x, y) in block.iter().zip(got) {
                        let bound = match wire {
                            Wire::F16 if x.abs() < 6.2e-5 => 2f32.powi(-25),
                            Wire::F16 => x.abs() * 2f32.powi(-11),
                            Wire::Bf16 => x.abs() * 2f32.powi(-8) + f32::from_bits(1 << 15),
                            // The least scale is 2^-126.
                            Wire::Int8 => (most / 127.0).max(2f32.powi(-127)),
                        };
                        assert!((x - y).abs() <= bound, "{wire:?} {x} {y} in {block:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_decoded_encodes_to_itself_at_any_length() {
        for wire in Wire::ALL {
            let x = values(1000, 9);
            let (_, once) = round(wire, &x, None);
            for (from, to) in [(0, 1000), (16, 1000), (160, 333), (992, 1000)] {
                let (_, twice) = round(wire, &once[from..to], None);
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&twice), bits(&once[from..to]), "{wire:?} {from}..{to}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_not_hidden() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(64, 3);
            x[20] = bad;
            for wire in Wire::ALL {
                let mut residual = vec![0f32; 64];
                let (_, back) = round(wire, &x, Some(&mut residual));
                assert!(!back[20].is_finite(), "{wire:?} {bad}");
                assert!(back[40].is_finite() && residual.iter().all(|r| r.is_finite()));
            }
        }
    }

    #[test]
    fn the_residual_makes_up_for_what_was_lost() {
        for wire in Wire::ALL {
            // The same values again and again: the mean of what arrives comes near them.
            let n = 2000;
            let x: Vec<f32> = values(n, 5).iter().map(|v| v.clamp(-100.0, 100.0)).collect();
            let (mut residual, mut sum) = (vec![0f32; n], vec![0f64; n]);
            const STEPS: usize = 64;
            for _ in 0..STEPS {
                let (_, back) = round(wire, &x, Some(&mut residual));
                back.iter().zip(&mut sum).for_each(|(b, s)| *s += f64::from(*b));
            }
            for (block, sums) in x.chunks(BLOCK).zip(sum.chunks(BLOCK)) {
                let most = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (x, s) in block.iter().zip(sums) {
                    let off = (s / STEPS as f64 - f64::from(*x)).abs();
                    // The sum is off by what is left in the residual, and by the rounding of additions.
                    let bound = f64::from(most) * (1.0 / 127.0 + 1e-4) / STEPS as f64 * 2.0 + 1e-7;
                    assert!(off <= bound, "{wire:?} {x}: off by {off}, bound {bound}");
                }
            }
        }
    }
}

//! From an image as it is stored to the numbers that a network sees.

use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Luma};

use graccl::{Error, Result};

use super::Image;
use crate::random::Random;

/// What happens to an image: the middle of a very long one is taken; it is scaled so that it just covers the size that is wanted, a window of that size is cut
/// out, it may be mirrored, and its bytes become numbers with about mean 0 and deviation 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Augment {
    /// The window lies anywhere in the image and may stick out by this many pixels, where the image's edge is
    /// repeated. `None`: the window is in the middle.
    pub crop: Option<usize>,
    /// Every second image is mirrored, left to right. Not for digits.
    pub flip: bool,
    /// Of each channel, where black is 0 and white is 1.
    pub mean: Vec<f32>,
    pub deviation: Vec<f32>,
}

impl Augment {
    /// Only what every image needs. Mean and deviation are those of MNIST for one channel, and for three those
    /// that are usual for ImageNet.
    pub fn none(channels: usize) -> Augment {
        let (mean, deviation) = match channels {
            3 => (vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]),
            n => (vec![0.1307; n], vec![0.3081; n]),
        };
        Augment { crop: None, flip: false, mean, deviation }
    }

    /// Random windows that stick out by at most `pad` pixels.
    pub fn crop(mut self, pad: usize) -> Augment {
        self.crop = Some(pad);
        self
    }

    /// Mirrors every second image.
    pub fn flip(mut self) -> Augment {
        self.flip = true;
        self
    }

    /// Writes the image to `out`, as planes of `size` (height, width).
    pub(super) fn apply(
        &self,
        image: Image,
        size: (usize, usize),
        random: &mut Random,
        out: &mut [f32],
    ) -> Result<()> {
        let [channels, h, w] = image.shape;
        if channels != self.mean.len() || h * w == 0 || image.pixels.len() != channels * h * w {
            let what = format!(
                "an image of {:?} with {} bytes, where {} channels are expected",
                image.shape,
                image.pixels.len(),
                self.mean.len()
            );
            return Err(Error::argument(what).hint("all images of a dataset need the same channels"));
        }
        let image = cover(middle(image, size), size);
        let [_, h, w] = image.shape;
        let top = self.window(h - size.0, random);
        let left = self.window(w - size.1, random);
        let flip = self.flip && random.below(2) == 1;
        let columns: Vec<usize> = (0..size.1)
            .map(|x| if flip { size.1 - 1 - x } else { x })
            .map(|x| clamp(left + x as isize, w))
            .collect();
        for (c, out) in out.chunks_exact_mut(size.0 * size.1).enumerate() {
            let number: [f32; 256] =
                std::array::from_fn(|v| (v as f32 / 255.0 - self.mean[c]) / self.deviation[c]);
            let plane = &image.pixels[c * h * w..][..h * w];
            for (y, out) in out.chunks_exact_mut(size.1).enumerate() {
                let row = &plane[clamp(top + y as isize, h) * w..][..w];
                out.iter_mut().zip(&columns).for_each(|(o, &x)| *o = number[row[x] as usize]);
            }
        }
        Ok(())
    }

    /// Where the window begins, along a side that is `spare` longer.
    fn window(&self, spare: usize, random: &mut Random) -> isize {
        match self.crop {
            Some(pad) => random.below(spare + 2 * pad + 1) as isize - pad as isize,
            None => (spare / 2) as isize,
        }
    }
}

fn clamp(at: isize, length: usize) -> usize {
    at.clamp(0, length as isize - 1) as usize
}

/// How many windows long an image may be: of a longer one, the middle is taken. Scaled, it would fill the memory.
const LONGEST: usize = 16;

/// The middle of an image that is much longer, or much higher, than the window would have it.
fn middle(image: Image, size: (usize, usize)) -> Image {
    let [channels, h, w] = image.shape;
    let most = |other: usize, by: (usize, usize)| (LONGEST * other * by.0).div_ceil(by.1);
    let (height, width) = (h.min(most(w, size)), w.min(most(h, (size.1, size.0))));
    if (height, width) == (h, w) {
        return image;
    }
    let (top, left) = ((h - height) / 2, (w - width) / 2);
    let rows =
        image.pixels.chunks_exact(h * w).flat_map(|plane| plane.chunks_exact(w).skip(top).take(height));
    let pixels = rows.flat_map(|row| &row[left..left + width]).copied().collect();
    Image { pixels, shape: [channels, height, width] }
}

/// Scales an image so that it is just as large as `size` along one side, and as large or larger along the other.
fn cover(image: Image, size: (usize, usize)) -> Image {
    let [channels, h, w] = image.shape;
    let scaled = |side: usize, by: (usize, usize)| (side * by.0).div_ceil(by.1);
    // The side that needs more enlarging decides: size.0 / h >= size.1 / w.
    let (height, width) = if size.0 * w >= size.1 * h {
        (size.0, scaled(w, (size.0, h)))
    } else {
        (scaled(h, (size.1, w)), size.1)
    };
    if (height, width) == (h, w) {
        return image;
    }
    let mut pixels = Vec::with_capacity(channels * height * width);
    for plane in image.pixels.chunks_exact(h * w) {
        let plane: ImageBuffer<Luma<u8>, &[u8]> =
            ImageBuffer::from_raw(w as u32, h as u32, plane).expect("a plane has h * w pixels");
        pixels.extend(resize(&plane, width as u32, height as u32, FilterType::Triangle).into_raw());
    }
    Image { pixels, shape: [channels, height, width] }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers are the bytes.
    fn plain(channels: usize) -> Augment {
        Augment { crop: None, flip: false, mean: vec![0.0; channels], deviation: vec![1.0 / 255.0; channels] }
    }

    fn apply(a: &Augment, image: &Image, size: (usize, usize), seed: u64) -> Vec<u8> {
        let mut out = vec![0.0; image.shape[0] * size.0 * size.1];
        a.apply(image.clone(), size, &mut Random::new(seed, &[]), &mut out).unwrap();
        out.iter().map(|v| v.round() as u8).collect()
    }

    #[test]
    fn an_image_of_the_right_size_stays() {
        let image = Image { pixels: (0..12).collect(), shape: [2, 2, 3] };
        assert_eq!(apply(&plain(2), &image, (2, 3), 0), image.pixels);
    }

    #[test]
    fn mean_and_deviation() {
        let image = Image { pixels: vec![0, 255, 51], shape: [3, 1, 1] };
        let mut out = [0.0; 3];
        let a = Augment { mean: vec![0.5, 0.5, 0.1], deviation: vec![0.5, 0.25, 0.1], ..plain(3) };
        a.apply(image, (1, 1), &mut Random::new(0, &[]), &mut out).unwrap();
        assert_eq!(out, [-1.0, 2.0, 1.0]);
    }

    #[test]
    fn every_window_and_both_sides_are_drawn() {
        // One row of 4; windows of 2 that stick out by 1: the edge is repeated.
        let image = Image { pixels: vec![1, 2, 3, 4], shape: [1, 1, 4] };
        let middle = Image { pixels: vec![1, 2, 3, 4, 5, 6], shape: [1, 1, 6] };
        assert_eq!(apply(&plain(1), &middle, (1, 2), 0), [3, 4]);
        let a = plain(1).crop(1).flip();
        let mut seen: Vec<Vec<u8>> = (0..300).map(|seed| apply(&a, &image, (1, 2), seed)).collect();
        seen.sort();
        seen.dedup();
        let windows: [[u8; 2]; 8] = [[1, 1], [1, 2], [2, 1], [2, 3], [3, 2], [3, 4], [4, 3], [4, 4]];
        assert_eq!(seen, windows);
    }

    #[test]
    fn scaling_covers_the_window() {
        let gray = |h: usize, w: usize| Image { pixels: vec![77; h * w], shape: [1, h, w] };
        for (from, size, to) in [
            ((10, 20), (5, 5), (5, 10)),
            ((20, 10), (5, 5), (10, 5)),
            ((3, 5), (7, 7), (7, 12)),
            ((1, 1), (4, 2), (4, 4)),
            ((375, 500), (224, 224), (224, 299)),
        ] {
            let image = cover(gray(from.0, from.1), size);
            assert_eq!(image.shape, [1, to.0, to.1]);
            assert!(image.pixels.iter().all(|&p| p == 77));
        }
        // A picture that gets brighter from left to right still does, and is averaged rather than sampled.
        let ramp = Image { pixels: (0..64).map(|x| x * 4).collect(), shape: [1, 1, 64] };
        let small = apply(&plain(1), &Image { pixels: ramp.pixels.repeat(8), shape: [1, 8, 64] }, (1, 8), 0);
        for (x, &v) in small.iter().enumerate() {
            assert!(v.abs_diff((14 + 32 * x) as u8) <= 6, "{small:?}");
        }
    }

    /// The longest images that are decoded, scaled as they are, would have 800 MB in each channel.
    #[test]
    fn of_a_very_long_image_the_middle_is_taken() {
        let lines = |h: usize, w: usize| Image {
            pixels: (0..h * w).map(|i| (i >> 6) as u8).collect(),
            shape: [1, h, w],
        };
        for (from, size) in [
            ((1, 16384), (224, 224)),
            ((16384, 1), (224, 224)),
            ((1, 16384), (300, 20)),
            ((7, 9000), (32, 64)),
        ] {
            let image = cover(middle(lines(from.0, from.1), size), size);
            let [_, h, w] = image.shape;
            assert!(
                h >= size.0 && w >= size.1 && h * w <= 17 * size.0 * size.1 + 300 * 300,
                "{from:?}: {h} x {w}"
            );
        }
        // 64 columns of 16384, around the middle of it.
        let image = middle(lines(1, 16384), (10, 40));
        assert_eq!(
            (image.shape, image.pixels),
            ([1, 1, 64], vec![127; 32].into_iter().chain([128; 32]).collect())
        );
        let high = middle(lines(16384, 1), (40, 10));
        assert_eq!(high.shape, [1, 64, 1]);
        let usual = lines(100, 1500);
        assert_eq!(middle(usual.clone(), (32, 32)), usual);
    }

    #[test]
    fn an_image_of_other_channels_is_refused() {
        let image = Image { pixels: vec![0; 4], shape: [1, 2, 2] };
        let mut out = [0.0; 12];
        assert!(plain(3).apply(image, (2, 2), &mut Random::new(0, &[]), &mut out).is_err());
    }
}

//! Labelled images in memory, and who trains on which of them when.

use std::path::Path;

use graccl::{Code, Error, Result};

use crate::random::Random;

/// What a rank computes on at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Images, channels, rows, columns; mean about 0, deviation about 1.
    pub images: Vec<f32>,
    pub labels: Vec<u32>,
    /// Channels, height, width.
    pub shape: [usize; 3],
}

/// Images of one size.
#[derive(Clone, Debug)]
pub struct Images {
    pub shape: [usize; 3],
    pub classes: usize,
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

/// Mean and deviation of MNIST's training images, of 0..255.
const MEAN: f32 = 33.32;
const DEVIATION: f32 = 78.57;

impl Images {
    /// MNIST's files in `dir`: `train` or `t10k`.
    ///
    /// # Errors
    /// The system's, `InvalidArgument` for files that are not MNIST's.
    pub fn mnist(dir: &Path, which: &str) -> Result<Images> {
        let (sizes, pixels) = idx(&dir.join(format!("{which}-images-idx3-ubyte")), 3)?;
        let (_, labels) = idx(&dir.join(format!("{which}-labels-idx1-ubyte")), 1)?;
        if sizes[0] != labels.len() || labels.iter().any(|&l| l > 9) {
            return Err(Error::argument("images and labels do not match").who(dir.display().to_string()));
        }
        Ok(Images { shape: [1, sizes[1], sizes[2]], classes: 10, pixels, labels })
    }

    /// The first `n` images.
    pub fn first(mut self, n: usize) -> Images {
        self.labels.truncate(n);
        self.pixels.truncate(n * self.shape.iter().product::<usize>());
        self
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// These images, in this order.
    pub fn batch(&self, indices: &[u32]) -> Batch {
        let size: usize = self.shape.iter().product();
        let mut images = Vec::with_capacity(indices.len() * size);
        for &i in indices {
            let pixels = &self.pixels[i as usize * size..][..size];
            images.extend(pixels.iter().map(|&p| (f32::from(p) - MEAN) / DEVIATION));
        }
        let labels = indices.iter().map(|&i| u32::from(self.labels[i as usize])).collect();
        Batch { images, labels, shape: self.shape }
    }
}

/// The order of an epoch: the same on all ranks, and for any number of ranks.
pub fn order(seed: u64, epoch: usize, images: usize) -> Vec<u32> {
    Random::new(seed ^ (epoch as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95)).permutation(images)
}

/// A rank's part of global batch `step` of an epoch.
pub fn share(order: &[u32], step: usize, batch: usize, rank: usize, ranks: usize) -> &[u32] {
    let own = batch / ranks;
    &order[step * batch + rank * own..][..own]
}

/// A file of bytes in MNIST's format: its sizes, and the bytes.
fn idx(path: &Path, dimensions: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(path).map_err(|e| {
        Error::io(format!("cannot read {}", path.display()), &e).hint("give MNIST's folder with --data")
    })?;
    let bad =
        || Error::new(Code::InvalidArgument, "not an IDX file of bytes").who(path.display().to_string());
    let word = |i: usize| Some(u32::from_be_bytes(bytes.get(4 * i..4 * i + 4)?.try_into().ok()?) as usize);
    if word(0) != Some(0x800 + dimensions) {
        return Err(bad());
    }
    let sizes: Vec<usize> = (1..=dimensions).map(word).collect::<Option<_>>().ok_or_else(bad)?;
    let total = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).ok_or_else(bad)?;
    let data = &bytes[4 + 4 * dimensions..];
    if data.len() != total {
        return Err(bad().hint("the file is cut short, or too long"));
    }
    Ok((sizes, data.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_any_number_of_ranks_are_the_same_batch() {
        let order = order(7, 3, 100);
        let whole = share(&order, 2, 24, 0, 1);
        for ranks in [2, 3, 4] {
            let parts: Vec<u32> = (0..ranks).flat_map(|r| share(&order, 2, 24, r, ranks).to_vec()).collect();
            assert_eq!(parts, whole);
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<u32>>());
        assert_ne!(order, super::order(7, 4, 100));
    }
}

//! Random numbers that depend on nothing but what they are for, and are the same everywhere.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// What streams of a run's seed are for: each begins its path with one of these.
pub const ORDER: u64 = 0;
pub const IMAGE: u64 = 1;
pub const WEIGHTS: u64 = 2;

/// A stream of numbers.
pub struct Random(Pcg64Mcg);

impl Random {
    /// The stream of `seed` and `path`, such as an epoch and the number of an image in it.
    pub fn new(seed: u64, path: &[u64]) -> Random {
        // Each step mixes the number in through a whole generator, so that neighbours have nothing in common.
        let mix = |seed, &p: &u64| Pcg64Mcg::seed_from_u64(seed).next_u64() ^ p;
        Random(Pcg64Mcg::seed_from_u64(path.iter().fold(seed, mix)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number less than `n`, which is not 0. The bias is below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// The numbers below `n` in random order.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }

    /// Uniform in (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Gaussian with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let (a, b) = (self.unit(), self.unit());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, path: &[u64]| -> Vec<usize> {
            let mut r = Random::new(seed, path);
            (0..8).map(|_| r.below(1000)).collect()
        };
        assert_eq!(draw(1, &[2, 3]), draw(1, &[2, 3]));
        let all = [draw(1, &[2, 3]), draw(1, &[3, 2]), draw(2, &[2, 3]), draw(1, &[2, 4]), draw(1, &[2])];
        for i in 0..all.len() {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
    }

    #[test]
    fn an_order_has_every_number_and_every_place_is_as_likely() {
        let mut firsts = [0; 5];
        for seed in 0..5000 {
            let mut order = Random::new(seed, &[]).order(5);
            firsts[order[0]] += 1;
            order.sort();
            assert_eq!(order, [0, 1, 2, 3, 4]);
        }
        // Expected 1000, standard deviation 28.
        assert!(firsts.iter().all(|n| (860..1140).contains(n)), "{firsts:?}");
    }

    #[test]
    fn normal_numbers_have_their_mean_and_deviation() {
        let mut random = Random::new(1, &[]);
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|_| f64::from(random.normal())).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        // Standard deviations 0.003 and 0.0045.
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.025, "{mean} {variance}");
    }
}

//! Random numbers that depend on nothing but what they are for.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// A stream of numbers.
pub struct Random(Pcg64Mcg);

impl Random {
    /// The stream of `seed` and `path`, such as an epoch and the number of an image in it.
    pub fn new(seed: u64, path: &[u64]) -> Random {
        // Each step mixes the number in through a whole generator, so that neighbours have nothing in common.
        let mix = |seed, &p: &u64| Pcg64Mcg::seed_from_u64(seed).next_u64() ^ p;
        Random(Pcg64Mcg::seed_from_u64(path.iter().fold(seed, mix)))
    }

    /// A number less than `n`, which is not 0. The bias is below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// The numbers below `n` in random order.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
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
}

//! Prices of collectives.

use crate::reduce::Wire;
use crate::{Error, Result};

/// What one collective costs, and how it would be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    /// From the call to the end on the last rank.
    pub ns: f64,
    pub algorithm: &'static str,
    /// Tiles worked on at a time, and the largest message to aim at, bytes. 0: not said.
    pub ways: u32,
    pub message: u32,
    /// Messages between hosts are packed.
    pub wire: Option<Wire>,
}

impl Price {
    /// Of which only this is known.
    pub const fn new(ns: f64, algorithm: &'static str) -> Price {
        Price { ns, algorithm, ways: 0, message: 0, wire: None }
    }
}

/// Prices of one collective on one machine and layout: the cheapest choice for every size.
pub trait Prices {
    /// For a call of `bytes` (of the larger of its buffers).
    fn price(&self, bytes: u64) -> Price;

    /// The times alone, for many sizes, into as many places: planners ask for a hundred thousand.
    fn times(&self, bytes: &[u64], ns: &mut [f64]) {
        ns.iter_mut().zip(bytes).for_each(|(t, b)| *t = self.price(*b).ns);
    }
}

impl<P: Prices + ?Sized> Prices for &P {
    fn price(&self, bytes: u64) -> Price {
        (**self).price(bytes)
    }

    fn times(&self, bytes: &[u64], ns: &mut [f64]) {
        (**self).times(bytes, ns)
    }
}

/// A closed form, `a + b * bytes`.
///
/// Symbols below: `n` ranks, `alpha` ns per message, `beta` ns per byte sent, `gamma` ns per byte folded.
/// The forms are those of Thakur, Rabenseifner and Gropp, "Optimization of collective communication
/// operations in MPICH", 2005; sizes are taken to divide evenly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    pub algorithm: &'static str,
    /// ns.
    pub a: f64,
    /// ns per byte.
    pub b: f64,
    /// As in [`Price`].
    pub wire: Option<Wire>,
}

/// Steps of a doubling, log2(n) rounded up.
fn log2(n: u32) -> f64 {
    f64::from(n.max(1).next_power_of_two().trailing_zeros())
}

impl Linear {
    /// A measured or given line.
    pub fn new(algorithm: &'static str, a: f64, b: f64) -> Linear {
        Linear { algorithm, a, b, wire: None }
    }

    /// Ring allreduce: `2 (n - 1)` messages of `bytes / n`, half of them folded.
    pub fn ring(n: u32, alpha: f64, beta: f64, gamma: f64) -> Linear {
        let part = (f64::from(n) - 1.0) / f64::from(n);
        let a = 2.0 * (f64::from(n) - 1.0) * alpha;
        Linear::new("ring", a, part * (2.0 * beta + gamma))
    }

    /// Direct allreduce: reduce-scatter, then allgather, each with one message to every other rank, sent one
    /// after the other.
    pub fn direct(n: u32, alpha: f64, beta: f64, gamma: f64) -> Linear {
        let part = (f64::from(n) - 1.0) / f64::from(n);
        Linear::new("direct", if n > 1 { 2.0 * alpha } else { 0.0 }, part * (2.0 * beta + gamma))
    }

    /// Recursive doubling: log2(n) messages of all the bytes. Where n is no power of two, two steps more, which
    /// is the most that it may take: they overlap in part.
    pub fn doubling(n: u32, alpha: f64, beta: f64, gamma: f64) -> Linear {
        let (steps, extra) = if n.is_power_of_two() { (log2(n), 0.0) } else { (log2(n) - 1.0, 2.0) };
        let sent = steps + extra;
        let folds = steps + extra / 2.0;
        Linear::new("recursive_doubling", sent * alpha, sent * beta + folds * gamma)
    }

    /// Recursive halving and doubling: `2 log2(n)` messages, `2 (n - 1) / n` of the bytes. For powers of
    /// two.
    pub fn halving_doubling(n: u32, alpha: f64, beta: f64, gamma: f64) -> Linear {
        let part = (f64::from(n) - 1.0) / f64::from(n);
        Linear::new("halving_doubling", 2.0 * log2(n) * alpha, part * (2.0 * beta + gamma))
    }

    /// Two levels: reduce-scatter among the `k` ranks of a host, allreduce across `hosts` hosts on `1 / k` of
    /// the bytes, allgather in the host. `inside` and `across` are (alpha, beta) of a rank; the
    /// stages inside are direct (one alpha each), that across is a ring or direct, as is cheaper in alphas:
    /// here the ring's `2 (hosts - 1)`.
    pub fn two_level(k: u32, hosts: u32, inside: (f64, f64), across: (f64, f64), gamma: f64) -> Linear {
        let (kf, hf) = (f64::from(k), f64::from(hosts));
        let part = |m: f64| (m - 1.0) / m;
        let alphas = if k > 1 { 2.0 * inside.0 } else { 0.0 } + 2.0 * (hf - 1.0) * across.0;
        let b = part(kf) * (2.0 * inside.1 + gamma) + part(hf) / kf * (2.0 * across.1 + gamma);
        Linear::new("hier_2d", alphas, b)
    }
}

impl Prices for Linear {
    fn price(&self, bytes: u64) -> Price {
        let price = Price::new(self.a + self.b * bytes as f64, self.algorithm);
        Price { wire: self.wire, ..price }
    }

    fn times(&self, bytes: &[u64], ns: &mut [f64]) {
        ns.iter_mut().zip(bytes).for_each(|(t, b)| *t = self.a + self.b * *b as f64);
    }
}

/// The cheapest of several lists.
pub struct Cheapest<P>(pub Vec<P>);

impl<P: Prices> Prices for Cheapest<P> {
    /// Of none it is infinite.
    fn price(&self, bytes: u64) -> Price {
        let none = Price::new(f64::INFINITY, "");
        let prices = self.0.iter().map(|p| p.price(bytes));
        prices.fold(none, |best, p| if p.ns < best.ns { p } else { best })
    }

    fn times(&self, bytes: &[u64], ns: &mut [f64]) {
        ns.fill(f64::INFINITY);
        let mut one = vec![0.0; ns.len()];
        for p in &self.0 {
            p.times(bytes, &mut one);
            ns.iter_mut().zip(&one).for_each(|(t, o)| *t = t.min(*o));
        }
    }
}

/// Prices at some sizes: simulated or measured ones. Times are straight lines between them; the way to do it is
/// that of the next larger size.
#[derive(Clone, Debug, PartialEq)]
pub struct PriceList(Vec<(u64, Price)>);

impl PriceList {
    /// At least one, bytes strictly rising, times finite and not negative; `InvalidArgument` otherwise.
    pub fn new(prices: Vec<(u64, Price)>) -> Result<PriceList> {
        let wrong = |what: String| {
            Err(Error::argument(what)
                .who("a price list")
                .hint("give sizes in rising order, with times that are finite and not negative"))
        };
        if prices.is_empty() {
            return wrong("is empty".into());
        }
        if let Some(w) = prices.windows(2).find(|w| w[0].0 >= w[1].0) {
            return wrong(format!("{} bytes follow {}", w[1].0, w[0].0));
        }
        match prices.iter().find(|(_, p)| !(p.ns.is_finite() && p.ns >= 0.0)) {
            Some((bytes, p)) => wrong(format!("{bytes} bytes take {} ns", p.ns)),
            None => Ok(PriceList(prices)),
        }
    }
}

/// Sizes `from..=to`, in which the time is `ns + slope * (bytes - at)`.
struct Piece<'a> {
    from: u64,
    to: u64,
    at: f64,
    ns: f64,
    slope: f64,
    price: &'a Price,
}

impl Piece<'_> {
    fn time(&self, bytes: u64) -> f64 {
        self.ns + self.slope * (bytes as f64 - self.at)
    }
}

impl PriceList {
    fn piece(&self, bytes: u64) -> Piece<'_> {
        let i = self.0.partition_point(|(b, _)| *b < bytes);
        let slope = |i: usize| {
            let ((b0, p0), (b1, p1)) = (&self.0[i - 1], &self.0[i]);
            (p1.ns - p0.ns) / (b1 - b0) as f64
        };
        let len = self.0.len();
        let (anchor, slope, from) = match i {
            0 => (0, 0.0, 0),
            _ if i < len => (i - 1, slope(i), self.0[i - 1].0 + 1),
            _ if len == 1 => (0, self.0[0].1.ns / (self.0[0].0 as f64).max(1.0), self.0[0].0 + 1),
            _ => (len - 1, slope(len - 1).max(0.0), self.0[len - 1].0 + 1),
        };
        let (at, ns) = (self.0[anchor].0 as f64, self.0[anchor].1.ns);
        let to = self.0.get(i).map_or(u64::MAX, |(b, _)| *b);
        Piece { from, to, at, ns, slope, price: &self.0[i.min(len - 1)].1 }
    }
}

impl Prices for PriceList {
    /// Below the first size the first price; beyond the last, on with the last slope (not falling), or, with one
    /// size only, in proportion.
    fn price(&self, bytes: u64) -> Price {
        let piece = self.piece(bytes);
        Price { ns: piece.time(bytes), ..*piece.price }
    }

    fn times(&self, bytes: &[u64], ns: &mut [f64]) {
        // Planners ask for sizes in order: mostly the next one is in the same piece.
        let mut piece = self.piece(0);
        for (t, &b) in ns.iter_mut().zip(bytes) {
            if b < piece.from || b > piece.to {
                piece = self.piece(b);
            }
            *t = piece.time(b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(ns: f64, algorithm: &'static str) -> Price {
        Price { ways: 1, message: 65536, ..Price::new(ns, algorithm) }
    }

    #[test]
    fn closed_forms() {
        // 4 ranks, alpha 10, beta 1, gamma 0.5, 100 bytes: by hand.
        assert_eq!(Linear::ring(4, 10.0, 1.0, 0.5).price(100).ns, 60.0 + 150.0 + 37.5);
        assert_eq!(Linear::direct(4, 10.0, 1.0, 0.5).price(100).ns, 20.0 + 150.0 + 37.5);
        assert_eq!(Linear::doubling(4, 10.0, 1.0, 0.5).price(100).ns, 20.0 + 200.0 + 100.0);
        assert_eq!(Linear::doubling(5, 10.0, 1.0, 0.5).price(100).ns, 40.0 + 400.0 + 150.0);
        assert_eq!(Linear::halving_doubling(4, 10.0, 1.0, 0.5).price(100).ns, 40.0 + 150.0 + 37.5);
        let hier = Linear::two_level(4, 2, (1.0, 0.1), (10.0, 1.0), 0.0);
        assert_eq!(hier.price(100).ns, 2.0 + 20.0 + 15.0 + 25.0);
        assert_eq!(Linear::ring(1, 10.0, 1.0, 0.5).price(100).ns, 0.0);
    }

    #[test]
    fn the_cheapest_wins() {
        let two = Cheapest(vec![Linear::new("slow start", 100.0, 1.0), Linear::new("quick", 10.0, 2.0)]);
        assert_eq!(two.price(10).algorithm, "quick");
        assert_eq!(two.price(1000).algorithm, "slow start");
        assert!(Cheapest::<Linear>(Vec::new()).price(1).ns.is_infinite());
    }

    #[test]
    fn a_list_is_straight_between_its_sizes() {
        let list = PriceList::new(vec![(100, price(10.0, "a")), (200, price(30.0, "b"))]).unwrap();
        let at = |b| (list.price(b).ns, list.price(b).algorithm);
        assert_eq!((at(0), at(100), at(150)), ((10.0, "a"), (10.0, "a"), (20.0, "b")));
        assert_eq!((at(200), at(300)), ((30.0, "b"), (50.0, "b")));
        let one = PriceList::new(vec![(100, price(10.0, "a"))]).unwrap();
        assert_eq!((one.price(50).ns, one.price(1000).ns), (10.0, 100.0));
        let sizes = [0, 99, 100, 101, 150, 200, 201, 300, 7, 150];
        let mut times = [0.0; 10];
        list.times(&sizes, &mut times);
        assert_eq!(times, sizes.map(|b| list.price(b).ns));
        assert!(PriceList::new(Vec::new()).is_err());
        assert!(PriceList::new(vec![(2, price(1.0, "a")), (1, price(1.0, "a"))]).is_err());
        assert!(PriceList::new(vec![(2, price(f64::NAN, "a"))]).is_err());
    }
}

//! Time as a function of size.

use crate::{Error, Result};

/// Nanoseconds as a function of bytes: straight between points, the first value below the first point, and
/// on with the last slope beyond the last.
///
/// One line `alpha + beta * bytes` is not enough for real machines: an OSU curve of an allreduce over
/// 10 GbE jumps from 182 to 792 us between 8 and 12 KiB (8 K80, logdata of github.com/hclhkbu/B-Caffe), where
/// protocols change.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    points: Vec<(f64, f64)>,
    /// Slope from each point on, ns per byte.
    slopes: Vec<f64>,
}

impl Curve {
    /// `alpha_ns + ns_per_byte * bytes`. Neither may be negative; what is not a number counts as 0.
    pub fn line(alpha_ns: f64, ns_per_byte: f64) -> Curve {
        let (a, b) = (alpha_ns.max(0.0), ns_per_byte.max(0.0));
        const FAR: f64 = (1u64 << 20) as f64;
        Curve { points: vec![(0.0, a), (FAR, a + b * FAR)], slopes: vec![b, b] }
    }

    /// The same time for any size.
    pub fn constant(ns: f64) -> Curve {
        Curve::line(ns, 0.0)
    }

    /// Points (bytes, ns), bytes strictly rising, both finite and not negative, at least one. Times may
    /// fall (knees do that), but the last piece may not: it goes on for ever. `InvalidArgument` otherwise.
    pub fn new(points: Vec<(f64, f64)>) -> Result<Curve> {
        let wrong = |what: String, hint: &str| Err(Error::argument(what).who("a cost curve").hint(hint));
        let Some(&last) = points.last() else {
            return wrong("has no points".into(), "give at least one (bytes, ns)");
        };
        let fine = |x: f64| x.is_finite() && x >= 0.0;
        if let Some((i, p)) = points.iter().enumerate().find(|(_, p)| !fine(p.0) || !fine(p.1)) {
            let what = format!("point {i} is ({}, {})", p.0, p.1);
            return wrong(what, "bytes and ns must be finite and not negative");
        }
        if let Some(i) = points.windows(2).position(|w| w[0].0 >= w[1].0) {
            let what = format!("point {} at {} bytes follows one at {}", i + 1, points[i + 1].0, points[i].0);
            return wrong(what, "sizes must rise");
        }
        let mut slopes: Vec<f64> = points.windows(2).map(|w| (w[1].1 - w[0].1) / (w[1].0 - w[0].0)).collect();
        let beyond = slopes.last().copied().unwrap_or(0.0);
        if beyond < 0.0 {
            let what = format!("falls to {} ns at its last point, {} bytes", last.1, last.0);
            return wrong(what, "add a larger size that takes longer");
        }
        slopes.push(beyond);
        Ok(Curve { points, slopes })
    }

    /// Nanoseconds for `bytes`.
    #[inline]
    pub fn at(&self, bytes: f64) -> f64 {
        // Few points, and most curves are lines: a scan from the far end is the fastest search.
        let i = self.points.iter().rposition(|p| p.0 <= bytes);
        let Some(i) = i else { return self.points[0].1 };
        self.points[i].1 + (bytes - self.points[i].0) * self.slopes[i]
    }

    /// The points, bytes rising. What lies beyond them follows from the last two.
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// All times multiplied by `factor` (0 or more).
    pub fn scaled(&self, factor: f64) -> Curve {
        let f = factor.max(0.0);
        Curve {
            points: self.points.iter().map(|p| (p.0, p.1 * f)).collect(),
            slopes: self.slopes.iter().map(|s| s * f).collect(),
        }
    }

    /// What takes `ns(bytes)` here, where only `ratio` (above 0) of the bytes are left.
    pub fn shrunk(&self, ratio: f64) -> Curve {
        Curve {
            points: self.points.iter().map(|p| (p.0 / ratio, p.1)).collect(),
            slopes: self.slopes.iter().map(|s| s * ratio).collect(),
        }
    }

    /// One after the other.
    pub fn plus(&self, other: &Curve) -> Curve {
        let mut sizes: Vec<f64> = self.points.iter().chain(&other.points).map(|p| p.0).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        sizes.dedup();
        let points: Vec<(f64, f64)> = sizes.iter().map(|&b| (b, self.at(b) + other.at(b))).collect();
        let slope = |c: &Curve, b: f64| {
            let i = c.points.iter().rposition(|p| p.0 <= b);
            i.map_or(0.0, |i| c.slopes[i])
        };
        let slopes = sizes.iter().map(|&b| slope(self, b) + slope(other, b)).collect();
        Curve { points, slopes }
    }

    /// The largest of its times and of its times per byte.
    pub(super) fn largest(&self) -> f64 {
        let slopes = self.slopes.iter().map(|s| s.abs());
        self.points.iter().map(|p| p.1).chain(slopes).fold(0.0, f64::max)
    }

    /// Takes no time at any size.
    pub fn is_zero(&self) -> bool {
        self.points.iter().all(|p| p.1 == 0.0) && self.slopes.iter().all(|&s| s == 0.0)
    }
}

/// No time.
impl Default for Curve {
    fn default() -> Curve {
        Curve::constant(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_line() {
        let c = Curve::line(5.0, 0.25);
        for b in [0.0, 1.0, 64.0, 1e6, 1e7, 1e12] {
            assert_eq!(c.at(b), 5.0 + 0.25 * b, "{b}");
        }
        assert_eq!(Curve::new(c.points().to_vec()).unwrap(), c);
        assert!(!c.is_zero() && Curve::default().is_zero());
        assert_eq!(c.scaled(2.0).at(100.0), 60.0);
    }

    #[test]
    fn straight_between_points_and_on_beyond() {
        let c = Curve::new(vec![(8.0, 10.0), (16.0, 30.0), (32.0, 26.0), (64.0, 58.0)]).unwrap();
        let want = [(0.0, 10.0), (8.0, 10.0), (12.0, 20.0), (16.0, 30.0), (24.0, 28.0), (48.0, 42.0)];
        for (b, ns) in want.into_iter().chain([(64.0, 58.0), (164.0, 158.0)]) {
            assert_eq!(c.at(b), ns, "{b}");
        }
        let one = Curve::new(vec![(100.0, 7.0)]).unwrap();
        assert_eq!((one.at(0.0), one.at(100.0), one.at(1e9)), (7.0, 7.0, 7.0));
    }

    #[test]
    fn curves_add_up_and_shrink() {
        let a = Curve::new(vec![(8.0, 10.0), (16.0, 30.0), (32.0, 26.0), (64.0, 58.0)]).unwrap();
        let b = Curve::line(5.0, 0.25);
        for bytes in [0.0, 4.0, 8.0, 12.0, 20.0, 40.0, 64.0, 1e3, 3e6] {
            let sum = a.plus(&b).at(bytes);
            assert!((sum - a.at(bytes) - b.at(bytes)).abs() < 1e-9 * sum, "{bytes}");
            assert!((a.shrunk(0.25).at(bytes) - a.at(bytes / 4.0)).abs() < 1e-9 * sum, "{bytes}");
        }
    }

    #[test]
    fn wrong_points_are_refused_with_the_place() {
        let err = |points: &[(f64, f64)]| Curve::new(points.to_vec()).unwrap_err().to_string();
        assert!(err(&[]).contains("has no points"));
        assert!(err(&[(0.0, 1.0), (4.0, f64::NAN)]).contains("point 1"));
        assert!(err(&[(-1.0, 1.0)]).contains("point 0"));
        assert!(err(&[(0.0, 1.0), (4.0, 2.0), (4.0, 3.0)]).contains("point 2 at 4 bytes"));
        assert!(err(&[(0.0, 2.0), (4.0, 1.0)]).contains("falls to 1 ns"));
    }
}

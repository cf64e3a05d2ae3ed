//! The update: SGD or LARS, on f32 weights in the host's memory; learning rates; loss scales.

use crate::model::Kind;

/// Which update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    Sgd,
    /// Each weight tensor's rate times `trust * |w| / (|g| + decay * |w|)`.
    Lars {
        trust: f32,
    },
}

/// How weights change.
#[derive(Clone, Copy, Debug)]
pub struct Optimiser {
    pub rule: Rule,
    pub momentum: f32,
    /// Of weights only: biases, and scales and shifts of norms, do not decay and have no trust ratio.
    pub decay: f32,
}

impl Optimiser {
    /// One step of one tensor. `velocity` is the momentum, which has the rate in it.
    pub fn update(&self, kind: Kind, rate: f32, weights: &mut [f32], gradient: &[f32], velocity: &mut [f32]) {
        let weight = kind == Kind::Weight;
        let decay = if weight { self.decay } else { 0.0 };
        let rate = match self.rule {
            Rule::Lars { trust } if weight => rate * trust_ratio(trust, decay, norm(weights), norm(gradient)),
            _ => rate,
        };
        for ((w, g), v) in weights.iter_mut().zip(gradient).zip(velocity) {
            *v = self.momentum * *v - rate * (g + decay * *w);
            *w += *v;
        }
    }
}

/// LARS's factor; 1 where a norm is 0.
pub fn trust_ratio(trust: f32, decay: f32, weights: f32, gradient: f32) -> f32 {
    if weights == 0.0 || gradient == 0.0 { 1.0 } else { trust * weights / (gradient + decay * weights) }
}

fn norm(values: &[f32]) -> f32 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32
}

/// Linear warm-up, then a parabola to `end`.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub base: f32,
    pub end: f32,
    /// Steps.
    pub warm_up: usize,
    pub steps: usize,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, step: usize) -> f32 {
        if step < self.warm_up {
            return self.base * (step + 1) as f32 / self.warm_up as f32;
        }
        let left = self.steps.saturating_sub(self.warm_up).max(1) as f32;
        let rest = (1.0 - (step - self.warm_up) as f32 / left).max(0.0);
        (self.base - self.end) * rest * rest + self.end
    }
}

/// Factor on the loss that keeps half-precision gradients from underflow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    pub scale: f32,
    /// Halves on overflow, doubles after this many good steps; 0: it never changes.
    pub interval: u32,
    pub good: u32,
}

/// Between these a loss scale changes.
const LOWEST: f32 = 1.0;
const HIGHEST: f32 = 65536.0 * 256.0;

impl LossScale {
    pub fn new(scale: f32, interval: u32) -> LossScale {
        LossScale { scale, interval, good: 0 }
    }

    /// Whether an overflow makes it smaller.
    pub fn can_fall(&self) -> bool {
        self.interval > 0 && self.scale > LOWEST
    }

    /// After a step: whether it may be used. The reduced gradients are the same on all ranks, so all agree.
    pub fn judge(&mut self, finite: bool) -> bool {
        if self.interval == 0 {
            return finite;
        }
        if !finite {
            self.scale = (self.scale / 2.0).max(LOWEST);
            self.good = 0;
            return false;
        }
        self.good += 1;
        if self.good == self.interval {
            self.scale = (self.scale * 2.0).min(HIGHEST);
            self.good = 0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn a_lars_step_is_the_formula() {
        let lars = Optimiser { rule: Rule::Lars { trust: 0.1 }, momentum: 0.9, decay: 0.5 };
        let (mut w, mut v) = ([3.0, 4.0], [1.0, 0.0]);
        lars.update(Kind::Weight, 2.0, &mut w, &[0.0, 1.0], &mut v);
        // |w| 5, |g| 1: ratio 0.1 * 5 / (1 + 2.5) = 1/7; rate 2/7; decayed gradient 1.5, 3.
        assert!((v[0] - (0.9 - 3.0 / 7.0)).abs() < 1e-6 && (v[1] + 6.0 / 7.0).abs() < 1e-6, "{v:?}");
        assert!((w[0] - 3.0 - v[0]).abs() < 1e-6);
        let (mut b, mut v) = ([3.0], [0.0]);
        lars.update(Kind::Bias, 2.0, &mut b, &[1.0], &mut v);
        assert_eq!(b, [1.0]);
    }

    /// Why the update is not made in half precision: the same LARS steps, with all that is kept and computed rounded to
    /// f16 (even with norms in f32), leave every weight where it was.
    #[test]
    fn lars_in_f16_loses_updates() {
        let half = |x: f32| f16::from_f32(x).to_f32();
        let (n, rate, trust, decay, momentum) = (1000, 2e-3f32, 1e-3f32, 1e-4f32, 0.9f32);
        let gradient: Vec<f32> = (0..n).map(|i| half(1e-4 * (1.0 + i as f32 / n as f32))).collect();
        let start: Vec<f32> = (0..n).map(|i| half(0.02 * (1.0 + (i % 7) as f32 / 7.0))).collect();
        let (mut w, mut v) = (start.clone(), vec![0.0; n]);
        let (mut w16, mut v16) = (start.clone(), vec![0.0f32; n]);
        let lars = Optimiser { rule: Rule::Lars { trust }, momentum, decay };
        for _ in 0..200 {
            lars.update(Kind::Weight, rate, &mut w, &gradient, &mut v);
            let rate = half(rate * half(trust_ratio(trust, decay, norm(&w16), norm(&gradient))));
            for ((w, g), v) in w16.iter_mut().zip(&gradient).zip(&mut v16) {
                *v = half(half(momentum * *v) - half(rate * half(g + half(decay * *w))));
                *w = half(*w + *v);
            }
        }
        assert_eq!(w16, start);
        let moved = w.iter().zip(&start).filter(|(w, s)| half(**w) != **s).count();
        assert_eq!(moved, n, "in f32 every weight has moved, by more than what f16 can tell apart");
    }

    #[test]
    fn rates_rise_and_fall() {
        let s = Schedule { base: 1.0, end: 0.0, warm_up: 4, steps: 8 };
        let rates: Vec<f32> = (0..8).map(|i| s.rate(i)).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 0.5625, 0.25, 0.0625]);
    }

    #[test]
    fn the_loss_scale_gives_way_and_comes_back() {
        let mut s = LossScale::new(1024.0, 2);
        assert!(!s.judge(false) && s.scale == 512.0);
        assert!(s.judge(true) && s.judge(true) && s.scale == 1024.0);
        (0..10).for_each(|_| assert!(s.can_fall() && !s.judge(false)));
        assert!(!s.can_fall() && !s.judge(false) && s.scale == 1.0);
        assert!(!LossScale::new(1024.0, 0).can_fall());
    }
}

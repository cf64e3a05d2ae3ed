//! The machine's numbers from calls that were measured.

use super::Run;
use super::predict::Predictor;
use crate::Result;
use crate::cost::{Curve, Machine};

/// Calls of up to so many bytes have factors of their own.
const SMALL: u64 = 32 << 10;

impl Predictor {
    /// Fits the machine's numbers to runs of this communicator, and writes into each what is predicted then.
    ///
    /// First a few factors (of the switch between ranks on a core, of latencies, of costs by message) to the
    /// runs of small calls, then `stretch` and `memory`, that large ones need, to all runs: what is under way in small
    /// calls is stretched, too. What is made small is the mean square of ln(predicted / measured), so that no algorithm
    /// is far off where all cannot be right.
    pub fn fit(&mut self, runs: &mut [Run]) -> Result<()> {
        (self.model.stretch, self.model.memory) = (Curve::constant(1.0), Curve::default());
        let small: Vec<Run> = runs.iter().filter(|r| r.bytes <= SMALL).cloned().collect();
        if !small.is_empty() {
            self.descend(&small)?;
        }
        if small.len() < runs.len() {
            (self.model.stretch, self.model.memory) = Load::new(self, runs)?.fit(self)?;
        }
        for r in runs.iter_mut() {
            r.predicted = self.ns(&r.choice, r.bytes)?;
        }
        Ok(())
    }

    /// How far predictions are from runs, as a natural logarithm.
    fn off(&mut self, runs: &[Run]) -> Result<f64> {
        let logs: Vec<f64> = runs
            .iter()
            .map(|r| Ok((self.ns(&r.choice, r.bytes)? / r.measured).ln()))
            .collect::<Result<_>>()?;
        Ok(mean_square(logs.into_iter()))
    }

    fn descend(&mut self, runs: &[Run]) -> Result<()> {
        type Knob = fn(&mut Machine, f64);
        const KNOBS: [Knob; 8] = [
            |m, f| m.switch *= f,
            |m, f| m.inside.latency *= f,
            |m, f| m.across.latency *= f,
            |m, f| m.op *= f,
            |m, f| m.call *= f,
            |m, f| m.inside.work().for_each(|c| *c = c.scaled(f)),
            |m, f| m.across.work().for_each(|c| *c = c.scaled(f)),
            |m, f| m.across.recv = m.across.recv.scaled(f),
        ];
        // How far each has been turned, as a logarithm. What was measured by itself is not given up for little.
        const STRAYS: f64 = 0.03;
        let mut turned = [0.0f64; KNOBS.len()];
        let mut best = self.off(runs)?;
        for steps in [&[4.0, 2.0, 1.4][..], &[1.15], &[1.05]] {
            // The best of all ways each time: the first that is any better may make up for what another knob is for.
            for _ in 0..16 {
                let start = self.model.machine.clone();
                let mut found = None;
                for (i, knob) in KNOBS.into_iter().enumerate() {
                    for factor in steps.iter().flat_map(|step: &f64| [*step, 1.0 / step]) {
                        self.model.machine.clone_from(&start);
                        knob(&mut self.model.machine, factor);
                        let mut turned = turned;
                        turned[i] += factor.ln();
                        let off = self.off(runs)? + STRAYS * turned.iter().map(|t| t.abs()).sum::<f64>();
                        if off < best * 0.999 {
                            best = off;
                            found = Some((i, factor));
                        }
                    }
                }
                self.model.machine = start;
                let Some((i, factor)) = found else { break };
                KNOBS[i](&mut self.model.machine, factor);
                turned[i] += factor.ln();
            }
        }
        Ok(())
    }
}

/// Square root of the mean of squares.
fn mean_square(all: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = all.fold((0.0, 0), |(sum, n), x| (sum + x * x, n + 1));
    (sum / f64::from(n.max(1))).sqrt()
}

/// Runs, and what is known of them.
struct Load<'a> {
    runs: &'a [Run],
    /// What each has under way.
    under_way: Vec<f64>,
    /// What each takes when everything takes [`STEP`]^k times as long, by k less [`LEAST`].
    times: Vec<[Option<f64>; (MOST - LEAST + 1) as usize]>,
    /// Sizes of calls, rising.
    sizes: Vec<u64>,
}

/// Factors are looked for in steps of 10 %, from a third to ten.
const STEP: f64 = 1.1;
const LEAST: i32 = -12;
const MOST: i32 = 24;
/// `stretch` has a corner wherever this much more is under way, from 32 KiB to 128 MiB.
const CORNERS: usize = 7;
const APART: f64 = 4.0;
/// Calls of so many bytes do not need `memory`.
const CACHED: u64 = 256 << 10;
/// What being right is given up for: that `stretch` changes by a factor e, and that `memory` is all that a call
/// takes. The runs alone do not tell these two apart well.
const STEADY: f64 = 0.03;
const SPARE: f64 = 0.2;

impl<'a> Load<'a> {
    fn new(p: &mut Predictor, runs: &'a [Run]) -> Result<Load<'a>> {
        let under_way = runs.iter().map(|r| p.under_way(&r.choice, r.bytes)).collect::<Result<_>>()?;
        let mut sizes: Vec<u64> = runs.iter().map(|r| r.bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        Ok(Load { runs, under_way, times: vec![[None; (MOST - LEAST + 1) as usize]; runs.len()], sizes })
    }

    /// `stretch` and `memory` with which they are predicted best.
    fn fit(mut self, p: &mut Predictor) -> Result<(Curve, Curve)> {
        let mut steps = [0i32; CORNERS];
        let mut best = self.off(p, &steps)?;
        for by in [5, 2, 1] {
            loop {
                let before = best.0;
                for corner in 0..CORNERS {
                    // It alone, or all from it on.
                    for end in [corner + 1, CORNERS] {
                        for by in [by, -by] {
                            let mut other = steps;
                            other[corner..end].iter_mut().for_each(|s| *s = (*s + by).clamp(LEAST, MOST));
                            let off = self.off(p, &other)?;
                            if off.0 < best.0 {
                                (best, steps) = (off, other);
                            }
                        }
                    }
                }
                if best.0 > before * 0.999 {
                    break;
                }
            }
        }
        let mut memory = vec![(SMALL as f64, 0.0)];
        memory.extend(
            self.sizes.iter().zip(best.1).filter(|(s, _)| **s > SMALL).map(|(s, ns)| (*s as f64, ns)),
        );
        // Beyond the last size it takes as long for every byte.
        let last = memory[memory.len() - 1];
        memory.push((16.0 * last.0, 16.0 * last.1));
        Ok((Load::stretch(&steps)?, Curve::new(memory)?))
    }

    fn stretch(steps: &[i32; CORNERS]) -> Result<Curve> {
        let at = |i: usize| SMALL as f64 * APART.powi(i as i32 - 1);
        // The least calls are what the machine's numbers were fitted to.
        let mut points = vec![(at(0), 1.0)];
        points.extend(steps.iter().zip(1..).map(|(s, i)| (at(i), STEP.powi(*s))));
        points.push((at(CORNERS + 1), points[CORNERS].1));
        Curve::new(points)
    }

    /// How bad this `stretch` is with the `memory` that suits it best, and that, by size.
    fn off(&mut self, p: &mut Predictor, steps: &[i32; CORNERS]) -> Result<(f64, Vec<f64>)> {
        let stretch = Load::stretch(steps)?;
        let mut played = Vec::new();
        for i in 0..self.runs.len() {
            played.push(self.time(p, i, stretch.at(self.under_way[i]))?);
        }
        let turns = steps.windows(2).map(|w| w[1].abs_diff(w[0])).sum::<u32>() + steps[0].unsigned_abs();
        let mut sum = STEADY * f64::from(turns) * STEP.ln();
        let mut memory = Vec::new();
        for &bytes in &self.sizes {
            let here = || self.runs.iter().zip(&played).filter(|(r, _)| r.bytes == bytes);
            let least = here().map(|(r, _)| r.measured).fold(f64::INFINITY, f64::min);
            let with = |more: f64| {
                let squares = here().map(|(r, t)| ((t + more) / r.measured).ln().powi(2));
                squares.sum::<f64>() + SPARE * more / least
            };
            let shares = if bytes > CACHED { 20 } else { 1 };
            let all = (0..shares).map(|share| least * f64::from(share) / 20.0).map(|more| (with(more), more));
            let (off, more) =
                all.fold((f64::INFINITY, 0.0), |best, one| if one.0 < best.0 { one } else { best });
            sum += off;
            memory.push(more);
        }
        Ok((sum, memory))
    }

    /// What a run takes when everything takes `factor` times as long: a line between steps.
    fn time(&mut self, p: &mut Predictor, run: usize, factor: f64) -> Result<f64> {
        let step = (factor.ln() / STEP.ln()).clamp(f64::from(LEAST), f64::from(MOST));
        let below = (step.floor() as i32).min(MOST - 1);
        let mut ends = [0.0; 2];
        for (end, step) in ends.iter_mut().zip(below..) {
            let known = &mut self.times[run][(step - LEAST) as usize];
            *end = match *known {
                Some(ns) => ns,
                None => {
                    *known.insert(p.slowed(&self.runs[run].choice, self.runs[run].bytes, STEP.powi(step))?)
                }
            };
        }
        Ok(ends[0] + (ends[1] - ends[0]) * (step - f64::from(below)))
    }
}

//! What a call takes on a described machine: the simulator, with the executor's tiles.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::table::Place;
use super::{Choice, Layout, Run, room};
use crate::cost::{Curve, Machine, Model};
use crate::schedule::{Collective, algorithms_of};
use crate::sim::{Noise, Shape, Sim, Symmetry};
use crate::{Error, Result};

/// Calls of these sizes are played in a row: so many to get going, and so many that count.
const BEGIN: u32 = 6;
const CALLS: u32 = 12;
const FEW_TILES: u32 = 2;
const FEW_OPS: usize = 4096;
/// Where ranks share cores, ops take so much longer, as a mean share: else cores would go on in step for ever.
const UNSTEADY: f64 = 0.05;

/// Predicts calls of one communicator. Schedules are built once.
pub struct Predictor {
    layout: Layout,
    known: HashMap<(Collective, &'static str), Known>,
    /// See [`Model`].
    pub model: Model,
}

struct Known {
    sim: Sim,
    chunks: u32,
    /// Longest message of any rank, in chunks.
    longest: u32,
}

/// A way to do a call, and what it is predicted to take, ns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub choice: Choice,
    pub ns: f64,
}

impl Predictor {
    pub fn new(layout: Layout, model: Model) -> Predictor {
        Predictor { layout, known: HashMap::new(), model }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// ns that a call takes, root 0, in place: a short one in the midst of others, each begun where
    /// the last has ended, and a long one by itself. So they are measured, too.
    pub fn ns(&mut self, choice: &Choice, bytes: u64) -> Result<f64> {
        let a = choice.algorithm;
        let n = self.layout.groups.n();
        let block = Shape::block_of(a.collective, n, bytes);
        let (tiles, ways) = self.form(choice, block)?;
        let shape = Shape { block, tiles, ways, in_place: a.collective != Collective::AllToAll };
        let machine = self.model.at(bytes);
        let noise =
            Noise { seed: 1, core: if machine.cores.is_some() { UNSTEADY } else { 0.0 }, ..Noise::default() };
        let sim = &self.known[&(a.collective, a.name)].sim;
        let played = match tiles <= FEW_TILES && sim.ops() <= FEW_OPS {
            true => {
                let ended = sim.in_a_row(&machine, shape, &noise, BEGIN + CALLS)?;
                (ended[(BEGIN + CALLS - 1) as usize] - ended[BEGIN as usize - 1]) / f64::from(CALLS)
            }
            false => sim.estimate(&machine, shape)?.ns,
        };
        Ok(played + self.model.memory.at(bytes as f64))
    }

    /// Tiles and ways of a call with blocks of `block` bytes.
    fn form(&mut self, choice: &Choice, block: u64) -> Result<(u32, u32)> {
        let (a, groups) = (choice.algorithm, &self.layout.groups);
        let known = match self.known.entry((a.collective, a.name)) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => {
                let programs = a.programs(groups, 0);
                let longest = programs.iter().map(super::longest_message).max().unwrap_or(0);
                let chunks = programs.first().map_or(1, |p| p.chunks);
                let sim = Sim::of(a, groups, 0, Symmetry::None)?;
                e.insert(Known { sim, chunks, longest })
            }
        };
        let message = room(&self.layout, choice.message);
        let tiles = super::tiles(block as usize, known.chunks, known.longest, message);
        Ok((tiles, choice.ways.min(tiles)))
    }

    /// All algorithms of a collective in all forms that differ for this size, cheapest first. Hierarchies, too,
    /// where there is one host: then they go through one rank.
    pub fn candidates(&mut self, collective: Collective, bytes: u64) -> Result<Vec<Candidate>> {
        let n = self.layout.groups.n();
        let messages: &[usize] = match self.layout.all_tcp {
            true => &[512 << 10, 64_000, 128 << 10, 256 << 10, 1 << 20],
            false => &[256 << 10, 64 << 10, 128 << 10],
        };
        let block = Shape::block_of(collective, n, bytes);
        let mut found: Vec<Candidate> = Vec::new();
        for algorithm in algorithms_of(collective) {
            let mut seen = Vec::new();
            for &message in messages {
                for ways in [1, 2, 4] {
                    let choice = Choice { algorithm, ways, message };
                    let form = self.form(&choice, block)?;
                    if !seen.contains(&form) {
                        seen.push(form);
                        let ns = self.ns(&choice, bytes)?;
                        found.push(Candidate { choice, ns });
                    }
                }
            }
        }
        if found.is_empty() {
            return Err(Error::internal(format!("no algorithm for {}", collective.name())));
        }
        found.sort_by(|a, b| a.ns.total_cmp(&b.ns));
        Ok(found)
    }

    /// Fits the machine's numbers to runs of this communicator, and writes into each what is predicted then.
    ///
    /// First a few factors (of the switch between ranks on a core, of latencies, of costs by message) to the
    /// runs of small calls, then what large buffers do: `stretch`, `memory` and with several hosts `stretch_across`, of
    /// every size by itself. What is made small is the mean square of ln(predicted / measured), so that no algorithm is
    /// far off where all cannot be right.
    pub fn fit(&mut self, runs: &mut [Run]) -> Result<()> {
        const SMALL: u64 = 32 << 10;
        let small: Vec<Run> = runs.iter().filter(|r| r.bytes <= SMALL).cloned().collect();
        if !small.is_empty() {
            self.descend(&small)?;
        }
        let mut sizes: Vec<u64> = runs.iter().map(|r| r.bytes).filter(|b| *b > SMALL).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let start = SMALL as f64;
        let (mut inside, mut across, mut memory) =
            (vec![(start, 1.0)], vec![(start, 1.0)], vec![(start, 0.0)]);
        for bytes in sizes {
            let here: Vec<Run> = runs.iter().filter(|r| r.bytes == bytes).cloned().collect();
            let [i, a, more] = self.large(&here)?;
            let size = bytes as f64;
            inside.push((size, i));
            across.push((size, a));
            memory.push((size, more));
        }
        // Beyond the last size the factors stay, and memory takes as long for every byte.
        let last = memory.len() - 1;
        let far = 16.0 * memory[last].0;
        inside.push((far, inside[last].1));
        across.push((far, across[last].1));
        memory.push((far, 16.0 * memory[last].1));
        self.model.stretch = Curve::new(inside)?;
        self.model.stretch_across = Curve::new(across)?;
        self.model.memory = Curve::new(memory)?;
        for r in runs.iter_mut() {
            r.predicted = self.ns(&r.choice, r.bytes)?;
        }
        Ok(())
    }

    /// `stretch`, `stretch_across` and `memory` with which runs of one size are predicted best.
    fn large(&mut self, runs: &[Run]) -> Result<[f64; 3]> {
        // Steps of 10 %; memory in twentieths of the fastest run.
        const STEPS: std::ops::RangeInclusive<i32> = -10..=20;
        let factor = |step: i32| 1.1f64.powi(step);
        let several = self.layout.groups.len() > 1;
        let least = runs.iter().map(|r| r.measured).fold(f64::INFINITY, f64::min);
        self.model.memory = Curve::default();
        let mut off = |steps: [i32; 2]| -> Result<(f64, f64)> {
            let model = &mut self.model;
            [model.stretch, model.stretch_across] = steps.map(|s| Curve::constant(factor(s)));
            let played: Vec<f64> = runs.iter().map(|r| self.ns(&r.choice, r.bytes)).collect::<Result<_>>()?;
            // Of equally good ones those that are nearest to nothing.
            let strays: f64 = 0.01 * steps.iter().map(|s| factor(*s).ln().abs()).sum::<f64>();
            let with = |more: f64| {
                let logs = played.iter().zip(runs).map(|(p, r)| ((p + more) / r.measured).ln());
                mean_square(logs) + strays
            };
            let memory = (0..20).map(|share| least * f64::from(share) / 20.0);
            let all = memory.map(|more| (with(more), more));
            Ok(all.fold((f64::INFINITY, 0.0), |best, one| if one.0 < best.0 { one } else { best }))
        };
        let mut at = [0, 0];
        let mut best = off(at)?;
        // One after the other, until neither can be better.
        for step in [8, 4, 2, 1] {
            loop {
                let before = at;
                for which in 0..if several { 2 } else { 1 } {
                    for by in [step, -step] {
                        let mut steps = at;
                        steps[which] += by;
                        if STEPS.contains(&steps[which]) {
                            let one = off(steps)?;
                            if one.0 < best.0 {
                                (best, at) = (one, steps);
                            }
                        }
                    }
                }
                if at == before {
                    break;
                }
            }
        }
        Ok([factor(at[0]), factor(at[1]), best.1])
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
            |m, f| {
                m.inside.send = m.inside.send.scaled(f);
                m.inside.recv = m.inside.recv.scaled(f);
            },
            |m, f| {
                m.across.send = m.across.send.scaled(f);
                m.across.recv = m.across.recv.scaled(f);
            },
            |m, f| m.across.recv = m.across.recv.scaled(f),
        ];
        // How far each has been turned, as a logarithm. What was measured by itself is not given up for little.
        const STRAYS: f64 = 0.03;
        let mut turned = [0.0f64; KNOBS.len()];
        let mut best = self.off(runs)?;
        for step in [4.0, 2.0, 1.4, 1.15, 1.05] {
            for _ in 0..6 {
                let before = best;
                for (i, knob) in KNOBS.into_iter().enumerate() {
                    for factor in [step, 1.0 / step] {
                        let (old, so_far) = (self.model.machine.clone(), turned[i]);
                        knob(&mut self.model.machine, factor);
                        turned[i] += factor.ln();
                        let off = self.off(runs)? + STRAYS * turned.iter().map(|t| t.abs()).sum::<f64>();
                        if off < best * 0.999 {
                            best = off;
                        } else {
                            (self.model.machine, turned[i]) = (old, so_far);
                        }
                    }
                }
                if best > before * 0.99 {
                    break;
                }
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

impl Run {
    /// A run that was measured and not yet predicted.
    pub fn measured(place: Place, bytes: u64, choice: Choice, ns: f64) -> Run {
        Run { place, bytes, choice, measured: ns, predicted: ns }
    }

    /// How far the prediction is off, as a share of what was measured.
    pub fn error(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Level;
    use crate::schedule::{Algorithm, Groups};

    fn machine() -> Machine {
        let mut m = Machine::alpha_beta(300.0, 0.05, 0.02);
        m.inside = Level { send: Curve::line(20.0, 0.03), recv: Curve::line(10.0, 0.02), ..m.inside };
        (m.call, m.op, m.copy) = (40.0, 8.0, Curve::line(2.0, 0.02));
        (m.cores, m.switch) = (Some(2), 1000.0);
        m
    }

    fn predictor(m: Machine) -> Predictor {
        let layout = Layout { groups: Groups::flat(4), any_tcp: false, all_tcp: false };
        Predictor::new(layout, Model::new(m))
    }

    /// Runs of a machine are fitted by that machine, from numbers that are far off.
    #[test]
    fn fitting_finds_the_machine_again() {
        let mut truth = predictor(machine());
        truth.model.stretch = Curve::new(vec![(32768.0, 1.0), (1e6, 1.0), (4e6, 2.0), (2e7, 2.0)]).unwrap();
        let place = Place::of(Collective::AllReduce, truth.layout()).unwrap();
        let mut runs = Vec::new();
        for name in ["direct", "ring", "recursive_doubling", "halving_doubling"] {
            let algorithm = Algorithm::by_name(Collective::AllReduce, name).unwrap();
            for bytes in [4, 1024, 16384, 1 << 20, 16 << 20] {
                let choice = Choice { algorithm, ways: 1, message: 256 << 10 };
                runs.push(Run::measured(place, bytes, choice, truth.ns(&choice, bytes).unwrap()));
            }
        }
        let mut m = machine();
        (m.switch, m.inside.latency) = (200.0, 1500.0);
        let mut fitted = predictor(m);
        fitted.fit(&mut runs).unwrap();
        let mean = runs.iter().map(|r| r.error().abs()).sum::<f64>() / runs.len() as f64;
        for r in &runs {
            assert!(
                r.error().abs() < 0.3 && mean < 0.1,
                "{:?} {} {}",
                r.choice.algorithm,
                r.bytes,
                r.error()
            );
        }
    }

    /// With several hosts what large buffers do to messages between them is told apart from what they do inside.
    #[test]
    fn fitting_tells_hosts_from_cores() {
        let layout = Layout { groups: Groups::blocks(4, 2), any_tcp: true, all_tcp: false };
        let mut m = machine();
        m.across = Level { latency: 5000.0, send: Curve::line(3000.0, 0.1), ..m.inside.clone() };
        m.cores = None;
        let mut truth = Predictor::new(layout.clone(), Model::new(m.clone()));
        let factor = |f: f64| Curve::new(vec![(32768.0, 1.0), (1e6, f), (2e7, f)]).unwrap();
        (truth.model.stretch, truth.model.stretch_across) = (factor(1.0), factor(2.0));
        let place = Place::of(Collective::AllReduce, truth.layout()).unwrap();
        let run = |truth: &mut Predictor, name: &str, bytes: u64| {
            let algorithm = Algorithm::by_name(Collective::AllReduce, name).unwrap();
            let choice = Choice { algorithm, ways: 1, message: 256 << 10 };
            Run::measured(place, bytes, choice, truth.ns(&choice, bytes).unwrap())
        };
        let mut runs = Vec::new();
        for bytes in [4, 16384, 4 << 20] {
            for name in ["direct", "ring", "recursive_doubling"] {
                runs.push(run(&mut truth, name, bytes));
            }
        }
        let mut fitted = Predictor::new(layout, Model::new(m));
        fitted.fit(&mut runs).unwrap();
        let (inside, across) = (fitted.model.stretch.at(4e6), fitted.model.stretch_across.at(4e6));
        assert!((across / 2.0 - 1.0).abs() < 0.2 && (inside - 1.0).abs() < 0.15, "{inside} {across}");
        // One that it was not fitted to.
        let unseen = run(&mut truth, "hier_2d", 4 << 20);
        let error = fitted.ns(&unseen.choice, unseen.bytes).unwrap() / unseen.measured - 1.0;
        assert!(error.abs() < 0.1, "{error}");
    }

    #[test]
    fn candidates_are_sorted_and_unlike() {
        let mut p = predictor(machine());
        let all = p.candidates(Collective::AllReduce, 4).unwrap();
        // One tile: one form each.
        assert_eq!(all.len(), algorithms_of(Collective::AllReduce).count());
        assert!(all.windows(2).all(|w| w[0].ns <= w[1].ns));
        let large = p.candidates(Collective::AllReduce, 16 << 20).unwrap();
        assert!(large.len() > all.len());
    }
}

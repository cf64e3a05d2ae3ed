//! What a call takes on a described machine: the simulator, with the executor's tiles.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::table::Place;
use super::{Choice, Layout, Run, room};
use crate::cost::{Machine, Model};
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
        let shape = self.shape(choice, bytes)?;
        let machine = self.sim(choice).met(&self.model, shape)?;
        Ok(self.played(choice, shape, &machine)? + self.model.memory.at(bytes as f64))
    }

    /// What is under way for every core in such a call, bytes.
    pub(super) fn under_way(&mut self, choice: &Choice, bytes: u64) -> Result<f64> {
        let shape = self.shape(choice, bytes)?;
        Ok(self.sim(choice).estimate(&self.model.machine, shape)?.under_way)
    }

    /// What such a call takes, all of whose copies, folds and messages take `factor` times as long; without `memory`.
    pub(super) fn slowed(&mut self, choice: &Choice, bytes: u64, factor: f64) -> Result<f64> {
        let shape = self.shape(choice, bytes)?;
        self.played(choice, shape, &self.model.stretched(factor))
    }

    fn shape(&mut self, choice: &Choice, bytes: u64) -> Result<Shape> {
        let collective = choice.algorithm.collective;
        let block = Shape::block_of(collective, self.layout.groups.n(), bytes);
        let (tiles, ways) = self.form(choice, block)?;
        Ok(Shape { block, tiles, ways, in_place: collective != Collective::AllToAll })
    }

    /// Of an algorithm whose form is known.
    fn sim(&self, choice: &Choice) -> &Sim {
        &self.known[&(choice.algorithm.collective, choice.algorithm.name)].sim
    }

    fn played(&self, choice: &Choice, shape: Shape, machine: &Machine) -> Result<f64> {
        let noise =
            Noise { seed: 1, core: if machine.cores.is_some() { UNSTEADY } else { 0.0 }, ..Noise::default() };
        let sim = self.sim(choice);
        if shape.tiles > FEW_TILES || sim.ops() > FEW_OPS {
            return Ok(sim.estimate(machine, shape)?.ns);
        }
        let ended = sim.in_a_row(machine, shape, &noise, BEGIN + CALLS)?;
        Ok((ended[(BEGIN + CALLS - 1) as usize] - ended[BEGIN as usize - 1]) / f64::from(CALLS))
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
    use crate::cost::{Curve, Level, OnCore};
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

    const KNOWN: [&str; 3] = ["direct", "ring", "recursive_doubling"];

    /// What an allreduce takes there, as if it had been measured.
    fn run(truth: &mut Predictor, ways: u32, name: &str, bytes: u64) -> Run {
        let place = Place::of(Collective::AllReduce, truth.layout()).unwrap();
        let algorithm = Algorithm::by_name(Collective::AllReduce, name).unwrap();
        let choice = Choice { algorithm, ways, message: 256 << 10 };
        Run::measured(place, bytes, choice, truth.ns(&choice, bytes).unwrap())
    }

    fn runs(truth: &mut Predictor, ways: u32, names: &[&str], sizes: &[u64]) -> Vec<Run> {
        let all = names.iter().flat_map(|name| sizes.iter().map(move |bytes| (name, bytes)));
        all.map(|(name, bytes)| run(truth, ways, name, *bytes)).collect()
    }

    /// Runs of a machine are fitted by that machine, from numbers that are far off.
    #[test]
    fn fitting_finds_the_machine_again() {
        let mut truth = predictor(machine());
        truth.model.stretch = Curve::new(vec![(32768.0, 1.0), (1e6, 1.0), (4e6, 2.0), (2e7, 2.0)]).unwrap();
        let names = ["direct", "ring", "recursive_doubling", "halving_doubling"];
        let mut runs = runs(&mut truth, 1, &names, &[4, 1024, 16384, 1 << 20, 16 << 20]);
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

    /// Messages between hosts that take twice as long as the probe saw are not taken for slow switches.
    #[test]
    fn fitting_turns_what_is_off() {
        let layout = Layout { groups: Groups::blocks(4, 2), any_tcp: true, all_tcp: false };
        let slow = |f: f64| {
            let mut m = machine();
            let (send, recv) = (Curve::line(3400.0 * f, 0.1), Curve::line(700.0 * f, 0.1));
            let on_core = OnCore { send: Curve::line(3000.0 * f, 0.1), recv: recv.clone() };
            m.across =
                Level { latency: 0.0, send, recv, on_core: Some(on_core), credits: 2, ..m.inside.clone() };
            (m.core_hosts, m.switch) = (2, 2200.0);
            Predictor::new(layout.clone(), Model::new(m))
        };
        let (mut truth, mut fitted) = (slow(2.0), slow(1.0));
        let mut runs = runs(&mut truth, 4, &KNOWN, &[4, 512, 4096, 16384]);
        fitted.fit(&mut runs).unwrap();
        let switch = fitted.model.machine.switch;
        assert!((1500.0..3200.0).contains(&switch), "{switch}");
        let hier = run(&mut truth, 4, "hier_2d", 64);
        let error = fitted.ns(&hier.choice, 64).unwrap() / hier.measured - 1.0;
        assert!(error.abs() < 0.1, "{error}");
    }

    /// Large calls that are faster than the machine's numbers say leave small ones alone.
    #[test]
    fn what_large_calls_do_is_not_put_on_small_ones() {
        let mut truth = predictor(machine());
        let mut runs = runs(&mut truth, 1, &KNOWN, &[4, 1024, 16384, 64 << 10, 256 << 10, 1 << 20]);
        for r in runs.iter_mut().filter(|r| r.bytes > 16384) {
            r.measured *= 0.7;
        }
        let mut fitted = predictor(machine());
        fitted.fit(&mut runs).unwrap();
        for r in runs.iter().filter(|r| r.bytes < 16384) {
            assert!(r.error().abs() < 0.06, "{:?} {} {}", r.choice.algorithm, r.bytes, r.error());
        }
    }

    /// What slows messages down is what is under way, and that an algorithm has much of it, not that its buffer is large.
    #[test]
    fn fitting_tells_algorithms_by_what_they_have_under_way() {
        let layout = Layout { groups: Groups::blocks(4, 2), any_tcp: true, all_tcp: false };
        let mut m = machine();
        m.across = Level { latency: 5000.0, send: Curve::line(3000.0, 0.1), ..m.inside.clone() };
        m.core_hosts = 2;
        let mut truth = Predictor::new(layout.clone(), Model::new(m.clone()));
        truth.model.stretch = Curve::new(vec![(5e5, 1.0), (2e6, 2.5), (2e7, 2.5)]).unwrap();
        let mut runs = runs(&mut truth, 4, &KNOWN, &[4, 16384, 256 << 10, 1 << 20, 4 << 20, 16 << 20]);
        let mut fitted = Predictor::new(layout, Model::new(m));
        let more = |p: &mut Predictor| -> Vec<f64> {
            let of = ["direct", "hier_leader"].map(|name| run(p, 4, name, 8 << 20));
            of.iter().map(|r| p.under_way(&r.choice, r.bytes).unwrap()).collect()
        };
        let under_way = more(&mut fitted);
        assert!(under_way[0] > 3.0 * under_way[1], "{under_way:?}");
        fitted.fit(&mut runs).unwrap();
        // Those that it was not fitted to.
        for name in ["hier_leader", "hier_2d", "halving_doubling"] {
            for bytes in [1 << 20, 8 << 20] {
                let unseen = run(&mut truth, 4, name, bytes);
                let error = fitted.ns(&unseen.choice, bytes).unwrap() / unseen.measured - 1.0;
                assert!(error.abs() < 0.1, "{name}, {bytes} bytes: {error}; {:?}", fitted.model.stretch);
            }
        }
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

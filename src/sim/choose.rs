//! The cheapest way to do a collective, by simulating the candidates.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::{Noise, Report, Shape, Sim, Symmetry};
use crate::cost::{Model, Price, PriceList};
use crate::reduce::Wire;
use crate::schedule::{Algorithm, Collective, Groups, algorithms_of};
use crate::{Error, Result};

/// What is tried for every size. The defaults are those that the executor and its transports can do well.
#[derive(Clone, Debug)]
pub struct Candidates {
    pub algorithms: Vec<&'static Algorithm>,
    /// Tiles worked on at a time.
    pub ways: Vec<u32>,
    /// Largest messages to aim at, bytes. The first and the last are tried first.
    pub messages: Vec<u32>,
    /// Messages of f32 between hosts are packed: see [`Candidates::packed`].
    wire: Option<Wire>,
}

impl Candidates {
    /// All algorithms of a collective, on ranks that `groups` says how they are spread.
    pub fn of(collective: Collective, groups: &Groups) -> Candidates {
        // On one host a hierarchy is one of the others.
        let fits = |a: &&Algorithm| !a.hierarchical || groups.len() > 1;
        Candidates {
            algorithms: algorithms_of(collective).filter(fits).collect(),
            ways: vec![1, 2, 4],
            messages: vec![256 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20],
            wire: None,
        }
    }

    /// The same with messages of f32 between hosts in this form, by the algorithms that can: sizes stay those of the f32.
    pub fn packed(mut self, wire: Wire) -> Candidates {
        self.algorithms.retain(|a| a.packs);
        self.wire = Some(wire);
        self
    }
}

/// Prices a collective on a machine, with schedules that are built once.
pub struct Pricer<'a> {
    collective: Collective,
    ranks: usize,
    model: Cow<'a, Model>,
    wire: Option<Wire>,
    sims: Vec<(&'static Algorithm, Sim)>,
    left_out: Vec<&'static str>,
    ways: Vec<u32>,
    messages: Vec<u32>,
    /// Every tile is played, with this.
    full: Option<Noise>,
}

/// A candidate, its run, and how long it took to simulate.
pub struct Choice {
    pub price: Price,
    pub shape: Shape,
    pub report: Report,
    pub took: Duration,
}

/// More ops than this in all played ranks' programs, and an algorithm is not tried.
const OPS: usize = 4 << 20;
const OPS_IN_FULL: usize = 64 << 20;
/// More ranks than this are played only where a symmetry allows to play few of them.
const RANKS: usize = 4096;

impl<'a> Pricer<'a> {
    /// Builds the candidates' schedules; root 0. Only as much is played as is needed: of ranks that are alike
    /// one unit, and some of many tiles. Candidates that would take too long on so many ranks are left out; it is
    /// an error if none is left.
    pub fn new(
        collective: Collective,
        groups: &Groups,
        model: &'a Model,
        candidates: Candidates,
    ) -> Result<Pricer<'a>> {
        Pricer::build((collective, 0), groups, model, candidates, None)
    }

    /// The same, but all ranks and all tiles are played, with a root and with noise.
    pub fn in_full(
        (collective, root): (Collective, usize),
        groups: &Groups,
        model: &'a Model,
        candidates: Candidates,
        noise: Noise,
    ) -> Result<Pricer<'a>> {
        Pricer::build((collective, root), groups, model, candidates, Some(noise))
    }

    fn build(
        (collective, root): (Collective, usize),
        groups: &Groups,
        model: &'a Model,
        candidates: Candidates,
        full: Option<Noise>,
    ) -> Result<Pricer<'a>> {
        let n = groups.n();
        if root >= n {
            return Err(Error::argument(format!("there is no rank {root} of {n}"))
                .hint("give a root that is one of the ranks"));
        }
        let model = match candidates.wire {
            Some(wire) => Cow::Owned(model.packed(wire)),
            None => Cow::Borrowed(model),
        };
        let (ranks, most) = if full.is_some() { (usize::MAX, OPS_IN_FULL) } else { (RANKS, OPS) };
        let (mut sims, mut left_out, mut why) = (Vec::new(), Vec::new(), None);
        let alone = candidates.algorithms.len() == 1;
        for a in candidates.algorithms {
            let (mut symmetry, mut played) = (Symmetry::None, n);
            let buildable =
                Sim::buildable(a, groups, if alone { Sim::PEERS } else { RANKS }).and_then(|()| {
                    if full.is_none() {
                        symmetry = Symmetry::of(a, groups, &model.machine);
                        played = symmetry.unit(n);
                    }
                    let ops = || a.program(0, groups, root).lanes.iter().map(|l| l.ops.len()).sum::<usize>();
                    match played <= ranks && ops().saturating_mul(played) <= most {
                        true => Ok(()),
                        false => Err(Error::argument(format!("{a:?} takes too long to simulate"))
                            .who(format!("{n} ranks on {} hosts", groups.len()))
                            .hint("take fewer ranks, or hosts with equally many ranks where all are alike")),
                    }
                });
            match buildable {
                Ok(()) => sims.push((a, Sim::of(a, groups, root, symmetry)?)),
                Err(e) => {
                    left_out.push(a.name);
                    why = Some(e);
                }
            }
        }
        if sims.is_empty() {
            return Err(why.unwrap_or_else(|| {
                Error::argument("no algorithms to choose from")
                    .hint("name one of the collective's algorithms")
            }));
        }
        let Candidates { ways, messages, wire, .. } = candidates;
        Ok(Pricer { collective, ranks: n, model, wire, sims, left_out, ways, messages, full })
    }

    /// Names of algorithms that would take too long to simulate, and are not priced.
    pub fn left_out(&self) -> &[&'static str] {
        &self.left_out
    }

    /// The cheapest for a call whose larger buffer has `bytes`.
    pub fn cheapest(&self, bytes: u64) -> Result<Choice> {
        let best = self.each(bytes)?.into_iter().min_by(|a, b| a.price.ns.total_cmp(&b.price.ns));
        best.ok_or_else(|| Error::internal("there is nothing to choose from"))
    }

    /// Each algorithm, in its cheapest form. Ways and messages are varied only for those that come near the
    /// best with the smallest number of ways, and the first and the last size of messages.
    pub fn each(&self, bytes: u64) -> Result<Vec<Choice>> {
        let all = 0..self.sims.len();
        let first = all.map(|sim| self.best(sim, bytes, true)).collect::<Result<Vec<Choice>>>()?;
        let bound = 3.0 * first.iter().map(|c| c.price.ns).fold(f64::INFINITY, f64::min);
        let near = |(sim, quick): (usize, Choice)| match quick.price.ns <= bound {
            true => self.best(sim, bytes, false),
            false => Ok(quick),
        };
        first.into_iter().enumerate().map(near).collect()
    }

    fn best(&self, sim: usize, bytes: u64, quick: bool) -> Result<Choice> {
        let (algorithm, sim) = &self.sims[sim];
        let block = Shape::block_of(self.collective, self.ranks, bytes);
        let memory = self.model.memory.at(bytes as f64);
        let mut best: Option<Choice> = None;
        let (mut tried, began) = (Vec::new(), Instant::now());
        for (i, &message) in self.messages.iter().enumerate() {
            if quick && i > 0 && i + 1 < self.messages.len() {
                continue;
            }
            let tiles = sim.tiles(block, message);
            for &ways in &self.ways[..if quick { 1.min(self.ways.len()) } else { self.ways.len() }] {
                // More ways than tiles are as many as tiles.
                let form = (tiles, ways.min(tiles));
                if tried.contains(&form) {
                    continue;
                }
                tried.push(form);
                let shape = Shape { block, tiles, ways: form.1, in_place: true };
                let machine = sim.met(&self.model, shape)?;
                let mut report = match &self.full {
                    Some(noise) => sim.play(&machine, shape, noise)?,
                    None => sim.estimate(&machine, shape)?,
                };
                report.ns += memory;
                report.path.core += memory;
                if best.as_ref().is_none_or(|b| report.ns < b.price.ns) {
                    let price = Price::new(report.ns, algorithm.name);
                    let price = Price { ways: form.1, message, wire: self.wire, ..price };
                    best = Some(Choice { price, shape, report, took: Duration::ZERO });
                }
            }
        }
        let best = best.map(|b| Choice { took: began.elapsed(), ..b });
        best.ok_or_else(|| Error::argument("no ways or no messages to try").hint("give at least one of each"))
    }

    /// Prices at these sizes (bytes, rising), as a list for planners.
    pub fn list(&self, sizes: &[u64]) -> Result<PriceList> {
        let price = |&bytes: &u64| Ok((bytes, self.cheapest(bytes)?.price));
        PriceList::new(sizes.iter().map(price).collect::<Result<_>>()?)
    }
}

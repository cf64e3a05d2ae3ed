//! The fusion planner: which gradients travel together, when, and by which algorithm.
//!
//! Communication of many small gradients is all latency, and that of one big buffer cannot overlap with the
//! backward pass that makes it. In between lies a best partition; it depends on the machine, the number of ranks
//! and the model. [`plan`] finds it, exactly, for given [`Prices`]: no rank measures anything while
//! it runs, and ranks that have the same numbers get the same plan.
//!
//! [`Model`] says which gradients are ready when, [`Network`] has published networks to try, [`alternatives`] are
//! what others do. `docs/plan.md` is the user's page.
//!
//! Times are nanoseconds from the start of the backward pass, sizes bytes. Everything here is pure: no I/O.

mod explain;
mod fuzz;
mod model;
mod network;
mod rules;
mod search;

#[doc(hidden)]
pub use fuzz::fuzz_model;
pub use model::{Model, Tensor, data_type};
pub use network::{Network, NetworkPrices};
pub use rules::{Alternative, alternatives};

use crate::cost::{Price, Prices};
use crate::reduce::Wire;
use crate::{Error, Result};

use search::{Atoms, Cut, Work};

/// What communication costs.
pub struct Costs<'a> {
    /// May fall as sizes rise; then the search takes longer.
    pub all_reduce: &'a dyn Prices,
    /// Of types other than f32, which are never packed; none where `all_reduce` packs nothing either.
    pub whole: Option<&'a dyn Prices>,
    /// Prices of reduce_scatter and all_gather (by the bytes of the larger buffer), where they are known.
    pub halves: Option<(&'a dyn Prices, &'a dyn Prices)>,
}

/// How gradients are synchronized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Allreduces in the order in which gradients become ready; the next forward pass starts when all are done.
    AllReduce,
    /// Allreduces, some of them put off until the backward pass is over. Then what the next forward pass
    /// needs first goes first, and every layer waits only for its own gradients.
    Priority,
    /// reduce_scatter during the backward pass; all_gather during the next forward pass, in the order in which
    /// layers need it.
    ReduceScatterAllGather,
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::AllReduce, Mode::Priority, Mode::ReduceScatterAllGather];

    /// "all_reduce", "priority", "reduce_scatter_all_gather".
    pub const fn name(self) -> &'static str {
        match self {
            Mode::AllReduce => "all_reduce",
            Mode::Priority => "priority",
            Mode::ReduceScatterAllGather => "reduce_scatter_all_gather",
        }
    }
}

/// In which phase a bucket's communication runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Allreduce when it is ready.
    Backward,
    /// Allreduce after the backward pass.
    Forward,
    /// reduce_scatter when it is ready, all_gather after the backward pass.
    Both,
}

/// What the search may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Modes to choose from, at least one.
    pub modes: Vec<Mode>,
    /// Tensors of more bytes than this may be cut, into equal parts of at most this. 0: none are.
    pub cut: u64,
}

/// A collective of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// On the communication lane, ns.
    pub start: f64,
    pub end: f64,
    pub algorithm: &'static str,
    /// Messages between hosts are packed.
    pub wire: Option<Wire>,
}

/// Gradients that travel together.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    /// First and last tensor, counted in the order in which they become ready. Where tensors are cut, both
    /// may have a part in the neighbour.
    pub first: usize,
    pub last: usize,
    /// Where the bucket lies when all gradients lie one after the other, bytes.
    pub offset: u64,
    pub bytes: u64,
    pub share: Share,
    /// When its last gradient is ready.
    pub ready: f64,
    /// The allreduce or the reduce_scatter.
    pub reduce: Span,
    /// The all_gather ([`Share::Both`]).
    pub gather: Option<Span>,
}

/// No plan takes less than each of these, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bound {
    /// Forward and backward.
    pub compute: f64,
    /// From some gradient on the lane works without a pause, in the cheapest portions, until all is done.
    pub lane: f64,
    /// When that gradient is ready.
    pub lane_from: f64,
    /// The gradient that is ready last cannot be hidden behind anything.
    pub last: f64,
}

impl Bound {
    /// The tightest.
    pub fn ns(&self) -> f64 {
        self.compute.max(self.lane).max(self.last)
    }
}

/// Buckets, and what they should take.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub mode: Mode,
    /// In the order in which they become ready.
    pub buckets: Vec<Bucket>,
    /// Length of an iteration, ns: from the start of backward to the end of the next forward pass.
    pub ns: f64,
    pub forward: f64,
    pub backward: f64,
    /// Of this mode.
    pub bound: Bound,
    /// When the layers of each bucket start and end in the next forward pass.
    pub layers: Vec<(f64, f64)>,
    /// No plan of this mode is faster (by more than a millionth). False if the search had to leave something
    /// out.
    pub exact: bool,
}

/// A mode that asks more of the framework has to be faster by this share.
const WORTH: f64 = 1e-4;

/// The first of these plans that no later one beats by a ten-thousandth; modes in the order of what they ask of
/// the framework.
pub fn best<'a>(plans: impl IntoIterator<Item = &'a Plan>) -> Option<&'a Plan> {
    plans.into_iter().reduce(|best, p| if p.ns < best.ns * (1.0 - WORTH) { p } else { best })
}

/// The [`best`] plan of the modes. `InvalidArgument` if there is no mode to choose from, or one that needs prices
/// that are not there, or if there are more than [`LARGEST`] pieces.
pub fn plan(model: &Model, costs: &Costs, options: &Options) -> Result<Plan> {
    let one = |&mode| plan_mode(model, costs, mode, options.cut);
    let plans = options.modes.iter().map(one).collect::<Result<Vec<Plan>>>()?;
    best(&plans)
        .cloned()
        .ok_or_else(|| Error::argument("no mode to choose from").who("a plan").hint("give at least one"))
}

/// How long an iteration takes, ns, with buckets that were planned before, perhaps with other times: bytes and phases, in the
/// order in which they become ready.
pub(crate) fn replay(
    model: &Model,
    costs: &Costs,
    mode: Mode,
    cut: u64,
    buckets: impl Iterator<Item = (u64, Share)>,
) -> Result<f64> {
    let atoms = Atoms::new(model, cut)?;
    let (mut begin, mut end) = (0, 0);
    let mut cuts: Vec<Cut> = buckets
        .map(|(bytes, share)| {
            end += bytes;
            // Before tensors without elements, which travel with what follows.
            let last = atoms.bytes.partition_point(|b| *b < end);
            (std::mem::replace(&mut begin, last), last, share)
        })
        .collect();
    if let Some(last) = cuts.last_mut() {
        last.1 = atoms.len();
    }
    Ok(lay_out(&atoms, costs, mode, &cuts, Bound::default()).ns)
}

/// How many pairs a search of two phases keeps, by mode: more undominated ones at one atom are thinned out. For
/// halves 32 were enough in nearly all cases tried; a narrow search before saves time, as the wide one then has
/// a good plan to measure others by. Putting off allreduces is a knapsack, and would need any number: 8 came
/// within 0.8 % of what 512 found, and 32 within 0.5 %.
const WIDEST: [&[usize]; 3] = [&[], &[16], &[8, 512]];

/// Tensors and parts of tensors that are planned at most: a search takes memory and time by their square.
pub const LARGEST: usize = 4096;

fn plan_mode(model: &Model, costs: &Costs, mode: Mode, cut: u64) -> Result<Plan> {
    if mode == Mode::ReduceScatterAllGather && costs.halves.is_none() {
        return Err(Error::argument("prices of reduce_scatter and all_gather are not known")
            .who("a plan")
            .hint("give them, or leave this mode out"));
    }
    let atoms = Atoms::new(model, cut)?;
    let work = Work::new(&atoms, costs, mode);
    let least = work.least(&atoms);
    let bound = bound(&atoms, mode, &least);
    let (all, halves) = (Share::Backward, Share::Both);
    let share = if mode == Mode::ReduceScatterAllGather { halves } else { all };
    // In order first: two phases have to be better than that.
    let mut found = search::in_order(&atoms, share, &work);
    found.ns = lay_out(&atoms, costs, mode, &found.cuts, bound).ns;
    let enough = bound.ns() * (1.0 + 1e-6);
    for &widest in WIDEST[mode as usize] {
        if found.ns > enough {
            found = search::two_phases(&atoms, &work, mode, &least, found, widest);
        }
    }
    search::join(&atoms, costs, &mut found);
    let mut plan = lay_out(&atoms, costs, mode, &found.cuts, bound);
    plan.exact = found.exact || found.ns <= enough;
    Ok(plan)
}

impl<'a> Costs<'a> {
    /// Of allreduces, if messages may be packed.
    fn all_reduce(&self, packs: bool) -> &'a dyn Prices {
        self.whole.filter(|_| !packs).unwrap_or(self.all_reduce)
    }

    /// The allreduce, or the reduce_scatter.
    fn first(&self, share: Share, bytes: u64, packs: bool) -> Price {
        match (share, self.halves) {
            (Share::Both, Some((r, _))) => r.price(bytes),
            _ => self.all_reduce(packs).price(bytes),
        }
    }
}

/// See [`Bound`]; `least` is [`Work::least`].
fn bound(a: &Atoms, mode: Mode, least: &[f64]) -> Bound {
    let n = a.len();
    let forward = a.forward[n];
    let after = if mode == Mode::AllReduce { forward } else { a.forward[1] };
    let from = (1..=n).find(|&j| a.tensor[j] == a.tensor[n]).unwrap_or(n);
    let until = |i: &usize| a.ready[i + 1] + least[*i];
    let first = (0..n).max_by(|i, j| until(i).total_cmp(&until(j)).then(j.cmp(i))).unwrap_or(0);
    Bound {
        compute: a.backward + forward,
        lane: until(&first) + after,
        lane_from: a.ready[first + 1],
        last: a.backward + least[from - 1] + forward,
    }
}

/// Plays a partition: when what happens, and the bounds.
fn lay_out(a: &Atoms, costs: &Costs, mode: Mode, cuts: &[Cut], bound: Bound) -> Plan {
    let (backward, forward) = (a.backward, a.forward[a.len()]);
    let mut lane: f64 = 0.0;
    let mut spend = |start: f64, price: Price| {
        let start = lane.max(start);
        lane = start + price.ns;
        Span { start, end: lane, algorithm: price.algorithm, wire: price.wire }
    };
    let mut buckets: Vec<Bucket> = Vec::with_capacity(cuts.len());
    for &(i, j, share) in cuts {
        let bytes = a.bytes[j] - a.bytes[i];
        let reduce = match share {
            Share::Forward => Span { start: 0.0, end: 0.0, algorithm: "", wire: None },
            _ => spend(a.ready[j], costs.first(share, bytes, a.packs[j])),
        };
        buckets.push(Bucket {
            first: a.tensor[i + 1] as usize,
            last: a.tensor[j] as usize,
            offset: a.bytes[i],
            bytes,
            share,
            ready: a.ready[j],
            reduce,
            gather: None,
        });
    }
    for (b, &(_, j, _)) in buckets.iter_mut().zip(cuts).rev() {
        match (b.share, costs.halves) {
            (Share::Forward, _) => b.reduce = spend(backward, costs.first(b.share, b.bytes, a.packs[j])),
            (Share::Both, Some((_, g))) => b.gather = Some(spend(backward, g.price(b.bytes))),
            _ => {}
        }
    }
    // The next forward pass: the last bucket holds the first layer.
    let mut time = if mode == Mode::AllReduce { lane.max(backward) } else { backward };
    let mut layers = vec![(0.0, 0.0); cuts.len()];
    for (k, &(i, j, _)) in cuts.iter().enumerate().rev() {
        let there = buckets[k].gather.unwrap_or(buckets[k].reduce).end;
        let start = time.max(there);
        time = start + (a.forward[j] - a.forward[i]);
        layers[k] = (start, time);
    }
    Plan { mode, buckets, ns: time, forward, backward, bound, layers, exact: true }
}

#[cfg(test)]
mod tests;

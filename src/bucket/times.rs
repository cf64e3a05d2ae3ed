//! What is measured, and how the ranks agree on buckets.
//!
//! All ranks must start the same buckets in the same order. So rank 0 makes them, of times that are the largest of
//! any rank's, and gives them to all.

use std::time::{Duration, Instant};

use super::layout::Layout;
use super::step::{Core, Memory, State, keeps, residual};
use super::{Bucket, BucketerConfig, Buckets, Fusion, StepTimes, Tensor};
use crate::comm::{Call, Communicator};
use crate::cost::{Cheapest, Curve, Price, Prices};
use crate::plan::{self, Costs, Mode, Model, Options, Share};
use crate::reduce::Wire;
use crate::schedule::Collective;
use crate::{DataType, Error, RedOp, Result};

/// Steps after which the first buckets are made of measured times. The very first is not counted: it makes
/// connections and touches memory.
const PROFILE: u64 = 4;
/// Steps after which they are made again: then times are known that calls under way have disturbed.
const SECOND: u64 = 2 * PROFILE;
/// Steps after which the ranks look again.
const AGAIN: u64 = 64;
/// Other buckets are taken if they promise this part of a step.
const GAIN: f64 = 0.03;
/// Weight of a new step in the means.
const WEIGHT: f64 = 0.125;
/// Time for measuring calls of one kind.
const PROBING: Duration = Duration::from_millis(300);
/// The smallest and the next sizes that are measured, bytes; and the largest, after which calls are bound by bandwidth.
const SMALLEST: usize = 4 << 10;
const RATIO: usize = 4;
const LARGEST: usize = 64 << 20;
/// Tensors of more bytes may be cut.
const CUT: u64 = 16 << 20;

/// What a kind of call takes: measured alone, corrected by what buckets took in steps.
struct Measured {
    curve: Curve,
    wire: Option<Wire>,
    factor: f64,
}

impl Prices for Measured {
    fn price(&self, bytes: u64) -> Price {
        Price { wire: self.wire, ..Price::new(self.curve.at(bytes as f64) * self.factor, "") }
    }
}

/// Prices of all kinds of calls that buckets may be made of.
struct Known {
    all_reduce: Measured,
    packed: Option<Measured>,
    halves: Option<(Measured, Measured)>,
}

pub(super) struct Times {
    /// None where buckets are made by a rule.
    known: Option<Known>,
    /// Means by tensor, in seconds: see [`State`].
    ready: Vec<f64>,
    forward: Vec<f64>,
    /// Steps in the means.
    counted: u64,
    /// No step with these buckets is over: the first one prepares their calls, and is not counted.
    fresh: bool,
    /// Mean of what buckets took, divided by what calls take alone.
    slower: f64,
    priced: u64,
}

fn gathered<T: crate::Element + Default>(comm: &Communicator, own: T) -> Result<Vec<T>> {
    let mut all = vec![T::default(); comm.size()];
    comm.all_gather(&[own], &mut all)?;
    Ok(all)
}

/// Everything that must be alike is.
pub(super) fn agree_on_tensors(comm: &Communicator, layout: &Layout, config: &BucketerConfig) -> Result<()> {
    let mut text = format!("{config:?}");
    for t in &layout.tensors {
        text += &format!(" {} {:?}", t.elements, t.dtype);
    }
    let print =
        text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let all = gathered(comm, print)?;
    let sizes = gathered(comm, layout.total())?;
    // The odd ones are those of which there are fewest.
    let count = |x: u64| all.iter().filter(|y| **y == x).count();
    let most = all.iter().copied().max_by_key(|x| count(*x)).unwrap_or(print);
    let odd: Vec<usize> = (0..all.len()).filter(|&r| all[r] != most).collect();
    if odd.is_empty() {
        return Ok(());
    }
    let usual = (0..all.len()).find(|&r| all[r] == most).unwrap_or(0);
    let list: Vec<String> = odd.iter().map(|&r| format!("rank {r} ({} bytes)", sizes[r])).collect();
    Err(Error::usage("ranks make bucketers of different tensors or settings")
        .who(format!("{} not as rank {usual} ({} bytes)", list.join(", "), sizes[usual]))
        .hint("pass the same tensors, in the same order, and the same settings on all ranks"))
}

/// Buckets before there are times. For planning, one: then the first steps' times are those of the backward
/// pass alone.
pub(super) fn by_rule(layout: &Layout, config: &BucketerConfig) -> Buckets {
    let n = layout.tensors.len();
    let bytes = |i: usize| layout.tensors[i].elements as u64 * layout.tensors[i].dtype.size() as u64;
    let mut ends = Vec::new();
    let mut full = 0;
    for i in 0..n {
        full += bytes(i);
        let end = match config.fusion {
            Fusion::Planned | Fusion::OneBucket => false,
            Fusion::PerTensor => bytes(i) > 0,
            Fusion::Threshold(limit) => full >= limit as u64,
        };
        if end {
            ends.push(full);
            full = 0;
        }
    }
    ends.push(full);
    let mut at = 0;
    let list = ends.iter().map(|&bytes| {
        at += bytes;
        (at - bytes, bytes, Share::Backward, config.wire.is_some())
    });
    Buckets { list: fit(layout, list), predicted: None }
}

/// Makes buckets of runs of bytes that follow each other. Tensors without elements go with what comes after
/// them, or, at the end, before. Only buckets that have f32 can be packed.
pub(super) fn fit(layout: &Layout, runs: impl Iterator<Item = (u64, u64, Share, bool)>) -> Vec<Bucket> {
    let mut list: Vec<Bucket> = Vec::new();
    for (offset, bytes, share, packed) in runs.filter(|r| r.1 > 0) {
        let mut span = layout.span(offset, bytes);
        let next = list.last().map_or(0, |b: &Bucket| b.span.last + 1);
        if span.first > next {
            (span.first, span.from) = (next, 0);
        }
        let float = |t: &Tensor| t.dtype == DataType::F32 && t.elements > 0;
        let packed = packed && layout.tensors[span.first..=span.last].iter().any(float);
        list.push(Bucket { span, bytes, share, packed });
    }
    if let Some(last) = list.last_mut() {
        last.span.last = layout.tensors.len() - 1;
        last.span.to = layout.places[last.span.last].len;
    }
    list
}

impl Times {
    /// Measures what calls take. Collective.
    pub fn measure(comm: &Communicator, core: &Core, config: &BucketerConfig) -> Result<Times> {
        let n = core.layout.tensors.len();
        let known = match config.fusion {
            Fusion::Planned if comm.size() > 1 => {
                let total = core.layout.total() as usize;
                let hosts = comm.hosts().iter().any(|h| *h != 0);
                let floats = core.layout.tensors.iter().any(|t| t.dtype == DataType::F32);
                let probe = |c, wire| probe(comm, c, wire, total);
                Some(Known {
                    all_reduce: probe(Collective::AllReduce, None)?,
                    packed: match config.wire {
                        Some(wire) if hosts && floats => Some(probe(Collective::AllReduce, Some(wire))?),
                        _ => None,
                    },
                    halves: match config.late {
                        true => Some((
                            probe(Collective::ReduceScatter, None)?,
                            probe(Collective::AllGather, None)?,
                        )),
                        false => None,
                    },
                })
            }
            _ => None,
        };
        let (ready, forward) = (vec![0.0; n], vec![0.0; n]);
        Ok(Times { known, ready, forward, counted: 0, fresh: true, slower: 1.0, priced: 0 })
    }

    /// A step's marks and waits, before the state forgets them. The step has `ended`, but for buckets under way.
    pub fn note(&mut self, state: &State, ended: Instant) {
        if self.known.is_none() || self.fresh {
            return;
        }
        let w = (1.0 / (self.counted + 1) as f64).max(WEIGHT);
        let forward = state.forward(ended);
        for (mean, new) in [(&mut self.ready, &state.ready), (&mut self.forward, &forward)] {
            mean.iter_mut().zip(new).for_each(|(m, x)| *m += (x - *m) * w);
        }
    }

    /// The rest of what it took.
    pub fn count(&mut self, taken: &StepTimes, state: &State) {
        let Some(known) = &self.known else { return };
        if std::mem::take(&mut self.fresh) {
            return;
        }
        self.counted += 1;
        let alone: f64 = state.buckets.list.iter().map(|b| known.alone(b)).sum();
        if alone > 0.0 && taken.busy > 0.0 && state.buckets.predicted.is_some() {
            self.priced += 1;
            let w = (1.0 / self.priced as f64).max(WEIGHT);
            let ratio = (taken.busy * 1e9 / alone).clamp(0.25, 16.0);
            self.slower += (ratio - self.slower) * w;
        }
    }

    /// Other buckets, if it is time to look and they are better, or the same with what is foretold now. Collective: all
    /// ranks have ended the same steps.
    pub fn agree(
        &mut self,
        comm: &Communicator,
        core: &Core,
        state: &State,
        config: &BucketerConfig,
    ) -> Result<Option<Buckets>> {
        let first = state.steps == PROFILE || state.steps == SECOND;
        if self.known.is_none() || !first && !state.steps.is_multiple_of(AGAIN) {
            return Ok(None);
        }
        let mut times = [&self.ready[..], &self.forward[..], &[self.slower]].concat();
        comm.all_reduce(&mut times, RedOp::Max)?;
        let mut found = Vec::new();
        let mut failed = None;
        if comm.rank() == 0 {
            let used = if first { None } else { Some(&*state.buckets) };
            match self.plan(core, &times, config.late, used) {
                Ok(buckets) => found = encode(&buckets, &core.layout),
                // The others wait to hear of it.
                Err(e) => failed = Some(e),
            }
        }
        let mut len = [if failed.is_some() { FAILED } else { found.len() as u64 }];
        comm.broadcast(&mut len, 0)?;
        match (failed, len[0]) {
            (Some(e), _) => return Err(e),
            (None, words) if words == 0 || words > most_words(&core.layout) => return Err(no_plan()),
            (None, words) => found.resize(words as usize, 0),
        }
        comm.broadcast(&mut found, 0)?;
        let buckets = decode(&found, &core.layout)?;
        if buckets.list != state.buckets.list {
            // The means are those of the old buckets.
            (self.counted, self.fresh) = (0, true);
        }
        Ok(Some(buckets))
    }

    /// The best buckets; those that are `used` if the best do not gain enough. `times` are all ranks', as `agree` puts
    /// them together.
    fn plan(&mut self, core: &Core, times: &[f64], late: bool, used: Option<&Buckets>) -> Result<Buckets> {
        let n = self.ready.len();
        let (ready, forward, slower) = (&times[..n], &times[n..2 * n], times[2 * n]);
        let Some(known) = &mut self.known else { return Err(Error::internal("a plan without prices")) };
        known.all_reduce.factor = slower;
        if let Some(p) = &mut known.packed {
            p.factor = slower;
        }
        if let Some((r, g)) = &mut known.halves {
            (r.factor, g.factor) = (slower, slower);
        }
        let mut latest = 0.0f64;
        let tensors = core.layout.tensors.iter().enumerate().map(|(i, t)| {
            // Not in the order of the list: it waits for those before it.
            latest = latest.max(ready[i] * 1e9);
            // A layer runs from the wait for it to the wait for the one that is ready before it.
            let rest = if i == 0 { 0.0 } else { forward[i - 1] };
            plan::Tensor {
                name: String::new(),
                elements: t.elements as u64,
                dtype: t.dtype,
                ready: latest,
                forward: (forward[i] - rest).max(0.0) * 1e9,
            }
        });
        let model = Model::new(tensors.collect())?;
        let all_reduce = Cheapest(std::iter::once(&known.all_reduce).chain(&known.packed).collect());
        let halves = known.halves.as_ref().map(|(r, g)| (r as &dyn Prices, g as &dyn Prices));
        let costs = Costs { all_reduce: &all_reduce, whole: Some(&known.all_reduce), halves };
        let modes = if late { Mode::ALL.to_vec() } else { vec![Mode::AllReduce] };
        // So many gradients that cutting them would be too much to plan stay whole.
        let parts = plan::LARGEST.saturating_sub(core.layout.tensors.len()) as u64;
        let cut = if parts == 0 { 0 } else { CUT.max(model.bytes().div_ceil(parts)) };
        let plan = plan::plan(&model, &costs, &Options { modes, cut })?;
        if let Some(used) = used {
            // Both by the same prices, since these may be wrong.
            let mode = if late { Mode::Priority } else { Mode::AllReduce };
            let runs = used.list.iter().map(|b| (b.bytes, b.share));
            let now = plan::replay(&model, &costs, mode, cut, runs)?;
            if plan.ns >= now * (1.0 - GAIN) {
                return Ok(Buckets { list: used.list.clone(), predicted: Some(now / 1e9) });
            }
        }
        let runs = plan.buckets.iter().map(|b| (b.offset, b.bytes, b.share, b.reduce.wire.is_some()));
        Ok(Buckets { list: fit(&core.layout, runs), predicted: Some(plan.ns / 1e9) })
    }
}

impl Known {
    /// ns of a bucket's calls alone.
    fn alone(&self, b: &Bucket) -> f64 {
        let at = |m: &Measured| m.curve.at(b.bytes as f64);
        match (b.share, &self.halves, &self.packed) {
            (Share::Both, Some((r, g)), _) => at(r) + at(g),
            (_, _, Some(p)) if b.packed => at(p),
            _ => at(&self.all_reduce),
        }
    }
}

/// Instead of the number of words of a plan: rank 0 has none, and fails.
const FAILED: u64 = u64::MAX;

/// More than any plan of these tensors has.
fn most_words(layout: &Layout) -> u64 {
    1 + 4 * (2 * layout.tensors.len() as u64 + layout.total() / CUT)
}

fn no_plan() -> Error {
    Error::internal("rank 0 sent no plan that fits these tensors")
        .who("a bucketer")
        .hint("look at its output; does it run the same version?")
}

/// Numbers for the other ranks: the prediction, then four for each bucket.
pub(super) fn encode(buckets: &Buckets, layout: &Layout) -> Vec<u64> {
    let mut words = vec![buckets.predicted.unwrap_or(0.0).to_bits()];
    let mut offset = 0;
    for b in &buckets.list {
        words.extend([offset, b.bytes, b.share as u64, u64::from(b.packed)]);
        offset += b.bytes;
    }
    debug_assert_eq!(offset, layout.total());
    words
}

pub(super) fn decode(words: &[u64], layout: &Layout) -> Result<Buckets> {
    let predicted = f64::from_bits(words[0]);
    let (mut runs, mut end) = (Vec::new(), 0u64);
    for w in words[1..].chunks_exact(4) {
        let share = [Share::Backward, Share::Forward, Share::Both].into_iter().find(|s| *s as u64 == w[2]);
        let next = end.checked_add(w[1]).filter(|_| w[0] == end);
        let (Some(share), Some(next)) = (share, next) else { return Err(no_plan()) };
        runs.push((end, w[1], share, w[3] == 1));
        end = next;
    }
    match end == layout.total() && predicted.is_finite() {
        true => Ok(Buckets { list: fit(layout, runs.into_iter()), predicted: Some(predicted) }),
        false => Err(no_plan()),
    }
}

/// Measures calls of sizes up to `total` and [`LARGEST`] bytes, as many as fit the time. The others follow from the last
/// two. Every rank gets the same.
fn probe(comm: &Communicator, collective: Collective, wire: Option<Wire>, total: usize) -> Result<Measured> {
    let n = comm.size();
    let unit = 4 * n;
    let total = total.clamp(SMALLEST, LARGEST);
    let buffer = Probe::new(total.next_multiple_of(unit), wire)?;
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut bytes = SMALLEST;
    let mut spent = 0.0;
    loop {
        let whole = bytes.min(total).next_multiple_of(unit);
        let mut times = [0.0f64; 3];
        for warm in [true, false, false, false] {
            comm.barrier()?;
            let began = Instant::now();
            buffer.call(comm, collective, whole)?;
            if !warm {
                times.rotate_left(1);
                times[2] = began.elapsed().as_nanos() as f64;
            }
        }
        times.sort_unstable_by(f64::total_cmp);
        let mut median = [times[1]];
        comm.all_reduce(&mut median, RedOp::Max)?;
        // Larger calls do not take less.
        let ns = points.last().map_or(median[0], |p| median[0].max(p.1));
        points.push((whole as f64, ns));
        spent += 4.0 * ns;
        let next = 4.0 * ns * RATIO as f64;
        if whole >= total.next_multiple_of(unit)
            || points.len() >= 3 && spent + next > PROBING.as_nanos() as f64
        {
            break;
        }
        bytes = whole * RATIO;
    }
    Ok(Measured { curve: Curve::new(points)?, wire, factor: 1.0 })
}

/// Buffers to measure with.
struct Probe {
    data: Memory,
    wire: Option<Wire>,
    /// As buckets have it: keeping what is lost costs more than packing.
    residual: Option<Memory>,
}

impl Probe {
    fn new(bytes: usize, wire: Option<Wire>) -> Result<Probe> {
        let residual = wire.filter(|w| keeps(*w)).map(|_| Memory::new(bytes)).transpose()?;
        Ok(Probe { data: Memory::new(bytes)?, wire, residual })
    }

    fn call(&self, comm: &Communicator, c: Collective, bytes: usize) -> Result<()> {
        let (p, count, n) = (self.data.0, bytes / 4, comm.size());
        let own = p.wrapping_add(bytes / n * comm.rank());
        let call = match c {
            Collective::ReduceScatter => Call::new(c, p, own, count / n, DataType::F32, RedOp::Sum),
            Collective::AllGather => Call::moving(c, own, p, count / n, DataType::F32),
            _ => Call::new(c, p, p, count, DataType::F32, RedOp::Sum),
        };
        let call = match self.wire {
            Some(wire) => call.packed(wire, residual(self.residual.as_ref(), 0)),
            None => call,
        };
        // SAFETY: our own buffers, large enough, and the call is over when this returns.
        unsafe { comm.start(&call)?.wait() }
    }
}

#[cfg(test)]
mod tests;

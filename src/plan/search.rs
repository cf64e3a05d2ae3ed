//! The search: exact dynamic programming over contiguous partitions.
//!
//! Gradients lie in the order in which they become ready, one after the other; a bucket is an interval of
//! that line. It may begin and end where a tensor does, and where a tensor is cut: the pieces in between are
//! *atoms*. One lane carries all communication, one bucket at a time.
//!
//! A plan has two phases. In the first, while the backward pass runs, buckets go in order. In the second,
//! buckets (or the second halves of all of them) go in the opposite order, which is that in which the next
//! forward pass needs them; it starts when the first phase and the backward pass are over. Two numbers
//! describe what a prefix of the line costs:
//!
//! * `e`: when the lane has done the prefix's work of the first phase, from the start of backward;
//! * `h`: how long it takes from the start of the second phase until the next forward pass is over, as far as
//!   the prefix decides that.
//!
//! A bucket that ends at atom `j`, ready at `r`, with `f` of forward time from its layers on, turns them into
//!
//! ```text
//! allreduce in the first phase:   max(e, r) + T(bytes)      max(h, f)
//! allreduce in the second:        e                         max(h, f) + T(bytes)
//! one half in each:               max(e, r) + R(bytes)      max(h, f) + G(bytes)
//! ```
//!
//! and the iteration takes `max(e, backward) + h`. Both rows rise with `e` and `h`, so a prefix that is
//! no better in either can never win: it is enough to keep, for every prefix, the pairs that are not
//! dominated. With allreduces in the first phase only, `h` is the same for all, and one pair is left: the
//! textbook recursion.
//!
//! For allreduces in either phase nothing is lost by this form, against any order of the same buckets:
//! what starts before the backward pass ends is best started in order of readiness, as only its end matters;
//! what starts later is best started in order of need; and the bucket of the first layer, which
//! is ready last and needed first, always starts later.

use super::{Costs, LARGEST, Mode, Model, Share};
use crate::cost::Prices;
use crate::{DataType, Error, Result};

/// The line of gradients in pieces that are not divided. Index 0 is before the first.
pub(super) struct Atoms {
    /// Bytes up to and including an atom.
    pub bytes: Vec<u64>,
    pub ready: Vec<f64>,
    /// Forward time of all layers up to and including the atom's: these come last in the next forward pass.
    pub forward: Vec<f64>,
    /// A bucket that ends with this atom may begin here at the earliest: its elements have one type.
    pub from: Vec<u32>,
    /// The atom's type may be packed.
    pub packs: Vec<bool>,
    pub tensor: Vec<u32>,
    pub backward: f64,
}

impl Atoms {
    /// Tensors above `cut` bytes in equal parts of at most that; 0: none. `InvalidArgument` if these are too many.
    pub fn new(model: &Model, cut: u64) -> Result<Atoms> {
        let mut a = Atoms {
            bytes: vec![0],
            ready: vec![0.0],
            forward: vec![0.0],
            from: vec![0],
            packs: vec![false],
            tensor: vec![0],
            backward: model.backward(),
        };
        let (mut before, mut forward, mut dtype) = (0, 0.0, None);
        for (i, t) in model.tensors().iter().enumerate() {
            if dtype != Some(t.dtype) {
                dtype = Some(t.dtype);
                a.from.push(a.len() as u32);
            } else {
                a.from.push(a.from[a.len()]);
            }
            forward += t.forward;
            let size = t.dtype.size() as u64;
            let parts = if cut == 0 { 1 } else { t.bytes().div_ceil(cut.max(size)).max(1) };
            if parts > (LARGEST - a.len()) as u64 {
                return Err(Error::argument(format!("more than {LARGEST} gradients, or parts, to plan"))
                    .who("a plan")
                    .hint("cut larger tensors only, or none; put small ones together"));
            }
            for p in 1..=parts {
                let elements = (u128::from(t.elements) * u128::from(p) / u128::from(parts)) as u64;
                a.bytes.push(before + elements * size);
                a.ready.push(t.ready);
                a.forward.push(forward);
                a.tensor.push(i as u32);
                a.packs.push(t.dtype == DataType::F32);
                if p > 1 {
                    a.from.push(a.from[a.len() - 1]);
                }
            }
            before += t.bytes();
        }
        Ok(a)
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.bytes.len() - 1
    }
}

/// A bucket: atoms after `.0` up to and including `.1`.
pub(super) type Cut = (usize, usize, Share);

/// What the search found.
pub(super) struct Found {
    pub cuts: Vec<Cut>,
    /// Length of an iteration, ns.
    pub ns: f64,
    /// Nothing was left out of the search.
    pub exact: bool,
}

/// What every possible bucket takes in the first and in the second phase, ns. Prices are taken once: they are
/// most of the time that a search takes.
pub(super) struct Work {
    /// Buckets that end at atom j and begin after atom i: j (j - 1) / 2 + i.
    first: Vec<f64>,
    /// Empty if there is nothing left to do in the second phase.
    second: Vec<f64>,
    /// By the atom at which buckets end, less one: those that begin earlier cost no less, in either phase. Simulated and
    /// measured prices may fall as sizes rise, where another algorithm or protocol takes over.
    rises: Vec<bool>,
}

impl Work {
    /// For halves in a mode that has them, for allreduces otherwise.
    pub fn new<'a>(a: &Atoms, costs: &Costs<'a>, mode: Mode) -> Work {
        let n = a.len();
        let mut sizes = vec![0; n];
        let mut rises = vec![true; n];
        let mut all = |prices: &dyn Fn(usize) -> &'a dyn Prices| {
            let mut table = vec![0.0; n * (n + 1) / 2];
            for j in 1..=n {
                let begins = &a.bytes[..j];
                sizes.iter_mut().zip(begins).for_each(|(s, begin)| *s = a.bytes[j] - begin);
                let row = &mut table[j * (j - 1) / 2..][..j];
                prices(j).times(&sizes[..j], row);
                // Rounding is no fall.
                rises[j - 1] &= row.windows(2).fold(true, |all, w| all & (w[0] >= w[1] * (1.0 - 1e-12)));
            }
            table
        };
        let (first, second) = match (mode, costs.halves) {
            (Mode::ReduceScatterAllGather, Some((r, g))) => (all(&|_| r), all(&|_| g)),
            _ => (all(&|j| costs.all_reduce(a.packs[j])), Vec::new()),
        };
        Work { first, second, rises }
    }

    /// Of the buckets that end at `j`, by the atom after which they begin.
    fn first(&self, j: usize) -> &[f64] {
        &self.first[j * (j - 1) / 2..][..j]
    }

    /// The same for the second phase; empty if there is nothing to do.
    fn second(&self, j: usize) -> &[f64] {
        if self.second.is_empty() { &[] } else { &self.second[j * (j - 1) / 2..][..j] }
    }

    /// Least work of the lane for the atoms after each, if they were all ready at once: also if the first of these
    /// travel with atoms before them.
    pub fn least(&self, a: &Atoms) -> Vec<f64> {
        let mut least = vec![f64::INFINITY; a.len() + 1];
        least[a.len()] = 0.0;
        for j in (1..=a.len()).rev() {
            let (from, rest) = (a.from[j] as usize, least[j]);
            let (first, second) = (self.first(j), self.second(j));
            let all = least[..j].iter_mut().zip(first).skip(from);
            if !self.rises[j - 1] {
                let mut cheapest = f64::INFINITY;
                for (i, (l, w)) in (from..).zip(all) {
                    cheapest = cheapest.min(w + second.get(i).copied().unwrap_or(0.0));
                    *l = l.min(cheapest + rest);
                }
            } else if second.is_empty() {
                all.for_each(|(l, w)| *l = l.min(w + rest));
            } else {
                all.zip(&second[from..]).for_each(|((l, w), v)| *l = l.min(w + v + rest));
            }
        }
        least
    }
}

/// Everything in order, in the first phase as early as can be: `e[j] = min over i of max(e[i], ready[j]) + T(i..j)`.
pub(super) fn in_order(a: &Atoms, share: Share, work: &Work) -> Found {
    let n = a.len();
    let mut e = vec![0.0f64; n + 1];
    let mut before = vec![0usize; n + 1];
    for j in 1..=n {
        let (mut best, mut from) = (f64::INFINITY, 0);
        let first = work.first(j);
        for i in (a.from[j] as usize..j).rev() {
            let end = e[i].max(a.ready[j]) + first[i];
            if end < best {
                (best, from) = (end, i);
            }
            // Earlier beginnings start no sooner, and cost no less.
            if e[i] <= a.ready[j] && work.rises[j - 1] {
                break;
            }
        }
        (e[j], before[j]) = (best, from);
    }
    let mut cuts = Vec::new();
    let mut j = n;
    while j > 0 {
        cuts.push((before[j], j, share));
        j = before[j];
    }
    cuts.reverse();
    Found { cuts, ns: e[n].max(a.backward) + a.forward[n], exact: true }
}

#[derive(Clone, Copy)]
struct State {
    e: f64,
    h: f64,
    /// The state before, and the atom at which it stands.
    before: u32,
    at: u32,
    share: Share,
}

/// Both phases, with at most `widest` pairs an atom. `least` is [`Work::least`]; `known` is a plan, and what
/// comes back if there is none better.
pub(super) fn two_phases(
    a: &Atoms,
    work: &Work,
    mode: Mode,
    least: &[f64],
    known: Found,
    widest: usize,
) -> Found {
    let n = a.len();
    // A gain of less than a millionth is not worth the search for it.
    let good = known.ns * (1.0 - 1e-6);
    let mut states = vec![State { e: 0.0, h: 0.0, before: 0, at: 0, share: Share::Backward }];
    // Atom i has states fronts[i]..fronts[i + 1].
    let mut fronts = vec![0, 1];
    // Least e + h of each front.
    let mut sums = vec![0.0];
    let mut exact = true;
    let mut new: Vec<State> = Vec::new();
    for (j, &rest) in least.iter().enumerate().skip(1) {
        new.clear();
        let (r, f) = (a.ready[j], a.forward[j]);
        // The next bucket is not ready sooner than the next atom, and its layers need at least that long.
        let (next_r, next_f) = if j < n { (a.ready[j + 1], a.forward[j + 1]) } else { (a.backward, f) };
        let (first, second) = (work.first(j), work.second(j));
        for i in (a.from[j] as usize..j).rev() {
            let (first, second) = (first[i], second.get(i).copied().unwrap_or(0.0));
            if sums[i] + first + second + rest >= good {
                continue;
            }
            let mut idle = false;
            for (s, &State { e, h, .. }) in states[..fronts[i + 1]].iter().enumerate().skip(fronts[i]) {
                idle |= e <= r && h <= f;
                let mut add = |e: f64, h: f64, share| {
                    let (e, h) = (e.max(next_r), h.max(next_f));
                    if e.max(a.backward) + h < good && e + h + rest < good {
                        new.push(State { e, h, before: s as u32, at: j as u32, share });
                    }
                };
                match mode {
                    Mode::ReduceScatterAllGather => add(e.max(r) + first, h.max(f) + second, Share::Both),
                    Mode::AllReduce => add(e.max(r) + first, h.max(f), Share::Backward),
                    Mode::Priority => {
                        add(e.max(r) + first, h.max(f), Share::Backward);
                        add(e, h.max(f) + first, Share::Forward);
                    }
                }
            }
            // Whoever begins earlier starts no sooner in either phase, and costs no less.
            if idle && work.rises[j - 1] {
                break;
            }
        }
        new.sort_unstable_by(|x, y| x.e.total_cmp(&y.e).then(x.h.total_cmp(&y.h)));
        let start = states.len();
        let mut lowest = f64::INFINITY;
        for s in &new {
            if s.h < lowest {
                lowest = s.h;
                states.push(*s);
            }
        }
        let width = states.len() - start;
        if width > widest {
            exact = false;
            for k in 0..widest {
                states[start + k] = states[start + k * (width - 1) / (widest - 1)];
            }
            states.truncate(start + widest);
        }
        fronts.push(states.len());
        sums.push(states[start..].iter().map(|s| s.e + s.h).fold(f64::INFINITY, f64::min));
    }
    let ns = |s: &State| s.e.max(a.backward) + s.h;
    let last = states[fronts[n]..].iter().min_by(|x, y| ns(x).total_cmp(&ns(y)));
    let Some(last) = last else { return Found { exact, ..known } };
    let (ns, mut s, mut cuts) = (ns(last), *last, Vec::new());
    while s.at > 0 {
        let before = states[s.before as usize];
        cuts.push((before.at as usize, s.at as usize, s.share));
        s = before;
    }
    cuts.reverse();
    Found { cuts, ns, exact }
}

/// Joins neighbours where that takes the lane no longer and the plan stays as fast: of many equally fast plans
/// one with few buckets.
pub(super) fn join(a: &Atoms, costs: &Costs, found: &mut Found) {
    // What a bucket takes in the first and in the second phase.
    let work = |&(i, j, share): &Cut| {
        let bytes = a.bytes[j] - a.bytes[i];
        let first = costs.first(share, bytes, a.packs[j]).ns;
        match (share, costs.halves) {
            (Share::Forward, _) => (0.0, first),
            (Share::Both, Some((_, g))) => (first, g.price(bytes).ns),
            _ => (first, 0.0),
        }
    };
    let step = |(e, h): (f64, f64), cut: &Cut, (first, second): (f64, f64)| {
        let e = if cut.2 == Share::Forward { e } else { f64::max(e, a.ready[cut.1]) + first };
        (e, f64::max(h, a.forward[cut.1]) + second)
    };
    let works: Vec<(f64, f64)> = found.cuts.iter().map(work).collect();
    let end = found.cuts.iter().zip(&works).fold((0.0, 0.0), |s, (c, w)| step(s, c, *w));
    // How late a prefix may be for the rest to be as fast; rounding aside.
    let slack = 1e-9 * found.ns;
    let mut late = (end.0.max(a.backward) + slack, end.1 + slack);
    let mut latest = vec![late; works.len()];
    for k in (1..works.len()).rev() {
        late = (late.0 - works[k].0, late.1 - works[k].1);
        latest[k - 1] = late;
    }
    let mut before = (0.0, 0.0);
    let mut joined: Vec<(Cut, (f64, f64))> = Vec::new();
    for (k, (cut, &next)) in found.cuts.iter().zip(&works).enumerate() {
        if let Some(&((i, _, share), last)) = joined.last() {
            let both = (i, cut.1, share);
            if share == cut.2 && a.from[cut.1] as usize <= i {
                let w = work(&both);
                let (e, h) = step(before, &both, w);
                let no_longer = w.0 + w.1 <= last.0 + last.1 + next.0 + next.1;
                if no_longer && e <= latest[k].0 && h <= latest[k].1 {
                    *joined.last_mut().expect("there is one") = (both, w);
                    continue;
                }
            }
            let (last, w) = *joined.last().expect("there is one");
            before = step(before, &last, w);
        }
        joined.push((*cut, next));
    }
    found.cuts = joined.into_iter().map(|(c, _)| c).collect();
}

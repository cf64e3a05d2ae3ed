//! What others do: fixed rules, on the same model and prices.

use super::search::{Atoms, Work};
use super::{Bound, Costs, Mode, Model, Plan, Share, bound, lay_out};
use crate::Result;

/// A rule and what comes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// "wfbp", "one_bucket", "25MiB", "mg_wfbp", "two_groups", "dear_25MiB".
    pub name: String,
    pub plan: Plan,
}

/// Sizes of fixed thresholds, MiB: PyTorch's DistributedDataParallel has 25, Horovod had 64 and has 128.
const THRESHOLDS: [u64; 7] = [1, 2, 5, 10, 25, 64, 128];

/// All rules: an allreduce per tensor as soon as it is ready (`wfbp`), all in one (`one_bucket`), fixed
/// thresholds (a bucket is closed when it has that many bytes, as in PyTorch), MG-WFBP's merging
/// (`mg_wfbp`), the best split in two (`two_groups`: how the system of arXiv 1807.11205 was tuned), and, where
/// halves have prices, DeAR with a threshold (`dear_25MiB`). Buckets hold one element type; nothing is cut. `InvalidArgument`
/// for more tensors than [`super::LARGEST`].
pub fn alternatives(model: &Model, costs: &Costs) -> Result<Vec<Alternative>> {
    let atoms = Atoms::new(model, 0)?;
    let n = atoms.len();
    let all = |bytes| costs.all_reduce.price(bytes).ns;
    let limit = |mode| bound(&atoms, mode, &Work::new(&atoms, costs, mode).least(&atoms));
    let no_less = limit(Mode::AllReduce);
    let lay = |ends: &[usize]| by_ends(&atoms, costs, Mode::AllReduce, ends, no_less);
    let mut rules =
        vec![("wfbp".to_string(), lay(&(1..=n).collect::<Vec<_>>())), ("one_bucket".to_string(), lay(&[n]))];
    for mib in THRESHOLDS {
        rules.push((format!("{mib}MiB"), lay(&threshold(&atoms, mib << 20))));
    }
    rules.push(("mg_wfbp".to_string(), lay(&merged_gradients(&atoms, &all))));
    let splits = (1..n).map(|i| lay(&[i, n]));
    if let Some(best) = splits.min_by(|x, y| x.ns.total_cmp(&y.ns)) {
        rules.push(("two_groups".to_string(), best));
    }
    if costs.halves.is_some() {
        let (ends, mode) = (threshold(&atoms, 25 << 20), Mode::ReduceScatterAllGather);
        rules.push(("dear_25MiB".to_string(), by_ends(&atoms, costs, mode, &ends, limit(mode))));
    }
    Ok(rules.into_iter().map(|(name, plan)| Alternative { name, plan }).collect())
}

/// Buckets that end at these atoms, and where the element type changes.
pub(super) fn by_ends(a: &Atoms, costs: &Costs, mode: Mode, ends: &[usize], bound: Bound) -> Plan {
    let share = if mode == Mode::ReduceScatterAllGather { Share::Both } else { Share::Backward };
    let changes = (1..a.len()).filter(|&j| a.from[j + 1] as usize == j);
    let mut ends: Vec<usize> = ends.iter().copied().chain(changes).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut begin = 0;
    let cuts: Vec<_> = ends.into_iter().map(|j| (std::mem::replace(&mut begin, j), j, share)).collect();
    lay_out(a, costs, mode, &cuts, bound)
}

fn threshold(a: &Atoms, bytes: u64) -> Vec<usize> {
    let (mut ends, mut begin) = (Vec::new(), 0);
    for j in 1..=a.len() {
        if a.bytes[j] - a.bytes[begin] >= bytes || j == a.len() {
            ends.push(j);
            begin = j;
        }
    }
    ends
}

/// MG-WFBP (Shi, Chu and Li, arXiv 1811.11141 and 1912.09268): a gradient waits for the next one if that is ready
/// before its own communication would be over, and either communication could not start before that anyway,
/// or waiting costs less than a start-up, `a` of a line fitted to prices.
fn merged_gradients(a: &Atoms, price: &impl Fn(u64) -> f64) -> Vec<usize> {
    let start_up = start_up(price);
    let n = a.len();
    let (mut ends, mut begin, mut start) = (Vec::new(), 0, a.ready[1]);
    for j in 1..n {
        let (over, next) = (start + price(a.bytes[j] - a.bytes[begin]), a.ready[j + 1]);
        if next < over && (start > next || next - start < start_up) {
            // Merged: the lane is as free as it was.
            start = start.max(next);
        } else {
            ends.push(j);
            begin = j;
            start = over.max(next);
        }
    }
    ends.push(n);
    ends
}

/// Least squares over the sizes that MG-WFBP measures: 8 to 504 Ki elements of 4 bytes, in steps of 8 Ki.
fn start_up(price: &impl Fn(u64) -> f64) -> f64 {
    let points: Vec<(f64, f64)> =
        (1..64u64).map(|k| k * 32768).map(|bytes| (bytes as f64, price(bytes))).collect();
    let n = points.len() as f64;
    let mean = |f: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
    let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
    let slope = mean(&|p| (p.0 - x) * (p.1 - y)) / mean(&|p| (p.0 - x) * (p.0 - x));
    y - slope * x
}

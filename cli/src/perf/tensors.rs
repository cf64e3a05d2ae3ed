//! `--tensors`: a model's gradients, one call per tensor and fused into one buffer.

use graccl::{Collective, Communicator, DataType, RedOp, Result};
use serde_json::json;

use super::args::PerfArgs;
use super::buffer::Buffer;
use super::job::{Job, bandwidth};
use super::report::Report;
use super::table::number;
use crate::plan;

/// Tensors start at multiples of this in our memory, as allocators place them. Bytes.
const ALIGN: usize = 64;

/// One gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub count: usize,
    pub dtype: DataType,
}

/// The gradients of the model `what`, in the order in which backward produces them, as this type if there is one.
pub fn load(what: &str, dtype: Option<DataType>) -> Result<Vec<Tensor>> {
    let model = plan::model_with(what, dtype, None, None)?;
    let tensors = model.tensors().iter().filter(|t| t.elements > 0);
    Ok(tensors.map(|t| Tensor { count: t.elements as usize, dtype: t.dtype }).collect())
}

/// Bytes of all tensors of a list.
pub fn total_bytes(list: &[Tensor]) -> usize {
    list.iter().map(|t| t.count.saturating_mul(t.dtype.size())).fold(0, usize::saturating_add)
}

/// Consecutive elements of one type.
#[derive(Clone, Copy)]
struct Span {
    /// Byte where it starts.
    at: usize,
    count: usize,
    dtype: DataType,
}

impl Span {
    fn bytes(&self) -> usize {
        self.count * self.dtype.size()
    }
    fn range(&self) -> std::ops::Range<usize> {
        self.at..self.at + self.bytes()
    }
}

/// Where everything lies: the tensors apart from each other, and packed, one fused span per type.
struct Layout {
    apart: Vec<Span>,
    packed: Vec<Span>,
    fused: Vec<Span>,
    apart_bytes: usize,
    packed_bytes: usize,
}

fn layout(list: &[Tensor]) -> Layout {
    let mut l = Layout {
        apart: Vec::new(),
        packed: list.iter().map(|t| Span { at: 0, count: t.count, dtype: t.dtype }).collect(),
        fused: Vec::new(),
        apart_bytes: 0,
        packed_bytes: 0,
    };
    for t in list {
        let span = Span { at: l.apart_bytes, count: t.count, dtype: t.dtype };
        l.apart_bytes = span.range().end.next_multiple_of(ALIGN);
        l.apart.push(span);
    }
    for dtype in DataType::ALL {
        let start = l.packed_bytes;
        let mut end = start;
        for span in l.packed.iter_mut().filter(|s| s.dtype == dtype) {
            span.at = end;
            end = span.range().end;
        }
        if end > start {
            l.fused.push(Span { at: start, count: (end - start) / dtype.size(), dtype });
            l.packed_bytes = end.next_multiple_of(ALIGN);
        }
    }
    l
}

/// Measures on one of the job's communicators, and prints.
pub fn run(a: &PerfArgs, job: &Job, comm: &Communicator, report: &mut Report, list: &[Tensor]) -> Result<()> {
    let op = a.ops()[0];
    let what = a.tensors.as_deref().unwrap_or("");
    let l = layout(list);
    let mut apart = Buffer::new(l.apart_bytes, a.memory)?;
    let mut packed = Buffer::new(l.packed_bytes, a.memory)?;
    let bytes = total_bytes(list);
    let elements: usize = list.iter().map(|t| t.count).sum();
    report.say(&format!(
        "#\n# {what}: {} tensors, {elements} elements, {:.1} MB, in the order of backward, in place\n\
         # time: median of the iterations, each as long as the slowest rank's\n#\n# {:<24} {:>6} \
         {:>10} {:>8} {:>8} {:>7} {:>7}\n# {:<24} {:>6} {:>10} {:>8} {:>8} {:>7} {:>7}\n",
        list.len(),
        bytes as f64 / 1e6,
        "gradients",
        "calls",
        "time",
        "algbw",
        "busbw",
        "ratio",
        "#wrong",
        "",
        "",
        "(us)",
        "(GB/s)",
        "(GB/s)",
        "",
        "",
    ))?;
    let mut base = None;
    let mut line =
        |report: &mut Report, job: &Job, name: &str, calls: usize, time: f64, wrong: Option<usize>| {
            let (algbw, busbw) = bandwidth(bytes, time, Collective::AllReduce.bus_factor(job.size));
            let ratio = *base.get_or_insert(time) / time;
            let shown = wrong.map_or("N/A".to_string(), |w| w.to_string());
            report.other(
                json!({
                    "tensors": what, "mode": name, "count": elements, "size": bytes, "calls": calls,
                    "in_place": { "time": time, "alg_bw": algbw, "bus_bw": busbw, "nwrong": wrong },
                    "ratio": ratio,
                }),
                wrong.unwrap_or(0),
            );
            report.say(&format!(
                "  {name:<24} {calls:>6} {:>10} {:>8} {:>8} {:>6}x {shown:>7}\n",
                number(time, 10),
                number(algbw, 8),
                number(busbw, 8),
                number(ratio, 6),
            ))
        };

    let wrong = check(a, job, comm, op, &mut apart, &l.apart)?;
    quiet(job, op, &mut apart, &l.apart);
    let time = median(a, job, || reduce(comm, op, &mut apart, &l.apart))?;
    line(report, job, "one call per tensor", list.len(), time, wrong)?;

    let wrong = check(a, job, comm, op, &mut packed, &l.fused)?;
    quiet(job, op, &mut packed, &l.fused);
    let time = median(a, job, || reduce(comm, op, &mut packed, &l.fused))?;
    line(report, job, "fused", l.fused.len(), time, wrong)?;

    // Both buffers have been written to, here or above: no page is touched for the first time below.
    let with_copies = || {
        for (from, to) in l.apart.iter().zip(&l.packed) {
            packed.slice_mut(to.range()).copy_from_slice(apart.slice(from.range()));
        }
        reduce(comm, op, &mut packed, &l.fused)?;
        for (to, from) in l.apart.iter().zip(&l.packed) {
            apart.slice_mut(to.range()).copy_from_slice(packed.slice(from.range()));
        }
        Ok(())
    };
    let time = median(a, job, with_copies)?;
    line(report, job, "fused, with both copies", l.fused.len(), time, None)
}

/// Time of one step, microseconds: the median of -n iterations, each as long as the slowest rank's.
/// One that the machine disturbs does not count, as it would in a mean of so few.
fn median(a: &PerfArgs, job: &Job, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut iteration = || (0..a.agg_iters).try_for_each(|_| step());
    (0..a.warmup_iters.max(1)).try_for_each(|_| iteration())?;
    let mut times = vec![0.0; a.iters as usize];
    job.each(&mut times, iteration)?;
    Ok(job.spread(&mut times)?.per_call(a.agg_iters).median)
}

/// One call per span, in place.
fn reduce(comm: &Communicator, op: RedOp, buffer: &mut Buffer, spans: &[Span]) -> Result<()> {
    spans.iter().try_for_each(|s| {
        let at = buffer.slice_mut(s.range()).as_mut_ptr();
        // SAFETY: the span is in bounds, initialised, and not used by others meanwhile.
        unsafe { comm.all_reduce_raw(at, at, s.count, s.dtype, op) }
    })
}

/// Fills the spans with what a reduction does not change.
fn quiet(job: &Job, op: RedOp, buffer: &mut Buffer, spans: &[Span]) {
    for s in spans {
        job.problem(s.dtype, op).fixed_point().fill(buffer.slice_mut(s.range()));
    }
}

/// Reduces known data span by span, and counts wrong elements on all ranks.
fn check(
    a: &PerfArgs,
    job: &Job,
    comm: &Communicator,
    op: RedOp,
    buffer: &mut Buffer,
    spans: &[Span],
) -> Result<Option<usize>> {
    if a.check == 0 {
        return Ok(None);
    }
    let mut wrong = 0;
    for _ in 0..a.check {
        let problems: Vec<_> = spans.iter().map(|s| job.problem(s.dtype, op)).collect();
        for (s, p) in spans.iter().zip(&problems) {
            p.input(job.rank, s.count).fill(buffer.slice_mut(s.range()));
        }
        reduce(comm, op, buffer, spans)?;
        for (s, p) in spans.iter().zip(&problems) {
            wrong += p.expected(s.count).compare(buffer.slice(s.range())).count;
        }
    }
    Ok(Some(job.total(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_keep_tensors_apart_and_types_together() {
        let t = |count, dtype| Tensor { count, dtype };
        let l = layout(&[t(3, DataType::F32), t(5, DataType::F16), t(7, DataType::F32)]);
        assert_eq!(l.apart.iter().map(|s| s.at).collect::<Vec<_>>(), [0, 64, 128]);
        assert_eq!(l.fused.iter().map(|s| (s.at, s.count)).collect::<Vec<_>>(), [(0, 5), (64, 10)]);
        assert_eq!(l.packed.iter().map(|s| s.at).collect::<Vec<_>>(), [64, 0, 76]);
        assert_eq!((l.apart_bytes, l.packed_bytes), (192, 128));
    }
}

//! `--tensors`: a model's gradients, one call per tensor and fused into one buffer.

use graccl::{Collective, Communicator, DataType, Error, RedOp, Result};
use serde_json::json;

use super::args::PerfArgs;
use super::buffer::Buffer;
use super::job::{Job, bandwidth};
use super::report::Report;
use super::table::number;

/// Tensors start at multiples of this in our memory, as allocators place them. Bytes.
const ALIGN: usize = 64;

/// One gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub count: usize,
    pub dtype: DataType,
}

/// The list named `what`, in the order in which backward produces the gradients.
pub fn load(what: &str, dtype: DataType) -> Result<Vec<Tensor>> {
    let forward = match what {
        "resnet50" => resnet50(),
        "alexnet" => alexnet(),
        path => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                Error::argument(format!("cannot read the tensors' list `{path}`: {e}"))
                    .hint("name resnet50, alexnet, or a file of lines name,elements[,type]")
            })?;
            return parse(&text, dtype).map_err(|e| e.who(path));
        }
    };
    Ok(forward.into_iter().rev().map(|(name, count)| Tensor { name, count, dtype }).collect())
}

/// Lines `name,elements[,type]`; empty ones, and what follows a #, do not count.
fn parse(text: &str, default: DataType) -> Result<Vec<Tensor>> {
    let mut list = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |what: String| {
            Error::argument(format!("line {}: {what}", i + 1)).hint("write name,elements[,type] on each line")
        };
        let mut fields = line.split(',').map(str::trim);
        let (name, count) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let count: usize =
            count.parse().map_err(|_| wrong(format!("`{count}` is not a number of elements")))?;
        if count == 0 || count > 1 << 40 {
            return Err(wrong(format!("{count} elements")));
        }
        let dtype = match fields.next() {
            None | Some("") => default,
            Some(t) => *DataType::ALL
                .iter()
                .find(|d| d.name() == t)
                .ok_or_else(|| wrong(format!("unknown type `{t}`")))?,
        };
        if let Some(more) = fields.next() {
            return Err(wrong(format!("a fourth field `{more}`")));
        }
        list.push(Tensor { name: name.to_string(), count, dtype });
    }
    if list.is_empty() {
        return Err(Error::argument("no tensors in the list"));
    }
    Ok(list)
}

/// Parameters of torchvision's ResNet-50, in its order.
fn resnet50() -> Vec<(String, usize)> {
    let mut all = Vec::new();
    let conv = |all: &mut Vec<_>, conv: String, bn: String, inputs: usize, outputs: usize, kernel: usize| {
        all.push((format!("{conv}.weight"), inputs * outputs * kernel * kernel));
        all.push((format!("{bn}.weight"), outputs));
        all.push((format!("{bn}.bias"), outputs));
    };
    conv(&mut all, "conv1".into(), "bn1".into(), 3, 64, 7);
    let mut inputs = 64;
    for (layer, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        let width = 64 << layer;
        for block in 0..blocks {
            let at = format!("layer{}.{block}", layer + 1);
            conv(&mut all, format!("{at}.conv1"), format!("{at}.bn1"), inputs, width, 1);
            conv(&mut all, format!("{at}.conv2"), format!("{at}.bn2"), width, width, 3);
            conv(&mut all, format!("{at}.conv3"), format!("{at}.bn3"), width, width * 4, 1);
            if block == 0 {
                let down = format!("{at}.downsample");
                conv(&mut all, format!("{down}.0"), format!("{down}.1"), inputs, width * 4, 1);
            }
            inputs = width * 4;
        }
    }
    all.push(("fc.weight".into(), inputs * 1000));
    all.push(("fc.bias".into(), 1000));
    all
}

/// Parameters of torchvision's AlexNet, in its order: (layer, inputs per output, outputs).
fn alexnet() -> Vec<(String, usize)> {
    [
        ("features.0", 3 * 11 * 11, 64),
        ("features.3", 64 * 5 * 5, 192),
        ("features.6", 192 * 3 * 3, 384),
        ("features.8", 384 * 3 * 3, 256),
        ("features.10", 256 * 3 * 3, 256),
        ("classifier.1", 256 * 6 * 6, 4096),
        ("classifier.4", 4096, 4096),
        ("classifier.6", 4096, 1000),
    ]
    .into_iter()
    .flat_map(|(layer, inputs, outputs)| {
        [(format!("{layer}.weight"), inputs * outputs), (format!("{layer}.bias"), outputs)]
    })
    .collect()
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
    fn models_have_their_published_sizes() {
        for (name, tensors, elements) in [("resnet50", 161, 25_557_032), ("alexnet", 16, 61_100_840)] {
            let list = load(name, DataType::F32).unwrap();
            assert_eq!(list.len(), tensors, "{name}");
            assert_eq!(list.iter().map(|t| t.count).sum::<usize>(), elements, "{name}");
        }
        let list = load("resnet50", DataType::Bf16).unwrap();
        assert_eq!(list[0], Tensor { name: "fc.bias".into(), count: 1000, dtype: DataType::Bf16 });
        assert_eq!(list[160].name, "conv1.weight");
        // In forward order the 76th tensor is this one, and 2,166,336 elements end with it.
        assert_eq!(list[161 - 76].name, "layer3.0.conv2.weight");
        assert_eq!(list[161 - 76..].iter().map(|t| t.count).sum::<usize>(), 2_166_336);
    }

    #[test]
    fn lists_are_parsed_or_refused_with_the_line() {
        let list = parse("# mine\na,3\n\n b , 4 , half # small\n", DataType::F32).unwrap();
        let short: Vec<_> = list.iter().map(|t| (t.name.as_str(), t.count, t.dtype)).collect();
        assert_eq!(short, [("a", 3, DataType::F32), ("b", 4, DataType::F16)]);
        for text in ["", "a", "a,x", "a,0", "a,-1", "a,3,float,4", "a,3,f8", "a,99999999999999"] {
            assert!(parse(text, DataType::F32).is_err(), "{text}");
        }
        assert!(parse("a,1\nb", DataType::F32).unwrap_err().what.starts_with("line 2"));
    }

    #[test]
    fn layouts_keep_tensors_apart_and_types_together() {
        let t = |count, dtype| Tensor { name: String::new(), count, dtype };
        let l = layout(&[t(3, DataType::F32), t(5, DataType::F16), t(7, DataType::F32)]);
        assert_eq!(l.apart.iter().map(|s| s.at).collect::<Vec<_>>(), [0, 64, 128]);
        assert_eq!(l.fused.iter().map(|s| (s.at, s.count)).collect::<Vec<_>>(), [(0, 5), (64, 10)]);
        assert_eq!(l.packed.iter().map(|s| s.at).collect::<Vec<_>>(), [64, 0, 76]);
        assert_eq!((l.apart_bytes, l.packed_bytes), (192, 128));
    }
}

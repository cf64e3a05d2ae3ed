//! What happens in a step: marks, calls, results.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::layout::{Layout, Slice, Span};
use super::{Bucket, Buckets, StepTimes};
use crate::comm::{Call, Communicator, Counts, Extent, Request};
use crate::plan::Share;
use crate::reduce::Wire;
use crate::schedule::{Collective, cut};
use crate::{DataType, Error, RedOp, Result, memory};

/// The part that calls under way share with the bucketer: memory, and how far the calls are.
pub(super) struct Core {
    pub layout: Layout,
    /// By region.
    memory: Vec<Memory>,
    /// By region: what packing lost; none where it need not be kept.
    residuals: Vec<Option<Memory>>,
    pub wire: Option<Wire>,
    pub op: RedOp,
    marked: Vec<AtomicBool>,
    runs: Mutex<Vec<Run>>,
    over: Condvar,
    /// The program's memory is no longer ours.
    dropped: Mutex<bool>,
    /// A call has failed.
    failed: AtomicBool,
}

/// Memory that peers can reach, of our own.
pub(super) struct Memory(pub *mut u8);

// SAFETY: plain memory; marks and requests say who may touch which part of it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn new(bytes: usize) -> Result<Memory> {
        Ok(Memory(memory::alloc(bytes)?))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it, and the last who could use it lets go of it here.
        let _ = unsafe { memory::free(self.0) };
    }
}

/// A bucket's calls in this step.
#[derive(Clone, Debug, Default)]
struct Run {
    /// Calls that are not over.
    left: usize,
    error: Option<Error>,
    /// From when to when each of the others was under way.
    over: Vec<(Instant, Instant)>,
}

impl Core {
    pub fn new(layout: Layout, wire: Option<Wire>, average: bool) -> Result<Core> {
        let memory = layout.regions.iter().map(|r| Memory::new(r.elements * r.dtype.size()));
        let memory = memory.collect::<Result<_>>()?;
        let kept = |dtype| wire.is_some_and(keeps) && dtype == DataType::F32;
        let residuals =
            layout.regions.iter().map(|r| kept(r.dtype).then(|| Memory::new(4 * r.elements)).transpose());
        let residuals = residuals.collect::<Result<_>>()?;
        Ok(Core {
            memory,
            residuals,
            wire,
            op: if average { RedOp::Avg } else { RedOp::Sum },
            marked: (0..layout.tensors.len()).map(|_| AtomicBool::new(false)).collect(),
            runs: Mutex::default(),
            over: Condvar::new(),
            dropped: Mutex::new(false),
            failed: AtomicBool::new(false),
            layout,
        })
    }

    pub fn check(&self, i: usize) -> Result<()> {
        let n = self.layout.tensors.len();
        if i < n {
            return Ok(());
        }
        Err(Error::argument(format!("there is no tensor {i}")).hint(format!("tensors are 0 to {}", n - 1)))
    }

    pub fn gradient(&self, i: usize) -> *mut u8 {
        let t = &self.layout.tensors[i];
        if t.memory.is_null() { self.place(i, 0) } else { t.memory }
    }

    /// Element `at` of a tensor where it is reduced.
    fn place(&self, i: usize, at: usize) -> *mut u8 {
        let p = self.layout.places[i];
        self.address(p.region, p.at + at)
    }

    fn address(&self, region: usize, at: usize) -> *mut u8 {
        self.memory[region].0.wrapping_add(at * self.layout.regions[region].dtype.size())
    }

    /// The tensor is marked, for the first time in this step.
    pub fn claim(&self, i: usize) -> Result<()> {
        if !self.marked[i].swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        Err(Error::usage("a gradient was marked ready twice in a step")
            .who(self.layout.name(i))
            .hint("mark each once, and end the step with finish_step"))
    }

    /// From where the program writes the tensor to where it is reduced.
    pub fn copy_in(&self, i: usize) {
        if !self.layout.direct(i) {
            let bytes = self.layout.places[i].len * self.layout.tensors[i].dtype.size();
            // SAFETY: both have the tensor's elements; the program leaves its part to us from the mark on, and
            // no call uses the other before this tensor is counted as ready.
            unsafe { std::ptr::copy_nonoverlapping(self.gradient(i), self.place(i, 0), bytes) };
        }
    }

    /// Back, what a slice of the bucket has of each tensor.
    fn copy_out(&self, span: &Span, slice: &Slice) {
        let dropped = lock(&self.dropped);
        if *dropped {
            return;
        }
        for i in span.first..=span.last {
            if self.layout.places[i].region != slice.region || self.layout.direct(i) {
                continue;
            }
            let (part, size) = (self.layout.part(span, i), self.layout.tensors[i].dtype.size());
            let to = self.gradient(i).wrapping_add(part.start * size);
            // SAFETY: the call is over, both have these elements, and the program leaves its part to us
            // until it has seen that the bucket is over.
            unsafe { std::ptr::copy_nonoverlapping(self.place(i, part.start), to, part.len() * size) };
        }
    }

    /// A call of bucket `b` is over.
    fn finished(&self, b: usize, started: Instant, result: &Result<()>) {
        let mut runs = lock(&self.runs);
        let run = &mut runs[b];
        run.over.push((started, Instant::now()));
        run.left = run.left.saturating_sub(1);
        if let Err(e) = result {
            self.failed.store(true, Ordering::Release);
            run.error.get_or_insert_with(|| e.clone());
        }
        if run.left == 0 {
            self.over.notify_all();
        }
    }

    /// A call of bucket `b` cannot be started: nobody waits for the rest.
    fn give_up(&self, b: usize, e: &Error) {
        let run = &mut lock(&self.runs)[b];
        run.left = 0;
        run.error.get_or_insert_with(|| e.clone());
        self.over.notify_all();
    }

    /// The program's memory is not touched any more.
    pub fn let_go(&self) {
        *lock(&self.dropped) = true;
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if *self.failed.get_mut() {
            // A peer that has not heard of the failure may still write here, so nobody else may get this memory.
            self.memory.drain(..).for_each(std::mem::forget);
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking thread leaves behind is counted, not half written.
    m.lock().unwrap_or_else(|e| e.into_inner())
}

/// A bucket that is under way.
pub(super) struct Pending {
    core: Arc<Core>,
    bucket: usize,
    requests: Vec<Arc<Request>>,
}

impl Pending {
    pub fn wait(&self) -> Result<()> {
        for r in &self.requests {
            // The error of a call that is over is the run's, too, where all errors of the bucket come together.
            if let Err(e) = r.wait()
                && matches!(r.test(), Ok(false))
            {
                return Err(e);
            }
        }
        let mut runs = lock(&self.core.runs);
        // The thread that ended the call may still be copying.
        while runs[self.bucket].left > 0 {
            runs = self.core.over.wait(runs).unwrap_or_else(|e| e.into_inner());
        }
        runs[self.bucket].error.clone().map_or(Ok(()), Err)
    }
}

/// Where a step is.
pub(super) struct State {
    pub buckets: Arc<Buckets>,
    /// By tensor: the first and the last bucket that has some of it.
    of: Vec<(usize, usize)>,
    /// By bucket: tensors that are not ready.
    left: Vec<usize>,
    /// Buckets that were started, or are put off.
    next: usize,
    requests: Vec<Vec<Arc<Request>>>,
    /// By tensor: seconds of the step at its mark; NaN before.
    pub ready: Vec<f64>,
    /// By tensor: seconds after the backward pass at which it was waited for, without the waits before; NaN if
    /// it was not.
    needed: Vec<f64>,
    pub began: Instant,
    /// All tensors are marked and the program knows.
    pub closed: bool,
    /// Seconds from the beginning to the end of the backward pass, without waits.
    backward: f64,
    waited: f64,
    failed: Option<Error>,
    pub steps: u64,
    pub last: StepTimes,
}

impl State {
    pub fn new(core: &Core, buckets: Buckets) -> State {
        let n = core.layout.tensors.len();
        let mut state = State {
            buckets: Arc::default(),
            of: vec![(0, 0); n],
            left: Vec::new(),
            next: 0,
            requests: Vec::new(),
            ready: vec![0.0; n],
            needed: vec![f64::NAN; n],
            began: Instant::now(),
            closed: false,
            backward: 0.0,
            waited: 0.0,
            failed: None,
            steps: 0,
            last: StepTimes::default(),
        };
        state.adopt(core, buckets);
        state
    }

    /// Takes other buckets, or what is foretold for the same. Between steps.
    pub fn adopt(&mut self, core: &Core, buckets: Buckets) {
        if buckets.list == self.buckets.list {
            self.buckets = Arc::new(buckets);
            return;
        }
        for (b, Bucket { span, .. }) in buckets.list.iter().enumerate() {
            for i in span.first..=span.last {
                let first = if i == span.first && span.from > 0 { self.of[i].0 } else { b };
                self.of[i] = (first, b);
            }
        }
        self.buckets = Arc::new(buckets);
        // Other ranks may complete what this one did.
        for r in core.residuals.iter().zip(&core.layout.regions).filter_map(|(m, r)| Some((m.as_ref()?, r))) {
            // SAFETY: no call is under way between steps.
            unsafe { r.0.0.write_bytes(0, 4 * r.1.elements) };
        }
        self.rewind(core);
    }

    fn rewind(&mut self, core: &Core) {
        let list = &self.buckets.list;
        self.left = list.iter().map(|b| b.span.last - b.span.first + 1).collect();
        self.next = 0;
        self.requests = vec![Vec::new(); list.len()];
        *lock(&core.runs) = vec![Run::default(); list.len()];
        for m in &core.marked {
            m.store(false, Ordering::Release);
        }
        self.closed = false;
        self.waited = 0.0;
        self.ready.fill(f64::NAN);
        self.needed.fill(f64::NAN);
    }

    pub fn fail(&mut self, e: &Error) {
        self.failed.get_or_insert_with(|| e.clone());
    }

    fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    pub fn mark(&mut self, i: usize, now: Instant, core: &Arc<Core>, comm: &Communicator) -> Result<()> {
        self.check()?;
        self.ready[i] = (now - self.began.min(now)).as_secs_f64();
        let (first, last) = self.of[i];
        for b in first..=last {
            self.left[b] -= 1;
        }
        let buckets = self.buckets.clone();
        while self.left.get(self.next) == Some(&0) {
            let b = self.next;
            self.next += 1;
            let result = match buckets.list[b].share {
                Share::Forward => Ok(()),
                Share::Backward => self.start(b, core, comm, Collective::AllReduce),
                Share::Both => self.start(b, core, comm, Collective::ReduceScatter),
            };
            result.inspect_err(|e| self.fail(e))?;
        }
        Ok(())
    }

    /// Starts the calls of a bucket, one for each type.
    fn start(&mut self, b: usize, core: &Arc<Core>, comm: &Communicator, what: Collective) -> Result<()> {
        let Bucket { span, share, packed, .. } = self.buckets.list[b];
        let slices = core.layout.slices(&span);
        if what != Collective::AllGather {
            let run = &mut lock(&core.runs)[b];
            run.left = slices.len() * if share == Share::Both { 2 } else { 1 };
        }
        for slice in slices {
            let dtype = core.layout.regions[slice.region].dtype;
            let at = core.address(slice.region, slice.at);
            let shares = || -> (Arc<[Extent]>, Extent) {
                let all = shares(slice.len, comm.size());
                let own = all[comm.rank()];
                (all.into(), own)
            };
            let call = match what {
                Collective::ReduceScatter => {
                    let (send, own) = shares();
                    let recv = at.wrapping_add(own.at * dtype.size());
                    let counts = Counts::Each { send, recv: Extent::packed(&[own.count]) };
                    Call { counts, ..Call::new(what, at, recv, 0, dtype, core.op) }
                }
                Collective::AllGather => {
                    let (recv, own) = shares();
                    let send = at.wrapping_add(own.at * dtype.size());
                    let counts = Counts::Each { send: Extent::packed(&[own.count]), recv };
                    Call { counts, ..Call::moving(what, send, at, 0, dtype) }
                }
                _ => {
                    let call = Call::new(what, at, at, slice.len, dtype, core.op);
                    match core.wire {
                        Some(wire) if packed && dtype == DataType::F32 => {
                            call.packed(wire, residual(core.residuals[slice.region].as_ref(), slice.at))
                        }
                        _ => call,
                    }
                }
            };
            let (shared, last, started) = (core.clone(), what != Collective::ReduceScatter, Instant::now());
            // SAFETY: the slice lies in memory that the callback keeps alive until the call is over; all its
            // tensors are marked, so the program leaves them alone, and buckets are apart.
            let request = unsafe { comm.start(&call) }.inspect_err(|e| core.give_up(b, e))?;
            request.on_done(Box::new(move |result| {
                if result.is_ok() && last {
                    shared.copy_out(&span, &slice);
                }
                shared.finished(b, started, result);
            }));
            self.requests[b].push(Arc::new(request));
        }
        Ok(())
    }

    /// No marks are missing: what was put off begins.
    pub fn close(&mut self, core: &Arc<Core>, comm: &Communicator) -> Result<()> {
        self.check()?;
        if self.closed {
            return Ok(());
        }
        self.complete(core, "the step cannot end")?;
        self.closed = true;
        self.backward = self.began.elapsed().as_secs_f64() - self.waited;
        // The next forward pass begins with what came last.
        let buckets = self.buckets.clone();
        for (b, bucket) in buckets.list.iter().enumerate().rev() {
            let result = match bucket.share {
                Share::Backward => Ok(()),
                Share::Forward => self.start(b, core, comm, Collective::AllReduce),
                Share::Both => self.start(b, core, comm, Collective::AllGather),
            };
            result.inspect_err(|e| self.fail(e))?;
        }
        Ok(())
    }

    fn complete(&self, core: &Core, what: &str) -> Result<()> {
        // Not those of `marked`: a gradient that another thread is copying in is not there yet.
        let missing: Vec<usize> = (0..self.ready.len()).filter(|&i| self.ready[i].is_nan()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = missing.iter().take(4).map(|&i| core.layout.name(i)).collect();
        let more = if missing.len() > names.len() { ", ..." } else { "" };
        Err(Error::usage(format!("{what}: {} gradients were not marked ready", missing.len()))
            .who(format!("{}{more}", names.join(", ")))
            .hint("mark every gradient in every step; write zeros where there is none"))
    }

    /// The buckets of tensor `i`, which must be under way; none between steps, when all results are there.
    pub fn pending(&self, i: usize, core: &Arc<Core>) -> Result<Vec<Pending>> {
        self.check()?;
        if self.steps > 0 && self.ready.iter().all(|t| t.is_nan()) {
            return Ok(Vec::new());
        }
        let (first, last) = self.of[i];
        let started = |b: usize| {
            self.left[b] == 0
                && (self.closed || b < self.next && self.buckets.list[b].share == Share::Backward)
        };
        if !(first..=last).all(started) {
            self.complete(core, "a gradient cannot be waited for")?;
            return Err(Error::usage("results come after the end of the backward pass")
                .who(core.layout.name(i))
                .hint("call finish_backward before"));
        }
        Ok((first..=last).map(|b| self.bucket(b, core)).collect())
    }

    fn bucket(&self, b: usize, core: &Arc<Core>) -> Pending {
        Pending { core: core.clone(), bucket: b, requests: self.requests[b].clone() }
    }

    pub fn all_pending(&self, core: &Arc<Core>) -> Vec<Pending> {
        (0..self.requests.len()).map(|b| self.bucket(b, core)).collect()
    }

    /// The program has waited for tensor `i` since `began`.
    pub fn note_wait(&mut self, i: usize, began: Instant) {
        if self.closed {
            self.needed[i] = self.needed[i].min(self.computed(began));
        }
        self.waited += began.elapsed().as_secs_f64();
    }

    /// Seconds from the end of the backward pass to `now`, without waits.
    fn computed(&self, now: Instant) -> f64 {
        let all = now.saturating_duration_since(self.began).as_secs_f64();
        (all - self.backward - self.waited).max(0.0)
    }

    /// By tensor: seconds from when it was needed to `ended`, where the next step begins, without waits. One that was
    /// not waited for is needed with the next layer's, and the first layer's at once: what the program does before
    /// counts as that layer.
    pub fn forward(&self, ended: Instant) -> Vec<f64> {
        let all = self.computed(ended);
        let mut rest = 0.0f64;
        // NaN is nobody's maximum.
        let mut forward: Vec<f64> = self
            .needed
            .iter()
            .map(|at| {
                rest = rest.max(all - at);
                rest
            })
            .collect();
        if let Some(first) = forward.last_mut() {
            *first = all;
        }
        forward
    }

    /// The step is over.
    pub fn end(&mut self, began_waiting: Instant, core: &Core) -> StepTimes {
        self.waited += began_waiting.elapsed().as_secs_f64();
        let calls = lock(&core.runs).iter_mut().flat_map(|r| std::mem::take(&mut r.over)).collect();
        let times = StepTimes {
            step: self.began.elapsed().as_secs_f64(),
            busy: busy(calls).as_secs_f64(),
            waited: self.waited,
            predicted: self.buckets.predicted,
        };
        self.steps += 1;
        self.rewind(core);
        times
    }
}

/// What packing loses is kept. What the other forms lose is less than what the sums lose.
pub(super) fn keeps(wire: Wire) -> bool {
    wire == Wire::Int8
}

/// Element `at` of what is kept; null if it is not.
pub(super) fn residual(kept: Option<&Memory>, at: usize) -> *mut f32 {
    kept.map_or(std::ptr::null_mut(), |m| m.0.cast::<f32>().wrapping_add(at))
}

/// How long any of these calls was under way.
pub(super) fn busy(mut calls: Vec<(Instant, Instant)>) -> Duration {
    calls.sort_unstable();
    let (mut busy, mut until) = (Duration::ZERO, None);
    for (started, ended) in calls {
        busy += ended.saturating_duration_since(until.map_or(started, |u| started.max(u)));
        until = until.max(Some(ended));
    }
    busy
}

/// How a slice of `len` elements is shared out among ranks.
fn shares(len: usize, ranks: usize) -> Vec<Extent> {
    let at = |i: usize| cut(len as u64, i as u64, ranks as u64, 1) as usize;
    (0..ranks).map(|i| Extent { at: at(i), count: at(i + 1) - at(i) }).collect()
}

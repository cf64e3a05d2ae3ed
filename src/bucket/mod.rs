//! Gradients in buckets: which are reduced together, when, and while the program computes.
//!
//! ```text
//! mark_ready(i)  -> copied in, if the program owns the memory -> its bucket is full -> a call is started
//! progress thread, or whoever waits -> the call is over -> copied out
//! finish_step    -> all are over; times are noted; now and then all ranks agree on a better plan
//! ```
//!
//! `layout` is where things lie, `step` what happens in a step, `times` what is measured and agreed.

mod layout;
mod step;
#[cfg(test)]
mod tests;
mod times;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::comm::{Communicator, Loan, in_group};
use crate::plan::Share;
use crate::reduce::Wire;
use crate::{DataType, Error, Result};
use layout::{Layout, Span};
use step::{Core, State};
use times::Times;

/// One gradient.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// For messages and pictures; may be empty.
    pub name: String,
    pub elements: usize,
    pub dtype: DataType,
    /// Where the program keeps it; null: in the bucketer's memory, at [`Bucketer::gradient`], where
    /// nothing has to be copied.
    pub memory: *mut u8,
}

// SAFETY: a description; who makes a bucketer of it promises that the memory may be used from any thread.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

impl Tensor {
    /// A gradient in the bucketer's memory.
    pub fn new(name: impl Into<String>, elements: usize, dtype: DataType) -> Tensor {
        Tensor { name: name.into(), elements, dtype, memory: std::ptr::null_mut() }
    }

    /// A gradient in the program's memory.
    pub fn at(self, memory: *mut u8) -> Tensor {
        Tensor { memory, ..self }
    }
}

/// How gradients are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fusion {
    /// As the planner finds best for the times that were measured in the first steps.
    Planned,
    /// A bucket for each tensor ("wait-free back-propagation").
    PerTensor,
    OneBucket,
    /// A bucket is full with this many bytes.
    Threshold(usize),
}

/// Settings of a [`Bucketer`]. All ranks must use the same.
#[derive(Clone, Debug)]
pub struct BucketerConfig {
    /// Results are averages over the ranks (else sums).
    pub average: bool,
    /// Gradients in f32 may travel between hosts in this form; with [`Fusion::Planned`] those buckets do for which
    /// it pays. Sums are folded in f32. What int8 loses is made up for in the next step.
    pub wire: Option<Wire>,
    pub fusion: Fusion,
    /// The program waits for each tensor ([`Bucketer::wait`]) just before it uses it, in the next
    /// forward pass. This allows plans that gather results during that pass.
    pub late: bool,
}

impl Default for BucketerConfig {
    fn default() -> BucketerConfig {
        BucketerConfig { average: true, wire: None, fusion: Fusion::Planned, late: false }
    }
}

/// What a step took. Seconds on this rank's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepTimes {
    /// From the end of the step before to the end of this one.
    pub step: f64,
    /// While a call of any bucket was under way.
    pub busy: f64,
    /// While the program waited for buckets.
    pub waited: f64,
    /// What the plan foretold for `step`, if it was made from measured times.
    pub predicted: Option<f64>,
}

/// Reduces the gradients of a training step bucket by bucket, while the program computes others.
///
/// All ranks make it with the same tensors, in the order in which the backward pass makes them ready
/// (roughly: that order decides what is put together, any order works). Then, in each step: write every
/// gradient, [`mark_ready`](Bucketer::mark_ready) it, and [`finish_step`](Bucketer::finish_step).
///
/// Buckets are started in the plan's order on every rank, whatever the order of marks. Marks may come
/// from several threads. The communicator may be used for other calls between steps, in the same order on all
/// ranks; during a step only if no bucket can start meanwhile.
pub struct Bucketer {
    comm: Loan,
    core: Arc<Core>,
    config: BucketerConfig,
    state: Mutex<State>,
    times: Mutex<Times>,
}

impl Bucketer {
    /// Makes a bucketer. Collective. With [`Fusion::Planned`] and more than one rank it measures what calls
    /// of the tensors' sizes take, for at most about a second.
    ///
    /// Errors: `InvalidArgument` (no tensors), `InvalidUsage` (ranks have other tensors or settings), those
    /// of [`Communicator::call`].
    ///
    /// # Safety
    /// Tensors with memory of their own are readable and writable there until the bucketer is dropped;
    /// from its mark to the end of the step nobody else touches a gradient.
    pub unsafe fn new(comm: &Communicator, tensors: &[Tensor], config: BucketerConfig) -> Result<Bucketer> {
        let layout = Layout::new(tensors)?;
        times::agree_on_tensors(comm, &layout, &config)?;
        let core = Arc::new(Core::new(layout, config.wire, config.average)?);
        let times = Times::measure(comm, &core, &config)?;
        let state = State::new(&core, times::by_rule(&core.layout, &config));
        let comm = comm.lend();
        Ok(Bucketer { comm, core, config, state: Mutex::new(state), times: Mutex::new(times) })
    }

    /// Where gradient `i` is to be written, and its result read: for tensors without memory of their own, the
    /// bucketer's. It stays there.
    pub fn gradient(&self, i: usize) -> Result<*mut u8> {
        self.core.check(i)?;
        Ok(self.core.gradient(i))
    }

    /// Gradient `i` is written: starts what can start now. Returns without waiting for any rank.
    ///
    /// Errors: `InvalidUsage` (marked twice in a step, in a group), the failure of a bucket of this
    /// step.
    pub fn mark_ready(&self, i: usize) -> Result<()> {
        self.core.check(i)?;
        outside_group()?;
        let closed = self.lock().closed;
        if closed {
            self.end_step()?;
        }
        self.core.claim(i)?;
        let now = Instant::now();
        self.core.copy_in(i);
        self.lock().mark(i, now, &self.core, &self.comm)
    }

    /// The backward pass is over, but not the step: results may be waited for one by one with
    /// [`wait`](Bucketer::wait), and the first mark of the next step waits for what is left.
    ///
    /// Errors: `InvalidUsage` (gradients that were not marked), the failure of a bucket.
    pub fn finish_backward(&self) -> Result<()> {
        outside_group()?;
        self.lock().close(&self.core, &self.comm)
    }

    /// Waits until the result of gradient `i` is there. Between two steps it is.
    ///
    /// Errors: `InvalidUsage` (its bucket waits for gradients that were not marked), the bucket's failure.
    pub fn wait(&self, i: usize) -> Result<()> {
        self.core.check(i)?;
        let began = Instant::now();
        let pending = self.lock().pending(i, &self.core)?;
        let result = pending.iter().try_for_each(step::Pending::wait);
        let mut state = self.lock();
        state.note_wait(i, began);
        result.inspect_err(|e| state.fail(e))
    }

    /// Waits for all results: the step is over. Collective: on some steps the ranks agree on a new plan.
    ///
    /// Errors: `InvalidUsage` (gradients that were not marked), the failure of a bucket, after which the
    /// bucketer can only be dropped.
    pub fn finish_step(&self) -> Result<StepTimes> {
        outside_group()?;
        self.lock().close(&self.core, &self.comm)?;
        self.end_step()
    }

    /// The buckets in use, in the order in which they become ready.
    pub fn buckets(&self) -> Arc<Buckets> {
        self.lock().buckets.clone()
    }

    /// The same for people: a line for each bucket.
    pub fn describe(&self) -> String {
        let buckets = self.buckets();
        let mut text = String::new();
        for (k, b) in buckets.list.iter().enumerate() {
            let tensors = match b.span.first == b.span.last {
                true => self.core.layout.name(b.span.first),
                false => format!("tensors {} to {}", b.span.first, b.span.last),
            };
            let how = match b.share {
                Share::Backward => "all_reduce when ready",
                Share::Forward => "all_reduce after the backward pass",
                Share::Both => "reduce_scatter when ready, all_gather after the backward pass",
            };
            let wire = match self.core.wire {
                Some(w) if b.packed => format!(", as {} between hosts", w.name()),
                _ => String::new(),
            };
            text += &format!("bucket {k}: {tensors}, {} bytes, {how}{wire}\n", b.bytes);
        }
        if let Some(s) = buckets.predicted {
            text += &format!("a step should take {:.3} ms\n", s * 1e3);
        }
        text
    }

    /// Steps that are over.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn end_step(&self) -> Result<StepTimes> {
        // One thread ends a step: others find it done.
        let mut times = self.times.lock().unwrap_or_else(|e| e.into_inner());
        if !self.lock().closed {
            return Ok(self.lock().last);
        }
        let began = Instant::now();
        let all = self.lock().all_pending(&self.core);
        for pending in all {
            pending.wait().inspect_err(|e| self.lock().fail(e))?;
        }
        let mut state = self.lock();
        times.note(&state, began);
        let taken = state.end(began, &self.core);
        times.count(&taken, &state);
        if let Some(buckets) = times.agree(&self.comm, &self.core, &state, &self.config)? {
            state.adopt(&self.core, buckets);
        }
        state.began = Instant::now();
        state.last = taken;
        Ok(taken)
    }
}

impl Drop for Bucketer {
    fn drop(&mut self) {
        self.core.let_go();
    }
}

/// Buckets start while the program computes, and not when a group ends.
fn outside_group() -> Result<()> {
    if in_group() {
        return Err(Error::usage("a bucketer cannot be used in a group")
            .hint("mark gradients and end steps before group_start or after group_end"));
    }
    Ok(())
}

/// Gradients that travel together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tensors, and which of their elements.
    span: Span,
    /// Without what lies between tensors.
    pub bytes: u64,
    pub share: Share,
    /// Messages between hosts are packed.
    pub packed: bool,
}

impl Bucket {
    /// The first and the last tensor. Where tensors are cut, both may have a part in the neighbours.
    pub fn tensors(&self) -> (usize, usize) {
        (self.span.first, self.span.last)
    }
}

/// What all ranks have agreed on.
#[derive(Clone, Debug, Default)]
pub struct Buckets {
    /// In the order in which they become ready.
    pub list: Vec<Bucket>,
    /// Seconds that a step should take; none if they were made by a rule, not by times.
    pub predicted: Option<f64>,
}

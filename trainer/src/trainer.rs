//! A data-parallel training step.
//!
//! ```text
//! forward, stage by stage      each stage's graph begins with a leaf: its input
//! backward, last stage first   gradients of its tensors -> the bucketer's memory -> they travel
//! finish_step                  all are averaged
//! update                       every rank, on f32 weights in the host's memory
//! ```

use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use graccl::bucket::{self, Bucketer, BucketerConfig, Fusion, StepTimes};
use graccl::{Communicator, DataType, Error, RedOp, Result};
use half::{bf16, f16};

use crate::input::Batch;
use crate::model::{Cut, Kind, Mode, Model, Stage, Train, forward};
use crate::optim::Optimiser;
use crate::state::State;

/// Part of a batch's statistics that goes into the running ones.
const FRESH: f32 = 0.1;

/// So many steps in a row may overflow with a loss scale that cannot fall.
const PATIENCE: u32 = 20;

/// In what the passes compute, and what travels. Weights, norms and the update are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    F16,
    Bf16,
}

impl Precision {
    fn burn(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        }
    }
}

/// What a batch normalisation's mean and variance are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Each rank's part of the batch.
    Local,
    /// The whole batch: the ranks talk four times for each norm and step.
    Global,
}

/// How to train.
#[derive(Clone, Debug)]
pub struct Setup {
    pub precision: Precision,
    pub optimiser: Optimiser,
    /// Of the target distribution, this part is spread over all classes.
    pub smoothing: f32,
    pub fusion: Fusion,
    pub norms: Norms,
}

/// What came of a step, over all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Mean over the images.
    pub loss: f64,
    /// Part of the images whose class was the likeliest.
    pub accuracy: f64,
    /// The gradients overflowed: no update.
    pub skipped: bool,
    /// The run will not come to anything.
    pub lost: Option<Lost>,
    pub times: StepTimes,
}

/// How a run is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The loss is no number.
    Loss,
    /// Gradients overflow in step after step, and the loss scale cannot fall any more.
    Overflow,
}

impl Report {
    /// Fails if the run is lost. `step` is that of the report.
    ///
    /// # Errors
    /// `InvalidUsage`, with what to do.
    pub fn check(&self, step: usize) -> Result<()> {
        let (what, hint) = match self.lost {
            None => return Ok(()),
            Some(Lost::Loss) => (
                format!("the training diverged: the loss of step {step} is {}", self.loss),
                "begin anew with a lower --rate, or warm up longer",
            ),
            Some(Lost::Overflow) => (
                format!("the gradients overflowed in {PATIENCE} steps in a row, up to step {step}"),
                "begin anew with a lower --rate; with a lower --loss-scale, or without, if one was given",
            ),
        };
        Err(Error::usage(what).hint(hint))
    }
}

/// A batch on a rank's device, as the passes want it.
pub struct Input {
    images: Tensor<4>,
    labels: Vec<u32>,
}

/// One rank of a training run.
pub struct Trainer {
    pub model: Model,
    pub state: State,
    setup: Setup,
    device: Device,
    /// Steps in a row that overflowed though the loss scale could not fall.
    overflows: u32,
    // Before the communicator, so that it goes first.
    bucketer: Bucketer,
    /// For norms over all ranks, whose calls are made while buckets are under way.
    norms: Option<Communicator>,
    comm: Communicator,
}

impl Trainer {
    /// Collective: all ranks with the same model, setup and weights.
    ///
    /// # Errors
    /// Those of [`Bucketer::new`].
    pub fn new(
        comm: Communicator,
        model: Model,
        setup: Setup,
        state: State,
        device: Device,
    ) -> Result<Trainer> {
        let tensors: Vec<bucket::Tensor> = (model.specs.iter().rev())
            .map(|s| bucket::Tensor::new(&s.name, s.elements(), travels_as(s.kind, setup.precision)))
            .collect();
        let config = BucketerConfig { fusion: setup.fusion, ..BucketerConfig::default() };
        // SAFETY: the tensors are in the bucketer's own memory.
        let bucketer = unsafe { Bucketer::new(&comm, &tensors, config)? };
        let norms = match setup.norms {
            Norms::Local => None,
            Norms::Global => Some(comm.duplicate()?),
        };
        Ok(Trainer { model, state, setup, device, overflows: 0, bucketer, norms, comm })
    }

    pub fn comm(&self) -> &Communicator {
        &self.comm
    }

    /// The buckets in use, for people.
    pub fn describe(&self) -> String {
        self.bucketer.describe()
    }

    /// Makes inputs of batches, in whatever thread.
    pub fn inputs(&self) -> impl Fn(Batch) -> Result<Input> + Send + Sync + use<> {
        let (device, precision) = (self.device.clone(), self.setup.precision);
        move |Batch { images, labels, shape: [c, h, w] }| {
            let data = TensorData::new(images, [labels.len(), c, h, w]);
            let images = Tensor::<4>::from_data(data, &device).cast(precision.burn());
            Ok(Input { images, labels })
        }
    }

    /// Trains on this rank's part of a batch. Collective; parts must be of one size.
    ///
    /// # Errors
    /// Those of [`Bucketer::finish_step`]: another rank died, for example. The weights are then as before.
    pub fn step(&mut self, input: &Input, rate: f32) -> Result<Report> {
        let scale = self.state.scale.scale;
        let Passed { loss, correct, seen } = self.passes(input, scale)?;
        let times = self.bucketer.finish_step()?;
        let stuck = !self.state.scale.can_fall();
        let skipped = !self.state.scale.judge(self.finite());
        self.overflows = if skipped && stuck { self.overflows + 1 } else { 0 };
        let images = input.labels.len();
        if !skipped {
            self.update(rate, scale);
            self.note(seen, images);
        }
        self.state.step += 1;
        let [loss, accuracy] = self.averages([loss, correct as f64 / images as f64])?;
        let lost = match () {
            // Its gradients are no numbers either; a smaller loss scale would not help.
            () if !loss.is_finite() => Some(Lost::Loss),
            () if self.overflows >= PATIENCE => Some(Lost::Overflow),
            () => None,
        };
        Ok(Report { loss, accuracy, skipped, lost, times })
    }

    /// Forward and backward; gradients are on their way when it returns.
    fn passes(&self, input: &Input, scale: f32) -> Result<Passed> {
        let leaves: Vec<Tensor<1>> =
            self.tensors().into_iter().map(|t| t.autodiff().require_grad()).collect();
        let mut train = Train { comm: self.norms.as_ref(), seen: vec![], cuts: vec![] };
        let mut borders = Vec::with_capacity(self.model.stages.len());
        let mut x = input.images.clone();
        for stage in &self.model.stages {
            let begin = x.autodiff().require_grad();
            let mut mode = Mode::Train(train);
            let output = forward(&self.model, &stage.layers, begin.clone(), &leaves, &mut mode)?;
            let Mode::Train(mut done) = mode else { unreachable!("a mode does not change") };
            x = output.clone().inner();
            borders.push((stage, begin, output, std::mem::take(&mut done.cuts)));
            train = done;
        }
        let (stage, begin, logits, cuts) = borders.pop().expect("a model has stages");
        let (loss, correct) = self.loss(logits, &input.labels, self.setup.smoothing);
        let value = f64::from(loss.clone().inner().into_scalar::<f32>());
        let mut above = self.stage_backward(stage, loss.mul_scalar(scale), begin, &cuts, &leaves)?;
        for (stage, begin, output, cuts) in borders.into_iter().rev() {
            // The gradient of this sum is that of the loss.
            let root = (output * above.autodiff()).sum();
            above = self.stage_backward(stage, root, begin, &cuts, &leaves)?;
        }
        Ok(Passed { loss: value, correct, seen: train.seen })
    }

    /// The backward pass of a stage whose last graph ends with `root`: gives the gradients of its tensors to the bucketer,
    /// and returns that of its input.
    fn stage_backward(
        &self,
        stage: &Stage,
        mut root: Tensor<1>,
        input: Tensor<4>,
        cuts: &[Cut],
        leaves: &[Tensor<1>],
    ) -> Result<Tensor<4>> {
        let first = stage.tensors.start;
        let mut found: Vec<Option<Tensor<1>>> = vec![None; stage.tensors.len()];
        // Where graphs begin, and the gradients there: several graphs may go on from one of them.
        let begins: Vec<&Tensor<4>> = std::iter::once(&input).chain(cuts.iter().map(|c| &c.after)).collect();
        let mut there: Vec<Option<Tensor<4>>> = vec![None; begins.len()];
        for k in (0..begins.len()).rev() {
            let mut gradients = root.backward();
            for (i, slot) in found.iter_mut().enumerate() {
                // Each tensor has a part in one graph, or in a cut.
                if let Some(g) = leaves[first + i].grad_remove(&mut gradients) {
                    *slot = Some(g);
                }
            }
            for (begin, slot) in begins.iter().zip(&mut there) {
                if let Some(g) = begin.grad_remove(&mut gradients) {
                    *slot = Some(match slot.take() {
                        Some(sum) => sum + g,
                        None => g,
                    });
                }
            }
            if k == 0 {
                break;
            }
            let cut = &cuts[k - 1];
            let comm = self.norms.as_ref().expect("only norms over all ranks cut");
            // Whatever goes on from here came later in the forward pass, and is done.
            let gradient = there[k].take().expect("a cut has a part in the loss");
            let (gradient, own) = cut.backward(comm, gradient)?;
            own.into_iter().for_each(|(i, g)| found[i - first] = Some(g));
            root = (cut.before.clone() * gradient.autodiff()).sum();
        }
        for (i, gradient) in found.into_iter().enumerate().rev() {
            self.hand_over(first + i, gradient.expect("every tensor has a part in the loss"))?;
        }
        Ok(there[0].take().expect("the input has a part in the loss"))
    }

    /// Mean cross entropy, and the number of right answers.
    fn loss(&self, logits: Tensor<4>, labels: &[u32], smoothing: f32) -> (Tensor<1>, usize) {
        let (n, classes) = (labels.len(), self.model.classes);
        let logits = logits.reshape([n, classes]).cast(DType::F32);
        let best: Vec<i64> = logits.clone().inner().argmax(1).into_data().iter::<i64>().collect();
        let correct = best.iter().zip(labels).filter(|(b, l)| **b == i64::from(**l)).count();
        let rest = smoothing / classes as f32;
        let mut target = vec![rest; n * classes];
        for (i, &label) in labels.iter().enumerate() {
            target[i * classes + label as usize] += 1.0 - smoothing;
        }
        let target = Tensor::<2>::from_data(TensorData::new(target, [n, classes]), &self.device).autodiff();
        let loss = (activation::log_softmax(logits, 1) * target).sum().mul_scalar(-1.0 / n as f32);
        (loss, correct)
    }

    /// Gives the gradient of tensor `i` to the bucketer.
    fn hand_over(&self, i: usize, gradient: Tensor<1>) -> Result<()> {
        let data = gradient.into_data();
        let bytes = data.as_bytes();
        let at = self.gradient(i);
        assert_eq!(bytes.len(), at.bytes, "gradient of {}", self.model.specs[i].name);
        // SAFETY: the bucketer's memory of this gradient, which is ours until it is marked.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.memory, bytes.len()) };
        self.bucketer.mark_ready(self.place(i))
    }

    /// The bucketer has the tensors in the order of the backward pass.
    fn place(&self, tensor: usize) -> usize {
        self.model.specs.len() - 1 - tensor
    }

    fn gradient(&self, tensor: usize) -> Memory {
        let spec = &self.model.specs[tensor];
        let dtype = travels_as(spec.kind, self.setup.precision);
        let memory = self.bucketer.gradient(self.place(tensor)).expect("the tensor exists");
        Memory { memory, bytes: spec.elements() * dtype.size(), dtype }
    }

    /// The reduced gradient in f32. Only between steps.
    pub fn reduced(&self, tensor: usize) -> Vec<f32> {
        let at = self.gradient(tensor);
        // SAFETY: nobody writes gradients between steps.
        let bytes = unsafe { std::slice::from_raw_parts(at.memory, at.bytes) };
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match at.dtype {
            DataType::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            DataType::Bf16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }

    /// Whether all reduced gradients are numbers.
    fn finite(&self) -> bool {
        (0..self.model.specs.len()).all(|i| self.reduced(i).iter().all(|g| g.is_finite()))
    }

    fn update(&mut self, rate: f32, scale: f32) {
        for i in 0..self.model.specs.len() {
            let mut gradient = self.reduced(i);
            if scale != 1.0 {
                gradient.iter_mut().for_each(|g| *g /= scale);
            }
            let kind = self.model.specs[i].kind;
            let (w, v) = (&mut self.state.weights[i], &mut self.state.velocity[i]);
            self.setup.optimiser.update(kind, rate, w, &gradient, v);
        }
    }

    /// Takes the batch's statistics into the running ones. Their variance is that of a sample.
    fn note(&mut self, seen: Vec<(usize, Tensor<1>, Tensor<1>)>, images: usize) {
        let values = |t: Tensor<1>| -> Vec<f32> { t.into_data().iter::<f32>().collect() };
        let ranks = self.norms.as_ref().map_or(1, Communicator::size);
        let images = images * ranks;
        for (norm, mean, variance) in seen {
            let (m, v) = &mut self.state.statistics[norm];
            let n = (images * self.model.positions[norm]) as f32;
            let sample = n / (n - 1.0).max(1.0);
            m.iter_mut().zip(values(mean)).for_each(|(old, new)| *old += FRESH * (new - *old));
            v.iter_mut().zip(values(variance)).for_each(|(old, new)| *old += FRESH * (new * sample - *old));
        }
    }

    /// Makes running statistics the mean of the ranks'. Collective; before evaluation and checkpoints.
    ///
    /// # Errors
    /// Those of [`Communicator::call`].
    pub fn share_statistics(&mut self) -> Result<()> {
        for (m, v) in &mut self.state.statistics {
            self.comm.all_reduce(m, RedOp::Avg)?;
            self.comm.all_reduce(v, RedOp::Avg)?;
        }
        Ok(())
    }

    /// Mean loss, without smoothing, and accuracy over all ranks' inputs. Collective; any number of inputs, of any size.
    /// Uses the running statistics, which should be shared before.
    ///
    /// # Errors
    /// Those of [`Communicator::call`].
    pub fn evaluate(&self, inputs: impl Iterator<Item = Result<Input>>) -> Result<(f64, f64)> {
        let tensors = self.tensors();
        let vector = |v: &[f32]| Tensor::<1>::from_data(TensorData::new(v.to_vec(), [v.len()]), &self.device);
        let known: Vec<_> = self.state.statistics.iter().map(|(m, v)| (vector(m), vector(v))).collect();
        let mut sums = [0.0f64; 3];
        for input in inputs {
            let Input { images: mut x, labels } = input?;
            for stage in &self.model.stages {
                x = forward(&self.model, &stage.layers, x, &tensors, &mut Mode::Eval(&known))?;
            }
            let (loss, correct) = self.loss(x, &labels, 0.0);
            let n = labels.len() as f64;
            let loss = f64::from(loss.inner().into_scalar::<f32>());
            sums = [sums[0] + loss * n, sums[1] + correct as f64, sums[2] + n];
        }
        self.comm.all_reduce(&mut sums, RedOp::Sum)?;
        Ok((sums[0] / sums[2], sums[1] / sums[2]))
    }

    fn averages(&self, mut values: [f64; 2]) -> Result<[f64; 2]> {
        self.comm.all_reduce(&mut values, RedOp::Avg)?;
        Ok(values)
    }

    /// The weights as the passes want them.
    fn tensors(&self) -> Vec<Tensor<1>> {
        let low = self.setup.precision.burn();
        let one = |(spec, values): (&crate::model::Spec, &Vec<f32>)| {
            let t = Tensor::<1>::from_data(TensorData::new(values.clone(), [values.len()]), &self.device);
            if spec.kind == Kind::Norm { t } else { t.cast(low) }
        };
        self.model.specs.iter().zip(&self.state.weights).map(one).collect()
    }
}

/// What a step's passes found on this rank.
struct Passed {
    loss: f64,
    /// Right answers.
    correct: usize,
    /// Norm, mean, variance.
    seen: Vec<(usize, Tensor<1>, Tensor<1>)>,
}

struct Memory {
    memory: *mut u8,
    bytes: usize,
    dtype: DataType,
}

/// The type of a gradient: norms compute in f32.
fn travels_as(kind: Kind, precision: Precision) -> DataType {
    match precision {
        Precision::F16 if kind != Kind::Norm => DataType::F16,
        Precision::Bf16 if kind != Kind::Norm => DataType::Bf16,
        _ => DataType::F32,
    }
}

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
use graccl::{Communicator, DataType, RedOp, Result};
use half::{bf16, f16};

use crate::input::Batch;
use crate::model::{Cut, Kind, Mode, Model, Stage, Train, forward};
use crate::optim::{LossScale, Optimiser};

/// Part of a batch's statistics that goes into the running ones.
const FRESH: f32 = 0.1;

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

/// All that a training run remembers. The same on all ranks, but for running statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub weights: Vec<Vec<f32>>,
    pub velocity: Vec<Vec<f32>>,
    /// Running mean and variance of each norm.
    pub statistics: Vec<(Vec<f32>, Vec<f32>)>,
    pub scale: LossScale,
    /// Steps done, skipped ones too.
    pub step: usize,
}

impl State {
    pub fn new(model: &Model, seed: u64, scale: LossScale) -> State {
        let weights = model.initial(seed);
        State {
            velocity: weights.iter().map(|w| vec![0.0; w.len()]).collect(),
            weights,
            statistics: model.norms.iter().map(|(_, n)| (vec![0.0; *n], vec![1.0; *n])).collect(),
            scale,
            step: 0,
        }
    }
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
    pub times: StepTimes,
}

/// One rank of a training run.
pub struct Trainer {
    pub model: Model,
    pub state: State,
    setup: Setup,
    device: Device,
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
        Ok(Trainer { model, state, setup, device, bucketer, norms, comm })
    }

    pub fn comm(&self) -> &Communicator {
        &self.comm
    }

    /// The buckets in use, for people.
    pub fn describe(&self) -> String {
        self.bucketer.describe()
    }

    /// Trains on this rank's part of a batch. Collective; parts must be of one size.
    ///
    /// # Errors
    /// Those of [`Bucketer::finish_step`]: another rank died, for example. The weights are then as before.
    pub fn step(&mut self, batch: &Batch, rate: f32) -> Result<Report> {
        let scale = self.state.scale.scale;
        let Passed { loss, correct, seen } = self.passes(batch, scale)?;
        let times = self.bucketer.finish_step()?;
        let skipped = !self.state.scale.judge(self.finite());
        if !skipped {
            self.update(rate, scale);
            self.note(seen, batch);
        }
        self.state.step += 1;
        let images = batch.labels.len() as f64;
        let [loss, accuracy] = self.averages([loss, correct as f64 / images])?;
        Ok(Report { loss, accuracy, skipped, times })
    }

    /// Forward and backward; gradients are on their way when it returns.
    fn passes(&self, batch: &Batch, scale: f32) -> Result<Passed> {
        let leaves: Vec<Tensor<1>> =
            self.tensors().into_iter().map(|t| t.autodiff().require_grad()).collect();
        let mut train = Train { comm: self.norms.as_ref(), seen: vec![], cuts: vec![] };
        let mut borders = Vec::with_capacity(self.model.stages.len());
        let mut x = self.images(batch);
        for stage in &self.model.stages {
            let input = x.autodiff().require_grad();
            let mut mode = Mode::Train(train);
            let output = forward(&self.model, &stage.layers, input.clone(), &leaves, &mut mode)?;
            let Mode::Train(mut done) = mode else { unreachable!("a mode does not change") };
            x = output.clone().inner();
            borders.push((stage, input, output, std::mem::take(&mut done.cuts)));
            train = done;
        }
        let (stage, input, logits, cuts) = borders.pop().expect("a model has stages");
        let (loss, correct) = self.loss(logits, batch);
        let value = f64::from(loss.clone().inner().into_scalar::<f32>());
        let mut above = self.stage_backward(stage, loss.mul_scalar(scale), input, &cuts, &leaves)?;
        for (stage, input, output, cuts) in borders.into_iter().rev() {
            // The gradient of this sum is that of the loss.
            let root = (output * above.autodiff()).sum();
            above = self.stage_backward(stage, root, input, &cuts, &leaves)?;
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
    fn loss(&self, logits: Tensor<4>, batch: &Batch) -> (Tensor<1>, usize) {
        let (n, classes) = (batch.labels.len(), self.model.classes);
        let logits = logits.reshape([n, classes]).cast(DType::F32);
        let best: Vec<i64> = logits.clone().inner().argmax(1).into_data().iter::<i64>().collect();
        let correct = best.iter().zip(&batch.labels).filter(|(b, l)| **b == i64::from(**l)).count();
        let rest = self.setup.smoothing / classes as f32;
        let mut target = vec![rest; n * classes];
        for (i, &label) in batch.labels.iter().enumerate() {
            target[i * classes + label as usize] += 1.0 - self.setup.smoothing;
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
    fn note(&mut self, seen: Vec<(usize, Tensor<1>, Tensor<1>)>, batch: &Batch) {
        let values = |t: Tensor<1>| -> Vec<f32> { t.into_data().iter::<f32>().collect() };
        let ranks = self.norms.as_ref().map_or(1, Communicator::size);
        let images = batch.labels.len() * ranks;
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

    /// Mean loss and accuracy over all ranks' batches. Collective; any number of batches, of any size. Uses the
    /// running statistics, which should be shared before.
    ///
    /// # Errors
    /// Those of [`Communicator::call`].
    pub fn evaluate(&self, batches: impl Iterator<Item = Result<Batch>>) -> Result<(f64, f64)> {
        let tensors = self.tensors();
        let vector = |v: &[f32]| Tensor::<1>::from_data(TensorData::new(v.to_vec(), [v.len()]), &self.device);
        let known: Vec<_> = self.state.statistics.iter().map(|(m, v)| (vector(m), vector(v))).collect();
        let mut sums = [0.0f64; 3];
        for batch in batches {
            let batch = batch?;
            let mut x = self.images(&batch);
            for stage in &self.model.stages {
                x = forward(&self.model, &stage.layers, x, &tensors, &mut Mode::Eval(&known))?;
            }
            let (loss, correct) = self.loss(x, &batch);
            let n = batch.labels.len() as f64;
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

    fn images(&self, batch: &Batch) -> Tensor<4> {
        let [c, h, w] = batch.shape;
        let data = TensorData::new(batch.images.clone(), [batch.labels.len(), c, h, w]);
        Tensor::<4>::from_data(data, &self.device).cast(self.setup.precision.burn())
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

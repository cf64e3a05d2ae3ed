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
use crate::model::{Kind, Mode, Model, forward};
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

/// How to train.
#[derive(Clone, Debug)]
pub struct Setup {
    pub precision: Precision,
    pub optimiser: Optimiser,
    /// Of the target distribution, this part is spread over all classes.
    pub smoothing: f32,
    pub fusion: Fusion,
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
        Ok(Trainer { model, state, setup, device, bucketer, comm })
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
        let mut seen = Vec::new();
        let scale = self.state.scale.scale;
        let (loss, correct) = self.passes(batch, scale, &mut seen)?;
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

    /// Forward and backward; gradients are on their way when it returns. Loss and number of right answers.
    fn passes(
        &self,
        batch: &Batch,
        scale: f32,
        seen: &mut Vec<(usize, Tensor<1>, Tensor<1>)>,
    ) -> Result<(f64, usize)> {
        let leaves: Vec<Tensor<1>> =
            self.tensors().into_iter().map(|t| t.autodiff().require_grad()).collect();
        let mut mode = Mode::Train(seen);
        let mut borders = Vec::with_capacity(self.model.stages.len());
        let mut x = self.images(batch);
        for stage in &self.model.stages {
            let input = x.autodiff().require_grad();
            let output = forward(&self.model, &stage.layers, input.clone(), &leaves, &mut mode);
            x = output.clone().inner();
            borders.push((input, output));
        }
        let (input, logits) = borders.pop().expect("a model has stages");
        let (loss, correct) = self.loss(logits, batch);
        let value = loss.clone().inner().into_scalar::<f32>();
        let mut gradients = loss.mul_scalar(scale).backward();
        let last = self.model.stages.len() - 1;
        self.hand_over(last, &leaves, &mut gradients)?;
        let mut above = input.grad_remove(&mut gradients).expect("the input is a leaf of its stage");
        for (i, (input, output)) in borders.into_iter().enumerate().rev() {
            // The gradient of this sum is that of the loss.
            let mut gradients = (output * above.autodiff()).sum().backward();
            self.hand_over(i, &leaves, &mut gradients)?;
            above = input.grad_remove(&mut gradients).expect("the input is a leaf of its stage");
        }
        Ok((f64::from(value), correct))
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

    /// Gives a stage's gradients to the bucketer, last tensor first.
    fn hand_over(
        &self,
        stage: usize,
        leaves: &[Tensor<1>],
        gradients: &mut burn::tensor::Gradients,
    ) -> Result<()> {
        for i in self.model.stages[stage].tensors.clone().rev() {
            let gradient = leaves[i].grad_remove(gradients).expect("every tensor has a part in the loss");
            let data = gradient.into_data();
            let bytes = data.as_bytes();
            let at = self.gradient(i);
            assert_eq!(bytes.len(), at.bytes, "gradient of {}", self.model.specs[i].name);
            // SAFETY: the bucketer's memory of this gradient, which is ours until it is marked.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.memory, bytes.len()) };
            self.bucketer.mark_ready(self.place(i))?;
        }
        Ok(())
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
        let images = batch.labels.len();
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
                x = forward(&self.model, &stage.layers, x, &tensors, &mut Mode::Eval(&known));
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

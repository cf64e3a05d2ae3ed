//! The forward pass of layers.

use burn::tensor::module::{batch_norm, batch_norm_train, conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{DType, Tensor, TensorData, activation};
use graccl::{Communicator, RedOp, Result};

use super::{Layer, Model};

const EPSILON: f64 = 1e-5;

/// What batch normalisations do.
pub enum Mode<'a> {
    /// Use the batch's mean and variance, and note them.
    Train(Train<'a>),
    /// Use these: means and variances by norm.
    Eval(&'a [(Tensor<1>, Tensor<1>)]),
}

/// What a training's forward pass leaves behind.
pub struct Train<'a> {
    /// Statistics are those of the parts of the batch that all its ranks have, which are of one size. None: those of
    /// this rank's part.
    pub comm: Option<&'a Communicator>,
    /// Norm, mean, variance (of the population).
    pub seen: Vec<(usize, Tensor<1>, Tensor<1>)>,
    /// Where this stage's graph is cut, in the order of the forward pass. Only with a communicator.
    pub cuts: Vec<Cut>,
}

/// A border between two graphs of a stage. The ranks have to talk within a norm's backward pass, so a norm over all
/// ranks is no part of a graph: one graph ends before it, and another begins after it.
pub struct Cut {
    /// Where the graph before it ends.
    pub before: Tensor<4>,
    /// Where the graph after it begins: a leaf.
    pub after: Tensor<4>,
    /// None: nothing is computed here. No part of a graph may be in two backward passes, so what goes both into a body
    /// and past it has to be a leaf.
    norm: Option<Norm>,
}

/// What a norm's backward pass needs.
struct Norm {
    gamma: usize,
    scale: Tensor<4>,
    /// The deviation's reciprocal.
    factor: Tensor<4>,
    normalised: Tensor<4>,
}

impl Cut {
    /// The loss's gradient before the cut, from that after it; with those of the tensors that the cut has, by number.
    ///
    /// # Errors
    /// Those of [`Communicator::all_reduce`].
    pub fn backward(
        &self,
        comm: &Communicator,
        gradient: Tensor<4>,
    ) -> Result<(Tensor<4>, Vec<(usize, Tensor<1>)>)> {
        let Some(norm) = &self.norm else { return Ok((gradient, vec![])) };
        let dtype = gradient.dtype();
        let dy = gradient.cast(DType::F32);
        let n = (values(&dy) * comm.size()) as f64;
        let gamma = sums(dy.clone() * norm.normalised.clone());
        let beta = sums(dy.clone());
        let mean = |own: &Tensor<1>| over_ranks(comm, own.clone()).map(|sum| row(sum.div_scalar(n)));
        let rest = dy - mean(&beta)? - norm.normalised.clone() * mean(&gamma)?;
        let dx = rest * (norm.scale.clone() * norm.factor.clone());
        Ok((dx.cast(dtype), vec![(norm.gamma, gamma), (norm.gamma + 1, beta)]))
    }
}

impl Train<'_> {
    /// Ends the graph: what follows begins with a leaf.
    fn cut(&mut self, before: Tensor<4>, value: Tensor<4>, norm: Option<Norm>) -> Tensor<4> {
        let after = value.autodiff().require_grad();
        self.cuts.push(Cut { before, after: after.clone(), norm });
        after
    }

    /// A norm over all ranks.
    fn norm(
        &mut self,
        comm: &Communicator,
        before: Tensor<4>,
        (gamma, stats): (usize, usize),
        tensors: &[Tensor<1>],
    ) -> Result<Tensor<4>> {
        let dtype = before.dtype();
        let x = before.clone().inner().cast(DType::F32);
        let n = (values(&x) * comm.size()) as f64;
        let mean = over_ranks(comm, sums(x.clone()))?.div_scalar(n);
        let centred = x - row(mean.clone());
        let variance = over_ranks(comm, sums(centred.clone() * centred.clone()))?.div_scalar(n);
        let factor = row(variance.clone().add_scalar(EPSILON).sqrt().recip());
        self.seen.push((stats, mean, variance));
        let [scale, shift] = [gamma, gamma + 1].map(|i| row(tensors[i].clone().inner()));
        let normalised = centred * factor.clone();
        let y = (normalised.clone() * scale.clone() + shift).cast(dtype);
        Ok(self.cut(before, y, Some(Norm { gamma, scale, factor, normalised })))
    }
}

/// Of each channel.
fn values(x: &Tensor<4>) -> usize {
    let [images, _, height, width] = x.dims();
    images * height * width
}

/// Of each channel.
fn sums(x: Tensor<4>) -> Tensor<1> {
    let channels = x.dims()[1];
    x.sum_dims(&[0, 2, 3]).reshape([channels])
}

/// A value for each channel, as it goes with images.
fn row(x: Tensor<1>) -> Tensor<4> {
    let channels = x.dims()[0];
    x.reshape([1, channels, 1, 1])
}

/// Adds up the ranks' values.
fn over_ranks(comm: &Communicator, own: Tensor<1>) -> Result<Tensor<1>> {
    let device = own.device();
    let mut sums: Vec<f32> = own.into_data().iter::<f32>().collect();
    comm.all_reduce(&mut sums, RedOp::Sum)?;
    let n = sums.len();
    Ok(Tensor::from_data(TensorData::new(sums, [n]), &device))
}

/// The output of `layers` for `x` (images, channels, height, width). `tensors` are all of the model's, flat. Norms
/// compute in f32, whatever the type of `x`.
///
/// # Errors
/// Those of [`Communicator::all_reduce`], with norms over all ranks.
pub fn forward(
    model: &Model,
    layers: &[Layer],
    mut x: Tensor<4>,
    tensors: &[Tensor<1>],
    mode: &mut Mode,
) -> Result<Tensor<4>> {
    for layer in layers {
        x = apply(model, layer, x, tensors, mode)?;
    }
    Ok(x)
}

fn apply(
    model: &Model,
    layer: &Layer,
    x: Tensor<4>,
    tensors: &[Tensor<1>],
    mode: &mut Mode,
) -> Result<Tensor<4>> {
    Ok(match *layer {
        Layer::Conv { weight, bias, stride, padding } => {
            let shape: [usize; 4] =
                model.specs[weight].shape.clone().try_into().expect("a convolution's has 4");
            let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
            conv2d(x, tensors[weight].clone().reshape(shape), bias.map(|b| tensors[b].clone()), options)
        }
        Layer::Norm { gamma, stats } => {
            if let Mode::Train(train) = mode
                && let Some(comm) = train.comm
            {
                return train.norm(comm, x, (gamma, stats), tensors);
            }
            let dtype = x.dtype();
            let x = x.cast(DType::F32);
            let (g, b) = (tensors[gamma].clone(), tensors[gamma + 1].clone());
            let y = match mode {
                Mode::Train(train) => {
                    let y = batch_norm_train(x, g, b, EPSILON);
                    train.seen.push((stats, y.mean.inner(), y.variance.inner()));
                    y.output
                }
                Mode::Eval(known) => {
                    let (mean, variance) = known[stats].clone();
                    batch_norm(x, g, b, mean, variance, EPSILON)
                }
            };
            y.cast(dtype)
        }
        Layer::Relu => activation::relu(x),
        Layer::MaxPool { kernel, stride, padding } => {
            let mut options = MaxPoolOptions::new([kernel; 2]);
            options.stride = [stride; 2];
            options.padding = [(padding, padding); 2];
            max_pool2d(x, options)
        }
        Layer::MeanPool => x.mean_dim(2).mean_dim(3),
        Layer::Linear { weight } => {
            let [out, features]: [usize; 2] = model.specs[weight].shape.clone().try_into().expect("a matrix");
            let n = x.dims()[0];
            let w = tensors[weight].clone().reshape([out, features]).transpose();
            let y = x.reshape([n, features]).matmul(w) + tensors[weight + 1].clone().reshape([1, out]);
            y.reshape([n, out, 1, 1])
        }
        Layer::Residual { ref body, ref shortcut } => {
            let x = match mode {
                Mode::Train(train) if train.comm.is_some() => {
                    let value = x.clone().inner();
                    train.cut(x, value, None)
                }
                _ => x,
            };
            let short = forward(model, shortcut, x.clone(), tensors, mode)?;
            forward(model, body, x, tensors, mode)? + short
        }
    })
}

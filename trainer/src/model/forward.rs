//! The forward pass of layers.

use burn::tensor::module::{batch_norm, batch_norm_train, conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{DType, Tensor, activation};

use super::{Layer, Model};

const EPSILON: f64 = 1e-5;

/// What batch normalisations do.
pub enum Mode<'a> {
    /// Use the batch's mean and variance, and put them here: norm, mean, variance (of the population).
    Train(&'a mut Vec<(usize, Tensor<1>, Tensor<1>)>),
    /// Use these: means and variances by norm.
    Eval(&'a [(Tensor<1>, Tensor<1>)]),
}

/// The output of `layers` for `x` (images, channels, height, width). `tensors` are all of the model's, flat. Norms
/// compute in f32, whatever the type of `x`.
pub fn forward(
    model: &Model,
    layers: &[Layer],
    mut x: Tensor<4>,
    tensors: &[Tensor<1>],
    mode: &mut Mode,
) -> Tensor<4> {
    for layer in layers {
        x = apply(model, layer, x, tensors, mode);
    }
    x
}

fn apply(model: &Model, layer: &Layer, x: Tensor<4>, tensors: &[Tensor<1>], mode: &mut Mode) -> Tensor<4> {
    match *layer {
        Layer::Conv { weight, bias, stride, padding } => {
            let shape: [usize; 4] =
                model.specs[weight].shape.clone().try_into().expect("a convolution's has 4");
            let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
            conv2d(x, tensors[weight].clone().reshape(shape), bias.map(|b| tensors[b].clone()), options)
        }
        Layer::Norm { gamma, stats } => {
            let dtype = x.dtype();
            let x = x.cast(DType::F32);
            let (g, b) = (tensors[gamma].clone(), tensors[gamma + 1].clone());
            let y = match mode {
                Mode::Train(seen) => {
                    let y = batch_norm_train(x, g, b, EPSILON);
                    seen.push((stats, y.mean.inner(), y.variance.inner()));
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
            let short = forward(model, shortcut, x.clone(), tensors, mode);
            forward(model, body, x, tensors, mode) + short
        }
    }
}

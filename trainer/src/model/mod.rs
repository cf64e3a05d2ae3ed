//! Networks as data: tensors with names, and stages of layers that say what is computed with them.
//!
//! A stage is what the backward pass does in one go: when it is over, the gradients of the stage's tensors are
//! final and may travel. So nothing here knows how a network is trained.

mod alexnet;
mod forward;
mod resnet;

use std::ops::Range;

use crate::random::{Random, WEIGHTS};

pub use alexnet::{AlexNorms, alexnet};
pub use forward::{Cut, Mode, Train, forward};
pub use resnet::resnet50;

/// What a tensor is for: decay and trust ratio are for weights only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Weight,
    Bias,
    /// Scale or shift of a batch normalisation.
    Norm,
}

/// How a tensor begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Gaussian, mean 0.
    Normal {
        deviation: f32,
    },
    Constant(f32),
}

/// One trained tensor.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub shape: Vec<usize>,
    pub kind: Kind,
    pub init: Init,
}

impl Spec {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One layer. Tensors are named by their index among the model's.
#[derive(Clone, Debug)]
pub enum Layer {
    Conv {
        weight: usize,
        bias: Option<usize>,
        stride: usize,
        padding: usize,
    },
    /// Batch normalisation; beta is the tensor after gamma. `stats` is its index among the model's norms.
    Norm {
        gamma: usize,
        stats: usize,
    },
    Relu,
    MaxPool {
        kernel: usize,
        stride: usize,
        padding: usize,
    },
    /// The mean of each channel.
    MeanPool,
    /// The bias is the tensor after the weight.
    Linear {
        weight: usize,
    },
    /// Body and shortcut (none: the input itself), added.
    Residual {
        body: Vec<Layer>,
        shortcut: Vec<Layer>,
    },
}

/// Layers whose gradients are made together.
#[derive(Clone, Debug)]
pub struct Stage {
    pub layers: Vec<Layer>,
    /// Its tensors.
    pub tensors: Range<usize>,
}

/// A network.
#[derive(Clone, Debug)]
pub struct Model {
    /// Channels, height, width.
    pub input: [usize; 3],
    pub classes: usize,
    /// In the order of the forward pass, which is torchvision's.
    pub specs: Vec<Spec>,
    /// Name and channels of each batch normalisation, for its running statistics.
    pub norms: Vec<(String, usize)>,
    /// Places of an image that each of them sees.
    pub positions: Vec<usize>,
    pub stages: Vec<Stage>,
}

impl Model {
    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.specs.iter().map(Spec::elements).sum()
    }

    /// First values of all tensors: the same for the same seed, anywhere.
    pub fn initial(&self, seed: u64) -> Vec<Vec<f32>> {
        self.specs
            .iter()
            .enumerate()
            .map(|(i, s)| initial(s, Random::new(seed, &[WEIGHTS, i as u64])))
            .collect()
    }
}

fn initial(spec: &Spec, mut random: Random) -> Vec<f32> {
    match spec.init {
        Init::Constant(c) => vec![c; spec.elements()],
        Init::Normal { deviation } => (0..spec.elements()).map(|_| deviation * random.normal()).collect(),
    }
}

/// Places of a window along a side of `n`.
fn slide(n: usize, [kernel, stride, padding]: [usize; 3]) -> usize {
    assert!(n + 2 * padding >= kernel, "a window of {kernel} does not fit into {n}");
    (n + 2 * padding - kernel) / stride + 1
}

/// Follows the shape of the activations while layers are added.
struct Builder {
    model: Model,
    shape: [usize; 3],
}

impl Builder {
    fn new(input: [usize; 3], classes: usize) -> Builder {
        let model = Model { input, classes, specs: vec![], norms: vec![], positions: vec![], stages: vec![] };
        Builder { model, shape: input }
    }

    fn tensor(&mut self, name: String, shape: &[usize], kind: Kind, init: Init) -> usize {
        self.model.specs.push(Spec { name, shape: shape.to_vec(), kind, init });
        self.model.specs.len() - 1
    }

    /// A convolution, He-initialised by fan-in.
    fn conv(&mut self, name: &str, out: usize, [kernel, stride, padding]: [usize; 3], bias: bool) -> Layer {
        let [channels, h, w] = self.shape;
        let deviation = (2.0 / (channels * kernel * kernel) as f32).sqrt();
        let shape = [out, channels, kernel, kernel];
        let weight = self.tensor(format!("{name}.weight"), &shape, Kind::Weight, Init::Normal { deviation });
        let bias = bias.then(|| self.tensor(format!("{name}.bias"), &[out], Kind::Bias, Init::Constant(0.0)));
        let after = |n: usize| slide(n, [kernel, stride, padding]);
        self.shape = [out, after(h), after(w)];
        Layer::Conv { weight, bias, stride, padding }
    }

    fn norm(&mut self, name: &str, gamma: f32) -> Layer {
        let channels = self.shape[0];
        let g = self.tensor(format!("{name}.weight"), &[channels], Kind::Norm, Init::Constant(gamma));
        self.tensor(format!("{name}.bias"), &[channels], Kind::Norm, Init::Constant(0.0));
        self.model.norms.push((name.to_string(), channels));
        self.model.positions.push(self.shape[1] * self.shape[2]);
        Layer::Norm { gamma: g, stats: self.model.norms.len() - 1 }
    }

    fn max_pool(&mut self, [kernel, stride, padding]: [usize; 3]) -> Layer {
        let after = |n: usize| slide(n, [kernel, stride, padding]);
        self.shape = [self.shape[0], after(self.shape[1]), after(self.shape[2])];
        Layer::MaxPool { kernel, stride, padding }
    }

    fn mean_pool(&mut self) -> Layer {
        self.shape = [self.shape[0], 1, 1];
        Layer::MeanPool
    }

    fn linear(&mut self, name: &str, out: usize, deviation: f32) -> Layer {
        let features = self.shape.iter().product();
        let init = Init::Normal { deviation };
        let weight = self.tensor(format!("{name}.weight"), &[out, features], Kind::Weight, init);
        self.tensor(format!("{name}.bias"), &[out], Kind::Bias, Init::Constant(0.0));
        self.shape = [out, 1, 1];
        Layer::Linear { weight }
    }

    /// Ends a stage of these layers.
    fn stage(&mut self, layers: Vec<Layer>) {
        let first = self.model.stages.last().map_or(0, |s| s.tensors.end);
        self.model.stages.push(Stage { layers, tensors: first..self.model.specs.len() });
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Tensor, TensorData};

    use super::*;

    fn counts(m: &Model) -> (usize, usize) {
        assert_eq!(m.stages.last().unwrap().tensors.end, m.specs.len());
        (m.specs.len(), m.parameters())
    }

    #[test]
    fn parameters_are_those_of_the_papers() {
        let image = [3, 227, 227];
        assert_eq!(counts(&alexnet(image, 1000, 64, AlexNorms::None).unwrap()), (16, 62_378_344));
        assert_eq!(counts(&alexnet(image, 1000, 64, AlexNorms::Pool5).unwrap()), (18, 62_378_856));
        assert_eq!(counts(&alexnet(image, 1000, 64, AlexNorms::All).unwrap()), (26, 62_381_096));
        assert_eq!(counts(&resnet50([3, 224, 224], 1000, 64)), (161, 25_557_032));
    }

    #[test]
    fn the_last_scale_of_each_branch_begins_with_zero() {
        let m = resnet50([3, 32, 32], 10, 8);
        let zero = |s: &&Spec| s.init == Init::Constant(0.0) && s.name.ends_with("bn3.weight");
        assert_eq!(m.specs.iter().filter(zero).count(), 16);
        assert!(
            m.specs.iter().filter(zero).all(|s| initial(s, Random::new(1, &[])).iter().all(|&v| v == 0.0))
        );
        // Tensors 76 and 77 of the forward order, counted from 1.
        assert_eq!(
            (m.specs[75].name.as_str(), m.specs[76].name.as_str()),
            ("layer3.0.conv2.weight", "layer3.0.bn2.weight")
        );
    }

    /// Standard deviations of the first values: 0.01 for the last fully connected layer, He's by fan-in for all other
    /// weights; shifts and biases are 0, scales of norms 1 or 0.
    #[test]
    fn weights_begin_as_they_should() {
        for m in [alexnet([3, 67, 67], 1000, 32, AlexNorms::All).unwrap(), resnet50([3, 32, 32], 1000, 32)] {
            let mut drawn = 0;
            for (spec, values) in m.specs.iter().zip(m.initial(3)) {
                let n = values.len() as f64;
                if spec.kind != Kind::Weight {
                    let scales = spec.kind == Kind::Norm && spec.name.ends_with("weight");
                    let scale = if scales && !spec.name.ends_with(".bn3.weight") { 1.0 } else { 0.0 };
                    assert!(values.iter().all(|&v| v == scale), "{}", spec.name);
                    continue;
                }
                let fan_in: usize = spec.shape[1..].iter().product();
                let last = matches!(spec.name.as_str(), "fc.weight" | "fc8.weight");
                let want = if last { 0.01 } else { (2.0 / fan_in as f64).sqrt() };
                let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
                let deviation =
                    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
                // Five standard errors.
                assert!(mean.abs() < 5.0 * want / n.sqrt(), "{}: mean {mean}", spec.name);
                let off = (deviation / want - 1.0).abs();
                assert!(off < 5.0 / (2.0 * n).sqrt(), "{}: {deviation} instead of {want}", spec.name);
                drawn += 1;
            }
            assert_eq!(drawn, if m.norms.len() == 5 { 8 } else { 54 });
        }
    }

    /// The network computes what it was built for: `linear` would not fit otherwise.
    fn passes_through(m: &Model) {
        let device = burn::tensor::Device::flex();
        let [c, h, w] = m.input;
        let tensor = |v: Vec<f32>| {
            let n = v.len();
            Tensor::<1>::from_data(TensorData::new(v, [n]), &device)
        };
        let tensors: Vec<_> = m.specs.iter().map(|s| tensor(vec![0.1; s.elements()])).collect();
        let known: Vec<_> =
            m.norms.iter().map(|(_, n)| (tensor(vec![0.0; *n]), tensor(vec![1.0; *n]))).collect();
        let mut x = Tensor::<4>::from_data(TensorData::new(vec![0.5f32; c * h * w], [1, c, h, w]), &device);
        for stage in &m.stages {
            x = forward(m, &stage.layers, x, &tensors, &mut Mode::Eval(&known)).unwrap();
        }
        assert_eq!(x.dims(), [1, m.classes, 1, 1]);
    }

    #[test]
    fn every_size_of_images_is_computed_or_refused() {
        for size in 1..=260 {
            match alexnet([1, size, size], 3, 2, AlexNorms::All) {
                Ok(m) => passes_through(&m),
                Err(e) => assert!(size < 15 && e.to_string().contains("15 pixels or larger"), "{size}: {e}"),
            }
            passes_through(&resnet50([1, size, size], 3, 2));
        }
        for [h, w] in [[15, 260], [66, 67], [67, 66], [225, 64], [64, 300], [15, 15]] {
            passes_through(&alexnet([3, h, w], 3, 2, AlexNorms::Pool5).unwrap());
            passes_through(&resnet50([3, h, w], 3, 2));
        }
        assert!(alexnet([1, 14, 100], 3, 2, AlexNorms::None).is_err());
        assert!(alexnet([1, 100, 14], 3, 2, AlexNorms::None).is_err());
    }
}

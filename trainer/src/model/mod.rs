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
        let after = |n: usize| (n + 2 * padding).saturating_sub(kernel) / stride + 1;
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
        let after = |n: usize| (n + 2 * padding).saturating_sub(kernel) / stride + 1;
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
    use super::*;

    fn counts(m: &Model) -> (usize, usize) {
        assert_eq!(m.stages.last().unwrap().tensors.end, m.specs.len());
        (m.specs.len(), m.parameters())
    }

    #[test]
    fn parameters_are_those_of_the_papers() {
        let image = [3, 227, 227];
        assert_eq!(counts(&alexnet(image, 1000, 64, AlexNorms::None)), (16, 62_378_344));
        assert_eq!(counts(&alexnet(image, 1000, 64, AlexNorms::Pool5)), (18, 62_378_856));
        assert_eq!(counts(&alexnet(image, 1000, 64, AlexNorms::All)), (26, 62_381_096));
        assert_eq!(counts(&resnet50([3, 224, 224], 1000, 64)), (161, 25_557_032));
    }

    #[test]
    fn the_last_scale_of_each_branch_begins_with_zero() {
        let m = resnet50([3, 32, 32], 10, 8);
        let zero = |s: &&Spec| s.init == Init::Constant(0.0) && s.name.ends_with("bn3.weight");
        assert_eq!(m.specs.iter().filter(zero).count(), 16);
        // Tensors 76 and 77 of the forward order, counted from 1.
        assert_eq!(
            (m.specs[75].name.as_str(), m.specs[76].name.as_str()),
            ("layer3.0.conv2.weight", "layer3.0.bn2.weight")
        );
    }
}

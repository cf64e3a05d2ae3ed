//! Models: which gradients become ready when, and how long forward takes.

use crate::cost::LARGEST;
use crate::{DataType, Error, Result};

/// One gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub elements: u64,
    pub dtype: DataType,
    /// From the start of the backward pass to when the gradient is complete, ns.
    pub ready: f64,
    /// Forward time of the tensor's layer, ns. Where a layer has several tensors it stands at the one that is
    /// ready first: it is gathered last, and the layer can start only then.
    pub forward: f64,
}

impl Tensor {
    pub fn bytes(&self) -> u64 {
        self.elements * self.dtype.size() as u64
    }
}

/// The gradients of a model, in the order in which they become ready: that of the last layer first. The
/// backward pass ends when the last one is.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    tensors: Vec<Tensor>,
}

/// Built-in models: name and file.
const BUILT_IN: [(&str, &str); 7] = [
    ("alexnet", include_str!("data/alexnet.csv")),
    ("alexnet-bn", include_str!("data/alexnet-bn.csv")),
    ("bert-base", include_str!("data/bert-base.csv")),
    ("bert-large", include_str!("data/bert-large.csv")),
    ("googlenet", include_str!("data/googlenet.csv")),
    ("resnet50", include_str!("data/resnet50.csv")),
    ("vgg16", include_str!("data/vgg16.csv")),
];

/// The columns of a model file.
const COLUMNS: [&str; 5] = ["tensor", "elements", "type", "ready_us", "forward_us"];

fn wrong(what: impl Into<String>, who: &str) -> Error {
    Error::argument(what).who(who).hint("docs/plan.md describes model files")
}

impl Model {
    /// At least one tensor, ready times not falling, times from 0 to 30 years, no more than 2^53 bytes in
    /// all; `InvalidArgument` otherwise.
    pub fn new(tensors: Vec<Tensor>) -> Result<Model> {
        let fine = |x: f64| (0.0..=LARGEST).contains(&x);
        let (mut ready, mut bytes) = (0.0, 0u64);
        for (i, t) in tensors.iter().enumerate() {
            let who = if t.name.is_empty() { format!("tensor {i}, without a name") } else { t.name.clone() };
            if !fine(t.ready) || !fine(t.forward) {
                return Err(wrong("times must be from 0 to 1e15 us", &who));
            }
            if t.ready < ready {
                return Err(wrong("is ready before the tensor above it: rows must be in order", &who));
            }
            ready = t.ready;
            let size = t.elements.checked_mul(t.dtype.size() as u64);
            bytes = match size.and_then(|s| bytes.checked_add(s)) {
                Some(b) if b <= 1 << 53 => b,
                _ => return Err(wrong("more bytes than any machine has", &who)),
            };
        }
        match bytes {
            0 => Err(wrong("has no gradients", "a model")),
            _ => Ok(Model { tensors }),
        }
    }

    /// A built-in model: `None` if there is none of this name.
    pub fn built_in(name: &str) -> Option<Model> {
        let (_, text) = BUILT_IN.iter().find(|(n, _)| *n == name)?;
        Some(Model::parse(text).expect("a built-in model is right"))
    }

    /// The names of built-in models.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(n, _)| *n)
    }

    /// Reads a model file: lines of comma-separated values under a line that names the columns, `#` for
    /// comments. `docs/plan.md` describes it.
    pub fn parse(text: &str) -> Result<Model> {
        let lines = text.lines().enumerate().map(|(i, l)| (i + 1, l.trim()));
        let mut lines = lines.filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
        let head = lines.next().map_or("", |(_, l)| l);
        let names: Vec<&str> = head.split(',').map(str::trim).collect();
        let at = COLUMNS.map(|c| names.iter().position(|n| *n == c));
        if let Some(i) = (0..4).find(|&i| at[i].is_none()) {
            return Err(wrong(
                format!("there is no column `{}` in the first line", COLUMNS[i]),
                "a model file",
            ));
        }
        let mut tensors = Vec::new();
        for (number, line) in lines {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let row = format!("line {number} of a model file");
            let cell = |column: usize| at[column].and_then(|i| cells.get(i)).copied().unwrap_or("");
            let microseconds = |column: usize| match cell(column) {
                "" if column == 4 => Ok(0.0),
                text => text.parse::<f64>().map(|us| us * 1e3).map_err(|_| {
                    wrong(format!("`{text}` in column {} is not a number", COLUMNS[column]), &row)
                }),
            };
            tensors.push(Tensor {
                name: cell(0).to_string(),
                elements: cell(1)
                    .parse()
                    .map_err(|_| wrong(format!("`{}` is not a number of elements", cell(1)), &row))?,
                dtype: data_type(cell(2))
                    .ok_or_else(|| wrong(format!("unknown element type `{}`", cell(2)), &row))?,
                ready: microseconds(3)?,
                forward: microseconds(4)?,
            });
        }
        Model::new(tensors)
    }

    /// In the order in which they become ready.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// All gradients' bytes.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// Length of the forward pass, ns.
    pub fn forward(&self) -> f64 {
        self.tensors.iter().map(|t| t.forward).sum()
    }

    /// Length of the backward pass, ns.
    pub fn backward(&self) -> f64 {
        self.tensors.last().map_or(0.0, |t| t.ready)
    }

    /// The same model with floating-point gradients sent as `dtype`.
    pub fn sent_as(mut self, dtype: DataType) -> Model {
        self.tensors.iter_mut().filter(|t| t.dtype.is_float()).for_each(|t| t.dtype = dtype);
        self
    }

    /// The same model on a machine that takes `ns` for forward and backward together. `InvalidArgument` if
    /// the model has no times to scale.
    pub fn in_time(mut self, ns: f64) -> Result<Model> {
        let now = self.forward() + self.backward();
        if now <= 0.0 {
            return Err(wrong("has no times that could be scaled", "a model"));
        }
        for t in &mut self.tensors {
            // In this order: `ns / now` may be infinite.
            t.ready = t.ready / now * ns;
            t.forward = t.forward / now * ns;
        }
        Ok(self)
    }
}

/// The type of this name: nccl-tests' names, `f16`, `bf16`, `f32` and `f64`, and PyTorch's.
pub fn data_type(name: &str) -> Option<DataType> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        "f16" | "float16" => Some(DataType::F16),
        "bf16" => Some(DataType::Bf16),
        "f32" | "float32" => Some(DataType::F32),
        "f64" | "float64" => Some(DataType::F64),
        name => DataType::ALL.into_iter().find(|d| d.name() == name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_models_have_their_published_sizes() {
        // Name, tensors, parameters.
        let known = [
            ("alexnet", 16, 61_100_840),
            ("alexnet-bn", 26, 62_381_096),
            ("vgg16", 32, 138_357_544),
            ("resnet50", 161, 25_557_032),
            ("googlenet", 128, 13_379_136),
            ("bert-base", 199, 109_482_240),
            ("bert-large", 391, 335_141_888),
        ];
        assert_eq!(Model::names().count(), known.len());
        for (name, tensors, parameters) in known {
            let m = Model::built_in(name).unwrap();
            let got: u64 = m.tensors().iter().map(|t| t.elements).sum();
            assert_eq!((m.tensors().len(), got), (tensors, parameters), "{name}");
            assert_eq!(m.bytes(), parameters * 4);
        }
        assert!(Model::built_in("lenet").is_none());
    }

    /// Layers in forward order, as `elements/us of backward`: each is one or more tensors of the model, which
    /// are all ready when it ends.
    fn has_layers(name: &str, layers: &str) {
        let m = Model::built_in(name).unwrap();
        let mut tensors = m.tensors().iter();
        let mut time = 0.0;
        for layer in layers.split_whitespace().rev() {
            let (elements, us) = layer.split_once('/').unwrap();
            time += us.parse::<f64>().unwrap() * 1e3;
            let mut left: u64 = elements.parse().unwrap();
            while left > 0 {
                let t = tensors.next().unwrap();
                left = left.checked_sub(t.elements).unwrap_or_else(|| panic!("{}", t.name));
                assert!(t.ready <= time + 10e3);
                if left == 0 {
                    // Printed to a microsecond, and summed.
                    assert!((t.ready - time).abs() < 10e3, "{}: {} for {time}", t.name, t.ready);
                }
            }
        }
        assert!(tensors.next().is_none());
    }

    #[test]
    fn built_in_models_are_the_traces() {
        has_layers(
            "alexnet",
            "23296/8286 307392/6997 663936/6879 884992/7385 590080/5979 37752832/3111 16781312/1409 4097000/474",
        );
        let m = Model::built_in("resnet50").unwrap();
        // First stage and last layers by hand.
        let position = |n: &str| 161 - m.tensors().iter().position(|t| t.name == n).unwrap();
        assert_eq!((position("conv1.weight"), position("fc.bias")), (1, 161));
        // The published split lies between these two (forward order).
        assert_eq!(position("layer3.0.conv2.weight"), 76);
        assert_eq!(position("layer3.0.bn2.weight"), 77);
        assert!((m.backward() / 1e6 - 260.931).abs() < 0.01 && (m.forward() / 1e6 - 182.488).abs() < 0.01);
        let g = Model::built_in("googlenet").unwrap();
        assert!((g.backward() / 1e6 - 202.78).abs() < 0.01);
    }

    #[test]
    fn model_files() {
        let text = "# a comment\ntensor, elements,type,ready_us\nb,10,torch.float32,1.5\na,20,half,2\n\n";
        let m = Model::parse(text).unwrap();
        assert_eq!(m.bytes(), 80);
        assert_eq!((m.tensors()[0].ready, m.backward(), m.forward()), (1500.0, 2000.0, 0.0));
        assert_eq!(m.clone().sent_as(DataType::F16).bytes(), 60);
        assert_eq!(m.clone().in_time(4000.0).unwrap().backward(), 4000.0);
        let err = |text: &str| Model::parse(text).unwrap_err().to_string();
        assert!(err("").contains("no column `tensor`"));
        assert!(err("tensor,elements,type,ready_us\n").contains("has no gradients"));
        assert!(err("tensor,elements,type,ready_us\na,x,f32,1").contains("[line 2 of a model file]"));
        assert!(err("tensor,elements,type,ready_us\na,1,f31,1").contains("`f31`"));
        assert!(err("tensor,elements,type,ready_us\na,1,f32,2\nb,1,f32,1").contains("[b]"));
        assert!(err("tensor,elements,type,ready_us\na,1,f32,nan").contains("from 0 to"));
        assert!(err("tensor,elements,type,ready_us\na,1,f32").contains("ready_us"));
        assert!(err("tensor,elements,type,ready_us\na,18446744073709551615,f32,1").contains("more bytes"));
    }
}

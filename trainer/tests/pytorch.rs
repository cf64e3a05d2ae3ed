//! The same weights and images as PyTorch and torchvision, and the same losses, gradients and LARS steps. What they
//! computed is in `vectors/`, with the program that made it.

use graccl::bucket::Fusion;
use graccl::{Communicator, Config};
use graccl_trainer::device;
use graccl_trainer::input::Batch;
use graccl_trainer::model::{AlexNorms, Kind, Model, alexnet, resnet50};
use graccl_trainer::optim::{LossScale, Optimiser, Rule};
use graccl_trainer::state::State;
use graccl_trainer::trainer::{Norms, Precision, Setup, Trainer};

/// As `uniform` in make.py: SplitMix64, which numpy can compute all at once.
fn uniform(seed: u64, n: usize) -> Vec<f64> {
    let mix = |i: u64| {
        let z = (seed << 32).wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (1..=n as u64).map(|i| (mix(i) >> 40) as f64 / (1 << 23) as f64 - 1.0).collect()
}

/// As `fill` in make.py.
fn state(model: &Model) -> State {
    let mut state = State::new(model, 0, LossScale::new(1.0, 0));
    for (i, spec) in model.specs.iter().enumerate() {
        let one = if spec.kind == Kind::Norm && spec.name.ends_with("weight") { 1.0 } else { 0.0 };
        let less = if spec.name.ends_with(".bn3.weight") { 0.1 } else { 1.0 };
        let fan_in: usize = spec.shape[1..].iter().product();
        let value = |u: f64| match spec.kind {
            Kind::Weight => u * (6.0 / fan_in as f64).sqrt(),
            _ => (0.1 * u + one) * less,
        };
        state.weights[i] =
            uniform(i as u64 + 1, spec.elements()).into_iter().map(|u| value(u) as f32).collect();
    }
    state
}

/// Largest differences that are allowed.
struct Tolerance {
    /// Of gradients of the first step, as part of each tensor's norm.
    gradients: f64,
    /// Of the losses before five steps, as part of each.
    losses: f64,
    /// Of the loss after the last.
    last: f64,
    /// Of weights after five steps, as part of each tensor's norm.
    weights: f64,
}

/// Norm, first, middle and last value.
fn some(values: &[f32]) -> [f64; 4] {
    let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let at = |i: usize| f64::from(values[i]);
    [norm, at(0), at(values.len() / 2), at(values.len() - 1)]
}

/// Six steps at `rate` and what PyTorch found.
fn compare(model: Model, batch: usize, rate: f32, expected: &str, tolerance: Tolerance) {
    let shape = model.input;
    let n = batch * shape.iter().product::<usize>();
    let images = uniform(1000, n).into_iter().map(|u| u as f32).collect();
    let batch = Batch { images, labels: (0..batch as u32).map(|i| i % 10).collect(), shape };
    let comm = Communicator::init_all(1, &Config::default()).unwrap().pop().unwrap();
    let setup = Setup {
        precision: Precision::F32,
        optimiser: Optimiser { rule: Rule::Lars { trust: 0.02 }, momentum: 0.9, decay: 5e-4 },
        smoothing: 0.1,
        fusion: Fusion::OneBucket,
        norms: Norms::Local,
    };
    let state = state(&model);
    let device = device::of_rank(&comm).unwrap();
    let mut trainer = Trainer::new(comm, model, setup, state, device).unwrap();
    let input = trainer.inputs()(batch).unwrap();
    let (mut losses, mut gradients, mut after) = (vec![], vec![], vec![]);
    for step in 0..6 {
        // The sixth says what the loss is after five.
        after.clone_from(&trainer.state.weights);
        losses.push(trainer.step(&input, rate).unwrap().loss);
        if step == 0 {
            gradients = (0..trainer.model.specs.len()).map(|i| trainer.reduced(i)).collect();
        }
    }
    let specs = &trainer.model.specs;
    let close = |what: &str, tensor: usize, name: &str, values: &[f32], want: &[f64], tolerance: f64| {
        assert_eq!(specs[tensor].name, name);
        // Biases before a norm have no gradient but rounding errors.
        let scale = want[0].max(0.1);
        for (got, want) in some(values).iter().zip(want) {
            let off = (got - want).abs() / scale;
            assert!(off < tolerance, "{what} of {name}: {got} instead of {want}, {off:.1e} of the norm");
        }
    };
    let [mut seen, mut tensors, mut moved] = [0; 3];
    for line in expected.lines() {
        let (words, numbers): (Vec<&str>, Vec<&str>) =
            line.split(' ').partition(|w| w.parse::<f64>().is_err());
        let numbers: Vec<f64> = numbers.iter().map(|w| w.parse().unwrap()).collect();
        match words[..] {
            ["loss"] => {
                let off = (losses[seen] / numbers[0] - 1.0).abs();
                let tolerance = if seen < 5 { tolerance.losses } else { tolerance.last };
                let (got, want) = (losses[seen], numbers[0]);
                assert!(off < tolerance, "loss after {seen} steps: {got} instead of {want}");
                seen += 1;
            }
            ["after", name] => {
                close("weights", moved, name, &after[moved], &numbers, tolerance.weights);
                moved += 1;
            }
            [name] => {
                close("gradient", tensors, name, &gradients[tensors], &numbers, tolerance.gradients);
                tensors += 1;
            }
            _ => panic!("{line}"),
        }
    }
    assert_eq!((tensors, seen, moved), (specs.len(), 6, specs.len()));
}

#[test]
fn alexnet_is_as_in_pytorch() {
    let model = alexnet([3, 32, 32], 10, 4, AlexNorms::All).unwrap();
    let tolerance = Tolerance { gradients: 1e-4, losses: 1e-5, last: 1e-5, weights: 1e-4 };
    compare(model, 8, 0.5, include_str!("vectors/alexnet.txt"), tolerance);
}

/// Rounding grows from step to step: where images differ by a millionth, PyTorch's own loss after five steps is another by
/// up to 1.3e-3, the losses before by up to 1.5e-4, weights by 1e-4.
#[test]
fn resnet50_is_torchvisions() {
    let model = resnet50([3, 64, 64], 10, 64);
    let tolerance = Tolerance { gradients: 1e-3, losses: 1e-3, last: 5e-3, weights: 1e-3 };
    compare(model, 8, 0.1, include_str!("vectors/resnet50.txt"), tolerance);
}

//! The same weights and images as PyTorch and torchvision, and the same losses, gradients and LARS steps. What they
//! computed is in `vectors/`, with the program that made it.

use graccl::bucket::Fusion;
use graccl::{Communicator, Config};
use graccl_trainer::device;
use graccl_trainer::input::Batch;
use graccl_trainer::model::{AlexNorms, Kind, Model, alexnet, resnet50};
use graccl_trainer::optim::{LossScale, Optimiser, Rule};
use graccl_trainer::trainer::{Norms, Precision, Setup, State, Trainer};

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

/// Gradients of the first step, within `tolerance` of each tensor's norm, and the losses before five steps at `rate`,
/// within `losses`.
fn compare(model: Model, batch: usize, rate: f32, expected: &str, tolerance: f64, losses: f64) {
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
    let mut step = 0;
    let mut tensors = 0;
    let mut report = trainer.step(&batch, rate).unwrap();
    for line in expected.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let numbers: Vec<f64> = words.map(|w| w.parse().unwrap()).collect();
        if name == "loss" {
            if step > 0 {
                report = trainer.step(&batch, rate).unwrap();
            }
            let off = (report.loss / numbers[0] - 1.0).abs();
            assert!(off < losses, "loss before step {step}: {} instead of {}", report.loss, numbers[0]);
            step += 1;
            continue;
        }
        let spec = &trainer.model.specs[tensors];
        assert_eq!(spec.name, name);
        let g = trainer.reduced(tensors);
        let norm = g.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        // Biases before a norm have no gradient but rounding errors.
        let scale = numbers[0].max(0.1);
        let got = [norm, f64::from(g[0]), f64::from(g[g.len() / 2]), f64::from(g[g.len() - 1])];
        for (got, want) in got.iter().zip(&numbers) {
            assert!((got - want).abs() < tolerance * scale, "{name}: {got} instead of {want}, norm {norm}");
        }
        tensors += 1;
    }
    assert_eq!((tensors, step), (trainer.model.specs.len(), 5));
}

#[test]
fn alexnet_is_as_in_pytorch() {
    compare(
        alexnet([3, 32, 32], 10, 4, AlexNorms::All),
        8,
        0.5,
        include_str!("vectors/alexnet.txt"),
        1e-4,
        1e-3,
    );
}

/// PyTorch's own losses in f32 and f64 differ by up to 1e-4 here: see `fill` in make.py.
#[test]
fn resnet50_is_torchvisions() {
    compare(resnet50([3, 64, 64], 10, 64), 8, 0.1, include_str!("vectors/resnet50.txt"), 1e-3, 1e-3);
}

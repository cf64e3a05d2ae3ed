//! Batch normalisation by the statistics of the whole batch: the same as on one rank, forward and backward.

use graccl::bucket::Fusion;
use graccl::{Communicator, Config};
use graccl_trainer::device;
use graccl_trainer::input::Batch;
use graccl_trainer::model::{AlexNorms, Model, alexnet, resnet50};
use graccl_trainer::optim::{LossScale, Optimiser, Rule};
use graccl_trainer::random::Random;
use graccl_trainer::state::State;
use graccl_trainer::trainer::{Norms, Precision, Setup, Trainer};

const IMAGES: usize = 16;

/// What a rank saw of some steps.
#[derive(Clone, PartialEq)]
struct Seen {
    losses: Vec<f64>,
    /// Of the first step, by tensor.
    gradients: Vec<Vec<f32>>,
    /// Running means and variances after all steps.
    statistics: Vec<(Vec<f32>, Vec<f32>)>,
}

fn train(comm: Communicator, model: Model, norms: Norms, precision: Precision) -> Seen {
    let [c, h, w] = model.input;
    let mut random = Random::new(3, &[]);
    // Halves of different brightness and contrast: their statistics differ.
    let values: Vec<f32> = (0..IMAGES * c * h * w)
        .map(|i| if i < IMAGES / 2 * c * h * w { random.normal() } else { 1.0 + 3.0 * random.normal() })
        .collect();
    let own = IMAGES / comm.size();
    let part = comm.rank() * own..(comm.rank() + 1) * own;
    let batch = Batch {
        images: values[part.start * c * h * w..part.end * c * h * w].to_vec(),
        labels: part.map(|i| i as u32 % 10).collect(),
        shape: [c, h, w],
    };
    let setup = Setup {
        precision,
        optimiser: Optimiser { rule: Rule::Sgd, momentum: 0.9, decay: 5e-4 },
        smoothing: 0.0,
        fusion: Fusion::PerTensor,
        norms,
    };
    let mut state = State::new(&model, 1, LossScale::new(1.0, 0));
    for (spec, weights) in model.specs.iter().zip(&mut state.weights) {
        // A branch that begins with zero would hide what is in it; with 1 rounding would grow from block to block.
        if spec.name.ends_with("bn3.weight") {
            weights.fill(0.1);
        }
    }
    let device = device::of_rank(&comm).unwrap();
    let mut trainer = Trainer::new(comm, model, setup, state, device).unwrap();
    let input = trainer.inputs()(batch).unwrap();
    let mut seen = Seen { losses: vec![], gradients: vec![], statistics: vec![] };
    for step in 0..3 {
        seen.losses.push(trainer.step(&input, 0.01).unwrap().loss);
        if step == 0 {
            seen.gradients = (0..trainer.model.specs.len()).map(|i| trainer.reduced(i)).collect();
        }
    }
    trainer.share_statistics().unwrap();
    seen.statistics = trainer.state.statistics.clone();
    seen
}

/// What all ranks, which are threads, saw: the same.
fn on(ranks: usize, model: &Model, norms: Norms, precision: Precision) -> Seen {
    let config = Config { deterministic: true, ..Config::default() };
    let comms = Communicator::init_all(ranks, &config).unwrap();
    let all: Vec<Seen> = std::thread::scope(|s| {
        let one = |c| s.spawn(|| train(c, model.clone(), norms, precision));
        let threads: Vec<_> = comms.into_iter().map(one).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(all.iter().all(|seen| *seen == all[0]), "the ranks differ");
    all[0].clone()
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Largest differences: of losses, relative; of gradients, beside their tensor's norm; of statistics, likewise.
fn apart(a: &Seen, b: &Seen) -> [f64; 3] {
    let far = |a: &[f32], b: &[f32]| {
        let off: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        // Biases before a norm have no gradient but rounding errors.
        norm(&off) / norm(a).max(0.01)
    };
    let losses = a.losses.iter().zip(&b.losses).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    let gradients = a.gradients.iter().zip(&b.gradients).map(|(a, b)| far(a, b)).fold(0.0, f64::max);
    let both = a.statistics.iter().zip(&b.statistics);
    let statistics = both.map(|(a, b)| far(&a.0, &b.0).max(far(&a.1, &b.1))).fold(0.0, f64::max);
    [losses, gradients, statistics]
}

fn compare(model: &Model, tolerance: [f64; 3]) {
    let run = |ranks, norms| on(ranks, model, norms, Precision::F32);
    let one = run(1, Norms::Local);
    let within = |what: &str, seen: &Seen| {
        let far = apart(&one, seen);
        println!("{what}: losses, gradients, statistics differ by {far:?}");
        assert!(far.iter().zip(tolerance).all(|(f, t)| *f < t), "{what}: {far:?}");
    };
    within("1 rank, global", &run(1, Norms::Global));
    let two = run(2, Norms::Global);
    within("2 ranks, global", &two);
    within("4 ranks, global", &run(4, Norms::Global));
    assert!(two == run(2, Norms::Global), "other bits in another run");
    // What the ranks have by themselves is far from that.
    let local = apart(&one, &run(2, Norms::Local));
    println!("2 ranks, local: {local:?}");
    assert!(local.iter().zip(tolerance).all(|(f, t)| *f > 20.0 * t), "local: {local:?}");
}

#[test]
fn alexnet_on_several_ranks_is_as_on_one() {
    compare(&alexnet([1, 28, 28], 10, 4, AlexNorms::All).unwrap(), [2e-6, 1e-4, 2e-6]);
}

#[test]
fn resnet50_on_several_ranks_is_as_on_one() {
    compare(&resnet50([3, 64, 64], 10, 8), [2e-6, 2e-5, 2e-6]);
}

#[test]
fn half_precision_too() {
    let model = resnet50([3, 32, 32], 10, 4);
    let run = |ranks, norms| on(ranks, &model, norms, Precision::Bf16);
    let (one, two) = (run(1, Norms::Local), run(2, Norms::Global));
    let far = apart(&one, &two);
    println!("bf16: {far:?}");
    assert!(far[0] < 0.005 && far[1] < 0.1 && far[2] < 0.02, "{far:?}");
}

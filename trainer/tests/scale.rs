//! Loss scales, on ranks that are threads.

use graccl::bucket::Fusion;
use graccl::{Communicator, Config};
use graccl_trainer::device;
use graccl_trainer::input::Batch;
use graccl_trainer::model::{AlexNorms, Model, alexnet};
use graccl_trainer::optim::{LossScale, Optimiser, Rule};
use graccl_trainer::random::Random;
use graccl_trainer::state::State;
use graccl_trainer::trainer::{Norms, Precision, Report, Setup, Trainer};

const IMAGES: usize = 8;

fn model() -> Model {
    alexnet([1, 28, 28], 10, 4, AlexNorms::None).unwrap()
}

/// Images whose values are of this size.
fn batch(size: f32) -> Batch {
    let mut random = Random::new(3, &[]);
    let images = (0..IMAGES * 784).map(|_| size * random.normal()).collect();
    Batch { images, labels: (0..IMAGES as u32).collect(), shape: [1, 28, 28] }
}

/// Trains a rank for each batch, for some steps; the reports of rank 0, and every rank's state.
fn train(
    batches: &[Batch],
    precision: Precision,
    scale: LossScale,
    steps: usize,
) -> (Vec<Report>, Vec<State>) {
    let config = Config { deterministic: true, ..Config::default() };
    let comms = Communicator::init_all(batches.len(), &config).unwrap();
    let rank = |comm: Communicator, batch: Batch| {
        let setup = Setup {
            precision,
            optimiser: Optimiser { rule: Rule::Sgd, momentum: 0.9, decay: 5e-4 },
            smoothing: 0.0,
            fusion: Fusion::PerTensor,
            norms: Norms::Local,
        };
        let device = device::of_rank(&comm).unwrap();
        let state = State::new(&model(), 1, scale);
        let mut trainer = Trainer::new(comm, model(), setup, state, device).unwrap();
        let input = trainer.inputs()(batch).unwrap();
        let reports: Vec<Report> = (0..steps).map(|_| trainer.step(&input, 0.001).unwrap()).collect();
        (reports, trainer.state.clone())
    };
    std::thread::scope(|s| {
        let threads: Vec<_> =
            comms.into_iter().zip(batches).map(|(c, b)| s.spawn(move || rank(c, b.clone()))).collect();
        let mut all: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        (std::mem::take(&mut all[0].0), all.into_iter().map(|(_, state)| state).collect())
    })
}

#[test]
fn all_ranks_skip_a_step_in_which_one_overflows() {
    // Alone, at this scale, the second one's gradients overflow, the first one's do not.
    let (small, large) = (batch(0.01), batch(30.0));
    let scale = LossScale::new(65536.0, 200);
    let alone = |b: &Batch| train(std::slice::from_ref(b), Precision::F16, scale, 1).0[0].skipped;
    assert_eq!((alone(&small), alone(&large)), (false, true));
    let begin = State::new(&model(), 1, scale);
    let both = [small, large];
    let (reports, states) = train(&both, Precision::F16, scale, 1);
    assert!(reports[0].skipped && reports[0].lost.is_none() && reports[0].loss.is_finite());
    for state in states {
        assert_eq!((&state.weights, &state.velocity), (&begin.weights, &begin.velocity));
        assert_eq!((state.scale.scale, state.step), (32768.0, 1));
    }
    // The scale falls until it goes, with the same weights on both.
    let (reports, states) = train(&both, Precision::F16, scale, 16);
    let skipped: Vec<bool> = reports.iter().map(|r| r.skipped).collect();
    println!("skipped: {skipped:?}, scale {}", states[0].scale.scale);
    assert!(skipped[0] && !skipped[15], "{skipped:?}");
    assert_eq!(states[0].weights, states[1].weights);
    assert_eq!(states[0].scale, states[1].scale);
    assert_ne!(states[0].weights, begin.weights);
}

#[test]
fn a_scale_that_stays_changes_nothing_but_rounding() {
    let run = |precision, scale| train(&[batch(1.0), batch(0.5)], precision, LossScale::new(scale, 0), 10);
    for (precision, scale, tolerance) in
        [(Precision::F32, 1000.0, 1e-5), (Precision::Bf16, 1000.0, 0.05), (Precision::F16, 256.0, 0.05)]
    {
        let (plain, scaled) = (run(precision, 1.0), run(precision, scale));
        assert!(plain.0.iter().chain(&scaled.0).all(|r| !r.skipped), "{precision:?}");
        // Beside the way that the weights went.
        let begin = State::new(&model(), 1, LossScale::new(1.0, 0)).weights;
        let far = |a: &[Vec<f32>], b: &[Vec<f32>]| -> f64 {
            let all = a.iter().flatten().zip(b.iter().flatten());
            all.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let off = far(&plain.1[0].weights, &scaled.1[0].weights) / far(&plain.1[0].weights, &begin);
        println!("{precision:?}: {off:.1e} of the way");
        assert!(off < tolerance, "{precision:?}: {off}");
    }
}

/// Twenty steps in a row, and no more patience; a good step between them begins anew.
#[test]
fn a_scale_that_cannot_fall_is_given_up() {
    let overflows = [batch(0.01), batch(30.0)];
    let (reports, _) = train(&overflows, Precision::F16, LossScale::new(1e30, 0), 21);
    let lost: Vec<bool> = reports.iter().map(|r| r.lost.is_some()).collect();
    assert_eq!(lost, [vec![false; 19], vec![true; 2]].concat());
    assert!(reports[18].check(18).is_ok());
    let e = reports[19].check(19).unwrap_err().to_string();
    assert!(e.contains("20 steps in a row") && e.contains(" -> "), "{e}");
    // One that can fall has patience for as long as it falls: 2^100 in 116 steps.
    let falls = LossScale::new(2f32.powi(100), 200);
    let (reports, states) = train(&overflows[..1], Precision::F16, falls, 100);
    assert!(reports.iter().all(|r| r.lost.is_none()) && reports[30].skipped && !reports[99].skipped);
    assert!(states[0].scale.scale < 2f32.powi(60));
}

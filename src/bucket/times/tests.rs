//! What is measured in steps, and plans that follow it.

use std::sync::Mutex;
use std::thread::sleep;

use super::super::tests::ranks;
use super::super::{Bucketer, Tensor};
use super::*;
use crate::Config;

fn tensors(n: usize, elements: usize, dtype: DataType) -> Vec<Tensor> {
    (0..n).map(|i| Tensor::new(format!("t{i}"), elements, dtype)).collect()
}

fn bucketer(comm: &Communicator, tensors: &[Tensor], config: BucketerConfig) -> Bucketer {
    // SAFETY: all memory is the bucketer's.
    unsafe { Bucketer::new(comm, tensors, config) }.unwrap()
}

/// Prices of a line, ns.
fn line(call: f64, byte: f64, wire: Option<Wire>) -> Measured {
    Measured { curve: Curve::line(call, byte), wire, factor: 1.0 }
}

const MS: Duration = Duration::from_millis(1);

/// Gradients are ready far apart; then all at once, where one call is best; then later, where it still is.
#[test]
fn plans_follow_the_times_of_steps_and_are_alike_on_all_ranks() {
    let all = Mutex::new(Vec::new());
    ranks(2, |comm| {
        let b = bucketer(comm, &tensors(8, 16 << 10, DataType::F32), BucketerConfig::default());
        // Dear calls: what a busy machine adds to times is little beside them.
        let dear = Known { all_reduce: line(4e6, 5e5 / 65536.0, None), packed: None, halves: None };
        b.times.lock().unwrap().known = Some(dear);
        let mut plans = Vec::new();
        for step in 0..3 * AGAIN {
            // One rank is always behind.
            sleep(MS * comm.rank() as u32);
            if step > 140 {
                sleep(10 * MS);
            }
            for i in 0..8 {
                if step < 70 {
                    sleep(3 * MS);
                }
                b.mark_ready(i).unwrap();
            }
            b.finish_step().unwrap();
            if b.steps().is_multiple_of(AGAIN) {
                plans.push((b.buckets().list.clone(), b.buckets().predicted.unwrap()));
            }
        }
        all.lock().unwrap().push(plans);
    });
    let all = all.into_inner().unwrap();
    assert_eq!(all[0], all[1]);
    let [(apart, slow), (together, quick), (later, after)] = &all[0][..] else { panic!("{all:?}") };
    assert!(apart.len() > 1 && together.len() == 1 && later == together, "{all:?}");
    assert!(*slow > 0.024 && *quick < slow / 2.0 && *after > 0.011, "{all:?}");
}

#[test]
fn the_others_hear_that_rank_0_has_no_plan() {
    ranks(3, |comm| {
        let config = BucketerConfig { late: true, ..Default::default() };
        let b = bucketer(comm, &tensors(2, 100, DataType::F32), config);
        if comm.rank() == 0 {
            b.times.lock().unwrap().known.as_mut().unwrap().halves = None;
        }
        let step = |_| {
            (0..2).for_each(|i| b.mark_ready(i).unwrap());
            b.finish_step()
        };
        let e = (0..PROFILE).map(step).find_map(|s| s.err()).expect("a failure").to_string();
        let text = if comm.rank() == 0 { "all_gather are not known" } else { "rank 0 sent no plan" };
        assert!(e.contains(text), "{e}");
        assert_eq!(b.steps(), PROFILE);
    });
}

/// Layers take 3 ms, 5 with what comes before the first. The program does not wait for tensor 1.
#[test]
fn every_layer_of_the_next_forward_pass_counts() {
    for finish in [true, false] {
        ranks(2, |comm| {
            let config = BucketerConfig { late: true, ..Default::default() };
            let b = bucketer(comm, &tensors(4, 100, DataType::F32), config);
            for _ in 0..PROFILE - 1 {
                (0..4).for_each(|i| b.mark_ready(i).unwrap());
                b.finish_backward().unwrap();
                sleep(2 * MS);
                for i in [3, 2, 0] {
                    b.wait(i).unwrap();
                    sleep(3 * MS);
                }
                if finish {
                    b.finish_step().unwrap();
                }
            }
            let times = b.times.lock().unwrap();
            assert_eq!(times.counted, if finish { 2 } else { 1 });
            let [last, unused, second, first] = times.forward[..] else { panic!() };
            assert!(last >= 0.003 && unused == last && second >= last + 0.003, "{:?}", times.forward);
            assert!(first >= second + 0.005, "{:?}", times.forward);
        });
    }
}

#[test]
fn only_f32_is_planned_and_described_as_packed() {
    let one = Communicator::init_all(1, &Config::default()).unwrap();
    let mut t = tensors(2, 1000, DataType::F16);
    t[1].dtype = DataType::F32;
    let config = BucketerConfig { wire: Some(Wire::Bf16), ..Default::default() };
    let b = bucketer(&one[0], &t, config.clone());
    let mut times = b.times.lock().unwrap();
    times.known = Some(Known {
        all_reduce: line(1e6, 10.0, None),
        packed: Some(line(1e3, 1.0, Some(Wire::Bf16))),
        halves: None,
    });
    let plan = times.plan(&b.core, &[0.0, 0.0, 0.0, 0.0, 1.0], false, None).unwrap();
    assert_eq!(plan.list.iter().map(|b| b.packed).collect::<Vec<_>>(), [false, true]);
    let ns: f64 = plan.list.iter().map(|b| times.known.as_ref().unwrap().alone(b)).sum();
    assert_eq!(ns, 1e6 + 20e3 + 1e3 + 4e3);
    assert!((plan.predicted.unwrap() * 1e9 - ns).abs() < 1.0);
    let b = bucketer(&one[0], &t, BucketerConfig { fusion: Fusion::PerTensor, ..config });
    let text = b.describe();
    let lines: Vec<&str> = text.lines().collect();
    assert!(!lines[0].contains("bfloat16") && lines[1].ends_with("as bfloat16 between hosts"), "{text}");
}

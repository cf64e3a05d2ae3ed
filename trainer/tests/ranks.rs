//! Training on several ranks: real processes, on images that are made up.

mod common;

use std::path::Path;

use common::{close, command, fetched, images, losses, mean, numbers, text};

/// 1, 2 and 4 ranks have the same losses within 1e-5 for 20 steps, and learn: the loss comes down to `part` in 60. Each
/// has the same bits in another run.
fn ranks_agree_and_learn(data: &Path, model: &str, part: f64) {
    let steps = 60;
    let run = |np: u32| losses(data, &format!("--model {model} --epochs 4 --stop {steps} --np {np}"));
    let learns = |l: &[String], np: u32| {
        let l = numbers(l);
        assert_eq!(l.len(), steps);
        let (first, last) = (mean(&l[..8]), mean(&l[steps - 8..]));
        assert!(last < part * first, "{np} ranks: from {first} to {last} only");
    };
    let one = run(1);
    let pairs = numbers(&one);
    assert!(pairs.windows(2).all(|w| (w[0] / w[1] - 1.0).abs() > 1e-5), "the weights do not change: {one:?}");
    learns(&one, 1);
    for np in [2, 4] {
        let some = run(np);
        assert!(close(&one[..20], &some[..20], 1e-5), "{np} ranks: {one:?} and {some:?}");
        learns(&some, np);
        assert_eq!(some, run(np), "{np} ranks again");
    }
}

#[test]
fn one_two_and_four_ranks_have_the_same_losses_and_each_the_same_bits() {
    ranks_agree_and_learn(&images("ranks"), "alexnet", 0.97);
}

#[test]
fn one_two_and_four_ranks_learn_mnist_alike() {
    let Some(data) = fetched("mnist", "mnist") else { return };
    ranks_agree_and_learn(&data, "alexnet", 0.7);
}

#[test]
fn one_two_and_four_ranks_learn_mnist_alike_with_norms_over_the_whole_batch() {
    let Some(data) = fetched("mnist", "mnist") else { return };
    ranks_agree_and_learn(&data, "alexnet-bn --norm global", 0.7);
}

/// ResNet-50 on pictures from files: decoded, cut out and mirrored.
#[test]
fn resnet50_learns_from_a_folder_of_images() {
    let Some(data) = fetched("emoji", "emoji") else { return };
    let l = numbers(&losses(
        &data,
        "--model resnet50 --size 32 --crop 4 --flip --epochs 3 --stop 48 --np 2 --update lars --trust 0.02",
    ));
    assert_eq!(l.len(), 48);
    let (first, last) = (mean(&l[..8]), mean(&l[40..]));
    assert!(last < first - 0.1, "from {first} to {last} only: {l:?}");
}

#[test]
fn the_buckets_do_not_matter() {
    let data = images("buckets");
    let run = |b: &str| losses(&data, &format!("--model alexnet-bn --stop 12 --np 2 --buckets {b}"));
    let planned = run("planned");
    assert_eq!(planned, run("one"));
    assert_eq!(planned, run("per-tensor"));
}

#[test]
fn mixed_precision_learns_as_f32_does() {
    let data = images("mixed");
    let run =
        |p: &str| numbers(&losses(&data, &format!("--model alexnet-bn --epochs 6 --np 2 --precision {p}")));
    let last = |l: &[f64]| mean(&l[l.len() - 4..]);
    let full = run("f32");
    assert!(last(&full) < 0.02 * full[0], "it does not learn: {full:?}");
    for precision in ["f16", "bf16"] {
        let half = run(precision);
        assert_ne!(full, half);
        assert!((last(&half) - last(&full)).abs() < 0.05, "{precision}: {} and {}", last(&half), last(&full));
    }
}

/// Beginning and end of each step but the first in a rank's trace, and when its first bucket starts.
fn steps_of(trace: &Path) -> Vec<(f64, f64, f64)> {
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let began = |name: &str| -> Vec<f64> {
        let fits =
            |e: &&serde_json::Value| e["ph"] == "X" && e["name"].as_str().is_some_and(|n| n.ends_with(name));
        events.iter().filter(fits).map(|e| e["ts"].as_f64().unwrap()).collect()
    };
    // Every step ends with a mean of loss and accuracy.
    let (ends, buckets) = (began("all_reduce of 2 double (avg)"), began(" float (avg)"));
    assert!(ends.len() == 12 && buckets.len() == 12 * 16, "{} {}", ends.len(), buckets.len());
    let first = |w: &[f64]| buckets.iter().copied().filter(|b| (w[0]..w[1]).contains(b)).fold(w[1], f64::min);
    ends.windows(2).map(|w| (w[0], w[1], first(w))).collect()
}

/// In the traces: from the start of a step's first bucket, on both ranks, to its end passes a good part of the step, namely
/// the backward pass of all but the last layer. Were gradients handed over when all are there, next to nothing would.
#[test]
fn buckets_start_long_before_the_backward_pass_ends() {
    let data = images("overlap");
    let flags = "--model alexnet --width 8 --np 2 --epochs 3 --stop 12 --batch 128 --buckets per-tensor";
    let o = command(&data, flags).env("GRACCL_TRACE", data.join("trace")).output().unwrap();
    assert!(o.status.success(), "{}", text(&o));
    let [one, other] = ["trace.0.json", "trace.1.json"].map(|name| steps_of(&data.join(name)));
    let part = |((begin, end, first), (_, _, second)): (&(f64, f64, f64), &(f64, f64, f64))| {
        (end - first.max(*second)) / (end - begin)
    };
    let mut parts: Vec<f64> = one.iter().zip(&other).map(part).collect();
    parts.sort_by(f64::total_cmp);
    println!("parts of the steps: {parts:.2?}");
    assert!(parts[parts.len() / 2] > 0.2, "{parts:?}");
}

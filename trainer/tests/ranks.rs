//! Training on several ranks: real processes, on images that are made up.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{fetched, images, text};

fn command(data: &Path, flags: &str) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_graccl-train"));
    c.arg("--data").arg(data).args(["--width", "4", "--batch", "32", "--log"]);
    c.args(flags.split_whitespace());
    // Without norms a lower rate is needed.
    let rate = match flags {
        f if f.contains("lars") && f.contains("resnet") => "0.5",
        f if f.contains("alexnet-bn") => "0.05",
        _ => "0.005",
    };
    c.args(["--rate", rate]);
    c
}

/// The loss of every step, as it was printed.
fn losses(data: &Path, flags: &str) -> Vec<String> {
    let o = command(data, flags).output().unwrap();
    assert!(o.status.success(), "{flags}: {}", text(&o));
    let out = text(&o);
    let words = |l: &str| l.split(' ').nth(3).map(str::to_string);
    out.lines().filter(|l| l.starts_with("step ")).filter_map(words).collect()
}

fn numbers(losses: &[String]) -> Vec<f64> {
    losses.iter().map(|l| l.parse().unwrap()).collect()
}

/// Mean of some losses.
fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// 1, 2 and 4 ranks have the same losses within 1e-3 for 20 steps, and learn: the loss comes down to `part` in 60. Each
/// has the same bits in another run.
fn ranks_agree_and_learn(data: &Path, part: f64) {
    let steps = 60;
    let run = |np: u32| losses(data, &format!("--model alexnet --epochs 4 --stop {steps} --np {np}"));
    let one = numbers(&run(1));
    assert_eq!(one.len(), steps);
    assert!(one.windows(2).all(|w| (w[0] / w[1] - 1.0).abs() > 1e-5), "the weights do not change: {one:?}");
    let learns = |l: &[f64], np: u32| {
        let (first, last) = (mean(&l[..8]), mean(&l[steps - 8..]));
        assert!(last < part * first, "{np} ranks: from {first} to {last} only");
    };
    learns(&one, 1);
    for np in [2, 4] {
        let some = run(np);
        for (x, y) in one.iter().zip(numbers(&some)).take(20) {
            assert!((x / y - 1.0).abs() < 1e-3, "{np} ranks: {x} and {y}");
        }
        learns(&numbers(&some), np);
        assert_eq!(some, run(np), "{np} ranks again");
    }
}

#[test]
fn one_two_and_four_ranks_have_the_same_losses_and_each_the_same_bits() {
    ranks_agree_and_learn(&images("ranks"), 0.97);
}

#[test]
fn one_two_and_four_ranks_learn_mnist_alike() {
    let Some(data) = fetched("mnist", "mnist") else { return };
    ranks_agree_and_learn(&data, 0.7);
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
fn metrics_and_a_trace_are_written() {
    let data = images("metrics");
    let (file, run) = (data.join("metrics.csv"), data.join("run.safetensors"));
    let flags = format!(
        "--model alexnet-bn --np 2 --epochs 2 --precision f16 --metrics {} --checkpoint {}",
        file.display(),
        run.display()
    );
    let train = |more: &str| {
        let mut c = command(&data, &format!("{flags} {more}"));
        let o = c.env("GRACCL_TRACE", data.join("trace")).output().unwrap();
        assert!(o.status.success(), "{}", text(&o));
        text(&o)
    };
    let mut said = train("--stop 16");
    // 16 steps are an epoch. A run that goes on has its lines in the same file.
    said += &train(&format!("--stop 20 --resume {}", run.display()));
    let table = std::fs::read_to_string(&file).unwrap();
    let names: Vec<&str> = table.lines().next().unwrap().split(',').collect();
    let column = |name: &str| -> Vec<&str> {
        let i = names.iter().position(|n| *n == name).unwrap();
        table.lines().skip(1).map(|l| l.split(',').nth(i).unwrap()).collect()
    };
    let steps: Vec<String> = (1..=20).map(|i: u32| i.to_string()).collect();
    assert_eq!(column("step"), steps);
    let told = said.lines().filter_map(|l| l.strip_prefix("step ")?.split(' ').nth(2)?.parse::<f64>().ok());
    let loss = column("loss").into_iter().map(|w| w.parse::<f64>().unwrap());
    assert!(loss.eq(told), "{table}\n{said}");
    let tested: Vec<bool> = column("test_accuracy").iter().map(|w| !w.is_empty()).collect();
    assert!(tested.iter().enumerate().all(|(i, t)| *t == (i == 15 || i == 19)), "{table}");
    let shares = [column("comm_share"), column("hidden_share")].concat();
    assert!(shares.iter().all(|w| (0.0..=1.0).contains(&w.parse::<f64>().unwrap())), "{table}");
    assert!(column("images_per_second").iter().all(|w| w.parse::<f64>().unwrap() > 0.0), "{table}");
    assert_eq!((column("rate")[0], column("loss_scale")[0]), ("0.05", "65536"), "{table}");
    for rank in 0..2 {
        let trace = std::fs::read(data.join(format!("trace.{rank}.json"))).unwrap();
        let trace: serde_json::Value = serde_json::from_slice(&trace).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert!(events.iter().any(|e| e["name"].as_str().is_some_and(|n| n.contains("all_reduce"))));
    }
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

#[test]
fn a_resumed_run_has_the_bits_of_one_that_went_on() {
    let data = images("resume");
    let file = data.join("run.safetensors");
    let common = "--model alexnet-bn --epochs 2 --np 2 --precision f16 --update lars --trust 0.02";
    let file = file.display();
    let whole = losses(&data, &format!("{common} --stop 20"));
    let first = losses(&data, &format!("{common} --stop 9 --checkpoint {file}"));
    let rest = losses(&data, &format!("{common} --stop 20 --resume {file}"));
    assert_eq!(whole, [first, rest].concat());
}

/// The process of rank 1: the kernel lists the launcher's children in the order of their start.
fn rank_1(launcher: &Child) -> u32 {
    let path = format!("/proc/{0}/task/{0}/children", launcher.id());
    for _ in 0..2000 {
        let children: Vec<u32> = std::fs::read_to_string(&path)
            .unwrap_or_default()
            .split_whitespace()
            .map(|w| w.parse().unwrap())
            .collect();
        if children.len() == 2 {
            return children[1];
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("the ranks did not start");
}

#[test]
fn a_killed_rank_ends_the_job_which_goes_on_with_fewer() {
    let data = images("killed");
    let file = data.join("run.safetensors");
    let _ = std::fs::remove_file(&file);
    let flags = format!("--model alexnet --epochs 1000 --every 5 --checkpoint {}", file.display());
    let child = command(&data, &format!("{flags} --np 2"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let victim = rank_1(&child);
    let began = std::time::Instant::now();
    while !file.exists() {
        assert!(began.elapsed().as_secs() < 120, "there is no checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // SAFETY: a signal to a process that this test started through the launcher.
    assert_eq!(unsafe { libc::kill(victim as i32, libc::SIGKILL) }, 0);
    let o = child.wait_with_output().unwrap();
    assert!(!o.status.success());
    let said = text(&o);
    assert!(said.contains("rank 1 of 2 ended: signal: 9"), "{said}");
    assert!(said.contains("rank 1 died") && said.contains("--resume"), "{said}");
    // The rest of the job, by one rank.
    let resume = |stop: u32| {
        let flags = format!("--model alexnet --epochs 1000 --np 1 --stop {stop} --resume {}", file.display());
        text(&command(&data, &flags).output().unwrap())
    };
    let said = resume(at_step(&file) + 3);
    assert!(said.contains(&format!("step {} loss", at_step(&file) + 2)), "{said}");
}

/// The step that a checkpoint is of.
fn at_step(file: &Path) -> u32 {
    let bytes = std::fs::read(file).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().as_ref().unwrap()["step"].parse().unwrap()
}

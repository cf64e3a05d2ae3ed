//! Training on several ranks: real processes, on images that are made up.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{images, text};

fn command(data: &Path, flags: &str) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_graccl-train"));
    c.arg("--data").arg(data).args(["--width", "4", "--batch", "32", "--log"]);
    c.args(flags.split_whitespace());
    // Without norms a lower rate is needed.
    c.args(["--rate", if flags.contains("alexnet-bn") { "0.05" } else { "0.005" }]);
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

#[test]
fn one_two_and_four_ranks_have_the_same_losses_and_each_the_same_bits() {
    let data = images("ranks");
    let run = |np: u32| losses(&data, &format!("--model alexnet --epochs 2 --stop 20 --np {np}"));
    let one = run(1);
    assert_eq!(one.len(), 20);
    let a = numbers(&one);
    assert!(a.windows(2).all(|w| (w[0] / w[1] - 1.0).abs() > 1e-5), "the weights do not change: {a:?}");
    for np in [2, 4] {
        let some = run(np);
        for (x, y) in a.iter().zip(numbers(&some)) {
            assert!((x / y - 1.0).abs() < 1e-3, "{np} ranks: {x} and {y}");
        }
        assert_eq!(some, run(np), "{np} ranks again");
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
        |p: &str| numbers(&losses(&data, &format!("--model alexnet-bn --epochs 3 --np 2 --precision {p}")));
    let last = |l: &[f64]| l[l.len() - 4..].iter().sum::<f64>() / 4.0;
    let full = run("f32");
    assert!(last(&full) < 0.7 * full[0], "it does not learn: {full:?}");
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

//! Checkpoints: runs that stop, or are stopped, and go on.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{close, command, fails, images, losses, succeeds, text};

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_went_on() {
    let data = images("resume");
    let file = |name: &str| show(&data.join(name));
    let common = "--model alexnet-bn --epochs 2 --np 2 --precision f16 --update lars --trust 0.02 --every 9";
    let whole = losses(&data, &format!("{common} --stop 20 --checkpoint {}", file("whole")));
    let first = losses(&data, &format!("{common} --stop 9 --checkpoint {}", file("first")));
    let rest = losses(
        &data,
        &format!("{common} --stop 20 --resume {} --checkpoint {}", file("first"), file("rest")),
    );
    assert_eq!(whole, [first, rest].concat());
    // Weights, momentum, running statistics, loss scale: every byte.
    assert!(
        std::fs::read(file("whole")).unwrap() == std::fs::read(file("rest")).unwrap(),
        "other checkpoints"
    );
    let said = succeeds(
        &data,
        &format!("{common} --stop 20 --resume {} --checkpoint {}", file("rest"), file("over")),
    );
    assert!(said.contains("nothing is left to do: the checkpoint is of step 20"), "{said}");
    assert!(!Path::new(&file("over")).exists());
}

#[test]
fn four_ranks_become_two() {
    let data = images("fewer");
    let file = show(&data.join("run"));
    let common = "--model alexnet --epochs 2";
    let whole = losses(&data, &format!("{common} --np 4 --stop 20"));
    let first = losses(&data, &format!("{common} --np 4 --stop 8 --checkpoint {file}"));
    let rest = losses(&data, &format!("{common} --np 2 --stop 20 --resume {file}"));
    assert_eq!(whole[..8], first);
    assert!(close(&whole[8..], &rest, 1e-5), "{whole:?} and {rest:?}");
}

#[test]
fn a_run_goes_on_only_as_itself_and_all_ranks_end_with_the_reason() {
    let data = images("other");
    let file = show(&data.join("run"));
    let common = "--model alexnet --update sgd";
    succeeds(&data, &format!("{common} --stop 2 --checkpoint {file}"));
    let refused = |flags: &str, says: &[&str]| {
        let began = Instant::now();
        let said = fails(&data, &format!("{flags} --np 2 --stop 4"));
        says.iter().for_each(|s| assert!(said.contains(s), "no {s:?} in {said}"));
        assert!(said.contains("rank 0: ") && said.contains("rank 1: rank 0 failed: "), "{said}");
        assert!(!said.contains("go on from the last checkpoint"), "{said}");
        assert!(began.elapsed() < Duration::from_secs(20), "the other rank waited");
    };
    let other =
        |more: &str, was: &str, is: &str| refused(&format!("{more} --resume {file}"), &[was, is, " -> "]);
    other(&format!("{common} --batch 64"), "--batch 32", "--batch 64");
    other(&format!("{common} --seed 2"), "--seed 1", "--seed 2");
    other(&format!("{common} --epochs 3"), "--epochs 1", "--epochs 3");
    other(&format!("{common} --rate 0.25"), "--rate 0.005", "--rate 0.25");
    other(&format!("{common} --crop 2"), "--crop none", "--crop 2");
    other("--model alexnet --update lars --rate 0.005", "--update sgd", "--update lars");
    other("--model alexnet-bn --rate 0.005", "--model alexnet,", "--model alexnet-bn");
    // What only rank 0 sees, before the first step.
    refused(&format!("{common} --resume {file}.none"), &["cannot read", ".none"]);
    refused(&format!("{common} --checkpoint {}/none/run", show(&data)), &["cannot write the checkpoint"]);
    refused(&format!("{common} --metrics {}/none/run", show(&data)), &["cannot write"]);
    // Another precision is no other run.
    succeeds(&data, &format!("{common} --stop 4 --precision f16 --resume {file}"));
}

#[test]
fn metrics_go_on_where_the_checkpoint_is() {
    let data = images("cut");
    let (metrics, file) = (data.join("metrics.csv"), show(&data.join("run")));
    let common = format!("--model alexnet --metrics {}", metrics.display());
    succeeds(&data, &format!("{common} --stop 4 --checkpoint {file}"));
    let go_on = |stop: u32| {
        succeeds(&data, &format!("{common} --stop {stop} --resume {file}"));
        let table = std::fs::read_to_string(&metrics).unwrap();
        let steps: Vec<&str> = table.lines().skip(1).map(|l| l.split(',').next().unwrap()).collect();
        let expected: Vec<String> = (1..=stop).map(|i| i.to_string()).collect();
        assert_eq!(steps, expected, "{table}");
        let commas = |l: &str| l.matches(',').count();
        assert!(table.ends_with('\n') && table.lines().all(|l| commas(l) == 10), "{table}");
        table
    };
    let table = go_on(8);
    // As a run leaves it that is killed within a line.
    std::fs::write(&metrics, format!("{table}9,0.56,12")).unwrap();
    go_on(7);
    std::fs::write(&metrics, "step,other\n1,2\n").unwrap();
    let said = fails(&data, &format!("{common} --stop 8 --resume {file}"));
    assert!(said.contains("other columns"), "{said}");
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
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the ranks did not start");
}

/// Trains on 2 ranks until `enough`, which sees every line, and kills rank 1. All that was said.
fn killed(data: &Path, flags: &str, mut enough: impl FnMut(&str) -> bool) -> String {
    let mut child = command(data, &format!("{flags} --np 2"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let victim = rank_1(&child);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !enough(&line) {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "it ended");
    }
    // SAFETY: a signal to a process that this test started through the launcher.
    assert_eq!(unsafe { libc::kill(victim as i32, libc::SIGKILL) }, 0);
    let rest = std::thread::spawn(move || out.read_to_end(&mut vec![]));
    let o = child.wait_with_output().unwrap();
    rest.join().unwrap().unwrap();
    // The status of whichever the launcher saw first.
    assert!(matches!(o.status.code(), Some(137 | 1)), "{}", o.status);
    let said = text(&o);
    assert!(said.contains("rank 1 of 2 ended: signal: 9") && said.contains("rank 1 died"), "{said}");
    said
}

#[test]
fn a_killed_rank_ends_the_job_which_goes_on_with_fewer() {
    let data = images("killed");
    let file: PathBuf = data.join("run.safetensors");
    // Of an earlier run: nothing to go on from.
    std::fs::write(&file, "old").unwrap();
    let common = format!("--model alexnet --epochs 1000 --checkpoint {}", file.display());
    let said = killed(&data, &format!("{common} --every 1000000"), |line| line.starts_with("step 3 "));
    assert!(!said.contains("go on from the last checkpoint"), "{said}");
    let said = killed(&data, &format!("{common} --every 5"), |_| at_step(&file).is_some());
    assert!(
        said.contains(&format!("go on from the last checkpoint with --resume {}", file.display())),
        "{said}"
    );
    // The rest of the job, by one rank.
    let step = at_step(&file).unwrap();
    let flags =
        format!("--model alexnet --epochs 1000 --np 1 --stop {} --resume {}", step + 3, file.display());
    let said = succeeds(&data, &flags);
    assert!(said.contains(&format!("step {} loss", step + 2)), "{said}");
}

/// The step that a checkpoint is of, if it is one.
fn at_step(file: &Path) -> Option<u32> {
    let bytes = std::fs::read(file).ok()?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).ok()?;
    let notes = header.metadata().as_ref()?.get("graccl-train")?;
    notes.lines().find_map(|l| l.strip_prefix("step "))?.parse().ok()
}

//! What tests have in common.

// Each test takes what it needs.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use graccl_trainer::random::Random;

/// A folder that looks like MNIST's: every class is a pattern of its own, under noise.
pub fn images(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let mut random = Random::new(5, &[]);
    let patterns: Vec<Vec<u8>> =
        (0..10).map(|_| (0..784).map(|_| (random.bits() >> 57) as u8).collect()).collect();
    for (which, n) in [("train", 512u32), ("t10k", 128)] {
        let labels: Vec<u8> = (0..n).map(|_| random.below(10) as u8).collect();
        let mut pixels = Vec::new();
        for &l in &labels {
            pixels.extend(patterns[l as usize].iter().map(|p| p + (random.bits() >> 57) as u8));
        }
        let head = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|w| w.to_be_bytes()).collect() };
        let mut file = head(&[0x803, n, 28, 28]);
        file.extend(pixels);
        std::fs::write(dir.join(format!("{which}-images-idx3-ubyte")), file).unwrap();
        let mut file = head(&[0x801, n]);
        file.extend(labels);
        std::fs::write(dir.join(format!("{which}-labels-idx1-ubyte")), file).unwrap();
    }
    dir
}

pub fn text(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// A data set that a script of the project fetched, or a line in the list of what was skipped.
pub fn fetched(script: &str, name: &str) -> Option<PathBuf> {
    let dir = PathBuf::from(format!("{}/../target/data/{name}", env!("CARGO_MANIFEST_DIR")));
    if dir.is_dir() {
        return Some(dir);
    }
    let reason = format!("no {name}: scripts/{script} fetches it");
    println!("skipped: {reason}");
    if let Some(path) = std::env::var_os("GRACCL_SKIP_LOG") {
        use std::io::Write;
        let mut log = std::fs::File::options().append(true).create(true).open(path).expect("GRACCL_SKIP_LOG");
        writeln!(log, "{reason}").expect("GRACCL_SKIP_LOG");
    }
    None
}

/// A small training.
pub fn command(data: &Path, flags: &str) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_graccl-train"));
    c.arg("--data").arg(data).arg("--log").args(flags.split_whitespace());
    // Without norms a lower rate is needed.
    let rate = match flags {
        f if f.contains("lars") && f.contains("resnet") => "0.5",
        f if f.contains("alexnet-bn") => "0.05",
        _ => "0.005",
    };
    for (name, value) in [("--width", "4"), ("--batch", "32"), ("--rate", rate)] {
        if !flags.contains(name) {
            c.args([name, value]);
        }
    }
    c
}

/// What a training that goes well says.
pub fn succeeds(data: &Path, flags: &str) -> String {
    let o = command(data, flags).output().unwrap();
    assert!(o.status.success(), "{flags}: {}", text(&o));
    text(&o)
}

/// What one says that fails as it should: not by a panic or a signal.
pub fn fails(data: &Path, flags: &str) -> String {
    let o = command(data, flags).output().unwrap();
    let said = text(&o);
    assert!(matches!(o.status.code(), Some(1 | 2)), "{flags}: {}\n{said}", o.status);
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// The losses in what a training said, as they were printed.
pub fn losses_in(said: &str) -> Vec<String> {
    let words = |l: &str| l.split(' ').nth(3).map(str::to_string);
    said.lines().filter(|l| l.starts_with("step ")).filter_map(words).collect()
}

/// The loss of every step.
pub fn losses(data: &Path, flags: &str) -> Vec<String> {
    losses_in(&succeeds(data, flags))
}

pub fn numbers(losses: &[String]) -> Vec<f64> {
    losses.iter().map(|l| l.parse().unwrap()).collect()
}

/// Mean of some losses.
pub fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// Whether losses differ by less than a part of each.
pub fn close(a: &[String], b: &[String], tolerance: f64) -> bool {
    let (a, b) = (numbers(a), numbers(b));
    let far = a.iter().zip(&b).map(|(x, y)| (x / y - 1.0).abs()).fold(0.0, f64::max);
    println!("losses of {} steps differ by up to {far:.1e}", a.len());
    a.len() == b.len() && !a.is_empty() && far < tolerance
}

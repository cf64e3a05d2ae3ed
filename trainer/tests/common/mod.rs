//! What tests have in common.

// Each test takes what it needs.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Output;

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

//! What graccl-train says and writes, what it takes, and what it refuses.

mod common;

use std::path::Path;
use std::process::Command;

use common::{command, fails, images, losses, succeeds, text};

/// A file of metrics.
struct Table {
    text: String,
}

impl Table {
    fn read(path: &Path) -> Table {
        Table { text: std::fs::read_to_string(path).unwrap() }
    }

    fn column(&self, name: &str) -> Vec<&str> {
        let i = self.text.lines().next().unwrap().split(',').position(|n| n == name).unwrap();
        self.text.lines().skip(1).map(|l| l.split(',').nth(i).unwrap()).collect()
    }

    /// Without what is empty.
    fn numbers(&self, name: &str) -> Vec<f64> {
        self.column(name).into_iter().filter(|w| !w.is_empty()).map(|w| w.parse().unwrap()).collect()
    }
}

/// The first number after `before` in the lines of the summary.
fn in_summary(said: &str, before: &str) -> f64 {
    let lines: Vec<&str> = said.lines().filter_map(|l| l.strip_prefix("summary: ")).collect();
    let all = lines.join("; ");
    let (_, after) = all.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {said}"));
    after.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn metrics_a_summary_and_a_trace_are_written() {
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
    let first = train("--stop 16");
    summary_agrees(&first, &Table::read(&file), 16);
    // 16 steps are an epoch. A run that goes on has its lines in the same file.
    let said = first + &train(&format!("--stop 20 --resume {}", run.display()));
    let table = Table::read(&file);
    let steps: Vec<f64> = (1..=20).map(f64::from).collect();
    assert_eq!(table.numbers("step"), steps);
    let told = said.lines().filter_map(|l| l.strip_prefix("step ")?.split(' ').nth(2)?.parse::<f64>().ok());
    assert!(table.numbers("loss").into_iter().eq(told), "{}\n{said}", table.text);
    let tested: Vec<bool> = table.column("test_accuracy").iter().map(|w| !w.is_empty()).collect();
    assert!(tested.iter().enumerate().all(|(i, t)| *t == (i == 15 || i == 19)), "{}", table.text);
    let shares = [table.numbers("comm_share"), table.numbers("hidden_share")].concat();
    assert!(shares.len() == 40 && shares.iter().all(|w| (0.0..=1.0).contains(w)), "{}", table.text);
    assert!(table.numbers("images_per_second").iter().all(|w| *w > 0.0), "{}", table.text);
    assert_eq!((table.column("rate")[0], table.column("loss_scale")[0]), ("0.05", "65536"));
    for rank in 0..2 {
        let trace = std::fs::read(data.join(format!("trace.{rank}.json"))).unwrap();
        let trace: serde_json::Value = serde_json::from_slice(&trace).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert!(events.iter().any(|e| e["name"].as_str().is_some_and(|n| n.contains("all_reduce"))));
    }
}

/// What the summary says follows from the table of the same run.
fn summary_agrees(said: &str, table: &Table, steps: usize) {
    let near = |before: &str, want: f64, tolerance: f64| {
        let got = in_summary(said, before);
        assert!((got - want).abs() <= tolerance, "{before}: {got} instead of {want}\n{said}");
    };
    near("", steps as f64, 0.0);
    let seconds: Vec<f64> = table.numbers("images_per_second").iter().map(|r| 32.0 / r).collect();
    let all: f64 = seconds.iter().sum();
    assert!(in_summary(said, "steps in ") >= all - 0.02, "the whole takes as long as its steps: {said}");
    let rate = steps as f64 * 32.0 / all;
    near(" s, ", rate, 0.01 * rate);
    let skipped = said.lines().filter(|l| l.starts_with("step ") && l.ends_with("skipped")).count();
    near("images/s, ", skipped as f64, 0.0);
    let tests = table.numbers("test_accuracy");
    near("test accuracy ", 100.0 * tests[tests.len() - 1], 0.01);
    near("at the end, ", 100.0 * tests.iter().copied().fold(0.0, f64::max), 0.01);
    let waited = table.numbers("comm_share").iter().zip(&seconds).map(|(share, s)| share * s).sum::<f64>();
    near("waited for buckets in ", 100.0 * waited / all, 0.1);
    for part in ["of the time, ", "for input in "] {
        assert!((0.0..=100.0).contains(&in_summary(said, part)), "{said}");
    }
}

/// A rate far too high, in f32 and f16: the loss is no number, the gradients neither.
#[test]
fn a_training_that_diverges_ends_and_says_so() {
    let data = images("diverges");
    let file = data.join("run");
    for precision in ["f32", "f16"] {
        let flags = format!(
            "--model alexnet --rate 10000 --np 2 --precision {precision} --every 1 --checkpoint {}",
            file.display()
        );
        let said = fails(&data, &flags);
        assert!(said.contains("the training diverged: the loss of step"), "{said}");
        assert!(said.contains("lower --rate") && !said.contains("go on from the last"), "{said}");
    }
    // The loss is fine, but scaled it is too large for f16, for ever.
    let said = fails(&data, "--model alexnet --epochs 3 --np 2 --precision f16 --loss-scale 1e30");
    assert!(
        said.contains("overflowed in 20 steps in a row, up to step 19") && said.contains("--loss-scale"),
        "{said}"
    );
    assert_eq!(said.matches(" skipped\n").count(), 20, "{said}");
}

#[test]
fn numbers_that_make_no_sense_are_refused_before_anything_starts() {
    let data = images("flags");
    for (flag, says) in [
        ("--loss-scale 0", "above 0"),
        ("--loss-scale inf", "above 0"),
        ("--rate -1", "above 0"),
        ("--rate nan", "above 0"),
        ("--trust 0", "above 0"),
        ("--smoothing 1", "from 0 to below 1"),
        ("--momentum 1", "from 0 to below 1"),
        ("--momentum -0.1", "from 0 to below 1"),
        ("--decay -0.0001", "0 or above"),
        ("--warm-up -1", "0 or above"),
        ("--epochs 0", "1 or above"),
        ("--stop 0", "1 or above"),
        ("--batch 0", "1 or above"),
        ("--workers 0", "1 or above"),
        ("--every 0 --checkpoint x", "1 or above"),
        ("--every 5", "--checkpoint <FILE>"),
    ] {
        let rate = if flag.contains("--rate") { "" } else { "--rate 0.1" };
        let said = fails(&data, &format!("--model alexnet {rate} --np 2 {flag}"));
        let name = flag.split(' ').next().unwrap();
        assert!(said.contains(says) && (said.contains(name) || says.starts_with("--")), "{flag}: {said}");
        assert!(!said.contains("rank"), "ranks started: {said}");
    }
    for (flags, says) in [
        ("--model alexnet --size 14", "15 pixels or larger"),
        ("--model alexnet --batch 33", "multiple of the number of ranks"),
        ("--model alexnet --width 5", "even number"),
    ] {
        let said = fails(&data, &format!("{flags} --np 2"));
        assert!(said.contains(says), "{said}");
    }
}

/// Sizes of images between the small first convolution and the original one.
#[test]
fn odd_sizes_train() {
    let data = images("sizes");
    for size in [15, 65, 67] {
        assert_eq!(losses(&data, &format!("--model alexnet-bn --size {size} --stop 2")).len(), 2);
    }
}

#[test]
fn records_train_as_what_was_packed_with_any_workers_and_without_tests() {
    let data = images("pack");
    let packed = data.join("packed");
    std::fs::create_dir_all(&packed).unwrap();
    let pack = |to: &str, more: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_graccl-train"));
        let o = c
            .args(["pack", "--data"])
            .arg(&data)
            .arg("--to")
            .arg(packed.join(to))
            .args(more)
            .output()
            .unwrap();
        assert!(o.status.success(), "{}", text(&o));
        text(&o)
    };
    assert!(pack("train.records", &[]).contains("512 images of 10 classes"));
    assert!(pack("val.records", &["--test"]).contains("128 images of 10 classes"));
    // All but what depends on the time.
    let train = |data: &Path, more: &str| -> Vec<String> {
        let said = succeeds(data, &format!("--model alexnet --stop 6 --np 2 {more}"));
        said.lines()
            .filter(|l| l.starts_with("step ") || l.starts_with("test "))
            .map(str::to_string)
            .collect()
    };
    let whole = train(&data, "");
    assert_eq!(whole.len(), 7);
    assert_eq!(whole, train(&packed, ""));
    assert_eq!(whole, train(&packed, "--workers 3"));
    // One file has no test images.
    let said = succeeds(&packed.join("train.records"), "--model alexnet --stop 6 --np 2");
    let steps: Vec<&str> = said.lines().filter(|l| l.starts_with("step ")).collect();
    assert_eq!(steps, whole[..6]);
    assert!(said.contains("summary: no test images"), "{said}");
}

#[test]
fn the_loss_of_a_test_has_no_smoothing() {
    let data = images("smoothing");
    // The rate moves nothing.
    let test = |smoothing: &str| -> (String, String) {
        let flags = format!("--model alexnet --rate 1e-30 --decay 0 --stop 1 --smoothing {smoothing}");
        let said = succeeds(&data, &flags);
        let line = |begin: &str| said.lines().find(|l| l.starts_with(begin)).unwrap().to_string();
        (line("step "), line("test "))
    };
    let (plain, smooth) = (test("0"), test("0.5"));
    assert_ne!(plain.0, smooth.0);
    assert_eq!(plain.1, smooth.1);
}

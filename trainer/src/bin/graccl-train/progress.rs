//! What a person reads while a run goes on, and at its end.

use std::time::{Duration, Instant};

use graccl_trainer::trainer::Report;

/// Sums over steps.
#[derive(Clone, Copy, Default)]
pub struct Sums {
    pub steps: usize,
    images: usize,
    loss: f64,
    accuracy: f64,
    /// Of the steps: without tests and checkpoints.
    seconds: f64,
    busy: f64,
    waited: f64,
    skipped: usize,
}

impl Sums {
    pub fn add(&mut self, r: &Report, images: usize, seconds: f64) {
        self.steps += 1;
        self.images += images;
        self.loss += r.loss;
        self.accuracy += r.accuracy;
        self.seconds += seconds;
        self.busy += r.times.busy;
        self.waited += r.times.waited;
        self.skipped += usize::from(r.skipped);
    }

    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds
    }

    /// Part of the time in which the rank waited for buckets.
    pub fn comm_share(&self) -> f64 {
        (self.waited / self.seconds).min(1.0)
    }

    /// Part of the buckets' time in which the rank did not wait.
    pub fn hidden_share(&self) -> f64 {
        if self.busy > 0.0 { (1.0 - self.waited / self.busy).max(0.0) } else { 1.0 }
    }
}

/// The lines of a run, by rank 0.
pub struct Progress {
    began: Instant,
    all: Sums,
    window: Sums,
    last: Instant,
    /// Accuracies of tests, with their epochs.
    tests: Vec<(f64, f64)>,
}

impl Progress {
    pub fn begin() -> Progress {
        let now = Instant::now();
        println!(
            "# {:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>8}",
            "step", "epoch", "loss", "acc %", "images/s", "comm %", "hidden %"
        );
        Progress { began: now, all: Sums::default(), window: Sums::default(), last: now, tests: vec![] }
    }

    /// After a step. A line every 5 seconds, and where one is `due`.
    pub fn step(&mut self, r: &Report, images: usize, seconds: f64, (step, epoch): (usize, f64), due: bool) {
        self.all.add(r, images, seconds);
        self.window.add(r, images, seconds);
        if !due && self.last.elapsed() < Duration::from_secs(5) {
            return;
        }
        let w = std::mem::take(&mut self.window);
        self.last = Instant::now();
        println!(
            "  {step:>6} {epoch:>6.2} {:>9.4} {:>9.2} {:>9.1} {:>9.1} {:>8.1}{}",
            w.loss / w.steps as f64,
            100.0 * w.accuracy / w.steps as f64,
            w.images_per_second(),
            100.0 * w.comm_share(),
            100.0 * w.hidden_share(),
            if w.skipped > 0 { format!("  ({} steps skipped: overflow)", w.skipped) } else { String::new() },
        );
    }

    pub fn tested(&mut self, epoch: f64, loss: f64, accuracy: f64) {
        println!("test after epoch {epoch:.2}: loss {loss:.4}, accuracy {:.2} %", 100.0 * accuracy);
        self.tests.push((epoch, accuracy));
        self.last = Instant::now();
    }

    /// `read` and `waited`: how long the input's workers worked, and how much of it this rank waited.
    pub fn end(&self, read: Duration, waited: Duration) {
        let a = &self.all;
        println!(
            "summary: {} steps in {:.2} s, {:.1} images/s, {} steps skipped",
            a.steps,
            self.began.elapsed().as_secs_f64(),
            a.images_per_second(),
            a.skipped
        );
        // Of equals, the first.
        let best = self.tests.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a });
        match (self.tests.last(), best) {
            (Some((_, last)), Some((epoch, best))) => println!(
                "summary: test accuracy {:.2} % at the end, {:.2} % at best (after epoch {epoch:.2})",
                100.0 * last,
                100.0 * best
            ),
            _ => println!("summary: no test images"),
        }
        println!(
            "summary: waited for buckets in {:.2} % of the time, {:.1} % of theirs hidden; for input in {:.2} %, {:.1} % of \
             its hidden",
            100.0 * a.comm_share(),
            100.0 * a.hidden_share(),
            100.0 * waited.as_secs_f64() / a.seconds,
            100.0 * (1.0 - waited.as_secs_f64() / read.as_secs_f64().max(1e-9)).max(0.0),
        );
    }
}

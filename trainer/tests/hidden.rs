//! How much of the input's time is hidden behind the steps. A file of its own: nothing else runs at the same time.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use graccl::Result;
use graccl_trainer::input::{Augment, Dataset, Image, Loader, LoaderConfig, Split, Stored, open};

/// Images that take 20 ms to read.
struct Slow;

impl Dataset for Slow {
    fn len(&self) -> usize {
        1000
    }
    fn channels(&self) -> usize {
        1
    }
    fn classes(&self) -> usize {
        1
    }
    fn label(&self, _: usize) -> u32 {
        0
    }
    fn name(&self, i: usize) -> String {
        i.to_string()
    }
    fn stored(&self, _: usize) -> Result<Stored> {
        std::thread::sleep(Duration::from_millis(20));
        Ok(Stored::Pixels(Image { pixels: vec![0], shape: [1, 1, 1] }))
    }
}

/// Percent of the workers' time for which the consumer did not wait. Every step takes `step` of computing.
fn hidden(loader: &Loader, steps: u64, step: impl Fn()) -> f64 {
    let mut batches = loader.steps(0..steps);
    let mut first = None;
    while let Some(batch) = batches.next() {
        batch.unwrap();
        first.get_or_insert(batches.waited());
        step();
    }
    let (waited, worked) = (batches.waited(), batches.worked());
    let hidden = 100.0 * (1.0 - waited.as_secs_f64() / worked.as_secs_f64());
    println!(
        "{steps} steps: reading took {worked:.3?}, waited {waited:.3?}, {:.3?} of it for the first batch: \
         {hidden:.1} % hidden",
        first.unwrap()
    );
    hidden
}

/// What is left to wait for is the first batch of 100: without working ahead it would be all.
#[test]
fn reading_is_hidden_behind_longer_steps() {
    let loader = Loader::new(Arc::new(Slow), LoaderConfig::training(1, (1, 1), Augment::none(1), 0)).unwrap();
    let hidden = hidden(&loader, 100, || std::thread::sleep(Duration::from_millis(40)));
    assert!((95.0..100.0).contains(&hidden), "{hidden}");
}

/// Real pictures on one core, computing on another: steps take twice as long as it takes to make a batch alone, because
/// the two slow each other down. Wants two cores with nothing else on them, and scripts/emoji.
#[test]
#[ignore = "wants two idle cores and scripts/emoji"]
fn decoding_is_hidden_behind_longer_steps() {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/data/emoji"));
    let config = LoaderConfig::training(128, (32, 32), Augment::none(3).crop(4).flip(), 1);
    let loader = Loader::new(open(dir, Split::Train).unwrap(), config).unwrap();
    let mut alone = loader.steps(0..20);
    alone.by_ref().for_each(|b| drop(b.unwrap()));
    let step = alone.worked() / 20 * 2;
    println!("a batch of 128 takes {:.2?}, a step {step:.2?}", alone.worked() / 20);
    let hidden = hidden(&loader, 200, || {
        let begin = Instant::now();
        while begin.elapsed() < step {
            std::hint::spin_loop();
        }
    });
    assert!(hidden >= 95.0, "{hidden}");
}

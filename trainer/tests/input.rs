//! The loader: the same batches whoever makes them, errors that reach the consumer, threads that end.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::fetched;
use graccl::{Error, Result};
use graccl_trainer::input::{
    Augment, Batch, Dataset, Image, Loader, LoaderConfig, Mnist, Records, Split, Stored, open,
};

/// Images of 3 x 3 that say their number: its high byte in the first rows, its low byte in the last.
struct Numbers {
    images: usize,
    /// Reading one takes so long.
    cost: Duration,
    /// Cannot be read.
    broken: Option<usize>,
    /// Reading it panics.
    panics: Option<usize>,
    read: AtomicUsize,
}

impl Numbers {
    fn new(images: usize) -> Numbers {
        Numbers { images, cost: Duration::ZERO, broken: None, panics: None, read: AtomicUsize::new(0) }
    }
}

impl Dataset for Numbers {
    fn len(&self) -> usize {
        self.images
    }
    fn channels(&self) -> usize {
        1
    }
    fn classes(&self) -> usize {
        self.images
    }
    fn label(&self, i: usize) -> u32 {
        i as u32
    }
    fn name(&self, i: usize) -> String {
        format!("number {i}")
    }
    fn stored(&self, i: usize) -> Result<Stored> {
        self.read.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.cost);
        assert!(self.panics != Some(i), "this one panics");
        if self.broken == Some(i) {
            return Err(Error::argument("broken").who(self.name(i)));
        }
        let pixels = (0..9).map(|p| if p < 6 { (i >> 8) as u8 } else { i as u8 }).collect();
        Ok(Stored::Pixels(Image { pixels, shape: [1, 3, 3] }))
    }
}

/// Numbers are the bytes; crops and flips are drawn.
fn augment() -> Augment {
    Augment { mean: vec![0.0], deviation: vec![1.0 / 255.0], ..Augment::none(1) }.crop(2).flip()
}

fn config(batch: usize) -> LoaderConfig {
    LoaderConfig::training(batch, (3, 3), augment(), 7)
}

fn loader(data: Numbers, config: LoaderConfig) -> Loader {
    Loader::new(Arc::new(data), config).unwrap()
}

fn all(loader: &Loader, epoch: u64) -> Vec<Batch> {
    loader.epoch(epoch).map(|b| b.unwrap()).collect()
}

#[test]
fn workers_make_no_difference() {
    let alone = all(&loader(Numbers::new(1000), config(16)), 3);
    assert_eq!(alone.len(), 62);
    assert_eq!(alone[0].shape, [1, 3, 3]);
    assert_eq!(alone[0].images.len(), 16 * 9);
    for workers in [2, 3, 7, 100] {
        assert_eq!(all(&loader(Numbers::new(1000), config(16).workers(workers)), 3), alone);
    }
}

/// Images, crops and flips of a step are the same for 1, 2 and 4 ranks.
#[test]
fn ranks_share_a_step() {
    let alone = all(&loader(Numbers::new(300), config(24)), 1);
    for ranks in [2, 4] {
        let share = |rank| {
            all(&loader(Numbers::new(300), config(24 / ranks).of_rank(rank, ranks).workers(1 + rank)), 1)
        };
        let shares: Vec<Vec<Batch>> = (0..ranks).map(share).collect();
        for (step, whole) in alone.iter().enumerate() {
            let images: Vec<f32> = shares.iter().flat_map(|s| s[step].images.clone()).collect();
            let labels: Vec<u32> = shares.iter().flat_map(|s| s[step].labels.clone()).collect();
            assert_eq!((&images, &labels), (&whole.images, &whole.labels));
        }
    }
}

#[test]
fn every_epoch_and_seed_has_an_order_of_its_own_with_every_image_once() {
    let order =
        |l: &Loader, epoch| -> Vec<u32> { all(l, epoch).into_iter().flat_map(|b| b.labels).collect() };
    let l = loader(Numbers::new(120), config(12));
    let other = loader(Numbers::new(120), LoaderConfig { seed: 8, ..config(12) });
    let orders = [order(&l, 0), order(&l, 1), order(&other, 0)];
    for (i, a) in orders.iter().enumerate() {
        assert_eq!(a.iter().collect::<BTreeSet<_>>().len(), 120);
        orders[..i].iter().for_each(|b| assert_ne!(a, b));
    }
    assert_eq!(order(&l, 0), orders[0]);
    // The images belong to the labels.
    for batch in all(&loader(Numbers::new(700), config(70)), 0) {
        for (image, &label) in batch.images.chunks(9).zip(&batch.labels) {
            let values: BTreeSet<u32> = image.iter().map(|v| v.round() as u32).collect();
            assert!(values.is_subset(&BTreeSet::from([label >> 8, label & 255])), "{label}: {image:?}");
        }
    }
}

#[test]
fn an_image_is_cut_anew_in_every_epoch() {
    let config = LoaderConfig { shuffle: false, ..config(60) };
    let l = loader(Numbers::new(600), config);
    let differing = all(&l, 0).iter().zip(&all(&l, 1)).filter(|(a, b)| a.images != b.images).count();
    assert!(differing >= 9, "{differing} of 10 batches");
}

#[test]
fn steps_run_across_epochs_and_from_the_middle() {
    let l = loader(Numbers::new(50), config(10).workers(2));
    let mut whole = all(&l, 0);
    whole.extend(all(&l, 1));
    let through: Vec<Batch> = l.steps(3..8).map(|b| b.unwrap()).collect();
    assert_eq!(through, whole[3..8]);
}

#[test]
fn evaluation_takes_every_image_once() {
    for (images, batch, ranks, workers) in [(103, 10, 4, 2), (41, 10, 4, 1), (5, 2, 3, 3), (1, 1, 2, 1)] {
        let mut seen = Vec::new();
        for rank in 0..ranks {
            let c = LoaderConfig::evaluation(batch, (3, 3), Augment::none(1))
                .of_rank(rank, ranks)
                .workers(workers);
            let batches = all(&loader(Numbers::new(images), c), 0);
            assert!(batches.iter().all(|b| (1..=batch).contains(&b.labels.len())));
            seen.extend(batches.into_iter().flat_map(|b| b.labels));
        }
        seen.sort();
        assert_eq!(seen, (0..images as u32).collect::<Vec<_>>());
    }
}

#[test]
fn settings_that_make_no_batch_are_refused() {
    let refused = |c: LoaderConfig| Loader::new(Arc::new(Numbers::new(9)), c).err().unwrap().to_string();
    assert!(refused(config(10)).contains("9 images do not fill a step of 10"));
    assert!(refused(config(5).of_rank(0, 2)).contains("step of 10"));
    for bad in [
        config(0),
        config(1).of_rank(2, 2),
        config(1).workers(0),
        LoaderConfig { size: (0, 3), ..config(1) },
        LoaderConfig { augment: Augment::none(3), ..config(1) },
    ] {
        assert!(refused(bad).contains("cannot have"));
    }
}

#[test]
fn an_error_and_a_panic_reach_the_consumer_with_the_image() {
    for (broken, panics, says) in [(Some(57), None, "broken"), (None, Some(57), "panicked: this one panics")]
    {
        for workers in [1, 3] {
            let data = Numbers { broken, panics, ..Numbers::new(100) };
            let c = LoaderConfig { shuffle: false, ..config(10).workers(workers) };
            let mut batches = loader(data, c).epoch(0);
            (0..5).for_each(|_| assert!(batches.next().unwrap().is_ok()));
            let e = batches.next().unwrap().unwrap_err().to_string();
            assert!(e.contains(says) && e.contains("[number 57]"), "{e}");
            assert!(batches.next().is_none());
        }
    }
}

/// Threads of this process that the loader started for the caller's test.
fn workers_alive() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |t: std::fs::DirEntry| std::fs::read_to_string(t.path().join("comm")).unwrap_or_default();
    tasks.map(name).filter(|n| n.starts_with("input 20")).count()
}

/// 210 workers: no other test has so many, and those from 200 on are counted.
#[test]
fn threads_end_when_the_iterator_is_dropped() {
    let l = loader(Numbers::new(5000), config(1).workers(210));
    for taken in [0, 1, 300] {
        let mut batches = l.epoch(0);
        (0..taken).for_each(|_| drop(batches.next().unwrap().unwrap()));
        assert!(workers_alive() > 0, "the count sees workers");
        drop(batches);
        assert_eq!(workers_alive(), 0);
    }
    // One that reads slowly ends after the image that it reads, not after its batch.
    let data = Numbers { cost: Duration::from_millis(20), ..Numbers::new(5000) };
    let batches = loader(data, config(1000)).epoch(0);
    std::thread::sleep(Duration::from_millis(5));
    let begin = Instant::now();
    drop(batches);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn workers_stay_a_bounded_way_ahead_and_sleep_there() {
    let data = Arc::new(Numbers::new(10_000));
    let l = Loader::new(data.clone(), config(10).workers(2)).unwrap();
    let mut batches = l.epoch(0);
    drop(batches.next().unwrap().unwrap());
    // One taken, and for each worker one in the queue and one that waits for its place.
    let read = || data.read.load(Ordering::Relaxed);
    let start = Instant::now();
    while read() < 50 && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(read(), 50);
    let worked = batches.worked();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(batches.worked(), worked);
}

#[test]
fn the_last_touch_is_the_workers() {
    let here = std::thread::current().id();
    let l = loader(Numbers::new(40), config(10));
    let touched = l.prefetch(0..4, move |b| Ok((b.labels.len(), std::thread::current().id())));
    touched.for_each(|t| {
        let (n, thread) = t.unwrap();
        assert!(n == 10 && thread != here);
    });
    let mut fails = l.prefetch(0..4, |_| Err::<(), _>(Error::argument("no device")));
    assert!(fails.next().unwrap().unwrap_err().to_string().contains("no device"));
}

/// Counts, and the mean and deviation that everybody gives: .1307 and .3081.
#[test]
fn mnist_is_what_it_is_known_to_be() {
    let Some(dir) = fetched("mnist", "mnist") else { return };
    let (train, test) = (Mnist::open(&dir, Split::Train).unwrap(), Mnist::open(&dir, Split::Test).unwrap());
    assert_eq!((train.len(), test.len(), train.classes(), test.classes()), (60_000, 10_000, 10, 10));
    let mut per_class = [0; 10];
    (0..60_000).for_each(|i| per_class[train.label(i) as usize] += 1);
    assert_eq!(per_class, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
    let l =
        Loader::new(Arc::new(train), LoaderConfig::training(1000, (28, 28), Augment::none(1), 1)).unwrap();
    let (mut sum, mut squares) = (0.0, 0.0);
    for batch in l.epoch(0) {
        let images = batch.unwrap().images;
        sum += images.iter().map(|&v| f64::from(v)).sum::<f64>();
        squares += images.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    }
    let n = 60_000.0 * 784.0;
    let (mean, deviation) = (sum / n, (squares / n - (sum / n).powi(2)).sqrt());
    assert!(mean.abs() < 1e-3 && (deviation - 1.0).abs() < 1e-3, "{mean} {deviation}");
}

#[test]
fn emoji_are_an_image_folder() {
    let Some(dir) = fetched("emoji", "emoji") else { return };
    let (train, test) = (open(&dir, Split::Train).unwrap(), open(&dir, Split::Test).unwrap());
    assert_eq!((train.classes(), test.classes(), train.channels()), (9, 9, 3));
    assert!(train.len() > 1200 && test.len() > 250, "{} {}", train.len(), test.len());
    let packed = tempfile::tempdir().unwrap();
    let file = packed.path().join("emoji");
    Records::pack(&*train, &file).unwrap();
    let batches = |data: Arc<dyn Dataset>| {
        let c = LoaderConfig::training(100, (32, 32), Augment::none(3).crop(4).flip(), 1).workers(2);
        all(&Loader::new(data, c).unwrap(), 0)
    };
    assert_eq!(batches(train), batches(Arc::new(Records::open(&file).unwrap())));
}

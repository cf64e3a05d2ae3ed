//! Batches, made ahead by worker threads.
//!
//! Worker `w` of `W` makes the batches `w`, `w + W`, `w + 2 W` … and puts them into a bounded lock-free queue of its own;
//! the consumer takes from the queues in turn. So batches come in order whoever is faster, and nothing has to be
//! sorted. A worker whose queue is full sleeps, and so does a consumer that finds its queue empty.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::sync::{Parker, Unparker};
use graccl::{Error, Result};

use super::{Augment, Batch, Dataset};
use crate::random::{IMAGE, ORDER, Random};

/// Batches that wait in each worker's queue; one more is being made.
const AHEAD: usize = 1;

/// How a dataset becomes batches.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Images of this rank in a step.
    pub batch: usize,
    pub rank: usize,
    pub ranks: usize,
    pub seed: u64,
    /// A new order for every epoch; else that of the dataset.
    pub shuffle: bool,
    /// Leaves out the images that do not fill the last step of an epoch. Else they are shared out over the ranks as
    /// evenly as they can be.
    pub drop_last: bool,
    pub augment: Augment,
    /// Height, width.
    pub size: (usize, usize),
    /// Threads. Each has up to two batches in memory.
    pub workers: usize,
}

impl LoaderConfig {
    /// Shuffled, whole steps only: one rank, one worker, until they are set.
    pub fn training(batch: usize, size: (usize, usize), augment: Augment, seed: u64) -> LoaderConfig {
        let (shuffle, drop_last) = (true, true);
        LoaderConfig { batch, rank: 0, ranks: 1, seed, shuffle, drop_last, augment, size, workers: 1 }
    }

    /// Every image once, in order.
    pub fn evaluation(batch: usize, size: (usize, usize), augment: Augment) -> LoaderConfig {
        LoaderConfig { shuffle: false, drop_last: false, ..LoaderConfig::training(batch, size, augment, 0) }
    }

    /// The share of one rank.
    pub fn of_rank(mut self, rank: usize, ranks: usize) -> LoaderConfig {
        (self.rank, self.ranks) = (rank, ranks);
        self
    }

    pub fn workers(mut self, workers: usize) -> LoaderConfig {
        self.workers = workers;
        self
    }
}

/// Makes batches of a dataset. Which images a step has, over all ranks, and how they are cut, depends on the dataset,
/// the seed, the step and `batch * ranks`, and on nothing else.
pub struct Loader {
    plan: Arc<Plan>,
}

struct Plan {
    data: Arc<dyn Dataset>,
    config: LoaderConfig,
}

impl Loader {
    /// # Errors
    /// `InvalidArgument` for settings that make no batch.
    pub fn new(data: Arc<dyn Dataset>, config: LoaderConfig) -> Result<Loader> {
        let c = &config;
        let positive = [c.batch, c.ranks, c.workers, c.size.0, c.size.1].iter().all(|&n| n > 0);
        let channels = data.channels();
        if !positive
            || c.rank >= c.ranks
            || [c.augment.mean.len(), c.augment.deviation.len()] != [channels; 2]
        {
            return Err(Error::argument(format!("a loader for {channels} channels cannot have {c:?}"))
                .hint("give sizes above 0, a rank below ranks, and a mean and deviation for each channel"));
        }
        let plan = Plan { data, config };
        if plan.steps() == 0 {
            let what = format!("{} images do not fill a step of {}", plan.data.len(), plan.global());
            return Err(Error::argument(what).hint("choose a smaller batch"));
        }
        Ok(Loader { plan: Arc::new(plan) })
    }

    /// Steps of an epoch: the same on all ranks.
    pub fn steps_per_epoch(&self) -> u64 {
        self.plan.steps()
    }

    /// The batches of an epoch.
    pub fn epoch(&self, epoch: u64) -> Batches<Batch> {
        let n = self.steps_per_epoch();
        self.steps(epoch * n..(epoch + 1) * n)
    }

    /// The batches of steps, counted from the first of epoch 0: across the borders of epochs without a pause, and from
    /// the middle of one after a restart. A batch of which this rank has no image is passed over (without
    /// `drop_last`, in the last step of an epoch).
    pub fn steps(&self, steps: Range<u64>) -> Batches<Batch> {
        self.prefetch(steps, Ok)
    }

    /// Like [`Loader::steps`], with a last touch by the worker: such as a copy to a device.
    pub fn prefetch<T: Send + 'static>(
        &self,
        steps: Range<u64>,
        finish: impl Fn(Batch) -> Result<T> + Send + Sync + 'static,
    ) -> Batches<T> {
        Batches::start(&self.plan, steps, Arc::new(finish))
    }
}

impl Plan {
    /// Images of a step, over all ranks.
    fn global(&self) -> usize {
        self.config.batch * self.config.ranks
    }

    fn steps(&self) -> u64 {
        let (images, step) = (self.data.len(), self.global());
        (if self.config.drop_last { images / step } else { images.div_ceil(step) }) as u64
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        if self.config.shuffle {
            Random::new(self.config.seed, &[ORDER, epoch]).order(self.data.len())
        } else {
            (0..self.data.len()).collect()
        }
    }

    /// This rank's share of the images of a step, as places in the epoch's order.
    fn share(&self, step: u64) -> Range<usize> {
        let begin = step as usize * self.global();
        let images = self.global().min(self.data.len() - begin);
        let cut = |rank: usize| begin + rank * images / self.config.ranks;
        cut(self.config.rank)..cut(self.config.rank + 1)
    }
}

/// One batch at a time, in order. Ends after an error. Dropping it stops the workers.
pub struct Batches<T> {
    shared: Arc<Shared<T>>,
    workers: Vec<Worker>,
    parker: Parker,
    steps: Range<u64>,
    first: u64,
    waited: Duration,
}

struct Worker {
    thread: Option<JoinHandle<()>>,
    unparker: Unparker,
}

struct Shared<T> {
    plan: Arc<Plan>,
    /// One for each worker. `None` is a batch without images.
    queues: Vec<ArrayQueue<Result<Option<T>>>>,
    stop: AtomicBool,
    /// Nanoseconds that workers worked.
    worked: AtomicU64,
}

/// What a worker does with a finished batch.
type Finish<T> = Arc<dyn Fn(Batch) -> Result<T> + Send + Sync>;

impl<T: Send + 'static> Batches<T> {
    fn start(plan: &Arc<Plan>, steps: Range<u64>, finish: Finish<T>) -> Batches<T> {
        let count = plan.config.workers.min((steps.end.saturating_sub(steps.start)) as usize);
        let shared = Arc::new(Shared {
            plan: plan.clone(),
            queues: (0..count).map(|_| ArrayQueue::new(AHEAD)).collect(),
            stop: AtomicBool::new(false),
            worked: AtomicU64::new(0),
        });
        let parker = Parker::new();
        let worker = |w: usize| {
            let parked = Parker::new();
            let unparker = parked.unparker().clone();
            let (shared, finish) = (shared.clone(), finish.clone());
            let consumer = parker.unparker().clone();
            let mine = (steps.start + w as u64..steps.end).step_by(count);
            let run = move || shared.work(w, mine, &*finish, &parked, &consumer);
            let thread = std::thread::Builder::new().name(format!("input {w}")).spawn(run);
            Worker { thread: Some(thread.expect("a thread can be started")), unparker }
        };
        let workers = (0..count).map(worker).collect();
        let first = steps.start;
        Batches { shared, workers, parker, steps, first, waited: Duration::ZERO }
    }
}

impl<T> Batches<T> {
    /// How long the consumer has waited for batches.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// How long workers have worked, added up: what the consumer would have waited without them.
    pub fn worked(&self) -> Duration {
        Duration::from_nanos(self.shared.worked.load(Ordering::Relaxed))
    }

    /// The next batch of the queues, when it is there.
    fn take(&mut self) -> Option<Result<Option<T>>> {
        if self.steps.is_empty() {
            return None;
        }
        let w = ((self.steps.start - self.first) % self.shared.queues.len() as u64) as usize;
        let begin = Instant::now();
        let next = loop {
            if let Some(next) = self.shared.queues[w].pop() {
                break next;
            }
            // A worker that has put a batch there since leaves a token, with which this returns at once.
            self.parker.park();
        };
        self.waited += begin.elapsed();
        self.workers[w].unparker.unpark();
        self.steps.start += 1;
        if next.is_err() {
            self.steps.start = self.steps.end;
        }
        Some(next)
    }
}

impl<T> Iterator for Batches<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        loop {
            // A batch without images is passed over.
            if let Some(next) = self.take()?.transpose() {
                return Some(next);
            }
        }
    }
}

impl<T> Drop for Batches<T> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for w in &mut self.workers {
            w.unparker.unpark();
            // A worker catches its panics.
            let _ = w.thread.take().map(JoinHandle::join);
        }
    }
}

impl<T> Shared<T> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn work(
        &self,
        w: usize,
        steps: impl Iterator<Item = u64>,
        finish: &dyn Fn(Batch) -> Result<T>,
        parked: &Parker,
        consumer: &Unparker,
    ) {
        let per_epoch = self.plan.steps();
        let mut order = (u64::MAX, Vec::new());
        for step in steps {
            let begin = Instant::now();
            let image = Cell::new(None);
            // Nothing that a panic leaves half done is used again.
            let made = catch_unwind(AssertUnwindSafe(|| {
                let epoch = step / per_epoch;
                if order.0 != epoch {
                    order = (epoch, self.plan.order(epoch));
                }
                let share = &order.1[self.plan.share(step % per_epoch)];
                self.batch(epoch, share, &image)?.map(finish).transpose()
            }));
            let mut made = made.unwrap_or_else(|panic| Err(self.panicked(&image, &*panic)));
            self.worked.fetch_add(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
            let failed = made.is_err();
            while let Err(back) = self.queues[w].push(made) {
                if self.stopped() {
                    return;
                }
                parked.park();
                made = back;
            }
            consumer.unpark();
            if failed || self.stopped() {
                return;
            }
        }
    }

    /// `image` is set to what is being read. `None` if there are no images, or the batch is not wanted any more.
    fn batch(&self, epoch: u64, share: &[usize], image: &Cell<Option<usize>>) -> Result<Option<Batch>> {
        let Plan { data, config } = &*self.plan;
        let shape = [data.channels(), config.size.0, config.size.1];
        let pixels = shape.iter().product::<usize>();
        let mut images = vec![0.0; share.len() * pixels];
        for (&i, out) in share.iter().zip(images.chunks_exact_mut(pixels)) {
            if self.stopped() {
                return Ok(None);
            }
            image.set(Some(i));
            let mut random = Random::new(config.seed, &[IMAGE, epoch, i as u64]);
            let read = data.image(i)?;
            config.augment.apply(read, config.size, &mut random, out).map_err(|e| e.who(data.name(i)))?;
        }
        image.set(None);
        let labels = share.iter().map(|&i| data.label(i)).collect();
        Ok((!share.is_empty()).then_some(Batch { images, labels, shape }))
    }

    fn panicked(&self, image: &Cell<Option<usize>>, panic: &(dyn Any + Send)) -> Error {
        let text =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let error = Error::internal(format!("a worker of the input panicked: {}", text.unwrap_or("no text")));
        match image.get() {
            Some(i) => error.who(self.plan.data.name(i)).hint("take the image away, and report the bug"),
            None => error.hint("report the bug"),
        }
    }
}

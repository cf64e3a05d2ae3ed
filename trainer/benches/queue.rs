//! The queue between a worker and the training step: lock-free with parking, as the loader has it, beside a mutex
//! with condition variables. Time for each batch handed over; a batch is a vector, of which only the pointer moves.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::sync::{Parker, Unparker};

type Batch = Vec<f32>;

/// One end gives, the other takes; both sleep when they must.
trait Give: Send {
    fn give(&mut self, batch: Batch);
}
trait Take {
    fn take(&mut self) -> Batch;
}

struct LockFree {
    queue: Arc<ArrayQueue<Batch>>,
    own: Parker,
    other: Unparker,
}

impl Give for LockFree {
    fn give(&mut self, mut batch: Batch) {
        while let Err(back) = self.queue.push(batch) {
            self.own.park();
            batch = back;
        }
        self.other.unpark();
    }
}

impl Take for LockFree {
    fn take(&mut self) -> Batch {
        let batch = loop {
            match self.queue.pop() {
                Some(batch) => break batch,
                None => self.own.park(),
            }
        };
        self.other.unpark();
        batch
    }
}

fn lock_free(depth: usize) -> (LockFree, LockFree) {
    let queue = Arc::new(ArrayQueue::new(depth));
    let (a, b) = (Parker::new(), Parker::new());
    let (to_a, to_b) = (a.unparker().clone(), b.unparker().clone());
    (LockFree { queue: queue.clone(), own: a, other: to_b }, LockFree { queue, own: b, other: to_a })
}

struct Locked {
    queue: Mutex<VecDeque<Batch>>,
    depth: usize,
    grown: Condvar,
    shrunk: Condvar,
}

impl Give for Arc<Locked> {
    fn give(&mut self, batch: Batch) {
        let mut queue =
            self.shrunk.wait_while(self.queue.lock().unwrap(), |q| q.len() == self.depth).unwrap();
        queue.push_back(batch);
        drop(queue);
        self.grown.notify_one();
    }
}

impl Take for Arc<Locked> {
    fn take(&mut self) -> Batch {
        let mut queue = self.grown.wait_while(self.queue.lock().unwrap(), |q| q.is_empty()).unwrap();
        let batch = queue.pop_front().expect("it is not empty");
        drop(queue);
        self.shrunk.notify_one();
        batch
    }
}

fn locked(depth: usize) -> (Arc<Locked>, Arc<Locked>) {
    let queue = Arc::new(Locked {
        queue: Mutex::new(VecDeque::with_capacity(depth)),
        depth,
        grown: Condvar::new(),
        shrunk: Condvar::new(),
    });
    (queue.clone(), queue)
}

/// Hands `n` batches from a thread to this one.
fn between_threads(mut give: impl Give + 'static, mut take: impl Take, n: u64) -> Duration {
    let giver = std::thread::spawn(move || (0..n).for_each(|_| give.give(Batch::new())));
    let begin = Instant::now();
    (0..n).for_each(|_| drop(std::hint::black_box(take.take())));
    let took = begin.elapsed();
    giver.join().unwrap();
    took
}

fn queues(c: &mut Criterion) {
    let mut g = c.benchmark_group("one thread gives and takes");
    let (mut give, mut take) = lock_free(1);
    g.bench_function("lock-free", |b| {
        b.iter(|| {
            give.give(Batch::new());
            take.take()
        })
    });
    let (mut give, mut take) = locked(1);
    g.bench_function("mutex", |b| {
        b.iter(|| {
            give.give(Batch::new());
            take.take()
        })
    });
    g.finish();
    let mut g = c.benchmark_group("from thread to thread, as fast as they can");
    for depth in [1, 2, 64] {
        g.bench_function(BenchmarkId::new("lock-free", depth), |b| {
            b.iter_custom(|n| {
                let (give, take) = lock_free(depth);
                between_threads(give, take, n)
            })
        });
        g.bench_function(BenchmarkId::new("mutex", depth), |b| {
            b.iter_custom(|n| {
                let (give, take) = locked(depth);
                between_threads(give, take, n)
            })
        });
    }
    g.finish();
}

criterion_group!(benches, queues);
criterion_main!(benches);

//! Small allreduces (f32, sum, in place): time of one call, from its begin to its end on rank 0.
//!
//! `shm2`: two ranks, two threads of this process, each bound to a core of its own where there are
//! two, over shared memory as between processes. Calls follow each other without a pause, so both
//! ranks wait by spinning: this is the latency of a hot loop, and what a job's first call after a
//! computation costs more (waking a core, cold caches) is not in it.
//!
//! `one rank`: a call that has nobody to talk to: checks, lock and lookup of the prepared plan, the
//! software's share of every call.
//!
//! With one core the ranks take turns on it, and `shm2` times the kernel's scheduler.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use graccl::bootstrap::UniqueId;
use graccl::{Communicator, Config, DataType, RedOp, TransportChoice};

const SIZES: [usize; 6] = [4, 64, 256, 1 << 10, 4 << 10, 64 << 10];

/// A rank and its buffer. Zeros: their sum stays what it is, however often it is taken.
struct Rank {
    comm: Communicator,
    data: Vec<f32>,
}

impl Rank {
    fn join(id: &UniqueId, rank: usize, size: usize) -> Rank {
        let config = Config { transport: TransportChoice::Shm, ..Config::default() };
        let comm = Communicator::init_rank(id, rank, size, &config).expect("cannot join");
        Rank { comm, data: vec![0.0; SIZES[SIZES.len() - 1] / size_of::<f32>()] }
    }

    /// Calls one after the other, all ranks together; the time that they took.
    fn calls(&mut self, batch: Batch) -> Duration {
        let at = self.data[..batch.bytes / size_of::<f32>()].as_mut_ptr().cast::<u8>();
        let count = batch.bytes / size_of::<f32>();
        self.comm.barrier().expect("barrier failed");
        let start = Instant::now();
        for _ in 0..batch.calls {
            // SAFETY: `count` elements of `data`, which is borrowed for the loop.
            unsafe { self.comm.all_reduce_raw(at, at, count, DataType::F32, RedOp::Sum) }
                .expect("all_reduce failed");
        }
        start.elapsed()
    }
}

/// What all ranks do next.
#[derive(Clone, Copy)]
struct Batch {
    bytes: usize,
    calls: u64,
}

/// Binds this thread to the `n`th of the cores that the process may use, if it has as many.
fn pin(n: usize) {
    // SAFETY: plain calls on a local set, with its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &mut set), 0, "cannot see the cores");
        let mut cores = (0..libc::CPU_SETSIZE as usize).filter(|&c| libc::CPU_ISSET(c, &set));
        if let Some(core) = cores.nth(n) {
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut one);
            assert_eq!(libc::sched_setaffinity(0, size_of_val(&one), &one), 0, "cannot bind to core {core}");
        }
    }
}

/// Rank 1: does every batch that rank 0 does.
fn follow(id: &UniqueId, batches: Receiver<Batch>) {
    pin(1);
    let mut rank = Rank::join(id, 1, 2);
    for batch in batches {
        rank.calls(batch);
    }
}

fn shm2(c: &mut Criterion) {
    let id = UniqueId::create().expect("cannot make an id");
    std::thread::scope(|s| {
        // In here, so that rank 1 hears of the end however it comes.
        let (tell, batches) = channel();
        let id = &id;
        s.spawn(move || follow(id, batches));
        pin(0);
        let mut rank = Rank::join(id, 0, 2);
        let mut g = c.benchmark_group("shm2");
        for bytes in SIZES {
            g.bench_function(BenchmarkId::from_parameter(bytes), |b| {
                b.iter_custom(|calls| {
                    let batch = Batch { bytes, calls };
                    tell.send(batch).expect("rank 1 has ended");
                    rank.calls(batch)
                })
            });
        }
        g.finish();
        // Both leave together: a rank that leaves waits for the other.
        drop(tell);
    });
}

fn one_rank(c: &mut Criterion) {
    let id = UniqueId::create().expect("cannot make an id");
    let mut rank = Rank::join(&id, 0, 1);
    let mut g = c.benchmark_group("one rank");
    g.bench_function(BenchmarkId::from_parameter(4), |b| {
        b.iter_custom(|calls| rank.calls(Batch { bytes: 4, calls }))
    });
    g.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    // shm2 binds this thread for good, so it comes last.
    targets = one_rank, shm2
}
criterion_main!(benches);

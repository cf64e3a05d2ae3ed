//! All-reduces of whole jobs: real processes, all algorithms, transports and layouts.

mod common;

use std::sync::{Barrier, OnceLock};
use std::time::Duration;

use common::{Job, case, join};
use graccl::{
    Call, Collective, Communicator, Config, DataType, RedOp, TransportChoice, UniqueId, memory, schedule,
};

/// Types and operations that together meet every type and every operation.
const KINDS: [(DataType, RedOp); 12] = [
    (DataType::F32, RedOp::Sum),
    (DataType::F64, RedOp::Max),
    (DataType::F32, RedOp::Avg),
    (DataType::I32, RedOp::Avg),
    (DataType::I8, RedOp::Sum),
    (DataType::U8, RedOp::Min),
    (DataType::I64, RedOp::Prod),
    (DataType::U32, RedOp::Sum),
    (DataType::U64, RedOp::Max),
    (DataType::F16, RedOp::Sum),
    (DataType::Bf16, RedOp::Prod),
    (DataType::I32, RedOp::Min),
];

/// What rank `r` of `n` contributes at `i`: small enough that every order of folding is exact.
fn input(op: RedOp, n: usize, r: usize, i: usize) -> i64 {
    let mixed = (i as u64 ^ (r as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    match op {
        RedOp::Sum | RedOp::Min | RedOp::Max => (mixed % 13) as i64,
        RedOp::Prod => 1 + (mixed & 1) as i64,
        // The sum is a multiple of n.
        RedOp::Avg => (i % 11) as i64 + (n * r) as i64,
    }
}

const COUNT_MAX: usize = 300_000;

/// The right results, computed once: an exact number for each place.
fn expected(op: RedOp, n: usize) -> &'static [i64] {
    static TABLES: [OnceLock<(usize, Vec<i64>)>; 5] = [const { OnceLock::new() }; 5];
    let at = |i| {
        let all = (0..n).map(|r| input(op, n, r, i));
        match op {
            RedOp::Sum => all.sum(),
            RedOp::Prod => all.product(),
            RedOp::Min => all.min().unwrap(),
            RedOp::Max => all.max().unwrap(),
            RedOp::Avg => all.sum::<i64>() / n as i64,
        }
    };
    let (size, table) = TABLES[op as usize].get_or_init(|| (n, (0..COUNT_MAX).map(at).collect()));
    assert_eq!(*size, n, "one number of ranks per process");
    table
}

/// The bits of a small whole number, 0 or more.
fn bits(v: i64, t: DataType) -> [u8; 8] {
    let mut b = [0; 8];
    let f16 = |v: i64| {
        let e = 63 - (v.max(1) as u64).leading_zeros();
        if v == 0 { 0 } else { ((15 + e) << 10) as u16 | ((v << (10 - e)) & 0x3ff) as u16 }
    };
    match t {
        DataType::F32 => b[..4].copy_from_slice(&(v as f32).to_ne_bytes()),
        DataType::F64 => b.copy_from_slice(&(v as f64).to_ne_bytes()),
        DataType::F16 => b[..2].copy_from_slice(&f16(v).to_ne_bytes()),
        DataType::Bf16 => b[..2].copy_from_slice(&(((v as f32).to_bits() >> 16) as u16).to_ne_bytes()),
        _ => b[..t.size()].copy_from_slice(&v.to_ne_bytes()[..t.size()]),
    }
    b
}

fn fill(bytes: &mut [u8], t: DataType, value: impl Fn(usize) -> i64) {
    for (i, e) in bytes.chunks_exact_mut(t.size()).enumerate() {
        e.copy_from_slice(&bits(value(i), t)[..t.size()]);
    }
}

fn check(bytes: &[u8], t: DataType, op: RedOp, n: usize, what: &dyn Fn() -> String) {
    let right = expected(op, n);
    for (i, e) in bytes.chunks_exact(t.size()).enumerate() {
        let right = bits(right[i], t);
        assert_eq!(e, &right[..t.size()], "element {i}: {}", what());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Same,
    Apart,
    Registered,
}

/// One all_reduce, checked bit by bit; what lies around the output is untouched.
fn plan(c: &Communicator, count: usize, t: DataType) -> graccl::Result<graccl::comm::PlanInfo> {
    let (send, recv) = (std::ptr::null(), std::ptr::null_mut());
    c.plan(&Call::new(Collective::AllReduce, send, recv, count, t, RedOp::Sum))
}

fn reduce(c: &Communicator, count: usize, t: DataType, op: RedOp, place: Place) {
    let (n, bytes) = (c.size(), count * t.size());
    let what = || {
        let plan = plan(c, count, t);
        format!("{count} {t:?} {op:?} {place:?}, rank {} of {n} on {:?}, {plan:?}", c.rank(), c.hosts())
    };
    let value = |i| input(op, n, c.rank(), i);
    const MARGIN: usize = 64;
    let room = bytes + 2 * MARGIN;
    if place == Place::Registered {
        let p = memory::alloc(room).unwrap();
        // SAFETY: just allocated; freed after the last use.
        unsafe {
            let all = std::slice::from_raw_parts_mut(p, room);
            all.fill(0xa5);
            fill(&mut all[MARGIN..MARGIN + bytes], t, value);
            let at = all[MARGIN..].as_mut_ptr();
            c.all_reduce_raw(at, at, count, t, op).unwrap_or_else(|e| panic!("{}: {e}", what()));
            check(&all[MARGIN..MARGIN + bytes], t, op, n, &what);
            assert!(all[..MARGIN].iter().chain(&all[MARGIN + bytes..]).all(|&b| b == 0xa5), "{}", what());
            memory::free(p).unwrap();
        }
        return;
    }
    let mut send = vec![0xa5; room];
    fill(&mut send[MARGIN..MARGIN + bytes], t, value);
    let mut apart = if place == Place::Apart { vec![0xa5; room] } else { Vec::new() };
    let s = send[MARGIN..].as_mut_ptr();
    let r = if place == Place::Apart { apart[MARGIN..].as_mut_ptr() } else { s };
    // SAFETY: both are ours and long enough.
    unsafe { c.all_reduce_raw(s, r, count, t, op) }.unwrap_or_else(|e| panic!("{}: {e}", what()));
    let out = if place == Place::Apart {
        let unchanged = (0..count).all(|i| {
            let at = MARGIN + i * t.size();
            send[at..at + t.size()] == bits(value(i), t)[..t.size()]
        });
        assert!(unchanged, "the input changed: {}", what());
        &apart
    } else {
        &send
    };
    check(&out[MARGIN..MARGIN + bytes], t, op, n, &what);
    assert!(out[..MARGIN].iter().chain(&out[MARGIN + bytes..]).all(|&b| b == 0xa5), "{}", what());
}

/// Sums numbers whose result depends on the order, and compares the bits of all ranks.
fn same_bits(c: &Communicator, count: usize) {
    let mut x = 0x2545_f491_4f6c_dd1du64 ^ c.rank() as u64;
    let mut data: Vec<f32> = (0..count)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x as i32 as f32) * 1.1f32.powi((x >> 40) as i32 % 60)
        })
        .collect();
    common::sum_f32(c, &mut data).unwrap();
    let hash = data.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, f| {
        (h ^ u64::from(f.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let extreme = |op| {
        let mut h = hash;
        let p = (&raw mut h).cast();
        // SAFETY: one u64 of ours.
        unsafe { c.all_reduce_raw(p, p, 1, DataType::U64, op) }.unwrap();
        h
    };
    assert_eq!(extreme(RedOp::Min), extreme(RedOp::Max), "ranks have different bits, {count} floats");
}

fn transports(c: &[u32]) -> Vec<TransportChoice> {
    let one_host = c.iter().all(|&h| h == c[0]);
    let all = [TransportChoice::Auto, TransportChoice::Shm, TransportChoice::Tcp];
    all.into_iter().filter(|&t| one_host || t != TransportChoice::Shm).collect()
}

/// Every algorithm over every transport, one communicator after the other.
fn every_algorithm() {
    let hosts = join().hosts().to_vec();
    let names = schedule::algorithms_of(graccl::Collective::AllReduce).map(|a| Some(a.name.to_string()));
    let names: Vec<_> = [None].into_iter().chain(names).collect();
    for transport in transports(&hosts) {
        for (k, algorithm) in names.iter().enumerate() {
            let config = Config { transport, algorithm: algorithm.clone(), ..Config::from_env().unwrap() };
            let c = Communicator::init_env(&config).unwrap();
            if let Some(name) = algorithm {
                assert_eq!(plan(&c, 1000, DataType::F32).unwrap().algorithm, name);
            }
            let places = [Place::Same, Place::Apart, Place::Registered];
            for (i, (t, op)) in KINDS.into_iter().enumerate() {
                reduce(&c, 1003, t, op, places[i % 3]);
                reduce(&c, i % 4, t, op, places[(i + 1) % 3]);
            }
            // A large one of each place, and of other types with other algorithms.
            for (i, place) in places.into_iter().enumerate() {
                let (t, op) = KINDS[(k * 3 + i) % KINDS.len()];
                reduce(&c, COUNT_MAX, t, op, place);
            }
            same_bits(&c, 10_001);
            common::nothing_in_dev_shm();
        }
    }
}

fn layouts(test: &str, ranks: usize) {
    for hosts in 1..=ranks.min(3) {
        Job::new(test, ranks).hosts(hosts).succeed();
    }
}

macro_rules! every_algorithm_with {
    ($($name:ident $ranks:expr;)*) => { $(
        #[test]
        fn $name() {
            match case() {
                Some(_) => every_algorithm(),
                None => layouts(stringify!($name), $ranks),
            }
        }
    )* };
}

every_algorithm_with! {
    one_rank 1;
    two_ranks 2;
    three_ranks 3;
    four_ranks 4;
    eight_ranks 8;
}

#[test]
fn environment_chooses_algorithm_and_transport() {
    if case().is_some() {
        let c = join();
        let plan = plan(&c, 10, DataType::F32).unwrap();
        assert_eq!((plan.algorithm, plan.transport), ("ring", "tcp"));
        return reduce(&c, 5000, DataType::F32, RedOp::Sum, Place::Same);
    }
    let job = Job::new("environment_chooses_algorithm_and_transport", 3);
    job.env("GRACCL_ALGO", "ring").env("GRACCL_TRANSPORT", "tcp").succeed();
}

#[test]
fn schedules_are_proved_when_asked_for() {
    if case().is_some() {
        let c = join();
        for count in [1, 10_000, COUNT_MAX] {
            reduce(&c, count, DataType::F32, RedOp::Sum, Place::Same);
        }
        return;
    }
    for hosts in [1, 2] {
        let job = Job::new("schedules_are_proved_when_asked_for", 4).hosts(hosts);
        job.env("GRACCL_VERIFY", "1").succeed();
    }
}

#[test]
fn communicators_come_and_go_without_a_trace() {
    if case().is_some() {
        let use_one = |tcp: bool| {
            let transport = if tcp { TransportChoice::Tcp } else { TransportChoice::Auto };
            let c = Communicator::init_env(&Config { transport, ..Config::default() }).unwrap();
            reduce(&c, 1000, DataType::F32, RedOp::Sum, Place::Same);
        };
        // The first ones open what stays open: the listeners, the service's thread, the arena.
        use_one(false);
        use_one(true);
        let before = (common::descriptors(), common::threads());
        for i in 0..50 {
            use_one(i % 2 == 1);
        }
        // The last connections close a moment later, on the service's thread.
        let start = std::time::Instant::now();
        // One may be opened late, by the first thread that waits for sockets long enough to sleep: what wakes it.
        let more = |now: (usize, usize)| now.0 > before.0 + 1 || now.1 > before.1;
        while more((common::descriptors(), common::threads())) {
            let now = (common::descriptors(), common::threads());
            let late = start.elapsed().as_secs() >= 3;
            assert!(!late, "descriptors and threads: {before:?}, now {now:?}: {}", common::open_files());
            std::thread::sleep(Duration::from_millis(10));
        }
        return common::nothing_in_dev_shm();
    }
    for hosts in [1, 2] {
        Job::new("communicators_come_and_go_without_a_trace", 2).hosts(hosts).succeed();
    }
}

#[test]
fn several_communicators_at_once() {
    if case().is_some() {
        let all: Vec<Communicator> = (0..4).map(|_| join()).collect();
        for round in 0..50 {
            let order: Vec<usize> = if round % 2 == 0 { (0..4).collect() } else { (0..4).rev().collect() };
            for i in order {
                reduce(&all[i], 100 * (i + 1), DataType::F32, RedOp::Sum, Place::Same);
            }
        }
        // Each in a thread of its own.
        return std::thread::scope(|s| {
            for c in &all {
                s.spawn(|| {
                    for i in 0..50 {
                        reduce(c, 1 + 997 * i, DataType::I32, RedOp::Sum, Place::Apart);
                    }
                });
            }
        });
    }
    for (ranks, hosts) in [(2, 1), (3, 2)] {
        Job::new("several_communicators_at_once", ranks).hosts(hosts).succeed();
    }
}

#[test]
fn threads_share_a_communicator() {
    if case().is_some() {
        let c = join();
        // Calls of one shape, so that their order across ranks does not matter.
        return std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..300 {
                        let mut v = vec![1.0; 2000];
                        common::sum_f32(&c, &mut v).unwrap();
                        assert!(v.iter().all(|&x| x == c.size() as f32));
                    }
                });
            }
        });
    }
    for transport in ["shm", "tcp"] {
        Job::new("threads_share_a_communicator", 2).env("GRACCL_TRANSPORT", transport).succeed();
    }
}

#[test]
fn many_tiny_calls() {
    if let Some(calls) = case() {
        let c = join();
        for i in 0..calls.parse::<u32>().unwrap() {
            let mut v = [i as f32, 1.0];
            common::sum_f32(&c, &mut v).unwrap();
            assert_eq!(v, [(i * c.size() as u32) as f32, c.size() as f32]);
        }
        return;
    }
    // Each call needs all ranks to get a core: on a busy machine that takes its time.
    for (ranks, transport, calls) in [(2, "shm", "20000"), (3, "shm", "5000"), (2, "tcp", "5000")] {
        let job = Job::new("many_tiny_calls", ranks).case(calls).env("GRACCL_TRANSPORT", transport);
        job.deadline(Duration::from_secs(120)).succeed();
    }
}

#[test]
fn barriers_hold() {
    if case().is_some() {
        let c = join();
        for late in 0..c.size() {
            let before = common::now_ms();
            c.barrier().unwrap();
            if c.rank() == late {
                std::thread::sleep(Duration::from_millis(100));
            }
            c.barrier().unwrap();
            assert!(common::now_ms() - before >= 100);
        }
        return;
    }
    Job::new("barriers_hold", 3).hosts(2).succeed();
}

#[test]
fn ranks_as_threads() {
    let cases = [(2, TransportChoice::Auto), (4, TransportChoice::Shm), (3, TransportChoice::Tcp)];
    let Some(which) = case() else {
        for i in 0..cases.len() {
            Job::new("ranks_as_threads", 1).case(&i.to_string()).succeed();
        }
        return;
    };
    let (n, transport) = cases[which.parse::<usize>().unwrap()];
    {
        let id = UniqueId::create().unwrap();
        let config = Config { transport, ..Config::default() };
        let barrier = Barrier::new(n);
        std::thread::scope(|s| {
            for r in 0..n {
                let (id, config, barrier) = (&id, &config, &barrier);
                s.spawn(move || {
                    let c = Communicator::init_rank(id, r, n, config).unwrap();
                    assert_eq!((c.rank(), c.size(), c.hosts()), (r, n, &vec![0; n][..]));
                    for place in [Place::Same, Place::Apart, Place::Registered] {
                        for count in [0, 1, 1003, COUNT_MAX] {
                            reduce(&c, count, DataType::F32, RedOp::Sum, place);
                        }
                    }
                    same_bits(&c, 5000);
                    barrier.wait();
                });
            }
        });
    }
}

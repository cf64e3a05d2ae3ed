//! Communicators in numbers: what a thousand of them take, that they give it back, and that tens of
//! thousands over time leave nothing behind.

mod common;

use std::time::{Duration, Instant};

use common::{Ended, Job, case, join, say, sum_f32};
use graccl::{Communicator, Config, DataType, TransportChoice};

const RANKS: usize = 8;
const MANY: usize = 1000;

/// What a process takes: KiB of memory (its share of what it shares with others) and descriptors.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    kib: usize,
    descriptors: usize,
}

fn taken() -> Taken {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap();
    let kib = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    Taken { kib, descriptors: common::descriptors() }
}

/// An all_reduce whose every element is checked.
fn reduce(c: &Communicator, data: &mut [f32], round: usize) {
    let mine = |i: usize, r: usize| ((i * 7 + round + r * 3) % 101) as f32;
    let me = c.rank();
    data.iter_mut().enumerate().for_each(|(i, x)| *x = mine(i, me));
    sum_f32(c, data).unwrap();
    for (i, &x) in data.iter().enumerate() {
        let all: f32 = (0..c.size()).map(|r| mine(i, r)).sum();
        assert_eq!(x, all, "element {i} of {}, round {round}", data.len());
    }
}

/// What one rank sees of it: makes `many` communicators, uses each, and destroys them. `look` is called where
/// all ranks stand still.
fn make_use_destroy(world: &Communicator, many: usize, floats: usize, look: &mut dyn FnMut(&str, Duration)) {
    let mut data = vec![0.0; floats];
    reduce(world, &mut data[..1], 0);
    reduce(world, &mut data, 0);
    let mut since = Instant::now();
    let mut stage = |name: &str| {
        let took = since.elapsed();
        world.barrier().unwrap();
        look(name, took);
        world.barrier().unwrap();
        since = Instant::now();
    };
    stage("before");
    for round in ["", " again"] {
        let mut all = Vec::new();
        for i in 0..many {
            let one = match i % 2 {
                0 => world.duplicate().unwrap(),
                _ => world.split(Some(7), -(world.rank() as i32)).unwrap().unwrap(),
            };
            assert_eq!(one.size(), RANKS);
            assert_eq!(one.rank(), if i % 2 == 0 { world.rank() } else { RANKS - 1 - world.rank() });
            all.push(one);
        }
        stage(&format!("made{round}"));
        for (i, c) in all.iter().enumerate() {
            reduce(c, &mut data[..1], i);
            reduce(c, &mut data, i);
        }
        stage(&format!("used{round}"));
        // Those that gave back what they had work as before, and so do those that did not.
        for (i, c) in all.iter().enumerate().rev().step_by(7) {
            reduce(c, &mut data[..1], i + 1);
            reduce(c, &mut data, i + 1);
        }
        stage(&format!("used more{round}"));
        drop(all);
        stage(&format!("destroyed{round}"));
        // The fastest rank's were still held by the others.
        drop(world.duplicate().unwrap());
        stage(&format!("after{round}"));
    }
}

fn show(name: &str, took: Duration) {
    let t = taken();
    say(&format!("TAKEN {name}: {} KiB, {} descriptors, {:.3} s", t.kib, t.descriptors, took.as_secs_f64()));
    let held = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|d| std::fs::read_link(d.unwrap().path()).ok());
    say(&format!("HELD {name}: {:?}", held.collect::<Vec<_>>()));
}

/// What all processes took at a stage, together; and the most descriptors of one.
fn stage(ended: &[Ended], name: &str) -> Taken {
    let start = format!("TAKEN {name}: ");
    let mut all = Taken::default();
    for e in ended {
        let line = e.text.lines().find_map(|l| l.strip_prefix(&start)).expect("a stage");
        let numbers: Vec<usize> = line.split(' ').filter_map(|w| w.parse().ok()).collect();
        all.kib += numbers[0];
        all.descriptors = all.descriptors.max(numbers[1]);
        if e.rank == 0 {
            println!("{name}: {line} (rank 0)");
        }
    }
    println!("{name}: {} MiB in all, at most {} descriptors", all.kib >> 10, all.descriptors);
    all
}

/// The bounds, MiB for all ranks together: at the most, and what may stay when all are destroyed.
struct Bounds {
    used: usize,
    after: usize,
}

fn within(ended: &[Ended], bounds: &Bounds) {
    let before = stage(ended, "before");
    let mut after = Taken::default();
    for round in ["", " again"] {
        for name in ["made", "used", "used more", "destroyed", "after"] {
            let t = stage(ended, &format!("{name}{round}"));
            let most = if name == "after" { bounds.after } else { bounds.used };
            assert!(t.kib < most << 10, "{name}: {t:?}, allowed are {most} MiB");
            // TCP connections between threads, and descriptors of the system's own, come at first use.
            assert!(t.descriptors <= before.descriptors + 2, "{name}: {t:?}, before {before:?}");
            if name == "after" {
                let more = t.kib.saturating_sub(after.kib);
                assert!(round.is_empty() || more < 16 << 10, "{more} KiB more after the second time");
                after = t;
            }
        }
    }
}

fn as_processes(test: &str, transport: &str, many: usize, floats: usize, bounds: &Bounds) {
    if case().is_some() {
        return make_use_destroy(&join(), many, floats, &mut show);
    }
    let job = Job::new(test, RANKS).env("GRACCL_TRANSPORT", transport).env("GRACCL_TIMEOUT", "60");
    within(&job.deadline(Duration::from_secs(300)).succeed(), bounds);
}

/// In a rank: ranks that are threads of this process.
fn threads(n: usize, transport: TransportChoice, rank: impl Fn(Communicator) + Sync) {
    let config = Config { transport, ..Config::from_env().unwrap() };
    let all = Communicator::init_all(n, &config).unwrap();
    std::thread::scope(|s| {
        for c in all {
            s.spawn(|| rank(c));
        }
    });
}

fn as_threads(test: &str, transport: TransportChoice, many: usize, floats: usize, bounds: &Bounds) {
    if case().is_none() {
        let job = Job::new(test, 1).env("GRACCL_TIMEOUT", "60").deadline(Duration::from_secs(300));
        return within(&job.succeed(), bounds);
    }
    threads(RANKS, transport, |world| {
        let mut look = |name: &str, took| {
            if world.rank() == 0 {
                show(name, took);
            }
        };
        make_use_destroy(&world, many, floats, &mut look);
    });
}

// If none gave back its slots they would take 1 GiB, and gigabytes with larger calls.

#[test]
fn a_thousand_between_processes() {
    let bounds = Bounds { used: 700, after: 250 };
    as_processes("a_thousand_between_processes", "shm", MANY, 16 << 10, &bounds);
}

#[test]
fn a_thousand_between_threads() {
    let bounds = Bounds { used: 700, after: 250 };
    as_threads("a_thousand_between_threads", TransportChoice::Shm, MANY, 16 << 10, &bounds);
}

#[test]
fn a_thousand_between_processes_over_tcp() {
    let bounds = Bounds { used: 300, after: 250 };
    as_processes("a_thousand_between_processes_over_tcp", "tcp", MANY, 16 << 10, &bounds);
}

#[test]
fn a_thousand_between_threads_over_tcp() {
    let bounds = Bounds { used: 300, after: 250 };
    as_threads("a_thousand_between_threads_over_tcp", TransportChoice::Tcp, MANY, 16 << 10, &bounds);
}

// If none gave back they would take 260 MiB, and several times that where the system finds huge pages.

#[test]
fn thirty_with_large_calls_between_processes() {
    let bounds = Bounds { used: 180, after: 100 };
    as_processes("thirty_with_large_calls_between_processes", "shm", 30, 256 << 10, &bounds);
}

#[test]
fn thirty_with_large_calls_between_threads() {
    let bounds = Bounds { used: 180, after: 100 };
    as_threads("thirty_with_large_calls_between_threads", TransportChoice::Shm, 30, 256 << 10, &bounds);
}

/// Communicators that come and go, one after the other.
fn come_and_go(world: &Communicator, times: usize, look: &mut dyn FnMut(&str, Duration)) {
    let mut data = vec![0.0; 5000];
    let mut since = Instant::now();
    for i in 0..times {
        let c = world.duplicate().unwrap();
        reduce(&c, &mut data[..1], i);
        if i % 4 == 0 {
            reduce(&c, &mut data, i);
        }
        drop(c);
        let name = match i + 1 {
            // By now the records of the last calls are as long as they get.
            i if i == times / 10 * 8 => "early",
            i if i == times => "late",
            _ => continue,
        };
        world.barrier().unwrap();
        drop(world.duplicate().unwrap());
        world.barrier().unwrap();
        look(name, since.elapsed());
        since = Instant::now();
        world.barrier().unwrap();
    }
}

fn stays_flat(ended: &[Ended]) {
    let (early, late) = (stage(ended, "early"), stage(ended, "late"));
    if late.descriptors != early.descriptors {
        for e in ended {
            e.text.lines().filter(|l| l.starts_with("HELD ")).for_each(|l| println!("rank {}: {l}", e.rank));
        }
    }
    assert!(late.kib < early.kib + 1024 * ended.len(), "{early:?}, then {late:?}");
    assert_eq!(late.descriptors, early.descriptors);
}

const TIMES: usize = 10_000;

fn come_and_go_as_processes(test: &str, transport: &str) {
    if case().is_some() {
        return come_and_go(&join(), TIMES, &mut show);
    }
    let job = Job::new(test, 3).env("GRACCL_TRANSPORT", transport).deadline(Duration::from_secs(300));
    stays_flat(&job.succeed());
}

#[test]
fn ten_thousand_come_and_go() {
    come_and_go_as_processes("ten_thousand_come_and_go", "shm");
}

#[test]
fn ten_thousand_come_and_go_over_tcp() {
    come_and_go_as_processes("ten_thousand_come_and_go_over_tcp", "tcp");
}

#[test]
fn ten_thousand_come_and_go_between_threads() {
    const TEST: &str = "ten_thousand_come_and_go_between_threads";
    if case().is_none() {
        return stays_flat(&Job::new(TEST, 1).deadline(Duration::from_secs(300)).succeed());
    }
    threads(3, TransportChoice::Auto, |world| {
        let mut look = |name: &str, took| {
            if world.rank() == 0 {
                show(name, took);
            }
        };
        come_and_go(&world, TIMES, &mut look);
    });
}

/// Messages that nobody receives go with their communicator: the connection has room for those of some links
/// that are not open yet, not for those of all that ever were.
#[test]
fn messages_that_nobody_received_leave_nothing_behind() {
    const TEST: &str = "messages_that_nobody_received_leave_nothing_behind";
    if case().is_none() {
        for transport in ["tcp", "shm"] {
            let job = Job::new(TEST, 2).env("GRACCL_TRANSPORT", transport);
            stays_flat(&job.deadline(Duration::from_secs(300)).succeed());
        }
        return;
    }
    let world = join();
    let mut data = vec![0.0; 5000];
    let mut since = Instant::now();
    for i in 0..20_000 {
        let c = world.duplicate().unwrap();
        // The lower rank makes the links, so its sends need not wait for the other one.
        if c.rank() == 0 {
            let message = [i as u32; 16];
            // SAFETY: our own array.
            unsafe { c.send_raw(message.as_ptr().cast(), 16, DataType::U32, 1) }.unwrap();
        }
        if i % 100 == 0 {
            reduce(&c, &mut data, i);
        }
        drop(c);
        // By the first look what is written of the last calls is as long as it gets.
        if i == 9999 || i == 19_999 {
            world.barrier().unwrap();
            drop(world.duplicate().unwrap());
            world.barrier().unwrap();
            show(if i == 9999 { "early" } else { "late" }, since.elapsed());
            since = Instant::now();
            world.barrier().unwrap();
        }
    }
}

//! Communicators in numbers: what a thousand of them take, that they give it back, and that tens of
//! thousands over time leave nothing behind.

mod common;

use std::time::{Duration, Instant};

use common::{Ended, Job, case, join, say, sum_f32};
use graccl::{Communicator, Config, TransportChoice, UniqueId};

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

/// What one rank sees of it: makes communicators, uses each, and destroys them. `look` is called where all
/// ranks stand still.
fn a_thousand(world: &Communicator, floats: usize, look: &mut dyn FnMut(&str, Duration)) {
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
    let mut all = Vec::new();
    for i in 0..MANY {
        let one = match i % 2 {
            0 => world.duplicate().unwrap(),
            _ => world.split(Some(7), -(world.rank() as i32)).unwrap().unwrap(),
        };
        assert_eq!(one.size(), RANKS);
        assert_eq!(one.rank(), if i % 2 == 0 { world.rank() } else { RANKS - 1 - world.rank() });
        all.push(one);
    }
    stage("made");
    for (i, c) in all.iter().enumerate() {
        reduce(c, &mut data[..1], i);
        reduce(c, &mut data, i);
    }
    stage("used");
    // Those that gave back what they had work as before.
    for (i, c) in all.iter().enumerate().rev().step_by(7) {
        reduce(c, &mut data[..1], i + 1);
        reduce(c, &mut data, i + 1);
    }
    stage("used again");
    drop(all);
    stage("destroyed");
    // Those of the slowest rank were swept when the others had gone.
    drop(world.duplicate().unwrap());
    stage("after");
}

fn show(name: &str, took: Duration) {
    let t = taken();
    say(&format!("TAKEN {name}: {} KiB, {} descriptors, {:.3} s", t.kib, t.descriptors, took.as_secs_f64()));
}

/// What all processes took at a stage, together; and the most descriptors of one.
fn stage(ended: &[Ended], name: &str) -> Taken {
    let mut all = Taken::default();
    for e in ended {
        let start = format!("TAKEN {name}: ");
        let line = e.text.lines().find_map(|l| l.strip_prefix(&start)).expect("a stage");
        let numbers: Vec<usize> = line.split(' ').filter_map(|w| w.parse().ok()).collect();
        all.kib += numbers[0];
        all.descriptors = all.descriptors.max(numbers[1]);
    }
    all
}

fn assert_bounds(ended: &[Ended], what: &str) {
    for e in ended.iter().take(1) {
        e.text.lines().filter(|l| l.starts_with("TAKEN")).for_each(|l| println!("{what}: rank 0: {l}"));
    }
    let at = |name| stage(ended, name);
    let all = ["before", "made", "used", "used again", "destroyed", "after"].map(|n| (n, at(n)));
    println!("{what}: {all:?}");
}

fn as_processes(test: &str, transport: &str, floats: usize) {
    if case().is_some() {
        return a_thousand(&join(), floats, &mut show);
    }
    let job = Job::new(test, RANKS).env("GRACCL_TRANSPORT", transport).env("GRACCL_TIMEOUT", "60");
    assert_bounds(&job.deadline(Duration::from_secs(170)).succeed(), test);
}

fn as_threads(test: &str, transport: TransportChoice, floats: usize) {
    if case().is_none() {
        let job = Job::new(test, 1).deadline(Duration::from_secs(170));
        return assert_bounds(&job.succeed(), test);
    }
    let id = UniqueId::create().unwrap();
    let config = Config { transport, ..Config::from_env().unwrap() };
    std::thread::scope(|s| {
        for r in 0..RANKS {
            let (id, config) = (&id, &config);
            s.spawn(move || {
                let world = Communicator::init_rank(id, r, RANKS, config).unwrap();
                let mut look = |name: &str, took| {
                    if r == 0 {
                        show(name, took);
                    }
                };
                a_thousand(&world, floats, &mut look);
            });
        }
    });
}

#[test]
fn a_thousand_between_processes() {
    as_processes("a_thousand_between_processes", "shm", 16 << 10);
}

#[test]
fn a_thousand_between_threads() {
    as_threads("a_thousand_between_threads", TransportChoice::Shm, 16 << 10);
}

#[test]
fn a_thousand_between_processes_over_tcp() {
    as_processes("a_thousand_between_processes_over_tcp", "tcp", 16 << 10);
}

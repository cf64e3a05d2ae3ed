//! Communicators at their ends: ranks that are killed while others go on without them, and communicators
//! that are aborted, finalized and split while other threads are at them.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Ended, Job, case, join, now_ms, report_error, say, sum_f32};
use graccl::schedule::Collective;
use graccl::{
    Call, Code, Communicator, Config, DataType, RedOp, TransportChoice, UniqueId, group_end, group_start,
};

/// How soon survivors must know of a death, and have gone on. Both take milliseconds; the rest is for a
/// machine that is busy with all other tests.
const KNOWN_MS: u128 = 2500;
const GONE_ON_MS: u128 = 6000;

// ------------------------------------------------------------------------------------------------
// Ranks that are killed, and survivors that go on

/// Sums in which every rank is seen, from tiny to large.
fn sums(c: &Communicator, sum_of_numbers: f32, number: f32) -> graccl::Result<()> {
    for count in [1usize, 1000, 100_000] {
        let mut data: Vec<f32> = (0..count).map(|i| number + (i % 13) as f32).collect();
        sum_f32(c, &mut data)?;
        for (i, &x) in data.iter().enumerate() {
            assert_eq!(x, sum_of_numbers + (c.size() * (i % 13)) as f32, "element {i} of {count}");
        }
    }
    Ok(())
}

/// A rank of a job in which some die: goes on until none more will.
fn survivor(idle: bool, survivors: usize) {
    let c = join();
    // Powers of two: the sum says who took part.
    let number = (1 << c.rank()) as f32;
    let mut sum = ((1 << c.size()) - 1) as f32;
    let mut c = c;
    sums(&c, sum, number).unwrap();
    say("ready");
    loop {
        let e = loop {
            if idle {
                match c.failure() {
                    Some(e) => break e,
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            } else if let Err(e) = sums(&c, sum, number) {
                break e;
            }
        };
        report_error(&e);
        c = c.shrink(&[]).unwrap_or_else(|e| panic!("shrink: {e}"));
        // Who is left: the sum is not known before all agree on it.
        let mut left = [number];
        if sum_f32(&c, &mut left).is_err() {
            continue;
        }
        [sum] = left;
        say(&format!("SHRUNK at={} size={} sum={sum}", now_ms(), c.size()));
        if c.size() == survivors {
            break;
        }
    }
    for _ in 0..20 {
        sums(&c, sum, number).unwrap();
    }
    // What is made of what was shrunk.
    let pair = c.split(Some(c.rank() as u32 / 2), 0).unwrap().unwrap();
    let twin = c.duplicate().unwrap();
    sums(&twin, sum, number).unwrap();
    let mut left = [number];
    sum_f32(&pair, &mut left).unwrap();
    let mut all = vec![0.0; c.size()];
    c.all_gather(&left, &mut all).unwrap();
    say(&format!("DONE sum={sum}"));
}

fn number(line: &str, name: &str) -> u128 {
    let field = line.split(name).nth(1).unwrap();
    field.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// How long after `at` the slowest survivor knew, and had gone on.
fn times(ended: &[Ended], victims: &[usize], at: u128) -> (u128, u128) {
    let mut worst = (0, 0);
    for e in ended.iter().filter(|e| !victims.contains(&e.rank)) {
        let f = e.fault();
        assert_eq!(f.code, "RemoteError", "{f:?}");
        assert!(victims.iter().any(|v| f.text.contains(&format!("rank {v}"))), "{}", f.text);
        let last = e.text.lines().rfind(|l| l.starts_with("SHRUNK")).unwrap();
        worst.0 = worst.0.max(f.at.saturating_sub(at));
        worst.1 = worst.1.max(number(last, "at=").saturating_sub(at));
        let sum: u128 = (0..ended.len()).filter(|r| !victims.contains(r)).map(|r| 1 << r).sum();
        assert!(e.text.contains(&format!("DONE sum={sum}\n")), "{}", e.text);
    }
    worst
}

/// Kills the victims, the second one so long after the first, and sees the others go on.
fn killed(test: &str, hosts: &[u32], transport: &str, idle: bool, victims: &[usize], apart: Duration) {
    let case = format!("{} {}", if idle { "idle" } else { "busy" }, hosts.len() - victims.len());
    let job = Job::new(test, hosts.len()).case(&case).on(hosts).env("GRACCL_TRANSPORT", transport).start();
    (0..hosts.len()).for_each(|r| job.await_line(r, "ready"));
    std::thread::sleep(Duration::from_millis(30));
    let at: Vec<u128> = victims
        .iter()
        .enumerate()
        .map(|(i, &v)| {
            std::thread::sleep(if i > 0 { apart } else { Duration::ZERO });
            job.signal(v, libc::SIGKILL)
        })
        .collect();
    let ended = job.finish();
    for e in &ended {
        if victims.contains(&e.rank) {
            assert!(e.killed_by(libc::SIGKILL));
        } else {
            assert!(e.status.success(), "{}", common::outputs(&ended));
        }
    }
    let (knew, went_on) = times(&ended, victims, at[0]);
    println!("{transport}, {case}, victims {victims:?}: known after {knew} ms, gone on after {went_on} ms");
    assert!(knew < KNOWN_MS, "known after {knew} ms");
    let went_on = went_on - (at[at.len() - 1] - at[0]).min(went_on);
    assert!(went_on < GONE_ON_MS, "gone on after {went_on} ms");
}

fn killed_everywhere(test: &str, victims: &[usize], idle: bool) {
    if let Some(case) = case() {
        let (how, survivors) = case.split_once(' ').unwrap();
        return survivor(how == "idle", survivors.parse().unwrap());
    }
    let apart: &[u64] = if victims.len() > 1 { &[0, 3, 40] } else { &[0] };
    for (hosts, transport) in [([0; 4], "shm"), ([0; 4], "tcp"), ([0, 0, 1, 1], "auto")] {
        for &ms in apart {
            killed(test, &hosts, transport, idle, victims, Duration::from_millis(ms));
        }
    }
}

#[test]
fn one_of_four_is_killed_in_calls() {
    killed_everywhere("one_of_four_is_killed_in_calls", &[2], false);
}

#[test]
fn one_of_four_is_killed_while_idle() {
    killed_everywhere("one_of_four_is_killed_while_idle", &[0], true);
}

#[test]
fn two_of_four_are_killed_in_calls() {
    killed_everywhere("two_of_four_are_killed_in_calls", &[0, 3], false);
}

#[test]
fn two_of_four_are_killed_while_idle() {
    killed_everywhere("two_of_four_are_killed_while_idle", &[1, 2], true);
}

/// The recipe of docs/troubleshooting.md: survivors shrink, and go on with a rank that takes the place of the
/// dead one.
#[test]
fn a_new_rank_takes_the_place_of_a_dead_one() {
    const TEST: &str = "a_new_rank_takes_the_place_of_a_dead_one";
    let read = |path: &str| loop {
        if let Ok(text) = std::fs::read_to_string(path)
            && text.ends_with('\n')
        {
            return text.trim().to_string();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if let Some(case) = case() {
        let config = Config::from_env().unwrap();
        let path = std::env::var("GRACCL_TEST_FILE").unwrap();
        let c = if case == "new" {
            let id = UniqueId::from_hex(&read(&path)).unwrap();
            Communicator::init_rank(&id, 2, 3, &config).unwrap()
        } else {
            let c = join();
            c.barrier().unwrap();
            say("ready");
            while c.failure().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let rest = c.shrink(&[]).unwrap();
            // The first survivor makes an id, and tells it to the others and to the new one.
            let mut bytes = [0u8; 128];
            if rest.rank() == 0 {
                let id = UniqueId::create().unwrap();
                bytes = id.0;
                std::fs::write(&path, id.to_hex() + "\n").unwrap();
            }
            rest.broadcast(&mut bytes, 0).unwrap();
            Communicator::init_rank(&UniqueId(bytes), rest.rank(), 3, &config).unwrap()
        };
        return sums(&c, 7.0, (1 << c.rank()) as f32).unwrap();
    }
    let path = std::env::temp_dir().join(format!("graccl-test-{}-{}", std::process::id(), now_ms()));
    let path = path.to_str().unwrap();
    let _ = std::fs::remove_file(path);
    let job = Job::new(TEST, 3).case("old").env("GRACCL_TEST_FILE", path).start();
    (0..3).for_each(|r| job.await_line(r, "ready"));
    job.signal(1, libc::SIGKILL);
    Job::new(TEST, 1).case("new").env("GRACCL_TEST_FILE", path).succeed();
    for e in job.finish() {
        assert!(e.status.success() || e.rank == 1, "{}", e.text);
    }
    std::fs::remove_file(path).unwrap();
}

// ------------------------------------------------------------------------------------------------
// Other threads at it

/// Ranks that are threads, each with a communicator of its own.
fn ranks(n: usize, transport: TransportChoice, rank: impl Fn(Communicator) + Sync) {
    let config = Config { transport, timeout: Duration::from_secs(30), ..Config::default() };
    let all = Communicator::init_all(n, &config).unwrap();
    std::thread::scope(|s| {
        for c in all {
            s.spawn(|| rank(c));
        }
    });
}

const BOTH: [TransportChoice; 2] = [TransportChoice::Shm, TransportChoice::Tcp];

/// The error of a communicator that was ended under `e`'s call.
fn is_the_end(e: &graccl::Error) {
    let codes = [Code::Aborted, Code::RemoteError, Code::InvalidUsage];
    assert!(codes.contains(&e.code), "{e}");
}

/// Two ranks hand over their blocks where they lie, give the call up and use that memory for something else. The
/// third one comes late, and finds all that it needs: it must not take it.
#[test]
fn what_was_overwritten_after_a_call_was_given_up_is_not_taken() {
    const N: usize = 20_000;
    let (met, over) = (Barrier::new(3), Barrier::new(3));
    ranks(3, TransportChoice::Shm, |c| {
        let me = c.rank();
        let memory = graccl::memory::alloc(4 * 4 * N).unwrap().cast::<u32>();
        // SAFETY: as much memory as that, whose pages are zero.
        let all = unsafe { std::slice::from_raw_parts_mut(memory, 4 * N) };
        // The last rank's own block lies apart.
        let own = if me == 2 { 3 * N } else { me * N };
        let mut gather = || {
            all[own..own + N].fill(me as u32 + 1);
            let (send, recv) = (all[own..].as_ptr().cast(), all.as_mut_ptr().cast());
            let call = Call::new(Collective::AllGather, send, recv, N, DataType::U32, RedOp::Sum);
            // SAFETY: the output is the first three quarters of the memory.
            unsafe { c.call(&call) }
        };
        gather().unwrap();
        met.wait();
        let late = me == 2;
        let result = std::thread::scope(|s| {
            if late {
                over.wait();
            } else if me == 0 {
                s.spawn(|| {
                    std::thread::sleep(Duration::from_millis(100));
                    c.abort();
                });
            }
            gather()
        });
        all.fill(99);
        if !late {
            over.wait();
        }
        is_the_end(&result.unwrap_err());
        drop(c);
        // SAFETY: from `alloc`, and the communicator is gone.
        unsafe { graccl::memory::free(memory.cast()) }.unwrap();
    });
}

/// A duplicate that one rank has got, while the other one's call failed.
#[test]
fn half_a_duplicate_ends_in_an_error() {
    let met = Barrier::new(2);
    let made = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let halves = AtomicUsize::new(0);
    let until = Instant::now() + Duration::from_secs(20);
    for round in 0.. {
        ranks(2, BOTH[round % 2], |c| {
            let me = c.rank();
            let children = std::thread::scope(|s| {
                if me == 0 {
                    s.spawn(|| {
                        std::thread::sleep(Duration::from_micros(300 + 37 * (round as u64 % 100)));
                        c.abort();
                    });
                }
                let mut children = Vec::new();
                while let Ok(child) = c.duplicate() {
                    children.push(child);
                }
                children
            });
            made[me].store(children.len(), Ordering::Relaxed);
            met.wait();
            let both = made[1 - me].load(Ordering::Relaxed);
            let since = Instant::now();
            let ended = children.get(both).map(|half| (half.barrier(), since.elapsed()));
            // Nobody leaves before.
            met.wait();
            if let Some((result, took)) = ended {
                is_the_end(&result.unwrap_err());
                assert!(took < Duration::from_secs(10), "{took:?}");
                halves.fetch_add(1, Ordering::Relaxed);
            }
        });
        let halves = halves.load(Ordering::Relaxed);
        if halves >= 6 || Instant::now() > until {
            return assert!(halves > 0, "in {round} rounds both ranks always got as many");
        }
    }
}

#[test]
fn splits_end_with_the_communicator() {
    for round in 0..24u64 {
        let finalize = round % 2 == 1;
        ranks(3, BOTH[round as usize / 2 % 2], |c| {
            let begun = AtomicBool::new(false);
            std::thread::scope(|s| {
                if c.rank() == 1 {
                    s.spawn(|| {
                        while !begun.load(Ordering::Relaxed) {
                            std::thread::yield_now();
                        }
                        std::thread::sleep(Duration::from_micros(97 * round * round));
                        if finalize {
                            let _ = c.finalize();
                        } else {
                            c.abort();
                        }
                    });
                }
                let since = Instant::now();
                let mut children = Vec::new();
                let e = loop {
                    assert!(since.elapsed() < Duration::from_secs(20), "no end");
                    let made = match children.len() % 3 {
                        0 => c.duplicate().map(Some),
                        1 => c.split(Some(c.rank() as u32 % 2), 0),
                        _ => c.split((c.rank() == 0).then_some(0), 0),
                    };
                    begun.store(true, Ordering::Relaxed);
                    match made {
                        Ok(child) => children.push(child),
                        Err(e) => break e,
                    }
                };
                is_the_end(&e);
                // Those that all ranks have made outlive it; how many that is, ranks may see differently.
                for child in children.iter().take(2).flatten() {
                    let _ = child.failure();
                }
            });
        });
    }
}

#[test]
fn children_outlive_their_communicator() {
    for transport in BOTH {
        ranks(3, transport, |c| {
            let (a, b) = (c.duplicate().unwrap(), c.split(Some(0), 0).unwrap().unwrap());
            std::thread::scope(|s| {
                let calls = s.spawn(|| {
                    for _ in 0..200 {
                        sums(&a, 7.0, (1 << a.rank()) as f32).unwrap();
                    }
                });
                if c.rank() == 0 {
                    c.abort();
                }
                drop(c);
                calls.join().unwrap();
            });
            sums(&b, 7.0, (1 << b.rank()) as f32).unwrap();
        });
    }
}

#[test]
fn abort_ends_shrinking() {
    for transport in BOTH {
        ranks(3, transport, |c| {
            c.barrier().unwrap();
            if c.rank() == 2 {
                // Never answers.
                std::thread::sleep(Duration::from_millis(1200));
                return;
            }
            std::thread::scope(|s| {
                let shrink = s.spawn(|| c.shrink(&[]));
                std::thread::sleep(Duration::from_millis(200));
                assert!(!shrink.is_finished());
                let since = Instant::now();
                c.abort();
                let e = shrink.join().unwrap().err().unwrap();
                assert_eq!(e.code, Code::Aborted, "{e}");
                assert!(since.elapsed() < Duration::from_millis(800), "{:?}", since.elapsed());
            });
        });
    }
}

#[test]
fn shrinking_without_a_rank_that_hangs() {
    for transport in BOTH {
        ranks(3, transport, |c| {
            c.barrier().unwrap();
            if c.rank() == 1 {
                std::thread::sleep(Duration::from_millis(600));
                return;
            }
            let number = if c.rank() == 0 { 1.0 } else { 4.0 };
            let rest = c.shrink(&[1]).unwrap();
            sums(&rest, 5.0, number).unwrap();
            // The old one goes while the new one is used.
            drop(c);
            sums(&rest, 5.0, number).unwrap();
        });
    }
}

#[test]
fn abort_ends_joining() {
    for ms in [0, 1, 30, 300] {
        let id = UniqueId::create().unwrap();
        let config = Config { init_timeout: Duration::from_secs(60), ..Config::default() };
        // The third never comes.
        let all: Vec<_> = (0..2).map(|r| Communicator::begin_rank(&id, r, 3, &config).unwrap()).collect();
        std::thread::scope(|s| {
            let waits: Vec<_> = all.iter().map(|c| s.spawn(|| c.wait_ready())).collect();
            std::thread::sleep(Duration::from_millis(ms));
            let since = Instant::now();
            all.iter().for_each(Communicator::abort);
            for w in waits {
                let e = w.join().unwrap().unwrap_err();
                assert!(e.code == Code::Aborted || e.code == Code::RemoteError, "{e}");
            }
            assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        });
    }
}

// ------------------------------------------------------------------------------------------------
// In groups

#[test]
fn one_thread_splits_for_all_ranks_in_a_group() {
    for transport in BOTH {
        let config = Config { transport, ..Config::default() };
        let all = Communicator::init_all(4, &config).unwrap();
        group_start().unwrap();
        let halves: Vec<_> =
            all.iter().map(|c| c.split(Some(c.rank() as u32 % 2), -(c.rank() as i32))).collect();
        let twins: Vec<_> = all.iter().map(|c| c.duplicate().unwrap()).collect();
        let alone: Vec<_> = all.iter().map(|c| c.split((c.rank() == 3).then_some(9), 0).unwrap()).collect();
        // Not ready yet, and it says so.
        assert_eq!((twins[2].rank(), twins[2].size(), twins[2].ready().unwrap()), (0, 0, false));
        let mut data = [[1.0f32; 8]; 4];
        let at = data[0].as_mut_ptr().cast();
        let call =
            graccl::Call::new(graccl::Collective::AllReduce, at, at, 8, graccl::DataType::F32, RedOp::Sum);
        // SAFETY: refused.
        assert_eq!(unsafe { twins[0].call(&call) }.unwrap_err().code, Code::InProgress);
        // SAFETY: nothing is sent: refused.
        assert_eq!(
            unsafe { twins[0].send_raw(at, 1, graccl::DataType::F32, 1) }.unwrap_err().code,
            Code::InProgress
        );
        let e = all[0].shrink(&[]).err().unwrap();
        assert!(e.code == Code::InvalidUsage && e.what.contains("group"), "{e}");
        group_end().unwrap();
        let halves: Vec<_> = halves.into_iter().map(|h| h.unwrap().unwrap()).collect();
        group_start().unwrap();
        for (r, d) in data.iter_mut().enumerate() {
            d.fill(r as f32);
            let at = d.as_mut_ptr().cast();
            // SAFETY: used again after the group's end only.
            unsafe { halves[r].all_reduce_raw(at, at, 8, graccl::DataType::F32, RedOp::Sum) }.unwrap();
        }
        group_end().unwrap();
        for (r, d) in data.iter_mut().enumerate() {
            assert_eq!((twins[r].rank(), twins[r].size()), (r, 4));
            assert_eq!((halves[r].rank(), halves[r].size()), (1 - r / 2, 2));
            assert_eq!(*d, [if r % 2 == 0 { 2.0 } else { 4.0 }; 8]);
            assert_eq!(alone[r].as_ref().map(|c| (c.rank(), c.size())), (r == 3).then_some((0, 1)));
        }
    }
}

#[test]
fn a_group_of_each_rank_splits_and_calls() {
    for transport in BOTH {
        ranks(3, transport, |c| {
            for _ in 0..20 {
                let mut data = [c.rank() as f32 + 1.0; 4];
                let at = data.as_mut_ptr().cast();
                group_start().unwrap();
                let first = c.duplicate().unwrap();
                // SAFETY: used again after the group's end only.
                unsafe { c.all_reduce_raw(at, at, 4, graccl::DataType::F32, RedOp::Sum) }.unwrap();
                let second = c.split(Some(3), -(c.rank() as i32)).unwrap().unwrap();
                // One that goes before it comes.
                drop(c.duplicate().unwrap());
                group_end().unwrap();
                assert_eq!(data, [6.0; 4]);
                assert_eq!(second.rank(), 2 - c.rank());
                sums(&first, 7.0, (1 << first.rank()) as f32).unwrap();
                sums(&second, 7.0, (1 << second.rank()) as f32).unwrap();
            }
        });
    }
}

#[test]
fn a_split_in_a_group_fails_with_its_communicator() {
    ranks(2, TransportChoice::Shm, |c| {
        c.barrier().unwrap();
        group_start().unwrap();
        let child = c.duplicate().unwrap();
        if c.rank() == 0 {
            c.abort();
        }
        is_the_end(&group_end().unwrap_err());
        is_the_end(&child.ready().unwrap_err());
        is_the_end(&child.barrier().unwrap_err());
    });
}

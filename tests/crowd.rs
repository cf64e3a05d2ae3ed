//! More ranks than cores. Alone: other tests would want the cores, too.

use std::time::Instant;

use graccl::{Communicator, Config, TransportChoice};

/// Binds this thread to one processor of those that it may use: all of them the same.
fn bind() {
    // SAFETY: a set of our own, of the size that is told.
    unsafe {
        let mut all: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&all), &mut all), 0);
        let first = (0..libc::CPU_SETSIZE as usize).find(|&c| libc::CPU_ISSET(c, &all)).unwrap();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(first, &mut one);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&one), &one), 0);
    }
}

/// A communicator has two ranks, fewer than there are cores. But they are bound to one, as launchers do where a job
/// has more ranks than cores: who waits must let the other one run, and not spin first.
#[test]
fn two_of_many_ranks_share_a_core() {
    // All of the machine's, as the library counts them, not those that this process may use.
    // SAFETY: a plain library call.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as usize;
    for transport in [TransportChoice::Shm, TransportChoice::Tcp] {
        let config = Config { transport, ..Config::default() };
        let all = Communicator::init_all(cores + 1, &config).unwrap();
        let took = std::thread::scope(|s| {
            let rank = |c: Communicator| {
                move || {
                    let two = c.split((c.rank() < 2).then_some(0), 0).unwrap()?;
                    bind();
                    let mut times: Vec<_> = (0..40)
                        .map(|_| {
                            let start = Instant::now();
                            (0..10).for_each(|_| two.barrier().unwrap());
                            start.elapsed() / 10
                        })
                        .collect();
                    times.sort();
                    Some(times[10])
                }
            };
            let all: Vec<_> = all.into_iter().map(|c| s.spawn(rank(c))).collect();
            all.into_iter().filter_map(|t| t.join().unwrap()).max().unwrap()
        });
        println!("{transport:?}: {took:?} a barrier");
        // Where they spun it was 361 us through shared memory.
        assert!(took.as_micros() < 50, "{transport:?}: {took:?}");
    }
}

//! Alone, as the progress thread is one for the process: other tests would keep it busy.

use std::time::{Duration, Instant};

use graccl::schedule::Collective;
use graccl::{Call, Communicator, Config, DataType, RedOp, Request, TransportChoice};

/// Processor time of the progress thread (user and system, in ticks), and how often it gave up a core or lost it.
fn spent() -> [u64; 4] {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).expect("the thread is there");
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|t| t.unwrap().path());
    // Names are cut to 15 letters.
    let thread = tasks
        .into_iter()
        .find(|t| read(t.join("comm")).trim() == "graccl-progress")
        .expect("a progress thread");
    let (stat, status) = (read(thread.join("stat")), read(thread.join("status")));
    // Fields 14 and 15; the name before field 3 may have blanks.
    let fields = stat.rsplit_once(") ").unwrap().1;
    let ticks = |i: usize| fields.split(' ').nth(i - 3).unwrap().parse().unwrap();
    let switches = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().parse().unwrap()
    };
    [ticks(14), ticks(15), switches("voluntary_ctxt_switches"), switches("nonvoluntary_ctxt_switches")]
}

#[test]
fn the_progress_thread_costs_nothing_when_calls_are_done() {
    for transport in [TransportChoice::Shm, TransportChoice::Tcp] {
        let config = Config { transport, ..Config::default() };
        let comms = Communicator::init_all(2, &config).unwrap();
        let mut data = [vec![1f32; 100_000], vec![2f32; 100_000]];
        let start = |(c, d): (&Communicator, &mut Vec<f32>)| {
            let p = d.as_mut_ptr().cast();
            // SAFETY: the buffer lives until the call is done.
            unsafe { c.start(&Call::new(Collective::AllReduce, p, p, d.len(), DataType::F32, RedOp::Sum)) }
                .unwrap()
        };
        let requests: Vec<Request> = comms.iter().zip(&mut data).map(start).collect();
        // Nobody waits for them: the thread drives both.
        let begun = Instant::now();
        while !requests.iter().all(|r| r.test().unwrap()) {
            assert!(begun.elapsed() < Duration::from_secs(20), "the calls are not done");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(data.iter().flatten().all(|&x| x == 3.0));
        assert_ne!(spent(), [0; 4], "the thread has driven them");
        // On a busy machine it may still be on its way to sleep for a while.
        let nothing_in_300_ms = |_| {
            let before = spent();
            std::thread::sleep(Duration::from_millis(300));
            spent() == before
        };
        assert!((0..20).any(nothing_in_300_ms), "{transport:?}: the thread goes on: {:?}", spent());
    }
}

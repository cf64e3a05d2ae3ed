//! A rank that is stopped, or dies, in the middle of writing a result into another one's memory.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Job, can_unshare, case, join, report_error};
use graccl::{Code, Communicator, RedOp, memory};

/// Elements of the sum.
const N: usize = 4 << 20;
const PAGE: usize = 4096;
const STOPPED: Duration = Duration::from_millis(1200);

/// What rank 1 must not touch; 0 once it has.
static TRAP: AtomicUsize = AtomicUsize::new(0);

/// Where rank 1 stops.
extern "C" fn stop(_: libc::c_int) {
    // SAFETY: system calls about a page of memory that the process has mapped, and about the process.
    unsafe {
        let trap = TRAP.swap(0, Ordering::Relaxed) as *mut libc::c_void;
        libc::mprotect(trap, PAGE, libc::PROT_READ | libc::PROT_WRITE);
        libc::kill(libc::getpid(), libc::SIGSTOP);
    }
}

/// Where rank 1 dies.
extern "C" fn die(_: libc::c_int) {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(9) };
}

/// Two ranks that have called once, with memory of which rank 0's is a trap to rank 1: there `sprung` is called.
fn begin(sprung: extern "C" fn(libc::c_int)) -> (Communicator, &'static mut [f32]) {
    let c = join();
    let own = memory::arena().unwrap();
    let p = memory::alloc(4 * N).unwrap();
    // SAFETY: it has room for them, and is ours until the process ends.
    let data = unsafe { std::slice::from_raw_parts_mut(p.cast::<f32>(), N) };
    c.all_reduce(data, RedOp::Sum).unwrap();
    // Rank 1 sums the second half, and writes it where it is.
    let mut at = [own.offset_of(p.wrapping_add(4 * N - PAGE), PAGE).unwrap()].map(|at| at as u64);
    c.broadcast(&mut at, 0).unwrap();
    if c.rank() == 1 {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let starts = maps.lines().filter(|m| m.contains("/memfd:graccl ")).map(|m| {
            let start = m.split('-').next().unwrap();
            usize::from_str_radix(start, 16).unwrap()
        });
        let theirs = starts.filter(|&s| own.offset_of(s as *const u8, 1).is_none()).min().unwrap();
        let trap = theirs + at[0] as usize;
        TRAP.store(trap, Ordering::Relaxed);
        // SAFETY: an action of zeros with a handler that makes system calls only; a page of a mapping that stays.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = sprung as usize;
            action.sa_flags = libc::SA_RESETHAND;
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()), 0);
            assert_eq!(libc::mprotect(trap as *mut libc::c_void, PAGE, libc::PROT_NONE), 0);
        }
    }
    (c, data)
}

/// Whoever gives up a call whose memory is written to has its memory back for good when the call returns, and nothing
/// else waits for that.
#[test]
fn nothing_is_written_after_a_call_was_given_up() {
    if case().is_some() {
        let (c, data) = begin(stop);
        let over = AtomicBool::new(false);
        let failed = std::thread::scope(|s| {
            if c.rank() == 0 {
                s.spawn(|| {
                    std::thread::sleep(STOPPED / 4);
                    let since = Instant::now();
                    c.abort();
                    assert_eq!(c.failure().unwrap().code, Code::Aborted);
                    assert!(since.elapsed() < STOPPED / 4, "{:?}", since.elapsed());
                    assert!(!over.load(Ordering::Relaxed));
                });
            }
            let failed = c.all_reduce(data, RedOp::Sum);
            over.store(true, Ordering::Relaxed);
            failed
        });
        // Rank 1 may have had all that it needs.
        assert!(c.rank() == 1 || failed.unwrap_err().code == Code::Aborted);
        data.fill(7.0);
        assert_eq!(TRAP.load(Ordering::Relaxed), 0);
        std::thread::sleep(STOPPED);
        let changed = data.iter().filter(|&&x| x != 7.0).count();
        return assert_eq!(changed, 0, "of {N} elements");
    }
    let job = Job::new("nothing_is_written_after_a_call_was_given_up", 2);
    let job = job.env("GRACCL_TRANSPORT", "shm").start();
    let stat = format!("/proc/{}/stat", job.pid(1));
    let since = Instant::now();
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        assert!(since.elapsed() < Duration::from_secs(20), "rank 1 does not stop");
        std::thread::sleep(Duration::from_millis(3));
    }
    std::thread::sleep(STOPPED);
    job.signal(1, libc::SIGCONT);
    for e in job.finish() {
        assert!(e.status.success(), "{}", e.text);
    }
}

/// The ranks are the first processes of containers, so both have the same number: which one died cannot be asked by it.
#[test]
fn a_rank_in_a_container_dies_while_it_writes() {
    if case().is_some() {
        let (c, data) = begin(die);
        assert_eq!(std::process::id(), 1);
        return report_error(&c.all_reduce(data, RedOp::Sum).unwrap_err());
    }
    if can_unshare("-pf") {
        let job = Job::new("a_rank_in_a_container_dies_while_it_writes", 2).env("GRACCL_TRANSPORT", "shm");
        // Sooner than the timeout.
        let job = job.wrapper(&["unshare", "-pf", "--kill-child"]).deadline(Duration::from_secs(15));
        let ended = job.run();
        assert_eq!(ended[1].status.code(), Some(9), "{}", ended[1].text);
        ended[0].fault().says("RemoteError", &["rank 1 died"]);
    }
}

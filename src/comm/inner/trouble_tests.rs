//! Failures while a peer stands still in the middle of something, and calls that stand still beside others.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::super::call::{Verb, Work};
use super::super::{Communicator, Config, Request, TransportChoice};
use super::{Inner, panicked};
use crate::schedule::Collective;
use crate::transport::AnyLink;
use crate::transport::shm::ShmLink;
use crate::{Call, Code, DataType, RedOp, memory};

/// What must not wait. It takes microseconds; the rest is for a machine that is busy.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Of a call, each half of which is sent by reference in one message.
const N: usize = 32 << 10;

fn ranks(n: usize, timeout: u64) -> Vec<Communicator> {
    let timeout = Duration::from_secs(timeout);
    let config = Config { transport: TransportChoice::Shm, timeout, ..Config::default() };
    Communicator::init_all(n, &config).unwrap()
}

fn inner<T>(c: &Communicator, f: impl FnOnce(&mut Inner) -> T) -> T {
    f(c.shared.phase.lock().ready().unwrap())
}

/// The rank's first link of which `f` is true.
fn link(c: &Communicator, f: impl Fn(&mut ShmLink) -> bool) -> bool {
    let holds = |l: &mut AnyLink| match l {
        AnyLink::Shm(l) => f(l),
        AnyLink::Other(_) => false,
    };
    inner(c, |inner| inner.links.iter_mut().any(holds))
}

/// Starts an all_reduce in place.
fn start(c: &Communicator, p: *mut u8) -> Request {
    // SAFETY: the tests' buffers have room for it, and stay until the call is over.
    unsafe { c.start(&Call::new(Collective::AllReduce, p, p, N, DataType::F32, RedOp::Sum)) }.unwrap()
}

/// Two ranks, of which the second stands where it writes into the memory of the first one's call, as if it were stopped.
struct Stopped {
    ranks: Vec<Communicator>,
    call: Request,
    memory: [*mut u8; 2],
}

impl Stopped {
    fn new(timeout: u64) -> Stopped {
        let ranks = ranks(2, timeout);
        let memory = [(); 2].map(|()| memory::alloc(4 * N).unwrap());
        let both = [0, 1].map(|r| start(&ranks[r], memory[r]));
        both.iter().for_each(|call| call.wait().unwrap());
        let call = start(&ranks[0], memory[0]);
        let since = Instant::now();
        while !link(&ranks[1], |l| l.write_reply(true)) {
            assert!(since.elapsed() < Duration::from_secs(5), "no message by reference");
            std::thread::yield_now();
        }
        Stopped { ranks, call, memory }
    }

    /// It goes on.
    fn written(&self) -> bool {
        link(&self.ranks[1], |l| l.write_reply(false))
    }

    /// The call ends soon.
    fn ends(&self) {
        let e = self.call.wait_for(Duration::from_secs(5)).unwrap_err();
        assert_eq!(e.code, Code::Aborted, "{e}");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.ranks.clear();
        for p in self.memory {
            // SAFETY: from `alloc`, and the communicators are gone.
            unsafe { memory::free(p) }.unwrap();
        }
    }
}

#[test]
fn only_the_call_whose_memory_is_written_to_waits_for_that() {
    let s = Stopped::new(60);
    let later = start(&s.ranks[0], s.memory[1]);
    let since = Instant::now();
    s.ranks[0].abort();
    assert_eq!(s.ranks[0].failure().unwrap().code, Code::Aborted);
    let took = since.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(later.wait_for(Duration::ZERO).unwrap_err().code, Code::Aborted);
    // The others know at once.
    while s.ranks[1].failure().is_none() {
        assert!(since.elapsed() < Duration::from_secs(5), "rank 1 was not told");
        std::thread::yield_now();
    }
    let since = Instant::now();
    assert!(!s.call.wait_for(Duration::from_millis(200)).unwrap());
    let took = since.elapsed();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_millis(200) + AT_ONCE, "{took:?}");
    assert!(s.written());
    s.ends();
}

#[test]
fn a_communicator_is_not_gone_while_memory_of_its_call_is_written_to() {
    let mut s = Stopped::new(60);
    let first = s.ranks.remove(0);
    first.abort();
    std::thread::scope(|scope| {
        let gone = scope.spawn(move || drop(first));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!gone.is_finished() && !s.call.test().unwrap());
        let second = &s.ranks[0];
        assert!(link(second, |l| l.write_reply(false)));
        gone.join().unwrap();
    });
    s.ends();
}

#[test]
fn who_never_writes_is_waited_for_until_the_timeout() {
    let s = Stopped::new(1);
    let since = Instant::now();
    s.ranks[0].abort();
    s.ends();
    let took = since.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(3), "{took:?}");
    // It finds out when it has written.
    assert!(!s.written());
}

#[test]
fn a_panic_in_the_middle_of_writing_holds_nobody_up() {
    let s = Stopped::new(60);
    s.ranks[0].abort();
    assert!(!s.call.wait_for(Duration::from_millis(50)).unwrap());
    assert!(link(&s.ranks[1], |l| l.unwind()));
    inner(&s.ranks[1], |inner| inner.fail(&panicked()));
    s.ends();
}

/// A call of three ranks, one of which does not make it, while the other two send to each other: every time that somebody
/// drives them something moves.
#[test]
fn a_call_that_stands_still_is_seen_beside_others_that_move() {
    let all = ranks(3, 1);
    let mut data = vec![[1.0f32; N]; 3];
    let p: Vec<*mut u8> = data.iter_mut().map(|d| d.as_mut_ptr().cast()).collect();
    let first: Vec<Request> = (0..3).map(|r| start(&all[r], p[r])).collect();
    first.iter().for_each(|call| call.wait().unwrap());
    let (mut word, abort) = (7u32, AtomicBool::new(false));
    let at = (&raw mut word).cast();
    let point = |verb, peer, rank| Work::point(verb, at, 1, DataType::U32, peer, rank, 3).unwrap();
    // SAFETY: the word stays until both are over.
    let ends =
        unsafe { [all[0].start_send(at, 1, DataType::U32, 1), all[1].start_recv(at, 1, DataType::U32, 0)] };
    ends.into_iter().for_each(|end| end.unwrap().wait().unwrap());
    let calls = [start(&all[0], p[0]), start(&all[1], p[1])];
    let since = Instant::now();
    inner(&all[0], |from| {
        inner(&all[1], |to| {
            while from.failed.is_none() && to.failed.is_none() {
                assert!(since.elapsed() < Duration::from_secs(5), "not seen");
                from.enqueue(point(Verb::Send, 1, 0), Arc::default());
                assert!(from.advance(&abort));
                to.enqueue(point(Verb::Recv, 0, 1), Arc::default());
                assert!(to.advance(&abort));
            }
        });
    });
    let took = since.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(2), "{took:?}");
    for call in calls {
        let e = call.wait().unwrap_err();
        assert!(e.code == Code::Timeout && e.to_string().contains("all_reduce"), "{e}");
    }
}

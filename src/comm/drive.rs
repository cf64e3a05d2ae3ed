//! Driving communicators: any thread may let their calls advance, and those that wait for something do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::pause::{self, Need, Pause};
use super::request::Done;
use super::{Phase, Shared, inner, progress};
use crate::Result;
use crate::memory::arena;

/// What a turn has found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Moved,
    Stuck,
    /// Nothing is under way.
    Idle,
}

/// Lets the calls of one communicator advance, unless another thread is at it. `need`: gets what could
/// wake us.
pub fn turn(shared: &Shared, need: Option<&mut Need>) -> Turn {
    let Some(mut phase) = shared.phase.try_lock() else {
        if let Some(need) = need {
            need.other = true;
        }
        return Turn::Stuck;
    };
    let Phase::Ready(inner) = &mut *phase else { return Turn::Idle };
    let advance = AssertUnwindSafe(|| inner.advance(&shared.abort));
    let moved = catch_unwind(advance).unwrap_or_else(|_| {
        inner.fail(&inner::panicked());
        true
    });
    let idle = inner.is_idle();
    let finished = std::mem::take(&mut inner.finished);
    if let Some(need) = need.filter(|_| !moved) {
        inner.need(need);
    }
    let own = inner.fabric.own;
    drop(phase);
    if !finished.is_empty() {
        deliver(finished);
        pause::wake(own);
    }
    match (moved, idle) {
        (true, _) => Turn::Moved,
        (_, true) => Turn::Idle,
        _ => Turn::Stuck,
    }
}

/// Tells those who wait. Without any lock: callbacks may make calls.
pub fn deliver(finished: Vec<(Arc<Done>, Result<()>)>) {
    for (done, result) in finished {
        done.finish(result);
    }
}

/// Counts a thread that drives a communicator while it waits: the progress thread then need not.
struct Waiting<'a>(&'a [Arc<Shared>]);

impl<'a> Waiting<'a> {
    fn new(comms: &'a [Arc<Shared>]) -> Waiting<'a> {
        for c in comms {
            c.waiters.fetch_add(1, Ordering::Relaxed);
        }
        Waiting(comms)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        for c in self.0 {
            if c.waiters.fetch_sub(1, Ordering::Relaxed) == 1 {
                progress::resume(c);
            }
        }
    }
}

/// Drives a communicator until a call of it is over, or until `limit`.
pub fn until(shared: &Arc<Shared>, done: &Done, limit: Option<Instant>) {
    if !done.over() {
        many(std::slice::from_ref(shared), &mut || done.over(), limit);
    }
}

/// Drives communicators until `over` says so, or until `limit`.
pub fn many(comms: &[Arc<Shared>], over: &mut dyn FnMut() -> bool, limit: Option<Instant>) {
    let _waiting = Waiting::new(comms);
    let mut need = Need::default();
    let mut pause: Option<Pause> = None;
    loop {
        need.clear();
        let mut moved = false;
        for c in comms {
            moved |= turn(c, Some(&mut need)) == Turn::Moved;
        }
        if over() {
            return;
        }
        let left = limit.map(|l| l.saturating_duration_since(Instant::now()));
        if left.is_some_and(|l| l.is_zero()) {
            return;
        }
        if pause.is_none() {
            pause = new_pause(comms);
        }
        match &mut pause {
            Some(p) if moved => p.moved(),
            Some(p) => p.idle(&mut need, left, &mut |need| fill(comms, need)),
            // All of them have ended meanwhile.
            None => std::thread::yield_now(),
        }
    }
}

/// How to wait for these communicators; `None` while none is ready.
fn new_pause(comms: &[Arc<Shared>]) -> Option<Pause> {
    let manner = manner(comms)?;
    Some(Pause::new(manner, arena().ok()?, true))
}

pub fn manner(comms: &[Arc<Shared>]) -> Option<pause::Manner> {
    comms.iter().filter_map(|c| c.manner.get().copied()).reduce(pause::Manner::and)
}

/// Descriptors on which news for these communicators may come.
pub fn fill(comms: &[Arc<Shared>], need: &mut Need) {
    for c in comms {
        if let Some(phase) = c.phase.try_lock()
            && let Phase::Ready(inner) = &*phase
        {
            inner.fds(&mut need.fds);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use super::super::{Communicator, Config, Phase, Request, TransportChoice};
    use crate::schedule::Collective;
    use crate::transport::{AnyLink, Fault, Link, Recv};
    use crate::{Call, Code, DataType, RedOp};

    /// A link in which everything goes wrong.
    struct Broken;

    impl Link for Broken {
        fn send_slot(&mut self, _: usize) -> Option<*mut u8> {
            panic!("on purpose")
        }
        fn commit(&mut self, _: usize, _: u32) {
            panic!("on purpose")
        }
        fn room(&mut self) -> bool {
            panic!("on purpose")
        }
        fn recv(&mut self, _: usize, _: u32) -> Recv {
            panic!("on purpose")
        }
        fn release(&mut self) {
            panic!("on purpose")
        }
        fn capacity(&self) -> usize {
            panic!("on purpose")
        }
        fn fault(&self) -> Option<Fault> {
            panic!("on purpose")
        }
    }

    /// Two ranks that have called once, of which the first now has broken links.
    fn broken() -> Vec<Communicator> {
        let config =
            Config { transport: TransportChoice::Shm, timeout: Duration::from_secs(60), ..Config::default() };
        let all = Communicator::init_all(2, &config).unwrap();
        std::thread::scope(|s| {
            for c in &all {
                s.spawn(|| c.all_reduce(&mut [1.0f32; 4], RedOp::Sum).unwrap());
            }
        });
        if let Phase::Ready(inner) = &mut *all[0].shared.phase.lock() {
            inner.links_mut().iter_mut().for_each(|l| *l = AnyLink::Other(Box::new(Broken)));
        }
        all
    }

    fn start(c: &Communicator, data: &mut [f32; 4]) -> Request {
        let p = data.as_mut_ptr().cast();
        // SAFETY: the tests wait for the request.
        unsafe { c.start(&Call::new(Collective::AllReduce, p, p, 4, DataType::F32, RedOp::Sum)) }.unwrap()
    }

    /// The error of a request that nobody drives but the progress thread.
    fn error_of(r: &Request) -> crate::Error {
        let since = Instant::now();
        while !r.done.over() {
            assert!(since.elapsed() < Duration::from_secs(5), "a request hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
        r.test().unwrap_err()
    }

    #[test]
    fn a_panic_of_the_progress_thread_ends_all_requests() {
        static TOLD: AtomicU32 = AtomicU32::new(0);
        for _ in 0..2 {
            let all = broken();
            let mut data = [[1.0f32; 4]; 3];
            let [a, b, c] = &mut data;
            let (first, second, other) = (start(&all[0], a), start(&all[0], b), start(&all[1], c));
            first.on_done(Box::new(|_| panic!("a callback, on purpose")));
            for r in [&first, &second] {
                r.on_done(Box::new(|r| {
                    TOLD.fetch_add(u32::from(r.is_err()), Ordering::Relaxed);
                }));
            }
            for r in [&first, &second] {
                let e = error_of(r);
                assert!(e.code == Code::InternalError && e.what.contains("panicked"), "{e}");
            }
            let e = error_of(&other);
            assert!(e.code == Code::RemoteError && e.to_string().contains("panicked"), "{e}");
            let e = all[0].all_reduce(&mut [1.0f32], RedOp::Sum).unwrap_err();
            assert!(e.what.contains("failed earlier"), "{e}");
        }
        assert_eq!(TOLD.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_panic_in_a_callers_call_ends_the_communicator() {
        let all = broken();
        let call = AssertUnwindSafe(|| all[0].all_reduce(&mut [1.0f32; 4], RedOp::Sum));
        assert!(catch_unwind(call).is_err());
        assert_eq!(all[0].failure().unwrap().code, Code::InternalError);
        let e = all[1].all_reduce(&mut [1.0f32; 4], RedOp::Sum).unwrap_err();
        assert!(e.code == Code::RemoteError && e.to_string().contains("panicked"), "{e}");
    }
}

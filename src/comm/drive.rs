//! Driving communicators: any thread may let their calls advance, and those that wait for something do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::pause::{self, Need, Pause};
use super::request::Done;
use super::{Phase, Shared, progress};
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
    let moved = inner.advance(&shared.abort);
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

//! Groups: several calls as one, also on several communicators.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::call::Work;
use super::request::Done;
use super::{Communicator, Phase, Shared, drive};
use crate::{Error, Result};

/// A call of a group.
struct Entry {
    shared: Arc<Shared>,
    work: Work,
    done: Arc<Done>,
    /// `group_end` waits for it.
    blocking: bool,
    /// What its result is good for.
    then: Option<Then>,
}

/// Does something with a call's result; the result of both.
pub(super) type Then = Box<dyn FnOnce(Result<()>) -> Result<()>>;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static CALLS: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
    static JOINING: RefCell<Vec<Arc<Shared>>> = const { RefCell::new(Vec::new()) };
}

/// This thread is in a group.
#[inline]
pub(crate) fn active() -> bool {
    DEPTH.get() != 0
}

/// Adds a call to this thread's group.
#[cold]
pub(super) fn add(shared: &Arc<Shared>, work: Work, blocking: bool) -> Arc<Done> {
    let done = Arc::new(Done::default());
    push(Entry { shared: shared.clone(), work, done: done.clone(), blocking, then: None });
    done
}

/// Adds a blocking call whose result goes to `then`, after all calls of the group are over.
pub(super) fn add_then(shared: &Arc<Shared>, work: Work, then: Then) {
    let (shared, done) = (shared.clone(), Arc::default());
    push(Entry { shared, work, done, blocking: true, then: Some(then) });
}

fn push(entry: Entry) {
    CALLS.with_borrow_mut(|c| c.push(entry));
}

/// Has the group's end wait until a communicator is ready.
pub(super) fn add_joining(shared: &Arc<Shared>) {
    JOINING.with_borrow_mut(|c| c.push(shared.clone()));
}

/// Begins a group: calls of this thread are collected and carried out together by [`group_end`].
///
/// Calls on one communicator keep their order; those on different communicators, and sends and
/// receives, progress side by side. So one thread may make the calls of several ranks. Blocking calls
/// return at once, and their results are complete when `group_end` returns. Non-blocking ones give their
/// requests at once; these start with `group_end`. Communicators that are made in a group, also from
/// others, are ready when `group_end` returns. Groups nest: only the outermost end counts.
pub fn group_start() -> Result<()> {
    DEPTH.set(DEPTH.get() + 1);
    Ok(())
}

/// Ends a group: carries out its calls, and waits for the blocking ones. The first error of any.
pub fn group_end() -> Result<()> {
    match DEPTH.get() {
        0 => {
            return Err(
                Error::usage("there is no group to end").hint("call group_start before, in this thread")
            );
        }
        depth => DEPTH.set(depth - 1),
    }
    if active() {
        return Ok(());
    }
    let mut result = Ok(());
    for shared in JOINING.take() {
        let joined = Communicator::wait_joined(&shared);
        result = result.and(joined);
    }
    let entries = CALLS.take();
    let mut comms: Vec<Arc<Shared>> = Vec::new();
    let mut waited: Vec<(Arc<Done>, Option<Then>)> = Vec::new();
    for e in entries {
        if e.blocking {
            waited.push((e.done.clone(), e.then));
            if !comms.iter().any(|c| Arc::ptr_eq(c, &e.shared)) {
                comms.push(e.shared.clone());
            }
        }
        e.shared.submit(e.work, &e.done, !e.blocking);
    }
    let mut next = 0;
    drive::many(
        &comms,
        &mut || {
            while waited.get(next).is_some_and(|(d, _)| d.over()) {
                next += 1;
            }
            next == waited.len()
        },
        None,
    );
    for (done, then) in waited {
        let own = done.result().unwrap_or(Ok(()));
        result = result.and(match then {
            None => own,
            Some(then) => then(own),
        });
    }
    result
}

impl Shared {
    /// Puts a call under way. `listed`: the progress thread sees to it.
    pub(super) fn submit(self: &Arc<Self>, work: Work, done: &Arc<Done>, listed: bool) {
        let mut phase = self.phase.lock();
        match &mut *phase {
            Phase::Ready(inner) => {
                inner.enqueue(work, done.clone());
                if listed {
                    inner.list(self);
                }
                let finished = std::mem::take(&mut inner.finished);
                drop(phase);
                drive::deliver(finished);
            }
            other => {
                let e = other.error();
                drop(phase);
                done.finish(Err(e));
            }
        }
    }
}

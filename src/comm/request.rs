//! Requests: calls under way that nobody waits for yet.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fabric::lock;
use super::{Shared, drive, group};
use crate::{Error, Result};

/// What [`Request::on_done`] calls with the result.
pub type Callback = Box<dyn FnOnce(&Result<()>) + Send>;

/// Whether a call is over, and how it ended.
#[derive(Default)]
pub(super) struct Done {
    over: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    result: Option<Result<()>>,
    callbacks: Vec<Callback>,
}

impl Done {
    #[inline]
    pub fn over(&self) -> bool {
        // Acquire: what the call has written.
        self.over.load(Ordering::Acquire)
    }

    /// The result, once it is over.
    pub fn result(&self) -> Option<Result<()>> {
        lock(&self.state).result.clone()
    }

    /// The call is over. Its callbacks run here.
    pub fn finish(&self, result: Result<()>) {
        let callbacks = {
            let mut s = lock(&self.state);
            s.result = Some(result.clone());
            std::mem::take(&mut s.callbacks)
        };
        self.over.store(true, Ordering::Release);
        for c in callbacks {
            // A panic in one must not keep the others, or other calls, from being told.
            let _ = catch_unwind(AssertUnwindSafe(|| c(&result)));
        }
    }

    pub fn then(&self, callback: Callback) {
        let result = {
            let mut s = lock(&self.state);
            match &s.result {
                Some(r) => r.clone(),
                None => return s.callbacks.push(callback),
            }
        };
        callback(&result);
    }
}

/// A call that was started and may not be over. Dropping it does not stop the call, whose buffers stay
/// in use until it is over.
///
/// Thread-safety: may be used by any thread, and by several.
pub struct Request {
    pub(super) shared: Arc<Shared>,
    pub(super) done: Arc<Done>,
}

impl Request {
    /// Whether the call is over. Its error, if it failed.
    pub fn test(&self) -> Result<bool> {
        if !self.done.over() && !self.shared.listed_hint.load(Ordering::Relaxed) {
            // There is no progress thread. Where there is one the caller keeps its core for itself.
            drive::turn(&self.shared, None);
        }
        self.done.result().transpose().map(|r| r.is_some())
    }

    /// Waits until the call is over. Its error, if it failed.
    pub fn wait(&self) -> Result<()> {
        self.outside_group()?;
        drive::until(&self.shared, &self.done, None);
        self.done.result().unwrap_or(Ok(()))
    }

    /// Waits until the call is over, at most `limit`: false if it is not.
    pub fn wait_for(&self, limit: Duration) -> Result<bool> {
        self.outside_group()?;
        drive::until(&self.shared, &self.done, Instant::now().checked_add(limit));
        self.done.result().transpose().map(|r| r.is_some())
    }

    /// Has `done` called with the result once the call is over: at once, by this thread, if it is
    /// already; by whichever thread ends it otherwise, where a panic goes no further. `done` must not
    /// block, and may start calls but not wait for any.
    pub fn on_done(&self, done: Callback) {
        self.done.then(done);
    }

    fn outside_group(&self) -> Result<()> {
        if group::active() && !self.done.over() {
            return Err(Error::usage("a request cannot be waited for inside a group")
                .hint("its call may only start with group_end: wait after that"));
        }
        Ok(())
    }
}

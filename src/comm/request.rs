//! Requests: calls under way that nobody waits for yet.

use std::time::Duration;

use crate::{Error, Result};

/// A call that was started and may not be over. Dropping it does not stop the call, whose buffers stay
/// in use until it is over.
pub struct Request {
    _todo: (),
}

impl Request {
    /// Whether the call is over. Its error, if it failed.
    pub fn test(&self) -> Result<bool> {
        Err(Error::internal("not there yet"))
    }

    /// Waits until the call is over. Its error, if it failed.
    pub fn wait(&self) -> Result<()> {
        Err(Error::internal("not there yet"))
    }

    /// Waits until the call is over, at most `limit`: false if it is not.
    pub fn wait_for(&self, limit: Duration) -> Result<bool> {
        let _ = limit;
        Err(Error::internal("not there yet"))
    }

    /// Has `done` called with the result once the call is over: at once, by this thread, if it is
    /// already; by whichever thread ends it otherwise. `done` must not block, and may start calls but
    /// not wait for any.
    pub fn on_done(&self, done: Box<dyn FnOnce(&Result<()>) + Send>) {
        let _ = done;
    }
}

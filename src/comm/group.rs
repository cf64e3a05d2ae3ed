//! Groups: several calls as one, also on several communicators.

use crate::{Error, Result};

/// Begins a group: calls of this thread are collected and carried out together by [`group_end`].
///
/// Calls on one communicator keep their order; those on different communicators, and sends and
/// receives, progress side by side. So one thread may make the calls of several ranks. Blocking calls
/// return at once, and their results are complete when `group_end` returns. Non-blocking ones give their
/// requests at once; these start with `group_end`. Groups nest: only the outermost end counts.
pub fn group_start() -> Result<()> {
    Err(Error::internal("not there yet"))
}

/// Ends a group: carries out its calls, and waits for the blocking ones. The first error of any.
pub fn group_end() -> Result<()> {
    Err(Error::usage("there is no group to end").hint("call group_start before"))
}

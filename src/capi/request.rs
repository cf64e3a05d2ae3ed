//! Requests: what becomes of calls that nobody waits for yet.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{
    NO_COMM, ResultInt, entry, error, graccl_comm_t, graccl_request_t, graccl_result_t, handle, null,
};
use crate::{Error, Request, Result};

/// What a ticket for a request stands for.
pub(super) struct Pending {
    first: Request,
    /// The other half of a graccl_send_recv_async.
    second: Option<Request>,
    /// Ticket of the communicator, which keeps the text of a failure.
    comm: usize,
}

/// The parts of a [`Pending`]: one request or two.
pub(super) struct Started(pub Request, pub Option<Request>);

impl From<Request> for Started {
    fn from(request: Request) -> Started {
        Started(request, None)
    }
}

/// How the call ended, if it is over.
fn outcome(looked: Result<bool>) -> Option<Result<()>> {
    match looked {
        Ok(false) => None,
        Ok(true) => Some(Ok(())),
        Err(error) => Some(Err(error)),
    }
}

impl Pending {
    /// Applies `look` to its requests: how they ended if all are over. The first error counts.
    fn all(&self, look: impl Fn(&Request) -> Result<bool>) -> Option<Result<()>> {
        let first = outcome(look(&self.first));
        let second = self.second.as_ref().map_or(Some(Ok(())), |request| outcome(look(request)));
        Some(first?.and(second?))
    }

    fn test(&self) -> Option<Result<()>> {
        self.all(Request::test)
    }

    fn wait(&self) -> Result<()> {
        self.all(|request| request.wait().map(|()| true)).expect("waited for")
    }

    fn wait_until(&self, end: Instant) -> Option<Result<()>> {
        self.all(|request| request.wait_for(end.saturating_duration_since(Instant::now())))
    }

    fn on_done(&self, done: impl FnOnce(&Result<()>) + Send + 'static) {
        let Some(second) = &self.second else { return self.first.on_done(Box::new(done)) };
        // Whichever half ends last has `done` called, with the first error.
        let waiting = Arc::new(Mutex::new((Some(done), None)));
        for half in [&self.first, second] {
            let waiting = waiting.clone();
            half.on_done(Box::new(move |result| {
                let mut state = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                match state.1.take() {
                    None => state.1 = Some(result.clone()),
                    Some(other) => {
                        let done = state.0.take();
                        drop(state);
                        done.expect("two halves")(&other.and(result.clone()));
                    }
                }
            }));
        }
    }

    /// The communicator keeps the text of a failure, too.
    fn keep(&self, result: Result<()>) -> Result<()> {
        if let Err(error) = &result {
            error::keep(std::ptr::without_provenance(self.comm), error);
        }
        result
    }
}

/// Starts a call on `comm` and gives its ticket.
///
/// # Safety
/// As what `start` calls.
pub(super) unsafe fn start(
    comm: *const graccl_comm_t,
    start: impl FnOnce() -> Result<Started>,
) -> Result<*mut graccl_request_t> {
    let vacancy = handle::request_vacancy()?;
    let Started(first, second) = start()?;
    Ok(handle::insert_request(vacancy, Pending { first, second, comm: comm.addr() }))
}

/// Asks whether the call is over, without waiting.
///
/// @param request The request. When the call is over it is freed: invalid from then on.
/// @param done Where to put it: 1 if the call is over, well or not; else 0.
/// @return GRACCL_SUCCESS; what the call itself would return if it failed, with done = 1;
///         GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (ended before), with done = 0.
///
/// A test that says 1 is as good as a wait: the result is complete and the buffers are the caller's.
///
/// Thread-safety: any thread may ask, one at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_request_test(request: *mut graccl_request_t, done: *mut c_int) -> ResultInt {
    entry!(graccl_request_test on NO_COMM, not_null [done], {
        // SAFETY: done is not null, and C's caller says that it can be written.
        unsafe { done.write(0) };
        let Some(result) = handle::request(request)?.test() else { return Ok(()) };
        let pending = handle::take_request(request)?;
        // SAFETY: as above.
        unsafe { done.write(1) };
        pending.keep(result)
    })
}

/// Waits until the call is over, and frees the request.
///
/// @param request The request, invalid from now on.
/// @return What the call itself would return; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (ended
///         before).
///
/// Thread-safety: one thread waits. graccl_comm_abort by another one ends the wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_request_wait(request: *mut graccl_request_t) -> ResultInt {
    entry!(graccl_request_wait on NO_COMM, not_null [], {
        let pending = handle::take_request(request)?;
        pending.keep(pending.wait())
    })
}

/// How long a wait with a limit goes without looking whether the request was freed meanwhile.
const SLICE: Duration = Duration::from_millis(10);
/// More than this many seconds are for ever.
const FOR_EVER: f64 = 1e9;

/// Waits until the call is over, but not for ever.
///
/// @param request The request. When the call is over it is freed: invalid from then on. Otherwise it
///        stays, and the call goes on.
/// @param seconds The longest wait, 0 or more; INFINITY is allowed.
/// @param done Where to put it: 1 if the call is over, well or not; else 0.
/// @return As graccl_request_test; GRACCL_INVALID_ARGUMENT also for seconds that are negative or NaN.
///         That the time is over is GRACCL_SUCCESS with done = 0.
///
/// Thread-safety: as graccl_request_wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_request_wait_timeout(
    request: *mut graccl_request_t,
    seconds: f64,
    done: *mut c_int,
) -> ResultInt {
    entry!(graccl_request_wait_timeout on NO_COMM, not_null [done], {
        // SAFETY: done is not null, and C's caller says that it can be written.
        unsafe { done.write(0) };
        if seconds.is_nan() || seconds < 0.0 {
            return Err(Error::argument(format!("seconds = {seconds} is not a time")).hint("pass 0 or more"));
        }
        let end = Instant::now() + Duration::from_secs_f64(seconds.min(FOR_EVER));
        let result = loop {
            let slice = end.min(Instant::now() + SLICE);
            if let Some(result) = handle::request(request)?.wait_until(slice) {
                break result;
            }
            if slice == end {
                return Ok(());
            }
        };
        let pending = handle::take_request(request)?;
        // SAFETY: as above.
        unsafe { done.write(1) };
        pending.keep(result)
    })
}

/// Has a function called when the call is over, and hands the request over: it need not and cannot be
/// waited for or freed.
///
/// @param request The request, invalid from now on.
/// @param callback Called once with arg and with what the call itself would return: by this thread
///        before graccl_request_set_callback returns if the call is over already, otherwise by a thread
///        of graccl's or one that waits in a graccl function. It must be short: it may start calls
///        (_async), but not wait for any, not make blocking ones and not destroy communicators. In
///        it, graccl_last_error(NULL) has the text of a failed call.
/// @param arg Passed on; must stay valid until callback was called.
/// @return GRACCL_SUCCESS, also if the call failed: callback gets that; GRACCL_INVALID_ARGUMENT (NULL): the
///         request is still the caller's; GRACCL_INVALID_USAGE (ended before).
///
/// Thread-safety: may be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_request_set_callback(
    request: *mut graccl_request_t,
    callback: Option<unsafe extern "C" fn(arg: *mut c_void, result: ResultInt)>,
    arg: *mut c_void,
) -> ResultInt {
    entry!(graccl_request_set_callback on NO_COMM, not_null [], {
        let Some(callback) = callback else { return Err(null("callback")) };
        let pending = handle::take_request(request)?;
        let (comm, arg) = (pending.comm, arg.expose_provenance());
        pending.on_done(move |result| {
            let code = match result {
                Ok(()) => graccl_result_t::GRACCL_SUCCESS as ResultInt,
                Err(error) => {
                    error::record(std::ptr::without_provenance(comm), &error.to_string());
                    error.code as ResultInt
                }
            };
            // SAFETY: C's caller says that it may be called with arg by any thread.
            unsafe { callback(std::ptr::with_exposed_provenance_mut(arg), code) };
        });
        Ok(())
    })
}

/// Gives up interest in a call, which goes on: its buffers stay in use until it is over, and its failure
/// shows at the next call on the communicator. To stop it, abort the communicator.
///
/// @param request The request, invalid from now on. NULL does nothing.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (ended before).
///
/// Thread-safety: may be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_request_free(request: *mut graccl_request_t) -> ResultInt {
    entry!(graccl_request_free on NO_COMM, not_null [], {
        if !request.is_null() {
            handle::take_request(request)?;
        }
        Ok(())
    })
}

//! Result codes and error texts.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::catch_unwind;
use std::sync::LazyLock;

use super::{ResultInt, graccl_comm_t, handle, same_values};
use crate::Code;

/// What every graccl function that can fail returns. Values up to 8 are those of ncclResult_t.
#[repr(C)]
pub enum graccl_result_t {
    /// The call did what it says.
    GRACCL_SUCCESS = 0,
    /// A device (GPU) call failed.
    GRACCL_DEVICE_ERROR = 1,
    /// A call to the operating system failed.
    GRACCL_SYSTEM_ERROR = 2,
    /// A bug in graccl: please report it.
    GRACCL_INTERNAL_ERROR = 3,
    /// An argument is wrong by itself (NULL, out of range, unknown).
    GRACCL_INVALID_ARGUMENT = 4,
    /// The arguments are right but the call is not allowed here or now, or ranks disagree about it.
    GRACCL_INVALID_USAGE = 5,
    /// Another rank died, left or failed.
    GRACCL_REMOTE_ERROR = 6,
    /// Not finished yet.
    GRACCL_IN_PROGRESS = 7,
    /// A deadline passed.
    GRACCL_TIMEOUT = 8,
    /// The communicator was aborted.
    GRACCL_ABORTED = 9,
}

/// Every code, in the order of the values.
const CODES: [Code; 10] = [
    Code::Success,
    Code::DeviceError,
    Code::SystemError,
    Code::InternalError,
    Code::InvalidArgument,
    Code::InvalidUsage,
    Code::RemoteError,
    Code::InProgress,
    Code::Timeout,
    Code::Aborted,
];

same_values!(Code, graccl_result_t:
    Success GRACCL_SUCCESS,
    DeviceError GRACCL_DEVICE_ERROR,
    SystemError GRACCL_SYSTEM_ERROR,
    InternalError GRACCL_INTERNAL_ERROR,
    InvalidArgument GRACCL_INVALID_ARGUMENT,
    InvalidUsage GRACCL_INVALID_USAGE,
    RemoteError GRACCL_REMOTE_ERROR,
    InProgress GRACCL_IN_PROGRESS,
    Timeout GRACCL_TIMEOUT,
    Aborted GRACCL_ABORTED
);

/// [`Code::text`] for C.
static TEXTS: LazyLock<[CString; 10]> = LazyLock::new(|| CODES.map(|code| c_string(code.text())));

/// Texts that this thread was or will be lent.
struct Texts {
    /// Of this thread's last call that failed.
    failed: Option<CString>,
    /// Of a communicator's last error, when the thread has none of its own.
    borrowed: Option<CString>,
}

thread_local! {
    static THREAD: RefCell<Texts> = const { RefCell::new(Texts { failed: None, borrowed: None }) };
}

/// C's texts end at the first NUL; ours have none unless a caller's name brought one in.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// Keeps the text of a failed call for this thread, and for the communicator if it is live.
pub(super) fn record(comm: *const graccl_comm_t, text: &str) {
    // A call from a destructor that runs after this thread's own variables are gone has no text.
    let _ = THREAD.try_with(|thread| thread.borrow_mut().failed = Some(c_string(text)));
    keep(comm, text);
}

/// Keeps the text for the communicator alone, if it is live.
pub(super) fn keep(comm: *const graccl_comm_t, text: impl ToString) {
    if let Ok(entry) = handle::glance(comm) {
        *entry.last_error() = Some(text.to_string());
    }
}

/// One English line for a result code, for example "a deadline passed".
///
/// @param result Any number.
/// @return Static text; never NULL, "unknown result code" if there is no such code.
///
/// May be called by any thread at any time. graccl_last_error says more about one failed call.
#[unsafe(no_mangle)]
pub extern "C" fn graccl_get_error_string(result: ResultInt) -> *const c_char {
    let text = catch_unwind(|| TEXTS.get(usize::try_from(result).ok()?).map(|text| text.as_ptr()));
    text.ok().flatten().unwrap_or(c"unknown result code".as_ptr())
}

/// What went wrong, who it concerns, and what to do about it, in one line.
///
/// @param comm NULL, or a communicator.
/// @return The text of the calling thread's last graccl call that failed. If none of its calls
///         failed and comm is a live communicator, the text of the last failed call on comm by any
///         thread. Otherwise "no error". Never NULL. Calls that succeed do not clear the text, so ask
///         only after a call that failed.
///
/// The text belongs to graccl and is valid until the calling thread's next graccl call or its end.
/// A call that failed after it was started or in a group counts as the one that reported it:
/// graccl_request_test, graccl_request_wait, graccl_group_end, graccl_comm_get_async_error. May be
/// called by any thread at any time.
#[unsafe(no_mangle)]
pub extern "C" fn graccl_last_error(comm: *const graccl_comm_t) -> *const c_char {
    let text = catch_unwind(|| {
        let lend = |thread: &RefCell<Texts>| {
            let thread = &mut *thread.borrow_mut();
            if thread.failed.is_none() {
                let entry = handle::glance(comm).ok();
                thread.borrowed = entry.and_then(|entry| entry.last_error().as_deref().map(c_string));
            }
            thread.failed.as_ref().or(thread.borrowed.as_ref()).map(|text| text.as_ptr())
        };
        THREAD.try_with(lend).ok().flatten()
    });
    text.ok().flatten().unwrap_or(c"no error".as_ptr())
}

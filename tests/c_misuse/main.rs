//! The C ABI called wrongly: null pointers, unknown numbers, dead handles. Each gives an error that
//! names the culprit, and none does harm. Called from here as C would call it.

mod arguments;
mod lives;

use graccl::capi::*;
use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const SUCCESS: ResultInt = graccl_result_t::GRACCL_SUCCESS as ResultInt;
const INVALID_ARGUMENT: ResultInt = graccl_result_t::GRACCL_INVALID_ARGUMENT as ResultInt;
const INVALID_USAGE: ResultInt = graccl_result_t::GRACCL_INVALID_USAGE as ResultInt;
const ABORTED: ResultInt = graccl_result_t::GRACCL_ABORTED as ResultInt;
const REMOTE_ERROR: ResultInt = graccl_result_t::GRACCL_REMOTE_ERROR as ResultInt;
const IN_PROGRESS: ResultInt = graccl_result_t::GRACCL_IN_PROGRESS as ResultInt;
const F32: DataTypeInt = graccl_data_type_t::GRACCL_FLOAT32 as DataTypeInt;
const F64: DataTypeInt = graccl_data_type_t::GRACCL_FLOAT64 as DataTypeInt;
const SUM: RedOpInt = graccl_red_op_t::GRACCL_SUM as RedOpInt;
const NULL_COMM: *mut graccl_comm_t = ptr::null_mut();

fn text(text: *const std::ffi::c_char) -> String {
    // SAFETY: graccl's texts are never null, and are copied before the next call.
    unsafe { CStr::from_ptr(text) }.to_str().expect("UTF-8").to_owned()
}

#[track_caller]
fn refused(code: ResultInt, expected: ResultInt, text_has: &str) {
    let last = text(graccl_last_error(NULL_COMM));
    assert_eq!(code, expected, "{last}");
    assert!(last.contains(text_has), "\"{last}\" lacks \"{text_has}\"");
}

/// A communicator of one rank.
fn alone() -> *mut graccl_comm_t {
    let mut id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
    let mut comm = ptr::null_mut();
    // SAFETY: both can be written.
    let codes = unsafe { [graccl_get_unique_id(&mut id), graccl_comm_init_rank(&mut comm, 1, id, 0)] };
    assert_eq!(codes, [SUCCESS; 2], "{}", text(graccl_last_error(NULL_COMM)));
    assert!(!comm.is_null());
    comm
}

fn destroy(comm: *mut graccl_comm_t) {
    // SAFETY: no other thread uses it.
    assert_eq!(unsafe { graccl_comm_destroy(comm) }, SUCCESS);
}

/// All ranks of one communicator.
fn all(size: usize) -> Vec<*mut graccl_comm_t> {
    let mut comms = vec![ptr::without_provenance_mut(1); size];
    // SAFETY: there are as many places as ranks.
    let code = unsafe { graccl_comm_init_all(comms.as_mut_ptr(), size as c_int, ptr::null()) };
    assert_eq!(code, SUCCESS, "{}", text(graccl_last_error(NULL_COMM)));
    comms
}

fn unset() -> graccl_config_t {
    graccl_config_t {
        size: size_of::<graccl_config_t>(),
        magic: GRACCL_CONFIG_MAGIC,
        version: 100,
        timeout_ms: c_int::MIN,
        init_timeout_ms: c_int::MIN,
        transport: ptr::null(),
        algorithm: ptr::null(),
        verify: c_int::MIN,
        blocking: c_int::MIN,
        deterministic: c_int::MIN,
        encrypt: c_int::MIN,
        profile: ptr::null(),
    }
}

/// Runs `rank` for each communicator in a thread of its own.
fn each(comms: &[*mut graccl_comm_t], rank: impl Fn(*mut graccl_comm_t) + Sync) {
    std::thread::scope(|scope| {
        for comm in comms {
            let (comm, rank) = (comm.addr(), &rank);
            scope.spawn(move || rank(ptr::without_provenance_mut(comm)));
        }
    });
}

/// Starts an all_reduce of `data` on a communicator of one rank.
fn started(data: &mut [f32], comm: *mut graccl_comm_t) -> *mut graccl_request_t {
    let mut request = ptr::null_mut();
    let data_at: *mut c_void = data.as_mut_ptr().cast();
    // SAFETY: the tests below keep the data until the request is over.
    let code = unsafe { graccl_all_reduce_async(data_at, data_at, data.len(), F32, SUM, comm, &mut request) };
    assert_eq!(code, SUCCESS, "{}", text(graccl_last_error(NULL_COMM)));
    assert!(!request.is_null());
    request
}

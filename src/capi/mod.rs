//! The C ABI: [`crate::comm`] for C, and nothing else. `include/graccl.h` is generated from these
//! files by `scripts/header`.
//!
//! ```text
//! C caller -> graccl_all_reduce -> entry! (null checks, panics, error text) -> Communicator
//! ```
//!
//! Three rules hold everywhere here:
//! - every function's body stands in `entry!`, so that no panic reaches C;
//! - where the header says `enum`, Rust says `c_int`: C may pass any number, and a Rust enum with
//!   an unknown value is undefined behaviour;
//! - a `graccl_comm_t *`, `graccl_request_t *` or `graccl_bucketer_t *` is never followed: it is a ticket that `handle` looks
//!   up, so a communicator that was destroyed, or a wild pointer, is an error and not a crash.
//!
//! The functions are `unsafe` because C's pointers are trusted to be what each function's text asks
//! for; that text is written for C and is the safety contract.
// The texts are written for C: brackets in them are indices.
#![allow(non_camel_case_types, clippy::missing_safety_doc, rustdoc::broken_intra_doc_links)]

mod bucketer;
mod call;
mod comm;
mod config;
mod error;
mod folding;
mod group;
mod handle;
mod memory;
mod moving;
mod p2p;
mod panics;
mod red_op;
mod request;
mod types;

pub use bucketer::*;
pub use comm::*;
pub use config::*;
pub use error::*;
pub use folding::*;
pub use group::*;
pub use handle::{graccl_bucketer_t, graccl_comm_t, graccl_request_t};
pub use memory::*;
pub use moving::*;
pub use p2p::*;
pub use red_op::*;
pub use request::*;
pub use types::*;

use std::any::Any;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Error, Result};

/// In the header: `graccl_result_t`.
pub type ResultInt = c_int;

/// The communicator argument of functions that have none.
const NO_COMM: *mut graccl_comm_t = std::ptr::null_mut();

/// The body of an exported function: names the function, the communicator that it works on
/// (`NO_COMM` if none), and the pointers that must not be null; then the work, a block that gives a
/// [`Result`].
macro_rules! entry {
    ($function:ident on $comm:expr, not_null [$($pointer:ident),*], $body:block) => {
        $crate::capi::boundary(stringify!($function), $comm, || {
            $(if $pointer.is_null() {
                return Err($crate::capi::null(stringify!($pointer)));
            })*
            $body
        })
    };
}
use entry;

/// Checks, when this is compiled, that an enum of the library and one of the header have the same
/// values, so that going from one to the other is a cast.
macro_rules! same_values {
    ($library:ident, $header:ident: $($ours:ident $theirs:ident),+) => {
        const _: () = {
            $(assert!($library::$ours as i32 == $header::$theirs as i32);)+
        };
    };
}
use same_values;

/// Runs `body`; turns its error or panic into a code and keeps the text for `graccl_last_error`.
/// Success costs nothing but the call: no allocation, no lock, no thread-local.
#[inline]
fn boundary(
    function: &'static str,
    comm: *mut graccl_comm_t,
    body: impl FnOnce() -> Result<()>,
) -> ResultInt {
    // What a panic leaves half done is the communicator, and `panicked` ends that.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => graccl_result_t::GRACCL_SUCCESS as ResultInt,
        Ok(Err(error)) => fail(function, comm, error),
        Err(panic) => panicked(function, comm, &*panic),
    }
}

#[cold]
#[inline(never)]
fn fail(function: &'static str, comm: *mut graccl_comm_t, error: Error) -> ResultInt {
    let error = if error.who.is_empty() { error.who(function) } else { error };
    error::record(comm, &error.to_string());
    error.code as ResultInt
}

#[cold]
#[inline(never)]
fn panicked(function: &'static str, comm: *mut graccl_comm_t, panic: &(dyn Any + Send)) -> ResultInt {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    // The communicator may be in any state: end it on all ranks, so that none waits for this one.
    let _ = catch_unwind(|| handle::glance(comm).map(|entry| entry.comm.abort()));
    let error = Error::internal(format!("panic: {text}{}", panics::place()));
    fail(function, comm, error.hint("this is a bug in graccl, please report it"))
}

#[cold]
#[inline(never)]
fn null(argument: &'static str) -> Error {
    Error::argument(format!("{argument} is NULL"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last_error() -> String {
        // SAFETY: never null, and no other call of this thread comes in between.
        unsafe { CStr::from_ptr(graccl_last_error(NO_COMM)) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_text() {
        let number = 7;
        let code = entry!(graccl_test on NO_COMM, not_null [], { panic!("lost chunk {number}") });
        assert_eq!(code, graccl_result_t::GRACCL_INTERNAL_ERROR as ResultInt);
        let text = last_error();
        assert!(text.starts_with("panic: lost chunk 7") && text.contains(" [graccl_test] -> "), "{text}");
        let code = entry!(graccl_test on NO_COMM, not_null [], { panic!("plain") });
        assert_eq!(code, graccl_result_t::GRACCL_INTERNAL_ERROR as ResultInt);
        assert!(last_error().starts_with("panic: plain"), "{}", last_error());
    }

    #[test]
    fn an_error_keeps_its_three_parts() {
        let code = entry!(graccl_test on NO_COMM, not_null [], {
            Err(Error::timeout("no message").who("rank 3").hint("look at rank 3"))
        });
        assert_eq!(code, graccl_result_t::GRACCL_TIMEOUT as ResultInt);
        assert_eq!(last_error(), "no message [rank 3] -> look at rank 3");
    }
}

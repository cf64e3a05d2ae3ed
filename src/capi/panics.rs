//! What a panic inside the library looks like to the application: an error of the call, and one line
//! through our logger instead of the lines that Rust writes to stderr.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

use crate::log::{Level, log};

thread_local! {
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Where our files are, as panics name them. Nobody else's have this path: a Rust program that we are
/// compiled into sees ours as a dependency's, and our own libraries for C contain nobody else's.
fn ours(file: &str) -> bool {
    file.strip_prefix(file!().strip_suffix("capi/panics.rs").unwrap_or("?")).is_some()
}

/// From now on panics of our own code go to the logger. All others go where they went before. The
/// functions that make communicators call it, so a program that uses only the Rust API keeps all of its
/// panics: there nothing catches them. That a place in the file decides, and not a mark which each C
/// function sets and clears, keeps calls free of thread-local state.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    // A thread that panics may not touch the hook. Tests of this crate have their panics in our files.
    if !std::thread::panicking() && !cfg!(test) {
        ONCE.call_once(hook);
    }
}

fn hook() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let Some(at) = info.location().filter(|at| ours(at.file())) else { return before(info) };
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        log(Level::Warn, None, format_args!("panic at {at}: {}", text.unwrap_or("no text")));
        let _ = PLACE.try_with(|place| *place.borrow_mut() = format!(" at {at}"));
    }));
}

/// " at file:line:column" of this thread's panic, if the hook saw it. Once.
pub(super) fn place() -> String {
    PLACE.try_with(RefCell::take).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::capi::{NO_COMM, entry, graccl_last_error};

    #[test]
    fn our_panics_are_logged_and_others_are_left_alone() {
        static OTHERS: AtomicU32 = AtomicU32::new(0);
        let original = panic::take_hook();
        panic::set_hook(Box::new(|info| {
            if !ours(info.location().unwrap().file()) {
                OTHERS.fetch_add(1, Ordering::Relaxed);
            }
        }));
        hook();
        let _ = entry!(graccl_test on NO_COMM, not_null [], { panic!("lost") });
        // This one panics in a file of the standard library.
        struct Mute;
        impl std::fmt::Display for Mute {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                Err(std::fmt::Error)
            }
        }
        assert!(panic::catch_unwind(|| Mute.to_string()).is_err());
        panic::set_hook(original);
        assert_eq!(OTHERS.load(Ordering::Relaxed), 1);
        // SAFETY: never null.
        let text = unsafe { std::ffi::CStr::from_ptr(graccl_last_error(NO_COMM)) }.to_str().unwrap();
        assert!(text.starts_with(&format!("panic: lost at {}:", file!())), "{text}");
    }
}

//! Where a process's threads sleep.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

/// A process's doorbell: where its threads sleep, and how others wake them.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Doorbell {
    /// Threads that sleep here or are about to.
    sleepers: AtomicU32,
    /// Number of rings that somebody slept for; they sleep on this word.
    rings: AtomicU32,
}

impl Doorbell {
    pub const fn new() -> Doorbell {
        Doorbell { sleepers: AtomicU32::new(0), rings: AtomicU32::new(0) }
    }

    /// Wakes the process's threads that sleep. Cheap when none does. `fenced`: orders it after the store
    /// that they wait for; without, the sleepers see to that (`membarrier`).
    #[inline]
    pub fn ring(&self, fenced: bool) {
        if fenced {
            fence(Ordering::SeqCst);
        }
        if self.sleepers.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        // SAFETY: futex on a word that is mapped as long as `self` lives.
        unsafe { libc::syscall(libc::SYS_futex, self.rings.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }

    /// The calling thread is about to sleep: what it must then look at once more, [`Doorbell::sleep`] and
    /// [`Doorbell::leave`] follow. The answer is for `sleep`.
    pub fn arrive(&self) -> u32 {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        self.rings.load(Ordering::SeqCst)
    }

    /// Sleeps until somebody rings, if nobody has since `arrive` gave this ticket, at most for `time`.
    pub fn sleep(&self, ticket: u32, time: Duration) {
        let t = libc::timespec {
            tv_sec: time.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
        };
        // SAFETY: futex on a word that is mapped as long as `self` lives.
        unsafe { libc::syscall(libc::SYS_futex, self.rings.as_ptr(), libc::FUTEX_WAIT, ticket, &t) };
    }

    pub fn leave(&self) {
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

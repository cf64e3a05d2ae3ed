//! Tickets for communicators.
//!
//! A `graccl_comm_t *` is not an address but a number: a slot of a fixed table, and a generation
//! that is new for every communicator. A look-up compares one word, without a lock, and never reads
//! what the caller's pointer points to. A destroyed communicator's ticket never becomes valid again.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Code, Communicator, Error, Result};

/// A communicator: made by graccl_comm_init_rank, graccl_comm_init_rank_config or
/// graccl_comm_init_env, ended by graccl_comm_destroy. What it points to is graccl's own affair.
pub struct graccl_comm_t {
    _private: (),
}

/// A live communicator and the text of the last call on it that failed.
pub(super) struct Entry {
    pub comm: Communicator,
    last_error: Mutex<Option<String>>,
}

impl Entry {
    pub fn last_error(&self) -> MutexGuard<'_, Option<String>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Communicators alive at a time. A power of two.
const SLOTS: usize = 4096;

struct Slot {
    /// The ticket that opens this slot; 0 when it is free. Written under [`GENERATION`]'s lock.
    ticket: AtomicUsize,
    /// From `Arc::into_raw`; valid while `ticket` is not 0.
    entry: AtomicPtr<Entry>,
}

static TABLE: [Slot; SLOTS] =
    [const { Slot { ticket: AtomicUsize::new(0), entry: AtomicPtr::new(ptr::null_mut()) } }; SLOTS];

/// Number of communicators made so far; its lock guards all changes of [`TABLE`].
static GENERATION: Mutex<usize> = Mutex::new(0);

/// A thread that panicked while it held the lock left nothing half done: see the few lines below.
fn lock() -> MutexGuard<'static, usize> {
    GENERATION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a communicator into the table and returns its ticket.
pub(super) fn insert(comm: Communicator) -> Result<*mut graccl_comm_t> {
    let entry = Arc::new(Entry { comm, last_error: Mutex::new(None) });
    let mut generation = lock();
    let Some(index) = TABLE.iter().position(|slot| slot.ticket.load(Ordering::Relaxed) == 0) else {
        return Err(Error::usage(format!("{SLOTS} communicators are alive in this process"))
            .hint("destroy those that are no longer used"));
    };
    *generation += 1;
    let ticket = *generation * SLOTS + index;
    TABLE[index].entry.store(Arc::into_raw(entry).cast_mut(), Ordering::Relaxed);
    // Release: whoever sees the ticket sees the entry.
    TABLE[index].ticket.store(ticket, Ordering::Release);
    Ok(ptr::without_provenance_mut(ticket))
}

/// The slot that `comm` opens, if it is live.
#[inline]
fn slot(comm: *const graccl_comm_t) -> Option<&'static Slot> {
    let ticket = comm.addr();
    let slot = &TABLE[ticket % SLOTS];
    (ticket != 0 && slot.ticket.load(Ordering::Acquire) == ticket).then_some(slot)
}

/// The communicator of `comm`, for calls that must not run while it is destroyed: no lock, a few
/// loads.
///
/// # Safety
/// The caller of the C function keeps its promise that no other thread destroys `comm` before this
/// call has returned; the reference is not used after that.
#[inline]
pub(super) unsafe fn live<'a>(comm: *const graccl_comm_t) -> Result<&'a Communicator> {
    match slot(comm) {
        // SAFETY: the slot is live, so its entry came from `Arc::into_raw`, and by the promise above
        // `remove` does not drop it during the call.
        Some(slot) => Ok(unsafe { &(*slot.entry.load(Ordering::Relaxed)).comm }),
        None => Err(dead(comm)),
    }
}

/// The entry of `comm`, kept alive by the caller: for calls that may race with a destroy.
pub(super) fn shared(comm: *const graccl_comm_t) -> Result<Arc<Entry>> {
    let _guard = lock();
    let Some(slot) = slot(comm) else { return Err(dead(comm)) };
    let entry = slot.entry.load(Ordering::Relaxed);
    // SAFETY: the slot is live and, under the lock, stays so; its entry came from `Arc::into_raw` and
    // the table's own count is still held. The new count is given to the Arc made here.
    unsafe {
        Arc::increment_strong_count(entry);
        Ok(Arc::from_raw(entry))
    }
}

/// Takes `comm` out of the table: from now on its ticket is dead.
pub(super) fn remove(comm: *const graccl_comm_t) -> Result<Arc<Entry>> {
    let _guard = lock();
    let Some(slot) = slot(comm) else { return Err(dead(comm)) };
    slot.ticket.store(0, Ordering::Relaxed);
    // SAFETY: the slot was live until here and the lock is held, so this takes back, once, the count
    // that `insert` gave to the table.
    Ok(unsafe { Arc::from_raw(slot.entry.load(Ordering::Relaxed)) })
}

#[cold]
#[inline(never)]
fn dead(comm: *const graccl_comm_t) -> Error {
    if comm.is_null() {
        return Error::argument("comm is NULL");
    }
    Error::new(Code::InvalidUsage, "comm is not a live communicator")
        .hint("it was destroyed before, or never made by graccl_comm_init_rank or graccl_comm_init_env")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, UniqueId};

    fn alone() -> Communicator {
        Communicator::init_rank(&UniqueId::create().unwrap(), 0, 1, &Config::default()).unwrap()
    }

    #[test]
    fn a_ticket_dies_with_its_communicator() {
        let first = insert(alone()).unwrap();
        // SAFETY: no other thread knows `first`.
        assert_eq!(unsafe { live(first) }.unwrap().size(), 1);
        drop(remove(first).unwrap());
        let second = insert(alone()).unwrap();
        assert_ne!(first, second);
        // SAFETY: both are looked up only.
        assert!(unsafe { live(first) }.is_err() && unsafe { live(second) }.is_ok());
        assert_eq!(remove(first).err().unwrap().code, Code::InvalidUsage);
        assert_eq!(shared(first).err().unwrap().code, Code::InvalidUsage);
        drop(remove(second).unwrap());
    }

    #[test]
    fn wild_pointers_are_refused() {
        let on_the_stack = 0u64;
        for wild in [1, SLOTS, usize::MAX, (&raw const on_the_stack).addr()] {
            // SAFETY: looked up only.
            assert_eq!(
                unsafe { live(ptr::without_provenance(wild)) }.err().unwrap().code,
                Code::InvalidUsage
            );
        }
        // SAFETY: looked up only.
        assert_eq!(unsafe { live(ptr::null()) }.err().unwrap().code, Code::InvalidArgument);
    }

    #[test]
    fn a_shared_entry_outlives_its_ticket() {
        let comm = insert(alone()).unwrap();
        let held = shared(comm).unwrap();
        drop(remove(comm).unwrap());
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(held.comm.size(), 1);
    }
}

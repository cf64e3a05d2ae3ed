//! Tickets for communicators and requests.
//!
//! A `graccl_comm_t *` or `graccl_request_t *` is not an address but a number: a slot of a table, and a
//! generation that is new for everything that is put into either table. A look-up compares one word,
//! without a lock, and never reads what the caller's pointer points to. The ticket of something that
//! was destroyed never becomes valid again, and one kind's ticket is never valid for the other.
//!
//! Anything may be destroyed by any thread while others use it, so a user has to be seen by the thread
//! that destroys. A look at the ticket alone is not enough: the user may be stopped between the look and
//! the use. The ways out, and why it is the first:
//! - *A count in each slot*, added to before and taken from after: two atomic additions, 3.4 ns together
//!   where nobody else counts (measured: 0.6 ns for the look alone, 3.9 ns with the count). A destroy
//!   that waits for 0 also gives the caller a promise that is worth having: when it returns, no call
//!   touches the caller's buffers any more.
//! - *Memory that is never freed*, only reused, with the generation checked again under the
//!   communicator's own lock: saves the two additions, but ties this table to what a communicator
//!   is inside, and requests would need the same.
//! - *A word for each thread* that says what it uses, and `membarrier` in place of a fence: saves
//!   perhaps 2 ns, since the thread's word has to be found, and needs a registry of threads, a case for
//!   calls inside callbacks, and another way where the system has no `membarrier`.
//!
//! Slots are never freed, so a late count of a stopped thread goes to a slot that exists, finds another
//! ticket there, and is taken back.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::mem::{self, MaybeUninit};
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::request::Pending;
use crate::bucket::Bucketer;
use crate::{Code, Communicator, DataType, Error, Factor, Result};

/// A communicator: made by the graccl_comm_init functions, graccl_comm_split, graccl_comm_dup and
/// graccl_comm_shrink, ended by graccl_comm_destroy. What it points to is graccl's own affair.
pub struct graccl_comm_t {
    _private: (),
}

/// A call that was started and may not be over: made by the functions whose names end in _async, ended
/// by the graccl_request functions. What it points to is graccl's own affair.
///
/// Until the call is over its buffers are in use: send must not be written, recv neither read nor
/// written, and neither freed. The call is carried out by a thread of graccl's own and by threads that
/// wait for something; nobody has to ask for that. The collective calls of one communicator are carried
/// out in the order in which they were made, blocking and non-blocking ones together.
///
/// Every request must be ended once: by graccl_request_wait, by graccl_request_test or
/// graccl_request_wait_timeout that say that it is done, by graccl_request_set_callback or by
/// graccl_request_free. Using it again is GRACCL_INVALID_USAGE. There may be 1048576 at a time.
pub struct graccl_request_t {
    _private: (),
}

/// Gradients of a training step that are reduced in buckets: made by graccl_bucketer_create, ended by
/// graccl_bucketer_destroy. What it points to is graccl's own affair.
pub struct graccl_bucketer_t {
    _private: (),
}

/// A live communicator, and what C knows of it beyond that.
pub(super) struct Entry {
    pub comm: Communicator,
    last_error: Mutex<Option<String>>,
    made_ops: Mutex<MadeOps>,
}

/// Reductions with a factor, by their number.
#[derive(Default)]
pub(super) struct MadeOps {
    pub by_number: BTreeMap<c_int, (DataType, Factor)>,
    /// Made so far: no number is given twice.
    pub made: c_int,
}

/// A thread that panicked while it held one of these locks left nothing half done: they guard single
/// assignments and list operations.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    pub fn new(comm: Communicator) -> Entry {
        Entry { comm, last_error: Mutex::new(None), made_ops: Mutex::default() }
    }

    /// Text of the last call on it that failed.
    pub fn last_error(&self) -> MutexGuard<'_, Option<String>> {
        lock(&self.last_error)
    }

    pub fn made_ops(&self) -> MutexGuard<'_, MadeOps> {
        lock(&self.made_ops)
    }
}

/// Slots are made by the chunk, when the first of it is needed.
const CHUNK: usize = 64;
const CHUNKS: usize = 1 << 14;
/// Values that a table holds at a time. A power of two.
const SLOTS: usize = CHUNK * CHUNKS;

struct Slot<T> {
    /// The ticket that opens this slot; 0 when it is vacant.
    ticket: AtomicUsize,
    /// Who uses it: see [`Use`].
    users: AtomicU64,
    /// There while `ticket` is not 0, and after that as long as `users` is not 0.
    value: UnsafeCell<MaybeUninit<T>>,
}

/// How a value is used; one of its kind in [`Slot::users`].
#[derive(Clone, Copy)]
#[repr(u64)]
enum Use {
    /// A call, which may wait for others.
    Call = 1,
    /// A question, soon over.
    Glance = 1 << 32,
}

impl Use {
    /// Of the users, whether some are in calls.
    fn calls(users: u64) -> bool {
        users as u32 != 0
    }
}

/// Values by ticket.
struct Table<T: 'static> {
    chunks: [AtomicPtr<Slot<T>>; CHUNKS],
    vacant: Mutex<Vacant>,
}

struct Vacant {
    indices: Vec<u32>,
    /// Slots that were ever used: those below it are vacant or taken.
    used: usize,
}

// SAFETY: values are put in by one thread, shared between threads, and taken out by another; the ticket
// and the users decide who may.
unsafe impl<T: Send + Sync> Sync for Slot<T> {}

/// The right to use a value, until dropped. Who takes the value out of the table waits for that.
pub(super) struct Guard<T: 'static> {
    slot: &'static Slot<T>,
    how: Use,
}

impl<T> Deref for Guard<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `Table::get` found the ticket while this user was counted, so the value is there, and
        // `Table::take` does not move it while it is counted.
        unsafe { (*self.slot.value.get()).assume_init_ref() }
    }
}

impl<T> Drop for Guard<T> {
    #[inline]
    fn drop(&mut self) {
        // Release: what was done with the value comes before it is taken out.
        self.slot.users.fetch_sub(self.how as u64, Ordering::Release);
    }
}

/// A slot that is reserved and not filled yet.
pub(super) struct Vacancy<T: 'static> {
    table: &'static Table<T>,
    index: usize,
}

impl<T: Send + Sync> Vacancy<T> {
    /// Puts the value in: its ticket.
    fn fill(self, value: T) -> usize {
        // One for both tables: no two values have the same ticket.
        static GENERATION: AtomicUsize = AtomicUsize::new(1);
        let ticket = GENERATION.fetch_add(1, Ordering::Relaxed) * SLOTS + self.index;
        let slot = self.table.at(self.index).expect("a reserved slot is there");
        // SAFETY: the slot was vacant and is reserved for this one.
        unsafe { (*slot.value.get()).write(value) };
        // Release: whoever sees the ticket sees the value.
        slot.ticket.store(ticket, Ordering::Release);
        mem::forget(self);
        ticket
    }
}

impl<T> Drop for Vacancy<T> {
    fn drop(&mut self) {
        lock(&self.table.vacant).indices.push(self.index as u32);
    }
}

impl<T: Send + Sync> Table<T> {
    const fn new() -> Table<T> {
        Table {
            chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS],
            vacant: Mutex::new(Vacant { indices: Vec::new(), used: 0 }),
        }
    }

    /// The slot of this number, if its chunk exists.
    #[inline]
    fn at(&'static self, index: usize) -> Option<&'static Slot<T>> {
        let chunk = self.chunks[index / CHUNK].load(Ordering::Acquire);
        // SAFETY: a chunk has CHUNK slots and is never freed.
        (!chunk.is_null()).then(|| unsafe { &*chunk.add(index % CHUNK) })
    }

    /// Reserves a slot; `None` if there are no more.
    fn vacancy(&'static self) -> Option<Vacancy<T>> {
        let mut vacant = lock(&self.vacant);
        if let Some(index) = vacant.indices.pop() {
            return Some(Vacancy { table: self, index: index as usize });
        }
        let index = vacant.used;
        if index == SLOTS {
            return None;
        }
        if index.is_multiple_of(CHUNK) {
            let slot = || Slot {
                ticket: AtomicUsize::new(0),
                users: AtomicU64::new(0),
                value: UnsafeCell::new(MaybeUninit::uninit()),
            };
            let chunk: Box<[Slot<T>]> = std::iter::repeat_with(slot).take(CHUNK).collect();
            self.chunks[index / CHUNK].store(Box::leak(chunk).as_mut_ptr(), Ordering::Release);
        }
        vacant.used += 1;
        Some(Vacancy { table: self, index })
    }

    /// The value of `ticket`, which stays where it is until the guard is dropped.
    #[inline]
    fn get(&'static self, ticket: usize, how: Use) -> Option<Guard<T>> {
        let slot = self.at(ticket % SLOTS)?;
        // A dead ticket is not counted: the slot may be another's by now.
        if ticket == 0 || slot.ticket.load(Ordering::Relaxed) != ticket {
            return None;
        }
        // Sequentially consistent, as in `take`: either this thread sees that the ticket is dead, or that
        // one sees this user.
        slot.users.fetch_add(how as u64, Ordering::SeqCst);
        let guard = Guard { slot, how };
        (slot.ticket.load(Ordering::SeqCst) == ticket).then_some(guard)
    }

    /// Takes the value of `ticket` out: from now on its ticket is dead. `interrupt` is told if calls are
    /// under way; then waits until nobody uses the value any more.
    fn take(&'static self, ticket: usize, interrupt: impl FnOnce(&T)) -> Option<T> {
        let index = ticket % SLOTS;
        let slot = self.at(index).filter(|_| ticket != 0)?;
        // Of several threads that take it, one does.
        slot.ticket.compare_exchange(ticket, 0, Ordering::SeqCst, Ordering::Relaxed).ok()?;
        if Use::calls(slot.users.load(Ordering::SeqCst)) {
            // SAFETY: it was there until here, and only this thread may move it.
            interrupt(unsafe { (*slot.value.get()).assume_init_ref() });
        }
        let mut pause = Duration::from_micros(1);
        // Acquire: what the last user did with the value.
        while slot.users.load(Ordering::Acquire) != 0 {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        // SAFETY: as above; there are no users, and there come no more.
        let value = unsafe { (*slot.value.get()).assume_init_read() };
        drop(Vacancy { table: self, index });
        Some(value)
    }
}

static COMMS: Table<Entry> = Table::new();
static REQUESTS: Table<Pending> = Table::new();
static BUCKETERS: Table<Bucketer> = Table::new();

/// Puts a communicator into the table and returns its ticket.
pub(super) fn insert(entry: Entry) -> Result<*mut graccl_comm_t> {
    let vacancy = COMMS.vacancy().ok_or_else(|| {
        Error::usage(format!("{SLOTS} communicators are alive in this process"))
            .hint("destroy those that are no longer used")
    })?;
    Ok(ptr::without_provenance_mut(vacancy.fill(entry)))
}

/// The communicator of `comm`, for a call: a destroy aborts the call.
#[inline]
pub(super) fn live(comm: *const graccl_comm_t) -> Result<Guard<Entry>> {
    COMMS.get(comm.addr(), Use::Call).ok_or_else(|| dead(comm))
}

/// The same for a question that is soon answered: a destroy waits for it.
pub(super) fn glance(comm: *const graccl_comm_t) -> Result<Guard<Entry>> {
    COMMS.get(comm.addr(), Use::Glance).ok_or_else(|| dead(comm))
}

/// Takes `comm` out of the table. Calls under way on it are aborted and have returned.
pub(super) fn remove(comm: *const graccl_comm_t) -> Result<Entry> {
    COMMS.take(comm.addr(), |entry| entry.comm.abort()).ok_or_else(|| dead(comm))
}

/// Reserves a place for a request, before its call is started: afterwards is too late to fail.
pub(super) fn request_vacancy() -> Result<Vacancy<Pending>> {
    REQUESTS.vacancy().ok_or_else(|| {
        Error::usage(format!("{SLOTS} requests are alive in this process"))
            .hint("end them with graccl_request_wait or another of the graccl_request functions")
    })
}

/// Puts a request into the table and returns its ticket.
pub(super) fn insert_request(vacancy: Vacancy<Pending>, pending: Pending) -> *mut graccl_request_t {
    ptr::without_provenance_mut(vacancy.fill(pending))
}

/// The request of `request`, for a short time: who ends it waits meanwhile.
pub(super) fn request(request: *const graccl_request_t) -> Result<Guard<Pending>> {
    REQUESTS.get(request.addr(), Use::Glance).ok_or_else(|| dead_request(request))
}

/// Takes `request` out of the table.
pub(super) fn take_request(request: *const graccl_request_t) -> Result<Pending> {
    REQUESTS.take(request.addr(), |_| ()).ok_or_else(|| dead_request(request))
}

/// Reserves a place for a bucketer, before the ranks make it.
pub(super) fn bucketer_vacancy() -> Result<Vacancy<Bucketer>> {
    BUCKETERS.vacancy().ok_or_else(|| {
        Error::usage(format!("{SLOTS} bucketers are alive in this process"))
            .hint("destroy those that are no longer used")
    })
}

/// Puts a bucketer into the table and returns its ticket.
pub(super) fn insert_bucketer(vacancy: Vacancy<Bucketer>, bucketer: Bucketer) -> *mut graccl_bucketer_t {
    ptr::without_provenance_mut(vacancy.fill(bucketer))
}

/// The bucketer of `bucketer`: a destroy waits until it is no longer used.
pub(super) fn bucketer(bucketer: *const graccl_bucketer_t) -> Result<Guard<Bucketer>> {
    BUCKETERS.get(bucketer.addr(), Use::Call).ok_or_else(|| dead_bucketer(bucketer))
}

/// Takes `bucketer` out of the table.
pub(super) fn take_bucketer(bucketer: *const graccl_bucketer_t) -> Result<Bucketer> {
    BUCKETERS.take(bucketer.addr(), |_| ()).ok_or_else(|| dead_bucketer(bucketer))
}

#[cold]
#[inline(never)]
fn dead_bucketer(bucketer: *const graccl_bucketer_t) -> Error {
    if bucketer.is_null() {
        return Error::argument("bucketer is NULL");
    }
    Error::new(Code::InvalidUsage, "bucketer is not a live bucketer")
        .hint("it was destroyed before, or never made by graccl_bucketer_create")
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

#[cold]
#[inline(never)]
fn dead_request(request: *const graccl_request_t) -> Error {
    if request.is_null() {
        return Error::argument("request is NULL");
    }
    Error::new(Code::InvalidUsage, "request is not a live request").hint(
        "it was waited for, freed or handed over before, or never made by a function that ends in _async",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    use super::*;
    use crate::{Config, UniqueId};

    fn alone() -> Entry {
        Entry::new(Communicator::init_rank(&UniqueId::create().unwrap(), 0, 1, &Config::default()).unwrap())
    }

    #[test]
    fn a_ticket_dies_with_its_communicator() {
        let first = insert(alone()).unwrap();
        assert_eq!(live(first).unwrap().comm.size(), 1);
        drop(remove(first).unwrap());
        let second = insert(alone()).unwrap();
        assert_ne!(first, second);
        assert!(live(first).is_err() && live(second).is_ok());
        assert_eq!(remove(first).err().unwrap().code, Code::InvalidUsage);
        assert_eq!(glance(first).err().unwrap().code, Code::InvalidUsage);
        assert_eq!(request(second.cast()).err().unwrap().code, Code::InvalidUsage);
        drop(remove(second).unwrap());
    }

    #[test]
    fn wild_pointers_are_refused() {
        let on_the_stack = 0u64;
        for wild in [1, SLOTS - 1, SLOTS, usize::MAX, (&raw const on_the_stack).addr()] {
            assert_eq!(live(ptr::without_provenance(wild)).err().unwrap().code, Code::InvalidUsage);
            assert_eq!(remove(ptr::without_provenance(wild)).err().unwrap().code, Code::InvalidUsage);
            assert_eq!(request(ptr::without_provenance(wild)).err().unwrap().code, Code::InvalidUsage);
        }
        assert_eq!(live(ptr::null()).err().unwrap().code, Code::InvalidArgument);
        assert_eq!(request(ptr::null()).err().unwrap().code, Code::InvalidArgument);
    }

    #[test]
    fn a_table_grows_and_reuses() {
        static TABLE: Table<Arc<usize>> = Table::new();
        let counted = Arc::new(7);
        let tickets: Vec<usize> =
            (0..3 * CHUNK + 1).map(|_| TABLE.vacancy().unwrap().fill(counted.clone())).collect();
        assert_eq!(Arc::strong_count(&counted), tickets.len() + 1);
        assert!(tickets.iter().all(|&ticket| **TABLE.get(ticket, Use::Glance).unwrap() == 7));
        for &ticket in &tickets {
            assert_eq!(*TABLE.take(ticket, |_| panic!("nobody uses it")).unwrap(), 7);
            assert!(TABLE.take(ticket, |_| ()).is_none() && TABLE.get(ticket, Use::Call).is_none());
        }
        assert_eq!(Arc::strong_count(&counted), 1);
        // Reserved and not filled: vacant again.
        drop(TABLE.vacancy().unwrap());
        let again: Vec<usize> =
            (0..3 * CHUNK + 1).map(|_| TABLE.vacancy().unwrap().fill(counted.clone())).collect();
        assert!(again.iter().all(|ticket| !tickets.contains(ticket)));
        assert_eq!(lock(&TABLE.vacant).used, 3 * CHUNK + 1);
    }

    #[test]
    fn taking_interrupts_calls_and_waits_for_every_user() {
        static TABLE: Table<AtomicBool> = Table::new();
        for (how, interrupts) in [(Use::Call, true), (Use::Glance, false)] {
            let ticket = TABLE.vacancy().unwrap().fill(AtomicBool::new(false));
            let user = TABLE.get(ticket, how).unwrap();
            let left = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    let end = Instant::now() + Duration::from_millis(if interrupts { 10_000 } else { 20 });
                    while !user.load(Ordering::Relaxed) && Instant::now() < end {
                        std::thread::yield_now();
                    }
                    left.store(true, Ordering::Relaxed);
                    drop(user);
                });
                let value = TABLE.take(ticket, |value| value.store(true, Ordering::Relaxed)).unwrap();
                assert!(left.load(Ordering::Relaxed), "the user was waited for");
                assert_eq!(value.into_inner(), interrupts);
            });
        }
    }

    /// Users of every kind race with a taker, again and again on the same slot: nobody sees a value
    /// that is gone, and no count is lost.
    #[test]
    fn users_race_with_takers() {
        static TABLE: Table<Box<(u64, u64)>> = Table::new();
        let current = AtomicUsize::new(0);
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            for how in [Use::Call, Use::Glance] {
                let (current, over) = (&current, &over);
                s.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        if let Some(value) = TABLE.get(current.load(Ordering::Relaxed), how) {
                            assert_eq!(value.0, !value.1);
                        }
                    }
                });
            }
            for n in 0..20_000u64 {
                let ticket = TABLE.vacancy().unwrap().fill(Box::new((n, !n)));
                current.store(ticket, Ordering::Relaxed);
                if n % 64 == 0 {
                    std::thread::yield_now();
                }
                assert_eq!(TABLE.take(ticket, |_| ()).unwrap().0, n);
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(lock(&TABLE.vacant).used, 1, "one slot served all");
        assert_eq!(TABLE.at(0).unwrap().users.load(Ordering::Relaxed), 0);
    }
}

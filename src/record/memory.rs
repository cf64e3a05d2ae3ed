//! The process's record: one memfd, mapped for as long as the process lives.

use std::fs::File;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use super::layout::*;
use super::trace;
use crate::log::{Level, log};
use crate::{Error, Result};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline]
pub fn now() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

#[inline]
fn clock(id: libc::clockid_t) -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is writable; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(id, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The record of this process.
pub struct Record {
    base: *mut u8,
    len: usize,
    /// Mask of the ring's index.
    mask: u64,
    pub file: File,
    /// This process is a child of the one that the record speaks of.
    forked: AtomicBool,
    /// Where the next free entry may be.
    hint: AtomicU32,
    /// Communicators opened so far, and those that are open.
    pub opened: AtomicU32,
    pub live: AtomicU32,
}

// SAFETY: an address range that stays mapped; what lies there is atomic.
unsafe impl Send for Record {}
unsafe impl Sync for Record {}

/// The record in use; null before the first communicator, and in a child of fork.
static RECORD: AtomicPtr<Record> = AtomicPtr::new(std::ptr::null_mut());

/// The record, if there is one.
pub fn current() -> Option<&'static Record> {
    // SAFETY: what is put there is never freed.
    unsafe { RECORD.load(Ordering::Acquire).as_ref() }
}

/// The record, made by the first call. `None` where the system refuses: that was logged, and every
/// later call tries again.
pub fn record() -> Option<&'static Record> {
    if let Some(r) = current() {
        return Some(r);
    }
    // A child of fork may find the lock held for ever by a thread that it does not have. It makes do
    // without; so does a thread that comes while another one makes the record.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.try_lock().ok()?;
    if let Some(r) = current() {
        return Some(r);
    }
    match Record::new() {
        Ok(r) => {
            let r = Box::leak(Box::new(r));
            RECORD.store(r, Ordering::Release);
            static HOOKS: Once = Once::new();
            HOOKS.call_once(|| {
                // SAFETY: both functions stay for as long as the library is loaded, and the C library
                // forgets them when it is unloaded.
                unsafe {
                    libc::pthread_atfork(None, None, Some(in_child));
                    libc::atexit(at_exit);
                }
            });
            Some(r)
        }
        Err(e) => {
            log(Level::Warn, None, format_args!("`graccl status` will not see this process: {e}"));
            None
        }
    }
}

/// A child shares its parent's mapping and must not write there: it gets zeros of its own in its place.
extern "C" fn in_child() {
    let Some(r) = current() else { return };
    r.forked.store(true, Ordering::Relaxed);
    RECORD.store(std::ptr::null_mut(), Ordering::Release);
    // SAFETY: replaces our own mapping, which only atomics look at. Both calls are safe after fork. If
    // the second mapping fails the first is still there.
    unsafe {
        libc::mmap(
            r.base.cast(),
            r.len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        );
        // Readers would take the child for its parent. The number may be used again: nothing of the
        // child uses `file`, because `current` finds no record there.
        libc::close(r.file.as_raw_fd());
    }
}

extern "C" fn at_exit() {
    if let Some(r) = current() {
        trace::write(r);
    }
}

impl Record {
    fn new() -> Result<Record> {
        let ring = if trace::wanted().is_some() { RING_TRACE } else { RING };
        let len = total(ring);
        let name = std::ffi::CString::new(NAME).expect("a name without zeros");
        // SAFETY: a plain system call with a valid string.
        let raw = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if raw < 0 {
            return Err(Error::os("memfd_create failed"));
        }
        // SAFETY: just made, owned by nobody else.
        let file = unsafe { File::from_raw_fd(raw) };
        file.set_len(len as u64).map_err(|e| Error::io("cannot size the memfd", &e))?;
        // SAFETY: a fresh mapping of our own file.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                raw,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::os(format!("cannot map {} MiB", len >> 20))
                .hint("raise the limit on virtual memory (`ulimit -v`)"));
        }
        // Nobody can shrink it under us, nor write into it: only the mapping that is there already can.
        // Kernels before 5.1 do not know the latter: harmless.
        for seals in [libc::F_SEAL_SHRINK | libc::F_SEAL_GROW, libc::F_SEAL_FUTURE_WRITE, libc::F_SEAL_SEAL] {
            // SAFETY: a plain system call on our own descriptor.
            unsafe { libc::fcntl(raw, libc::F_ADD_SEALS, seals) };
        }
        let r = Record {
            base: base.cast(),
            len,
            mask: ring as u64 - 1,
            file,
            forked: AtomicBool::new(false),
            hint: AtomicU32::new(0),
            opened: AtomicU32::new(0),
            live: AtomicU32::new(0),
        };
        let h = r.header();
        h.layout.store(LAYOUT, Ordering::Relaxed);
        h.pid.store(std::process::id(), Ordering::Relaxed);
        h.began.store(now(), Ordering::Relaxed);
        h.wall.store(clock(libc::CLOCK_REALTIME), Ordering::Relaxed);
        h.ticks.store(ticks(), Ordering::Relaxed);
        h.ring.store(ring as u64, Ordering::Relaxed);
        h.host.set(&hostname());
        h.program.set(&program());
        h.version.set(env!("CARGO_PKG_VERSION"));
        // 0 is no plan.
        h.plans.0.store(1, Ordering::Relaxed);
        h.magic.store(MAGIC, Ordering::Release);
        Ok(r)
    }

    /// # Safety
    /// A `T` fits at `at`, suitably aligned, and is made of atomics.
    unsafe fn at<T>(&self, at: usize) -> &T {
        debug_assert!(at + size_of::<T>() <= self.len);
        // SAFETY: the caller's promise; the mapping stays, and zeros are a value of every atomic.
        unsafe { &*self.base.add(at).cast::<T>() }
    }

    pub fn header(&self) -> &Header {
        // SAFETY: it lies at the beginning.
        unsafe { self.at(0) }
    }

    fn used(&self, i: usize) -> &AtomicU32 {
        assert!(i < ENTRIES);
        // SAFETY: one of `ENTRIES` words.
        unsafe { self.at(USED_AT + i * size_of::<u32>()) }
    }

    pub fn entry(&self, i: usize) -> &Entry {
        assert!(i < ENTRIES);
        // SAFETY: one of `ENTRIES` entries.
        unsafe { self.at(ENTRIES_AT + i * ENTRY) }
    }

    pub fn plan(&self, id: u32) -> &PlanSlot {
        // SAFETY: one of `PLANS` places.
        unsafe { self.at(PLANS_AT + id as usize % PLANS * size_of::<PlanSlot>()) }
    }

    pub fn forked(&self) -> bool {
        self.forked.load(Ordering::Relaxed)
    }

    /// Takes a free entry, which readers see once it is [`publish`](Self::publish)ed.
    pub fn take(&self) -> Option<usize> {
        let hint = self.hint.load(Ordering::Relaxed) as usize;
        let i = (0..ENTRIES).map(|i| (hint + i) % ENTRIES).find(|&i| {
            let w = self.used(i).load(Ordering::Relaxed);
            w & USED_STATE == FREE
                && self.used(i).compare_exchange(w, w + FILLING, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        self.hint.store(i as u32 + 1, Ordering::Relaxed);
        Some(i)
    }

    /// Hides an entry of ours from readers, to be filled anew.
    pub fn hide(&self, i: usize) {
        self.turn(i, FILLING);
        std::sync::atomic::fence(Ordering::Release);
    }

    pub fn publish(&self, i: usize) {
        self.turn(i, LIVE);
    }

    pub fn free(&self, i: usize) {
        self.turn(i, FREE);
        // Low ones first, so that the record stays small.
        self.hint.fetch_min(i as u32, Ordering::Relaxed);
    }

    /// Another state, and another use: no word is seen twice.
    fn turn(&self, i: usize, state: u32) {
        let w = self.used(i).load(Ordering::Relaxed) & !USED_STATE;
        self.used(i).store(w.wrapping_add(USED_STATE + 1) | state, Ordering::Release);
    }

    /// Writes one event. Any thread.
    pub fn event(&self, kind: super::Kind, time: u64, call: u64, bytes: u64, who: u64) {
        let n = self.header().head.0.fetch_add(1, Ordering::Relaxed);
        let at = RING_AT + (n & self.mask) as usize * size_of::<EventSlot>();
        // SAFETY: the index is masked to the ring's size.
        let e: &EventSlot = unsafe { self.at(at) };
        let lap = (n / (self.mask + 1)) & 0xff;
        e.head.store(0, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::Release);
        e.time.store(time, Ordering::Relaxed);
        e.call.store(call, Ordering::Relaxed);
        e.who.store(who, Ordering::Relaxed);
        let head = (kind as u64) << 56 | lap << 48 | bytes.min(EVENT_BYTES);
        e.head.store(head, Ordering::Release);
    }

    /// A place for a plan, and the number it goes by from now on.
    pub fn next_plan(&self) -> u32 {
        loop {
            let n: &AtomicU64 = &self.header().plans.0;
            let id = n.fetch_add(1, Ordering::Relaxed) as u32 & PLAN_MASK;
            if id != 0 {
                return id;
            }
        }
    }
}

/// The start of this process in clock ticks since the machine's.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold anything; field 22 is the 20th behind it.
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    field.and_then(|f| f.parse().ok()).unwrap_or(0)
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or("unknown".into(), |h| h.trim().into())
}

/// The command line, without its arguments' secrets: the program and, of an interpreter, the script.
fn program() -> String {
    let line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let mut words = line.split(|&b| b == 0).map(String::from_utf8_lossy);
    let name = |w: &str| w.rsplit('/').next().unwrap_or(w).to_string();
    let first = words.next().map(|w| name(&w)).unwrap_or_default();
    let script = words.find(|w| !w.starts_with('-')).filter(|_| first.starts_with("python"));
    match script {
        Some(s) => format!("{first} {}", name(&s)),
        None => first,
    }
}

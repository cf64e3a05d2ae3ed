//! How the record lies in memory. Whoever changes it raises [`LAYOUT`].
//!
//! ```text
//! Header | used: a word for every entry | plans | entries | ring of events
//! ```
//!
//! Everything is atomic, so that neither threads nor readers in other processes make a data race of
//! it. What is longer than a word is guarded by a version: odd while somebody writes.

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// Name of the memfd, by which readers find it among a process's descriptors.
pub const NAME: &str = "graccl-status";
/// "graccl" and 0, read as a little-endian number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"graccl\0\0");
/// Version of this layout. Readers refuse others.
pub const LAYOUT: u32 = 1;

/// Communicators that a process may record at a time.
pub const ENTRIES: usize = 4096;
/// Texts of calls that are kept; the oldest is written over.
pub const PLANS: usize = 8192;
/// Calls of a communicator that may be under way at a time and all be seen.
pub const OPEN: usize = 16;
/// Ranks waited for that are recorded.
pub const PEERS: usize = 8;
/// Events kept; a power of two.
pub const RING: usize = 8192;
/// Events kept when a trace is wanted.
pub const RING_TRACE: usize = 1 << 20;
pub const RUNS: usize = 256;
pub const HOST_RUNS: usize = 512;
pub const HOSTS: usize = 64;
/// More ranks than this are taken for garbage by readers.
pub const SIZE_MAX: u32 = 1 << 24;

/// A plan's number in a word: its place and how often that was used before. 0: none.
pub const PLAN_MASK: u32 = (1 << 30) - 1;
/// In the low half of a call's word: the number is this rank's own and not that of a collective.
pub const OWN: u32 = 1 << 30;
/// In the low half of a call's word: the time at which it began is known.
pub const TIMED: u32 = 1 << 31;

/// A text of up to `N` bytes, cut where it is longer.
#[repr(C)]
pub struct Text<const N: usize> {
    len: AtomicU32,
    bytes: [AtomicU8; N],
}

impl<const N: usize> Text<N> {
    /// Under the lock of whatever it is part of.
    pub fn set(&self, text: &str) {
        let mut len = text.len().min(N);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        for (to, from) in self.bytes.iter().zip(text.bytes().take(len)) {
            to.store(from, Ordering::Relaxed);
        }
        self.len.store(len as u32, Ordering::Relaxed);
    }
}

#[repr(C, align(64))]
pub struct Header {
    /// Written last.
    pub magic: AtomicU64,
    pub layout: AtomicU32,
    /// As the process itself sees it.
    pub pid: AtomicU32,
    /// `CLOCK_MONOTONIC` when the record began, ns. All times of the record are of that clock.
    pub began: AtomicU64,
    /// `CLOCK_REALTIME` at the same moment, ns.
    pub wall: AtomicU64,
    /// Field 22 of /proc/self/stat: with the pid it tells a process from its children.
    pub ticks: AtomicU64,
    /// Events that the ring holds, a power of two.
    pub ring: AtomicU64,
    pub host: Text<76>,
    pub program: Text<508>,
    pub version: Text<28>,
    /// Events written so far.
    pub head: Line,
    /// Plans described so far.
    pub plans: Line,
}

/// A counter on a cache line of its own.
#[repr(C, align(64))]
pub struct Line(pub AtomicU64);

/// A call's shape.
#[repr(C, align(64))]
pub struct PlanSlot {
    pub version: AtomicU32,
    /// The number that it goes by now.
    pub id: AtomicU32,
    pub bytes: AtomicU64,
    /// Bits of an `f64`: busbw / algbw.
    pub bus: AtomicU64,
    pub tiles: AtomicU32,
    pub algorithm: Text<60>,
    pub text: Text<252>,
}

/// One communicator.
#[repr(C, align(64))]
pub struct Entry {
    pub hot: Hot,
    pub identity: Identity,
    pub stuck: Stuck,
    pub error: Failure,
}

/// What every call writes. A word of a call: number << 32 | flags | plan.
#[repr(C, align(64))]
pub struct Hot {
    /// Calls under way, at number % [`OPEN`]; 0: none.
    pub open: [AtomicU64; OPEN],
    /// The last collective that began, and the last call with a number of this rank's own.
    pub last: [AtomicU64; 2],
    pub calls: AtomicU64,
    pub bytes: AtomicU64,
    /// When the open calls began, for those that are timed.
    pub since: [AtomicU64; OPEN],
    /// A [`State`](super::State).
    pub state: AtomicU32,
}

/// Valid while the entry's word in `used` stays the same.
#[repr(C, align(64))]
pub struct Identity {
    pub job: AtomicU64,
    pub context: AtomicU64,
    pub parent: AtomicU64,
    pub has_parent: AtomicU32,
    pub rank: AtomicU32,
    pub size: AtomicU32,
    pub runs: AtomicU32,
    pub host_runs: AtomicU32,
    pub hosts: AtomicU32,
    pub opened: AtomicU64,
    /// Ranks `at..` up to the next run's are `first`, `first + step`, ... of the job.
    pub run: [Run; RUNS],
    /// Ranks `at..` up to the next run's are on this host.
    pub host_run: [HostRun; HOST_RUNS],
    pub host: [Text<76>; HOSTS],
}

#[repr(C)]
pub struct Run {
    pub at: AtomicU32,
    pub first: AtomicU32,
    /// Wrapping.
    pub step: AtomicU32,
}

#[repr(C)]
pub struct HostRun {
    pub at: AtomicU32,
    pub host: AtomicU32,
}

/// Where a call stands still.
#[repr(C, align(64))]
pub struct Stuck {
    pub version: AtomicU32,
    /// 0: nothing is stuck.
    pub on: AtomicU32,
    /// Half words as in a call's word.
    pub seq: AtomicU32,
    pub lane: AtomicU32,
    pub tile: AtomicU32,
    pub op: AtomicU32,
    pub npeers: AtomicU32,
    pub peers: [AtomicU32; PEERS],
    pub since: AtomicU64,
    /// When the rank last looked whether it can go on.
    pub looked: AtomicU64,
    /// ns from `since` on; `u64::MAX`: none.
    pub limit: AtomicU64,
    pub text: Text<252>,
}

#[repr(C, align(64))]
pub struct Failure {
    pub version: AtomicU32,
    pub code: AtomicU32,
    /// 0: never.
    pub when: AtomicU64,
    pub text: Text<1020>,
}

/// One event.
#[repr(C, align(32))]
pub struct EventSlot {
    /// kind << 56 | lap of the ring << 48 | bytes. Written last; 0 while the rest is written.
    pub head: AtomicU64,
    pub time: AtomicU64,
    /// As [`Hot::open`].
    pub call: AtomicU64,
    /// number of the communicator in the process << 32 | peer (`u32::MAX`: none).
    pub who: AtomicU64,
}

pub const EVENT_BYTES: u64 = (1 << 48) - 1;

pub const ENTRY: usize = 16 << 10;
pub const USED_AT: usize = 4096;
pub const PLANS_AT: usize = USED_AT + ENTRIES * size_of::<u32>();
pub const ENTRIES_AT: usize = PLANS_AT + PLANS * size_of::<PlanSlot>();
pub const RING_AT: usize = ENTRIES_AT + ENTRIES * ENTRY;

const _: () = assert!(size_of::<Header>() <= USED_AT && size_of::<Entry>() <= ENTRY);
const _: () = assert!(PLANS_AT.is_multiple_of(64) && ENTRIES_AT.is_multiple_of(64));
const _: () = assert!(size_of::<EventSlot>() == 32 && offset_of!(Hot, open) == 0);

/// Bytes of a record whose ring has `ring` events.
pub const fn total(ring: usize) -> usize {
    RING_AT + ring * size_of::<EventSlot>()
}

/// Runs `write` with the version odd. False, and nothing done, where somebody else is writing.
pub fn guarded(version: &AtomicU32, write: impl FnOnce()) -> bool {
    let v = version.load(Ordering::Relaxed);
    if v & 1 != 0
        || version.compare_exchange(v, v.wrapping_add(1), Ordering::Acquire, Ordering::Relaxed).is_err()
    {
        return false;
    }
    // No store of `write` may be seen before the odd version.
    fence(Ordering::Release);
    write();
    version.store(v.wrapping_add(2), Ordering::Release);
    true
}

/// State of an entry, in the low bits of its word in `used`; above them a count of its uses.
pub const USED_STATE: u32 = 3;
pub const FREE: u32 = 0;
pub const FILLING: u32 = 1;
pub const LIVE: u32 = 2;

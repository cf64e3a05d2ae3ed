//! Which communicators keep memory for their messages.
//!
//! Slots of shared memory take memory once they are used, and keep it, so that the next call finds them in
//! the cache. A process with a thousand communicators would keep them all, although it uses few at a
//! time. So those whose slots take memory stand in a list, and when the sum grows too large the ones that
//! made no call for the longest give it back. The list is only looked at when a communicator begins to
//! take memory: a call that is prepared knows nothing of it. Who gave back its slots has forgotten the
//! short way to its prepared calls ([`Inner::cool`](super::inner::Inner::cool)), and takes the long one
//! once, which comes by here.
//!
//! "Made no call" is found as a clock does it: a communicator whose calls have gone on since it was last
//! looked at stays, behind all others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Weak};

use super::fabric::lock;
use super::{Phase, Shared};

/// Bytes that the slots of a rank may take. Two ranks share a slot, and each counts half of it.
const BYTES: usize = 32 << 20;
/// So many communicators keep theirs in any case.
const KEEP: usize = 8;
/// Ranks of one process that count: threads, or communicators that do not come from one another.
const RANKS: usize = 8;

struct Entry {
    comm: Weak<Shared>,
    bytes: usize,
    /// What [`Inner::calls`](super::inner::Inner::calls) was when it was last looked at.
    calls: u32,
}

#[derive(Default)]
struct List {
    /// The one that is looked at next is in front.
    entries: VecDeque<Entry>,
    bytes: usize,
}

static LIST: Mutex<List> = Mutex::new(List { entries: VecDeque::new(), bytes: 0 });
static FABRICS: AtomicUsize = AtomicUsize::new(0);

/// One of the process's ranks, while it lives.
pub struct Rank(());

impl Rank {
    pub fn new() -> Rank {
        FABRICS.fetch_add(1, Ordering::Relaxed);
        Rank(())
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        FABRICS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `comm`, which the caller has locked, is about to take `bytes` more.
#[cold]
pub fn take(comm: &Weak<Shared>, bytes: usize, calls: u32) {
    let ranks = FABRICS.load(Ordering::Relaxed).clamp(1, RANKS);
    let mut list = lock(&LIST);
    list.entries.push_back(Entry { comm: comm.clone(), bytes, calls });
    list.bytes += bytes;
    // Every one may turn out to be in use, once.
    let mut looks = 2 * list.entries.len();
    while list.bytes > BYTES * ranks && list.entries.len() > KEEP * ranks && looks > 0 {
        looks -= 1;
        let Some(mut e) = list.entries.pop_front() else { break };
        if cool(&mut e) {
            list.bytes -= e.bytes;
        } else {
            list.entries.push_back(e);
        }
    }
}

/// True if it takes nothing any more.
fn cool(e: &mut Entry) -> bool {
    let Some(shared) = e.comm.upgrade() else { return true };
    // Whoever holds it is using it: never waited for, so that the order of the locks does not matter.
    let Some(mut phase) = shared.phase.try_lock() else { return false };
    match &mut *phase {
        Phase::Ready(inner) => {
            let calls = std::mem::replace(&mut e.calls, inner.calls());
            calls == e.calls && inner.cool()
        }
        _ => true,
    }
}

/// A communicator has ended.
pub fn forget(comm: &Shared) {
    let mut list = lock(&LIST);
    let List { entries, bytes } = &mut *list;
    entries.retain(|e| {
        let other = !std::ptr::eq(e.comm.as_ptr(), comm);
        *bytes -= if other { 0 } else { e.bytes };
        other
    });
}

//! The progress thread: one for the process, made when the first call is started without waiting. It drives
//! the communicators that have calls under way and nobody who waits for them, and sleeps when there are
//! none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::drive::{self, Turn};
use super::fabric::{Fabric, lock};
use super::pause::{self, Need, Pause};
use super::words::Word;
use super::{Phase, Shared, inner};
use crate::log::{Level, log};
use crate::memory::arena;

/// How long ranks that may wait for a failed one are told.
const ANNOUNCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    comms: Vec<Arc<Shared>>,
    /// Families whose ranks are to be told of a failure: those that were not yet, until when.
    tell: Vec<(Arc<Fabric>, Vec<usize>, Instant)>,
    changes: u64,
}

struct Progress {
    state: Mutex<State>,
    more: Condvar,
}

/// The thread, started if need be; `None` if it cannot be.
fn progress() -> Option<&'static Progress> {
    static ONE: OnceLock<Option<&'static Progress>> = OnceLock::new();
    *ONE.get_or_init(|| {
        let p: &'static Progress =
            Box::leak(Box::new(Progress { state: Mutex::default(), more: Condvar::new() }));
        let spawned = std::thread::Builder::new().name("graccl-progress".into()).spawn(move || {
            // Signals are the application's.
            // SAFETY: a full set, for this thread only.
            unsafe {
                let mut all = std::mem::zeroed();
                libc::sigfillset(&mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
            }
            ask_for_short_turns();
            // Whatever it was: those that wait must not wait for ever.
            while catch_unwind(AssertUnwindSafe(|| p.work())).is_err() {
                p.give_up();
            }
        });
        if let Err(e) = &spawned {
            log(
                Level::Warn,
                None,
                format_args!("no progress thread ({e}): calls progress in test and wait only"),
            );
        }
        spawned.is_ok().then_some(p)
    })
}

/// A message may come while the program keeps every core busy. Who asks for shorter turns than others gets a core at
/// once when it wakes, where it has not had more than its share (Linux 6.12; older ones ignore it).
fn ask_for_short_turns() {
    /// The shortest that there are, ns.
    const TURN: u64 = 100_000;
    // SAFETY: all zeros is one; the calls are about this thread, and read and write one structure of the size that they
    // are told.
    unsafe {
        let mut attr: libc::sched_attr = std::mem::zeroed();
        let size = size_of_val(&attr) as u32;
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) != 0 {
            return;
        }
        // Somebody who has chosen another policy has reasons.
        if attr.sched_policy == libc::SCHED_OTHER as u32 {
            attr.sched_runtime = TURN;
            // It need not succeed.
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0);
        }
    }
}

/// Has a communicator with calls under way driven. Its lock is held, and `listed` is its mark.
pub fn list(shared: &Arc<Shared>, listed: &mut bool) {
    if !*listed && let Some(p) = progress() {
        *listed = true;
        let mut s = lock(&p.state);
        s.comms.push(shared.clone());
        s.changes += 1;
        p.more.notify_one();
    }
}

/// Nobody waits for this communicator any more.
pub fn resume(shared: &Arc<Shared>) {
    if shared.listed_hint.load(Ordering::Relaxed)
        && let Ok(own) = arena()
    {
        pause::wake(own);
    }
}

/// Tells the ranks `to` of a failure; those that are not connected yet, or cannot take it now, within some
/// seconds.
pub fn announce(fabric: &Arc<Fabric>, word: Word, to: &[u32]) {
    let missing = fabric.announce(word, to);
    if !missing.is_empty()
        && let Some(p) = progress()
    {
        let mut s = lock(&p.state);
        s.tell.push((fabric.clone(), missing, Instant::now() + ANNOUNCE));
        s.changes += 1;
        p.more.notify_one();
    }
}

impl Progress {
    fn work(&self) {
        loop {
            let (comms, changes) = {
                let mut s = lock(&self.state);
                while s.comms.is_empty() && s.tell.is_empty() {
                    s = self.more.wait(s).unwrap_or_else(|e| e.into_inner());
                }
                (s.comms.clone(), s.changes)
            };
            self.drive(&comms, changes);
        }
    }

    /// After a panic of this thread that was not one of a communicator's own: fails all that it drove.
    fn give_up(&self) {
        let comms = {
            let mut s = lock(&self.state);
            s.tell.clear();
            s.changes += 1;
            s.comms.clone()
        };
        for c in comms {
            if let Phase::Ready(inner) = &mut *c.phase.lock() {
                inner.fail(&inner::panicked());
            }
        }
    }

    /// Until the list changes.
    fn drive(&self, comms: &[Arc<Shared>], changes: u64) {
        let mut need = Need::default();
        let mut pause: Option<Pause> = None;
        loop {
            need.clear();
            let mut moved = false;
            for c in comms {
                if c.waiters.load(Ordering::Relaxed) > 0 {
                    continue;
                }
                match drive::turn(c, Some(&mut need)) {
                    Turn::Moved => moved = true,
                    Turn::Stuck => {}
                    Turn::Idle => self.unlist(c),
                }
            }
            let telling = self.tell();
            if lock(&self.state).changes != changes {
                return;
            }
            if pause.is_none()
                && let (Some(m), Ok(own)) = (drive::manner(comms), arena())
            {
                pause = Some(Pause::new(m.quiet(), own, false));
            }
            need.other |= telling;
            match &mut pause {
                Some(p) if moved => p.moved(),
                Some(p) => p.idle(&mut need, None, &mut |need| drive::fill(comms, need)),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn unlist(&self, c: &Arc<Shared>) {
        // Under its lock: a call that is started now lists it again, before or after.
        let mut phase = c.phase.lock();
        if let Phase::Ready(inner) = &mut *phase {
            if !inner.is_idle() {
                return;
            }
            inner.listed = false;
        }
        c.listed_hint.store(false, Ordering::Relaxed);
        let mut s = lock(&self.state);
        s.comms.retain(|x| !Arc::ptr_eq(x, c));
        s.changes += 1;
    }

    /// Connects to ranks that are to be told of a failure. True while there are any.
    fn tell(&self) -> bool {
        let list = std::mem::take(&mut lock(&self.state).tell);
        if list.is_empty() {
            return false;
        }
        let mut rest = Vec::new();
        for (fabric, mut missing, until) in list {
            missing.retain(|&rank| match fabric.connect(rank) {
                Ok(conn) => conn.is_none_or(|c| c.push()),
                Err(_) => false,
            });
            if !missing.is_empty() && Instant::now() < until && fabric.in_use() {
                rest.push((fabric, missing, until));
            }
        }
        let mut s = lock(&self.state);
        let done = rest.is_empty();
        s.tell.append(&mut rest);
        if done {
            s.changes += 1;
        }
        !done
    }
}

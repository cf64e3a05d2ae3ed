//! What a thread does while nothing moves: spin, yield, sleep.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use crate::memory::Arena;
use crate::transport::shm::Doorbell;

/// Passes with a pause (25 ns each) before the first yield, when there is a core for every rank. Few: the
/// system may have put two ranks on one core, or another program may want it.
const SPIN: u32 = 400;
/// Yields before a rank parks: so many where they let others run, so many where they return at once. The
/// system may not let a rank of another session or container run (it yields within its group only),
/// and then only sleeping does.
const YIELD: u32 = 64;
const YIELD_IDLE: u32 = 16;
/// A yield that returns sooner let nobody run.
const YIELD_TIME: Duration = Duration::from_nanos(800);
/// Longest sleep: how late an abort may be noticed.
const PARK: Duration = Duration::from_millis(5);
/// The same when several things may end it, of which only one can wake us.
const PARK_MIXED: Duration = Duration::from_micros(100);

/// How ranks of a communicator wait, decided once.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Passes before the first yield: 0 when ranks outnumber cores.
    pub spin: u32,
    /// Ranks outnumber cores: they sleep often, so who posts pays for a fence (17 ns) and who sleeps for
    /// no barrier (10 us while the others run).
    pub crowded: bool,
    pub tcp: bool,
}

impl Manner {
    /// For a rank of a job with `local` ranks (itself included) on its machine.
    pub fn new(local: usize, tcp: bool) -> Manner {
        // SAFETY: plain library call.
        let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        let crowded = cores >= 1 && local > cores as usize;
        membarrier(MEMBARRIER_REGISTER_GLOBAL_EXPEDITED);
        if tcp {
            // Now, and not at the first sleep: what a process holds does not grow with what happens to it.
            event();
        }
        Manner { spin: if crowded { 0 } else { SPIN }, crowded, tcp }
    }

    /// The manner of a thread that waits for what both describe.
    pub fn and(self, other: Manner) -> Manner {
        Manner {
            spin: self.spin.min(other.spin),
            crowded: self.crowded && other.crowded,
            tcp: self.tcp || other.tcp,
        }
    }

    /// That of a thread that works beside the application's: it does not spin.
    pub fn quiet(self) -> Manner {
        Manner { spin: 0, ..self }
    }

    /// Passes that the engine may make before it asks: none where they could be somebody else's time, or
    /// where only a system call brings news.
    #[inline]
    pub fn inner_spin(&self) -> u32 {
        if self.tcp { 0 } else { self.spin.min(32) }
    }
}

const MEMBARRIER_GLOBAL_EXPEDITED: i32 = 1 << 1;
const MEMBARRIER_REGISTER_GLOBAL_EXPEDITED: i32 = 1 << 2;

fn membarrier(command: i32) {
    // SAFETY: a plain system call. Where it is missing, a parked rank's time limit takes its place.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
}

/// What wakes the sleeping threads of this process: its doorbell, and for those that sleep in `ppoll` a
/// descriptor.
pub fn bell(own: &Arena) -> &Doorbell {
    // SAFETY: the first page of an arena is never given out, zeroed at first, and mapped as long as it lives.
    unsafe { &*own.page().cast::<Doorbell>() }
}

/// Threads of this process that sleep in `ppoll`.
static POLLERS: AtomicU32 = AtomicU32::new(0);

/// An eventfd; `None` if descriptors ran out: pollers then wake by themselves.
fn event() -> Option<&'static OwnedFd> {
    static EVENT: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let made = EVENT.get_or_init(|| {
        // SAFETY: a plain system call; the descriptor is new and ours.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        }
    });
    made.as_ref()
}

/// Wakes the other threads of this process that wait for something that this one has done.
pub fn wake(own: &Arena) {
    bell(own).ring(true);
    if POLLERS.load(Ordering::SeqCst) != 0
        && let Some(e) = event()
    {
        // SAFETY: eight bytes of our own; a full counter is as good as one more.
        unsafe { libc::write(e.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) };
    }
}

/// What a waiting thread may be woken by.
#[derive(Default)]
pub struct Need {
    pub shm: bool,
    /// Some connection is being made, or another thread holds a communicator.
    pub other: bool,
    pub tcp: bool,
    /// Descriptors to poll when `tcp`.
    pub fds: Vec<libc::pollfd>,
}

impl Need {
    pub fn clear(&mut self) {
        (self.shm, self.other, self.tcp) = (false, false, false);
        self.fds.clear();
    }
}

/// The wait of one thread.
pub struct Pause {
    manner: Manner,
    own: &'static Arena,
    passes: u32,
    since: Option<Instant>,
    /// What the doorbell said when this thread announced that it would sleep.
    ticket: Option<u32>,
}

impl Pause {
    /// `spun`: the thread has spun already.
    pub fn new(manner: Manner, own: &'static Arena, spun: bool) -> Pause {
        Pause { manner, own, passes: if spun { manner.spin } else { 0 }, since: None, ticket: None }
    }

    /// Something moved: the next wait starts afresh.
    #[inline]
    pub fn moved(&mut self) {
        if self.passes != 0 {
            self.passes = 0;
            self.since = None;
            self.disarm();
        }
    }

    fn disarm(&mut self) {
        if self.ticket.take().is_some() {
            bell(self.own).leave();
        }
    }

    /// A longer sleep than the last time. Returns at once at first; the caller looks again in between.
    /// `fill` adds the descriptors to poll.
    #[inline]
    pub fn idle(&mut self, need: &mut Need, limit: Option<Duration>, fill: &mut dyn FnMut(&mut Need)) {
        self.passes = self.passes.saturating_add(1);
        if self.passes <= self.manner.spin {
            std::hint::spin_loop();
            return;
        }
        self.slow(need, limit, fill);
    }

    #[cold]
    fn slow(&mut self, need: &mut Need, limit: Option<Duration>, fill: &mut dyn FnMut(&mut Need)) {
        let yields = self.passes - self.manner.spin;
        if yields <= YIELD {
            let now = Instant::now();
            let since = *self.since.get_or_insert(now);
            if yields <= YIELD_IDLE || now - since > YIELD_TIME * yields {
                std::thread::yield_now();
                return;
            }
        }
        let at_most = |t: Duration| limit.map_or(t, |l| t.min(l));
        if need.tcp {
            fill(need);
            let mixed = need.shm || need.other;
            self.poll(need, at_most(if mixed { PARK_MIXED } else { PARK }));
            return;
        }
        let bell = bell(self.own);
        let Some(ticket) = self.ticket else {
            // Say that we sleep, then look once more: whoever posts after that look sees it. Where
            // posting has no fence, the barrier makes it so on the others' cores.
            self.ticket = Some(bell.arrive());
            if self.manner.crowded {
                fence(Ordering::SeqCst);
            } else {
                membarrier(MEMBARRIER_GLOBAL_EXPEDITED);
            }
            return;
        };
        bell.sleep(ticket, at_most(if need.other { PARK_MIXED } else { PARK }));
        self.disarm();
    }

    fn poll(&mut self, need: &mut Need, time: Duration) {
        // Announced first: whoever takes bytes off a connection that we poll, and so makes us sleep on,
        // looks for pollers after that.
        POLLERS.fetch_add(1, Ordering::SeqCst);
        if let Some(e) = event() {
            need.fds.push(libc::pollfd { fd: e.as_raw_fd(), events: libc::POLLIN, revents: 0 });
        }
        let t = libc::timespec {
            tv_sec: time.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
        };
        // SAFETY: a valid table and timeout.
        unsafe { libc::ppoll(need.fds.as_mut_ptr(), need.fds.len() as libc::nfds_t, &t, std::ptr::null()) };
        POLLERS.fetch_sub(1, Ordering::SeqCst);
        if let Some(e) = event()
            && need.fds.last().is_some_and(|f| f.revents != 0)
        {
            let mut count = [0u8; 8];
            // SAFETY: eight bytes of our own.
            unsafe { libc::read(e.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.disarm();
    }
}

//! What a rank does while nothing moves: spin, yield, park; and watch for faults and deadlines.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use super::peer::{Gone, Peers, Word};
use crate::exec::{Blocked, Idle, Pause};
use crate::transport::shm::Doorbell;
use crate::transport::{AnyLink, Fault, Link};
use crate::{Code, Error, Result};

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
/// Between looks at the clock, the control connections and the abort flag.
const CHECK: Duration = Duration::from_millis(1);
/// Longest sleep of a parked rank: how late it may notice an abort.
const PARK: Duration = Duration::from_millis(5);
/// The same when both shared memory and TCP may end it: only one of them can wake us.
const PARK_MIXED: Duration = Duration::from_micros(100);
/// A wait this long makes ranks compare their calls.
pub const LONG: Duration = Duration::from_secs(1);

/// How this rank waits, decided once per communicator.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Passes before the first yield: 0 when ranks outnumber cores.
    pub spin: u32,
    pub tcp: bool,
}

impl Manner {
    /// For a rank with `local` ranks (itself included) on its machine.
    pub fn new(local: usize, tcp: bool) -> Manner {
        // SAFETY: plain library call.
        let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        let spin = if cores < 1 || local <= cores as usize { SPIN } else { 0 };
        register_membarrier();
        Manner { spin, tcp }
    }

    /// Ranks outnumber cores: they sleep often, so who posts pays for a fence (17 ns) and who sleeps for
    /// no barrier (10 us while the others run).
    pub fn crowded(&self) -> bool {
        self.spin == 0
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

fn register_membarrier() {
    membarrier(MEMBARRIER_REGISTER_GLOBAL_EXPEDITED);
}

/// The wait of one call.
pub struct Wait<'a> {
    pub manner: Manner,
    pub peers: &'a mut Peers,
    pub abort: &'a AtomicBool,
    pub bell: &'a Doorbell,
    pub timeout: Duration,
    pub seq: u32,
    /// "all_reduce of 10 float (sum)".
    pub call: &'a dyn Fn() -> String,
    /// What a blocked lane does at its op, for errors.
    pub at: &'a dyn Fn(&Blocked) -> String,
    passes: u32,
    armed: bool,
    since: Option<Instant>,
    checked: Option<Instant>,
    told: bool,
    /// Since when, and in which pass, a peer that is waited for is known to be gone.
    gone: Option<(Instant, u32)>,
}

impl<'a> Wait<'a> {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        manner: Manner,
        peers: &'a mut Peers,
        abort: &'a AtomicBool,
        bell: &'a Doorbell,
        timeout: Duration,
        seq: u32,
        call: &'a dyn Fn() -> String,
        at: &'a dyn Fn(&Blocked) -> String,
    ) -> Wait<'a> {
        Wait {
            manner,
            peers,
            abort,
            bell,
            timeout,
            seq,
            call,
            at,
            passes: 0,
            armed: false,
            since: None,
            checked: None,
            told: false,
            gone: None,
        }
    }

    fn position(&self, blocked: &[Blocked]) -> String {
        let mut s = format!("call {}: {}", self.seq, (self.call)());
        if let Some(b) = blocked.first() {
            s += &format!(", {}", (self.at)(b));
            if let Some(p) = self.peers.of_link(b.link) {
                s += &format!(", waits for rank {}", p.rank);
            }
        }
        s
    }

    /// Looks at everything that may end the wait with an error.
    fn check(&mut self, blocked: &[Blocked], sleep: Duration) -> Result<()> {
        if self.abort.load(Ordering::Relaxed) {
            return Err(aborted(self.position(blocked)));
        }
        for b in blocked {
            if let Some(p) = self.peers.of_link(b.link)
                && let (rank, Some(gone)) = (p.rank, p.gone)
            {
                // Its last messages may have come since the lanes were looked at, or be under way.
                let (seen, pass) = *self.gone.get_or_insert_with(|| (Instant::now(), self.passes));
                if pass == self.passes || !p.silent(seen.elapsed()) {
                    continue;
                }
                return Err(lost(rank, gone, self.position(blocked)));
            }
        }
        self.peers.poll(sleep)?;
        let now = Instant::now();
        self.checked = Some(now);
        let since = *self.since.get_or_insert(now);
        if now - since > LONG {
            if !self.told {
                self.told = true;
                let word = Word::Call { seq: self.seq, text: (self.call)() };
                self.peers.tell(&word);
            }
            self.compare(None)?;
        }
        if now - since > self.timeout {
            return Err(Error::timeout(format!("nothing moved for {:.1} s", (now - since).as_secs_f64()))
                .who(self.position(blocked))
                .hint(
                    "see what the rank that is waited for is doing; GRACCL_TIMEOUT (seconds) sets the limit",
                ));
        }
        Ok(())
    }

    fn compare(&self, rank: Option<usize>) -> Result<()> {
        compare(self.peers, self.seq, &(self.call)(), rank)
    }

    /// A link is broken, or its message belongs to another call.
    #[cold]
    fn fault(&mut self, links: &mut [AnyLink], b: &Blocked) -> Error {
        let rank = self.peers.of_link(b.link).map_or(usize::MAX, |p| p.rank);
        match links[b.link as usize].fault() {
            Some(Fault::Fingerprint { .. }) => {
                // The peer will find the same, or is told now; its answer says what it called.
                let word = Word::Call { seq: self.seq, text: (self.call)() };
                self.peers.tell(&word);
                let until = Instant::now() + LONG;
                while Instant::now() < until {
                    let poll = self.peers.poll(Duration::from_millis(5));
                    // The comparison first: it says more than the peer's own failure.
                    if let Err(e) = self.compare(Some(rank)).and(poll) {
                        return e;
                    }
                    if self.peers.get(rank).is_none_or(|p| p.gone.is_some()) {
                        break;
                    }
                }
                mismatch(format!(
                    "rank {rank} sent a message of another call than this rank's call {}, {}",
                    self.seq,
                    (self.call)()
                ))
            }
            Some(Fault::Length { got }) => Error::internal(format!(
                "rank {rank} sent a message of {got} bytes, another length was expected"
            ))
            .who(self.position(&[*b]))
            .hint("run with GRACCL_VERIFY=1 and report this"),
            Some(Fault::Broken(text)) => {
                // The control connection may know better: an orderly abort with its reason.
                for _ in 0..20 {
                    if let Err(e) = self.peers.poll(Duration::from_millis(5)) {
                        return e;
                    }
                }
                Error::remote(format!("the connection to rank {rank} broke: {text}"))
                    .who(self.position(&[*b]))
                    .hint("look at that rank's output for the cause")
            }
            None => Error::internal("a link reports a fault that it does not have").who(self.position(&[*b])),
        }
    }
}

/// An error if a peer's call of this number is another one than ours (`rank`: only that peer's).
pub fn compare(peers: &Peers, own_seq: u32, own: &str, rank: Option<usize>) -> Result<()> {
    for p in peers.list.iter().filter(|p| rank.is_none_or(|r| r == p.rank)) {
        if let Some((seq, text)) = &p.call
            && ((*seq == own_seq && *text != own) || (*seq != own_seq && rank.is_some()))
        {
            return Err(mismatch(format!(
                "this rank's call {own_seq} is {own}, rank {}'s call {seq} is {text}",
                p.rank
            )));
        }
    }
    Ok(())
}

pub fn aborted(position: String) -> Error {
    Error::new(Code::Aborted, "the communicator was aborted here")
        .who(position)
        .hint("destroy it; make a new one to go on")
}

/// A rank that is waited for is gone.
pub fn lost(rank: usize, gone: Gone, position: String) -> Error {
    let (what, hint) = match gone {
        Gone::Left => (
            format!("rank {rank} has destroyed its communicator, but its part is needed"),
            "all ranks must make the same calls before they destroy a communicator",
        ),
        Gone::Died => (
            format!("rank {rank} died, or lost its connection"),
            "look at that rank's output for the cause; this communicator cannot be used any more",
        ),
    };
    Error::remote(what).who(position).hint(hint)
}

fn mismatch(what: String) -> Error {
    Error::usage(format!("ranks disagree: {what}"))
        .hint("all ranks must make the same calls in the same order, with the same count, type and operation, and the same GRACCL_ALGO and GRACCL_TRANSPORT")
}

impl Idle for Wait<'_> {
    #[inline]
    fn moved(&mut self) {
        if self.passes != 0 {
            self.passes = 0;
            self.since = None;
            self.gone = None;
            if self.armed {
                self.armed = false;
                self.bell.word.store(0, Ordering::Relaxed);
            }
        }
    }

    #[inline]
    fn idle(&mut self, links: &mut [AnyLink], blocked: &[Blocked]) -> Result<Pause> {
        if let Some(b) = blocked.iter().find(|b| b.fault) {
            return Err(self.fault(links, b));
        }
        self.passes = self.passes.saturating_add(1);
        if self.manner.tcp {
            let mut pumped = false;
            for c in self.peers.list.iter().filter_map(|p| p.tcp()) {
                pumped |= c.pump();
            }
            if pumped {
                // What came may be what is waited for: never sleep on it.
                return Ok(Pause::Again);
            }
        }
        if self.passes <= self.manner.spin {
            std::hint::spin_loop();
            return Ok(Pause::Again);
        }
        self.slow(links, blocked)
    }
}

impl Wait<'_> {
    #[cold]
    fn slow(&mut self, links: &[AnyLink], blocked: &[Blocked]) -> Result<Pause> {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        // Not at once: most waits are shorter than a look at all peers.
        if now - *self.checked.get_or_insert(now) > CHECK {
            self.check(blocked, Duration::ZERO)?;
        }
        let yields = self.passes - self.manner.spin;
        if yields <= YIELD_IDLE || (yields <= YIELD && now - since > YIELD_TIME * yields) {
            std::thread::yield_now();
            return Ok(Pause::Again);
        }
        let shm = blocked.iter().any(|b| matches!(links[b.link as usize], AnyLink::Shm(_)));
        let tcp = blocked.iter().any(|b| !matches!(links[b.link as usize], AnyLink::Shm(_)))
            || self.peers.list.iter().filter_map(|p| p.tcp()).any(|c| c.wants_write());
        if tcp {
            self.check(blocked, if shm { PARK_MIXED } else { PARK })?;
            return Ok(Pause::Again);
        }
        if !self.armed {
            // Say that we sleep, then look once more: whoever posts after that look sees the flag. Where
            // posting has no fence, the barrier makes it so on the others' cores.
            self.armed = true;
            self.bell.word.store(1, Ordering::SeqCst);
            if self.manner.crowded() {
                fence(Ordering::SeqCst);
            } else {
                membarrier(MEMBARRIER_GLOBAL_EXPEDITED);
            }
            return Ok(Pause::Again);
        }
        let t = libc::timespec { tv_sec: 0, tv_nsec: PARK.as_nanos() as libc::c_long };
        // SAFETY: futex on our own mapped word.
        unsafe { libc::syscall(libc::SYS_futex, self.bell.word.as_ptr(), libc::FUTEX_WAIT, 1, &t) };
        self.armed = false;
        self.bell.word.store(0, Ordering::Relaxed);
        Ok(Pause::Again)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.bell.word.store(0, Ordering::Relaxed);
        }
    }
}

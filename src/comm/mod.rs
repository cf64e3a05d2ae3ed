//! The communicator: what an application holds.
//!
//! ```text
//! call      one call as data            inner     prepares and runs calls, sees what goes wrong
//! request   calls that are not waited   drive     any thread lets calls advance
//! group     several calls as one        progress  the thread that does so when nobody waits
//! split     communicators from one      fabric    what they share: connections, words
//! typed     calls of slices             warm      which of them keep memory for messages
//! ```

mod call;
mod config;
mod drive;
mod fabric;
mod group;
mod inner;
mod lock;
mod pause;
mod process;
mod progress;
mod request;
mod split;
mod typed;
mod warm;
mod words;

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use call::{Call, Counts, Extent};
pub use config::{Config, TransportChoice};
pub(crate) use group::active as in_group;
pub use group::{group_end, group_start};
pub use request::{Callback, Request};

use crate::bootstrap::{self, Bootstrap, UniqueId};
use crate::record::{Identity, Recorder};
use crate::schedule::{self, Collective};
use crate::tune::{Choice, Layout};
use crate::{Code, DataType, Error, RedOp, Result};
use call::{Key, Verb, Work};
use fabric::Fabric;
use inner::Inner;
use lock::Lock;
use pause::Manner;
use request::Done;

/// Feeds the parser of the words between ranks, for fuzzing.
#[doc(hidden)]
pub fn fuzz_words(data: &[u8]) {
    words::feed(data);
}

/// How a call will be carried out: shown by `graccl perf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanInfo {
    /// Name of the algorithm, one of [`crate::schedule::algorithms`].
    pub algorithm: &'static str,
    /// "shm", "tcp" or "shm+tcp"; "self" with one rank.
    pub transport: &'static str,
    /// Tiles that the buffer is cut into.
    pub tiles: u32,
    /// Tiles that are worked on at a time.
    pub ways: u32,
}

/// A group of ranks that communicate.
///
/// All ranks must make the same collective calls in the same order; sends and receives have an order of
/// their own for each pair of ranks. A communicator may be shared between threads; collective calls on it
/// are carried out one after the other. Dropping it waits for the calls under way, tells the other ranks
/// that this one has left, and, if it is the last of its family in this process, waits a short time for
/// them to do the same.
pub struct Communicator {
    shared: Arc<Shared>,
}

/// The part that requests and the progress thread share.
struct Shared {
    /// 0 and 0 ranks while it is not known: of one that is split off in a group, until the group's end.
    rank: AtomicUsize,
    size: AtomicUsize,
    abort: AtomicBool,
    /// Threads that drive it while they wait.
    waiters: AtomicU32,
    /// The progress thread has it on its list.
    listed_hint: AtomicBool,
    hosts: OnceLock<Vec<u32>>,
    manner: OnceLock<Manner>,
    phase: Lock<Phase>,
}

/// What a communicator is at.
enum Phase {
    Joining,
    Ready(Box<Inner>),
    /// It could not be made.
    Failed(Error),
    /// It was finalized or dropped.
    Ended,
}

impl Phase {
    #[inline]
    fn ready(&mut self) -> Result<&mut Inner> {
        match self {
            Phase::Ready(inner) => Ok(inner),
            other => Err(other.error()),
        }
    }

    #[cold]
    fn error(&self) -> Error {
        match self {
            Phase::Failed(e) => e.clone(),
            Phase::Ended => Error::usage("the communicator was finalized").hint("make a new one"),
            _ => Error::new(Code::InProgress, "the communicator is not ready: ranks are still joining")
                .hint("wait until it is ready"),
        }
    }
}

impl Shared {
    fn new(rank: usize, size: usize) -> Arc<Shared> {
        Arc::new(Shared {
            rank: AtomicUsize::new(rank),
            size: AtomicUsize::new(size),
            abort: AtomicBool::new(false),
            waiters: AtomicU32::new(0),
            listed_hint: AtomicBool::new(false),
            hosts: OnceLock::new(),
            manner: OnceLock::new(),
            phase: Lock::new(Phase::Joining),
        })
    }

    #[inline]
    fn rank(&self) -> usize {
        self.rank.load(Ordering::Relaxed)
    }

    #[inline]
    fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// No call is under way.
    fn idle(&self) -> bool {
        match &*self.phase.lock() {
            Phase::Ready(inner) => inner.is_idle(),
            _ => true,
        }
    }

    /// It has its working part, unless it was dropped meanwhile.
    fn become_ready(self: &Arc<Self>, mut inner: Inner) {
        inner.me = Arc::downgrade(self);
        self.rank.store(inner.rank, Ordering::Relaxed);
        self.size.store(inner.size(), Ordering::Relaxed);
        let _ = self.hosts.set(inner.layout.groups.numbers().to_vec());
        let _ = self.manner.set(inner.manner);
        let mut phase = self.phase.lock();
        if let Phase::Joining = *phase {
            *phase = Phase::Ready(Box::new(inner));
        } else {
            drop(phase);
            fabric::leave(inner.leave(), false);
        }
    }

    fn become_failed(&self, e: Error) {
        let mut phase = self.phase.lock();
        if let Phase::Joining = *phase {
            *phase = Phase::Failed(e);
        }
    }
}

impl Inner {
    /// Has the progress thread drive it.
    fn list(&mut self, shared: &Arc<Shared>) {
        shared.listed_hint.store(true, Ordering::Relaxed);
        progress::list(shared, &mut self.listed);
        pause::wake(self.fabric.own);
    }
}

impl Communicator {
    /// Joins the communicator that `id` names, as `rank` of `size`. Collective: returns when all
    /// ranks have joined, or with an error that names the missing ones after
    /// [`Config::init_timeout`]. In a group it returns at once, and `group_end` waits.
    pub fn init_rank(id: &UniqueId, rank: usize, size: usize, config: &Config) -> Result<Communicator> {
        if group::active() {
            return Communicator::begin_rank(id, rank, size, config);
        }
        check(rank, size, config)?;
        let comm = Communicator { shared: Shared::new(rank, size) };
        comm.shared.join(id, config)?;
        Ok(comm)
    }

    /// [`Communicator::init_rank`] without waiting: the communicator exists at once, and may be aborted
    /// or dropped from then on. Other calls on it give `InProgress` until [`Communicator::ready`].
    pub fn begin_rank(id: &UniqueId, rank: usize, size: usize, config: &Config) -> Result<Communicator> {
        check(rank, size, config)?;
        let comm = Communicator { shared: Shared::new(rank, size) };
        let (shared, id, config) = (comm.shared.clone(), *id, config.clone());
        std::thread::Builder::new()
            .name("graccl-join".into())
            .spawn(move || {
                if let Err(e) = shared.join(&id, &config) {
                    shared.become_failed(e);
                }
            })
            .map_err(|e| Error::io("cannot start a thread", &e))?;
        if group::active() {
            group::add_joining(&comm.shared);
        }
        Ok(comm)
    }

    /// Whether all ranks have joined. The error if joining failed.
    pub fn ready(&self) -> Result<bool> {
        match &*self.shared.phase.lock() {
            Phase::Joining => Ok(false),
            Phase::Ready(_) => Ok(true),
            other => Err(other.error()),
        }
    }

    /// Waits until all ranks have joined. In a group it returns at once, and `group_end` waits.
    pub fn wait_ready(&self) -> Result<()> {
        if group::active() {
            return Ok(());
        }
        Communicator::wait_joined(&self.shared)
    }

    fn wait_joined(shared: &Shared) -> Result<()> {
        loop {
            match &*shared.phase.lock() {
                Phase::Joining => {}
                Phase::Ready(_) => return Ok(()),
                other => return Err(other.error()),
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Joins as the launcher's environment says (torchrun, Slurm, Open MPI, MPICH, `graccl run`).
    pub fn init_env(config: &Config) -> Result<Communicator> {
        let job = bootstrap::from_env()?;
        Communicator::init_rank(&job.id, job.rank, job.size, config)
    }

    /// Makes one communicator of `size` ranks that are all in this process: element `i` is rank `i`.
    /// They may be given to threads, or all be driven by one thread with groups.
    pub fn init_all(size: usize, config: &Config) -> Result<Vec<Communicator>> {
        if size == 0 {
            return Err(Error::argument("a communicator of no ranks is not possible"));
        }
        let id = UniqueId::create()?;
        let all: Vec<Communicator> =
            (0..size).map(|r| Communicator::begin_rank(&id, r, size, config)).collect::<Result<_>>()?;
        for c in &all {
            Communicator::wait_joined(&c.shared)?;
        }
        Ok(all)
    }

    /// This rank's number. Of a communicator that was split off in a group: 0 until the group's end.
    pub fn rank(&self) -> usize {
        self.shared.rank()
    }

    /// Number of ranks. Of a communicator that was split off in a group: 0 until the group's end.
    pub fn size(&self) -> usize {
        self.shared.size()
    }

    /// The error while the number of ranks is not known.
    pub(crate) fn known(&self) -> Result<()> {
        if self.size() > 0 { Ok(()) } else { Err(self.shared.phase.lock().error()) }
    }

    /// A checked call of this rank.
    #[cold]
    fn work(&self, call: &Call) -> Result<Work> {
        self.known()?;
        Work::of(call, self.rank(), self.size())
    }

    /// Host number (0, 1, ... in order of first rank) of every rank; empty until it is ready.
    pub fn hosts(&self) -> &[u32] {
        self.shared.hosts.get().map_or(&[], Vec::as_slice)
    }

    // ---- any call ----

    /// Carries out a call and waits until this rank's part is complete.
    ///
    /// Errors: `InvalidArgument` (nulls, overlaps, a root that is no rank, sizes that overflow: nothing
    /// was sent and the communicator is as good as before), `InvalidUsage` (ranks disagree about the
    /// call), `RemoteError` (a rank died, left or failed), `Timeout`, `Aborted`, `SystemError`. After any
    /// but the first the receive buffer is undefined and the communicator unusable, but for
    /// [`Communicator::shrink`].
    ///
    /// # Safety
    /// The buffers of the call are readable and writable as its counts say, and no other thread touches
    /// them meanwhile. In a group: until the group's end.
    #[inline]
    pub unsafe fn call(&self, call: &Call) -> Result<()> {
        if let Some(key) = Key::of(call, self.shared.size()) {
            // SAFETY: the caller's promise.
            if let Some(result) = unsafe { self.at_once(&key, call.send, call.recv) } {
                return result;
            }
        }
        self.perform(self.work(call)?)
    }

    /// Starts a call and returns at once.
    ///
    /// Errors: `InvalidArgument`; all others come from the request.
    ///
    /// # Safety
    /// As [`Communicator::call`], until the request says that the call is over.
    pub unsafe fn start(&self, call: &Call) -> Result<Request> {
        Ok(self.begin(self.work(call)?))
    }

    /// A call that is prepared, outside of groups, while nothing else is under way. `None` if it is not so.
    ///
    /// # Safety
    /// As `call`.
    #[inline]
    unsafe fn at_once(&self, key: &Key, send: *const u8, recv: *mut u8) -> Option<Result<()>> {
        if group::active() || self.shared.abort.load(Ordering::Relaxed) {
            return None;
        }
        // Dropped after the lock.
        let returning = Returning(&self.shared);
        let mut phase = self.shared.phase.lock();
        let ran = match &mut *phase {
            Phase::Ready(inner) => {
                let inner = Unwinding(inner);
                // SAFETY: the caller's promise.
                let ran = unsafe { inner.0.run_prepared(key, send, recv) };
                std::mem::forget(inner);
                ran
            }
            _ => None,
        };
        std::mem::forget(returning);
        match ran? {
            None => Some(Ok(())),
            Some(done) => {
                drop(phase);
                Some(self.await_done(&done))
            }
        }
    }

    /// Any call, whose buffers the caller leaves to it.
    #[cold]
    fn perform(&self, work: Work) -> Result<()> {
        if group::active() {
            group::add(&self.shared, work, true);
            return Ok(());
        }
        let done = Done::default().into();
        self.shared.submit(work, &done, false);
        self.await_done(&done)
    }

    #[cold]
    fn await_done(&self, done: &Done) -> Result<()> {
        drive::until(&self.shared, done, None);
        done.result().unwrap_or(Ok(()))
    }

    fn begin(&self, work: Work) -> Request {
        let shared = self.shared.clone();
        if group::active() {
            let done = group::add(&shared, work, false);
            return Request { shared, done };
        }
        let done = Arc::new(Done::default());
        shared.submit(work, &done, true);
        Request { shared, done }
    }

    /// How a call of this shape will be carried out. Not collective: all ranks answer the same. The
    /// pointers of `call` do not matter.
    pub fn plan(&self, call: &Call) -> Result<PlanInfo> {
        // Two addresses that no buffers overlap from.
        let (send, recv) = (std::ptr::dangling(), std::ptr::without_provenance_mut(1 << 62));
        let work = self.work(&Call { send, recv, ..call.clone() })?;
        self.shared.phase.lock().ready()?.plan(&work)
    }

    /// Has calls of the choice's collective done so, and not as would be chosen otherwise; `None` ends it. For
    /// measuring. The same on all ranks, at the same place among the calls; no call may be under way.
    pub fn force(&self, choice: Option<Choice>) -> Result<()> {
        let mut phase = self.shared.phase.lock();
        let inner = phase.ready()?;
        if !inner.is_idle() {
            return Err(Error::usage("calls are under way").hint("wait for them first"));
        }
        if let Some(c) = choice
            && (c.ways == 0 || c.message == 0)
        {
            return Err(Error::argument(format!("{} ways, messages of {} bytes", c.ways, c.message))
                .hint("both must be at least 1"));
        }
        inner.force(choice);
        Ok(())
    }

    /// What all ranks know of it, and choices depend on.
    pub fn layout(&self) -> Result<Layout> {
        Ok(self.shared.phase.lock().ready()?.layout.clone())
    }

    // ---- collectives ----

    /// Reduces `count` elements of every rank's `send` into every rank's `recv`. In place when both
    /// are equal; other overlaps are refused. Errors as [`Communicator::call`].
    ///
    /// # Safety
    /// `send` is readable and `recv` writable for `count * dtype.size()` bytes, and no other thread
    /// touches them during the call.
    #[inline]
    pub unsafe fn all_reduce_raw(
        &self,
        send: *const u8,
        recv: *mut u8,
        count: usize,
        dtype: DataType,
        op: RedOp,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.call(&Call::new(Collective::AllReduce, send, recv, count, dtype, op)) }
    }

    /// Waits until all ranks have called it. Errors as [`Communicator::call`].
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: there are no buffers.
        let result = unsafe { self.at_once(&Key::barrier(), std::ptr::null(), std::ptr::null_mut()) };
        result.unwrap_or_else(|| self.perform(Work::barrier()))
    }

    /// Starts a barrier.
    pub fn start_barrier(&self) -> Result<Request> {
        Ok(self.begin(Work::barrier()))
    }

    // ---- between two ranks ----

    /// Sends `count` elements to `peer`, which receives as many of that type from this rank. Returns when
    /// the buffer may be used again, which may be before the peer has them. Sends to one rank arrive in
    /// their order, independent of all collectives.
    ///
    /// # Safety
    /// As [`Communicator::call`].
    pub unsafe fn send_raw(&self, send: *const u8, count: usize, dtype: DataType, peer: usize) -> Result<()> {
        self.perform(self.point(Verb::Send, send.cast_mut(), count, dtype, peer)?)
    }

    /// Receives `count` elements from `peer`.
    ///
    /// # Safety
    /// As [`Communicator::call`].
    pub unsafe fn recv_raw(&self, recv: *mut u8, count: usize, dtype: DataType, peer: usize) -> Result<()> {
        self.perform(self.point(Verb::Recv, recv, count, dtype, peer)?)
    }

    /// Starts a send.
    ///
    /// # Safety
    /// As [`Communicator::start`].
    pub unsafe fn start_send(
        &self,
        send: *const u8,
        count: usize,
        dtype: DataType,
        peer: usize,
    ) -> Result<Request> {
        Ok(self.begin(self.point(Verb::Send, send.cast_mut(), count, dtype, peer)?))
    }

    /// Starts a receive.
    ///
    /// # Safety
    /// As [`Communicator::start`].
    pub unsafe fn start_recv(
        &self,
        recv: *mut u8,
        count: usize,
        dtype: DataType,
        peer: usize,
    ) -> Result<Request> {
        Ok(self.begin(self.point(Verb::Recv, recv, count, dtype, peer)?))
    }

    fn point(&self, verb: Verb, buffer: *mut u8, count: usize, dtype: DataType, peer: usize) -> Result<Work> {
        self.known()?;
        Work::point(verb, buffer, count, dtype, peer, self.rank(), self.size())
    }

    // ---- the end ----

    /// Waits until the calls under way are over, and tells the other ranks that there will be no more
    /// from this one. Only dropping it is allowed after that.
    pub fn finalize(&self) -> Result<()> {
        self.end(true)
    }

    /// `wait`: for the calls under way. Otherwise, and for those that others make meanwhile, they fail.
    fn end(&self, mut wait: bool) -> Result<()> {
        let s = &self.shared;
        let phase = loop {
            let mut phase = s.phase.lock();
            match &mut *phase {
                Phase::Ready(inner) if !inner.is_idle() => {
                    if !std::mem::take(&mut wait) {
                        inner.fail(&inner::aborted(format!("rank {}", s.rank())));
                    }
                }
                _ => break std::mem::replace(&mut *phase, Phase::Ended),
            }
            drop(phase);
            drive::many(std::slice::from_ref(s), &mut || s.idle(), None);
        };
        match phase {
            Phase::Ready(mut inner) => {
                warm::forget(s);
                let failed = inner.failed.clone();
                drive::deliver(std::mem::take(&mut inner.finished));
                fabric::leave(inner.leave(), failed.is_none());
                failed.map_or(Ok(()), Err)
            }
            Phase::Joining => {
                s.abort.store(true, Ordering::Relaxed);
                Ok(())
            }
            Phase::Failed(_) | Phase::Ended => Ok(()),
        }
    }

    /// Fails the calls under way and all later ones, here and on the other ranks; ends joining. Callable from
    /// any thread at any time.
    pub fn abort(&self) {
        let s = &self.shared;
        s.abort.store(true, Ordering::Relaxed);
        // A thread that is at it sees the flag within milliseconds and tells the others itself.
        let Some(mut phase) = s.phase.try_lock() else { return };
        if let Phase::Ready(inner) = &mut *phase {
            let e = inner::aborted(inner.position());
            inner.fail(&e);
            let (finished, own) = (std::mem::take(&mut inner.finished), inner.fabric.own);
            drop(phase);
            drive::deliver(finished);
            pause::wake(own);
        }
    }

    /// The error that made this communicator unusable, if any. Looks for deaths and failures of other ranks,
    /// so that a program that only computes learns of them.
    pub fn failure(&self) -> Option<Error> {
        let mut phase = self.shared.phase.lock();
        match &mut *phase {
            Phase::Ready(inner) => {
                inner.news();
                if self.shared.abort.load(Ordering::Relaxed) && inner.failed.is_none() {
                    inner.fail(&inner::aborted(format!("rank {}", self.rank())));
                }
                let (finished, failed) = (std::mem::take(&mut inner.finished), inner.failed.clone());
                drop(phase);
                drive::deliver(finished);
                failed
            }
            Phase::Failed(e) => Some(e.clone()),
            _ => None,
        }
    }
}

/// The use of a communicator that somebody else owns, and ends. Calls fail after that.
pub(crate) struct Loan(ManuallyDrop<Communicator>);

impl Communicator {
    pub(crate) fn lend(&self) -> Loan {
        Loan(ManuallyDrop::new(Communicator { shared: self.shared.clone() }))
    }
}

impl std::ops::Deref for Loan {
    type Target = Communicator;
    fn deref(&self) -> &Communicator {
        &self.0
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // SAFETY: the communicator is never dropped itself, so this takes its only field once.
        drop(unsafe { std::ptr::read(&raw const self.0.shared) });
    }
}

/// A panic that goes through a call leaves a communicator that must not be used.
struct Unwinding<'a>(&'a mut Inner);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        self.0.fail(&inner::panicked());
    }
}

/// Such a panic gives the buffers back to the caller: not before all peers have written what they write there.
struct Returning<'a>(&'a Arc<Shared>);

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        drive::many(std::slice::from_ref(self.0), &mut || self.0.idle(), None);
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let _ = self.end(!self.shared.abort.load(Ordering::Relaxed));
    }
}

impl Shared {
    fn join(self: &Arc<Self>, id: &UniqueId, config: &Config) -> Result<()> {
        // Before it joins, so that a job that hangs there is seen as well.
        let recorder = Recorder::open(&Identity {
            job: 0,
            context: 0,
            parent: None,
            rank: self.rank(),
            size: self.size(),
            world: &[],
            hosts: &[],
        });
        let (settings, timeout) = (config.agreed(), config.init_timeout);
        let boot = Bootstrap::rendezvous(id, self.rank(), self.size(), &settings, timeout, &self.abort)?;
        let hosts = schedule::Groups::new(&boot.hosts).len();
        if config.transport == TransportChoice::Shm && hosts > 1 {
            return Err(Error::usage(format!("GRACCL_TRANSPORT=shm, but the ranks are on {hosts} hosts"))
                .hint("use GRACCL_TRANSPORT=auto"));
        }
        let ctx = boot.job();
        let fabric = Fabric::new(boot, config)?;
        let members = (0..self.size() as u32).collect();
        self.become_ready(Inner::new(fabric, ctx, None, members, self.rank(), config.clone(), recorder));
        fabric::sweep();
        Ok(())
    }
}

fn check(rank: usize, size: usize, config: &Config) -> Result<()> {
    if size == 0 || rank >= size {
        return Err(Error::argument(format!("rank {rank} of {size} ranks is not possible"))
            .hint("ranks go from 0 to the number of ranks - 1"));
    }
    if let Some(name) = &config.algorithm
        && !schedule::algorithms().iter().any(|a| a.name == name)
    {
        let mut names: Vec<&str> = schedule::algorithms().iter().map(|a| a.name).collect();
        names.sort_unstable();
        names.dedup();
        return Err(Error::argument(format!("there is no algorithm {name}"))
            .hint(format!("use auto or one of {}", names.join(", "))));
    }
    Ok(())
}

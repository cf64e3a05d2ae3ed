//! The communicator: what an application holds.

mod call;
mod config;
mod group;
mod lock;
mod meet;
mod peer;
mod request;
mod wait;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use call::{Call, Counts, Extent};
pub use config::{Config, TransportChoice};
pub use group::{group_end, group_start};
pub use request::Request;

use crate::bootstrap::{self, Bootstrap, UniqueId};
use crate::exec::{BlockSpan, Blocked, Bound, Engine, Launch, Ran, Tiling};
use crate::memory::{Arena, Block, arena};
use crate::reduce::{self, Kernel};
use crate::schedule::{self, Algorithm, Collective, Groups, Program};
use crate::transport::AnyLink;
use crate::transport::shm::{self, Doorbell};
use crate::tune::{self, Choice, Layout};
use crate::{DataType, Element, Error, RedOp, Result};
use lock::Lock;
use meet::Meeting;
use peer::{Coming, Peers, WAYS_MAX, Word};
use wait::{Manner, Wait};

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

/// A group of ranks that reduce together.
///
/// All ranks must make the same collective calls in the same order. A communicator may be shared
/// between threads; calls on it are carried out one after the other. Dropping it tells the other
/// ranks that this one has left, and waits a short time for them to do the same.
pub struct Communicator {
    rank: usize,
    size: usize,
    hosts: Vec<u32>,
    abort: AtomicBool,
    inner: Lock<Inner>,
}

/// Prepared calls that are kept; beyond it all are forgotten (a job with ever new counts).
const PREPARED_MAX: usize = 4096;
/// Entries of the table that finds a prepared call without hashing.
const QUICK: usize = 64;
/// Outputs from this size on are stored past the caches when not in place: they exceed L2.
const STREAM_MIN: usize = 1 << 20;
/// Calls from this size on are worth 2 MiB pages under the slots (10-25 % at 1-4 MiB).
const HUGE_MIN: usize = 512 << 10;
/// How long a rank that leaves waits for its peers to leave as well.
const LEAVE: Duration = Duration::from_secs(5);

/// What a call looks like; equal keys share all preparation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    count: usize,
    dtype: DataType,
    op: RedOp,
}

impl Key {
    /// For people and for comparing calls.
    fn text(&self) -> String {
        format!("all_reduce of {} {} ({})", self.count, self.dtype.name(), self.op.name())
    }

    #[inline]
    fn quick(&self) -> usize {
        let h = (self.count as u64) << 8 | (self.dtype as u64) << 4 | self.op as u64;
        (h.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % QUICK
    }
}

/// Everything about a call that does not change from one time to the next.
struct Prepared {
    key: Key,
    bound: Arc<Bound>,
    tiling: Tiling,
    kernel: Kernel,
    /// Bytes of one scratch image, and of all of them.
    image: usize,
    scratch: usize,
    algorithm: &'static Algorithm,
    /// Fingerprint of everything but the call's number.
    print: u32,
}

/// An algorithm bound for a number of ways: what runs, what it was made of, and the longest message
/// of any rank in chunks.
type Bounds = HashMap<(&'static str, u32), (Arc<Bound>, Arc<Program>, u32)>;

struct Inner {
    boot: Bootstrap,
    config: Config,
    forced: Option<&'static Algorithm>,
    layout: Layout,
    manner: Manner,
    own: &'static Arena,
    bell: Block,
    peers: Peers,
    links: Vec<AnyLink>,
    bounds: Bounds,
    prepared: Vec<Prepared>,
    by_key: HashMap<Key, u32>,
    quick: [u32; QUICK],
    engine: Engine,
    scratch: Vec<u8>,
    seq: u32,
    failed: Option<Error>,
}

impl Communicator {
    /// Joins the communicator that `id` names, as `rank` of `size`. Collective: returns when all
    /// ranks have joined, or with an error that names the missing ones after
    /// [`Config::init_timeout`].
    pub fn init_rank(id: &UniqueId, rank: usize, size: usize, config: &Config) -> Result<Communicator> {
        if size == 0 || rank >= size {
            return Err(Error::argument(format!("rank {rank} of {size} ranks is not possible"))
                .hint("ranks go from 0 to the number of ranks - 1"));
        }
        let forced = match &config.algorithm {
            None => None,
            Some(name) => Some(Algorithm::by_name(Collective::AllReduce, name).ok_or_else(|| {
                let names: Vec<&str> =
                    schedule::algorithms_of(Collective::AllReduce).map(|a| a.name).collect();
                Error::argument(format!("there is no algorithm {name}"))
                    .hint(format!("use auto or one of {}", names.join(", ")))
            })?),
        };
        let boot = Bootstrap::rendezvous(id, rank, size, config.init_timeout)?;
        let hosts = boot.hosts.clone();
        let groups = Groups::new(&hosts);
        if config.transport == TransportChoice::Shm && groups.len() > 1 {
            return Err(Error::usage(format!(
                "GRACCL_TRANSPORT=shm, but the ranks are on {} hosts",
                groups.len()
            ))
            .hint("use GRACCL_TRANSPORT=auto"));
        }
        // Emulated hosts share the machine's cores: their names differ only after the slash.
        let machine = |r: usize| boot.members[r].hostname.split('/').next();
        let local = (0..size).filter(|&r| machine(r) == machine(rank)).count();
        let all_tcp = config.transport == TransportChoice::Tcp;
        let any_tcp = size > 1 && (all_tcp || groups.len() > 1);
        let all_tcp = any_tcp && (all_tcp || hosts.len() == groups.len());
        let layout = Layout { groups, any_tcp, all_tcp };
        let own = arena()?;
        let bell = own.alloc(4096)?;
        let manner = Manner::new(local, any_tcp);
        let inner = Inner {
            boot,
            config: config.clone(),
            forced,
            layout,
            manner,
            own,
            bell,
            peers: Peers::default(),
            links: Vec::new(),
            bounds: HashMap::new(),
            prepared: Vec::new(),
            by_key: HashMap::new(),
            quick: [u32::MAX; QUICK],
            engine: Engine::default(),
            scratch: Vec::new(),
            seq: 0,
            failed: None,
        };
        Ok(Communicator { rank, size, hosts, abort: AtomicBool::new(false), inner: Lock::new(inner) })
    }

    /// Joins as the launcher's environment says (torchrun, Slurm, Open MPI, MPICH, `graccl run`).
    pub fn init_env(config: &Config) -> Result<Communicator> {
        let job = bootstrap::from_env()?;
        Communicator::init_rank(&job.id, job.rank, job.size, config)
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Host number (0, 1, ... in order of first rank) of every rank.
    pub fn hosts(&self) -> &[u32] {
        &self.hosts
    }

    /// Reduces every rank's `data` in place: see [`Communicator::all_reduce_raw`] for the errors.
    ///
    /// ```
    /// use graccl::{Communicator, Config, RedOp};
    /// let comm = Communicator::init_env(&Config::from_env()?)?; // a job of one rank, without a launcher
    /// let mut gradient = [1.0f32, 2.0];
    /// comm.all_reduce(&mut gradient, RedOp::Sum)?;
    /// assert_eq!(gradient, [1.0 * comm.size() as f32, 2.0 * comm.size() as f32]);
    /// # Ok::<(), graccl::Error>(())
    /// ```
    pub fn all_reduce<T: Element>(&self, data: &mut [T], op: RedOp) -> Result<()> {
        let p = data.as_mut_ptr().cast::<u8>();
        // SAFETY: the slice is ours for the call, and every bit pattern is a value of an element type.
        unsafe { self.all_reduce_raw(p, p, data.len(), T::DTYPE, op) }
    }

    /// Reduces every rank's `send` into `recv`, of the same length: see
    /// [`Communicator::all_reduce_raw`] for the errors.
    pub fn all_reduce_into<T: Element>(&self, send: &[T], recv: &mut [T], op: RedOp) -> Result<()> {
        if send.len() != recv.len() {
            return Err(Error::argument(format!(
                "the send buffer has {} elements, the receive buffer {}",
                send.len(),
                recv.len()
            ))
            .hint("both have the length of the vector that is reduced"));
        }
        let (from, to) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
        // SAFETY: as above; the borrow checker keeps the two apart.
        unsafe { self.all_reduce_raw(from, to, send.len(), T::DTYPE, op) }
    }

    /// Reduces `count` elements of every rank's `send` into every rank's `recv`. In place when both
    /// are equal; other overlaps are refused. Blocks until this rank's result is complete.
    ///
    /// Errors: `InvalidArgument` (null, overlap, size overflow), `InvalidUsage` (ranks disagree),
    /// `RemoteError` (a rank died), `Timeout`, `Aborted`, `SystemError`. After an error other than
    /// that of a wrong argument the communicator is unusable and `recv` undefined.
    ///
    /// # Safety
    /// `send` is readable and `recv` writable for `count * dtype.size()` bytes, and no other thread
    /// touches them during the call.
    pub unsafe fn all_reduce_raw(
        &self,
        send: *const u8,
        recv: *mut u8,
        count: usize,
        dtype: DataType,
        op: RedOp,
    ) -> Result<()> {
        let bytes = check_buffers(send, recv, count, dtype)?;
        let mut inner = self.inner.lock();
        if let Some(e) = &inner.failed {
            return Err(after_failure(e));
        }
        // SAFETY: the caller's promise, for `bytes`.
        let r = unsafe { inner.all_reduce(&self.abort, send, recv, bytes, Key { count, dtype, op }) };
        if let Err(e) = &r {
            inner.fail(e);
        }
        r
    }

    /// How an all_reduce of this shape will be carried out. Not collective: all ranks answer the
    /// same.
    pub fn plan_all_reduce(&self, count: usize, dtype: DataType) -> Result<PlanInfo> {
        let bytes = check_buffers(std::ptr::dangling(), std::ptr::dangling_mut(), count, dtype)?;
        let mut inner = self.inner.lock();
        let choice = inner.choose(bytes);
        let (tiles, ..) = inner.shape(&choice, bytes)?;
        let transport = match (self.size, inner.layout.any_tcp, inner.layout.all_tcp) {
            (1, ..) => "self",
            (_, false, _) => "shm",
            (_, true, true) => "tcp",
            (_, true, false) => "shm+tcp",
        };
        Ok(PlanInfo { algorithm: choice.algorithm.name, transport, tiles, ways: choice.ways.min(tiles) })
    }

    /// Waits until all ranks have called it. Errors as [`Communicator::all_reduce_raw`].
    pub fn barrier(&self) -> Result<()> {
        let mut byte = 0u8;
        // SAFETY: our own byte.
        unsafe { self.all_reduce_raw(&byte, &mut byte, 1, DataType::U8, RedOp::Max) }
    }

    /// Carries out a call and waits until this rank's part is complete.
    ///
    /// # Safety
    /// The buffers of the call are readable and writable as its counts say, and no other thread touches
    /// them meanwhile. In a group: until the group's end.
    pub unsafe fn call(&self, call: &Call) -> Result<()> {
        let _ = call;
        Err(Error::internal("not there yet"))
    }

    /// Starts a call and returns at once.
    ///
    /// # Safety
    /// As [`Communicator::call`], until the request says that the call is over.
    pub unsafe fn start(&self, call: &Call) -> Result<Request> {
        let _ = call;
        Err(Error::internal("not there yet"))
    }

    /// Sends `count` elements to `peer`, which receives as many of that type from this rank. Returns when
    /// the buffer may be used again, which may be before the peer has them.
    ///
    /// # Safety
    /// As [`Communicator::call`].
    pub unsafe fn send_raw(&self, send: *const u8, count: usize, dtype: DataType, peer: usize) -> Result<()> {
        let _ = (send, count, dtype, peer);
        Err(Error::internal("not there yet"))
    }

    /// Receives `count` elements from `peer`.
    ///
    /// # Safety
    /// As [`Communicator::call`].
    pub unsafe fn recv_raw(&self, recv: *mut u8, count: usize, dtype: DataType, peer: usize) -> Result<()> {
        let _ = (recv, count, dtype, peer);
        Err(Error::internal("not there yet"))
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
        let _ = (send, count, dtype, peer);
        Err(Error::internal("not there yet"))
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
        let _ = (recv, count, dtype, peer);
        Err(Error::internal("not there yet"))
    }

    /// Starts a barrier.
    pub fn start_barrier(&self) -> Result<Request> {
        Err(Error::internal("not there yet"))
    }

    /// How a call of this shape will be carried out. Not collective: all ranks answer the same. The
    /// pointers of `call` do not matter.
    pub fn plan(&self, call: &Call) -> Result<PlanInfo> {
        let _ = call;
        Err(Error::internal("not there yet"))
    }

    /// [`Communicator::init_rank`] without waiting: the communicator exists at once, and may be aborted
    /// or dropped from then on. Other calls on it give `InProgress` until [`Communicator::ready`].
    pub fn begin_rank(id: &UniqueId, rank: usize, size: usize, config: &Config) -> Result<Communicator> {
        Communicator::init_rank(id, rank, size, config)
    }

    /// Whether all ranks have joined. The error if joining failed.
    pub fn ready(&self) -> Result<bool> {
        Ok(true)
    }

    /// Waits until all ranks have joined.
    pub fn wait_ready(&self) -> Result<()> {
        Ok(())
    }

    /// Makes one communicator of `size` ranks that are all in this process: element `i` is rank `i`.
    /// They may be given to threads, or all be driven by one thread with groups.
    pub fn init_all(size: usize, config: &Config) -> Result<Vec<Communicator>> {
        let _ = (size, config);
        Err(Error::internal("not there yet"))
    }

    /// Parts the ranks into communicators: those that give the same `color` are together, in the order
    /// of `key`, and of their ranks here where keys are equal. `None` as a colour: this rank gets none.
    /// Collective. Connections, shared memory and the deadline are this communicator's; this one stays
    /// usable.
    pub fn split(&self, color: Option<u32>, key: i32) -> Result<Option<Communicator>> {
        let _ = (color, key);
        Err(Error::internal("not there yet"))
    }

    /// A communicator of the same ranks whose calls are apart from those of this one. Collective.
    pub fn duplicate(&self) -> Result<Communicator> {
        Err(Error::internal("not there yet"))
    }

    /// After ranks have died: a communicator of those that live, in the same order. All survivors call
    /// it, each with the ranks that it knows or wants out (`exclude`, ranks of this communicator; others
    /// that do not answer are found). This communicator may have failed, and should be destroyed after.
    pub fn shrink(&self, exclude: &[usize]) -> Result<Communicator> {
        let _ = exclude;
        Err(Error::internal("not there yet"))
    }

    /// Waits until the calls under way are over, and tells the other ranks that there will be no more
    /// from this one. Only destroying is allowed after it.
    pub fn finalize(&self) -> Result<()> {
        Err(Error::internal("not there yet"))
    }

    /// Fails the calls under way and all later ones, here and on the other ranks. Callable from any
    /// thread at any time.
    pub fn abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
        // A call under way sees the flag within milliseconds and tells the others itself.
        if let Some(mut inner) = self.inner.try_lock()
            && inner.failed.is_none()
        {
            let e = wait::aborted(format!("rank {}", self.rank));
            inner.fail(&e);
        }
    }

    /// The error that made this communicator unusable, if any.
    pub fn failure(&self) -> Option<Error> {
        self.inner.lock().failed.clone()
    }
}

fn after_failure(e: &Error) -> Error {
    Error { what: format!("the communicator failed earlier: {}", e.what), ..e.clone() }
        .hint("destroy it and make a new one")
}

#[inline]
fn check_buffers(send: *const u8, recv: *mut u8, count: usize, dtype: DataType) -> Result<usize> {
    let bytes = count.wrapping_mul(dtype.size());
    let sane = count <= isize::MAX as usize / dtype.size();
    let apart = (send as usize).wrapping_sub(recv as usize);
    let overlap = apart != 0 && (apart < bytes || apart.wrapping_neg() < bytes);
    if sane && !overlap && (count == 0 || (!send.is_null() && !recv.is_null())) {
        return Ok(bytes);
    }
    Err(bad_buffers(send, recv, count, dtype, sane))
}

#[cold]
fn bad_buffers(send: *const u8, recv: *mut u8, count: usize, dtype: DataType, sane: bool) -> Error {
    let call = format!("all_reduce of {count} {}", dtype.name());
    if !sane {
        return Error::argument(format!("{count} elements of {} bytes do not fit in memory", dtype.size()))
            .who(call)
            .hint("the count is in elements; a negative number may have been passed");
    }
    if send.is_null() || recv.is_null() {
        let which = if send.is_null() { "send" } else { "receive" };
        return Error::argument(format!("the {which} buffer is null"))
            .who(call)
            .hint("only a count of 0 allows it");
    }
    Error::argument("send and receive buffer overlap")
        .who(format!("{call}, {send:p} and {recv:p}"))
        .hint("pass the same pointer twice to reduce in place, or buffers that are apart")
}

impl Inner {
    fn choose(&self, bytes: usize) -> Choice {
        match self.forced {
            Some(a) => tune::forced(&self.layout, a),
            None => tune::choose(&self.layout, bytes),
        }
    }

    /// The rank's program of an algorithm, proved if the configuration asks for it, and the longest
    /// message of any rank.
    fn program(&mut self, a: &'static Algorithm) -> Result<(Arc<Program>, u32)> {
        for ways in 1..=WAYS_MAX {
            if let Some((_, p, longest)) = self.bounds.get(&(a.name, ways)) {
                return Ok((p.clone(), *longest));
            }
        }
        if self.config.verify {
            schedule::verify(a, &self.layout.groups, 0)
                .map_err(|e| Error::internal(format!("{} is refused for this job: {e}", a.name)))?;
        }
        let n = self.boot.size;
        let longest =
            (0..n).map(|r| tune::longest_message(&a.program(r, &self.layout.groups, 0))).max().unwrap_or(0);
        Ok((Arc::new(a.program(self.boot.rank, &self.layout.groups, 0)), longest))
    }

    /// Tiles of a call, and what `program` says.
    fn shape(&mut self, c: &Choice, bytes: usize) -> Result<(u32, Arc<Program>, u32)> {
        let (program, longest) = self.program(c.algorithm)?;
        let room = if self.layout.all_tcp { c.message } else { c.message.min(shm::MESSAGE) };
        Ok((tune::tiles(bytes, program.chunks, longest, room), program, longest))
    }

    /// Binds a program to links; connects to its peers first.
    fn bind(
        &mut self,
        a: &'static Algorithm,
        ways: u32,
        program: &Arc<Program>,
        longest: u32,
        abort: &AtomicBool,
        key: &Key,
    ) -> Result<Arc<Bound>> {
        if let Some((b, ..)) = self.bounds.get(&(a.name, ways)) {
            return Ok(b.clone());
        }
        let mut wanted: Vec<usize> =
            program.lanes.iter().flat_map(|l| &l.peers).map(|&p| p as usize).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut meeting = Meeting::new(&mut self.peers, abort, self.seq, key.text(), self.config.timeout);
        let deadline = meeting.deadline();
        wanted.retain(|&rank| meeting.peers.get(rank).is_none());
        let coming = wanted.into_iter().map(|rank| {
            let same = self.boot.hosts[rank] == self.boot.hosts[self.boot.rank];
            let shm = same && self.config.transport != TransportChoice::Tcp;
            Coming::begin(&self.boot, rank, shm, self.own, self.bell)
        });
        let coming = coming.collect::<Result<Vec<_>>>()?;
        meeting.await_all(coming)?;
        let (links, own, me) = (&mut self.links, self.own, self.boot.rank);
        let crowded = self.manner.crowded();
        let bound = Bound::new(program, ways, &mut |peer, port| {
            loop {
                let p = meeting.peers.get(peer as usize).expect("connected above");
                // Before it is asked: what it did before it left counts.
                let gone = p.gone;
                if let Some(first) = p.open(port, me < peer as usize, crowded, own, links)? {
                    return Ok(first);
                }
                if let Some(gone) = gone {
                    return Err(wait::lost(peer as usize, gone, meeting.position()));
                }
                // The lower rank is on its way through the same call.
                meeting.look(Duration::from_micros(200))?;
                if Instant::now() > deadline {
                    return Err(Error::timeout(format!("rank {peer} did not open its link"))
                        .who(meeting.position())
                        .hint("see what that rank is doing; GRACCL_TIMEOUT (seconds) sets the limit"));
                }
            }
        })?;
        let bound = Arc::new(bound);
        self.bounds.insert((a.name, ways), (bound.clone(), program.clone(), longest));
        Ok(bound)
    }

    #[cold]
    fn prepare(&mut self, key: Key, abort: &AtomicBool) -> Result<u32> {
        if let Some(&i) = self.by_key.get(&key) {
            self.quick[key.quick()] = i;
            return Ok(i);
        }
        if self.prepared.len() >= PREPARED_MAX {
            self.prepared.clear();
            self.by_key.clear();
            self.quick = [u32::MAX; QUICK];
        }
        let esize = key.dtype.size();
        let bytes = key.count * esize;
        let choice = self.choose(bytes);
        let (tiles, program, longest) = self.shape(&choice, bytes)?;
        let ways = choice.ways.min(tiles).min(WAYS_MAX);
        let bound = self.bind(choice.algorithm, ways, &program, longest, abort, &key)?;
        let span = BlockSpan { count: key.count, tiles, input: 0, output: 0 };
        let tiling = Tiling::new(&vec![span; bound.blocks().len()], esize, program.chunks);
        if bytes >= HUGE_MIN {
            for p in &mut self.peers.list {
                p.make_huge();
            }
        }
        let image = tiling.scratch_bytes();
        let scratch = program.scratch as usize * image * ways as usize;
        let name = choice.algorithm.name;
        let text = format!("all_reduce {} {:?} {:?} {name} {tiles} {ways}", key.count, key.dtype, key.op);
        let i = self.prepared.len() as u32;
        self.prepared.push(Prepared {
            key,
            bound,
            tiling,
            kernel: reduce::kernel(key.dtype, key.op),
            image,
            scratch,
            algorithm: choice.algorithm,
            print: fnv(text.as_bytes()),
        });
        self.by_key.insert(key, i);
        self.quick[key.quick()] = i;
        Ok(i)
    }

    /// # Safety
    /// As for `all_reduce_raw`, for `bytes` bytes.
    #[inline]
    unsafe fn all_reduce(
        &mut self,
        abort: &AtomicBool,
        send: *const u8,
        recv: *mut u8,
        bytes: usize,
        key: Key,
    ) -> Result<()> {
        self.seq = self.seq.wrapping_add(1);
        let quick = self.quick[key.quick()] as usize;
        let index = match self.prepared.get(quick) {
            Some(p) if p.key == key => quick,
            _ => self.prepare(key, abort)? as usize,
        };
        let p = &self.prepared[index];
        let in_place = std::ptr::eq(send, recv);
        if self.scratch.len() < p.scratch {
            self.scratch.resize(p.scratch, 0);
        }
        let launch = Launch {
            bound: &p.bound,
            tiling: &p.tiling,
            kernel: p.kernel,
            esize: key.dtype.size(),
            input: send,
            output: recv,
            scratch: self.scratch.as_mut_ptr(),
            scratch_stride: [p.image, if p.scratch == 0 { 0 } else { p.scratch / p.bound.ways() as usize }],
            divide: if key.op == RedOp::Avg { self.boot.size as u32 } else { 1 },
            spin: self.manner.inner_spin(),
            fp: p.print ^ self.seq.wrapping_mul(0x9e37_79b1),
            stream: !in_place && bytes >= STREAM_MIN,
            // In place a peer writes its reply into our buffer, where the reply belongs. Apart, it would
            // write into the caller's input; and lines of an input that are only read cost their
            // owner more to rewrite than staging them costs.
            by_ref_shm: in_place && p.algorithm.ref_safe && p.algorithm.reply_safe,
            by_ref_other: p.algorithm.ref_safe,
        };
        let program = &self.bounds;
        let call = || key.text();
        let at = |b: &Blocked| position(program, p, b);
        // SAFETY: the doorbell's page lives as long as the communicator.
        let bell = unsafe { &*(self.own.base().add(self.bell.offset) as *const Doorbell) };
        let mut wait =
            Wait::new(self.manner, &mut self.peers, abort, bell, self.config.timeout, self.seq, &call, &at);
        // SAFETY: buffers by the caller's promise; scratch as sized above; links as bound.
        let ran = unsafe { self.engine.run(&launch, &mut self.links, &mut wait) }?;
        debug_assert_eq!(ran, Ran::Done, "a wait that never leaves");
        Ok(())
    }

    /// Makes the communicator unusable and tells the others why.
    #[cold]
    fn fail(&mut self, e: &Error) {
        let word = Word::Abort { code: e.code as i32, text: format!("rank {} failed: {e}", self.boot.rank) };
        self.peers.tell(&word);
        // Nothing may refer to the caller's buffers after the call has returned.
        for c in self.peers.list.iter().filter_map(|p| p.tcp()) {
            c.close("the communicator failed");
        }
        // Who still waits to connect to us is told as well.
        self.boot.close();
        self.failed = Some(e.clone());
    }
}

/// Where in which schedule a lane stands.
fn position(bounds: &Bounds, p: &Prepared, b: &Blocked) -> String {
    let step = bounds
        .get(&(p.algorithm.name, p.bound.ways()))
        .and_then(|(_, program, _)| {
            let lane = program.lanes.get(b.lane)?;
            Some(schedule::describe(lane, b.op as usize))
        })
        .unwrap_or_default();
    format!("{}, tile {} of {}, step {}: {step}", p.algorithm.name, b.tile, p.tiling.tiles(), b.op)
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, &b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.peers.tell(&Word::Bye);
        let until = Instant::now() + LEAVE;
        // A peer may still read our last message from memory that we are about to free, and closing a
        // TCP connection with something unread would cut off what is under way to the peer.
        while self.failed.is_none()
            && self.peers.list.iter().any(|p| p.gone.is_none())
            && Instant::now() < until
        {
            for p in &self.peers.list {
                if let Some(c) = p.tcp() {
                    c.pump();
                }
            }
            if self.peers.poll(Duration::from_millis(1)).is_err() {
                break;
            }
        }
        self.links.clear();
        for p in &mut self.peers.list {
            // What a peer may still use stays allocated: its pages are few, and safety is worth more.
            if p.gone.is_some() {
                p.free(self.own);
            }
        }
        if self.peers.list.iter().all(|p| p.gone.is_some()) {
            self.own.free(self.bell.offset);
        }
    }
}

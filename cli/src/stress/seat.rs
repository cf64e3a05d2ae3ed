//! What one thread of a rank does: random batches of calls on its communicator and on those it makes of it.
//!
//! Every choice that ranks must make alike comes from a generator that all of them seed alike; what is a rank's
//! own business (memory, in place or not, how to wait, delays) comes from a private one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use graccl::{Communicator, DataType, Error, RedOp, Request, Result, group_end, group_start};

use super::op::{Data, End, Message, Op, Spec};
use super::plan::Rng;

/// Communicators that a thread has made of its own one.
const POOL: usize = 3;
/// Longest delay before a call.
const DELAY: Duration = Duration::from_millis(20);

/// Why an act ends. Ranks agree on the largest.
pub const ON: u32 = 0;
/// It has lasted long enough.
pub const OVER: u32 = 1;
/// Something has failed.
pub const TROUBLE: u32 = 2;

/// What the threads of a rank share.
pub struct Stage {
    pub data: Data,
    /// [`ON`], [`OVER`] or [`TROUBLE`].
    pub stop: AtomicU32,
    pub calls: Mutex<BTreeMap<&'static str, u64>>,
    pub total: AtomicU64,
    pub delays: AtomicU64,
    pub wrong: Mutex<Vec<String>>,
    /// Communicators that threads have made, for who aborts one.
    pub made: Mutex<Vec<Weak<Communicator>>>,
    /// Whether there are delays.
    pub delayed: bool,
}

pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    fn count(&self, name: &'static str) {
        *lock(&self.calls).entry(name).or_default() += 1;
        self.total.fetch_add(1, Ordering::Relaxed);
    }

    fn delay(&self, r: &mut Rng) {
        if self.delayed && r.percent(3) {
            std::thread::sleep(r.time(DELAY));
            self.delays.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends the act at once, if it is not over already.
    pub fn trouble(&self) {
        self.stop.fetch_max(TROUBLE, Ordering::Relaxed);
    }
}

/// Calls that can be part of a batch.
enum Item {
    Op(Box<Op>),
    End(End),
}

// SAFETY: the pointers go to buffers that are its own.
unsafe impl Send for Item {}

impl Item {
    fn run(&mut self, comm: &Communicator) -> Result<()> {
        match self {
            Item::Op(o) => o.run(comm),
            Item::End(e) => e.run(comm),
        }
    }

    fn start(&mut self, comm: &Communicator) -> Result<Request> {
        match self {
            Item::Op(o) => o.start(comm),
            Item::End(e) => e.start(comm),
        }
    }

    fn settle(&self, stage: &Stage) {
        let (name, wrong) = match self {
            Item::Op(o) => (o.name(), o.check(&stage.data)),
            Item::End(e) => (e.name(), e.check(&stage.data)),
        };
        stage.count(name);
        lock(&stage.wrong).extend(wrong);
    }
}

/// A batch: calls and the communicators that they are for.
type Batch = Vec<(Arc<Communicator>, Item)>;

/// How the calls of a batch are made; the same on all ranks.
#[derive(Clone, Copy)]
enum Style {
    /// One after the other.
    Blocking,
    /// All started, then waited for.
    Started,
    /// In a group.
    Group,
    /// Each started by the end of the one before.
    Chained,
}

/// Waits for requests in one of the ways there are. All are over afterwards, whatever happened.
fn wait(requests: Vec<Request>, r: &mut Rng) -> Result<()> {
    let mut result = Ok(());
    match r.below(4) {
        0 => requests.iter().for_each(|q| result = result.clone().and(q.wait())),
        1 => requests.iter().rev().for_each(|q| result = result.clone().and(q.wait())),
        2 => {
            for q in &requests {
                // A program that looks now and then.
                loop {
                    match q.test() {
                        Ok(false) => std::thread::sleep(Duration::from_micros(50)),
                        other => break result = result.and(other.map(drop)),
                    }
                }
            }
        }
        _ => {
            for q in &requests {
                let over = Arc::new(AtomicBool::new(false));
                let told = over.clone();
                q.on_done(Box::new(move |_| told.store(true, Ordering::Release)));
                loop {
                    match q.wait_for(Duration::from_millis(2)) {
                        Ok(false) => {}
                        other => break result = result.and(other.map(drop)),
                    }
                }
                // The callback may run a moment after the call is over.
                while !over.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
        }
    }
    result
}

/// Calls of which each is started where the one before it ends: by whatever thread ends it.
struct Chain {
    items: Vec<(Arc<Communicator>, Mutex<Item>)>,
    over: Condvar,
    result: Mutex<Option<Result<()>>>,
}

impl Chain {
    fn next(chain: &Arc<Chain>, i: usize) {
        let Some((comm, item)) = chain.items.get(i) else { return chain.end(Ok(())) };
        let request = lock(item).start(comm);
        match request {
            Err(e) => chain.end(Err(e)),
            Ok(request) => {
                let rest = chain.clone();
                request.on_done(Box::new(move |result| match result {
                    Ok(()) => Chain::next(&rest, i + 1),
                    Err(e) => rest.end(Err(e.clone())),
                }));
            }
        }
    }

    fn end(&self, result: Result<()>) {
        *lock(&self.result) = Some(result);
        self.over.notify_all();
    }
}

fn carry_out(stage: &Stage, mut batch: Batch, style: Style, r: &mut Rng) -> Result<()> {
    match style {
        Style::Blocking => {
            for (comm, item) in &mut batch {
                stage.delay(r);
                // To start a call and wait at once is as good.
                match r.percent(25) {
                    true => item.start(comm)?.wait()?,
                    false => item.run(comm)?,
                }
                item.settle(stage);
            }
            return Ok(());
        }
        Style::Started => {
            let mut requests = Vec::new();
            let mut result = Ok(());
            for (comm, item) in &mut batch {
                stage.delay(r);
                match item.start(comm) {
                    Ok(q) => requests.push(q),
                    Err(e) => {
                        result = Err(e);
                        break;
                    }
                }
            }
            stage.delay(r);
            wait(requests, r).and(result)?;
        }
        Style::Chained => {
            let items = batch.into_iter().map(|(comm, item)| (comm, Mutex::new(item))).collect();
            let chain = Arc::new(Chain { items, over: Condvar::new(), result: Mutex::new(None) });
            Chain::next(&chain, 0);
            let mut result = lock(&chain.result);
            while result.is_none() {
                result = chain.over.wait(result).unwrap_or_else(PoisonError::into_inner);
            }
            result.clone().unwrap_or(Ok(()))?;
            chain.items.iter().for_each(|(_, item)| lock(item).settle(stage));
            return Ok(());
        }
        Style::Group => {
            group_start()?;
            let mut requests = Vec::new();
            let mut result = Ok(());
            for (comm, item) in &mut batch {
                let made = match r.percent(30) {
                    true => item.start(comm).map(|q| requests.push(q)),
                    false => item.run(comm),
                };
                result = result.and(made);
            }
            let ended = group_end();
            wait(requests, r).and(ended).and(result)?;
        }
    }
    batch.iter().for_each(|(_, item)| item.settle(stage));
    Ok(())
}

/// Messages of one epoch on a communicator; this rank's ends of them.
fn points(stage: &Stage, comm: &Arc<Communicator>, common: &mut Rng, r: &mut Rng) -> Result<Batch> {
    let (n, me) = (comm.size(), comm.rank());
    let mut batch = Batch::new();
    if n > 1 {
        for _ in 0..1 + common.below(10) {
            let m = Message::random(common, n);
            if m.from == me || m.to == me {
                batch.push((comm.clone(), Item::End(End::new(m, me, n, &stage.data, r)?)));
            }
        }
    }
    Ok(batch)
}

/// Calls on `base` and on communicators made of it, until all ranks agree that it is enough. `points_too`: also
/// sends and receives on `base`.
pub fn collectives(
    stage: &Stage,
    base: &Arc<Communicator>,
    seed: u64,
    private: &mut Rng,
    points_too: bool,
) -> Result<u32> {
    // The same length on all ranks; `None` where this one is not a member.
    let mut pool = Vec::new();
    let ended = epochs(stage, base, &mut pool, seed, private, points_too);
    if ended.is_err() {
        // Others may wait for calls on these that will not come, and need not be connected to us yet.
        pool.iter().flatten().for_each(|c| c.abort());
    }
    ended
}

fn epochs(
    stage: &Stage,
    base: &Arc<Communicator>,
    pool: &mut Vec<Option<Arc<Communicator>>>,
    seed: u64,
    private: &mut Rng,
    points_too: bool,
) -> Result<u32> {
    for epoch in 0.. {
        let mut common = Rng::of(&[seed, epoch]);
        change(stage, base, pool, &mut common, private)?;
        match common.below(12) {
            0 => twins(stage, base, &mut common, private)?,
            1 => leave_behind(stage, pool, &mut common, private)?,
            _ => {}
        }
        let style =
            common.pick(&[Style::Blocking, Style::Blocking, Style::Started, Style::Group, Style::Chained]);
        let mut batch = Batch::new();
        for _ in 0..1 + common.below(6) {
            let mut choice = Rng::new(common.next());
            let at = choice.below(2 * pool.len() + 2);
            let own = at >= pool.len();
            let Some(comm) = (if own { Some(base) } else { pool[at].as_ref() }) else { continue };
            let (n, me) = (comm.size(), comm.rank());
            if choice.percent(15) && (points_too || !own) {
                batch.extend(points(stage, comm, &mut choice, private)?);
            } else {
                let op = Op::new(Spec::random(&mut choice, n), me, n, &stage.data, private)?;
                batch.push((comm.clone(), Item::Op(op.into())));
            }
        }
        carry_out(stage, batch, style, private)?;
        let mut verdict = [stage.stop.load(Ordering::Relaxed)];
        base.all_reduce(&mut verdict, RedOp::Max)?;
        if verdict[0] != ON {
            return Ok(verdict[0]);
        }
    }
    Ok(ON)
}

/// Two threads make the same calls on one communicator: whichever meet, the data are the same.
fn twins(stage: &Stage, base: &Arc<Communicator>, common: &mut Rng, private: &mut Rng) -> Result<()> {
    let (n, me) = (base.size(), base.rank());
    let (spec, times) = (Spec::random(common, n), 1 + common.below(10));
    let calls = |mut r: Rng| {
        (0..times).try_for_each(|_| {
            let item = Item::Op(Op::new(spec.clone(), me, n, &stage.data, &mut r)?.into());
            carry_out(stage, vec![(base.clone(), item)], Style::Blocking, &mut r)
        })
    };
    let (one, other) = (Rng::new(private.next()), Rng::new(private.next()));
    std::thread::scope(|scope| {
        let twin = scope.spawn(|| calls(one));
        let own = calls(other);
        twin.join().unwrap_or_else(|_| Err(Error::internal("a thread of the test panicked"))).and(own)
    })
}

/// A communicator is dropped while calls that were started on it are under way.
fn leave_behind(
    stage: &Stage,
    pool: &mut Vec<Option<Arc<Communicator>>>,
    common: &mut Rng,
    private: &mut Rng,
) -> Result<()> {
    if pool.is_empty() {
        return Ok(());
    }
    let gone = pool.remove(common.below(pool.len()));
    let seed = common.next();
    let Some(comm) = gone else { return Ok(()) };
    let (mut common, n, me) = (Rng::new(seed), comm.size(), comm.rank());
    let mut items = Vec::new();
    let mut requests = Vec::new();
    let mut result = Ok(());
    for _ in 0..1 + common.below(4) {
        let mut op = Op::new(Spec::random(&mut common, n), me, n, &stage.data, private)?;
        match op.start(&comm) {
            Ok(q) => requests.push(q),
            Err(e) => result = result.and(Err(e)),
        }
        items.push(Item::Op(op.into()));
    }
    if private.percent(50) {
        result = result.and(comm.finalize());
    }
    drop(comm);
    wait(requests, private).and(result)?;
    items.iter().for_each(|item| item.settle(stage));
    Ok(())
}

/// Makes, drops and shrinks communicators of the pool now and then.
fn change(
    stage: &Stage,
    base: &Arc<Communicator>,
    pool: &mut Vec<Option<Arc<Communicator>>>,
    common: &mut Rng,
    private: &mut Rng,
) -> Result<()> {
    if pool.len() < POOL && common.percent(12) {
        let from = common.below(pool.len() + 1);
        let (colors, salt, way) = (1 + common.below(3), common.next(), common.below(3));
        let parent = if from == pool.len() { Some(base) } else { pool[from].as_ref() };
        let child = match parent {
            None => None,
            Some(p) if way == 0 => Some(p.duplicate()?),
            Some(p) => {
                let mut own = Rng::of(&[salt, p.rank() as u64]);
                let color = own.below(colors + 1);
                // One colour in some splits is no colour.
                let color = (color < colors || way == 1).then_some(color as u32);
                p.split(color, own.below(3) as i32 - 1)?
            }
        };
        let child = child.map(Arc::new);
        lock(&stage.made).extend(child.as_ref().map(Arc::downgrade));
        stage.count("split");
        pool.push(child);
    }
    if !pool.is_empty() && common.percent(8) {
        let gone = pool.remove(common.below(pool.len()));
        // Here and there later than elsewhere.
        stage.delay(private);
        drop(gone);
    }
    if !pool.is_empty() && common.percent(3) {
        let i = common.below(pool.len());
        let without_last = common.percent(50);
        if let Some(old) = pool[i].take() {
            let last = old.size() - 1;
            pool[i] = match without_last && last > 0 {
                true if old.rank() == last => None,
                true => Some(Arc::new(old.shrink(&[last])?)),
                false => Some(Arc::new(old.shrink(&[])?)),
            };
            stage.count("shrink");
        }
    }
    Ok(())
}

/// Only sends and receives, on a communicator on which another thread calls collectives.
pub fn messages(stage: &Stage, base: &Arc<Communicator>, seed: u64, private: &mut Rng) -> Result<u32> {
    let (n, me) = (base.size(), base.rank());
    for epoch in 0.. {
        let mut common = Rng::of(&[seed, epoch]);
        let style = common.pick(&[Style::Blocking, Style::Started, Style::Group]);
        let batch = points(stage, base, &mut common, private)?;
        carry_out(stage, batch, style, private)?;
        let verdict = agree(base, n, me, stage.stop.load(Ordering::Relaxed))?;
        if verdict != ON {
            return Ok(verdict);
        }
    }
    Ok(ON)
}

/// The largest of all ranks' numbers, by messages through rank 0.
fn agree(comm: &Communicator, n: usize, me: usize, mut mine: u32) -> Result<u32> {
    let mut other = 0u32;
    let (at, theirs) = ((&raw mut mine).cast::<u8>(), (&raw mut other).cast::<u8>());
    // SAFETY: two numbers of ours; the calls block.
    unsafe {
        if me > 0 {
            comm.send_raw(at, 1, DataType::U32, 0)?;
            comm.recv_raw(at, 1, DataType::U32, 0)?;
            return Ok(at.cast::<u32>().read());
        }
        for r in 1..n {
            comm.recv_raw(theirs, 1, DataType::U32, r)?;
            at.cast::<u32>().write(at.cast::<u32>().read().max(theirs.cast::<u32>().read()));
        }
        for r in 1..n {
            comm.send_raw(at, 1, DataType::U32, r)?;
        }
        Ok(at.cast::<u32>().read())
    }
}

//! One rank of a round: acts on the stage until the time is over, with what makes it fail in between.
//!
//! ```text
//! era    a communicator of all ranks that live     ends when something fails: they shrink it, or join anew
//! act    about a second: threads make calls        ends by agreement, or with an error
//! epoch  a batch of calls, checked
//! ```

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use graccl::{Code, Communicator, Config, Error, RedOp, Result, UniqueId};
use serde::{Deserialize, Serialize};

use super::op::Data;
use super::plan::{Break, Plan, Rng};
use super::seat::{self, ON, OVER, Stage, TROUBLE, lock};
use super::usage::Usage;

/// How long acts last.
const ACT: Duration = Duration::from_millis(700);
/// Between reports to the parent.
const REPORT: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(5);

/// What a rank tells its parent, a line each.
#[derive(Serialize, Deserialize)]
pub enum Event {
    /// It is one of `size` ranks that go on.
    Era {
        number: u32,
        size: usize,
    },
    /// Something failed, as it should if faults were injected: code and text.
    Trouble {
        code: String,
        text: String,
    },
    /// Calls that ended with right or wrong results, since the beginning.
    Calls {
        calls: BTreeMap<String, u64>,
        delays: u64,
    },
    Wrong(String),
    /// Before an act.
    Act(Usage),
    /// After all communicators.
    Done(Usage),
}

fn say(e: &Event) {
    let line = serde_json::to_string(e).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    // Without a parent there is nobody to tell, and soon no process.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Plays the part of `rank`; the exit status.
pub fn main(plan: &Plan, rank: usize) -> Result<u8> {
    let orders = orders()?;
    let before = Usage::now();
    let stage = Stage {
        data: Data::new(plan.seed),
        stop: AtomicU32::new(ON),
        calls: Mutex::default(),
        total: AtomicU64::new(0),
        delays: AtomicU64::new(0),
        wrong: Mutex::default(),
        made: Mutex::default(),
        delayed: plan.delays,
    };
    let start = Instant::now();
    let mut private = Rng::of(&[plan.seed, 2, rank as u64]);
    let mut world = join()?;
    let mut era = 0;
    loop {
        say(&Event::Era { number: era, size: world.size() });
        match acts(plan, &stage, &world, era, start, &orders, &mut private) {
            Ok(()) => break,
            Err(e) => say(&Event::Trouble { code: format!("{:?}", e.code), text: e.to_string() }),
        }
        era += 1;
        world = match plan.breaks {
            Break::Cut => {
                drop(world);
                join()?
            }
            _ => match world.shrink(&[]) {
                Ok(next) => {
                    drop(world);
                    next
                }
                // It lives, but not with the others.
                Err(e)
                    if plan.breaks == Break::Part && matches!(e.code, Code::InvalidUsage | Code::Timeout) =>
                {
                    eprintln!("leaves: {e}");
                    break;
                }
                Err(e) => return Err(e),
            },
        };
    }
    drop(world);
    report(&stage);
    let mut kept = Usage::now().since(&before);
    for _ in 0..100 {
        if !kept.too_much() {
            break;
        }
        // What peers may still use is kept until they have left, too, and freed with some later communicator. They may be
        // stopped, or without a core.
        std::thread::sleep(Duration::from_millis(100));
        drop(Communicator::init_all(1, &Config::default())?);
        kept = Usage::now().since(&before);
    }
    say(&Event::Done(kept));
    Ok(0)
}

fn join() -> Result<Communicator> {
    Communicator::init_env(&Config::from_env()?)
}

/// Aborts that the parent asks for: numbers that choose what is aborted.
fn orders() -> Result<Arc<Mutex<Vec<u64>>>> {
    let orders: Arc<Mutex<Vec<u64>>> = Arc::default();
    let list = orders.clone();
    std::thread::Builder::new()
        .name("orders".into())
        .spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
                lock(&list).extend(line.trim().parse::<u64>());
            }
        })
        .map_err(|e| Error::io("cannot start a thread", &e))?;
    Ok(orders)
}

/// Tells what was counted and what was wrong.
fn report(stage: &Stage) {
    let calls = lock(&stage.calls).iter().map(|(name, n)| (name.to_string(), *n)).collect();
    say(&Event::Calls { calls, delays: stage.delays.load(Ordering::Relaxed) });
    for w in std::mem::take(&mut *lock(&stage.wrong)) {
        eprintln!("wrong: {w}");
        say(&Event::Wrong(w));
    }
}

/// Acts until the round's time is over. An error: something failed.
fn acts(
    plan: &Plan,
    stage: &Stage,
    world: &Communicator,
    era: u32,
    start: Instant,
    orders: &Mutex<Vec<u64>>,
    private: &mut Rng,
) -> Result<()> {
    for number in 0.. {
        stage.stop.store(ON, Ordering::Relaxed);
        let seed = Rng::of(&[plan.seed, 3, era.into(), number]).next();
        let ended = act(plan, stage, world, seed, orders, private);
        if let Err(e) = &ended {
            eprintln!("era {era}, act {number}: {e}");
        }
        // At least two acts after a failure: that is what it is for.
        let enough = start.elapsed() >= plan.length && number >= 1;
        let mine = match &ended {
            Err(_) => TROUBLE,
            Ok(()) if enough && world.rank() == 0 => OVER,
            Ok(()) => ON,
        };
        let mut verdict = [mine];
        let agreed = world.all_reduce(&mut verdict, RedOp::Max);
        ended?;
        agreed?;
        report(stage);
        match verdict[0] {
            ON => {}
            OVER => return Ok(()),
            _ => return Err(Error::remote("another rank has met an error")),
        }
    }
    Ok(())
}

/// One act: communicators, threads, and their end.
fn act(
    plan: &Plan,
    stage: &Stage,
    world: &Communicator,
    seed: u64,
    orders: &Mutex<Vec<u64>>,
    private: &mut Rng,
) -> Result<()> {
    let mut common = Rng::new(seed);
    let mut bases = Vec::new();
    // One more family of communicators, now and then, where no rank is lost while it comes together.
    if matches!(plan.breaks, Break::Nothing | Break::Abort) && common.percent(20) {
        bases.push(Arc::new(family(world)?));
    }
    while bases.len() < plan.threads {
        // Ranks are numbered anew in some.
        let salt = common.next();
        let key = if common.percent(50) { Rng::of(&[salt, world.rank() as u64]).below(5) } else { 0 };
        let made = world.split(Some(0), key as i32)?;
        bases
            .push(Arc::new(made.ok_or_else(|| Error::internal("a rank without its colour's communicator"))?));
    }
    // What the act before has left is gone by now, and this one has nothing yet.
    say(&Event::Act(Usage::now()));
    let result = std::thread::scope(|scope| {
        // Another rank's thread may wait for calls on `base` that will not come now, and this rank's act ends when all
        // its threads have: without the abort two ranks can wait in a circle.
        let failed = |base: &Communicator| {
            base.abort();
            stage.trouble();
        };
        let mut threads = Vec::new();
        for (i, base) in bases.iter().enumerate() {
            let (seed, mut r) = (common.next(), Rng::new(private.next()));
            let apart = plan.points && i == 0;
            threads.push(scope.spawn(move || {
                let result = seat::collectives(stage, base, seed, &mut r, !apart);
                result.inspect_err(|_| failed(base))
            }));
        }
        if plan.points {
            let (seed, mut r) = (common.next(), Rng::new(private.next()));
            let base = &bases[0];
            threads.push(
                scope.spawn(move || seat::messages(stage, base, seed, &mut r).inspect_err(|_| failed(base))),
            );
        }
        let begin = Instant::now();
        let mut told = begin;
        while !threads.iter().all(|t| t.is_finished()) {
            std::thread::sleep(TICK);
            if world.failure().is_some() {
                stage.trouble();
            }
            if world.rank() == 0 && begin.elapsed() > ACT {
                stage.stop.fetch_max(OVER, Ordering::Relaxed);
            }
            for order in std::mem::take(&mut *lock(orders)) {
                abort(order, stage, world, &bases);
            }
            if told.elapsed() > REPORT {
                told = Instant::now();
                report(stage);
            }
        }
        let mut result = Ok(OVER);
        for t in threads {
            let ended = t.join().unwrap_or_else(|_| Err(Error::internal("a thread of the test panicked")));
            result = match (result, ended) {
                (Ok(a), Ok(b)) => Ok(a.max(b)),
                (Err(e), _) | (_, Err(e)) => Err(e),
            };
        }
        result
    });
    drop(bases);
    match (result?, world.failure()) {
        (_, Some(e)) => Err(e),
        (TROUBLE, None) => Err(Error::remote("another rank has met an error")),
        _ => Ok(()),
    }
}

/// A communicator of the same ranks that shares nothing with `world`.
fn family(world: &Communicator) -> Result<Communicator> {
    let mut id = UniqueId([0; 128]);
    if world.rank() == 0 {
        id = UniqueId::create()?;
    }
    world.broadcast(&mut id.0, 0)?;
    Communicator::init_rank(&id, world.rank(), world.size(), &Config::from_env()?)
}

/// Aborts the communicator that `order` chooses, while other threads use it.
fn abort(order: u64, stage: &Stage, world: &Communicator, bases: &[Arc<Communicator>]) {
    let mut r = Rng::new(order);
    let mut made = lock(&stage.made);
    made.retain(|m| m.strong_count() > 0);
    let child = if made.is_empty() { None } else { made[r.below(made.len())].upgrade() };
    drop(made);
    match (r.below(3), child) {
        (0, _) => world.abort(),
        (1, Some(c)) => c.abort(),
        _ => bases[r.below(bases.len())].abort(),
    }
}

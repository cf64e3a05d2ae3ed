//! Calls that are timed, all ranks together.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use graccl::tune::{Choice, Layout};
use graccl::{Collective, Communicator, DataType, RedOp, Result};

use crate::perf::args::Memory;
use crate::perf::buffer::Buffers;
use crate::perf::job::Job;
use crate::perf::operation::{Operation, Placement, Ready, What};
use crate::perf::turns;

/// Turns that each of several candidates has at most: the machine's speed changes while they are compared. Even.
const ROUNDS: usize = 30;
/// A turn lasts about so long, ns. In one of a few calls the first ones, which find the caches as another candidate left
/// them, count for too much.
const TURN: f64 = 10e6;
const CALLS_MAX: usize = 200;
/// A call this long needs no other to warm it up, and has a turn by itself, ns.
const LONG: f64 = 20e6;
/// First calls this long are made once only, ns: they make links and pages, too.
const ONCE: f64 = 1e9;
/// In a race, who took so many times as long as the fastest is out of it: in first calls; and after many rounds. After
/// few it must be more: with ranks that share cores single turns differ by a third.
const HOPELESS: f64 = 3.0;
const BEATEN: f64 = 1.15;
/// Looks at the machine's state that find another one, 0.1 s apart, in all.
const PATIENCE: usize = 40;
/// All takes about so long for each rank, s.
const TIME: f64 = 30.0;

pub struct Bench {
    /// Carries what the ranks tell each other.
    pub job: Job,
    /// What is measured.
    pub comm: Communicator,
    pub layout: Layout,
    buffers: Buffers,
    most: usize,
    /// The first two ranks of the first host that has two, and what a line's way between them took at first.
    near: Option<(Option<Communicator>, f64)>,
    patience: usize,
    began: Instant,
}

/// How well things are compared.
#[derive(Clone, Copy)]
pub struct Effort {
    /// About so long, s: for rounds beyond the first two.
    pub seconds: f64,
    /// Only the fastest matters: others need not go on to the end.
    pub race: bool,
}

impl Bench {
    pub fn new(comm: Communicator, most: usize) -> Result<Bench> {
        let job = Job::new(comm.duplicate()?);
        let layout = comm.layout()?;
        let mut buffers = Buffers::new(most, Memory::Host)?;
        // Pages of their own; and sums of zeros are zeros, however often.
        buffers.send.slice_mut(0..most).fill(0);
        buffers.recv.slice_mut(0..most).fill(0);
        let two = layout.groups.iter().find(|g| g.len() > 1).map(|g| [g[0], g[1]]);
        let mut bench =
            Bench { job, comm, layout, buffers, most, near: None, patience: PATIENCE, began: Instant::now() };
        if let Some(two) = two {
            let color = two.contains(&(bench.rank() as u32)).then_some(0);
            bench.near = Some((bench.comm.split(color, 0)?, 0.0));
            let first = bench.hop()?;
            bench.near = bench.near.take().map(|(c, _)| (c, first));
        }
        Ok(bench)
    }

    /// ns of a tiny message between two ranks of a host: what is called the state of the machine, since hosts move
    /// virtual cores about. 0 without such ranks. Collective.
    pub fn hop(&self) -> Result<f64> {
        let Some((two, _)) = &self.near else { return Ok(0.0) };
        let mut median = 0.0;
        if let Some(two) = two {
            let mut times = Vec::new();
            for _ in 0..9 {
                two.barrier()?;
                let start = Instant::now();
                for _ in 0..40 {
                    two.barrier()?;
                }
                times.push(start.elapsed().as_nanos() as f64 / 40.0);
            }
            times.sort_by(f64::total_cmp);
            median = times[times.len() / 2];
        }
        self.job.combine(median, 3)
    }

    /// Waits until the machine is in the state that it was in at first, some seconds at most in all of a job;
    /// whether it is, as far as that is known.
    pub fn settle(&mut self) -> Result<bool> {
        let Some((_, first)) = self.near else { return Ok(true) };
        while self.patience > 0 {
            let now = self.hop()?;
            if (0.6 * first..=1.6 * first).contains(&now) {
                return Ok(true);
            }
            self.patience -= 1;
            if self.patience.is_multiple_of(10) {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(true)
    }

    pub fn rank(&self) -> usize {
        self.job.rank
    }

    /// s that are left of the time for everything; negative when it is over. The same on all ranks. Collective.
    pub fn left(&self) -> Result<f64> {
        let left = TIME * self.job.size as f64 - self.began.elapsed().as_secs_f64();
        self.job.combine(left, 0)
    }

    /// Says on rank 0's stderr what is being measured: in a line of its own, or on a terminal in the same one.
    pub fn progress(&self, what: std::fmt::Arguments) {
        if self.rank() == 0 {
            let seconds = self.began.elapsed().as_secs();
            let mut err = std::io::stderr();
            let (start, end) = if err.is_terminal() { ("\r\x1b[K", "") } else { ("", "\n") };
            // Nobody needs to read it.
            let _ = write!(err, "{start}# {seconds} s: {what}{end}").and_then(|()| err.flush());
        }
    }

    /// Ends the line of [`Bench::progress`].
    pub fn clear(&self) {
        if self.rank() == 0 && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }

    /// Prints on rank 0.
    pub fn say(&self, text: std::fmt::Arguments) {
        if self.rank() == 0 {
            self.clear();
            // Nobody needs to read it: what counts is the profile.
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// The call whose larger buffer has `bytes`, as near as elements allow, and the bytes that it then has.
    pub fn what(&self, collective: Collective, bytes: usize) -> (What, u64) {
        let n = self.job.size;
        let operation = Operation::Do(collective);
        let count = (bytes.min(self.most) / operation.widest(n).max(1) / 4).max(1);
        let what = What { operation, count, dtype: DataType::F32, op: RedOp::Sum, root: 0 };
        (what, what.bytes(n) as u64)
    }

    /// ns per call of each choice, on the slowest rank: see [`turns::paired`]. In place where possible, as `graccl
    /// perf` compares algorithms.
    pub fn compare(
        &mut self,
        collective: Collective,
        bytes: usize,
        choices: &[Choice],
        effort: Effort,
    ) -> Result<Vec<f64>> {
        let (what, _) = self.what(collective, bytes);
        let Bench { job, comm, buffers, .. } = self;
        let place = *what.operation.placements().last().unwrap_or(&Placement::OutOfPlace);
        let call = Ready::new(&what, job.size, job.rank, place, buffers);
        let once = || -> Result<f64> {
            job.comm.barrier()?;
            let start = Instant::now();
            call.run(comm)?;
            job.combine(start.elapsed().as_nanos() as f64, 3)
        };
        let mut first = Vec::new();
        for &choice in choices {
            comm.force(Some(choice))?;
            let ns = once()?;
            first.push(match ns {
                ..LONG => once()?.min(once()?),
                ..ONCE => once()?,
                _ => ns,
            });
        }
        let least = first.iter().copied().fold(f64::INFINITY, f64::min);
        // Even: see `turns::rounds`.
        let calls = |ns: f64| if ns < LONG { ((TURN / ns) as usize / 2 * 2).clamp(2, CALLS_MAX) } else { 1 };
        let mut alive: Vec<bool> =
            first.iter().map(|&ns| !effort.race || ns < LONG / 100.0 || ns <= HOPELESS * least).collect();
        let turn = |(&ns, &alive): (&f64, &bool)| if alive { ns * (calls(ns) + 1) as f64 } else { 0.0 };
        let round: f64 = first.iter().zip(&alive).map(turn).sum();
        let rounds = ((effort.seconds * 1e9 / round) as usize).clamp(2, ROUNDS) / 2 * 2;
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); choices.len()];
        // Calls in a row take less than first ones, and a turn lasts as long as others when that is known.
        let mut took = first.clone();
        for r in 0..rounds {
            for i in turns::order(choices.len(), r).filter(|&i| alive[i]) {
                comm.force(Some(choices[i]))?;
                if first[i] < LONG {
                    call.run(comm)?;
                }
                let mut turn = vec![0.0; calls(took[i])];
                job.each(&mut turn, || call.run(comm))?;
                let mut own = turns::rounds(&turn, turn.len());
                job.slowest(&mut own)?;
                let ns = own[0] * 1000.0;
                times[i].push(ns);
                took[i] = took[i].min(ns);
            }
            if effort.race && r % 2 == 1 {
                let found = paired(&times, &first);
                let least = found.iter().copied().fold(f64::INFINITY, f64::min);
                let bound = least * (BEATEN + 1.0 / (r + 1) as f64);
                alive.iter_mut().zip(&found).for_each(|(a, t)| *a &= *t <= bound);
                if alive.iter().filter(|a| **a).count() < 2 {
                    break;
                }
            }
        }
        comm.force(None)?;
        Ok(paired(&times, &first))
    }
}

/// What rounds say, and the first call where there were none.
fn paired(times: &[Vec<f64>], first: &[f64]) -> Vec<f64> {
    let with: Vec<Vec<f64>> = times.iter().filter(|t| !t.is_empty()).cloned().collect();
    let mut found = turns::paired(&with).into_iter();
    let of =
        |(t, first): (&Vec<f64>, &f64)| if t.is_empty() { *first } else { found.next().unwrap_or(*first) };
    times.iter().zip(first).map(of).collect()
}

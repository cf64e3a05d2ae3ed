//! A rank's view of the job: its communicators, and what is exchanged besides the data.

use std::cell::Cell;
use std::time::Instant;

use graccl::tune::Choice;
use graccl::{Communicator, DataType, Error, RedOp, Result};

use super::args::PerfArgs;
use super::data::Problem;

/// How a rank's time is combined with the others': the meaning of -a.
const RANK0: u8 = 0;
const AVERAGE: u8 = 1;
const SMALLEST: u8 = 2;

pub struct Job {
    /// Carries what the ranks tell each other, and is measured where nothing else is.
    pub comm: Communicator,
    /// What the choice and algorithms by name are compared on: the same memory and connections for all.
    pub arena: Option<Communicator>,
    pub others: Vec<(&'static str, Choice)>,
    pub rank: usize,
    pub size: usize,
    /// New for every check: all ranks count alike.
    seed: Cell<u64>,
}

/// A name, and what to do; both `None`: the choice.
pub type Contender = (Option<&'static str>, Option<Choice>);

/// Per-iteration times of the slowest rank, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub p99: f64,
    pub max: f64,
    pub average: f64,
}

impl Job {
    pub fn new(comm: Communicator) -> Job {
        let (rank, size) = (comm.rank(), comm.size());
        Job { comm, arena: None, others: Vec::new(), rank, size, seed: Cell::new(0) }
    }

    /// All that is measured, `None` being what graccl, or the flags, chose.
    pub fn contenders(&self) -> impl Iterator<Item = Contender> {
        let named = self.others.iter().map(|&(name, choice)| (Some(name), Some(choice)));
        std::iter::once((None, None)).chain(named)
    }

    /// What is measured, doing its calls as the contender does. Collective.
    pub fn enter(&self, (_, choice): Contender) -> Result<&Communicator> {
        let Some(arena) = &self.arena else { return Ok(&self.comm) };
        arena.force(choice)?;
        Ok(arena)
    }

    /// A problem with new data.
    pub fn problem(&self, dtype: DataType, op: RedOp) -> Problem {
        self.seed.set(self.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        Problem { dtype, op, ranks: self.size, seed: self.seed.get() }
    }

    fn reduce(&self, values: &mut [f64], op: RedOp) -> Result<()> {
        let at = values.as_mut_ptr().cast::<u8>();
        // SAFETY: `values` is borrowed for the call.
        unsafe { self.comm.all_reduce_raw(at, at, values.len(), DataType::F64, op) }
    }

    /// Combines each rank's time as -a says.
    pub fn combine(&self, time: f64, how: u8) -> Result<f64> {
        let mut v = [time];
        match how {
            RANK0 => {
                v[0] = if self.rank == 0 { time } else { 0.0 };
                self.reduce(&mut v, RedOp::Sum)?;
            }
            AVERAGE => {
                self.reduce(&mut v, RedOp::Sum)?;
                v[0] /= self.size as f64;
            }
            SMALLEST => self.reduce(&mut v, RedOp::Min)?,
            _ => self.reduce(&mut v, RedOp::Max)?,
        }
        Ok(v[0])
    }

    /// The sum of a small number over all ranks. Every rank has a slot of its own, so a verdict that
    /// the communicator under test loses is an error.
    pub fn total(&self, own: usize) -> Result<usize> {
        let mut slots = vec![0.0; self.size];
        slots[self.rank] = own as f64 + 1.0;
        self.reduce(&mut slots, RedOp::Sum)?;
        if slots[self.rank] != own as f64 + 1.0 || slots.iter().any(|&s| s < 1.0 || s.fract() != 0.0) {
            return Err(Error::internal("the ranks' verdicts arrived damaged").who(format!("{slots:?}")));
        }
        Ok(slots.iter().map(|s| *s as usize - 1).sum())
    }

    /// One short text of every rank, in rank order. What does not fit into 256 bytes is cut.
    pub fn gather(&self, text: &str) -> Result<Vec<String>> {
        const SLOT: usize = 256;
        let mut all = vec![0u8; SLOT * self.size];
        let n = text.len().min(SLOT);
        all[self.rank * SLOT..][..n].copy_from_slice(&text.as_bytes()[..n]);
        let at = all.as_mut_ptr();
        // SAFETY: `all` lives through the call.
        unsafe { self.comm.all_reduce_raw(at, at, all.len(), DataType::U8, RedOp::Sum)? };
        Ok(all.chunks(SLOT).map(|s| String::from_utf8_lossy(s).trim_end_matches('\0').to_string()).collect())
    }

    /// Time of one iteration of `iteration`, microseconds, from a loop without other work.
    pub fn time(&self, a: &PerfArgs, mut iteration: impl FnMut() -> Result<()>) -> Result<f64> {
        for _ in 0..a.warmup_iters {
            iteration()?;
        }
        self.comm.barrier()?;
        let (start, cpu) = (Instant::now(), cpu_time());
        for _ in 0..a.iters {
            iteration()?;
        }
        let elapsed = if a.report_cputime != 0 { cpu_time() - cpu } else { start.elapsed().as_secs_f64() };
        self.combine(elapsed * 1e6 / f64::from(a.iters), a.average)
    }

    /// Times every iteration, microseconds, one for each element of `times`.
    pub fn each(&self, times: &mut [f64], mut iteration: impl FnMut() -> Result<()>) -> Result<()> {
        self.comm.barrier()?;
        let mut last = Instant::now();
        for time in times {
            iteration()?;
            let now = Instant::now();
            *time = (now - last).as_secs_f64() * 1e6;
            last = now;
        }
        Ok(())
    }

    /// The slowest rank's time of each iteration. Collective.
    pub fn slowest(&self, times: &mut [f64]) -> Result<()> {
        self.reduce(times, RedOp::Max)
    }

    /// What [`Job::slowest`] finds, in short. Collective.
    pub fn spread(&self, times: &mut [f64]) -> Result<Spread> {
        self.slowest(times)?;
        Ok(Spread::of(times))
    }
}

/// CPU seconds of this process, all threads.
fn cpu_time() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` outlives the call, which cannot fail with this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

impl Spread {
    /// Of at least one time. The percentile is the smallest time that 99 % do not exceed.
    pub fn of(times: &mut [f64]) -> Spread {
        let median = middle(times);
        let n = times.len();
        Spread {
            min: times[0],
            median,
            p99: times[(n * 99).div_ceil(100) - 1],
            max: times[n - 1],
            average: times.iter().sum::<f64>() / n as f64,
        }
    }

    /// For iterations of `calls` calls each: the times per call.
    pub fn per_call(self, calls: u32) -> Spread {
        let c = f64::from(calls);
        Spread {
            min: self.min / c,
            median: self.median / c,
            p99: self.p99 / c,
            max: self.max / c,
            average: self.average / c,
        }
    }
}

/// The median of at least one time; sorts them.
pub fn middle(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let n = times.len();
    if n % 2 == 1 { times[n / 2] } else { (times[n / 2 - 1] + times[n / 2]) / 2.0 }
}

/// algbw and busbw, GB/s.
pub fn bandwidth(bytes: usize, time_us: f64, bus_factor: f64) -> (f64, f64) {
    if time_us <= 0.0 {
        return (0.0, 0.0);
    }
    let algbw = bytes as f64 / time_us / 1e3;
    (algbw, algbw * bus_factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let s = Spread::of(&mut (1..=200).rev().map(f64::from).collect::<Vec<_>>());
        assert_eq!((s.min, s.median, s.p99, s.max, s.average), (1.0, 100.5, 198.0, 200.0, 100.5));
        let s = Spread::of(&mut [7.0]);
        assert_eq!((s.min, s.median, s.p99, s.max), (7.0, 7.0, 7.0, 7.0));
    }

    #[test]
    fn bus_bandwidth_counts_what_every_rank_must_move() {
        assert_eq!(bandwidth(1_000_000, 1000.0, 1.5), (1.0, 1.5));
        assert_eq!(bandwidth(1_000_000, 0.0, 1.5), (0.0, 0.0));
    }
}

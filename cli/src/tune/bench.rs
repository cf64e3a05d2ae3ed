//! Calls that are timed, all ranks together.

use std::time::{Duration, Instant};

use graccl::tune::{Choice, Layout};
use graccl::{Collective, Communicator, DataType, RedOp, Result};

use crate::perf::args::Memory;
use crate::perf::buffer::Buffers;
use crate::perf::job::Job;
use crate::perf::operation::{Operation, Placement, Ready, What};

/// Turns that each of several candidates has: the machine's speed changes while they are compared.
const ROUNDS: usize = 9;
/// A turn lasts about so long, ns, but has calls enough.
const TURN: f64 = 0.8e6;
const CALLS: std::ops::RangeInclusive<usize> = 1..=200;
/// A call this long has fewer turns, ns.
const LONG: f64 = 50e6;
/// Looks at the machine's state that find another one, 0.1 s apart, in all.
const PATIENCE: usize = 100;

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
        let mut bench = Bench { job, comm, layout, buffers, most, near: None, patience: PATIENCE };
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
            if self.patience.is_multiple_of(20) {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(true)
    }

    pub fn rank(&self) -> usize {
        self.job.rank
    }

    /// Prints on rank 0.
    pub fn say(&self, text: std::fmt::Arguments) {
        if self.rank() == 0 {
            println!("{text}");
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

    /// ns per call of each choice, on the slowest rank: the median of several turns. In place where possible, as
    /// `graccl perf` compares algorithms.
    pub fn compare(&mut self, collective: Collective, bytes: usize, choices: &[Choice]) -> Result<Vec<f64>> {
        let (what, _) = self.what(collective, bytes);
        let Bench { job, comm, buffers, .. } = self;
        let place = *what.operation.placements().last().unwrap_or(&Placement::OutOfPlace);
        let call = Ready::new(&what, job.size, job.rank, place, buffers);
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); choices.len()];
        let mut calls: Vec<usize> = Vec::new();
        let mut rounds = ROUNDS;
        for &choice in choices {
            // Links and pages are made by the first call; the second says how many fit into a turn.
            comm.force(Some(choice))?;
            call.run(comm)?;
            job.comm.barrier()?;
            let start = Instant::now();
            call.run(comm)?;
            let ns = job.combine(start.elapsed().as_nanos() as f64, 3)?;
            calls.push(((TURN / ns) as usize).clamp(*CALLS.start(), *CALLS.end()));
            if ns > LONG {
                rounds = rounds.min(3);
            }
        }
        for _ in 0..rounds {
            for ((&choice, times), &calls) in choices.iter().zip(&mut times).zip(&calls) {
                comm.force(Some(choice))?;
                call.run(comm)?;
                let mut turn = vec![0.0; calls];
                job.each(&mut turn, || call.run(comm))?;
                times.extend(turn);
            }
        }
        comm.force(None)?;
        times.iter_mut().map(|t| Ok(job.spread(t)?.median * 1000.0)).collect()
    }
}

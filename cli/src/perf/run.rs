//! One rank's part of `graccl perf`.

use std::time::Duration;

use graccl::schedule::algorithms_of;
use graccl::tune::{self, Choice};
use graccl::{Code, Communicator, Config, Error, Result};

use super::args::PerfArgs;
use super::buffer::Buffers;
use super::check::{self, Exam};
use super::choice::Verdict;
use super::job::{Contender, Job, Spread, bandwidth};
use super::operation::{Operation, Placement, Ready, What};
use super::report::Report;
use super::table::{self, Row, Timing};
use super::{tensors, turns};

/// Where algorithms are compared, each has its turn so many times, since the machine's speed changes. An even number.
const ROUNDS: usize = 10;

/// Joins the job, runs everything, and returns the exit status.
pub fn main(a: &PerfArgs, rank: usize, size: usize) -> Result<u8> {
    let cpu = if a.pin { Some(pin(rank)?) } else { None };
    let list = a.gradients()?;
    let points = points(a, size)?;
    if a.operation == Operation::SendRecv && size < 2 {
        return Err(Error::argument("a rank cannot send to itself").hint("start two ranks or more (--np 2)"));
    }
    let all = a.algo.as_deref() == Some("all");
    let steps = points.len() as u64 * u64::from(a.run_cycles);
    let mut report = Report::new(rank == 0, if list.is_some() { 0 } else { steps });
    let config = config(a, if all { Some("auto") } else { a.algo.as_deref() })?;
    let mut job = Job::new(Communicator::init_env(&config)?);
    if (job.rank, job.size) != (rank, size) {
        let what =
            format!("joined as rank {} of {}, but the launcher said {rank} of {size}", job.rank, job.size);
        return Err(Error::internal(what));
    }
    report.header(a, &job, &config, cpu)?;
    if all {
        job.arena = Some(job.comm.duplicate()?);
        job.others = others(a, &job)?;
    }
    match &list {
        Some(list) => {
            for contender in job.contenders() {
                if all {
                    report.say(&format!("#\n# Algorithm: {}\n", contender.0.unwrap_or("auto")))?;
                }
                let comm = job.enter(contender)?;
                tensors::run(a, &job, comm, &mut report, list)?;
            }
        }
        None => table_of(a, &job, &mut report, &points)?,
    }
    let wrong = report.finish(a)?;
    // Nobody leaves before rank 0 has written everything: a launcher ends the others of a failed job.
    job.comm.barrier()?;
    Ok(u8::from(wrong > 0))
}

/// Every algorithm of the collective, as it is done where it is named.
fn others(a: &PerfArgs, job: &Job) -> Result<Vec<(&'static str, Choice)>> {
    let layout = job.comm.layout()?;
    let Some(collective) = a.operation.algorithms() else { return Ok(Vec::new()) };
    Ok(algorithms_of(collective).map(|a| (a.name, tune::forced(&layout, a))).collect())
}

/// All rows of a table, in nccl-tests' order.
fn points(a: &PerfArgs, ranks: usize) -> Result<Vec<What>> {
    let operation = a.operation;
    let what = What { operation, count: 0, dtype: a.types()[0], op: a.ops()[0], root: 0 };
    let (blocks, roots) = (operation.widest(ranks), a.roots(ranks)?);
    if blocks == 0 {
        return Ok(vec![what]);
    }
    let mut points = Vec::new();
    for &dtype in a.types() {
        for op in a.ops() {
            for &root in &roots {
                let counts = a.counts(dtype.size() * blocks).into_iter();
                points.extend(counts.map(|count| What { count, dtype, op, root, ..what }));
            }
        }
    }
    if points.is_empty() {
        let least = blocks * a.types().iter().map(|d| d.size()).min().unwrap_or(1);
        return Err(Error::argument(format!("-e {} is less than one element of each block", a.maxbytes))
            .hint(format!("{ranks} ranks need at least {least} bytes")));
    }
    Ok(points)
}

/// Errors of a job that the algorithm cannot serve: the same on all ranks.
fn not_possible(e: &Error) -> bool {
    matches!(e.code, Code::InvalidArgument | Code::InvalidUsage)
}

/// The environment's settings, with the flags on top.
fn config(a: &PerfArgs, algorithm: Option<&str>) -> Result<Config> {
    let mut c = Config::from_env()?;
    if let Some(t) = a.transport_choice() {
        c.transport = t;
    }
    if let Some(name) = algorithm {
        c.algorithm = Some(name.to_string()).filter(|n| n != "auto");
    }
    if let Some(seconds) = a.timeout {
        c.timeout = Duration::from_secs(seconds);
    }
    Ok(c)
}

/// Binds this process to core `rank` mod the number of cores that it may use.
pub fn pin(rank: usize) -> Result<usize> {
    // SAFETY: plain calls on a local set, with its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of_val(&set), &mut set) != 0 {
            return Err(Error::os("cannot see which cores may be used"));
        }
        let cores: Vec<usize> =
            (0..libc::CPU_SETSIZE as usize).filter(|&c| libc::CPU_ISSET(c, &set)).collect();
        let core = cores[rank % cores.len()];
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(core, &mut set);
        if libc::sched_setaffinity(0, size_of_val(&set), &set) != 0 {
            return Err(Error::os(format!("cannot bind to core {core}")));
        }
        Ok(core)
    }
}

/// All rows, as often as -N says.
fn table_of(a: &PerfArgs, job: &Job, report: &mut Report, points: &[What]) -> Result<()> {
    let bytes = points.iter().map(|what| what.bytes(job.size)).max().unwrap_or(0);
    let mut buffers = Buffers::new(bytes, a.memory)?;
    let in_place = a.operation.placements().contains(&Placement::InPlace);
    report.say(&table::head(in_place, a.report_cputime != 0, a.report_timestamps != 0))?;
    let mut cycle = 0;
    while a.run_cycles == 0 || cycle < a.run_cycles {
        cycle += 1;
        for &what in points {
            report.next(format!("{} {} {}", what.dtype.name(), what.op.name(), what.count));
            point(a, job, report, &mut buffers, what)?;
            if report.unread(a, job)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Checks and times one point by all contenders.
fn point(a: &PerfArgs, job: &Job, report: &mut Report, buffers: &mut Buffers, what: What) -> Result<()> {
    let mut plans = Vec::new();
    let mut contenders = Vec::new();
    for contender in job.contenders() {
        match job.enter(contender)?.plan(&what.planned()) {
            Ok(plan) if plans.contains(&plan) => {}
            Ok(plan) => {
                plans.push(plan);
                contenders.push(contender);
            }
            Err(e) if contender.0.is_some() && not_possible(&e) => {
                report.say(&format!("# {}: not possible here: {e}\n", contender.0.unwrap_or_default()))?;
            }
            Err(e) => return Err(e),
        }
    }
    let operation = what.operation;
    let mut rows = Vec::new();
    for (&contender, p) in contenders.iter().zip(&plans) {
        let comm = job.enter(contender)?;
        let mut timings = [None; 2];
        for (timing, &place) in timings.iter_mut().zip(operation.placements()) {
            *timing = Some(timed(a, job, comm, buffers, what, place)?);
        }
        let [Some(out_of_place), in_place] = timings else {
            return Err(Error::internal("nothing was timed"));
        };
        rows.push(Row {
            bytes: what.bytes(job.size),
            count: what.count,
            dtype: if operation == Operation::Barrier { "none" } else { what.dtype.name() },
            op: if operation.reduces() { what.op.name() } else { "none" },
            root: operation.rooted().then_some(what.root),
            out_of_place,
            in_place,
            spread: Default::default(),
            plan: match operation.algorithms() {
                Some(_) => format!("{} x{} {}", p.algorithm, p.tiles, p.transport),
                None => format!("send, recv {}", p.transport),
            },
            beside: contender.0,
            timestamp: (a.report_timestamps != 0).then(table::now),
        });
    }
    let place = *operation.placements().last().unwrap_or(&Placement::OutOfPlace);
    let (mut times, turn) = each(a, job, &contenders, buffers, what, place)?;
    let mut compared = Vec::new();
    for (row, times) in rows.iter_mut().zip(&mut times) {
        let mut turns = turns::rounds(times, turn);
        job.slowest(&mut turns)?;
        compared.push(turns);
        job.slowest(times)?;
        row.spread = Spread::of(times).per_call(a.agg_iters);
    }
    let compared: Vec<f64> = turns::paired(&compared).iter().map(|t| t / f64::from(a.agg_iters)).collect();
    let verdict = (!job.others.is_empty()).then(|| Verdict::of(&rows, &compared)).flatten();
    report.rows(&rows, verdict.as_ref(), a.report_cputime != 0)
}

/// Checks and times one placement.
fn timed(
    a: &PerfArgs,
    job: &Job,
    comm: &Communicator,
    buffers: &mut Buffers,
    what: What,
    place: Placement,
) -> Result<Timing> {
    let wrong = check(a, job, comm, buffers, what, place)?;
    quiet(job, buffers, what);
    let call = Ready::new(&what, job.size, job.rank, place, buffers);
    let time_us = job.time(a, || iteration(a, &call, comm))? / f64::from(a.agg_iters);
    let (algbw, busbw) = bandwidth(what.bytes(job.size), time_us, what.operation.bus_factor(job.size));
    Ok(Timing { time_us, algbw, busbw, wrong })
}

/// The time of every iteration of each contender, and how many make a turn. Several have their turns, warmed up
/// for each.
fn each(
    a: &PerfArgs,
    job: &Job,
    contenders: &[Contender],
    buffers: &mut Buffers,
    what: What,
    place: Placement,
) -> Result<(Vec<Vec<f64>>, usize)> {
    let iters = a.iters as usize;
    let mut times = vec![vec![0.0; iters]; contenders.len()];
    let call = Ready::new(&what, job.size, job.rank, place, buffers);
    let rounds = if contenders.len() > 1 { ROUNDS } else { 1 };
    let turn = iters.div_ceil(rounds);
    for (round, start) in (0..iters).step_by(turn).enumerate() {
        for i in turns::order(contenders.len(), round) {
            let comm = job.enter(contenders[i])?;
            if rounds > 1 {
                (0..a.warmup_iters.max(1)).try_for_each(|_| iteration(a, &call, comm))?;
            }
            job.each(&mut times[i][start..iters.min(start + turn)], || iteration(a, &call, comm))?;
        }
    }
    Ok((times, turn))
}

/// One iteration.
#[inline]
fn iteration(a: &PerfArgs, call: &Ready, comm: &Communicator) -> Result<()> {
    for _ in 0..a.agg_iters {
        call.run(comm)?;
    }
    Ok(())
}

/// Fills the buffers with what a reduction does not change.
fn quiet(job: &Job, buffers: &mut Buffers, what: What) {
    let quiet = job.problem(what.dtype, what.op).fixed_point();
    for buffer in [&mut buffers.send, &mut buffers.recv] {
        quiet.fill(buffer.slice_mut(0..what.bytes(job.size)));
    }
}

/// Carries out the call with known data, and counts what is wrong on all ranks.
fn check(
    a: &PerfArgs,
    job: &Job,
    comm: &Communicator,
    buffers: &mut Buffers,
    what: What,
    place: Placement,
) -> Result<Option<usize>> {
    if a.check == 0 {
        return Ok(None);
    }
    let mut wrong = 0;
    for _ in 0..a.check {
        if what.operation == Operation::Barrier {
            wrong += check::early(job, comm)?;
            continue;
        }
        let exam = Exam::new(&job.problem(what.dtype, what.op), what, job.rank, place);
        exam.prepare(buffers);
        Ready::new(&what, job.size, job.rank, place, buffers).run(comm)?;
        wrong += exam.wrong(buffers);
    }
    Ok(Some(job.total(wrong)?))
}

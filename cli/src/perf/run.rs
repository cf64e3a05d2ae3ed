//! One rank's part of `graccl perf`.

use std::time::Duration;

use graccl::{Code, Communicator, Config, DataType, Error, RedOp, Result};

use super::args::PerfArgs;
use super::buffer::Buffer;
use super::data::{Pattern, show_element};
use super::job::{Job, Placement, bandwidth};
use super::report::{Report, plan};
use super::table::{self, Row, Timing};
use super::tensors;
use crate::schedules;

/// Joins the job, runs everything, and returns the exit status.
pub fn main(a: &PerfArgs, rank: usize, size: usize) -> Result<u8> {
    let cpu = if a.pin { Some(pin(rank)?) } else { None };
    let algorithms: Vec<Option<String>> = match a.algo.as_deref() {
        Some("all") => schedules::names().into_iter().map(|n| Some(n.to_string())).collect(),
        one => vec![one.map(str::to_string)],
    };
    let list = a.tensors.as_deref().map(|t| tensors::load(t, a.datatype.0[0])).transpose()?;
    let tables = algorithms.len() as u64 * u64::from(a.run_cycles);
    let rows: usize = a.datatype.0.iter().map(|d| a.counts(d.size()).len()).sum::<usize>() * a.op.0.len();
    let mut report = Report::new(rank == 0, if list.is_some() { 0 } else { tables * rows as u64 });
    let mut job = None;
    let mut headed = false;
    for algorithm in &algorithms {
        let config = config(a, algorithm.as_deref())?;
        // The old communicator goes before the new one comes.
        job.take();
        let mut new = match Communicator::init_env(&config) {
            Ok(comm) => Job::new(comm),
            Err(e) if algorithms.len() > 1 && not_possible(&e) => {
                report
                    .say(&format!("#\n# {}: not possible here: {e}\n", algorithm.as_deref().unwrap_or("")))?;
                continue;
            }
            Err(e) => return Err(e),
        };
        if (new.rank, new.size) != (rank, size) {
            let what = format!(
                "joined as rank {} of {}, but the launcher said {rank} of {size}",
                new.rank, new.size
            );
            return Err(Error::internal(what));
        }
        if !headed {
            report.header(a, &new, &config, cpu)?;
            headed = true;
        }
        if algorithms.len() > 1 {
            report.say(&format!("#\n# Algorithm: {}\n", algorithm.as_deref().unwrap_or("auto")))?;
        }
        match &list {
            Some(list) => tensors::run(a, &mut new, &mut report, list)?,
            None => tables_of(a, &mut new, &mut report, algorithms.len() > 1)?,
        }
        let unread = report.unread(a, &new)?;
        job = Some(new);
        if unread {
            break;
        }
    }
    let wrong = report.finish(a)?;
    // Nobody leaves before rank 0 has written everything: a launcher ends the others of a failed job.
    if let Some(job) = &job {
        job.comm.barrier()?;
    }
    Ok(u8::from(wrong > 0))
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
fn pin(rank: usize) -> Result<usize> {
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
fn tables_of(a: &PerfArgs, job: &mut Job, report: &mut Report, skip: bool) -> Result<()> {
    let mut send = Buffer::new(a.maxbytes, a.memory)?;
    let mut recv = Buffer::new(a.maxbytes, a.memory)?;
    report.say(&table::head(a.report_cputime != 0, a.report_timestamps != 0))?;
    let mut cycle = 0;
    while a.run_cycles == 0 || cycle < a.run_cycles {
        cycle += 1;
        for &dtype in &a.datatype.0 {
            for &op in &a.op.0 {
                for count in a.counts(dtype.size()) {
                    report.next(format!("{} {} {count}", dtype.name(), op.name()));
                    match row(a, job, &mut send, &mut recv, What { count, dtype, op }) {
                        Ok(row) => report.row(&row, a.report_cputime != 0)?,
                        Err(e) if skip && not_possible(&e) => {
                            report.say(&format!(
                                "# {} bytes: not possible here: {e}\n",
                                count * dtype.size()
                            ))?;
                        }
                        Err(e) => return Err(e),
                    }
                    if report.unread(a, job)? {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}

/// What a row is about.
#[derive(Clone, Copy)]
struct What {
    count: usize,
    dtype: DataType,
    op: RedOp,
}

impl What {
    fn bytes(&self) -> usize {
        self.count * self.dtype.size()
    }
}

fn row(a: &PerfArgs, job: &mut Job, send: &mut Buffer, recv: &mut Buffer, what: What) -> Result<Row> {
    let What { count, dtype, op } = what;
    let plan = plan(&job.comm, count, dtype)?;
    let out_of_place = timing(a, job, send, recv, what, Placement::OutOfPlace)?;
    let in_place = timing(a, job, send, recv, what, Placement::InPlace)?;
    let spread = job.spread(a, || calls(a, job, None, recv, what))?.per_call(a.agg_iters);
    let timestamp = (a.report_timestamps != 0).then(table::now);
    let (dtype, op) = (dtype.name(), op.name());
    Ok(Row { bytes: what.bytes(), count, dtype, op, out_of_place, in_place, spread, plan, timestamp })
}

/// Checks and times one placement.
fn timing(
    a: &PerfArgs,
    job: &mut Job,
    send: &mut Buffer,
    recv: &mut Buffer,
    what: What,
    placement: Placement,
) -> Result<Timing> {
    let wrong = check(a, job, send, recv, what, placement)?;
    let quiet = job.problem(what.dtype, what.op).fixed_point();
    quiet.fill(send.slice_mut(0..what.bytes()));
    quiet.fill(recv.slice_mut(0..what.bytes()));
    let source = (placement == Placement::OutOfPlace).then_some(&*send);
    let time_us = job.time(a, || calls(a, job, source, recv, what))? / f64::from(a.agg_iters);
    let (algbw, busbw) = bandwidth(what.bytes(), time_us, job.size);
    Ok(Timing { time_us, algbw, busbw, wrong })
}

/// One iteration.
fn calls(a: &PerfArgs, job: &Job, send: Option<&Buffer>, recv: &mut Buffer, what: What) -> Result<()> {
    for _ in 0..a.agg_iters {
        job.all_reduce(send, recv, 0, what.count, what.dtype, what.op)?;
    }
    Ok(())
}

/// Reduces known data, and counts what is wrong on all ranks: elements of the result, elements of
/// the send buffer that were changed, and guard bytes.
fn check(
    a: &PerfArgs,
    job: &mut Job,
    send: &mut Buffer,
    recv: &mut Buffer,
    what: What,
    placement: Placement,
) -> Result<Option<usize>> {
    if a.check == 0 {
        return Ok(None);
    }
    let (What { count, dtype, op }, bytes) = (what, what.bytes());
    let mut wrong = 0;
    for _ in 0..a.check {
        let p = job.problem(dtype, op);
        let (input, expected) = (p.input(job.rank, count), p.expected(count));
        recv.set_guard(bytes);
        if placement == Placement::OutOfPlace {
            input.fill(send.slice_mut(0..bytes));
            send.set_guard(bytes);
            recv.poison(bytes);
            job.all_reduce(Some(send), recv, 0, count, dtype, op)?;
            wrong += report_wrong(job.rank, "send buffer changed", send, bytes, &input, dtype);
        } else {
            input.fill(recv.slice_mut(0..bytes));
            job.all_reduce(None, recv, 0, count, dtype, op)?;
        }
        wrong += report_wrong(job.rank, "wrong result", recv, bytes, &expected, dtype);
    }
    Ok(Some(job.total(wrong)?))
}

/// Compares a buffer and its guard, and says on stderr what differs.
fn report_wrong(
    rank: usize,
    what: &str,
    buffer: &Buffer,
    bytes: usize,
    want: &Pattern,
    dtype: DataType,
) -> usize {
    let found = want.compare(buffer.slice(0..bytes));
    if let Some(first) = found.first {
        let size = dtype.size();
        let got = show_element(buffer.slice(first * size..(first + 1) * size));
        eprintln!(
            "graccl perf: rank {rank}: {what}: {} of {} elements, the first is {first}: {got} instead of {} ({}, {bytes} bytes)",
            found.count,
            bytes / size,
            want.show(first),
            dtype.name()
        );
    }
    let guard = buffer.broken_guard(bytes);
    if guard > 0 {
        eprintln!(
            "graccl perf: rank {rank}: {guard} bytes written behind the end of a buffer of {bytes} bytes"
        );
    }
    found.count + guard
}

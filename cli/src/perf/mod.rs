//! `graccl perf`: times a collective and checks its results.

pub mod args;
pub mod buffer;
mod check;
mod choice;
mod data;
pub mod job;
pub mod operation;
mod report;
pub mod run;
mod table;
mod tensors;
pub mod turns;

pub use args::{Memory, PerfArgs, parse_size};
pub use buffer::{Buffer, POISON};
pub use data::{Pattern, Problem, show_element};
use operation::Operation;
pub use table::number;

use graccl::bootstrap::launched;
use graccl::{Error, Result};

use crate::launch;

/// `graccl perf`: joins the launcher's job, or starts one.
pub fn main(a: &PerfArgs) -> Result<u8> {
    a.check()?;
    let Some((rank, size)) = launched()? else { return start(a) };
    if let Some(np) = a.np.filter(|&np| np as usize != size) {
        return Err(Error::argument(format!("--np {np}, but the launcher started {size} ranks"))
            .hint("leave --np out under a launcher"));
    }
    run::main(a, rank, size).map_err(|e| if size > 1 { prefix(e, rank) } else { e })
}

pub fn prefix(mut e: Error, rank: usize) -> Error {
    e.what = format!("rank {rank}: {}", e.what);
    e
}

/// Starts the ranks: this program again, with the same arguments.
fn start(a: &PerfArgs) -> Result<u8> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let ranks =
        a.np.map_or(cores.max(2), |n| n as usize).max(if a.np.is_none() { a.hosts as usize } else { 1 });
    let bytes = match a.gradients()? {
        Some(list) => tensors::total_bytes(&list),
        None if a.operation == Operation::Barrier => 0,
        None => a.maxbytes,
    };
    check_memory(ranks, bytes)?;
    launch::again("perf", ranks, a.hosts as usize)
}

/// Two buffers per rank must fit into this machine's free memory, or the kernel would kill ranks.
pub fn check_memory(ranks: usize, bytes: usize) -> Result<()> {
    let need = bytes.saturating_mul(2).saturating_mul(ranks);
    let Some(free) = free_memory() else { return Ok(()) };
    if need > free {
        let mib = |b: usize| b >> 20;
        return Err(Error::argument(format!(
            "{ranks} ranks with two buffers of {} MiB need {} MiB, but only {} MiB are free",
            mib(bytes),
            mib(need),
            mib(free)
        ))
        .hint("use smaller buffers (-e) or fewer ranks (--np)"));
    }
    Ok(())
}

/// Bytes that can be had without swapping.
fn free_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

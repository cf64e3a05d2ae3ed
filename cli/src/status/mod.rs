//! `graccl status`: what the processes on this host do, and whom they wait for.
//!
//! Every process that uses graccl keeps a record in memory that others of its user may read
//! ([`graccl::record`]). This reads them all, without the processes' help, and says who keeps whom
//! waiting.

mod diagnose;
mod procs;
mod show;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use graccl::{Error, Result};

use procs::Scan;

/// Between two pictures of --watch.
const INTERVAL: Duration = Duration::from_millis(900);

#[derive(Args)]
#[command(after_help = "\
Shows the processes of this user on this host (root: of all users). A process is found by its
memory file \"graccl-status\" and read from outside: it may hang or be stopped.

On a job of several hosts run it on each of them. docs/troubleshooting.md explains what is shown.")]
pub struct StatusArgs {
    /// Only jobs whose id begins like this
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Only this process
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show it anew every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// `graccl status`.
pub fn main(a: &StatusArgs) -> Result<u8> {
    loop {
        let scan = procs::scan(a.pid)?;
        let text = picture(a, &scan)?;
        let mut out = std::io::stdout();
        // The terminal is cleared, so that the picture stays in its place.
        let clear = if a.watch && !a.json && out.is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        if write!(out, "{clear}{text}").and_then(|()| out.flush()).is_err() {
            // Nobody reads any more.
            return Ok(0);
        }
        if !a.watch {
            return Ok(0);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn picture(a: &StatusArgs, scan: &Scan) -> Result<String> {
    let jobs: Vec<_> = diagnose::jobs(scan)
        .into_iter()
        .filter(|j| a.job.as_ref().is_none_or(|id| format!("{:016x}", j.id).starts_with(&id.to_lowercase())))
        .collect();
    if let Some(id) = &a.job
        && jobs.is_empty()
        && !a.watch
    {
        return Err(Error::usage(format!("no process of a job {id} is found on this host"))
            .hint("`graccl status` without arguments shows the jobs that are there"));
    }
    let text = if a.json { show::json(scan, &jobs) } else { show::text(scan, &jobs) };
    Ok(text)
}

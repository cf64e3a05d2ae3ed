//! `graccl run`: the ranks of one job on one machine.
//!
//! The main thread starts the ranks, then waits for signals only: SIGCHLD says that a rank ended,
//! the others are passed on. It stays alive to the end, because the ranks ask the kernel to be
//! killed when the *thread* that started them ends. Output is moved by threads of its own.
//!
//! A rank that has ended stays a zombie until the whole job has: its process id, which is also the
//! id of its process group, cannot be given away meanwhile, so signals to the group never hit a
//! stranger.

mod output;
mod signals;

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use graccl::{Error, Result};

use output::Pumps;
use signals::{Event, Signals};

/// Time between the first failure and the end of the others: a rank that dies closes its connections
/// before we hear of it, so those that fail because of it may be heard of first. It also lets them
/// say what they saw: over TCP a rank waits 100 ms to be told the cause.
const SETTLE: Duration = Duration::from_millis(500);
/// Time between SIGTERM and SIGKILL when the job is ended.
const GRACE: Duration = Duration::from_secs(2);
/// How long the output of ended ranks is still awaited: a process that left its group may hold it.
const DRAIN: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = "\
Each rank gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and
GRACCL_KEY (a secret of this job); with --hosts also GRACCL_HOST_ID.

Standard input goes to rank 0. SIGINT, SIGTERM and SIGHUP are passed on to all ranks; a second
Ctrl-C kills them. When a rank fails, the others get SIGTERM, and SIGKILL 2 s later.

Exit status: 0, or that of the first rank that failed (128 + signal if a signal ended it);
127 if the program is not found, 126 if it cannot be run.

For this machine only: on several, use srun, mpirun or torchrun, whose variables graccl reads.")]
pub struct RunArgs {
    /// Number of ranks
    #[arg(short = 'n', long = "np", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    ranks: u32,
    /// Split the ranks over H emulated hosts, in blocks
    #[arg(long, value_name = "H", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    hosts: u32,
    /// Do not put "[rank] " before each line of output
    #[arg(long)]
    no_prefix: bool,
    /// Program to start, and its arguments
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

/// What to start.
pub struct Job {
    /// For messages: the subcommand that starts it.
    pub command: &'static str,
    pub program: OsString,
    pub args: Vec<OsString>,
    pub ranks: usize,
    /// Emulated hosts, 1..=ranks.
    pub hosts: usize,
    /// "[rank] " before each line.
    pub prefix: bool,
    /// The program is this one: rank 0 writes to our own stdout and stderr, so that it sees whether
    /// a person watches, and a rank that exits with status 1 or 2 has said why.
    pub ours: bool,
}

/// Starts ranks of a subcommand: this program again, with the same arguments.
pub fn again(command: &'static str, ranks: usize, hosts: usize) -> Result<u8> {
    let program = own_program()?.into();
    let args = std::env::args_os().skip(1).collect();
    launch(&Job { command, program, args, ranks, hosts, prefix: true, ours: true })
}

/// The file of this program.
pub fn own_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::io("cannot find this program's own file", &e))
}

/// `graccl run`.
pub fn main(a: RunArgs) -> Result<u8> {
    let mut command = a.command.into_iter();
    let job = Job {
        command: "run",
        program: command.next().expect("clap asks for a program"),
        args: command.collect(),
        ranks: a.ranks as usize,
        hosts: a.hosts as usize,
        prefix: !a.no_prefix,
        ours: false,
    };
    launch(&job)
}

/// Ranks of host `h` when `ranks` are split over `hosts` in consecutive blocks.
fn block(h: usize, hosts: usize, ranks: usize) -> std::ops::Range<usize> {
    h * ranks / hosts..(h + 1) * ranks / hosts
}

/// Host number of every rank when `ranks` are split over `hosts` in consecutive blocks.
pub fn hosts_of_ranks(ranks: usize, hosts: usize) -> Result<Vec<u32>> {
    if hosts > ranks {
        return Err(Error::argument(format!("--hosts {hosts} is more than the {ranks} ranks"))
            .hint("every emulated host needs a rank"));
    }
    Ok((0..hosts).flat_map(|h| block(h, hosts, ranks).map(move |_| h as u32)).collect())
}

/// 256 random bits in hex.
pub fn random_key() -> Result<String> {
    let mut key = [0u8; 32];
    // SAFETY: the pointer and the length are those of `key`. 32 bytes are never cut short.
    let n = unsafe { libc::getrandom(key.as_mut_ptr().cast(), key.len(), 0) };
    if n != key.len() as isize {
        return Err(Error::os("cannot get random bytes for the job's key"));
    }
    Ok(key.iter().map(|b| format!("{b:02x}")).collect())
}

/// A port that nobody uses now. It is free again when this returns: rank 0 takes it a moment later.
pub fn free_port() -> Result<u16> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .map(|a| a.port())
        .map_err(|e| Error::io("cannot find a free TCP port on 127.0.0.1", &e))
}

/// Variables of another job that would count more than what a launcher sets.
pub const FOREIGN: [&str; 4] = ["GRACCL_ID", "GRACCL_PORT", "GRACCL_RANK", "GRACCL_SIZE"];

/// The commands of all ranks, with their environment.
fn commands(job: &Job) -> Result<Vec<Command>> {
    let (key, port) = (random_key()?, free_port()?.to_string());
    let launcher = std::process::id() as libc::pid_t;
    let mut all = Vec::with_capacity(job.ranks);
    for (rank, host) in hosts_of_ranks(job.ranks, job.hosts)?.into_iter().enumerate() {
        let local = block(host as usize, job.hosts, job.ranks);
        let mut c = Command::new(&job.program);
        for name in FOREIGN {
            c.env_remove(name);
        }
        c.args(&job.args)
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", job.ranks.to_string())
            .env("LOCAL_RANK", (rank - local.start).to_string())
            .env("LOCAL_WORLD_SIZE", local.len().to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", &port)
            .env("GRACCL_KEY", &key)
            .process_group(0);
        if job.hosts > 1 {
            c.env("GRACCL_HOST_ID", format!("h{host}"));
        }
        // SAFETY: between fork and exec only async-signal-safe calls are made.
        unsafe {
            c.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The launcher may have died before the line above.
                if libc::getppid() != launcher {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                signals::restore()
            });
        }
        all.push(c);
    }
    Ok(all)
}

/// The ranks that run or have ended; all are killed and reaped when this goes out of scope.
struct Ranks {
    children: Vec<Child>,
    /// How each rank ended.
    ended: Vec<Option<ExitStatus>>,
}

impl Ranks {
    /// Sends a signal to the process group of every rank; `only_running` spares the groups whose
    /// leader has ended.
    fn signal(&self, signal: i32, only_running: bool) {
        for (child, ended) in self.children.iter().zip(&self.ended) {
            if !(only_running && ended.is_some()) {
                // SAFETY: a plain system call; the id is a child that has not been reaped.
                unsafe { libc::kill(-(child.id() as i32), signal) };
            }
        }
    }

    /// Looks whether a rank has ended, without reaping it.
    fn look(&mut self, rank: usize) -> bool {
        if self.ended[rank].is_some() {
            return false;
        }
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` outlives the call; the id is a child that has not been reaped.
        let rc = unsafe { libc::waitid(libc::P_PID, self.children[rank].id(), &mut info, flags) };
        // SAFETY: waitid fills these fields, or leaves them zero.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if rc != 0 || pid == 0 {
            return false;
        }
        let raw = if info.si_code == libc::CLD_EXITED { (status & 0xff) << 8 } else { status & 0x7f };
        self.ended[rank] = Some(ExitStatus::from_raw(raw));
        true
    }

    /// Ranks that have ended since the last call; `first` is looked at first.
    fn newly_ended(&mut self, first: u32) -> Vec<usize> {
        let first = self.children.iter().position(|c| c.id() == first);
        let all = first.into_iter().chain(0..self.children.len());
        all.filter(|&r| self.look(r)).collect()
    }

    fn done(&self) -> bool {
        self.ended.iter().all(Option::is_some)
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL, false);
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// Starts the ranks, waits for them, and returns the status to exit with.
pub fn launch(job: &Job) -> Result<u8> {
    let signals = Signals::take()?;
    let mut ranks = Ranks { children: Vec::new(), ended: Vec::new() };
    let mut pumps = Pumps::default();
    for (rank, mut command) in commands(job)?.into_iter().enumerate() {
        let stdin = if rank == 0 { pumps.stdin() } else { Stdio::null() };
        command.stdin(stdin);
        let direct = rank == 0 && job.ours;
        if !direct {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        match command.spawn() {
            Ok(mut child) => {
                let prefix = if job.prefix { format!("[{rank}] ") } else { String::new() };
                pumps.add(&mut child, prefix);
                ranks.children.push(child);
                ranks.ended.push(None);
            }
            Err(e) => {
                drop(ranks);
                return Ok(cannot_start(job, rank, &e));
            }
        }
    }
    let status = supervise(job, &signals, &mut ranks);
    drop(ranks);
    // From here on a signal ends us as usual.
    drop(signals);
    pumps.drain(DRAIN);
    Ok(status)
}

/// Says why a program could not be started; the shell's status for it.
fn cannot_start(job: &Job, rank: usize, e: &io::Error) -> u8 {
    let program = job.program.to_string_lossy();
    let (why, status) = match e.kind() {
        io::ErrorKind::NotFound => (
            format!(
                "program `{program}` not found -> check its spelling and PATH, and that the interpreter it names exists"
            ),
            127,
        ),
        io::ErrorKind::PermissionDenied => (
            format!("program `{program}` may not be run -> is it a file with execute permission (chmod +x)?"),
            126,
        ),
        _ => (format!("cannot start `{program}` as rank {rank}: {e}"), 126),
    };
    eprintln!("graccl {}: {why}", job.command);
    status
}

/// Where a job is.
enum Phase {
    Running,
    /// Some have failed; the others are ended at this time.
    Settling(Instant),
    /// The others were sent SIGTERM; at this time it is SIGKILL.
    Ending(Instant),
    Killed,
}

/// Waits until all ranks have ended.
fn supervise(job: &Job, signals: &Signals, ranks: &mut Ranks) -> u8 {
    let mut phase = Phase::Running;
    let mut interrupts = 0;
    let mut failed = Vec::new();
    let mut status = None;
    while !ranks.done() {
        let deadline = match phase {
            Phase::Settling(t) | Phase::Ending(t) => Some(t),
            Phase::Running | Phase::Killed => None,
        };
        match signals.wait(deadline) {
            Event::ChildEnded { pid } => {
                let ended = ranks.newly_ended(pid);
                // Once the job is being ended, further failures are its consequences.
                if matches!(phase, Phase::Running | Phase::Settling(_)) {
                    failed
                        .extend(ended.into_iter().filter(|&r| !ranks.ended[r].is_some_and(|s| s.success())));
                }
                if matches!(phase, Phase::Running) && !failed.is_empty() {
                    phase = Phase::Settling(Instant::now() + SETTLE);
                }
            }
            Event::Signal(s) => {
                interrupts += usize::from(s == libc::SIGINT);
                ranks.signal(if interrupts > 1 { libc::SIGKILL } else { s }, true);
            }
            Event::Deadline if matches!(phase, Phase::Settling(_)) => {
                status = Some(report(job, ranks, &failed));
                ranks.signal(libc::SIGTERM, true);
                phase = Phase::Ending(Instant::now() + GRACE);
            }
            Event::Deadline => {
                ranks.signal(libc::SIGKILL, true);
                phase = Phase::Killed;
            }
        }
    }
    status.unwrap_or_else(|| report(job, ranks, &failed))
}

/// Says which rank failed, and returns the status to exit with. Of several that failed at about the
/// same time, one that a signal ended is the likeliest cause; else it is the first heard of.
fn report(job: &Job, ranks: &Ranks, failed: &[usize]) -> u8 {
    let how = |rank: usize| ranks.ended[rank].unwrap_or_default();
    let cause = failed.iter().copied().find(|&r| how(r).signal().is_some()).or(failed.first().copied());
    let Some(cause) = cause else { return 0 };
    let status = exit_status(how(cause));
    if job.ours && matches!(status, 1 | 2) {
        return status;
    }
    let others =
        failed.iter().filter(|&&r| r != cause).map(|&r| format!("rank {r} ({})", exit_status(how(r))));
    let others: Vec<_> = others.collect();
    let also = match others.len() {
        0 => String::new(),
        1..=4 => format!("; then {}", others.join(", ")),
        n => format!("; then {} and {} more", others[..4].join(", "), n - 4),
    };
    let rest = ranks.ended.iter().filter(|e| e.is_none()).count();
    let end = if rest > 0 { format!("; ending the other {rest}") } else { String::new() };
    eprintln!("graccl {}: rank {cause} {}{also}{end}", job.command, describe(how(cause)));
    status
}

fn exit_status(s: ExitStatus) -> u8 {
    match (s.code(), s.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128 + signal as u8,
        (None, None) => 1,
    }
}

fn describe(s: ExitStatus) -> String {
    match s.signal() {
        Some(signal) => format!("was ended by signal {signal} ({})", signals::name(signal)),
        None => format!("exited with status {}", exit_status(s)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_consecutive_and_nearly_even() {
        for ranks in 1..40 {
            for hosts in 1..=ranks {
                let blocks: Vec<_> = (0..hosts).map(|h| block(h, hosts, ranks)).collect();
                assert_eq!(blocks[0].start, 0);
                assert_eq!(blocks[hosts - 1].end, ranks);
                assert!(blocks.windows(2).all(|w| w[0].end == w[1].start));
                let sizes: Vec<_> = blocks.iter().map(|b| b.len()).collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
                assert!(*sizes.iter().min().unwrap() >= 1);
            }
        }
    }

    #[test]
    fn keys_are_256_random_bits() {
        let (a, b) = (random_key().unwrap(), random_key().unwrap());
        assert_eq!(a.len(), 64);
        assert_ne!(a, b);
    }
}

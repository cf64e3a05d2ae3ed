//! The processes of this host that use graccl, as /proc shows them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use graccl::record::layout::NAME;
use graccl::record::snapshot::Snapshot;
use graccl::{Error, Result};

/// The processor time of a process is taken over this long.
const SAMPLE: Duration = Duration::from_millis(100);

/// A process and its record.
pub struct Process {
    pub pid: i32,
    pub uid: u32,
    /// As /proc/PID/stat says: R, S, D, T (stopped), t (traced), Z.
    pub state: char,
    pub threads: Vec<Thread>,
    pub record: Snapshot,
}

pub struct Thread {
    pub tid: i32,
    pub name: String,
    pub state: char,
    /// Part of a core that it used while we looked: 1 is all of it.
    pub cpu: f64,
    /// The kernel's function that it sleeps in, where the kernel tells.
    pub wchan: Option<String>,
}

/// All that was found.
pub struct Scan {
    pub processes: Vec<Process>,
    /// Processes that could not be looked into, or whose record could not be read, and why.
    pub unreadable: Vec<(i32, String)>,
    /// `CLOCK_MONOTONIC`, ns.
    pub now: u64,
    pub host: String,
    /// All users' processes were looked at.
    pub root: bool,
}

impl Process {
    pub fn stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    pub fn cpu(&self) -> f64 {
        self.threads.iter().map(|t| t.cpu).sum()
    }
}

/// Looks at one process, or at all of this user.
///
/// # Errors
/// Of one process: there is none of this number, it does not use graccl, or it may not be read.
pub fn scan(pid: Option<i32>) -> Result<Scan> {
    // SAFETY: takes nothing, cannot fail.
    let me = unsafe { libc::geteuid() };
    let pids = match pid {
        Some(p) => vec![p],
        None => processes(me)?,
    };
    let mut unreadable = Vec::new();
    let mut found = Vec::new();
    for p in pids {
        match records(p) {
            Ok(files) => found.extend(files.into_iter().map(|f| (p, f))),
            Err(e) if pid.is_some() => return Err(refused(p, &e, me)),
            // It has ended meanwhile.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(e) => unreadable.push((p, e.to_string())),
        }
    }
    if let (Some(p), true) = (pid, found.is_empty()) {
        return Err(Error::usage(format!("process {p} does not use graccl now"))
            .hint("a process is seen from its first communicator on; `graccl status` shows all of them"));
    }
    let begin = Instant::now();
    let before: HashMap<i32, u64> = found.iter().flat_map(|(p, _)| times(*p)).collect();
    if !found.is_empty() {
        std::thread::sleep(SAMPLE);
    }
    let mut seen = Vec::new();
    for (p, file) in found {
        match Snapshot::read(&file) {
            // A child that was not made by fork has its parent's descriptor.
            Ok(record) if inner_pid(p).is_some_and(|inner| inner == record.pid) => {
                if let Some(process) = process(p, record, &before, begin) {
                    seen.push(process);
                }
            }
            Ok(_) => {}
            Err(e) if pid.is_some() => return Err(e),
            Err(e) => unreadable.push((p, e.to_string())),
        }
    }
    seen.sort_by_key(|p: &Process| p.pid);
    unreadable.sort();
    unreadable.dedup();
    Ok(Scan { processes: seen, unreadable, now: now(), host: hostname(), root: me == 0 })
}

fn now() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is writable; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map_or("unknown".into(), |h| h.trim().into())
}

/// Processes of this user; root's are everybody's.
fn processes(me: u32) -> Result<Vec<i32>> {
    let all = fs::read_dir("/proc").map_err(|e| Error::io("cannot read /proc", &e))?;
    let of_user = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // A process that may not be looked into belongs to root here; its status says the truth.
        (me == 0 || user(pid)? == me).then_some(pid)
    };
    Ok(all.filter_map(of_user).collect())
}

fn status(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix(field)).map(str::to_string)
}

/// The user that the process acts for.
fn user(pid: i32) -> Option<u32> {
    status(pid, "Uid:")?.split_whitespace().nth(1)?.parse().ok()
}

/// The process's number as it sees it itself.
fn inner_pid(pid: i32) -> Option<u32> {
    match status(pid, "NSpid:") {
        Some(s) => s.split_whitespace().last()?.parse().ok(),
        None => u32::try_from(pid).ok(),
    }
}

fn refused(pid: i32, e: &std::io::Error, me: u32) -> Error {
    if !Path::new(&format!("/proc/{pid}")).exists() {
        return Error::usage(format!("there is no process {pid}"))
            .hint("if a rank had it, that rank has ended: look at its output");
    }
    let error = Error::usage(format!("process {pid} may not be read: {e}"));
    match user(pid) {
        Some(other) if other != me => {
            error.hint(format!("it is user {other}'s: run this as that user, or as root"))
        }
        _ => error
            .hint("it hides from its own user (set-uid, prctl PR_SET_DUMPABLE, or a container): try root"),
    }
}

/// The records that a process holds open: one, but for copies of the library.
fn records(pid: i32) -> std::io::Result<Vec<File>> {
    let name = format!("/memfd:{NAME}");
    let mut files = Vec::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path: PathBuf = fd?.path();
        // Descriptors come and go.
        let Ok(to) = fs::read_link(&path) else { continue };
        if !to.to_string_lossy().starts_with(&name) {
            continue;
        }
        match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(f) if f.metadata().is_ok_and(|m| !m.file_type().is_fifo() && m.is_file()) => files.push(f),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(files)
}

fn tasks(pid: i32) -> Vec<i32> {
    let list = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    list.filter_map(|t| t.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Processor time of each thread of a process, ns.
fn times(pid: i32) -> Vec<(i32, u64)> {
    tasks(pid).into_iter().filter_map(|tid| Some((tid, time(pid, tid)?))).collect()
}

fn time(pid: i32, tid: i32) -> Option<u64> {
    let dir = format!("/proc/{pid}/task/{tid}");
    if let Ok(s) = fs::read_to_string(format!("{dir}/schedstat")) {
        return s.split_whitespace().next()?.parse().ok();
    }
    // Kernels without it count in ticks: fields 14 and 15, of 10 ms.
    let (_, fields) = stat(&dir)?;
    let ticks = |i: usize| fields.split_whitespace().nth(i)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) * 10_000_000)
}

/// Name, and what is behind it, of a `stat` file.
fn stat(dir: &str) -> Option<(String, String)> {
    let s = fs::read(format!("{dir}/stat")).ok()?;
    let s = String::from_utf8_lossy(&s);
    let (front, fields) = s.rsplit_once(") ")?;
    let name = front.split_once('(')?.1.chars().map(|c| if c.is_control() { '?' } else { c });
    Some((name.collect(), fields.to_string()))
}

fn process(pid: i32, record: Snapshot, before: &HashMap<i32, u64>, begin: Instant) -> Option<Process> {
    let (_, fields) = stat(&format!("/proc/{pid}"))?;
    let state = fields.chars().next()?;
    if matches!(state, 'Z' | 'X') {
        return None;
    }
    let threads = tasks(pid).into_iter().filter_map(|tid| {
        let dir = format!("/proc/{pid}/task/{tid}");
        let (name, fields) = stat(&dir)?;
        let used = time(pid, tid)?.saturating_sub(*before.get(&tid)?);
        let wchan = fs::read_to_string(format!("{dir}/wchan")).ok();
        Some(Thread {
            tid,
            name,
            state: fields.chars().next()?,
            cpu: used as f64 / begin.elapsed().as_nanos() as f64,
            wchan: wchan.filter(|w| !w.is_empty() && w != "0"),
        })
    });
    let threads = threads.collect();
    let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    Some(Process { pid, uid, state, threads, record })
}

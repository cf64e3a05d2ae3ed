//! Running the built program, never longer than a deadline.
#![allow(dead_code)] // Each test binary uses a part.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

pub fn graccl(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_graccl"));
    c.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "GRACCL_ALGO"] {
        c.env_remove(name);
    }
    c
}

/// Waits for the end; kills and fails at the deadline.
pub fn finish(child: Child) -> Output {
    finish_within(child, DEADLINE)
}

pub fn finish_within(mut child: Child, deadline: Duration) -> Output {
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut p) = pipe {
                p.read_to_end(&mut bytes).unwrap();
            }
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = read(child.stderr.take().map(|p| Box::new(p) as _));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > deadline {
            child.kill().unwrap();
            panic!("still running after {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Says, and counts, that a test wants something that is not there.
pub fn skip(reason: &str) {
    println!("skipped: {reason}");
    if let Some(path) = std::env::var_os("GRACCL_SKIP_LOG") {
        let mut log = std::fs::File::options().append(true).create(true).open(path).expect("GRACCL_SKIP_LOG");
        writeln!(log, "{reason}").expect("GRACCL_SKIP_LOG");
    }
}

pub fn run(args: &[&str]) -> Output {
    finish(graccl(args).spawn().unwrap())
}

pub fn out(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).unwrap()
}

pub fn err(o: &Output) -> String {
    String::from_utf8(o.stderr.clone()).unwrap()
}

/// Kills the process after the deadline, so that who reads its output does not wait for ever.
/// Dropping the sender, before the process is waited for, calls this off.
pub fn watch(child: &Child) -> Sender<()> {
    let (off, wait) = channel();
    let id = child.id() as i32;
    std::thread::spawn(move || {
        if wait.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
            unsafe { libc::kill(id, libc::SIGKILL) };
        }
    });
    off
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! Signals that the launcher waits for, one at a time, without handlers: they are blocked and
//! taken with `sigtimedwait`.

use std::io;
use std::time::{Duration, Instant};

use graccl::{Error, Result};

/// What happened.
pub enum Event {
    /// A child ended. Of several, this is the first: later ones are not queued, so look at all.
    ChildEnded {
        pid: u32,
    },
    Signal(i32),
    /// The given time has come.
    Deadline,
}

/// The signals, blocked in this thread and those it starts later.
pub struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks SIGCHLD, and those of SIGINT, SIGTERM and SIGHUP that are not ignored (as under
    /// nohup). Call it before any other thread is started.
    pub fn take() -> Result<Signals> {
        // SAFETY: plain calls on local structs. SIGCHLD gets its default action: were it ignored,
        // children would be reaped behind our back.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            for s in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                let mut old: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(s, std::ptr::null(), &mut old) == 0 && old.sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(&mut set, s);
                }
            }
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(Error::os("cannot block signals"));
            }
            Ok(Signals { set })
        }
    }

    /// Waits for a signal, at most until `deadline`.
    pub fn wait(&self, deadline: Option<Instant>) -> Event {
        loop {
            // SAFETY: all-zero is a valid siginfo_t, which the call fills.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let left =
                deadline.map_or(Duration::from_secs(3600), |d| d.saturating_duration_since(Instant::now()));
            let time = libc::timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
            // SAFETY: the pointers are to live structs.
            match unsafe { libc::sigtimedwait(&self.set, &mut info, &time) } {
                // SAFETY: a SIGCHLD carries the child's id.
                libc::SIGCHLD => return Event::ChildEnded { pid: unsafe { info.si_pid() } as u32 },
                s if s > 0 => return Event::Signal(s),
                _ if deadline.is_some_and(|d| d <= Instant::now()) => return Event::Deadline,
                _ => {}
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: a plain call on a live set.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &self.set, std::ptr::null_mut()) };
    }
}

/// Unblocks all signals: for a child, between fork and exec.
pub fn restore() -> io::Result<()> {
    // SAFETY: async-signal-safe calls on a local set.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Name of a common signal.
pub fn name(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => "SIGHUP: hang-up",
        libc::SIGINT => "SIGINT: interrupt",
        libc::SIGQUIT => "SIGQUIT: quit",
        libc::SIGILL => "SIGILL: illegal instruction",
        libc::SIGTRAP => "SIGTRAP: trap",
        libc::SIGABRT => "SIGABRT: abort",
        libc::SIGBUS => "SIGBUS: bus error, often a full /dev/shm or a truncated file",
        libc::SIGFPE => "SIGFPE: arithmetic error",
        libc::SIGKILL => "SIGKILL: killed, perhaps for want of memory",
        libc::SIGSEGV => "SIGSEGV: invalid memory access",
        libc::SIGPIPE => "SIGPIPE: its output was closed",
        libc::SIGALRM => "SIGALRM: alarm",
        libc::SIGTERM => "SIGTERM: termination",
        libc::SIGXCPU => "SIGXCPU: CPU time limit",
        libc::SIGSYS => "SIGSYS: forbidden system call",
        _ => "see signal(7)",
    }
}

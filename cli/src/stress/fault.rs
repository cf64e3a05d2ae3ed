//! Faults that are done to a process from outside.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::plan::Rng;

/// Sends a signal to a child that has not been waited for.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: a plain system call; the caller has not reaped the child, so the id is its.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Shuts down one of the process's connected sockets, of TCP or Unix, as a broken network would. Says which;
/// `None` if it has none.
pub fn cut(pid: u32, r: &mut Rng) -> Option<String> {
    // SAFETY: plain system calls; a descriptor that is returned is new and ours.
    let open = |number, a: i64, b: i64| unsafe {
        let fd = libc::syscall(number, a, b, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
    };
    let process = open(libc::SYS_pidfd_open, pid.into(), 0)?;
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let number: i64 = entry.file_name().to_string_lossy().parse().ok()?;
        if !fs::read_link(entry.path()).is_ok_and(|t| t.to_string_lossy().starts_with("socket:")) {
            continue;
        }
        // The same socket, under a number of ours.
        if let Some(socket) = open(libc::SYS_pidfd_getfd, process.as_raw_fd().into(), number)
            && let Some(family) = connected(&socket)
        {
            sockets.push((number, family, socket));
        }
    }
    if sockets.is_empty() {
        return None;
    }
    let (number, family, socket) = sockets.swap_remove(r.below(sockets.len()));
    // SAFETY: a plain system call on an open descriptor.
    let done = unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) } == 0;
    done.then(|| format!("{family} socket {number}"))
}

/// The family of a socket that is connected.
fn connected(socket: &OwnedFd) -> Option<&'static str> {
    // SAFETY: all-zero is a valid address, which the call fills up to the length that it is given.
    let family = unsafe {
        let mut address: libc::sockaddr_storage = std::mem::zeroed();
        let mut len = size_of_val(&address) as libc::socklen_t;
        if libc::getpeername(socket.as_raw_fd(), (&raw mut address).cast(), &mut len) != 0 {
            return None;
        }
        address.ss_family
    };
    Some(if i32::from(family) == libc::AF_UNIX { "Unix" } else { "TCP" })
}

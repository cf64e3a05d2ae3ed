//! The process at the other end of a Unix socket.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Whether the process at the other end of a Unix socket has ended, with all its threads. `None`: it cannot be seen.
pub fn ended(socket: RawFd) -> Option<bool> {
    let process = process(socket)?;
    let mut news = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: a table of one, of our own.
    let n = unsafe { libc::poll(&mut news, 1, 0) };
    (n >= 0).then_some(n > 0)
}

/// A descriptor of the process at the other end of a Unix socket.
fn process(socket: RawFd) -> Option<OwnedFd> {
    /// Not in `libc` yet.
    const SO_PEERPIDFD: libc::c_int = 77;
    // SAFETY: plain system calls, of which two write a value of the length that they are told; a descriptor that they give
    // is new and ours.
    unsafe {
        let read = |what, place: *mut libc::c_void, len: usize| {
            let mut len = len as libc::socklen_t;
            libc::getsockopt(socket, libc::SOL_SOCKET, what, place, &mut len) == 0
        };
        let mut fd: RawFd = -1;
        if !read(SO_PEERPIDFD, (&raw mut fd).cast(), size_of_val(&fd)) {
            // Before Linux 6.5: by its number as it is in our container, or 0.
            let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
            read(libc::SO_PEERCRED, (&raw mut peer).cast(), size_of_val(&peer));
            fd = libc::syscall(libc::SYS_pidfd_open, peer.pid, 0) as RawFd;
        }
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_end_of_a_process_is_told_apart_from_that_of_its_connection() {
        let (own, _other) = UnixStream::pair().unwrap();
        own.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(ended(own.as_raw_fd()), Some(false));

        let name = SocketAddr::from_abstract_name(format!("graccl-test-{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let mut sleep = Command::new("sleep");
        // The connection ends as the other program begins.
        let connect = move || UnixStream::connect_addr(&name).map(std::mem::forget);
        // SAFETY: a socket and a connect, without allocation.
        let mut child = unsafe { sleep.arg("60").pre_exec(connect) }.spawn().unwrap();
        let mut stream = listener.accept().unwrap().0;
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(ended(stream.as_raw_fd()), Some(false));
        child.kill().unwrap();
        let since = Instant::now();
        while ended(stream.as_raw_fd()) == Some(false) {
            assert!(since.elapsed() < Duration::from_secs(5));
            std::thread::yield_now();
        }
        child.wait().unwrap();
        // Nobody may be left to ask for.
        assert_ne!(ended(stream.as_raw_fd()), Some(false));
    }
}

//! One non-blocking connection: exact reads, buffered writes, one file descriptor each way.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket, Type};

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Addr {
    /// An abstract Unix name of this network namespace.
    Unix([u8; 16]),
    Tcp(std::net::SocketAddr),
}

impl std::fmt::Display for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Addr::Unix(name) => write!(f, "unix {}", unix_name(name)),
            Addr::Tcp(a) => write!(f, "tcp {a}"),
        }
    }
}

fn unix_name(name: &[u8; 16]) -> String {
    let hex: String = name.iter().map(|b| format!("{b:02x}")).collect();
    format!("graccl-{hex}")
}

fn unix_addr(name: &[u8; 16]) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0{}", unix_name(name)))
}

const BACKLOG: i32 = 4096;

/// Listens at an abstract Unix name.
pub(super) fn listen_unix(name: &[u8; 16]) -> io::Result<Socket> {
    let s = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    s.bind(&unix_addr(name)?)?;
    s.listen(BACKLOG)?;
    Ok(s)
}

/// Listens on a TCP port of all addresses (0 = any free port), by IPv6 and IPv4 where both exist.
pub(super) fn listen_tcp(port: u16) -> io::Result<Socket> {
    let open = |domain: Domain, any: std::net::IpAddr| -> io::Result<Socket> {
        let s = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        s.set_reuse_address(true)?;
        if domain == Domain::IPV6 {
            s.set_only_v6(false)?;
        }
        s.bind(&std::net::SocketAddr::new(any, port).into())?;
        s.listen(BACKLOG)?;
        Ok(s)
    };
    match open(Domain::IPV6, std::net::Ipv6Addr::UNSPECIFIED.into()) {
        Err(e) if e.kind() != io::ErrorKind::AddrInUse => {
            open(Domain::IPV4, std::net::Ipv4Addr::UNSPECIFIED.into())
        }
        other => other,
    }
}

/// Begins to connect; [`io::ErrorKind::WouldBlock`] from a Unix name whose queue is full.
pub(super) fn dial(addr: &Addr) -> io::Result<Socket> {
    let (domain, target) = match addr {
        Addr::Unix(name) => (Domain::UNIX, unix_addr(name)?),
        Addr::Tcp(a) => (if a.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }, (*a).into()),
    };
    let s = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    match s.connect(&target) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(s),
    }
}

/// User that runs the other end of a Unix socket.
pub(super) fn peer_uid(s: &Socket) -> io::Result<u32> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `cred` is writable for `len` bytes.
    let rc = unsafe {
        let place = (&raw mut cred).cast();
        libc::getsockopt(s.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &mut len)
    };
    if rc == 0 { Ok(cred.uid) } else { Err(io::Error::last_os_error()) }
}

/// "No more file descriptors", of this process or of the system.
pub(super) fn out_of_fds(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

pub(super) fn fd_limit_hint() -> String {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    format!(
        "this process may have {} files open at a time, and a rank needs a few and two for every peer: raise \
         it with `ulimit -n`",
        limit.rlim_cur
    )
}

/// What [`Conn::fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// All `need` bytes are there.
    Full,
    Part,
    /// The other end closed.
    End,
}

/// A connection before it is handed to whoever asked for it. Never blocks.
pub(super) struct Conn {
    pub sock: Socket,
    pub unix: bool,
    /// For texts: the address connected to, or accepted from.
    pub with: String,
    /// Dropped if it has not got on by then.
    pub deadline: Option<Instant>,
    buf: Vec<u8>,
    need: usize,
    got_fd: Option<OwnedFd>,
    out: Vec<u8>,
    sent: usize,
    out_fd: Option<OwnedFd>,
}

impl Conn {
    pub fn new(sock: Socket, unix: bool, with: String, deadline: Option<Instant>) -> Conn {
        Conn {
            sock,
            unix,
            with,
            deadline,
            buf: Vec::new(),
            need: 0,
            got_fd: None,
            out: Vec::new(),
            sent: 0,
            out_fd: None,
        }
    }

    /// Bytes that arrived since the last [`Conn::expect`].
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Forgets what was read and waits for `n` bytes. Nothing beyond them is read, so that a stream
    /// can be handed over between messages.
    pub fn expect(&mut self, n: usize) {
        self.buf.clear();
        self.need = n;
    }

    /// Waits for the rest of a message of `n` bytes whose beginning is there.
    pub fn expect_rest(&mut self, n: usize) {
        self.need = n;
    }

    /// Queues bytes; `fd` goes with their first byte.
    pub fn send(&mut self, bytes: &[u8], fd: Option<OwnedFd>) {
        debug_assert!(self.out_fd.is_none() && (fd.is_none() || !self.wants_to_write()));
        self.out.extend_from_slice(bytes);
        self.out_fd = fd;
    }

    pub fn wants_to_write(&self) -> bool {
        self.sent < self.out.len()
    }

    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.got_fd.take()
    }

    /// Writes what it can; true when nothing is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.wants_to_write() {
            let fd = self.out_fd.as_ref().map(|f| f.as_raw_fd());
            match send_with_fd(self.sock.as_raw_fd(), &self.out[self.sent..], fd) {
                Ok(n) => {
                    self.sent += n;
                    self.out_fd = None;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Reads what there is, up to the bytes wanted.
    pub fn fill(&mut self) -> io::Result<Fill> {
        while self.buf.len() < self.need {
            let have = self.buf.len();
            // Grown as bytes come, not on the word of a length field.
            let want = (self.need - have).min(64 << 10);
            self.buf.resize(have + want, 0);
            let got = recv_with_fd(self.sock.as_raw_fd(), &mut self.buf[have..], &mut self.got_fd);
            self.buf.truncate(have + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) => return Ok(Fill::End),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Fill::Part),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Fill::Full)
    }
}

/// Room for the control message that carries one descriptor (or a few too many).
#[repr(C, align(8))]
struct Control(MaybeUninit<[u8; 64]>);

fn send_with_fd(sock: RawFd, bytes: &[u8], fd: Option<RawFd>) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control(MaybeUninit::zeroed());
    // SAFETY: a msghdr of zeros is valid; then it points to `iov`, `bytes` and `control`, which live
    // until sendmsg returns. `control` is aligned and has room for one descriptor, so the first
    // header and its data lie inside it.
    let n = unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        if let Some(fd) = fd {
            msg.msg_control = (&raw mut control).cast();
            msg.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let head = libc::CMSG_FIRSTHDR(&msg);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(head).cast::<RawFd>().write_unaligned(fd);
        }
        libc::sendmsg(sock, &msg, libc::MSG_NOSIGNAL)
    };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Keeps the first descriptor that comes and closes all others.
fn recv_with_fd(sock: RawFd, bytes: &mut [u8], keep: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control(MaybeUninit::zeroed());
    // SAFETY: as in `send_with_fd`; the kernel writes at most `msg_controllen` bytes of control
    // data, and the CMSG macros walk only what it wrote. Every descriptor found there is new to
    // this process and owned by nobody yet.
    unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = (&raw mut control).cast();
        msg.msg_controllen = size_of::<Control>() as _;
        let n = libc::recvmsg(sock, &mut msg, libc::MSG_CMSG_CLOEXEC);
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut head = libc::CMSG_FIRSTHDR(&msg);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*head).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for i in 0..count {
                    let fd = libc::CMSG_DATA(head).cast::<RawFd>().add(i).read_unaligned();
                    let fd = OwnedFd::from_raw_fd(fd);
                    keep.get_or_insert(fd);
                }
            }
            head = libc::CMSG_NXTHDR(&msg, head);
        }
        if msg.msg_flags & libc::MSG_CTRUNC != 0 && keep.is_none() {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(n as usize)
    }
}

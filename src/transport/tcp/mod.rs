//! TCP: one connection per peer, numbered links over it.
//!
//! # The frame
//! All integers are little-endian. Frames of all links follow each other on the one byte stream:
//!
//! ```text
//!  0        4        8      9      10        12       16             16 + len
//!  +--------+--------+------+------+---------+--------+--- ... ------+
//!  | fp     | len    | link | kind | credits | seq    | the message  |
//!  +--------+--------+------+------+---------+--------+--- ... ------+
//! ```
//!
//! `fp` is the fingerprint of the sender's call, `seq` numbers the connection's frames in this
//! direction (a torn stream is noticed at the next header), `kind` is 1 for a message and 2 for a
//! frame that only brings credits (`len` 0). `credits` says how many of *the receiver's* messages on
//! this link were consumed since the last frame that said so.
//!
//! # Who owns what
//! ```text
//!  TcpLink 0 --+                        +-- queue of frames ---- sendmsg --> \
//!  TcpLink 1 --+-- Conn { Proto, fd } --+                                     socket
//!  TcpLink 2 --+                        +-- stage, bodies <----- recvmsg --- /
//! ```
//! [`TcpConn`] and its [`TcpLink`]s are handles of one connection, which owns the socket, the state
//! of all links and a stack of message buffers. `proto` is all of it but the socket. A message
//! sits in a buffer of the stack from `send_slot` until the kernel has it, and from its header's
//! arrival until `release`. With `send_ref` the queue refers to the caller's memory, and with
//! `land` a message is received straight into it; [`TcpConn::close`] ends both.
//!
//! # Why so
//! * **A bounded number of messages, [`DEPTH`] per link, is unacknowledged.** Without a bound
//!   megabytes queue in the kernel and each byte travels to DRAM and back: on loopback a bound of
//!   about 0.5 MB in flight made 64 MB exchanges twice as fast (29 against 15 ms). Message size x
//!   depth x links in use is that bound, and the planner chooses the size. (On a real network it
//!   must be at least bandwidth x round trip.) The buffer stack is last in, first out for the same
//!   reason: the next message goes where the cache is still warm.
//! * **A message can always be received**, because each link has room for `DEPTH` of them. So a
//!   link whose lane does not listen never blocks the others on the same stream.
//! * **Credits ride on what goes back anyway.** A frame of their own is sent when a link owes 2 and
//!   the lane is blocked ([`TcpConn::pump`]), or at once when it owes `DEPTH - 1`. One unpublished
//!   consumption may stay unpublished for ever: a sender can count on `DEPTH - 1` = 3 messages in
//!   flight, and schedules need 2.
//! * **One send per frame** (header and message as two iovecs): two sends double the latency of
//!   a small message. **One receive** for a small one, header included; a large one is received in
//!   place with the next header behind it.
//! * After a large message is complete `pump` stops reading, so that it is used while it is hot.
//! * TCP_NODELAY, and cubic where the system allows it (bbr was 1.1 to 1.5 times slower on
//!   loopback). Default socket buffers: setting them never won and turns the kernel's own tuning off.
//! * Nothing waits in here. Callers spin on `pump` and then park on [`TcpConn::fd`].

mod frame;
mod pool;
mod proto;
#[cfg(test)]
mod proto_tests;
#[cfg(test)]
mod socket_tests;

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use libc::{c_int, c_void, iovec};

use super::{Fault, Link, REF_MIN, Recv};
use crate::{Error, Result};
use proto::{BATCH, Proto};

/// Messages of one link that may be unacknowledged.
pub const DEPTH: usize = 4;

/// Largest message in bytes that is received through the connection buffer.
const SMALL: usize = 4096;

const CLOSED: &str = "connection closed by peer";

/// What both ends of a connection must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Largest message in bytes. The default, 1 MiB - 1 KiB, leaves in one send. 65536 would be a
    /// bad message size: just above a GSO packet, it becomes a full and a tiny one.
    pub capacity: usize,
    /// Links are numbered from 0 to `max_links - 1`; at most 256.
    pub max_links: usize,
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions { capacity: (1 << 20) - (1 << 10), max_links: 256 }
    }
}

struct Conn {
    proto: Proto,
    fd: OwnedFd,
}

/// The connection that the handles share.
#[derive(Clone)]
struct Shared(Arc<UnsafeCell<Conn>>);

// SAFETY: whoever made the connection promised (`TcpConn::new`) that its handles are never used by
// two threads at a time, and that one thread's use happens before the next one's (a lock). The raw
// pointers in `Conn` are its own buffers, or memory that `send_ref` and `land` callers keep valid.
unsafe impl Send for Shared {}

impl Shared {
    #[allow(clippy::mut_from_ref)]
    #[inline]
    fn conn(&self) -> &mut Conn {
        // SAFETY: one thread at a time (see above), and within this file no reference is kept
        // across a call that makes another: `Conn` calls nothing that knows about handles.
        unsafe { &mut *self.0.get() }
    }
}

/// A connection to one peer. See the module's text.
pub struct TcpConn(Shared);

impl TcpConn {
    /// Takes over a connected TCP socket on which nothing but graccl's frames will travel.
    ///
    /// Errors: `InvalidArgument` for options out of range, `SystemError` if it is no TCP socket.
    ///
    /// # Safety
    /// The `TcpConn` and all its links are used by one thread at a time: they may move between
    /// threads, but each use must happen before the next (for example under one lock).
    pub unsafe fn new(stream: OwnedFd, options: TcpOptions) -> Result<TcpConn> {
        let TcpOptions { capacity, max_links } = options;
        if !(1..=1 << 30).contains(&capacity) || !(1..=256).contains(&max_links) {
            return Err(Error::argument(format!(
                "TCP messages of {capacity} bytes on {max_links} links: allowed are 1 to 2^30 bytes, 1 to 256 links"
            )));
        }
        let on: c_int = 1;
        set_option(&stream, libc::TCP_NODELAY, &on.to_ne_bytes())
            .map_err(|e| Error::io("setting TCP_NODELAY", &e))?;
        // May not be allowed here; then the system's default stays.
        let _ = set_option(&stream, libc::TCP_CONGESTION, b"cubic");
        let conn = Conn { proto: Proto::new(capacity, max_links), fd: stream };
        // Counted atomically although used by one thread at a time, because handles may be
        // dropped anywhere.
        #[allow(clippy::arc_with_non_send_sync)]
        Ok(TcpConn(Shared(Arc::new(UnsafeCell::new(conn)))))
    }

    /// This end of link `index`. Both ends use the same number; handles of the same number are the
    /// same link. `InternalError` if the number is not below [`TcpOptions::max_links`].
    pub fn link(&self, index: u8) -> Result<TcpLink> {
        let ix = index as usize;
        if !self.0.conn().proto.open(ix) {
            return Err(Error::internal(format!("TCP link {ix} is above the highest allowed one")));
        }
        Ok(TcpLink { shared: self.0.clone(), ix })
    }

    /// Sends what is queued and reads what is there, as far as both go without waiting. True if
    /// anything moved, or if the connection broke just now.
    #[inline]
    pub fn pump(&self) -> bool {
        self.0.conn().pump()
    }

    /// Bytes are queued that the kernel would not take yet: poll for POLLOUT too. Otherwise only
    /// for POLLIN. While this is true the connection must not be dropped, or they are lost.
    pub fn wants_write(&self) -> bool {
        self.0.conn().proto.has_outgoing()
    }

    /// The socket, to poll. Call [`pump`](TcpConn::pump) last before polling.
    pub fn fd(&self) -> RawFd {
        self.0.conn().fd.as_raw_fd()
    }

    /// Why the connection is of no use any more, if so.
    pub fn broken(&self) -> Option<String> {
        self.0.conn().proto.broken().map(String::from)
    }

    /// Breaks the connection, with `why` as the fault of all its links; the peer sees it closed.
    /// From here on nothing refers to memory given to `send_ref` or `land`: to be called before
    /// that memory is given back after a collective has failed or was aborted.
    pub fn close(&self, why: &str) {
        self.0.conn().fail(why);
    }
}

impl Conn {
    fn pump(&mut self) -> bool {
        if self.proto.broken().is_some() {
            return false;
        }
        self.proto.queue_credits();
        let sent = self.flush();
        self.read() || sent
    }

    /// Sends until the queue is empty or the kernel takes no more. True if anything was sent.
    fn flush(&mut self) -> bool {
        let mut moved = false;
        while self.proto.has_outgoing() {
            let mut iov = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2 * BATCH];
            let (n, _) = self.proto.outgoing(&mut iov);
            // SAFETY: an all-zero msghdr is valid.
            let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
            msg.msg_iov = iov.as_mut_ptr();
            msg.msg_iovlen = n as _;
            // SAFETY: the first `n` entries describe headers and messages of the queue: our own,
            // or memory that the caller of `send_ref` keeps readable until `idle`.
            let r =
                unsafe { libc::sendmsg(self.fd.as_raw_fd(), &msg, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            if r >= 0 {
                self.proto.sent(r as usize);
                moved = true;
                continue;
            }
            match errno() {
                libc::EAGAIN => break,
                libc::EINTR => continue,
                e => {
                    // A peer that has finished and left: its last messages may still be here, and
                    // no more will come.
                    while self.read() && self.proto.broken().is_none() {}
                    self.fail(&reason(e));
                    return true;
                }
            }
        }
        moved
    }

    /// Reads until the socket is empty, or a large message is complete. True if anything came, the
    /// end included.
    fn read(&mut self) -> bool {
        let mut moved = false;
        while self.proto.broken().is_none() {
            let [a, b] = self.proto.room();
            // SAFETY: `room` answers writable memory: our own, or where `land` said.
            let r = unsafe { receive(self.fd.as_raw_fd(), a, b) };
            if r < 0 {
                match errno() {
                    libc::EAGAIN => break,
                    libc::EINTR => continue,
                    e => self.fail(&reason(e)),
                }
            } else if r == 0 {
                self.fail(CLOSED);
            } else {
                // SAFETY: the kernel has just written that many.
                let large = unsafe { self.proto.filled(r as usize) };
                if self.proto.broken().is_some() {
                    self.hang_up();
                } else if large || (r as usize) < a.1 + b.1 {
                    return true;
                }
            }
            moved = true;
        }
        moved
    }

    fn fail(&mut self, why: &str) {
        self.proto.fail(why);
        self.hang_up();
    }

    /// So that the peer hears of the end. It may be gone already: nothing to do about that.
    fn hang_up(&self) {
        // SAFETY: the descriptor is ours.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

/// `recv` or `recvmsg`, without waiting.
///
/// # Safety
/// Both pieces are writable.
#[inline]
unsafe fn receive(fd: RawFd, a: (*mut u8, usize), b: (*mut u8, usize)) -> isize {
    if b.1 == 0 {
        // SAFETY: as the caller says.
        return unsafe { libc::recv(fd, a.0 as *mut c_void, a.1, libc::MSG_DONTWAIT) };
    }
    let mut iov = [a, b].map(|(p, len)| iovec { iov_base: p as *mut c_void, iov_len: len });
    // SAFETY: an all-zero msghdr is valid.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iov.as_mut_ptr();
    msg.msg_iovlen = 2;
    // SAFETY: as the caller says.
    unsafe { libc::recvmsg(fd, &mut msg, libc::MSG_DONTWAIT) }
}

fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn reason(errno: c_int) -> String {
    match errno {
        libc::ECONNRESET | libc::EPIPE => CLOSED.to_string(),
        e => io::Error::from_raw_os_error(e).to_string(),
    }
}

fn set_option(fd: &OwnedFd, name: c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: `value` is readable for its length.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            value.as_ptr() as *const c_void,
            value.len() as libc::socklen_t,
        )
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One end of a numbered link of a [`TcpConn`]. Sends are tried at once; what the kernel does not
/// take goes out in [`TcpConn::pump`], which is also what makes messages arrive.
pub struct TcpLink {
    shared: Shared,
    ix: usize,
}

impl Link for TcpLink {
    fn send_slot(&mut self, len: usize) -> Option<*mut u8> {
        self.shared.conn().proto.send_slot(self.ix, len)
    }

    fn commit(&mut self, len: usize, fp: u32) {
        let c = self.shared.conn();
        c.proto.commit(self.ix, len, fp);
        c.flush();
    }

    fn room(&mut self) -> bool {
        self.shared.conn().proto.has_room(self.ix)
    }

    fn can_ref(&self, _src: *const u8, len: usize) -> bool {
        (REF_MIN..=self.capacity()).contains(&len)
    }

    unsafe fn send_ref(&mut self, src: *const u8, len: usize, fp: u32) {
        let c = self.shared.conn();
        c.proto.send_ref(self.ix, src, len, fp);
        c.flush();
    }

    fn recv(&mut self, len: usize, fp: u32) -> Recv {
        self.shared.conn().proto.recv(self.ix, len, fp)
    }

    unsafe fn land(&mut self, dst: *mut u8, len: usize) {
        // SAFETY: as the caller says.
        unsafe { self.shared.conn().proto.land(self.ix, dst, len) };
    }

    fn release(&mut self) {
        let c = self.shared.conn();
        if c.proto.release(self.ix) {
            c.proto.queue_credits();
            c.flush();
        }
    }

    fn idle(&mut self) -> bool {
        self.shared.conn().proto.idle(self.ix)
    }

    fn capacity(&self) -> usize {
        self.shared.conn().proto.capacity()
    }

    fn fault(&self) -> Option<Fault> {
        self.shared.conn().proto.fault(self.ix)
    }
}

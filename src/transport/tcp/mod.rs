//! TCP: one connection per pair of processes, numbered links over it.
//!
//! # The frame
//! All integers are little-endian. Frames of all links follow each other on the one byte stream:
//!
//! ```text
//!  0        4        8        12     13        14       16             16 + len
//!  +--------+--------+--------+------+---------+--------+--- ... ------+
//!  | fp     | len    | link   | kind | credits | seq    | the message  |
//!  +--------+--------+--------+------+---------+--------+--- ... ------+
//! ```
//!
//! `fp` is the fingerprint of the sender's call, `seq` numbers the connection's frames in this
//! direction (a torn stream is noticed at the next header). `kind` is 1 for a message, 2 for a
//! frame that only brings credits (`len` 0), 3 for control words (`fp`, `link` and `credits` 0), and 4 for a
//! frame of zeros that the peer drops.
//! `credits` says how many of *the receiver's* messages on this link were consumed since the last
//! frame that said so.
//!
//! # Who owns what
//! ```text
//!  TcpLink 7 --+                        +-- queue of frames ---- sendmsg --> \
//!  TcpLink 8 --+-- Conn { Proto, fd } --+                                     socket
//!  TcpConn   --+   behind one lock      +-- stage, bodies <----- recvmsg --- /
//! ```
//! [`TcpConn`] and its [`TcpLink`]s are handles of one connection, which owns the socket, the state
//! of all links and a stack of message buffers. Any thread may use its handles at any time. `proto`
//! is all of it but the socket. A message sits in a buffer of the stack from `send_slot` until the
//! kernel has it, and from its header's arrival until `release`. With `send_ref` the queue refers to
//! the caller's memory, and with `land` a message is received straight into it; the end of the
//! link, [`TcpLink::abandon`] and [`TcpConn::close`] end both.
//!
//! # The life of a link
//! Nobody negotiates links: a number means the same on both sides, and each opens its end when it
//! likes. Messages that come before are kept (their number is bounded by credits, their links and
//! bytes by `EARLY_LINKS` and `EARLY_BYTES`; more breaks the connection). Messages that come after
//! the end of a link are read and dropped. So a number is used once.
//!
//! # A host that is cut off
//! A process that dies closes its connections; a host that is cut off does not. Whenever `pump` is called and
//! nothing moves, `watch` looks at what the kernel knows (TCP_INFO), ten times a second. Where nothing has come
//! for a quarter of a second and nothing is under way it sends a frame that says nothing: the kernel of the peer's host
//! confirms it, whatever the process does (which finds 230 KB of them after an hour). It breaks the connection when
//! something that asks for an answer was sent and no answer of any kind came for 1 s, in which it was sent three times
//! where answers take less than 200 ms: 1.3 to 1.5 s after the last sign of life. Where nobody calls `pump` the kernel itself probes (SO_KEEPALIVE): after
//! 1 s, then every second, and after 2 probes without an answer the connection is broken, after 3 s.
//! TCP_USER_TIMEOUT would do the same without a look, but it also kills the connection to a process that is merely
//! stopped or busy: Linux counts the time that the peer's window is closed, although the peer answers every probe
//! of it. Where Linux allows it (6.15) retransmissions and probes are at most 1 s apart; elsewhere a host that
//! is cut off while its process is stopped and has not read what it was sent is noticed later.
//!
//! # Encryption
//! With a secret ([`TcpOptions::secret`]) all bytes travel in authenticated records: `seal` lies between the
//! protocol and the socket. A message is then copied once more on either side.
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
//! * Control words wait in the same queue as messages, and so arrive in the order in which both were
//!   sent; no credit stops them. At most `WORDS_MAX` bytes of them wait on either side.
//! * TCP_NODELAY, and cubic where the system allows it (bbr was 1.1 to 1.5 times slower on
//!   loopback). Default socket buffers: setting them never won and turns the kernel's own tuning off.
//! * Nothing waits in here. Callers spin on `pump` and then park on [`TcpConn::fd`].

mod frame;
mod fuzz;
mod ids;
mod pool;
mod proto;
#[cfg(test)]
mod proto_tests;
mod seal;
#[cfg(test)]
mod seal_tests;
#[cfg(test)]
mod socket_tests;
mod watch;

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libc::{c_int, c_void, iovec};

use super::{Fault, Link, REF_MIN, Recv};
use crate::{Error, Result};
pub use fuzz::{fuzz_feed, fuzz_feed_sealed};
use proto::{BATCH, Proto};
use seal::{REKEY, Seal};
use watch::{Finding, Watch};

/// Messages of one link that may be unacknowledged.
pub const DEPTH: usize = 4;

/// Largest message in bytes that is received through the connection buffer.
const SMALL: usize = 4096;

const CLOSED: &str = "connection closed by peer";
const LOST: &str = "the peer's host does not answer any more";

/// What both ends of a connection must agree on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TcpOptions {
    /// Largest message in bytes, by default 2 MiB - 1 KiB. 65536 would be a bad message size: just above
    /// a GSO packet, it becomes a full and a tiny one.
    pub capacity: usize,
    /// Encrypt with this secret, which both ends know. It must be good for nothing else.
    pub secret: Option<[u8; 32]>,
    /// Of the two ends that encrypt one is the initiator, the other is not.
    pub initiator: bool,
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions { capacity: (2 << 20) - (1 << 10), secret: None, initiator: false }
    }
}

struct Conn {
    proto: Proto,
    /// Between the protocol and the socket, if all is encrypted.
    seal: Option<Box<Seal>>,
    fd: OwnedFd,
    watch: Watch,
}

// SAFETY: the raw pointers in it are its own buffers, or memory that the callers of `send_ref` and
// `land` keep valid for whatever thread moves the bytes.
unsafe impl Send for Conn {}

/// The connection that the handles share.
#[derive(Clone)]
struct Shared(Arc<Mutex<Conn>>);

impl Shared {
    #[inline]
    fn conn(&self) -> MutexGuard<'_, Conn> {
        // A panic in here leaves no state that is dangerous, only a stream that is soon found torn.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to one peer. See the module's text.
#[derive(Clone)]
pub struct TcpConn(Shared);

impl TcpConn {
    /// Takes over a connected TCP socket on which nothing but graccl's frames will travel.
    ///
    /// Errors: `InvalidArgument` for options out of range, `SystemError` if it is no TCP socket.
    pub fn new(stream: OwnedFd, options: TcpOptions) -> Result<TcpConn> {
        let TcpOptions { capacity, secret, initiator } = options;
        if !(1..=1 << 30).contains(&capacity) {
            return Err(Error::argument(format!(
                "TCP messages of {capacity} bytes: allowed are 1 to 2^30 bytes"
            )));
        }
        let on: c_int = 1;
        set_option(&stream, libc::IPPROTO_TCP, libc::TCP_NODELAY, &on.to_ne_bytes())
            .map_err(|e| Error::io("setting TCP_NODELAY", &e))?;
        // May not be allowed here; then the system's default stays.
        let _ = set_option(&stream, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"cubic");
        watch::keep_alive(&stream).map_err(|e| Error::io("setting SO_KEEPALIVE", &e))?;
        let seal = match secret {
            Some(s) => Some(Box::new(Seal::new(&s, initiator, REKEY).map_err(Error::internal)?)),
            None => None,
        };
        let mut conn = Conn { proto: Proto::new(capacity), seal, fd: stream, watch: Watch::default() };
        // A peer that does not encrypt is to learn at once that we do.
        conn.flush();
        Ok(TcpConn(Shared(Arc::new(Mutex::new(conn)))))
    }

    /// Opens this end of link `id`, with the messages that came before. Both ends use the same
    /// number. `InternalError` if this end is open already or was closed.
    pub fn link(&self, id: u32) -> Result<TcpLink> {
        let mut c = self.0.conn();
        let ix = c.proto.open(id).map_err(|text| Error::internal(format!("TCP: {text}")))?;
        Ok(TcpLink { capacity: c.proto.capacity(), shared: self.0.clone(), id, ix })
    }

    /// Closes this end of all these links, open once or never: what came for them is dropped, and so
    /// is what will come. For the numbers of a communicator that is over. `InternalError`, and no
    /// effect, while a [`TcpLink`] of one of them is there.
    pub fn retire(&self, ids: Range<u32>) -> Result<()> {
        self.0.conn().proto.retire(ids).map_err(|text| Error::internal(format!("TCP: {text}")))
    }

    /// Queues control words, which arrive in order, also with regard to messages; what can be
    /// sent is sent at once. Breaks the connection if 1 MiB of them waits.
    pub fn tell(&self, words: &[u8]) {
        let mut c = self.0.conn();
        c.proto.tell(words);
        if c.proto.broken().is_some() {
            c.hang_up();
        } else {
            c.flush();
        }
    }

    /// Appends the control words that have come (by [`pump`](TcpConn::pump)) to `to`; returns how many
    /// bytes. What came before the connection broke can still be heard. Where 1 MiB comes and
    /// nobody hears it the connection breaks.
    pub fn hear(&self, to: &mut Vec<u8>) -> usize {
        self.0.conn().proto.hear(to)
    }

    /// Sends what is queued and reads what is there, as far as both go without waiting. True if
    /// anything moved, or if the connection broke just now.
    #[inline]
    pub fn pump(&self) -> bool {
        self.0.conn().pump()
    }

    /// Bytes are queued that the kernel would not take yet: poll for POLLOUT too. Otherwise only
    /// for POLLIN.
    pub fn wants_write(&self) -> bool {
        self.0.conn().has_outgoing()
    }

    /// Something that was sent has not left this process: if the connection is dropped now it is lost.
    /// (Not the same as `wants_write` while encryption is being agreed on.)
    pub fn unsent(&self) -> bool {
        let c = self.0.conn();
        c.proto.broken().is_none() && (c.proto.has_outgoing() || c.seal.as_ref().is_some_and(|s| s.waits()))
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
    /// From here on nothing refers to memory given to `send_ref` or `land`.
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
        if self.read() || sent {
            return true;
        }
        match self.watch.look(&self.fd) {
            Finding::Fine => false,
            Finding::Silent => {
                // One that waits, also for encryption to be agreed on, is enough.
                if !self.proto.has_outgoing() && !self.has_outgoing() {
                    self.proto.ask();
                    self.flush();
                }
                false
            }
            Finding::Lost => {
                self.fail(LOST);
                true
            }
        }
    }

    fn has_outgoing(&self) -> bool {
        match &self.seal {
            None => self.proto.has_outgoing(),
            Some(s) => self.proto.broken().is_none() && s.has_outgoing(&self.proto),
        }
    }

    /// Sends until the queue is empty or the kernel takes no more. True if anything was sent.
    fn flush(&mut self) -> bool {
        let mut moved = false;
        while self.has_outgoing() {
            let r = match self.send() {
                Ok(r) => r,
                Err(text) => {
                    self.fail(&text);
                    return true;
                }
            };
            if r >= 0 {
                match &mut self.seal {
                    None => self.proto.sent(r as usize),
                    Some(s) => s.sent(r as usize),
                }
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
                    self.fail(&self.reason(e));
                    return true;
                }
            }
        }
        moved
    }

    /// One send, without waiting; what the system answers. An error only if encryption fails.
    #[inline]
    fn send(&mut self) -> std::result::Result<isize, String> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        if let Some(s) = &mut self.seal {
            let bytes = s.outgoing(&mut self.proto)?;
            // SAFETY: readable memory of ours.
            return Ok(unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) });
        }
        let mut iov = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2 * BATCH];
        let (n, _) = self.proto.outgoing(&mut iov);
        // SAFETY: an all-zero msghdr is valid.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_iov = iov.as_mut_ptr();
        msg.msg_iovlen = n as _;
        // SAFETY: the first `n` entries describe headers and messages of the queue: our own,
        // or memory that the caller of `send_ref` keeps readable until `idle`.
        Ok(unsafe { libc::sendmsg(self.fd.as_raw_fd(), &msg, flags) })
    }

    /// Reads until the socket is empty, or a large message is complete. True if anything came, the
    /// end included.
    fn read(&mut self) -> bool {
        let mut moved = false;
        while self.proto.broken().is_none() {
            let (r, room) = match &mut self.seal {
                None => {
                    let [a, b] = self.proto.room();
                    // SAFETY: `room` answers writable memory: our own, or where `land` said.
                    (unsafe { receive(self.fd.as_raw_fd(), a, b) }, a.1 + b.1)
                }
                Some(s) => {
                    let room = s.room();
                    let a = (room.as_mut_ptr(), room.len());
                    // SAFETY: our own memory.
                    (unsafe { receive(self.fd.as_raw_fd(), a, (a.0, 0)) }, a.1)
                }
            };
            if r < 0 {
                match errno() {
                    libc::EAGAIN => break,
                    libc::EINTR => continue,
                    e => self.fail(&self.reason(e)),
                }
            } else if r == 0 {
                self.fail(&self.reason(libc::EPIPE));
            } else {
                let large = match &mut self.seal {
                    // SAFETY: the kernel has just written that many.
                    None => unsafe { self.proto.filled(r as usize) },
                    // SAFETY: as above; `land`'s promise holds until the protocol breaks or forgets it.
                    Some(s) => match unsafe { s.filled(r as usize, &mut self.proto) } {
                        Ok(large) => large,
                        Err(text) => {
                            self.proto.fail(text);
                            false
                        }
                    },
                };
                if self.proto.broken().is_some() {
                    self.hang_up();
                } else if large || (r as usize) < room {
                    return true;
                }
            }
            moved = true;
        }
        moved
    }

    /// The text for a socket's end.
    fn reason(&self, errno: c_int) -> String {
        match errno {
            libc::ECONNRESET | libc::EPIPE => {
                self.seal.as_ref().and_then(|s| s.ended()).unwrap_or(CLOSED).to_string()
            }
            // From the kernel's own probes.
            libc::ETIMEDOUT => LOST.to_string(),
            e => io::Error::from_raw_os_error(e).to_string(),
        }
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

fn set_option(fd: &OwnedFd, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: `value` is readable for its length.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr() as *const c_void,
            value.len() as libc::socklen_t,
        )
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One end of a numbered link of a [`TcpConn`], open until it is dropped. Sends are tried at once; what
/// the kernel does not take goes out in [`TcpConn::pump`], which is also what makes messages arrive.
pub struct TcpLink {
    shared: Shared,
    id: u32,
    ix: usize,
    capacity: usize,
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        // Not an empty range for the highest number: that one is never opened.
        self.shared.conn().proto.close(self.id..self.id + 1);
    }
}

impl Link for TcpLink {
    fn send_slot(&mut self, len: usize) -> Option<*mut u8> {
        self.shared.conn().proto.send_slot(self.ix, len)
    }

    fn commit(&mut self, len: usize, fp: u32) {
        let mut c = self.shared.conn();
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
        let mut c = self.shared.conn();
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
        let mut c = self.shared.conn();
        if c.proto.release(self.ix) {
            c.proto.queue_credits();
            c.flush();
        }
    }

    fn idle(&mut self) -> bool {
        let c = self.shared.conn();
        // Messages in memory of ours must leave as well, and what is sealed, or the peer waits for them until
        // somebody pumps again, and that may be never.
        c.proto.idle(self.ix) && (c.proto.broken().is_some() || !c.seal.as_ref().is_some_and(|s| s.waits()))
    }

    /// What is still to be sent of the caller's memory is copied, and the rest of a message that is landing
    /// goes to memory of our own. The connection and this link stay as they are.
    fn abandon(&mut self, _force: bool) -> bool {
        self.shared.conn().proto.abandon(self.ix);
        true
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn fault(&self) -> Option<Fault> {
        self.shared.conn().proto.fault(self.ix)
    }
}

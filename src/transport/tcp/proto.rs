//! The protocol of one connection without the socket: frames in, frames out, links, credits.
//!
//! Bytes come in through [`Proto::room`] and [`Proto::filled`] (where to read to, how much was
//! read), and go out through [`Proto::outgoing`] and [`Proto::sent`]. Nothing here waits or does
//! I/O, so that tests can feed it any bytes in any portions.

use std::collections::VecDeque;

use libc::iovec;

use super::frame::{HEADER, Header, Kind};
use super::pool::{Buf, Pool};
use super::{DEPTH, SMALL};
use crate::transport::{Fault, Recv};

/// Size of the connection buffer: a small message with its header.
const STAGE: usize = HEADER + SMALL;
/// Frames that leave in one system call at most.
pub(super) const BATCH: usize = 8;
/// Unpublished consumptions from which on a credit frame is worth its cost.
const OWE: usize = 2;

/// A received message, or the one that is being received.
struct Msg {
    fp: u32,
    len: usize,
    ptr: *mut u8,
    /// `None`: it has no bytes, or it went where [`Proto::land`] said.
    buf: Option<Buf>,
}

/// The message that is being received.
struct Body {
    link: usize,
    got: usize,
    msg: Msg,
}

/// A frame that the kernel has not taken completely.
struct Frame {
    header: [u8; HEADER],
    link: usize,
    data: *const u8,
    len: usize,
    what: What,
}

enum What {
    Credit,
    /// A message in a buffer of ours.
    Slot(Buf),
    /// A message in the caller's memory.
    Ref,
}

#[derive(Default)]
struct LinkState {
    // Sending.
    /// The room handed out by `send_slot`, until `commit`.
    slot: Option<Buf>,
    /// Messages that the peer has not acknowledged.
    in_flight: usize,
    /// Those of them that are still in our queue.
    queued: usize,
    /// Those of them that lie in the caller's memory.
    refs: usize,
    // Receiving.
    ready: VecDeque<Msg>,
    land: Option<(*mut u8, usize)>,
    /// Messages consumed that the peer has not been told about.
    owed: usize,
    /// Is in `Proto::owing`.
    listed: bool,
    fault: Option<Fault>,
}

pub(super) struct Proto {
    capacity: usize,
    max_links: usize,
    links: Vec<LinkState>,
    pool: Pool,
    /// Bytes of which it is not known yet to what they belong: `stage[..held]`. While a body is
    /// being received there are none.
    stage: Box<[u8; STAGE]>,
    held: usize,
    body: Option<Body>,
    seq_in: u32,
    queue: VecDeque<Frame>,
    /// Bytes of the queue's first frame that the kernel has.
    head: usize,
    seq_out: u32,
    /// Links that may owe `OWE` or more credits.
    owing: Vec<usize>,
    broken: Option<String>,
}

impl Proto {
    pub fn new(capacity: usize, max_links: usize) -> Proto {
        Proto {
            capacity,
            max_links,
            links: Vec::new(),
            pool: Pool::default(),
            stage: Box::new([0; STAGE]),
            held: 0,
            body: None,
            seq_in: 0,
            queue: VecDeque::new(),
            head: 0,
            seq_out: 0,
            owing: Vec::new(),
            broken: None,
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes link `ix` known; false if there can be no such link.
    pub fn open(&mut self, ix: usize) -> bool {
        if ix >= self.max_links {
            return false;
        }
        if ix >= self.links.len() {
            self.links.resize_with(ix + 1, LinkState::default);
        }
        true
    }

    // ---- sending ----

    pub fn send_slot(&mut self, ix: usize, len: usize) -> Option<*mut u8> {
        let l = &mut self.links[ix];
        if self.broken.is_some() || l.in_flight >= DEPTH || len > self.capacity {
            return None;
        }
        if l.slot.as_ref().is_none_or(|b| b.size() < len) {
            l.slot = Some(self.pool.get(len));
        }
        l.slot.as_ref().map(Buf::ptr)
    }

    /// Queues the slot's message. Without a slot (not asked for, or the connection broke) nothing.
    pub fn commit(&mut self, ix: usize, len: usize, fp: u32) {
        let Some(buf) = self.links[ix].slot.take() else { return };
        if self.broken.is_some() || len > buf.size() {
            return;
        }
        self.push_data(ix, fp, buf.ptr(), len, What::Slot(buf));
    }

    /// Whether link `ix` may send a message now.
    pub fn has_room(&self, ix: usize) -> bool {
        self.broken.is_none() && self.links[ix].in_flight < DEPTH
    }

    /// Queues a message that stays where it is. Only after `has_room`.
    pub fn send_ref(&mut self, ix: usize, src: *const u8, len: usize, fp: u32) {
        self.links[ix].refs += 1;
        self.push_data(ix, fp, src, len, What::Ref);
    }

    fn push_data(&mut self, ix: usize, fp: u32, data: *const u8, len: usize, what: What) {
        let l = &mut self.links[ix];
        l.in_flight += 1;
        l.queued += 1;
        self.push(ix, Kind::Data, fp, data, len, what);
    }

    fn push(&mut self, ix: usize, kind: Kind, fp: u32, data: *const u8, len: usize, what: What) {
        let credits = std::mem::take(&mut self.links[ix].owed) as u16;
        let h = Header { fp, len: len as u32, link: ix as u8, kind, credits, seq: self.seq_out };
        self.seq_out = self.seq_out.wrapping_add(1);
        self.queue.push_back(Frame { header: h.encode(), link: ix, data, len, what });
    }

    /// Queues a credit frame for every link that owes enough.
    pub fn queue_credits(&mut self) {
        while let Some(ix) = self.owing.pop() {
            let l = &mut self.links[ix];
            l.listed = false;
            if l.owed >= OWE && self.broken.is_none() {
                self.push(ix, Kind::Credit, 0, std::ptr::null(), 0, What::Credit);
            }
        }
    }

    pub fn has_outgoing(&self) -> bool {
        !self.queue.is_empty()
    }

    pub fn idle(&self, ix: usize) -> bool {
        self.links[ix].refs == 0
    }

    /// Fills `iov` with the next bytes to send; returns how many entries are used and their bytes.
    /// They stay valid until the next call of anything else.
    pub fn outgoing(&self, iov: &mut [iovec; 2 * BATCH]) -> (usize, usize) {
        let (mut n, mut bytes, mut skip) = (0, 0, self.head);
        for f in self.queue.iter().take(BATCH) {
            for (p, len) in [(f.header.as_ptr(), HEADER), (f.data, f.len)] {
                if skip >= len {
                    skip -= len;
                    continue;
                }
                // `skip < len`, so that this stays inside the part.
                iov[n] = iovec { iov_base: p.wrapping_add(skip) as *mut _, iov_len: len - skip };
                bytes += len - skip;
                n += 1;
                skip = 0;
            }
        }
        (n, bytes)
    }

    /// The kernel has taken the next `n` bytes.
    pub fn sent(&mut self, n: usize) {
        self.head += n;
        while let Some(f) = self.queue.front() {
            if self.head < HEADER + f.len {
                return;
            }
            self.head -= HEADER + f.len;
            let Some(f) = self.queue.pop_front() else { return };
            let l = &mut self.links[f.link];
            match f.what {
                What::Credit => continue,
                What::Slot(b) => self.pool.put(b),
                What::Ref => l.refs -= 1,
            }
            l.queued -= 1;
        }
    }

    // ---- receiving ----

    /// Where the next bytes from the peer go: two pieces, the second may be empty.
    ///
    /// Idle: the connection buffer, so that a small message comes with its header in one go.
    /// Inside a body: straight to its place, and behind it the next header (with a small
    /// message's body: whatever follows), so that a stream of messages costs one call each.
    pub fn room(&mut self) -> [(*mut u8, usize); 2] {
        let stage = self.stage.as_mut_ptr();
        match &self.body {
            None => [(stage.wrapping_add(self.held), STAGE - self.held), (stage, 0)],
            Some(b) => {
                let behind = if b.msg.len > SMALL { HEADER } else { STAGE };
                [(b.msg.ptr.wrapping_add(b.got), b.msg.len - b.got), (stage, behind)]
            }
        }
    }

    /// `n` bytes were written to the last [`room`](Proto::room). Returns whether a large message
    /// is now complete.
    ///
    /// # Safety
    /// They really were, and the caller's promise to [`Proto::land`] holds.
    pub unsafe fn filled(&mut self, n: usize) -> bool {
        let mut large = false;
        match &mut self.body {
            None => self.held += n,
            Some(b) => {
                let took = n.min(b.msg.len - b.got);
                b.got += took;
                self.held = n - took;
                large = b.msg.len > SMALL && b.got == b.msg.len;
            }
        }
        let mut at = 0;
        loop {
            if let Some(b) = &mut self.body {
                let n = (b.msg.len - b.got).min(self.held - at);
                // SAFETY: `n` bytes are there and fit, and they do not overlap: `stage` is ours.
                unsafe {
                    std::ptr::copy_nonoverlapping(self.stage.as_ptr().add(at), b.msg.ptr.add(b.got), n);
                }
                b.got += n;
                at += n;
                if b.got < b.msg.len {
                    break;
                }
                if let Some(b) = self.body.take() {
                    self.links[b.link].ready.push_back(b.msg);
                }
            }
            let Some(h) = self.stage[at..self.held].first_chunk::<HEADER>() else { break };
            let h = *h;
            at += HEADER;
            if let Err(text) = self.header(&h) {
                self.fail(text);
                return large;
            }
        }
        self.stage.copy_within(at..self.held, 0);
        self.held -= at;
        large
    }

    /// Judges a header and, if a message follows, makes room for it.
    fn header(&mut self, bytes: &[u8; HEADER]) -> Result<(), String> {
        let h = Header::decode(bytes)?;
        if h.seq != self.seq_in {
            return Err(format!("frame number {} where {} was due", h.seq, self.seq_in));
        }
        self.seq_in = self.seq_in.wrapping_add(1);
        let (ix, len, credits) = (h.link as usize, h.len as usize, h.credits as usize);
        if !self.open(ix) {
            return Err(format!("frame for link {ix}, but there are only {}", self.max_links));
        }
        let l = &mut self.links[ix];
        let sent = l.in_flight - l.queued;
        if credits > sent {
            return Err(format!("link {ix}: {credits} messages acknowledged, but only {sent} sent"));
        }
        l.in_flight -= credits;
        match h.kind {
            Kind::Credit if len != 0 || credits == 0 => {
                Err(format!("link {ix}: credit frame with {credits} credits and {len} bytes"))
            }
            Kind::Credit => Ok(()),
            Kind::Data if len > self.capacity => {
                Err(format!("link {ix}: message of {len} bytes, above the capacity of {}", self.capacity))
            }
            Kind::Data if l.ready.len() + l.owed >= DEPTH => {
                Err(format!("link {ix}: more than {DEPTH} unacknowledged messages"))
            }
            Kind::Data => {
                let (ptr, buf) = match l.land.take() {
                    Some((dst, n)) if n == len => (dst, None),
                    _ => {
                        let b = self.pool.get(len);
                        (b.ptr(), Some(b))
                    }
                };
                self.body = Some(Body { link: ix, got: 0, msg: Msg { fp: h.fp, len, ptr, buf } });
                Ok(())
            }
        }
    }

    pub fn recv(&mut self, ix: usize, len: usize, fp: u32) -> Recv {
        let l = &mut self.links[ix];
        if l.fault.is_some() {
            return Recv::Fault;
        }
        match l.ready.front() {
            None if self.broken.is_some() => return Recv::Fault,
            None => return Recv::Pending,
            Some(m) if m.fp != fp => l.fault = Some(Fault::Fingerprint { got: m.fp }),
            Some(m) if m.len != len => l.fault = Some(Fault::Length { got: m.len }),
            Some(m) => return Recv::Ready(m.ptr),
        }
        Recv::Fault
    }

    /// The link's next message may go to `dst`. Of no effect if that message is already here, or
    /// more than a small part of it.
    ///
    /// # Safety
    /// As for `Link::land`; it ends also with [`Proto::fail`].
    pub unsafe fn land(&mut self, ix: usize, dst: *mut u8, len: usize) {
        let l = &mut self.links[ix];
        if self.broken.is_some() || !l.ready.is_empty() {
            return;
        }
        match &mut self.body {
            Some(b) if b.link == ix => {
                if b.msg.len == len
                    && b.got <= SMALL
                    && let Some(buf) = b.msg.buf.take()
                {
                    // SAFETY: `got <= len` bytes are in the buffer, and `dst` has room for `len`.
                    unsafe { std::ptr::copy_nonoverlapping(buf.ptr(), dst, b.got) };
                    b.msg.ptr = dst;
                    self.pool.put(buf);
                }
            }
            _ => l.land = Some((dst, len)),
        }
    }

    /// Ends the use of the link's first message. True: the peer may soon run out of credits, so
    /// publish them now instead of waiting for a frame to go back.
    pub fn release(&mut self, ix: usize) -> bool {
        let l = &mut self.links[ix];
        let Some(m) = l.ready.pop_front() else { return false };
        if let Some(b) = m.buf {
            self.pool.put(b);
        }
        l.owed += 1;
        if l.owed >= OWE && !l.listed {
            l.listed = true;
            self.owing.push(ix);
        }
        l.owed >= DEPTH - 1
    }

    // ---- the end ----

    /// Breaks the connection for good; the first reason stays. Forgets all of the caller's memory.
    /// Complete messages can still be received.
    pub fn fail(&mut self, text: impl Into<String>) {
        if self.broken.is_some() {
            return;
        }
        self.broken = Some(text.into());
        self.queue.clear();
        self.owing.clear();
        self.head = 0;
        self.held = 0;
        self.body = None;
        for l in &mut self.links {
            l.refs = 0;
            l.queued = 0;
            l.land = None;
            l.listed = false;
        }
    }

    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    pub fn fault(&self, ix: usize) -> Option<Fault> {
        self.links[ix].fault.clone().or_else(|| self.broken.clone().map(Fault::Broken))
    }
}

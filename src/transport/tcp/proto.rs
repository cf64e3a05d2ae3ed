//! The protocol of one connection without the socket: frames in, frames out, links, credits.
//!
//! Bytes come in through [`Proto::room`] and [`Proto::filled`] (where to read to, how much was
//! read), and go out through [`Proto::outgoing`] and [`Proto::sent`]. Nothing here waits or does
//! I/O, so that tests can feed it any bytes in any portions.

use std::collections::VecDeque;
use std::ops::Range;

use libc::iovec;

use super::frame::{HEADER, Header, Kind};
use super::ids::Ids;
use super::pool::{Buf, Pool};
use super::seal::{MIXED, PREFACE};
use super::{DEPTH, SMALL};
use crate::transport::{Fault, Recv};

/// Size of the connection buffer: a small message with its header.
const STAGE: usize = HEADER + SMALL;
/// Frames that leave in one system call at most.
pub(super) const BATCH: usize = 8;
/// Unpublished consumptions from which on a credit frame is worth its cost.
const OWE: usize = 2;
/// Links on which messages arrived before they were opened here, at most.
pub(super) const EARLY_LINKS: usize = 1024;
/// Bytes of their messages, at most.
pub(super) const EARLY_BYTES: usize = 256 << 20;
/// Bytes of control words, headers included, that wait on one side of the connection at most.
pub(super) const WORDS_MAX: usize = 1 << 20;

/// A received message, or the one that is being received.
struct Msg {
    fp: u32,
    len: usize,
    ptr: *mut u8,
    /// `None`: it has no bytes, or it went where [`Proto::land`] said.
    buf: Option<Buf>,
}

/// To whom a body or a frame belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// The link at this place in `Proto::links`.
    Link(usize),
    /// The stream of control words.
    Words,
    /// A link that is over, or none.
    Nobody,
}

/// The message that is being received.
struct Body {
    to: To,
    got: usize,
    msg: Msg,
}

/// A frame that the kernel has not taken completely.
struct Frame {
    header: [u8; HEADER],
    to: To,
    data: *const u8,
    len: usize,
    what: What,
}

enum What {
    /// No message: the header is all.
    Nothing,
    /// A message in a buffer of ours.
    Slot(Buf),
    /// A message in the caller's memory.
    Ref,
    /// Control words.
    Words(Box<[u8]>),
}

#[derive(Default)]
struct LinkState {
    id: u32,
    /// Somebody here has it; otherwise messages came before.
    open: bool,
    // Sending.
    /// The room handed out by `send_slot`, until `commit`.
    slot: Option<Buf>,
    /// Messages that the peer has not acknowledged.
    in_flight: usize,
    /// Those of them that are still in our queue.
    queued: usize,
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
    ids: Ids,
    links: Vec<LinkState>,
    /// Places in `links` that are free.
    vacant: Vec<usize>,
    /// Links that are not open here yet, and the bytes of their messages.
    early: usize,
    early_bytes: usize,
    pool: Pool,
    /// Bytes of which it is not known yet to what they belong: `stage[..held]`. While a body is
    /// being received there are none.
    stage: Box<[u8; STAGE]>,
    held: usize,
    body: Option<Body>,
    seq_in: u16,
    queue: VecDeque<Frame>,
    /// Bytes of the queue's first frame that the kernel has.
    head: usize,
    seq_out: u16,
    /// Links that may owe `OWE` or more credits.
    owing: Vec<usize>,
    /// Bytes of control words in the queue, headers included.
    telling: usize,
    /// Control words that came.
    heard: Vec<u8>,
    broken: Option<String>,
}

impl Proto {
    pub fn new(capacity: usize) -> Proto {
        Proto {
            capacity,
            ids: Ids::default(),
            links: Vec::new(),
            vacant: Vec::new(),
            early: 0,
            early_bytes: 0,
            pool: Pool::default(),
            stage: Box::new([0; STAGE]),
            held: 0,
            body: None,
            seq_in: 0,
            queue: VecDeque::new(),
            head: 0,
            seq_out: 0,
            owing: Vec::new(),
            telling: 0,
            heard: Vec::new(),
            broken: None,
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    // ---- links ----

    /// Opens link `id` and returns its place, with what has arrived for it. The error is a text.
    pub fn open(&mut self, id: u32) -> Result<usize, String> {
        if id == u32::MAX {
            return Err(format!("there is no link {id}"));
        }
        if self.ids.is_over(id) {
            return Err(format!("link {id} was closed before"));
        }
        match self.ids.get(id) {
            Some(ix) if self.links[ix].open => Err(format!("link {id} is open already")),
            Some(ix) => {
                self.not_early(ix);
                self.links[ix].open = true;
                Ok(ix)
            }
            None => Ok(self.place(id, true)),
        }
    }

    fn place(&mut self, id: u32, open: bool) -> usize {
        let state = LinkState { id, open, ..LinkState::default() };
        let ix = match self.vacant.pop() {
            Some(ix) => {
                self.links[ix] = state;
                ix
            }
            None => {
                self.links.push(state);
                self.links.len() - 1
            }
        };
        self.ids.insert(id, ix);
        ix
    }

    fn not_early(&mut self, ix: usize) {
        self.early -= 1;
        self.early_bytes -= self.links[ix].ready.iter().map(|m| m.len).sum::<usize>();
        self.early_bytes -= self.body.as_ref().filter(|b| b.to == To::Link(ix)).map_or(0, |b| b.msg.len);
    }

    /// Closes links that are not open here; an error, and nothing, if one is.
    pub fn retire(&mut self, ids: Range<u32>) -> Result<(), String> {
        match self.ids.within(&ids).iter().find(|e| self.links[e.1].open) {
            Some((id, _)) => Err(format!("link {id} is still open")),
            None => {
                self.close(ids);
                Ok(())
            }
        }
    }

    /// The links are over: what came and will come for them is dropped, what is queued is sent.
    pub fn close(&mut self, ids: Range<u32>) {
        for ix in self.ids.end(ids) {
            if !self.links[ix].open {
                self.not_early(ix);
            }
            self.abandon(ix);
            for f in self.queue.iter_mut().filter(|f| f.to == To::Link(ix)) {
                f.to = To::Nobody;
            }
            if let Some(b) = self.body.as_mut().filter(|b| b.to == To::Link(ix)) {
                b.to = To::Nobody;
            }
            self.owing.retain(|&i| i != ix);
            let old = std::mem::take(&mut self.links[ix]);
            for b in old.slot.into_iter().chain(old.ready.into_iter().filter_map(|m| m.buf)) {
                self.pool.put(b);
            }
            self.vacant.push(ix);
        }
    }

    /// From here on nothing of the link refers to memory given to `send_ref` or `land`. The messages
    /// go on from and to memory of our own.
    pub fn abandon(&mut self, ix: usize) {
        let Proto { links, queue, pool, body, .. } = self;
        let l = &mut links[ix];
        l.land = None;
        let mut own = |data: *const u8, len: usize, room: usize| {
            let b = pool.get(room);
            // SAFETY: `data` is readable for `len` bytes until we return, as the callers of `send_ref`
            // and `land` promised; the buffer has room for them and is nobody else's.
            unsafe { std::ptr::copy_nonoverlapping(data, b.ptr(), len) };
            b
        };
        for f in queue.iter_mut().filter(|f| f.to == To::Link(ix) && matches!(f.what, What::Ref)) {
            let b = own(f.data, f.len, f.len);
            f.data = b.ptr();
            f.what = What::Slot(b);
        }
        let landing = body.as_mut().filter(|b| b.to == To::Link(ix)).map(|b| (b.got, &mut b.msg));
        for (got, m) in landing.into_iter().chain(l.ready.iter_mut().map(|m| (m.len, m))) {
            if m.buf.is_none() {
                let b = own(m.ptr, got, m.len);
                m.ptr = b.ptr();
                m.buf = Some(b);
            }
        }
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
        self.push_data(ix, fp, src, len, What::Ref);
    }

    fn push_data(&mut self, ix: usize, fp: u32, data: *const u8, len: usize, what: What) {
        let l = &mut self.links[ix];
        l.in_flight += 1;
        l.queued += 1;
        self.push(To::Link(ix), Kind::Data, fp, data, len, what);
    }

    fn push(&mut self, to: To, kind: Kind, fp: u32, data: *const u8, len: usize, what: What) {
        let (link, credits) = match to {
            To::Link(ix) => (self.links[ix].id, std::mem::take(&mut self.links[ix].owed) as u8),
            _ => (0, 0),
        };
        let h = Header { fp, len: len as u32, link, kind, credits, seq: self.seq_out };
        self.seq_out = self.seq_out.wrapping_add(1);
        self.queue.push_back(Frame { header: h.encode(), to, data, len, what });
    }

    /// Queues control words. If too many wait already the peer takes none: that breaks the connection.
    pub fn tell(&mut self, words: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        for part in words.chunks(SMALL) {
            self.telling += HEADER + part.len();
            if self.telling > WORDS_MAX {
                self.fail(format!("the peer takes no control words, {WORDS_MAX} bytes of them wait"));
                return;
            }
            let part: Box<[u8]> = part.into();
            self.push(To::Words, Kind::Words, 0, part.as_ptr(), part.len(), What::Words(part));
        }
    }

    /// Queues a frame that only asks for a sign of life.
    pub fn ask(&mut self) {
        self.push(To::Nobody, Kind::Ask, 0, std::ptr::null(), 0, What::Nothing);
    }

    /// Queues a credit frame for every link that owes enough.
    pub fn queue_credits(&mut self) {
        while let Some(ix) = self.owing.pop() {
            let l = &mut self.links[ix];
            l.listed = false;
            if l.owed >= OWE && self.broken.is_none() {
                self.push(To::Link(ix), Kind::Credit, 0, std::ptr::null(), 0, What::Nothing);
            }
        }
    }

    pub fn has_outgoing(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Nothing of the link waits here: no message, and no credit that lets the peer send.
    #[inline]
    pub fn idle(&self, ix: usize) -> bool {
        self.queue.is_empty() || self.queue.iter().all(|f| f.to != To::Link(ix))
    }

    /// Some of what waits lies in the memory of a caller of `send_ref`.
    #[cfg(test)]
    pub fn refers(&self, ix: usize) -> bool {
        self.queue.iter().any(|f| f.to == To::Link(ix) && matches!(f.what, What::Ref))
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
            match f.what {
                What::Nothing => continue,
                What::Words(w) => {
                    self.telling -= HEADER + w.len();
                    continue;
                }
                What::Slot(b) => self.pool.put(b),
                What::Ref => {}
            }
            if let To::Link(ix) = f.to {
                self.links[ix].queued -= 1;
            }
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
                    self.arrived(b);
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

    /// A body is complete.
    fn arrived(&mut self, b: Body) {
        if let To::Link(ix) = b.to {
            self.links[ix].ready.push_back(b.msg);
            return;
        }
        if b.to == To::Words {
            // SAFETY: all `len` bytes have been written.
            self.heard.extend_from_slice(unsafe { std::slice::from_raw_parts(b.msg.ptr, b.msg.len) });
        }
        if let Some(buf) = b.msg.buf {
            self.pool.put(buf);
        }
    }

    /// Judges a header and, if a message follows, makes room for it.
    fn header(&mut self, bytes: &[u8; HEADER]) -> Result<(), String> {
        if bytes.starts_with(PREFACE) {
            return Err(MIXED.into());
        }
        let h = Header::decode(bytes)?;
        if h.seq != self.seq_in {
            return Err(format!("frame number {} where {} was due", h.seq, self.seq_in));
        }
        self.seq_in = self.seq_in.wrapping_add(1);
        let (id, len, credits) = (h.link, h.len as usize, h.credits as usize);
        match h.kind {
            Kind::Credit if len != 0 || credits == 0 => {
                return Err(format!("link {id}: credit frame with {credits} credits and {len} bytes"));
            }
            Kind::Data if len > self.capacity => {
                return Err(format!(
                    "link {id}: message of {len} bytes, above the capacity of {}",
                    self.capacity
                ));
            }
            Kind::Words => {
                if len == 0 || len > SMALL || id != 0 || credits != 0 {
                    return Err(format!("{len} bytes of control words on link {id} with {credits} credits"));
                }
                if self.heard.len() + len > WORDS_MAX {
                    return Err(format!("more than {WORDS_MAX} bytes of control words that nobody took"));
                }
                self.body = Some(self.body(To::Words, h.fp, len, None));
                return Ok(());
            }
            Kind::Ask if len != 0 || id != 0 || credits != 0 => {
                return Err(format!("{len} bytes and {credits} credits on link {id} with a sign of life"));
            }
            Kind::Ask => return Ok(()),
            Kind::Data | Kind::Credit => {}
        }
        let to = match self.ids.get(id) {
            Some(ix) => To::Link(ix),
            None if self.ids.is_over(id) => To::Nobody,
            // Whoever did not open it has sent nothing.
            None if credits > 0 => {
                return Err(format!("link {id}: {credits} messages acknowledged, but only 0 sent"));
            }
            None if self.early == EARLY_LINKS => {
                return Err(format!("link {id}: messages for {EARLY_LINKS} links that are not open here"));
            }
            None => {
                self.early += 1;
                To::Link(self.place(id, false))
            }
        };
        let mut land = None;
        if let To::Link(ix) = to {
            let l = &mut self.links[ix];
            let sent = l.in_flight - l.queued;
            if credits > sent {
                return Err(format!("link {id}: {credits} messages acknowledged, but only {sent} sent"));
            }
            l.in_flight -= credits;
            if h.kind == Kind::Data {
                if l.ready.len() + l.owed >= DEPTH {
                    return Err(format!("link {id}: more than {DEPTH} unacknowledged messages"));
                }
                land = l.land.take().filter(|&(_, n)| n == len).map(|(dst, _)| dst);
                if !l.open {
                    self.early_bytes += len;
                    if self.early_bytes > EARLY_BYTES {
                        return Err(format!(
                            "link {id}: more than {EARLY_BYTES} bytes for links that are not open here"
                        ));
                    }
                }
            }
        }
        if h.kind == Kind::Data {
            self.body = Some(self.body(to, h.fp, len, land));
        }
        Ok(())
    }

    fn body(&mut self, to: To, fp: u32, len: usize, land: Option<*mut u8>) -> Body {
        let (ptr, buf) = match land {
            Some(dst) => (dst, None),
            None => {
                let b = self.pool.get(len);
                (b.ptr(), Some(b))
            }
        };
        Body { to, got: 0, msg: Msg { fp, len, ptr, buf } }
    }

    /// Appends the control words that came to `to`; returns how many bytes.
    pub fn hear(&mut self, to: &mut Vec<u8>) -> usize {
        let n = self.heard.len();
        to.append(&mut self.heard);
        n
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
            Some(b) if b.to == To::Link(ix) => {
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
        self.telling = 0;
        self.head = 0;
        self.held = 0;
        self.body = None;
        for l in &mut self.links {
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

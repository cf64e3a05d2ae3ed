//! Shared memory between two ranks of one host.
//!
//! A link lives in the arena of its lower rank:
//!
//! ```text
//! lower -> upper: 4 headers | credit line      (512 bytes each)
//! upper -> lower: 4 headers | credit line
//! 24 slots, shared by both directions          (256 KiB each)
//! ```
//!
//! **Header**: one word `fingerprint:32 | slot:8 | ack:8 | seq:16`, then 504 bytes. A message of up to 504
//! bytes travels behind its word; a longer one in a slot, or stays where it is in its owner's arena
//! (*by reference*), and the header's line says where.
//!
//! **Slots migrate.** What decides the speed of shared memory is who wrote a cache line last: to
//! rewrite an own line that the peer has only *read* costs 7 ns (28 across L3 caches), a line that the
//! peer has *written* costs next to nothing. So a slot belongs to whoever received it last, who sends
//! in it next: every line is written by its receiver before its former sender writes it again. A
//! reply in an op that also receives goes into the very slot it came in (the reducer of a share
//! writes the sum over what it was sent). A rank that piles up slots because traffic goes one way gives them back
//! through the credit line, and writes to each of its lines before.
//!
//! **Flow control.** At most 4 messages are unconsumed in a direction. Consumption is acknowledged in the
//! headers of the other direction; by the credit line only when 2 are unacknowledged, so that at least
//! 3 are always allowed. (A sender without room looks at the headers that have arrived, also where
//! nobody has asked for their messages yet: the schedule may order these after what it sends now.)
//!
//! A rank begins with 12 of the 24 slots and owns at most 16: those that lie idle and those that were given
//! back to it. A slot is given back by a rank that owns 16, so the other one then has at most 8, those
//! under way to it included; and a rank that receives a slot keeps it only if it then has at most 16. To
//! count those that were given back but that it has not seen yet, each message in a slot says how many
//! its sender has given back in all. (Later ones do not matter: see the sentence before.) So a sender that
//! owns none, with at most 4 + 3 slots in flight, would leave more than 16 to its peer: it always finds
//! one, and flow control by slots is never tighter than by messages. And 4 messages may go one way
//! before any slot is given back: where the next ones go the other way, as in broadcasts from changing
//! roots, their sender finds slots whose lines are in its cache, and no credit line is written.

mod doorbell;
mod fetch;
mod fuzz;
mod refs;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{Fault, Link, REF_MIN, Recv};
use crate::memory::{Arena, PeerArena};
pub use doorbell::Doorbell;
use fetch::{opaque, prefetch_read, prefetch_write};
#[doc(hidden)]
pub use fuzz::fuzz_shm;
use refs::GIVEN_UP;

const LINE: usize = 64;
const PAGE: usize = 4096;
/// Messages in flight per direction.
pub const DEPTH: u32 = 4;
const SLOTS: usize = 24;
/// Slots that may lie idle on one side, those that it has not yet taken back included. A sender without a
/// slot may have as many in flight as it may send and its peer receive without an acknowledgement.
const IDLE_MAX: usize = SLOTS - (2 * DEPTH - 1) as usize - 1;
/// Unacknowledged messages at which the credit line is written.
const ACK_LAG: u32 = 2;
/// Payload bytes that follow a header's word. More than a line: the reader's loads of the other lines
/// start before the header has arrived, since their place does not depend on what it says.
const INLINE: usize = LINE_STRIDE - 8;
/// Largest message to plan for.
pub const MESSAGE: usize = 256 << 10;
/// Bytes of a slot: cutting in cache lines may lengthen a message a little.
const CAPACITY: usize = MESSAGE + 256;
/// Slots start at page offsets that no page-aligned private buffer has: no cache set conflicts.
const STRIDE: usize = MESSAGE + 4096 + 320;
/// Distance of header lines. Not neighbours: the processor that waits for one would prefetch the next
/// as well, and take it from the sender, who has fetched it for writing.
const LINE_STRIDE: usize = 512;
const CREDIT: usize = DEPTH as usize * LINE_STRIDE;
const DIRECTION: usize = CREDIT + LINE_STRIDE;
const SLOTS_AT: usize = (2 * DIRECTION).next_multiple_of(4096) + 320;
const _: () = assert!(STRIDE >= CAPACITY + PAGE);
/// Bytes of arena that a link takes (touched only where used).
pub const LINK_BYTES: usize = (SLOTS_AT + SLOTS * STRIDE).next_multiple_of(4096);

/// Whether a message of `len` bytes needs no slot.
pub fn inline(len: usize) -> bool {
    len <= INLINE
}

/// In `slot`: payload in the header line; payload in the sender's arena at the offset that the line holds;
/// payload already in the receiver's arena at that offset (the reply to a reference); a reference that its
/// sender has taken back; one whose receiver writes its reply there now; one whose receiver has done so.
const IN_LINE: u8 = 0xff;
const BY_REF: u8 = 0xfe;
const REPLY_REF: u8 = 0xfd;
const TAKEN_BACK: u8 = 0xfc;
const CLAIMED: u8 = 0xfb;
const WRITTEN: u8 = 0xfa;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    None,
    Line,
    Slot(u8),
    /// In the peer's arena at this offset: the reply to a reference.
    Peer(u64),
}

/// One end of a link. See the module's text; the fields are this rank's private view.
pub struct ShmLink {
    tx: *mut u8,
    rx: *mut u8,
    slots: *mut u8,
    /// Messages sent, of these known to be consumed; messages received, of these acknowledged.
    sent: u32,
    acked: u32,
    received: u32,
    published: u32,
    /// Slots that are ours, last received on top.
    free: [u8; SLOTS],
    nfree: usize,
    /// Slots given back by the peer that we have taken; by us.
    taken: u32,
    returned: u32,
    /// Where the next message will be written.
    next: Place,
    /// Where the message being received lies.
    current: Place,
    current_len: usize,
    /// Slots of the last two messages: the next one comes in the older of them, as a rule.
    guess: [u8; 2],
    /// Slots that the peer had given back in all when it sent that message.
    current_given: u32,
    /// A message by reference has been received whose consumption the peer may wait for.
    owes_ack: bool,
    /// Length of the last message sent.
    last_len: usize,
    refs_until: u32,
    own: &'static Arena,
    peer: Arc<PeerArena>,
    bell: *const Doorbell,
    fenced: bool,
    fault: Option<Fault>,
    /// The last message was taken back while it was used.
    torn: bool,
    /// The reply to the message being received is written into its sender's memory: see [`ShmLink::claim`].
    claimed: bool,
}

// SAFETY: the pointers go to arenas that the struct keeps alive (`peer`) or that live as long as the
// process (`own`); all shared words are accessed as atomics, payload bytes only between the
// acquire of a header and the release of the next.
unsafe impl Send for ShmLink {}

impl ShmLink {
    /// This rank's end of the link at `base` (zeroed, `LINK_BYTES` long, in the arena of the lower
    /// rank, `lower` says whether that is us). `bell` is the peer's doorbell, `fenced` how it
    /// is rung.
    ///
    /// # Safety
    /// `base` and `bell` stay mapped as long as the link lives: they lie in `own` or in `peer`.
    pub unsafe fn new(
        base: *mut u8,
        lower: bool,
        own: &'static Arena,
        peer: Arc<PeerArena>,
        bell: *const Doorbell,
        fenced: bool,
    ) -> ShmLink {
        let mut free = [0; SLOTS];
        // Even slots start with the lower rank, odd ones with the upper, the first ones on top.
        let nfree = SLOTS / 2;
        for (i, f) in free[..nfree].iter_mut().enumerate() {
            *f = (2 * (nfree - 1 - i) + usize::from(!lower)) as u8;
        }
        // SAFETY: inside the link's LINK_BYTES.
        let (tx, rx, slots) = unsafe {
            let (a, b) = (base, base.add(DIRECTION));
            if lower { (a, b, base.add(SLOTS_AT)) } else { (b, a, base.add(SLOTS_AT)) }
        };
        ShmLink {
            tx,
            rx,
            slots,
            sent: 0,
            acked: 0,
            received: 0,
            published: 0,
            free,
            nfree,
            taken: 0,
            returned: 0,
            next: Place::None,
            current: Place::None,
            current_len: 0,
            guess: [0; 2],
            current_given: 0,
            owes_ack: false,
            last_len: 0,
            refs_until: 0,
            own,
            peer,
            bell,
            fenced,
            fault: None,
            torn: false,
            claimed: false,
        }
    }

    #[inline]
    fn line(dir: *mut u8, seq: u32) -> *mut u8 {
        // SAFETY: one of the direction's DEPTH lines.
        unsafe { dir.add((seq % DEPTH) as usize * LINE_STRIDE) }
    }

    /// # Safety
    /// `p` is the start of a header or credit line of a live link.
    #[inline]
    unsafe fn word<'a>(p: *mut u8) -> &'a AtomicU64 {
        // SAFETY: lines are 64-byte aligned; the word is only accessed as an atomic.
        unsafe { &*(p as *const AtomicU64) }
    }

    #[inline]
    fn slot(&self, s: u8) -> *mut u8 {
        // SAFETY: s < SLOTS (checked where it comes from the peer).
        unsafe { self.slots.add(s as usize * STRIDE) }
    }

    #[inline]
    fn ack(&mut self, low: u8) {
        // An older header may say less than the credit line did: never go back.
        let more = u32::from(low.wrapping_sub(self.acked as u8));
        if more <= DEPTH {
            self.acked = self.acked.wrapping_add(more);
        }
    }

    /// Takes every acknowledgement and slot that the peer has given so far: those in messages that have
    /// arrived but that nobody has asked for yet, and those in our sending direction's credit line.
    #[cold]
    fn collect(&mut self) {
        for i in 0..DEPTH {
            let seq = self.received.wrapping_add(i);
            // Acquire: what the peer did before this message comes with it.
            // SAFETY: the peer's header line.
            let w = unsafe { Self::word(Self::line(self.rx, seq)) }.load(Ordering::Acquire);
            if w as u16 != seq.wrapping_add(1) as u16 {
                break;
            }
            self.ack((w >> 16) as u8);
        }
        // SAFETY: the credit line of our own sending direction.
        let credit = unsafe { self.tx.add(CREDIT) };
        // Acquire: the returned slots' numbers (and the peer's last stores to them) come with it.
        // SAFETY: as above.
        let w = unsafe { Self::word(credit) }.load(Ordering::Acquire);
        let (consumed, returned) = (w as u32, (w >> 32) as u32);
        // As in `ack`.
        if consumed.wrapping_sub(self.acked) <= DEPTH {
            self.acked = consumed;
        }
        while self.taken != returned && self.nfree < SLOTS {
            // SAFETY: inside the credit line.
            let s = unsafe { &*(credit.add(8 + self.taken as usize % SLOTS) as *const AtomicU8) }
                .load(Ordering::Relaxed);
            self.taken = self.taken.wrapping_add(1);
            if (s as usize) < SLOTS {
                self.free[self.nfree] = s;
                self.nfree += 1;
            }
        }
    }

    /// Tells the peer through the credit line what we have consumed and given back.
    #[cold]
    fn publish(&mut self) {
        // SAFETY: the credit line of the peer's sending direction, which we write.
        unsafe { Self::word(self.rx.add(CREDIT)) }
            .store(u64::from(self.returned) << 32 | u64::from(self.received), Ordering::Release);
        self.published = self.received;
        self.ring();
    }

    #[inline]
    fn ring(&self) {
        // SAFETY: the doorbell outlives the link (see `new`).
        unsafe { &*self.bell }.ring(self.fenced);
    }

    /// Gives slot `s` back to the peer, after a store to each line of the `len` bytes it was used for.
    #[cold]
    fn give_back(&mut self, s: u8, len: usize) {
        let p = self.slot(s);
        for o in (0..len).step_by(LINE) {
            // SAFETY: inside the slot, which is ours; atomic so that the store of the same value stays.
            let w = unsafe { &*(p.add(o) as *const AtomicU64) };
            w.store(w.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        // SAFETY: inside the credit line of the peer's direction, which we write.
        unsafe { &*(self.rx.add(CREDIT + 8 + self.returned as usize % SLOTS) as *const AtomicU8) }
            .store(s, Ordering::Relaxed);
        self.returned = self.returned.wrapping_add(1);
        self.publish();
    }

    /// Gives the memory of the slots that lie idle on this side back to the system. Between calls. The peer
    /// does the same with its own, or not: what is in an idle slot is of no use to anybody.
    #[cold]
    pub fn trim(&mut self) {
        self.collect();
        for &s in &self.free[..self.nfree] {
            // Between two slots there is more than a page, so these are no other slot's.
            let p = self.slot(s) as usize;
            let (start, end) = (p / PAGE * PAGE, (p + CAPACITY).next_multiple_of(PAGE));
            // Where it cannot be given back it stays.
            let _ = match self.own.offset_of(start as *const u8, end - start) {
                Some(at) => self.own.trim(at, end - start),
                None => self.peer.trim(start - self.peer.page() as usize, end - start),
            };
        }
    }

    fn broken(&mut self, text: &str) -> Recv {
        self.fault = Some(Fault::Broken(text.into()));
        Recv::Fault
    }

    #[inline]
    fn fetch_next(&self) {
        let header = Self::line(self.tx, self.sent);
        prefetch_write(header);
        if self.last_len > LINE - 8 {
            self.fetch_more(header);
        }
    }

    #[inline(never)]
    fn fetch_more(&self, header: *mut u8) {
        for o in (LINE..(8 + self.last_len).min(LINE_STRIDE)).step_by(LINE) {
            prefetch_write(header.wrapping_add(o));
        }
        if self.last_len > INLINE && self.nfree > 0 {
            let p = self.slot(self.free[self.nfree - 1]);
            for o in (0..4 * LINE).step_by(LINE) {
                prefetch_write(p.wrapping_add(o));
            }
        }
    }

    #[inline]
    fn post(&mut self, slot: u8, fp: u32) {
        let line = Self::line(self.tx, self.sent);
        self.sent = self.sent.wrapping_add(1);
        let w = u64::from(fp) << 32
            | u64::from(slot) << 24
            | u64::from(self.received as u8) << 16
            | u64::from(self.sent as u16);
        self.published = self.received;
        // Release: the payload before the header.
        // SAFETY: our own header line.
        unsafe { Self::word(line) }.store(w, Ordering::Release);
        self.next = Place::None;
        self.ring();
    }
}

impl Link for ShmLink {
    #[inline]
    fn send_slot(&mut self, len: usize) -> Option<*mut u8> {
        match self.next {
            Place::Slot(s) => return Some(self.slot(s)),
            // SAFETY: the payload of our next header line.
            Place::Line => return Some(unsafe { Self::line(self.tx, self.sent).add(8) }),
            Place::Peer(o) => return self.peer.at(o as usize, len),
            Place::None => {}
        }
        if !self.room() {
            return None;
        }
        if len <= INLINE {
            self.next = Place::Line;
            // SAFETY: as above.
            return Some(unsafe { Self::line(self.tx, self.sent).add(8) });
        }
        if self.nfree == 0 {
            self.collect();
            if self.nfree == 0 {
                return None;
            }
        }
        self.nfree -= 1;
        let s = self.free[self.nfree];
        self.next = Place::Slot(s);
        Some(self.slot(s))
    }

    #[inline]
    fn send_reply_slot(&mut self, len: usize) -> Option<*mut u8> {
        if self.next != Place::None || !self.room() {
            return self.send_slot(len);
        }
        match self.current {
            Place::Slot(s) if len > INLINE => {
                self.current = Place::None;
                self.next = Place::Slot(s);
                Some(self.slot(s))
            }
            Place::Peer(o) => {
                let p = self.peer.at(o as usize, len)?;
                self.next = Place::Peer(o);
                Some(p)
            }
            _ => self.send_slot(len),
        }
    }

    #[inline]
    fn commit(&mut self, len: usize, fp: u32) {
        self.last_len = len;
        let (code, info) = match self.next {
            Place::Line => (IN_LINE, None),
            Place::Slot(s) => (s, Some(u64::from(self.returned))),
            Place::Peer(o) => (REPLY_REF, Some(o)),
            Place::None => unreachable!("commit without a slot"),
        };
        if let Some(o) = info {
            // SAFETY: the payload of our next header line.
            unsafe { (Self::line(self.tx, self.sent).add(8) as *mut [u64; 2]).write([len as u64, o]) };
        }
        self.post(code, fp);
    }

    #[inline]
    fn replies_in_place(&self) -> bool {
        true
    }

    #[inline]
    fn can_ref(&self, src: *const u8, len: usize) -> bool {
        len >= REF_MIN && self.own.offset_of(src, len).is_some()
    }

    #[inline]
    fn room(&mut self) -> bool {
        if self.sent.wrapping_sub(self.acked) >= DEPTH {
            self.collect();
            return self.sent.wrapping_sub(self.acked) < DEPTH;
        }
        true
    }

    unsafe fn send_ref(&mut self, src: *const u8, len: usize, fp: u32) {
        let o = self.own.offset_of(src, len).expect("the caller asked can_ref");
        // SAFETY: the payload of our next header line.
        unsafe { (Self::line(self.tx, self.sent).add(8) as *mut [u64; 2]).write([len as u64, o as u64]) };
        self.post(BY_REF, fp);
        self.refs_until = self.sent;
    }

    #[inline]
    fn recv(&mut self, len: usize, fp: u32) -> Recv {
        let line = Self::line(self.rx, self.received);
        // Acquire: the payload after the header.
        // SAFETY: the peer's header line.
        let w = unsafe { Self::word(line) }.load(Ordering::Acquire);
        if w as u16 != self.received.wrapping_add(1) as u16 {
            return Recv::Pending;
        }
        if (w >> 32) as u32 != fp {
            self.fault = Some(Fault::Fingerprint { got: (w >> 32) as u32 });
            return Recv::Fault;
        }
        self.ack((w >> 16) as u8);
        let slot = (w >> 24) as u8;
        // SAFETY: the payload of the peer's header line.
        let payload = unsafe { line.add(8) };
        if slot == IN_LINE {
            if len > INLINE {
                self.fault = Some(Fault::Length { got: INLINE });
                return Recv::Fault;
            }
            self.current = Place::Line;
            return Recv::Ready(payload);
        }
        // SAFETY: written by the peer before its header.
        let [said, offset] = unsafe { (payload as *const [u64; 2]).read() };
        if said != len as u64 {
            self.fault = Some(Fault::Length { got: said as usize });
            return Recv::Fault;
        }
        self.current_len = len;
        // Several messages follow each other, and this one takes its time.
        prefetch_read(Self::line(self.rx, self.received.wrapping_add(1)));
        match slot {
            s if (s as usize) < SLOTS => {
                self.current_given = offset as u32;
                let parity = (self.received % 2) as usize;
                let p = if s == self.guess[parity] {
                    // A branch on a guess, not a value from the header: so the processor may fetch
                    // the message's lines while it still waits for the header line (165 ns across L3s).
                    self.slot(opaque(self.guess[parity]))
                } else {
                    self.guess[parity] = s;
                    self.slot(s)
                };
                // Asked again after `send_reply_slot` took the slot over: it is no longer ours to free.
                self.current = if self.next == Place::Slot(s) { Place::Line } else { Place::Slot(s) };
                Recv::Ready(p)
            }
            BY_REF => match self.peer.at(offset as usize, len) {
                Some(p) => {
                    self.current = Place::Peer(offset);
                    self.owes_ack = true;
                    Recv::Ready(p)
                }
                None => self.broken("the peer refers to memory outside its arena"),
            },
            REPLY_REF if (offset as usize) < self.own.size() && len <= self.own.size() - offset as usize => {
                self.current = Place::Line;
                // SAFETY: inside our arena, as just checked.
                Recv::Ready(unsafe { self.own.base().add(offset as usize) })
            }
            TAKEN_BACK => self.broken(GIVEN_UP),
            _ => self.broken("the peer's message header makes no sense"),
        }
    }

    #[inline]
    fn release(&mut self) {
        // If it does not stand it stays, so that `recv` finds the fault again.
        if let Place::Peer(_) = self.current
            && !self.stands()
        {
            return;
        }
        self.received = self.received.wrapping_add(1);
        if let Place::Slot(s) = self.current {
            // Those that the peer has given back and we have not yet taken are ours as well.
            let given = (self.current_given.wrapping_sub(self.taken) as i32).max(0) as usize;
            if self.nfree + given >= IDLE_MAX {
                self.give_back(s, self.current_len);
            } else {
                self.free[self.nfree] = s;
                self.nfree += 1;
            }
        }
        self.current = Place::None;
        if self.received.wrapping_sub(self.published) >= ACK_LAG {
            self.publish();
        }
    }

    #[inline]
    fn finish(&mut self) {
        if self.owes_ack {
            self.owes_ack = false;
            if self.published != self.received {
                self.publish();
            }
        }
        // The next message's first lines will be written by us: fetch as many as the last one took while
        // nobody waits. Longer messages hide the way of the others.
        self.fetch_next();
    }

    fn idle(&mut self) -> bool {
        if self.torn {
            return false;
        }
        let out = |l: &Self| l.refs_until.wrapping_sub(l.acked) as i32 > 0;
        if out(self) {
            self.collect();
            if out(self) {
                return false;
            }
        }
        // Kept close to the counter that it is compared with, which wraps around.
        self.refs_until = self.acked;
        true
    }

    fn abandon(&mut self, force: bool) -> bool {
        // Its own call may have ended in a panic, in the middle of writing.
        self.disclaim();
        self.take_back(force)
    }

    fn capacity(&self) -> usize {
        CAPACITY
    }

    fn fault(&self) -> Option<Fault> {
        self.fault.clone()
    }
}

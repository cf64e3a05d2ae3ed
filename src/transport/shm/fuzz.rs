//! Entry for fuzzing: a peer may write anything into the memory that a link shares with it.

use std::sync::atomic::Ordering;

use super::*;
use crate::memory::{Block, arena};

static BELL: Doorbell = Doorbell::new();
const FP: u32 = 7;
/// Lengths of messages: around the limits, and the largest.
const LENGTHS: [usize; 8] = [0, 8, INLINE, INLINE + 1, 4096, REF_MIN, MESSAGE, CAPACITY];

/// What a peer may say of a message by reference, and what it may not.
const CODES: [u8; 8] = [BY_REF, CLAIMED, WRITTEN, TAKEN_BACK, IN_LINE, REPLY_REF, 0, SLOTS as u8];

/// The memory of one link, zeroed again after use.
struct Memory {
    block: Block,
    base: *mut u8,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Ok(a) = arena() {
            a.free(self.block.offset);
        }
    }
}

/// A script of what one end does, and of what a peer that keeps no rule writes in between: no place that
/// the link hands out may lie outside the memory that it knows, and no call may take long.
#[doc(hidden)]
pub fn fuzz_shm(data: &[u8]) {
    let Ok(own) = arena() else { return };
    let Ok(peer) = PeerArena::map(own.id(), own.size(), None) else { return };
    let Ok(block) = own.alloc(LINK_BYTES) else { return };
    // SAFETY: our own block.
    let memory = Memory { block, base: unsafe { own.base().add(block.offset) } };
    let mut script = data.iter().copied();
    let lower = script.next().is_some_and(|b| b & 1 == 0);
    // SAFETY: a zeroed block of its own, kept until the link is gone.
    let mut link = unsafe { ShmLink::new(memory.base, lower, own, peer, &BELL, false) };
    // Messages that are being received, and written.
    let (mut reads, mut writes) = (None, None);
    while let Some(op) = script.next() {
        let mut byte = || script.next().unwrap_or(0);
        let len = LENGTHS[usize::from(op >> 5)];
        match op & 31 {
            // Not while its reply is written: that and its end are one step.
            0 | 1 if !link.claimed => {
                if let Recv::Ready(p) = link.recv(len, FP) {
                    touch(own, &memory, p, len, false);
                    reads = Some(len);
                }
            }
            2 if writes.is_some() => {
                let before = link.claimed;
                let may = link.claim();
                assert!(may || link.torn && link.fault.is_some() && !link.claimed);
                assert!(before || !link.claimed || said(link.rx, link.received).0 == CLAIMED);
            }
            3 => link.disclaim(),
            4 | 5 if reads.take().is_some() => {
                let before = link.received;
                link.release();
                assert!(link.torn || link.received != before);
                assert!(!link.claimed);
            }
            6 => {
                let force = byte() & 1 == 1;
                let all = link.abandon(force);
                assert!(all || !force);
                let flying =
                    (0..DEPTH).map(|i| link.acked.wrapping_add(i)).take_while(|&seq| seq != link.sent);
                for seq in flying {
                    let (code, number) = said(link.tx, seq);
                    let ours = number == seq.wrapping_add(1) as u16;
                    assert!(!ours || code != BY_REF && (code != CLAIMED || !all));
                }
            }
            7 | 8 if writes.is_none() => {
                if let Some(p) = link.send_slot(len) {
                    touch(own, &memory, p, len, true);
                    writes = Some(len);
                }
            }
            9 | 10 if writes.is_none() && reads.is_some_and(|n| n >= len) => {
                if let Some(p) = link.send_reply_slot(len) {
                    touch(own, &memory, p, len, true);
                    writes = Some(len);
                }
            }
            11 | 12 if !link.claimed => {
                if let Some(len) = writes.take() {
                    link.commit(len, FP);
                }
            }
            14 if writes.is_none() && link.can_ref(memory.base, len) && link.room() => {
                // SAFETY: the block is there until the link is gone.
                unsafe { link.send_ref(memory.base, len, FP) };
            }
            // The peer says something else of its message, or of one of ours.
            13 => say(link.rx, link.received as u8, op >> 5),
            26 => say(link.tx, byte(), op >> 5),
            15 => link.finish(),
            16 => drop(link.idle()),
            // The next header, as it may be, of a message in slot `b` or of another kind.
            17..=22 => {
                let (slot, ack) = (byte(), byte());
                let at = ShmLink::line(link.rx, link.received);
                // SAFETY: lines of the block.
                unsafe {
                    if op & 31 != 17 {
                        let place = match op & 31 {
                            18 => memory.block.offset as u64,
                            19 => u64::from(byte()) << 32,
                            20 => own.size() as u64 - u64::from(byte()) * 64,
                            21 => u64::from_le_bytes([(); 8].map(|()| byte())),
                            _ => u64::from(byte()),
                        };
                        let said = if slot == 0x80 { byte() as usize } else { len };
                        at.add(8).cast::<[u64; 2]>().write([said as u64, place]);
                    }
                    let seq = link.received.wrapping_add(1) as u16;
                    let word =
                        u64::from(FP) << 32 | u64::from(slot) << 24 | u64::from(ack) << 16 | u64::from(seq);
                    ShmLink::word(at).store(word, Ordering::Release);
                }
            }
            // The credit line.
            23..=25 => {
                let (consumed, returned) = match op & 31 {
                    23 => (link.sent, u32::from(byte())),
                    24 => (u32::from(byte()), link.taken.wrapping_add(u32::from(byte()))),
                    _ => (u32::from_le_bytes([(); 4].map(|()| byte())), u32::from_le_bytes([byte(); 4])),
                };
                let (place, slot) = (usize::from(byte()) % 64, byte());
                // SAFETY: inside the credit line.
                unsafe {
                    let credit = link.tx.add(CREDIT);
                    credit.add(place).write(slot);
                    ShmLink::word(credit)
                        .store(u64::from(returned) << 32 | u64::from(consumed), Ordering::Release);
                }
            }
            // Anything anywhere in the headers.
            27..=31 => {
                let at = usize::from(u16::from_le_bytes([byte(), byte()])) % SLOTS_AT;
                // SAFETY: inside the block.
                unsafe { memory.base.add(at).write(byte()) };
            }
            _ => {}
        }
        assert!(link.nfree <= SLOTS);
    }
}

/// What the peer does to a header of that direction: another code, and another acknowledgement.
fn say(direction: *mut u8, seq: u8, how: u8) {
    // SAFETY: a header line of the block.
    let word = unsafe { ShmLink::word(ShmLink::line(direction, u32::from(seq))) };
    let (code, ack) = (CODES[usize::from(how % 8)], u64::from(how / 8));
    let w = word.load(Ordering::Relaxed) & !(0xff << 24) | u64::from(code) << 24;
    word.store(w ^ ack << 16, Ordering::Release);
}

/// The code and the sequence number in a header.
fn said(direction: *mut u8, seq: u32) -> (u8, u16) {
    // SAFETY: a header line of the block.
    let w = unsafe { ShmLink::word(ShmLink::line(direction, seq)) }.load(Ordering::Relaxed);
    ((w >> 24) as u8, w as u16)
}

/// The place must be in memory that the link knows. It is used where that takes no more of it.
fn touch(own: &Arena, memory: &Memory, p: *mut u8, len: usize, write: bool) {
    // Nothing may lie anywhere.
    if len == 0 {
        return;
    }
    let at = own.offset_of(p, len).expect("a place outside the arenas");
    let inside = at.wrapping_sub(memory.block.offset);
    if inside >= LINK_BYTES || len > LINK_BYTES - inside {
        return;
    }
    for i in [0, len - 1] {
        // SAFETY: inside the block, by what was just checked.
        unsafe {
            let p = p.add(i);
            if write {
                p.write_volatile(1)
            } else {
                let _ = p.read_volatile();
            }
        }
    }
}

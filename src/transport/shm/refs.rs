//! Messages by reference: what each side says of them in the header's word, so that one may give a call up while
//! the other reads or writes there.

use std::sync::atomic::{Ordering, fence};

use super::{BY_REF, CLAIMED, DEPTH, Place, ShmLink, TAKEN_BACK, WRITTEN};

/// The fault of a link whose peer has taken a reference back.
pub(super) const GIVEN_UP: &str = "it has given up the call";

impl ShmLink {
    /// Whether the message by reference that is being received was still so when the last byte of it had been
    /// read. If not, what was read may be anything.
    pub(super) fn stands(&mut self) -> bool {
        if self.claimed {
            self.claimed = false;
            return self.mark(CLAIMED, WRITTEN);
        }
        // After the reads of the message: see `abandon`.
        fence(Ordering::Acquire);
        // SAFETY: the peer's header line.
        let w = unsafe { Self::word(Self::line(self.rx, self.received)) }.load(Ordering::Relaxed);
        (w >> 24) as u8 != TAKEN_BACK || self.tear()
    }

    /// Says something else of the message by reference that is being received, unless its sender has taken it back.
    /// What was written there before is seen by who sees this.
    fn mark(&mut self, from: u8, to: u8) -> bool {
        // SAFETY: the peer's header line.
        let word = unsafe { Self::word(Self::line(self.rx, self.received)) };
        let w = word.load(Ordering::Relaxed);
        let so = (w >> 24) as u8 == from;
        so && word.compare_exchange(w, coded(w, to), Ordering::AcqRel, Ordering::Relaxed).is_ok()
            || self.tear()
    }

    /// The message that is being received was taken back.
    #[cold]
    fn tear(&mut self) -> bool {
        self.current = Place::None;
        self.torn = true;
        self.broken(GIVEN_UP);
        false
    }

    /// Before the reply is written, where `send_reply_slot` has placed it in its receiver's own memory: so that who
    /// gives the call up waits until that is over (at `release`). False, and the link has a fault, if it has been given
    /// up already: then nothing may be written.
    #[inline]
    pub fn claim(&mut self) -> bool {
        if let (Place::Peer(to), Place::Peer(from)) = (self.next, self.current)
            && to == from
            && !self.claimed
        {
            self.claimed = self.mark(BY_REF, CLAIMED);
            return self.claimed;
        }
        true
    }

    /// The reply that was claimed is not written after all.
    #[cold]
    pub fn disclaim(&mut self) {
        if std::mem::take(&mut self.claimed) {
            self.mark(CLAIMED, BY_REF);
        }
    }

    #[inline]
    pub fn torn(&self) -> bool {
        self.torn
    }

    /// Takes back the references that the peer may still read: it finds that out when it has done so, before it
    /// uses what it has read. False if there is one, unless by `force`, where it writes its reply just now: that takes
    /// microseconds, unless the system lets the peer do nothing, or it has died in the middle.
    pub(super) fn take_back(&mut self, force: bool) -> bool {
        self.collect();
        let mut all = true;
        for seq in (0..DEPTH).map(|i| self.acked.wrapping_add(i)).take_while(|&seq| seq != self.sent) {
            // SAFETY: our own header line.
            let word = unsafe { Self::word(Self::line(self.tx, seq)) };
            loop {
                // Acquire: what the peer has written comes with its word that it has.
                let w = word.load(Ordering::Acquire);
                let code = (w >> 24) as u8;
                if code != BY_REF && code != CLAIMED || w as u16 != seq.wrapping_add(1) as u16 {
                    break;
                }
                if code == CLAIMED && !force {
                    all = false;
                    break;
                }
                let back = coded(w, TAKEN_BACK);
                if word.compare_exchange(w, back, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    break;
                }
            }
        }
        // Before whatever the owner of that memory does with it from now on.
        fence(Ordering::SeqCst);
        all
    }

    /// What a rank that stands between `claim` and `release` has said, for a message by reference that nobody has asked
    /// for yet. False if there is none.
    #[cfg(test)]
    pub fn write_reply(&mut self, begin: bool) -> bool {
        let (from, to) = if begin { (BY_REF, CLAIMED) } else { (CLAIMED, WRITTEN) };
        self.says(from) && self.mark(from, to)
    }

    /// The same rank, if a panic goes through it there.
    #[cfg(test)]
    pub fn unwind(&mut self) -> bool {
        self.claimed = self.says(CLAIMED);
        self.claimed
    }

    #[cfg(test)]
    fn says(&self, code: u8) -> bool {
        // SAFETY: the peer's header line.
        let w = unsafe { Self::word(Self::line(self.rx, self.received)) }.load(Ordering::Acquire);
        w as u16 == self.received.wrapping_add(1) as u16 && (w >> 24) as u8 == code
    }
}

/// A header word with something else said of its message.
#[inline]
fn coded(word: u64, code: u8) -> u64 {
    word & !(0xff << 24) | u64::from(code) << 24
}

//! How messages travel between two ranks: one trait, one file or folder per transport.
//!
//! A *link* is this rank's end of the two channels (one each way) that it shares with one peer on
//! one port and one way. A channel is in order and keeps a bounded number of messages in flight;
//! the executor never blocks in here: every call answers at once.
//!
//! A link is used by one thread at a time (the communicator's lock sees to it).

pub mod shm;
pub mod tcp;
pub mod virtual_time;

/// Messages shorter than this are better copied than sent by reference: the bookkeeping costs more.
pub(crate) const REF_MIN: usize = 8 << 10;

/// Answer of [`Link::recv`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recv {
    /// Nothing has arrived (completely) yet.
    Pending,
    /// The next message's bytes; they stay until [`Link::release`].
    Ready(*mut u8),
    /// The next message belongs to another call (its fingerprint differs), its length is not
    /// the expected one, or the link is broken: [`Link::fault`] says which.
    Fault,
}

/// Why a link answered [`Recv::Fault`], or can no longer send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer's message carries another call's fingerprint.
    Fingerprint { got: u32 },
    /// The peer's message has another length than the schedule says (same fingerprint: a bug).
    Length { got: usize },
    /// The peer is gone or the connection broke; the text is the system's.
    Broken(String),
}

/// One end of a pair of channels to one peer. See the module's text.
///
/// `fp` is the 32-bit fingerprint of the current call. Every message carries it.
///
/// # Safety of implementations and callers
/// Pointers returned by `send_slot`, `send_reply_slot` and `recv` are valid for the length of that message until
/// `commit`/`release`. The caller must not touch them afterwards.
pub trait Link {
    /// Room for a message of `len` bytes that the caller then writes, or `None` if all are in flight.
    /// `len` is at most [`Link::capacity`]. Calling it again before `commit` gives the same room.
    fn send_slot(&mut self, len: usize) -> Option<*mut u8>;

    /// Like `send_slot`, but may place the message in the room of the message that is now being
    /// received (`recv` said `Ready`, not yet released): the reducer of a share writes the sum back
    /// over what it was sent. The caller may read the received bytes until it writes them.
    fn send_reply_slot(&mut self, len: usize) -> Option<*mut u8> {
        self.send_slot(len)
    }

    /// Sends the `len` bytes written into the slot.
    fn commit(&mut self, len: usize, fp: u32);

    /// Whether a message may be sent now (fewer than the allowed number are unconsumed).
    fn room(&mut self) -> bool;

    /// Whether `send_reply_slot` differs from `send_slot`.
    fn replies_in_place(&self) -> bool {
        false
    }

    /// Whether this link can send these bytes from where they are (`send_ref`), and gains by it.
    fn can_ref(&self, src: *const u8, len: usize) -> bool {
        let _ = (src, len);
        false
    }

    /// Sends `len` bytes from `src` without a copy. Only after `can_ref` and `room` said yes. `src`
    /// must stay unchanged until the schedule orders a later write after the receiver's step
    /// (the verifier proves `ref_safe`), and until [`Link::idle`].
    ///
    /// # Safety
    /// `src..src + len` is readable for that time.
    unsafe fn send_ref(&mut self, src: *const u8, len: usize, fp: u32) {
        let _ = (src, len, fp);
        unreachable!("a link that cannot send by reference");
    }

    /// The next message, expected to be `len` bytes long.
    fn recv(&mut self, len: usize, fp: u32) -> Recv;

    /// Tells the link where the next message will be copied to anyway, so that it may land there
    /// at once; `recv` then returns `dst` itself. Only a hint: the link may ignore it.
    ///
    /// # Safety
    /// From the time that the message is sent until `recv` has been `Ready`, `dst..dst + len` is
    /// writable and otherwise unused. (Not before: others may still read it by reference, for as long
    /// as this message waits for them.)
    unsafe fn land(&mut self, dst: *mut u8, len: usize) {
        let _ = (dst, len);
    }

    /// Ends the use of the message that `recv` returned. Where the peer has taken it back meanwhile the link has
    /// a fault, is not idle any more, and `recv` answers the fault.
    fn release(&mut self);

    /// The end of a call on this rank: tells the peer what it may be waiting for. Called on all links
    /// before any is asked whether it is `idle`.
    fn finish(&mut self) {}

    /// Everything that was sent has left this process, or is where the receiver finds it by itself,
    /// and nothing refers to the caller's memory any more.
    fn idle(&mut self) -> bool {
        true
    }

    /// The call under way is given up: from here on nothing refers to the caller's memory, or who reads it all
    /// the same finds out before it uses what it has read. False while a peer writes its reply there: to be asked again.
    /// `force`: not even that counts, and it may still write there.
    fn abandon(&mut self, force: bool) -> bool {
        let _ = force;
        true
    }

    /// Largest message in bytes that `send_slot` takes.
    fn capacity(&self) -> usize;

    /// See [`Recv::Fault`].
    fn fault(&self) -> Option<Fault>;
}

/// A link of any transport. An enum, so that the shared memory path has no indirect call.
pub enum AnyLink {
    Shm(shm::ShmLink),
    Other(Box<dyn Link + Send>),
}

impl AnyLink {
    /// The message that was released last was not what it should have been when it was used: this has a fault.
    #[inline]
    pub fn torn(&self) -> bool {
        matches!(self, AnyLink::Shm(l) if l.torn())
    }

    /// See [`shm::ShmLink::claim`].
    #[inline]
    pub fn claim(&mut self) -> bool {
        match self {
            AnyLink::Shm(l) => l.claim(),
            AnyLink::Other(_) => true,
        }
    }

    /// See [`shm::ShmLink::disclaim`].
    pub fn disclaim(&mut self) {
        if let AnyLink::Shm(l) = self {
            l.disclaim();
        }
    }
}

macro_rules! forward {
    ($self:ident, $l:ident => $e:expr) => {
        match $self {
            AnyLink::Shm($l) => $e,
            AnyLink::Other($l) => $e,
        }
    };
}

impl Link for AnyLink {
    #[inline]
    fn send_slot(&mut self, len: usize) -> Option<*mut u8> {
        forward!(self, l => l.send_slot(len))
    }
    #[inline]
    fn send_reply_slot(&mut self, len: usize) -> Option<*mut u8> {
        forward!(self, l => l.send_reply_slot(len))
    }
    #[inline]
    fn commit(&mut self, len: usize, fp: u32) {
        forward!(self, l => l.commit(len, fp))
    }
    fn room(&mut self) -> bool {
        forward!(self, l => l.room())
    }
    #[inline]
    fn replies_in_place(&self) -> bool {
        forward!(self, l => l.replies_in_place())
    }
    #[inline]
    fn can_ref(&self, src: *const u8, len: usize) -> bool {
        forward!(self, l => l.can_ref(src, len))
    }
    unsafe fn send_ref(&mut self, src: *const u8, len: usize, fp: u32) {
        // SAFETY: the caller's promise.
        forward!(self, l => unsafe { l.send_ref(src, len, fp) })
    }
    #[inline]
    fn recv(&mut self, len: usize, fp: u32) -> Recv {
        forward!(self, l => l.recv(len, fp))
    }
    unsafe fn land(&mut self, dst: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        forward!(self, l => unsafe { l.land(dst, len) })
    }
    #[inline]
    fn release(&mut self) {
        forward!(self, l => l.release())
    }
    #[inline]
    fn idle(&mut self) -> bool {
        forward!(self, l => l.idle())
    }
    #[inline]
    fn finish(&mut self) {
        forward!(self, l => l.finish())
    }
    fn abandon(&mut self, force: bool) -> bool {
        forward!(self, l => l.abandon(force))
    }
    fn capacity(&self) -> usize {
        forward!(self, l => l.capacity())
    }
    fn fault(&self) -> Option<Fault> {
        forward!(self, l => l.fault())
    }
}

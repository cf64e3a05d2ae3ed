//! How messages travel between two ranks: one trait, one file or folder per transport.
//!
//! A *link* is this rank's end of the two channels (one each way) that it shares with one peer on
//! one port and one way. A channel is in order and keeps a bounded number of messages in flight;
//! the executor never blocks in here: every call answers at once, and [`Pump::pump`] moves bytes.
//!
//! A link is used by one thread at a time (the communicator's lock sees to it).

pub mod tcp;

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

    /// Sends `len` bytes from `src` without a copy, if this link can; false = use `send_slot`, or
    /// no room now. `src` must stay unchanged until the schedule orders a later write after
    /// the receiver's step (the verifier proves `ref_safe`), and until [`Link::idle`].
    ///
    /// # Safety
    /// `src..src + len` is readable for that time.
    unsafe fn send_ref(&mut self, src: *const u8, len: usize, fp: u32) -> bool {
        let _ = (src, len, fp);
        false
    }

    /// The next message, expected to be `len` bytes long.
    fn recv(&mut self, len: usize, fp: u32) -> Recv;

    /// Tells the link where the next message will be copied to anyway, so that it may land there
    /// at once; `recv` then returns `dst` itself. Only a hint: the link may ignore it.
    ///
    /// # Safety
    /// `dst..dst + len` is writable and otherwise unused until `recv` has been `Ready`.
    unsafe fn land(&mut self, dst: *mut u8, len: usize) {
        let _ = (dst, len);
    }

    /// Ends the use of the message that `recv` returned.
    fn release(&mut self);

    /// Nothing that was sent still refers to the caller's memory.
    fn idle(&self) -> bool {
        true
    }

    /// Largest message in bytes.
    fn capacity(&self) -> usize;

    /// See [`Recv::Fault`].
    fn fault(&self) -> Option<Fault>;
}

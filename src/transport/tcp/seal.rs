//! Encryption of a connection: a layer between `Proto` and the socket.
//!
//! ```text
//!  each side   16 bytes: "graccl+noise/1 " and I (initiator) or R
//!  I to R      record: first message of the handshake
//!  R to I      record: second message of the handshake
//!  each side   records: the byte stream of frames, in pieces of any size
//!
//!  record = length (2 bytes, little-endian), then that many bytes of a Noise message
//! ```
//!
//! It is Noise's `NNpsk0`: both sides know a secret, and fresh X25519 keys make what was recorded
//! useless to who learns the secret later. Each direction has its own key and counts its
//! records, so one that is changed, left out, doubled, sent back or moved does not authenticate, and breaks the
//! connection. Nothing in a record is looked at before that. The 16 bytes and the lengths are not secret;
//! lies in them end in a record that does not authenticate. That the stream ends early shows
//! only within a record; who must know says goodbye in a control word.
//!
//! Counters have 64 bits and do not repeat. Keys are renewed (Noise's `Rekey`) every [`REKEY`]
//! records, which is 64 GiB: ChaChaPoly does not need it, but a key that leaks tells less.

use libc::iovec;
use snow::{Builder, HandshakeState, TransportState};

use super::frame::{HEADER, Header};
use super::proto::{BATCH, Proto};

const NOISE: &str = "Noise_NNpsk0_25519_ChaChaPoly_SHA256";
/// What a side that encrypts says first, followed by its part. As a frame header it is invalid.
pub(super) const PREFACE: &[u8; 15] = b"graccl+noise/1 ";
pub(super) const MIXED: &str = "one side encrypts, the other does not: set GRACCL_ENCRYPT alike on all ranks";

/// Bytes of both handshake messages: a key and a tag.
const HANDSHAKE: usize = 48;
const LENGTH: usize = 2;
const TAG: usize = 16;
/// Plain bytes of the longest record, Noise's limit of 65535 with the tag.
pub(super) const PLAIN: usize = 65535 - TAG;
const RECORD: usize = LENGTH + PLAIN + TAG;
/// Records that are sealed, or received, in one go.
const GO: usize = 4;
/// Records after which a direction's key is renewed.
pub(super) const REKEY: u64 = 1 << 20;

enum State {
    /// The peer's first 16 bytes have not come.
    Preface(Box<HandshakeState>),
    Handshake(Box<HandshakeState>),
    Open(Box<TransportState>),
    /// It is of no use any more.
    Failed,
}

pub(super) struct Seal {
    state: State,
    initiator: bool,
    rekey: u64,
    /// Records of both directions since the key was renewed.
    sealed: u64,
    opened: u64,
    /// Sealed bytes that came: `came[..held]`, less than a record after `filled`.
    came: Box<[u8]>,
    held: usize,
    /// Sealed bytes to send: `out[head..]`.
    out: Vec<u8>,
    head: usize,
    /// One record's plain bytes.
    plain: Box<[u8]>,
}

impl Seal {
    /// `rekey`: usually [`REKEY`]. The error is a text.
    pub fn new(secret: &[u8; 32], initiator: bool, rekey: u64) -> Result<Seal, String> {
        let start = || {
            let b = Builder::new(NOISE.parse()?).prologue(PREFACE)?.psk(0, secret)?;
            if initiator { b.build_initiator() } else { b.build_responder() }
        };
        let handshake = start().map_err(|e| format!("cannot start to encrypt: {e}"))?;
        let mut s = Seal {
            state: State::Preface(Box::new(handshake)),
            initiator,
            rekey,
            sealed: 0,
            opened: 0,
            came: vec![0; GO * RECORD].into(),
            held: 0,
            out: Vec::with_capacity(GO * RECORD),
            head: 0,
            plain: vec![0; PLAIN].into(),
        };
        s.out.extend_from_slice(PREFACE);
        s.out.push(part(initiator));
        if let State::Preface(h) = &mut s.state
            && initiator
        {
            write_handshake(h, &mut s.out)?;
        }
        Ok(s)
    }

    // ---- sending ----

    /// Sealed bytes wait, or there is something that may be sealed.
    pub fn has_outgoing(&self, proto: &Proto) -> bool {
        self.waits() || (matches!(self.state, State::Open(_)) && proto.has_outgoing())
    }

    /// Sealed bytes wait.
    pub fn waits(&self) -> bool {
        self.head < self.out.len()
    }

    /// The next bytes to send; seals what `proto` wants to send if there are none.
    pub fn outgoing(&mut self, proto: &mut Proto) -> Result<&[u8], String> {
        if !self.waits()
            && let State::Open(t) = &mut self.state
        {
            self.out.clear();
            self.head = 0;
            while self.out.len() <= (GO - 1) * RECORD && proto.has_outgoing() {
                let n = gather(proto, &mut self.plain);
                let at = self.out.len();
                self.out.extend_from_slice(&((n + TAG) as u16).to_le_bytes());
                self.out.resize(at + LENGTH + n + TAG, 0);
                t.write_message(&self.plain[..n], &mut self.out[at + LENGTH..])
                    .map_err(|e| format!("cannot encrypt: {e}"))?;
                self.sealed += 1;
                if self.sealed == self.rekey {
                    self.sealed = 0;
                    t.rekey_outgoing();
                }
                // From here on the bytes are ours, and the caller's memory is free.
                proto.sent(n);
            }
        }
        Ok(&self.out[self.head..])
    }

    /// The kernel has taken the next `n` bytes.
    pub fn sent(&mut self, n: usize) {
        self.head += n;
    }

    // ---- receiving ----

    /// Where the next bytes from the peer go. Never empty.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.came[self.held..]
    }

    /// `n` bytes were written to the last [`room`](Seal::room). Complete records are opened and given to
    /// `proto`; returns whether a large message is now complete. After an error, a text, the layer is
    /// of no use.
    ///
    /// # Safety
    /// As for [`Proto::filled`], as far as it concerns `land`.
    pub unsafe fn filled(&mut self, n: usize, proto: &mut Proto) -> Result<bool, String> {
        self.held += n;
        // SAFETY: the caller's promise.
        let r = unsafe { self.open(proto) };
        if r.is_err() {
            self.state = State::Failed;
            self.held = 0;
        }
        r
    }

    /// # Safety
    /// As for [`Seal::filled`].
    unsafe fn open(&mut self, proto: &mut Proto) -> Result<bool, String> {
        let (mut at, mut large) = (0, false);
        if let State::Preface(_) = self.state {
            let Some(first) = self.came[..self.held].first_chunk::<HEADER>() else { return Ok(false) };
            check_preface(first, self.initiator)?;
            let State::Preface(h) = std::mem::replace(&mut self.state, State::Failed) else {
                return Ok(false);
            };
            self.state = State::Handshake(h);
            at = HEADER;
        }
        while let Some(length) = self.came[at..self.held].first_chunk::<LENGTH>() {
            let len = usize::from(u16::from_le_bytes(*length));
            let least = if let State::Open(_) = self.state { TAG + 1 } else { HANDSHAKE };
            let most = if let State::Open(_) = self.state { PLAIN + TAG } else { HANDSHAKE };
            if !(least..=most).contains(&len) {
                return Err(format!("encrypted record of {len} bytes"));
            }
            let start = at + LENGTH;
            let Some(record) = self.came[..self.held].get(start..start + len) else { break };
            at = start + len;
            match &mut self.state {
                State::Open(t) => {
                    let n = t.read_message(record, &mut self.plain).map_err(|_| {
                        "an encrypted record does not authenticate: it was changed on its way".to_string()
                    })?;
                    self.opened += 1;
                    if self.opened == self.rekey {
                        self.opened = 0;
                        t.rekey_incoming();
                    }
                    // SAFETY: the caller's promise.
                    large |= unsafe { pour(proto, &self.plain[..n]) };
                    if proto.broken().is_some() {
                        break;
                    }
                }
                State::Handshake(h) => {
                    h.read_message(record, &mut self.plain).map_err(|_| {
                        "the encryption handshake does not authenticate: another secret, or it was changed on its way"
                            .to_string()
                    })?;
                    if !self.initiator {
                        write_handshake(h, &mut self.out)?;
                    }
                    let State::Handshake(h) = std::mem::replace(&mut self.state, State::Failed) else {
                        break;
                    };
                    let t = h.into_transport_mode().map_err(|e| format!("cannot encrypt: {e}"))?;
                    self.state = State::Open(Box::new(t));
                }
                State::Preface(_) | State::Failed => break,
            }
        }
        self.came.copy_within(at..self.held, 0);
        self.held -= at;
        Ok(large)
    }

    /// What it means that the stream ends here, if not just that the peer left.
    pub fn ended(&self) -> Option<&'static str> {
        match self.state {
            State::Preface(_) | State::Handshake(_) => Some(
                "connection closed by peer while encryption was agreed on: it has another secret or does not encrypt (set GRACCL_ENCRYPT alike on all ranks)",
            ),
            State::Open(_) if self.held > 0 => Some("connection closed by peer within an encrypted record"),
            State::Open(_) | State::Failed => None,
        }
    }
}

fn part(initiator: bool) -> u8 {
    if initiator { b'I' } else { b'R' }
}

fn check_preface(first: &[u8; HEADER], initiator: bool) -> Result<(), String> {
    let (name, role) = first.split_at(PREFACE.len());
    if name != PREFACE {
        let plain = Header::decode(first).is_ok_and(|h| h.seq == 0);
        return Err(if plain { MIXED } else { "no encryption handshake, but something else" }.into());
    }
    if role != [part(!initiator)] {
        return Err("both sides take the same part in the encryption handshake".into());
    }
    Ok(())
}

fn write_handshake(h: &mut HandshakeState, out: &mut Vec<u8>) -> Result<(), String> {
    let mut message = [0; HANDSHAKE];
    let n = h.write_message(&[], &mut message).map_err(|e| format!("cannot encrypt: {e}"))?;
    out.extend_from_slice(&(n as u16).to_le_bytes());
    out.extend_from_slice(&message[..n]);
    Ok(())
}

/// Copies the next bytes that `proto` wants to send to `plain`; returns how many.
fn gather(proto: &Proto, plain: &mut [u8]) -> usize {
    let mut iov = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2 * BATCH];
    let (count, _) = proto.outgoing(&mut iov);
    let mut n = 0;
    for v in &iov[..count] {
        let part = v.iov_len.min(plain.len() - n);
        // SAFETY: the entries are readable, as for the kernel, and nothing of them is ours.
        let src = unsafe { std::slice::from_raw_parts(v.iov_base as *const u8, part) };
        plain[n..n + part].copy_from_slice(src);
        n += part;
    }
    n
}

/// Gives plain bytes to `proto` until it breaks. True if a large message was completed.
///
/// # Safety
/// The promise to [`Proto::land`] holds.
pub(super) unsafe fn pour(proto: &mut Proto, mut bytes: &[u8]) -> bool {
    let mut large = false;
    while !bytes.is_empty() && proto.broken().is_none() {
        let [a, b] = proto.room();
        let n = bytes.len().min(a.1 + b.1);
        let first = n.min(a.1);
        // SAFETY: `room` answers two writable pieces: our own, or where `land` said.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), a.0, first);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().add(first), b.0, n - first);
            large |= proto.filled(n);
        }
        bytes = &bytes[n..];
    }
    large
}

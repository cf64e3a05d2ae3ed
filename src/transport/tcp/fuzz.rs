//! Entries for fuzzing: any bytes may come from a peer. No socket, no clock.

use libc::iovec;

use super::DEPTH;
use super::proto::{BATCH, Proto};
use super::seal::{PREFACE, REKEY, Seal, pour};
use crate::transport::Recv;

const CAPACITY: usize = 1 << 16;
/// Messages that are expected, and sent, have this length in bytes.
const LEN: usize = 8;

/// A side that uses its links while bytes come in.
struct User {
    proto: Proto,
    /// Places of its links; `None` once closed.
    links: [Option<usize>; 4],
    /// Where messages may land.
    room: Box<[[u8; LEN]; 4]>,
    heard: Vec<u8>,
}

impl User {
    fn new() -> User {
        let mut proto = Proto::new(CAPACITY);
        let links = [0, 1, 2, 3].map(|id| if id < 2 { proto.open(id).ok() } else { None });
        User { proto, links, room: Box::new([[0; LEN]; 4]), heard: Vec::new() }
    }

    /// Does what a user may do, as `what` says.
    fn act(&mut self, what: u8) {
        let n = usize::from(what & 3);
        let p = &mut self.proto;
        let Some(ix) = self.links[n] else {
            if what & 0x80 != 0 {
                self.links[n] = p.open(n as u32).ok();
            }
            return;
        };
        for _ in 0..DEPTH {
            match p.recv(ix, LEN, u32::from(what >> 6)) {
                // SAFETY: a received message of that length; it stays until `release`.
                Recv::Ready(m) => unsafe {
                    self.heard.extend_from_slice(std::slice::from_raw_parts(m, LEN));
                },
                Recv::Pending => break,
                Recv::Fault => {
                    p.fault(ix);
                    break;
                }
            }
            p.release(ix);
        }
        match what >> 2 & 7 {
            // SAFETY: `room` lives as long as the protocol, and nobody else uses it.
            0 => unsafe { p.land(ix, self.room[n].as_mut_ptr(), LEN) },
            1 => p.abandon(ix),
            2 => {
                p.close(n as u32..n as u32 + 1);
                self.links[n] = None;
            }
            3 => {
                if let Some(slot) = p.send_slot(ix, LEN) {
                    // SAFETY: a slot of that length.
                    unsafe { slot.write_bytes(what, LEN) };
                    p.commit(ix, LEN, 1);
                }
            }
            4 => p.tell(&[what; 3]),
            _ => p.queue_credits(),
        }
        p.hear(&mut self.heard);
        self.heard.clear();
    }

    /// Half of what it wants to send is taken.
    fn drain(&mut self) {
        let mut iov = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2 * BATCH];
        let (_, bytes) = self.proto.outgoing(&mut iov);
        self.proto.sent(bytes.div_ceil(2));
    }
}

/// Splits `data` in a script of actions, which also gives the sizes of portions, and a stream.
fn split(data: &[u8]) -> (&[u8], &[u8]) {
    data.split_at(data.len().min(16))
}

/// `data` as a peer's bytes: must neither panic nor take memory without bound. The first 16 bytes say
/// in which portions they come and what the receiver does meanwhile.
#[doc(hidden)]
pub fn fuzz_feed(data: &[u8]) {
    let (script, mut stream) = split(data);
    let mut user = User::new();
    for &what in script.iter().cycle() {
        user.act(what);
        user.drain();
        if stream.is_empty() || user.proto.broken().is_some() {
            break;
        }
        let n = (1 + usize::from(what) * usize::from(what) / 8).min(stream.len());
        // SAFETY: `room` lives as long as the protocol.
        unsafe { pour(&mut user.proto, &stream[..n]) };
        stream = &stream[n..];
    }
    (0..=255).for_each(|what| user.act(what));
}

/// The same with encryption. The first byte says what is real: nothing; the first 16 bytes; the whole
/// handshake; the handshake and the encryption of `data`, but for one bit.
#[doc(hidden)]
pub fn fuzz_feed_sealed(data: &[u8]) {
    let (script, stream) = split(data);
    let secret = [7; 32];
    let Ok(mut seal) = Seal::new(&secret, false, REKEY) else { return };
    let mut user = User::new();
    let mut bytes = Vec::new();
    let real = script.first().map_or(0, |b| b & 3);
    if real == 1 {
        bytes.extend_from_slice(PREFACE);
        bytes.push(b'I');
    }
    if real >= 2 {
        // Keys take their time.
        let Ok(mut peer) = Seal::new(&secret, true, REKEY) else { return };
        let mut other = Proto::new(CAPACITY);
        for _ in 0..2 {
            let from = peer.outgoing(&mut other).unwrap_or(&[]).to_vec();
            peer.sent(from.len());
            give(&mut seal, &mut user.proto, &from);
            let back = seal.outgoing(&mut user.proto).unwrap_or(&[]).to_vec();
            seal.sent(back.len());
            give(&mut peer, &mut other, &back);
        }
        if real == 3 {
            other.tell(stream);
        }
        while other.has_outgoing() {
            let from = peer.outgoing(&mut other).unwrap_or(&[]).to_vec();
            peer.sent(from.len());
            bytes.extend(from);
        }
    }
    if real == 3 {
        let at = script.iter().skip(1).fold(0, |n: usize, &b| n << 3 ^ usize::from(b));
        if let Some(b) = bytes.get_mut(at % 4096) {
            *b ^= 1 << (at % 8);
        }
    } else {
        bytes.extend_from_slice(stream);
    }
    let mut rest = &bytes[..];
    for &what in script.iter().cycle() {
        user.act(what);
        if rest.is_empty() || user.proto.broken().is_some() {
            break;
        }
        let n = (1 + usize::from(what) * usize::from(what) / 8).min(rest.len());
        give(&mut seal, &mut user.proto, &rest[..n]);
        rest = &rest[n..];
        if let Ok(out) = seal.outgoing(&mut user.proto).map(<[u8]>::len) {
            seal.sent(out);
        }
    }
    seal.ended();
}

fn give(seal: &mut Seal, proto: &mut Proto, mut bytes: &[u8]) {
    while !bytes.is_empty() && proto.broken().is_none() {
        let room = seal.room();
        let n = bytes.len().min(room.len());
        room[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        // SAFETY: whoever lets messages land keeps the memory as long as the protocol.
        if let Err(text) = unsafe { seal.filled(n, proto) } {
            proto.fail(text);
        }
    }
}

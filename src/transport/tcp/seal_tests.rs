//! The encrypting layer without a socket: any portions, any change.

use super::fuzz::{fuzz_feed, fuzz_feed_sealed};
use super::proto::Proto;
use super::proto_tests::{Rng, byte};
use super::seal::{MIXED, PLAIN, PREFACE, REKEY, Seal};
use crate::transport::Recv;

const SECRET: [u8; 32] = [42; 32];
/// Bytes before the first record of frames: of the initiator, of the other side.
const HELLO: usize = 16 + 2 + 48;

struct Side {
    seal: Seal,
    proto: Proto,
}

impl Side {
    fn new(secret: [u8; 32], initiator: bool, rekey: u64) -> Side {
        let mut proto = Proto::new(300_000);
        (0..4).for_each(|i| assert_eq!(proto.open(i as u32), Ok(i)));
        Side { seal: Seal::new(&secret, initiator, rekey).unwrap(), proto }
    }

    /// Everything it wants to send now.
    fn take(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.seal.has_outgoing(&self.proto) {
            let out = self.seal.outgoing(&mut self.proto).unwrap().to_vec();
            self.seal.sent(out.len());
            all.extend(out);
        }
        all
    }

    /// Feeds bytes in portions, as the socket does, until it breaks.
    fn feed(&mut self, mut bytes: &[u8], mut step: impl FnMut() -> usize) {
        while !bytes.is_empty() && self.proto.broken().is_none() {
            let room = self.seal.room();
            assert!(!room.is_empty());
            let n = step().max(1).min(bytes.len()).min(room.len());
            room[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if let Err(text) = unsafe { self.seal.filled(n, &mut self.proto) } {
                self.proto.fail(text);
            }
        }
    }

    fn send(&mut self, link: usize, number: usize, len: usize) -> bool {
        let Some(p) = self.proto.send_slot(link, len) else { return false };
        (0..len).for_each(|i| unsafe { *p.add(i) = byte(link, number, i) });
        self.proto.commit(link, len, 1);
        true
    }

    fn got(&mut self, link: usize, number: usize, len: usize) -> bool {
        let Recv::Ready(p) = self.proto.recv(link, len, 1) else { return false };
        (0..len).for_each(|i| assert_eq!(unsafe { *p.add(i) }, byte(link, number, i)));
        self.proto.release(link);
        true
    }

    fn broken(&self, text: &str) {
        let why = self.proto.broken();
        assert!(why.is_some_and(|t| t.contains(text)), "{why:?}, not {text}");
    }
}

/// An initiator and the other side, before any byte.
fn sides(rekey: u64) -> [Side; 2] {
    [true, false].map(|initiator| Side::new(SECRET, initiator, rekey))
}

/// They have agreed.
fn open(rekey: u64) -> [Side; 2] {
    let [mut a, mut b] = sides(rekey);
    let bytes = a.take();
    assert_eq!(bytes.len(), HELLO);
    b.feed(&bytes, || usize::MAX);
    let bytes = b.take();
    assert_eq!(bytes.len(), HELLO);
    a.feed(&bytes, || usize::MAX);
    [a, b]
}

/// A short conversation, and each side's bytes.
fn conversation() -> ([Side; 2], [Vec<u8>; 2]) {
    let [mut a, mut b] = sides(REKEY);
    assert!(a.send(0, 0, 40) && b.send(1, 0, 30));
    let mut bytes = [a.take(), Vec::new()];
    b.feed(&bytes[0], || usize::MAX);
    bytes[1] = b.take();
    a.feed(&bytes[1], || usize::MAX);
    let more = a.take();
    b.feed(&more, || usize::MAX);
    bytes[0].extend(more);
    assert!(a.send(0, 1, 5));
    let more = a.take();
    b.feed(&more, || usize::MAX);
    bytes[0].extend(more);
    ([a, b], bytes)
}

#[test]
fn any_portions_give_the_same_messages() {
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        // A key is renewed every few records in each direction.
        let mut s = sides(3);
        let most = [1, 3, 17, 5000, 300_000][seed as usize % 5];
        let count = if most < 100 { 4 } else { 30 };
        let sizes: Vec<usize> =
            (0..count).map(|_| rng.size(if most < 100 { 3000 } else { 300_000 })).collect();
        let (mut sent, mut got) = ([0; 2], [0; 2]);
        while got != [count; 2] {
            let from = rng.below(2);
            while sent[from] < count && s[from].send(from, sent[from], sizes[sent[from]]) {
                sent[from] += 1;
            }
            let bytes = s[from].take();
            s[1 - from].feed(&bytes, || 1 + rng.below(most));
            while got[from] < sent[from] && s[1 - from].got(from, got[from], sizes[got[from]]) {
                got[from] += 1;
            }
            s[1 - from].proto.queue_credits();
            assert_eq!((s[0].proto.broken(), s[1].proto.broken()), (None, None));
        }
    }
}

#[test]
fn bytes_are_encrypted_and_references_end_with_it() {
    let [mut a, mut b] = open(REKEY);
    let secret = [b'S'; 200_000];
    a.proto.send_ref(0, secret.as_ptr(), secret.len(), 1);
    assert!(!a.proto.idle(0));
    let bytes = a.take();
    assert!(a.proto.idle(0) && bytes.len() > secret.len());
    assert!(!bytes.windows(8).any(|w| w == &secret[..8]));
    let mut dst = vec![0; secret.len()];
    unsafe { b.proto.land(0, dst.as_mut_ptr(), dst.len()) };
    b.feed(&bytes, || usize::MAX);
    assert_eq!(b.proto.recv(0, dst.len(), 1), Recv::Ready(dst.as_mut_ptr()));
    assert!(dst == secret);
}

#[test]
fn every_flipped_bit_breaks() {
    // Byte by byte a new conversation, because keys are fresh each time.
    let (_, lengths) = conversation();
    for who in 0..2 {
        for at in 0..lengths[who].len() {
            let bit = 1 << (at % 8);
            let mut s = sides(REKEY);
            assert!(s[0].send(0, 0, 40) && s[1].send(1, 0, 30));
            let (mut passed, mut second) = ([0; 2], false);
            for _ in 0..3 {
                for from in 0..2 {
                    let mut bytes = s[from].take();
                    if from == who && (passed[from]..passed[from] + bytes.len()).contains(&at) {
                        bytes[at - passed[from]] ^= bit;
                    }
                    passed[from] += bytes.len();
                    s[1 - from].feed(&bytes, || usize::MAX);
                }
                if !second && s[1].got(0, 0, 40) {
                    second = s[0].send(0, 1, 5);
                }
            }
            let victim = &mut s[1 - who];
            let whole = victim.got(if who == 0 { 0 } else { 1 }, if who == 0 { 1 } else { 0 }, [5, 30][who]);
            // A longer length waits for more than comes: then the peer sees no answer and the end tells.
            let waits = victim.proto.broken().is_none();
            assert!(!whole, "byte {at} of side {who}");
            assert!(!waits || victim.seal.ended().is_some(), "byte {at} of side {who}");
        }
    }
}

#[test]
fn replayed_reordered_lost_reflected_and_cut_records_break() {
    let records = |a: &mut Side| {
        [0, 1, 2].map(|n| {
            assert!(a.send(0, n, 10));
            a.take()
        })
    };
    type Change = fn(&[Vec<u8>; 3]) -> Vec<u8>;
    let changes: [Change; 4] = [
        |r| [&r[0][..], &r[0]].concat(),
        |r| [&r[1][..], &r[0]].concat(),
        |r| [&r[0][..], &r[2]].concat(),
        |r| r[0][..r[0].len() - 1].iter().chain(&r[1]).copied().collect(),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let [mut a, mut b] = open(REKEY);
        let r = records(&mut a);
        b.feed(&change(&r), || usize::MAX);
        b.broken("does not authenticate");
        assert_eq!(b.got(0, 0, 10), n == 0 || n == 2, "what was right before is there");
        assert!(!b.got(0, 1, 10));
    }
    let [mut a, _] = open(REKEY);
    let r = records(&mut a);
    a.feed(&r[0], || usize::MAX);
    a.broken("does not authenticate");
    // The own handshake, sent back with the other part's letter.
    let [mut a, _] = sides(REKEY);
    let mut own = a.take();
    own[15] = b'R';
    a.feed(&own, || usize::MAX);
    a.broken("handshake does not authenticate");
    for cut in 1..r[0].len() {
        let [mut a, mut b] = open(REKEY);
        let r = records(&mut a);
        b.feed(&r[0][..cut], || usize::MAX);
        assert!(!b.got(0, 0, 10));
        assert!(b.seal.ended().is_some_and(|t| t.contains("within an encrypted record")));
    }
}

#[test]
fn impossible_lengths_break() {
    for len in [0u16, 1, 16] {
        let [_, mut b] = open(REKEY);
        b.feed(&len.to_le_bytes(), || usize::MAX);
        b.broken("encrypted record of");
    }
    let [_, mut b] = sides(REKEY);
    b.feed(&[PREFACE, &b"I"[..], &[49, 0]].concat(), || usize::MAX);
    b.broken("encrypted record of 49 bytes");
    // The longest fits.
    let [_, mut b] = open(REKEY);
    b.feed(&vec![255; 2 + PLAIN + 16], || usize::MAX);
    b.broken("does not authenticate");
}

#[test]
fn sides_that_do_not_fit_are_told_why() {
    // Another secret.
    let mut a = Side::new(SECRET, true, REKEY);
    let mut b = Side::new([1; 32], false, REKEY);
    let bytes = a.take();
    b.feed(&bytes, || usize::MAX);
    b.broken("another secret");
    assert!(a.seal.ended().is_some_and(|t| t.contains("another secret")));
    // The same part.
    for initiator in [true, false] {
        let [mut a, mut b] = [(); 2].map(|_| Side::new(SECRET, initiator, REKEY));
        let bytes = a.take();
        b.feed(&bytes, || usize::MAX);
        b.broken("same part");
    }
    // One side without encryption.
    for initiator in [true, false] {
        let mut a = Side::new(SECRET, initiator, REKEY);
        let mut plain = Side::new(SECRET, false, REKEY);
        assert!(plain.send(0, 0, 5));
        let mut first = [0; 21];
        let mut iov = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 16];
        let (n, _) = plain.proto.outgoing(&mut iov);
        let mut at = 0;
        for v in &iov[..n] {
            let part = unsafe { std::slice::from_raw_parts(v.iov_base as *const u8, v.iov_len) };
            first[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        a.feed(&first, || 3);
        a.broken(MIXED);
        let hello = Side::new(SECRET, initiator, REKEY).take();
        unsafe { super::seal::pour(&mut plain.proto, &hello) };
        plain.broken(MIXED);
    }
    let mut a = Side::new(SECRET, true, REKEY);
    a.feed(b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n", || usize::MAX);
    a.broken("something else");
}

#[test]
fn garbage_never_panics() {
    for seed in 0..4000 {
        let mut rng = Rng::new(seed);
        let mut data: Vec<u8> = (0..rng.below(700)).map(|_| rng.next() as u8).collect();
        fuzz_feed_sealed(&data);
        // Often a header that passes, so that more than the first frame is looked at.
        for (i, at) in (16..data.len().saturating_sub(16)).step_by(24).enumerate() {
            let [kind, link, credits] = [1 + rng.below(3), rng.below(5), rng.below(40) / 38].map(|x| x as u8);
            let len = if kind == 2 { 0 } else { 8 };
            data[at + 4..at + 16].copy_from_slice(&[
                len,
                0,
                0,
                0,
                link * (kind % 3),
                0,
                0,
                0,
                kind,
                credits,
                i as u8,
                0,
            ]);
        }
        fuzz_feed(&data);
        if !data.is_empty() {
            data[0] |= 3;
            fuzz_feed_sealed(&data);
        }
    }
    for n in 0..40 {
        fuzz_feed(&vec![0; n]);
        fuzz_feed_sealed(&vec![3; n]);
    }
}

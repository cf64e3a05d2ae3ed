//! The protocol without a socket: any portions, any garbage.

use libc::iovec;

use super::frame::{HEADER, Header, Kind};
use super::proto::{BATCH, EARLY_BYTES, EARLY_LINKS, Proto, WORDS_MAX};
use super::{DEPTH, SMALL};
use crate::transport::{Fault, Recv};

/// A small deterministic generator (xorshift64*).
pub(super) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 32) as usize) % n
    }
    /// Mostly small, sometimes up to `max`.
    pub fn size(&mut self, max: usize) -> usize {
        match self.below(8) {
            0 => 0,
            1..4 => self.below(max.min(100) + 1),
            4..6 => self.below(max.min(2 * SMALL) + 1),
            _ => self.below(max + 1),
        }
    }
}

/// Byte `i` of message `number` of `stream`.
pub(super) fn byte(stream: usize, number: usize, i: usize) -> u8 {
    (stream * 131 + number * 17 + i + (i >> 8) * 7) as u8
}

/// Sends a message of the pattern if the protocol has room.
fn send(p: &mut Proto, link: usize, number: usize, len: usize, fp: u32) -> bool {
    let Some(dst) = p.send_slot(link, len) else { return false };
    for i in 0..len {
        unsafe { *dst.add(i) = byte(link, number, i) };
    }
    p.commit(link, len, fp);
    true
}

/// Takes up to `max` bytes from what `p` wants to send.
fn take(p: &mut Proto, max: usize) -> Vec<u8> {
    let mut iov = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2 * BATCH];
    let (n, bytes) = p.outgoing(&mut iov);
    let mut out = Vec::new();
    for v in &iov[..n] {
        out.extend_from_slice(unsafe { std::slice::from_raw_parts(v.iov_base as *const u8, v.iov_len) });
    }
    assert_eq!(out.len(), bytes);
    out.truncate(max);
    p.sent(out.len());
    out
}

fn take_all(p: &mut Proto) -> Vec<u8> {
    let mut out = Vec::new();
    while p.has_outgoing() {
        out.extend(take(p, usize::MAX));
    }
    out
}

/// Feeds bytes as the socket would: into the offered room, `step()` at a time.
fn feed(p: &mut Proto, mut bytes: &[u8], mut step: impl FnMut() -> usize) {
    while !bytes.is_empty() && p.broken().is_none() {
        let [a, b] = p.room();
        let n = step().max(1).min(bytes.len()).min(a.1 + b.1);
        assert!(n > 0, "the protocol must always offer room");
        let first = n.min(a.1);
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), a.0, first);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().add(first), b.0, n - first);
            p.filled(n);
        }
        bytes = &bytes[n..];
    }
}

fn check(p: &mut Proto, link: usize, number: usize, len: usize, fp: u32) {
    match p.recv(link, len, fp) {
        Recv::Ready(ptr) => {
            for i in 0..len {
                assert_eq!(unsafe { *ptr.add(i) }, byte(link, number, i), "byte {i} of message {number}");
            }
        }
        other => panic!("{other:?} {:?}", p.fault(link)),
    }
}

fn pair() -> [Proto; 2] {
    [(); 2].map(|_| {
        let mut p = Proto::new(20_000);
        (0..8).for_each(|i| assert_eq!(p.open(i as u32), Ok(i)));
        p
    })
}

fn header(link: u32, kind: u8, len: u32, credits: u8, seq: u16) -> [u8; HEADER] {
    let mut b = Header { fp: 7, len, link, kind: Kind::Data, credits, seq }.encode();
    b[12] = kind;
    b
}

#[test]
fn headers_survive_the_wire() {
    for kind in [Kind::Data, Kind::Credit, Kind::Words, Kind::Ask] {
        let h = Header { fp: 0x89AB_CDEF, len: 0x0123_4567, link: 0x8BAD_F00D, kind, credits: 0xFE, seq: !5 };
        assert_eq!(Header::decode(&h.encode()), Ok(h));
    }
    for kind in [0, 5, 255] {
        assert!(Header::decode(&header(0, kind, 0, 0, 0)).is_err());
    }
}

#[test]
fn any_portions_give_the_same_messages() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let [mut a, mut b] = pair();
        let (mut sent, mut got) = ([const { Vec::new() }; 8], [0; 8]);
        let most = [1, 3, 17, 5000, 100_000][rng.below(5)];
        for _ in 0..150 {
            let link = rng.below(8);
            let len = rng.size(if most < 100 { 600 } else { 20_000 });
            if send(&mut a, link, sent[link].len(), len, link as u32) {
                sent[link].push(len);
            }
            let limit = rng.below(30_000);
            let bytes = take(&mut a, limit);
            feed(&mut b, &bytes, || rng.below(most + 1));
            let link = rng.below(8);
            while got[link] < sent[link].len() {
                let len = sent[link][got[link]];
                if b.recv(link, len, link as u32) == Recv::Pending {
                    break;
                }
                check(&mut b, link, got[link], len, link as u32);
                b.release(link);
                got[link] += 1;
            }
            if rng.below(3) == 0 {
                b.queue_credits();
                let bytes = take_all(&mut b);
                feed(&mut a, &bytes, || rng.below(most + 1));
            }
            assert_eq!((a.broken(), b.broken()), (None, None));
        }
        assert!(sent.iter().map(Vec::len).sum::<usize>() > 60, "the test must send something");
    }
}

#[test]
fn a_sender_stops_at_depth_and_one_debt_is_never_paid() {
    let [mut a, mut b] = pair();
    for n in 0..DEPTH {
        assert!(send(&mut a, 3, n, 10, 1));
    }
    assert!(!send(&mut a, 3, DEPTH, 10, 1) && !a.has_room(3));
    assert!(send(&mut a, 2, 0, 10, 1), "other links have their own credits");
    let bytes = take_all(&mut a);
    feed(&mut b, &bytes, || usize::MAX);
    for n in 0..DEPTH {
        check(&mut b, 3, n, 10, 1);
        let urgent = b.release(3);
        assert_eq!(urgent, n + 1 == DEPTH - 1);
        b.queue_credits();
        // Two at a time, and nothing for a single one.
        assert_eq!(b.has_outgoing(), n % 2 == 1);
        if n == 1 {
            let bytes = take_all(&mut b);
            assert_eq!(bytes.len(), HEADER);
            feed(&mut a, &bytes, || usize::MAX);
            assert!(send(&mut a, 3, 4, 10, 1) && send(&mut a, 3, 5, 10, 1));
            assert!(!send(&mut a, 3, 6, 10, 1));
            break;
        }
    }
}

#[test]
fn three_debts_are_urgent_and_credits_ride_on_messages() {
    let [mut a, mut b] = pair();
    for n in 0..DEPTH {
        assert!(send(&mut a, 0, n, 10, 1));
    }
    let bytes = take_all(&mut a);
    feed(&mut b, &bytes, || usize::MAX);
    let urgent: Vec<bool> = (0..3).map(|_| b.release(0)).collect();
    assert_eq!(urgent, [false, false, true]);
    assert!(send(&mut b, 0, 0, 5, 1));
    // The link is still noted as one that owes much, but owes a single one from here on.
    b.release(0);
    b.queue_credits();
    let bytes = take_all(&mut b);
    assert_eq!(bytes.len(), HEADER + 5, "the message took the credits along");
    feed(&mut a, &bytes, || usize::MAX);
    for n in 4..7 {
        assert!(send(&mut a, 0, n, 10, 1));
    }
    assert!(!send(&mut a, 0, 7, 10, 1));
}

#[test]
fn landing_before_and_after_the_header() {
    for early in [0, HEADER, HEADER + 50, HEADER + SMALL + 1, HEADER + 9000] {
        let [mut a, mut b] = pair();
        assert!(send(&mut a, 1, 0, 9000, 1));
        let bytes = take_all(&mut a);
        let mut dst = vec![0u8; 9000];
        feed(&mut b, &bytes[..early], || usize::MAX);
        unsafe { b.land(1, dst.as_mut_ptr(), 9000) };
        feed(&mut b, &bytes[early..], || usize::MAX);
        check(&mut b, 1, 0, 9000, 1);
        let there = b.recv(1, 9000, 1) == Recv::Ready(dst.as_mut_ptr());
        assert_eq!(there, early <= HEADER + SMALL, "{early} bytes before");
        b.release(1);
        // The hint does not outlive its message.
        assert!(send(&mut a, 1, 1, 9000, 1));
        let bytes = take_all(&mut a);
        feed(&mut b, &bytes, || usize::MAX);
        check(&mut b, 1, 1, 9000, 1);
        assert!(b.recv(1, 9000, 1) != Recv::Ready(dst.as_mut_ptr()));
    }
}

#[test]
fn a_landing_of_another_length_is_not_used() {
    let [mut a, mut b] = pair();
    let mut dst = [9u8; 100];
    unsafe { b.land(1, dst.as_mut_ptr(), 100) };
    assert!(send(&mut a, 1, 0, 200, 1));
    let bytes = take_all(&mut a);
    feed(&mut b, &bytes, || usize::MAX);
    assert_eq!(b.recv(1, 100, 1), Recv::Fault);
    assert_eq!(b.fault(1), Some(Fault::Length { got: 200 }));
    assert_eq!(dst, [9u8; 100]);
}

#[test]
fn wrong_fingerprints_are_a_matter_of_their_link() {
    let [mut a, mut b] = pair();
    assert!(send(&mut a, 1, 0, 10, 42) && send(&mut a, 2, 0, 10, 1));
    let bytes = take_all(&mut a);
    feed(&mut b, &bytes, || usize::MAX);
    assert_eq!(b.recv(1, 10, 1), Recv::Fault);
    assert_eq!(b.recv(1, 10, 42), Recv::Fault, "a fault stays");
    assert_eq!(b.fault(1), Some(Fault::Fingerprint { got: 42 }));
    check(&mut b, 2, 0, 10, 1);
    assert_eq!(b.fault(2), None);
}

#[test]
fn impossible_frames_break_with_their_reason() {
    let full = |n: u16| (0..n).flat_map(|s| header(0, 1, 0, 0, s)).collect::<Vec<u8>>();
    let words = |n: u16| -> Vec<u8> {
        (0..n).flat_map(|s| [&header(0, 3, SMALL as u32, 0, s)[..], &[0; SMALL]].concat()).collect()
    };
    let cases: [(Vec<u8>, &str); 17] = [
        (header(8, 2, 0, 1, 0).to_vec(), "link 8: 1 messages acknowledged, but only 0 sent"),
        (header(8, 1, 0, 1, 0).to_vec(), "link 8: 1 messages acknowledged, but only 0 sent"),
        (header(0, 3, 0, 0, 0).to_vec(), "0 bytes of control words"),
        (header(0, 3, SMALL as u32 + 1, 0, 0).to_vec(), "4097 bytes of control words"),
        (header(1, 3, 5, 0, 0).to_vec(), "on link 1"),
        (header(0, 3, 5, 1, 0).to_vec(), "with 1 credits"),
        (words((WORDS_MAX / SMALL) as u16 + 1), "that nobody took"),
        (header(0, 9, 0, 0, 0).to_vec(), "unknown kind 9"),
        (header(0, 1, 20_001, 0, 0).to_vec(), "20001 bytes"),
        (header(0, 1, 0, 0, 1).to_vec(), "frame number 1"),
        (header(0, 1, 0, 1, 0).to_vec(), "only 0 sent"),
        (header(0, 2, 0, 0, 0).to_vec(), "credit frame"),
        (header(0, 2, 3, 0, 0).to_vec(), "credit frame"),
        (header(0, 4, 1, 0, 0).to_vec(), "1 bytes and 0 credits on link 0 with a sign of life"),
        (header(3, 4, 0, 0, 0).to_vec(), "on link 3 with a sign of life"),
        (header(0, 4, 0, 2, 0).to_vec(), "2 credits"),
        (full(DEPTH as u16 + 1), "unacknowledged"),
    ];
    for (bytes, text) in cases {
        let [_, mut p] = pair();
        feed(&mut p, &bytes, || usize::MAX);
        assert!(p.broken().is_some_and(|b| b.contains(text)), "{:?}, not {text}", p.broken());
        assert!(p.send_slot(0, 1).is_none());
        p.fail("later");
        assert!(p.broken().is_some_and(|b| b.contains(text)), "the first reason stays");
    }
    let [_, mut p] = pair();
    feed(&mut p, &full(DEPTH as u16), || usize::MAX);
    assert_eq!(p.broken(), None);
    let [_, mut p] = pair();
    feed(&mut p, &words((WORDS_MAX / SMALL) as u16), || usize::MAX);
    assert_eq!(p.broken(), None);
}

#[test]
fn messages_still_queued_cannot_be_acknowledged() {
    let [mut p, _] = pair();
    assert!(send(&mut p, 0, 0, 10, 1));
    take(&mut p, HEADER + 9);
    feed(&mut p, &header(0, 2, 0, 1, 0), || usize::MAX);
    assert!(p.broken().is_some_and(|b| b.contains("only 0 sent")));
}

#[test]
fn breaking_forgets_the_callers_memory() {
    let [mut a, mut b] = pair();
    let src = [5u8; 5000];
    a.send_ref(0, src.as_ptr(), 5000, 1);
    assert!(!a.idle(0));
    assert!(send(&mut b, 0, 0, 9000, 1) && send(&mut b, 1, 0, 5, 1));
    let bytes = take_all(&mut b);
    let mut dst = vec![0u8; 9000];
    unsafe { a.land(0, dst.as_mut_ptr(), 9000) };
    feed(&mut a, &bytes[..5000], || usize::MAX);
    let a_range = dst.as_ptr()..unsafe { dst.as_ptr().add(9000) };
    assert!(a_range.contains(&(a.room()[0].0 as *const u8)));
    a.fail("told so");
    assert!(a.idle(0) && !a.has_outgoing());
    assert!(!a_range.contains(&(a.room()[0].0 as *const u8)));
    assert_eq!(a.recv(0, 9000, 1), Recv::Fault);
    assert_eq!(a.fault(0), Some(Fault::Broken("told so".into())));
}

#[test]
fn complete_messages_outlive_the_connection() {
    let [mut a, mut b] = pair();
    assert!(send(&mut a, 0, 0, 10, 1) && send(&mut a, 0, 1, 10, 1));
    let bytes = take_all(&mut a);
    feed(&mut b, &bytes[..bytes.len() - 1], || usize::MAX);
    b.fail("gone");
    check(&mut b, 0, 0, 10, 1);
    b.release(0);
    assert_eq!(b.recv(0, 10, 1), Recv::Fault);
}

#[test]
fn garbage_never_panics_and_stays_bounded() {
    for seed in 0..3000 {
        let mut rng = Rng::new(seed);
        let [mut a, mut b] = pair();
        let mut bytes = Vec::new();
        for n in 0..rng.below(12) {
            let (link, len) = (rng.below(8), rng.size(6000));
            send(&mut a, link, n, len, 1);
        }
        bytes.extend(take_all(&mut a));
        // Half of the time pure noise, else a few flipped, cut or doubled bytes of a good stream.
        if rng.below(2) == 0 {
            bytes = (0..rng.below(3000)).map(|_| rng.next() as u8).collect();
            if rng.below(2) == 0 && bytes.len() > 16 {
                bytes[13..16].fill(0);
                bytes[12] = 1 + bytes[12] % 3;
                bytes[8..12].copy_from_slice(&[7, 0, 0, 0]);
            }
        } else if !bytes.is_empty() {
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(bytes.len());
                match rng.below(3) {
                    0 => bytes[at] ^= 1 << rng.below(8),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, rng.next() as u8),
                }
                if bytes.is_empty() {
                    break;
                }
            }
        }
        send(&mut b, 0, 0, 3, 1);
        let most = 1 + rng.below(6000);
        feed(&mut b, &bytes, || rng.below(most));
        let broken = b.broken().map(String::from);
        let mut ready = 0;
        for link in 0..8 {
            for len in 0..=20_000 {
                // Whatever arrived can be judged and dropped; a wrong length is a fault.
                match b.recv(link, len, 1) {
                    Recv::Ready(_) => {
                        b.release(link);
                        ready += 1;
                    }
                    Recv::Pending => break,
                    Recv::Fault => {
                        assert!(b.fault(link).is_some());
                        break;
                    }
                }
            }
        }
        assert!(ready <= DEPTH * 8);
        b.queue_credits();
        take_all(&mut b);
        assert_eq!(b.broken().map(String::from), broken);
    }
}

#[test]
fn messages_wait_for_their_link() {
    let [mut a, mut b] = pair();
    let ids = [8, 900, u32::MAX - 1, 1 << 20];
    let places = ids.map(|id| a.open(id).unwrap());
    for (&ix, &id) in places.iter().zip(&ids) {
        for n in 0..DEPTH {
            let dst = a.send_slot(ix, 3000).unwrap();
            (0..3000).for_each(|i| unsafe { *dst.add(i) = byte(id as usize, n, i) });
            a.commit(ix, 3000, id);
        }
        assert!(!a.has_room(ix), "credits bound what waits");
    }
    let bytes = take_all(&mut a);
    let (first, last) = bytes.split_at(bytes.len() - 1000);
    feed(&mut b, first, || 777);
    // The last one is opened within its last message.
    for (&id, &ix) in ids.iter().zip(&places) {
        let mine = b.open(id).unwrap();
        if id == 1 << 20 {
            feed(&mut b, last, || 10);
        }
        for n in 0..DEPTH {
            let Recv::Ready(p) = b.recv(mine, 3000, id) else { panic!("{:?}", b.fault(mine)) };
            (0..3000).for_each(|i| assert_eq!(unsafe { *p.add(i) }, byte(id as usize, n, i)));
            b.release(mine);
        }
        b.queue_credits();
        let bytes = take_all(&mut b);
        feed(&mut a, &bytes, || usize::MAX);
        assert!(a.has_room(ix), "credits came back");
    }
    assert_eq!((a.broken(), b.broken()), (None, None));
}

#[test]
fn what_waits_for_links_is_bounded() {
    let frames = |n: usize, len: usize, start: usize| -> Vec<u8> {
        let body = vec![0; len];
        (0..n)
            .flat_map(|i| {
                [&header(100 + (start + i) as u32, 1, len as u32, 0, (start + i) as u16)[..], &body].concat()
            })
            .collect()
    };
    let [_, mut p] = pair();
    feed(&mut p, &frames(EARLY_LINKS, 0, 0), || usize::MAX);
    assert_eq!(p.broken(), None);
    // Those that were opened, and those that are over, do not count any more.
    p.open(100).unwrap();
    p.retire(101..103).unwrap();
    feed(&mut p, &frames(3, 0, EARLY_LINKS), || usize::MAX);
    assert_eq!(p.broken(), None);
    feed(&mut p, &frames(1, 0, EARLY_LINKS + 3), || usize::MAX);
    assert!(p.broken().is_some_and(|t| t.contains("1024 links")), "{:?}", p.broken());

    let (len, most) = (1 << 30, EARLY_BYTES);
    let mut p = Proto::new(len);
    feed(&mut p, &header(5, 1, most as u32, 0, 0), || usize::MAX);
    assert_eq!(p.broken(), None);
    feed(&mut p, &header(6, 1, 1, 0, 1), || usize::MAX);
    assert_eq!(p.broken(), None, "still inside the first message");
    p.open(5).unwrap();
    let mut p = Proto::new(len);
    feed(&mut p, &header(5, 1, most as u32 + 1, 0, 0), || usize::MAX);
    assert!(p.broken().is_some_and(|t| t.contains("bytes for links that are not open")), "{:?}", p.broken());
}

#[test]
fn closed_links_swallow_and_never_come_back() {
    for cut in [0, 5, HEADER, HEADER + 1, HEADER + 5000, HEADER + 9000, 2 * (HEADER + 9000)] {
        let [mut a, mut b] = pair();
        for n in 0..3 {
            assert!(send(&mut a, 1, n, 9000, 1));
        }
        assert!(send(&mut a, 2, 0, 5000, 1));
        let mut dst = vec![0u8; 9000];
        unsafe { b.land(1, dst.as_mut_ptr(), 9000) };
        // Of the closing side's own messages one leaves in part, one not at all.
        let src = vec![77u8; 9000];
        b.send_ref(1, src.as_ptr(), 9000, 3);
        assert!(send(&mut b, 1, 1, 50, 3));
        let mut back = take(&mut b, cut);
        let bytes = take_all(&mut a);
        feed(&mut b, &bytes[..cut], || usize::MAX);
        b.close(1..2);
        drop(src);
        dst.fill(9);
        feed(&mut b, &bytes[cut..], || 4000);
        assert!(dst.iter().all(|&x| x == 9), "the caller's memory is not touched any more");
        check(&mut b, 2, 0, 5000, 1);
        assert!(b.open(1).unwrap_err().contains("closed before"));
        // More for it, and credits, are read and dropped.
        assert!(send(&mut a, 1, 3, 20_000, 1) && send(&mut a, 2, 1, 10, 1));
        back.extend(take_all(&mut b));
        feed(&mut a, &back, || 1000);
        match a.recv(1, 9000, 3) {
            Recv::Ready(p) => (0..9000).for_each(|i| assert_eq!(unsafe { *p.add(i) }, 77)),
            other => panic!("{other:?}"),
        }
        a.release(1);
        check(&mut a, 1, 1, 50, 3);
        a.release(1);
        a.queue_credits();
        let bytes = take_all(&mut a);
        feed(&mut b, &bytes, || 1000);
        b.release(2);
        check(&mut b, 2, 1, 10, 1);
        // Its place is somebody else's now.
        let new = b.open(50).unwrap();
        assert_eq!((new, b.recv(new, 1, 1), b.idle(new)), (1, Recv::Pending, true));
        assert_eq!((a.broken(), b.broken()), (None, None));
    }
}

#[test]
fn thousands_of_links_over_time() {
    let [mut a, mut b] = pair();
    let mut places = Vec::new();
    for id in 8..5000u32 {
        let (x, y) = (a.open(id).unwrap(), b.open(id).unwrap());
        places.push(x.max(y));
        let p = a.send_slot(x, 4).unwrap();
        unsafe { p.cast::<u32>().write_unaligned(id) };
        a.commit(x, 4, id);
        a.close(id..id + 1);
        let bytes = take_all(&mut a);
        feed(&mut b, &bytes, || usize::MAX);
        assert!(
            matches!(b.recv(y, 4, id), Recv::Ready(p) if unsafe { p.cast::<u32>().read_unaligned() } == id)
        );
        b.close(id..id + 1);
    }
    assert_eq!(places.into_iter().max(), Some(8), "places are used again");
    assert!(a.retire(3..5).unwrap_err().contains("link 3 is still open"));
    assert!(a.has_room(3));
    a.retire(5000..6000).unwrap();
    assert!(a.open(5500).is_err() && a.open(6000).is_ok());
}

#[test]
fn abandoning_copies_what_is_under_way() {
    for cut in [0, 1, HEADER, HEADER + 1, HEADER + 8999, HEADER + 9000, HEADER + 12_000] {
        let [mut a, mut b] = pair();
        let mut src = vec![5u8; 9000];
        a.send_ref(1, src.as_ptr(), 9000, 1);
        a.send_ref(1, src.as_ptr(), 9000, 1);
        a.send_ref(2, src.as_ptr(), 9000, 1);
        let mut dst = [vec![0u8; 9000], vec![0u8; 9000]];
        unsafe { b.land(1, dst[0].as_mut_ptr(), 9000) };
        unsafe { b.land(2, dst[1].as_mut_ptr(), 9000) };
        let mut bytes = take(&mut a, cut);
        a.abandon(1);
        assert!(!a.refers(1) && a.refers(2), "another link keeps its references");
        a.abandon(2);
        src.fill(66);
        feed(&mut b, &bytes, || usize::MAX);
        b.abandon(1);
        dst[0].fill(66);
        bytes = take_all(&mut a);
        feed(&mut b, &bytes, || 2000);
        for (link, n) in [(1, 0), (1, 1), (2, 0)] {
            let Recv::Ready(p) = b.recv(link, 9000, 1) else { panic!("{:?}", b.fault(link)) };
            assert!((0..9000).all(|i| unsafe { *p.add(i) } == 5), "message {n} of link {link}");
            assert_eq!(p == dst[1].as_mut_ptr(), link == 2);
            b.release(link);
        }
        assert!(dst[0].iter().all(|&x| x == 66));
        b.queue_credits();
        let bytes = take_all(&mut b);
        feed(&mut a, &bytes, || usize::MAX);
        assert!(a.has_room(1) && send(&mut a, 1, 2, 10, 1));
        assert_eq!((a.broken(), b.broken()), (None, None));
    }
}

#[test]
fn words_keep_their_order_among_themselves_and_with_messages() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let [mut a, mut b] = pair();
        let (mut said, mut heard) = (Vec::new(), Vec::new());
        // The link is full: words go all the same.
        for n in 0..DEPTH {
            assert!(send(&mut a, 0, n, 3000, 1));
        }
        for _ in 0..rng.below(30) {
            let w: Vec<u8> = (0..rng.size(9000)).map(|_| rng.next() as u8).collect();
            a.tell(&w);
            said.extend(w);
        }
        while a.has_outgoing() {
            let limit = 1 + rng.below(9000);
            let bytes = take(&mut a, limit);
            feed(&mut b, &bytes, || 1 + limit / 3);
            let before = heard.len();
            if rng.below(2) == 0 {
                let n = b.hear(&mut heard);
                assert_eq!(heard.len() - before, n);
            }
            if !heard.is_empty() {
                // Sent before the words, so here before them.
                check(&mut b, 0, 0, 3000, 1);
            }
        }
        b.hear(&mut heard);
        assert_eq!(heard, said);
        assert_eq!(b.hear(&mut heard), 0);
        assert_eq!((a.broken(), b.broken()), (None, None));
    }
}

#[test]
fn words_that_nobody_takes_break_the_connection() {
    let [mut a, mut b] = pair();
    for _ in 0..WORDS_MAX / (HEADER + 4) {
        a.tell(b"word");
    }
    assert_eq!(a.broken(), None);
    let bytes = take_all(&mut a);
    feed(&mut b, &bytes, || usize::MAX);
    // They have left: there is room for as many.
    a.tell(&vec![0; WORDS_MAX / 2]);
    assert_eq!((a.broken(), b.broken()), (None, None));
    a.tell(&vec![0; WORDS_MAX / 2]);
    assert!(a.broken().is_some_and(|t| t.contains("takes no control words")), "{:?}", a.broken());
    a.tell(b"more");
    assert!(!a.has_outgoing());
    let mut heard = Vec::new();
    b.fail("over");
    assert_eq!(b.hear(&mut heard), WORDS_MAX / (HEADER + 4) * 4, "what came can be heard");
}

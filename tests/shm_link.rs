//! Pairs of shared-memory links in one process: all kinds of messages in all directions.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use graccl::memory::{Arena, Block, PeerArena, arena};
use graccl::transport::shm::{Doorbell, LINK_BYTES, ShmLink};
use graccl::transport::{Fault, Link, Recv};

static AWAKE: Doorbell = Doorbell::new();

fn pair() -> (ShmLink, ShmLink, Block) {
    let a = arena().unwrap();
    let block = a.alloc(LINK_BYTES).unwrap();
    let peer = PeerArena::map(a.id(), a.size(), None).unwrap();
    // SAFETY: a zeroed block of its own; the arena lives as long as the process.
    let end =
        |lower| unsafe { ShmLink::new(a.base().add(block.offset), lower, a, peer.clone(), &AWAKE, false) };
    (end(true), end(false), block)
}

/// splitmix64
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

const SIZES: [usize; 10] = [0, 1, 8, 55, 504, 505, 4096, 5000, 70_000, 256 << 10];

/// Message `k` of a direction: its length, decided by the seed.
fn len(seed: u64, k: u32, sizes: &[usize]) -> usize {
    sizes[Random(seed ^ u64::from(k)).below(sizes.len())]
}

/// Writes what message `k` says. Every byte of a line depends on the message.
unsafe fn fill(p: *mut u8, len: usize, k: u32) {
    // SAFETY: the caller's memory.
    let b = unsafe { std::slice::from_raw_parts_mut(p, len) };
    for (i, b) in b.iter_mut().enumerate() {
        *b = (i as u32 ^ i as u32 >> 8).wrapping_add(k) as u8;
    }
}

unsafe fn check(p: *const u8, len: usize, k: u32, add: u8) {
    // SAFETY: the caller's memory.
    let b = unsafe { std::slice::from_raw_parts(p, len) };
    let wrong = b
        .iter()
        .enumerate()
        .position(|(i, &b)| b != ((i as u32 ^ i as u32 >> 8).wrapping_add(k) as u8).wrapping_add(add));
    assert_eq!(wrong, None, "message {k} of {len} bytes");
}

const FP: u32 = 0x1234_5678;

/// One end, and what it has sent and received.
struct End {
    link: ShmLink,
    lower: bool,
    sent: u32,
    received: u32,
    /// Arena memory that messages by reference lie in, one piece after the other.
    memory: *mut u8,
    deadline: Instant,
    random: Random,
}

// SAFETY: the memory is the end's own.
unsafe impl Send for End {}

const PIECES: u32 = 6;

impl End {
    fn new(link: ShmLink, lower: bool, a: &Arena, seconds: u64) -> End {
        let m = a.alloc(PIECES as usize * (256 << 10)).unwrap();
        // SAFETY: inside the arena.
        let memory = unsafe { a.base().add(m.offset) };
        let deadline = Instant::now() + Duration::from_secs(seconds);
        End { link, lower, sent: 0, received: 0, memory, deadline, random: Random(u64::from(lower)) }
    }

    fn wait(&self, what: &str) {
        assert!(
            Instant::now() < self.deadline,
            "{} end hangs: {what}, {} sent, {} received",
            if self.lower { "lower" } else { "upper" },
            self.sent,
            self.received
        );
        std::thread::yield_now();
    }

    /// Tries to send a message of `len` bytes, by reference if it likes to.
    fn try_send(&mut self, len: usize, by_ref: bool) -> bool {
        // SAFETY: pieces are inside our memory, and used again only after a wait for `idle`.
        unsafe {
            let piece = self.memory.add((self.sent % PIECES) as usize * (256 << 10));
            if by_ref && self.link.can_ref(piece, len) {
                if !self.link.room() {
                    return false;
                }
                fill(piece, len, self.sent);
                self.link.send_ref(piece, len, FP);
            } else {
                let Some(p) = self.link.send_slot(len) else { return false };
                assert_eq!(self.link.send_slot(len), Some(p), "the same room");
                fill(p, len, self.sent);
                self.link.commit(len, FP);
            }
        }
        self.sent += 1;
        true
    }

    fn try_recv(&mut self, len: usize) -> Option<*mut u8> {
        match self.link.recv(len, FP) {
            Recv::Pending => None,
            Recv::Ready(p) => {
                // SAFETY: a message of this length.
                unsafe { check(p, len, self.received, 0) };
                Some(p)
            }
            Recv::Fault => panic!("{:?}", self.link.fault()),
        }
    }

    fn release(&mut self) {
        self.link.release();
        self.received += 1;
    }

    /// Sends and receives as many messages each, in any order.
    fn traffic(&mut self, seeds: (u64, u64), count: (u32, u32), sizes: (&[usize], &[usize]), by_ref: bool) {
        let (mut sends, mut recvs) = count;
        let pace = 1 + self.random.below(8);
        while sends + recvs > 0 {
            let mut moved = false;
            if sends > 0 && self.random.below(8) < pace {
                let by_ref = by_ref && self.random.below(2) == 0;
                if self.try_send(len(seeds.0, self.sent, sizes.0), by_ref) {
                    sends -= 1;
                    moved = true;
                }
            }
            if recvs > 0 && self.try_recv(len(seeds.1, self.received, sizes.1)).is_some() {
                self.release();
                recvs -= 1;
                moved = true;
            }
            if !moved {
                self.wait("traffic");
            }
        }
    }

    /// The lower end asks, the upper one answers in place.
    fn replies(&mut self, seed: u64, count: u32, sizes: &[usize], by_ref: bool) {
        for _ in 0..count {
            if self.lower {
                let len = len(seed, self.sent, sizes);
                let k = self.sent;
                while !self.try_send(len, by_ref) {
                    self.wait("a request");
                }
                let p = loop {
                    match self.link.recv(len, FP) {
                        Recv::Ready(p) => break p,
                        Recv::Pending => self.wait("a reply"),
                        Recv::Fault => panic!("{:?}", self.link.fault()),
                    }
                };
                // SAFETY: a message of this length.
                unsafe { check(p, len, k, 1) };
                self.release();
            } else {
                let len = len(seed, self.received, sizes);
                let (from, to) = loop {
                    // As the engine does: asks again for both when one of them is missing.
                    if let Some(p) = self.try_recv(len)
                        && let Some(to) = self.link.send_reply_slot(len)
                    {
                        assert_eq!(self.try_recv(len), Some(p));
                        assert_eq!(self.link.send_reply_slot(len), Some(to));
                        assert!(self.link.claim());
                        break (p, to);
                    }
                    self.wait("room for a reply");
                };
                for i in 0..len {
                    // SAFETY: both are of this length.
                    unsafe { to.add(i).write(from.add(i).read().wrapping_add(1)) };
                }
                self.release();
                self.link.commit(len, FP);
                self.sent += 1;
            }
        }
    }

    /// The end of a call.
    fn close(&mut self) {
        self.link.finish();
        while !self.link.idle() {
            self.wait("idle");
        }
    }
}

/// What both ends do, decided by the seed alone.
fn act(end: &mut End, seed: u64, phases: u32) {
    let mut script = Random(seed);
    for _ in 0..phases {
        let large: &[usize] = &SIZES[5..];
        let small: &[usize] = &SIZES[..5];
        let sizes = |r: &mut Random| {
            *[&SIZES[..], large, small, &[0], &[505], &[256 << 10]][..].get(r.below(6)).unwrap()
        };
        let by_ref = script.below(2) == 0;
        let s = script.next();
        match script.below(4) {
            0 => end.replies(s, 1 + script.below(20) as u32, sizes(&mut script), by_ref),
            kind => {
                // No more by reference than there are pieces of memory for.
                let most = if by_ref { PIECES as usize + 1 } else { 40 };
                let count = (script.below(most) as u32, script.below(most) as u32 * u32::from(kind != 1));
                let sizes = (sizes(&mut script), sizes(&mut script));
                if end.lower == (script.below(2) == 0) {
                    end.traffic((s, !s), count, sizes, by_ref);
                } else {
                    end.traffic((!s, s), (count.1, count.0), (sizes.1, sizes.0), by_ref);
                }
            }
        }
        if by_ref || script.below(3) == 0 {
            end.close();
        }
    }
}

fn end_of(a: &Arena, ends: [End; 2], block: Block) {
    for e in &ends {
        assert!(a.free(a.offset_of(e.memory, 1).unwrap()));
    }
    drop(ends);
    assert!(a.free(block.offset));
}

#[test]
fn two_threads_send_all_kinds_of_messages() {
    let a = arena().unwrap();
    let (x, y, _) = pair();
    let (mut x, mut y) = (End::new(x, true, a, 120), End::new(y, false, a, 120));
    let phases = if cfg!(debug_assertions) { 200 } else { 1500 };
    std::thread::scope(|s| {
        s.spawn(|| act(&mut x, 42, phases));
        s.spawn(|| act(&mut y, 42, phases));
    });
    assert_eq!((x.sent, x.received), (y.received, y.sent));
    assert!(x.sent > phases, "{}", x.sent);
}

/// Slots pile up where traffic goes to; they must come back when it turns.
#[test]
fn slots_suffice_when_traffic_turns() {
    let a = arena().unwrap();
    for (length, acks) in (1..30).flat_map(|l| [(l, true), (l, false)]) {
        let (x, y, block) = pair();
        let (mut x, mut y) = (End::new(x, true, a, 20), End::new(y, false, a, 20));
        for turn in 0..6 {
            let (from, to) = if turn % 2 == 0 { (&mut x, &mut y) } else { (&mut y, &mut x) };
            for i in 0..length + turn / 2 {
                assert!(from.try_send(5000, false), "message {i} of turn {turn}, {length} in a turn");
                assert!(to.try_recv(5000).is_some());
                to.release();
                // A small message the other way acknowledges it.
                if acks {
                    assert!(to.try_send(1, false));
                    assert!(from.try_recv(1).is_some());
                    from.release();
                }
            }
        }
        end_of(a, [x, y], block);
    }
}

/// Three messages are always allowed, whatever happened before.
#[test]
fn three_messages_are_always_allowed() {
    let a = arena().unwrap();
    for seed in 0..300 {
        let mut r = Random(seed);
        let (x, y, block) = pair();
        let (mut x, mut y) = (End::new(x, true, a, 20), End::new(y, false, a, 20));
        let (mut to_y, mut to_x) = (vec![], vec![]);
        for _ in 0..r.below(400) {
            let up = r.below(16) < 4 + (seed % 9) as usize;
            let (from, to, flying) =
                if up { (&mut x, &mut y, &mut to_y) } else { (&mut y, &mut x, &mut to_x) };
            let len = *[1, 505, 4096].get(r.below(3)).unwrap();
            if flying.len() < 3 && r.below(2) == 0 {
                assert!(from.try_send(len, false), "seed {seed}: {} unconsumed", flying.len());
                flying.push(len);
            } else if let Some(&len) = flying.first() {
                assert!(to.try_recv(len).is_some());
                to.release();
                flying.remove(0);
            }
        }
        end_of(a, [x, y], block);
    }
}

/// A schedule that is live with two messages may send five before it receives the first answer.
#[test]
fn answers_that_wait_do_not_hold_back_their_acknowledgements() {
    let a = arena().unwrap();
    let (x, y, _) = pair();
    let (mut x, mut y) = (End::new(x, true, a, 20), End::new(y, false, a, 20));
    for i in 0..5 {
        assert!(x.try_send(8, false), "message {i}");
        assert!(y.try_recv(8).is_some());
        y.release();
        assert!(i == 4 || y.try_send(8, false), "answer {i}");
    }
}

#[test]
fn a_message_of_another_call_is_not_taken() {
    let (mut x, mut y, _) = pair();
    for size in [0, 8, 505, 4096, x.capacity()] {
        let p = x.send_slot(size).unwrap();
        // SAFETY: the room of this length.
        unsafe { fill(p, size, 9) };
        x.commit(size, 5);
        assert_eq!(y.recv(size, 6), Recv::Fault);
        assert_eq!(y.fault(), Some(Fault::Fingerprint { got: 5 }));
        // It is still there for the call that it belongs to.
        let Recv::Ready(p) = y.recv(size, 5) else { panic!() };
        // SAFETY: a message of this length.
        unsafe { check(p, size, 9, 0) };
        y.release();
    }
}

#[test]
fn a_message_of_another_length_is_a_fault() {
    for (said, wanted) in [(505, 506), (4096, 505), (4096, 8), (8, 4096)] {
        let (mut x, mut y, _) = pair();
        x.send_slot(said).unwrap();
        x.commit(said, FP);
        assert_eq!(y.recv(wanted, FP), Recv::Fault, "{said} bytes for {wanted}");
        assert!(matches!(y.fault(), Some(Fault::Length { .. })));
    }
}

/// Whoever gives a call up may use its memory again at once: a peer that is reading it must not take what it
/// reads for the message.
#[test]
fn a_reference_that_is_taken_back_is_a_fault_to_its_reader() {
    let a = arena().unwrap();
    let memory = a.alloc(1 << 20).unwrap();
    let p = a.base().wrapping_add(memory.offset);
    for before in [true, false] {
        let (mut x, mut y, _block) = pair();
        // One that was read in time, and two that were not.
        for _ in 0..3 {
            // SAFETY: memory of ours, which stays.
            unsafe { x.send_ref(p, 9000, FP) };
        }
        assert_eq!(y.recv(9000, FP), Recv::Ready(p));
        y.release();
        if !before {
            assert_eq!(y.recv(9000, FP), Recv::Ready(p));
        }
        assert!(x.abandon(false));
        if !before {
            assert!(!y.torn());
            y.release();
            assert!(y.torn() && !y.idle());
        }
        assert_eq!(y.recv(9000, FP), Recv::Fault);
        assert!(matches!(y.fault(), Some(Fault::Broken(why)) if why == "it has given up the call"));
    }
    a.free(memory.offset);
}

/// A reply to a reference is written into the memory of whoever gives the call up: not after that, and what is being
/// written then is waited for.
#[test]
fn nobody_writes_a_reply_where_a_call_was_given_up() {
    let a = arena().unwrap();
    let memory = a.alloc(1 << 20).unwrap();
    let p = a.base().wrapping_add(memory.offset);
    // Its reader stands where the reply is about to be written.
    let asked = |x: &mut ShmLink, y: &mut ShmLink| {
        // SAFETY: memory of ours, which stays.
        unsafe { x.send_ref(p, 9000, FP) };
        assert_eq!(y.recv(9000, FP), Recv::Ready(p));
        assert_eq!(y.send_reply_slot(9000), Some(p));
    };

    let (mut x, mut y, _block) = pair();
    asked(&mut x, &mut y);
    assert!(x.abandon(false));
    assert!(!y.claim() && y.torn());
    assert!(matches!(y.fault(), Some(Fault::Broken(why)) if why == "it has given up the call"));

    // Not over before it is written.
    let (mut x, mut y, _block) = pair();
    asked(&mut x, &mut y);
    assert!(y.claim());
    assert!(!x.abandon(false) && !x.abandon(false));
    y.release();
    assert!(x.abandon(false) && !y.torn());

    // One that has died in the middle, or is waited for no longer.
    let (mut x, mut y, _block) = pair();
    asked(&mut x, &mut y);
    assert!(y.claim());
    assert!(!x.abandon(false) && x.abandon(true) && x.abandon(false));
    y.release();
    assert!(y.torn());

    // One that gives the call up itself, in the middle.
    let (mut x, mut y, _block) = pair();
    asked(&mut x, &mut y);
    assert!(y.claim());
    assert!(!x.abandon(false) && y.abandon(false) && x.abandon(false));

    // Another reply of the same op could not be written.
    let (mut x, mut y, _block) = pair();
    asked(&mut x, &mut y);
    assert!(y.claim());
    y.disclaim();
    assert!(!y.torn());
    assert!(x.abandon(false));
    assert!(!y.claim());
    a.free(memory.offset);
}

/// Bytes outside its arena that a peer refers to are refused.
#[test]
fn references_outside_the_arena_are_refused() {
    let a = arena().unwrap();
    let (_x, mut y, block) = pair();
    for (code, offset) in
        [(0xfe, a.size()), (0xfd, a.size()), (0xfe, usize::MAX), (0xfd, usize::MAX - 100), (24, 0)]
    {
        // SAFETY: the lower end's first header line, written as a bad peer would.
        unsafe {
            let line = a.base().add(block.offset);
            (line.add(8) as *mut [u64; 2]).write([4096, offset as u64]);
            let word = u64::from(FP) << 32 | (code as u64) << 24 | 1;
            (*(line as *const std::sync::atomic::AtomicU64)).store(word, Ordering::Release);
        }
        assert_eq!(y.recv(4096, FP), Recv::Fault, "{code:x} {offset:x}");
        assert!(matches!(y.fault(), Some(Fault::Broken(_))));
    }
}

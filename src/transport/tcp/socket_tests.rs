//! Whole connections over loopback sockets.

mod ends;

use super::proto_tests::{Rng, byte};
use super::{CLOSED, DEPTH, LOST, TcpConn, TcpLink, TcpOptions};
use crate::Code;
use crate::transport::{Fault, Link, Recv};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const CAPACITY: usize = (1 << 20) - (1 << 10);

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (a, listener.accept().unwrap().0)
}

/// Makes partial writes likely.
fn shrink(s: &TcpStream, bytes: libc::c_int) {
    let p = (&raw const bytes).cast();
    assert_eq!(unsafe { libc::setsockopt(s.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, p, 4) }, 0);
}

fn conn(s: TcpStream) -> TcpConn {
    TcpConn::new(OwnedFd::from(s), TcpOptions { capacity: CAPACITY, ..TcpOptions::default() }).unwrap()
}

fn sealed(s: TcpStream, secret: u8, initiator: bool) -> TcpConn {
    let options = TcpOptions { capacity: CAPACITY, secret: Some([secret; 32]), initiator };
    TcpConn::new(OwnedFd::from(s), options).unwrap()
}

fn sealed_pair() -> (TcpConn, TcpConn) {
    let (a, b) = streams();
    (sealed(a, 1, true), sealed(b, 1, false))
}

fn pair() -> (TcpConn, TcpConn) {
    let (a, b) = streams();
    (conn(a), conn(b))
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn late(deadline: Instant) {
    assert!(Instant::now() < deadline, "hangs");
}

fn fill(p: *mut u8, stream: usize, number: usize, len: usize) {
    (0..len).for_each(|i| unsafe { *p.add(i) = byte(stream, number, i) });
}

fn assert_message(p: *const u8, stream: usize, number: usize, len: usize) {
    (0..len).for_each(|i| assert_eq!(unsafe { *p.add(i) }, byte(stream, number, i), "byte {i}"));
}

fn put(l: &mut TcpLink, stream: usize, number: usize, len: usize) -> bool {
    let Some(p) = l.send_slot(len) else { return false };
    assert_eq!(l.send_slot(len), Some(p));
    fill(p, stream, number, len);
    l.commit(len, 1);
    true
}

/// Pumps until the link's next message or its fault is there.
fn wait(c: &TcpConn, l: &mut TcpLink, len: usize) -> Recv {
    let end = deadline();
    loop {
        match l.recv(len, 1) {
            Recv::Pending => c.pump(),
            other => return other,
        };
        late(end);
    }
}

/// One end of the random traffic: what it sends on link `i` is stream `2 * i + side`, and its sizes
/// come from a generator that the other end runs too.
struct End {
    conn: TcpConn,
    links: Vec<OneLink>,
    side: usize,
    rng: Rng,
    count: usize,
}

struct OneLink {
    link: TcpLink,
    sizes: [Rng; 2],
    next: [usize; 2],
    sent: usize,
    got: usize,
    /// Memory of messages sent by reference; kept for the whole run, changed by nobody.
    refs: Vec<Vec<u8>>,
    landing: Option<Vec<u8>>,
    held: Option<*mut u8>,
}

impl End {
    fn new(conn: TcpConn, side: usize, nlinks: usize, count: usize, seed: u64) -> End {
        let most = [200, 9000, 150_000, CAPACITY][seed as usize % 4];
        let links = (0..nlinks)
            .map(|i| {
                let mut sizes = [0, 1].map(|d| Rng::new(seed * 1000 + (2 * i + (side ^ d)) as u64));
                let next = [sizes[0].size(most), sizes[1].size(most)];
                OneLink {
                    link: conn.link(i as u32).unwrap(),
                    sizes,
                    next,
                    sent: 0,
                    got: 0,
                    refs: Vec::new(),
                    landing: None,
                    held: None,
                }
            })
            .collect();
        End { conn, links, side, rng: Rng::new(seed * 77 + side as u64), count }
    }

    fn done(&mut self) -> bool {
        self.links.iter().all(|l| l.sent == self.count && l.got == self.count)
            && !self.conn.wants_write()
            && self.links.iter_mut().all(|l| l.link.idle())
    }

    fn step(&mut self, seed: u64) {
        let most = [200, 9000, 150_000, CAPACITY][seed as usize % 4];
        let i = self.rng.below(self.links.len());
        let l = &mut self.links[i];
        match self.rng.below(5) {
            0 if l.sent < self.count => {
                let (len, stream) = (l.next[0], 2 * i + self.side);
                let ok = if self.rng.below(2) == 0 {
                    let mut data = vec![0; len];
                    fill(data.as_mut_ptr(), stream, l.sent, len);
                    l.refs.push(data);
                    let p = l.refs.last().unwrap().as_ptr();
                    // SAFETY: kept and unchanged until the end of the test.
                    l.link.room() && {
                        unsafe { l.link.send_ref(p, len, 1) };
                        true
                    }
                } else {
                    put(&mut l.link, stream, l.sent, len)
                };
                if ok {
                    l.sent += 1;
                    l.next[0] = l.sizes[0].size(most);
                }
            }
            1 | 2 if l.got < self.count => {
                let (len, stream) = (l.next[1], 2 * i + (self.side ^ 1));
                match l.link.recv(len, 1) {
                    Recv::Ready(p) => {
                        if l.held.is_none() {
                            assert_message(p, stream, l.got, len);
                            l.held = Some(p);
                        } else {
                            // Consumed only some time after it was seen, and unchanged till then.
                            assert_eq!(l.held.take(), Some(p));
                            assert_message(p, stream, l.got, len);
                            l.link.release();
                            l.landing = None;
                            l.got += 1;
                            l.next[1] = l.sizes[1].size(most);
                        }
                    }
                    Recv::Pending => {
                        if l.landing.is_none() && self.rng.below(2) == 0 {
                            let mut room = vec![0; len];
                            // SAFETY: kept until the message was released.
                            unsafe { l.link.land(room.as_mut_ptr(), len) };
                            l.landing = Some(room);
                        }
                    }
                    Recv::Fault => panic!("{:?}", l.link.fault()),
                }
            }
            _ => {
                self.conn.pump();
                assert_eq!(self.conn.broken(), None);
            }
        }
    }
}

fn random_streams(seed: u64) -> (TcpStream, TcpStream) {
    let (a, b) = streams();
    if !seed.is_multiple_of(3) {
        for s in [&a, &b] {
            // With the largest messages less tiny, or the kernel's timers make it last minutes.
            let least = if seed % 4 == 3 { 60_000 } else { 1 };
            shrink(s, least + (seed as libc::c_int % 5) * 3000);
        }
    }
    (a, b)
}

#[test]
fn random_traffic_in_alternation() {
    for seed in 0..16 {
        let (a, b) = random_streams(seed);
        let (nlinks, count) = (1 + seed as usize % 5, if seed % 4 == 3 { 12 } else { 60 });
        let mut ends = [End::new(conn(a), 0, nlinks, count, seed), End::new(conn(b), 1, nlinks, count, seed)];
        let (mut rng, end) = (Rng::new(seed + 99), deadline());
        while !(ends[0].done() && ends[1].done()) {
            let side = rng.below(2);
            for _ in 0..1 + rng.below(20) {
                ends[side].step(seed);
                for i in 0..nlinks {
                    let [x, y] = [&ends[0].links[i], &ends[1].links[i]];
                    assert!(x.sent <= y.got + DEPTH && y.sent <= x.got + DEPTH, "flow control");
                }
            }
            late(end);
        }
    }
}

#[test]
fn random_traffic_between_threads() {
    for seed in 20..32 {
        let (a, b) = random_streams(seed);
        let count = [300, 200, 40, 12][seed as usize % 4];
        let run = |s: TcpStream, side: usize| {
            let c = if seed < 28 { conn(s) } else { sealed(s, 1, side == 0) };
            // Handles are made here and used there.
            move || {
                let mut e = End::new(c, side, 4, count, seed);
                let end = deadline();
                while !e.done() {
                    e.step(seed);
                    late(end);
                }
                e.conn
            }
        };
        let t = std::thread::spawn(run(a, 0));
        let kept = run(b, 1)();
        drop((t.join().unwrap(), kept));
    }
}

#[test]
fn one_way_stream_keeps_three_in_flight() {
    let (a, b) = pair();
    let (mut s, mut r) = (a.link(0).unwrap(), b.link(0).unwrap());
    let (mut sent, mut got, end) = (0, 0, deadline());
    while got < 1000 {
        while sent < 1000 && put(&mut s, 0, sent, sent) {
            sent += 1;
        }
        a.pump();
        // Nothing is under way now: what the sender may keep in flight is what it has sent.
        let ahead = sent - got;
        assert!((DEPTH - 1..=DEPTH).contains(&ahead) || sent == 1000, "{ahead} in flight");
        if let Recv::Ready(p) = wait(&b, &mut r, got) {
            assert_message(p, 0, got, got);
            r.release();
            got += 1;
        }
        b.pump();
        a.pump();
        late(end);
    }
}

#[test]
fn landing_goes_straight_to_its_place() {
    let (a, b) = pair();
    let (mut s, mut r) = (a.link(2).unwrap(), b.link(2).unwrap());
    for (n, len) in [0, 1, 4096, 4097, 100_000, CAPACITY].into_iter().enumerate() {
        let mut dst = vec![0u8; len];
        assert_eq!(r.recv(len, 1), Recv::Pending);
        unsafe { r.land(dst.as_mut_ptr(), len) };
        assert!(put(&mut s, 0, n, len));
        let end = deadline();
        while r.recv(len, 1) == Recv::Pending {
            a.pump();
            b.pump();
            late(end);
        }
        assert_eq!(r.recv(len, 1), Recv::Ready(dst.as_mut_ptr()));
        assert_message(dst.as_ptr(), 0, n, len);
        r.release();
        b.pump();
        a.pump();
    }
}

#[test]
fn a_reference_is_idle_once_the_kernel_has_it() {
    let (a, b) = streams();
    shrink(&a, 5000);
    let (a, b) = (conn(a), conn(b));
    let (mut s, mut r) = (a.link(0).unwrap(), b.link(0).unwrap());
    let mut data = vec![0u8; CAPACITY];
    fill(data.as_mut_ptr(), 0, 0, CAPACITY);
    assert!(s.idle() && !a.wants_write());
    unsafe { s.send_ref(data.as_ptr(), CAPACITY, 1) };
    assert!(!s.idle() && a.wants_write(), "1 MB does not fit into these socket buffers");
    assert!(a.link(1).unwrap().idle(), "another link");
    let end = deadline();
    while !s.idle() {
        a.pump();
        b.pump();
        late(end);
    }
    assert!(!a.wants_write());
    data.fill(0);
    assert!(matches!(wait(&b, &mut r, CAPACITY), Recv::Ready(p) if {
        assert_message(p, 0, 0, CAPACITY);
        true
    }));
}

/// Whoever has seen its links idle may go and do something else: the peer gets what was sent.
#[test]
fn an_idle_link_needs_nobody_any_more() {
    let (a, b) = streams();
    shrink(&a, 5000);
    for (a, b) in [(conn(a), conn(b)), sealed_pair()] {
        let (mut s, mut r) = (a.link(0).unwrap(), b.link(0).unwrap());
        for n in 0..DEPTH {
            assert!(put(&mut s, 0, n, CAPACITY / 2));
        }
        assert!(!s.idle(), "buffers too small, or keys that are not agreed on");
        let end = deadline();
        while !s.idle() {
            a.pump();
            b.pump();
            late(end);
        }
        for n in 0..DEPTH {
            assert!(matches!(wait(&b, &mut r, CAPACITY / 2), Recv::Ready(p) if {
                assert_message(p, 0, n, CAPACITY / 2);
                true
            }));
            r.release();
        }
    }
}

/// Messages, words, links that come and go, from several threads on each side of one connection.
#[test]
fn many_threads_share_one_connection() {
    share(pair());
    share(sealed_pair());
}

fn share((a, b): (TcpConn, TcpConn)) {
    let run = |c: &TcpConn, side: usize, thread: usize| {
        let (c, end) = (c.clone(), deadline());
        move || {
            for round in 0..60 {
                let id = (round * 4 + thread) as u32;
                let mut l = c.link(id).unwrap();
                let len = [4, 5000, 60_000][(round + thread) % 3];
                let (mut sent, mut got) = (0, 0);
                let src: Vec<u8> = (0..len).map(|i| byte(side, round, i)).collect();
                while sent < 6 || got < 6 || !l.idle() {
                    if sent < 6 && l.room() {
                        if sent % 2 == 0 {
                            // SAFETY: kept until `idle`.
                            unsafe { l.send_ref(src.as_ptr(), len, 1) };
                            sent += 1;
                        } else if put(&mut l, side, round, len) {
                            sent += 1;
                        }
                    }
                    match l.recv(len, 1) {
                        Recv::Ready(p) if got < 6 => {
                            assert_message(p, 1 - side, round, len);
                            l.release();
                            got += 1;
                        }
                        Recv::Fault => panic!("{:?}", l.fault()),
                        _ => _ = c.pump(),
                    }
                    late(end);
                }
                c.tell(&[thread as u8; 5]);
            }
        }
    };
    let ends = [a.clone(), b.clone()];
    std::thread::scope(|s| {
        for (side, c) in ends.iter().enumerate() {
            for t in 0..3 {
                s.spawn(run(c, side, t));
            }
        }
    });
    let (end, mut words) = (deadline(), [Vec::new(), Vec::new()]);
    while words.iter().any(|w| w.len() < 3 * 60 * 5) {
        for (c, w) in ends.iter().zip(&mut words) {
            c.pump();
            c.hear(w);
        }
        late(end);
    }
    for w in words {
        assert!(w.chunks(5).all(|c| c.iter().all(|&x| x == c[0])), "words of 5 stay together");
        assert!((0..3).all(|t| w.iter().filter(|&&x| x == t).count() == 60 * 5));
    }
}

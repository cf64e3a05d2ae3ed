//! Whole connections over loopback sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::proto_tests::{Rng, byte};
use super::{CLOSED, DEPTH, LOST, TcpConn, TcpLink, TcpOptions};
use crate::Code;
use crate::transport::{Fault, Link, Recv};

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

#[test]
fn close_ends_all_use_of_the_callers_memory() {
    let (a, b) = streams();
    shrink(&a, 5000);
    let (a, b) = (conn(a), conn(b));
    let (mut s, mut r) = (a.link(0).unwrap(), b.link(0).unwrap());
    let data = vec![3u8; CAPACITY];
    let mut dst = vec![0u8; CAPACITY];
    let p = dst.as_mut_ptr();
    unsafe { r.land(p, CAPACITY) };
    // The link writes behind the compiler's back: look with a pointer.
    let landed = || (0..CAPACITY).filter(|&i| unsafe { p.add(i).read_volatile() } != 0).count();
    unsafe { s.send_ref(data.as_ptr(), CAPACITY, 1) };
    let end = deadline();
    while landed() == 0 {
        a.pump();
        b.pump();
        late(end);
    }
    b.close("aborted");
    let before = landed();
    assert!(before < CAPACITY);
    assert!(!b.pump());
    assert_eq!(landed(), before);
    assert_eq!(r.recv(CAPACITY, 1), Recv::Fault);
    assert_eq!(r.fault(), Some(Fault::Broken("aborted".into())));
    while a.broken().is_none() {
        a.pump();
        late(end);
    }
    assert!(s.idle() && !a.wants_write());
    assert_eq!(s.fault(), Some(Fault::Broken(CLOSED.into())));
    assert_eq!(s.send_slot(1), None);
}

#[test]
fn end_of_stream_anywhere() {
    let frame: Vec<u8> = {
        let mut f = vec![1, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        f.extend((0..100).map(|i| byte(0, 0, i)));
        f
    };
    for cut in [0, 1, 15, 16, 17, 115, 116] {
        let (a, mut b) = streams();
        let a = conn(a);
        let mut l = a.link(0).unwrap();
        b.write_all(&frame[..cut]).unwrap();
        drop(b);
        let end = deadline();
        while a.broken().is_none() {
            a.pump();
            late(end);
        }
        assert!(!a.pump());
        assert_eq!(a.broken().as_deref(), Some(CLOSED));
        if cut == 116 {
            assert!(matches!(l.recv(100, 1), Recv::Ready(p) if {
                assert_message(p, 0, 0, 100);
                true
            }));
            l.release();
        }
        assert_eq!(l.recv(100, 1), Recv::Fault);
        assert_eq!(l.fault(), Some(Fault::Broken(CLOSED.into())));
    }
}

#[test]
fn last_messages_of_a_peer_that_left_are_not_lost() {
    let (a, b) = pair();
    let (mut s, mut r) = (a.link(0).unwrap(), b.link(0).unwrap());
    for n in 0..DEPTH {
        assert!(put(&mut s, 0, n, 5000));
    }
    drop((a, s));
    // Our own sends find nobody, the first time or later; what had arrived must still be there.
    for n in 0..DEPTH {
        put(&mut r, 0, n, 5000);
        std::thread::sleep(Duration::from_millis(2));
    }
    for n in 0..DEPTH {
        match wait(&b, &mut r, 5000) {
            Recv::Ready(p) => assert_message(p, 0, n, 5000),
            other => panic!("message {n}: {other:?} {:?}", r.fault()),
        }
        r.release();
    }
    assert_eq!(wait(&b, &mut r, 5000), Recv::Fault);
    assert_eq!(r.fault(), Some(Fault::Broken(CLOSED.into())));
}

#[test]
fn garbage_on_the_socket_breaks_it_on_both_sides() {
    let (a, mut b) = streams();
    let a = conn(a);
    let l = a.link(0).unwrap();
    b.write_all(b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n").unwrap();
    let end = deadline();
    while a.broken().is_none() {
        a.pump();
        late(end);
    }
    assert!(matches!(l.fault(), Some(Fault::Broken(t)) if t.contains("unknown kind")), "{:?}", l.fault());
    b.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    match b.read(&mut [0; 8]) {
        Ok(n) => assert_eq!(n, 0),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn bad_options_and_sockets_are_refused() {
    let open = |fd: OwnedFd, capacity| {
        TcpConn::new(fd, TcpOptions { capacity, ..TcpOptions::default() }).map(|_| ()).map_err(|e| e.code)
    };
    for capacity in [0, usize::MAX] {
        assert_eq!(open(streams().0.into(), capacity), Err(Code::InvalidArgument));
    }
    assert_eq!(open(UnixStream::pair().unwrap().0.into(), 1), Err(Code::SystemError));
    let c = conn(streams().0);
    let code = |r: crate::Result<TcpLink>| r.map(|_| ()).map_err(|e| e.code);
    let link = c.link(2).unwrap();
    assert_eq!(code(c.link(2)), Err(Code::InternalError), "open");
    assert_eq!(c.retire(0..9).map_err(|e| e.code), Err(Code::InternalError));
    drop(link);
    assert_eq!(code(c.link(2)), Err(Code::InternalError), "closed");
    assert_eq!(code(c.link(u32::MAX)), Err(Code::InternalError));
    c.retire(0..9).unwrap();
    assert_eq!(code(c.link(8)), Err(Code::InternalError), "retired");
    assert!(c.link(9).is_ok());
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

#[test]
fn sides_that_encrypt_differently_break_and_say_so() {
    type End = fn(TcpStream) -> TcpConn;
    let (plain, first, second, other): (End, End, End, End) =
        (conn, |s| sealed(s, 1, true), |s| sealed(s, 1, false), |s| sealed(s, 2, false));
    for (x, y, text) in [
        (first, plain, "set GRACCL_ENCRYPT alike on all ranks"),
        (second, plain, "set GRACCL_ENCRYPT alike on all ranks"),
        (first, other, "secret"),
    ] {
        for talk in [false, true] {
            let (a, b) = streams();
            let (a, b) = (x(a), y(b));
            let (mut l, mut m) = (a.link(0).unwrap(), b.link(0).unwrap());
            if talk {
                assert!(put(&mut l, 0, 0, 9000) && put(&mut m, 0, 0, 9000));
                assert!(a.unsent() && !a.wants_write(), "waits for the peer");
            }
            let end = deadline();
            while a.broken().is_none() || b.broken().is_none() {
                a.pump();
                b.pump();
                late(end);
            }
            for c in [a, b] {
                assert!(c.broken().is_some_and(|t| t.contains(text)), "{:?}", c.broken());
            }
        }
    }
}

#[test]
fn the_end_of_an_encrypted_connection_is_orderly() {
    let (a, b) = sealed_pair();
    let mut s = a.link(3).unwrap();
    assert!(put(&mut s, 0, 0, 50_000));
    a.tell(b"bye");
    let end = deadline();
    while a.unsent() {
        a.pump();
        b.pump();
        late(end);
    }
    drop((a, s));
    let mut r = b.link(3).unwrap();
    assert!(matches!(wait(&b, &mut r, 50_000), Recv::Ready(p) if {
        assert_message(p, 0, 0, 50_000);
        true
    }));
    while b.broken().is_none() {
        b.pump();
        late(end);
    }
    assert_eq!(b.broken().as_deref(), Some(CLOSED));
    let mut words = Vec::new();
    assert_eq!((b.hear(&mut words), &words[..]), (3, &b"bye"[..]));
}

/// The peer's process holds the socket and is stopped.
struct Stopped(std::process::Child);

impl Stopped {
    fn with(s: TcpStream) -> Stopped {
        let p = std::process::Command::new("sleep").arg("60").stdin(OwnedFd::from(s)).spawn().unwrap();
        assert_eq!(unsafe { libc::kill(p.id() as i32, libc::SIGSTOP) }, 0);
        Stopped(p)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_process_is_not_a_dead_host() {
    let (a, b) = streams();
    let again = b.try_clone().unwrap();
    let _stopped = Stopped::with(b);
    let a = conn(a);
    // More than the kernels take, so that the peer's window closes.
    let mut links: Vec<TcpLink> = (0..12).map(|i| a.link(i).unwrap()).collect();
    for l in &mut links {
        (0..DEPTH).for_each(|n| assert!(put(l, 0, n, CAPACITY)));
    }
    let (idle, other) = pair();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        for c in [&a, &idle, &other] {
            c.pump();
            assert_eq!(c.broken(), None, "after {:?}", start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(a.wants_write());
    let (b, end) = (conn(again), deadline());
    for (i, _) in links.iter().enumerate() {
        let mut l = b.link(i as u32).unwrap();
        for n in 0..DEPTH {
            while l.recv(CAPACITY, 1) == Recv::Pending {
                a.pump();
                b.pump();
                late(end);
            }
            let Recv::Ready(p) = l.recv(CAPACITY, 1) else { panic!("{:?}", l.fault()) };
            assert_message(p, 0, n, CAPACITY);
            l.release();
        }
    }
}

/// Three connections between two hosts whose cable is then cut: an idle one, one with a message
/// under way, and one whose peer does not read any more (its window is closed).
#[test]
fn a_host_that_is_cut_off_is_noticed() {
    let ip = |words: &str| {
        std::process::Command::new("ip")
            .args(words.split(' '))
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let ns = format!("graccl-{}", std::process::id());
    struct Gone<'a>(&'a dyn Fn(&str) -> bool, String);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            (self.0)(&format!("netns del {}a", self.1));
            (self.0)(&format!("netns del {}b", self.1));
        }
    }
    if !ip(&format!("netns add {ns}a")) {
        let reason = "network namespaces are not allowed here";
        eprintln!("skipped: {reason}");
        if let Some(log) = std::env::var_os("GRACCL_SKIP_LOG") {
            let mut log =
                std::fs::File::options().append(true).create(true).open(log).expect("GRACCL_SKIP_LOG");
            writeln!(log, "{reason}").expect("GRACCL_SKIP_LOG");
        }
        return;
    }
    let _gone = Gone(&ip, ns.clone());
    assert!(ip(&format!("netns add {ns}b")));
    assert!(ip(&format!("link add va netns {ns}a type veth peer name vb netns {ns}b")));
    for (side, n) in [("a", 1), ("b", 2)] {
        assert!(ip(&format!("-n {ns}{side} addr add 10.9.8.{n}/24 dev v{side}")));
        assert!(ip(&format!("-n {ns}{side} link set v{side} up")));
    }
    // A thread in a host's namespace makes sockets of that host.
    let on = |side: &str, f: Box<dyn FnOnce() -> Vec<TcpStream> + Send>| {
        let path = format!("/run/netns/{ns}{side}");
        std::thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            f()
        })
    };
    let (ready, listening) = std::sync::mpsc::channel();
    let bs = on(
        "b",
        Box::new(move || {
            let listener = TcpListener::bind("10.9.8.2:7000").unwrap();
            ready.send(()).unwrap();
            (0..3).map(|_| listener.accept().unwrap().0).collect()
        }),
    );
    listening.recv().unwrap();
    let dial = || (0..3).map(|_| TcpStream::connect("10.9.8.2:7000").unwrap()).collect();
    let a: Vec<TcpConn> = on("a", Box::new(dial)).join().unwrap().into_iter().map(conn).collect();
    let b = bs.join().unwrap();
    let full: Vec<TcpLink> = (0..12)
        .map(|i| {
            let mut l = a[2].link(i).unwrap();
            (0..DEPTH).for_each(|n| assert!(put(&mut l, 0, n, CAPACITY)));
            l
        })
        .collect();
    let pump = |until: Duration, mut look: Box<dyn FnMut(Duration) -> bool + '_>| {
        let start = Instant::now();
        while start.elapsed() < until && !look(start.elapsed()) {
            a.iter().for_each(|c| _ = c.pump());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    pump(Duration::from_secs(4), Box::new(|_| false));
    assert!(a.iter().all(|c| c.broken().is_none()), "before the cut");
    assert!(ip(&format!("-n {ns}b link set vb down")));
    let mut busy = a[1].link(0).unwrap();
    assert!(put(&mut busy, 0, 0, 100));
    let mut noticed = [None; 3];
    pump(
        Duration::from_secs(20),
        Box::new(|t| {
            for (n, c) in noticed.iter_mut().zip(&a) {
                if n.is_none() && c.broken().is_some() {
                    *n = Some(t);
                }
            }
            noticed.iter().all(Option::is_some)
        }),
    );
    eprintln!("noticed after (idle, message under way, window closed): {noticed:?}");
    for (c, n) in a.iter().zip(noticed) {
        assert_eq!(c.broken().as_deref(), Some(LOST));
        assert!(n.is_some_and(|t| t < Duration::from_secs(4)), "{n:?}");
    }
    drop((b, full));
}

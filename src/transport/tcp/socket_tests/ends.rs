//! Connections that end: orderly, torn, refused, or because the other process or host is gone.

use super::*;

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
    // A closed window is probed every second.
    for ((c, n), most) in a.iter().zip(noticed).zip([2.5, 2.5, 3.5]) {
        assert_eq!(c.broken().as_deref(), Some(LOST));
        assert!(n.is_some_and(|t| t.as_secs_f64() < most), "{n:?}");
    }
    drop((b, full));
}

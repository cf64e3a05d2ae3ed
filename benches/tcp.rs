//! A TCP connection over loopback between two threads, plain and encrypted: the best time of 4 bytes there and
//! back (half of it), and of an exchange of 64 MiB in messages of 256 KiB. `cargo bench --bench tcp`.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Instant;

use graccl::transport::tcp::{TcpConn, TcpLink, TcpOptions};
use graccl::transport::{Link, Recv};

fn pair(secret: Option<[u8; 32]>) -> (TcpConn, TcpConn) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
    let a = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (b, _) = listener.accept().expect("its other end");
    let conn = |s: TcpStream, initiator| {
        s.set_nonblocking(true).expect("a socket that does not block");
        TcpConn::new(OwnedFd::from(s), TcpOptions { secret, initiator, ..TcpOptions::default() })
            .expect("a connection of links")
    };
    (conn(a, true), conn(b, false))
}

/// Sends 4 bytes.
fn put(l: &mut TcpLink) {
    let slot = l.send_slot(4).expect("room: the last message was answered");
    // SAFETY: the slot has 4 bytes.
    unsafe { slot.cast::<[u8; 4]>().write([1, 2, 3, 4]) };
    l.commit(4, 1);
}

fn main() {
    // `cargo test --benches` only wants to see it start.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    print!("plain:     ");
    measure(pair(None));
    print!("encrypted: ");
    measure(pair(Some([7; 32])));
}

fn measure((a, b): (TcpConn, TcpConn)) {
    let run = |c: TcpConn, first: bool| {
        move || {
            let mut l = c.link(0).unwrap();
            let receive = |l: &mut TcpLink, len: usize| {
                while l.recv(len, 1) == Recv::Pending {
                    c.pump();
                }
                assert!(matches!(l.recv(len, 1), Recv::Ready(_)), "{:?}", l.fault());
                l.release();
            };
            let mut best = f64::MAX;
            for _ in 0..50 {
                let t = Instant::now();
                for _ in 0..200 {
                    if first {
                        put(&mut l);
                        receive(&mut l, 4);
                    } else {
                        receive(&mut l, 4);
                        put(&mut l);
                    }
                }
                best = best.min(t.elapsed().as_secs_f64() / 400.0);
            }
            let (size, count) = (256 << 10, 256);
            let (src, mut dst) = (vec![1u8; size * count], vec![0u8; size * count]);
            let mut bulk = f64::MAX;
            for _ in 0..8 {
                let t = Instant::now();
                let (mut sent, mut got) = (0, 0);
                while sent < count || got < count || !l.idle() {
                    if sent < count && l.room() {
                        // SAFETY: both buffers outlive the loop, and nobody else uses them.
                        unsafe { l.send_ref(src.as_ptr().add(sent * size), size, 1) };
                        sent += 1;
                    }
                    if got < count {
                        match l.recv(size, 1) {
                            Recv::Ready(p) => {
                                let at = dst[got * size..].as_mut_ptr();
                                if p != at {
                                    // SAFETY: a message of that size, and its place.
                                    unsafe { std::ptr::copy_nonoverlapping(p, at, size) };
                                }
                                l.release();
                                got += 1;
                            }
                            Recv::Pending => {
                                // SAFETY: as above.
                                unsafe { l.land(dst.as_mut_ptr().add(got * size), size) };
                                c.pump();
                            }
                            Recv::Fault => panic!("{:?}", l.fault()),
                        }
                    } else {
                        c.pump();
                    }
                }
                bulk = bulk.min(t.elapsed().as_secs_f64());
            }
            assert!(dst == src);
            // The peer may still want its last credits.
            (best * 1e6, bulk * 1e3, l, c)
        }
    };
    let t = std::thread::spawn(run(b, false));
    let (small, bulk, ..) = run(a, true)();
    let kept = t.join().unwrap();
    println!("4 bytes: {small:.2} us one way; 64 MiB both ways: {bulk:.1} ms");
    drop(kept);
}

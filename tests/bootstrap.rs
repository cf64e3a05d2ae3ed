//! Ranks as threads and as processes find each other, connect, and fail as they should.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use graccl::bootstrap::{Bootstrap, PeerConn, UniqueId};
use graccl::{Code, Error};

const LONG: Duration = Duration::from_secs(20);

/// [`Bootstrap::rendezvous`] that nobody cancels.
fn join(id: &UniqueId, rank: usize, size: usize, wait: Duration) -> graccl::Result<Bootstrap> {
    Bootstrap::rendezvous(id, rank, size, "", wait, &AtomicBool::new(false))
}

fn soon() -> Instant {
    Instant::now() + LONG
}

/// A file descriptor whose content says which rank made it.
fn memfd(rank: usize) -> std::fs::File {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a C string; the new descriptor is owned by the File alone.
    let mut f = unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        std::fs::File::from_raw_fd(fd)
    };
    write!(f, "of {rank}").unwrap();
    f
}

/// Says something each way over new streams.
fn talk(conns: Vec<(usize, PeerConn)>, me: usize) {
    let mut streams: Vec<_> = conns.into_iter().map(|(p, c)| (p, std::fs::File::from(c.stream))).collect();
    for (_, s) in &mut streams {
        s.write_all(&(me as u32).to_le_bytes()).unwrap();
    }
    for (p, s) in &mut streams {
        let mut b = [0; 4];
        s.read_exact(&mut b).unwrap();
        assert_eq!(u32::from_le_bytes(b), *p as u32);
    }
}

/// Connects to all others, in an order that makes circles, by Unix sockets or TCP.
fn mesh(b: &Bootstrap, purpose: u32, tcp: bool) {
    let mine = memfd(b.rank);
    let hello = |from: usize, to: usize| format!("{from} to {to}, {}", "x".repeat(100 * from)).into_bytes();
    let order = (1..b.size).map(|d| (b.rank + d) % b.size);
    let pending: Vec<_> = order
        .map(|p| (p, b.start(p, purpose, &hello(b.rank, p), Some(mine.as_fd()), tcp).unwrap()))
        .collect();
    let mut conns = Vec::new();
    for (p, pending) in pending {
        let c = pending.wait(soon()).unwrap_or_else(|e| panic!("rank {} to {p}: {e}", b.rank));
        assert_eq!(c.hello, hello(p, b.rank));
        let same_host = b.hosts[p] == b.hosts[b.rank];
        assert_eq!(c.local, same_host && !tcp);
        assert_eq!(c.fd.is_some(), c.local);
        if let Some(fd) = &c.fd {
            // By position: all who hold it share the file's offset.
            let mut text = [0; 4];
            std::fs::File::from(fd.try_clone().unwrap()).read_exact_at(&mut text, 0).unwrap();
            assert_eq!(text, format!("of {p}").as_bytes());
        }
        conns.push((p, c));
    }
    talk(conns, b.rank);
}

/// Runs `f` for every rank in a thread.
fn threads<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|s| {
        let all: Vec<_> = (0..n)
            .map(|r| {
                let f = &f;
                s.spawn(move || f(r))
            })
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn threads_meet_and_connect() {
    for n in [1, 2, 3, 5, 8] {
        let id = UniqueId::create().unwrap();
        let all = threads(n, |r| {
            let b = join(&id, r, n, LONG).unwrap();
            assert_eq!((b.rank, b.size, b.members.len()), (r, n, n));
            assert!(b.members.iter().enumerate().all(|(i, m)| m.rank == i && m.pid == std::process::id()));
            assert_eq!(b.hosts, vec![0; n]);
            mesh(&b, 0, false);
            mesh(&b, 1, true);
            b
        });
        drop(all);
    }
}

#[test]
fn blocking_connect_in_ascending_order() {
    let id = UniqueId::create().unwrap();
    threads(4, |r| {
        let b = join(&id, r, 4, LONG).unwrap();
        for p in (0..4).filter(|p| *p != r) {
            let unix = b.connect(p, 7, b"", None, soon()).unwrap();
            let tcp = b.connect_tcp(p, 8, b"", soon()).unwrap();
            talk(vec![(p, unix), (p, tcp)], r);
        }
    });
}

#[test]
fn two_communicators_at_once() {
    let ids = [UniqueId::create().unwrap(), UniqueId::create().unwrap()];
    threads(6, |t| {
        let (which, r) = (t % 2, t / 2);
        let b = join(&ids[which], r, 3, LONG).unwrap();
        mesh(&b, 0, false);
    });
}

#[test]
fn a_missing_rank_is_named_everywhere_in_time() {
    let id = UniqueId::create().unwrap();
    let start = Instant::now();
    let errors = threads(2, |r| join(&id, r, 4, Duration::from_millis(600)).unwrap_err());
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(590) && took < Duration::from_millis(2500), "{took:?}");
    for e in errors {
        assert_eq!(e.code, Code::Timeout);
        assert!(e.what.contains("ranks 2, 3 of 4 did not join within 0.6 s"), "{e}");
        assert!(e.hint.contains("started"), "{e}");
    }
    // One that comes too late is told the same.
    let e = join(&id, 2, 4, LONG).unwrap_err();
    assert!(e.what.contains("ranks 2, 3 of 4"), "{e}");
}

#[test]
fn a_rank_twice() {
    let id = UniqueId::create().unwrap();
    let errors = threads(3, |t| join(&id, t.min(1), 3, LONG).unwrap_err());
    for e in errors {
        assert_eq!(e.code, Code::InvalidUsage);
        assert!(e.what.contains("rank 1 joined twice: pid ") && e.what.matches("pid ").count() == 2, "{e}");
    }
}

#[test]
fn sizes_that_differ() {
    let id = UniqueId::create().unwrap();
    let errors = threads(2, |r| join(&id, r, 3 + r, LONG).unwrap_err());
    for e in errors {
        assert_eq!(e.code, Code::InvalidUsage);
        assert!(e.what.contains("says 3") && e.what.contains("says 4"), "{e}");
        assert!(e.what.contains("rank 0") && e.what.contains("rank 1"), "{e}");
    }
}

#[test]
fn bad_arguments() {
    let id = UniqueId::create().unwrap();
    let e = join(&id, 2, 2, LONG).unwrap_err();
    assert_eq!(e.code, Code::InvalidArgument);
    let e = join(&UniqueId([0; 128]), 0, 2, LONG).unwrap_err();
    assert!(e.what.contains("not a graccl id"), "{e}");
    threads(2, |r| {
        let b = join(&id, r, 2, LONG).unwrap();
        let connect = |p, hello: &[u8]| b.connect(p, 0, hello, None, soon()).unwrap_err();
        assert_eq!(connect(r, b"").code, Code::InvalidArgument);
        assert_eq!(connect(2, b"").code, Code::InvalidArgument);
        assert_eq!(connect(1 - r, &[0; 4097]).code, Code::InvalidArgument);
    });
    // The id has served.
    let e = join(&id, 0, 2, LONG).unwrap_err();
    assert!(e.what.contains("cannot reach the root") && e.hint.contains("one communicator"), "{e}");
}

#[test]
fn peers_that_do_not_come_or_have_left() {
    let id = UniqueId::create().unwrap();
    let barrier = std::sync::Barrier::new(2);
    threads(2, |r| {
        let b = join(&id, r, 2, LONG).unwrap();
        if r == 1 {
            let e = b.connect(0, 0, b"", None, Instant::now() + Duration::from_millis(100)).unwrap_err();
            assert_eq!(e.code, Code::Timeout);
            assert!(e.what.contains("rank 0 (pid") && e.who == "rank 1", "{e}");
            drop(b);
            barrier.wait();
        } else {
            barrier.wait();
            let e = b.connect(1, 0, b"", None, soon()).unwrap_err();
            assert!(e.code == Code::RemoteError && e.what.contains("does not know this communicator"), "{e}");
        }
    });
}

/// Sets a flag a while later; how long after that the rank `rank` of 3 gave up, and its error.
fn cancelled(id: &UniqueId, rank: usize) -> (Duration, Error) {
    let cancel = AtomicBool::new(false);
    std::thread::scope(|s| {
        let joining = s.spawn(|| {
            let e = Bootstrap::rendezvous(id, rank, 3, "", LONG, &cancel).unwrap_err();
            (Instant::now(), e)
        });
        std::thread::sleep(Duration::from_millis(150));
        let set = Instant::now();
        cancel.store(true, Ordering::Relaxed);
        let (ended, e) = joining.join().unwrap();
        (ended.duration_since(set), e)
    })
}

#[test]
fn joining_can_be_cancelled() {
    let root = UniqueId::create().unwrap();
    // The verdict is awaited: another rank is told, too, and why.
    let other = std::thread::scope(|s| {
        let other = s.spawn(|| join(&root, 0, 3, LONG).unwrap_err());
        let (late, e) = cancelled(&root, 1);
        assert!(e.code == Code::Aborted && e.who == "rank 1 of 3" && !e.hint.is_empty(), "{e}");
        assert!(late < Duration::from_secs(2), "{late:?}");
        other.join().unwrap()
    });
    assert_eq!(other.code, Code::RemoteError);
    assert!(other.what.contains("rank 1 (pid") && other.what.contains("gave up"), "{other}");
    // Dialling: rank 0 does not exist, is unreachable, or has a silent process in its place.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    for (host, port) in
        [("127.0.0.1", 1), ("10.255.255.1", 7), ("127.0.0.1", silent.local_addr().unwrap().port())]
    {
        let (late, e) = cancelled(&listening_rank0(host, port), 1);
        assert!(e.code == Code::Aborted && e.who == "rank 1 of 3", "{host}:{port}: {e}");
        assert!(late < Duration::from_secs(2), "{host}:{port}: {late:?}");
    }
    // At once.
    let start = Instant::now();
    let e = Bootstrap::rendezvous(&root, 0, 3, "", LONG, &AtomicBool::new(true)).unwrap_err();
    assert!(e.code == Code::Aborted && start.elapsed() < Duration::from_secs(2), "{e}");
}

/// The id of a job whose rank 0 would listen at this name and port.
fn listening_rank0(host: &str, port: u16) -> UniqueId {
    let mut id = UniqueId([0; 128]);
    id.0[..6].copy_from_slice(b"GRACCL");
    (id.0[6], id.0[7]) = (1, 1 + 2 + 4);
    id.0[20..52].copy_from_slice(&[port as u8; 32]);
    id.0[52..54].copy_from_slice(&port.to_le_bytes());
    (id.0[54], id.0[55]) = (1, host.len() as u8);
    id.0[56..56 + host.len()].copy_from_slice(host.as_bytes());
    reseal(&mut id);
    id
}

#[test]
fn what_is_pending_may_move_and_ends_with_its_communicator() {
    fn shareable<T: Send + Sync + 'static>() {}
    shareable::<graccl::bootstrap::Pending>();
    shareable::<Bootstrap>();
    let id = UniqueId::create().unwrap();
    let barrier = std::sync::Barrier::new(2);
    threads(2, |r| {
        let b = join(&id, r, 2, LONG).unwrap();
        // Many at once, from several threads, and waited for in others.
        let begun: Vec<_> = std::thread::scope(|s| {
            let all = (0..8).map(|i| {
                let b = &b;
                s.spawn(move || (i, b.start(1 - r, i, &[i as u8], None, i % 2 == 0).unwrap()))
            });
            all.collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect()
        });
        std::thread::scope(|s| {
            for (i, p) in begun {
                s.spawn(move || assert_eq!(p.wait(soon()).unwrap().hello, [i as u8]));
            }
        });
        barrier.wait();
        if r == 0 {
            // Rank 1 does not ask for this one: rank 0 is parked there.
            let dialled = b.start(1, 100, b"", None, false).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            b.close();
            let e = dialled.wait(soon()).unwrap_err();
            assert!(e.code == Code::Aborted && e.who.starts_with("rank 0, rank 1 (pid"), "{e}");
            let e = b.start(1, 101, b"", None, false).err().expect("closed");
            assert!(e.code == Code::InvalidUsage && e.who == "rank 0" && !e.hint.is_empty(), "{e}");
            barrier.wait();
        } else {
            // Else rank 0 may see our end first.
            barrier.wait();
            // Rank 0 does not ask for this one.
            let accepting = b.start(0, 102, b"", None, false).unwrap();
            let start = Instant::now();
            std::thread::scope(|s| {
                let waiting = s.spawn(move || accepting.wait(soon()).unwrap_err());
                std::thread::sleep(Duration::from_millis(50));
                drop(b);
                let e = waiting.join().unwrap();
                assert!(e.code == Code::Aborted && e.who.contains("rank 1, rank 0 (pid"), "{e}");
            });
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
    });
}

#[test]
fn keys_and_job_numbers() {
    let job = |size: usize| {
        let id = UniqueId::create().unwrap();
        let all = threads(size, |r| {
            let b = join(&id, r, size, LONG).unwrap();
            (b.job(), b.derive_key("a"), b.derive_key("b"))
        });
        assert!(all.iter().all(|x| *x == all[0]), "the same on all ranks");
        all[0]
    };
    let (one, two) = (job(1), job(3));
    let keys = [one.1, one.2, two.1, two.2];
    assert!((0..4).all(|i| (0..i).all(|j| keys[i] != keys[j])));
    assert_ne!(one.0, two.0);
}

/// Where the listeners of this process are: TCP ports and abstract Unix names.
fn tcp_port(b: &Bootstrap) -> u16 {
    b.members[b.rank].port
}

#[test]
fn garbage_and_silence_disturb_nobody() {
    let id = UniqueId::create().unwrap();
    let first = UniqueId::create().unwrap();
    let port = threads(2, |r| tcp_port(&join(&first, r, 2, LONG).unwrap()))[0];
    let connect = || std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let silent: Vec<_> = (0..20).map(|_| connect()).collect();
    let mut half = connect();
    half.write_all(b"GRACCL").unwrap();
    let garbage: Vec<_> = (0..20u8)
        .map(|i| {
            let mut s = connect();
            let _ = s.write_all(&[i.wrapping_mul(37); 300]);
            s
        })
        .collect();
    // A hello of another version, and one with an unknown key, are answered; each answer says the
    // version that is spoken here.
    let hello = |version: u8| {
        let mut s = connect();
        let mut hello = [0u8; 72];
        hello[..6].copy_from_slice(b"GRACCL");
        (hello[6], hello[7]) = (version, 2);
        s.write_all(&hello).unwrap();
        let mut answer = [0; 72];
        s.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[..6], b"GRACCL");
        (answer[6], answer[7])
    };
    let (version, status) = hello(99);
    assert_eq!(status, 2);
    assert_eq!(hello(version), (version, 1));
    let start = Instant::now();
    threads(4, |r| mesh(&join(&id, r, 4, LONG).unwrap(), 0, true));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    for mut s in garbage {
        // Dropped at once: end of stream or a reset, never an answer.
        s.set_read_timeout(Some(LONG)).unwrap();
        assert!(!matches!(s.read(&mut [0; 8]), Ok(n) if n > 0));
    }
    // The silent ones go after a few seconds.
    for mut s in silent.into_iter().chain([half]) {
        s.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(s.read(&mut [0; 8]).unwrap(), 0);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_wrong_key_is_refused_and_said() {
    let id = UniqueId::create().unwrap();
    // The same root's address with another key: what a job with another secret would hold.
    let mut wrong = id;
    wrong.0[20..52].copy_from_slice(&[7; 32]);
    wrong.0[12..20].copy_from_slice(&[9; 8]); // "on another host": found by TCP, not by its Unix name
    reseal(&mut wrong);
    let e: Error = join(&wrong, 0, 2, LONG).unwrap_err();
    assert_eq!(e.code, Code::RemoteError);
    assert!(e.what.contains("does not know this communicator's key"), "{e}");
    // And the right ones still meet.
    threads(2, |r| mesh(&join(&id, r, 2, LONG).unwrap(), 0, false));
}

/// Corrects the checksum of an id that was changed.
fn reseal(id: &mut UniqueId) {
    use sha2::Digest;
    let sum = sha2::Sha256::digest(&id.0[..124]);
    id.0[124..].copy_from_slice(&sum[..4]);
}

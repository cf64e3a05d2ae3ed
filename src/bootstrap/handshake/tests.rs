//! Handshakes: with those who lack the key, who were recorded, who were stopped.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::super::conn;
use super::super::root::Root;
use super::super::service::{Listener, MAX_STRANGERS, Service};
use super::*;
use crate::bootstrap::Member;

const SOON: Duration = Duration::from_secs(10);

fn connect() -> TcpStream {
    let port = Service::get().unwrap().home().unwrap().port;
    let s = TcpStream::connect(("127.0.0.1", port)).unwrap();
    s.set_read_timeout(Some(SOON)).unwrap();
    s
}

fn hello(role: Role, tag: Tag, from: u32, to: u32) -> [u8; HELLO_LEN] {
    Hello { role, tag, generation: 0, from, to, purpose: 0, nonce: random().unwrap() }.encode()
}

fn read<const N: usize>(s: &mut TcpStream) -> [u8; N] {
    let mut b = [0; N];
    s.read_exact(&mut b).unwrap();
    b
}

/// What comes until the end; how long it may be.
fn rest(s: &mut TcpStream) -> usize {
    let mut all = Vec::new();
    let _ = s.read_to_end(&mut all);
    all.len()
}

/// Says hello as rank 0 to the root of `root`, checks its answer and shows a proof made with `key` that
/// it wants to join as one of `size`. The bytes that it sent.
fn join(s: &mut TcpStream, root: &Key, key: &Key, size: u32) -> Vec<u8> {
    let hello = hello(Role::Join, wire::tag(root), 0, wire::ROOT);
    s.write_all(&hello).unwrap();
    let answer = read(s);
    assert!(wire::check_answer(root, &hello, &answer).is_ok());
    let secret = wire::secret(key, &hello, answer[8..40].try_into().unwrap());
    let (hostname, addrs) = (String::new(), Vec::new());
    let card = Member { rank: 0, host: 1, hostname, pid: 1, addrs, port: 0, unix: [0; 16] };
    let request = Join { size, wait_ms: 20_000, keep: false, settings: String::new(), card };
    let frame = wire::seal(&secret, From::Connector, &request.encode());
    s.write_all(&frame).unwrap();
    [&hello[..], &frame].concat()
}

fn root(local: bool) -> Key {
    let key = random().unwrap();
    Service::get().unwrap().open_root(key, 0..0, local).unwrap();
    key
}

#[test]
fn the_tag_alone_opens_nothing() {
    let key = root(false);
    let try_with = |proof: &Key| {
        let mut s = connect();
        join(&mut s, &key, proof, 1);
        rest(&mut s)
    };
    assert_eq!(try_with(&[2; 32]), 0, "a wrong key");
    assert!(try_with(&key) > 0, "the right key, and the same root still serves");
}

#[test]
fn a_recorded_session_is_worth_nothing() {
    let key = root(false);
    let mut first = connect();
    let sent = join(&mut first, &key, &key, 2);
    // All at once, and as it was said, after the answer.
    let mut again = connect();
    again.write_all(&sent).unwrap();
    assert_eq!(rest(&mut again), ANSWER_LEN, "an answer to the hello, and then the end");
    let mut again = connect();
    again.write_all(&sent[..HELLO_LEN]).unwrap();
    read::<ANSWER_LEN>(&mut again);
    again.write_all(&sent[HELLO_LEN..]).unwrap();
    assert_eq!(rest(&mut again), 0);
    // The root has not taken it for rank 0 a second time: the first still waits.
    first.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(first.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// Dials a process of our own that does not have the key; returns the ticket and that process's end.
fn dialled(listener: &TcpListener, key: Key, to: u32) -> (u64, TcpStream) {
    let hello = Hello {
        role: Role::Peer,
        tag: wire::tag(&key),
        generation: 0,
        from: 0,
        to,
        purpose: 0,
        nonce: [0; 32],
    };
    let addr = vec![Addr::Tcp(listener.local_addr().unwrap())];
    let dial = Dial::new(hello, key, b"hello".to_vec(), MAX_BODY, "test".into(), addr);
    let service = Service::get().unwrap();
    let ticket = service.lock().start_dial(dial, Instant::now());
    service.poke();
    let (s, _) = listener.accept().unwrap();
    s.set_read_timeout(Some(SOON)).unwrap();
    (ticket, s)
}

/// Why a dial failed.
fn failed(ticket: u64) -> String {
    match Service::get().unwrap().look(ticket, Instant::now() + SOON) {
        Some(Ok(Outcome::Nobody(tried))) => tried,
        Some(Ok(_)) => panic!("a stranger was believed"),
        Some(Err(e)) => e.to_string(),
        None => panic!("it waits"),
    }
}

#[test]
fn echoed_and_recorded_answers_are_refused() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let key: Key = random().unwrap();
    let (ticket, mut s) = dialled(&listener, key, 1);
    let hello: [u8; HELLO_LEN] = read(&mut s);
    s.write_all(&hello).unwrap();
    failed(ticket);
    // The nonce that it sent, as if it were ours, and its own proof of nothing.
    let (ticket, mut s) = dialled(&listener, key, 1);
    let hello: [u8; HELLO_LEN] = read(&mut s);
    let mut echo = wire::answer(&[0; 32], hello[40..].try_into().unwrap());
    echo[40..].copy_from_slice(&hello[40..]);
    s.write_all(&echo).unwrap();
    assert!(failed(ticket).contains("could not prove"));
    // What the right one answered another time.
    let nonce = [5; 32];
    let recorded = wire::answer(&wire::secret(&key, &hello, &nonce), &nonce);
    assert!(wire::check_answer(&key, &hello, &recorded).is_ok());
    let (ticket, mut s) = dialled(&listener, key, 1);
    read::<HELLO_LEN>(&mut s);
    s.write_all(&recorded).unwrap();
    assert!(failed(ticket).contains("could not prove"));
}

/// A process that was stopped is late for everything, but what came meanwhile is there.
#[test]
fn what_came_during_a_stop_counts() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(SOON)).unwrap();
    let (mut state, key) = (State::default(), random().unwrap());
    state.roots.insert(wire::tag(&key), Root::new(key, false));
    let now = Instant::now();
    state.welcome(listener.accept().unwrap().0.into(), false, "test".into(), now);
    let token = *state.conns.keys().next().unwrap();
    let said = std::thread::spawn(move || {
        join(&mut peer, &key, &key, 2);
        peer
    });
    while matches!(state.conns[&token].1, Step::Hello) {
        state.drive(token, now);
        std::thread::sleep(Duration::from_millis(1));
    }
    // It may have been read already.
    let peer = said.join().unwrap();
    state.timers(now + 2 * HANDSHAKE);
    assert!(matches!(state.conns[&token].1, Step::Joined { .. }));
    drop(peer);
    // Whoever is silent is put out still.
    let silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    state.welcome(listener.accept().unwrap().0.into(), false, "test".into(), now);
    assert_eq!(state.conns.len(), 2);
    state.timers(now + 2 * HANDSHAKE);
    assert_eq!(state.conns.len(), 1);
    drop(silent);
}

/// Whoever was stopped between hello and answer has been given up by the other, and begins anew.
#[test]
fn a_late_answer_is_asked_for_again() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let key: Key = random().unwrap();
    let (ticket, mut s) = dialled(&listener, key, 1);
    let answer = |s: &mut TcpStream| {
        let (hello, nonce) = (read(s), random().unwrap());
        let secret = wire::secret(&key, &hello, &nonce);
        s.write_all(&wire::answer(&secret, &nonce)).unwrap();
        secret
    };
    std::thread::sleep(HANDSHAKE / 2);
    answer(&mut s);
    assert_eq!(rest(&mut s), 0, "no proof to whom does not wait for it");
    let (mut s, _) = listener.accept().unwrap();
    s.set_read_timeout(Some(SOON)).unwrap();
    let secret = answer(&mut s);
    s.write_all(&wire::seal(&secret, From::Acceptor, b"here")).unwrap();
    match Service::get().unwrap().look(ticket, Instant::now() + SOON) {
        Some(Ok(Outcome::Peer(_, _, hello, _))) => assert_eq!(hello, b"here"),
        _ => panic!("not connected"),
    }
}

/// Whoever was stopped before it said hello was taken for a silent stranger, and begins anew.
#[test]
fn a_connection_that_ends_late_is_made_again() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let key: Key = random().unwrap();
    let (ticket, s) = dialled(&listener, key, 1);
    drop(s);
    assert_eq!(failed(ticket).matches("tcp ").count(), 1, "nobody was slow");
    let (ticket, s) = dialled(&listener, key, 1);
    std::thread::sleep(HANDSHAKE / 2 + Duration::from_millis(10));
    drop(s);
    let (mut s, _) = listener.accept().unwrap();
    s.set_read_timeout(Some(SOON)).unwrap();
    let (hello, nonce) = (read(&mut s), random().unwrap());
    let secret = wire::secret(&key, &hello, &nonce);
    s.write_all(&wire::answer(&secret, &nonce)).unwrap();
    s.write_all(&wire::seal(&secret, From::Acceptor, b"here")).unwrap();
    match Service::get().unwrap().look(ticket, Instant::now() + SOON) {
        Some(Ok(Outcome::Peer(_, _, hello, _))) => assert_eq!(hello, b"here"),
        _ => panic!("not connected"),
    }
}

/// A connection that always ends is not made for ever.
#[test]
fn an_address_is_tried_again_a_few_times() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (mut state, key) = (State::default(), random().unwrap());
    let addr = Addr::Tcp(listener.local_addr().unwrap());
    let hello = Hello {
        role: Role::Peer,
        tag: wire::tag(&key),
        generation: 0,
        from: 0,
        to: 1,
        purpose: 0,
        nonce: [0; 32],
    };
    let dial = Dial::new(hello, key, Vec::new(), MAX_BODY, "test".into(), vec![addr]);
    let ticket = state.start_dial(dial, Instant::now());
    let mut tries = 0;
    while state.dial_of(ticket).is_some() {
        let (&token, (_, step)) = state.conns.iter_mut().next().expect("it connects, or has failed");
        // As if the process had been stopped.
        if let Step::Connecting { since, .. } | Step::Answer { since, .. } = step {
            *since -= HANDSHAKE;
        }
        drop(listener.accept().unwrap());
        tries += 1;
        while state.conns.contains_key(&token) {
            state.drive(token, Instant::now());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(tries, 4);
}

/// Strangers, the first of whom came first.
fn crowd(state: &mut State, now: Instant) -> Vec<UnixStream> {
    let mut ends = Vec::new();
    for i in 0..MAX_STRANGERS as u32 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        state.welcome(OwnedFd::from(ours).into(), true, "test".into(), now + Duration::from_micros(i.into()));
        ends.push(theirs);
    }
    ends
}

/// A process that was stopped hears those who came before it puts one of them out for another.
#[test]
fn whoever_spoke_during_a_stop_keeps_its_place() {
    let key = random().unwrap();
    let now = Instant::now();
    let later = now + 2 * HANDSHAKE / 5;
    for spoke in [false, true] {
        let mut state = State::default();
        state.roots.insert(wire::tag(&key), Root::new(key, false));
        let name = random().unwrap();
        let sock = conn::listen_unix(&name).unwrap();
        state.listeners.push(Listener { sock, unix: true, root: None });
        let mut ends = crowd(&mut state, now);
        let _more = conn::dial(&Addr::Unix(name)).unwrap();
        if spoke {
            for (i, s) in (0..).zip(&mut ends) {
                s.write_all(&hello(Role::Join, wire::tag(&key), i, wire::ROOT)).unwrap();
            }
        }
        let first = *state.conns.keys().min().unwrap();
        state.accept(0, later);
        assert_eq!(state.conns.len(), MAX_STRANGERS);
        assert_eq!(state.conns.contains_key(&first), spoke, "the oldest is put out if it was silent");
    }
}

/// From its hello on a stranger has as long again: that is what it counts from.
#[test]
fn a_hello_gives_time() {
    let (mut state, key) = (State::default(), random().unwrap());
    state.roots.insert(wire::tag(&key), Root::new(key, false));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let now = Instant::now();
    state.welcome(OwnedFd::from(ours).into(), true, "test".into(), now);
    theirs.write_all(&hello(Role::Join, wire::tag(&key), 0, wire::ROOT)).unwrap();
    let late = now + HANDSHAKE - Duration::from_millis(1);
    let token = *state.conns.keys().next().unwrap();
    state.drive(token, late);
    assert_eq!(state.conns[&token].0.deadline, Some(late + HANDSHAKE));
}

#[test]
fn two_sessions_cannot_be_crossed() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let key: Key = random().unwrap();
    let service = Service::get().unwrap();
    for rank in [1, 2] {
        let mut state = service.lock();
        assert!(state.reserve_end(wire::tag(&key), rank));
        state.open_end(wire::tag(&key), rank, key, Instant::now());
    }
    // Between one who dials ranks 1 and 2, and them.
    let between = || {
        let mut ends = [1, 2].map(|to| (dialled(&listener, key, to), connect()));
        for ((_, near), far) in &mut ends {
            far.write_all(&read::<HELLO_LEN>(near)).unwrap();
        }
        ends
    };
    // The answers change places.
    let [((t1, mut n1), mut f1), ((t2, mut n2), mut f2)] = between();
    n2.write_all(&read::<ANSWER_LEN>(&mut f1)).unwrap();
    n1.write_all(&read::<ANSWER_LEN>(&mut f2)).unwrap();
    assert!(failed(t1).contains("could not prove") && failed(t2).contains("could not prove"));
    // The answers are passed on as they are, and then the proofs change places.
    let [((t1, mut n1), mut f1), ((t2, mut n2), mut f2)] = between();
    n1.write_all(&read::<ANSWER_LEN>(&mut f1)).unwrap();
    n2.write_all(&read::<ANSWER_LEN>(&mut f2)).unwrap();
    const FRAME: usize = 4 + 5 + 32;
    f2.write_all(&read::<FRAME>(&mut n1)).unwrap();
    f1.write_all(&read::<FRAME>(&mut n2)).unwrap();
    assert_eq!((rest(&mut f1), rest(&mut f2)), (0, 0));
    // And a proof sent back to whom it came from.
    n1.write_all(&wire::seal(&[0; 32], From::Connector, b"hello")).unwrap();
    assert!(failed(t1).contains("not signed"));
    service.give_up(t2);
}

#[test]
fn a_local_root_takes_nobody_by_tcp() {
    let key = root(true);
    let mut s = connect();
    s.write_all(&hello(Role::Join, wire::tag(&key), 0, wire::ROOT)).unwrap();
    assert_eq!(read::<ANSWER_LEN>(&mut s)[7], Refusal::Key as u8);
}

#[test]
fn an_early_peer_waits_for_the_key() {
    let (tag, key) = (random().unwrap(), random().unwrap());
    let service = Service::get().unwrap();
    for opens in [true, false] {
        assert!(service.lock().reserve_end(tag, 1));
        let hello = hello(Role::Peer, tag, 0, 1);
        let mut s = connect();
        s.write_all(&hello).unwrap();
        s.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert_eq!(s.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        s.set_read_timeout(Some(SOON)).unwrap();
        match opens {
            true => service.lock().open_end(tag, 1, key, Instant::now()),
            false => service.lock().close_end(tag, 1),
        }
        let answer = read(&mut s);
        assert_eq!(wire::check_answer(&key, &hello, &answer).is_ok(), opens);
        service.lock().close_end(tag, 1);
    }
}

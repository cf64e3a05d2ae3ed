//! What becomes of a connection from its first byte to its delivery: the state machine of both
//! sides. `wire` says what the messages are.

use std::time::{Duration, Instant};

use super::conn::{Addr, Conn, Fill, out_of_fds};
use super::dial::Dial;
use super::service::{HANDSHAKE, Outcome, State, Task, no_socket};
use super::wire::{
    self, ANSWER_LEN, From, HELLO_LEN, Hello, Join, Key, MAX_BODY, Refusal, Role, Tag, frame_len, random,
};
use crate::Error;
use crate::log::{Level, log};

/// How far a connection has come.
pub(super) enum Step {
    /// Connector: the system connects.
    Connecting { ticket: u64, addr: Addr },
    /// Connector: the hello is out, since then, the answer awaited.
    Answer { ticket: u64, addr: Addr, hello: [u8; HELLO_LEN], since: Instant },
    /// Connector: the acceptor is the right one, and was sent what it must know.
    Reply { ticket: u64, secret: Key },
    /// Acceptor: awaits a stranger's hello.
    Hello,
    /// Acceptor: has proved itself, awaits the stranger's proof.
    Proof { hello: Hello, secret: Key },
    /// Acceptor: a peer, until the rank asked for takes it.
    Parked { hello: Hello, secret: Key, body: Vec<u8> },
    /// Acceptor: a rank that joined at this root and awaits the verdict.
    Joined { tag: Tag, generation: u32, rank: u32, secret: Key },
    /// Acceptor: the last message is going out; then the stream goes to the ticket's owner with the
    /// peer's hello, or is closed.
    Last { ticket: Option<u64>, body: Vec<u8> },
}

impl Step {
    /// Has not shown yet that it may speak to us.
    pub fn is_stranger(&self) -> bool {
        matches!(self, Step::Hello | Step::Proof { .. })
    }

    /// Its hello is there, and came before the rank that it wants knew the communicator's key: nothing is
    /// read until then.
    pub fn waits_for_key(&self, c: &Conn) -> bool {
        matches!(self, Step::Hello) && c.bytes().len() == HELLO_LEN
    }
}

enum Next {
    /// Come back when there is more to read or room to write.
    Stay,
    /// The step changed: look again at once.
    Again,
    Close(String),
    /// Everything is said; for the ticket that began or awaited it.
    Deliver(Option<u64>, Vec<u8>),
    /// A rank has joined: the root must be told once the connection is back in its place.
    Join(Join),
    /// A peer waits to be taken.
    Park,
}

impl State {
    /// Moves a connection on as far as it goes without waiting.
    pub fn drive(&mut self, token: u64, now: Instant) {
        let Some((mut c, mut step)) = self.conns.remove(&token) else { return };
        loop {
            match self.advance(token, &mut c, &mut step) {
                Next::Again => {}
                Next::Stay => {
                    self.conns.insert(token, (c, step));
                    return;
                }
                Next::Close(why) => return self.closed(token, c, step, why, now),
                Next::Deliver(ticket, body) => return self.deliver(ticket, c, body),
                Next::Join(join) => {
                    self.conns.insert(token, (c, step));
                    return self.root_joined(token, join, now);
                }
                Next::Park => {
                    self.conns.insert(token, (c, step));
                    return self.parked(token, now);
                }
            }
        }
    }

    fn advance(&mut self, token: u64, c: &mut Conn, step: &mut Step) -> Next {
        if let Step::Connecting { ticket, addr } = step {
            let (ticket, addr) = (*ticket, addr.clone());
            match c.sock.take_error() {
                Ok(None) if c.sock.peer_addr().is_ok() => {}
                Ok(None) => return Next::Stay,
                Ok(Some(e)) | Err(e) => return Next::Close(e.to_string()),
            }
            let Some(dial) = self.dial_of(ticket) else { return Next::Close("given up".into()) };
            let nonce = match random() {
                Ok(nonce) => nonce,
                Err(e) => return Next::Close(e.to_string()),
            };
            let hello = Hello { nonce, ..dial.hello }.encode();
            if !c.unix {
                let _ = c.sock.set_tcp_nodelay(true);
            }
            c.send(&hello, None);
            c.expect(ANSWER_LEN);
            *step = Step::Answer { ticket, addr, hello, since: Instant::now() };
        }
        match c.flush() {
            Ok(true) => {}
            Ok(false) => return Next::Stay,
            Err(e) => return Next::Close(e.to_string()),
        }
        if let Step::Last { ticket, body } = step {
            return Next::Deliver(*ticket, std::mem::take(body));
        }
        match c.fill() {
            Ok(Fill::Full) => {}
            Ok(Fill::Part) if matches!(step, Step::Hello) && !Hello::plausible(c.bytes()) => {
                return Next::Close("it does not speak graccl's protocol".into());
            }
            Ok(Fill::Part) => return Next::Stay,
            Ok(Fill::End) => return Next::Close("it closed the connection".into()),
            Err(e) => {
                if out_of_fds(&e) {
                    self.no_fd_for(step, &e);
                }
                return Next::Close(e.to_string());
            }
        }
        match step {
            Step::Hello => self.on_hello(c, step),
            Step::Proof { .. } => on_proof(c, step),
            Step::Answer { .. } => self.on_answer(token, c, step),
            Step::Reply { ticket, secret } => {
                let Some(dial) = self.dial_of(*ticket) else { return Next::Close("given up".into()) };
                match whole_frame(c, dial.max_reply) {
                    Ok(false) => Next::Again,
                    Err(why) => Next::Close(why),
                    Ok(true) => match wire::open(secret, From::Acceptor, c.bytes()) {
                        Some(body) => Next::Deliver(Some(*ticket), body.to_vec()),
                        None => Next::Close("its last message is not signed as it should be".into()),
                    },
                }
            }
            // These wait for nothing but the end.
            Step::Parked { .. } | Step::Joined { .. } => Next::Close("it spoke out of turn".into()),
            Step::Connecting { .. } | Step::Last { .. } => Next::Stay,
        }
    }

    /// A peer's descriptor found no place here, so its connection is lost: says so to the rank that
    /// waits for it, or will.
    fn no_fd_for(&mut self, step: &Step, e: &std::io::Error) {
        match step {
            Step::Proof { hello, .. } => self.cut_off((hello.tag, hello.to, hello.from)),
            Step::Reply { ticket, .. } => {
                let e = no_socket("cannot take a peer's shared memory", e);
                self.finish(*ticket, Err(e));
            }
            _ => {}
        }
    }

    fn on_hello(&mut self, c: &mut Conn, step: &mut Step) -> Next {
        let bytes: [u8; HELLO_LEN] = c.bytes().try_into().expect("asked for this many");
        let hello = match Hello::parse(&bytes) {
            Ok(hello) => hello,
            Err(None) => return Next::Close("it does not speak graccl's protocol".into()),
            Err(Some(why)) => return refuse(c, step, why),
        };
        let key = match hello.role {
            Role::Join => self.roots.get(&hello.tag).filter(|r| c.unix || !r.local).map(|r| r.key),
            Role::Peer => match self.ends.get(&(hello.tag, hello.to)) {
                Some(None) => return Next::Stay,
                Some(key) => *key,
                None => None,
            },
        };
        let Some(key) = key else { return refuse(c, step, Refusal::Key) };
        let nonce = match random() {
            Ok(nonce) => nonce,
            Err(e) => return Next::Close(e.to_string()),
        };
        let secret = wire::secret(&key, &bytes, &nonce);
        c.send(&wire::answer(&secret, &nonce), None);
        c.expect(4);
        *step = Step::Proof { hello, secret };
        Next::Again
    }

    fn on_answer(&mut self, token: u64, c: &mut Conn, step: &mut Step) -> Next {
        let Step::Answer { ticket, addr, hello, since } = step else { return Next::Stay };
        let ticket = *ticket;
        let answer = c.bytes().try_into().expect("asked for this many");
        let Some(dial) = self.dial_of(ticket) else { return Next::Close("given up".into()) };
        if since.elapsed() > HANDSHAKE / 2 {
            // One of the two was stopped, or had no core. The other waits for no proof any more, or not much
            // longer; but once that is sent, a connection that ends is a process that has.
            dial.again(addr.clone());
            return Next::Close("its answer came too late".into());
        }
        let secret = match wire::check_answer(&dial.key, hello, answer) {
            Ok(secret) => secret,
            Err(why) => return Next::Close(why),
        };
        let losers = dial.win(token);
        c.send(&wire::seal(&secret, From::Connector, &dial.body), dial.fd.take().filter(|_| c.unix));
        c.expect(4);
        c.deadline = None;
        log(Level::Info, dial.rank(), format_args!("{} over {}", dial.whom, c.with));
        losers.iter().for_each(|t| drop(self.conns.remove(t)));
        *step = Step::Reply { ticket, secret };
        Next::Again
    }

    /// The dialing side of a ticket that is still wanted.
    pub fn dial_of(&mut self, ticket: u64) -> Option<&mut Dial> {
        match self.tickets.get_mut(&ticket) {
            Some(t) if t.result.is_none() => match &mut t.task {
                Task::Dial(d) => Some(d),
                Task::Accept(_) => None,
            },
            _ => None,
        }
    }

    fn deliver(&mut self, ticket: Option<u64>, mut c: Conn, body: Vec<u8>) {
        let Some(ticket) = ticket else { return };
        let join = self.dial_of(ticket).is_some_and(|d| d.hello.role == Role::Join);
        let result = if join {
            Ok(Outcome::Verdict(body))
        } else {
            let fd = c.take_fd();
            match c.sock.set_nonblocking(false) {
                Ok(()) => Ok(Outcome::Peer(c.sock, c.unix, body, fd)),
                Err(e) => Err(Error::io("cannot make a socket blocking", &e)),
            }
        };
        self.finish(ticket, result);
    }

    /// A connection ended before its time.
    pub fn closed(&mut self, token: u64, c: Conn, step: Step, why: String, now: Instant) {
        match step {
            Step::Connecting { ticket, .. } | Step::Answer { ticket, .. } => {
                if let Some(dial) = self.dial_of(ticket) {
                    dial.lost(token, format!("{}: {why}", c.with), now);
                    self.dial_more(ticket, now);
                }
            }
            Step::Reply { ticket, .. } => {
                if let Some(dial) = self.dial_of(ticket) {
                    let e = dial.broken(&c.with, &why);
                    self.finish(ticket, Err(e));
                }
            }
            Step::Hello | Step::Proof { .. } => {
                log(Level::Warn, None, format_args!("dropped a connection from {}: {why}", c.with));
            }
            Step::Joined { tag, generation, rank, .. } => self.root_left(tag, generation, rank, now),
            Step::Last { ticket: Some(ticket), .. } => {
                self.finish(ticket, Err(Error::remote(format!("a peer closed its new connection: {why}"))));
            }
            Step::Parked { .. } | Step::Last { ticket: None, .. } => {}
        }
    }

    /// Sends the last message of a connection that waits for it, by its token.
    pub fn conclude(&mut self, token: u64, message: impl FnOnce(&mut Conn, &Key), last: Step, now: Instant) {
        if let Some((c, step)) = self.conns.get_mut(&token)
            && let Step::Parked { secret, .. } | Step::Joined { secret, .. } = step
        {
            message(c, secret);
            c.deadline = Some(now + Duration::from_secs(10));
            *step = last;
            self.drive(token, now);
        }
    }
}

/// Whether the frame that a connection reads is whole; else reads on.
fn whole_frame(c: &mut Conn, max: usize) -> Result<bool, String> {
    let whole = frame_len(c.bytes(), max).ok_or("its message is too long")?;
    if c.bytes().len() == whole {
        return Ok(true);
    }
    c.expect_rest(whole);
    Ok(false)
}

fn on_proof(c: &mut Conn, step: &mut Step) -> Next {
    let Step::Proof { hello, secret } = step else { return Next::Stay };
    match whole_frame(c, MAX_BODY) {
        Ok(true) => {}
        Ok(false) => return Next::Again,
        Err(why) => return Next::Close(why),
    }
    let Some(body) = wire::open(secret, From::Connector, c.bytes()) else {
        return Next::Close("it could not prove that it knows the communicator's key".into());
    };
    let (hello, secret, body) = (*hello, *secret, body.to_vec());
    c.expect(1);
    c.deadline = None;
    match hello.role {
        Role::Peer => {
            *step = Step::Parked { hello, secret, body };
            Next::Park
        }
        Role::Join => match Join::parse(&body) {
            Some(join) if join.card.rank == hello.from as usize => {
                let Hello { tag, generation, from: rank, .. } = hello;
                *step = Step::Joined { tag, generation, rank, secret };
                Next::Join(join)
            }
            _ => Next::Close("its request to join makes no sense".into()),
        },
    }
}

fn refuse(c: &mut Conn, step: &mut Step, why: Refusal) -> Next {
    log(Level::Warn, None, format_args!("refused a connection from {}: {why:?}", c.with));
    c.send(&wire::refusal(why), None);
    *step = Step::Last { ticket: None, body: Vec::new() };
    Next::Again
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::super::root::Root;
    use super::super::service::Service;
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
}

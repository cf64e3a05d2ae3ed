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
    /// Connector: the system connects, since then.
    Connecting { ticket: u64, addr: Addr, since: Instant },
    /// Connector: the hello is out, the answer awaited. `since`: when the system began to connect.
    Answer { ticket: u64, addr: Addr, hello: [u8; HELLO_LEN], since: Instant, said: Instant },
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
            match self.advance(token, &mut c, &mut step, now) {
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

    fn advance(&mut self, token: u64, c: &mut Conn, step: &mut Step, now: Instant) -> Next {
        if let Step::Connecting { ticket, addr, since } = step {
            let (ticket, addr, since) = (*ticket, addr.clone(), *since);
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
            *step = Step::Answer { ticket, addr, hello, since, said: Instant::now() };
        }
        match c.flush() {
            Ok(true) => {}
            Ok(false) => return Next::Stay,
            Err(e) => return self.ended(step, e.to_string()),
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
            Ok(Fill::End) => return self.ended(step, "it closed the connection".into()),
            Err(e) => {
                if out_of_fds(&e) {
                    self.no_fd_for(step, &e);
                }
                return self.ended(step, e.to_string());
            }
        }
        match step {
            Step::Hello => self.on_hello(c, step, now),
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

    /// The other end has closed. Where this process was stopped before it had said hello, the acceptor took it for a
    /// silent stranger.
    fn ended(&mut self, step: &Step, why: String) -> Next {
        if let Step::Answer { ticket, addr, since, .. } = step
            && since.elapsed() > HANDSHAKE / 2
            && let Some(dial) = self.dial_of(*ticket)
        {
            dial.ended(addr.clone());
        }
        Next::Close(why)
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

    fn on_hello(&mut self, c: &mut Conn, step: &mut Step, now: Instant) -> Next {
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
        // The connector counts from its hello.
        c.deadline = Some(now + HANDSHAKE);
        *step = Step::Proof { hello, secret };
        Next::Again
    }

    fn on_answer(&mut self, token: u64, c: &mut Conn, step: &mut Step) -> Next {
        let Step::Answer { ticket, addr, hello, said, .. } = step else { return Next::Stay };
        let ticket = *ticket;
        let answer = c.bytes().try_into().expect("asked for this many");
        let Some(dial) = self.dial_of(ticket) else { return Next::Close("given up".into()) };
        if said.elapsed() > HANDSHAKE / 2 {
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
mod tests;

//! Connecting to a peer that may have several addresses: they are tried one after the other, each
//! soon after the one before and at once when that failed; the first that proves to be the right
//! process wins.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::conn::{self, Addr, Conn, out_of_fds};
use super::handshake::Step;
use super::host;
use super::service::{Outcome, State, Task, Ticket, no_socket};
use super::wire::{Hello, Key, ROOT};
use crate::Error;

/// Head start of a better address over the next.
const STAGGER: Duration = Duration::from_millis(30);
/// Connections that ended before the answer after which an address is tried again.
const ENDS: u32 = 3;
/// Until a Unix listener whose queue is full is tried again.
const QUEUE_FULL: Duration = Duration::from_millis(2);

pub(super) struct Dial {
    /// Without its nonce, which is new for every try.
    pub hello: Hello,
    pub key: Key,
    /// Sent to the winner, with `fd` if it is a Unix peer.
    pub body: Vec<u8>,
    pub fd: Option<OwnedFd>,
    /// Longest body of the winner's reply.
    pub max_reply: usize,
    /// An address that has not proved itself after this time has failed.
    pub patience: Option<Duration>,
    /// For texts: what is done, "connected to rank 2" or the like.
    pub whom: String,
    untried: VecDeque<Addr>,
    live: Vec<u64>,
    next_try: Instant,
    won: bool,
    ends: u32,
    pub failures: Vec<String>,
}

impl Dial {
    pub fn new(
        hello: Hello,
        key: Key,
        body: Vec<u8>,
        max_reply: usize,
        whom: String,
        addrs: Vec<Addr>,
    ) -> Dial {
        Dial {
            hello,
            key,
            body,
            fd: None,
            max_reply,
            patience: None,
            whom,
            untried: addrs.into(),
            live: Vec::new(),
            next_try: Instant::now(),
            won: false,
            ends: 0,
            failures: Vec::new(),
        }
    }

    /// The rank that dials, for log lines.
    pub fn rank(&self) -> Option<usize> {
        Some(self.hello.from as usize)
    }

    /// `token` is the right one; returns the tries to give up.
    pub fn win(&mut self, token: u64) -> Vec<u64> {
        self.won = true;
        let mut losers = self.give_up();
        losers.retain(|t| *t != token);
        self.live.push(token);
        losers
    }

    /// There will be no more tries; returns those that are under way.
    pub fn give_up(&mut self) -> Vec<u64> {
        self.untried.clear();
        std::mem::take(&mut self.live)
    }

    /// A try failed: the next is due.
    pub fn lost(&mut self, token: u64, why: String, now: Instant) {
        self.live.retain(|t| *t != token);
        self.failures.push(why);
        self.next_try = now;
    }

    /// An address is worth another try.
    pub fn again(&mut self, addr: Addr) {
        self.untried.push_front(addr);
    }

    /// A connection ended before the answer, and maybe only because this process was too slow.
    pub fn ended(&mut self, addr: Addr) {
        self.ends += 1;
        if self.ends <= ENDS {
            self.again(addr);
        }
    }

    /// The right process was reached, and then the connection ended.
    pub fn broken(&self, with: &str, why: &str) -> Error {
        if self.hello.to == ROOT {
            return Error::remote(format!("the root process ended before all ranks had joined: {why}"))
                .who(format!("root at {with}"))
                .hint("look for the first error of the process that made the id, or of rank 0");
        }
        Error::remote(format!("rank {} was reached, and then the connection broke: {why}", self.hello.to))
            .who(with.to_string())
            .hint("that rank has died, or gave up: look for its first error")
    }

    /// Where it was tried in vain so far.
    pub fn tried(&self) -> String {
        match self.failures.as_slice() {
            [] => "it has no address that this rank could use".into(),
            some => some.join("; "),
        }
    }
}

impl Ticket {
    /// When the next address is to be tried.
    pub fn dial_next(&self) -> Option<Instant> {
        match &self.task {
            Task::Dial(d) if self.result.is_none() && !d.untried.is_empty() => Some(d.next_try),
            _ => None,
        }
    }

    pub fn dial_due(&self, now: Instant) -> bool {
        self.dial_next().is_some_and(|t| t <= now)
    }
}

impl State {
    pub fn start_dial(&mut self, dial: Dial, now: Instant) -> u64 {
        let ticket = self.token();
        self.tickets.insert(ticket, Ticket { task: Task::Dial(Box::new(dial)), result: None });
        self.dial_more(ticket, now);
        ticket
    }

    /// Tries the addresses that are due; fails the ticket when none is left.
    pub fn dial_more(&mut self, ticket: u64, now: Instant) {
        loop {
            let token = self.token();
            let Some(dial) = self.dial_of(ticket) else { return };
            if dial.won {
                return;
            }
            if dial.untried.is_empty() {
                if dial.live.is_empty() {
                    let tried = dial.tried();
                    self.finish(ticket, Ok(Outcome::Nobody(tried)));
                }
                return;
            }
            if now < dial.next_try {
                return;
            }
            let Some(addr) = dial.untried.pop_front() else { return };
            let unix = matches!(addr, Addr::Unix(_));
            match conn::dial(&addr) {
                Ok(sock) => {
                    let uid = if unix { conn::peer_uid(&sock).ok() } else { Some(host::uid()) };
                    if uid != Some(host::uid()) {
                        dial.failures.push(format!("{addr}: held by user {uid:?}, not by ours"));
                        continue;
                    }
                    dial.live.push(token);
                    dial.next_try = now + STAGGER;
                    let deadline = dial.patience.map(|p| now + p);
                    let c = Conn::new(sock, unix, addr.to_string(), deadline);
                    self.conns.insert(token, (c, Step::Connecting { ticket, addr, since: now }));
                    self.drive(token, now);
                }
                Err(e) if unix && e.kind() == std::io::ErrorKind::WouldBlock => {
                    dial.untried.push_front(addr);
                    dial.next_try = now + QUEUE_FULL;
                    return;
                }
                Err(e) if out_of_fds(&e) => {
                    let who = format!("rank {}", dial.hello.from);
                    self.finish(ticket, Err(no_socket("cannot open a socket", &e).who(who)));
                    return;
                }
                Err(e) => dial.failures.push(format!("{addr}: {e}")),
            }
        }
    }

    /// Gives a ticket up, with the connections that were under way for it.
    pub fn cancel(&mut self, ticket: u64) -> Option<Ticket> {
        let mut t = self.tickets.remove(&ticket)?;
        if let Task::Dial(d) = &mut t.task {
            d.give_up().iter().for_each(|token| drop(self.conns.remove(token)));
        }
        Some(t)
    }
}

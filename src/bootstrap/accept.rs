//! The higher rank's side of a link: a peer that has proved itself waits, parked, until the rank
//! that it asked for wants it; or that rank waits for the peer.

use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::closed;
use super::conn::Conn;
use super::handshake::Step;
use super::service::{State, Task, Ticket, no_fds_left};
use super::wire::{From, Hello, Key, Tag, seal};

/// A rank that waits for a lower one to connect.
pub(super) struct Accept {
    pub tag: Tag,
    pub me: u32,
    pub peer: u32,
    pub purpose: u32,
    pub body: Vec<u8>,
    pub fd: Option<OwnedFd>,
    /// A connection was found and is being concluded.
    pub taken: bool,
}

impl Accept {
    fn wants(&self, hello: &Hello) -> bool {
        !self.taken
            && (self.tag, self.me, self.peer, self.purpose)
                == (hello.tag, hello.to, hello.from, hello.purpose)
    }
}

impl State {
    pub fn start_accept(&mut self, accept: Accept, now: Instant) -> u64 {
        let ticket = self.token();
        let parked = self.conns.iter().find_map(|(token, (_, step))| match step {
            Step::Parked { hello, .. } if accept.wants(hello) => Some(*token),
            _ => None,
        });
        self.tickets.insert(ticket, Ticket { task: Task::Accept(accept), result: None });
        self.fail_cut();
        if let Some(token) = parked {
            self.take(ticket, token, now);
        }
        ticket
    }

    /// A peer's connection was lost for want of a descriptor: (communicator, rank here, peer).
    pub fn cut_off(&mut self, whose: (Tag, u32, u32)) {
        self.cut.push(whose);
        self.fail_cut();
    }

    fn fail_cut(&mut self) {
        for t in self.tickets.values_mut().filter(|t| t.result.is_none()) {
            if let Task::Accept(a) = &t.task
                && self.cut.contains(&(a.tag, a.me, a.peer))
            {
                t.result = Some(Err(no_fds_left()));
            }
        }
    }

    /// A peer has come: to a rank that waits for it already?
    pub fn parked(&mut self, token: u64, now: Instant) {
        let Some((_, Step::Parked { hello, .. })) = self.conns.get(&token) else { return };
        let waiting = self.tickets.iter().find_map(|(ticket, t)| match &t.task {
            Task::Accept(a) if t.result.is_none() && a.wants(hello) => Some(*ticket),
            _ => None,
        });
        if let Some(ticket) = waiting {
            self.take(ticket, token, now);
        }
    }

    /// Answers the parked peer `token` for the rank that waits with `ticket`.
    fn take(&mut self, ticket: u64, token: u64, now: Instant) {
        let Some(Ticket { task: Task::Accept(a), .. }) = self.tickets.get_mut(&ticket) else { return };
        let Some((_, Step::Parked { body, .. })) = self.conns.get_mut(&token) else { return };
        a.taken = true;
        let (theirs, ours, fd) = (std::mem::take(body), std::mem::take(&mut a.body), a.fd.take());
        let message = |c: &mut Conn, secret: &Key| {
            c.send(&seal(secret, From::Acceptor, &ours), fd.filter(|_| c.unix));
        };
        self.conclude(token, message, Step::Last { ticket: Some(ticket), body: theirs }, now);
    }

    /// Rank `me` of this process will take peers: they wait for [`State::open_end`]. False if the process
    /// has that rank already.
    pub fn reserve_end(&mut self, tag: Tag, me: u32) -> bool {
        match self.ends.entry((tag, me)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(None);
                true
            }
        }
    }

    /// The key of the communicator is known: peers may prove that they have it.
    pub fn open_end(&mut self, tag: Tag, me: u32, key: Key, now: Instant) {
        self.ends.insert((tag, me), Some(key));
        self.drive_waiting(now);
    }

    fn drive_waiting(&mut self, now: Instant) {
        let waiting = self.conns.iter().filter(|(_, (c, step))| step.waits_for_key(c)).map(|c| *c.0);
        let waiting: Vec<u64> = waiting.collect();
        waiting.into_iter().for_each(|token| self.drive(token, now));
    }

    /// Rank `me` takes no more peers: forgets those that wait for it, and fails what it waits for.
    pub fn close_end(&mut self, tag: Tag, me: u32) {
        self.ends.remove(&(tag, me));
        for t in self.tickets.values_mut().filter(|t| t.result.is_none()) {
            let (whose, live) = match &mut t.task {
                Task::Accept(a) => ((a.tag, a.me), None),
                Task::Dial(d) => ((d.hello.tag, d.hello.from), Some(d)),
            };
            if whose == (tag, me) {
                live.into_iter().flat_map(|d| d.give_up()).for_each(|token| drop(self.conns.remove(&token)));
                t.result = Some(Err(closed()));
            }
        }
        self.cut.retain(|c| (c.0, c.1) != (tag, me));
        self.conns.retain(|_, (_, step)| {
            !matches!(step, Step::Parked { hello, .. } | Step::Proof { hello, .. }
                if hello.tag == tag && hello.to == me)
        });
        // Those that were too early are too late now.
        self.drive_waiting(Instant::now());
    }
}

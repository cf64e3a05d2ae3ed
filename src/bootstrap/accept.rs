//! The higher rank's side of a link: a peer that has proved itself waits, parked, until the rank
//! that it asked for wants it; or that rank waits for the peer.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::handshake::Step;
use super::service::{State, Task, Ticket};
use super::wire::{From, Tag, seal};

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

impl State {
    pub fn start_accept(&mut self, accept: Accept, now: Instant) -> u64 {
        let ticket = self.token();
        self.tickets.insert(ticket, Ticket { task: Task::Accept(accept), result: None });
        self.match_parked(now);
        ticket
    }

    /// Brings parked peers and those who wait for them together.
    pub fn match_parked(&mut self, now: Instant) {
        let mut pairs = Vec::new();
        for (token, (_, step)) in &mut self.conns {
            let Step::Parked { hello, body, .. } = step else { continue };
            let wanted = self.tickets.iter_mut().find_map(|(ticket, t)| match &mut t.task {
                Task::Accept(a)
                    if !a.taken
                        && t.result.is_none()
                        && (a.tag, a.me, a.peer, a.purpose)
                            == (hello.tag, hello.to, hello.from, hello.purpose) =>
                {
                    Some((*ticket, a))
                }
                _ => None,
            });
            if let Some((ticket, a)) = wanted {
                a.taken = true;
                pairs.push((*token, ticket, std::mem::take(body), std::mem::take(&mut a.body), a.fd.take()));
            }
        }
        for (token, ticket, theirs, ours, fd) in pairs {
            let last = Step::Last { ticket: Some(ticket), body: theirs };
            let message = |c: &mut super::conn::Conn, secret: &_| {
                c.send(&seal(secret, From::Acceptor, &ours), fd.filter(|_| c.unix));
            };
            self.conclude(token, message, last, now);
        }
    }

    /// Rank `me` takes no more peers: forgets those that wait for it.
    pub fn close_end(&mut self, tag: Tag, me: u32) {
        self.ends.remove(&(tag, me));
        self.conns.retain(|_, (_, step)| {
            !matches!(step, Step::Parked { hello, .. } | Step::Proof { hello, .. }
                if hello.tag == tag && hello.to == me)
        });
    }
}

//! The root of a communicator: gathers all ranks' cards and gives everybody all of them, or
//! everybody the same error.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::Member;
use super::conn::{Conn, listen_tcp, listen_unix};
use super::handshake::Step;
use super::service::{Listener, Service, State, no_socket};
use super::wire::{From, Join, Key, Tag, Verdict, put_verdict, random, root_name, seal, tag};
use crate::log::{Level, log};
use crate::{Error, Result};

/// One key's root. A job's root serves all generations of communicators of that job.
pub(super) struct Root {
    pub key: Key,
    /// Takes ranks of this host only: their user has been checked, and the key may be a guessable one.
    pub local: bool,
    /// What could not be opened, for the hint of an error.
    note: String,
    sessions: HashMap<u32, Session>,
}

/// One communicator that is coming together.
struct Session {
    size: u32,
    /// With the settings of each.
    joined: BTreeMap<u32, (Member, Instant, Duration, String)>,
    /// It is over; whoever comes now is told this.
    over: Option<Error>,
}

impl Root {
    pub fn new(key: Key, local: bool) -> Root {
        Root { key, local, note: String::new(), sessions: HashMap::new() }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let open = self.sessions.values().filter(|s| s.over.is_none());
        open.flat_map(|s| s.joined.values().map(|j| j.1)).min()
    }
}

impl Session {
    /// All have the same settings.
    fn agree(&self) -> Result<()> {
        let mut all = self.joined.values().map(|(member, _, _, settings)| (member, settings));
        let Some((first, one)) = all.next() else { return Ok(()) };
        let Some((odd, other)) = all.find(|(_, settings)| *settings != one) else { return Ok(()) };
        let (first, odd) = (first.who(), odd.who());
        let (one, other) = differing(one, other);
        Err(Error::usage(format!(
            "ranks disagree about their settings: {first} has {one}, {odd} has {other}"
        ))
        .hint("set them alike on all ranks, in the environment or in the configuration"))
    }
}

/// "ranks 2, 3" or "rank 2"; long lists are cut.
fn ranks(list: impl Iterator<Item = u32>, len: usize) -> String {
    let text: Vec<String> = list.take(16).map(|r| r.to_string()).collect();
    let more = if len > 16 { format!(" and {} more", len - 16) } else { String::new() };
    format!("rank{} {}{more}", if len == 1 { "" } else { "s" }, text.join(", "))
}

/// The words of two texts, but for those that both have.
fn differing(a: &str, b: &str) -> (String, String) {
    let less = |a: &str, b: &str| {
        let own: Vec<&str> =
            a.split_whitespace().filter(|w| !b.split_whitespace().any(|x| x == *w)).collect();
        own.join(" ")
    };
    (less(a, b), less(b, a))
}

/// "10 s", "0.5 s".
pub(super) fn seconds(d: Duration) -> String {
    format!("{} s", d.as_millis() as f64 / 1000.0)
}

impl Service {
    /// Makes this process the root of a key. It listens at the Unix name of the key and, if `ports`
    /// is not empty, on the first of those TCP ports that is free; `local`: ranks of this host only may
    /// join. Does nothing if it is already.
    pub fn open_root(&self, key: Key, ports: Range<u16>, local: bool) -> Result<()> {
        let tag = tag(&key);
        let mut state = self.lock();
        if state.roots.contains_key(&tag) {
            return Ok(());
        }
        let sock = listen_unix(&root_name(&key)).map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => Error::usage(
                "another process on this host is already the root of this job",
            )
            .hint(
                "either two processes were started as rank 0, or two jobs look the same: give each its own \
                     GRACCL_KEY, or its own MASTER_PORT",
            ),
            _ => no_socket("the root cannot listen at a Unix socket", &e),
        })?;
        state.listeners.push(Listener { sock, unix: true, root: Some(tag) });
        let mut note = String::new();
        if !ports.is_empty() {
            match ports.clone().find_map(|p| listen_tcp(p).ok().map(|s| (p, s))) {
                Some((port, sock)) => {
                    log(Level::Info, Some(0), format_args!("the root listens on TCP port {port}"));
                    state.listeners.push(Listener { sock, unix: false, root: Some(tag) });
                }
                None => {
                    note = format!(
                        "; the root could open none of the TCP ports {} to {}, so it cannot be reached from \
                         other hosts: set GRACCL_PORT to a free one",
                        ports.start,
                        ports.end - 1
                    );
                    log(Level::Warn, Some(0), format_args!("{}", &note[2..]));
                }
            }
        }
        state.roots.insert(tag, Root { note, ..Root::new(key, local) });
        drop(state);
        self.poke();
        Ok(())
    }
}

impl State {
    /// Ends the root of a key here, if it is here.
    pub fn close_root(&mut self, tag: &Tag) {
        self.roots.remove(tag);
        self.listeners.retain(|l| l.root != Some(*tag));
    }

    /// A rank that has proved itself asks to join on connection `token`.
    pub fn root_joined(&mut self, token: u64, join: Join, now: Instant) {
        let Some((_, Step::Joined { tag, generation, rank, .. })) = self.conns.get(&token) else { return };
        let (tag, generation, rank) = (*tag, *generation, *rank);
        let Some(root) = self.roots.get_mut(&tag) else {
            self.conns.remove(&token);
            return;
        };
        let s = root.sessions.entry(generation).or_insert_with(|| Session {
            size: join.size,
            joined: BTreeMap::new(),
            over: None,
        });
        log(Level::Trace, None, format_args!("root: {} joins as one of {}", join.card.who(), join.size));
        let first = s.joined.values().next().map(|j| j.0.who()).unwrap_or_default();
        let verdict = if let Some(over) = &s.over {
            Some(Err(over.clone()))
        } else if join.size != s.size {
            let other = join.card.who();
            Some(Err(Error::usage(format!(
                "ranks disagree about the number of ranks: {first} says {}, {other} says {}",
                s.size, join.size
            ))
            .hint("start all ranks with the same size")))
        } else if let Some((before, ..)) = s.joined.get(&rank) {
            Some(Err(Error::usage(format!(
                "rank {rank} joined twice: {} and {}",
                before.place(),
                join.card.place()
            ))
            .hint("give every process its own rank, and every job its own id or GRACCL_KEY")))
        } else if rank >= s.size {
            Some(Err(Error::usage(format!("{} joined a communicator of {} ranks", join.card.who(), s.size))))
        } else {
            let wait = Duration::from_millis(join.wait_ms.into());
            s.joined.insert(rank, (join.card, now + wait, wait, join.settings));
            let all = s.joined.len() == s.size as usize;
            let members = || s.joined.values().map(|j| j.0.clone()).collect();
            // Not before: whoever came later would not find a root that has ended meanwhile.
            all.then(|| s.agree().and_then(|()| Ok(Verdict { salt: random()?, members: members() })))
        };
        if let Some(verdict) = verdict {
            self.settle(tag, generation, verdict, join.keep, now);
        }
    }

    /// A rank's connection ended while it waited.
    pub fn root_left(&mut self, tag: Tag, generation: u32, rank: u32, now: Instant) {
        let session = self.roots.get(&tag).and_then(|r| r.sessions.get(&generation));
        let Some(s) = session.filter(|s| s.over.is_none()) else { return };
        let who = s.joined.get(&rank).map_or(format!("rank {rank}"), |j| j.0.who());
        let e = Error::remote(format!("{who} ended or gave up before all {} ranks had joined", s.size))
            .hint("look for the first error of that rank");
        self.settle(tag, generation, Err(e), true, now);
    }

    /// Fails the sessions in which a rank has waited as long as it wanted to.
    pub fn roots_expired(&mut self, now: Instant) {
        let mut late = Vec::new();
        for (tag, root) in &self.roots {
            for (generation, s) in root.sessions.iter().filter(|(_, s)| s.over.is_none()) {
                let Some((_, _, wait, _)) = s.joined.values().find(|j| j.1 <= now) else { continue };
                // The size is what some rank says: no list of that length.
                let missing = (0..s.size).filter(|r| !s.joined.contains_key(r));
                let missing = ranks(missing, s.size as usize - s.joined.len());
                let e = Error::timeout(format!(
                    "{} of {} did not join within {}",
                    missing,
                    s.size,
                    seconds(*wait)
                ))
                .hint(format!(
                    "check that they were started, with the same id or GRACCL_KEY, and what they report \
                     themselves; GRACCL_INIT_TIMEOUT sets how long to wait{}",
                    root.note
                ));
                late.push((*tag, *generation, e));
            }
        }
        for (tag, generation, e) in late {
            self.settle(tag, generation, Err(e), true, now);
        }
    }

    /// Fails all sessions that are not complete.
    pub fn fail_roots(&mut self, e: &Error, now: Instant) {
        let open = |r: &Root| r.sessions.iter().filter(|(_, s)| s.over.is_none()).map(|s| *s.0).collect();
        let all: Vec<(Tag, Vec<u32>)> = self.roots.iter().map(|(tag, r)| (*tag, open(r))).collect();
        for (tag, generations) in all {
            generations.into_iter().for_each(|g| self.settle(tag, g, Err(e.clone()), true, now));
        }
    }

    /// Tells all who joined how it ended. A root whose id serves once ends with success.
    fn settle(&mut self, tag: Tag, generation: u32, verdict: Result<Verdict>, keep: bool, now: Instant) {
        if verdict.is_ok() && !keep {
            self.close_root(&tag);
        } else if let Some(s) = self.roots.get_mut(&tag).and_then(|r| r.sessions.get_mut(&generation)) {
            let complete = || {
                Error::usage("this communicator already has all its ranks")
                    .hint("give every process its own rank, and every job its own id or GRACCL_KEY")
            };
            s.over = Some(verdict.as_ref().err().cloned().unwrap_or_else(complete));
            s.joined.clear();
        }
        let bytes = put_verdict(&verdict);
        let all: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, (_, step))| {
                matches!(step, Step::Joined { tag: t, generation: g, .. } if (*t, *g) == (tag, generation))
            })
            .map(|c| *c.0)
            .collect();
        for token in all {
            let message = |c: &mut Conn, secret: &Key| c.send(&seal(secret, From::Acceptor, &bytes), None);
            self.conclude(token, message, Step::Last { ticket: None, body: Vec::new() }, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        assert_eq!(ranks(2..3, 1), "rank 2");
        assert_eq!(ranks(2..4, 2), "ranks 2, 3");
        assert!(ranks(0..20, 20).ends_with("14, 15 and 4 more"));
        assert_eq!(seconds(Duration::from_secs(10)), "10 s");
        assert_eq!(seconds(Duration::from_millis(500)), "0.5 s");
    }
}

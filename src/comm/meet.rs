//! Waiting for peers that are to come to the same call, before there are links to wait on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::peer::{Coming, Gone, Peers, Word};
use super::wait::{self, LONG};
use crate::{Code, Error, Result};

/// Longest wait for one peer before the others are looked at.
const NEWS: Duration = Duration::from_millis(2);
/// How long the cause of a failure may take to go round.
const RUMOUR: Duration = Duration::from_millis(300);

/// One call that connects to its peers.
pub struct Meeting<'a> {
    pub peers: &'a mut Peers,
    abort: &'a AtomicBool,
    seq: u32,
    /// "all_reduce of 10 float (sum)".
    call: String,
    since: Instant,
    timeout: Duration,
    told: bool,
}

impl<'a> Meeting<'a> {
    pub fn new(
        peers: &'a mut Peers,
        abort: &'a AtomicBool,
        seq: u32,
        call: String,
        timeout: Duration,
    ) -> Meeting<'a> {
        Meeting { peers, abort, seq, call, since: Instant::now(), timeout, told: false }
    }

    pub fn deadline(&self) -> Instant {
        self.since + self.timeout
    }

    /// "call 1: all_reduce of 10 float (sum)".
    pub fn position(&self) -> String {
        format!("call {}: {}, connecting", self.seq, self.call)
    }

    /// Waits for all who are to come.
    pub fn await_all(&mut self, mut coming: Vec<Coming>) -> Result<()> {
        while !coming.is_empty() {
            // Any news wakes the first of these waits; the others only look.
            let mut until = Instant::now() + NEWS;
            let mut waiting = Vec::with_capacity(coming.len());
            for mut c in coming {
                match c.ready(until) {
                    None => waiting.push(c),
                    Some(Ok(p)) => self.peers.list.push(p),
                    Some(Err(e)) => return Err(self.failed(e)),
                }
                until = Instant::now();
            }
            coming = waiting;
            self.look(Duration::ZERO)?;
            if Instant::now() > self.deadline()
                && let Some(c) = coming.pop()
            {
                return Err(self.failed(c.late()));
            }
        }
        Ok(())
    }

    /// What to report when connecting to a peer has failed with `e`.
    fn failed(&mut self, mut e: Error) -> Error {
        // That peer may have told others why it gave up, and they us: the cause says more.
        let until = Instant::now() + RUMOUR;
        while e.code == Code::RemoteError && Instant::now() < until {
            if let Err(told) = self.peers.poll(Duration::from_millis(5)) {
                return told;
            }
        }
        let position = self.position();
        if !e.who.contains(&position) {
            e.who = if e.who.is_empty() { position } else { format!("{}, {position}", e.who) };
        }
        if e.code == Code::Timeout && !e.hint.contains("GRACCL_TIMEOUT") {
            e.hint += "; GRACCL_TIMEOUT (seconds) sets the limit";
        }
        e
    }

    /// Looks at everything that may end the wait with an error; sleeps up to `sleep`.
    pub fn look(&mut self, sleep: Duration) -> Result<()> {
        if self.abort.load(Ordering::Relaxed) {
            return Err(wait::aborted(self.position()));
        }
        self.peers.poll(sleep)?;
        if let Some(p) = self.peers.list.iter().find(|p| p.gone == Some(Gone::Died)) {
            return Err(wait::lost(p.rank, Gone::Died, self.position()));
        }
        if self.since.elapsed() > LONG {
            if !self.told {
                self.told = true;
                let word = Word::Call { seq: self.seq, text: self.call.clone() };
                self.peers.tell(&word);
            }
            wait::compare(self.peers, self.seq, &self.call, None)?;
        }
        Ok(())
    }
}

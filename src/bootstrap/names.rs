//! Host names, looked up without blocking: the system's resolver may be silent for longer than anybody
//! wants to wait, and it cannot be interrupted.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::service::spawn;

/// Between looks at what may end a wait early.
const LOOK: Duration = Duration::from_millis(10);

type Lookup = fn(&str) -> io::Result<Vec<IpAddr>>;

fn system(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|a| a.ip()).collect())
}

/// One name, looked up again until the resolver knows it. At most one thread at a time asks.
pub(super) struct Names {
    name: String,
    lookup: Lookup,
    asked: Option<Receiver<io::Result<Vec<IpAddr>>>>,
    found: Vec<IpAddr>,
}

impl Names {
    /// No name has no addresses.
    pub fn new(name: &str) -> Names {
        Names { name: name.into(), lookup: system, asked: None, found: Vec::new() }
    }

    /// The name's addresses, or why there are none (yet). Does not wait beyond `until`, and not much
    /// longer once `cancel` is set.
    pub fn look(&mut self, until: Instant, cancel: &AtomicBool) -> (Vec<IpAddr>, Option<String>) {
        if self.name.is_empty() || !self.found.is_empty() {
            return (self.found.clone(), None);
        }
        let note = |why: String| Some(format!("{}: {why}", self.name));
        if self.asked.is_none() {
            let (answer, asked) = channel();
            let (name, lookup) = (self.name.clone(), self.lookup);
            // Nobody may be there any more to hear it.
            if let Err(e) = spawn("graccl-name", move || drop(answer.send(lookup(&name)))) {
                return (Vec::new(), note(e.to_string()));
            }
            self.asked = Some(asked);
        }
        while let Some(asked) = &self.asked {
            let left = until.saturating_duration_since(Instant::now());
            match asked.recv_timeout(left.min(LOOK)) {
                Ok(Ok(found)) => self.found = found,
                Ok(Err(e)) => {
                    self.asked = None;
                    return (Vec::new(), note(e.to_string()));
                }
                Err(RecvTimeoutError::Timeout) => {
                    if left.is_zero() || cancel.load(Ordering::Relaxed) {
                        return (Vec::new(), note("the resolver does not answer".into()));
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => {}
            }
            self.asked = None;
        }
        (self.found.clone(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(lookup: Lookup) -> Names {
        Names { lookup, ..Names::new("node0") }
    }

    #[test]
    fn a_silent_resolver_delays_nobody() {
        let mut n = names(|_| {
            std::thread::sleep(Duration::from_millis(1500));
            Ok(vec![[10, 0, 0, 1].into()])
        });
        let start = Instant::now();
        let (none, why) = n.look(start + Duration::from_millis(50), &AtomicBool::new(false));
        assert!(none.is_empty() && why.unwrap().contains("node0: the resolver does not answer"));
        let (none, _) = n.look(start + Duration::from_secs(9), &AtomicBool::new(true));
        assert!(none.is_empty() && start.elapsed() < Duration::from_millis(1200), "{:?}", start.elapsed());
        // The same question is answered later.
        let (found, why) = n.look(start + Duration::from_secs(9), &AtomicBool::new(false));
        assert_eq!((found, why), (vec![IpAddr::from([10, 0, 0, 1])], None));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[test]
    fn an_unknown_name_is_asked_for_again() {
        static ASKED: AtomicBool = AtomicBool::new(false);
        let mut n = names(|_| match ASKED.swap(true, Ordering::Relaxed) {
            false => Err(io::Error::other("not known")),
            true => Ok(vec![[10, 0, 0, 2].into()]),
        });
        let soon = Instant::now() + Duration::from_secs(9);
        let on = AtomicBool::new(false);
        assert_eq!(n.look(soon, &on), (vec![], Some("node0: not known".into())));
        assert_eq!(n.look(soon, &on), (vec![IpAddr::from([10, 0, 0, 2])], None));
        assert_eq!(Names::new("").look(soon, &on), (vec![], None));
    }
}

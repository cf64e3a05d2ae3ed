//! Notices that the peer's host is cut off. The module's text says how.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use libc::c_int;

use super::set_option;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// After so long without anything from the peer's host it is asked for a sign of life.
const QUIET: Duration = Duration::from_millis(250);
/// How long the peer's host may leave a question without an answer: Linux sends it anew after 200 and 600 ms.
const SILENCE: Duration = Duration::from_secs(1);
/// TCP_RTO_MAX_MS (Linux 6.15): the longest time in ms between two retransmissions, and between two
/// probes of a closed window.
const RTO_MAX_MS: c_int = 44;

/// Lets the kernel find out about a host that is cut off while the connection is idle.
pub(super) fn keep_alive(fd: &OwnedFd) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32.to_ne_bytes())?;
    // One lost probe is not enough: packets do get lost.
    for (name, value) in [(libc::TCP_KEEPIDLE, 1i32), (libc::TCP_KEEPINTVL, 1), (libc::TCP_KEEPCNT, 2)] {
        set_option(fd, libc::IPPROTO_TCP, name, &value.to_ne_bytes())?;
    }
    // Not everywhere; then the kernel's own times stay.
    let _ = set_option(fd, libc::IPPROTO_TCP, RTO_MAX_MS, &1000i32.to_ne_bytes());
    Ok(())
}

/// What is known of the time since the peer's host gave a sign of life.
#[derive(Default)]
pub(super) struct Watch {
    looked: Option<Instant>,
    /// The first look that found the question which is open now.
    asked: Option<Instant>,
}

/// What a look has found.
pub(super) enum Finding {
    Fine,
    /// Nothing came for a while, and nothing that was sent asks for an answer.
    Silent,
    /// The host is to be given up.
    Lost,
}

impl Watch {
    /// Called when nothing moves, at any rate; looks now and then.
    #[inline]
    pub fn look(&mut self, fd: &OwnedFd) -> Finding {
        let now = Instant::now();
        let last = *self.looked.get_or_insert(now);
        if now - last < LOOK { Finding::Fine } else { self.look_now(fd, now) }
    }

    #[cold]
    fn look_now(&mut self, fd: &OwnedFd, now: Instant) -> Finding {
        self.looked = Some(now);
        let Some(info) = tcp_info(fd) else { return Finding::Fine };
        // Something was sent after the last answer came (a probe of a closed window carries no data), or was to be sent
        // anew: where this host's own link is down that fails at once, and does not count as sent.
        let sent = info.tcpi_last_data_sent < info.tcpi_last_ack_recv || info.tcpi_retransmits > 0;
        let open = info.tcpi_probes > 0 || (info.tcpi_unacked > 0 && sent);
        let ago = |ms: u32| Duration::from_millis(ms.into());
        let answer = ago(info.tcpi_last_ack_recv);
        if !open {
            self.asked = None;
            let quiet = info.tcpi_unacked == 0 && answer.min(ago(info.tcpi_last_data_recv)) >= QUIET;
            return if quiet { Finding::Silent } else { Finding::Fine };
        }
        match self.asked {
            // The same question as at that look, not a later one.
            Some(since) if answer >= now - since => {
                if now - since >= SILENCE {
                    return Finding::Lost;
                }
            }
            _ => self.asked = Some(now),
        }
        Finding::Fine
    }
}

fn tcp_info(fd: &OwnedFd) -> Option<libc::tcp_info> {
    // SAFETY: an all-zero tcp_info is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is writable for `len` bytes; an older kernel writes fewer.
    let r = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut len)
    };
    (r == 0).then_some(info)
}

//! The one background thread of a process: it listens, shakes hands and dials for all
//! communicators, so that a rank that is busy elsewhere is still reachable.
//!
//! All state sits behind one mutex. The thread sleeps in `poll` with the mutex free; whoever changes
//! the state wakes it through an eventfd. It starts with the first use and never ends. A child
//! made by `fork` begins anew: what it inherited is closed in it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::accept::Accept;
use super::conn::{self, Conn, fd_limit_hint, listen_tcp, listen_unix, out_of_fds};
use super::dial::Dial;
use super::root::Root;
use super::wire::{self, HELLO_LEN, Key, Refusal, Tag, random};
use super::{handshake::Step, host};
use crate::log::{Level, log};
use crate::{Code, Error, Result};

/// A stranger must have proved itself within this time.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);
/// No more strangers than this at a time by TCP, and as many by Unix sockets; the others wait in the
/// listeners' queues.
pub(super) const MAX_STRANGERS: usize = 256;
/// When so many are here, one that has not proved itself within this time makes room for another.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between looks at what may end a wait early.
const CANCEL: Duration = Duration::from_millis(20);
/// Without a free descriptor for this long, those who wait for a connection are told.
const NO_FDS: Duration = Duration::from_millis(500);

/// Where this process listens for peers.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub unix: [u8; 16],
    /// 0: no TCP listener could be opened.
    pub port: u16,
    pub addrs: Vec<IpAddr>,
}

pub(super) struct Listener {
    pub sock: Socket,
    pub unix: bool,
    /// Closes with this root.
    pub root: Option<Tag>,
}

/// What a ticket was bought for.
pub(super) enum Outcome {
    /// A stream to a peer: socket, whether it is a Unix one, the peer's hello and descriptor.
    Peer(Socket, bool, Vec<u8>, Option<OwnedFd>),
    /// The root's verdict.
    Verdict(Vec<u8>),
    /// None of the addresses led to the right process; the text says what was tried.
    Nobody(String),
}

pub(super) enum Task {
    Dial(Box<Dial>),
    Accept(Accept),
}

/// Something that a caller's thread waits for.
pub(super) struct Ticket {
    pub task: Task,
    pub result: Option<Result<Outcome>>,
}

#[derive(Default)]
pub(super) struct State {
    running: bool,
    last_token: u64,
    home: Option<Home>,
    pub listeners: Vec<Listener>,
    pub roots: HashMap<Tag, Root>,
    /// Ranks of this process that accept peers, with their communicator's key once it is known.
    pub ends: HashMap<(Tag, u32), Option<Key>>,
    pub conns: HashMap<u64, (Conn, Step)>,
    pub tickets: HashMap<u64, Ticket>,
    /// Peers that came and could not be taken in: (communicator, rank here, peer).
    pub cut: Vec<(Tag, u32, u32)>,
    no_fds_since: Option<Instant>,
    accept_after: Option<Instant>,
}

impl State {
    pub fn token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    pub fn finish(&mut self, ticket: u64, result: Result<Outcome>) {
        if let Some(t) = self.tickets.get_mut(&ticket)
            && t.result.is_none()
        {
            t.result = Some(result);
        }
    }

    /// If no more strangers may come in by Unix sockets or by TCP: when the one that came first may be put
    /// out for another, and its token.
    fn full(&self, unix: bool) -> Option<(Instant, u64)> {
        let strangers = || self.conns.iter().filter(|(_, (c, step))| step.is_stranger() && c.unix == unix);
        let first = strangers().filter_map(|(token, (c, _))| Some((c.deadline?, *token))).min();
        first
            .filter(|_| strangers().count() >= MAX_STRANGERS)
            .map(|(d, token)| (d - HANDSHAKE + PATIENCE, token))
    }

    /// The same, after who is due has been heard: a process that was stopped finds that all of them were silent
    /// for long, before it has read what they said.
    fn still_full(&mut self, unix: bool, now: Instant) -> Option<(Instant, u64)> {
        loop {
            let (until, first) = self.full(unix)?;
            if now >= until {
                self.drive(first, now);
                if self.full(unix).is_none_or(|(_, token)| token != first) {
                    continue;
                }
            }
            return Some((until, first));
        }
    }

    /// Takes in whoever waits at listener `i`.
    pub fn accept(&mut self, i: usize, now: Instant) {
        for _ in 0..64 {
            let Some(l) = self.listeners.get(i) else { return };
            let unix = l.unix;
            let full = self.still_full(unix, now);
            if full.is_some_and(|(until, _)| now < until) {
                return;
            }
            // It may have been that of a root that has told its verdict meanwhile.
            let Some(l) = self.listeners.get(i).filter(|l| l.unix == unix) else { return };
            match l.sock.accept() {
                Ok((sock, from)) => {
                    self.no_fds_since = None;
                    if let Some((_, first)) = full
                        && let Some((c, step)) = self.conns.remove(&first)
                    {
                        self.closed(first, c, step, "it was silent, and others wait".into(), now);
                    }
                    let from = from.as_socket().map_or("unix".into(), |a| a.to_string());
                    self.welcome(sock, unix, from, now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if out_of_fds(&e) => {
                    self.no_fds_since.get_or_insert(now);
                    self.accept_after = Some(now + Duration::from_millis(50));
                    return;
                }
                Err(e) => log(Level::Trace, None, format_args!("accept: {e}")),
            }
        }
    }

    pub fn welcome(&mut self, sock: Socket, unix: bool, from: String, now: Instant) {
        if sock.set_nonblocking(true).is_err() {
            return;
        }
        let mut c = Conn::new(sock, unix, from, Some(now + HANDSHAKE));
        if unix {
            let uid = conn::peer_uid(&c.sock).ok();
            if uid != Some(host::uid()) {
                log(Level::Warn, None, format_args!("refused a connection of user {uid:?}"));
                c.send(&wire::refusal(Refusal::User), None);
                let _ = c.flush();
                return;
            }
        } else {
            let _ = c.sock.set_tcp_nodelay(true);
        }
        c.expect(HELLO_LEN);
        let token = self.token();
        self.conns.insert(token, (c, Step::Hello));
        self.drive(token, now);
    }

    /// Does what is due, and says when the next thing will be.
    pub fn timers(&mut self, now: Instant) -> Option<Instant> {
        let late: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, (c, _))| c.deadline.is_some_and(|d| d <= now))
            .map(|x| *x.0)
            .collect();
        for token in late {
            // A process that was stopped looks at the clock before it has read what came meanwhile.
            self.drive(token, now);
            if let Entry::Occupied(e) = self.conns.entry(token)
                && e.get().0.deadline.is_some_and(|d| d <= now)
            {
                let (c, step) = e.remove();
                self.closed(token, c, step, "it was silent for too long".into(), now);
            }
        }
        let dials: Vec<u64> = self.tickets.iter().filter(|(_, t)| t.dial_due(now)).map(|x| *x.0).collect();
        dials.into_iter().for_each(|t| self.dial_more(t, now));
        self.roots_expired(now);
        if self.accept_after.is_some_and(|t| t <= now) {
            self.accept_after = None;
        }
        if self.no_fds_since.is_some_and(|t| now - t >= NO_FDS) {
            self.no_fds_since = None;
            self.starve(now);
        }
        let conns = self.conns.values().filter_map(|(c, _)| c.deadline);
        let dials = self.tickets.values().filter_map(Ticket::dial_next);
        let roots = self.roots.values().filter_map(Root::next_deadline);
        let full = [false, true].into_iter().filter_map(|unix| Some(self.full(unix)?.0)).filter(|t| *t > now);
        conns.chain(dials).chain(roots).chain(full).chain(self.accept_after).min()
    }

    /// Nobody can be accepted for want of descriptors: fails everything that waits for that.
    fn starve(&mut self, now: Instant) {
        for t in self.tickets.values_mut() {
            if matches!(t.task, Task::Accept(_)) && t.result.is_none() {
                t.result = Some(Err(no_fds_left()));
            }
        }
        self.fail_roots(&no_fds_left(), now);
    }
}

pub(super) struct Service {
    wake: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

static CURRENT: AtomicPtr<Service> = AtomicPtr::new(std::ptr::null_mut());

impl Service {
    /// This process's service, started if need be.
    pub fn get() -> Result<&'static Service> {
        let service = match current() {
            Some(s) => s,
            None => Service::publish()?,
        };
        service.ensure_thread()?;
        Ok(service)
    }

    fn publish() -> Result<&'static Service> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let e = io::Error::last_os_error();
            return Err(no_socket("cannot make an eventfd", &e));
        }
        // SAFETY: `fd` is new and owned by nobody else.
        let wake = unsafe { OwnedFd::from_raw_fd(fd) };
        let new = Box::new(Service { wake, state: Mutex::default(), changed: Condvar::new() });
        let new = Box::into_raw(new);
        // Release: whoever sees the pointer sees the service behind it.
        match CURRENT.compare_exchange(std::ptr::null_mut(), new, Ordering::Release, Ordering::Acquire) {
            Ok(_) => {
                static HANDLERS: Once = Once::new();
                // SAFETY: the handlers are functions that stay valid as long as this library.
                HANDLERS.call_once(|| unsafe {
                    libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child));
                });
                // SAFETY: leaked above, never freed.
                Ok(unsafe { &*new })
            }
            Err(other) => {
                // SAFETY: `new` was not published, so it is still ours alone.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: a published service is never freed.
                Ok(unsafe { &*other })
            }
        }
    }

    fn ensure_thread(&'static self) -> Result<()> {
        let mut state = self.lock();
        if state.running {
            return Ok(());
        }
        let made = spawn("graccl-boot", || self.run());
        made.map_err(|e| Error::io("cannot start the service thread", &e))?;
        state.running = true;
        Ok(())
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes the thread look at the state again.
    pub fn poke(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes 8 readable bytes. A full counter (EAGAIN) wakes as well.
        unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), 8) };
    }

    /// The process's listeners for peers, opened at the first call.
    pub fn home(&self) -> Result<Home> {
        if let Some(home) = &self.lock().home {
            return Ok(home.clone());
        }
        let addrs = host::addresses()?;
        let mut state = self.lock();
        if let Some(home) = &state.home {
            return Ok(home.clone());
        }
        let name = random()?;
        let sock = listen_unix(&name).map_err(|e| no_socket("cannot listen at a Unix socket", &e))?;
        state.listeners.push(Listener { sock, unix: true, root: None });
        // One host works without TCP; ranks on other hosts will find port 0 and say so.
        let port = match listen_tcp(0).and_then(|s| Ok((s.local_addr()?, s))) {
            Ok((addr, sock)) => {
                state.listeners.push(Listener { sock, unix: false, root: None });
                addr.as_socket().map_or(0, |a| a.port())
            }
            Err(e) => {
                log(Level::Info, None, format_args!("no TCP listener: {e}"));
                0
            }
        };
        let home = Home { unix: name, port, addrs };
        state.home = Some(home.clone());
        drop(state);
        self.poke();
        Ok(home)
    }

    /// Waits for `ticket`'s result, not longer than `deadline`, nor much longer once `cancel` is set.
    pub fn wait(&self, ticket: u64, deadline: Instant, cancel: &AtomicBool) -> Option<Result<Outcome>> {
        loop {
            let now = Instant::now();
            let result = self.look(ticket, (now + CANCEL).min(deadline));
            if result.is_some() {
                self.give_up(ticket);
                return result;
            }
            if now >= deadline || cancel.load(Ordering::Relaxed) {
                return None;
            }
        }
    }

    /// Ends a ticket; says what was tried in vain until now, if anything.
    pub fn give_up(&self, ticket: u64) -> String {
        let left = self.lock().cancel(ticket);
        self.poke();
        match left.map(|t| t.task) {
            Some(Task::Dial(d)) => d.failures.join("; "),
            _ => String::new(),
        }
    }

    /// Waits for `ticket`'s result, not longer than `until`. The ticket stays.
    pub fn look(&self, ticket: u64, until: Instant) -> Option<Result<Outcome>> {
        let mut state = self.lock();
        loop {
            match state.tickets.get_mut(&ticket) {
                None => return Some(Err(Error::internal("a connection was forgotten"))),
                Some(t) if t.result.is_some() => return t.result.take(),
                Some(_) => {}
            }
            let now = Instant::now();
            if now >= until {
                return None;
            }
            state = match self.changed.wait_timeout(state, until - now) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Tells waiting threads that results may be there.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut fds: Vec<libc::pollfd> = Vec::new();
        let mut tokens: Vec<u64> = Vec::new();
        loop {
            let mut state = self.lock();
            let now = Instant::now();
            let next = state.timers(now);
            self.notify();
            fds.clear();
            tokens.clear();
            let watch = |fd: &dyn AsRawFd, events| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
            fds.push(watch(&self.wake, libc::POLLIN));
            let listening =
                |unix| state.accept_after.is_none() && state.full(unix).is_none_or(|f| f.0 <= now);
            let listening = [listening(false), listening(true)];
            let listeners = state.listeners.len();
            fds.extend(state.listeners.iter().map(|l| match listening[usize::from(l.unix)] {
                true => watch(&l.sock, libc::POLLIN),
                false => libc::pollfd { fd: -1, events: 0, revents: 0 },
            }));
            for (token, (c, step)) in state.conns.iter().filter(|(_, (c, step))| !step.waits_for_key(c)) {
                let write = c.wants_to_write() || matches!(step, Step::Connecting { .. });
                fds.push(watch(&c.sock, libc::POLLIN | if write { libc::POLLOUT } else { 0 }));
                tokens.push(*token);
            }
            drop(state);

            let wait = next.map_or(-1, |t| {
                let left = t.saturating_duration_since(Instant::now());
                (left.as_micros().div_ceil(1000)).min(60_000) as i32
            });
            // SAFETY: `fds` is valid for its length. A descriptor that another thread closed
            // meanwhile, or a number used anew, costs a look in vain: connections are found by
            // token, and all of them are non-blocking.
            let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, wait) };
            if n <= 0 {
                continue;
            }
            if fds[0].revents != 0 {
                let mut count = [0u8; 8];
                // SAFETY: reads into 8 writable bytes.
                unsafe { libc::read(self.wake.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
            }
            let now = Instant::now();
            let mut state = self.lock();
            // First: whoever has spoken is no stranger that makes room for those who come.
            for (i, token) in tokens.iter().enumerate() {
                if fds[1 + listeners + i].revents != 0 {
                    state.drive(*token, now);
                }
            }
            for i in (0..listeners).filter(|i| fds[1 + i].revents != 0) {
                state.accept(i, now);
            }
        }
    }
}

/// Starts a thread on which none of the application's signal handlers run.
pub(super) fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // SAFETY: both sets are valid places; the old mask is restored below.
    let old = unsafe {
        let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        old
    };
    let made = std::thread::Builder::new().name(name.into()).spawn(f);
    // SAFETY: `old` is the mask read above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut()) };
    made.map(drop)
}

pub(super) fn no_fds_left() -> Error {
    Error::new(Code::SystemError, "cannot accept connections: no file descriptor is free")
        .who(format!("pid {}", std::process::id()))
        .hint(fd_limit_hint())
}

/// A socket or the like could not be made; says so plainly when descriptors ran out.
pub(super) fn no_socket(what: &str, e: &io::Error) -> Error {
    let error = Error::io(what, e);
    if out_of_fds(e) { error.hint(fd_limit_hint()) } else { error }
}

/// This process's service, if it has one.
pub(super) fn current() -> Option<&'static Service> {
    // SAFETY: null, or a published service, which is never freed.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
}

thread_local! {
    /// Held by the forking thread, so that the child finds the state whole.
    static FORKING: RefCell<Option<MutexGuard<'static, State>>> = const { RefCell::new(None) };
}

extern "C" fn before_fork() {
    if let Some(service) = current() {
        let guard = service.lock();
        let _ = FORKING.try_with(|f| *f.borrow_mut() = Some(guard));
    }
}

extern "C" fn after_fork_parent() {
    let _ = FORKING.try_with(|f| f.borrow_mut().take());
}

/// The child has no service thread: it lets go of the parent's sockets, so that their peers notice
/// when the parent dies, and will start its own service if it uses graccl.
extern "C" fn after_fork_child() {
    if let Ok(Some(mut state)) = FORKING.try_with(|f| f.borrow_mut().take()) {
        *state = State::default();
        CURRENT.store(std::ptr::null_mut(), Ordering::Release);
    }
}

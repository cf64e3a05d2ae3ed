//! How ranks find each other and connect.
//!
//! One process is the *root* of a communicator: it made the [`UniqueId`], or it is rank 0 of a job
//! that a launcher started. All ranks connect to the root and leave their [`Member`] card; when
//! all are there, each gets all cards ([`Bootstrap::rendezvous`]). Afterwards any two ranks connect
//! directly ([`Bootstrap::connect`]): by Unix sockets on one host, which then needs no network at
//! all, by TCP otherwise.
//!
//! ```text
//! mod        rendezvous, connect
//! id         the unique id               env      the job as its launcher describes it
//! host       host identity, interfaces and their choice
//! service    the thread that does it     conn     one non-blocking connection
//! handshake  a connection's life         wire     its messages and their proofs
//! names      host names, looked up without blocking
//! fuzz       what a fuzzer calls
//! dial, accept, root   the three things that connections are for
//! ```

mod accept;
mod conn;
mod dial;
mod env;
mod fuzz;
mod handshake;
mod host;
mod id;
mod names;
mod root;
mod service;
mod wire;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use env::{EnvJob, from_env, launched};
#[doc(hidden)]
pub use fuzz::{fuzz_accept, fuzz_dial, fuzz_env, fuzz_id, fuzz_wire};
pub use id::UniqueId;

use crate::log::{Level, log};
use crate::{Code, Error, Result};
use accept::Accept;
use conn::Addr;
use dial::Dial;
use id::{IdParts, Place};
use names::Names;
use service::{Outcome, Service};
use wire::{Hello, Join, Key, MAX_BODY, MAX_VERDICT, ROOT, Role, Tag, Verdict};

/// How long one address of a root that may not be up yet is tried.
const PATIENCE: Duration = Duration::from_secs(2);

/// Purpose of the connections that show whether a rank lives while another waits for it.
const LIFELINE: u32 = u32::MAX;
/// A wait this long gets a lifeline.
const SLOW: Duration = Duration::from_millis(200);
/// Between looks at what else may end a wait.
const LOOK: Duration = Duration::from_millis(10);

/// Longest `hello` of a connection, bytes.
pub const MAX_HELLO: usize = 4096;

/// What every rank knows of every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub rank: usize,
    /// Identity of its host: equal for ranks that can share memory.
    pub host: u64,
    /// Its host's name, followed by "/" and `GRACCL_HOST_ID` if that is set there.
    pub hostname: String,
    /// Its process, as that process sees itself.
    pub pid: u32,
    /// Where other hosts can reach it, best first.
    pub addrs: Vec<IpAddr>,
    /// Its TCP port, 0 if it has none.
    pub port: u16,
    /// Its abstract Unix name.
    unix: [u8; 16],
}

impl Member {
    fn place(&self) -> String {
        format!("pid {} on {}", self.pid, self.hostname)
    }

    /// "rank 2 (pid 7 on node1)".
    pub fn who(&self) -> String {
        format!("rank {} ({})", self.rank, self.place())
    }
}

/// The ranks of one communicator, and the means to connect to them.
///
/// May be shared between threads. Dropping it is [`Bootstrap::close`]; streams that were made stay.
pub struct Bootstrap {
    pub rank: usize,
    pub size: usize,
    /// By rank.
    pub members: Arc<[Member]>,
    /// Host number of each rank: 0, 1, ... in the order of the hosts' first ranks.
    pub hosts: Vec<u32>,
    key: Key,
    /// `None` for a communicator of one rank, which needs none of this.
    link: Option<Arc<Link>>,
}

/// A rank's registration as one that accepts peers.
struct Link {
    service: &'static Service,
    tag: Tag,
    key: Key,
    rank: u32,
    /// Registered. Never when this process has that rank twice: the root will say so.
    open: AtomicBool,
    pid: u32,
}

impl Link {
    /// `key` is what the id says.
    fn new(service: &'static Service, key: Key, rank: u32) -> Link {
        let tag = wire::tag(&key);
        let open = service.lock().reserve_end(tag, rank);
        Link { service, tag, key, rank, open: AtomicBool::new(open), pid: std::process::id() }
    }

    /// With what the root has added to the key, peers can connect.
    fn open(&mut self, salt: &Key) {
        self.key = wire::salted_key(&self.key, salt);
        if *self.open.get_mut() {
            self.service.lock().open_end(self.tag, self.rank, self.key, Instant::now());
            self.service.poke();
        }
    }

    fn close(&self) {
        if self.open.swap(false, Ordering::Relaxed) {
            self.service.lock().close_end(self.tag, self.rank);
            self.service.poke();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// A stream between two ranks.
#[derive(Debug)]
pub struct PeerConn {
    /// A connected stream socket in blocking mode, without delay (TCP). Nothing has been read from it
    /// beyond the peer's hello.
    pub stream: OwnedFd,
    /// It is a Unix socket, between two processes of one host.
    pub local: bool,
    /// What the peer gave as `hello`.
    pub hello: Vec<u8>,
    /// The descriptor that the peer gave, close-on-exec; only over Unix sockets.
    pub fd: Option<OwnedFd>,
}

/// A connection that was asked for: [`Pending::wait`] for it. Dropping it gives it up. It may go to
/// another thread, and outlive the [`Bootstrap`]: it then ends with `Aborted`.
#[must_use]
pub struct Pending {
    link: Arc<Link>,
    members: Arc<[Member]>,
    ticket: u64,
    peer: usize,
    started: Instant,
    /// Ticket of a connection of our own to a peer that is to connect to us.
    lifeline: Option<u64>,
}

impl Bootstrap {
    /// Joins the communicator that `id` names as `rank` of `size`, and learns who the others are.
    /// Collective: blocks until all ranks have joined, or `cancel` is set.
    ///
    /// A process may be several ranks, each in a thread of its own. `settings` is what all ranks must have
    /// alike: words, of which an error names those that differ.
    ///
    /// # Errors
    /// The same on all ranks that joined: `Timeout` with the missing ranks after `init_timeout`,
    /// `InvalidUsage` when a rank joined twice or ranks disagree about `size` or `settings`, `RemoteError` when
    /// a rank or the root died, or a rank gave up. Only here: `Aborted` within some 20 ms once `cancel`
    /// is set, `InvalidArgument`, `RemoteError` when the root cannot be reached, `SystemError`.
    pub fn rendezvous(
        id: &UniqueId,
        rank: usize,
        size: usize,
        settings: &str,
        init_timeout: Duration,
        cancel: &AtomicBool,
    ) -> Result<Bootstrap> {
        if rank >= size || size >= ROOT as usize {
            return Err(Error::argument(format!("rank {rank} of {size} ranks does not exist"))
                .hint("ranks are 0 to size - 1"));
        }
        let parts = id.parts()?;
        let me = host::identity()?;
        let mut card = Member {
            rank,
            host: me.id,
            hostname: me.name,
            pid: std::process::id(),
            addrs: Vec::new(),
            port: 0,
            unix: [0; 16],
        };
        if size == 1 {
            if let Some(service) = service::current().filter(|_| !parts.keep) {
                // An id made here is used up.
                service.lock().close_root(&parts.root_tag());
                service.poke();
            }
            let members = Arc::new([card]);
            return Ok(Bootstrap {
                rank,
                size,
                members,
                hosts: vec![0],
                key: parts.session_key(),
                link: None,
            });
        }
        let service = Service::get().map_err(|e| e.who(format!("rank {rank}")))?;
        let home = service.home().map_err(|e| e.who(format!("rank {rank}")))?;
        (card.unix, card.port, card.addrs) = (home.unix, home.port, home.addrs);
        // Peers may connect as soon as they know this card, so the link comes first.
        let mut link = Link::new(service, parts.session_key(), rank as u32);
        if parts.rank0_listens && rank == 0 {
            let first = parts.port;
            service.open_root(parts.key, first..first.saturating_add(parts.ports.into()), first == 0)?;
        }
        let Verdict { salt, members } = join(service, &parts, card, size, settings, init_timeout, cancel)?;
        link.open(&salt);
        let mut seen: Vec<u64> = Vec::new();
        let hosts = members.iter().map(|m| {
            let n = seen.iter().position(|h| *h == m.host).unwrap_or(seen.len());
            if n == seen.len() {
                seen.push(m.host);
            }
            n as u32
        });
        let hosts = hosts.collect();
        log(Level::Info, Some(rank), format_args!("{size} ranks on {} host(s) have joined", seen.len()));
        Ok(Bootstrap {
            rank,
            size,
            members: members.into(),
            hosts,
            key: link.key,
            link: Some(Arc::new(link)),
        })
    }

    /// A secret that all ranks of this communicator share, and nobody else knows: another one for every
    /// `purpose`, so that none tells anything of another.
    pub fn derive_key(&self, purpose: &str) -> [u8; 32] {
        wire::mac(&self.key, &[b"graccl purpose\0", purpose.as_bytes()])
    }

    /// A number of this communicator, the same on all ranks. It is no secret: it may be written to logs.
    pub fn job(&self) -> u64 {
        let hash = wire::mac(&self.key, &[b"graccl job\0"]);
        u64::from_le_bytes(hash[..8].try_into().expect("8 bytes"))
    }

    /// Connects to `peer`, which must call this with this rank and the same `purpose`. By Unix socket
    /// on one host, else by TCP. `hello` (at most [`MAX_HELLO`] bytes) and, on one host, a duplicate
    /// of `fd` are given to the peer.
    ///
    /// Blocks until the peer has called it too. So ranks must visit their peers in an order that
    /// cannot form a circle (ascending is such an order), or [`Bootstrap::start`] all first.
    ///
    /// # Errors
    /// `Timeout` at `deadline`, `RemoteError` when the peer cannot be reached or has left,
    /// `SystemError` when descriptors run out.
    pub fn connect(
        &self,
        peer: usize,
        purpose: u32,
        hello: &[u8],
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<PeerConn> {
        self.start(peer, purpose, hello, fd, false)?.wait(deadline)
    }

    /// Like [`Bootstrap::connect`] by TCP, even to a rank of this host (then over 127.0.0.1). Both
    /// sides must ask for TCP; use another `purpose` than for other connections.
    pub fn connect_tcp(
        &self,
        peer: usize,
        purpose: u32,
        hello: &[u8],
        deadline: Instant,
    ) -> Result<PeerConn> {
        self.start(peer, purpose, hello, None, true)?.wait(deadline)
    }

    /// Begins to connect without waiting, so that many connections come about at once, in any order.
    /// See [`Bootstrap::connect`]; `tcp` asks for TCP on one host too. `InvalidUsage` after
    /// [`Bootstrap::close`].
    pub fn start(
        &self,
        peer: usize,
        purpose: u32,
        hello: &[u8],
        fd: Option<BorrowedFd<'_>>,
        tcp: bool,
    ) -> Result<Pending> {
        let Some(link) = self.link.as_ref().filter(|_| peer < self.size && peer != self.rank) else {
            return Err(Error::argument(format!(
                "rank {} of {} cannot connect to rank {peer}",
                self.rank, self.size
            )));
        };
        if hello.len() > MAX_HELLO {
            return Err(Error::argument(format!(
                "a hello has at most {MAX_HELLO} bytes, not {}",
                hello.len()
            )));
        }
        if link.pid != std::process::id() {
            return Err(Error::usage("this communicator was made before fork(), by the parent process")
                .hint("create communicators in the process that uses them"));
        }
        let who = || format!("rank {}", self.rank);
        if !link.open.load(Ordering::Relaxed) {
            return Err(Error::usage("this communicator takes no more connections")
                .who(who())
                .hint("it has failed or was left: look for this rank's first error"));
        }
        let fd = fd.map(|f| f.try_clone_to_owned()).transpose();
        let fd = fd.map_err(|e| service::no_socket("cannot duplicate a descriptor", &e).who(who()))?;
        let ticket = if self.rank > peer {
            let (me, peer, body) = (self.rank as u32, peer as u32, hello.to_vec());
            let accept = Accept { tag: link.tag, me, peer, purpose, body, fd, taken: false };
            link.service.lock().start_accept(accept, Instant::now())
        } else {
            link.dial(&self.members, peer, purpose, hello.to_vec(), fd, tcp)
        };
        if !link.open.load(Ordering::Relaxed) {
            // Closed in between, and so the ticket may have come after the others were failed.
            link.service.lock().finish(ticket, Err(closed()));
        }
        link.service.poke();
        let (link, members) = (link.clone(), self.members.clone());
        Ok(Pending { link, members, ticket, peer, started: Instant::now(), lifeline: None })
    }

    /// Takes no more connections: ranks that wait for one are told at once, and what is pending here
    /// ends with `Aborted`. Callable from any thread, again and again.
    pub fn close(&self) {
        if let Some(link) = &self.link {
            link.close();
        }
    }
}

impl Drop for Bootstrap {
    fn drop(&mut self) {
        // What is pending keeps the link itself.
        self.close();
    }
}

/// The error of what was pending when its communicator closed.
fn closed() -> Error {
    Error::new(Code::Aborted, "the communicator was closed while it connected")
        .hint("it has failed or was left: look for this rank's first error")
}

impl Link {
    /// Begins to connect to a rank that may wait for it.
    fn dial(
        &self,
        members: &[Member],
        peer: usize,
        purpose: u32,
        body: Vec<u8>,
        fd: Option<OwnedFd>,
        tcp: bool,
    ) -> u64 {
        let (m, from) = (&members[peer], self.rank);
        let local = m.host == members[from as usize].host;
        let (tag, nonce) = (self.tag, [0; 32]);
        let hello = Hello { role: Role::Peer, tag, generation: 0, from, to: peer as u32, purpose, nonce };
        let whom = format!("connected to {} (purpose {purpose})", m.who());
        let mut dial = Dial::new(hello, self.key, body, MAX_BODY, whom, addresses_of(m, local, tcp));
        dial.fd = fd;
        self.service.lock().start_dial(dial, Instant::now())
    }
}

/// Where `m` can be reached, best first.
fn addresses_of(m: &Member, local: bool, tcp: bool) -> Vec<Addr> {
    if local && !tcp {
        return vec![Addr::Unix(m.unix)];
    }
    if m.port == 0 {
        return Vec::new();
    }
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let loopback = loopback.into_iter().filter(|_| local);
    loopback.chain(m.addrs.iter().copied()).map(|a| Addr::Tcp(SocketAddr::new(a, m.port))).collect()
}

impl Pending {
    /// Waits until the connection is made. See [`Bootstrap::connect`].
    pub fn wait(mut self, deadline: Instant) -> Result<PeerConn> {
        loop {
            let now = Instant::now();
            if let Some(result) = self.ready((now + LOOK).min(deadline)) {
                return result;
            }
            if now >= deadline {
                return Err(self.late());
            }
        }
    }

    /// The result, if it is there before `until`; it is given once. `RemoteError` if the peer was
    /// seen to die.
    pub fn ready(&mut self, until: Instant) -> Option<Result<PeerConn>> {
        let result = match self.link.service.look(self.ticket, until) {
            Some(result) => result,
            None => {
                let dead = self.peer_died()?;
                // It may have connected just before.
                self.link.service.look(self.ticket, Instant::now() + SLOW).unwrap_or(dead)
            }
        };
        let peer = self.members[self.peer].who();
        let me = format!("rank {}", self.link.rank);
        Some(match result {
            Ok(Outcome::Peer(sock, local, hello, fd)) => {
                Ok(PeerConn { stream: sock.into(), local, hello, fd })
            }
            Ok(Outcome::Nobody(tried)) => Err(Error::remote(format!("cannot reach {peer}: {tried}"))
                .who(me)
                .hint("look for that rank's first error; GRACCL_SOCKET_IFNAME chooses the interfaces")),
            Ok(Outcome::Verdict(_)) => Err(Error::internal("a peer answered like a root")),
            Err(e) if e.who.is_empty() => Err(e.who(format!("{me}, {peer}"))),
            Err(e) => Err(e),
        })
    }

    /// The error of a wait that was too long.
    pub fn late(self) -> Error {
        let peer = self.members[self.peer].who();
        let after = root::seconds(self.started.elapsed());
        let tried = match self.link.service.give_up(self.ticket) {
            tried if tried.is_empty() => tried,
            tried => format!("; failed: {tried}"),
        };
        Error::timeout(format!("{peer} did not connect within {after}{tried}"))
            .who(format!("rank {}", self.link.rank))
            .hint(
                "that rank may hang, or a firewall may drop packets between the hosts: \
                 GRACCL_SOCKET_IFNAME chooses the interfaces, GRACCL_DEBUG=info shows them",
            )
    }

    /// A lower rank connects to us, and nothing would tell that it died before. So a wait that takes
    /// long connects to it, too, for nothing but to see that connection end.
    fn peer_died(&mut self) -> Option<Result<Outcome>> {
        let (me, peer) = (self.link.rank as usize, self.peer);
        if peer > me || self.started.elapsed() < SLOW {
            return None;
        }
        let Some(lifeline) = self.lifeline else {
            self.lifeline = Some(self.link.dial(&self.members, peer, LIFELINE, Vec::new(), None, false));
            self.link.service.poke();
            return None;
        };
        self.link.service.look(lifeline, Instant::now())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Waited for or not: nothing of it stays.
        let mut state = self.link.service.lock();
        state.cancel(self.ticket);
        if let Some(t) = self.lifeline {
            state.cancel(t);
        }
        drop(state);
        self.link.service.poke();
    }
}

impl fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bootstrap(rank {} of {}, hosts {:?})", self.rank, self.size, self.hosts)
    }
}

/// The error of a rank that was told to give up before all had joined.
fn cancelled(who: String) -> Error {
    Error::new(Code::Aborted, "the communicator was aborted before all ranks had joined")
        .who(who)
        .hint("abort was called on this rank; the other ranks are told that it gave up")
}

/// Leaves the card at the root and waits for the verdict. While rank 0 has yet to come up, tries
/// again until the time is over.
fn join(
    service: &'static Service,
    id: &IdParts,
    card: Member,
    size: usize,
    settings: &str,
    timeout: Duration,
    cancel: &AtomicBool,
) -> Result<Verdict> {
    let rank = card.rank;
    let me = || format!("rank {rank} of {size}");
    let start = Instant::now();
    let deadline = start + timeout;
    let mut pause = Duration::from_millis(5);
    let mut names = Names::new(match &id.place {
        Place::Named(name) if id.port != 0 => name,
        _ => "",
    });
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(cancelled(me()));
        }
        let (ips, unresolved) = match &id.place {
            Place::Addrs(ips) => (ips.clone(), None),
            Place::Named(_) => names.look(deadline.min(Instant::now() + PATIENCE), cancel),
        };
        let addrs = root_addresses(id, card.host, &ips);
        let left = deadline.saturating_duration_since(Instant::now());
        let wait_ms = left.as_micros().div_ceil(1000).min(u32::MAX as u128) as u32;
        let request =
            Join { size: size as u32, wait_ms, keep: id.keep, settings: settings.into(), card: card.clone() };
        let hello = Hello {
            role: Role::Join,
            tag: id.root_tag(),
            generation: id.generation,
            from: rank as u32,
            to: ROOT,
            purpose: 0,
            nonce: [0; 32],
        };
        let whom = "joined at the root".to_string();
        let mut dial = Dial::new(hello, id.key, request.encode(), MAX_VERDICT, whom, addrs);
        dial.failures.extend(unresolved);
        // Something else may hold one of the ports and keep silent.
        dial.patience = id.rank0_listens.then_some(PATIENCE);
        let ticket = service.lock().start_dial(dial, Instant::now());
        service.poke();
        // The root's own verdict comes at the deadline: a little later it is here.
        let tried = match service.wait(ticket, deadline + Duration::from_secs(1), cancel) {
            Some(Ok(Outcome::Verdict(bytes))) => {
                return wire::parse_verdict(&bytes, size)
                    .ok_or_else(|| Error::internal("the root's answer makes no sense"))?
                    .map_err(|e| if e.who.is_empty() { e.who(me()) } else { e });
            }
            Some(Ok(Outcome::Peer(..))) => return Err(Error::internal("the root answered like a peer")),
            Some(Ok(Outcome::Nobody(tried))) => tried,
            Some(Err(e)) => return Err(e),
            None => match service.give_up(ticket) {
                _ if cancel.load(Ordering::Relaxed) => continue,
                tried if tried.is_empty() => "it is silent".into(),
                tried => tried,
            },
        };
        if !id.rank0_listens {
            return Err(Error::remote(format!("cannot reach the root process: {tried}")).who(me()).hint(
                "the process that made the id must still run, and an id serves for one communicator; from \
                 another host, its TCP port must be reachable (GRACCL_SOCKET_IFNAME chooses the interface)",
            ));
        }
        if Instant::now() + pause >= deadline {
            let after = root::seconds(timeout);
            return Err(Error::timeout(format!("rank 0 did not answer within {after}: {tried}")).who(me()).hint(
                "check that rank 0 was started, that all ranks have the same GRACCL_KEY, and that MASTER_ADDR \
                 (and GRACCL_PORT or MASTER_PORT) lead to its host",
            ));
        }
        let until = Instant::now() + pause;
        while !cancel.load(Ordering::Relaxed) && Instant::now() < until {
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

/// Where the root may listen, best first; `ips` are the addresses of its host.
fn root_addresses(id: &IdParts, my_host: u64, ips: &[IpAddr]) -> Vec<Addr> {
    let mut addrs = Vec::new();
    if id.host == 0 || id.host == my_host {
        addrs.push(Addr::Unix(wire::root_name(&id.key)));
    }
    if id.port != 0 {
        let ports = id.port..id.port.saturating_add(id.ports.into());
        addrs.extend(ips.iter().flat_map(|ip| ports.clone().map(|p| Addr::Tcp(SocketAddr::new(*ip, p)))));
    }
    addrs
}

//! What communicators that come from one another share: the connections to the other ranks' processes,
//! made at first use, watched for the ranks' deaths, and carrying the words of all communicators.
//!
//! ```text
//! Communicator A --+                 +-- Conn to rank 1: words, its arena or a TCP connection
//! Communicator B --+-- Fabric -------+-- Conn to rank 2
//! Communicator C --+     |           +-- ...
//!                        +-- a Post for each communicator: the words that came for it
//! ```
//!
//! Ranks in here are those of the family: of the communicator that all others were split from.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::config::{Config, TransportChoice};
use super::words::{Saying, Word, Words};
use super::{process, warm};
use crate::bootstrap::{Bootstrap, PeerConn, Pending};
use crate::memory::{Arena, Block, PeerArena, arena};
use crate::transport::AnyLink;
use crate::transport::tcp::{TcpConn, TcpOptions};
use crate::{Code, Error, Result};

/// Purposes of connections, see [`Bootstrap::start`].
const WORDS: u32 = 0;
const DATA: u32 = 1;
/// Tiles that a schedule may work on at a time, each on a link of its own.
pub const WAYS_MAX: u32 = 4;
/// In a port: links for several tiles at a time. Schedules that work on one have links of their own, since
/// most communicators need no others.
pub const WIDE: u8 = 0x80;
/// Contexts that have ended and whose late words are dropped.
const ENDED_MAX: usize = 4096;
/// How long the last communicator of a family waits for its peers to leave as well.
const LEAVE: Duration = Duration::from_secs(5);
/// The same of one that failed, for ranks that it has no connection to yet. Those that wait for one are told within
/// milliseconds; the others may never ask.
const FAREWELL: Duration = Duration::from_millis(500);

/// Links to a rank on a port.
pub fn ways_of(port: u8) -> u32 {
    if port & WIDE == 0 { 1 } else { WAYS_MAX }
}

pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded here is consistent after every statement.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a rank ended, for one communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It destroyed the communicator.
    Left,
    /// Its connection closed without a word: it died, or its host is unreachable.
    Died,
}

/// The words that came for one communicator.
#[derive(Default)]
pub struct Post {
    letters: Mutex<Letters>,
}

#[derive(Default)]
pub struct Letters {
    /// The last call that a rank told.
    pub calls: HashMap<usize, (u32, String)>,
    /// The first failure that a rank told.
    pub abort: Option<(usize, i32, String)>,
    pub left: HashSet<usize>,
    /// Where the links of (rank, port) are.
    pub links: HashMap<(usize, u8), u64>,
    pub votes: Vec<(usize, u32, Vec<u32>)>,
    /// Fingerprints of our messages that are in the way of a rank.
    pub asked: Vec<(usize, u32)>,
    /// The call of a message of (rank, fingerprint) that is in ours.
    pub owned: HashMap<(usize, u32), (u32, String)>,
}

impl Post {
    pub fn open(&self) -> MutexGuard<'_, Letters> {
        lock(&self.letters)
    }
}

#[derive(Default)]
struct Posts {
    open: HashMap<u64, Arc<Post>>,
    ended: VecDeque<u64>,
    /// Communicators whose remains may be over: a rank has left them, or this one has, since the last look.
    partings: Vec<u64>,
}

/// How messages get to a rank.
pub enum Data {
    Shm(Arc<PeerArena>),
    Tcp(TcpConn),
}

struct Control {
    /// `None`: words travel over the TCP connection.
    stream: Option<UnixStream>,
    /// What the peer could not take yet.
    unsent: VecDeque<u8>,
    words: Words,
}

/// The connection to a rank's process.
pub struct Conn {
    pub rank: usize,
    pub data: Data,
    /// The rank is a thread of this process.
    pub inside: bool,
    control: Mutex<Control>,
    /// To poll for words.
    fd: RawFd,
    dead: AtomicBool,
    /// Numbers of TCP links that this side hands out.
    next_link: AtomicU32,
}

impl Conn {
    pub fn dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// The peer's process, which shares memory with this one, may still write there. A lost connection says less: it may
    /// have been cut while that process is stopped. But it is all that there is where the process cannot be seen.
    pub fn lives(&self) -> bool {
        process::ended(self.fd).map_or(!self.dead(), |ended| !ended)
    }

    pub fn tcp(&self) -> Option<&TcpConn> {
        match &self.data {
            Data::Tcp(c) => Some(c),
            Data::Shm(_) => None,
        }
    }

    /// A stretch of `n` numbers for links over TCP.
    pub fn link_numbers(&self, n: u32) -> u32 {
        self.next_link.fetch_add(n, Ordering::Relaxed)
    }

    /// Sends a word. What the peer cannot take now is sent later.
    pub fn tell(&self, word: &Word) {
        let mut c = lock(&self.control);
        if self.dead() {
            return;
        }
        let bytes = word.encode();
        match &self.data {
            Data::Tcp(t) => t.tell(&bytes),
            Data::Shm(_) => {
                c.unsent.extend(bytes);
                self.flush(&mut c);
            }
        }
    }

    fn flush(&self, c: &mut Control) {
        let Some(stream) = &mut c.stream else { return };
        while !c.unsent.is_empty() {
            match stream.write(c.unsent.as_slices().0) {
                Ok(n) => drop(c.unsent.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // The end is noticed when reading: words may have come before it.
                Err(_) => c.unsent.clear(),
            }
        }
    }

    /// Words that the peer has not taken yet are left.
    pub fn unsent(&self) -> bool {
        match &self.data {
            Data::Tcp(t) => t.unsent(),
            Data::Shm(_) => !lock(&self.control).unsent.is_empty(),
        }
    }

    /// Sends words that wait, if the peer takes them now. True if some are left.
    pub fn push(&self) -> bool {
        match &self.data {
            Data::Tcp(t) => _ = t.pump(),
            Data::Shm(_) => self.flush(&mut lock(&self.control)),
        }
        !self.dead() && self.unsent()
    }

    /// The words that have arrived.
    fn listen(&self, heard: &mut Vec<Word>) {
        // Another thread at it does the same.
        let Ok(mut c) = self.control.try_lock() else { return };
        if self.dead() {
            return;
        }
        let c = &mut *c;
        self.flush(c);
        let mut over = false;
        match (&self.data, &mut c.stream) {
            (Data::Tcp(t), _) => {
                let mut bytes = Vec::new();
                // Before the words are read: what it said before it broke counts.
                over = t.broken().is_some();
                t.hear(&mut bytes);
                c.words.add(&bytes);
            }
            (_, Some(stream)) => {
                let mut buf = [0; 4096];
                loop {
                    match stream.read(&mut buf) {
                        Ok(0) => {
                            over = true;
                            break;
                        }
                        Ok(n) => c.words.add(&buf[..n]),
                        Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                        Err(e) if e.kind() == ErrorKind::Interrupted => {}
                        Err(_) => {
                            over = true;
                            break;
                        }
                    }
                }
            }
            (Data::Shm(_), None) => {}
        }
        loop {
            match c.words.next() {
                Ok(Some(w)) => heard.push(w),
                Ok(None) => break,
                Err(()) => {
                    over = true;
                    break;
                }
            }
        }
        if over {
            self.dead.store(true, Ordering::Relaxed);
        }
    }
}

/// A rank that is being connected to.
enum Coming {
    Shm(Pending),
    Tcp(Pending),
}

/// See the module's text.
pub struct Fabric {
    pub boot: Bootstrap,
    pub rank: usize,
    pub own: &'static Arena,
    transport: TransportChoice,
    encrypt: bool,
    conns: Vec<OnceLock<Arc<Conn>>>,
    coming: Mutex<HashMap<usize, Coming>>,
    /// Ranks that died before they could be connected to.
    unmet: Mutex<HashSet<usize>>,
    posts: Mutex<Posts>,
    /// Failures of communicators and their members: for members that connect only then.
    announced: Mutex<Vec<(Word, Vec<u32>)>>,
    /// Communicators that have not left.
    live: AtomicUsize,
    /// A connection was lost since the last look at what is left behind.
    lost: AtomicBool,
    _rank: warm::Rank,
}

impl Fabric {
    pub fn new(boot: Bootstrap, config: &Config) -> Result<Arc<Fabric>> {
        let conns = (0..boot.size).map(|_| OnceLock::new()).collect();
        Ok(Arc::new(Fabric {
            rank: boot.rank,
            boot,
            own: arena()?,
            transport: config.transport,
            encrypt: config.encrypt,
            conns,
            coming: Mutex::default(),
            unmet: Mutex::default(),
            posts: Mutex::default(),
            announced: Mutex::default(),
            live: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
            _rank: warm::Rank::new(),
        }))
    }

    /// The ranks share memory, and may use it.
    pub fn by_shm(&self, rank: usize) -> bool {
        self.transport != TransportChoice::Tcp && self.boot.hosts[rank] == self.boot.hosts[self.rank]
    }

    /// One more communicator: its post. Words that came early are in it.
    pub fn join(&self, ctx: u64) -> Arc<Post> {
        self.live.fetch_add(1, Ordering::Relaxed);
        lock(&self.posts).open.entry(ctx).or_default().clone()
    }

    /// From now on tells members that connect. Those that it was not sent to yet.
    pub fn announce(&self, word: Word, to: &[u32]) -> Vec<usize> {
        lock(&self.announced).push((word, to.to_vec()));
        let missing = |&r: &usize| r != self.rank && self.conn(r).is_none_or(|c| !c.dead() && c.unsent());
        to.iter().map(|&r| r as usize).filter(missing).collect()
    }

    /// Connects to the ranks that are to be told of a failure, as far as they want to. True while some have not been told.
    fn untold(&self) -> bool {
        let all: HashSet<u32> = lock(&self.announced).iter().flat_map(|(_, to)| to.clone()).collect();
        let waits = |&r: &usize| match self.conn(r) {
            Some(c) => c.push(),
            None => r != self.rank && !self.unmet(r) && matches!(self.connect(r), Ok(None)),
        };
        // All of them get on.
        all.into_iter().map(|r| r as usize).filter(waits).count() > 0
    }

    /// Some communicator has not left.
    pub fn in_use(&self) -> bool {
        self.live.load(Ordering::Relaxed) > 0
    }

    /// The connection to `rank`, if it is there.
    pub fn conn(&self, rank: usize) -> Option<&Arc<Conn>> {
        self.conns[rank].get()
    }

    /// Somebody has tried to connect to `rank`, maybe another thread, and found that it does not live.
    pub fn unmet(&self, rank: usize) -> bool {
        lock(&self.unmet).contains(&rank)
    }

    /// Connections that are there.
    pub fn connected(&self) -> impl Iterator<Item = &Arc<Conn>> {
        self.conns.iter().filter_map(OnceLock::get)
    }

    /// The connection to `rank`; `None` while it is being made. Both sides must ask.
    pub fn connect(&self, rank: usize) -> Result<Option<Arc<Conn>>> {
        if let Some(c) = self.conns[rank].get() {
            return Ok(Some(c.clone()));
        }
        let mut all = lock(&self.coming);
        if let Some(c) = self.conns[rank].get() {
            return Ok(Some(c.clone()));
        }
        let coming = match all.remove(&rank) {
            Some(c) => c,
            None => self.begin(rank)?,
        };
        let (Coming::Shm(mut pending) | Coming::Tcp(mut pending), shm) = match coming {
            Coming::Shm(p) => (Coming::Shm(p), true),
            Coming::Tcp(p) => (Coming::Tcp(p), false),
        };
        match pending.ready(Instant::now()) {
            None => {
                all.insert(rank, if shm { Coming::Shm(pending) } else { Coming::Tcp(pending) });
                Ok(None)
            }
            Some(Err(e)) if e.code == Code::RemoteError => {
                lock(&self.unmet).insert(rank);
                Err(e)
            }
            Some(met) => {
                let conn = Arc::new(if shm { self.meet_shm(rank, met?) } else { self.meet_tcp(rank, met?) }?);
                for (word, _) in lock(&self.announced).iter().filter(|(_, to)| to.contains(&(rank as u32))) {
                    conn.tell(word);
                }
                Ok(Some(self.conns[rank].get_or_init(|| conn).clone()))
            }
        }
    }

    fn begin(&self, rank: usize) -> Result<Coming> {
        if !self.by_shm(rank) {
            return Ok(Coming::Tcp(self.boot.start(rank, DATA, &[], None, true)?));
        }
        let mut hello = Vec::new();
        for w in [self.own.id(), self.own.size() as u64] {
            hello.extend(w.to_le_bytes());
        }
        Ok(Coming::Shm(self.boot.start(rank, WORDS, &hello, Some(self.own.fd()), false)?))
    }

    /// Gives up connecting to `rank`: the error of a wait that was too long.
    pub fn late(&self, rank: usize) -> Error {
        match lock(&self.coming).remove(&rank) {
            Some(Coming::Shm(p) | Coming::Tcp(p)) => p.late(),
            None => Error::timeout(format!("rank {rank} did not open its link"))
                .hint("see what that rank is doing"),
        }
    }

    fn meet(&self, rank: usize, data: Data, stream: Option<UnixStream>, fd: RawFd) -> Conn {
        let member = |r: usize| {
            let m = &self.boot.members[r];
            (m.host, m.pid)
        };
        let control = Control { stream, unsent: VecDeque::new(), words: Words::default() };
        let inside = match &data {
            // Processes of several containers may have the same number.
            Data::Shm(arena) => !arena.foreign(),
            Data::Tcp(_) => member(rank) == member(self.rank),
        };
        Conn {
            rank,
            data,
            inside,
            control: Mutex::new(control),
            fd,
            dead: AtomicBool::new(false),
            next_link: AtomicU32::new(0),
        }
    }

    fn meet_tcp(&self, rank: usize, met: PeerConn) -> Result<Conn> {
        let options = TcpOptions {
            secret: self.encrypt.then(|| self.boot.derive_key("tcp")),
            initiator: self.rank < rank,
            ..TcpOptions::default()
        };
        let conn = TcpConn::new(met.stream, options).map_err(|e| e.who(format!("rank {rank}")))?;
        let fd = conn.fd();
        Ok(self.meet(rank, Data::Tcp(conn), None, fd))
    }

    fn meet_shm(&self, rank: usize, met: PeerConn) -> Result<Conn> {
        let refused = || {
            Error::remote("a peer's greeting makes no sense")
                .who(format!("rank {rank}"))
                .hint("all ranks must run the same version of graccl")
        };
        let hello: [u8; 16] = met.hello.try_into().map_err(|_| refused())?;
        let (id, size) = hello.split_at(8);
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("8 bytes"));
        let arena = PeerArena::map(word(id), word(size) as usize, met.fd)
            .map_err(|e| e.who(format!("rank {rank}")))?;
        let stream = stream(met.stream)?;
        let fd = stream.as_raw_fd();
        Ok(self.meet(rank, Data::Shm(arena), Some(stream), fd))
    }

    /// Reads the words that have arrived on all connections, and puts them into the posts.
    pub fn listen(&self) {
        let mut heard = Vec::new();
        for conn in self.connected().filter(|c| !c.dead()) {
            conn.listen(&mut heard);
            for w in heard.drain(..) {
                self.deliver(conn.rank, w);
            }
            if conn.dead() {
                self.lost.store(true, Ordering::Relaxed);
            }
        }
    }

    fn deliver(&self, from: usize, word: Word) {
        let post = {
            let mut posts = lock(&self.posts);
            if !posts.open.contains_key(&word.ctx) && posts.ended.contains(&word.ctx) {
                drop(posts);
                if let Saying::Link { port, place } = word.saying {
                    self.retire(from, port as u8, place);
                }
                return;
            }
            posts.open.entry(word.ctx).or_default().clone()
        };
        let mut l = post.open();
        let parting = matches!(word.saying, Saying::Bye);
        match word.saying {
            Saying::Call { seq, text } => drop(l.calls.insert(from, (seq, text))),
            Saying::Abort { code, text } => drop(l.abort.get_or_insert((from, code, text))),
            Saying::Bye => drop(l.left.insert(from)),
            Saying::Link { port, place } => drop(l.links.insert((from, port as u8), place)),
            Saying::Whose { fingerprint } => l.asked.push((from, fingerprint)),
            Saying::Mine { fingerprint, seq, text } => {
                drop(l.owned.insert((from, fingerprint), (seq, text)));
            }
            Saying::Vote { round, ranks } => l.votes.push((from, round, ranks)),
        }
        drop(l);
        // Last: who looks then finds it in the letters.
        if parting {
            lock(&self.posts).partings.push(word.ctx);
        }
    }

    /// The links on a port that `rank` has told are over, whether or not they were opened here.
    fn retire(&self, rank: usize, port: u8, place: u64) {
        if let Some(t) = self.conn(rank).and_then(|c| c.tcp()) {
            let first = place as u32;
            // Our ends of them are closed already.
            let _ = t.retire(first..first.saturating_add(ways_of(port)));
        }
    }

    /// Descriptors on which words may come.
    pub fn fds(&self, fds: &mut Vec<libc::pollfd>) {
        for c in self.connected().filter(|c| !c.dead()) {
            let out = if c.tcp().is_some_and(TcpConn::wants_write) { libc::POLLOUT } else { 0 };
            fds.push(libc::pollfd { fd: c.fd, events: libc::POLLIN | out, revents: 0 });
        }
    }

    /// Moves bytes on all TCP connections. True if anything moved.
    pub fn pump(&self) -> bool {
        self.connected().filter_map(|c| c.tcp()).filter(|c| c.pump()).count() > 0
    }

    /// Later words of this communicator are dropped.
    pub fn end(&self, ctx: u64) {
        lock(&self.announced).retain(|(w, _)| w.ctx != ctx);
        let mut posts = lock(&self.posts);
        posts.open.remove(&ctx);
        posts.ended.push_back(ctx);
        if posts.ended.len() > ENDED_MAX {
            posts.ended.pop_front();
        }
    }
}

/// Takes over a connected Unix socket for non-blocking words.
fn stream(fd: OwnedFd) -> Result<UnixStream> {
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true).map_err(|e| Error::io("cannot make a connection non-blocking", &e))?;
    Ok(stream)
}

/// What a communicator leaves behind: memory that peers may still use.
pub struct Remains {
    pub fabric: Arc<Fabric>,
    pub ctx: u64,
    pub post: Arc<Post>,
    /// Ranks that have links to us.
    pub peers: Vec<usize>,
    pub links: Vec<AnyLink>,
    pub blocks: Vec<Block>,
}

impl Remains {
    /// No peer uses it any more. `outside`: only peers in other processes count.
    fn settled(&self, outside: bool) -> bool {
        let letters = self.post.open();
        self.peers.iter().all(|&r| {
            let conn = self.fabric.conn(r);
            conn.is_none_or(|c| c.dead() || (outside && c.inside)) || letters.left.contains(&r)
        })
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.links.clear();
        for b in self.blocks.drain(..) {
            self.fabric.own.free(b.offset);
        }
        let told = std::mem::take(&mut self.post.open().links);
        for ((rank, port), place) in told {
            self.fabric.retire(rank, port, place);
        }
        self.fabric.end(self.ctx);
    }
}

/// Of the communicators of a family that have left before their peers: their contexts and remains.
struct Left {
    fabric: Arc<Fabric>,
    remains: HashMap<u64, Remains>,
}

impl Left {
    /// Takes out what no peer uses any more. There may be thousands, so it looks only where something has changed.
    fn over(&mut self) -> Vec<Remains> {
        self.fabric.pump();
        self.fabric.listen();
        let mut changed = std::mem::take(&mut lock(&self.fabric.posts).partings);
        if self.fabric.lost.swap(false, Ordering::Relaxed) {
            changed = self.remains.keys().copied().collect();
        }
        let mut settled = |ctx: u64| {
            self.remains.get(&ctx).is_some_and(|r| r.settled(false)).then(|| self.remains.remove(&ctx))
        };
        changed.into_iter().filter_map(|ctx| settled(ctx)?).collect()
    }
}

static REMAINS: Mutex<Vec<Left>> = Mutex::new(Vec::new());

/// Ends a communicator that has said goodbye. The last one of its family stays until the peers in other
/// processes have done the same, because its process may end next: `patient` says whether to wait for that, or only
/// for those that have to be told of a failure.
pub fn leave(remains: Remains, patient: bool) {
    let fabric = remains.fabric.clone();
    let ctx = remains.ctx;
    let mut all = lock(&REMAINS);
    match all.iter_mut().find(|l| Arc::ptr_eq(&l.fabric, &fabric)) {
        Some(l) => drop(l.remains.insert(ctx, remains)),
        None => all.push(Left { fabric: fabric.clone(), remains: HashMap::from([(ctx, remains)]) }),
    }
    drop(all);
    lock(&fabric.posts).partings.push(ctx);
    let last = fabric.live.fetch_sub(1, Ordering::Relaxed) == 1;
    let until = Instant::now() + if patient { LEAVE } else { FAREWELL };
    loop {
        fabric.pump();
        fabric.listen();
        // A peer may still read our last message from memory that we are about to free, and closing a
        // TCP connection with something unread would cut off what is under way to the peer.
        let ours = |l: &&Left| Arc::ptr_eq(&l.fabric, &fabric);
        let waits =
            || lock(&REMAINS).iter().filter(ours).any(|l| l.remains.values().any(|r| !r.settled(true)));
        let unsent = || fabric.connected().any(|c| !c.dead() && !c.inside && c.unsent());
        let stay = last && if patient { waits() || unsent() } else { fabric.untold() };
        if !stay || Instant::now() > until {
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    if last {
        fabric.boot.close();
    }
    sweep();
}

/// Frees what no peer uses any more.
pub fn sweep() {
    let mut all = lock(&REMAINS);
    let over: Vec<Remains> = all.iter_mut().flat_map(Left::over).collect();
    all.retain(|l| !l.remains.is_empty());
    drop(all);
    // Outside of the lock: it frees memory and closes sockets.
    drop(over);
}

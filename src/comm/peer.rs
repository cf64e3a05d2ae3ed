//! Connections to the other ranks: made at first use, watched for the rank's death, and carrying the
//! few words that ranks exchange outside of collectives.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::bootstrap::{Bootstrap, PeerConn, Pending};
use crate::memory::{Arena, Block, PeerArena, make_huge};
use crate::transport::AnyLink;
use crate::transport::shm::{Doorbell, LINK_BYTES, ShmLink};
use crate::transport::tcp::{TcpConn, TcpOptions};
use crate::{Code, Error, Result};

/// Links to one peer on one port: one for each tile that may be worked on at a time.
pub const WAYS_MAX: u32 = 4;
/// Ports that schedules may use.
const PORTS_MAX: usize = 8;

/// How long the last messages of a rank that is gone may still be on their way.
const STRAGGLE: Duration = Duration::from_millis(500);

/// Purposes of connections, see [`Bootstrap::connect`].
const CONTROL: u32 = 0;
const DATA: u32 = 1;

/// What ranks tell each other outside of collectives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// "My call number `seq` is this": sent when a wait grows long or a fingerprint differs.
    Call { seq: u32, text: String },
    /// "I failed, and so must you." The text is the error of the rank it began with.
    Abort { code: i32, text: String },
    /// "I destroy this communicator; I have finished all my calls."
    Bye,
}

impl Word {
    fn encode(&self) -> Vec<u8> {
        let (kind, n, text) = match self {
            Word::Call { seq, text } => (1u8, *seq, text.as_str()),
            Word::Abort { code, text } => (2, *code as u32, text.as_str()),
            Word::Bye => (3, 0, ""),
        };
        let text = &text.as_bytes()[..text.len().min(WORD_MAX)];
        let mut b = Vec::with_capacity(7 + text.len());
        b.extend((text.len() as u16).to_le_bytes());
        b.push(kind);
        b.extend(n.to_le_bytes());
        b.extend(text);
        b
    }
}

/// Longest text of a word.
const WORD_MAX: usize = 2000;

/// The byte stream of words: what has arrived so far.
#[derive(Default)]
struct Words {
    bytes: VecDeque<u8>,
}

impl Words {
    /// The next complete word; an error if the bytes cannot be one.
    fn next(&mut self) -> std::result::Result<Option<Word>, ()> {
        if self.bytes.len() < 7 {
            return Ok(None);
        }
        let b = self.bytes.make_contiguous();
        let len = usize::from(u16::from_le_bytes([b[0], b[1]]));
        if len > WORD_MAX || !(1..=3).contains(&b[2]) {
            return Err(());
        }
        if b.len() < 7 + len {
            return Ok(None);
        }
        let n = u32::from_le_bytes([b[3], b[4], b[5], b[6]]);
        let text = String::from_utf8_lossy(&b[7..7 + len]).into_owned();
        let word = match b[2] {
            1 => Word::Call { seq: n, text },
            2 => Word::Abort { code: n as i32, text },
            _ => Word::Bye,
        };
        self.bytes.drain(..7 + len);
        Ok(Some(word))
    }
}

/// How a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It destroyed the communicator.
    Left,
    /// Its connection closed without a word: it died, or its host is unreachable.
    Died,
}

/// A connected rank.
pub struct Peer {
    pub rank: usize,
    stream: UnixStream,
    words: Words,
    pub gone: Option<Gone>,
    /// The last `Call` it sent.
    pub call: Option<(u32, String)>,
    data: Data,
    /// First link of each port that is open.
    ports: [Option<u32>; PORTS_MAX],
}

enum Data {
    Shm {
        arena: Arc<PeerArena>,
        /// Where the links of each port begin, plus 1, as offsets in the lower rank's arena; written
        /// by the lower rank.
        page: *const [AtomicU64; PORTS_MAX],
        bell: *const Doorbell,
        /// Blocks of our arena to free in the end.
        blocks: Vec<Block>,
        /// The first link's memory, until it has been asked to become huge pages.
        first: Option<*mut u8>,
    },
    Tcp(TcpConn),
}

// SAFETY: the pointers go to arenas that live as long as the peer.
unsafe impl Send for Peer {}

fn words<const N: usize>(b: &[u8]) -> Option<[u64; N]> {
    let mut out = [0; N];
    if b.len() != 8 * N {
        return None;
    }
    for (o, c) in out.iter_mut().zip(b.chunks_exact(8)) {
        *o = u64::from_le_bytes(c.try_into().ok()?);
    }
    Some(out)
}

/// Takes over a connected stream socket of any family for non-blocking words.
fn control_stream(fd: OwnedFd) -> Result<UnixStream> {
    // Only read, write and close are used, which are the same for TCP sockets.
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true).map_err(|e| Error::io("cannot make a connection non-blocking", &e))?;
    Ok(stream)
}

/// A peer that is being connected to.
pub struct Coming {
    rank: usize,
    own: &'static Arena,
    control: Pending,
    /// The control connection, once it is there.
    met: Option<PeerConn>,
    over: Over,
}

enum Over {
    /// The lower rank's block with the places of the links.
    Shm(Option<Block>),
    Tcp(Pending),
}

impl Coming {
    /// Begins to connect to `rank`, by shared memory or TCP. Both sides do so in the same collective.
    pub fn begin(
        boot: &Bootstrap,
        rank: usize,
        shm: bool,
        own: &'static Arena,
        bell: Block,
    ) -> Result<Coming> {
        if !shm {
            let control = boot.start(rank, CONTROL, &[], None, false)?;
            let over = Over::Tcp(boot.start(rank, DATA, &[], None, true)?);
            return Ok(Coming { rank, own, control, met: None, over });
        }
        let page = if boot.rank < rank { Some(own.alloc(4096)?) } else { None };
        let mut hello = Vec::new();
        for w in [own.id(), own.size() as u64, page.map_or(0, |b| b.offset) as u64, bell.offset as u64] {
            hello.extend(w.to_le_bytes());
        }
        let control = boot.start(rank, CONTROL, &hello, Some(own.fd()), false)?;
        Ok(Coming { rank, own, control, met: None, over: Over::Shm(page) })
    }

    /// The peer, if it is connected before `until`.
    pub fn ready(&mut self, until: Instant) -> Option<Result<Peer>> {
        if self.met.is_none() {
            match self.control.ready(until)? {
                Ok(c) => self.met = Some(c),
                Err(e) => return Some(Err(e)),
            }
        }
        match &mut self.over {
            Over::Shm(_) => Some(self.by_shm()),
            Over::Tcp(data) => match data.ready(until)? {
                Ok(data) => Some(self.by_tcp(data)),
                Err(e) => Some(Err(e)),
            },
        }
    }

    /// The error of a wait that was too long.
    pub fn late(self) -> Error {
        match self.over {
            Over::Tcp(data) if self.met.is_some() => data.late(),
            _ => self.control.late(),
        }
    }

    fn peer(&mut self, data: Data) -> Result<Peer> {
        let control = self.met.take().ok_or_else(|| Error::internal("a peer was met twice"))?;
        Ok(Peer {
            rank: self.rank,
            stream: control_stream(control.stream)?,
            words: Words::default(),
            gone: None,
            call: None,
            data,
            ports: [None; PORTS_MAX],
        })
    }

    fn by_tcp(&mut self, data: PeerConn) -> Result<Peer> {
        let conn = TcpConn::new(data.stream, TcpOptions::default())?;
        self.peer(Data::Tcp(conn))
    }

    fn by_shm(&mut self) -> Result<Peer> {
        let refused = || {
            Error::remote("a peer's greeting makes no sense")
                .who(format!("rank {}", self.rank))
                .hint("all ranks must run the same version of graccl")
        };
        let Some((control, Over::Shm(block))) = self.met.as_mut().zip(Some(&self.over)) else {
            return Err(refused());
        };
        let [id, size, peer_page, peer_bell] = words::<4>(&control.hello).ok_or_else(refused)?;
        let arena = PeerArena::map(id, size as usize, control.fd.take())
            .map_err(|e| e.who(format!("rank {}", self.rank)))?;
        let bell = arena.at(peer_bell as usize, 64).ok_or_else(refused)?;
        let page = match block {
            // SAFETY: our own block.
            Some(b) => unsafe { self.own.base().add(b.offset) },
            None => arena.at(peer_page as usize, 4096).ok_or_else(refused)?,
        };
        if !(page as usize).is_multiple_of(64) || !(bell as usize).is_multiple_of(64) {
            return Err(refused());
        }
        let blocks = block.iter().copied().collect();
        self.peer(Data::Shm { arena, page: page.cast(), bell: bell.cast(), blocks, first: None })
    }
}

impl Peer {
    /// The first of the links on `port`, opened if need be: `None` while the lower rank has not
    /// told where they are (ask again).
    pub fn open(
        &mut self,
        port: u8,
        lower: bool,
        crowded: bool,
        own: &'static Arena,
        links: &mut Vec<AnyLink>,
    ) -> Result<Option<u32>> {
        let p = usize::from(port);
        if p >= PORTS_MAX {
            return Err(Error::internal(format!("a schedule uses port {port}, {PORTS_MAX} are the limit")));
        }
        if let Some(first) = self.ports[p] {
            return Ok(Some(first));
        }
        let first = links.len() as u32;
        match &mut self.data {
            Data::Tcp(conn) => {
                for way in 0..WAYS_MAX {
                    links.push(AnyLink::Other(Box::new(conn.link(u32::from(port) * WAYS_MAX + way)?)));
                }
            }
            Data::Shm { arena, page, bell, blocks, first: memory } => {
                // SAFETY: a page of AtomicU64 in one of the two arenas.
                let cell = unsafe { &(**page)[p] };
                let total = WAYS_MAX as usize * LINK_BYTES;
                let base = if lower {
                    let b = own.alloc(total)?;
                    blocks.push(b);
                    // Release: the block is zeroed before the peer finds it.
                    cell.store(b.offset as u64 + 1, Ordering::Release);
                    // SAFETY: our own block.
                    unsafe { own.base().add(b.offset) }
                } else {
                    let offset = cell.load(Ordering::Acquire);
                    if offset == 0 {
                        return Ok(None);
                    }
                    arena.at(offset as usize - 1, total).ok_or_else(|| {
                        Error::remote("a peer placed a link outside its memory")
                            .who(format!("rank {}", self.rank))
                    })?
                };
                memory.get_or_insert(base);
                for way in 0..WAYS_MAX as usize {
                    // SAFETY: a zeroed stretch of LINK_BYTES in the lower rank's arena; arena and bell
                    // stay mapped through the Arc that the link keeps.
                    let link = unsafe {
                        let base = base.add(way * LINK_BYTES);
                        ShmLink::new(base, lower, own, arena.clone(), *bell, crowded)
                    };
                    links.push(AnyLink::Shm(link));
                }
            }
        }
        self.ports[p] = Some(first);
        Ok(Some(first))
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The TCP connection that carries messages, if they do not go through shared memory.
    pub fn tcp(&self) -> Option<&TcpConn> {
        match &self.data {
            Data::Tcp(c) => Some(c),
            Data::Shm { .. } => None,
        }
    }

    /// It is gone, and nothing of what it sent is still under way: `after` it was noticed. Words and
    /// messages through TCP travel apart, so a word may overtake the last messages.
    pub fn silent(&self, after: Duration) -> bool {
        self.gone.is_some() && self.tcp().is_none_or(|c| c.broken().is_some() || after > STRAGGLE)
    }

    /// Whether `link` belongs to this peer.
    pub fn owns(&self, link: u32) -> bool {
        self.ports.iter().flatten().any(|&f| (f..f + WAYS_MAX).contains(&link))
    }

    /// Sends a word. What the peer cannot take now is dropped: it does not listen, and its end
    /// of the connection will tell it that something happened.
    pub fn tell(&mut self, word: &Word) {
        if self.gone.is_none() {
            let _ = self.stream.write_all(&word.encode());
        }
    }

    /// Reads what has arrived. An `Abort` is handed to the caller.
    pub fn listen(&mut self) -> Option<Word> {
        let mut buf = [0; 4096];
        while self.gone.is_none() {
            match self.stream.read(&mut buf) {
                Ok(0) => self.gone = Some(Gone::Died),
                Ok(n) => self.words.bytes.extend(&buf[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = Some(Gone::Died),
            }
        }
        loop {
            match self.words.next() {
                Ok(Some(Word::Call { seq, text })) => self.call = Some((seq, text)),
                Ok(Some(Word::Bye)) => {
                    self.gone = Some(Gone::Left);
                    return None;
                }
                Ok(Some(w)) => return Some(w),
                Ok(None) => return None,
                Err(()) => {
                    self.gone = Some(Gone::Died);
                    return None;
                }
            }
        }
    }

    /// Asks for huge pages under the slots that large calls use most: those of the first link.
    pub fn make_huge(&mut self) {
        if let Data::Shm { first, .. } = &mut self.data
            && let Some(p) = first.take()
        {
            // SAFETY: the first link's memory, mapped as long as the peer lives.
            unsafe { make_huge(p, LINK_BYTES) };
        }
    }

    /// Frees this rank's part of the shared memory. Only when the peer does not use it any more.
    pub fn free(&mut self, own: &'static Arena) {
        if let Data::Shm { blocks, .. } = &mut self.data {
            for b in blocks.drain(..) {
                own.free(b.offset);
            }
        }
    }
}

/// All connected peers.
#[derive(Default)]
pub struct Peers {
    pub list: Vec<Peer>,
    /// poll(2)'s table, kept between calls.
    fds: Vec<libc::pollfd>,
}

impl Peers {
    pub fn get(&mut self, rank: usize) -> Option<&mut Peer> {
        self.list.iter_mut().find(|p| p.rank == rank)
    }

    pub fn of_link(&self, link: u32) -> Option<&Peer> {
        self.list.iter().find(|p| p.owns(link))
    }

    pub fn tell(&mut self, word: &Word) {
        for p in &mut self.list {
            p.tell(word);
        }
    }

    /// Sleeps until a control word arrives, TCP data moves, or `timeout` is over; then reads the
    /// control words. An error if some rank says that it failed.
    pub fn poll(&mut self, timeout: Duration) -> Result<()> {
        self.fds.clear();
        for p in self.list.iter().filter(|p| p.gone.is_none()) {
            self.fds.push(libc::pollfd { fd: p.fd(), events: libc::POLLIN, revents: 0 });
        }
        let control = self.fds.len();
        if !timeout.is_zero() {
            for c in self.list.iter().filter_map(|p| p.tcp()).filter(|c| c.broken().is_none()) {
                // Never ask for POLLOUT without something to send: poll would return at once, for ever.
                let out = if c.wants_write() { libc::POLLOUT } else { 0 };
                self.fds.push(libc::pollfd { fd: c.fd(), events: libc::POLLIN | out, revents: 0 });
            }
        }
        if self.fds.is_empty() {
            std::thread::sleep(timeout);
            return Ok(());
        }
        let t = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
        };
        // SAFETY: a valid table and timeout.
        let n = unsafe {
            libc::ppoll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, &t, std::ptr::null())
        };
        if n <= 0 || self.fds[..control].iter().all(|f| f.revents == 0) {
            return Ok(());
        }
        for p in &mut self.list {
            if let Some(Word::Abort { code, text }) = p.listen() {
                return Err(Error::new(remote_code(code), text).who(format!("told by rank {}", p.rank)));
            }
        }
        Ok(())
    }
}

/// The code of another rank's failure as it concerns us.
fn remote_code(code: i32) -> Code {
    const SAME: [Code; 3] = [Code::InvalidUsage, Code::Timeout, Code::Aborted];
    SAME.into_iter().find(|c| *c as i32 == code).unwrap_or(Code::RemoteError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_any_split_and_garbage_is_refused() {
        let said = [
            Word::Call { seq: 7, text: "all_reduce".into() },
            Word::Bye,
            Word::Abort { code: 6, text: "x".repeat(WORD_MAX) },
        ];
        let bytes: Vec<u8> = said.iter().flat_map(Word::encode).collect();
        for step in [1, 2, 3, 7, 1000, bytes.len()] {
            let mut w = Words::default();
            let mut got = Vec::new();
            for c in bytes.chunks(step) {
                w.bytes.extend(c);
                while let Some(x) = w.next().unwrap() {
                    got.push(x);
                }
            }
            assert_eq!(got, said);
        }
        let mut w = Words::default();
        w.bytes.extend(b"GET / HTTP/1.1\r\n");
        assert!(w.next().is_err());
    }
}

//! What a fuzzer calls: bytes, as an attacker might send them, against everything here that reads what
//! comes from outside. No input may panic, hang or take much memory, or get a stranger in.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use socket2::Socket;

use super::accept::Accept;
use super::conn::{Addr, listen_unix};
use super::dial::Dial;
use super::env::{self, Env};
use super::handshake::Step;
use super::id::UniqueId;
use super::root::Root;
use super::service::{Outcome, State};
use super::wire::{
    self, ANSWER_LEN, From, HELLO_LEN, Hello, Join, Key, MAX_VERDICT, Reader, Role, Verdict, frame_len, tag,
};
use super::{Member, host};

/// The message parsers, one after the other, on the same bytes; whether they begin with a hello of this version.
#[doc(hidden)]
pub fn fuzz_wire(data: &[u8]) -> bool {
    let key: Key = [7; 32];
    let mut greets = false;
    if let Some(Ok(b)) = data.get(..HELLO_LEN).map(<&[u8; HELLO_LEN]>::try_from) {
        if let Ok(hello) = Hello::parse(b) {
            assert_eq!(hello.encode(), *b, "a hello has one spelling");
            greets = true;
        }
        if let Some(Ok(answer)) = data.get(HELLO_LEN..HELLO_LEN + ANSWER_LEN).map(TryInto::try_into) {
            assert!(wire::check_answer(&key, b, answer).is_err(), "a proof by chance");
        }
    }
    if let Some(whole) = frame_len(data, wire::MAX_BODY) {
        assert!((36..=wire::MAX_BODY + 36).contains(&whole));
        let frame = &data[..data.len().min(whole)];
        assert!(wire::open(&key, From::Connector, frame).is_none(), "a proof by chance");
    }
    if let Some(join) = Join::parse(data) {
        assert_eq!(Join::parse(&join.encode()).as_ref(), Some(&join));
    }
    for size in [0, 1, 3, usize::MAX] {
        if let Some(verdict) = wire::parse_verdict(data, size) {
            let again = wire::put_verdict(&verdict);
            assert_eq!(wire::parse_verdict(&again, size), Some(verdict));
        }
    }
    greets
}

/// An id: bytes with a right checksum, and text.
#[doc(hidden)]
pub fn fuzz_id(data: &[u8]) {
    let mut id = UniqueId([0; 128]);
    let n = data.len().min(124);
    id.0[..n].copy_from_slice(&data[..n]);
    let sum = Sha256::digest(&id.0[..124]);
    id.0[124..].copy_from_slice(&sum[..4]);
    if let Ok(parts) = id.parts() {
        let (again, all) = parts.encode();
        assert!(all);
        assert_eq!(again.parts().as_ref(), Ok(&parts));
        let _ = super::root_addresses(&parts, 1, &[[10, 0, 0, 1].into()]);
    }
    assert_eq!(UniqueId::from_hex(&id.to_hex()).is_ok(), id.parts().is_ok());
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = UniqueId::from_hex(text);
    }
    let _ = format!("{id:?}");
}

/// Environment variables, "NAME=value" in lines.
#[doc(hidden)]
pub fn fuzz_env(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let get = |name: &str| {
        let mut values = text.lines().filter_map(|l| l.split_once('=')).filter(|v| v.0 == name);
        values.next_back().map(|v| v.1.trim().to_string()).filter(|v| !v.is_empty())
    };
    if let Ok(found) = (Env { get: &get, launcher: &|v| format!("launcher of {v}") }).find() {
        // Longer names are looked up.
        if found.root.as_ref().is_none_or(|r| r.0.len() <= super::id::MAX_NAME)
            && let Ok(job) = found.job(get("GRACCL_KEY"), 0)
        {
            assert!(job.rank < job.size && job.id.parts().is_ok());
        }
    }
    if let Some(list) = get("SLURM_STEP_NODELIST") {
        assert!(env::first_host(&list).len() <= list.len());
    }
    if let Some(filter) = get("GRACCL_SOCKET_IFNAME") {
        host::fuzz_choose(&filter);
    }
    let _ = host::label(get("GRACCL_HOST_ID"));
    crate::Config::from_vars(&get).map_or_else(|e| assert!(!e.hint.is_empty(), "{e}"), drop);
}

const KEY: Key = [7; 32];
/// Rank 1 of a communicator of its own lives here.
const ME: u32 = 1;

/// A script's bytes; zeros when they are over.
struct Script<'a>(Reader<'a>);

impl<'a> Script<'a> {
    fn over(&self) -> bool {
        self.0.0.is_empty()
    }
    fn byte(&mut self) -> u8 {
        self.0.u8().unwrap_or(0)
    }
    fn word(&mut self) -> u32 {
        let b = self.byte();
        // Mostly small numbers, which mean something, and sometimes any.
        if b < 0xf0 { u32::from(b) } else { self.0.u32().unwrap_or(u32::MAX) }
    }
    /// Up to 255 bytes, or 8 KiB.
    fn bytes(&mut self) -> Vec<u8> {
        let n = match self.byte() {
            255 => 8192,
            n => usize::from(n),
        };
        let take = n.min(self.0.0.len());
        let mut bytes = self.0.bytes(take).unwrap_or_default().to_vec();
        if n == 8192 {
            bytes.resize(n, 1);
        }
        bytes
    }
    fn member(&mut self) -> Member {
        Member {
            rank: self.word() as usize,
            host: 1,
            hostname: String::from_utf8_lossy(&self.bytes()).into(),
            pid: self.word(),
            addrs: (0..self.byte() % 20).map(|i| [10, 0, 0, i].into()).collect(),
            port: self.word() as u16,
            unix: [0; 16],
        }
    }
}

/// The other end of a connection that a script speaks on.
struct Stranger {
    stream: UnixStream,
    hello: Option<[u8; HELLO_LEN]>,
    heard: Vec<u8>,
}

impl Stranger {
    fn new(sock: Socket) -> Stranger {
        let stream = UnixStream::from(std::os::fd::OwnedFd::from(sock));
        let _ = stream.set_nonblocking(true);
        Stranger { stream, hello: None, heard: Vec::new() }
    }
    fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write(bytes);
    }
    fn hear(&mut self) {
        let mut buf = [0; 4096];
        while let Ok(n) = self.stream.read(&mut buf)
            && n > 0
        {
            self.heard.extend(&buf[..n]);
        }
    }
}

fn drive_all(state: &mut State, now: Instant) {
    let mut tokens: Vec<u64> = state.conns.keys().copied().collect();
    tokens.sort_unstable();
    tokens.into_iter().for_each(|t| state.drive(t, now));
}

/// A conversation with the acceptor of peers and joining ranks. A script of strangers: they send any
/// bytes, or proper messages with any content, with or without knowing the key, in any order. How many
/// streams were given to a rank.
#[doc(hidden)]
pub fn fuzz_accept(data: &[u8]) -> usize {
    let mut s = Script(Reader(data));
    let mut state = State::default();
    let start = Instant::now();
    let mut now = start;
    let root = tag(&KEY);
    let peers: Key = [8; 32];
    state.roots.insert(root, Root::new(KEY, false));
    state.reserve_end(tag(&peers), ME);
    if s.byte() % 4 != 0 {
        state.open_end(tag(&peers), ME, peers, now);
    }
    let mut all: Vec<Stranger> = Vec::new();
    let mut tickets = Vec::new();
    // How many may be in, at most.
    let mut proofs = 0;
    for _ in 0..64 {
        if s.over() {
            break;
        }
        let op = s.byte() % 10;
        if op == 0 && all.len() < 4 {
            let Ok((here, there)) = Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None) else {
                return 0;
            };
            all.push(Stranger::new(there));
            state.welcome(here, true, "fuzz".into(), now);
        }
        let n = all.len();
        let which = usize::from(s.byte());
        let Some(stranger) = all.get_mut(which % n.max(1)) else { continue };
        match op {
            1 => {
                stranger.say(&s.bytes());
            }
            2 => {
                let (role, tag) = match s.byte() % 4 {
                    0 => (Role::Join, root),
                    1 => (Role::Peer, tag(&peers)),
                    2 => (Role::Join, tag(&peers)),
                    _ => (Role::Peer, [s.byte(); 16]),
                };
                let (generation, from, to) = (s.word(), s.word(), s.word());
                let hello =
                    Hello { role, tag, generation, from, to, purpose: s.word(), nonce: [s.byte(); 32] };
                stranger.hello = Some(hello.encode());
                stranger.say(&hello.encode());
            }
            // Proves that it has the key, if it has been answered, or does not.
            3..=5 => {
                let body = match op {
                    3 => s.bytes(),
                    _ => {
                        let (size, wait_ms) = (s.word(), s.word());
                        let keep = s.byte() % 2 == 0;
                        let settings = format!("GRACCL_ENCRYPT={keep}");
                        Join { size, wait_ms, keep, settings, card: s.member() }.encode()
                    }
                };
                stranger.hear();
                let Some(hello) = stranger.hello else { continue };
                let Some(Ok(answer)) = stranger.heard.get(..ANSWER_LEN).map(TryInto::try_into) else {
                    continue;
                };
                let key = if hello[7] == Role::Join as u8 { KEY } else { peers };
                let Ok(mut secret) = wire::check_answer(&key, &hello, answer) else { continue };
                if op == 5 {
                    // Knows all but the key.
                    secret = wire::secret(&[9; 32], &hello, answer[8..40].try_into().expect("32 bytes"));
                } else {
                    proofs += 1;
                }
                stranger.say(&wire::seal(&secret, From::Connector, &body));
            }
            6 => {
                let _ = stranger.stream.shutdown(std::net::Shutdown::Both);
            }
            7 => {
                now += Duration::from_millis(u64::from(s.word()) * 50);
                state.timers(now);
            }
            8 => {
                let (peer, purpose, body) = (s.word(), s.word(), s.bytes());
                let accept = Accept { tag: tag(&peers), me: ME, peer, purpose, body, fd: None, taken: false };
                tickets.push(state.start_accept(accept, now));
            }
            9 => match s.byte() % 4 {
                0 => state.close_end(tag(&peers), ME),
                1 => state.close_root(&root),
                2 => state.open_end(tag(&peers), ME, peers, now),
                _ => drop(tickets.pop().map(|t| state.cancel(t))),
            },
            _ => {}
        }
        drive_all(&mut state, now);
        let inside = state.conns.values().filter(|(_, step)| !step.is_stranger()).filter(|(_, step)| {
            matches!(step, Step::Parked { .. } | Step::Joined { .. } | Step::Last { ticket: Some(_), .. })
        });
        assert!(inside.count() <= proofs, "somebody got in without proving that it knows the key");
    }
    let given = tickets.iter().filter(|t| {
        let result = state.tickets.get_mut(t).and_then(|t| t.result.take());
        matches!(result, Some(Ok(Outcome::Peer(..))))
    });
    let given = given.count();
    assert!(given <= proofs, "a stranger was given to a rank");
    given
}

/// A conversation with one who dials: a script of what answers there. Whether it came to its end.
#[doc(hidden)]
pub fn fuzz_dial(data: &[u8]) -> bool {
    thread_local! {
        static LISTENER: (Socket, [u8; 16]) = {
            let name = wire::random().expect("random bytes");
            (listen_unix(&name).expect("a listener"), name)
        };
    }
    LISTENER.with(|(listener, name)| dial_by(listener, name, data))
}

fn dial_by(listener: &Socket, name: &[u8; 16], data: &[u8]) -> bool {
    let mut s = Script(Reader(data));
    let mut state = State::default();
    let join = s.byte() % 2 == 0;
    let (role, to, max) = match join {
        true => (Role::Join, wire::ROOT, MAX_VERDICT),
        false => (Role::Peer, 2, wire::MAX_BODY),
    };
    let hello = Hello { role, tag: tag(&KEY), generation: 0, from: 1, to, purpose: 0, nonce: [0; 32] };
    let mut dial = Dial::new(hello, KEY, vec![1, 2, 3], max, "fuzz".into(), vec![Addr::Unix(*name); 2]);
    dial.patience = (s.byte() % 2 == 0).then_some(Duration::from_millis(100));
    // Not before the first try is due.
    let mut now = Instant::now();
    let ticket = state.start_dial(dial, now);
    let mut all: Vec<Stranger> = Vec::new();
    // Some stranger has proved that it has the key, and said its last word.
    let mut proved = false;
    for _ in 0..64 {
        if s.over() {
            break;
        }
        while let Ok((sock, _)) = listener.accept() {
            all.push(Stranger::new(sock));
        }
        let n = all.len();
        let (op, which) = (s.byte() % 7, usize::from(s.byte()));
        let Some(stranger) = all.get_mut(which % n.max(1)) else { break };
        stranger.hear();
        let hello: Option<[u8; HELLO_LEN]> = stranger.heard.get(..HELLO_LEN).and_then(|b| b.try_into().ok());
        let nonce = [3; 32];
        match (op, hello) {
            (0, _) => stranger.say(&s.bytes()),
            // Answers with the key, or without.
            (1 | 2, Some(hello)) => {
                let key = if op == 1 { KEY } else { [9; 32] };
                let mut answer = wire::answer(&wire::secret(&key, &hello, &nonce), &nonce);
                answer[usize::from(s.byte()) % ANSWER_LEN] ^= s.byte();
                stranger.say(&answer);
            }
            (3 | 4, Some(hello)) => {
                let body = match (s.byte() % 4, join) {
                    (0, true) => {
                        let members = (0..s.byte() % 5).map(|_| s.member()).collect();
                        wire::put_verdict(&Ok(Verdict { salt: KEY, members }))
                    }
                    (1, true) => {
                        wire::put_verdict(&Err(crate::Error::timeout(String::from_utf8_lossy(&s.bytes()))))
                    }
                    _ => s.bytes(),
                };
                let key = if op == 3 { KEY } else { [9; 32] };
                let secret = wire::secret(&key, &hello, &nonce);
                proved |= op == 3;
                stranger.say(&wire::seal(&secret, From::Acceptor, &body));
            }
            (5, _) => {
                let _ = stranger.stream.shutdown(std::net::Shutdown::Both);
            }
            (6, _) => {
                now += Duration::from_millis(u64::from(s.word()) * 10);
                state.timers(now);
            }
            _ => {}
        }
        drive_all(&mut state, now);
    }
    let result = state.tickets.get_mut(&ticket).and_then(|t| t.result.take());
    let done = matches!(result, Some(Ok(Outcome::Verdict(_) | Outcome::Peer(..))));
    match result {
        Some(Ok(Outcome::Verdict(bytes))) => {
            assert!(proved && join, "a stranger's verdict was believed");
            let _ = wire::parse_verdict(&bytes, 3);
        }
        Some(Ok(Outcome::Peer(..))) => assert!(proved && !join, "a stranger was given to a rank"),
        _ => {}
    }
    state.cancel(ticket);
    assert!(state.conns.is_empty(), "something is left of a dial that is over");
    while listener.accept().is_ok() {}
    done
}

//! What travels while two processes meet: pure functions from bytes to values and back.
//!
//! ```text
//! connector                                  acceptor
//!   hello: role, tag, ranks, purpose, nonce ->
//!                                          <- answer: nonce, MAC      (proves the acceptor)
//!   sealed frame: body, MAC ->                                        (proves the connector)
//!                                          <- sealed frame: body, MAC
//! ```
//!
//! Every MAC is keyed with a secret of this one connection: HMAC(key, hello, acceptor's nonce). So
//! it covers both nonces, the role, both ranks and the purpose, and cannot be replayed elsewhere.
//! The direction is part of what is signed, so it cannot be sent back either. A body is parsed
//! only after its MAC was found right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::Member;
use crate::{Code, Error, Result};

pub(super) type Key = [u8; 32];
pub(super) type Tag = [u8; 16];

/// Raised whenever a layout in this file changes.
pub(super) const VERSION: u8 = 4;
const MAGIC: &[u8; 6] = b"GRACCL";
pub(super) const HELLO_LEN: usize = 72;
pub(super) const ANSWER_LEN: usize = 72;
const MAC_LEN: usize = 32;
/// Longest body that a process accepts from one that wants in.
pub(super) const MAX_BODY: usize = 4096 + 64;
/// Longest body that a joining rank accepts from the root, which has proved itself by then.
pub(super) const MAX_VERDICT: usize = 64 << 20;
/// Most addresses of a rank that its card lists.
pub(super) const MAX_ADDRS: usize = 16;
/// The `to` of a rank that joins: not a rank but the root.
pub(super) const ROOT: u32 = u32::MAX;

fn hmac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|p| mac.update(p));
    mac
}

/// HMAC-SHA256 over the parts one after the other. Callers keep that unambiguous: all parts but
/// the last are of fixed length.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    hmac(key, parts).finalize().into_bytes().into()
}

/// Leads a stranger to the right key without showing it.
pub(super) fn tag(key: &Key) -> Tag {
    mac(key, &[b"graccl tag\0"])[..16].try_into().expect("16 bytes")
}

/// Key of the `generation`th communicator of a job.
pub(super) fn generation_key(key: &Key, generation: u32) -> Key {
    mac(key, &[b"graccl generation\0", &generation.to_le_bytes()])
}

/// Key of one communicator, in which its root has a share: ranks that come together in the same way
/// another time, with the same secret, have another key, and a guessable secret does not give it away.
pub(super) fn salted_key(key: &Key, salt: &Key) -> Key {
    mac(key, &[b"graccl session\0", salt])
}

/// Abstract Unix name at which the root of a key listens.
pub(super) fn root_name(key: &Key) -> [u8; 16] {
    mac(key, &[b"graccl unix name\0"])[..16].try_into().expect("16 bytes")
}

pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(Code::SystemError, format!("no random numbers from the system: {e}")))?;
    Ok(bytes)
}

/// What the connector wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// To join a communicator: speaks to its root.
    Join = 1,
    /// To link two ranks.
    Peer = 2,
}

/// First message of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub role: Role,
    pub tag: Tag,
    pub generation: u32,
    pub from: u32,
    pub to: u32,
    pub purpose: u32,
    pub nonce: [u8; 32],
}

impl Hello {
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut b = [0; HELLO_LEN];
        b[..6].copy_from_slice(MAGIC);
        b[6] = VERSION;
        b[7] = self.role as u8;
        b[8..24].copy_from_slice(&self.tag);
        b[24..28].copy_from_slice(&self.generation.to_le_bytes());
        b[28..32].copy_from_slice(&self.from.to_le_bytes());
        b[32..36].copy_from_slice(&self.to.to_le_bytes());
        b[36..40].copy_from_slice(&self.purpose.to_le_bytes());
        b[40..].copy_from_slice(&self.nonce);
        b
    }

    /// Whether the first bytes of a hello can still become one.
    pub fn plausible(start: &[u8]) -> bool {
        let n = start.len().min(MAGIC.len());
        start[..n] == MAGIC[..n]
    }

    /// `Err(Some(..))` is what to answer before hanging up; nothing for what is no hello at all.
    pub fn parse(b: &[u8; HELLO_LEN]) -> std::result::Result<Hello, Option<Refusal>> {
        if !Hello::plausible(b) {
            return Err(None);
        }
        if b[6] != VERSION {
            return Err(Some(Refusal::Version));
        }
        let role = match b[7] {
            1 => Role::Join,
            2 => Role::Peer,
            _ => return Err(None),
        };
        let u32_at = |i: usize| u32::from_le_bytes(b[i..i + 4].try_into().expect("4 bytes"));
        Ok(Hello {
            role,
            tag: b[8..24].try_into().expect("16 bytes"),
            generation: u32_at(24),
            from: u32_at(28),
            to: u32_at(32),
            purpose: u32_at(36),
            nonce: b[40..].try_into().expect("32 bytes"),
        })
    }
}

/// Why an acceptor does not go on. Not signed: the two share no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Key = 1,
    Version = 2,
    User = 3,
}

impl Refusal {
    pub fn text(self, version: u8) -> String {
        match self {
            Refusal::Key => "a graccl process answers there, but it does not know this communicator's key: \
                             the id or GRACCL_KEY differs, or that communicator is gone"
                .into(),
            Refusal::Version => {
                format!("it speaks version {version} of graccl's protocol, this process version {VERSION}")
            }
            Refusal::User => "it belongs to another user".into(),
        }
    }
}

/// Secret of one connection.
pub(super) fn secret(key: &Key, hello: &[u8; HELLO_LEN], nonce: &[u8; 32]) -> Key {
    mac(key, &[b"graccl connection\0", hello, nonce])
}

fn answer_head(status: u8, nonce: &[u8; 32]) -> [u8; ANSWER_LEN] {
    let mut b = [0; ANSWER_LEN];
    b[..6].copy_from_slice(MAGIC);
    b[6] = VERSION;
    b[7] = status;
    b[8..40].copy_from_slice(nonce);
    b
}

/// The acceptor's answer, with its proof.
pub(super) fn answer(secret: &Key, nonce: &[u8; 32]) -> [u8; ANSWER_LEN] {
    let mut b = answer_head(0, nonce);
    let proof = mac(secret, &[b"acceptor\0", &b[..40]]);
    b[40..].copy_from_slice(&proof);
    b
}

pub(super) fn refusal(why: Refusal) -> [u8; ANSWER_LEN] {
    answer_head(why as u8, &[0; 32])
}

/// The connector's check of an answer to its `hello`: the connection's secret, or why not.
pub(super) fn check_answer(
    key: &Key,
    hello: &[u8; HELLO_LEN],
    b: &[u8; ANSWER_LEN],
) -> std::result::Result<Key, String> {
    if &b[..6] != MAGIC {
        return Err("what answers there is not graccl".into());
    }
    match b[7] {
        1 => return Err(Refusal::Key.text(b[6])),
        2 => return Err(Refusal::Version.text(b[6])),
        3 => return Err(Refusal::User.text(b[6])),
        _ => {}
    }
    let nonce = b[8..40].try_into().expect("32 bytes");
    let secret = secret(key, hello, &nonce);
    match hmac(&secret, &[b"acceptor\0", &b[..40]]).verify_slice(&b[40..]) {
        Ok(()) => Ok(secret),
        Err(_) => Err("what answers there could not prove that it knows this communicator's key".into()),
    }
}

/// Who sends a sealed frame.
#[derive(Clone, Copy)]
pub(super) enum From {
    Connector,
    Acceptor,
}

impl From {
    fn label(self) -> &'static [u8] {
        match self {
            From::Connector => b"frame of the connector\0",
            From::Acceptor => b"frame of the acceptor\0",
        }
    }
}

/// Frame: length of the body (4 bytes), body, MAC. Each side sends one per connection.
pub(super) fn seal(secret: &Key, from: From, body: &[u8]) -> Vec<u8> {
    let mut b = Vec::with_capacity(4 + body.len() + MAC_LEN);
    b.extend_from_slice(&(body.len() as u32).to_le_bytes());
    b.extend_from_slice(body);
    b.extend_from_slice(&mac(secret, &[from.label(), body]));
    b
}

/// Length of the whole frame that begins with these 4 bytes, if its body is at most `max`.
pub(super) fn frame_len(head: &[u8], max: usize) -> Option<usize> {
    let n = u32::from_le_bytes(head.get(..4)?.try_into().ok()?) as usize;
    (n <= max).then_some(4 + n + MAC_LEN)
}

/// The body of a whole frame, if it is signed as it should be.
pub(super) fn open<'a>(secret: &Key, from: From, frame: &'a [u8]) -> Option<&'a [u8]> {
    let end = frame.len().checked_sub(MAC_LEN)?;
    let body = frame.get(4..end)?;
    hmac(secret, &[from.label(), body]).verify_slice(&frame[end..]).ok()?;
    Some(body)
}

/// Takes values off the front of a byte string; `None` when it is too short or makes no sense.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }
    pub fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    pub fn text(&mut self) -> Option<String> {
        let n = self.u32()? as usize;
        String::from_utf8(self.bytes(n)?.to_vec()).ok()
    }
    /// An address: 4 or 6, then its bytes.
    pub fn ip(&mut self) -> Option<IpAddr> {
        match self.u8()? {
            4 => Some(IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))),
            6 => Some(IpAddr::V6(Ipv6Addr::from(self.array::<16>()?))),
            _ => None,
        }
    }
}

pub(super) fn put_text(b: &mut Vec<u8>, text: &str) {
    b.extend_from_slice(&(text.len() as u32).to_le_bytes());
    b.extend_from_slice(text.as_bytes());
}

pub(super) fn put_ip(b: &mut Vec<u8>, ip: &IpAddr) {
    match ip {
        IpAddr::V4(a) => {
            b.push(4);
            b.extend_from_slice(&a.octets());
        }
        IpAddr::V6(a) => {
            b.push(6);
            b.extend_from_slice(&a.octets());
        }
    }
}

/// A rank's request to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Join {
    /// Size of the communicator as this rank knows it.
    pub size: u32,
    /// How long this rank will wait, milliseconds.
    pub wait_ms: u32,
    /// More generations of the same job may follow: the root stays.
    pub keep: bool,
    /// What must be the same on all ranks, as words.
    pub settings: String,
    pub card: Member,
}

impl Join {
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.extend_from_slice(&self.size.to_le_bytes());
        b.extend_from_slice(&self.wait_ms.to_le_bytes());
        b.push(self.keep as u8);
        put_text(&mut b, &self.settings);
        put_member(&mut b, &self.card);
        b
    }

    pub fn parse(b: &[u8]) -> Option<Join> {
        let mut r = Reader(b);
        let (size, wait_ms, keep, settings) = (r.u32()?, r.u32()?, r.u8()? != 0, r.text()?);
        let card = member(&mut r)?;
        r.0.is_empty().then_some(Join { size, wait_ms, keep, settings, card })
    }
}

fn put_member(b: &mut Vec<u8>, m: &Member) {
    b.extend_from_slice(&(m.rank as u32).to_le_bytes());
    b.extend_from_slice(&m.host.to_le_bytes());
    b.extend_from_slice(&m.pid.to_le_bytes());
    put_text(b, &m.hostname);
    b.extend_from_slice(&m.unix);
    b.extend_from_slice(&m.port.to_le_bytes());
    let n = m.addrs.len().min(MAX_ADDRS);
    b.push(n as u8);
    m.addrs[..n].iter().for_each(|a| put_ip(b, a));
}

fn member(r: &mut Reader<'_>) -> Option<Member> {
    let (rank, host, pid) = (r.u32()? as usize, r.u64()?, r.u32()?);
    let (hostname, unix, port) = (r.text()?, r.array()?, r.u16()?);
    let n = r.u8()? as usize;
    if n > MAX_ADDRS {
        return None;
    }
    let addrs = (0..n).map(|_| r.ip()).collect::<Option<Vec<_>>>()?;
    Some(Member { rank, host, hostname, pid, addrs, port, unix })
}

/// What the root tells every rank in the end, if nothing went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Random: see [`salted_key`].
    pub salt: Key,
    /// By rank.
    pub members: Vec<Member>,
}

pub(super) fn put_verdict(verdict: &Result<Verdict>) -> Vec<u8> {
    let mut b = Vec::new();
    match verdict {
        Ok(Verdict { salt, members }) => {
            b.push(0);
            b.extend_from_slice(salt);
            b.extend_from_slice(&(members.len() as u32).to_le_bytes());
            members.iter().for_each(|m| put_member(&mut b, m));
        }
        Err(e) => {
            b.push(e.code as i32 as u8);
            [&e.what, &e.who, &e.hint].into_iter().for_each(|t| put_text(&mut b, t));
        }
    }
    b
}

/// `None` if this is no verdict for `size` ranks.
pub(super) fn parse_verdict(b: &[u8], size: usize) -> Option<Result<Verdict>> {
    let mut r = Reader(b);
    match r.u8()? {
        0 => {
            let salt = r.array()?;
            if r.u32()? as usize != size {
                return None;
            }
            let members = (0..size)
                .map(|rank| member(&mut r).filter(|m| m.rank == rank))
                .collect::<Option<Vec<_>>>()?;
            r.0.is_empty().then_some(Ok(Verdict { salt, members }))
        }
        code => {
            let code = [Code::SystemError, Code::InvalidUsage, Code::RemoteError, Code::Timeout]
                .into_iter()
                .find(|c| *c as i32 == code as i32)
                .unwrap_or(Code::InternalError);
            let (what, who, hint) = (r.text()?, r.text()?, r.text()?);
            Some(Err(Error { code, what, who, hint }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello { role: Role::Peer, tag: [7; 16], generation: 3, from: 1, to: 2, purpose: 9, nonce: [5; 32] }
    }

    fn card(rank: usize) -> Member {
        let addrs = vec!["10.0.0.1".parse().unwrap(), "fd00::2".parse().unwrap()];
        Member { rank, host: 77, hostname: "a/b".into(), pid: 12, addrs, port: 99, unix: [3; 16] }
    }

    #[test]
    fn hmac_known_answer() {
        // RFC 4231, test case 2.
        let want = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let got: String = mac(b"Jefe", &[b"what do ya want ", b"for nothing?"])
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn hello_round_trip_and_refusals() {
        let b = hello().encode();
        assert_eq!(Hello::parse(&b), Ok(hello()));
        let mut other = b;
        other[6] = VERSION + 1;
        assert_eq!(Hello::parse(&other), Err(Some(Refusal::Version)));
        other = b;
        other[0] = b'x';
        assert_eq!(Hello::parse(&other), Err(None));
        other = b;
        other[7] = 9;
        assert_eq!(Hello::parse(&other), Err(None));
        assert!(Hello::plausible(b"GRA") && !Hello::plausible(b"GET / HTTP"));
    }

    #[test]
    fn answer_binds_every_byte() {
        let key = [1; 32];
        let h = hello().encode();
        let nonce = [8; 32];
        let s = secret(&key, &h, &nonce);
        let a = answer(&s, &nonce);
        assert_eq!(check_answer(&key, &h, &a), Ok(s));
        assert!(check_answer(&[2; 32], &h, &a).is_err(), "another key");
        for i in 0..ANSWER_LEN {
            let mut bad = a;
            bad[i] ^= 1;
            assert!(check_answer(&key, &h, &bad).is_err(), "answer byte {i}");
        }
        for i in 0..HELLO_LEN {
            let mut bad = h;
            bad[i] ^= 1;
            assert!(check_answer(&key, &bad, &a).is_err(), "hello byte {i}");
        }
        assert!(check_answer(&key, &h, &refusal(Refusal::Key)).unwrap_err().contains("key"));
    }

    #[test]
    fn sealed_frames_do_not_reflect() {
        let s = [4; 32];
        let f = seal(&s, From::Connector, b"body");
        assert_eq!(frame_len(&f, 4), Some(f.len()));
        assert_eq!(frame_len(&f, 3), None);
        assert_eq!(open(&s, From::Connector, &f), Some(&b"body"[..]));
        assert_eq!(open(&s, From::Acceptor, &f), None, "reflected");
        assert_eq!(open(&[5; 32], From::Connector, &f), None, "other key");
        for i in 4..f.len() {
            let mut bad = f.clone();
            bad[i] ^= 0x80;
            assert_eq!(open(&s, From::Connector, &bad), None, "byte {i}");
        }
        assert_eq!(open(&s, From::Connector, &f[..20]), None);
    }

    #[test]
    fn join_and_verdict_round_trip() {
        let settings = "GRACCL_ENCRYPT=1".into();
        let j = Join { size: 4, wait_ms: 10_000, keep: true, settings, card: card(3) };
        let b = j.encode();
        assert_eq!(Join::parse(&b), Some(j));
        for n in 0..b.len() {
            assert_eq!(Join::parse(&b[..n]), None, "cut at {n}");
        }
        let all = Ok(Verdict { salt: [6; 32], members: vec![card(0), card(1)] });
        let b = put_verdict(&all);
        assert_eq!(parse_verdict(&b, 2), Some(all));
        assert_eq!(parse_verdict(&b, 3), None);
        for n in 0..b.len() {
            assert_eq!(parse_verdict(&b[..n], 2), None, "cut at {n}");
        }
        let e: Result<Verdict> = Err(Error::timeout("late").who("rank 1").hint("wait"));
        assert_eq!(parse_verdict(&put_verdict(&e), 2), Some(e));
    }
}

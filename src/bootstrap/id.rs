//! The unique id: 128 bytes that name a communicator to be and say where its root listens.
//!
//! ```text
//!   0..6   "GRACCL"           20..52   random key
//!   6      version            52..54   TCP port, 0 = none
//!   7      flags              54       ports to try, from that one on
//!   8..12  generation         55       length of the rest
//!  12..20  root's host, 0 = ? 56..124  addresses, or the name of the root's host (flag NAMED)
//!                             124..128 checksum
//! ```

use std::fmt;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::wire::{Key, Reader, Tag, generation_key, put_ip, random, tag};
use super::{host, service::Service};
use crate::{Error, Result};

const MAGIC: &[u8; 6] = b"GRACCL";
const VERSION: u8 = 1;
/// Rank 0 listens itself when it joins; the others wait for it to appear.
const RANK0_LISTENS: u8 = 1;
/// More generations of the job may follow: the root stays.
const KEEP: u8 = 2;
/// The root's place is a host name, not addresses.
const NAMED: u8 = 4;
const REST: std::ops::Range<usize> = 56..124;
/// Longest host name that fits into an id.
pub(super) const MAX_NAME: usize = REST.end - REST.start;

/// Names a communicator to be: 128 bytes that one process makes ([`UniqueId::create`]) and every
/// rank must be given. It holds the secret key of the communicator: who knows it can join, so pass
/// it by a channel that others cannot read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

/// Where a root listens, besides its Unix name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Addrs(Vec<IpAddr>),
    Named(String),
}

/// What the bytes of an id say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdParts {
    pub rank0_listens: bool,
    pub keep: bool,
    pub generation: u32,
    /// Host of the root, 0 when unknown.
    pub host: u64,
    pub key: Key,
    /// First TCP port, 0 when the root is to be found by its Unix name only.
    pub port: u16,
    pub ports: u8,
    pub place: Place,
}

impl IdParts {
    /// Addresses or a name that do not fit are left out: the second value says whether all fitted.
    pub fn encode(&self) -> (UniqueId, bool) {
        let mut b = [0; 128];
        b[..6].copy_from_slice(MAGIC);
        b[6] = VERSION;
        b[7] = u8::from(self.rank0_listens) * RANK0_LISTENS + u8::from(self.keep) * KEEP;
        b[8..12].copy_from_slice(&self.generation.to_le_bytes());
        b[12..20].copy_from_slice(&self.host.to_le_bytes());
        b[20..52].copy_from_slice(&self.key);
        b[52..54].copy_from_slice(&self.port.to_le_bytes());
        b[54] = self.ports;
        let mut rest = Vec::new();
        let mut all = true;
        match &self.place {
            Place::Named(name) => {
                b[7] |= NAMED;
                all = name.len() <= REST.len();
                rest.extend_from_slice(if all { name.as_bytes() } else { b"" });
            }
            Place::Addrs(addrs) => {
                for a in addrs {
                    let before = rest.len();
                    put_ip(&mut rest, a);
                    if rest.len() > REST.len() {
                        rest.truncate(before);
                        all = false;
                    }
                }
            }
        }
        b[55] = rest.len() as u8;
        b[REST.start..REST.start + rest.len()].copy_from_slice(&rest);
        let sum = Sha256::digest(&b[..124]);
        b[124..].copy_from_slice(&sum[..4]);
        (UniqueId(b), all)
    }

    fn parse(b: &[u8; 128]) -> Option<IdParts> {
        if &b[..6] != MAGIC || b[6] != VERSION || b[124..] != Sha256::digest(&b[..124])[..4] {
            return None;
        }
        let mut r = Reader(&b[7..]);
        let flags = r.u8()?;
        let (generation, host, key, port, ports) = (r.u32()?, r.u64()?, r.array()?, r.u16()?, r.u8()?);
        let n = r.u8()? as usize;
        let rest = b[REST].get(..n)?;
        let place = if flags & NAMED != 0 {
            Place::Named(String::from_utf8(rest.to_vec()).ok()?)
        } else {
            let mut r = Reader(rest);
            let mut addrs = Vec::new();
            while !r.0.is_empty() {
                addrs.push(r.ip()?);
            }
            Place::Addrs(addrs)
        };
        Some(IdParts {
            rank0_listens: flags & RANK0_LISTENS != 0,
            keep: flags & KEEP != 0,
            generation,
            host,
            key,
            port,
            ports,
            place,
        })
    }

    /// Key of this communicator, as opposed to the root's, which serves all generations of a job.
    pub fn session_key(&self) -> Key {
        generation_key(&self.key, self.generation)
    }

    /// Tag of the root.
    pub fn root_tag(&self) -> Tag {
        tag(&self.key)
    }
}

impl UniqueId {
    /// Makes an id and starts to listen for the ranks that will join with it: this process is the
    /// root, and must live until they have all joined. The id serves for one communicator.
    ///
    /// Starts the process's service thread if it is not running. Callable from any thread.
    ///
    /// # Errors
    /// `SystemError` when no listener can be opened, `InvalidArgument` when
    /// `GRACCL_SOCKET_IFNAME` matches no interface.
    pub fn create() -> Result<UniqueId> {
        let key: Key = random()?;
        let service = Service::get()?;
        let home = service.home()?;
        service.open_root(key, 0..0, false)?;
        let parts = IdParts {
            rank0_listens: false,
            keep: false,
            generation: 0,
            host: host::identity()?.id,
            key,
            port: home.port,
            ports: 1,
            place: Place::Addrs(home.addrs),
        };
        Ok(parts.encode().0)
    }

    /// The id as 256 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Reads what [`UniqueId::to_hex`] wrote.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not an id of this version of graccl.
    pub fn from_hex(text: &str) -> Result<UniqueId> {
        let text = text.trim().as_bytes();
        if text.len() != 256 {
            return Err(Error::argument(format!(
                "an id has 256 hexadecimal digits, this has {}",
                text.len()
            )));
        }
        let mut b = [0; 128];
        for (out, pair) in b.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16);
            let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
                return Err(Error::argument("an id has only hexadecimal digits, this has others"));
            };
            *out = (high * 16 + low) as u8;
        }
        let id = UniqueId(b);
        id.parts()?;
        Ok(id)
    }

    pub(super) fn parts(&self) -> Result<IdParts> {
        IdParts::parse(&self.0).ok_or_else(|| {
            Error::argument("these 128 bytes are not a graccl id")
                .hint("pass all ranks the id that UniqueId::create (graccl_get_unique_id) gave, unchanged")
        })
    }
}

/// Shows no secret.
impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match IdParts::parse(&self.0) {
            Some(p) => {
                write!(f, "UniqueId({:02x?}, generation {})", &p.root_tag()[..4], p.generation)
            }
            None => f.write_str("UniqueId(damaged)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(place: Place) -> IdParts {
        IdParts {
            rank0_listens: true,
            keep: true,
            generation: 5,
            host: 42,
            key: [9; 32],
            port: 4000,
            ports: 8,
            place,
        }
    }

    #[test]
    fn round_trip_and_damage() {
        for place in [
            Place::Named("node-1.example".into()),
            Place::Addrs(vec!["10.1.2.3".parse().unwrap(), "fd00::1".parse().unwrap()]),
            Place::Addrs(Vec::new()),
        ] {
            let p = parts(place);
            let (id, all) = p.encode();
            assert!(all);
            assert_eq!(id.parts().unwrap(), p);
            assert_eq!(UniqueId::from_hex(&id.to_hex()).unwrap(), id);
            for i in 0..128 {
                let mut bad = id;
                bad.0[i] ^= 1;
                assert!(bad.parts().is_err(), "byte {i}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let many = (0..40u8).map(|i| IpAddr::from([10, 0, 0, i])).collect::<Vec<_>>();
        let (id, all) = parts(Place::Addrs(many.clone())).encode();
        assert!(!all);
        assert_eq!(id.parts().unwrap().place, Place::Addrs(many[..13].to_vec()));
        let (id, all) = parts(Place::Named("x".repeat(69))).encode();
        assert!(!all && id.parts().is_ok());
    }

    #[test]
    fn text_that_is_no_id() {
        assert!(UniqueId::from_hex("12").unwrap_err().what.contains("256"));
        assert!(UniqueId::from_hex(&"g".repeat(256)).unwrap_err().what.contains("hexadecimal"));
        assert!(UniqueId::from_hex(&"0".repeat(256)).unwrap_err().what.contains("not a graccl id"));
        assert!(!format!("{:?}", parts(Place::Addrs(Vec::new())).encode().0).contains("09, 09, 09, 09, 09"));
    }
}

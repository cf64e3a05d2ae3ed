//! Who this host is, and at which addresses it can be reached.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};

use crate::log::{Level, log};
use crate::{Error, Result};

/// Identity of the host that this process runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Equal for two processes if they can share memory and reach each other by Unix sockets:
    /// same machine since its boot, same network namespace, same user.
    pub id: u64,
    /// The host's name, followed by "/" and `GRACCL_HOST_ID` if that is set.
    pub name: String,
    /// `GRACCL_HOST_ID` is set: this machine plays several hosts.
    pub emulated: bool,
}

/// Longest `GRACCL_HOST_ID`, bytes: every rank's card has it.
const MAX_LABEL: usize = 256;

/// What `GRACCL_HOST_ID` says.
pub(super) fn label(value: Option<String>) -> Result<Option<String>> {
    match value.filter(|l| !l.is_empty()) {
        Some(l) if l.len() > MAX_LABEL => {
            Err(Error::argument(format!("GRACCL_HOST_ID has {} bytes", l.len()))
                .hint(format!("a name of at most {MAX_LABEL} bytes, or none, is enough")))
        }
        label => Ok(label),
    }
}

/// Reads the host's identity; `GRACCL_HOST_ID` sets ranks of one machine apart. A host without a boot
/// id is told apart by its name.
///
/// # Errors
/// `InvalidArgument` when `GRACCL_HOST_ID` is too long.
pub(super) fn identity() -> Result<Identity> {
    let label = label(std::env::var("GRACCL_HOST_ID").ok())?;
    let mut name = hostname();
    let mut hash = Sha256::new();
    match std::fs::read("/proc/sys/kernel/random/boot_id") {
        Ok(boot) => hash.update(boot),
        Err(_) => hash.update(&name),
    }
    hash.update(std::fs::metadata("/proc/self/ns/net").map_or(0, |m| m.ino()).to_le_bytes());
    hash.update(uid().to_le_bytes());
    if let Some(label) = &label {
        hash.update(label);
        name = format!("{name}/{label}");
    }
    let id = u64::from_le_bytes(hash.finalize()[..8].try_into().expect("8 bytes"));
    // 0 means "unknown" in a unique id.
    Ok(Identity { id: id.max(1), name, emulated: label.is_some() })
}

pub(super) fn uid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() }
}

fn hostname() -> String {
    let mut buf = [0u8; 256];
    // SAFETY: the buffer is writable for the length given; its last byte stays 0.
    let rc = unsafe { libc::gethostname(buf.as_mut_ptr().cast(), buf.len() - 1) };
    let name = CStr::from_bytes_until_nul(&buf).map(|n| n.to_string_lossy().into_owned());
    if rc == 0 { name.unwrap_or_default() } else { "unknown".into() }
}

/// One address of an interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub name: String,
    pub addr: IpAddr,
    pub loopback: bool,
    /// Its link is there. One that has just been set up may not have it yet.
    pub running: bool,
    /// Has a device behind it, unlike bridges and tunnels.
    pub device: bool,
    /// Mbit/s, 0 when unknown.
    pub speed: u32,
}

/// All IPv4 and IPv6 addresses of interfaces that are up, but link-local IPv6 (they mean nothing
/// on another host).
fn interfaces() -> Result<Vec<Interface>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the result.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        let cause = std::io::Error::last_os_error();
        return Err(super::service::no_socket("cannot list the network interfaces", &cause));
    }
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: getifaddrs made this node, and it lives until freeifaddrs below.
        let node = unsafe { &*next };
        next = node.ifa_next;
        let flag = |f: libc::c_int| node.ifa_flags & f as u32 != 0;
        if node.ifa_addr.is_null() || !flag(libc::IFF_UP) {
            continue;
        }
        // SAFETY: ifa_addr is not null; its family says which struct it points to.
        let addr = unsafe {
            match (*node.ifa_addr).sa_family as i32 {
                libc::AF_INET => {
                    let a = &*node.ifa_addr.cast::<libc::sockaddr_in>();
                    IpAddr::V4(Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)))
                }
                libc::AF_INET6 => {
                    let a = &*node.ifa_addr.cast::<libc::sockaddr_in6>();
                    IpAddr::V6(Ipv6Addr::from(a.sin6_addr.s6_addr))
                }
                _ => continue,
            }
        };
        if matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local()) {
            continue;
        }
        // SAFETY: ifa_name is a C string of the same node.
        let name = unsafe { CStr::from_ptr(node.ifa_name) }.to_string_lossy().into_owned();
        let sys = format!("/sys/class/net/{name}");
        let speed = std::fs::read_to_string(format!("{sys}/speed")).ok();
        found.push(Interface {
            loopback: flag(libc::IFF_LOOPBACK),
            running: flag(libc::IFF_RUNNING),
            device: std::path::Path::new(&format!("{sys}/device")).exists(),
            speed: speed.and_then(|s| s.trim().parse().ok()).unwrap_or(0),
            name,
            addr,
        });
    }
    // SAFETY: `list` came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// `GRACCL_SOCKET_IFNAME`: a list of name prefixes; a leading `=` makes them exact names, a leading
/// `^` (first) excludes them instead.
fn admits(filter: &str, name: &str) -> bool {
    let (exclude, list) = match filter.strip_prefix('^') {
        Some(list) => (true, list),
        None => (false, filter),
    };
    let (exact, list) = match list.strip_prefix('=') {
        Some(list) => (true, list),
        None => (false, list),
    };
    let mut wanted = list.split(',').map(str::trim).filter(|w| !w.is_empty());
    wanted.any(|w| if exact { name == w } else { name.starts_with(w) }) != exclude
}

/// The addresses to offer, best first: with a link, with a device before bridges and tunnels, by speed.
/// Loopback only if `emulated`, if the filter names it, or if there is nothing else.
fn choose(all: &[Interface], filter: Option<&str>, emulated: bool) -> Result<Vec<Interface>> {
    let mut chosen = all.to_vec();
    let mut named = false;
    if let Some(filter) = filter {
        named = !filter.starts_with('^');
        chosen.retain(|i| admits(filter, &i.name));
        if chosen.is_empty() {
            let mut names: Vec<&str> = all.iter().map(|i| i.name.as_str()).collect();
            names.dedup();
            let names = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(Error::argument(format!(
                "GRACCL_SOCKET_IFNAME={filter} leaves no network interface"
            ))
            .hint(format!("interfaces that are up and have an address: {names}")));
        }
    }
    if !emulated && !named && chosen.iter().any(|i| !i.loopback) {
        chosen.retain(|i| !i.loopback);
    }
    chosen.sort_by_key(|i| (i.loopback, !i.running, !i.device, std::cmp::Reverse(i.speed), i.addr.is_ipv6()));
    Ok(chosen)
}

/// Any filter, on some interfaces.
pub(super) fn fuzz_choose(filter: &str) {
    let interface = |name: &str, addr: [u8; 4]| Interface {
        name: name.into(),
        addr: addr.into(),
        loopback: addr[0] == 127,
        running: true,
        device: addr[1] == 1,
        speed: u32::from(addr[3]),
    };
    let all =
        [interface("lo", [127, 0, 0, 1]), interface("eth0", [10, 1, 0, 2]), interface("ib0", [10, 2, 0, 1])];
    for emulated in [false, true] {
        match choose(&all, Some(filter), emulated) {
            Ok(some) => assert!(!some.is_empty()),
            Err(e) => assert!(e.hint.contains("eth0"), "{e}"),
        }
    }
}

/// The addresses at which this process offers itself to ranks on other hosts.
///
/// # Errors
/// `InvalidArgument` when `GRACCL_SOCKET_IFNAME` leaves no interface.
pub(super) fn addresses() -> Result<Vec<IpAddr>> {
    let filter = std::env::var("GRACCL_SOCKET_IFNAME").ok().filter(|f| !f.trim().is_empty());
    let chosen = choose(&interfaces()?, filter.as_deref().map(str::trim), identity()?.emulated)?;
    let text: Vec<String> = chosen.iter().map(|i| format!("{} {}", i.name, i.addr)).collect();
    log(Level::Info, None, format_args!("reachable at: {}", text.join(", ")));
    Ok(chosen.into_iter().map(|i| i.addr).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_syntax() {
        assert!(admits("eth", "eth0") && admits("ib,eth", "eth1") && !admits("eth", "ens3"));
        assert!(admits("=eth0", "eth0") && !admits("=eth", "eth0") && admits("=lo,eth0", "eth0"));
        assert!(!admits("^docker", "docker0") && admits("^docker,lo", "eth0"));
        assert!(!admits("^=eth0", "eth0") && admits("^=eth", "eth0"));
        assert!(admits("eth0, ib0", "ib0"));
    }

    fn interface(name: &str, addr: &str, device: bool, speed: u32) -> Interface {
        let running = name != "eth1";
        Interface {
            name: name.into(),
            addr: addr.parse().unwrap(),
            loopback: name == "lo",
            running,
            device,
            speed,
        }
    }

    #[test]
    fn order_and_loopback() {
        let all = [
            interface("lo", "127.0.0.1", false, 0),
            interface("eth1", "10.2.0.1", true, 200_000),
            interface("docker0", "172.17.0.1", false, 10_000),
            interface("eth0", "fd00::1", true, 1000),
            interface("eth0", "10.0.0.1", true, 1000),
            interface("ib0", "10.1.0.1", true, 100_000),
        ];
        let names = |filter: Option<&str>, emulated| {
            choose(&all, filter, emulated).map(|c| c.iter().map(|i| i.addr.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(
            names(None, false).unwrap(),
            ["10.1.0.1", "10.0.0.1", "fd00::1", "172.17.0.1", "10.2.0.1"]
        );
        assert_eq!(names(None, true).unwrap().last().unwrap(), "127.0.0.1");
        assert_eq!(names(Some("lo"), false).unwrap(), ["127.0.0.1"]);
        assert_eq!(names(Some("^ib,docker,eth1"), false).unwrap(), ["10.0.0.1", "fd00::1"]);
        let e = names(Some("wlan"), false).unwrap_err();
        assert!(e.what.contains("wlan") && e.hint.contains("lo, eth1, docker0, eth0, ib0"), "{e}");
        assert_eq!(choose(&all[..1], None, false).unwrap().len(), 1, "nothing but loopback");
        assert!(choose(&[], None, false).unwrap().is_empty());
    }

    #[test]
    fn this_host() {
        let me = identity().unwrap();
        assert_eq!(me, identity().unwrap());
        assert!(me.id != 0 && !me.name.is_empty());
        interfaces().unwrap();
    }
}

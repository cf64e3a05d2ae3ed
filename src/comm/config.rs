//! What can be set for a communicator, and the environment variables that set it.

use std::sync::Arc;
use std::time::Duration;

use crate::tune::{Profile, Table};
use crate::{Error, Result};

/// Which transports may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportChoice {
    /// Shared memory between ranks of one host, TCP between hosts.
    Auto,
    /// Shared memory only: an error if ranks are on several hosts.
    Shm,
    /// TCP between all ranks.
    Tcp,
}

/// Settings of one communicator. [`Config::from_env`] reads the environment; fields may be changed
/// afterwards. All ranks must use the same `transport`, `algorithm`, `deterministic`, `encrypt` and choices of
/// a `profile`: joining fails otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `GRACCL_TRANSPORT` = auto | shm | tcp.
    pub transport: TransportChoice,
    /// `GRACCL_ALGO` = auto | a name of [`crate::schedule::algorithms`]; `None` is auto.
    pub algorithm: Option<String>,
    /// `GRACCL_TIMEOUT`, seconds: longest wait inside a collective. Default 1800.
    pub timeout: Duration,
    /// `GRACCL_INIT_TIMEOUT`, seconds: longest wait for the other ranks to join. Default 300.
    pub init_timeout: Duration,
    /// `GRACCL_VERIFY` = 1: prove every schedule for this job's ranks before its first use.
    pub verify: bool,
    /// `GRACCL_DETERMINISTIC` = 1: the bits of results depend only on the inputs and on the number and
    /// order of ranks, not on algorithm, transport or hosts. Values fold as adjacent pairs by rank. The
    /// same on all ranks.
    pub deterministic: bool,
    /// `GRACCL_ENCRYPT` = 1: TCP connections between ranks are encrypted. The same on all ranks.
    pub encrypt: bool,
    /// `GRACCL_PROFILE` = FILE: choices that `graccl tune` made, see [`Profile::load`]. They count where
    /// `algorithm` is auto, for the jobs that they were made for. The same on all ranks.
    pub profile: Option<Arc<Table>>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            transport: TransportChoice::Auto,
            algorithm: None,
            timeout: Duration::from_secs(1800),
            init_timeout: Duration::from_secs(300),
            verify: false,
            deterministic: false,
            encrypt: false,
            profile: None,
        }
    }
}

fn seconds(get: &dyn Fn(&str) -> Option<String>, name: &str, default: Duration) -> Result<Duration> {
    let Some(text) = get(name) else { return Ok(default) };
    match text.trim().parse::<f64>() {
        Ok(s) if s > 0.0 && s < 1e9 => Ok(Duration::from_secs_f64(s)),
        _ => Err(Error::argument(format!("{name}={text} is not a time in seconds"))
            .hint(format!("set it to a positive number, or unset it for {} s", default.as_secs()))),
    }
}

impl Config {
    /// What all ranks must have alike, as words.
    pub(crate) fn agreed(&self) -> String {
        format!(
            "GRACCL_TRANSPORT={} GRACCL_ALGO={} GRACCL_DETERMINISTIC={} GRACCL_ENCRYPT={} GRACCL_PROFILE={}",
            match self.transport {
                TransportChoice::Auto => "auto",
                TransportChoice::Shm => "shm",
                TransportChoice::Tcp => "tcp",
            },
            self.algorithm.as_deref().unwrap_or("auto"),
            u8::from(self.deterministic),
            u8::from(self.encrypt),
            // Files with the same choices are the same.
            self.profile.as_ref().map_or("none".into(), |p| format!("{:016x}", p.digest())),
        )
    }

    /// Defaults, overridden by the environment. A value that cannot be understood is an error.
    pub fn from_env() -> Result<Config> {
        Config::from_vars(&|name| std::env::var(name).ok())
    }

    /// [`Config::from_env`] with variables from elsewhere, or without some.
    pub fn from_vars(get: &dyn Fn(&str) -> Option<String>) -> Result<Config> {
        let mut c = Config::default();
        c.timeout = seconds(get, "GRACCL_TIMEOUT", c.timeout)?;
        c.init_timeout = seconds(get, "GRACCL_INIT_TIMEOUT", c.init_timeout)?;
        if let Some(t) = get("GRACCL_TRANSPORT") {
            c.transport = match t.as_str() {
                "auto" | "" => TransportChoice::Auto,
                "shm" => TransportChoice::Shm,
                "tcp" => TransportChoice::Tcp,
                _ => {
                    return Err(Error::argument(format!("GRACCL_TRANSPORT={t} is unknown"))
                        .hint("use auto, shm or tcp"));
                }
            };
        }
        c.algorithm = get("GRACCL_ALGO").filter(|a| !a.is_empty() && a != "auto");
        let switch = |name| get(name).is_some_and(|v| v != "0" && !v.is_empty());
        c.verify = switch("GRACCL_VERIFY");
        c.deterministic = switch("GRACCL_DETERMINISTIC");
        c.encrypt = switch("GRACCL_ENCRYPT");
        if let Some(file) = get("GRACCL_PROFILE").filter(|f| !f.is_empty()) {
            c.profile = Some(Arc::new(Profile::load(file)?.table));
        }
        Ok(c)
    }
}

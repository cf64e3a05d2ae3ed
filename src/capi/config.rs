//! The versioned settings struct.
//!
//! The rule (NCCL's) that lets programs and libraries of different age meet: the caller writes
//! `sizeof` its struct and its `GRACCL_VERSION` into the head; the library copies the smaller of the
//! two sizes over unset fields. Fields are only ever added at the end. The first that was added,
//! `blocking`, lies where the callers before it have padding: it counts only in a larger struct.

use std::ffi::{CStr, c_char, c_int};
use std::mem::offset_of;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use crate::tune::Profile;
use crate::{Config, Error, Result, TransportChoice};

/// Marks a graccl_config_t that was initialised.
pub const GRACCL_CONFIG_MAGIC: u32 = 0x67726163;

/// The first version that has [`graccl_config_t`]: 0.1.0.
const FIRST_VERSION: c_int = 100;

/// Settings of one communicator. Start from GRACCL_CONFIG_INITIALIZER and set what should differ:
/// a field left at GRACCL_UNSET or NULL takes its value from the environment variable named here, or
/// else the default. All ranks must use the same transport, algorithm, deterministic,
/// encrypt and profile.
#[repr(C)]
pub struct graccl_config_t {
    /// sizeof(graccl_config_t), by the initialiser.
    pub size: usize,
    /// GRACCL_CONFIG_MAGIC, by the initialiser.
    pub magic: u32,
    /// GRACCL_VERSION that the caller was compiled with, by the initialiser.
    pub version: c_int,
    /// Milliseconds, above 0: longest wait inside a collective. GRACCL_TIMEOUT (seconds); 1800000.
    pub timeout_ms: c_int,
    /// Milliseconds, above 0: longest wait for all ranks to join. GRACCL_INIT_TIMEOUT (seconds);
    /// 300000.
    pub init_timeout_ms: c_int,
    /// "auto" (shared memory within a host, TCP between hosts), "shm" or "tcp". GRACCL_TRANSPORT;
    /// "auto". Read during the call only.
    pub transport: *const c_char,
    /// "auto" or the name of an algorithm. GRACCL_ALGO; "auto". Read during the call only.
    pub algorithm: *const c_char,
    /// 1: prove every schedule for this job's ranks before its first use; 0: do not. GRACCL_VERIFY;
    /// 0.
    pub verify: c_int,
    /// 0: the functions that join return GRACCL_IN_PROGRESS at once, and graccl_comm_get_async_error
    /// tells when all ranks have joined; 1: they wait. No variable; 1.
    pub blocking: c_int,
    /// 1: results have the same bits whatever the count of ranks per host, the transport and the
    /// algorithm, at some cost in speed; 0: they have them on all ranks of a call, no more.
    /// GRACCL_DETERMINISTIC; 0.
    pub deterministic: c_int,
    /// 1: encrypt what goes over TCP; 0: do not. GRACCL_ENCRYPT; 0.
    pub encrypt: c_int,
    /// File with the choices that `graccl tune` made; "" for none. Read during the call only.
    /// GRACCL_PROFILE; none.
    pub profile: *const c_char,
}

const UNSET: c_int = c_int::MIN;

/// The first struct's size, with 4 bytes of padding at its end.
const FIRST_SIZE: usize = offset_of!(graccl_config_t, blocking) + 4;

/// What follows the head can be left out by an older caller.
const HEAD: usize = offset_of!(graccl_config_t, timeout_ms);

fn not_initialised(what: String) -> Error {
    Error::argument(what).hint("start from GRACCL_CONFIG_INITIALIZER")
}

/// The caller's struct in this version's shape.
///
/// # Safety
/// `config` points to a struct that is readable for the `size` it says.
unsafe fn copied(config: *const graccl_config_t) -> Result<graccl_config_t> {
    let mut own = graccl_config_t {
        size: 0,
        magic: 0,
        version: 0,
        timeout_ms: UNSET,
        init_timeout_ms: UNSET,
        transport: ptr::null(),
        algorithm: ptr::null(),
        verify: UNSET,
        blocking: UNSET,
        deterministic: UNSET,
        encrypt: UNSET,
        profile: ptr::null(),
    };
    // SAFETY: the size comes first in every version; only as much as it says is read.
    let size = unsafe { (&raw const (*config).size).read() };
    if size < HEAD {
        return Err(not_initialised(format!("config.size = {size} is less than its head's {HEAD} bytes")));
    }
    let bytes = size.min(size_of::<graccl_config_t>());
    // SAFETY: both are valid for `bytes`, and any bytes are valid for these field types.
    unsafe { ptr::copy_nonoverlapping(config.cast::<u8>(), (&raw mut own).cast::<u8>(), bytes) };
    if own.magic != GRACCL_CONFIG_MAGIC {
        return Err(not_initialised(format!(
            "config.magic = {:#x} is not {GRACCL_CONFIG_MAGIC:#x}",
            own.magic
        )));
    }
    if size <= FIRST_SIZE {
        own.blocking = UNSET;
    }
    if own.version < FIRST_VERSION {
        return Err(not_initialised(format!("config.version = {} is older than 0.1.0", own.version)));
    }
    Ok(own)
}

fn milliseconds(field: &str, value: c_int, otherwise: Duration) -> Result<Duration> {
    match u64::try_from(value) {
        _ if value == UNSET => Ok(otherwise),
        Ok(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err(Error::argument(format!("config.{field} = {value} is not a time"))
            .hint("pass milliseconds above 0, or GRACCL_UNSET")),
    }
}

fn switch(field: &str, value: c_int, otherwise: bool) -> Result<bool> {
    match value {
        UNSET => Ok(otherwise),
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::argument(format!("config.{field} = {other} is neither 0 nor 1"))
            .hint("or leave it at GRACCL_UNSET")),
    }
}

/// # Safety
/// `value` is null or a C string.
unsafe fn text<'a>(field: &str, value: *const c_char) -> Result<Option<&'a str>> {
    if value.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    match unsafe { CStr::from_ptr(value) }.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Error::argument(format!("config.{field} is not UTF-8 text"))),
    }
}

/// What a [`graccl_config_t`] says.
#[derive(Debug, PartialEq)]
pub(super) struct Settings {
    pub config: Config,
    /// Whether the functions that join wait for the other ranks.
    pub blocking: bool,
}

/// The environment's settings, overridden by `config` unless that is null.
///
/// # Safety
/// `config` is null or points to a struct that is readable for the `size` it says; its texts are
/// null or C strings.
pub(super) unsafe fn settings(config: *const graccl_config_t) -> Result<Settings> {
    let mut settings = Config::from_env()?;
    if config.is_null() {
        return Ok(Settings { config: settings, blocking: true });
    }
    // SAFETY: the caller's promise, here and for the texts below.
    let own = unsafe { copied(config) }?;
    settings.timeout = milliseconds("timeout_ms", own.timeout_ms, settings.timeout)?;
    settings.init_timeout = milliseconds("init_timeout_ms", own.init_timeout_ms, settings.init_timeout)?;
    if let Some(name) = unsafe { text("transport", own.transport) }? {
        settings.transport = match name {
            "auto" => TransportChoice::Auto,
            "shm" => TransportChoice::Shm,
            "tcp" => TransportChoice::Tcp,
            _ => {
                return Err(Error::argument(format!("config.transport = \"{name}\" is unknown"))
                    .hint("use \"auto\", \"shm\" or \"tcp\", or NULL"));
            }
        };
    }
    if let Some(name) = unsafe { text("algorithm", own.algorithm) }? {
        settings.algorithm = (name != "auto").then(|| name.to_owned());
    }
    if let Some(file) = unsafe { text("profile", own.profile) }? {
        settings.profile = match file {
            "" => None,
            file => Some(Arc::new(Profile::load(file)?.table)),
        };
    }
    settings.verify = switch("verify", own.verify, settings.verify)?;
    settings.deterministic = switch("deterministic", own.deterministic, settings.deterministic)?;
    settings.encrypt = switch("encrypt", own.encrypt, settings.encrypt)?;
    Ok(Settings { config: settings, blocking: switch("blocking", own.blocking, true)? })
}

/// Checks the settings of a communicator that is made from another, whose settings it has: none may be
/// set.
///
/// # Safety
/// As [`settings`].
pub(super) unsafe fn inherited(config: *const graccl_config_t) -> Result<()> {
    if config.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let own = unsafe { copied(config) }?;
    let numbers = [
        ("timeout_ms", own.timeout_ms),
        ("init_timeout_ms", own.init_timeout_ms),
        ("verify", own.verify),
        ("blocking", own.blocking),
        ("deterministic", own.deterministic),
        ("encrypt", own.encrypt),
    ];
    let texts = [("transport", own.transport), ("algorithm", own.algorithm), ("profile", own.profile)];
    let set = numbers.iter().find(|(_, value)| *value != UNSET).map(|(field, _)| field);
    match set.or(texts.iter().find(|(_, value)| !value.is_null()).map(|(field, _)| field)) {
        None => Ok(()),
        Some(field) => Err(Error::argument(format!("config.{field} cannot be set here"))
            .hint("the new communicator has the settings of comm: pass NULL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIALIZER: graccl_config_t = graccl_config_t {
        size: size_of::<graccl_config_t>(),
        magic: GRACCL_CONFIG_MAGIC,
        version: FIRST_VERSION,
        timeout_ms: UNSET,
        init_timeout_ms: UNSET,
        transport: ptr::null(),
        algorithm: ptr::null(),
        verify: UNSET,
        blocking: UNSET,
        deterministic: UNSET,
        encrypt: UNSET,
        profile: ptr::null(),
    };

    fn read(config: &graccl_config_t) -> Result<Config> {
        read_all(config).map(|settings| settings.config)
    }

    fn read_all(config: &graccl_config_t) -> Result<Settings> {
        // SAFETY: a whole struct, whose texts are literals; a size above it is cut.
        unsafe { settings(config) }
    }

    #[test]
    fn unset_fields_are_the_environments() {
        let environment = Config::from_env().unwrap();
        let environment = Settings { config: environment, blocking: true };
        assert_eq!(read_all(&INITIALIZER).unwrap(), environment);
        // SAFETY: null is allowed.
        assert_eq!(unsafe { settings(ptr::null()) }.unwrap(), environment);
    }

    #[test]
    fn set_fields_count() {
        let config = graccl_config_t {
            timeout_ms: 1500,
            init_timeout_ms: 20,
            transport: c"tcp".as_ptr(),
            algorithm: c"ring".as_ptr(),
            verify: 1,
            blocking: 0,
            deterministic: 1,
            encrypt: 1,
            profile: c"".as_ptr(),
            ..INITIALIZER
        };
        let expected = Config {
            transport: TransportChoice::Tcp,
            algorithm: Some("ring".to_owned()),
            timeout: Duration::from_millis(1500),
            init_timeout: Duration::from_millis(20),
            verify: true,
            deterministic: true,
            encrypt: true,
            profile: None,
        };
        assert_eq!(read_all(&config).unwrap(), Settings { config: expected, blocking: false });
    }

    #[test]
    fn a_shorter_struct_sets_only_what_it_has() {
        let size = offset_of!(graccl_config_t, transport);
        let config = graccl_config_t { size, timeout_ms: 7, transport: c"nonsense".as_ptr(), ..INITIALIZER };
        let read = read(&config).unwrap();
        assert_eq!(read.timeout, Duration::from_millis(7));
        assert_eq!(read.transport, Config::from_env().unwrap().transport);
    }

    #[test]
    fn the_first_structs_padding_is_not_read() {
        #[repr(C)]
        struct First {
            head: (usize, u32, c_int, c_int, c_int),
            texts: [*const c_char; 2],
            verify: c_int,
        }
        assert_eq!(size_of::<First>(), FIRST_SIZE);
        let config = graccl_config_t { size: FIRST_SIZE, verify: 1, blocking: 0, ..INITIALIZER };
        let read = read_all(&config).unwrap();
        assert!(read.blocking && read.config.verify);
    }

    #[test]
    fn what_is_inherited_cannot_be_set() {
        // SAFETY: null, or a whole struct, whose text is a literal.
        let inherited = |config: *const graccl_config_t| unsafe { inherited(config) };
        assert!(inherited(ptr::null()).is_ok() && inherited(&INITIALIZER).is_ok());
        let error = inherited(&graccl_config_t { encrypt: 1, ..INITIALIZER }).unwrap_err();
        assert!(error.what.starts_with("config.encrypt"), "{error}");
        let error = inherited(&graccl_config_t { profile: c"x".as_ptr(), ..INITIALIZER }).unwrap_err();
        assert!(error.what.starts_with("config.profile"), "{error}");
        let error = inherited(&graccl_config_t { algorithm: c"ring".as_ptr(), ..INITIALIZER }).unwrap_err();
        assert!(error.what.starts_with("config.algorithm"), "{error}");
    }

    #[test]
    fn a_longer_struct_of_a_newer_caller_is_read_as_far_as_known() {
        #[repr(C)]
        struct Newer {
            config: graccl_config_t,
            added: [u64; 4],
        }
        let config =
            graccl_config_t { size: size_of::<Newer>(), version: 99_999, timeout_ms: 7, ..INITIALIZER };
        let newer = Newer { config, added: [u64::MAX; 4] };
        assert_eq!(read(&newer.config).unwrap().timeout, Duration::from_millis(7));
        assert_eq!(newer.added, [u64::MAX; 4]);
    }

    #[test]
    fn nonsense_is_named() {
        for (config, named) in [
            (graccl_config_t { size: HEAD - 1, ..INITIALIZER }, "config.size"),
            (graccl_config_t { magic: 1, ..INITIALIZER }, "config.magic"),
            (graccl_config_t { version: 99, ..INITIALIZER }, "config.version"),
            (graccl_config_t { timeout_ms: 0, ..INITIALIZER }, "config.timeout_ms"),
            (graccl_config_t { init_timeout_ms: -1, ..INITIALIZER }, "config.init_timeout_ms"),
            (graccl_config_t { transport: c"pigeon".as_ptr(), ..INITIALIZER }, "config.transport"),
            (graccl_config_t { algorithm: c"\xff".as_ptr(), ..INITIALIZER }, "config.algorithm"),
            (graccl_config_t { verify: 2, ..INITIALIZER }, "config.verify"),
            (graccl_config_t { blocking: -1, ..INITIALIZER }, "config.blocking"),
            (graccl_config_t { deterministic: 2, ..INITIALIZER }, "config.deterministic"),
            (graccl_config_t { encrypt: 7, ..INITIALIZER }, "config.encrypt"),
        ] {
            let error = read(&config).unwrap_err();
            assert_eq!(error.code, crate::Code::InvalidArgument);
            assert!(error.what.starts_with(named), "{error}");
        }
    }
}

//! Errors with three parts: what happened, who it concerns, and what to do.

use std::fmt;

/// Result codes of the C ABI. Values up to 8 are those of NCCL's `ncclResult_t`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The call did what it says.
    Success = 0,
    /// A device (GPU) call failed.
    DeviceError = 1,
    /// A call to the operating system failed.
    SystemError = 2,
    /// A bug in graccl: please report it.
    InternalError = 3,
    /// An argument is wrong by itself (null, out of range, unknown).
    InvalidArgument = 4,
    /// The arguments are right but the call is not allowed here or now, or ranks disagree about it.
    InvalidUsage = 5,
    /// Another rank died, left or failed.
    RemoteError = 6,
    /// Not finished yet.
    InProgress = 7,
    /// A deadline passed.
    Timeout = 8,
    /// The communicator was aborted.
    Aborted = 9,
}

impl Code {
    /// One English line for the code alone; [`Error`] says more.
    pub fn text(self) -> &'static str {
        match self {
            Code::Success => "success",
            Code::DeviceError => "a device call failed",
            Code::SystemError => "a system call failed",
            Code::InternalError => "internal error in graccl",
            Code::InvalidArgument => "invalid argument",
            Code::InvalidUsage => "invalid usage, or ranks that disagree about a call",
            Code::RemoteError => "another rank died, left or failed",
            Code::InProgress => "in progress",
            Code::Timeout => "a deadline passed",
            Code::Aborted => "the communicator was aborted",
        }
    }
}

/// What happened, who it concerns (rank, peer, host, operation), and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    pub what: String,
    /// Empty when there is nobody to name.
    pub who: String,
    /// Empty when there is nothing to advise.
    pub hint: String,
}

/// `Result` with graccl's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(code: Code, what: impl Into<String>) -> Error {
        Error { code, what: what.into(), who: String::new(), hint: String::new() }
    }
    pub fn argument(what: impl Into<String>) -> Error {
        Error::new(Code::InvalidArgument, what)
    }
    pub fn usage(what: impl Into<String>) -> Error {
        Error::new(Code::InvalidUsage, what)
    }
    pub fn internal(what: impl Into<String>) -> Error {
        Error::new(Code::InternalError, what)
    }
    pub fn timeout(what: impl Into<String>) -> Error {
        Error::new(Code::Timeout, what)
    }
    pub fn remote(what: impl Into<String>) -> Error {
        Error::new(Code::RemoteError, what)
    }
    /// A failed system call; takes the cause from `errno`.
    pub fn os(what: impl Into<String>) -> Error {
        Error::io(what, &std::io::Error::last_os_error())
    }
    /// A failed system call with its cause.
    pub fn io(what: impl Into<String>, cause: &std::io::Error) -> Error {
        Error::new(Code::SystemError, format!("{}: {}", what.into(), cause))
    }
    /// Names the rank, peer, host or operation.
    pub fn who(mut self, who: impl Into<String>) -> Error {
        self.who = who.into();
        self
    }
    /// Says what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.who.is_empty() {
            write!(f, " [{}]", self.who)?;
        }
        if !self.hint.is_empty() {
            write!(f, " -> {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

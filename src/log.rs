//! Lines for people on stderr, off unless `GRACCL_DEBUG` is set to warn, info or trace.

use std::fmt;
use std::io::Write;
use std::sync::OnceLock;

/// How much `GRACCL_DEBUG` must ask for before a line is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something was wrong, and the job goes on.
    Warn = 1,
    /// What was chosen: addresses, transports, algorithms.
    Info = 2,
    /// Every step.
    Trace = 3,
}

fn parse(value: Option<&str>) -> u8 {
    match value.map(|v| v.trim().to_ascii_lowercase()).as_deref() {
        None | Some("" | "0" | "off") => 0,
        Some("info") => Level::Info as u8,
        Some("trace" | "debug" | "all") => Level::Trace as u8,
        Some(_) => Level::Warn as u8,
    }
}

/// Whether lines of this level are shown. `GRACCL_DEBUG` is read once, at the first call.
pub fn enabled(level: Level) -> bool {
    static SHOWN: OnceLock<u8> = OnceLock::new();
    level as u8 <= *SHOWN.get_or_init(|| parse(std::env::var("GRACCL_DEBUG").ok().as_deref()))
}

/// Writes one line, "graccl \[rank\] text". `rank` is `None` where the process acts for no rank in
/// particular. Any thread may call it; a line that cannot be written is lost.
pub fn log(level: Level, rank: Option<usize>, text: fmt::Arguments<'_>) {
    if !enabled(level) {
        return;
    }
    let line = match rank {
        Some(r) => format!("graccl [{r}] {text}\n"),
        None => format!("graccl [pid {}] {text}\n", std::process::id()),
    };
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert_eq!(parse(None), 0);
        assert_eq!(parse(Some("0")), 0);
        assert_eq!(parse(Some("WARN")), 1);
        assert_eq!(parse(Some("1")), 1);
        assert_eq!(parse(Some(" info ")), 2);
        assert_eq!(parse(Some("trace")), 3);
    }
}

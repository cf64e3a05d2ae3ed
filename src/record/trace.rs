//! `GRACCL_TRACE`: the events as a file for Perfetto (ui.perfetto.dev) or chrome://tracing.
//!
//! The format is Chrome's "Trace Event Format": complete events (`X`) for calls, nestable asynchronous
//! ones (`b`, `e`) for those that run beside others, instants (`i`), and metadata (`M`) with names. A
//! rank is a process there and a communicator a thread. Times are `CLOCK_MONOTONIC` in microseconds, so
//! ranks of a host share one axis.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::memory::Record;
use super::snapshot::{Event, Plans, Snapshot, events};
use super::{Identity, Kind};
use crate::log::{Level, log};
use crate::{Error, Result};

/// The name in `GRACCL_TRACE`. The environment is read once.
pub fn wanted() -> Option<&'static str> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    NAME.get_or_init(|| std::env::var("GRACCL_TRACE").ok().filter(|n| !n.is_empty())).as_deref()
}

/// A communicator, remembered when its entry is long gone.
struct Track {
    /// In the job's first communicator.
    world: u32,
    text: String,
}

static TRACKS: Mutex<BTreeMap<u32, Track>> = Mutex::new(BTreeMap::new());

/// Remembers who the process's communicator number `serial` is.
pub fn communicator(serial: u32, me: &Identity) {
    let world = me.world.get(me.rank).copied().unwrap_or(me.rank as u32);
    let text = format!("communicator {:x}: rank {} of {}", me.context, me.rank, me.size);
    TRACKS.lock().unwrap_or_else(|e| e.into_inner()).insert(serial, Track { world, text });
}

/// Writes the trace if there is anything that the file does not have yet.
pub fn write(r: &Record) {
    // What the file has; and only one writes at a time.
    static DONE: Mutex<u64> = Mutex::new(0);
    let (Some(name), false) = (wanted(), r.forked()) else { return };
    let mut done = DONE.lock().unwrap_or_else(|e| e.into_inner());
    let head: &AtomicU64 = &r.header().head.0;
    let now = head.load(Ordering::Relaxed);
    if *done == now {
        return;
    }
    *done = now;
    let tracks = TRACKS.lock().unwrap_or_else(|e| e.into_inner());
    let rank = tracks.values().next().map_or(0, |t| t.world);
    let (path, result) = match Snapshot::read(&r.file) {
        Ok(s) => {
            let path = path(name, rank, s.pid, &s.host);
            let result = to_file(&path, &s, &events(&r.file, usize::MAX), &mut Plans::new(&r.file), &tracks);
            (path, result)
        }
        Err(e) => (name.to_string(), Err(e)),
    };
    if let Err(e) = result {
        log(Level::Warn, Some(rank as usize), format_args!("the trace {path} is not written: {e}"));
    }
}

/// The file's name: `%r` is the rank, `%p` the process, `%h` the host, `%%` a `%`. A name without rank
/// and process would be the same for all: it gets ".RANK.json".
fn path(name: &str, rank: u32, pid: u32, host: &str) -> String {
    let mut path = String::new();
    let mut told_apart = false;
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('%', Some('r')) => {
                let _ = write!(path, "{rank}");
            }
            ('%', Some('p')) => {
                let _ = write!(path, "{pid}");
            }
            ('%', Some('h')) => path.push_str(host),
            ('%', Some('%')) => path.push('%'),
            _ => {
                path.push(c);
                continue;
            }
        }
        told_apart |= matches!(chars.next(), Some('r' | 'p'));
    }
    if !told_apart {
        let _ = write!(path, ".{rank}.json");
    }
    path
}

/// Under another name first: the file is whole or not there.
fn to_file(
    path: &str,
    s: &Snapshot,
    events: &[Event],
    plans: &mut Plans<File>,
    tracks: &BTreeMap<u32, Track>,
) -> Result<()> {
    let half = format!("{path}.part");
    let mut out = BufWriter::new(File::create(&half).map_err(|e| Error::io("cannot create it", &e))?);
    json(&mut out, s, events, plans, tracks)
        .and_then(|()| out.flush())
        .and_then(|()| std::fs::rename(&half, path))
        .map_err(|e| Error::io("cannot write it", &e))
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut s = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => s.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(s, "\\u{:04x}", c as u32);
            }
            c => s.push(c),
        }
    }
    s.push('"');
    s
}

fn json(
    out: &mut impl Write,
    s: &Snapshot,
    events: &[Event],
    plans: &mut Plans<File>,
    tracks: &BTreeMap<u32, Track>,
) -> std::io::Result<()> {
    writeln!(out, "{{\"displayTimeUnit\": \"ns\", \"otherData\": {{")?;
    writeln!(out, "  \"graccl\": {}, \"program\": {},", quoted(&s.version), quoted(&s.program))?;
    writeln!(out, "  \"host\": {}, \"pid\": {},", quoted(&s.host), s.pid)?;
    writeln!(out, "  \"wall_minus_monotonic_ns\": {}}},", i128::from(s.wall) - i128::from(s.began))?;
    write!(out, "\"traceEvents\": [")?;
    let mut between = "\n";
    let mut line = |out: &mut dyn Write, text: String| {
        write!(out, "{between}{text}")?;
        between = ",\n";
        std::io::Result::Ok(())
    };
    let us = |ns: u64| format!("{}.{:03}", ns / 1000, ns % 1000);
    for (serial, t) in tracks {
        let tid = serial + 1;
        let meta = |name: &str, args: String| {
            let pid = t.world;
            format!(
                "{{\"ph\": \"M\", \"name\": \"{name}\", \"pid\": {pid}, \"tid\": {tid}, \"args\": {{{args}}}}}"
            )
        };
        let process = format!("rank {} ({}, pid {})", t.world, s.host, s.pid);
        line(out, meta("process_name", format!("\"name\": {}", quoted(&process))))?;
        line(out, meta("process_sort_index", format!("\"sort_index\": {}", t.world)))?;
        line(out, meta("thread_name", format!("\"name\": {}", quoted(&t.text))))?;
        line(out, meta("thread_sort_index", format!("\"sort_index\": {tid}")))?;
    }
    // Calls that have begun, by communicator and number.
    let mut begun: HashMap<(u32, u32, bool), &Event> = HashMap::new();
    for e in events {
        let Some(track) = tracks.get(&e.communicator) else { continue };
        let at = format!("\"pid\": {}, \"tid\": {}", track.world, e.communicator + 1);
        let key = (e.communicator, e.call, e.own);
        match e.kind {
            Kind::Begin | Kind::Start => {
                begun.insert(key, e);
            }
            Kind::End | Kind::Finish => {
                // Where the ring has forgotten the beginning, nothing is known of the call.
                let Some(b) = begun.remove(&key) else { continue };
                let took = e.time.saturating_sub(b.time);
                let (name, args) = call(b, plans, Some(took));
                if e.kind == Kind::End {
                    let (ts, dur) = (us(b.time), us(took));
                    line(
                        out,
                        format!(
                            "{{\"ph\": \"X\", \"cat\": \"call\", {name}, {at}, \"ts\": {ts}, \"dur\": {dur}, {args}}}"
                        ),
                    )?;
                } else {
                    line(out, beside('b', &name, &at, b, &us(b.time), &args))?;
                    line(out, beside('e', &name, &at, b, &us(e.time), "\"args\": {}"))?;
                }
            }
            kind => {
                let mut args = format!("\"call\": {}", e.call);
                if let Some(p) = e.peer {
                    let _ = write!(args, ", \"peer\": {p}");
                }
                let (name, ts) = (kind.name(), us(e.time));
                line(
                    out,
                    format!(
                        "{{\"ph\": \"i\", \"s\": \"t\", \"cat\": \"graccl\", \"name\": \"{name}\", {at}, \"ts\": {ts}, \"args\": {{{args}}}}}"
                    ),
                )?;
            }
        }
    }
    // What never ended: the viewer draws it to the end.
    let mut left: Vec<_> = begun.into_values().collect();
    left.sort_by_key(|e| e.time);
    for b in left {
        let at = format!("\"pid\": {}, \"tid\": {}", tracks[&b.communicator].world, b.communicator + 1);
        let (name, args) = call(b, plans, None);
        let ts = us(b.time);
        if b.kind == Kind::Begin {
            line(out, format!("{{\"ph\": \"B\", \"cat\": \"call\", {name}, {at}, \"ts\": {ts}, {args}}}"))?;
        } else {
            line(out, beside('b', &name, &at, b, &ts, &args))?;
        }
    }
    writeln!(out, "\n]}}")
}

/// One end of an asynchronous slice.
fn beside(ph: char, name: &str, at: &str, b: &Event, ts: &str, args: &str) -> String {
    let id = format!("{}.{}.{}", b.communicator, u8::from(b.own), b.call);
    format!("{{\"ph\": \"{ph}\", \"cat\": \"call\", \"id\": \"{id}\", {name}, {at}, \"ts\": {ts}, {args}}}")
}

/// Name and arguments of a call's slice.
fn call(b: &Event, plans: &mut Plans<File>, took: Option<u64>) -> (String, String) {
    let mut args = format!("\"call\": {}, \"bytes\": {}", b.call, b.bytes);
    let mut name = format!("call {}", b.call);
    if let Some(shape) = plans.of(b) {
        name.clone_from(&shape.text);
        let _ = write!(args, ", \"algorithm\": {}, \"tiles\": {}", quoted(&shape.algorithm), shape.tiles);
        if let Some(ns) = took.filter(|&ns| ns > 0)
            && shape.bus.is_finite()
        {
            // Bytes in a nanosecond are gigabytes in a second.
            let _ = write!(args, ", \"busbw_gbs\": {:.3}", b.bytes as f64 / ns as f64 * shape.bus);
        }
    }
    (format!("\"name\": {}", quoted(&name)), format!("\"args\": {{{args}}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        assert_eq!(path("t", 3, 9, "h"), "t.3.json");
        assert_eq!(path("t-%h", 3, 9, "h"), "t-h.3.json");
        assert_eq!(path("%h/%r.json", 3, 9, "h"), "h/3.json");
        assert_eq!(path("100%%-%p%", 3, 9, "h"), "100%-9%");
    }

    #[test]
    fn strings() {
        assert_eq!(quoted("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}

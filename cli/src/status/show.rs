//! What was found, as text and as JSON.

use std::fmt::Write;

use graccl::record::State;
use graccl::record::snapshot::Call;
use serde_json::{Value, json};

use super::diagnose::{Job, Member, seconds};
use super::procs::{Process, Scan};

pub fn text(scan: &Scan, jobs: &[Job]) -> String {
    let mut out = String::new();
    for job in jobs {
        one_job(&mut out, scan, job);
    }
    if jobs.is_empty() {
        let whose = if scan.root { "" } else { " of this user" };
        let _ = writeln!(out, "no process{whose} on {} has a communicator of graccl", scan.host);
    }
    let unread = &scan.unreadable;
    for (pid, why) in unread.iter().take(5) {
        let _ = writeln!(out, "process {pid} could not be read: {why}");
    }
    if unread.len() > 5 {
        let _ = writeln!(out, "and {} more could not be read", unread.len() - 5);
    }
    out
}

fn one_job(out: &mut String, scan: &Scan, job: &Job) {
    let members = || job.communicators.values().flatten();
    let mut pids: Vec<i32> = members().map(|m| m.process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    let processes = if pids.len() == 1 { "1 process".into() } else { format!("{} processes", pids.len()) };
    let name = if job.id == 0 { "not joined yet".into() } else { format!("job {:016x}", job.id) };
    let _ = writeln!(out, "{name}: {processes} on {}", scan.host);
    for (context, members) in &job.communicators {
        let c = members[0].comm;
        let from = c.parent.map(|p| format!(", from {p:x}")).unwrap_or_default();
        let _ = writeln!(out, "\ncommunicator {context:x}: {} of {} ranks here{from}", members.len(), c.size);
        let mut rows = vec![["rank", "pid", "state", "call", "what", "since", "where"].map(String::from)];
        rows.extend(members.iter().map(|m| row(scan, m)));
        table(out, &rows);
    }
    let _ = writeln!(out, "\ndiagnosis");
    for f in &job.findings {
        let _ = writeln!(out, "- {}.", f.text.trim_end_matches('.'));
    }
    if job.findings.is_empty() {
        let _ = writeln!(out, "- No rank waits for longer than a second.");
    }
    out.push('\n');
}

fn table(out: &mut String, rows: &[[String; 7]]) {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    for r in rows {
        let mut line = String::new();
        for (i, (cell, w)) in r.iter().zip(&widths).enumerate() {
            // Numbers to the right.
            let _ = if matches!(i, 0 | 1 | 3 | 5) {
                write!(line, "  {cell:>w$}")
            } else {
                write!(line, "  {cell:<w$}")
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// One word for what a rank does.
fn state(m: &Member) -> &'static str {
    match (m.process.stopped(), m.comm.state) {
        (true, _) => "stopped",
        (_, State::Joining) => "joining",
        (_, State::Failed) => "failed",
        (_, State::Finished) => "finished",
        (_, State::Ready) if m.comm.moving => "moving",
        (_, State::Ready) if m.stuck().is_some() => "waits",
        (_, State::Ready) if !m.comm.open.is_empty() => "in call",
        (_, State::Ready) => "outside",
    }
}

fn row(scan: &Scan, m: &Member) -> [String; 7] {
    let ago = |t: u64| seconds(scan.now.saturating_sub(t));
    let stuck = m.stuck();
    // The call that it stands still in, else the oldest, else the last.
    let at = stuck.and_then(|s| m.comm.open.iter().find(|o| o.number == s.number));
    let open = at.or(m.comm.open.first());
    let call = open.or(m.comm.last.as_ref()).or(m.comm.last_own.as_ref());
    let what = call.map_or("no call yet".into(), |c| {
        let text = c.shape.as_ref().map_or("(text not kept)", |s| &s.text);
        if open.is_some() { text.to_string() } else { format!("{text}, over") }
    });
    let since = match (&m.comm.failure, stuck, open.and_then(|o| o.since)) {
        (Some(f), ..) => ago(f.when),
        (None, Some(s), _) => ago(s.since),
        (None, None, Some(t)) => ago(t),
        (None, None, None) if m.comm.state == State::Joining => ago(m.comm.opened),
        _ => String::new(),
    };
    let place = match (&m.comm.failure, stuck) {
        (Some(f), _) => f.text.clone(),
        (None, Some(s)) => s.text.clone(),
        _ => String::new(),
    };
    [
        m.comm.rank.to_string(),
        m.process.pid.to_string(),
        state(m).into(),
        call.map_or(String::new(), |c| c.number.to_string()),
        what,
        since,
        place,
    ]
}

/// Version of the JSON. Fields may be added without a new one.
const FORMAT: u32 = 1;

pub fn json(scan: &Scan, jobs: &[Job]) -> String {
    let value = json!({
        "format": FORMAT,
        "host": scan.host,
        "time_ns": scan.now,
        "jobs": jobs.iter().map(|j| job(scan, j)).collect::<Vec<_>>(),
        "processes": scan.processes.iter().map(|p| process(scan, p)).collect::<Vec<_>>(),
        "unreadable": scan.unreadable.iter().map(|(pid, why)| json!({ "pid": pid, "reason": why })).collect::<Vec<_>>(),
    });
    // One line, so that --watch gives a line for every picture.
    value.to_string() + "\n"
}

fn hex(id: u64) -> String {
    format!("{id:016x}")
}

fn ago(scan: &Scan, t: u64) -> f64 {
    scan.now.saturating_sub(t) as f64 / 1e9
}

fn job(scan: &Scan, j: &Job) -> Value {
    let communicators = j.communicators.iter().map(|(context, members)| {
        let c = members[0].comm;
        json!({
            "context": hex(*context),
            "parent": c.parent.map(hex),
            "size": c.size,
            "ranks": members.iter().map(|m| rank(scan, m)).collect::<Vec<_>>(),
        })
    });
    let findings = j.findings.iter().map(|f| {
        json!({
            "kind": f.kind,
            "communicator": hex(f.communicator),
            "ranks": f.ranks,
            "waiting": f.waiting,
            "seconds": f.waited as f64 / 1e9,
            "text": f.text,
        })
    });
    json!({
        "job": hex(j.id),
        "communicators": communicators.collect::<Vec<_>>(),
        "diagnosis": findings.collect::<Vec<_>>(),
    })
}

fn call(scan: &Scan, c: &Call) -> Value {
    let shape = c.shape.as_ref();
    json!({
        "number": c.number,
        "own": c.own,
        "text": shape.map(|s| &s.text),
        "algorithm": shape.map(|s| &s.algorithm),
        "tiles": shape.map(|s| s.tiles),
        "bytes": shape.map(|s| s.bytes),
        "seconds": c.since.map(|t| ago(scan, t)),
    })
}

fn rank(scan: &Scan, m: &Member) -> Value {
    let c = m.comm;
    let waits = m.stuck().map(|s| {
        json!({
            "call": s.number,
            "lane": s.lane,
            "tile": s.tile,
            "op": s.op,
            "text": s.text,
            "ranks": s.peers,
            "seconds": ago(scan, s.since),
            "looked_seconds": ago(scan, s.looked),
            "deadline_seconds": s.deadline.map(|d| (i128::from(d) - i128::from(scan.now)) as f64 / 1e9),
        })
    });
    json!({
        "rank": c.rank,
        "world": c.world(c.rank),
        "pid": m.process.pid,
        "host": c.host(c.rank),
        "state": state(m),
        "calls": c.calls,
        "bytes": c.bytes,
        "last": c.last.as_ref().map(|l| call(scan, l)),
        "last_own": c.last_own.as_ref().map(|l| call(scan, l)),
        "open": c.open.iter().map(|o| call(scan, o)).collect::<Vec<_>>(),
        "waits": waits,
        "failure": c.failure.as_ref().map(|f| json!({
            "code": f.code,
            "text": f.text,
            "seconds": ago(scan, f.when),
        })),
    })
}

fn process(scan: &Scan, p: &Process) -> Value {
    let threads = p.threads.iter().map(|t| {
        json!({
            "tid": t.tid,
            "name": t.name,
            "state": t.state.to_string(),
            "cpu": t.cpu,
            "wchan": t.wchan,
        })
    });
    let events = p.record.events.iter().map(|e| {
        json!({
            "kind": e.kind.name(),
            "seconds": ago(scan, e.time),
            "communicator": e.communicator,
            "call": e.call,
            "own": e.own,
            "bytes": e.bytes,
            "peer": e.peer,
        })
    });
    json!({
        "pid": p.pid,
        "uid": p.uid,
        "program": p.record.program,
        "graccl": p.record.version,
        "state": p.state.to_string(),
        "cpu": p.cpu(),
        "communicators_unreadable": p.record.unreadable,
        "threads": threads.collect::<Vec<_>>(),
        "events": events.collect::<Vec<_>>(),
    })
}

//! Who keeps whom waiting.
//!
//! The ranks of a job are the nodes of a graph, and "waits for" its edges, whichever communicator a
//! rank waits in. Who waits is a victim; the cause is where the edges end: a rank that waits for nobody
//! because it is missing, stopped, failed, elsewhere or outside of graccl. Edges that do not end are a
//! circle.

use std::collections::{BTreeMap, BTreeSet};

use graccl::record::State;
use graccl::record::snapshot::{Call, Communicator, Stuck};

use super::procs::{Process, Scan};

/// A wait is worth speaking of from here on, ns.
const LONG: u64 = 1_000_000_000;
/// A process that uses less of a core than this sleeps.
const BUSY: f64 = 0.05;

/// One rank of one communicator.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    pub process: &'a Process,
    pub comm: &'a Communicator,
}

pub struct Job<'a> {
    /// 0: processes that have not joined yet.
    pub id: u64,
    /// By context, then by rank.
    pub communicators: BTreeMap<u64, Vec<Member<'a>>>,
    pub findings: Vec<Finding>,
}

/// Something to tell. Ranks are those of the job's first communicator.
pub struct Finding {
    /// One of: missing, stopped, failed, mismatch, not_entered, left, busy, remote, unknown, circle,
    /// joining.
    pub kind: &'static str,
    pub communicator: u64,
    /// Whom it is about.
    pub ranks: Vec<u32>,
    /// Who waits for them, directly or not, and for how long at most, ns.
    pub waiting: Vec<u32>,
    pub waited: u64,
    pub text: String,
}

impl<'a> Member<'a> {
    pub fn world(&self) -> u32 {
        self.comm.world(self.comm.rank).unwrap_or(self.comm.rank)
    }

    /// Where the rank stands still. What was recorded of a call that is over does not count.
    pub fn stuck(&self) -> Option<&'a Stuck> {
        let c = self.comm;
        let s = c.stuck.as_ref()?;
        let current = c.state == State::Joining || c.open.iter().any(|o| o.number == s.number);
        (current && !c.moving).then_some(s)
    }
}

/// The jobs of all processes, with what is wrong in them.
pub fn jobs(scan: &Scan) -> Vec<Job<'_>> {
    let mut jobs: BTreeMap<u64, BTreeMap<u64, Vec<Member>>> = BTreeMap::new();
    for process in &scan.processes {
        for comm in &process.record.communicators {
            let of_job = jobs.entry(comm.job).or_default();
            of_job.entry(comm.context).or_default().push(Member { process, comm });
        }
    }
    jobs.into_iter().map(|(id, communicators)| Job::new(id, communicators, scan)).collect()
}

impl<'a> Job<'a> {
    fn new(id: u64, mut communicators: BTreeMap<u64, Vec<Member<'a>>>, scan: &'a Scan) -> Job<'a> {
        for members in communicators.values_mut() {
            members.sort_by_key(|m| (m.comm.rank, m.process.pid));
        }
        let mut job = Job { id, communicators, findings: Vec::new() };
        job.findings = Graph::new(&job, scan).findings();
        job
    }
}

/// "0-2, 5".
pub fn ranks(list: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &r in list {
        match parts.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(r) => *end = r,
            _ => parts.push((r, r)),
        }
    }
    let part = |&(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// "rank 3" or "ranks 0-2".
fn the(list: &[u32]) -> String {
    format!("{} {}", if list.len() == 1 { "rank" } else { "ranks" }, ranks(list))
}

fn wait(list: &[u32]) -> &'static str {
    if list.len() == 1 { "waits" } else { "wait" }
}

pub fn seconds(ns: u64) -> String {
    format!("{:.1} s", ns as f64 / 1e9)
}

/// "call 17, all_reduce of 10 float (sum)".
fn name(call: &Call) -> String {
    let text = call.shape.as_ref().map_or("", |s| &s.text);
    let sep = if text.is_empty() { "" } else { ", " };
    if call.own { format!("{text} ({})", call.number) } else { format!("call {}{sep}{text}", call.number) }
}

/// One rank waits for another.
struct Edge<'a> {
    from: Member<'a>,
    /// The other, in the first communicator and in the one that this is about.
    to: u32,
    local: u32,
    call: u32,
    waited: u64,
}

struct Graph<'a, 'b> {
    job: &'b Job<'a>,
    scan: &'a Scan,
    by_rank: BTreeMap<u32, Vec<Member<'a>>>,
    edges: BTreeMap<u32, Vec<Edge<'a>>>,
    /// Machines whose processes we see.
    here: BTreeSet<&'a str>,
}

/// Emulated hosts differ behind the slash.
fn machine(host: &str) -> &str {
    host.split('/').next().unwrap_or(host)
}

impl<'a, 'b> Graph<'a, 'b> {
    fn new(job: &'b Job<'a>, scan: &'a Scan) -> Graph<'a, 'b> {
        let mut g = Graph {
            job,
            scan,
            by_rank: BTreeMap::new(),
            edges: BTreeMap::new(),
            here: BTreeSet::from([&scan.host[..]]),
        };
        for m in job.communicators.values().flatten() {
            g.by_rank.entry(m.world()).or_default().push(*m);
            g.here.extend(m.comm.host(m.comm.rank).map(machine));
            // A stopped process waits for nobody but whoever lets it go on.
            let Some(s) = m.stuck().filter(|_| !m.process.stopped() && m.comm.state != State::Failed) else {
                continue;
            };
            for &local in s.peers.iter().filter(|&&p| p < m.comm.size) {
                let to = m.comm.world(local).unwrap_or(local);
                let waited = scan.now.saturating_sub(s.since);
                let edge = Edge { from: *m, to, local, call: s.number, waited };
                g.edges.entry(m.world()).or_default().push(edge);
            }
        }
        g
    }

    fn findings(&self) -> Vec<Finding> {
        let mut all = Vec::new();
        if self.job.id == 0 {
            return self.joining();
        }
        self.mismatches(&mut all);
        let mut ends = BTreeSet::new();
        let mut circle: BTreeSet<u32> = BTreeSet::new();
        for (&rank, edges) in &self.edges {
            if edges.iter().all(|e| e.waited < LONG) {
                continue;
            }
            let reached = self.reached(rank);
            let found: Vec<u32> = reached.iter().copied().filter(|r| !self.edges.contains_key(r)).collect();
            if found.is_empty() {
                // Those that everybody in the circle comes back to.
                circle.extend(reached.iter().filter(|&&r| self.reached(r).contains(&r)));
            }
            ends.extend(found);
        }
        for &end in &ends {
            all.extend(self.end(end));
        }
        if !circle.is_empty() {
            all.push(self.circle(circle.into_iter().collect()));
        }
        self.missing(&ends, &mut all);
        self.failed(&ends, &mut all);
        all.extend(self.joining());
        all
    }

    /// Ranks that a rank waits for, directly or not.
    fn reached(&self, from: u32) -> BTreeSet<u32> {
        let mut seen = BTreeSet::new();
        let mut next = vec![from];
        while let Some(r) = next.pop() {
            for e in self.edges.get(&r).into_iter().flatten() {
                if seen.insert(e.to) {
                    next.push(e.to);
                }
            }
        }
        seen
    }

    /// Who waits for a rank, directly or not, and the longest of these waits.
    fn waiting(&self, end: u32) -> (Vec<u32>, u64) {
        let list: Vec<u32> =
            self.edges.keys().copied().filter(|&r| r != end && self.reached(r).contains(&end)).collect();
        let longest = list.iter().flat_map(|r| &self.edges[r]).map(|e| e.waited).max().unwrap_or(0);
        (list, longest)
    }

    /// A rank that others wait for and that waits for nobody.
    fn end(&self, rank: u32) -> Option<Finding> {
        // The longest direct wait says what is waited for.
        let edge = self.edges.values().flatten().filter(|e| e.to == rank).max_by_key(|e| e.waited)?;
        let (waiting, waited) = self.waiting(rank);
        let (kind, mut text) = self.cause(rank, edge);
        let indirect = waiting.iter().any(|w| self.edges[w].iter().all(|e| e.to != rank));
        let how = if indirect { ", directly or through each other," } else { "" };
        text += &format!("; {} {} for it{how} for {}", the(&waiting), wait(&waiting), seconds(waited));
        Some(Finding { kind, communicator: edge.from.comm.context, ranks: vec![rank], waiting, waited, text })
    }

    fn cause(&self, rank: u32, edge: &Edge) -> (&'static str, String) {
        let Some(members) = self.by_rank.get(&rank) else { return self.unseen(rank, edge) };
        let context = edge.from.comm.context;
        let process = members[0].process;
        if process.stopped() {
            let by = if process.state == 't' { "held by a debugger" } else { "stopped" };
            let kill = format!("`kill -CONT {}` lets it go on", process.pid);
            return ("stopped", format!("rank {rank} is {by} (process {}): {kill}", process.pid));
        }
        let Some(m) = members.iter().find(|m| m.comm.context == context) else {
            return (
                "left",
                format!(
                    "rank {rank} has destroyed communicator {context:x}, or has not made it yet. {}",
                    activity(process)
                ),
            );
        };
        if let (State::Failed, Some(f)) = (m.comm.state, &m.comm.failure) {
            return ("failed", format!("rank {rank} has failed: {}", f.text));
        }
        if m.comm.state == State::Finished {
            return ("left", format!("rank {rank} has finished its calls. {}", activity(process)));
        }
        let wanted = edge.call;
        let own = edge.from.comm.open.iter().any(|o| o.own && o.number == wanted);
        let elsewhere = members.iter().find_map(|o| {
            let call = o.comm.open.first()?;
            (o.comm.context != context)
                .then(|| format!("It is in communicator {:x}, {}. ", o.comm.context, name(call)))
        });
        let doing = format!("{}{}", elsewhere.unwrap_or_default(), activity(process));
        if own {
            // Its number means nothing to others.
            return (
                "not_entered",
                format!("rank {rank} does not do its part of a send or receive. {doing}"),
            );
        }
        let here = format!("of communicator {context:x}");
        let Some(last) = &m.comm.last else {
            return (
                "not_entered",
                format!("rank {rank} has made no call {here} yet, not call {wanted} either. {doing}"),
            );
        };
        let open = m.comm.open.iter().any(|o| !o.own && o.number == last.number);
        match ((wanted.wrapping_sub(last.number) as i32).signum(), open) {
            (1, true) => (
                "busy",
                format!("rank {rank} is still in {} {here}, and waits for nobody there. {doing}", name(last)),
            ),
            (1, false) => (
                "not_entered",
                format!(
                    "rank {rank} has not entered call {wanted} {here}; its last was {}, which is over. {doing}",
                    name(last)
                ),
            ),
            (0, true) => (
                "busy",
                format!("rank {rank} is in call {wanted} {here} as well, and waits for nobody. {doing}"),
            ),
            _ => ("busy", format!("rank {rank} is past call {wanted} {here}, at {}. {doing}", name(last))),
        }
    }

    /// A rank without a process that we see.
    fn unseen(&self, rank: u32, edge: &Edge) -> (&'static str, String) {
        match edge.from.comm.host(edge.local) {
            Some(h) if self.here.contains(machine(h)) => ("missing", self.gone(&[rank])),
            Some(h) => ("remote", format!("rank {rank} is on {h}: run `graccl status` there")),
            None => {
                ("unknown", format!("rank {rank} is not seen on this host, and its host is not known here"))
            }
        }
    }

    fn gone(&self, list: &[u32]) -> String {
        let is = if list.len() == 1 { "is" } else { "are" };
        let mut text = format!(
            "{} {is} missing: no process of this host has it. It has died or ended: look at its output",
            the(list)
        );
        if list.len() > 1 {
            text = text.replace(
                "has it. It has died or ended: look at its",
                "has them. They have died or ended: look at their",
            );
        }
        if !self.scan.unreadable.is_empty() {
            text += " (or it is one of the processes that could not be read)";
        }
        text
    }

    /// Ranks of this host without a process, for whom nobody waits yet.
    fn missing(&self, told: &BTreeSet<u32>, all: &mut Vec<Finding>) {
        let Some((&context, members)) = self.job.communicators.iter().max_by_key(|(_, m)| m[0].comm.size)
        else {
            return;
        };
        let comm = members[0].comm;
        if members.iter().any(|m| m.comm.state == State::Joining) {
            return;
        }
        let here = |r: &u32| comm.host(*r).is_some_and(|h| self.here.contains(machine(h)));
        let lost: Vec<u32> = (0..comm.size)
            .filter(here)
            .filter_map(|r| comm.world(r))
            .filter(|w| !self.by_rank.contains_key(w) && !told.contains(w))
            .collect();
        if !lost.is_empty() {
            let text = self.gone(&lost);
            all.push(Finding {
                kind: "missing",
                communicator: context,
                ranks: lost,
                waiting: Vec::new(),
                waited: 0,
                text,
            });
        }
    }

    /// Communicators that have failed, with equal texts together.
    fn failed(&self, told: &BTreeSet<u32>, all: &mut Vec<Finding>) {
        for (&context, members) in &self.job.communicators {
            let mut texts: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
            for m in members {
                if let (State::Failed, Some(f), false) =
                    (m.comm.state, &m.comm.failure, told.contains(&m.world()))
                {
                    texts.entry(&f.text).or_default().push(m.world());
                }
            }
            for (text, list) in texts {
                let have = if list.len() == 1 { "has" } else { "have" };
                let text = format!("{} {have} failed: {text}", the(&list));
                all.push(Finding {
                    kind: "failed",
                    communicator: context,
                    ranks: list,
                    waiting: Vec::new(),
                    waited: 0,
                    text,
                });
            }
        }
    }

    /// Calls of one number that are not the same call.
    fn mismatches(&self, all: &mut Vec<Finding>) {
        for (&context, members) in &self.job.communicators {
            let mut calls: BTreeMap<u32, BTreeMap<String, BTreeSet<u32>>> = BTreeMap::new();
            for m in members {
                for c in m.comm.open.iter().chain(&m.comm.last).filter(|c| !c.own) {
                    if let Some(s) = &c.shape {
                        let text = format!("{} by {}", s.text, s.algorithm);
                        calls.entry(c.number).or_default().entry(text).or_default().insert(m.world());
                    }
                }
            }
            for (number, texts) in calls.into_iter().filter(|(_, t)| t.len() > 1) {
                let mut texts: Vec<(String, Vec<u32>)> =
                    texts.into_iter().map(|(t, r)| (t, r.into_iter().collect())).collect();
                // The most common first: the others are the odd ones.
                texts.sort_by_key(|(_, r)| std::cmp::Reverse(r.len()));
                let parts = texts.iter().map(|(t, r)| format!("{t} on {}", the(r)));
                let parts: Vec<String> = parts.collect();
                let mut odd: Vec<u32> = texts[1..].iter().flat_map(|(_, r)| r).copied().collect();
                odd.sort_unstable();
                all.push(Finding {
                    kind: "mismatch",
                    communicator: context,
                    ranks: odd,
                    waiting: Vec::new(),
                    waited: 0,
                    text: format!(
                        "call {number} of communicator {context:x} is not the same on all ranks: {}",
                        parts.join("; ")
                    ),
                });
            }
        }
    }

    fn circle(&self, list: Vec<u32>) -> Finding {
        let waits = list.iter().flat_map(|r| &self.edges[r]);
        let waited = waits.map(|e| e.waited).max().unwrap_or(0);
        let each = list.iter().map(|r| {
            let e = &self.edges[r][0];
            format!("rank {r} in call {} of communicator {:x} for rank {}", e.call, e.from.comm.context, e.to)
        });
        let each: Vec<String> = each.take(8).collect();
        let more = if list.len() > 8 { "; and so on" } else { "" };
        Finding {
            kind: "circle",
            communicator: self.edges[&list[0]][0].from.comm.context,
            text: format!(
                "{} wait for each other in a circle, for {}: {}{more}. Do they make the same calls in the same order, on all communicators?",
                the(&list),
                seconds(waited),
                each.join("; ")
            ),
            waiting: list.clone(),
            ranks: list,
            waited,
        }
    }

    /// Communicators that wait for ranks to join.
    fn joining(&self) -> Vec<Finding> {
        let mut all = Vec::new();
        for (&context, members) in &self.job.communicators {
            let waits = members.iter().filter(|m| m.comm.state == State::Joining);
            let waits: Vec<&Member> =
                waits.filter(|m| self.scan.now.saturating_sub(m.comm.opened) > LONG).collect();
            let Some(first) = waits.first() else { continue };
            let list: Vec<u32> = waits.iter().map(|m| m.comm.rank).collect();
            let waited = waits.iter().map(|m| self.scan.now.saturating_sub(m.comm.opened)).max().unwrap_or(0);
            let reason = first.comm.stuck.as_ref().map(|s| format!(": {}", s.text)).unwrap_or_default();
            all.push(Finding {
                kind: "joining",
                communicator: context,
                text: format!(
                    "{} of {} {} for the others to join, for {}{reason}",
                    the(&list),
                    first.comm.size,
                    wait(&list),
                    seconds(waited)
                ),
                ranks: list.clone(),
                waiting: list,
                waited,
            });
        }
        all
    }
}

/// What a process does, as far as the system tells.
pub fn activity(p: &Process) -> String {
    let who = format!("Its process {} ({})", p.pid, p.record.program);
    let busiest = p.threads.iter().max_by(|a, b| a.cpu.total_cmp(&b.cpu));
    match busiest {
        Some(t) if t.cpu > BUSY => {
            format!(
                "{who} uses {:.0} % of a core outside of graccl, in thread \"{}\" ({})",
                p.cpu() * 100.0,
                t.name,
                t.tid
            )
        }
        _ => {
            let main = p.threads.iter().find(|t| t.tid == p.pid);
            let at = main.map_or(String::new(), |t| {
                let at = t.wchan.as_ref().map(|w| format!(" in the kernel's {w}")).unwrap_or_default();
                let how = if t.state == 'D' { "waits for the disk or a device" } else { "sleeps" };
                format!(": thread \"{}\" {how}{at}", t.name)
            });
            format!("{who} does nothing{at}")
        }
    }
}

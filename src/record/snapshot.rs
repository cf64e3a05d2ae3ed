//! Reading a record, of this process or of another.
//!
//! It is read with `pread` and not through a mapping: looking at a page of a memfd through a mapping
//! brings it into being, and most of a record is a hole. The writer may be at work, or stopped half way,
//! or no graccl at all: nothing read is trusted. What changes while it is read is read again, and left
//! out if it does not come to rest.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::mem::{offset_of, size_of};
use std::os::unix::fs::FileExt;

use super::layout::*;
use super::{Kind, State};
use crate::{Error, Result};

/// Bytes that are read at offsets.
pub trait Source {
    /// Fills `to` from offset `at`; false where there is not so much.
    fn read(&self, at: usize, to: &mut [u8]) -> bool;
}

impl Source for File {
    fn read(&self, at: usize, to: &mut [u8]) -> bool {
        self.read_exact_at(to, at as u64).is_ok()
    }
}

impl Source for [u8] {
    fn read(&self, at: usize, to: &mut [u8]) -> bool {
        let from = at.checked_add(to.len()).and_then(|end| self.get(at..end));
        from.map(|from| to.copy_from_slice(from)).is_some()
    }
}

/// What a process recorded, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// As the process itself sees it.
    pub pid: u32,
    /// When the process began, in clock ticks since the machine did.
    pub ticks: u64,
    /// When the record began: `CLOCK_MONOTONIC` (as all times here) and `CLOCK_REALTIME`, ns.
    pub began: u64,
    pub wall: u64,
    pub host: String,
    pub program: String,
    /// Version of graccl.
    pub version: String,
    pub communicators: Vec<Communicator>,
    /// Communicators that could not be read because they were being changed.
    pub unreadable: usize,
    /// The last events, oldest first.
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Communicator {
    pub job: u64,
    pub context: u64,
    pub parent: Option<u64>,
    pub rank: u32,
    pub size: u32,
    pub opened: u64,
    pub state: State,
    /// Calls begun so far, and the sum of their sizes.
    pub calls: u64,
    pub bytes: u64,
    /// Calls began or ended while this was read: nothing hangs.
    pub moving: bool,
    /// The last collective that began.
    pub last: Option<Call>,
    /// The last send or receive that began.
    pub last_own: Option<Call>,
    /// Calls under way, the oldest collective first.
    pub open: Vec<Call>,
    pub stuck: Option<Stuck>,
    pub failure: Option<Failed>,
    runs: Vec<[u32; 3]>,
    host_runs: Vec<[u32; 2]>,
    hosts: Vec<String>,
}

/// A call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub number: u32,
    /// The number counts this rank's own calls, and not the communicator's collectives.
    pub own: bool,
    /// When it began, if that is known.
    pub since: Option<u64>,
    /// `None`: so many others were described since that the text is gone.
    pub shape: Option<Shape>,
}

/// See [`super::Shape`].
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub text: String,
    pub algorithm: String,
    pub tiles: u32,
    pub bytes: u64,
    pub bus: f64,
}

/// Where a call stands still: see [`super::Position`].
#[derive(Clone, Debug, PartialEq)]
pub struct Stuck {
    pub number: u32,
    pub lane: u32,
    pub tile: u32,
    pub op: u32,
    pub peers: Vec<u32>,
    pub since: u64,
    /// When the rank last looked whether it can go on.
    pub looked: u64,
    /// When it will be an error.
    pub deadline: Option<u64>,
    pub text: String,
}

/// Why a communicator failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    /// A [`Code`](crate::Code)'s number.
    pub code: u32,
    pub when: u64,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub kind: Kind,
    pub time: u64,
    /// Which of the process's communicators, from 0 in the order they were opened.
    pub communicator: u32,
    pub call: u32,
    pub own: bool,
    pub bytes: u64,
    pub peer: Option<u32>,
    /// Number of the call's plan.
    plan: u32,
}

impl Communicator {
    /// A rank of this communicator, as rank of the job's first one. `None`: not known.
    pub fn world(&self, rank: u32) -> Option<u32> {
        match (run_of(&self.runs, RUNS, rank), self.runs.is_empty()) {
            (Some(&[at, first, step]), _) => Some(first.wrapping_add(step.wrapping_mul(rank - at))),
            (None, all_the_same) => all_the_same.then_some(rank),
        }
    }

    /// The host of a rank of this communicator. `None`: not known.
    pub fn host(&self, rank: u32) -> Option<&str> {
        let run = run_of(&self.host_runs, HOST_RUNS, rank)?;
        self.hosts.get(run[1] as usize).map(String::as_str)
    }
}

/// The run that a rank is in. A full table does not say where its last run ends.
fn run_of<const N: usize>(runs: &[[u32; N]], most: usize, rank: u32) -> Option<&[u32; N]> {
    let i = runs.iter().rposition(|r| r[0] <= rank)?;
    (i + 1 < most).then(|| &runs[i])
}

thread_local! {
    /// How often one reading may yet yield to writers. A record may say of thousands of places that somebody
    /// writes there, and on a busy machine each yield takes milliseconds.
    static PATIENCE: Cell<u32> = const { Cell::new(YIELDS) };
}

const YIELDS: u32 = 256;

/// Lets a writer go on.
fn give_way() {
    if let Some(left) = PATIENCE.get().checked_sub(1) {
        PATIENCE.set(left);
        std::thread::yield_now();
    }
}

/// Bytes of a structure, and numbers and texts in it.
struct View(Vec<u8>);

impl View {
    fn read(from: &(impl Source + ?Sized), at: usize, len: usize) -> Option<View> {
        let mut bytes = vec![0; len];
        from.read(at, &mut bytes).then_some(View(bytes))
    }

    /// Reads what a version guards; `None` if it does not come to rest.
    fn guarded(from: &(impl Source + ?Sized), at: usize, len: usize, version: usize) -> Option<View> {
        for tries in 0..8 {
            let before = View::read(from, at + version, 4)?.u32(0);
            let v = View::read(from, at, len)?;
            let after = View::read(from, at + version, 4)?.u32(0);
            if before == after && before & 1 == 0 {
                return Some(v);
            }
            if tries > 3 {
                give_way();
            }
        }
        None
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("4 bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("8 bytes"))
    }

    /// A [`Text`] of up to `n` bytes, fit for a terminal.
    fn text(&self, at: usize, n: usize) -> String {
        let len = (self.u32(at) as usize).min(n);
        let text = String::from_utf8_lossy(&self.0[at + 4..at + 4 + len]);
        text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

// Numbers lie in memory in the machine's order, and are read as little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// Events that a snapshot has.
const EVENTS: usize = 64;

impl Snapshot {
    /// Reads a record.
    ///
    /// # Errors
    /// `InvalidUsage` if this is no record, or one of another version of graccl.
    pub fn read(from: &(impl Source + ?Sized)) -> Result<Snapshot> {
        PATIENCE.set(YIELDS);
        let none = || Error::usage("this is no record of graccl, or one that is just being made");
        let h = View::read(from, 0, size_of::<Header>()).ok_or_else(none)?;
        if h.u64(offset_of!(Header, magic)) != MAGIC {
            return Err(none());
        }
        let layout = h.u32(offset_of!(Header, layout));
        let version = h.text(offset_of!(Header, version), 28);
        if layout != LAYOUT {
            return Err(Error::usage(format!(
                "graccl {version} keeps its record in layout {layout}, this graccl reads {LAYOUT}"
            ))
            .hint("use the `graccl` of the version that the process uses"));
        }
        let used = View::read(from, USED_AT, ENTRIES * 4).ok_or_else(none)?;
        let mut plans = Plans::new(from);
        let mut communicators = Vec::new();
        let mut unreadable = 0;
        for i in (0..ENTRIES).filter(|i| used.u32(i * 4) & USED_STATE != FREE) {
            match communicator(from, i, &mut plans) {
                Found::Live(c) => communicators.push(*c),
                Found::Gone => {}
                Found::Unreadable => unreadable += 1,
            }
        }
        Ok(Snapshot {
            pid: h.u32(offset_of!(Header, pid)),
            ticks: h.u64(offset_of!(Header, ticks)),
            began: h.u64(offset_of!(Header, began)),
            wall: h.u64(offset_of!(Header, wall)),
            host: h.text(offset_of!(Header, host), 76),
            program: h.text(offset_of!(Header, program), 508),
            version,
            communicators,
            unreadable,
            events: events(from, EVENTS),
        })
    }
}

enum Found {
    Live(Box<Communicator>),
    Gone,
    Unreadable,
}

fn communicator(from: &(impl Source + ?Sized), i: usize, plans: &mut Plans<impl Source + ?Sized>) -> Found {
    let at = ENTRIES_AT + i * ENTRY;
    let word = || View::read(from, USED_AT + i * 4, 4).map_or(0, |v| v.u32(0));
    for _ in 0..8 {
        let before = word();
        match before & USED_STATE {
            FREE => return Found::Gone,
            LIVE => {}
            _ => {
                give_way();
                continue;
            }
        }
        let read = (
            View::read(from, at, size_of::<Hot>()),
            View::read(from, at, size_of::<Hot>()),
            View::read(from, at + offset_of!(Entry, identity), size_of::<Identity>()),
        );
        let (Some(first), Some(hot), Some(id)) = read else { return Found::Unreadable };
        let stuck = stuck(from, at + offset_of!(Entry, stuck));
        let failure = failure(from, at + offset_of!(Entry, error));
        if word() != before {
            continue;
        }
        return match assemble(&first, &hot, &id, stuck, failure, plans) {
            Some(c) => Found::Live(Box::new(c)),
            None => Found::Unreadable,
        };
    }
    Found::Unreadable
}

/// `None` if it makes no sense.
fn assemble(
    first: &View,
    hot: &View,
    id: &View,
    stuck: Option<Stuck>,
    failure: Option<Failed>,
    plans: &mut Plans<impl Source + ?Sized>,
) -> Option<Communicator> {
    let (rank, size) = (id.u32(offset_of!(Identity, rank)), id.u32(offset_of!(Identity, size)));
    let state = match hot.u32(offset_of!(Hot, state)) {
        0 => State::Joining,
        1 => State::Ready,
        2 => State::Failed,
        3 => State::Finished,
        _ => return None,
    };
    let [runs, host_runs, hosts] = [
        (offset_of!(Identity, runs), RUNS),
        (offset_of!(Identity, host_runs), HOST_RUNS),
        (offset_of!(Identity, hosts), HOSTS),
    ]
    .map(|(at, most)| (id.u32(at) as usize).min(most));
    if rank >= size || size > SIZE_MAX {
        return None;
    }
    let calls = offset_of!(Hot, calls);
    // A word that is the same twice was not caught while it was written, and what belongs to it neither.
    let open = (0..OPEN).filter_map(|i| {
        let (w, s) = (offset_of!(Hot, open) + i * 8, offset_of!(Hot, since) + i * 8);
        let word = hot.u64(w);
        if word == 0 || word != first.u64(w) {
            return None;
        }
        let known = word as u32 & TIMED != 0 && hot.u64(s) == first.u64(s);
        Some(plans.call(word, known.then(|| hot.u64(s))))
    });
    let mut open: Vec<Call> = open.collect();
    let last = |own: usize| Some(hot.u64(offset_of!(Hot, last) + own * 8)).filter(|&w| w != 0);
    let (last, last_own) = (last(0), last(1));
    // Numbers wrap: the distance from the last one orders them.
    let newest = (last.unwrap_or(0) >> 32) as u32;
    open.sort_by_key(|c| (c.own, std::cmp::Reverse(newest.wrapping_sub(c.number))));
    let run = |i: usize| {
        let at = offset_of!(Identity, run) + i * size_of::<Run>();
        [id.u32(at), id.u32(at + 4), id.u32(at + 8)]
    };
    let host_run = |i: usize| {
        let at = offset_of!(Identity, host_run) + i * size_of::<HostRun>();
        [id.u32(at), id.u32(at + 4)]
    };
    let host = |i: usize| id.text(offset_of!(Identity, host) + i * size_of::<Text<76>>(), 76);
    let parent = id.u64(offset_of!(Identity, parent));
    Some(Communicator {
        job: id.u64(offset_of!(Identity, job)),
        context: id.u64(offset_of!(Identity, context)),
        parent: (id.u32(offset_of!(Identity, has_parent)) != 0).then_some(parent),
        rank,
        size,
        opened: id.u64(offset_of!(Identity, opened)),
        state,
        calls: hot.u64(calls),
        bytes: hot.u64(offset_of!(Hot, bytes)),
        moving: hot.u64(calls) != first.u64(calls),
        last: last.map(|w| plans.call(w, None)),
        last_own: last_own.map(|w| plans.call(w, None)),
        open,
        stuck,
        failure,
        runs: (0..runs).map(run).collect(),
        host_runs: (0..host_runs).map(host_run).collect(),
        hosts: (0..hosts).map(host).collect(),
    })
}

pub(super) fn stuck(from: &(impl Source + ?Sized), at: usize) -> Option<Stuck> {
    let s = View::guarded(from, at, size_of::<super::layout::Stuck>(), 0)?;
    macro_rules! field {
        ($f:ident) => {
            offset_of!(super::layout::Stuck, $f)
        };
    }
    if s.u32(field!(on)) == 0 {
        return None;
    }
    let npeers = (s.u32(field!(npeers)) as usize).min(PEERS);
    let since = s.u64(field!(since));
    Some(Stuck {
        number: s.u32(field!(seq)),
        lane: s.u32(field!(lane)),
        tile: s.u32(field!(tile)),
        op: s.u32(field!(op)),
        peers: (0..npeers).map(|i| s.u32(field!(peers) + i * 4)).collect(),
        since,
        looked: s.u64(field!(looked)),
        deadline: since.checked_add(s.u64(field!(limit))),
        text: s.text(field!(text), 252),
    })
}

fn failure(from: &(impl Source + ?Sized), at: usize) -> Option<Failed> {
    let f = View::guarded(from, at, size_of::<Failure>(), 0)?;
    let when = f.u64(offset_of!(Failure, when));
    (when != 0).then(|| Failed {
        code: f.u32(offset_of!(Failure, code)),
        when,
        text: f.text(offset_of!(Failure, text), 1020),
    })
}

/// The shapes of calls, each read once.
pub(super) struct Plans<'a, S: ?Sized> {
    from: &'a S,
    known: HashMap<u32, Option<Shape>>,
}

impl<'a, S: Source + ?Sized> Plans<'a, S> {
    pub fn new(from: &'a S) -> Plans<'a, S> {
        Plans { from, known: HashMap::new() }
    }

    fn call(&mut self, word: u64, since: Option<u64>) -> Call {
        let plan = word as u32 & (PLAN_MASK | OWN);
        Call { number: (word >> 32) as u32, own: plan & OWN != 0, since, shape: self.shape(plan).cloned() }
    }

    /// The shape of an event's call.
    pub fn of(&mut self, e: &Event) -> Option<&Shape> {
        self.shape(e.plan)
    }

    fn shape(&mut self, id: u32) -> Option<&Shape> {
        let from = self.from;
        let read = || {
            let at = PLANS_AT + (id & PLAN_MASK) as usize % PLANS * size_of::<PlanSlot>();
            let v = View::guarded(from, at, size_of::<PlanSlot>(), offset_of!(PlanSlot, version))?;
            (id & PLAN_MASK != 0 && v.u32(offset_of!(PlanSlot, id)) == id).then(|| Shape {
                text: v.text(offset_of!(PlanSlot, text), 252),
                algorithm: v.text(offset_of!(PlanSlot, algorithm), 60),
                tiles: v.u32(offset_of!(PlanSlot, tiles)),
                bytes: v.u64(offset_of!(PlanSlot, bytes)),
                bus: f64::from_bits(v.u64(offset_of!(PlanSlot, bus))),
            })
        };
        self.known.entry(id).or_insert_with(read).as_ref()
    }
}

/// The last `most` events, oldest first. Those that are being written are left out.
pub(super) fn events(from: &(impl Source + ?Sized), most: usize) -> Vec<Event> {
    const SLOT: usize = size_of::<EventSlot>();
    let Some(h) = View::read(from, 0, size_of::<Header>()) else { return Vec::new() };
    let ring = h.u64(offset_of!(Header, ring));
    if !ring.is_power_of_two() || ring > RING_TRACE as u64 {
        return Vec::new();
    }
    let end = h.u64(offset_of!(Header, head));
    let begin = end.saturating_sub(ring.min(most as u64));
    let mut found = Vec::new();
    let mut n = begin;
    while n < end {
        // As far as they lie together.
        let count = (end - n).min(ring - n % ring).min(4096);
        let at = RING_AT + (n % ring) as usize * SLOT;
        let len = count as usize * SLOT;
        let (Some(a), Some(b)) = (View::read(from, at, len), View::read(from, at, len)) else { break };
        for i in 0..count {
            let slot = i as usize * SLOT..(i as usize + 1) * SLOT;
            if a.0[slot.clone()] == b.0[slot.clone()] {
                found.extend(event(&View(a.0[slot].to_vec()), ((n + i) / ring) & 0xff));
            }
        }
        n += count;
    }
    found
}

/// `None` for what does not belong to this lap of the ring.
fn event(v: &View, lap: u64) -> Option<Event> {
    let head = v.u64(offset_of!(EventSlot, head));
    let kind = Kind::ALL.into_iter().find(|k| *k as u64 == head >> 56)?;
    if head >> 48 & 0xff != lap {
        return None;
    }
    let (call, who) = (v.u64(offset_of!(EventSlot, call)), v.u64(offset_of!(EventSlot, who)));
    Some(Event {
        kind,
        time: v.u64(offset_of!(EventSlot, time)),
        communicator: (who >> 32) as u32,
        call: (call >> 32) as u32,
        own: call as u32 & OWN != 0,
        bytes: head & EVENT_BYTES,
        peer: Some(who as u32).filter(|&p| p != u32::MAX),
        plan: call as u32 & (PLAN_MASK | OWN),
    })
}

/// Offset in the record, and length, of the parts that fuzzing fills.
const PARTS: [(usize, usize); 5] = [
    (0, size_of::<Header>()),
    (USED_AT, 8),
    (PLANS_AT, 2 * size_of::<PlanSlot>()),
    (ENTRIES_AT, ENTRY + size_of::<Entry>()),
    (RING_AT, 8 * size_of::<EventSlot>()),
];

/// [`fuzz_read`] of an image in which the input says what is not zero: place, length, bytes.
#[doc(hidden)]
pub fn fuzz_patches(mut data: &[u8]) {
    let mut image = vec![0; PARTS.iter().map(|p| p.1).sum()];
    while let Some((&[low, high, len], rest)) = data.split_first_chunk() {
        let (bytes, rest) = rest.split_at(usize::from(len).min(rest.len()));
        let at = usize::from(u16::from_le_bytes([low, high])).min(image.len());
        for (to, from) in image[at..].iter_mut().zip(bytes) {
            *to = *from;
        }
        data = rest;
    }
    fuzz_read(&image);
}

/// Reads bytes as a record, and as the parts of one, and renders what it finds: must not crash whatever
/// they are.
#[doc(hidden)]
pub fn fuzz_read(data: &[u8]) {
    /// A record that is zero but where the input says otherwise.
    struct Sparse<'a>(&'a [u8]);
    impl Source for Sparse<'_> {
        fn read(&self, at: usize, to: &mut [u8]) -> bool {
            let mut from = 0;
            to.fill(0);
            for (start, len) in PARTS {
                let (low, high) = (start.max(at), (start + len).min(at + to.len()));
                if let Some(bytes) = self.0.get(from + low - start..).filter(|_| low < high) {
                    let n = bytes.len().min(high - low);
                    to[low - at..][..n].copy_from_slice(&bytes[..n]);
                }
                from += len;
            }
            if at == 0 && to.len() >= 12 {
                to[..8].copy_from_slice(&MAGIC.to_le_bytes());
                to[8..12].copy_from_slice(&LAYOUT.to_le_bytes());
            }
            true
        }
    }
    for s in [Snapshot::read(data), Snapshot::read(&Sparse(data))].into_iter().flatten() {
        let mut text = format!("{s:?}");
        for c in &s.communicators {
            for rank in [0, c.rank, c.size - 1] {
                text += &format!("{:?} {:?}", c.world(rank), c.host(rank));
            }
        }
        std::hint::black_box(text);
    }
}

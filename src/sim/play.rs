//! The event loop: a virtual clock, cores, links and channels. `setup` makes what it plays with, `links` is how
//! messages travel.

mod links;
mod setup;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::net::{Net, NetChannel, Store};
use super::{LinkUse, Noise, Path, Report, Shape};
use crate::cost::{Level, Machine};
use crate::{Error, Result};

/// What happens at a time. The heap gives the earliest, and of several at one time the first pushed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    /// Bits of the time, which is not negative: they order like the number.
    at: u64,
    order: u64,
    kind: Kind,
    id: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A cursor's message or room has come.
    Wake,
    /// A rank's op ends.
    Done,
    /// A channel's next message wants the link out of its host.
    Depart,
    /// It wants the way between switches: up, and down.
    Climb,
    Descend,
    /// It wants the link into its host.
    Enter,
}

/// A lane of a played rank in one way.
#[derive(Clone, Copy)]
struct Cursor {
    rank: u32,
    lane: u32,
    way: u32,
    tile: u32,
    op: u32,
    /// Operands of the op that are known to be there.
    checked: u32,
    /// The last of them to come.
    latest: f64,
    path: Path,
}

/// A place for a message. `time` is when that arrives, and then when the sender learns that the place is
/// free again; infinite while the message is on its way through links.
#[derive(Clone, Copy, Default)]
struct Slot {
    time: f64,
    /// What is known of the arrival on the way, and what the message occupies links for.
    end: f64,
    link: f64,
    path: Path,
}

#[derive(Clone, Copy)]
struct Channel {
    /// Its slots, and how many.
    first: u32,
    depth: u32,
    sent: u32,
    used: u32,
    /// Messages that have got through each kind of link.
    passed: [u32; 4],
    /// A cursor stands at its receiving / sending end.
    hungry: bool,
    full: bool,
    /// When the last message arrived: channels stay in order.
    last: f64,
    /// Messages used up that the sender has not been told of, where that costs something.
    owed: u32,
    /// Index of what its messages cost, in [`Costs`]: the level's, and two further between ranks that share a core.
    kind: u8,
}

#[derive(Clone)]
struct Rank {
    ready: VecDeque<u32>,
    /// The cursor that its core works for.
    running: Option<u32>,
    has_core: bool,
    waits_for_core: bool,
    /// Of [`Player::cores`].
    core: u32,
    free: f64,
    path: Path,
    left: u32,
    /// Calls that it has not ended, and its cursors.
    calls: u32,
    cursors: (u32, u32),
    busy: f64,
    started: bool,
    /// When credits come, and what work they are. In no order.
    chores: Vec<(f64, f64)>,
}

impl Rank {
    /// What is left to do of chores that have come. A core that waits does them meanwhile, unless it is another rank's.
    fn overdue(&mut self, now: f64, switched: bool) -> f64 {
        if self.chores.is_empty() {
            return 0.0;
        }
        self.chores.sort_by(|a, b| a.0.total_cmp(&b.0));
        let come = self.chores.partition_point(|c| c.0 <= now);
        let mut done = if switched { now } else { self.free };
        for (came, work) in self.chores.drain(..come) {
            done = done.max(came) + work;
        }
        (done - now).max(0.0)
    }
}

/// A core that several ranks may have.
#[derive(Clone, Default)]
struct Core {
    /// The rank that it serves, or served last.
    last: Option<u32>,
    taken: bool,
    queue: VecDeque<u32>,
}

#[derive(Clone, Copy, Default)]
struct Gate {
    free: f64,
    busy: f64,
    bytes: f64,
}

/// What a span of some length costs; messages by [`Channel::kind`], and on a link by level.
#[derive(Clone, Copy, Default)]
struct Costs {
    bytes: f64,
    copy: f64,
    fold: f64,
    send: [f64; 4],
    recv: [f64; 4],
    link: [f64; 2],
}

/// Bytes that are sent and not used up; up to a time bytes times ns.
#[derive(Clone, Copy, Default)]
struct UnderWay {
    bytes: f64,
    until: f64,
    sum: f64,
}

impl UnderWay {
    fn more(&mut self, now: f64, bytes: f64) {
        self.sum += self.bytes * (now - self.until);
        (self.until, self.bytes) = (now, self.bytes + bytes);
    }
}

pub struct Player<'a> {
    net: &'a Net,
    machine: &'a Machine,
    shape: Shape,
    noise: &'a Noise,
    random: u64,
    now: f64,
    order: u64,
    heap: BinaryHeap<Reverse<Event>>,
    cursors: Vec<Cursor>,
    channels: Vec<Channel>,
    slots: Vec<Slot>,
    ranks: Vec<Rank>,
    /// Those of a host, or of hosts that share them, and of the next; empty where every rank has one.
    cores: Vec<Core>,
    /// Links out of and into hosts: `gates[level][direction]`, then by host and link.
    gates: [[Vec<Gate>; 2]; 2],
    links: [u32; 2],
    /// Whether links limit, by level: an empty message of a channel takes the same way as the others.
    linked: [bool; 2],
    /// Ways up and down, by group of hosts under a switch.
    trunk: [Vec<Gate>; 2],
    /// `costs[piece][tile length]`: tiles as floor gives them, one line longer, the last.
    costs: Vec<[Costs; 3]>,
    ends: Vec<f64>,
    calls: u32,
    /// When each call had ended on all ranks.
    ended: Vec<f64>,
    messages: u64,
    under_way: UnderWay,
    /// By [`Channel::kind`].
    latencies: [f64; 4],
    slow: Vec<f64>,
}

const OUT: usize = 0;
const INTO: usize = 1;

fn level(machine: &Machine, across: bool) -> &Level {
    if across { &machine.across } else { &machine.inside }
}

impl Player<'_> {
    fn push(&mut self, at: f64, kind: Kind, id: u32) {
        self.order += 1;
        self.heap.push(Reverse(Event { at: at.to_bits(), order: self.order, kind, id }));
    }

    /// Exponentially distributed with this mean; splitmix64 underneath.
    fn exponential(&mut self, mean: f64) -> f64 {
        if mean == 0.0 {
            return 0.0;
        }
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let uniform = ((z >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -mean * uniform.ln()
    }

    /// Plays to the end.
    pub fn play(mut self) -> Result<Report> {
        self.run()?;
        Ok(self.report())
    }

    /// Plays to the end. When each call had ended on all ranks.
    pub fn in_a_row(mut self) -> Result<Vec<f64>> {
        self.run()?;
        Ok(self.ended)
    }

    fn run(&mut self) -> Result<()> {
        let mut late = vec![0.0; self.net.played];
        for &(rank, ns) in &self.noise.late {
            // A time's bits must order like the time, and those of -0 do not.
            late[rank] = ns.abs();
        }
        for c in 0..self.cursors.len() as u32 {
            let Cursor { rank, lane, .. } = self.cursors[c as usize];
            if self.net.lanes[lane as usize].ops > 0 {
                self.push(late[rank as usize], Kind::Wake, c);
            }
        }
        while let Some(Reverse(event)) = self.heap.pop() {
            self.now = f64::from_bits(event.at);
            match event.kind {
                Kind::Wake => self.check(event.id),
                Kind::Done => self.done(event.id),
                Kind::Depart | Kind::Climb | Kind::Descend | Kind::Enter => self.pass(event.kind, event.id),
            }
        }
        for (rank, end) in self.ends.iter_mut().enumerate() {
            if self.ranks[rank].calls == self.calls {
                // Ranks that have nothing to do call, too.
                *end = late[rank] + self.machine.call;
            }
        }
        match self.ranks.iter().any(|r| r.left > 0) {
            true => Err(self.deadlock()),
            false => Ok(()),
        }
    }

    /// Goes on with a cursor's op: ready when everything that it waits for is there.
    fn check(&mut self, cursor: u32) {
        let c = self.cursors[cursor as usize];
        let lane = &self.net.lanes[c.lane as usize];
        let op = &self.net.ops[(lane.first + c.op) as usize];
        let (mut checked, mut latest, mut path) = (c.checked, c.latest, c.path);
        let (recvs, all) = (u32::from(op.recvs), u32::from(op.recvs) + u32::from(op.sends));
        let mut wait = None;
        while checked < all {
            let port = self.net.ports[(op.first + checked) as usize];
            let channel = &mut self.channels[(port * self.shape.ways + c.way) as usize];
            let slot = if checked < recvs {
                if channel.used == channel.sent {
                    channel.hungry = true;
                    wait = Some(f64::INFINITY);
                    break;
                }
                channel.first + channel.used % channel.depth
            } else {
                if channel.sent - channel.used == channel.depth {
                    channel.full = true;
                    wait = Some(f64::INFINITY);
                    break;
                }
                channel.first + channel.sent % channel.depth
            };
            let slot = &self.slots[slot as usize];
            if slot.time > self.now {
                if slot.time.is_infinite() {
                    channel.hungry = true;
                }
                wait = Some(slot.time);
                break;
            }
            if slot.time > latest {
                (latest, path) = (slot.time, slot.path);
            }
            checked += 1;
        }
        let here = &mut self.cursors[cursor as usize];
        (here.checked, here.latest, here.path) = (checked, latest, path);
        match wait {
            Some(at) if at.is_finite() => self.push(at, Kind::Wake, cursor),
            Some(_) => {}
            None => {
                let rank = &mut self.ranks[c.rank as usize];
                rank.ready.push_back(cursor);
                if rank.running.is_none() {
                    self.dispatch(c.rank);
                }
            }
        }
    }

    /// Gives the rank's core something to do, if it has a core.
    fn dispatch(&mut self, rank: u32) {
        let mut switched = false;
        if !self.cores.is_empty() && !self.ranks[rank as usize].has_core {
            let r = &mut self.ranks[rank as usize];
            let core = &mut self.cores[r.core as usize];
            if core.taken {
                if !std::mem::replace(&mut r.waits_for_core, true) {
                    core.queue.push_back(rank);
                }
                return;
            }
            switched = core.last.replace(rank).is_some_and(|last| last != rank);
            (core.taken, r.has_core) = (true, true);
        }
        let Some(cursor) = self.ranks[rank as usize].ready.pop_front() else { return };
        self.fire(cursor, switched);
    }

    /// Runs the op of a cursor from now on.
    fn fire(&mut self, cursor: u32, switched: bool) {
        let (net, machine) = (self.net, self.machine);
        let c = self.cursors[cursor as usize];
        let lane = &net.lanes[c.lane as usize];
        let op = net.ops[(lane.first + c.op) as usize];
        let costs = self.costs[op.piece as usize][self.length(c.tile)];
        let ports = &net.ports[op.first as usize..][..op.recvs as usize + op.sends as usize];
        let (recvs, sends) = ports.split_at(op.recvs as usize);
        let (channels, ways) = (&self.channels, self.shape.ways);
        let kinds = |port: u32| usize::from(channels[(port * ways + c.way) as usize].kind);
        let rank = &mut self.ranks[c.rank as usize];
        // What came last made it start now: the core, a message or room for one.
        let mut path = if c.latest > rank.free { c.path } else { rank.path };
        let mut work = machine.op;
        work += rank.overdue(self.now, switched);
        if !rank.started {
            work += machine.call;
        }
        if switched {
            work += machine.switch;
        }
        for &port in recvs {
            work += costs.recv[kinds(port)];
        }
        work += match op.store {
            Store::Yes => costs.copy,
            Store::Keep if !self.shape.in_place => costs.copy,
            Store::Keep | Store::No => 0.0,
        };
        work += f64::from(op.srcs - 1) * costs.fold;
        let mut factor = self.slow[c.rank as usize];
        if self.noise.core > 0.0 {
            factor *= 1.0 + self.exponential(self.noise.core);
        }
        work *= factor;
        let start = self.now;
        path.core += work;
        let mut t = start + work;
        self.under_way.more(start, costs.bytes * (sends.len() as f64 - recvs.len() as f64));
        for &port in recvs {
            if self.owes(port, c.way) {
                continue;
            }
            let latency = self.latencies[self.kind(port, c.way)];
            self.used(port, c.way, t + latency, Path { latency: path.latency + latency, ..path });
        }
        for &port in sends {
            let index = port * self.shape.ways + c.way;
            let across = net.channels[port as usize].across;
            let kind = self.kind(port, c.way);
            let send = costs.send[kind] * factor;
            t += send;
            path.core += send;
            self.messages += 1;
            let latency = self.latencies[kind];
            let jitter = self.exponential(self.noise.wire * latency);
            let link = costs.link[usize::from(across)];
            let channel = &mut self.channels[index as usize];
            let slot = channel.first + channel.sent % channel.depth;
            channel.sent += 1;
            let mut sent = path;
            sent.messages += 1;
            if self.linked[usize::from(across)] {
                self.slots[slot as usize] = Slot { time: f64::INFINITY, end: 0.0, link, path: sent };
                self.push(t, Kind::Depart, index);
                let to = net.lanes[net.channels[port as usize].to as usize].rank;
                let (out, into) = (self.gate(across, c.rank), self.gate(across, to));
                self.gates[usize::from(across)][OUT][out].bytes += costs.bytes;
                self.gates[usize::from(across)][INTO][into].bytes += costs.bytes;
            } else {
                let arrival = (t + latency + jitter).max(channel.last);
                channel.last = arrival;
                sent.latency += arrival - t;
                self.slots[slot as usize] = Slot { time: arrival, path: sent, ..Slot::default() };
                if std::mem::replace(&mut channel.hungry, false) {
                    self.push(arrival, Kind::Wake, self.receiver(port, c.way));
                }
            }
        }
        // Messages that only tell of room come behind what the op sends.
        for &port in recvs {
            let NetChannel { across, from, .. } = net.channels[port as usize];
            let (level, latency) = (level(machine, across), self.latencies[self.kind(port, c.way)]);
            let channel = &mut self.channels[(port * self.shape.ways + c.way) as usize];
            if level.credits == 0 || channel.owed < level.credits {
                continue;
            }
            channel.owed = 0;
            let work = level.send.at(0.0) * factor;
            t += work;
            path.core += work;
            let told = t + latency;
            self.used(port, c.way, told, Path { latency: path.latency + latency, ..path });
            self.ranks[net.lanes[from as usize].rank as usize].chores.push((told, level.recv.at(0.0)));
        }
        let rank = &mut self.ranks[c.rank as usize];
        rank.running = Some(cursor);
        rank.started = true;
        rank.busy += t - start;
        rank.path = path;
        rank.free = t;
        self.push(t, Kind::Done, c.rank);
    }

    /// A message more of this channel is used up: whether its sender must be told by a message of its own now.
    fn owes(&mut self, port: u32, way: u32) -> bool {
        let NetChannel { across, one_way, .. } = self.net.channels[port as usize];
        let credits = level(self.machine, across).credits;
        let channel = &mut self.channels[(port * self.shape.ways + way) as usize];
        channel.owed += u32::from(one_way && credits > 0);
        credits > 0 && channel.owed == credits
    }

    /// The oldest message of a channel is used up, and its sender knows of the room at that time.
    fn used(&mut self, port: u32, way: u32, time: f64, path: Path) {
        let channel = &mut self.channels[(port * self.shape.ways + way) as usize];
        let slot = channel.first + channel.used % channel.depth;
        channel.used += 1;
        self.slots[slot as usize] = Slot { time, path, ..Slot::default() };
        if std::mem::replace(&mut channel.full, false) {
            self.push(time, Kind::Wake, self.sender(port, way));
        }
    }

    fn kind(&self, port: u32, way: u32) -> usize {
        usize::from(self.channels[(port * self.shape.ways + way) as usize].kind)
    }

    fn sender(&self, port: u32, way: u32) -> u32 {
        self.net.channels[port as usize].from * self.shape.ways + way
    }

    fn receiver(&self, port: u32, way: u32) -> u32 {
        self.net.channels[port as usize].to * self.shape.ways + way
    }

    /// An op has ended: the cursor's next one goes first, if it can.
    fn done(&mut self, rank: u32) {
        let Some(cursor) = self.ranks[rank as usize].running.take() else { return };
        let c = &mut self.cursors[cursor as usize];
        (c.op, c.checked, c.latest, c.path) = (c.op + 1, 0, 0.0, Path::default());
        if c.op == self.net.lanes[c.lane as usize].ops {
            c.op = 0;
            c.tile += self.shape.ways;
        }
        let over = c.tile >= self.shape.tiles;
        let r = &mut self.ranks[rank as usize];
        if over {
            r.left -= 1;
            if r.left == 0 {
                self.call_ends(rank);
            }
        } else {
            let others = std::mem::take(&mut r.ready);
            // So that it is found alone, or not at all.
            r.running = Some(cursor);
            self.check(cursor);
            let r = &mut self.ranks[rank as usize];
            r.running = None;
            r.ready.extend(others);
        }
        if self.ranks[rank as usize].ready.is_empty() {
            self.leave_core(rank);
        } else {
            self.dispatch(rank);
        }
    }

    /// The rank begins its next call, if there is one.
    fn call_ends(&mut self, rank: u32) {
        let r = &mut self.ranks[rank as usize];
        self.ends[rank as usize] = self.now;
        let ended = &mut self.ended[(self.calls - r.calls) as usize];
        *ended = ended.max(self.now);
        r.calls -= 1;
        if r.calls == 0 {
            return;
        }
        r.started = false;
        // So that what is ready waits for the others to be looked at.
        r.running = Some(r.cursors.0);
        for cursor in r.cursors.0..r.cursors.1 {
            let c = &mut self.cursors[cursor as usize];
            c.tile = c.way;
            if self.net.lanes[c.lane as usize].ops > 0 {
                self.ranks[rank as usize].left += 1;
                self.check(cursor);
            }
        }
        self.ranks[rank as usize].running = None;
    }

    /// The rank has nothing to do: another one takes its core.
    fn leave_core(&mut self, rank: u32) {
        if self.cores.is_empty() {
            return;
        }
        self.ranks[rank as usize].has_core = false;
        let core = &mut self.cores[self.ranks[rank as usize].core as usize];
        core.taken = false;
        if let Some(next) = core.queue.pop_front() {
            self.ranks[next as usize].waits_for_core = false;
            self.dispatch(next);
        }
    }

    fn deadlock(&self) -> Error {
        let stuck = self
            .cursors
            .iter()
            .find(|c| c.tile < self.shape.tiles && self.net.lanes[c.lane as usize].ops > 0);
        let who = stuck.map_or(String::new(), |c| {
            let lane = self.net.lanes[c.lane as usize];
            format!("rank {}, lane {}, op {}, tile {}", c.rank, lane.index, c.op, c.tile)
        });
        Error::argument("the schedule deadlocks: ranks wait for each other for ever").who(who).hint(
            "most schedules need channels that hold 2 messages: raise the machine's depth; graccl verify \
             tells how many",
        )
    }

    fn report(self) -> Report {
        let (ns, last) = self
            .ends
            .iter()
            .zip(0..)
            .fold((0.0, 0), |best: (f64, usize), (&end, rank)| if end > best.0 { (end, rank) } else { best });
        let mut path = self.ranks[last].path;
        path.waited = (ns - path.core - path.latency - path.link - path.queued).max(0.0);
        let mut links = Vec::new();
        for (level, [outs, ins]) in self.gates.iter().enumerate() {
            let per_host = self.links[level] as usize;
            for (i, (out, into)) in outs.iter().zip(ins).enumerate() {
                if out.bytes > 0.0 || into.bytes > 0.0 {
                    links.push(LinkUse {
                        across: level == 1,
                        host: (i / per_host) as u32,
                        link: (i % per_host) as u32,
                        out_ns: out.busy,
                        in_ns: into.busy,
                        out_bytes: out.bytes,
                        in_bytes: into.bytes,
                    });
                }
            }
        }
        let cores = if self.cores.is_empty() { self.ranks.len() } else { self.cores.len() };
        let trunk_ns = self.trunk.iter().flatten().map(|g| g.busy).fold(0.0, f64::max);
        Report {
            ns,
            ranks: self.net.ranks,
            ends: self.ends,
            cores: self.ranks.iter().map(|r| r.busy).collect(),
            links,
            trunk_ns,
            path,
            under_way: self.under_way.sum / ns.max(1.0) / cores as f64,
            messages: self.messages,
            events: self.order,
        }
    }
}

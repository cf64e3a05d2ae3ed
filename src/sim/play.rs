//! The event loop: a virtual clock, cores, links and channels.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::net::{Net, NetChannel, Store};
use super::{LinkUse, Noise, Path, Report, Shape};
use crate::cost::{Level, Machine, Trunk};
use crate::schedule::cut;
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

/// What a span of some length costs, by level where it says so.
#[derive(Clone, Copy, Default)]
struct Costs {
    bytes: f64,
    copy: f64,
    fold: f64,
    send: [f64; 2],
    recv: [f64; 2],
    link: [f64; 2],
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
    slow: Vec<f64>,
}

const OUT: usize = 0;
const INTO: usize = 1;

fn level(machine: &Machine, across: bool) -> &Level {
    if across { &machine.across } else { &machine.inside }
}

impl<'a> Player<'a> {
    /// For `calls` calls one after the other: each rank begins the next one when it has ended the last.
    pub fn new(
        net: &'a Net,
        machine: &'a Machine,
        shape: Shape,
        noise: &'a Noise,
        calls: u32,
    ) -> Result<Player<'a>> {
        machine.check()?;
        noise.check(net.ranks)?;
        if shape.tiles == 0 || shape.ways == 0 {
            return Err(Error::argument(format!("{} tiles, {} ways", shape.tiles, shape.ways))
                .who("a simulation")
                .hint("both must be at least 1"));
        }
        if net.symmetric && (net.played < net.ranks && !noise.is_none()) {
            return Err(Error::argument("noise makes ranks unlike").hint("simulate without symmetry"));
        }
        let ways = shape.ways.min(shape.tiles);
        let shape = Shape { ways, ..shape };
        let mut cursors = Vec::with_capacity(net.lanes.len() * ways as usize);
        let mut left = vec![0; net.played];
        let mut own = vec![(0, 0); net.played];
        for (l, lane) in net.lanes.iter().enumerate() {
            for way in 0..ways {
                let (rank, lane_number) = (lane.rank, l as u32);
                cursors.push(Cursor {
                    rank,
                    lane: lane_number,
                    way,
                    tile: way,
                    op: 0,
                    checked: 0,
                    latest: 0.0,
                    path: Path::default(),
                });
                left[rank as usize] += u32::from(lane.ops > 0);
            }
            let (first, end) = &mut own[lane.rank as usize];
            if *end == 0 {
                *first = cursors.len() as u32 - ways;
            }
            *end = cursors.len() as u32;
        }
        let mut channels = Vec::with_capacity(net.channels.len() * ways as usize);
        let mut slots = 0u64;
        for c in &net.channels {
            for way in 0..ways {
                let tiles = u64::from((shape.tiles - way).div_ceil(ways));
                let most = u64::from(c.messages) * tiles * u64::from(calls);
                let depth = most.min(u64::from(level(machine, c.across).depth)) as u32;
                let first = slots as u32;
                slots += u64::from(depth);
                let passed = [0; 4];
                channels.push(Channel {
                    first,
                    depth,
                    sent: 0,
                    used: 0,
                    passed,
                    hungry: false,
                    full: false,
                    last: 0.0,
                });
            }
        }
        if slots > u64::from(u32::MAX) || channels.len() as u64 > u64::from(u32::MAX) {
            return Err(Error::argument(format!(
                "{slots} messages under way at a time are too many to simulate"
            ))
            .hint("simulate fewer ranks, fewer ways or an algorithm with fewer channels"));
        }
        let mut slow = vec![1.0; net.played];
        for &(rank, factor) in &noise.slow {
            slow[rank] = factor;
        }
        let rank = Rank {
            ready: VecDeque::new(),
            running: None,
            has_core: false,
            waits_for_core: false,
            core: 0,
            free: 0.0,
            path: Path::default(),
            left: 0,
            calls,
            cursors: (0, 0),
            busy: 0.0,
            started: false,
        };
        let ranks = left.into_iter().zip(own);
        let ranks = ranks.map(|(left, cursors)| Rank { left, cursors, ..rank.clone() }).collect();
        let links = [&machine.inside, &machine.across];
        let most = net.host_sizes.iter().copied().max().unwrap_or(1);
        let links = links.map(|l| if l.links == 0 { most } else { l.links.min(most) });
        let hosts = net.host_sizes.len();
        let gates = |level: usize| {
            [
                vec![Gate::default(); hosts * links[level] as usize],
                vec![Gate::default(); hosts * links[level] as usize],
            ]
        };
        let under = machine.trunk.map_or(0, |t| hosts.div_ceil(t.hosts as usize));
        let mut p = Player {
            net,
            machine,
            shape,
            noise,
            random: noise.seed,
            now: 0.0,
            order: 0,
            heap: BinaryHeap::new(),
            cursors,
            channels,
            slots: vec![Slot::default(); slots as usize],
            ranks,
            cores: Vec::new(),
            gates: [gates(0), gates(1)],
            links,
            linked: [&machine.inside, &machine.across].map(|l| !l.link.is_zero()),
            trunk: [vec![Gate::default(); under], vec![Gate::default(); under]],
            costs: Vec::new(),
            ends: vec![0.0; net.played],
            calls,
            ended: vec![0.0; calls as usize],
            messages: 0,
            slow,
        };
        p.price_pieces();
        if let Some(cores) = machine.cores
            && let shared = machine.core_hosts as usize
            && net.host_sizes.chunks(shared).any(|sizes| sizes.iter().sum::<u32>() > cores)
        {
            p.cores = vec![Core::default(); hosts.div_ceil(shared) * cores as usize];
            // One after the other, as ranks are bound to cores.
            for (rank, r) in p.ranks.iter_mut().enumerate() {
                let (host, place) = (net.hosts[rank] as usize, net.places[rank]);
                let before: u32 = net.host_sizes[host / shared * shared..host].iter().sum();
                r.core = (host / shared) as u32 * cores + (before + place) % cores;
            }
        }
        Ok(p)
    }

    /// Costs of all pieces in the three lengths that tiles have: the same cuts as the executor's.
    fn price_pieces(&mut self) {
        const LINE: u64 = 64;
        let (tiles, chunks) = (u64::from(self.shape.tiles), u64::from(self.net.chunks));
        let lines = self.shape.block.div_ceil(LINE) / tiles * LINE;
        let last = self.shape.block - cut(self.shape.block, tiles - 1, tiles, LINE);
        let lengths = [lines, lines + LINE, last];
        let symmetric = self.net.symmetric;
        let (inside, across) = (&self.machine.inside, &self.machine.across);
        let cost = |(at, len): (u32, u32), tile: u64| {
            let edge = |i: u64| cut(tile, i, chunks, LINE);
            let bytes = match symmetric {
                true => self.shape.block as f64 / tiles as f64 * f64::from(len) / chunks as f64,
                false => (edge(u64::from(at) + u64::from(len)) - edge(u64::from(at))) as f64,
            };
            Costs {
                bytes,
                copy: self.machine.copy.at(bytes),
                fold: self.machine.fold.at(bytes),
                send: [inside.send.at(bytes), across.send.at(bytes)],
                recv: [inside.recv.at(bytes), across.recv.at(bytes)],
                link: [inside.link.at(bytes), across.link.at(bytes)],
            }
        };
        self.costs = self.net.pieces.iter().map(|&piece| lengths.map(|tile| cost(piece, tile))).collect();
    }

    /// Which of the three lengths a tile has.
    fn length(&self, tile: u32) -> usize {
        let (tile, tiles) = (u64::from(tile), u64::from(self.shape.tiles));
        if tile + 1 == tiles {
            return 2;
        }
        let lines = self.shape.block.div_ceil(64);
        usize::from((tile + 1) * lines / tiles - tile * lines / tiles > lines / tiles)
    }

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
            late[rank] = ns;
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
        let rank = &self.ranks[c.rank as usize];
        // What came last made it start now: the core, a message or room for one.
        let mut path = if c.latest > rank.free { c.path } else { rank.path };
        let mut work = machine.op;
        if !rank.started {
            work += machine.call;
        }
        if switched {
            work += machine.switch;
        }
        for &port in recvs {
            work += costs.recv[usize::from(net.channels[port as usize].across)];
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
        for &port in recvs {
            let index = port * self.shape.ways + c.way;
            let level = level(machine, net.channels[port as usize].across);
            let channel = &mut self.channels[index as usize];
            let slot = channel.first + channel.used % channel.depth;
            channel.used += 1;
            let mut told = path;
            told.latency += level.latency;
            self.slots[slot as usize] = Slot { time: t + level.latency, path: told, ..Slot::default() };
            if std::mem::replace(&mut channel.full, false) {
                self.push(t + level.latency, Kind::Wake, self.sender(port, c.way));
            }
        }
        for &port in sends {
            let index = port * self.shape.ways + c.way;
            let across = net.channels[port as usize].across;
            let send = costs.send[usize::from(across)] * factor;
            t += send;
            path.core += send;
            self.messages += 1;
            let level = level(machine, across);
            let jitter = self.exponential(self.noise.wire * level.latency);
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
                let arrival = (t + level.latency + jitter).max(channel.last);
                channel.last = arrival;
                sent.latency += arrival - t;
                self.slots[slot as usize] = Slot { time: arrival, path: sent, ..Slot::default() };
                if std::mem::replace(&mut channel.hungry, false) {
                    self.push(arrival, Kind::Wake, self.receiver(port, c.way));
                }
            }
        }
        let rank = &mut self.ranks[c.rank as usize];
        rank.running = Some(cursor);
        rank.started = true;
        rank.busy += t - start;
        rank.path = path;
        rank.free = t;
        self.push(t, Kind::Done, c.rank);
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
        let ended = &mut self.ended[(self.calls - r.calls) as usize];
        *ended = ended.max(self.now);
        self.ends[rank as usize] = self.now;
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

    /// Index of the link that a rank has at a level.
    fn gate(&self, across: bool, rank: u32) -> usize {
        let (host, links) = (self.net.hosts[rank as usize], self.links[usize::from(across)]);
        let (place, size) = (self.net.places[rank as usize], self.net.host_sizes[host as usize]);
        (host * links) as usize + (u64::from(place) * u64::from(links) / u64::from(size)) as usize
    }

    /// The way up that a rank's messages take, and whether those of the channel take it.
    fn climbs(&self, port: u32, trunk: Trunk) -> Option<[usize; 2]> {
        let c = self.net.channels[port as usize];
        let [from, to] =
            [c.from, c.to].map(|lane| self.net.hosts[self.net.lanes[lane as usize].rank as usize]);
        let (up, down) = (from / trunk.hosts, to / trunk.hosts);
        (c.across && (c.leaves || up != down)).then_some([up as usize, down as usize])
    }

    /// A message's turn at a link. Links serve in the order of asking, so asking and being served are one
    /// step; the next link on the way is asked when the first byte gets there. Its last byte arrives when all
    /// links have let it through.
    fn pass(&mut self, kind: Kind, index: u32) {
        let (port, way) = (index / self.shape.ways, index % self.shape.ways);
        let NetChannel { across, from, to, .. } = self.net.channels[port as usize];
        let [from, to] = [from, to].map(|lane| self.net.lanes[lane as usize].rank);
        let latency = level(self.machine, across).latency;
        let trunk = self.machine.trunk.and_then(|t| Some((t, self.climbs(port, t)?)));
        let stage = kind as usize - Kind::Depart as usize;
        let channel = &mut self.channels[index as usize];
        let at = (channel.first + channel.passed[stage] % channel.depth) as usize;
        channel.passed[stage] += 1;
        let mut slot = self.slots[at];
        let (now, level, mut last_hop) = (self.now, usize::from(across), None);
        let up = trunk.map_or(0.0, |(t, _)| t.latency);
        let share = |t: Trunk| t.oversubscription / f64::from(t.hosts * self.links[1]);
        match (kind, trunk) {
            (Kind::Depart, _) => {
                let gate = self.gate(across, from);
                let start = self.gates[level][OUT][gate].serve(now, slot.link);
                slot.path.link += slot.link;
                slot.path.queued += start - now;
                slot.path.latency += up + latency;
                slot.end = start + slot.link + up + latency;
                match trunk {
                    Some(_) => self.push(start, Kind::Climb, index),
                    None => last_hop = Some(start + latency),
                }
            }
            (Kind::Climb, Some((t, [switch, _]))) => {
                let takes = slot.link * share(t);
                let start = self.trunk[OUT][switch].serve(now, takes);
                slot.delay_to(start + takes + up + latency);
                self.push(start + up, Kind::Descend, index);
            }
            (Kind::Descend, Some((t, [_, switch]))) => {
                let takes = slot.link * share(t);
                let start = self.trunk[INTO][switch].serve(now, takes);
                slot.delay_to(start + takes + latency);
                last_hop = Some(start + latency);
            }
            _ => {
                let gate = self.gate(across, to);
                let start = self.gates[level][INTO][gate].serve(now, slot.link);
                slot.delay_to(start + slot.link);
                slot.time = slot.end;
                if std::mem::replace(&mut self.channels[index as usize].hungry, false) {
                    self.push(slot.time, Kind::Wake, self.receiver(port, way));
                }
            }
        }
        if let Some(there) = last_hop {
            let jitter = self.exponential(self.noise.wire * latency);
            let last = &mut self.channels[index as usize].last;
            *last = last.max(there + jitter);
            let asks = *last;
            slot.path.latency += jitter;
            slot.end += jitter;
            self.push(asks, Kind::Enter, index);
        }
        self.slots[at] = slot;
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
        let trunk_ns = self.trunk.iter().flatten().map(|g| g.busy).fold(0.0, f64::max);
        Report {
            ns,
            ranks: self.net.ranks,
            ends: self.ends,
            cores: self.ranks.iter().map(|r| r.busy).collect(),
            links,
            trunk_ns,
            path,
            messages: self.messages,
            events: self.order,
        }
    }
}

impl Gate {
    /// When a message that asks now is served; it occupies the link for `ns`.
    fn serve(&mut self, now: f64, ns: f64) -> f64 {
        let start = self.free.max(now);
        self.free = start + ns;
        self.busy += ns;
        start
    }
}

impl Slot {
    /// The last byte does not arrive before this.
    fn delay_to(&mut self, end: f64) {
        if end > self.end {
            self.path.queued += end - self.end;
            self.end = end;
        }
    }
}

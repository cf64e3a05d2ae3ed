//! The token game: plays wired programs on symbolic values.
//!
//! Lanes are in order and every channel has one writer and one reader, so there is no choice: any
//! order of playing gives the same values and the same deadlocks, and one order is enough.
//!
//! A chunk's value is an order-free sum of random leaf values (the multiset of its contributions) and
//! an ordered hash of the tree in which they were folded. Races are found with vector clocks, one per
//! lane: every chunk of memory knows its last write and the reads since.

use std::collections::VecDeque;
use std::rc::Rc;

use super::collective::Collective;
use super::net::{Channel, IN, Net, NetOp, OUT, Operand};
use super::verify::{Fault, FaultKind};

/// What is played.
#[derive(Clone, Copy)]
pub struct Game {
    pub tiles: u32,
    /// Messages that a channel holds; `None` for no limit.
    pub depth: Option<u32>,
    /// Track values and races; without, only liveness.
    pub values: bool,
    /// Input and output are the same memory.
    pub in_place: bool,
    /// Receivers read the sender's memory where they may.
    pub by_ref: bool,
    /// Replies go back into the memory or the slot of the message that they answer.
    pub reply: bool,
    /// What the schedule is for.
    pub collective: Collective,
    pub root: usize,
    /// Folds take their sources as balanced adjacent pairs, instead of from left to right.
    pub pairs: bool,
    /// Skips the ops of about half of the blocks, chosen by this number.
    pub skip: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Undefined,
    /// Some contributions, or all of them before the op that is marked complete.
    Partial,
    Complete,
}

#[derive(Clone, Copy, Debug)]
struct Value {
    sum: u64,
    tree: u64,
    state: State,
}

/// When something happened: (lane, its clock); clock 0 is before everything.
type Stamp = (u32, u32);

struct Cell {
    value: Value,
    written: Stamp,
    reads: Vec<Stamp>,
}

#[derive(Clone)]
enum Body {
    Nothing,
    Copy(Rc<[Value]>),
    /// The values are read from this rank's region when the message is used.
    Ref {
        rank: u32,
        region: u32,
    },
}

#[derive(Clone)]
struct Message {
    body: Body,
    clock: Option<Rc<[u32]>>,
    tile: u32,
    /// Number on its channel.
    seq: u32,
    /// Message (channel, number) whose slot this one, a reply, lies in.
    frees: Option<(u32, u32)>,
}

#[derive(Default)]
struct ChannelState {
    queue: VecDeque<Message>,
    sent: u32,
    /// Slots in use, oldest first: already read or not. Slots come free in order.
    slots: VecDeque<bool>,
}

struct Player<'a> {
    net: &'a Net<'a>,
    game: Game,
    /// Ops done by each lane.
    done: Vec<u32>,
    clocks: Vec<u32>,
    channels: Vec<ChannelState>,
    cells: Vec<Cell>,
    /// Sum of all ranks' leaves, per tile and chunk.
    expected: Vec<u64>,
    ready: Vec<u32>,
    queued: Vec<bool>,
    /// The values of the op at hand.
    values: Vec<Value>,
}

/// Plays to the end, or says what is wrong.
pub fn play(net: &Net, game: Game) -> Result<(), Fault> {
    run(net, game)?.end()
}

/// Plays to the end, and says whether every result was folded as adjacent pairs of ranks.
pub fn folds_pairs(net: &Net, game: Game) -> Result<bool, Fault> {
    let p = run(net, game)?;
    p.end()?;
    Ok(p.in_pairs())
}

fn run<'a>(net: &'a Net, game: Game) -> Result<Player<'a>, Fault> {
    let lanes = net.lanes.len();
    let mut p = Player {
        net,
        game,
        done: vec![0; lanes],
        clocks: if game.values { vec![0; lanes * lanes] } else { Vec::new() },
        channels: (0..net.channels.len()).map(|_| ChannelState::default()).collect(),
        cells: Vec::new(),
        expected: Vec::new(),
        ready: (0..lanes as u32).rev().collect(),
        queued: vec![true; lanes],
        values: Vec::new(),
    };
    if game.values {
        p.lay_out();
    }
    while let Some(lane) = p.ready.pop() {
        p.queued[lane as usize] = false;
        while p.step(lane as usize)? {}
    }
    if let Some(stuck) = (0..lanes).find(|&l| p.position(l).is_some()) {
        return Err(p.deadlock(stuck));
    }
    Ok(p)
}

impl Player<'_> {
    fn end(&self) -> Result<(), Fault> {
        if self.game.values { self.results() } else { Ok(()) }
    }

    fn block(&self, chunk: u32) -> usize {
        (chunk / self.net.programs[0].chunks.max(1)) as usize
    }

    /// The rank's send buffer has this chunk.
    fn has_in(&self, rank: usize, chunk: u32) -> bool {
        let (n, g) = (self.net.programs.len(), &self.game);
        g.collective.sent(n, g.root, rank, self.block(chunk)).is_some()
    }

    /// The rank's receive buffer has this chunk.
    fn has_out(&self, rank: usize, chunk: u32) -> bool {
        let (n, g) = (self.net.programs.len(), &self.game);
        g.collective.received(n, g.root, rank, self.block(chunk)).is_some()
    }

    fn skipped(&self, chunk: u32) -> bool {
        self.game.skip.is_some_and(|seed| mix(seed ^ mix(self.block(chunk) as u64)) & 1 == 1)
    }

    /// (tile, op) that a lane stands at; `None` when it is through.
    fn position(&self, lane: usize) -> Option<(u32, usize)> {
        let ops = self.net.lanes[lane].ops.len() as u32;
        let done = self.done[lane];
        (done < ops * self.game.tiles).then(|| (done / ops, (done % ops) as usize))
    }

    fn lay_out(&mut self) {
        let (n, k) = (self.net.programs.len(), self.net.chunks);
        self.expected = vec![0; (self.game.tiles * k) as usize];
        for rank in 0..n {
            for region in 0..2 + self.net.scratch {
                for tile in 0..self.tiles_of(region) {
                    for chunk in 0..k {
                        let mut value = Value { sum: 0, tree: 0, state: State::Undefined };
                        if region == IN && self.has_in(rank, chunk) {
                            let leaf = leaf(rank, tile, chunk);
                            let moved = !self.game.collective.reduces();
                            let state = if moved { State::Complete } else { State::Partial };
                            value = Value { sum: leaf, tree: mix(leaf), state };
                            let sum = &mut self.expected[(tile * k + chunk) as usize];
                            *sum = sum.wrapping_add(leaf);
                        }
                        self.cells.push(Cell { value, written: (0, 0), reads: Vec::new() });
                    }
                }
            }
        }
    }

    /// Tiles have an input and an output each, and share the scratch images.
    fn tiles_of(&self, region: u32) -> u32 {
        if region <= OUT { self.game.tiles } else { 1 }
    }

    fn cell(&self, rank: usize, region: u32, tile: u32, chunk: u32) -> usize {
        let (k, tiles) = (self.net.chunks, self.game.tiles);
        let in_rank = match region {
            IN => tile * k,
            OUT if self.game.in_place && self.has_in(rank, chunk) && self.has_out(rank, chunk) => tile * k,
            OUT => (tiles + tile) * k,
            image => (2 * tiles + image - 2) * k,
        };
        let per_rank = (2 * tiles + self.net.scratch) * k;
        rank * per_rank as usize + (in_rank + chunk) as usize
    }

    fn wake(&mut self, lane: u32) {
        if !std::mem::replace(&mut self.queued[lane as usize], true) {
            self.ready.push(lane);
        }
    }

    /// The first operand of the op at hand that has to wait.
    fn blocked(&self, lane: usize, op: &NetOp) -> Option<Operand> {
        let l = &self.net.lanes[lane];
        let empty = |c: &ChannelState| c.queue.is_empty();
        let full = |c: &ChannelState| self.game.depth.is_some_and(|d| c.slots.len() >= d as usize);
        let waits = |o: &&Operand, for_what: &dyn Fn(&ChannelState) -> bool| match **o {
            Operand::Message { channel, .. } => for_what(&self.channels[channel as usize]),
            Operand::Local(_) => false,
        };
        let recv = l.srcs(op).iter().find(|o| waits(o, &empty));
        recv.or_else(|| l.dsts(op).iter().find(|o| waits(o, &full))).copied()
    }

    /// Plays the next op of a lane, if it can fire.
    fn step(&mut self, lane: usize) -> Result<bool, Fault> {
        let Some((tile, index)) = self.position(lane) else { return Ok(false) };
        let net = self.net;
        let l = &net.lanes[lane];
        let op = l.ops[index];
        if self.skipped(op.at) {
            self.done[lane] += 1;
            if self.game.values {
                self.tick(lane, &[]);
            }
            return Ok(true);
        }
        if self.blocked(lane, &op).is_some() {
            return Ok(false);
        }
        let mut received: Vec<Option<Message>> = Vec::with_capacity(l.srcs(&op).len());
        for src in l.srcs(&op) {
            received.push(match *src {
                Operand::Message { channel, .. } => self.channels[channel as usize].queue.pop_front(),
                Operand::Local(_) => None,
            });
        }
        self.done[lane] += 1;
        if self.game.values {
            self.tick(lane, &received);
            self.compute(lane, index, tile, &received)?;
            for dst in l.dsts(&op) {
                if let Operand::Local(region) = *dst {
                    if let [Operand::Local(from)] = l.srcs(&op)[..]
                        && self.cell(l.rank, from, tile, op.at) == self.cell(l.rank, region, tile, op.at)
                    {
                        // A copy onto itself, in place: nobody touches the memory.
                        for k in 0..op.len {
                            let ix = self.cell(l.rank, region, tile, op.at + k);
                            self.cells[ix].value = self.values[k as usize];
                        }
                        continue;
                    }
                    self.write((lane, index), l.rank, region, tile)?;
                }
            }
        }
        // Slots of received messages come free, unless a reply now lies in them.
        let answered = |src: usize| {
            l.dsts(&op)
                .iter()
                .any(|d| matches!(d, Operand::Message { reply: Some(r), .. } if *r as usize == src))
        };
        for (i, (src, message)) in l.srcs(&op).iter().zip(&received).enumerate() {
            if let (Operand::Message { channel, .. }, Some(m)) = (src, message) {
                if let Some((channel, seq)) = m.frees {
                    self.free(channel, seq);
                }
                if !(self.game.reply && answered(i)) {
                    self.free(*channel, m.seq);
                }
            }
        }
        self.send((lane, index), &op, tile, &received)?;
        Ok(true)
    }

    fn free(&mut self, channel: u32, seq: u32) {
        let c = &mut self.channels[channel as usize];
        let oldest = c.sent - c.slots.len() as u32;
        c.slots[(seq - oldest) as usize] = true;
        while c.slots.front() == Some(&true) {
            c.slots.pop_front();
        }
        if self.game.depth.is_some() {
            self.wake(self.net.channels[channel as usize].from);
        }
    }

    fn tick(&mut self, lane: usize, received: &[Option<Message>]) {
        let lanes = self.net.lanes.len();
        let clock = &mut self.clocks[lane * lanes..][..lanes];
        for theirs in received.iter().flatten().filter_map(|m| m.clock.as_ref()) {
            for (mine, theirs) in clock.iter_mut().zip(theirs.iter()) {
                *mine = (*mine).max(*theirs);
            }
        }
        clock[lane] = self.done[lane];
    }

    /// Folds the sources into `self.values`.
    fn compute(
        &mut self,
        lane: usize,
        index: usize,
        tile: u32,
        received: &[Option<Message>],
    ) -> Result<(), Fault> {
        let net = self.net;
        let l = &net.lanes[lane];
        let op = l.ops[index];
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        let mut column: Vec<Value> = Vec::with_capacity(l.srcs(&op).len());
        for k in 0..op.len {
            column.clear();
            for (src, message) in l.srcs(&op).iter().zip(received) {
                column.push(match (src, message.as_ref().map(|m| (&m.body, m.tile))) {
                    (_, Some((Body::Copy(copy), _))) => copy[k as usize],
                    (_, Some((Body::Ref { rank, region }, tile))) => {
                        self.read((lane, index), *rank as usize, *region, tile, op.at + k)?
                    }
                    (Operand::Local(region), _) => {
                        self.read((lane, index), l.rank, *region, tile, op.at + k)?
                    }
                    (Operand::Message { .. }, _) => unreachable!("a receive fires with its message"),
                });
            }
            if column.len() > 1 && column.iter().any(|v| v.state == State::Complete) {
                let what = format!("folds chunk {} although it is complete already", op.at + k);
                return Err(self.fault(FaultKind::Complete, (lane, index), what));
            }
            values.push(if self.game.pairs {
                fold_pairs(&mut column)
            } else {
                column.iter().skip(1).fold(column[0], |acc, v| fold(acc, *v))
            });
        }
        for (k, value) in values.iter_mut().enumerate() {
            let chunk = op.at + k as u32;
            let whole = value.sum == self.expected[(tile * net.chunks + chunk) as usize];
            let completes = self.game.collective.completes();
            let what = match (op.complete, value.state == State::Complete, whole) {
                (true, ..) if !completes => {
                    "is marked complete, but not of a collective that completes: chunk"
                }
                (_, _, true) | (_, true, _) if !completes => "",
                (true, true, _) => "is marked complete, but copies a complete value: chunk",
                (true, false, false) => "is marked complete, but lacks or repeats a contribution: chunk",
                (false, false, true) => "completes a value and is not marked so: chunk",
                _ => "",
            };
            if !what.is_empty() {
                return Err(self.fault(FaultKind::Complete, (lane, index), format!("{what} {chunk}")));
            }
            if op.complete {
                value.state = State::Complete;
            }
        }
        self.values = values;
        Ok(())
    }

    fn read(
        &mut self,
        me: (usize, usize),
        rank: usize,
        region: u32,
        tile: u32,
        chunk: u32,
    ) -> Result<Value, Fault> {
        let lanes = self.net.lanes.len();
        let ix = self.cell(rank, region, tile, chunk);
        let clock = &self.clocks[me.0 * lanes..][..lanes];
        let cell = &mut self.cells[ix];
        let (writer, when) = cell.written;
        let ordered = clock[writer as usize] >= when;
        if ordered && cell.value.state != State::Undefined {
            let now = (me.0 as u32, clock[me.0]);
            match cell.reads.iter_mut().find(|r| r.0 == now.0) {
                Some(read) => *read = now,
                None => cell.reads.push(now),
            }
            return Ok(cell.value);
        }
        let place = place(rank, region, chunk);
        if !ordered {
            let other = self.op_of((writer, when));
            let what = format!("reads {place} unordered with {other}, which writes it");
            return Err(self.fault(FaultKind::Race, me, what));
        }
        Err(self.fault(FaultKind::Value, me, format!("reads {place}, which was never written")))
    }

    /// Writes `self.values` from the op's first chunk.
    fn write(&mut self, me: (usize, usize), rank: usize, region: u32, tile: u32) -> Result<(), Fault> {
        let lanes = self.net.lanes.len();
        let at = self.net.lanes[me.0].ops[me.1].at;
        // A reply that goes back into an input is a result only where the input is the output, too.
        if region <= OUT && !self.has_out(rank, at) {
            let what = format!("writes {}, which is no part of its result", place(rank, region, at));
            return Err(self.fault(FaultKind::Value, me, what));
        }
        for k in 0..self.values.len() {
            let ix = self.cell(rank, region, tile, at + k as u32);
            let clock = &self.clocks[me.0 * lanes..][..lanes];
            let cell = &mut self.cells[ix];
            let late = |&&(lane, when): &&Stamp| clock[lane as usize] < when;
            let conflict = cell.reads.iter().chain([&cell.written]).find(late).copied();
            if let Some(other) = conflict {
                let verb = if other == cell.written { "writes" } else { "reads" };
                let (place, other) = (place(rank, region, at + k as u32), self.op_of(other));
                let what = format!("writes {place} unordered with {other}, which {verb} it");
                return Err(self.fault(FaultKind::Race, me, what));
            }
            cell.value = self.values[k];
            cell.written = (me.0 as u32, clock[me.0]);
            cell.reads.clear();
        }
        Ok(())
    }

    fn send(
        &mut self,
        me: (usize, usize),
        op: &NetOp,
        tile: u32,
        received: &[Option<Message>],
    ) -> Result<(), Fault> {
        let net = self.net;
        let l = &net.lanes[me.0];
        let lanes = net.lanes.len();
        let (mut clock, mut copy) = (None, None);
        for dst in l.dsts(op) {
            let Operand::Message { channel, reply } = *dst else { continue };
            let answered = reply.filter(|_| self.game.reply).and_then(|src| {
                let Operand::Message { channel, .. } = l.srcs(op)[src as usize] else { return None };
                received[src as usize].as_ref().map(|m| (channel, m))
            });
            let mut body = Body::Nothing;
            if self.game.values {
                clock.get_or_insert_with(|| Rc::from(&self.clocks[me.0 * lanes..][..lanes]));
                let back = match answered.map(|(_, m)| &m.body) {
                    Some(&Body::Ref { rank, region }) if self.game.in_place || region != IN => {
                        Some((rank, region))
                    }
                    _ => None,
                };
                body = if let Some((rank, region)) = back {
                    self.write(me, rank as usize, region, tile)?;
                    Body::Ref { rank, region }
                } else if let (true, Some(region)) = (self.game.by_ref, op.lend) {
                    Body::Ref { rank: l.rank as u32, region }
                } else {
                    Body::Copy(Rc::clone(copy.get_or_insert_with(|| Rc::from(&self.values[..]))))
                };
            }
            let frees = answered.map(|(channel, m)| (channel, m.seq));
            let c = &mut self.channels[channel as usize];
            c.queue.push_back(Message { body, clock: clock.clone(), tile, seq: c.sent, frees });
            c.slots.push_back(false);
            c.sent += 1;
            self.wake(net.channels[channel as usize].to);
        }
        Ok(())
    }

    /// Every output chunk holds what it should, and was folded in the same tree on all ranks that get it.
    fn results(&self) -> Result<(), Fault> {
        let (n, collective) = (self.net.programs.len(), self.game.collective);
        let prefixes = collective.reduces() && !collective.completes();
        for tile in 0..self.game.tiles {
            for chunk in (0..self.net.chunks).filter(|&c| !self.skipped(c)) {
                let mut first: Option<usize> = None;
                for rank in (0..n).filter(|&r| self.has_out(r, chunk)) {
                    let value = self.result(rank, tile, chunk);
                    if value.state == State::Undefined || (!prefixes && value.state != State::Complete) {
                        let what = format!("never gets the result of chunk {chunk}");
                        return Err(Fault::whole(FaultKind::Value, rank, what));
                    }
                    let wanted = (0..collective.folded(n, rank)).filter(|&r| self.has_in(r, chunk));
                    let sum = wanted.fold(0u64, |s, r| s.wrapping_add(leaf(r, tile, chunk)));
                    if value.sum != sum {
                        let what = format!("gets something else as the result of chunk {chunk}");
                        return Err(Fault::whole(FaultKind::Value, rank, what));
                    }
                    let first = *first.get_or_insert(rank);
                    if !prefixes && value.tree != self.result(first, tile, chunk).tree {
                        let what = format!("folds chunk {chunk} in another order than rank {first}");
                        return Err(Fault::whole(FaultKind::Tree, rank, what));
                    }
                }
            }
        }
        Ok(())
    }

    fn result(&self, rank: usize, tile: u32, chunk: u32) -> Value {
        self.cells[self.cell(rank, OUT, tile, chunk)].value
    }

    /// Every result is the fold of adjacent pairs of ranks.
    fn in_pairs(&self) -> bool {
        let n = self.net.programs.len();
        (0..self.net.chunks).all(|chunk| {
            let value = |rank| {
                let leaf = leaf(rank, 0, chunk);
                Value { sum: leaf, tree: mix(leaf), state: State::Partial }
            };
            let mut column: Vec<Value> = (0..n).filter(|&r| self.has_in(r, chunk)).map(value).collect();
            let tree = fold_pairs(&mut column).tree;
            (0..n).filter(|&r| self.has_out(r, chunk)).all(|r| self.result(r, 0, chunk).tree == tree)
        })
    }

    /// Follows who waits for whom from a stuck lane until the circle closes.
    fn deadlock(&self, stuck: usize) -> Fault {
        let (mut path, mut text) = (vec![], vec![]);
        let mut lane = stuck;
        while let Some((_, index)) = self.position(lane)
            && !path.contains(&lane)
        {
            path.push(lane);
            let op = &self.net.lanes[lane].ops[index];
            let Some(Operand::Message { channel, .. }) = self.blocked(lane, op) else { break };
            let Channel { from, to } = self.net.channels[channel as usize];
            let for_message = to as usize == lane;
            let other = if for_message { from } else { to } as usize;
            let (me, peer) = (self.net.lanes[lane].rank, self.net.lanes[other].rank);
            let what = if for_message { "a message from" } else { "room to send to" };
            text.push(format!("rank {me} op {index} waits for {what} rank {peer}"));
            lane = other;
        }
        let more =
            if text.len() > 6 { format!(", and so on over {} lanes", text.len()) } else { String::new() };
        text.truncate(6);
        let index = self.position(stuck).map_or(0, |(_, index)| index);
        self.fault(FaultKind::Deadlock, (stuck, index), format!("never fires: {}{more}", text.join(", ")))
    }

    fn op_of(&self, (lane, when): Stamp) -> String {
        let l = &self.net.lanes[lane as usize];
        format!("rank {}, lane {}, op {}", l.rank, l.index, (when as usize - 1) % l.ops.len())
    }

    fn fault(&self, kind: FaultKind, (lane, op): (usize, usize), what: String) -> Fault {
        let l = &self.net.lanes[lane];
        Fault::at(self.net.programs, kind, (l.rank, l.index, op), what)
    }
}

fn fold(a: Value, b: Value) -> Value {
    Value {
        sum: a.sum.wrapping_add(b.sum),
        tree: mix(a.tree ^ mix(b.tree.wrapping_add(0x5bd1_e995))),
        state: State::Partial,
    }
}

/// Folds adjacent pairs, then pairs of these; an odd last one passes up.
fn fold_pairs(column: &mut Vec<Value>) -> Value {
    while column.len() > 1 {
        let up: Vec<Value> =
            column.chunks(2).map(|pair| if let [a, b] = pair { fold(*a, *b) } else { pair[0] }).collect();
        *column = up;
    }
    column[0]
}

fn place(rank: usize, region: u32, chunk: u32) -> String {
    match region {
        IN => format!("In[{chunk}] of rank {rank}"),
        OUT => format!("Out[{chunk}] of rank {rank}"),
        image => format!("Scratch{}[{chunk}] of rank {rank}", image - 2),
    }
}

/// The contribution of a rank to a chunk of a tile: random, so that equal sums mean equal multisets.
fn leaf(rank: usize, tile: u32, chunk: u32) -> u64 {
    mix((rank as u64) << 40 ^ (tile as u64) << 32 ^ chunk as u64)
}

/// splitmix64
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

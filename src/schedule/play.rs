//! The token game: plays wired programs on symbolic values.
//!
//! Lanes are in order and every channel has one writer and one reader, so there is no choice: any
//! order of playing gives the same values and the same deadlocks, and one order is enough.
//!
//! Waiting is played with all blocks, values with one block at a time ([`Net::blocks`]): an op has one
//! block, so its values are the same, and fewer accesses are ordered. What is right for every block alone
//! is right for any number of them together.
//!
//! A chunk's value is an order-free sum of random leaf values (the multiset of its contributions) and
//! an ordered hash of the tree in which they were folded. Races are found with vector clocks, one per
//! lane: every chunk of memory knows its last write and the reads since.

use std::collections::VecDeque;
use std::rc::Rc;

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
    /// Ops fold their sources in adjacent pairs instead of from left to right, and all results must be
    /// folded like this from all contributions in rank order.
    pub pairs: bool,
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
    whole: Vec<u64>,
    ready: Vec<u32>,
    queued: Vec<bool>,
    /// The values of the op at hand.
    values: Vec<Value>,
    /// With [`Game::pairs`], the trees of its sources: all of the first chunk, then of the next one.
    trees: Vec<Vec<u64>>,
}

/// Plays to the end, or says what is wrong.
pub fn play(net: &Net, game: Game) -> Result<(), Fault> {
    let lanes = net.lanes.len();
    let mut p = Player {
        net,
        game,
        done: vec![0; lanes],
        clocks: if game.values { vec![0; lanes * lanes] } else { Vec::new() },
        channels: (0..net.channels.len()).map(|_| ChannelState::default()).collect(),
        cells: Vec::new(),
        whole: Vec::new(),
        ready: (0..lanes as u32).rev().collect(),
        queued: vec![true; lanes],
        values: Vec::new(),
        trees: Vec::new(),
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
    if game.values { p.results() } else { Ok(()) }
}

impl Player<'_> {
    /// (tile, op) that a lane stands at; `None` when it is through.
    fn position(&self, lane: usize) -> Option<(u32, usize)> {
        let ops = self.net.lanes[lane].ops.len() as u32;
        let done = self.done[lane];
        (done < ops * self.game.tiles).then(|| (done / ops, (done % ops) as usize))
    }

    fn lay_out(&mut self) {
        let (n, k) = (self.net.programs.len(), self.net.chunks);
        self.whole = vec![0; (self.game.tiles * k) as usize];
        for rank in 0..n {
            for region in 0..2 + self.net.scratch {
                for tile in 0..self.tiles_of(region) {
                    for chunk in 0..k {
                        let mut value = Value { sum: 0, tree: 0, state: State::Undefined };
                        if region == IN && self.gives(rank) {
                            let leaf = leaf(rank, tile, self.net.base + chunk);
                            let moves = !self.net.collective.reduces();
                            let state = if moves { State::Complete } else { State::Partial };
                            value = Value { sum: leaf, tree: mix(leaf), state };
                            let sum = &mut self.whole[(tile * k + chunk) as usize];
                            *sum = sum.wrapping_add(leaf);
                        }
                        self.cells.push(Cell { value, written: (0, 0), reads: Vec::new() });
                    }
                }
            }
        }
    }

    /// The rank has the block before / after.
    fn gives(&self, rank: usize) -> bool {
        let Net { collective, root, base, chunks, .. } = *self.net;
        collective.sent(self.net.programs.len(), root, rank, (base / chunks) as usize).is_some()
    }
    fn gets(&self, rank: usize) -> bool {
        let Net { collective, root, base, chunks, .. } = *self.net;
        collective.received(self.net.programs.len(), root, rank, (base / chunks) as usize).is_some()
    }

    /// Tiles have an input and an output each, and share the scratch images.
    fn tiles_of(&self, region: u32) -> u32 {
        if region <= OUT { self.game.tiles } else { 1 }
    }

    /// `chunk` counts from the start of the block.
    fn cell(&self, rank: usize, region: u32, tile: u32, chunk: u32) -> usize {
        let (k, tiles) = (self.net.chunks, self.game.tiles);
        let in_rank = match region {
            IN => tile * k,
            OUT if self.game.in_place => tile * k,
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
            // In place, a copy from input to output is nothing.
            let same = self.game.in_place && !op.complete && matches!(l.srcs(&op), [Operand::Local(IN)]);
            for dst in l.dsts(&op) {
                match *dst {
                    Operand::Local(OUT) if same => {}
                    Operand::Local(region) => self.write((lane, index), l.rank, region, tile)?,
                    Operand::Message { .. } => {}
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
        self.trees.clear();
        for (i, (src, message)) in l.srcs(&op).iter().zip(received).enumerate() {
            for k in 0..op.len {
                let chunk = op.at - net.base + k;
                let value = match (src, message.as_ref().map(|m| (&m.body, m.tile))) {
                    (_, Some((Body::Copy(copy), _))) => copy[k as usize],
                    (_, Some((Body::Ref { rank, region }, tile))) => {
                        self.read((lane, index), *rank as usize, *region, tile, chunk)?
                    }
                    (Operand::Local(region), _) => self.read((lane, index), l.rank, *region, tile, chunk)?,
                    (Operand::Message { .. }, _) => unreachable!("a receive fires with its message"),
                };
                if self.game.pairs {
                    self.trees.resize_with(op.len as usize, Vec::new);
                    self.trees[k as usize].push(value.tree);
                }
                if i == 0 {
                    values.push(value);
                } else {
                    let acc = &mut values[k as usize];
                    if acc.state == State::Complete || value.state == State::Complete {
                        let what = format!("folds chunk {} although it is complete already", op.at + k);
                        return Err(self.fault(FaultKind::Complete, (lane, index), what));
                    }
                    acc.sum = acc.sum.wrapping_add(value.sum);
                    acc.tree = join(acc.tree, value.tree);
                }
            }
        }
        for (value, trees) in values.iter_mut().zip(&mut self.trees) {
            value.tree = pairs(trees);
        }
        let first = tile * net.chunks + op.at - net.base;
        for (k, value) in values.iter_mut().enumerate().filter(|_| net.collective.completes()) {
            let whole = value.sum == self.whole[first as usize + k];
            let what = match (op.complete, value.state == State::Complete, whole) {
                (true, true, _) => "is marked complete, but copies a complete value: chunk",
                (true, false, false) => "is marked complete, but lacks or repeats a contribution: chunk",
                (false, false, true) => "completes a value and is not marked so: chunk",
                _ => "",
            };
            if !what.is_empty() {
                let what = format!("{what} {}", op.at as usize + k);
                return Err(self.fault(FaultKind::Complete, (lane, index), what));
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
        let place = self.place(rank, region, chunk);
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
        let at = self.net.lanes[me.0].ops[me.1].at - self.net.base;
        for k in 0..self.values.len() {
            let ix = self.cell(rank, region, tile, at + k as u32);
            let clock = &self.clocks[me.0 * lanes..][..lanes];
            let cell = &mut self.cells[ix];
            let late = |&&(lane, when): &&Stamp| clock[lane as usize] < when;
            let conflict = cell.reads.iter().chain([&cell.written]).find(late).copied();
            if let Some(other) = conflict {
                let verb = if other == cell.written { "writes" } else { "reads" };
                let (place, other) = (self.place(rank, region, at + k as u32), self.op_of(other));
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
                    // In place this is the output as well, or must not be written.
                    Some(&Body::Ref { rank, region: IN }) if self.game.in_place => {
                        if !self.gets(rank as usize) {
                            let place = self.place(rank as usize, IN, op.at - net.base);
                            let what = format!("may write its reply to {place}, which is input only");
                            return Err(self.fault(FaultKind::Race, me, what));
                        }
                        Some((rank, IN))
                    }
                    Some(&Body::Ref { rank, region }) if region != IN => Some((rank, region)),
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

    /// Every rank that gets the block has the fold of what it should, in the same tree as the others.
    fn results(&self) -> Result<(), Fault> {
        let Net { programs, collective, base, chunks, .. } = *self.net;
        let n = programs.len();
        let places = (0..self.game.tiles).flat_map(|tile| (0..chunks).map(move |chunk| (tile, chunk)));
        for (tile, chunk) in places {
            let mut first: Option<(usize, u64)> = None;
            for rank in (0..n).filter(|&rank| self.gets(rank)) {
                let value = self.cells[self.cell(rank, OUT, tile, chunk)].value;
                let leaves = || {
                    (0..collective.folded(n, rank))
                        .filter(|&r| self.gives(r))
                        .map(|r| leaf(r, tile, base + chunk))
                };
                let prefix = collective.reduces() && !collective.completes();
                let sum = match prefix {
                    true => leaves().fold(0, u64::wrapping_add),
                    false => self.whole[(tile * chunks + chunk) as usize],
                };
                let chunk = base + chunk;
                if value.state == State::Undefined || !prefix && value.state != State::Complete {
                    let what = format!("never gets the result of chunk {chunk}");
                    return Err(Fault::whole(FaultKind::Value, rank, what));
                }
                if value.sum != sum {
                    let what = format!("lacks or repeats a contribution to chunk {chunk}");
                    return Err(Fault::whole(FaultKind::Complete, rank, what));
                }
                if self.game.pairs && value.tree != pairs(&mut leaves().map(mix).collect()) {
                    let what = format!("folds chunk {chunk} not in adjacent pairs of ranks");
                    return Err(Fault::whole(FaultKind::Tree, rank, what));
                }
                let (other, tree) = *first.get_or_insert((rank, value.tree));
                if !prefix && value.tree != tree {
                    let what = format!("folds chunk {chunk} in another order than rank {other}");
                    return Err(Fault::whole(FaultKind::Tree, rank, what));
                }
            }
        }
        Ok(())
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
            let index = op.index;
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
        let op = &l.ops[(when as usize - 1) % l.ops.len()];
        format!("rank {}, lane {}, op {}", l.rank, l.index, op.index)
    }

    fn fault(&self, kind: FaultKind, (lane, op): (usize, usize), what: String) -> Fault {
        let l = &self.net.lanes[lane];
        Fault::at(self.net.programs, kind, (l.rank, l.index, l.ops[op].index as usize), what)
    }

    fn place(&self, rank: usize, region: u32, chunk: u32) -> String {
        let chunk = self.net.base + chunk;
        match region {
            IN => format!("In[{chunk}] of rank {rank}"),
            OUT => format!("Out[{chunk}] of rank {rank}"),
            image => format!("Scratch{}[{chunk}] of rank {rank}", image - 2),
        }
    }
}

/// The contribution of a rank to a chunk of a tile: random, so that equal sums mean equal multisets.
fn leaf(rank: usize, tile: u32, chunk: u32) -> u64 {
    mix((rank as u64) << 40 ^ (tile as u64) << 32 ^ chunk as u64)
}

/// The tree of two values folded.
fn join(left: u64, right: u64) -> u64 {
    mix(left ^ mix(right.wrapping_add(0x5bd1_e995)))
}

/// The tree of values folded in adjacent pairs, and these in pairs again; an odd one passes up.
fn pairs(trees: &mut Vec<u64>) -> u64 {
    while trees.len() > 1 {
        let half = trees.len().div_ceil(2);
        for i in 0..half {
            trees[i] = trees.get(2 * i + 1).map_or(trees[2 * i], |&right| join(trees[2 * i], right));
        }
        trees.truncate(half);
    }
    trees.first().copied().unwrap_or(0)
}

/// splitmix64
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

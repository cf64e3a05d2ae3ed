//! A scalar interpreter of schedules: real buffers of i64, random order of the ranks' ops.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::ops::Range;

use graccl::schedule::{Arg, ArgKind, Collective, Lane, Op, Program, cut};

use crate::Rng;

#[derive(Clone, Debug)]
pub struct Setting {
    pub in_place: bool,
    /// Messages that may be references are, every other time.
    pub by_ref: bool,
    /// Replies go where the message came from, every other time.
    pub reply: bool,
    pub depth: usize,
    /// Elements and tiles of every block.
    pub blocks: Vec<(usize, u64)>,
}

#[derive(Clone)]
enum Payload {
    Copy(Vec<i64>),
    /// Elements of this rank's input or output.
    Ref(usize, ArgKind, Place),
}

type Key = (usize, usize, u8);

/// A block, and elements of it.
type Place = (usize, Range<usize>);

/// The blocks of a buffer; `None` where the buffer has not got the block.
type Blocks = Vec<Option<Vec<i64>>>;

struct Message {
    payload: Payload,
    /// Channel whose slot the message lies in.
    slot: Key,
}

pub struct Run<'a> {
    collective: Collective,
    root: usize,
    programs: &'a [Program],
    setting: Setting,
    rng: Rng,
    inputs: Vec<Blocks>,
}

/// The state of one execution.
struct State {
    input: Vec<Blocks>,
    /// In place, a block that is in both buffers is only here.
    output: Vec<Blocks>,
    queues: HashMap<Key, VecDeque<Message>>,
    used: HashMap<Key, usize>,
}

/// What a `complete` op does to the sum, once.
fn post(sum: i64) -> i64 {
    sum.wrapping_mul(3).wrapping_add(1)
}

impl<'a> Run<'a> {
    pub fn new(
        collective: Collective,
        root: usize,
        programs: &'a [Program],
        setting: Setting,
        seed: u64,
    ) -> Run<'a> {
        let mut rng = Rng(seed);
        let n = programs.len();
        let inputs = (0..n).map(|rank| {
            let sent = setting.blocks.iter().enumerate().map(|(b, (count, _))| {
                collective.sent(n, root, rank, b).map(|_| (0..*count).map(|_| rng.word() as i64).collect())
            });
            sent.collect()
        });
        let inputs = inputs.collect();
        Run { collective, root, programs, setting, rng, inputs }
    }

    /// Results must be right, and a fold that depends on the order must give the same to all ranks that get
    /// the same block.
    pub fn check(mut self) -> Result<(), String> {
        let n = self.programs.len();
        let results = self.execute(i64::wrapping_add)?;
        for (rank, blocks) in results.iter().enumerate() {
            for (b, got) in blocks.iter().enumerate().filter_map(|(b, got)| Some((b, got.as_ref()?))) {
                let folded =
                    self.inputs[..self.collective.folded(n, rank)].iter().filter_map(|v| v[b].as_ref());
                let mut right = vec![0i64; got.len()];
                for v in folded {
                    right.iter_mut().zip(v).for_each(|(a, v)| *a = a.wrapping_add(*v));
                }
                if self.collective.completes() {
                    right.iter_mut().for_each(|v| *v = post(*v));
                }
                if let Some(i) = (0..got.len()).find(|&i| got[i] != right[i]) {
                    return Err(format!("element {i} of block {b} of rank {rank} is wrong"));
                }
            }
        }
        if matches!(self.collective, Collective::Scan | Collective::Exscan) {
            return Ok(());
        }
        let mixed = self.execute(|a, b| a.wrapping_mul(31).rotate_left(7) ^ b)?;
        for b in 0..self.setting.blocks.len() {
            let mut got =
                mixed.iter().enumerate().filter_map(|(rank, blocks)| Some((rank, blocks[b].as_ref()?)));
            let first = got.next();
            if let Some((rank, _)) =
                got.find(|(_, bits)| first.is_some_and(|(_, of_first)| of_first != *bits))
            {
                return Err(format!("rank {rank} has folded block {b} in another order than the first"));
            }
        }
        Ok(())
    }

    fn execute(&mut self, fold: fn(i64, i64) -> i64) -> Result<Vec<Blocks>, String> {
        let n = self.programs.len();
        let mut input = self.inputs.clone();
        let output: Vec<Blocks> = (0..n)
            .map(|rank| {
                let block = |(b, (count, _)): (usize, &(usize, u64))| {
                    self.collective.received(n, self.root, rank, b)?;
                    let moved = if self.setting.in_place { input[rank][b].take() } else { None };
                    Some(moved.unwrap_or_else(|| vec![0x5a5a_5a5a; *count]))
                };
                self.setting.blocks.iter().enumerate().map(block).collect()
            })
            .collect();
        let given = input.clone();
        let mut state = State { input, output, queues: HashMap::new(), used: HashMap::new() };
        let programs = self.programs;
        // (rank, lane, tile, op) of every lane that is not through.
        let mut todo: Vec<(usize, &Lane, u64, usize)> = Vec::new();
        for (rank, program) in programs.iter().enumerate() {
            todo.extend(program.lanes.iter().map(|lane| (rank, lane, 0, 0)));
        }
        let tiles = self.setting.blocks.iter().map(|b| b.1).max().unwrap_or(0);
        todo.retain_mut(|(rank, lane, tile, op)| self.settle(*rank, lane, tile, op) < tiles);
        while !todo.is_empty() {
            // Any lane that can fire; a run of one lane now and then, to get far from lockstep.
            let start = self.rng.below(todo.len());
            let fires = (0..todo.len()).map(|i| (start + i) % todo.len()).find(|&i| {
                let (rank, lane, _, op) = todo[i];
                self.can_fire(&state, rank, lane, &lane.ops[op])
            });
            let Some(i) = fires else { return Err("deadlock".into()) };
            for _ in 0..1 + self.rng.below(4) {
                let (rank, lane, tile, op) = todo[i];
                if !self.can_fire(&state, rank, lane, &lane.ops[op]) {
                    break;
                }
                self.fire(&mut state, rank, lane, &lane.ops[op], tile, fold)?;
                let (mut next, mut after) = (tile, op + 1);
                self.settle(rank, lane, &mut next, &mut after);
                todo[i] = (rank, lane, next, after);
                if next >= tiles {
                    todo.swap_remove(i);
                    break;
                }
            }
        }
        if state.input != given {
            return Err("an input was written".into());
        }
        Ok(state.output)
    }

    /// Moves a lane's position past the ends of tiles, and past ops of blocks that have no such tile. The
    /// tile that it is in then.
    fn settle(&self, rank: usize, lane: &Lane, tile: &mut u64, op: &mut usize) -> u64 {
        let most = self.setting.blocks.iter().map(|b| b.1).max().unwrap_or(0);
        while *tile < most {
            match lane.ops.get(*op) {
                None => (*tile, *op) = (*tile + 1, 0),
                Some(o) if *tile >= self.setting.blocks[self.block(rank, o)].1 => *op += 1,
                Some(_) => break,
            }
        }
        *tile
    }

    fn block(&self, rank: usize, op: &Op) -> usize {
        (op.at / self.programs[rank].chunks) as usize
    }

    fn can_fire(&self, state: &State, rank: usize, lane: &Lane, op: &Op) -> bool {
        let recv = |a: &Arg| {
            a.kind != ArgKind::Recv
                || state
                    .queues
                    .get(&(lane.peers[a.ix as usize] as usize, rank, a.port))
                    .is_some_and(|q| !q.is_empty())
        };
        let room = |a: &Arg| {
            a.kind != ArgKind::Send
                || readers(lane, a).iter().all(|&to| {
                    state.used.get(&(rank, to as usize, a.port)).is_none_or(|&u| u < self.setting.depth)
                })
        };
        lane.srcs(op).iter().all(recv) && lane.dsts(op).iter().all(room)
    }

    fn span(&self, rank: usize, op: &Op, tile: u64) -> Place {
        let chunks = self.programs[rank].chunks as u64;
        let block = self.block(rank, op);
        let (count, tiles) = self.setting.blocks[block];
        let edge = |t| cut(count as u64, t, tiles, 1);
        let (base, len) = (edge(tile), edge(tile + 1) - edge(tile));
        let at = op.at as u64 % chunks;
        let inner = |i| (base + cut(len, i, chunks, 1)) as usize;
        (block, inner(at)..inner(at + op.len as u64))
    }

    fn load(
        &self,
        state: &State,
        rank: usize,
        kind: ArgKind,
        (block, span): Place,
    ) -> Result<Vec<i64>, String> {
        let input = state.input[rank][block].as_ref().filter(|_| kind == ArgKind::In);
        // In place, what is not in the input is in the output.
        let memory = input.or(state.output[rank][block].as_ref());
        memory.map(|m| m[span].to_vec()).ok_or(format!("rank {rank} has no block {block}"))
    }

    fn fire(
        &mut self,
        state: &mut State,
        rank: usize,
        lane: &Lane,
        op: &Op,
        tile: u64,
        fold: fn(i64, i64) -> i64,
    ) -> Result<(), String> {
        let span = self.span(rank, op, tile);
        let mut value: Vec<i64> = Vec::new();
        // Messages of this op by (peer, port), and what becomes of their slots.
        let mut received: Vec<(usize, u8, Message)> = Vec::new();
        for (i, src) in lane.srcs(op).iter().enumerate() {
            let next = if src.kind == ArgKind::Recv {
                let from = lane.peers[src.ix as usize] as usize;
                let queue = state.queues.get_mut(&(from, rank, src.port)).expect("can fire");
                let message = queue.pop_front().expect("can fire");
                let next = match message.payload.clone() {
                    Payload::Copy(copy) => copy,
                    Payload::Ref(r, kind, span) => self.load(state, r, kind, span)?,
                };
                received.push((from, src.port, message));
                next
            } else {
                self.load(state, rank, src.kind, span.clone())?
            };
            if next.len() != span.1.len() {
                return Err(format!("rank {rank} gets {} elements instead of {}", next.len(), span.1.len()));
            }
            match i {
                0 => value = next,
                _ => value.iter_mut().zip(next).for_each(|(a, b)| *a = fold(*a, b)),
            }
        }
        if op.complete {
            value.iter_mut().for_each(|v| *v = post(*v));
        }
        for _ in lane.dsts(op).iter().filter(|d| d.kind == ArgKind::Out) {
            store(state, rank, &span, &value)?;
        }
        let stores = lane.dsts(op).iter().any(|d| d.kind == ArgKind::Out);
        let lent = match lane.srcs(op) {
            _ if stores => Some(ArgKind::Out),
            [only] if only.kind != ArgKind::Recv => Some(only.kind),
            _ => None,
        };
        for dst in lane.dsts(op).iter().filter(|d| d.kind == ArgKind::Send) {
            for &to in readers(lane, dst) {
                let to = to as usize;
                let asked = received.iter().position(|m| (m.0, m.1) == (to, dst.port));
                let reply = asked.filter(|_| self.setting.reply && self.rng.coin());
                let mut message =
                    Message { payload: Payload::Copy(value.clone()), slot: (rank, to, dst.port) };
                match reply.map(|i| received.swap_remove(i).2) {
                    Some(Message { payload: Payload::Ref(r, kind, span), slot })
                        if self.setting.in_place || kind == ArgKind::Out =>
                    {
                        store(state, r, &span, &value)?;
                        message = Message { payload: Payload::Ref(r, kind, span), slot };
                    }
                    Some(Message { slot, .. }) => message.slot = slot,
                    None => {
                        *state.used.entry(message.slot).or_default() += 1;
                        if let (true, Some(kind)) = (self.setting.by_ref && self.rng.coin(), lent) {
                            message.payload = Payload::Ref(rank, kind, span.clone());
                        }
                    }
                }
                state.queues.entry((rank, to, dst.port)).or_default().push_back(message);
            }
        }
        for (_, _, message) in received {
            *state.used.get_mut(&message.slot).expect("a slot was taken") -= 1;
        }
        Ok(())
    }
}

fn store(state: &mut State, rank: usize, (block, span): &Place, value: &[i64]) -> Result<(), String> {
    let memory =
        state.output[rank][*block].as_mut().ok_or(format!("rank {rank} does not get block {block}"))?;
    memory[span.clone()].copy_from_slice(value);
    Ok(())
}

fn readers<'a>(lane: &'a Lane, send: &Arg) -> &'a [u32] {
    &lane.peers[send.ix as usize..][..send.count as usize]
}

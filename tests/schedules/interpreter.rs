//! A scalar interpreter of schedules: real buffers of i64, random order of the ranks' ops.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::ops::Range;

use graccl::schedule::{Arg, ArgKind, Lane, Op, Program, cut};

use crate::Rng;

#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub in_place: bool,
    /// Messages that may be references are, every other time.
    pub by_ref: bool,
    /// Replies go where the message came from, every other time.
    pub reply: bool,
    pub tiles: u64,
    pub depth: usize,
    /// Elements.
    pub count: usize,
}

#[derive(Clone)]
enum Payload {
    Copy(Vec<i64>),
    /// Elements of this rank's input or output.
    Ref(usize, ArgKind, Range<usize>),
}

type Key = (usize, usize, u8);

struct Message {
    payload: Payload,
    /// Channel whose slot the message lies in.
    slot: Key,
}

pub struct Run<'a> {
    programs: &'a [Program],
    setting: Setting,
    rng: Rng,
    inputs: Vec<Vec<i64>>,
}

/// The state of one execution.
struct State {
    /// In place, the input is never looked at.
    input: Vec<Vec<i64>>,
    output: Vec<Vec<i64>>,
    queues: HashMap<Key, VecDeque<Message>>,
    used: HashMap<Key, usize>,
}

/// What a `complete` op does to the sum, once.
fn post(sum: i64) -> i64 {
    sum.wrapping_mul(3).wrapping_add(1)
}

impl<'a> Run<'a> {
    pub fn new(programs: &'a [Program], setting: Setting, seed: u64) -> Run<'a> {
        let mut rng = Rng(seed);
        let inputs = (0..programs.len()).map(|_| (0..setting.count).map(|_| rng.word() as i64).collect());
        let inputs = inputs.collect();
        Run { programs, setting, rng, inputs }
    }

    /// Sums must be right, and a fold that depends on the order must give all ranks the same.
    pub fn check(mut self) -> Result<(), String> {
        let sums = self.execute(i64::wrapping_add)?;
        for (rank, sum) in sums.iter().enumerate() {
            for (i, &got) in sum.iter().enumerate() {
                let right = post(self.inputs.iter().fold(0, |acc, v| acc.wrapping_add(v[i])));
                if got != right {
                    return Err(format!("element {i} of rank {rank} is wrong"));
                }
            }
        }
        let mixed = self.execute(|a, b| a.wrapping_mul(31).rotate_left(7) ^ b)?;
        match mixed.iter().position(|m| *m != mixed[0]) {
            Some(rank) => Err(format!("rank {rank} has folded in another order than rank 0")),
            None => Ok(()),
        }
    }

    fn execute(&mut self, fold: fn(i64, i64) -> i64) -> Result<Vec<Vec<i64>>, String> {
        let blank = || vec![0x5a5a_5a5a; self.setting.count];
        let output = match self.setting.in_place {
            true => self.inputs.clone(),
            false => self.inputs.iter().map(|_| blank()).collect(),
        };
        let input = self.inputs.clone();
        let mut state = State { input, output, queues: HashMap::new(), used: HashMap::new() };
        let programs = self.programs;
        // (rank, lane, tile, op) of every lane that is not through.
        let mut todo: Vec<(usize, &Lane, u64, usize)> = Vec::new();
        for (rank, program) in programs.iter().enumerate() {
            todo.extend(program.lanes.iter().map(|lane| (rank, lane, 0, 0)));
        }
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
                let next = (op + 1) % lane.ops.len();
                todo[i] = (rank, lane, tile + u64::from(next == 0), next);
                if todo[i].2 == self.setting.tiles {
                    todo.swap_remove(i);
                    break;
                }
            }
        }
        Ok(state.output)
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

    fn span(&self, rank: usize, op: &Op, tile: u64) -> Range<usize> {
        let chunks = self.programs[rank].chunks as u64;
        let edge = |t| cut(self.setting.count as u64, t, self.setting.tiles, 1);
        let (base, len) = (edge(tile), edge(tile + 1) - edge(tile));
        let at = op.at as u64;
        let inner = |i| (base + cut(len, i, chunks, 1)) as usize;
        inner(at)..inner(at + op.len as u64)
    }

    fn load(&self, state: &State, rank: usize, kind: ArgKind, span: Range<usize>) -> Vec<i64> {
        match kind {
            ArgKind::In if !self.setting.in_place => state.input[rank][span].to_vec(),
            _ => state.output[rank][span].to_vec(),
        }
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
                    Payload::Ref(r, kind, span) => self.load(state, r, kind, span),
                };
                received.push((from, src.port, message));
                next
            } else {
                self.load(state, rank, src.kind, span.clone())
            };
            if next.len() != span.len() {
                return Err(format!("rank {rank} gets {} elements instead of {}", next.len(), span.len()));
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
            state.output[rank][span.clone()].copy_from_slice(&value);
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
                        state.output[r][span.clone()].copy_from_slice(&value);
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

fn readers<'a>(lane: &'a Lane, send: &Arg) -> &'a [u32] {
    &lane.peers[send.ix as usize..][..send.count as usize]
}

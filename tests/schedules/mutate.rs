//! Random changes to schedules.

use graccl::schedule::{Arg, ArgKind, Lane, Op, Program};

use crate::Rng;

/// An op with its operands.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub at: u32,
    pub len: u32,
    pub complete: bool,
    pub srcs: Vec<Arg>,
    pub dsts: Vec<Arg>,
}

pub fn unpack(lane: &Lane) -> Vec<Step> {
    let step = |op: &Op| Step {
        at: op.at,
        len: op.len,
        complete: op.complete,
        srcs: lane.srcs(op).to_vec(),
        dsts: lane.dsts(op).to_vec(),
    };
    lane.ops.iter().map(step).collect()
}

pub fn pack(steps: &[Step], peers: &[u32]) -> Lane {
    let mut lane = Lane { peers: peers.to_vec(), ..Lane::default() };
    for s in steps {
        lane.ops.push(Op {
            at: s.at,
            len: s.len,
            arg: lane.args.len() as u32,
            nsrc: s.srcs.len() as u16,
            ndst: s.dsts.len() as u16,
            complete: s.complete,
        });
        lane.args.extend_from_slice(&s.srcs);
        lane.args.extend_from_slice(&s.dsts);
    }
    lane
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    DropOp,
    DoubleOp,
    /// Swaps an op with the next one.
    SwapOps,
    /// Moves an op anywhere in its lane.
    MoveOp,
    SwapSources,
    DropSource,
    DoubleSource,
    DropDest,
    /// Adds a store of the value to `Out`.
    AddStore,
    /// Another first chunk.
    WrongChunk,
    WrongLen,
    WrongPeer,
    WrongPort,
    /// `In` instead of `Out` as a source, or the other way round.
    WrongMemory,
    FlipComplete,
    /// Cuts a lane in two.
    SplitLane,
}

impl Kind {
    pub const ALL: [Kind; 16] = [
        Kind::DropOp,
        Kind::DoubleOp,
        Kind::SwapOps,
        Kind::MoveOp,
        Kind::SwapSources,
        Kind::DropSource,
        Kind::DoubleSource,
        Kind::DropDest,
        Kind::AddStore,
        Kind::WrongChunk,
        Kind::WrongLen,
        Kind::WrongPeer,
        Kind::WrongPort,
        Kind::WrongMemory,
        Kind::FlipComplete,
        Kind::SplitLane,
    ];

    /// No schedule of the library survives this change on one rank. (The others swap or move what is
    /// independent, store what is stored later anyway, or sum in another order that all ranks share.)
    pub fn always_wrong(self) -> bool {
        use Kind::*;
        !matches!(self, SwapOps | MoveOp | SwapSources | AddStore | SplitLane)
    }

    /// A changed copy: one op of a random rank, or the same op of all ranks that have it. `None` when
    /// the change did not apply or changed nothing.
    pub fn mutate(self, programs: &[Program], everywhere: bool, rng: &mut Rng) -> Option<Vec<Program>> {
        let mut mutant = programs.to_vec();
        let rank = rng.below(programs.len());
        if programs[rank].lanes.is_empty() {
            return None;
        }
        let lane = rng.below(programs[rank].lanes.len());
        let op = rng.below(programs[rank].lanes[lane].ops.len());
        let seed = rng.word();
        for (r, program) in mutant.iter_mut().enumerate() {
            let there = program.lanes.get(lane).is_some_and(|l| op < l.ops.len());
            if there && (everywhere || r == rank) {
                // The same choices on all ranks.
                self.apply(program, lane, op, &mut Rng(seed));
            }
        }
        (mutant != programs).then_some(mutant)
    }

    fn apply(self, program: &mut Program, lane: usize, op: usize, rng: &mut Rng) {
        let chunks = (program.blocks * program.chunks) as usize;
        let mut peers = program.lanes[lane].peers.clone();
        let mut steps = unpack(&program.lanes[lane]);
        let end = steps.len() - 1;
        let (nsrc, ndst) = (steps[op].srcs.len(), steps[op].dsts.len());
        let (src, dst) = (rng.below(nsrc), rng.below(ndst));
        let step = &mut steps[op];
        let mut operands: Vec<&mut Arg> = step.srcs.iter_mut().chain(&mut step.dsts).collect();
        let message = |a: &Arg| matches!(a.kind, ArgKind::Recv | ArgKind::Send);
        match self {
            Kind::DropOp => drop(steps.remove(op)),
            // A rank's own block may well be stored twice.
            Kind::DoubleOp if operands.iter().all(|a| !message(a)) => {}
            Kind::DoubleOp => steps.insert(op, steps[op].clone()),
            Kind::SwapOps => steps.swap(op, (op + 1).min(end)),
            Kind::MoveOp => {
                let step = steps.remove(op);
                steps.insert(rng.below(end + 1), step);
            }
            Kind::SwapSources => step.srcs.swap(src, rng.below(nsrc)),
            Kind::DropSource => drop(step.srcs.remove(src)),
            Kind::DoubleSource => step.srcs.push(step.srcs[src]),
            Kind::DropDest => drop(step.dsts.remove(dst)),
            Kind::AddStore => {
                step.dsts.push(Arg { kind: ArgKind::Out, port: 0, ix: 0, count: 0 });
            }
            Kind::WrongChunk => {
                let by = 1 + rng.below(chunks.saturating_sub(1));
                step.at = ((step.at as usize + by) % chunks) as u32;
            }
            Kind::WrongLen => step.len = 1 + rng.below(chunks) as u32,
            Kind::WrongPeer => {
                let other = rng.below(8) as u32;
                let mut talks: Vec<&mut &mut Arg> = operands.iter_mut().filter(|a| message(a)).collect();
                let one = rng.below(talks.len());
                if let Some(a) = talks.get_mut(one) {
                    let run = if a.kind == ArgKind::Send { a.count as usize } else { 1 };
                    let mut ranks = peers[a.ix as usize..][..run].to_vec();
                    ranks[rng.below(run)] = other;
                    a.ix = peers.len() as u16;
                    peers.extend(ranks);
                }
            }
            Kind::WrongPort => {
                let mut talks: Vec<&mut &mut Arg> = operands.iter_mut().filter(|a| message(a)).collect();
                let one = rng.below(talks.len());
                if let Some(a) = talks.get_mut(one) {
                    a.port ^= 1 << rng.below(3);
                }
            }
            Kind::WrongMemory => match step.srcs[src].kind {
                ArgKind::In => step.srcs[src].kind = ArgKind::Out,
                ArgKind::Out => step.srcs[src].kind = ArgKind::In,
                _ => {}
            },
            Kind::FlipComplete => step.complete = !step.complete,
            Kind::SplitLane => {
                let rest = steps.split_off(op);
                program.lanes.push(pack(&rest, &peers));
            }
        }
        // A longer list of peers alone is no change.
        if steps != unpack(&program.lanes[lane])
            && (self != Kind::WrongPeer || changed_peer(&steps, &peers, program, lane))
        {
            program.lanes[lane] = pack(&steps, &peers);
        }
        program.lanes.retain(|l| !l.ops.is_empty());
    }
}

/// Some operand talks to other ranks than before.
fn changed_peer(steps: &[Step], peers: &[u32], program: &Program, lane: usize) -> bool {
    let names = |steps: &[Step], peers: &[u32]| -> Vec<Vec<u32>> {
        let of = |a: &Arg| match a.kind {
            ArgKind::Send => peers[a.ix as usize..][..a.count as usize].to_vec(),
            ArgKind::Recv => vec![peers[a.ix as usize]],
            _ => vec![],
        };
        steps.iter().flat_map(|s| s.srcs.iter().chain(&s.dsts)).map(of).collect()
    };
    names(steps, peers) != names(&unpack(&program.lanes[lane]), &program.lanes[lane].peers)
}

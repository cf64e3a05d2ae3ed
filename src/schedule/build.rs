//! The builder: what algorithms are written with.
//!
//! A stage (`stages/`) speaks of *members* and *parts*: `b.send(part, &[member])`. Scopes say what
//! these are. [`Builder::on`] makes a subset of the ranks the members, numbered from 0;
//! [`Builder::parts`] and [`Builder::zoom`] cut the range of chunks at hand into parts;
//! [`Builder::lane`] says in which lane and on which port. One after the other is simply one call
//! after the other.
//!
//! The builder knows which blocks this rank has before and after ([`Collective`]), and for every chunk
//! whether the running value is still in `In` or already in `Out`. That alone lets stages follow each
//! other, in place and out of place, and the same stage serve several collectives: [`Builder::pass`]
//! stores what this rank gets, and only passes on what it does not.

use std::collections::HashSet;

use super::collective::Collective;
use super::op::{Arg, ArgKind, Lane, Op, Program};

/// A source of a fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Src {
    /// This rank's running value.
    Mine,
    /// The next message from this member.
    From(usize),
}

/// What member and part numbers mean at the moment.
#[derive(Clone, Debug)]
struct Scope {
    members: Vec<u32>,
    me: usize,
    /// The members' values together hold every rank's contribution.
    whole: bool,
    /// First chunk, chunks per part, number of parts.
    lo: u32,
    step: u32,
    parts: u32,
    lane: usize,
    port: u8,
}

/// Builds the program of one rank.
pub(super) struct Builder {
    collective: Collective,
    root: usize,
    rank: usize,
    n: usize,
    /// Chunks of a block.
    chunks: u32,
    lanes: Vec<Lane>,
    /// Chunks whose running value is in `Out`.
    stored: HashSet<u32>,
    scope: Scope,
}

impl Builder {
    /// All `n` ranks are members, and there is one part: all blocks, `chunks` chunks each.
    pub fn new(collective: Collective, root: usize, rank: usize, n: usize, chunks: u32) -> Builder {
        let members: Vec<u32> = (0..n as u32).collect();
        let step = collective.blocks(n) as u32 * chunks;
        let scope = Scope { members, me: rank, whole: true, lo: 0, step, parts: 1, lane: 0, port: 0 };
        let (lanes, stored) = (Vec::new(), HashSet::new());
        Builder { collective, root, rank, n, chunks, lanes, stored, scope }
    }

    /// The program.
    pub fn finish(mut self) -> Program {
        self.lanes.retain(|lane| !lane.ops.is_empty());
        let blocks = self.collective.blocks(self.n) as u32;
        Program { lanes: self.lanes, blocks, chunks: self.chunks, scratch: 0 }
    }

    /// What a single rank does, whatever the algorithm: it hears from nobody, and copies its input.
    pub fn alone(&mut self) {
        let complete = self.collective.completes();
        self.parts(self.collective.blocks(1) as u32, |b| {
            if b.given(0) && b.wanted(0) {
                b.push(b.span(0), &[local(ArgKind::In)], &[local(ArgKind::Out)], complete);
            }
        });
    }

    // ---- scopes ----

    /// Makes `members` (ranks, in the order that numbers them) the members for `stage`; a rank that
    /// is not among them skips it. `whole` says that their values together hold every rank's
    /// contribution, so that a reduction over all of them completes the value.
    pub fn on(&mut self, members: &[u32], whole: bool, stage: impl FnOnce(&mut Builder)) {
        let Some(me) = members.iter().position(|&r| r as usize == self.rank) else { return };
        let scope = Scope { members: members.to_vec(), me, whole, ..self.scope };
        self.within(scope, stage);
    }

    /// Cuts the range at hand into `k` parts.
    pub fn parts(&mut self, k: u32, stage: impl FnOnce(&mut Builder)) {
        self.zoom(0, 1, k, stage);
    }

    /// Narrows to part `i` when the range at hand is cut into `of`, and cuts that into `k` parts.
    pub fn zoom(&mut self, i: u32, of: u32, k: u32, stage: impl FnOnce(&mut Builder)) {
        let total = self.scope.step * self.scope.parts;
        assert!(i < of && total.is_multiple_of(of * k), "{total} chunks do not cut into {of} x {k}");
        let range = total / of;
        let mut scope = self.scope.clone();
        (scope.lo, scope.step, scope.parts) = (scope.lo + i * range, range / k, k);
        self.within(scope, stage);
    }

    /// Puts the ops of `stage` into lane `lane` and its messages on `port`. Lanes run concurrently.
    pub fn lane(&mut self, lane: usize, port: u8, stage: impl FnOnce(&mut Builder)) {
        let scope = Scope { lane, port, ..self.scope.clone() };
        self.within(scope, stage);
    }

    fn within(&mut self, scope: Scope, stage: impl FnOnce(&mut Builder)) {
        let outer = std::mem::replace(&mut self.scope, scope);
        stage(self);
        self.scope = outer;
    }

    /// My number among the members.
    pub fn me(&self) -> usize {
        self.scope.me
    }

    /// Number of members.
    pub fn size(&self) -> usize {
        self.scope.members.len()
    }

    /// Number of parts that the range at hand is cut into.
    pub fn count(&self) -> usize {
        self.scope.parts as usize
    }

    /// Rank of a member.
    pub fn rank(&self, member: usize) -> usize {
        self.scope.members[member] as usize
    }

    /// This rank has `part` before the collective.
    fn given(&self, part: usize) -> bool {
        self.collective.sent(self.n, self.root, self.rank, self.block(part)).is_some()
    }

    /// This rank gets the result of `part`.
    fn wanted(&self, part: usize) -> bool {
        self.collective.received(self.n, self.root, self.rank, self.block(part)).is_some()
    }

    // ---- ops ----

    /// Sends the running value of `part` to the members `to`, one write for all of them.
    ///
    /// Right after the op that stored this value, the send becomes part of that op.
    pub fn send(&mut self, part: usize, to: &[usize]) {
        if to.is_empty() {
            return;
        }
        let span = self.span(part);
        let cur = self.cur(part);
        let dst = self.send_arg(to);
        let lane = self.lane_mut();
        if let Some(last) = lane.ops.last().copied()
            && (last.at, last.len) == span
            && lane.dsts(&last).contains(&local(ArgKind::Out))
        {
            lane.args.push(dst);
            lane.ops.last_mut().expect("just seen").ndst += 1;
            return;
        }
        self.push(span, &[cur], &[dst], false);
    }

    /// Copies `part` from `In` to `Out`, if this rank has it before and after and has not stored it yet.
    /// (In place that is the same memory, and nothing to do at run time.)
    pub fn keep(&mut self, part: usize) {
        if self.given(part) && self.wanted(part) && self.cur(part).kind == ArgKind::In {
            self.emit(part, &[Src::Mine], true, &[], false);
        }
    }

    /// Receives the finished value of `part` from a member and stores it.
    pub fn recv(&mut self, part: usize, from: usize) {
        self.emit(part, &[Src::From(from)], true, &[], false);
    }

    /// Receives the finished value of `part` from a member, stores it if this rank gets the part, and
    /// passes it on to the members `to`.
    pub fn pass(&mut self, part: usize, from: usize, to: &[usize]) {
        self.emit(part, &[Src::From(from)], self.wanted(part), to, false);
    }

    /// Folds `srcs` from left to right and stores the result as the running value of `part`. `last`
    /// says that it now holds every member's value.
    pub fn fold(&mut self, part: usize, srcs: &[Src], last: bool) {
        self.emit(part, srcs, true, &[], last);
    }

    /// Folds `srcs` and passes the result on to `to` without keeping it. `last` as in [`Builder::fold`].
    pub fn relay(&mut self, part: usize, srcs: &[Src], to: usize, last: bool) {
        self.emit(part, srcs, false, &[to], last);
    }

    /// `In` or `Out`, where the running value of `part` is.
    fn cur(&self, part: usize) -> Arg {
        let (at, len) = self.span(part);
        let stored = (at..at + len).filter(|chunk| self.stored.contains(chunk)).count();
        assert!(stored == 0 || stored == len as usize, "the running value of one part is in two places");
        local(if stored > 0 { ArgKind::Out } else { ArgKind::In })
    }

    fn span(&self, part: usize) -> (u32, u32) {
        let s = &self.scope;
        assert!(part < s.parts as usize, "part {part} of {}", s.parts);
        (s.lo + part as u32 * s.step, s.step)
    }

    fn block(&self, part: usize) -> usize {
        (self.span(part).0 / self.chunks) as usize
    }

    fn emit(&mut self, part: usize, srcs: &[Src], store: bool, to: &[usize], last: bool) {
        let span = self.span(part);
        let args: Vec<Arg> = srcs
            .iter()
            .map(|src| match *src {
                Src::Mine => self.cur(part),
                Src::From(member) => {
                    let ix = self.peers(&[member]);
                    Arg { kind: ArgKind::Recv, port: self.scope.port, ix, count: 0 }
                }
            })
            .collect();
        let mut dsts = Vec::with_capacity(2);
        if store {
            self.stored.extend(span.0..span.0 + span.1);
            dsts.push(local(ArgKind::Out));
        }
        if !to.is_empty() {
            dsts.push(self.send_arg(to));
        }
        let complete = last && self.scope.whole && self.collective.completes();
        self.push(span, &args, &dsts, complete);
    }

    fn send_arg(&mut self, to: &[usize]) -> Arg {
        let ix = self.peers(to);
        Arg { kind: ArgKind::Send, port: self.scope.port, ix, count: to.len() as u16 }
    }

    /// Index of a run of `members` in the lane's peers, which is added where it is missing. (A peer may
    /// then be there twice.)
    fn peers(&mut self, members: &[usize]) -> u16 {
        let ranks: Vec<u32> = members.iter().map(|&m| self.scope.members[m]).collect();
        let peers = &mut self.lane_mut().peers;
        let ix = peers.windows(ranks.len()).position(|run| run == ranks).unwrap_or_else(|| {
            let shared = (0..ranks.len()).rev().find(|&k| peers.ends_with(&ranks[..k])).unwrap_or(0);
            let start = peers.len() - shared;
            peers.extend_from_slice(&ranks[shared..]);
            start
        });
        u16::try_from(ix).expect("at most 65536 peers in a lane")
    }

    fn push(&mut self, (at, len): (u32, u32), srcs: &[Arg], dsts: &[Arg], complete: bool) {
        let lane = self.lane_mut();
        let arg = lane.args.len() as u32;
        lane.args.extend_from_slice(srcs);
        lane.args.extend_from_slice(dsts);
        lane.ops.push(Op { at, len, arg, nsrc: srcs.len() as u16, ndst: dsts.len() as u16, complete });
    }

    fn lane_mut(&mut self) -> &mut Lane {
        let ix = self.scope.lane;
        if self.lanes.len() <= ix {
            self.lanes.resize_with(ix + 1, Lane::default);
        }
        &mut self.lanes[ix]
    }
}

fn local(kind: ArgKind) -> Arg {
    Arg { kind, port: 0, ix: 0, count: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_joins_the_store_before_it_and_no_other() {
        let mut b = Builder::new(Collective::AllReduce, 0, 0, 3, 4);
        b.parts(2, |b| {
            b.send(0, &[1]);
            b.fold(1, &[Src::Mine, Src::From(1)], true);
            b.send(1, &[1, 2]); // joins
            b.zoom(1, 2, 2, |b| b.send(1, &[2])); // half of what was stored: its own op
            b.recv(0, 1);
            b.send(1, &[1]); // another part was stored last: its own op
        });
        let p = b.finish();
        let lane = &p.lanes[0];
        let shape: Vec<(u16, u16, bool)> =
            lane.ops.iter().map(|op| (op.nsrc, op.ndst, op.complete)).collect();
        assert_eq!(shape, [(1, 1, false), (2, 2, true), (1, 1, false), (1, 1, false), (1, 1, false)]);
        assert_eq!(lane.dsts(&lane.ops[1])[1], Arg { kind: ArgKind::Send, port: 0, ix: 0, count: 2 });
        assert_eq!(lane.peers, [1, 2]);
        assert_eq!((lane.srcs(&lane.ops[2]), lane.ops[2].at), (&[local(ArgKind::Out)][..], 3));
    }

    #[test]
    fn scopes_number_members_and_cut_ranges() {
        let mut b = Builder::new(Collective::AllReduce, 0, 7, 9, 12);
        b.on(&[3, 5], true, |_| panic!("rank 7 is not a member"));
        b.on(&[2, 7, 4], false, |b| {
            assert_eq!((b.me(), b.size()), (1, 3));
            b.zoom(2, 3, 2, |b| {
                assert_eq!((b.count(), b.span(1)), (2, (10, 2)));
                b.fold(1, &[Src::From(2), Src::Mine], true);
                assert_eq!(b.cur(1), local(ArgKind::Out));
                assert_eq!(b.cur(0), local(ArgKind::In));
            });
        });
        let p = b.finish();
        assert_eq!(p.lanes[0].peers, [4]);
        assert!(!p.lanes[0].ops[0].complete, "three of nine ranks do not complete a value");
    }

    #[test]
    fn what_is_not_wanted_is_only_passed_on() {
        // Rank 1 of 3 gathers for rank 0: it has block 1, and gets none.
        let mut b = Builder::new(Collective::Gather, 0, 1, 3, 1);
        b.parts(3, |b| {
            b.send(1, &[0]);
            b.keep(1);
            b.pass(2, 2, &[0]);
        });
        let lane = &b.finish().lanes[0];
        let kinds: Vec<Vec<ArgKind>> = lane
            .ops
            .iter()
            .map(|op| lane.srcs(op).iter().chain(lane.dsts(op)).map(|a| a.kind).collect())
            .collect();
        assert_eq!(kinds, [[ArgKind::In, ArgKind::Send], [ArgKind::Recv, ArgKind::Send]]);
        // The root keeps its own.
        let mut b = Builder::new(Collective::Gather, 0, 0, 3, 1);
        b.parts(3, |b| b.keep(0));
        assert_eq!(b.finish().lanes[0].ops.len(), 1);
    }

    #[test]
    fn one_rank_copies() {
        for (collective, complete) in [(Collective::AllReduce, true), (Collective::AllToAll, false)] {
            let mut b = Builder::new(collective, 0, 0, 1, 5);
            b.alone();
            let p = b.finish();
            assert_eq!(p.lanes.len(), 1);
            assert_eq!(p.lanes[0].ops, [Op { at: 0, len: 5, arg: 0, nsrc: 1, ndst: 1, complete }]);
        }
        let mut b = Builder::new(Collective::Exscan, 0, 0, 1, 1);
        b.alone();
        assert!(b.finish().lanes.is_empty());
    }
}

//! Schedules written by hand, for what the executor must do whether or not a listed algorithm needs it.

use graccl::Collective;
use graccl::schedule::{Arg, ArgKind, Lane, Op, Program};

use super::{Schedule, Source};

pub const HAND: [Schedule; 3] = [
    Schedule {
        collective: Collective::Gather,
        name: "chain of relays",
        min_depth: 1,
        hierarchical: false,
        ref_safe: true,
        reply_safe: false,
        packs: false,
        source: Source::Hand(relays),
    },
    Schedule {
        collective: Collective::ReduceScatter,
        name: "ring that keeps sums in scratch",
        min_depth: 1,
        hierarchical: false,
        ref_safe: false,
        reply_safe: false,
        packs: false,
        source: Source::Hand(scratch),
    },
    Schedule {
        collective: Collective::Broadcast,
        name: "to all from the input",
        min_depth: 1,
        hierarchical: false,
        ref_safe: true,
        reply_safe: false,
        packs: false,
        source: Source::Hand(spread),
    },
];

/// An operand: `x` is a scratch image, or a peer.
#[derive(Clone, Copy)]
enum On {
    In,
    Out,
    Scratch(u16),
    Recv(usize),
    Send(usize),
}

struct Writer {
    program: Program,
    n: usize,
}

impl Writer {
    fn new(n: usize, blocks: usize, chunks: u32, scratch: u32) -> Writer {
        let lane = Lane { peers: (0..n as u32).collect(), ..Lane::default() };
        Writer { program: Program { lanes: vec![lane], blocks: blocks as u32, chunks, scratch }, n }
    }

    /// Chunks `at..at + len` of a block.
    fn op(&mut self, (block, at, len): (usize, u32, u32), srcs: &[On], dsts: &[On], complete: bool) {
        let chunks = self.program.chunks;
        let lane = &mut self.program.lanes[0];
        let arg = lane.args.len() as u32;
        lane.args.extend(srcs.iter().chain(dsts).map(|on| {
            let (kind, ix, count) = match *on {
                On::In => (ArgKind::In, 0, 0),
                On::Out => (ArgKind::Out, 0, 0),
                On::Scratch(image) => (ArgKind::Scratch, image, 0),
                On::Recv(peer) => (ArgKind::Recv, peer as u16, 0),
                On::Send(peer) => (ArgKind::Send, peer as u16, 1),
            };
            Arg { kind, port: 0, ix, count }
        }));
        let at = block as u32 * chunks + at;
        let (nsrc, ndst) = (srcs.len() as u16, dsts.len() as u16);
        lane.ops.push(Op { at, len, arg, nsrc, ndst, complete });
    }

    /// A block's chunks: all in one op where the block's number is odd, one at a time where it is even.
    fn ops(&mut self, block: usize, srcs: &[On], dsts: &[On]) {
        let chunks = self.program.chunks;
        let len = if block % 2 == 1 { chunks } else { 1 };
        for at in (0..chunks).step_by(len as usize) {
            self.op((block, at, len), srcs, dsts, false);
        }
    }
}

/// Gather on rank 0: every rank passes on what the ranks above it send, and has no memory for it.
fn relays(rank: usize, n: usize) -> Program {
    let mut w = Writer::new(n, n, 3, 0);
    if rank == 0 {
        w.ops(0, &[On::In], &[On::Out]);
    } else {
        w.ops(rank, &[On::In], &[On::Send(rank - 1)]);
    }
    for block in rank + 1..n {
        let to = if rank == 0 { On::Out } else { On::Send(rank - 1) };
        w.ops(block, &[On::Recv(rank + 1)], &[to]);
    }
    w.program
}

/// Reduce-scatter around the ring. What is passed on is put into one image and copied to the other first.
fn scratch(rank: usize, n: usize) -> Program {
    let mut w = Writer::new(n, n, 2, 2);
    let (next, before) = (On::Send((rank + 1) % n), On::Recv((rank + n - 1) % n));
    if n == 1 {
        w.op((0, 0, 2), &[On::In], &[On::Out], true);
        return w.program;
    }
    for step in 1..n {
        let block = (rank + n - step) % n;
        let from = if step == 1 {
            On::In
        } else {
            // As it came from the rank before, on the way to this block's own.
            w.op((block, 0, 2), &[before, On::In], &[On::Scratch(0)], false);
            w.op((block, 0, 1), &[On::Scratch(0)], &[On::Scratch(1)], false);
            w.op((block, 1, 1), &[On::Scratch(0)], &[On::Scratch(1)], false);
            On::Scratch(1)
        };
        w.op((block, 0, 2), &[from], &[next], false);
    }
    w.op((rank, 0, 2), &[before, On::In], &[On::Out], true);
    w.program
}

/// Broadcast from rank 0, which sends to all others in one op that stores nothing.
fn spread(rank: usize, n: usize) -> Program {
    let mut w = Writer::new(n, 1, 2, 0);
    if rank == 0 {
        let to: Vec<On> = (1..w.n).map(On::Send).collect();
        if n > 1 {
            w.op((0, 0, 1), &[On::In], &to, false);
            w.op((0, 1, 1), &[On::In], &to, false);
        }
        w.op((0, 0, 2), &[On::In], &[On::Out], false);
    } else {
        w.op((0, 0, 1), &[On::Recv(0)], &[On::Out], false);
        w.op((0, 1, 1), &[On::Recv(0)], &[On::Out], false);
    }
    w.program
}

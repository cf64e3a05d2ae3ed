//! All ranks' programs wired together: channels resolved, and checked for what needs no playing.

use std::collections::HashMap;

use super::collective::Collective;
use super::op::{Arg, ArgKind, Lane, Op, Program};
use super::verify::{Fault, FaultKind};

/// Ports that schedules may use; the rest is for messages from point to point.
pub const PORTS: u8 = 7;

/// Memory regions of a rank: the input, the output, then the scratch images.
pub const IN: u32 = 0;
pub const OUT: u32 = 1;

/// A resolved operand; a send to several peers has become one for each.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    /// A span of this region, from the op's chunk.
    Local(u32),
    /// The next message of this channel. `reply` is for sends: the op's source that is the message
    /// coming the other way on the same port.
    Message { channel: u32, reply: Option<u32> },
}

#[derive(Clone, Copy, Debug)]
pub struct NetOp {
    /// Index in the rank's lane.
    pub index: u32,
    /// First chunk and number of chunks, the same for all operands.
    pub at: u32,
    pub len: u32,
    pub complete: bool,
    /// Region that a receiver may read instead of a copy of this op's messages.
    pub lend: Option<u32>,
    first: u32,
    nsrc: u32,
    ndst: u32,
}

#[derive(Debug)]
pub struct NetLane {
    pub rank: usize,
    /// Index in the rank's program.
    pub index: usize,
    pub ops: Vec<NetOp>,
    operands: Vec<Operand>,
}

impl NetLane {
    pub fn srcs(&self, op: &NetOp) -> &[Operand] {
        &self.operands[op.first as usize..][..op.nsrc as usize]
    }
    pub fn dsts(&self, op: &NetOp) -> &[Operand] {
        &self.operands[(op.first + op.nsrc) as usize..][..op.ndst as usize]
    }
}

/// A channel: the lanes at its two ends (indices in [`Net::lanes`]).
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    pub from: u32,
    pub to: u32,
}

pub struct Net<'a> {
    pub programs: &'a [Program],
    pub collective: Collective,
    pub root: usize,
    /// First chunk of the only block that is played; see [`Net::block`].
    pub base: u32,
    /// Chunks of a block.
    pub chunks: u32,
    pub scratch: u32,
    pub lanes: Vec<NetLane>,
    pub channels: Vec<Channel>,
    /// Messages of one tile.
    pub messages: usize,
}

/// Both ends of a channel while it is being wired: (lane, op) of every send and of every receive.
#[derive(Default)]
struct Ends {
    sends: Vec<(u32, u32)>,
    recvs: Vec<(u32, u32)>,
}

struct Wiring {
    ids: HashMap<(u32, u32, u8), u32>,
    keys: Vec<(u32, u32, u8)>,
    ends: Vec<Ends>,
}

impl Wiring {
    fn channel(&mut self, from: u32, to: u32, port: u8) -> u32 {
        let key = (from, to, port);
        *self.ids.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.ends.push(Ends::default());
            self.ends.len() as u32 - 1
        })
    }
}

impl<'a> Net<'a> {
    /// Wires the programs, or says what is wrong: operands that make no sense, spans that leave their
    /// block, blocks that are not in the rank's buffers, peers that do not exist, sends and receives that do not match
    /// one to one with the same chunks, channels with two lanes at one end.
    pub fn new(collective: Collective, root: usize, programs: &'a [Program]) -> Result<Net<'a>, Fault> {
        let Some(&Program { chunks, scratch, .. }) = programs.first() else {
            return Err(Fault::whole(FaultKind::Malformed, 0, "there are no ranks".into()));
        };
        let mut wiring = Wiring { ids: HashMap::new(), keys: Vec::new(), ends: Vec::new() };
        let mut net = Net {
            programs,
            collective,
            root,
            base: 0,
            chunks,
            scratch,
            lanes: Vec::new(),
            channels: Vec::new(),
            messages: 0,
        };
        let blocks = collective.blocks(programs.len());
        for (rank, program) in programs.iter().enumerate() {
            if chunks == 0 || (program.chunks, program.scratch) != (chunks, scratch) {
                let what = "cuts blocks into no chunks, or differently from rank 0".into();
                return Err(Fault::whole(FaultKind::Malformed, rank, what));
            }
            if program.blocks as usize != blocks || blocks * chunks as usize > u32::MAX as usize {
                let what = format!("has {} blocks; {} has {blocks}", program.blocks, collective.name());
                return Err(Fault::whole(FaultKind::Malformed, rank, what));
            }
            for index in 0..program.lanes.len() {
                let lane = net.wire_lane(&mut wiring, rank, index)?;
                net.lanes.push(lane);
            }
        }
        for (key, ends) in wiring.keys.iter().zip(&wiring.ends) {
            let channel = net.match_ends(*key, ends)?;
            net.channels.push(channel);
            net.messages += ends.sends.len();
        }
        Ok(net)
    }

    /// The blocks one by one, each with the ops that are left when all others are dropped.
    pub fn blocks(&self) -> impl Iterator<Item = Net<'a>> {
        let mut ops: HashMap<u32, Vec<(usize, usize)>> = HashMap::new();
        for (l, lane) in self.lanes.iter().enumerate() {
            for (o, op) in lane.ops.iter().enumerate() {
                ops.entry(op.at / self.chunks).or_default().push((l, o));
            }
        }
        let blocks = self.collective.blocks(self.programs.len()) as u32;
        (0..blocks).map(move |block| self.block(block, ops.get(&block).map_or(&[], Vec::as_slice)))
    }

    fn block(&self, block: u32, ops: &[(usize, usize)]) -> Net<'a> {
        let mut net = Net { base: block * self.chunks, lanes: Vec::new(), channels: Vec::new(), ..*self };
        // The lanes of `net` in this one; its channels' numbers.
        let (mut lanes, mut channels): (Vec<usize>, HashMap<u32, u32>) = Default::default();
        for &(l, o) in ops {
            let lane = &self.lanes[l];
            if lanes.last() != Some(&l) {
                lanes.push(l);
                let (rank, index) = (lane.rank, lane.index);
                net.lanes.push(NetLane { rank, index, ops: Vec::new(), operands: Vec::new() });
            }
            let here = net.lanes.last_mut().expect("just pushed");
            let mut operand = |o: &Operand| match *o {
                Operand::Local(region) => Operand::Local(region),
                Operand::Message { channel, reply } => {
                    let next = channels.len() as u32;
                    Operand::Message { channel: *channels.entry(channel).or_insert(next), reply }
                }
            };
            let op = lane.ops[o];
            let first = here.operands.len() as u32;
            here.operands.extend(lane.srcs(&op).iter().map(&mut operand));
            here.operands.extend(lane.dsts(&op).iter().map(&mut operand));
            here.ops.push(NetOp { first, ..op });
        }
        let mut ends: Vec<(u32, Channel)> = channels
            .iter()
            .map(|(&old, &new)| {
                // Both ends have an op of this block, since they use the same chunks.
                let lane = |l: u32| lanes.binary_search(&(l as usize)).unwrap_or(0) as u32;
                let Channel { from, to } = self.channels[old as usize];
                (new, Channel { from: lane(from), to: lane(to) })
            })
            .collect();
        ends.sort_unstable_by_key(|(new, _)| *new);
        net.channels = ends.into_iter().map(|(_, channel)| channel).collect();
        net
    }

    fn wire_lane(&self, wiring: &mut Wiring, rank: usize, index: usize) -> Result<NetLane, Fault> {
        let lane = &self.programs[rank].lanes[index];
        let mut wired = NetLane { rank, index, ops: Vec::new(), operands: Vec::new() };
        for (i, op) in lane.ops.iter().enumerate() {
            let end = op.arg as usize + op.nsrc as usize + op.ndst as usize;
            if end > lane.args.len() || op.nsrc == 0 || op.ndst == 0 || op.len == 0 {
                let what = "has no source, no destination, no length, or operands that are not there";
                return Err(Fault::whole(FaultKind::Malformed, rank, format!("lane {index}, op {i} {what}")));
            }
            self.wire_op(wiring, &mut wired, lane, op)
                .map_err(|what| Fault::at(self.programs, FaultKind::Malformed, (rank, index, i), what))?;
        }
        Ok(wired)
    }

    /// Adds an op to `wired`, or says what is malformed.
    fn wire_op(&self, wiring: &mut Wiring, wired: &mut NetLane, lane: &Lane, op: &Op) -> Result<(), String> {
        let at = op.at;
        let (block, n) = ((at / self.chunks) as usize, self.programs.len());
        if block >= self.collective.blocks(n) || op.len > self.chunks - at % self.chunks {
            return Err(format!("leaves its block of {} chunks", self.chunks));
        }
        if op.complete && !self.collective.completes() {
            return Err(format!("completes a value, which {} never does", self.collective.name()));
        }
        let (rank, here) = (wired.rank as u32, (self.lanes.len() as u32, wired.ops.len() as u32));
        let mut srcs = Vec::with_capacity(op.nsrc as usize);
        for src in lane.srcs(op) {
            srcs.push(match src.kind {
                ArgKind::Send => return Err("has a send as a source".into()),
                ArgKind::Recv if src.port >= PORTS => return Err(format!("uses port {}", src.port)),
                ArgKind::Recv => {
                    let channel = wiring.channel(self.peer(lane, src.ix as usize, rank)?, rank, src.port);
                    wiring.ends[channel as usize].recvs.push(here);
                    Operand::Message { channel, reply: None }
                }
                _ => Operand::Local(self.region(src, wired.rank, block)?),
            });
        }
        let mut dsts = Vec::with_capacity(op.ndst as usize);
        for dst in lane.dsts(op) {
            match dst.kind {
                ArgKind::In => return Err("writes the input".into()),
                ArgKind::Recv => return Err("has a receive as a destination".into()),
                ArgKind::Send if dst.port >= PORTS => return Err(format!("uses port {}", dst.port)),
                ArgKind::Send if dst.count == 0 => return Err("sends to nobody".into()),
                ArgKind::Send => {
                    for k in 0..dst.count as usize {
                        let peer = self.peer(lane, dst.ix as usize + k, rank)?;
                        let channel = wiring.channel(rank, peer, dst.port);
                        wiring.ends[channel as usize].sends.push(here);
                        let back = wiring.channel(peer, rank, dst.port);
                        let asks =
                            |s: &Operand| matches!(s, Operand::Message { channel, .. } if *channel == back);
                        let reply = srcs.iter().position(asks).map(|src| src as u32);
                        dsts.push(Operand::Message { channel, reply });
                    }
                }
                _ => dsts.push(Operand::Local(self.region(dst, wired.rank, block)?)),
            }
        }
        if repeats(&srcs, false) || repeats(&dsts, true) {
            return Err("uses a channel twice, or writes the same span twice".into());
        }
        let lend = match srcs[..] {
            _ if dsts.iter().any(|d| matches!(d, Operand::Local(OUT))) => Some(OUT),
            [Operand::Local(region)] => Some(region),
            _ => None,
        };
        let (first, nsrc, ndst) = (wired.operands.len() as u32, srcs.len() as u32, dsts.len() as u32);
        wired.ops.push(NetOp {
            index: here.1,
            at,
            len: op.len,
            complete: op.complete,
            lend,
            first,
            nsrc,
            ndst,
        });
        wired.operands.append(&mut srcs);
        wired.operands.append(&mut dsts);
        Ok(())
    }

    fn peer(&self, lane: &Lane, ix: usize, rank: u32) -> Result<u32, String> {
        match lane.peers.get(ix) {
            None => Err("names a peer that is not in the lane's list".into()),
            Some(&p) if p as usize >= self.programs.len() => {
                Err(format!("names rank {p}, which does not exist"))
            }
            Some(&p) if p == rank => Err("sends to or receives from itself".into()),
            Some(&p) => Ok(p),
        }
    }

    fn region(&self, arg: &Arg, rank: usize, block: usize) -> Result<u32, String> {
        let (c, n, root) = (self.collective, self.programs.len(), self.root);
        match arg.kind {
            ArgKind::In if c.sent(n, root, rank, block).is_none() => {
                Err(format!("reads block {block}, which is not in its input"))
            }
            ArgKind::In => Ok(IN),
            ArgKind::Scratch if arg.ix as u32 >= self.scratch => Err(format!("uses scratch {}", arg.ix)),
            ArgKind::Scratch => Ok(2 + arg.ix as u32),
            _ if c.received(n, root, rank, block).is_none() => {
                Err(format!("uses block {block} of its output, which it does not get"))
            }
            _ => Ok(OUT),
        }
    }

    fn match_ends(&self, key: (u32, u32, u8), ends: &Ends) -> Result<Channel, Fault> {
        let (src, dst, port) = key;
        let name = format!("the channel from rank {src} to rank {dst}, port {port}");
        let unmatched = |end: (u32, u32), what: String| {
            let lane = &self.lanes[end.0 as usize];
            Fault::at(self.programs, FaultKind::Unmatched, (lane.rank, lane.index, end.1 as usize), what)
        };
        for list in [&ends.sends, &ends.recvs] {
            if let Some(other) = list.iter().find(|end| end.0 != list[0].0) {
                return Err(unmatched(*other, format!("shares an end of {name} with another lane")));
            }
        }
        for (send, recv) in ends.sends.iter().zip(&ends.recvs) {
            let op = |end: &(u32, u32)| &self.lanes[end.0 as usize].ops[end.1 as usize];
            let (s, r) = (op(send), op(recv));
            if (s.at, s.len) != (r.at, r.len) {
                let what = format!(
                    "receives {} chunks from {} on {name}, but {} chunks from {} are sent",
                    r.len, r.at, s.len, s.at
                );
                return Err(unmatched(*recv, what));
            }
        }
        if let Some(extra) = ends.sends.get(ends.recvs.len()) {
            return Err(unmatched(*extra, format!("sends what nobody receives on {name}")));
        }
        if let Some(extra) = ends.recvs.get(ends.sends.len()) {
            return Err(unmatched(*extra, format!("receives what nobody sends on {name}")));
        }
        // A channel that only the look-up for a reply has named carries nothing.
        let end = |list: &[(u32, u32)]| list.first().map_or(0, |end| end.0);
        Ok(Channel { from: end(&ends.sends), to: end(&ends.recvs) })
    }
}

/// Some channel, or with `memory` some span, is there twice.
fn repeats(operands: &[Operand], memory: bool) -> bool {
    let name = |operand: &Operand| match *operand {
        Operand::Message { channel, .. } => Some((true, channel)),
        Operand::Local(region) => memory.then_some((false, region)),
    };
    let mut names: Vec<(bool, u32)> = operands.iter().filter_map(name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

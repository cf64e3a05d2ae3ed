//! All ranks' programs wired together: channels resolved, and checked for what needs no playing.

use std::collections::HashMap;

use super::op::{Arg, ArgKind, Lane, Op, Program};
use super::verify::{Fault, FaultKind};

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
    /// Of all blocks.
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
    /// buffer or differ within an op, peers that do not exist, sends and receives that do not match
    /// one to one with the same chunks, channels with two lanes at one end.
    pub fn new(programs: &'a [Program]) -> Result<Net<'a>, Fault> {
        let Some(&Program { blocks, chunks: each, scratch, .. }) = programs.first() else {
            return Err(Fault::whole(FaultKind::Malformed, 0, "there are no ranks".into()));
        };
        let mut wiring = Wiring { ids: HashMap::new(), keys: Vec::new(), ends: Vec::new() };
        let chunks = blocks.saturating_mul(each);
        let mut net = Net { programs, chunks, scratch, lanes: Vec::new(), channels: Vec::new(), messages: 0 };
        for (rank, program) in programs.iter().enumerate() {
            if chunks == 0 || (program.blocks, program.chunks, program.scratch) != (blocks, each, scratch) {
                let what = "cuts the buffer into no chunks, or differently from rank 0".into();
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
        if at.checked_add(op.len).is_none_or(|end| end > self.chunks) {
            return Err(format!("runs past the end, {} chunks", self.chunks));
        }
        let each = self.programs[0].chunks;
        if at % each + op.len > each {
            return Err(format!("spans blocks, which have {each} chunks each"));
        }
        let (rank, here) = (wired.rank as u32, (self.lanes.len() as u32, wired.ops.len() as u32));
        let mut srcs = Vec::with_capacity(op.nsrc as usize);
        for src in lane.srcs(op) {
            srcs.push(match src.kind {
                ArgKind::Send => return Err("has a send as a source".into()),
                ArgKind::Recv => {
                    let channel = wiring.channel(self.peer(lane, src.ix as usize, rank)?, rank, src.port);
                    wiring.ends[channel as usize].recvs.push(here);
                    Operand::Message { channel, reply: None }
                }
                _ => Operand::Local(self.region(src)?),
            });
        }
        let mut dsts = Vec::with_capacity(op.ndst as usize);
        for dst in lane.dsts(op) {
            match dst.kind {
                ArgKind::In => return Err("writes the input".into()),
                ArgKind::Recv => return Err("has a receive as a destination".into()),
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
                _ => dsts.push(Operand::Local(self.region(dst)?)),
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
        wired.ops.push(NetOp { at, len: op.len, complete: op.complete, lend, first, nsrc, ndst });
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

    fn region(&self, arg: &Arg) -> Result<u32, String> {
        match arg.kind {
            ArgKind::In => Ok(IN),
            ArgKind::Scratch if arg.ix as u32 >= self.scratch => Err(format!("uses scratch {}", arg.ix)),
            ArgKind::Scratch => Ok(2 + arg.ix as u32),
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

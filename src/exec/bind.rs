//! Binding: from ranks and chunks of many blocks to link numbers and chunks of this rank's blocks.

use super::Tiling;
use crate::schedule::{Arg, ArgKind, Lane, Op, Program};
use crate::{Error, Result};

/// An operand of a bound op.
#[derive(Clone, Copy, Debug)]
pub(super) struct BoundArg {
    pub kind: ArgKind,
    /// A send to a peer that the same op receives from: the message may go where that one lies.
    pub reply: bool,
    /// A message in a [`Wire`](crate::reduce::Wire) form.
    pub packed: bool,
    /// Link of way 0 (`Recv`, `Send`); way w uses the w-th after it. Scratch image (`Scratch`).
    pub link: u32,
}

/// What an op looks like: common forms have a short way through the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One local source, one message.
    Send,
    /// One message, stored to one local span.
    Store,
    /// A local span and a message (in either order), folded into one local span.
    Fold,
    General,
    /// Some messages are in a wire form, or others will get the value so.
    Packed,
}

/// The local span of an op that holds what the op sends, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lend {
    No,
    /// The only source.
    Src,
    /// The first destination: a span of `Out`.
    Dst,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BoundOp {
    /// Index in [`Bound::blocks`].
    pub block: u32,
    /// First chunk in the block, and number of chunks.
    pub at: u32,
    pub len: u32,
    pub arg: u32,
    /// Index of the op in the schedule's lane.
    pub index: u32,
    pub nsrc: u16,
    /// Local destinations come first, and spans of `Out` first among them; then the messages.
    pub nlocal: u16,
    pub nsend: u16,
    pub form: Form,
    pub lend: Lend,
    pub complete: bool,
}

#[derive(Clone, Debug)]
pub(super) struct BoundLane {
    pub ops: Vec<BoundOp>,
    pub args: Vec<BoundArg>,
}

/// Distance of operands of this size in a [`Pack`](super::Pack)'s working memory: on cache lines, and not on
/// the same place of a page.
pub(super) fn pack_stride(bytes: usize) -> usize {
    bytes.next_multiple_of(64) + 320
}

/// A rank's program, bound to link numbers.
#[derive(Clone, Debug)]
pub struct Bound {
    pub(super) lanes: Vec<BoundLane>,
    pub(super) ways: u32,
    pub(super) chunks: u32,
    blocks: Vec<u32>,
    /// All links that the program uses, all ways.
    pub links: Vec<u32>,
    /// Most sources / destinations of an op.
    pub(super) operands: usize,
    /// Most chunks of an op.
    longest: u32,
}

/// The block of an op.
fn block_of(program: &Program, op: &Op) -> Result<u32> {
    let chunks = program.chunks.max(1);
    let block = op.at / chunks;
    if op.len > chunks - op.at % chunks || block >= program.blocks {
        return Err(Error::internal(format!(
            "an op of a schedule has chunks {} to {}",
            op.at,
            u64::from(op.at) + u64::from(op.len)
        ))
        .hint(format!("it must stay in one of {} blocks of {chunks} chunks", program.blocks)));
    }
    Ok(block)
}

fn is_local(a: &Arg) -> bool {
    !matches!(a.kind, ArgKind::Recv | ArgKind::Send)
}

/// Which peers' messages are in a wire form.
pub type Packs<'a> = Option<&'a dyn Fn(u32) -> bool>;

fn bind_lane(
    lane: &Lane,
    place: &mut dyn FnMut(&Op) -> Result<(u32, u32)>,
    link: &mut dyn FnMut(u32, u8) -> Result<u32>,
    packs: Packs,
) -> Result<BoundLane> {
    let packed = |peer: u32| packs.is_some_and(|packs| packs(peer));
    let mut out = BoundLane { ops: Vec::with_capacity(lane.ops.len()), args: Vec::new() };
    for (index, op) in lane.ops.iter().enumerate() {
        let (block, at) = place(op)?;
        let arg = out.args.len() as u32;
        let local = |a: &Arg| BoundArg { kind: a.kind, reply: false, packed: false, link: u32::from(a.ix) };
        let mut froms = Vec::new();
        for a in lane.srcs(op) {
            if is_local(a) {
                out.args.push(local(a));
            } else {
                let peer = lane.peers[a.ix as usize];
                let l = link(peer, a.port)?;
                froms.push(l);
                out.args.push(BoundArg { kind: a.kind, reply: false, packed: packed(peer), link: l });
            }
        }
        let mut locals: Vec<&Arg> = lane.dsts(op).iter().filter(|a| is_local(a)).collect();
        locals.sort_by_key(|a| a.kind != ArgKind::Out);
        out.args.extend(locals.iter().map(|a| local(a)));
        let mut nsend = 0;
        for a in lane.dsts(op).iter().filter(|a| a.kind == ArgKind::Send) {
            // One write with many readers pays nowhere here: a line that several ranks only read costs its
            // owner 7-28 ns to rewrite. Every reader gets its own message.
            for &peer in &lane.peers[a.ix as usize..(a.ix as usize + a.count as usize)] {
                let l = link(peer, a.port)?;
                let reply = froms.contains(&l);
                out.args.push(BoundArg { kind: a.kind, reply, packed: packed(peer), link: l });
                nsend += 1;
            }
        }
        let nlocal = locals.len() as u16;
        // An op that completes a value may change it (averages), even with one source.
        let copies = op.nsrc == 1 && !op.complete;
        let any_packed = out.args[arg as usize..].iter().any(|a| a.packed);
        let form = match (op.nsrc, froms.len(), nlocal, nsend) {
            _ if any_packed || packs.is_some() && op.complete => Form::Packed,
            (1, 0, 0, 1) if copies => Form::Send,
            (1, 1, 1, 0) if copies => Form::Store,
            (2, 1, 1, 0) => Form::Fold,
            _ => Form::General,
        };
        let lend = match locals.first() {
            Some(a) if a.kind == ArgKind::Out => Lend::Dst,
            _ if copies && froms.is_empty() => Lend::Src,
            _ => Lend::No,
        };
        out.ops.push(BoundOp {
            block,
            at,
            len: op.len,
            arg,
            index: index as u32,
            nsrc: op.nsrc,
            nlocal,
            nsend,
            form,
            lend,
            complete: op.complete,
        });
    }
    Ok(out)
}

impl Bound {
    /// Tiles worked on at a time.
    pub fn ways(&self) -> u32 {
        self.ways
    }

    /// Bytes of working memory for a [`Pack`](super::Pack) of a call with this tiling.
    pub fn pack_bytes(&self, tiling: &Tiling) -> usize {
        (self.operands + 2) * pack_stride(tiling.span_bytes(self.longest))
    }

    /// The blocks that this rank's program touches, ascending.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Binds `program` for `ways` tiles at a time. `link(peer, port)` is the number of the link of
    /// way 0 to that peer on that port; those of the other ways must follow it. With `packs`, its launches
    /// have a [`Pack`](super::Pack).
    pub fn new(
        program: &Program,
        ways: u32,
        link: &mut dyn FnMut(u32, u8) -> Result<u32>,
        packs: Packs,
    ) -> Result<Bound> {
        let ops = program.lanes.iter().flat_map(|l| &l.ops);
        let mut blocks = ops.map(|op| block_of(program, op)).collect::<Result<Vec<u32>>>()?;
        blocks.sort_unstable();
        blocks.dedup();
        let mut place = |op: &Op| {
            let block = block_of(program, op)?;
            let index = blocks.binary_search(&block).expect("just listed");
            Ok((index as u32, op.at % program.chunks.max(1)))
        };
        let lanes: Vec<BoundLane> =
            program.lanes.iter().map(|l| bind_lane(l, &mut place, link, packs)).collect::<Result<_>>()?;
        let mut links: Vec<u32> = lanes
            .iter()
            .flat_map(|l| &l.args)
            .filter(|a| matches!(a.kind, ArgKind::Recv | ArgKind::Send))
            .flat_map(|a| a.link..a.link + ways)
            .collect();
        links.sort_unstable();
        links.dedup();
        let operands =
            lanes.iter().flat_map(|l| &l.ops).map(|o| o.nsrc.max(o.nlocal + o.nsend)).max().unwrap_or(0);
        let chunks = program.chunks.max(1);
        let longest = lanes.iter().flat_map(|l| &l.ops).map(|o| o.len).max().unwrap_or(0);
        Ok(Bound { lanes, ways, chunks, blocks, links, operands: operands as usize, longest })
    }
}

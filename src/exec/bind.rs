//! Binding: from chunks and peers to byte offsets and link numbers.

use crate::Result;
use crate::schedule::{Arg, ArgKind, Lane, Program, cut};

/// Bytes of a cache line: the unit in which buffers are cut.
const LINE: usize = 64;

/// An operand of a bound op.
#[derive(Clone, Copy, Debug)]
pub(super) struct BoundArg {
    pub kind: ArgKind,
    /// A send to a peer that the same op receives from: the message may go where that one lies.
    pub reply: bool,
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
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BoundOp {
    pub form: Form,
    pub complete: bool,
    pub nsrc: u16,
    /// Local destinations come first, then the messages.
    pub nlocal: u16,
    pub nsend: u16,
    /// First chunk, number of chunks.
    pub at: u32,
    pub len: u32,
    pub arg: u32,
    /// Index of the op in the schedule's lane.
    pub index: u32,
}

#[derive(Clone, Debug)]
pub(super) struct BoundLane {
    pub ops: Vec<BoundOp>,
    pub args: Vec<BoundArg>,
}

/// A rank's program, bound to link numbers.
#[derive(Clone, Debug)]
pub struct Bound {
    pub(super) lanes: Vec<BoundLane>,
    pub(super) ways: u32,
    /// All links that the program uses, all ways.
    pub links: Vec<u32>,
    /// Most sources / destinations of an op.
    pub(super) operands: usize,
}

fn bind_lane(lane: &Lane, link: &mut dyn FnMut(u32, u8) -> Result<u32>) -> Result<BoundLane> {
    let mut out = BoundLane { ops: Vec::with_capacity(lane.ops.len()), args: Vec::new() };
    for (index, op) in lane.ops.iter().enumerate() {
        let arg = out.args.len() as u32;
        let local = |a: &Arg| BoundArg { kind: a.kind, reply: false, link: u32::from(a.ix) };
        let mut froms = Vec::new();
        for a in lane.srcs(op) {
            if a.kind == ArgKind::Recv {
                let peer = lane.peers[a.ix as usize];
                let l = link(peer, a.port)?;
                froms.push(l);
                out.args.push(BoundArg { kind: a.kind, reply: false, link: l });
            } else {
                out.args.push(local(a));
            }
        }
        let dsts = lane.dsts(op);
        let mut nlocal = 0;
        for a in dsts.iter().filter(|a| a.kind != ArgKind::Send) {
            out.args.push(local(a));
            nlocal += 1;
        }
        let mut nsend = 0;
        for a in dsts.iter().filter(|a| a.kind == ArgKind::Send) {
            // One write with many readers pays nowhere here: a line that several ranks only read costs its
            // owner 7-28 ns to rewrite. Every reader gets its own message.
            for &peer in &lane.peers[a.ix as usize..(a.ix as usize + a.count as usize)] {
                let l = link(peer, a.port)?;
                out.args.push(BoundArg { kind: a.kind, reply: froms.contains(&l), link: l });
                nsend += 1;
            }
        }
        let form = match (op.nsrc, lane.srcs(op).first().map(|a| a.kind), nlocal, nsend) {
            (1, Some(k), 0, 1) if k != ArgKind::Recv => Form::Send,
            (1, Some(ArgKind::Recv), 1, 0) => Form::Store,
            (2, _, 1, 0) if froms.len() == 1 => Form::Fold,
            _ => Form::General,
        };
        let (at, len, nsrc, index) = (op.at, op.len, op.nsrc, index as u32);
        out.ops.push(BoundOp { form, complete: op.complete, nsrc, nlocal, nsend, at, len, arg, index });
    }
    Ok(out)
}

impl Bound {
    /// Tiles worked on at a time.
    pub fn ways(&self) -> u32 {
        self.ways
    }

    /// Binds `program` for `ways` tiles at a time. `link(peer, port)` is the number of the link of
    /// way 0 to that peer on that port; those of the other ways must follow it.
    pub fn new(program: &Program, ways: u32, link: &mut dyn FnMut(u32, u8) -> Result<u32>) -> Result<Bound> {
        let lanes: Vec<BoundLane> =
            program.lanes.iter().map(|l| bind_lane(l, link)).collect::<Result<_>>()?;
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
        Ok(Bound { lanes, ways, links, operands: operands as usize })
    }
}

/// A buffer cut into tiles and chunks, in bytes.
#[derive(Clone, Debug)]
pub struct Tiling {
    count: u64,
    esize: usize,
    tiles: u32,
    unit: u64,
    /// Chunk boundaries (chunks + 1 offsets) for each tile length that occurs.
    tables: Vec<(u64, Box<[usize]>)>,
}

impl Tiling {
    /// `count` elements of `esize` bytes, in `tiles` tiles of `chunks` chunks.
    pub fn new(count: usize, esize: usize, tiles: u32, chunks: u32) -> Tiling {
        let (count, tiles, unit) = (count as u64, tiles.max(1), (LINE / esize) as u64);
        let mut t = Tiling { count, esize, tiles, unit, tables: Vec::new() };
        for i in 0..tiles {
            let n = t.start(i + 1) - t.start(i);
            if t.tables.iter().all(|(l, _)| *l != n) {
                let at = |j| cut(n, u64::from(j), u64::from(chunks.max(1)), unit) as usize * esize;
                t.tables.push((n, (0..=chunks.max(1)).map(at).collect()));
            }
        }
        t
    }

    fn start(&self, tile: u32) -> u64 {
        cut(self.count, u64::from(tile), u64::from(self.tiles), self.unit)
    }

    pub fn tiles(&self) -> u32 {
        self.tiles
    }

    /// Byte offset of a tile and the index of its table.
    #[inline]
    pub(super) fn tile(&self, tile: u32) -> (usize, usize) {
        if self.tiles == 1 {
            return (0, 0);
        }
        let (s, e) = (self.start(tile), self.start(tile + 1));
        let table = self.tables.iter().position(|(l, _)| *l == e - s).expect("all lengths are tabled");
        (s as usize * self.esize, table)
    }

    #[inline]
    pub(super) fn table(&self, table: usize) -> &[usize] {
        &self.tables[table].1
    }

    /// Bytes of the largest tile: the size of a scratch image.
    pub fn tile_bytes(&self) -> usize {
        self.tables.iter().map(|(l, _)| *l as usize * self.esize).max().unwrap_or(0)
    }

    /// Bytes of the longest span of `len` chunks.
    pub fn span_bytes(&self, len: u32) -> usize {
        let longest = |t: &[usize]| (0..t.len() - len as usize).map(|i| t[i + len as usize] - t[i]).max();
        self.tables.iter().filter_map(|(_, t)| longest(t)).max().unwrap_or(0)
    }
}

//! Geometry: where the chunks of every block and tile lie, in bytes.

use std::collections::HashMap;

use crate::schedule::cut;

/// Bytes of a cache line: the unit in which blocks are cut.
const LINE: usize = 64;

/// One block of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSpan {
    /// Elements.
    pub count: usize,
    /// Tiles that it is cut into. In later tiles of the call, and so with 0 in all of them, the block's
    /// ops are skipped: all ranks must say the same.
    pub tiles: u32,
    /// Where the block begins in the caller's buffers, in bytes; anything where it is not there.
    pub input: usize,
    pub output: usize,
    /// Goes into the fingerprint of the block's messages: what its sender and its receiver must say alike,
    /// where no other rank knows it.
    pub mark: u32,
}

/// Where a block's chunks lie in one tile: all that an op needs to find its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Byte offsets of the tile in the caller's buffers, and of the block in a scratch image.
    pub input: usize,
    pub output: usize,
    pub scratch: usize,
    /// That of the block.
    pub mark: u32,
    /// Where the tile's table begins.
    table: usize,
}

/// How a number of elements is cut into a number of tiles.
#[derive(Clone, Debug)]
struct Shape {
    last: u32,
    /// Tile `i` begins at line `i * lines + (i * fraction >> 64)`: the same as `cut`, without a division.
    ///
    /// With u units and p tiles, `lines` is floor(u / p), and `fraction / 2^64` is the rest of that
    /// quotient rounded up, too large by less than 2^-64. For i < p < 2^32 the product is too large by less
    /// than 2^-32, and a fraction with denominator p is at least that far below the next integer.
    lines: u64,
    fraction: u64,
    /// Tables of tiles of `lines` lines, of one line more, and of the last tile.
    tables: [usize; 3],
    /// Bytes of the largest tile.
    largest: usize,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    tiles: u32,
    shape: u32,
    input: usize,
    output: usize,
    scratch: usize,
    mark: u32,
}

/// A call's blocks cut into tiles and chunks, in bytes.
#[derive(Clone, Debug)]
pub struct Tiling {
    blocks: Vec<Block>,
    shapes: Vec<Shape>,
    /// Chunk boundaries (chunks + 1 offsets) of all tile lengths of all shapes, one table behind the
    /// other.
    tables: Vec<usize>,
    chunks: u32,
    tiles: u32,
    /// Every block's place in tile 0; empty if some block has other than one tile.
    single: Vec<Place>,
    scratch: usize,
}

impl Shape {
    /// Its tables are appended to `tables`.
    fn new(count: u64, tiles: u32, esize: usize, chunks: u32, tables: &mut Vec<usize>) -> Shape {
        let unit = (LINE / esize) as u64;
        let (units, parts) = (count.div_ceil(unit), u64::from(tiles.max(1)));
        let (lines, rest) = (units / parts, units % parts);
        let fraction = (u128::from(rest) << 64).div_ceil(u128::from(parts)) as u64;
        let mut shape =
            Shape { last: tiles.max(1) - 1, lines, fraction, tables: [usize::MAX; 3], largest: 0 };
        // The last tile is among the longer ones, if there are any, and cut short.
        let tail = count - (lines * (parts - 1) + rest.saturating_sub(1)) * unit;
        let lengths = [(parts > 1, lines * unit), (rest > 1, (lines + 1) * unit), (true, tail)];
        for (i, &(occurs, length)) in lengths.iter().enumerate() {
            if !occurs {
                continue;
            }
            let bytes = length as usize * esize;
            shape.largest = shape.largest.max(bytes);
            shape.tables[i] = tables.len();
            let at = |j| cut(length, u64::from(j), u64::from(chunks), unit) as usize * esize;
            tables.extend((0..=chunks).map(at));
        }
        shape
    }

    /// Byte offset of a tile in its block, and its table.
    #[inline]
    fn tile(&self, tile: u32) -> (usize, usize) {
        let line =
            |i: u32| u64::from(i) * self.lines + ((u128::from(i) * u128::from(self.fraction)) >> 64) as u64;
        let start = line(tile);
        let which = if tile == self.last { 2 } else { (line(tile + 1) - start - self.lines) as usize };
        (start as usize * LINE, self.tables[which])
    }
}

impl Tiling {
    /// The blocks `spans`, in the order of [`Bound::blocks`](super::Bound::blocks), of elements of `esize`
    /// bytes (1, 2, 4 or 8), with `chunks` chunks each.
    pub fn new(spans: &[BlockSpan], esize: usize, chunks: u32) -> Tiling {
        let chunks = chunks.max(1);
        let mut t = Tiling {
            blocks: Vec::with_capacity(spans.len()),
            shapes: Vec::new(),
            tables: Vec::new(),
            chunks,
            tiles: spans.iter().map(|s| s.tiles).max().unwrap_or(0),
            single: Vec::new(),
            scratch: 0,
        };
        let mut known = HashMap::new();
        for s in spans {
            let shape = *known.entry((s.count, s.tiles)).or_insert_with(|| {
                t.shapes.push(Shape::new(s.count as u64, s.tiles, esize, chunks, &mut t.tables));
                t.shapes.len() as u32 - 1
            });
            let scratch = t.scratch;
            let BlockSpan { tiles, input, output, mark, .. } = *s;
            t.blocks.push(Block { tiles, shape, input, output, scratch, mark });
            if s.tiles > 0 {
                let largest = t.shapes[shape as usize].largest;
                t.scratch = t.scratch.saturating_add(largest.saturating_add(LINE - 1) / LINE * LINE);
            }
        }
        if spans.iter().all(|s| s.tiles == 1) {
            t.single = (0..spans.len() as u32).map(|block| t.place(block, 0)).collect();
        }
        t
    }

    /// Tiles of the call: the most of any block.
    pub fn tiles(&self) -> u32 {
        self.tiles
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Tiles of a block.
    #[inline]
    pub(super) fn tiles_of(&self, block: u32) -> u32 {
        self.blocks[block as usize].tiles
    }

    /// The places of all blocks, if every block has exactly one tile.
    #[inline]
    pub(super) fn single(&self) -> Option<&[Place]> {
        (self.single.len() == self.blocks.len()).then_some(&self.single)
    }

    /// A block in one of its tiles.
    #[inline]
    pub(super) fn place(&self, block: u32, tile: u32) -> Place {
        let b = &self.blocks[block as usize];
        let (start, table) = self.shapes[b.shape as usize].tile(tile);
        let (input, output) = (b.input.wrapping_add(start), b.output.wrapping_add(start));
        Place { input, output, scratch: b.scratch, mark: b.mark, table }
    }

    /// Byte offset and length, from a place's begin, of `len` chunks from chunk `at`.
    #[inline]
    pub(super) fn span(&self, place: &Place, at: u32, len: u32) -> (usize, usize) {
        let start = place.table + at as usize;
        let from = self.tables[start];
        (from, self.tables[start + len as usize] - from)
    }

    /// Bytes of a scratch image: one tile of every block, one behind the other, each on cache lines of its
    /// own.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    /// Bytes of the longest span of `len` chunks of a block.
    pub fn span_bytes(&self, len: u32) -> usize {
        let longest = |t: &[usize]| (0..t.len() - len as usize).map(|i| t[i + len as usize] - t[i]).max();
        self.tables.chunks(self.chunks as usize + 1).filter_map(longest).max().unwrap_or(0)
    }
}

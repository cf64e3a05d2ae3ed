//! Memory of a call, between guard bytes.

use std::ops::Range;

use graccl::memory;

use super::{Call, Random};

const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0x5c;

/// Heap memory, or memory that peers can map.
pub enum Memory {
    Heap(Vec<u8>),
    Arena(*mut u8, usize),
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Arena(p, _) = self {
            // SAFETY: allocated by `Buffer::new`; the links that used it are gone or never look again.
            unsafe { memory::free(*p) }.expect("freed once");
        }
    }
}

impl std::ops::Deref for Memory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Memory::Heap(v) => v,
            // SAFETY: our own block.
            Memory::Arena(p, len) => unsafe { std::slice::from_raw_parts(*p, *len) },
        }
    }
}

impl std::ops::DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(v) => v,
            // SAFETY: our own block.
            Memory::Arena(p, len) => unsafe { std::slice::from_raw_parts_mut(*p, *len) },
        }
    }
}

/// Memory with some blocks of a call, and guard bytes around each.
pub struct Buffer {
    pub all: Memory,
    /// Block and where it lies.
    pub blocks: Vec<(usize, Range<usize>)>,
}

/// What a result has before the call, where it is not the input.
pub const BEFORE: u8 = 0xa7;

impl Buffer {
    /// The blocks `list`, with so many bytes each.
    pub fn new(list: &[(usize, usize)], call: &Call, r: &mut Random, shm: bool) -> Buffer {
        let mut order = list.to_vec();
        for i in (1..order.len()).rev().filter(|_| call.shuffled) {
            order.swap(i, r.below(i as u64 + 1) as usize);
        }
        let mut end = 64 + GUARD + call.shift;
        let mut blocks = Vec::new();
        for &(block, len) in &order {
            blocks.push((block, end..end + len));
            end += len + GUARD + r.below(call.shift as u64 + 1) as usize;
        }
        let size = end + GUARD;
        let mut all = if shm {
            Memory::Arena(memory::alloc(size).expect("memory"), size)
        } else {
            Memory::Heap(vec![0; size])
        };
        all.fill(GUARD_BYTE);
        // Blocks that begin at a multiple of 64 lie on a cache line.
        let off = all.as_ptr().addr().wrapping_neg() % 64;
        for (_, at) in &mut blocks {
            *at = at.start + off - 64..at.end + off - 64;
            all[at.clone()].fill(BEFORE);
        }
        blocks.sort_by_key(|b| b.0);
        Buffer { all, blocks }
    }
    pub fn find(&self, block: usize) -> Option<Range<usize>> {
        let i = self.blocks.binary_search_by_key(&block, |b| b.0).ok()?;
        Some(self.blocks[i].1.clone())
    }
    pub fn scribble(&mut self) {
        for (_, at) in &self.blocks {
            self.all[at.clone()].fill(0xee);
        }
    }
    pub fn guarded(&self) -> bool {
        let mut within = vec![false; self.all.len()];
        for (_, at) in &self.blocks {
            within[at.clone()].fill(true);
        }
        self.all.iter().zip(within).all(|(&b, within)| within || b == GUARD_BYTE)
    }
}

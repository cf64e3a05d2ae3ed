//! Where gradients lie: behind one another in the order of the backward pass, so that any run of them is
//! one buffer. Types have regions of their own.

use std::ops::Range;

use super::Tensor;
use crate::{DataType, Error, Result};

/// Tensors begin on cache lines: two threads that write neighbours do not share one.
const ALIGN: usize = 64;

pub(super) struct Layout {
    pub tensors: Vec<Tensor>,
    pub places: Vec<Place>,
    pub regions: Vec<Region>,
    /// Bytes before each tensor, and at the end.
    bytes: Vec<u64>,
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub region: usize,
    /// Elements before it.
    pub at: usize,
    pub len: usize,
}

/// Memory of one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub dtype: DataType,
    pub elements: usize,
}

/// A run of elements in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub region: usize,
    pub at: usize,
    pub len: usize,
}

/// What a bucket holds: from an element of one tensor to an element of another, or of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub first: usize,
    /// Elements of the first tensor that belong to the bucket before.
    pub from: usize,
    pub last: usize,
    /// Elements of the last tensor, counted from its beginning, that belong to this bucket or those before.
    pub to: usize,
}

impl Layout {
    pub fn new(tensors: &[Tensor]) -> Result<Layout> {
        if tensors.is_empty() {
            return Err(Error::argument("a bucketer of no tensors").hint("pass at least one"));
        }
        let mut regions: Vec<Region> = Vec::new();
        let mut places = Vec::with_capacity(tensors.len());
        let mut bytes = vec![0u64];
        for (i, t) in tensors.iter().enumerate() {
            let region = regions.iter().position(|r| r.dtype == t.dtype).unwrap_or_else(|| {
                regions.push(Region { dtype: t.dtype, elements: 0 });
                regions.len() - 1
            });
            let r = &mut regions[region];
            places.push(Place { region, at: r.elements, len: t.elements });
            let end = r.elements.checked_add(t.elements);
            let end = end.and_then(|e| e.checked_next_multiple_of(ALIGN / t.dtype.size()));
            r.elements = end.filter(|e| *e < isize::MAX as usize / 16).ok_or_else(|| {
                Error::argument(format!("{} elements do not fit in memory", t.elements))
                    .who(format!("tensor {i} {}", t.name))
            })?;
            bytes.push(bytes[i] + (t.elements * t.dtype.size()) as u64);
        }
        if bytes[tensors.len()] == 0 {
            return Err(Error::argument("a bucketer of empty tensors").hint("one must have elements"));
        }
        Ok(Layout { tensors: tensors.to_vec(), places, regions, bytes })
    }

    /// All bytes of all tensors.
    pub fn total(&self) -> u64 {
        self.bytes[self.tensors.len()]
    }

    /// The span of a run of bytes, where all tensors lie one behind the other without gaps. Elements
    /// that a boundary cuts belong to what comes after it.
    pub fn span(&self, offset: u64, bytes: u64) -> Span {
        let end = (offset + bytes).min(self.total());
        let place = |at: u64, i: usize| (at - self.bytes[i]) as usize / self.tensors[i].dtype.size();
        // The tensor that has the byte; empty ones have none.
        let first = self.bytes.partition_point(|b| *b <= offset) - 1;
        let last = self.bytes.partition_point(|b| *b < end).max(1) - 1;
        let (first, last) = (first.min(self.tensors.len() - 1), last.max(first.min(self.tensors.len() - 1)));
        Span { first, from: place(offset, first), last, to: place(end, last) }
    }

    /// The tensor, for people.
    pub fn name(&self, i: usize) -> String {
        match self.tensors[i].name.as_str() {
            "" => format!("tensor {i}"),
            name => format!("tensor {i} ({name})"),
        }
    }

    /// The tensor is written and read where it is reduced.
    pub fn direct(&self, i: usize) -> bool {
        self.tensors[i].memory.is_null()
    }

    /// The elements of tensor `i` that the span has.
    pub fn part(&self, span: &Span, i: usize) -> Range<usize> {
        let from = if i == span.first { span.from } else { 0 };
        let to = if i == span.last { span.to } else { self.places[i].len };
        from..to.max(from)
    }

    /// The memory of a bucket: a slice in each region. What lies between tensors goes with it; it is zero
    /// everywhere.
    pub fn slices(&self, span: &Span) -> Vec<Slice> {
        let mut slices: Vec<Slice> = Vec::new();
        for i in span.first..=span.last {
            let (p, part) = (self.places[i], self.part(span, i));
            let (at, end) = (p.at + part.start, p.at + part.end);
            match slices.iter_mut().find(|s| s.region == p.region) {
                Some(s) => s.len = end - s.at,
                None => slices.push(Slice { region: p.region, at, len: end - at }),
            }
        }
        slices.retain(|s| s.len > 0);
        slices
    }
}

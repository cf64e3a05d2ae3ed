//! One random call: its data, its buffers, and what they must hold afterwards.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use graccl::{
    Call, Collective, Communicator, Counts, DataType, Extent, Factor, RedOp, Reduction, Request, Result,
};

use super::plan::Rng;
use crate::perf::{Buffer, Memory, POISON, Pattern, Problem, show_element};

/// Elements after which data repeat: a prime, so that chunks are never that far apart.
const PERIOD: usize = 1021;
/// Sizes around which protocols change: messages in a header, references, choices of algorithms, tiles. Bytes.
const EDGES: [usize; 11] =
    [504, 4096, 8192, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20];

/// A call, as all its ranks know it.
#[derive(Clone, Debug)]
pub struct Spec {
    /// `None`: a barrier.
    pub collective: Option<Collective>,
    dtype: DataType,
    op: RedOp,
    /// Every rank multiplies by -1.
    negate: bool,
    root: usize,
    /// Elements of every block, and whether they are given one by one.
    counts: Vec<usize>,
    uneven: bool,
    /// Where in the period the data of block 0 begin.
    shift: usize,
}

/// A number of elements.
pub fn count(r: &mut Rng, dtype: DataType) -> usize {
    let near = |r: &mut Rng, bytes: usize| (bytes / dtype.size() + r.below(3)).saturating_sub(1);
    match r.below(100) {
        0..5 => 0,
        5..50 => r.below(600) / dtype.size() + r.below(2),
        50..82 => {
            // The small edges more often.
            let last = 1 + r.below(EDGES.len());
            let edge = r.pick(&EDGES[..last]);
            near(r, edge)
        }
        82..98 => r.below(300_000) / dtype.size(),
        _ => r.below(6 << 20) / dtype.size(),
    }
}

impl Spec {
    /// For `n` ranks.
    pub fn random(r: &mut Rng, n: usize) -> Spec {
        let dtype = r.pick(&DataType::ALL);
        let pick = r.below(Collective::ALL.len() + 2);
        // An allreduce is what most jobs do.
        let collective = if pick == Collective::ALL.len() {
            None
        } else {
            Some(*Collective::ALL.get(pick).unwrap_or(&Collective::AllReduce))
        };
        let mut op = r.pick(&RedOp::ALL);
        let root = r.below(n);
        let blocks = collective.map_or(0, |c| c.blocks(n));
        let total = count(r, dtype);
        let mut uneven = r.percent(40);
        let negate = r.percent(15);
        let each = if n > 1 && blocks >= n { total / (blocks / n.min(blocks)).max(1) / n } else { total };
        let mut counts = vec![each; blocks];
        match collective {
            Some(Collective::Scan | Collective::Exscan) if op == RedOp::Avg => op = RedOp::Sum,
            _ => {}
        }
        use Collective::*;
        uneven &= matches!(collective, Some(ReduceScatter | AllGather | Gather | Scatter | AllToAll));
        if uneven {
            for c in &mut counts {
                *c = if r.percent(20) { 0 } else { r.below(2 * each + 2) };
            }
        }
        let reduces = collective.is_some_and(Collective::reduces);
        if !reduces || negate {
            op = RedOp::Sum;
        }
        Spec {
            collective,
            dtype,
            op,
            negate: negate && reduces,
            root,
            counts,
            uneven,
            shift: r.below(PERIOD),
        }
    }

    pub fn name(&self) -> &'static str {
        self.collective.map_or("barrier", Collective::name)
    }

    /// For people.
    pub fn text(&self) -> String {
        format!("{self:?}")
    }
}

/// What a pattern depends on besides [`PERIOD`].
type Kind = (DataType, RedOp, usize, What);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    Input(usize),
    /// Of so many ranks; their contributions times -1.
    Prefix(usize, bool),
    All,
}

/// Data, and the element of their period that is the first.
type Values = (Arc<Pattern>, usize);

/// Data of a round, made once.
pub struct Data {
    seed: u64,
    made: Mutex<HashMap<Kind, Arc<Pattern>>>,
}

impl Data {
    pub fn new(seed: u64) -> Data {
        Data { seed, made: Mutex::default() }
    }

    fn pattern(&self, dtype: DataType, op: RedOp, ranks: usize, what: What) -> Arc<Pattern> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let p = Problem { dtype, op, ranks, seed: self.seed };
            Arc::new(match what {
                What::Input(rank) => p.input(rank, PERIOD),
                What::Prefix(k, false) => p.folded(k, PERIOD),
                What::Prefix(k, true) => p.negated(k, PERIOD),
                What::All => p.expected(PERIOD),
            })
        };
        made.entry((dtype, op, ranks, what)).or_insert_with(make).clone()
    }

    /// What `rank` of `ranks` gives to a message.
    fn message(&self, m: &Message, ranks: usize) -> Values {
        (self.pattern(m.dtype, RedOp::Sum, ranks, What::Input(m.from)), m.shift)
    }
}

/// Blocks of one buffer: number and place.
struct Side {
    blocks: Vec<(usize, Extent)>,
    /// Elements up to the end of the last.
    end: usize,
}

impl Side {
    /// Lays out blocks, with gaps if they may have some.
    fn new(r: &mut Rng, spec: &Spec, blocks: impl Iterator<Item = usize>) -> Side {
        let gaps = spec.uneven && r.percent(50);
        let mut side = Side { blocks: Vec::new(), end: 0 };
        for b in blocks {
            let at = side.end + if gaps { r.below(20) } else { 0 };
            let count = spec.counts[b];
            side.blocks.push((b, Extent { at, count }));
            side.end = at + count;
        }
        side
    }

    fn extents(&self) -> Arc<[Extent]> {
        self.blocks.iter().map(|(_, e)| *e).collect()
    }

    fn at(&self, block: usize) -> Option<Extent> {
        self.blocks.iter().find(|(b, _)| *b == block).map(|(_, e)| *e)
    }
}

/// Memory that one side of a call uses, with bytes around it that nobody may touch.
struct Space {
    buffer: Buffer,
    /// Byte where the side begins, and bytes up to its end.
    from: usize,
    len: usize,
}

impl Space {
    fn new(r: &mut Rng, elements: usize, size: usize) -> Result<Space> {
        let from = if r.percent(60) { 0 } else { r.below(70) * size };
        let memory = if r.percent(30) { Memory::Registered } else { Memory::Host };
        let len = elements * size;
        let mut buffer = Buffer::new(from + len, memory)?;
        buffer.slice_mut(0..from + len).fill(POISON);
        buffer.set_guard(from + len);
        Ok(Space { buffer, from, len })
    }

    fn ptr(&mut self) -> *mut u8 {
        let from = self.from;
        self.buffer.slice_mut(from..from).as_mut_ptr()
    }

    fn part(&self, e: Extent, size: usize) -> std::ops::Range<usize> {
        self.from + e.at * size..self.from + (e.at + e.count) * size
    }

    fn fill(&mut self, e: Extent, size: usize, (with, shift): &Values) {
        let part = self.part(e, size);
        with.fill_from(*shift, self.buffer.slice_mut(part));
    }

    /// Says what is wrong in a block.
    fn compare(&self, e: Extent, size: usize, (want, shift): &Values) -> Option<String> {
        let part = self.part(e, size);
        let found = want.compare_from(*shift, self.buffer.slice(part.clone()));
        let first = found.first?;
        let at = part.start + first * size;
        let got = show_element(self.buffer.slice(at..at + size));
        Some(format!(
            "{} of {} elements, the first is {first}: {got} instead of {}",
            found.count,
            e.count,
            want.show(first + shift)
        ))
    }

    /// Bytes at `range` that were changed and are in no block.
    fn changed(&self, range: std::ops::Range<usize>) -> usize {
        self.buffer.slice(range).iter().filter(|&&b| b != POISON).count()
    }

    /// Bytes that were changed outside of the blocks.
    fn spilt(&self, side: &Side, size: usize) -> usize {
        let mut at = 0;
        let mut spilt = self.buffer.broken_guard(self.from + self.len);
        for (_, e) in side.blocks.iter().filter(|(_, e)| e.count > 0) {
            let part = self.part(*e, size);
            spilt += self.changed(at..part.start);
            at = part.end;
        }
        spilt + self.changed(at..self.from + self.len)
    }
}

/// A call with its buffers.
pub struct Op {
    spec: Spec,
    rank: usize,
    n: usize,
    send: Option<Space>,
    recv: Option<Space>,
    sent: Side,
    got: Side,
    /// The data of the send side lie in the receive space, or the other way round.
    in_place: bool,
    call: Option<Call>,
}

impl Op {
    /// `r`: this rank's own choices, of memory and places.
    pub fn new(spec: Spec, rank: usize, n: usize, data: &Data, r: &mut Rng) -> Result<Op> {
        let none = || Side { blocks: Vec::new(), end: 0 };
        let Some(c) = spec.collective else {
            let (sent, got) = (none(), none());
            return Ok(Op { spec, rank, n, send: None, recv: None, sent, got, in_place: false, call: None });
        };
        let size = spec.dtype.size();
        let all = 0..c.blocks(n);
        let mut sent = Side::new(r, &spec, all.clone().filter(|&b| c.sent(n, spec.root, rank, b).is_some()));
        let mut got = Side::new(r, &spec, all.filter(|&b| c.received(n, spec.root, rank, b).is_some()));
        // The block that may be the same memory.
        let own = match c {
            Collective::AllToAll => None,
            Collective::ReduceScatter | Collective::AllGather | Collective::Gather | Collective::Scatter => {
                Some(rank)
            }
            _ => Some(0),
        };
        let own = own.and_then(|b| Some((b, sent.at(b)?, got.at(b)?)));
        let in_place = own.is_some() && r.percent(50);
        let (mut send, mut recv) = (None, None);
        let (mut from, mut to) = (std::ptr::null(), std::ptr::null_mut());
        if let Some((b, s, g)) = own.filter(|_| in_place) {
            // The side with more blocks gives the memory; the other one is a block of it.
            if sent.blocks.len() > got.blocks.len() {
                let mut space = Space::new(r, sent.end, size)?;
                let at = space.ptr();
                got = Side { blocks: vec![(b, Extent { at: 0, count: g.count })], end: g.count };
                from = at.cast_const();
                to = at.wrapping_add(s.at * size);
                send = Some(space);
            } else {
                let mut space = Space::new(r, got.end, size)?;
                let at = space.ptr();
                sent = Side { blocks: vec![(b, Extent { at: 0, count: s.count })], end: s.count };
                to = at;
                from = at.wrapping_add(g.at * size).cast_const();
                recv = Some(space);
            }
        } else {
            if !sent.blocks.is_empty() {
                let mut space = Space::new(r, sent.end, size)?;
                from = space.ptr().cast_const();
                send = Some(space);
            }
            if !got.blocks.is_empty() {
                let mut space = Space::new(r, got.end, size)?;
                to = space.ptr();
                recv = Some(space);
            }
        }
        let reduction = match (spec.negate, spec.dtype.is_float()) {
            (false, _) => spec.op.into(),
            (true, true) => Reduction::pre_mul_sum(Factor::Float(-1.0)),
            (true, false) => Reduction::pre_mul_sum(Factor::Int(-1)),
        };
        let counts = match spec.uneven {
            true => Counts::Each { send: sent.extents(), recv: got.extents() },
            false => Counts::Even(spec.counts[0]),
        };
        let call = Call::new(c, from, to, 0, spec.dtype, reduction).root(spec.root);
        let call = Call { counts, ..call };
        let mut op = Op { spec, rank, n, send, recv, sent, got, in_place, call: Some(call) };
        op.fill(data);
        Ok(op)
    }

    /// What this rank puts into a block.
    fn own(&self, data: &Data, block: usize) -> Values {
        let s = &self.spec;
        (data.pattern(s.dtype, s.op, self.n, What::Input(self.rank)), s.shift + block * 37)
    }

    fn fill(&mut self, data: &Data) {
        let size = self.spec.dtype.size();
        for (b, mut e) in self.sent.blocks.clone() {
            let with = self.own(data, b);
            let space = match &mut self.send {
                Some(s) => s,
                None => {
                    // In place: where the receive side has it.
                    e = self.got.at(b).unwrap_or(e);
                    match &mut self.recv {
                        Some(r) => r,
                        None => continue,
                    }
                }
            };
            space.fill(e, size, &with);
        }
    }

    pub fn name(&self) -> &'static str {
        self.spec.name()
    }

    /// Carries it out. In a group: it is over when the group is.
    pub fn run(&mut self, comm: &Communicator) -> Result<()> {
        match &self.call {
            None => comm.barrier(),
            // SAFETY: the buffers are ours until the call is over; who uses groups or requests keeps us so long.
            Some(call) => unsafe { comm.call(call) },
        }
    }

    /// Starts it.
    pub fn start(&mut self, comm: &Communicator) -> Result<Request> {
        match &self.call {
            None => comm.start_barrier(),
            // SAFETY: as in `run`.
            Some(call) => unsafe { comm.start(call) },
        }
    }

    /// After the call: what is wrong, if anything.
    pub fn check(&self, data: &Data) -> Option<String> {
        let s = &self.spec;
        let c = s.collective?;
        let size = s.dtype.size();
        let mut wrong = Vec::new();
        for (b, e) in &self.got.blocks {
            let what = match c {
                c if c.reduces() && (s.negate || !c.completes()) => {
                    What::Prefix(c.folded(self.n, self.rank), s.negate)
                }
                c if c.reduces() => What::All,
                Collective::AllGather | Collective::Gather => What::Input(*b),
                Collective::AllToAll => What::Input(b / self.n),
                _ => What::Input(s.root),
            };
            let want = (data.pattern(s.dtype, s.op, self.n, what), s.shift + b * 37);
            // In place in the send space: a block of that.
            let (space, at) = match (&self.recv, &self.send) {
                (Some(r), _) => (r, *e),
                (None, Some(s)) => (s, self.sent.at(*b).unwrap_or(*e)),
                (None, None) => continue,
            };
            wrong.extend(space.compare(at, size, &want).map(|w| format!("block {b}: {w}")));
        }
        for (space, side, what) in [(&self.recv, &self.got, "receive"), (&self.send, &self.sent, "send")] {
            let Some(space) = space else { continue };
            let spilt = space.spilt(side, size);
            if spilt > 0 {
                wrong.push(format!("{spilt} bytes changed outside of the {what} buffer's blocks"));
            }
            if what == "send" && !self.in_place {
                for (b, e) in &side.blocks {
                    let kept = space.compare(*e, size, &self.own(data, *b));
                    wrong.extend(kept.map(|w| format!("send buffer changed, block {b}: {w}")));
                }
            }
        }
        let text = || {
            let place = if self.in_place { "in place" } else { "out of place" };
            format!("rank {} of {}, {}, {place}: {}", self.rank, self.n, s.text(), wrong.join("; "))
        };
        (!wrong.is_empty()).then(text)
    }
}

/// A message between two ranks.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub from: usize,
    pub to: usize,
    count: usize,
    dtype: DataType,
    shift: usize,
}

impl Message {
    /// Between two of `n` ranks, at least 2.
    pub fn random(r: &mut Rng, n: usize) -> Message {
        let from = r.below(n);
        let to = (from + 1 + r.below(n - 1)) % n;
        let dtype = r.pick(&DataType::ALL);
        Message { from, to, count: count(r, dtype), dtype, shift: r.below(PERIOD) }
    }
}

/// One end of a message.
pub struct End {
    message: Message,
    rank: usize,
    n: usize,
    space: Space,
}

impl End {
    pub fn new(message: Message, rank: usize, n: usize, data: &Data, r: &mut Rng) -> Result<End> {
        let Message { from, count, dtype, .. } = message;
        let mut space = Space::new(r, count, dtype.size())?;
        if rank == from {
            space.fill(Extent { at: 0, count }, dtype.size(), &data.message(&message, n));
        }
        Ok(End { message, rank, n, space })
    }

    fn sends(&self) -> bool {
        self.rank == self.message.from
    }

    pub fn run(&mut self, comm: &Communicator) -> Result<()> {
        let Message { from, to, count, dtype, .. } = self.message;
        let (sends, at) = (self.sends(), self.space.ptr());
        // SAFETY: as in `Op::run`.
        unsafe {
            match sends {
                true => comm.send_raw(at, count, dtype, to),
                false => comm.recv_raw(at, count, dtype, from),
            }
        }
    }

    pub fn start(&mut self, comm: &Communicator) -> Result<Request> {
        let Message { from, to, count, dtype, .. } = self.message;
        let (sends, at) = (self.sends(), self.space.ptr());
        // SAFETY: as in `Op::run`.
        unsafe {
            match sends {
                true => comm.start_send(at, count, dtype, to),
                false => comm.start_recv(at, count, dtype, from),
            }
        }
    }

    pub fn name(&self) -> &'static str {
        if self.sends() { "send" } else { "recv" }
    }

    pub fn check(&self, data: &Data) -> Option<String> {
        let Message { count, dtype, .. } = self.message;
        let want = data.message(&self.message, self.n);
        let whole = Extent { at: 0, count };
        let side = Side { blocks: vec![(0, whole)], end: count };
        let spilt = self.space.spilt(&side, dtype.size());
        let wrong = self.space.compare(whole, dtype.size(), &want);
        let wrong = wrong.or((spilt > 0).then(|| format!("{spilt} bytes changed outside of the buffer")))?;
        Some(format!("rank {} of {}, {:?}: {wrong}", self.rank, self.n, self.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One rank alone: every collective gives what is expected, and a changed byte is found.
    #[test]
    fn results_are_checked() {
        let comm = Communicator::init_all(1, &graccl::Config::default()).unwrap().remove(0);
        let data = Data::new(7);
        let mut r = Rng::new(3);
        let (mut checked, mut found) = (0, 0);
        for _ in 0..2000 {
            let mut op = Op::new(Spec::random(&mut r, 1), 0, 1, &data, &mut r).unwrap();
            op.run(&comm).unwrap();
            assert_eq!(op.check(&data), None);
            let Some((_, e)) = op.got.blocks.first().copied().filter(|(_, e)| e.count > 0) else { continue };
            checked += 1;
            let size = op.spec.dtype.size();
            let space = op.recv.as_mut().or(op.send.as_mut()).unwrap();
            let part = space.part(e, size);
            space.buffer.slice_mut(part)[0] ^= 1;
            found += usize::from(op.check(&data).is_some());
            if let Some(space) = &mut op.recv {
                let end = space.from + space.len;
                space.buffer.slice_mut(end..end + 1)[0] ^= 1;
                assert!(op.check(&data).unwrap().contains("1 bytes changed outside"));
            }
        }
        assert!(checked > 500 && found == checked, "{found} of {checked}");
    }

    #[test]
    fn a_rank_that_is_missing_is_found() {
        let data = Data::new(9);
        for dtype in DataType::ALL {
            let all = data.pattern(dtype, RedOp::Sum, 4, What::All);
            let three = data.pattern(dtype, RedOp::Sum, 4, What::Prefix(3, false));
            let mut bytes = vec![0; 100 * dtype.size()];
            three.fill_from(0, &mut bytes);
            assert!(all.compare_from(0, &bytes).count > 90, "{dtype:?}");
        }
    }
}

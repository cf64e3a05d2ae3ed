//! One call, as data: what it is, whether its arguments make sense, and how people read it.

use std::sync::Arc;

use crate::reduce::Wire;
use crate::schedule::Collective;
use crate::{DataType, Error, RedOp, Reduction, Result};

/// A call of a collective: what every form of it (blocking, non-blocking, in a group) is made of.
///
/// Its pointers are not owned: see [`Communicator::call`](super::Communicator::call).
#[derive(Clone, Debug)]
pub struct Call {
    pub collective: Collective,
    /// Rank; 0 for collectives without a root.
    pub root: usize,
    /// May be null where this rank sends, or receives, nothing.
    pub send: *const u8,
    pub recv: *mut u8,
    pub counts: Counts,
    pub dtype: DataType,
    /// For collectives that do not reduce: `RedOp::Sum`.
    pub op: Reduction,
    /// Messages between hosts are in this form: for sums and averages of f32 by all_reduce. All ranks get
    /// the same bits. Within a host nothing changes, so without several hosts it does nothing.
    pub wire: Option<Wire>,
    /// As many f32 as the buffers have: what packing an element lost, for the next call, which makes up for
    /// it. Zero at first, and again when ranks or hosts change. Null: it is lost.
    pub residual: *mut f32,
}

/// Elements of the blocks of a call. Which blocks there are: [`Collective`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Counts {
    /// Every block has this many, and blocks lie one behind the other.
    Even(usize),
    /// Each block of this rank's send buffer, each of its receive buffer (the forms `_v`). A buffer of
    /// which this rank has no blocks has an empty list.
    Each { send: Arc<[Extent]>, recv: Arc<[Extent]> },
}

/// Where a block lies in its buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    pub at: usize,
    pub count: usize,
}

// SAFETY: a call is only a description; who runs it promises that the buffers may be used from there.
unsafe impl Send for Call {}

impl Call {
    /// A call with equal blocks, without a root or with root 0.
    pub fn new(
        collective: Collective,
        send: *const u8,
        recv: *mut u8,
        count: usize,
        dtype: DataType,
        op: impl Into<Reduction>,
    ) -> Call {
        let counts = Counts::Even(count);
        let residual = std::ptr::null_mut();
        Call { collective, root: 0, send, recv, counts, dtype, op: op.into(), wire: None, residual }
    }

    /// The same with messages between hosts in another form.
    pub fn packed(self, wire: Wire, residual: *mut f32) -> Call {
        Call { wire: Some(wire), residual, ..self }
    }

    /// The same with another root.
    pub fn root(self, root: usize) -> Call {
        Call { root, ..self }
    }

    /// A call that only moves data.
    pub fn moving(
        collective: Collective,
        send: *const u8,
        recv: *mut u8,
        count: usize,
        dtype: DataType,
    ) -> Call {
        Call::new(collective, send, recv, count, dtype, RedOp::Sum)
    }
}

impl Extent {
    /// Blocks of these counts, one behind the other.
    pub fn packed(counts: &[usize]) -> Arc<[Extent]> {
        let mut at = 0usize;
        let extents = counts.iter().map(|&count| {
            let e = Extent { at, count };
            at = at.saturating_add(count);
            e
        });
        extents.collect()
    }
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verb {
    Do(Collective),
    Barrier,
    Send,
    Recv,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Verb::Do(c) => c.name(),
            Verb::Barrier => "barrier",
            Verb::Send => "send",
            Verb::Recv => "recv",
        }
    }

    pub fn collective(self) -> Option<Collective> {
        match self {
            Verb::Do(c) => Some(c),
            Verb::Barrier => Some(Collective::AllReduce),
            Verb::Send | Verb::Recv => None,
        }
    }

    #[inline]
    fn number(self) -> u64 {
        match self {
            Verb::Do(c) => c as u64,
            Verb::Barrier => 32,
            Verb::Send => 33,
            Verb::Recv => 34,
        }
    }
}

/// What a call looks like; equal keys share all preparation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub verb: Verb,
    /// Root, or the peer of a send or receive.
    pub root: u32,
    /// Elements of a block.
    pub count: usize,
    pub dtype: DataType,
    pub op: RedOp,
    pub wire: Option<Wire>,
}

/// Entries of the table that finds a prepared call without hashing.
pub(super) const QUICK: usize = 64;

impl Key {
    /// That of a call with even counts, which takes nothing but its buffers besides. Whether its arguments
    /// make sense has to be seen yet.
    #[inline]
    pub fn of(call: &Call, n: usize) -> Option<Key> {
        match call.counts {
            Counts::Even(count) if call.op.factor.is_none() && call.root < n && call.wire.is_none() => {
                Some(Key {
                    verb: Verb::Do(call.collective),
                    root: call.root as u32,
                    count,
                    dtype: call.dtype,
                    op: call.op.op,
                    wire: None,
                })
            }
            _ => None,
        }
    }

    pub fn barrier() -> Key {
        Key { verb: Verb::Barrier, root: 0, count: 0, dtype: DataType::U8, op: RedOp::Max, wire: None }
    }

    /// For people and for comparing calls: the same text on all ranks that agree.
    pub fn text(&self) -> String {
        self.text_of("", &format!("{} ", self.count))
    }

    /// The text of a form of the call, with so many elements.
    fn text_of(&self, form: &str, count: &str) -> String {
        let Key { verb, root, dtype, op, wire, .. } = self;
        let mut text = match verb {
            Verb::Barrier => return "barrier".into(),
            _ => format!("{}{form} of {count}{}", verb.name(), dtype.name()),
        };
        if verb.collective().is_some_and(Collective::reduces) {
            text += &format!(" ({})", op.name());
        }
        if let Some(wire) = wire {
            text += &format!(" as {} between hosts", wire.name());
        }
        match verb {
            Verb::Do(Collective::Broadcast | Collective::Scatter) | Verb::Recv => {
                text + &format!(" from rank {root}")
            }
            Verb::Do(Collective::Reduce | Collective::Gather) | Verb::Send => {
                text + &format!(" to rank {root}")
            }
            _ => text,
        }
    }

    #[inline]
    pub fn quick(&self) -> usize {
        let h = (self.count as u64) << 20
            | u64::from(self.root) << 12 & 0xf_f000
            | self.verb.number() << 7
            | (self.dtype as u64) << 3
            | self.op as u64;
        (h.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % QUICK
    }
}

/// The buffers of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    pub send: *const u8,
    pub recv: *mut u8,
    /// The input is where the output goes, or there is no input.
    pub in_place: bool,
    /// See [`Call::residual`].
    pub residual: *mut f32,
}

impl Buffers {
    pub const NONE: Buffers = Buffers {
        send: std::ptr::null(),
        recv: std::ptr::null_mut(),
        in_place: true,
        residual: std::ptr::null_mut(),
    };
}

/// What the buffers of a call with even counts must be like on one rank. Kept with what is prepared of a
/// call, so that the next one is checked by a few comparisons.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fit {
    /// Bytes of the send and of the receive buffer.
    pub sent: usize,
    pub got: usize,
    /// Where the block that both have begins in them, in bytes.
    shared: Option<(usize, usize)>,
    /// There is no input.
    only_output: bool,
}

impl Fit {
    /// For blocks of `bytes`. The products must not overflow.
    pub fn of(c: Collective, root: usize, rank: usize, n: usize, bytes: usize) -> Fit {
        let (nsend, nrecv) = (c.send_blocks(n, root, rank), c.recv_blocks(n, root, rank));
        let shared = match c {
            Collective::AllToAll => None,
            _ if nsend == 0 || nrecv == 0 => None,
            Collective::AllGather | Collective::Gather => Some((0, rank * bytes)),
            Collective::ReduceScatter | Collective::Scatter => Some((rank * bytes, 0)),
            _ => Some((0, 0)),
        };
        Fit { sent: nsend * bytes, got: nrecv * bytes, shared, only_output: nsend == 0 }
    }

    /// Accepts buffers that are there, and apart or in place.
    #[inline]
    pub fn check(&self, send: *const u8, recv: *mut u8) -> Option<Buffers> {
        let in_place = match self.shared {
            Some((s, r)) => (send as usize).wrapping_add(s) == (recv as usize).wrapping_add(r),
            None => self.only_output,
        };
        let null = (self.sent != 0 && send.is_null()) || (self.got != 0 && recv.is_null());
        let apart = in_place || !overlap((send as usize, self.sent), (recv as usize, self.got));
        (!null && apart).then_some(Buffers { send, recv, in_place, ..Buffers::NONE })
    }
}

/// A call whose arguments have been checked, for one rank.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub key: Key,
    pub buffers: Buffers,
    /// For the forms with uneven counts.
    pub each: Option<Each>,
    pub factor: Option<crate::Factor>,
}

/// Uneven counts of one rank.
#[derive(Clone, Debug)]
pub(super) struct Each {
    pub send: Arc<[Extent]>,
    pub recv: Arc<[Extent]>,
}

// SAFETY: as for `Call`.
unsafe impl Send for Work {}

impl Work {
    /// Checks a call on `rank` of `n` ranks.
    pub fn of(call: &Call, rank: usize, n: usize) -> Result<Work> {
        let Counts::Even(count) = call.counts else { return Work::uneven(call, rank, n) };
        let c = call.collective;
        if let Some(wire) = call.wire {
            check_wire(call, wire)?;
        }
        if call.root >= n || (c.reduces() && (call.op.factor.is_some() || call.op.op == RedOp::Avg)) {
            check_operation(call, n)?;
        }
        let size = call.dtype.size();
        let most = c.send_blocks(n, call.root, rank).max(c.recv_blocks(n, call.root, rank)).max(1);
        if count > isize::MAX as usize / size / most {
            return Err(too_large(call, count, most));
        }
        let fit = Fit::of(c, call.root, rank, n, count * size);
        let Some(buffers) = fit.check(call.send, call.recv) else {
            let no_send = fit.sent != 0 && call.send.is_null();
            let no_recv = fit.got != 0 && call.recv.is_null();
            return Err(if no_send || no_recv { null(call, no_send) } else { overlapping(call) });
        };
        let key = Key {
            verb: Verb::Do(c),
            root: call.root as u32,
            count,
            dtype: call.dtype,
            op: if c.reduces() { call.op.op } else { RedOp::Sum },
            wire: call.wire,
        };
        let factor = if c.reduces() { call.op.factor } else { None };
        let buffers = Buffers { residual: call.residual, ..buffers };
        Ok(Work { key, buffers, each: None, factor })
    }

    #[cold]
    fn uneven(call: &Call, rank: usize, n: usize) -> Result<Work> {
        let Counts::Each { send, recv } = &call.counts else {
            return Err(Error::internal("a call with even counts"));
        };
        let c = call.collective;
        check_operation(call, n)?;
        if let Some(wire) = call.wire {
            check_wire(call, wire)?;
        }
        use Collective::*;
        if !matches!(c, ReduceScatter | AllGather | Gather | Scatter | AllToAll) {
            return Err(Error::argument(format!("{} has no form with uneven counts", c.name())));
        }
        let (nsend, nrecv) = (c.send_blocks(n, call.root, rank), c.recv_blocks(n, call.root, rank));
        for (list, want, what) in [(send, nsend, "send"), (recv, nrecv, "receive")] {
            if list.len() != want {
                let what = format!("{} counts for {want} blocks of the {what} buffer", list.len());
                return Err(Error::argument(what).who(name(call)));
            }
        }
        let size = call.dtype.size();
        let end = |list: &[Extent]| -> Result<usize> {
            let mut most = 0usize;
            for e in list.iter().filter(|e| e.count > 0) {
                let end = e.at.checked_add(e.count).filter(|&e| e <= isize::MAX as usize / size);
                most = most.max(end.ok_or_else(|| too_large(call, e.count, 1))?);
            }
            Ok(most * size)
        };
        let (sent, got) = (end(send)?, end(recv)?);
        if (sent != 0 && call.send.is_null()) || (got != 0 && call.recv.is_null()) {
            return Err(null(call, sent != 0 && call.send.is_null()));
        }
        let mut sorted: Vec<&Extent> = recv.iter().filter(|e| e.count > 0).collect();
        sorted.sort_unstable_by_key(|e| e.at);
        if let Some(w) = sorted.windows(2).find(|w| w[0].at + w[0].count > w[1].at) {
            let what =
                format!("blocks of the receive buffer overlap, at elements {} and {}", w[0].at, w[1].at);
            return Err(Error::argument(what).who(name(call)).hint("look at counts and displacements"));
        }
        let block = match c {
            AllToAll => None,
            _ => Some(rank),
        };
        let shared = block.and_then(|b| {
            let s = c.sent(n, call.root, rank, b).map(|i| send[i])?;
            let r = c.received(n, call.root, rank, b).map(|i| recv[i])?;
            Some((s, r))
        });
        if let Some((s, r)) = shared
            && s.count != r.count
        {
            let what =
                format!("this rank's own block has {} elements to send and {} to receive", s.count, r.count);
            return Err(Error::argument(what).who(name(call)));
        }
        let at = |base: usize, e: Extent| base.wrapping_add(e.at * size);
        let in_place = match shared {
            Some((s, r)) => at(call.send as usize, s) == at(call.recv as usize, r),
            None => nsend == 0,
        };
        if !in_place && overlap((call.send as usize, sent), (call.recv as usize, got)) {
            return Err(overlapping(call));
        }
        if c == AllToAll && send[rank].count != recv[rank].count {
            let what = format!(
                "this rank sends itself {} elements and receives {}",
                send[rank].count, recv[rank].count
            );
            return Err(Error::argument(what).who(name(call)));
        }
        // What all ranks know alike.
        let known = match c {
            ReduceScatter => send.iter().map(|e| e.count).sum(),
            AllGather => recv.iter().map(|e| e.count).sum(),
            _ => 0,
        };
        let key = Key {
            verb: Verb::Do(c),
            root: call.root as u32,
            count: known,
            dtype: call.dtype,
            op: if c.reduces() { call.op.op } else { RedOp::Sum },
            wire: None,
        };
        let each = Some(Each { send: send.clone(), recv: recv.clone() });
        let factor = if c.reduces() { call.op.factor } else { None };
        let buffers = Buffers { send: call.send, recv: call.recv, in_place, ..Buffers::NONE };
        Ok(Work { key, buffers, each, factor })
    }

    /// A send to `peer` or a receive from it.
    pub fn point(
        verb: Verb,
        buffer: *mut u8,
        count: usize,
        dtype: DataType,
        peer: usize,
        rank: usize,
        n: usize,
    ) -> Result<Work> {
        let key = Key { verb, root: peer as u32, count, dtype, op: RedOp::Sum, wire: None };
        let who = || key.text();
        if peer >= n {
            return Err(Error::argument(format!("there is no rank {peer}"))
                .who(who())
                .hint(format!("ranks are 0 to {}", n - 1)));
        }
        if peer == rank {
            return Err(Error::argument("a rank cannot send to itself").who(who()).hint("copy the memory"));
        }
        if count > isize::MAX as usize / dtype.size() {
            return Err(Error::argument(format!(
                "{count} elements of {} bytes do not fit in memory",
                dtype.size()
            ))
            .who(who())
            .hint("the count is in elements; a negative number may have been passed"));
        }
        if count > 0 && buffer.is_null() {
            return Err(Error::argument("the buffer is null").who(who()).hint("only a count of 0 allows it"));
        }
        let buffers = Buffers { send: buffer, recv: buffer, in_place: false, ..Buffers::NONE };
        Ok(Work { key, buffers, each: None, factor: None })
    }

    pub fn barrier() -> Work {
        Work { key: Key::barrier(), buffers: Buffers::NONE, each: None, factor: None }
    }

    /// "all_gather_v of 3 + 5 float", see [`Key::text`].
    pub fn text(&self) -> String {
        match (&self.each, self.key.verb) {
            (None, _) => self.key.text(),
            (Some(each), Verb::Do(Collective::AllGather)) => self.key.text_of("_v", &sum_of(&each.recv)),
            (Some(each), Verb::Do(Collective::ReduceScatter)) => self.key.text_of("_v", &sum_of(&each.send)),
            _ => self.key.text_of("_v", ""),
        }
    }

    /// How many elements there are in a block is only known to the rank that sends it and the one that gets it,
    /// so the call's text does not say it, and messages have a [`mark`].
    pub fn between_two(&self) -> bool {
        let known = matches!(self.key.verb, Verb::Do(Collective::AllGather | Collective::ReduceScatter));
        self.key.verb.collective().is_none() || self.each.is_some() && !known
    }

    /// Elements that this rank expects of `rank` in a call that is [`between_two`](Work::between_two).
    pub fn expects(&self, rank: usize) -> usize {
        match &self.each {
            None => self.key.count,
            // Of a root; otherwise there is a block for each rank.
            Some(Each { recv, .. }) if recv.len() == 1 => recv[0].count,
            Some(Each { recv, .. }) => recv.get(rank).map_or(0, |e| e.count),
        }
    }

    /// Bytes that everybody knows of: of the larger buffer for even counts.
    pub fn known_bytes(&self, n: usize) -> usize {
        let blocks = match (self.key.verb, &self.each) {
            (_, Some(_)) => 1,
            (Verb::Do(Collective::AllToAll), _) => n,
            (Verb::Do(c), _) => c.blocks(n),
            _ => 1,
        };
        self.key.count * self.key.dtype.size() * blocks
    }
}

/// What messages say of a block that is known to two ranks only. It can be read again for less than 2^28 elements.
pub(super) fn mark(count: usize, dtype: DataType) -> u32 {
    let said = (count as u64) << 4 | dtype as u64;
    (said ^ said >> 32) as u32
}

/// "3 float", of a [`mark`]; `None` if it is none.
pub(super) fn marked(mark: u32) -> Option<String> {
    let dtype = DataType::ALL.get(mark as usize & 15)?;
    Some(format!("{} {}", mark >> 4, dtype.name()))
}

/// "3 + 5 ", of all blocks. Of many the first ones, and what tells the others apart.
fn sum_of(blocks: &[Extent]) -> String {
    const SHOWN: usize = 8;
    let list: Vec<String> = blocks.iter().take(SHOWN).map(|e| e.count.to_string()).collect();
    let list = list.join(" + ");
    if blocks.len() <= SHOWN {
        return list + " ";
    }
    let bytes: Vec<u8> = blocks.iter().flat_map(|e| e.count.to_le_bytes()).collect();
    format!("{list} + ... ({} blocks, {:08x}) ", blocks.len(), fnv(&bytes))
}

/// FNV-1a.
pub(super) fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, &b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[inline]
fn overlap((a, alen): (usize, usize), (b, blen): (usize, usize)) -> bool {
    alen != 0 && blen != 0 && a < b + blen && b < a + alen
}

/// "all_reduce of 10 float".
fn name(call: &Call) -> String {
    let count = match &call.counts {
        Counts::Even(count) => format!(" of {count} "),
        Counts::Each { .. } => "_v of ".into(),
    };
    format!("{}{count}{}", call.collective.name(), call.dtype.name())
}

#[cold]
fn check_operation(call: &Call, n: usize) -> Result<()> {
    let c = call.collective;
    if call.root >= n {
        return Err(Error::argument(format!("root {} is not a rank", call.root))
            .who(name(call))
            .hint(format!("ranks are 0 to {}", n - 1)));
    }
    if matches!(c, Collective::Scan | Collective::Exscan) && call.op.op == RedOp::Avg {
        return Err(Error::argument(format!("{} has no average", c.name()))
            .who(name(call))
            .hint("sum, and divide by the number of ranks so far"));
    }
    match call.op.factor {
        Some(f) if c.reduces() => {
            if call.op.op != RedOp::Sum {
                return Err(Error::argument("only sums take a factor").who(name(call)));
            }
            f.fits(call.dtype).map_err(|e| e.who(name(call)))
        }
        _ => Ok(()),
    }
}

#[cold]
fn check_wire(call: &Call, wire: Wire) -> Result<()> {
    let sums = matches!(call.op.op, RedOp::Sum | RedOp::Avg);
    let even = matches!(call.counts, Counts::Even(_));
    if call.collective == Collective::AllReduce && call.dtype == DataType::F32 && sums && even {
        return Ok(());
    }
    Err(Error::argument(format!("messages of this call cannot be packed as {}", wire.name()))
        .who(name(call))
        .hint("only sums and averages of float by all_reduce can"))
}

#[cold]
fn too_large(call: &Call, count: usize, blocks: usize) -> Error {
    let times = if blocks > 1 { format!("{blocks} times ") } else { String::new() };
    Error::argument(format!("{times}{count} elements of {} bytes do not fit in memory", call.dtype.size()))
        .who(name(call))
        .hint("the count is in elements; a negative number may have been passed")
}

#[cold]
fn null(call: &Call, send: bool) -> Error {
    let which = if send { "send" } else { "receive" };
    Error::argument(format!("the {which} buffer is null")).who(name(call)).hint("only a count of 0 allows it")
}

#[cold]
fn overlapping(call: &Call) -> Error {
    use Collective::*;
    let hint = match call.collective {
        AllToAll => "all_to_all has no form in place: pass buffers that are apart",
        AllGather | Gather => "in place, the send buffer is this rank's block of the receive buffer",
        ReduceScatter | Scatter => "in place, the receive buffer is this rank's block of the send buffer",
        _ => "pass the same pointer twice to work in place, or buffers that are apart",
    };
    Error::argument("send and receive buffer overlap")
        .who(format!("{}, {:p} and {:p}", name(call), call.send, call.recv))
        .hint(hint)
}

//! The engine: walks a bound program.

use super::bind::{BoundArg, BoundLane, BoundOp, Form, Lend, pack_stride};
use super::tiling::Place;
use super::{Bound, Tiling};
use crate::Result;
use crate::reduce::{self, Kernel, Wire};
use crate::schedule::ArgKind;
use crate::transport::{AnyLink, Link, REF_MIN, Recv};

/// Everything that one call adds to a bound program.
pub struct Launch<'a> {
    pub bound: &'a Bound,
    pub tiling: &'a Tiling,
    pub kernel: Kernel,
    /// Bytes of an element.
    pub esize: usize,
    /// Where the caller's buffers begin. Only the blocks that are in them are touched: a buffer without
    /// blocks may be any pointer. In place, a block that is in both lies at the same address.
    pub input: *const u8,
    pub output: *mut u8,
    /// Scratch images, one after the other, per way; null if the program has none.
    pub scratch: *mut u8,
    /// Distance of scratch images ([`Tiling::scratch_bytes`] or more), and of the ways' sets of them.
    pub scratch_stride: [usize; 2],
    /// Divide complete values by this many ranks (averages), if more than 1.
    pub divide: u32,
    pub fp: u32,
    /// Tries of the only lane before it counts as stuck: sooner noticed than through [`Idle`].
    pub spin: u32,
    /// The output is not read again soon and larger than the caches: store past them.
    pub stream: bool,
    /// Messages may be taken from where they lie: through shared memory (the receiver reads our
    /// memory, and writes its reply there), and through other links (only this process reads it).
    pub by_ref_shm: bool,
    pub by_ref_other: bool,
    /// For programs that were bound so.
    pub pack: Option<Pack>,
}

/// How a launch packs f32 for a slow network. What an op completes is rounded there and then, so that who
/// gets it packed and who gets it plain have the same bits.
#[derive(Clone, Copy, Debug)]
pub struct Pack {
    pub wire: Wire,
    /// Working memory of [`Bound::pack_bytes`], aligned to 64 bytes.
    pub work: *mut u8,
    /// As long as the output: what packing an element lost, for the next launch. Null: nothing is kept.
    pub residual: *mut f32,
}

impl Launch<'_> {
    #[inline]
    fn by_ref(&self, link: &AnyLink, p: *const u8, len: usize) -> bool {
        let allowed = if matches!(link, AnyLink::Shm(_)) { self.by_ref_shm } else { self.by_ref_other };
        allowed && link.can_ref(p, len)
    }
}

/// What a lane waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub lane: usize,
    pub tile: u32,
    /// Index in the schedule's lane.
    pub op: u32,
    pub link: u32,
    /// The link is broken or carries something else; otherwise it is just not ready.
    pub fault: bool,
}

/// What happens between two passes in which no lane advanced.
pub trait Idle {
    /// Called again and again while nothing moves. An error ends the launch.
    fn idle(&mut self, links: &mut [AnyLink], blocked: &[Blocked]) -> Result<Pause>;
    /// Something moved: the next wait starts afresh.
    fn moved(&mut self);
}

/// Answer of [`Idle::idle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Pass again.
    Again,
    /// Wait here no longer, but keep the launch: somebody else goes on with [`Engine::pass`].
    Leave,
}

/// Answer of [`Engine::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// As [`Progress::Done`].
    Done,
    /// It was left on [`Pause::Leave`], and goes on where it stands with [`Engine::pass`].
    Left,
}

/// Answer of [`Engine::pass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Some lane advanced.
    Moved,
    /// Nothing advanced; [`Engine::blocked`] says what is waited for, and whether it is a fault.
    Stuck,
    /// The launch is over: this rank's output is complete and its buffers are free.
    Done,
}

#[derive(Clone, Copy)]
struct Cursor {
    lane: u32,
    way: u32,
    tile: u32,
    op: u32,
    /// The block of the op, and its place in the tile.
    block: u32,
    place: Place,
}

impl Cursor {
    /// Moves on, from the op at hand (included), to the next one whose block has this tile. False if
    /// there is none in this way.
    fn settle(&mut self, l: &Launch) -> bool {
        let ops = &l.bound.lanes[self.lane as usize].ops;
        loop {
            while let Some(op) = ops.get(self.op as usize) {
                if self.tile < l.tiling.tiles_of(op.block) {
                    self.block = op.block;
                    self.place = l.tiling.place(op.block, self.tile);
                    return true;
                }
                self.op += 1;
            }
            self.op = 0;
            self.tile += l.bound.ways;
            if self.tile >= l.tiling.tiles() {
                return false;
            }
        }
    }
}

/// The state of one launch, and working memory that is kept between launches so that a call
/// allocates nothing. Many launches under way need as many engines.
///
/// ```text
///          start            last lane ends          last link idle
/// (any) ---------> running ----------------> closing --------------> done
///                  lanes step                 links were told that
///                  through their ops          the call ends; some
///                                             still use our memory
/// ```
///
/// [`Engine::run`] goes all the way; whoever drives several launches in one thread calls
/// [`Engine::start`] and then [`Engine::pass`] until it is `Done`. A launch is given up by not
/// passing any more; `start` forgets it. Threads may take turns with an engine.
#[derive(Default)]
pub struct Engine {
    /// Lanes that have not ended, one entry for each way; none when not running.
    cursors: Vec<Cursor>,
    /// The links have been told that the call ends.
    closing: bool,
    /// Of the program's links, how many are known to be idle.
    closed: usize,
    operands: Operands,
    blocked: Vec<Blocked>,
}

/// The operands' addresses of the op at hand.
#[derive(Default)]
struct Operands {
    srcs: Vec<*const u8>,
    dsts: Vec<*mut u8>,
}

// SAFETY: the pointers are only meaningful inside a pass.
unsafe impl Send for Operands {}

enum Step {
    Fired,
    Wait(u32),
    Fault(u32),
}

impl Engine {
    /// Runs the launch to its end: this rank's output is complete and its buffers are free. Or until
    /// `idle` leaves it.
    ///
    /// # Safety
    /// The launch's buffers are valid for the bytes of the tiling's blocks that are in them, scratch for
    /// its strides, and nobody else uses them; the tiling is that of the bound program's blocks and
    /// chunks; `links` holds the links that the program was bound to. All this until the launch is over
    /// or given up.
    pub unsafe fn run(&mut self, l: &Launch, links: &mut [AnyLink], idle: &mut impl Idle) -> Result<Ran> {
        if let [lane] = &l.bound.lanes[..]
            && let Some(places) = l.tiling.single()
        {
            // A small call: one straight line, without the bookkeeping of many. Where it stands still for
            // long, the passes below go on from there.
            self.reserve(l);
            self.cursors.clear();
            let (mut at, mut tries) = (0, l.spin);
            while let Some(op) = lane.ops.get(at) {
                let place = &places[op.block as usize];
                // SAFETY: the caller's promise.
                match unsafe { self.operands.step(l, links, lane, op, 0, place) } {
                    Step::Fired => at += 1,
                    Step::Wait(_) if tries > 0 => {
                        tries -= 1;
                        std::hint::spin_loop();
                    }
                    _ => {
                        let (op, block, place) = (at as u32, op.block, *place);
                        self.cursors.push(Cursor { lane: 0, way: 0, tile: 0, op, block, place });
                        break;
                    }
                }
            }
            (self.closing, self.closed) = (false, 0);
        } else {
            self.start(l);
        }
        loop {
            // SAFETY: the caller's promise.
            match unsafe { self.pass(l, links) } {
                Progress::Done => return Ok(Ran::Done),
                Progress::Moved => idle.moved(),
                Progress::Stuck => {
                    if idle.idle(links, &self.blocked)? == Pause::Leave {
                        return Ok(Ran::Left);
                    }
                }
            }
        }
    }

    /// Begins a launch, and forgets any earlier one. Nothing is sent yet.
    #[inline]
    pub fn start(&mut self, l: &Launch) {
        self.cursors.clear();
        (self.closing, self.closed) = (false, 0);
        self.reserve(l);
        for tile in 0..l.bound.ways.min(l.tiling.tiles()) {
            for (lane, b) in l.bound.lanes.iter().enumerate() {
                let Some(first) = b.ops.first() else { continue };
                let (lane, block) = (lane as u32, first.block);
                let place = l.tiling.place(block, tile);
                let mut c = Cursor { lane, way: tile, tile, op: 0, block, place };
                if c.settle(l) {
                    self.cursors.push(c);
                }
            }
        }
    }

    #[inline]
    fn reserve(&mut self, l: &Launch) {
        debug_assert_eq!(
            (l.tiling.blocks(), l.tiling.chunks()),
            (l.bound.blocks().len(), l.bound.chunks),
            "the tiling of another program"
        );
        let o = &mut self.operands;
        if o.srcs.len() < l.bound.operands {
            o.srcs.resize(l.bound.operands, std::ptr::null());
            o.dsts.resize(l.bound.operands, std::ptr::null_mut());
        }
    }

    /// What stood still in the last pass.
    pub fn blocked(&self) -> &[Blocked] {
        &self.blocked
    }

    /// Lets every lane advance as far as it can. Never blocks.
    ///
    /// # Safety
    /// As for `run`, from `start` until the answer is `Done` or the launch is given up. `l` and `links`
    /// are the same in all passes of a launch.
    #[inline]
    pub unsafe fn pass(&mut self, l: &Launch, links: &mut [AnyLink]) -> Progress {
        let mut moved = false;
        self.blocked.clear();
        let mut i = 0;
        let spin = if self.cursors.len() == 1 { l.spin } else { 0 };
        while i < self.cursors.len() {
            // In place: a copy would be a wide load over narrow stores, which stalls.
            let c = &mut self.cursors[i];
            let lane = &l.bound.lanes[c.lane as usize];
            let mut tries = spin;
            let done = loop {
                let op = &lane.ops[c.op as usize];
                // SAFETY: the caller's promise.
                let step = unsafe { self.operands.step(l, links, lane, op, c.way, &c.place) };
                let (link, fault) = match step {
                    Step::Fired => {
                        moved = true;
                        c.op += 1;
                        let same = lane.ops.get(c.op as usize).is_some_and(|op| op.block == c.block);
                        if same || c.settle(l) {
                            continue;
                        }
                        break true;
                    }
                    Step::Wait(_) if tries > 0 => {
                        tries -= 1;
                        std::hint::spin_loop();
                        continue;
                    }
                    Step::Wait(link) => (link, false),
                    Step::Fault(link) => (link, true),
                };
                let (lane, tile, op) = (c.lane as usize, c.tile, op.index);
                self.blocked.push(Blocked { lane, tile, op, link, fault });
                if fault {
                    moved = false;
                }
                break false;
            };
            if done {
                self.cursors.swap_remove(i);
            } else {
                i += 1;
            }
        }
        if self.cursors.is_empty() && self.close(l, links) {
            Progress::Done
        } else if moved {
            Progress::Moved
        } else {
            Progress::Stuck
        }
    }

    /// Ends the call on all links; false while one of them still uses the caller's memory.
    #[inline]
    fn close(&mut self, l: &Launch, links: &mut [AnyLink]) -> bool {
        if !self.closing {
            self.closing = true;
            if l.stream {
                reduce::store_fence();
            }
            // All of them before waiting for any: a peer may be waiting for what `finish` tells it, and
            // not tell us what we wait for before it has heard that.
            for &n in &l.bound.links {
                links[n as usize].finish();
            }
        }
        while let Some(&link) = l.bound.links.get(self.closed) {
            let waited = &mut links[link as usize];
            if !waited.idle() {
                let fault = waited.fault().is_some();
                self.blocked.push(Blocked { lane: 0, tile: l.tiling.tiles(), op: 0, link, fault });
                return false;
            }
            self.closed += 1;
        }
        true
    }
}

impl Operands {
    /// # Safety
    /// As for `Engine::run`.
    #[inline]
    unsafe fn step(
        &mut self,
        l: &Launch,
        links: &mut [AnyLink],
        lane: &BoundLane,
        op: &BoundOp,
        way: u32,
        place: &Place,
    ) -> Step {
        let args = &lane.args[op.arg as usize..];
        let (from, len) = l.tiling.span(place, op.at, op.len);
        let fp = l.fp ^ place.mark;
        let local = |a: &BoundArg| match a.kind {
            ArgKind::In => l.input.wrapping_add(place.input.wrapping_add(from)) as *mut u8,
            ArgKind::Out => l.output.wrapping_add(place.output.wrapping_add(from)),
            _ => {
                let [image, set] = l.scratch_stride;
                l.scratch.wrapping_add(a.link as usize * image + way as usize * set + place.scratch + from)
            }
        };
        // What is kept in scratch is read again soon.
        let stream = l.stream && op.lend == Lend::Dst;
        match op.form {
            Form::Send => {
                let (src, dst) = (&args[0], &args[1]);
                let (p, n) = (local(src).cast_const(), dst.link + way);
                let link = &mut links[n as usize];
                if l.by_ref(link, p, len) {
                    if !link.room() {
                        return wait(link, n);
                    }
                    // SAFETY: the span is the caller's; the algorithm is proved safe by reference.
                    unsafe { link.send_ref(p, len, fp) };
                    return Step::Fired;
                }
                let Some(slot) = link.send_slot(len) else { return wait(link, n) };
                // SAFETY: slot and span are `len` bytes long and apart.
                unsafe { reduce::copy(slot, p, len, false) };
                link.commit(len, fp);
                Step::Fired
            }
            Form::Store => {
                let (src, dst) = (&args[0], &args[1]);
                let (to, n) = (local(dst), src.link + way);
                let link = &mut links[n as usize];
                match link.recv(len, fp) {
                    Recv::Ready(p) => {
                        if !std::ptr::eq(p, to) {
                            // SAFETY: both are `len` bytes long; a message never overlaps the output partially.
                            unsafe { reduce::copy(to, p, len, stream) };
                        }
                        link.release();
                        Step::Fired
                    }
                    Recv::Pending => {
                        // SAFETY: the lane stands at this op, and whatever it is ordered after has been done when
                        // the message was sent: so nobody uses the span from then until it has fired.
                        unsafe { link.land(to, len) };
                        Step::Wait(n)
                    }
                    Recv::Fault => Step::Fault(n),
                }
            }
            Form::Fold => {
                let (a, b) = (&args[0], &args[1]);
                let to = local(&args[2]);
                let n = if a.kind == ArgKind::Recv { a.link } else { b.link } + way;
                let link = &mut links[n as usize];
                let message = match link.recv(len, fp) {
                    Recv::Ready(p) => p.cast_const(),
                    Recv::Pending => return Step::Wait(n),
                    Recv::Fault => return Step::Fault(n),
                };
                let source =
                    |a: &BoundArg| if a.kind == ArgKind::Recv { message } else { local(a).cast_const() };
                let srcs = [source(a), source(b)];
                let ranks = if op.complete { l.divide } else { 1 };
                // SAFETY: all are `len` bytes long; a message never overlaps the output partially.
                unsafe { (l.kernel)(&to, 1, srcs.as_ptr(), 2, len / l.esize, ranks, stream) };
                link.release();
                Step::Fired
            }
            // SAFETY: the caller's promise.
            Form::General => unsafe { self.general(l, links, args, op, (way, fp), len, &local, stream) },
            // SAFETY: the caller's promise.
            Form::Packed => unsafe { self.packed(l, links, args, op, (way, fp), (place, from, len), &local) },
        }
    }

    /// Finds the sources of an op, of which messages have so many bytes, and its local destinations. Otherwise
    /// what it waits for.
    #[inline(always)]
    fn find(
        &mut self,
        links: &mut [AnyLink],
        (srcs, locals): (&[BoundArg], &[BoundArg]),
        (way, fp): (u32, u32),
        bytes: &impl Fn(&BoundArg) -> usize,
        local: &impl Fn(&BoundArg) -> *mut u8,
    ) -> Option<Step> {
        for (i, a) in srcs.iter().enumerate() {
            self.srcs[i] = if a.kind == ArgKind::Recv {
                let n = a.link + way;
                match links[n as usize].recv(bytes(a), fp) {
                    Recv::Ready(p) => p,
                    Recv::Pending => return Some(Step::Wait(n)),
                    Recv::Fault => return Some(Step::Fault(n)),
                }
            } else {
                local(a)
            };
        }
        for (i, a) in locals.iter().enumerate() {
            self.dsts[i] = local(a);
        }
        None
    }

    /// Any op.
    ///
    /// # Safety
    /// As for `run`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn general(
        &mut self,
        l: &Launch,
        links: &mut [AnyLink],
        args: &[BoundArg],
        op: &BoundOp,
        (way, fp): (u32, u32),
        len: usize,
        local: &impl Fn(&BoundArg) -> *mut u8,
        stream: bool,
    ) -> Step {
        let (nsrc, nlocal, nsend) = (op.nsrc as usize, op.nlocal as usize, op.nsend as usize);
        let (srcs, rest) = args.split_at(nsrc);
        let (locals, sends) = rest[..nlocal + nsend].split_at(nlocal);
        if let Some(stop) = self.find(links, (srcs, locals), (way, fp), &|_| len, local) {
            return stop;
        }
        // A local span that is itself the message.
        let lent = match op.lend {
            Lend::No => None,
            Lend::Src => Some(self.srcs[0]),
            Lend::Dst => Some(self.dsts[0].cast_const()),
        };
        let lent = |link: &AnyLink, a: &BoundArg| {
            lent.filter(|&p| !(a.reply && link.replies_in_place()) && l.by_ref(link, p, len))
        };
        let mut ndst = nlocal;
        for a in sends {
            let n = a.link + way;
            let link = &mut links[n as usize];
            if lent(link, a).is_some() {
                if !link.room() {
                    return wait(link, n);
                }
                continue;
            }
            let slot = if a.reply { link.send_reply_slot(len) } else { link.send_slot(len) };
            let Some(slot) = slot else { return wait(link, n) };
            self.dsts[ndst] = slot;
            ndst += 1;
        }
        // Shorter messages are never by reference.
        if len >= REF_MIN
            && let Some(n) = claim(links, sends, way)
        {
            return Step::Fault(n);
        }
        // A copy onto itself, in place: peers may be reading that memory.
        let kept = nsrc == 1 && nlocal > 0 && !op.complete && std::ptr::eq(self.srcs[0], self.dsts[0]);
        let dsts = &self.dsts[usize::from(kept)..ndst];
        if !dsts.is_empty() {
            // SAFETY: all operands are `len` bytes long; slots and spans are the same or apart.
            unsafe {
                (l.kernel)(
                    dsts.as_ptr(),
                    dsts.len(),
                    self.srcs.as_ptr(),
                    nsrc,
                    len / l.esize,
                    if op.complete { l.divide } else { 1 },
                    // Only the first destination is, and it must not be a message's.
                    stream && !kept,
                )
            };
        }
        if let Some(n) = release(links, srcs, way) {
            return Step::Fault(n);
        }
        for a in sends {
            let link = &mut links[(a.link + way) as usize];
            match lent(link, a) {
                // SAFETY: as in `step`.
                Some(p) => unsafe { link.send_ref(p, len, fp) },
                None => link.commit(len, fp),
            }
        }
        Step::Fired
    }

    /// An op that has to do with wire forms: unpacks, folds, packs, in working memory that stays in the
    /// caches. Nothing goes by reference.
    ///
    /// # Safety
    /// As for `run`.
    #[allow(clippy::too_many_arguments)]
    #[cold]
    unsafe fn packed(
        &mut self,
        l: &Launch,
        links: &mut [AnyLink],
        args: &[BoundArg],
        op: &BoundOp,
        (way, fp): (u32, u32),
        (place, from, len): (&Place, usize, usize),
        local: &impl Fn(&BoundArg) -> *mut u8,
    ) -> Step {
        let pack = l.pack.expect("a launch of a program that packs");
        let (nsrc, nlocal, nsend) = (op.nsrc as usize, op.nlocal as usize, op.nsend as usize);
        let (srcs, rest) = args.split_at(nsrc);
        let (locals, sends) = rest[..nlocal + nsend].split_at(nlocal);
        let (count, short) = (len / l.esize, pack.wire.bytes(len / l.esize));
        let bytes = |a: &BoundArg| if a.packed { short } else { len };
        if let Some(stop) = self.find(links, (srcs, locals), (way, fp), &bytes, local) {
            return stop;
        }
        for (i, a) in sends.iter().enumerate() {
            let n = a.link + way;
            let Some(slot) = links[n as usize].send_slot(bytes(a)) else {
                return wait(&links[n as usize], n);
            };
            self.dsts[nlocal + i] = slot;
        }
        let work = |i: usize| pack.work.wrapping_add(i * pack_stride(len));
        // SAFETY: operands have the bytes of the op, working memory has room for all sources and two more, and
        // no two of them overlap but a source and a destination that are the same.
        unsafe {
            for (i, _) in srcs.iter().enumerate().filter(|(_, a)| a.packed) {
                pack.wire.decode(work(i).cast(), self.srcs[i], count);
                self.srcs[i] = work(i);
            }
            let value = work(nsrc);
            let ranks = if op.complete { l.divide } else { 1 };
            (l.kernel)(&value, 1, self.srcs.as_ptr(), nsrc, count, ranks, false);
            let first = sends.iter().position(|a| a.packed).map(|i| self.dsts[nlocal + i]);
            let form = first.unwrap_or(work(nsrc + 1));
            if first.is_some() || op.complete {
                let at = place.output.wrapping_add(from) / l.esize;
                let residual = (!pack.residual.is_null()).then(|| pack.residual.wrapping_add(at));
                pack.wire.encode(form, value.cast(), count, residual);
            }
            if op.complete {
                pack.wire.decode(value.cast(), form, count);
            }
            for (a, &to) in locals.iter().chain(sends).zip(&self.dsts[..nlocal + nsend]) {
                let what = if a.packed { form } else { value };
                if !std::ptr::eq(what, to) {
                    std::ptr::copy_nonoverlapping(what, to, bytes(a));
                }
            }
        }
        if let Some(n) = release(links, srcs, way) {
            return Step::Fault(n);
        }
        for a in sends {
            links[(a.link + way) as usize].commit(bytes(a), fp);
        }
        Step::Fired
    }
}

/// Announces the replies that an op is about to write into their receivers' memory. The link of one that must not be
/// written any more; then none is.
#[inline(always)]
fn claim(links: &mut [AnyLink], sends: &[BoundArg], way: u32) -> Option<u32> {
    let mut replies = sends.iter().filter(|a| a.reply).map(|a| a.link + way);
    let n = replies.find(|&n| !links[n as usize].claim())?;
    sends.iter().for_each(|a| links[(a.link + way) as usize].disclaim());
    Some(n)
}

/// Gives back the messages that an op has used: before it sends, so that what it sends acknowledges them, and nothing
/// torn is passed on. The link of one that was taken back meanwhile.
#[inline(always)]
fn release(links: &mut [AnyLink], srcs: &[BoundArg], way: u32) -> Option<u32> {
    let mut torn = None;
    for a in srcs.iter().filter(|a| a.kind == ArgKind::Recv) {
        let n = a.link + way;
        links[n as usize].release();
        if links[n as usize].torn() {
            torn = Some(n);
        }
    }
    torn
}

/// A link that has no room is either full or broken.
#[cold]
fn wait(link: &AnyLink, n: u32) -> Step {
    if link.fault().is_some() { Step::Fault(n) } else { Step::Wait(n) }
}

/// Threads take turns with an engine.
const _: fn() = || {
    fn send<T: Send>() {}
    send::<Engine>();
};

//! Links in one process and one thread, on a clock that jumps: for tests.
//!
//! A [`World`] holds the channels of all ranks and a virtual clock. Every message, and every
//! acknowledgement, arrives at a time of its own (latency, length over bandwidth, random jitter);
//! nothing happens by itself: whoever drives the ranks calls [`World::advance`] when none of them can
//! move, and the clock jumps to the next arrival. When there is none, the ranks wait for each other
//! for ever. A run depends on nothing but the seed.
//!
//! ```text
//! sender                  channel (one each way)                          receiver
//! send_slot, commit  -->  [message, arrives at 17.3 us] [at 18.0 us]  --> recv, release
//! room, idle         <--  consumed 5 at 21.1 us                       <--
//! ```
//!
//! It is as unkind as the rules of [`Link`] allow: rooms have guard bytes, released messages are
//! overwritten, a message lands as soon as it is sent. [`Options`] says what it can do (by reference, replies in place, landing), so that every way through the executor is
//! taken. Links can be cut at a given time, and messages can be given a wrong fingerprint.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{AnyLink, Fault, Link, Recv};

/// How the links of a world behave. Times are nanoseconds of the virtual clock.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Of every message and acknowledgement.
    pub latency: u64,
    /// Bytes per microsecond on each channel; 0 for no limit.
    pub bandwidth: u64,
    /// Up to this much is added to each latency, at random. Channels stay in order.
    pub jitter: u64,
    /// Unconsumed messages that a channel is sure to hold (at least 1).
    pub depth: u32,
    /// Unacknowledged messages at which an acknowledgement is sent; until then they wait for a message
    /// the other way, or for the end of the call. 1: each is acknowledged at once.
    pub ack_lag: u32,
    /// Messages can be sent by reference.
    pub by_ref: bool,
    /// A reply goes into the room of the message that it answers.
    pub reply: bool,
    /// A reply to a message by reference goes into the sender's memory. (Only with `reply`.)
    pub reply_by_ref: bool,
    /// Messages land where they are wanted.
    pub land: bool,
    /// Largest message.
    pub capacity: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 1,
            latency: 1000,
            bandwidth: 1000,
            jitter: 0,
            depth: 2,
            ack_lag: 1,
            by_ref: false,
            reply: false,
            reply_by_ref: false,
            land: false,
            capacity: 256 << 10,
        }
    }
}

/// The network between all ranks. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

/// What a channel is between: (source, destination, port, way).
type Name = (u32, u32, u8, u32);

struct State {
    options: Options,
    now: u64,
    random: u64,
    /// Times at which something arrives or is cut.
    events: BTreeSet<u64>,
    channels: Vec<Channel>,
    names: HashMap<Name, usize>,
    /// From this time on all links of the rank, or between the two ranks, are broken.
    cuts: Vec<(u64, u32, Option<u32>)>,
    /// Messages to corrupt: source, destination, how many messages before.
    corrupt: Vec<(u32, u32, u32)>,
    /// Rooms to use again; overwritten.
    rooms: Vec<Box<[u8]>>,
    messages: u64,
}

struct Channel {
    name: Name,
    queue: VecDeque<Message>,
    next: Option<Place>,
    sent: u32,
    consumed: u32,
    /// Consumed messages that the sender has been told of, and from when on it knows.
    told: u32,
    known: VecDeque<(u64, u32)>,
    acked: u32,
    /// When the last message and the last acknowledgement arrive: later ones arrive later.
    last: [u64; 2],
    /// Messages sent by reference end before this one.
    refs_until: u32,
}

struct Message {
    arrives: u64,
    fp: u32,
    len: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// In a room of the world's, between guard bytes.
    Room(Box<[u8]>),
    /// In a room that a reply is being written into; its bytes start here.
    Taken(*mut u8),
    /// In the sender's memory.
    Sender(*mut u8),
    /// In the receiver's memory.
    Receiver(*mut u8),
}

/// Rooms that are kept.
const ROOMS: usize = 64;
const CUT: &str = "the virtual link was cut";
const GUARD: usize = 16;
const GUARD_BYTE: u8 = 0xc9;
/// What a reader that is late sees.
const SCRIBBLE: u8 = 0xdb;

// SAFETY: the pointers are the callers', used under the rules of `Link` only.
unsafe impl Send for State {}

impl State {
    fn draw(&mut self) -> u64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// When something sent now on channel `c` arrives.
    fn arrival(&mut self, c: usize, bytes: usize, kind: usize) -> u64 {
        let jitter = if self.options.jitter == 0 { 0 } else { self.draw() % (self.options.jitter + 1) };
        let o = &self.options;
        let wire = (bytes as u64 * 1000).checked_div(o.bandwidth).unwrap_or(0);
        let last = &mut self.channels[c].last[kind];
        // The wire is free when the message before has passed.
        let at = (self.now + o.latency + jitter).max(*last) + wire;
        *last = at;
        self.events.insert(at);
        at
    }

    fn cut(&self, c: usize) -> Option<u64> {
        let (a, b, ..) = self.channels[c].name;
        let hits = |&(_, x, y): &(u64, u32, Option<u32>)| match y {
            None => x == a || x == b,
            Some(y) => (x, y) == (a, b) || (x, y) == (b, a),
        };
        self.cuts.iter().filter(|cut| hits(cut)).map(|cut| cut.0).min()
    }

    fn is_cut(&self, c: usize) -> bool {
        !self.cuts.is_empty() && self.cut(c).is_some_and(|t| t <= self.now)
    }

    fn room(&mut self, len: usize) -> Box<[u8]> {
        match self.rooms.iter().rposition(|r| r.len() == len + 2 * GUARD) {
            Some(i) => self.rooms.swap_remove(i),
            None => {
                let mut r = vec![SCRIBBLE; len + 2 * GUARD].into_boxed_slice();
                r[..GUARD].fill(GUARD_BYTE);
                r[len + GUARD..].fill(GUARD_BYTE);
                r
            }
        }
    }

    fn recycle(&mut self, mut r: Box<[u8]>) {
        let n = r.len();
        r[GUARD..n - GUARD].fill(SCRIBBLE);
        if self.rooms.len() < ROOMS {
            self.rooms.push(r);
        }
    }

    fn has_room(&mut self, c: usize) -> bool {
        let now = self.now;
        let limit = self.options.depth.max(1) + self.options.ack_lag.max(1) - 1;
        let ch = &mut self.channels[c];
        while ch.known.front().is_some_and(|k| k.0 <= now) {
            ch.acked = ch.known.pop_front().expect("just seen").1;
        }
        ch.sent - ch.acked < limit
    }

    /// Tells the sender of channel `c`, at time `at`, what has been consumed.
    fn tell(&mut self, c: usize, at: u64) {
        let ch = &mut self.channels[c];
        ch.told = ch.consumed;
        while ch.known.back().is_some_and(|k| k.0 >= at) {
            ch.known.pop_back();
        }
        if ch.known.back().map_or(ch.acked, |k| k.1) != ch.consumed {
            ch.known.push_back((at, ch.consumed));
        }
    }

    /// Sends the sender of channel `c` an acknowledgement, if there is something to tell.
    fn acknowledge(&mut self, c: usize) {
        if self.channels[c].consumed != self.channels[c].told {
            let at = self.arrival(c, 0, 1);
            self.tell(c, at);
        }
    }

    fn channel(&mut self, name: Name) -> usize {
        let new = self.channels.len();
        let ix = *self.names.entry(name).or_insert(new);
        if ix == new {
            self.channels.push(Channel {
                name,
                queue: VecDeque::new(),
                next: None,
                sent: 0,
                consumed: 0,
                told: 0,
                known: VecDeque::new(),
                acked: 0,
                last: [0; 2],
                refs_until: 0,
            });
        }
        ix
    }

    fn post(&mut self, tx: usize, rx: usize, len: usize, fp: u32, place: Place) {
        let arrives = self.arrival(tx, len, 0);
        // The message carries an acknowledgement.
        self.tell(rx, arrives);
        let (a, b, ..) = self.channels[tx].name;
        let mut fp = fp;
        for c in self.corrupt.iter_mut().filter(|c| (c.0, c.1) == (a, b)) {
            if c.2 == 0 {
                fp = !fp;
            }
            c.2 = c.2.wrapping_sub(1);
        }
        let ch = &mut self.channels[tx];
        ch.sent += 1;
        if matches!(place, Place::Sender(_)) {
            ch.refs_until = ch.sent;
        }
        ch.queue.push_back(Message { arrives, fp, len, place });
        self.messages += 1;
    }
}

impl World {
    pub fn new(options: Options) -> World {
        World(Arc::new(Mutex::new(State {
            now: 0,
            random: options.seed,
            options,
            events: BTreeSet::new(),
            channels: Vec::new(),
            names: HashMap::new(),
            cuts: Vec::new(),
            corrupt: Vec::new(),
            rooms: Vec::new(),
            messages: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// `me`'s end of the link to `peer` on `port` and `way`. Each end may be asked for once.
    pub fn link(&self, me: u32, peer: u32, port: u8, way: u32) -> AnyLink {
        let mut s = self.state();
        let (tx, rx) = (s.channel((me, peer, port, way)), s.channel((peer, me, port, way)));
        drop(s);
        AnyLink::Other(Box::new(VirtualLink { world: self.clone(), tx, rx, fault: None }))
    }

    /// Jumps to the next time at which something arrives or breaks; false if there is none.
    pub fn advance(&self) -> bool {
        let mut s = self.state();
        match s.events.pop_first() {
            Some(t) => {
                s.now = s.now.max(t);
                true
            }
            None => false,
        }
    }

    /// Nanoseconds since the world began.
    pub fn now(&self) -> u64 {
        self.state().now
    }

    /// Messages sent so far.
    pub fn messages(&self) -> u64 {
        self.state().messages
    }

    /// Breaks, at time `at`, all links of `rank`, or only those to `peer`. What has arrived by then can
    /// still be received.
    pub fn cut(&self, at: u64, rank: u32, peer: Option<u32>) {
        let mut s = self.state();
        s.cuts.push((at, rank, peer));
        if at > s.now {
            s.events.insert(at);
        }
    }

    /// Gives the message after the next `skip` ones from one rank to another a wrong fingerprint.
    pub fn corrupt(&self, from: u32, to: u32, skip: u32) {
        self.state().corrupt.push((from, to, skip));
    }
}

/// One end of a link of a [`World`].
struct VirtualLink {
    world: World,
    tx: usize,
    rx: usize,
    fault: Option<Fault>,
}

impl VirtualLink {
    fn broken(&mut self, text: &str) {
        self.fault.get_or_insert(Fault::Broken(text.into()));
    }

    /// As `room`, with the world locked.
    fn has_room(&mut self, s: &mut State) -> bool {
        if s.is_cut(self.tx) {
            self.broken(CUT);
            return false;
        }
        s.has_room(self.tx)
    }
}

impl Place {
    /// Where the bytes are.
    fn bytes(&mut self) -> *mut u8 {
        match self {
            // SAFETY: rooms are longer than their first guard.
            Place::Room(r) => unsafe { r.as_mut_ptr().add(GUARD) },
            Place::Taken(p) | Place::Sender(p) | Place::Receiver(p) => *p,
        }
    }
}

impl Link for VirtualLink {
    fn send_slot(&mut self, len: usize) -> Option<*mut u8> {
        let world = self.world.clone();
        let mut s = world.state();
        if s.channels[self.tx].next.is_none() {
            if len > s.options.capacity {
                self.broken("the message is too long for the virtual link");
                return None;
            }
            if !self.has_room(&mut s) {
                return None;
            }
            let room = s.room(len);
            s.channels[self.tx].next = Some(Place::Room(room));
        }
        s.channels[self.tx].next.as_mut().map(Place::bytes)
    }

    fn send_reply_slot(&mut self, len: usize) -> Option<*mut u8> {
        let world = self.world.clone();
        let mut s = world.state();
        let answers = |m: &Message| match m.place {
            Place::Room(_) => m.len == len,
            Place::Sender(_) => m.len == len && s.options.reply_by_ref,
            _ => false,
        };
        if !s.options.reply
            || s.channels[self.tx].next.is_some()
            || !s.channels[self.rx].queue.front().is_some_and(answers)
        {
            drop(s);
            return self.send_slot(len);
        }
        if !self.has_room(&mut s) {
            return None;
        }
        let m = s.channels[self.rx].queue.front_mut().expect("just seen");
        let p = m.place.bytes();
        let next = match m.place {
            Place::Sender(p) => Place::Receiver(p),
            _ => std::mem::replace(&mut m.place, Place::Taken(p)),
        };
        s.channels[self.tx].next = Some(next);
        Some(p)
    }

    fn replies_in_place(&self) -> bool {
        self.world.state().options.reply
    }

    fn commit(&mut self, len: usize, fp: u32) {
        let world = self.world.clone();
        let mut s = world.state();
        let Some(place) = s.channels[self.tx].next.take() else {
            return self.broken("a message was sent that no room was asked for");
        };
        if let Place::Room(r) = &place {
            let guards = r[..GUARD].iter().chain(r.get(GUARD + len..).unwrap_or_default());
            if r.len() != len + 2 * GUARD || guards.into_iter().any(|&b| b != GUARD_BYTE) {
                return self.broken("a message was written beyond its room");
            }
        }
        s.post(self.tx, self.rx, len, fp, place);
    }

    fn room(&mut self) -> bool {
        let world = self.world.clone();
        self.has_room(&mut world.state())
    }

    fn can_ref(&self, _src: *const u8, len: usize) -> bool {
        len > 0 && self.world.state().options.by_ref
    }

    unsafe fn send_ref(&mut self, src: *const u8, len: usize, fp: u32) {
        self.world.state().post(self.tx, self.rx, len, fp, Place::Sender(src as *mut u8));
    }

    fn recv(&mut self, len: usize, fp: u32) -> Recv {
        let mut s = self.world.state();
        let (now, cut) = (s.now, s.cut(self.rx));
        let front = s.channels[self.rx].queue.front_mut();
        let fault = match front.filter(|m| m.arrives <= now && cut.is_none_or(|t| m.arrives <= t)) {
            None if cut.is_some_and(|t| t <= now) => Fault::Broken(CUT.into()),
            None => return Recv::Pending,
            Some(m) if m.fp != fp => Fault::Fingerprint { got: m.fp },
            Some(m) if m.len != len => Fault::Length { got: m.len },
            Some(m) => return Recv::Ready(m.place.bytes()),
        };
        drop(s);
        self.fault.get_or_insert(fault);
        Recv::Fault
    }

    unsafe fn land(&mut self, dst: *mut u8, len: usize) {
        let mut s = self.world.state();
        if !s.options.land {
            return;
        }
        let Some(m) = s.channels[self.rx].queue.front_mut() else { return };
        if let (Place::Room(_), true) = (&m.place, m.len == len) {
            let Place::Room(r) = std::mem::replace(&mut m.place, Place::Receiver(dst)) else { return };
            // SAFETY: the caller gives us `dst` for this message, which has been sent, from now on.
            unsafe { dst.copy_from_nonoverlapping(r.as_ptr().add(GUARD), len) };
            s.recycle(r);
        }
    }

    fn release(&mut self) {
        let world = self.world.clone();
        let mut s = world.state();
        let Some(m) = s.channels[self.rx].queue.pop_front() else {
            return self.broken("a message was released that was not there");
        };
        if let Place::Room(r) = m.place {
            s.recycle(r);
        }
        s.channels[self.rx].consumed += 1;
        if s.channels[self.rx].consumed - s.channels[self.rx].told >= s.options.ack_lag {
            s.acknowledge(self.rx);
        }
    }

    fn finish(&mut self) {
        self.world.state().acknowledge(self.rx);
    }

    fn idle(&mut self) -> bool {
        let world = self.world.clone();
        let mut s = world.state();
        self.has_room(&mut s);
        s.channels[self.tx].acked >= s.channels[self.tx].refs_until
    }

    fn capacity(&self) -> usize {
        self.world.state().options.capacity
    }

    fn fault(&self) -> Option<Fault> {
        self.fault.clone()
    }
}

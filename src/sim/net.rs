//! All ranks' programs as flat arrays: what the event loop walks.

use std::collections::HashMap;

use crate::cost::Machine;
use crate::schedule::{Algorithm, Arg, ArgKind, Groups, Lane, Op, Program};
use crate::{Error, Result};

/// A span of chunks of a block, as it occurs in some op.
pub type Piece = (u32, u32);

/// One op: what it costs, and the channels that it waits for.
#[derive(Clone, Copy, Debug)]
pub struct NetOp {
    /// Index in [`Net::pieces`].
    pub piece: u32,
    /// Its channels are `ports[first..first + recvs + sends]`.
    pub first: u32,
    pub recvs: u16,
    pub sends: u16,
    pub srcs: u16,
    pub store: Store,
}

/// What an op does to its own rank's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Nothing: it only sends.
    No,
    /// Input to output, as it is: in place there is nothing to do.
    Keep,
    Yes,
}

#[derive(Clone, Copy, Debug)]
pub struct NetLane {
    /// Played rank, and index of the lane in its program.
    pub rank: u32,
    pub index: u32,
    /// Its ops in [`Net::ops`].
    pub first: u32,
    pub ops: u32,
}

/// Everything from one played rank's lane to another's, on one port; ways multiply it.
#[derive(Clone, Copy, Debug)]
pub struct NetChannel {
    pub from: u32,
    pub to: u32,
    /// Messages in a tile: sent, and received.
    pub messages: u32,
    pub received: u32,
    pub across: bool,
    /// From one unit to another; so above the switch of a unit's hosts, where a unit has these.
    pub leaves: bool,
    /// Nothing comes back from there on this port.
    pub one_way: bool,
}

const NOBODY: u32 = u32::MAX;

/// Which ranks behave alike. A schedule has a symmetry if the program of rank `r` of unit `x` is that of
/// rank `r` of unit 0 with `x` added to the unit of every peer. Then a message to a unit far away by `d`
/// comes at the time at which one arrives from the unit that is away by `-d`, and one unit is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symmetry {
    /// Every rank is played.
    None,
    /// Units of so many ranks; added modulo the number of units.
    Rotate(usize),
    /// The same; added bit by bit.
    Xor(usize),
}

impl Symmetry {
    /// Ranks that are played, of `n`.
    pub fn unit(self, n: usize) -> usize {
        match self {
            Symmetry::None => n,
            Symmetry::Rotate(u) | Symmetry::Xor(u) => u,
        }
    }

    /// The unit in which unit 0 finds what is in `unit` for unit `x`: `unit - x`.
    fn from(self, units: usize, x: usize, unit: usize) -> usize {
        match self {
            Symmetry::None => unit,
            Symmetry::Rotate(_) => (unit + units - x) % units,
            Symmetry::Xor(_) => unit ^ x,
        }
    }

    /// A symmetry that leaves one host (or the hosts under one switch) to play, or none: for few ranks, whose
    /// chunks are cut unevenly, none is sought.
    pub fn of(algorithm: &Algorithm, groups: &Groups, machine: &Machine) -> Symmetry {
        const FEW: usize = 32;
        let hosts = machine.trunk.map_or(1, |t| t.hosts).max(machine.core_hosts) as usize;
        match groups.n() {
            ..=FEW => Symmetry::None,
            _ => Symmetry::find(algorithm, groups, groups.of(0).len().saturating_mul(hosts)),
        }
    }

    /// A symmetry of this algorithm on these groups with units of `unit` ranks, if there is one. Compared
    /// are the first unit and a few others; the tests compare all for all algorithms.
    pub fn find(algorithm: &Algorithm, groups: &Groups, unit: usize) -> Symmetry {
        let n = groups.n();
        if unit == 0 || !n.is_multiple_of(unit) || n / unit < 2 || algorithm.collective.rooted() {
            return Symmetry::None;
        }
        let (units, numbers) = (n / unit, groups.numbers());
        let hosts = numbers[unit - 1] as usize + 1;
        let uniform = |r: usize| numbers[r] as usize == numbers[r % unit] as usize + r / unit * hosts;
        if !(0..n).all(uniform) {
            return Symmetry::None;
        }
        let mut candidates = vec![Symmetry::Rotate(unit)];
        if units.is_power_of_two() {
            candidates.push(Symmetry::Xor(unit));
        }
        // Programs may be long, and building them takes time.
        candidates.retain(|s| s.holds(algorithm, groups, &[units - 1], &[0]));
        candidates.retain(|s| s.holds(algorithm, groups, &[1, units / 2], &[unit / 2, unit - 1]));
        candidates.first().copied().unwrap_or(Symmetry::None)
    }

    /// Whether these ranks of these units do what those of unit 0 do.
    pub fn holds(self, algorithm: &Algorithm, groups: &Groups, others: &[usize], ranks: &[usize]) -> bool {
        let unit = self.unit(groups.n());
        let units = groups.n() / unit;
        ranks.iter().all(|&r| {
            let model = algorithm.program(r, groups, 0);
            others.iter().all(|&x| {
                let other = algorithm.program(x * unit + r, groups, 0);
                self.alike(&model, &other, |peer| {
                    self.from(units, x, peer as usize / unit) * unit + peer as usize % unit
                })
            })
        })
    }

    /// The same steps, with the same peers by `renamed`; the chunks may be others, but as many.
    fn alike(self, model: &Program, other: &Program, renamed: impl Fn(u32) -> usize) -> bool {
        let same_arg = |(a, p): (&Lane, &Arg), (b, q): (&Lane, &Arg)| {
            let count = match p.kind {
                ArgKind::Recv => 1,
                ArgKind::Send => p.count as usize,
                _ => 0,
            };
            let peers = |lane: &Lane, arg: &Arg| {
                (0..count).map(|k| lane.peers[arg.ix as usize + k]).collect::<Vec<u32>>()
            };
            (p.kind, p.port, p.count) == (q.kind, q.port, q.count)
                && peers(a, p).iter().zip(peers(b, q)).all(|(&x, y)| x as usize == renamed(y))
        };
        let same_lane = |a: &Lane, b: &Lane| {
            a.ops.len() == b.ops.len()
                && a.ops.iter().zip(&b.ops).all(|(p, q)| {
                    // Sources are folded in the order of ranks, which no rotation keeps: when they arrive, and
                    // what they cost, does not depend on it.
                    let sorted = |lane: &Lane, op: &Op, rename: &dyn Fn(u32) -> usize| {
                        let mut list: Vec<(u8, u8, usize)> = lane
                            .srcs(op)
                            .iter()
                            .map(|s| match s.kind {
                                ArgKind::Recv => (3, s.port, rename(lane.peers[s.ix as usize])),
                                _ => (0, 0, 0),
                            })
                            .collect();
                        list.sort_unstable();
                        list
                    };
                    (p.len, p.nsrc, p.ndst) == (q.len, q.nsrc, q.ndst)
                        && sorted(a, p, &|x| x as usize) == sorted(b, q, &renamed)
                        && a.dsts(p).iter().zip(b.dsts(q)).all(|(x, y)| same_arg((a, x), (b, y)))
                })
        };
        model.lanes.len() == other.lanes.len()
            && model.lanes.iter().zip(&other.lanes).all(|(a, b)| same_lane(a, b))
    }
}

/// The played ranks' programs, wired together.
#[derive(Debug)]
pub struct Net {
    /// Ranks in all, and played.
    pub ranks: usize,
    pub played: usize,
    pub symmetric: bool,
    /// Host of each played rank, numbered from 0; its place in the host; ranks of each host.
    pub hosts: Vec<u32>,
    pub places: Vec<u32>,
    pub host_sizes: Vec<u32>,
    pub chunks: u32,
    /// The longest message, in chunks.
    pub longest: u32,
    pub ops: Vec<NetOp>,
    pub ports: Vec<u32>,
    pub lanes: Vec<NetLane>,
    pub channels: Vec<NetChannel>,
    pub pieces: Vec<Piece>,
}

/// Numbers of channels and pieces while a net is built.
struct Names {
    symmetry: Symmetry,
    unit: usize,
    units: usize,
    /// By (source, destination, units between them, port).
    channels: HashMap<(u32, u32, u32, u8), u32>,
    /// Pieces of one chunk by their chunk; the others.
    singles: Vec<u32>,
    longer: HashMap<Piece, u32>,
}

fn malformed(rank: usize, lane: usize, op: usize, what: &str) -> Error {
    Error::argument(format!("a schedule that {what}")).who(format!("rank {rank}, lane {lane}, op {op}")).hint(
        "graccl verify says what is wrong with schedules of the list; those of your own need not be in it",
    )
}

impl Net {
    /// Wires what `program(rank)` returns for every rank that is to be played. `InvalidArgument` for programs
    /// that make no sense by themselves (operands, peers or chunks that are not there).
    pub fn new(
        groups: &Groups,
        symmetry: Symmetry,
        mut program: impl FnMut(usize) -> Program,
    ) -> Result<Net> {
        let n = groups.n();
        if n == 0 {
            return Err(Error::argument("no ranks to simulate").hint("give at least one"));
        }
        let unit = symmetry.unit(n);
        let mut names = Names {
            symmetry,
            unit,
            units: n / unit,
            channels: HashMap::new(),
            singles: Vec::new(),
            longer: HashMap::new(),
        };
        let mut net = Net {
            ranks: n,
            played: unit,
            symmetric: symmetry != Symmetry::None,
            hosts: groups.numbers()[..unit].to_vec(),
            places: Vec::with_capacity(unit),
            host_sizes: Vec::new(),
            chunks: 0,
            longest: 0,
            ops: Vec::new(),
            ports: Vec::new(),
            lanes: Vec::new(),
            channels: Vec::new(),
            pieces: Vec::new(),
        };
        for &host in &net.hosts {
            let sizes = &mut net.host_sizes;
            sizes.resize(sizes.len().max(host as usize + 1), 0);
            net.places.push(sizes[host as usize]);
            sizes[host as usize] += 1;
        }
        for rank in 0..unit {
            let p = program(rank);
            if p.chunks == 0 || rank > 0 && p.chunks != net.chunks {
                return Err(malformed(rank, 0, 0, "cuts blocks into no chunks, or differently from rank 0"));
            }
            net.chunks = p.chunks;
            for (index, lane) in p.lanes.iter().enumerate() {
                net.add(groups, &mut names, rank, index, lane)?;
            }
        }
        for (&(from, to, distance, port), &channel) in &names.channels {
            let back = symmetry.from(names.units, distance as usize, 0) as u32;
            net.channels[channel as usize].one_way = !names.channels.contains_key(&(to, from, back, port));
        }
        match net.channels.iter().find(|c| c.messages != c.received) {
            None => Ok(net),
            Some(c) => {
                let lane = net.lanes[(if c.from == NOBODY { c.to } else { c.from }) as usize];
                let what = format!(
                    "sends {} messages of which {} are received on a channel",
                    c.messages, c.received
                );
                Err(malformed(lane.rank as usize, lane.index as usize, 0, &what))
            }
        }
    }

    fn add(
        &mut self,
        groups: &Groups,
        names: &mut Names,
        rank: usize,
        index: usize,
        lane: &Lane,
    ) -> Result<()> {
        let me = self.lanes.len() as u32;
        let first = self.ops.len() as u32;
        // Channels of this lane that have a number: out and in, by port and index of the peer.
        let mut known: [HashMap<u8, Vec<u32>>; 2] = Default::default();
        for (i, op) in lane.ops.iter().enumerate() {
            let wrong = |what: &str| Err(malformed(rank, index, i, what));
            let end = op.arg as usize + op.nsrc as usize + op.ndst as usize;
            if end > lane.args.len() || op.nsrc == 0 || op.len == 0 {
                return wrong("has operands that are not there");
            }
            let at = op.at % self.chunks;
            if op.len > self.chunks - at {
                return wrong("leaves its block");
            }
            let start = self.ports.len();
            for (out, args) in [(false, lane.srcs(op)), (true, lane.dsts(op))] {
                for arg in args {
                    let count = match arg.kind {
                        ArgKind::Recv if !out => 1,
                        ArgKind::Send if out => arg.count as usize,
                        ArgKind::Recv | ArgKind::Send => return wrong("sends a source or receives a result"),
                        _ => 0,
                    };
                    for ix in arg.ix as usize..arg.ix as usize + count {
                        let slots = known[usize::from(out)].entry(arg.port).or_default();
                        if slots.len() <= ix {
                            slots.resize(ix + 1, NOBODY);
                        }
                        if slots[ix] == NOBODY {
                            let peer = match lane.peers.get(ix) {
                                Some(&peer) if (peer as usize) < self.ranks && peer as usize != rank => peer,
                                _ => return wrong("names a peer that is not there"),
                            };
                            slots[ix] = self.channel(groups, names, rank, peer as usize, arg.port, out);
                        }
                        let channel = &mut self.channels[slots[ix] as usize];
                        let end = if out { &mut channel.from } else { &mut channel.to };
                        if *end != NOBODY && *end != me {
                            return wrong("shares an end of a channel with another lane");
                        }
                        *end = me;
                        channel.messages += u32::from(out);
                        channel.received += u32::from(!out);
                        self.ports.push(slots[ix]);
                    }
                }
            }
            let sent =
                lane.dsts(op).iter().map(|a| if a.kind == ArgKind::Send { a.count as usize } else { 0 });
            let sends = sent.sum::<usize>();
            let recvs = self.ports.len() - start - sends;
            if self.ports.len() > start {
                self.longest = self.longest.max(op.len);
            }
            let local = lane.dsts(op).iter().any(|a| a.kind != ArgKind::Send);
            let kept = op.nsrc == 1 && lane.srcs(op)[0].kind == ArgKind::In && !op.complete;
            let piece = self.piece(names, at, op.len);
            self.ops.push(NetOp {
                piece,
                first: start as u32,
                recvs: recvs as u16,
                sends: sends as u16,
                srcs: op.nsrc,
                store: match local {
                    false => Store::No,
                    true if kept => Store::Keep,
                    true => Store::Yes,
                },
            });
        }
        self.lanes.push(NetLane {
            rank: rank as u32,
            index: index as u32,
            first,
            ops: lane.ops.len() as u32,
        });
        Ok(())
    }

    fn channel(
        &mut self,
        groups: &Groups,
        names: &mut Names,
        rank: usize,
        peer: usize,
        port: u8,
        out: bool,
    ) -> u32 {
        let class = (peer % names.unit) as u32;
        let away = peer / names.unit;
        // From the sender's unit to the receiver's.
        let distance = if out { away } else { names.symmetry.from(names.units, away, 0) };
        let (from, to) = if out { (rank as u32, class) } else { (class, rank as u32) };
        *names.channels.entry((from, to, distance as u32, port)).or_insert_with(|| {
            let across = groups.numbers()[rank] != groups.numbers()[peer];
            let leaves = distance > 0;
            self.channels.push(NetChannel {
                from: NOBODY,
                to: NOBODY,
                messages: 0,
                received: 0,
                across,
                leaves,
                one_way: true,
            });
            self.channels.len() as u32 - 1
        })
    }

    fn piece(&mut self, names: &mut Names, at: u32, len: u32) -> u32 {
        // Alike ranks have other chunks of the same number: only that is known of them.
        let at = if self.symmetric { 0 } else { at };
        let pieces = &mut self.pieces;
        let mut new = || {
            pieces.push((at, len));
            pieces.len() as u32 - 1
        };
        if len > 1 {
            return *names.longer.entry((at, len)).or_insert_with(new);
        }
        let singles = &mut names.singles;
        singles.resize(singles.len().max(at as usize + 1), NOBODY);
        if singles[at as usize] == NOBODY {
            singles[at as usize] = new();
        }
        singles[at as usize]
    }
}

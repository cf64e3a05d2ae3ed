//! The simulator: schedules in virtual time, on machines that are described by numbers.
//!
//! [`simulate`] plays all ranks' programs event by event on a [`Machine`]: the same programs that the
//! executor runs, with its tiles, its ways and its bounded channels. [`Sim`] is the same in two steps, for
//! those who play one schedule on many machines or in many sizes, and makes use of symmetry: where all hosts
//! behave alike, one is played, and stands for 100 000 ranks. [`Sim::estimate`] plays only as many tiles as it
//! takes until every further one costs the same.
//!
//! ```text
//! rank 0 (a core)   | fold | send ->|                      | fold |
//!                                    \ link out of its host         occupied: link(b)
//!                                      \ latency
//!                                        \ link into the other host   occupied: link(b)
//! rank 9 (a core)                          | recv, fold | send | ...   told rank 0 that there is room again
//! ```
//!
//! What is exact, what is left out, and how it was checked is in `docs/simulator.md`.

mod choose;
mod net;
mod play;
#[cfg(test)]
mod tests;

pub use choose::{Candidates, Choice, Pricer};
pub use net::Symmetry;

use crate::cost::{LARGEST, Machine, Model};
use crate::schedule::{Algorithm, Collective, Groups, Program};
use crate::{Error, Result};
use net::Net;
use play::Player;

/// How a call is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a block; all blocks have the same.
    pub block: u64,
    /// Tiles that every block is cut into, and how many are worked on at a time.
    pub tiles: u32,
    pub ways: u32,
    /// Input and output are the same memory: what is kept is not copied.
    pub in_place: bool,
}

impl Shape {
    /// The bytes of a block where the larger of the call's buffers has `bytes`.
    pub fn block_of(collective: Collective, ranks: usize, bytes: u64) -> u64 {
        use Collective::*;
        match collective {
            AllReduce | Broadcast | Reduce | Scan | Exscan => bytes,
            ReduceScatter | AllGather | AllToAll | Gather | Scatter => bytes / ranks.max(1) as u64,
        }
    }
}

/// What makes ranks unlike. Exponentially distributed additions, from a seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Noise {
    pub seed: u64,
    /// Mean addition to every op's time on its core, as a share of that time.
    pub core: f64,
    /// Mean addition to every message's latency, as a share of the latency.
    pub wire: f64,
    /// Stragglers: ranks whose cores take so many times as long.
    pub slow: Vec<(usize, f64)>,
    /// Ranks that call so many ns after the others.
    pub late: Vec<(usize, f64)>,
}

impl Noise {
    fn is_none(&self) -> bool {
        self.core == 0.0 && self.wire == 0.0 && self.slow.is_empty() && self.late.is_empty()
    }

    fn check(&self, ranks: usize) -> Result<()> {
        let fine = |x: f64| (0.0..=LARGEST).contains(&x);
        let wrong = |what: String| {
            Err(Error::argument(what)
                .who("noise")
                .hint("shares, factors and times are from 0 to 1e18, and ranks exist"))
        };
        if !fine(self.core) || !fine(self.wire) {
            return wrong(format!("jitter of {} on cores, {} on wires", self.core, self.wire));
        }
        let all = self.slow.iter().map(|s| (s, "slow")).chain(self.late.iter().map(|l| (l, "late")));
        for (&(rank, x), name) in all {
            if rank >= ranks || !fine(x) {
                return wrong(format!("rank {rank} of {ranks} is {x} {name}"));
            }
        }
        Ok(())
    }
}

/// What a run took.
#[derive(Clone, Debug)]
pub struct Report {
    /// From the first rank's call to the last one's end.
    pub ns: f64,
    /// Ranks in all. What follows is of those that were played: all, or the ranks of one unit of a
    /// symmetry.
    pub ranks: usize,
    pub ends: Vec<f64>,
    /// How long each one's core was busy.
    pub cores: Vec<f64>,
    /// The links that carried something, where the machine's links limit.
    pub links: Vec<LinkUse>,
    /// How long the busiest way above the hosts' switches was occupied.
    pub trunk_ns: f64,
    /// Where the time of the rank that ended last went.
    pub path: Path,
    /// Bytes that were sent and not used up, the mean over the time and for every core of the played ranks.
    pub under_way: f64,
    /// Messages of the played ranks, and events: what the simulation itself costs.
    pub messages: u64,
    pub events: u64,
}

/// One link of a host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkUse {
    /// Between hosts, or inside its host.
    pub across: bool,
    pub host: u32,
    pub link: u32,
    /// How long it was occupied in each direction, and by how much.
    pub out_ns: f64,
    pub in_ns: f64,
    pub out_bytes: f64,
    pub in_bytes: f64,
}

/// A chain of ops and messages that determined the time: each waited for the one before it. In ns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Path {
    /// On cores, in latencies, on links, in queues before links.
    pub core: f64,
    pub latency: f64,
    pub link: f64,
    pub queued: f64,
    /// For a core, where ranks share cores, or for ranks that call late.
    pub waited: f64,
    /// How many messages it went through: the steps of the algorithm.
    pub messages: u32,
}

/// A schedule, ready to be played in any size on any machine.
pub struct Sim {
    net: Net,
}

impl Sim {
    /// All ranks' programs. `InvalidArgument` where they make no sense by themselves or do not fit together; a
    /// schedule that deadlocks is found when it is played.
    pub fn new(programs: &[Program], groups: &Groups) -> Result<Sim> {
        if programs.len() != groups.n() {
            return Err(Error::argument(format!("{} programs for {} ranks", programs.len(), groups.n()))
                .hint("give the program of every rank"));
        }
        Ok(Sim { net: Net::new(groups, Symmetry::None, |rank| programs[rank].clone())? })
    }

    /// An algorithm's programs: those of all ranks, or those of one unit of the symmetry (see
    /// [`Symmetry::find`]).
    pub fn of(algorithm: &Algorithm, groups: &Groups, root: usize, symmetry: Symmetry) -> Result<Sim> {
        if root >= groups.n() {
            return Err(Error::argument(format!("there is no rank {root} of {}", groups.n()))
                .hint("give a root that is one of the ranks"));
        }
        Sim::buildable(algorithm, groups, Sim::PEERS)?;
        Ok(Sim { net: Net::new(groups, symmetry, |rank| algorithm.program(rank, groups, root))? })
    }

    /// Most peers of a lane.
    const PEERS: usize = 1 << 16;

    /// Programs can be built for so many ranks, and in reasonable time: none with a lane that talks to more than
    /// `peers` others, or with 2^31 blocks.
    fn buildable(algorithm: &Algorithm, groups: &Groups, peers: usize) -> Result<()> {
        const FEW: usize = 1024;
        const MOST: usize = 1 << 20;
        let n = groups.n();
        // Whether it talks to all others is seen where there are fewer of them.
        let few = |a: &Algorithm| a.program(0, &Groups::blocks(FEW, (n / groups.len()).clamp(1, 8)), 0);
        let wide = |a: &Algorithm| few(a).lanes.iter().any(|l| l.peers.len() >= FEW / 8);
        let blocks = algorithm.collective.blocks(n);
        match n <= MOST && blocks < 1 << 31 && (n < peers.max(FEW) || !wide(algorithm)) {
            true => Ok(()),
            false => Err(Error::argument(format!("{algorithm:?} for {n} ranks is too large"))
                .hint("take fewer ranks, or an algorithm that does not talk to all of them")),
        }
    }

    /// Into how many tiles a block is cut, so that no message exceeds `message` bytes by more than a few cache
    /// lines.
    pub fn tiles(&self, block: u64, message: u32) -> u32 {
        let (longest, chunks) = (u128::from(self.net.longest), u128::from(self.net.chunks));
        let largest = (u128::from(block) * longest).div_ceil(chunks);
        largest.div_ceil(u128::from(message.max(1))).clamp(1, 1 << 24) as u32
    }

    /// Ops of all played ranks, for one tile.
    pub fn ops(&self) -> usize {
        self.net.ops.len()
    }

    /// Plays it. `InvalidArgument` for machines and shapes that make no sense, for noise with a symmetry, and for
    /// schedules that deadlock at the machine's depths.
    pub fn play(&self, machine: &Machine, shape: Shape, noise: &Noise) -> Result<Report> {
        Player::new(&self.net, machine, shape, noise, 1)?.play()
    }

    /// Plays so many calls, each rank beginning the next one as soon as it has ended the last, as a loop
    /// that measures does. When each call had ended on all ranks, ns: where ranks share cores a call may take less
    /// than one alone, since who has ended a call has a core to begin the next one.
    pub fn in_a_row(&self, machine: &Machine, shape: Shape, noise: &Noise, calls: u32) -> Result<Vec<f64>> {
        Player::new(&self.net, machine, shape, noise, calls)?.in_a_row()
    }

    /// The model's machine as this call meets it: what is under way is as on a machine whose caches hold everything.
    pub fn met(&self, model: &Model, shape: Shape) -> Result<Machine> {
        match model.is_stiff() {
            true => Ok(model.machine.clone()),
            false => Ok(model.at(self.estimate(&model.machine, shape)?.under_way)),
        }
    }

    /// Like [`play`](Sim::play) without noise, but of many tiles only some are played, twice, until the difference
    /// is what every further tile costs: `ns` is what all take; the rest of the report is of the last
    /// run. Doubling goes on until the cost of a tile changes by less than a percent, or three where it takes
    /// long.
    pub fn estimate(&self, machine: &Machine, shape: Shape) -> Result<Report> {
        let quiet = Noise::default();
        let part = |tiles: u32| {
            let block = (u128::from(shape.block) * u128::from(tiles) / u128::from(shape.tiles)) as u64;
            self.play(machine, Shape { block, tiles, ..shape }, &quiet)
        };
        let mut tiles = shape.ways.max(1).saturating_mul(4);
        if shape.tiles / 8 < tiles {
            return self.play(machine, shape, &quiet);
        }
        let (mut shorter, mut slope) = (part(tiles)?, f64::NAN);
        loop {
            if tiles.saturating_mul(2) >= shape.tiles {
                return self.play(machine, shape, &quiet);
            }
            let mut longer = part(2 * tiles)?;
            let now = (longer.ns - shorter.ns) / f64::from(tiles);
            let patience = if tiles < 32 * shape.ways { 0.01 } else { 0.03 };
            if (now - slope).abs() <= patience * now || tiles >= 128 * shape.ways || longer.events > 1 << 20 {
                longer.ns += now * f64::from(shape.tiles - 2 * tiles);
                return Ok(longer);
            }
            (shorter, slope, tiles) = (longer, now, 2 * tiles);
        }
    }
}

/// Plays all ranks' programs in virtual time, event by event: [`Sim`] in one step.
pub fn simulate(
    programs: &[Program],
    groups: &Groups,
    machine: &Machine,
    shape: Shape,
    noise: &Noise,
) -> Result<Report> {
    Sim::new(programs, groups)?.play(machine, shape, noise)
}

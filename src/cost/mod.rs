//! What communication costs: machines as numbers, and prices of collectives.
//!
//! A [`Machine`] says what its parts cost, as [`Curve`]s; `sim` plays schedules on it. [`Prices`] is what a
//! planner needs to know: what one collective of some size costs. Closed forms ([`Linear`]) and lists
//! sampled from the simulator or from measurements ([`PriceList`]) answer it.
//!
//! Units everywhere: nanoseconds and bytes, as `f64`.

mod curve;
mod model;
mod price;

pub use curve::Curve;
pub use model::Model;
pub use price::{Cheapest, Linear, Price, PriceList, Prices};

use crate::reduce::Wire;
use crate::{Error, Result};

/// The largest time (30 years, in ns), time per byte and factor that is taken: sums and products of these stay finite.
pub(crate) const LARGEST: f64 = 1e18;

/// How a message gets from one rank to another: LogGP with curves (Alexandrov et al. 1995: `o` and its
/// part per byte, `L`, `g` and `G`).
///
/// One message of `b` bytes between idle ranks is in the receiver's hands after
/// `send(b) + latency + link(b) + recv(b)`; then comes what the receiver does with it (`copy`, `fold`).
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// The sender's core is busy with a message: overhead, and the copy that hands it over.
    pub send: Curve,
    /// The receiver's core is busy with it, beyond what folding or copying the same bytes from its own
    /// memory costs.
    pub recv: Curve,
    /// From the end of the send, or of its turn on the link, to when the receiver can take it, ns.
    pub latency: f64,
    /// How long a message occupies its sender's link outwards and its receiver's link inwards. Both at
    /// the same time, `latency` apart, and first come, first served: so an idle link costs `link(b)`
    /// once. Zero: the link never limits, the cores do.
    pub link: Curve,
    /// Links of a host at this level, in each direction; the ranks of a host share them evenly, in rank order
    /// (8 ranks and 2 links: ranks 0 to 3 have the first). Across hosts these are NICs. Inside a host 1 is
    /// a memory system or a PCIe switch that all share, and as many as ranks are ports of their own, as of
    /// NVSwitch. 0 counts as one for every rank.
    pub links: u32,
    /// Messages that a channel (source, destination, port, way) holds: sent and not yet used up.
    pub depth: u32,
    /// On a channel whose messages go one way only, so that nothing going back can tell the sender of room, a
    /// message of its own does after so many: that costs the receiver's core `send(0)` and the sender's `recv(0)`.
    /// 0: telling costs nothing, as through shared memory.
    pub credits: u32,
    /// Between ranks that share a core; `None`: the same, and `latency`.
    pub on_core: Option<OnCore>,
}

/// A message between two ranks of one core, whose caches have what was sent: nobody waits for it on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct OnCore {
    pub send: Curve,
    pub recv: Curve,
}

/// What a machine's parts cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Between ranks of the same host, and of different hosts.
    pub inside: Level,
    pub across: Level,
    /// Software per call and rank, ns.
    pub call: f64,
    /// Interpretation per op and tile, ns.
    pub op: f64,
    /// One source to one destination in a rank's own memory.
    pub copy: Curve,
    /// Every further source of a fold.
    pub fold: Curve,
    /// Cores per host that the ranks of the host share, where these are more: the i-th rank has core i mod cores,
    /// and keeps it until it has to wait. `None`: a core (or GPU) for every rank.
    pub cores: Option<u32>,
    /// So many hosts, one after the other, share these cores: 1, and more where one machine plays several
    /// hosts.
    pub core_hosts: u32,
    /// When a core goes from one rank to another, ns.
    pub switch: f64,
    /// Above the hosts' switches; `None`: nothing there limits.
    pub trunk: Option<Trunk>,
}

/// Switches that hosts share, and their way up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trunk {
    /// Hosts under one switch, in the order of the hosts.
    pub hosts: u32,
    /// What the links of these hosts can carry together, divided by what the switch's way up can; 1 is a
    /// network without a bottleneck.
    pub oversubscription: f64,
    /// Added for a message that goes up and down, ns.
    pub latency: f64,
}

impl Level {
    /// The textbook: a message of `b` bytes takes `alpha + beta * b`, of which the sender is busy for
    /// `beta * b`. Nothing is shared.
    pub fn alpha_beta(alpha_ns: f64, ns_per_byte: f64) -> Level {
        Level {
            send: Curve::line(0.0, ns_per_byte),
            recv: Curve::default(),
            latency: alpha_ns,
            link: Curve::default(),
            links: 1,
            depth: 4,
            credits: 0,
            on_core: None,
        }
    }

    /// What sending and receiving cost, and how long a message is on its way (ns): between ranks that share a core, or
    /// do not.
    pub(crate) fn between(&self, one_core: bool) -> (&Curve, &Curve, f64) {
        match &self.on_core {
            Some(on) if one_core => (&on.send, &on.recv, 0.0),
            _ => (&self.send, &self.recv, self.latency),
        }
    }

    /// All that sending and receiving cost.
    pub(crate) fn work(&mut self) -> impl Iterator<Item = &mut Curve> {
        let Level { send, recv, on_core, .. } = self;
        [send, recv].into_iter().chain(on_core.iter_mut().flat_map(|on| [&mut on.send, &mut on.recv]))
    }

    /// One message of `bytes` between idle ranks, without what the receiver then does with it, ns.
    pub fn one_way(&self, bytes: f64) -> f64 {
        self.send.at(bytes) + self.latency + self.link.at(bytes) + self.recv.at(bytes)
    }

    fn check(&self, name: &str) -> Result<()> {
        let parts = [
            (self.latency, ".latency"),
            (self.send.largest(), ".send"),
            (self.recv.largest(), ".recv"),
            (self.link.largest(), ".link"),
            (self.on_core.as_ref().map_or(0.0, |on| on.send.largest()), ".core_send"),
            (self.on_core.as_ref().map_or(0.0, |on| on.recv.largest()), ".core_recv"),
        ];
        parts.iter().try_for_each(|(x, part)| fine(*x, name, part))?;
        if self.depth == 0 {
            return Err(Error::argument(format!("{name}.depth is 0"))
                .who("a machine")
                .hint("channels hold at least 1 message; most schedules need 2"));
        }
        Ok(())
    }
}

fn fine(x: f64, name: &str, part: &str) -> Result<()> {
    match (0.0..=LARGEST).contains(&x) {
        true => Ok(()),
        false => Err(Error::argument(format!("{name}{part} is {x:?}"))
            .who("a machine")
            .hint("times and times per byte must be from 0 to 1e18 ns")),
    }
}

impl Machine {
    /// The textbook machine on which closed forms hold exactly: all messages take `alpha + beta * bytes`,
    /// folding takes `gamma` per byte and source, and nothing else takes time.
    pub fn alpha_beta(alpha_ns: f64, beta_ns_per_byte: f64, gamma_ns_per_byte: f64) -> Machine {
        let level = Level::alpha_beta(alpha_ns, beta_ns_per_byte);
        Machine {
            inside: level.clone(),
            across: level,
            call: 0.0,
            op: 0.0,
            copy: Curve::default(),
            fold: Curve::line(0.0, gamma_ns_per_byte),
            cores: None,
            core_hosts: 1,
            switch: 0.0,
            trunk: None,
        }
    }

    /// The same for calls whose messages of f32 between hosts are packed ([`Wire`]): fewer bytes, and on either side a
    /// pass over the f32. For f16 and bf16 that is taken to cost what copying them does; int8 is bound by arithmetic, so
    /// it costs the same for every byte, by what was measured (docs/measurements.md) with what is lost kept for the next
    /// time, as gradients have it. Sizes stay those of the f32.
    pub fn packed(&self, wire: Wire) -> Machine {
        let mut m = self.clone();
        let ratio = wire.ratio();
        // In cache, as messages are.
        const CACHED: f64 = 65536.0;
        let passes = |times: f64| match wire {
            Wire::F16 | Wire::Bf16 => self.copy.clone(),
            Wire::Int8 => Curve::line(0.0, times * self.copy.at(CACHED) / CACHED),
        };
        for (i, work) in m.across.work().enumerate() {
            *work = work.shrunk(ratio).plus(&passes([17.5, 4.0][i % 2]));
        }
        m.across.link = m.across.link.shrunk(ratio);
        m
    }

    /// [`Level::between`] inside a host, across hosts, and both again between ranks that share a core.
    pub(crate) fn kinds(&self) -> [(&Curve, &Curve, f64); 4] {
        let (inside, across) = (&self.inside, &self.across);
        [inside.between(false), across.between(false), inside.between(true), across.between(true)]
    }

    /// Numbers that make sense, or what does not (`InvalidArgument`).
    pub fn check(&self) -> Result<()> {
        self.inside.check("inside")?;
        self.across.check("across")?;
        let times = [
            (self.call, "call"),
            (self.op, "op"),
            (self.copy.largest(), "copy"),
            (self.fold.largest(), "fold"),
            (self.switch, "switch"),
        ];
        times.iter().try_for_each(|(x, name)| fine(*x, name, ""))?;
        if self.cores == Some(0) || self.core_hosts == 0 {
            return Err(Error::argument("cores is 0, or no hosts have them")
                .who("a machine")
                .hint("leave it out for a core per rank"));
        }
        let Some(trunk) = &self.trunk else { return Ok(()) };
        fine(trunk.latency, "trunk", ".latency")?;
        if trunk.hosts == 0 || !(trunk.oversubscription > 0.0 && trunk.oversubscription <= LARGEST) {
            return Err(Error::argument(format!(
                "{} hosts share a trunk that is oversubscribed {} to 1",
                trunk.hosts, trunk.oversubscription
            ))
            .who("a machine")
            .hint("both must be more than 0, and no more than 1e18"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_adds_up() {
        let mut level = Level::alpha_beta(1000.0, 0.5);
        assert_eq!(level.one_way(200.0), 1100.0);
        level.link = Curve::line(30.0, 0.1);
        level.recv = Curve::constant(7.0);
        assert_eq!(level.one_way(200.0), 1157.0);
    }

    #[test]
    fn packing_costs_two_passes_and_saves_bytes() {
        let mut m = Machine::alpha_beta(1000.0, 1.0, 0.0);
        m.copy = Curve::line(3.0, 0.125);
        m.across.link = Curve::line(0.0, 2.0);
        let p = m.packed(Wire::F16);
        assert_eq!(p.inside, m.inside);
        assert_eq!(p.across.one_way(800.0), 1000.0 + 400.0 + 2.0 * 400.0 + 2.0 * (3.0 + 100.0));
        let p = m.packed(Wire::Int8);
        assert_eq!(p.across.link.at(64.0), 2.0 * 17.0);
        let byte = m.copy.at(65536.0) / 65536.0;
        assert!((p.across.recv.at(1024.0) - 4.0 * 1024.0 * byte).abs() < 1e-6);
    }

    #[test]
    fn machines_without_sense_are_refused() {
        let good = Machine::alpha_beta(1.0, 1.0, 0.0);
        good.check().unwrap();
        let bad = |change: &dyn Fn(&mut Machine)| {
            let mut m = good.clone();
            change(&mut m);
            m.check().unwrap_err().to_string()
        };
        assert!(bad(&|m| m.across.latency = -1.0).contains("across.latency is -1"));
        assert!(bad(&|m| m.op = f64::NAN).contains("op is NaN"));
        assert!(bad(&|m| m.across.send = Curve::constant(2e18)).contains("across.send is 2e18"));
        let steep = Curve::new(vec![(0.0, 0.0), (1e-30, 1.0)]).unwrap();
        assert!(bad(&|m| m.fold = steep.clone()).contains("fold is "));
        assert!(bad(&|m| m.inside.depth = 0).contains("inside.depth is 0"));
        assert!(bad(&|m| m.cores = Some(0)).contains("cores is 0,"));
        let trunk = Trunk { hosts: 4, oversubscription: 0.0, latency: 0.0 };
        assert!(bad(&|m| m.trunk = Some(trunk)).contains("oversubscribed 0 to 1"));
    }
}

//! A message's way through links: out of its host, between switches, into its host.

use super::{Gate, INTO, Kind, OUT, Player, Slot};
use crate::cost::Trunk;
use crate::sim::net::NetChannel;

impl Player<'_> {
    /// Index of the link that a rank has at a level.
    pub(super) fn gate(&self, across: bool, rank: u32) -> usize {
        let (host, links) = (self.net.hosts[rank as usize], self.links[usize::from(across)]);
        let (place, size) = (self.net.places[rank as usize], self.net.host_sizes[host as usize]);
        (host * links) as usize + (u64::from(place) * u64::from(links) / u64::from(size)) as usize
    }

    /// The way up that a rank's messages take, and whether those of the channel take it.
    fn climbs(&self, port: u32, trunk: Trunk) -> Option<[usize; 2]> {
        let c = self.net.channels[port as usize];
        let [from, to] =
            [c.from, c.to].map(|lane| self.net.hosts[self.net.lanes[lane as usize].rank as usize]);
        let (up, down) = (from / trunk.hosts, to / trunk.hosts);
        (c.across && (c.leaves || up != down)).then_some([up as usize, down as usize])
    }

    /// A message's turn at a link. Links serve in the order of asking, so asking and being served are one
    /// step; the next link on the way is asked when the first byte gets there. Its last byte arrives when all
    /// links have let it through.
    pub(super) fn pass(&mut self, kind: Kind, index: u32) {
        let (port, way) = (index / self.shape.ways, index % self.shape.ways);
        let NetChannel { across, from, to, .. } = self.net.channels[port as usize];
        let [from, to] = [from, to].map(|lane| self.net.lanes[lane as usize].rank);
        let latency = self.latencies[usize::from(self.channels[index as usize].kind)];
        let trunk = self.machine.trunk.and_then(|t| Some((t, self.climbs(port, t)?)));
        let stage = kind as usize - Kind::Depart as usize;
        let channel = &mut self.channels[index as usize];
        let at = (channel.first + channel.passed[stage] % channel.depth) as usize;
        channel.passed[stage] += 1;
        let mut slot = self.slots[at];
        let (now, level, mut last_hop) = (self.now, usize::from(across), None);
        let up = trunk.map_or(0.0, |(t, _)| t.latency);
        let share = |t: Trunk| t.oversubscription / (f64::from(t.hosts) * f64::from(self.links[1]));
        match (kind, trunk) {
            (Kind::Depart, _) => {
                let gate = self.gate(across, from);
                let start = self.gates[level][OUT][gate].serve(now, slot.link);
                slot.path.link += slot.link;
                slot.path.queued += start - now;
                slot.path.latency += up + latency;
                slot.end = start + slot.link + up + latency;
                match trunk {
                    Some(_) => self.push(start, Kind::Climb, index),
                    None => last_hop = Some(start + latency),
                }
            }
            (Kind::Climb, Some((t, [switch, _]))) => {
                let takes = slot.link * share(t);
                let start = self.trunk[OUT][switch].serve(now, takes);
                slot.delay_to(start + takes + up + latency);
                self.push(start + up, Kind::Descend, index);
            }
            (Kind::Descend, Some((t, [_, switch]))) => {
                let takes = slot.link * share(t);
                let start = self.trunk[INTO][switch].serve(now, takes);
                slot.delay_to(start + takes + latency);
                last_hop = Some(start + latency);
            }
            _ => {
                let gate = self.gate(across, to);
                let start = self.gates[level][INTO][gate].serve(now, slot.link);
                slot.delay_to(start + slot.link);
                slot.time = slot.end;
                if std::mem::replace(&mut self.channels[index as usize].hungry, false) {
                    self.push(slot.time, Kind::Wake, self.receiver(port, way));
                }
            }
        }
        if let Some(there) = last_hop {
            let jitter = self.exponential(self.noise.wire * latency);
            let last = &mut self.channels[index as usize].last;
            *last = last.max(there + jitter);
            let asks = *last;
            slot.path.latency += jitter;
            slot.end += jitter;
            self.push(asks, Kind::Enter, index);
        }
        self.slots[at] = slot;
    }
}

impl Gate {
    /// When a message that asks now is served; it occupies the link for `ns`.
    fn serve(&mut self, now: f64, ns: f64) -> f64 {
        let start = self.free.max(now);
        self.free = start + ns;
        self.busy += ns;
        start
    }
}

impl Slot {
    /// The last byte does not arrive before this.
    fn delay_to(&mut self, end: f64) {
        if end > self.end {
            self.path.queued += end - self.end;
            self.end = end;
        }
    }
}

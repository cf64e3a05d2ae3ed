//! A player before the first event: its cursors, channels, cores, and what pieces cost.

use std::collections::{BinaryHeap, VecDeque};

use super::{Channel, Core, Costs, Cursor, Gate, Player, Rank, Slot, UnderWay, level};
use crate::cost::Machine;
use crate::schedule::cut;
use crate::sim::net::Net;
use crate::sim::{Noise, Path, Shape};
use crate::{Error, Result};

impl<'a> Player<'a> {
    /// For `calls` calls one after the other: each rank begins the next one when it has ended the last.
    pub fn new(
        net: &'a Net,
        machine: &'a Machine,
        shape: Shape,
        noise: &'a Noise,
        calls: u32,
    ) -> Result<Player<'a>> {
        machine.check()?;
        noise.check(net.ranks)?;
        if shape.tiles == 0 || shape.ways == 0 {
            return Err(Error::argument(format!("{} tiles, {} ways", shape.tiles, shape.ways))
                .who("a simulation")
                .hint("both must be at least 1"));
        }
        if net.symmetric && (net.played < net.ranks && !noise.is_none()) {
            return Err(Error::argument("noise makes ranks unlike").hint("simulate without symmetry"));
        }
        let ways = shape.ways.min(shape.tiles);
        let shape = Shape { ways, ..shape };
        let mut cursors = Vec::with_capacity(net.lanes.len() * ways as usize);
        let mut left = vec![0; net.played];
        let mut own = vec![(0, 0); net.played];
        for (l, lane) in net.lanes.iter().enumerate() {
            for way in 0..ways {
                let (rank, lane_number) = (lane.rank, l as u32);
                cursors.push(Cursor {
                    rank,
                    lane: lane_number,
                    way,
                    tile: way,
                    op: 0,
                    checked: 0,
                    latest: 0.0,
                    path: Path::default(),
                });
                left[rank as usize] += u32::from(lane.ops > 0);
            }
            let (first, end) = &mut own[lane.rank as usize];
            if *end == 0 {
                *first = cursors.len() as u32 - ways;
            }
            *end = cursors.len() as u32;
        }
        let mut channels = Vec::with_capacity(net.channels.len() * ways as usize);
        let mut slots = 0u64;
        for c in &net.channels {
            for way in 0..ways {
                let tiles = u64::from((shape.tiles - way).div_ceil(ways));
                let most = u64::from(c.messages) * tiles * u64::from(calls);
                let depth = most.min(u64::from(level(machine, c.across).depth)) as u32;
                let first = slots as u32;
                slots += u64::from(depth);
                let passed = [0; 4];
                channels.push(Channel {
                    first,
                    depth,
                    sent: 0,
                    used: 0,
                    passed,
                    hungry: false,
                    full: false,
                    last: 0.0,
                    owed: 0,
                    kind: u8::from(c.across),
                });
            }
        }
        if slots > u64::from(u32::MAX) || channels.len() as u64 > u64::from(u32::MAX) {
            return Err(Error::argument(format!(
                "{slots} messages under way at a time are too many to simulate"
            ))
            .hint("simulate fewer ranks, fewer ways or an algorithm with fewer channels"));
        }
        let mut slow = vec![1.0; net.played];
        for &(rank, factor) in &noise.slow {
            slow[rank] = factor;
        }
        let rank = Rank {
            ready: VecDeque::new(),
            running: None,
            has_core: false,
            waits_for_core: false,
            core: 0,
            free: 0.0,
            path: Path::default(),
            left: 0,
            calls,
            cursors: (0, 0),
            busy: 0.0,
            started: false,
            chores: Vec::new(),
        };
        let ranks = left.into_iter().zip(own);
        let ranks = ranks.map(|(left, cursors)| Rank { left, cursors, ..rank.clone() }).collect();
        let links = [&machine.inside, &machine.across];
        let most = net.host_sizes.iter().copied().max().unwrap_or(1);
        let links = links.map(|l| if l.links == 0 { most } else { l.links.min(most) });
        let hosts = net.host_sizes.len();
        let gates = |level: usize| {
            [
                vec![Gate::default(); hosts * links[level] as usize],
                vec![Gate::default(); hosts * links[level] as usize],
            ]
        };
        let under = machine.trunk.map_or(0, |t| hosts.div_ceil(t.hosts as usize));
        let mut p = Player {
            net,
            machine,
            shape,
            noise,
            random: noise.seed,
            now: 0.0,
            order: 0,
            heap: BinaryHeap::new(),
            cursors,
            channels,
            slots: vec![Slot::default(); slots as usize],
            ranks,
            cores: Vec::new(),
            gates: [gates(0), gates(1)],
            links,
            linked: [&machine.inside, &machine.across].map(|l| !l.link.is_zero()),
            trunk: [vec![Gate::default(); under], vec![Gate::default(); under]],
            costs: Vec::new(),
            ends: vec![0.0; net.played],
            calls,
            ended: vec![0.0; calls as usize],
            messages: 0,
            under_way: UnderWay::default(),
            latencies: machine.kinds().map(|(.., latency)| latency),
            slow,
        };
        p.price_pieces();
        if let Some(cores) = machine.cores
            && let shared = machine.core_hosts as usize
            && net.host_sizes.chunks(shared).any(|sizes| sizes.iter().sum::<u32>() > cores)
        {
            p.cores = vec![Core::default(); hosts.div_ceil(shared) * cores as usize];
            // One after the other, as ranks are bound to cores.
            for (rank, r) in p.ranks.iter_mut().enumerate() {
                let (host, place) = (net.hosts[rank] as usize, net.places[rank]);
                let before: u32 = net.host_sizes[host / shared * shared..host].iter().sum();
                r.core = (host / shared) as u32 * cores + (before + place) % cores;
            }
            for (c, ways) in net.channels.iter().zip(p.channels.chunks_mut(ways as usize)) {
                let [from, to] =
                    [c.from, c.to].map(|lane| p.ranks[net.lanes[lane as usize].rank as usize].core);
                // Those of another unit have other cores.
                if from == to && !c.leaves {
                    ways.iter_mut().for_each(|w| w.kind += 2);
                }
            }
        }
        Ok(p)
    }

    /// Costs of all pieces in the three lengths that tiles have: the same cuts as the executor's.
    fn price_pieces(&mut self) {
        const LINE: u64 = 64;
        let (tiles, chunks) = (u64::from(self.shape.tiles), u64::from(self.net.chunks));
        let lines = self.shape.block.div_ceil(LINE) / tiles * LINE;
        let last = self.shape.block - cut(self.shape.block, tiles - 1, tiles, LINE);
        let lengths = [lines, lines + LINE, last];
        let symmetric = self.net.symmetric;
        let (inside, across) = (&self.machine.inside, &self.machine.across);
        let kinds = self.machine.kinds();
        let cost = |(at, len): (u32, u32), tile: u64| {
            let edge = |i: u64| cut(tile, i, chunks, LINE);
            let bytes = match symmetric {
                true => self.shape.block as f64 / tiles as f64 * f64::from(len) / chunks as f64,
                false => (edge(u64::from(at) + u64::from(len)) - edge(u64::from(at))) as f64,
            };
            Costs {
                bytes,
                copy: self.machine.copy.at(bytes),
                fold: self.machine.fold.at(bytes),
                send: kinds.map(|(send, ..)| send.at(bytes)),
                recv: kinds.map(|(_, recv, _)| recv.at(bytes)),
                link: [inside.link.at(bytes), across.link.at(bytes)],
            }
        };
        self.costs = self.net.pieces.iter().map(|&piece| lengths.map(|tile| cost(piece, tile))).collect();
    }

    /// Which of the three lengths a tile has.
    pub(super) fn length(&self, tile: u32) -> usize {
        let (tile, tiles) = (u64::from(tile), u64::from(self.shape.tiles));
        if tile + 1 == tiles {
            return 2;
        }
        let lines = self.shape.block.div_ceil(64);
        usize::from((tile + 1) * lines / tiles - tile * lines / tiles > lines / tiles)
    }
}

//! What a round does, as far as all its processes must know alike: everything follows from its seed.

use std::time::Duration;

/// A generator of numbers that only look random (splitmix64).
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// One that depends on all of `parts`.
    pub fn of(parts: &[u64]) -> Rng {
        let mut r = Rng(0x5eed);
        for &p in parts {
            r = Rng(r.next() ^ p);
        }
        Rng(r.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// `0..n`; `n` is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn percent(&mut self, p: usize) -> bool {
        self.below(100) < p
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Up to `most`.
    pub fn time(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.below(1 << 20) as f64 / (1 << 20) as f64)
    }
}

/// What makes communicators fail in a round; its processes go on afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    Nothing,
    /// Ranks are killed; those that live shrink their communicator.
    Kill,
    /// Connections are shut down; the ranks join anew.
    Cut,
    /// Connections are shut down; the ranks shrink their communicator, and those that are excluded leave.
    Part,
    /// Ranks abort a communicator; all shrink it, and find nobody missing.
    Abort,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub np: usize,
    /// Emulated host of each rank.
    pub hosts: Vec<usize>,
    pub transport: &'static str,
    pub encrypt: bool,
    pub deterministic: bool,
    /// Schedules are proved before they are used.
    pub verify: bool,
    /// The kernels that each rank uses, as `GRACCL_SIMD` names them; empty: the best.
    pub simd: Vec<&'static str>,
    /// Threads of a rank that call collectives, each on communicators of its own.
    pub threads: usize,
    /// One more thread sends and receives on the communicator of the first.
    pub points: bool,
    /// Ranks sleep before calls.
    pub delays: bool,
    /// Ranks are stopped for a while.
    pub stops: bool,
    pub breaks: Break,
    pub length: Duration,
}

impl Plan {
    /// `np`: 2 to 8 ranks if it is not given.
    pub fn new(seed: u64, np: Option<usize>) -> Plan {
        let mut r = Rng::of(&[seed, 1]);
        let any = r.pick(&[2, 2, 3, 4, 4, 5, 6, 7, 8]);
        let np = np.unwrap_or(any);
        let count = r.pick(&[1, 1, 2, 2, 3, np]).min(np);
        let hosts = match r.percent(50) {
            true => (0..np).map(|rank| rank * count / np).collect(),
            false => (0..np).map(|_| r.below(count)).collect(),
        };
        let transport = r.pick(&["auto", "auto", "auto", "tcp"]);
        let breaks =
            r.pick(&[Break::Nothing, Break::Kill, Break::Kill, Break::Cut, Break::Part, Break::Abort]);
        Plan {
            seed,
            np,
            hosts,
            transport,
            encrypt: r.percent(30),
            deterministic: r.percent(25),
            verify: r.percent(15),
            simd: match r.percent(20) {
                true => (0..np).map(|_| r.pick(&["", "avx2", "scalar"])).collect(),
                false => vec![""; np],
            },
            threads: 1 + r.below(3),
            points: r.percent(50),
            delays: r.percent(50),
            stops: r.percent(50),
            breaks,
            length: Duration::from_secs(r.pick(&[3, 4, 5, 6, 8, 20])),
        }
    }

    /// In a line.
    pub fn text(&self) -> String {
        let mut hosts = self.hosts.clone();
        hosts.sort_unstable();
        hosts.dedup();
        let mut t = format!("{} ranks on {} hosts, {}", self.np, hosts.len(), self.transport);
        let many = format!("{} threads", self.threads);
        for (word, said) in [
            ("encrypted", self.encrypt),
            ("deterministic", self.deterministic),
            ("verified", self.verify),
            ("mixed kernels", self.simd.iter().any(|s| !s.is_empty())),
            (&many, true),
            ("points", self.points),
            ("delays", self.delays),
            ("stops", self.stops),
        ] {
            if said {
                t += ", ";
                t += word;
            }
        }
        match self.breaks {
            Break::Nothing => t,
            Break::Kill => t + ", kills",
            Break::Cut => t + ", cuts",
            Break::Part => t + ", cuts without return",
            Break::Abort => t + ", aborts",
        }
    }
}

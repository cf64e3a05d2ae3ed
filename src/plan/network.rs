//! Published networks, and prices on them for any number of ranks.

use super::Costs;
use crate::cost::{Linear, Price, PriceList, Prices};
use crate::reduce::Wire;
use crate::{Error, Result};

const LINES: &str = include_str!("data/networks.csv");
const CURVES: &str = include_str!("data/osu-10gbe.csv");
const CURVES_NAME: &str = "10gbe-osu";

/// A network of which something was published.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    pub name: &'static str,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// Allreduce of so many ranks: start, ns, and ns per byte.
    Measured(Vec<(u32, f64, f64)>),
    /// Allreduce of so many ranks: time at some sizes.
    Curves(Vec<(u32, PriceList)>),
    Link(Link),
}

/// A message of `bytes` takes `alpha + beta * bytes`, folding it `gamma * bytes`; ns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Link {
    alpha: f64,
    beta: f64,
    gamma: f64,
}

/// Prices of a network's allreduces and of their halves.
pub struct NetworkPrices {
    all_reduce: Forms,
    half: Forms,
}

/// Prices, or half of them.
enum Forms {
    Lines(Vec<Linear>),
    List(PriceList),
    Half(Box<Forms>),
}

impl Prices for Forms {
    fn price(&self, bytes: u64) -> Price {
        match self {
            Forms::Lines(lines) => {
                let ns = |l: &Linear| l.a + l.b * bytes as f64;
                let best = lines.iter().reduce(|best, l| if ns(l) < ns(best) { l } else { best });
                best.expect("there is a line").price(bytes)
            }
            Forms::List(list) => list.price(bytes),
            Forms::Half(whole) => {
                let price = whole.price(bytes);
                Price { ns: price.ns / 2.0, ..price }
            }
        }
    }

    fn times(&self, bytes: &[u64], ns: &mut [f64]) {
        match self {
            Forms::Lines(lines) => {
                ns.fill(f64::INFINITY);
                for l in lines {
                    ns.iter_mut().zip(bytes).for_each(|(t, b)| *t = t.min(l.a + l.b * *b as f64));
                }
            }
            Forms::List(list) => list.times(bytes, ns),
            Forms::Half(whole) => {
                whole.times(bytes, ns);
                ns.iter_mut().for_each(|t| *t /= 2.0);
            }
        }
    }
}

impl NetworkPrices {
    pub fn costs(&self) -> Costs<'_> {
        Costs { all_reduce: &self.all_reduce, whole: None, halves: Some((&self.half, &self.half)) }
    }
}

impl Network {
    /// The network of this name, if there is one.
    pub fn built_in(name: &str) -> Option<Network> {
        if name == CURVES_NAME {
            return Some(Network { name: CURVES_NAME, kind: Kind::Curves(curves()) });
        }
        let mut measured = Vec::new();
        for row in rows(LINES).filter(|r| r[0] == name) {
            let (alpha, beta) = (number(row[3]) * 1e3, number(row[4]));
            match row[1] {
                "link" => {
                    let gamma = if row[5].is_empty() { 0.0 } else { number(row[5]) };
                    let kind = Kind::Link(Link { alpha, beta, gamma });
                    return Some(Network { name: row[0], kind });
                }
                _ => measured.push((number(row[2]) as u32, alpha, beta)),
            }
        }
        let name = rows(LINES).find(|r| r[0] == name)?[0];
        Some(Network { name, kind: Kind::Measured(measured) })
    }

    /// All names.
    pub fn names() -> Vec<&'static str> {
        let mut names: Vec<&str> = rows(LINES).map(|r| r[0]).collect();
        names.dedup();
        names.push(CURVES_NAME);
        names
    }

    /// Numbers of ranks for which there are measurements; none for what is known by its links.
    pub fn measured(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Measured(rows) => rows.iter().map(|r| r.0).collect(),
            Kind::Curves(curves) => curves.iter().map(|c| c.0).collect(),
            Kind::Link(_) => Vec::new(),
        }
    }

    /// The link under a measured allreduce, if that was a ring: `a = 2 (n - 1) alpha`, `b = 2 (n - 1) / n beta`;
    /// of the measurement whose number of ranks is nearest by ratio. So a ring of a measured number of ranks
    /// costs exactly what was measured.
    fn link(&self, ranks: u32) -> Option<Link> {
        let rows = match &self.kind {
            Kind::Link(link) => return Some(*link),
            Kind::Curves(_) => return None,
            Kind::Measured(rows) => rows,
        };
        let far = |n: u32| (f64::from(n) / f64::from(ranks)).ln().abs();
        let &(n, a, b) = rows.iter().min_by(|x, y| far(x.0).total_cmp(&far(y.0)))?;
        let n = f64::from(n);
        Some(Link { alpha: a / (2.0 * (n - 1.0)), beta: b * n / (2.0 * (n - 1.0)), gamma: 0.0 })
    }

    /// Prices for `ranks` ranks on `hosts` hosts, which divide them evenly and have one link of this network each;
    /// inside hosts messages go over `inside`. Of `algorithms` (empty: all that are known) the cheapest. With a
    /// rank per host: `ring`, `recursive_doubling`, `halving_doubling` (powers of two). With more: `ring`,
    /// `hier_2d`, `hier_leader`. `docs/plan.md` has the forms. With `wire` also what packs messages of f32 between hosts:
    /// `direct`, or with more ranks a host `hier_direct`. `InvalidArgument` if there is none.
    pub fn prices(
        &self,
        ranks: u32,
        hosts: u32,
        inside: Option<&Network>,
        algorithms: &[&str],
        wire: Option<Wire>,
    ) -> Result<NetworkPrices> {
        let wrong = |what: String, hint: String| Err(Error::argument(what).who(self.name).hint(hint));
        if ranks == 0 || hosts == 0 || !ranks.is_multiple_of(hosts) {
            return wrong(
                format!("{ranks} ranks cannot be spread evenly over {hosts} hosts"),
                "take a number of hosts that divides the ranks".into(),
            );
        }
        let k = ranks / hosts;
        let wanted = |name: &str| algorithms.is_empty() || algorithms.contains(&name);
        if let Kind::Curves(curves) = &self.kind {
            let Some((_, list)) = curves.iter().find(|c| c.0 == ranks && k == 1) else {
                let known: Vec<String> = self.measured().iter().map(u32::to_string).collect();
                return wrong(
                    format!("there is no measurement of {ranks} ranks on {hosts} hosts"),
                    format!("it has {} ranks, one a host", known.join(", ")),
                );
            };
            if !wanted("measured") {
                return wrong(
                    "the algorithm measured is not known".into(),
                    "leave the choice of one out".into(),
                );
            }
            if wire.is_some() {
                return wrong(
                    "what packed messages cost does not follow from this measurement".into(),
                    "take a network that is known by its links or by lines, or a cluster".into(),
                );
            }
            let whole = || Forms::List(list.clone());
            return Ok(NetworkPrices { all_reduce: whole(), half: Forms::Half(Box::new(whole())) });
        }
        // A network that only one side has need not be known on the other.
        let inside = inside.unwrap_or(self);
        let link = |network: &Network, ranks| {
            network.link(ranks).ok_or_else(|| {
                Error::argument("it cannot be used inside hosts")
                    .who(network.name)
                    .hint("take a network that is known by its links or by lines")
            })
        };
        let mut lines = match (k, hosts) {
            (1, _) => flat(ranks, link(self, ranks)?),
            (_, 1) => flat(ranks, link(inside, k)?),
            _ => grouped(k, hosts, link(inside, k)?, link(self, ranks)?),
        };
        if hosts > 1
            && let Some(wire) = wire
        {
            let within = if k > 1 { link(inside, k)? } else { Link::default() };
            lines.push(packed(k, hosts, within, link(self, ranks)?, wire));
        }
        let names: Vec<&str> = lines.iter().map(|l| l.algorithm).collect();
        if let Some(unknown) = algorithms.iter().find(|a| !names.contains(a)) {
            return wrong(
                format!("{unknown} is not known for {ranks} ranks on {hosts} hosts"),
                format!("known: {}", names.join(", ")),
            );
        }
        let chosen: Vec<Linear> = lines.iter().filter(|l| wanted(l.algorithm)).copied().collect();
        // Every one of these is a reduce_scatter and an all_gather of the same cost, apart from folding, but for
        // doubling (which moves whole buffers) and the one with leaders (only these have the sum in between).
        let whole = |l: &&Linear| {
            l.algorithm != "recursive_doubling" && l.algorithm != "hier_leader" && l.wire.is_none()
        };
        let halves: Vec<Linear> = chosen.iter().filter(whole).copied().collect();
        let half = if halves.is_empty() { chosen.clone() } else { halves };
        Ok(NetworkPrices {
            all_reduce: Forms::Lines(chosen),
            half: Forms::Half(Box::new(Forms::Lines(half))),
        })
    }
}

/// One rank a host. Forms of Thakur, Rabenseifner and Gropp, 2005: see [`Linear`].
fn flat(n: u32, Link { alpha, beta, gamma }: Link) -> Vec<Linear> {
    let mut lines = vec![Linear::ring(n, alpha, beta, gamma), Linear::doubling(n, alpha, beta, gamma)];
    if n.is_power_of_two() {
        lines.push(Linear::halving_doubling(n, alpha, beta, gamma));
    }
    lines
}

/// `k` ranks on each of `h` hosts with one link each.
fn grouped(k: u32, h: u32, inside: Link, out: Link) -> Vec<Linear> {
    let (kf, hf) = (f64::from(k), f64::from(h));
    let n = kf * hf;
    let part = |m: f64| (m - 1.0) / m;
    // The flat ring as in NCCL's model (src/graph/tuning.cc): of 2 (n - 1) steps 2 (h - 1) cross hosts, one
    // after the other; the slower link decides the rate.
    let ring = Linear::new(
        "ring",
        2.0 * (n - hf) * inside.alpha + 2.0 * (hf - 1.0) * out.alpha,
        part(n) * (2.0 * inside.beta.max(out.beta) + inside.gamma),
    );
    // All ranks of a host send over its link at the same time.
    let shared = (out.alpha, out.beta * kf);
    let two_level = Linear::two_level(k, h, (inside.alpha, inside.beta), shared, out.gamma);
    // Jia et al., arXiv 1807.11205: ring reduce and broadcast of 2 (k - 1) steps each in the host, a ring of
    // 2 (h - 1) steps of the hosts' leaders; each moves everything about twice.
    let leader = Linear::new(
        "hier_leader",
        4.0 * (kf - 1.0) * inside.alpha + 2.0 * (hf - 1.0) * out.alpha,
        part(kf) * (4.0 * inside.beta + inside.gamma) + part(hf) * (2.0 * out.beta + out.gamma),
    );
    vec![ring, two_level, leader]
}

/// As [`Linear::two_level`], but hosts send to each other directly, in a form that rounds, and each message pays its
/// alpha, as those of a ring do. The passes that pack are not counted: nothing was published of the cores.
fn packed(k: u32, h: u32, inside: Link, out: Link, wire: Wire) -> Linear {
    let shared = (out.alpha, out.beta * f64::from(k) * wire.ratio());
    let line = Linear::two_level(k, h, (inside.alpha, inside.beta), shared, out.gamma);
    Linear { algorithm: if k == 1 { "direct" } else { "hier_direct" }, wire: Some(wire), ..line }
}

fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = text.lines().filter(|l| !l.starts_with('#')).skip(1);
    lines.map(|l| l.split(',').collect())
}

fn number(text: &str) -> f64 {
    text.parse().expect("built-in data are numbers")
}

fn curves() -> Vec<(u32, PriceList)> {
    let mut all: Vec<(u32, Vec<(u64, Price)>)> = Vec::new();
    for row in rows(CURVES) {
        let ranks = number(row[0]) as u32;
        if all.last().is_none_or(|c| c.0 != ranks) {
            all.push((ranks, Vec::new()));
        }
        let price = Price::new(number(row[2]) * 1e3, "measured");
        all.last_mut().expect("one was pushed").1.push((number(row[1]) as u64, price));
    }
    let list = |points| PriceList::new(points).expect("built-in data are a list");
    all.into_iter().map(|(ranks, points)| (ranks, list(points))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(p: &NetworkPrices, bytes: u64) -> f64 {
        p.costs().all_reduce.price(bytes).ns
    }

    #[test]
    fn a_ring_costs_what_was_measured() {
        for name in Network::names() {
            let net = Network::built_in(name).unwrap();
            assert_eq!(net.name, name);
            let Kind::Measured(rows) = &net.kind else { continue };
            for &(n, a, b) in rows {
                let p = net.prices(n, n, None, &["ring"], None).unwrap();
                for bytes in [0u64, 1 << 20, 1 << 30] {
                    let want = a + b * bytes as f64;
                    assert!((ns(&p, bytes) - want).abs() <= 1e-9 * want, "{name} {n} {bytes}");
                }
            }
        }
        assert!(Network::built_in("carrier pigeons").is_none());
    }

    #[test]
    fn curves_have_their_knee() {
        let net = Network::built_in("10gbe-osu").unwrap();
        let p = net.prices(8, 8, None, &[], None).unwrap();
        assert_eq!((ns(&p, 8192), ns(&p, 12288)), (182_030.0, 791_790.0));
        let halves = p.costs().halves.unwrap();
        assert_eq!(halves.0.price(8192).ns, 91_015.0);
        let e = net.prices(64, 64, None, &[], None).err().unwrap().to_string();
        assert!(e.contains("no measurement of 64 ranks") && e.contains("2, 4, 8"), "{e}");
    }

    #[test]
    fn scaled_by_closed_forms() {
        let net = Network::built_in("roce100").unwrap();
        let one = |name: &str, n, hosts| net.prices(n, hosts, Some(&net), &[name], None).unwrap();
        // 100 bytes: 8 ns per hop of all of them.
        assert_eq!(ns(&one("ring", 4, 4), 100), 60_000.0 + 12.0);
        assert_eq!(ns(&one("recursive_doubling", 4, 4), 100), 20_000.0 + 16.0);
        assert_eq!(ns(&one("halving_doubling", 4, 4), 100), 40_000.0 + 12.0);
        // The published steps at 1024 with groups of 16: 186, against 2046.
        assert_eq!(ns(&one("hier_leader", 1024, 64), 0), 186.0 * 10_000.0);
        assert_eq!(ns(&one("ring", 1024, 64), 0), 2046.0 * 10_000.0);
        // Half of the bytes between hosts, in as many messages.
        let levels = ["hier_2d", "hier_direct"];
        let ns = |wire: Option<Wire>, bytes| {
            let known: &[&str] = &levels[..if wire.is_some() { 2 } else { 1 }];
            net.prices(16, 4, Some(&net), known, wire).unwrap().costs().all_reduce.price(bytes)
        };
        let (whole, half) = (ns(None, 1 << 26), ns(Some(Wire::F16), 1 << 26));
        assert_eq!((half.algorithm, half.wire, whole.wire), ("hier_direct", Some(Wire::F16), None));
        let saved = 2.0 * 0.75 * 0.08 / 2.0 * f64::from(1 << 26);
        assert!((whole.ns - half.ns - saved).abs() < 1e-6 * saved, "{} {} {saved}", whole.ns, half.ns);
        // The cheapest wins, and says so.
        let all = net.prices(64, 64, None, &[], None).unwrap();
        assert_eq!(all.costs().all_reduce.price(1024).algorithm, "recursive_doubling");
        assert_eq!(all.costs().all_reduce.price(1 << 30).algorithm, "halving_doubling");
        let e = net.prices(6, 4, None, &[], None).err().unwrap().to_string();
        assert!(e.contains("spread evenly"), "{e}");
        let e = net.prices(6, 6, None, &["hier_2d"], None).err().unwrap().to_string();
        assert!(e.contains("known: ring, recursive_doubling"), "{e}");
    }
}

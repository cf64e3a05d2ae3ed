//! Clusters as TOML files: hosts, and what their parts cost.

use std::path::Path;

use graccl::cost::{Curve, Level, Machine, Model, Trunk};
use graccl::schedule::Groups;
use graccl::sim::{Candidates, Noise};
use graccl::tune::Profile;
use graccl::{Collective, Error, Result};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The clusters that need no file.
const BUILT_IN: [(&str, &str); 5] = [
    ("p40-100g", include_str!("clusters/p40-100g.toml")),
    ("nvlink-400g", include_str!("clusters/nvlink-400g.toml")),
    ("v100-25g", include_str!("clusters/v100-25g.toml")),
    ("cpu-2core", include_str!("clusters/cpu-2core.toml")),
    ("1g-ethernet", include_str!("clusters/1g-ethernet.toml")),
];

pub struct Cluster {
    pub name: String,
    pub hosts: usize,
    pub ranks_per_host: usize,
    pub model: Model,
    pub noise: Noise,
    /// That of a profile's job, which says what messages may be; a described cluster has whatever transport is best.
    transport: Option<&'static str>,
}

/// The file. Times are ns, sizes bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    hosts: usize,
    ranks_per_host: usize,
    #[serde(default)]
    call: f64,
    #[serde(default)]
    op: f64,
    #[serde(default)]
    copy: Cost,
    #[serde(default)]
    fold: Cost,
    cores: Option<u32>,
    #[serde(default)]
    switch: f64,
    inside: LevelFile,
    across: Option<LevelFile>,
    trunk: Option<TrunkFile>,
    #[serde(default)]
    noise: NoiseFile,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct LevelFile {
    #[serde(default)]
    send: Cost,
    #[serde(default)]
    recv: Cost,
    latency: f64,
    #[serde(default)]
    link: Cost,
    #[serde(default)]
    links: u32,
    #[serde(default = "depth")]
    depth: u32,
    #[serde(default)]
    credits: u32,
}

fn depth() -> u32 {
    4
}

/// A number of ns, a line, or points (bytes, ns).
#[derive(Clone)]
enum Cost {
    Constant(f64),
    Points(Vec<(f64, f64)>),
    Line(LineFile),
}

/// By hand, so that an error says what is wrong with the form that was chosen.
impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Cost, D::Error> {
        let value = toml::Value::deserialize(d)?;
        let form = value.type_str();
        match value {
            toml::Value::Integer(ns) => Ok(Cost::Constant(ns as f64)),
            toml::Value::Float(ns) => Ok(Cost::Constant(ns)),
            toml::Value::Array(_) => value.try_into().map(Cost::Points).map_err(D::Error::custom),
            toml::Value::Table(_) => value.try_into().map(Cost::Line).map_err(D::Error::custom),
            _ => Err(D::Error::custom(format!("a {form} instead of ns, {{ ns, gbs }} or [[bytes, ns], ..]"))),
        }
    }
}

/// `ns + bytes / gbs`: 1 GB/s is a byte per ns.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct LineFile {
    #[serde(default)]
    ns: f64,
    gbs: Option<f64>,
}

impl Default for Cost {
    fn default() -> Cost {
        Cost::Constant(0.0)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrunkFile {
    hosts: u32,
    oversubscription: f64,
    #[serde(default)]
    latency: f64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct NoiseFile {
    seed: u64,
    core: f64,
    wire: f64,
    slow: Vec<(usize, f64)>,
    late: Vec<(usize, f64)>,
}

impl Cost {
    fn curve(&self, name: &str) -> Result<Curve> {
        let bad = |what: String| {
            Err(Error::argument(what).who(name).hint("times are not negative, bandwidths more than 0"))
        };
        match self {
            Cost::Constant(ns) | Cost::Line(LineFile { ns, .. }) if !(*ns >= 0.0 && ns.is_finite()) => {
                bad(format!("takes {ns} ns"))
            }
            Cost::Constant(ns) | Cost::Line(LineFile { ns, gbs: None }) => Ok(Curve::constant(*ns)),
            Cost::Line(LineFile { gbs: Some(gbs), .. }) if gbs.is_nan() || *gbs <= 0.0 => {
                bad(format!("has {gbs} GB/s"))
            }
            Cost::Line(LineFile { ns, gbs: Some(gbs) }) => Ok(Curve::line(*ns, 1.0 / gbs)),
            Cost::Points(points) => Curve::new(points.clone()).map_err(|e| e.who(name)),
        }
    }
}

impl LevelFile {
    fn level(&self, name: &str) -> Result<Level> {
        Ok(Level {
            send: self.send.curve(&format!("{name}.send"))?,
            recv: self.recv.curve(&format!("{name}.recv"))?,
            latency: self.latency,
            link: self.link.curve(&format!("{name}.link"))?,
            links: self.links,
            depth: self.depth,
            credits: self.credits,
            on_core: None,
        })
    }
}

impl Cluster {
    /// A built-in cluster of this name, or the file. A profile of `graccl tune` is the machine that it was made on, with
    /// the ranks and hosts of the job that it was made by.
    pub fn load(what: &str) -> Result<Cluster> {
        if let Some((name, text)) = BUILT_IN.iter().find(|b| b.0 == what) {
            return Cluster::parse(name, text);
        }
        let text = std::fs::read_to_string(what).map_err(|e| {
            let names: Vec<&str> = BUILT_IN.iter().map(|b| b.0).collect();
            Error::argument(format!("cannot read cluster `{what}`: {e}"))
                .hint(format!("give a TOML file (docs/simulator.md) or one of: {}", names.join(", ")))
        })?;
        let name = Path::new(what).file_stem().map_or(what.into(), |s| s.to_string_lossy().into_owned());
        Cluster::read(name, &text)
    }

    /// What a file of either kind says.
    pub(super) fn read(name: String, text: &str) -> Result<Cluster> {
        match text.lines().any(|l| l.trim_start().starts_with("[machine]")) {
            true => Cluster::tuned(name, text),
            false => Cluster::parse(&name, text),
        }
    }

    fn tuned(name: String, text: &str) -> Result<Cluster> {
        let Profile { model, runs, table, .. } = Profile::parse(&name, text)?;
        let model = model.ok_or_else(|| {
            Error::argument("a profile without a machine").who(&name).hint("graccl tune writes [machine]")
        })?;
        // What a tuning found comes behind what was there.
        let place = runs.last().map(|r| r.place).or_else(|| table.rows().last().map(|r| r.0));
        let (ranks, hosts) = match place {
            Some(p) => (p.ranks as usize, p.hosts as usize),
            None => (model.machine.cores.unwrap_or(2) as usize, 1),
        };
        let transport = Some(place.map_or("shm", |p| p.transport));
        let ranks_per_host = ranks.div_ceil(hosts);
        Ok(Cluster { name, hosts, ranks_per_host, model, noise: Noise::default(), transport })
    }

    fn parse(name: &str, text: &str) -> Result<Cluster> {
        let file: File = toml::from_str(text).map_err(|e| {
            Error::argument(e.to_string().trim_end().to_string())
                .who(format!("cluster {name}"))
                .hint("docs/simulator.md lists what a cluster file has")
        })?;
        let inside = file.inside.level("inside")?;
        let across = match &file.across {
            Some(level) => level.level("across")?,
            None if file.hosts > 1 => {
                return Err(Error::argument("several hosts, and nothing about the way across")
                    .who(format!("cluster {name}"))
                    .hint("add [across], or say hosts = 1"));
            }
            None => inside.clone(),
        };
        let machine = Machine {
            inside,
            across,
            call: file.call,
            op: file.op,
            copy: file.copy.curve("copy")?,
            fold: file.fold.curve("fold")?,
            cores: file.cores,
            core_hosts: 1,
            switch: file.switch,
            trunk: file.trunk.map(|t| Trunk {
                hosts: t.hosts,
                oversubscription: t.oversubscription,
                latency: t.latency,
            }),
        };
        machine.check().map_err(|e| e.who(format!("cluster {name}")))?;
        if file.hosts == 0 || file.ranks_per_host == 0 {
            return Err(Error::argument("no hosts or no ranks")
                .who(format!("cluster {name}"))
                .hint("hosts and ranks_per_host are at least 1"));
        }
        let NoiseFile { seed, core, wire, slow, late } = file.noise;
        Ok(Cluster {
            name: name.into(),
            hosts: file.hosts,
            ranks_per_host: file.ranks_per_host,
            model: Model::new(machine),
            noise: Noise { seed, core, wire, slow, late },
            transport: None,
        })
    }

    /// What may be chosen from.
    pub fn candidates(&self, collective: Collective, groups: &Groups) -> Candidates {
        let mut all = Candidates::of(collective, groups);
        if self.transport.is_some_and(|t| t != "tcp") {
            all.messages.retain(|m| *m as usize <= graccl::transport::shm::MESSAGE);
        }
        all
    }

    /// The ranks on their hosts: as many as the file says, or as asked for. A profile of one host knows no way to
    /// another.
    pub fn groups(&self, ranks: Option<u32>, hosts: Option<u32>) -> Result<Groups> {
        let per = self.ranks_per_host;
        let (ranks, hosts) = match (ranks.map(|r| r as usize), hosts.map(|h| h as usize)) {
            (None, hosts) => {
                let hosts = hosts.unwrap_or(self.hosts);
                (hosts.saturating_mul(per), hosts)
            }
            (Some(ranks), None) if self.transport.is_some() && self.hosts == 1 => (ranks, 1),
            (Some(ranks), None) => (ranks, ranks.div_ceil(per)),
            (Some(ranks), Some(hosts)) => (ranks, hosts),
        };
        const MOST: usize = 1 << 20;
        if ranks > MOST {
            return Err(Error::argument(format!("{ranks} ranks are too many"))
                .hint(format!("simulate at most {MOST}")));
        }
        Ok(Groups::new(&crate::launch::hosts_of_ranks(ranks, hosts)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_clusters_parse() {
        for (name, _) in BUILT_IN {
            let c = Cluster::load(name).unwrap();
            let groups = c.groups(None, None).unwrap();
            assert_eq!((groups.n(), groups.len()), (c.hosts * c.ranks_per_host, c.hosts), "{name}");
        }
        let c = Cluster::load("p40-100g").unwrap();
        assert_eq!(c.groups(Some(20), None).unwrap().len(), 3);
        assert_eq!(c.groups(Some(20), Some(2)).unwrap().len(), 2);
        assert!(c.groups(Some(2), Some(3)).is_err());
        assert_eq!(c.model.machine.across.link.at(11.5e9), 1e9);
    }

    #[test]
    fn mistakes_are_named() {
        let level = "[inside]\nlatency = 100\n";
        let bad = |text: &str| Cluster::parse("x", text).err().map(|e| e.to_string()).unwrap_or_default();
        let head = "hosts = 1\nranks_per_host = 2\n";
        assert_eq!(bad(&format!("{head}{level}")), "");
        assert!(bad(&format!("{head}cpoy = 1\n{level}")).contains("cpoy"));
        assert!(bad(&format!("{head}copy = {{ gbs = 0 }}\n{level}")).contains("0 GB/s"));
        assert!(bad(&format!("{head}copy = [[4, 1], [2, 1]]\n{level}")).contains("copy"));
        assert!(bad(&format!("hosts = 2\nranks_per_host = 2\n{level}")).contains("the way across"));
        assert!(bad(&format!("{head}[inside]\nlatency = -1\n")).contains("inside.latency"));
        assert!(bad(&format!("{head}fold = -3.0\n{level}")).contains("-3 ns"));
    }
}

//! `graccl sim`: collectives on described clusters, in virtual time.

mod chart;
mod cluster;
mod fuzz;
mod shop;
mod table;
mod train;

use std::path::PathBuf;

use clap::Args;
use graccl::reduce::Wire;
use graccl::sim::{Noise, Pricer};
use graccl::{DataType, Error, Result};

use crate::perf::parse_size;
use crate::plan::{parse_ms, parse_type, parse_wire};
use crate::schedules;
use crate::verify::say;
pub(crate) use cluster::Cluster;
pub use fuzz::fuzz_cluster;
pub(crate) use shop::Shop;
use table::Table;

#[derive(Args)]
#[command(after_help = "\
Clusters: p40-100g, nvlink-400g, v100-25g, cpu-2core, 1g-ethernet, a TOML file (docs/simulator.md), or a profile of
graccl tune.

Columns: size of the larger buffer of a rank; algorithm x tiles / ways; time from the call to the end on the
last rank; algbw and busbw as in nccl-tests; steps: messages, one after the other, that determined the time;
of that time the share on cores, in latencies, on links, waiting for links; then how much of the time the
busiest link across hosts, link inside a host and core were busy; ranks played (fewer than all where hosts
are alike), and how long playing took.

Exit status: 0 if all was simulated, 1 if not, 2 for wrong flags or files.")]
pub struct SimArgs {
    /// Cluster: a built-in one, or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "p40-100g")]
    cluster: String,
    /// Ranks [default: all of the cluster]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
    /// Hosts [default: as many as the ranks fill]
    #[arg(long, value_name = "H", conflicts_with = "train", value_parser = clap::value_parser!(u32).range(1..))]
    hosts: Option<u32>,
    /// Collective
    #[arg(long, value_name = "NAME", conflicts_with = "train", default_value = "all_reduce")]
    collective: String,
    /// Algorithm; auto takes the cheapest for each size, all shows the cheapest form of each
    #[arg(long, value_name = "NAME|all|auto", conflicts_with = "train", default_value = "auto")]
    algo: String,
    /// Sizes, bytes; K, M and G mean 2^10, 2^20 and 2^30
    #[arg(long, value_name = "SIZE,..", conflicts_with = "train", value_delimiter = ',', value_parser = parse_size,
          default_value = "4,1K,32K,256K,1M,8M,64M,256M")]
    sizes: Vec<usize>,
    /// Largest message to aim at, bytes [default: the cheapest of 64K, 256K, 1M, .. 64M]
    #[arg(long, value_name = "SIZE", conflicts_with = "train", value_parser = parse_size)]
    message: Option<usize>,
    /// Tiles worked on at a time [default: the cheapest of 1, 2, 4]
    #[arg(long, value_name = "W", conflicts_with = "train", value_parser = clap::value_parser!(u32).range(1..=64))]
    ways: Option<u32>,
    /// Root, for collectives that have one
    #[arg(long, value_name = "R", conflicts_with = "train", default_value_t = 0)]
    root: u32,
    /// Play every rank and every tile, also where hosts are alike
    #[arg(long, conflicts_with = "train")]
    full: bool,
    /// Simulate training instead: a model (alexnet, alexnet-bn, resnet50, vgg16, googlenet, bert-base,
    /// bert-large, or a FILE as for graccl plan), from one host to all ranks in doublings
    #[arg(long, value_name = "MODEL")]
    train: Option<String>,
    /// With --train: one rank's forward and backward pass together, ms [default: as in the model]
    #[arg(long, value_name = "MS", requires = "train", value_parser = parse_ms)]
    compute: Option<f64>,
    /// With --train: send floating-point gradients as this type: f16, bf16, f32 or f64 [default: as in the model]
    #[arg(long = "type", value_name = "TYPE", requires = "train", value_parser = parse_type)]
    dtype: Option<DataType>,
    /// Messages of float between hosts may be packed as half, bfloat16 or int8, by the algorithms that can (sizes are
    /// those of the floats)
    #[arg(long, value_name = "FORM", value_parser = parse_wire)]
    wire: Option<Wire>,
    /// With --train: samples of one rank in an iteration, to tell samples per second
    #[arg(long, value_name = "N", requires = "train", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// With --train: draw the efficiencies into FILE
    #[arg(long, value_name = "FILE", requires = "train")]
    svg: Option<PathBuf>,
    /// Write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results to FILE as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// `graccl sim`.
pub fn main(a: SimArgs) -> Result<u8> {
    let cluster = Cluster::load(&a.cluster)?;
    if let Some(model) = &a.train {
        train::train(&a, model, &cluster)?;
        return Ok(0);
    }
    let groups = cluster.groups(a.ranks, a.hosts)?;
    let collective = schedules::collective(&a.collective)?;
    if a.root as usize >= groups.n() || a.root > 0 && !collective.rooted() {
        return Err(Error::argument(format!("root {} of {} ranks", a.root, groups.n()))
            .who(collective.name())
            .hint("a root is one of the ranks, of a collective that has one"));
    }
    let mut candidates = cluster.candidates(collective, &groups);
    if let Some(message) = a.message {
        candidates.messages = vec![u32::try_from(message).unwrap_or(u32::MAX)];
    }
    if let Some(ways) = a.ways {
        candidates.ways = vec![ways];
    }
    if !matches!(a.algo.as_str(), "all" | "auto") {
        candidates.algorithms = vec![schedules::find(collective, &a.algo)?];
    }
    if let Some(wire) = a.wire {
        candidates = candidates.packed(wire);
        if candidates.algorithms.is_empty() {
            return Err(Error::argument(format!("no algorithm asked for can pack {}", collective.name()))
                .hint("all_reduce can, by direct or hier_direct"));
        }
    }
    // With a root or with noise ranks are not alike, and every tile is another.
    let pricer = match a.full || a.root > 0 || cluster.noise != Noise::default() {
        true => {
            let call = (collective, a.root as usize);
            Pricer::in_full(call, &groups, &cluster.model, candidates, cluster.noise.clone())?
        }
        false => Pricer::new(collective, &groups, &cluster.model, candidates)?,
    };
    let mut table = Table::new(&cluster.name, &groups, collective);
    table.head()?;
    if !pricer.left_out().is_empty() {
        say(&format!("# too long to simulate here, and left out: {}\n", pricer.left_out().join(", ")))?;
    }
    for &bytes in &a.sizes {
        let choices = match a.algo.as_str() {
            "all" => pricer.each(bytes as u64)?,
            _ => vec![pricer.cheapest(bytes as u64)?],
        };
        for choice in choices {
            table.row(bytes as u64, &choice)?;
        }
    }
    table.write(a.json.as_deref(), a.csv.as_deref())?;
    Ok(0)
}

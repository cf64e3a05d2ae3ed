//! `graccl plan`: which gradients to send together, and what it would gain.

mod report;
mod svg;

use std::io::Write;
use std::path::Path;

use clap::Args;
use graccl::cost::{Cheapest, PriceList};
use graccl::plan::{
    Alternative, Costs, Mode, Model, Network, NetworkPrices, Options, Plan, Span, best, data_type,
};
use graccl::reduce::Wire;
use graccl::{Collective, DataType, Error, Result};

use crate::perf::parse_size;
use crate::schedules;
use crate::sim::{Cluster, Shop};

#[derive(Args)]
#[command(after_help = "\
The model is one of alexnet, alexnet-bn, bert-base, bert-large, googlenet, resnet50, vgg16, or a file: lines
of `tensor,elements,type,ready_us,forward_us` under a line with these names, in the order in which
gradients become ready in the backward pass. docs/plan.md shows how to write one from a framework.

Networks are published measurements; docs/plan.md lists them, and says how they are scaled to other
numbers of ranks. The plan is the best partition that there is, not a guess, for these times and prices.

Times of an iteration: from the start of the backward pass to the end of the next forward pass.")]
pub struct PlanArgs {
    /// Model: a name or a file
    #[arg(long, value_name = "NAME|FILE")]
    model: String,
    /// Number of ranks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,
    /// Network between hosts: a published one; or a cluster as for graccl sim (a name, a file, a profile of graccl
    /// tune), on which the simulator prices every algorithm
    #[arg(long, value_name = "NAME|FILE")]
    network: String,
    /// Hosts that the ranks are spread over evenly, each with one link; default: a host per rank, or as the
    /// cluster has them
    #[arg(long, value_name = "H", value_parser = clap::value_parser!(u32).range(1..))]
    hosts: Option<u32>,
    /// Network inside hosts; default: the same
    #[arg(long, value_name = "NAME")]
    inside: Option<String>,
    /// Use only these algorithms for allreduces
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    algo: Vec<String>,
    /// Plan for this mode only: all_reduce, priority or reduce_scatter_all_gather
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    mode: Option<Mode>,
    /// Tensors of more bytes than this may be cut; 0: none
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "16M")]
    cut: usize,
    /// Send floating-point gradients as this type: f16, bf16, f32 or f64
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    dtype: Option<DataType>,
    /// Allreduces may pack their messages between hosts as half, bfloat16 or int8, where that pays
    #[arg(long, value_name = "FORM", value_parser = parse_wire)]
    wire: Option<Wire>,
    /// Scale the model's times so that forward and backward take this long together
    #[arg(long, value_name = "MS", value_parser = parse_ms)]
    compute_ms: Option<f64>,
    /// Draw the plan's timeline
    #[arg(long, value_name = "FILE")]
    svg: Option<String>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn parse_mode(text: &str) -> std::result::Result<Mode, String> {
    Mode::ALL.into_iter().find(|m| m.name() == text).ok_or_else(|| {
        let names = Mode::ALL.map(Mode::name);
        format!("use one of: {}", names.join(", "))
    })
}

pub(crate) fn parse_type(text: &str) -> std::result::Result<DataType, String> {
    data_type(text).filter(|d| d.is_float()).ok_or_else(|| "use f16, bf16, f32 or f64".into())
}

pub(crate) fn parse_wire(text: &str) -> std::result::Result<Wire, String> {
    Wire::by_name(text).ok_or_else(|| format!("use one of: {}", Wire::ALL.map(Wire::name).join(", ")))
}

/// Only f32 are packed.
pub(crate) fn can_be_packed(model: &Model) -> Result<()> {
    match model.tensors().iter().find(|t| t.dtype != DataType::F32) {
        None => Ok(()),
        Some(t) => Err(Error::argument(format!("--wire packs float, and {} is {}", t.name, t.dtype.name()))
            .hint("leave --wire or --type out")),
    }
}

/// The algorithm, and the form of its messages between hosts.
pub(crate) fn how(span: &Span) -> String {
    match span.wire {
        Some(wire) => format!("{} as {}", span.algorithm, wire.name()),
        None => span.algorithm.to_string(),
    }
}

pub(crate) fn parse_ms(text: &str) -> std::result::Result<f64, String> {
    let ms = text.parse().map_err(|_| "not a number".to_string())?;
    if ms > 0.0 && ms < 1e9 { Ok(ms) } else { Err("must be more than 0, and less than 1e9".into()) }
}

/// Everything that is printed.
struct Outcome {
    model_name: String,
    model: Model,
    network: String,
    plan: Plan,
    /// The best of every mode that was allowed, and everybody's rules.
    others: Vec<Alternative>,
}

/// The built-in model or the file `what`.
pub(crate) fn model(what: &str) -> Result<Model> {
    if let Some(model) = Model::built_in(what) {
        return Ok(model);
    }
    let text = std::fs::read_to_string(what).map_err(|e| {
        let names: Vec<_> = Model::names().collect();
        Error::argument(format!("cannot read the model file {what}: {e}"))
            .hint(format!("give a file (docs/plan.md), or one of: {}", names.join(", ")))
    })?;
    Model::parse(&text).map_err(|e| Error { who: format!("{}, {what}", e.who), ..e })
}

/// The [`model`] with its gradients sent as `dtype`, where they must be fit for `wire`, and computed in `ms`.
pub(crate) fn model_with(
    what: &str,
    dtype: Option<DataType>,
    wire: Option<Wire>,
    ms: Option<f64>,
) -> Result<Model> {
    let mut model = model(what)?;
    if let Some(dtype) = dtype {
        model = model.sent_as(dtype);
    }
    if wire.is_some() {
        can_be_packed(&model)?;
    }
    match ms {
        Some(ms) => model.in_time(ms * 1e6),
        None => Ok(model),
    }
}

enum Priced {
    Published(NetworkPrices),
    /// allreduce, reduce_scatter, all_gather.
    Simulated([Cheapest<PriceList>; 3]),
}

impl Priced {
    fn costs(&self) -> Costs<'_> {
        match self {
            Priced::Published(prices) => prices.costs(),
            Priced::Simulated([all_reduce, reduce, gather]) => {
                Costs { all_reduce, whole: None, halves: Some((reduce, gather)) }
            }
        }
    }
}

fn network(name: &str) -> Result<Network> {
    Network::built_in(name).ok_or_else(|| {
        Error::argument(format!("unknown network `{name}`"))
            .hint(format!("use one of: {}", Network::names().join(", ")))
    })
}

/// What communication costs between the ranks, and in words where.
fn prices(args: &PlanArgs, bytes: u64) -> Result<(Priced, String)> {
    let algorithms: Vec<&str> = args.algo.iter().map(String::as_str).collect();
    let Some(out) = Network::built_in(&args.network) else { return simulated(args, bytes, &algorithms) };
    let hosts = args.hosts.unwrap_or(args.ranks);
    let inside = args.inside.as_deref().map(network).transpose()?;
    let prices = out.prices(args.ranks, hosts, inside.as_ref(), &algorithms, args.wire)?;
    let inside = inside.map_or(String::new(), |n| format!(", {} inside hosts", n.name));
    let place = format!("{} ranks on {hosts} hosts, {}{inside}", args.ranks, out.name);
    Ok((Priced::Published(prices), place))
}

fn simulated(args: &PlanArgs, bytes: u64, algorithms: &[&str]) -> Result<(Priced, String)> {
    let cluster = Cluster::load(&args.network).map_err(|e| match Path::new(&args.network).exists() {
        true => e,
        false => Error::argument(format!("unknown network `{}`", args.network)).hint(format!(
            "use one of: {}; or a cluster, see graccl sim --help",
            Network::names().join(", ")
        )),
    })?;
    if let Some(inside) = &args.inside {
        return Err(Error::argument(format!("--inside {inside}, and a cluster, which has its own"))
            .hint("leave it out, or give a published network"));
    }
    let groups = cluster.groups(Some(args.ranks), args.hosts)?;
    for name in algorithms {
        schedules::find(Collective::AllReduce, name)?;
    }
    let mut shop = Shop::new(&cluster, bytes)?;
    let priced = [
        shop.prices(Collective::AllReduce, &groups, algorithms, args.wire)?,
        shop.prices(Collective::ReduceScatter, &groups, &[], None)?,
        shop.prices(Collective::AllGather, &groups, &[], None)?,
    ];
    let place = format!("{} ranks on {} hosts, {}, simulated", groups.n(), groups.len(), cluster.name);
    Ok((Priced::Simulated(priced), place))
}

/// `graccl plan`.
pub fn main(args: PlanArgs) -> Result<u8> {
    let model = model_with(&args.model, args.dtype, args.wire, args.compute_ms)?;
    let (prices, network) = prices(&args, model.bytes())?;
    let outcome = decide(&args, model, network, &prices.costs())?;
    if let Some(path) = &args.svg {
        let picture = svg::timeline(&outcome);
        std::fs::write(path, picture).map_err(|e| Error::io(format!("cannot write {path}"), &e))?;
    }
    let text = if args.json { report::json(&outcome) } else { report::text(&outcome) };
    std::io::stdout().write_all(text.as_bytes()).map_err(|e| Error::io("cannot print", &e))?;
    Ok(0)
}

fn decide(args: &PlanArgs, model: Model, network: String, costs: &Costs) -> Result<Outcome> {
    let modes = args.mode.map_or(Mode::ALL.to_vec(), |m| vec![m]);
    let mut others = Vec::new();
    for mode in modes {
        let plan = graccl::plan::plan(&model, costs, &Options { modes: vec![mode], cut: args.cut as u64 })?;
        others.push(Alternative { name: format!("best {}", mode.name()), plan });
    }
    let plan = best(others.iter().map(|a| &a.plan)).cloned().expect("there is a mode");
    others.extend(graccl::plan::alternatives(&model, costs)?);
    Ok(Outcome { model_name: args.model.clone(), model, network, plan, others })
}

//! `graccl sim --train`: how training scales on a cluster.

use graccl::cost::Prices;
use graccl::plan::{Alternative, Costs, Mode, Model, Options, alternatives, plan};
use graccl::reduce::Wire;
use graccl::schedule::Groups;
use graccl::{Collective, Error, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::SimArgs;
use super::chart::{self, Chart, Line};
use super::shop::Shop;
use super::table::write;
use crate::perf::number;
use crate::plan::{how, model_with};
use crate::verify::say;

/// A way to train: which algorithms there are, and how gradients are fused.
struct Variant {
    name: &'static str,
    /// Empty: all.
    algorithms: &'static [&'static str],
    fusion: Fusion,
}

enum Fusion {
    /// One of `plan`'s rules.
    Rule(&'static str),
    /// The planner's best order of allreduces.
    Plan,
    /// The planner's best of all modes.
    Modes,
}

/// From what NCCL-based training of 2018 did to what is possible with the same links.
const VARIANTS: [Variant; 7] = [
    Variant { name: "ring, a call per tensor", algorithms: &["ring"], fusion: Fusion::Rule("wfbp") },
    Variant { name: "ring, two groups", algorithms: &["ring"], fusion: Fusion::Rule("two_groups") },
    Variant {
        name: "hierarchy of leaders, a call per tensor",
        algorithms: &["hier_leader"],
        fusion: Fusion::Rule("wfbp"),
    },
    Variant {
        name: "hierarchy of leaders or ring, two groups",
        algorithms: &["hier_leader", "ring"],
        fusion: Fusion::Rule("two_groups"),
    },
    Variant { name: "hier_2d, planned", algorithms: &["hier_2d"], fusion: Fusion::Plan },
    Variant { name: "all algorithms, planned", algorithms: &[], fusion: Fusion::Plan },
    Variant {
        name: "all algorithms, planned, gather in the next forward pass",
        algorithms: &[],
        fusion: Fusion::Modes,
    },
];

struct Outcome {
    ranks: usize,
    variant: &'static str,
    buckets: usize,
    ns: f64,
    compute: f64,
    algorithms: Vec<String>,
}

pub fn train(a: &SimArgs, what: &str, cluster: &Cluster) -> Result<()> {
    let model = model_with(what, a.dtype, a.wire, a.compute)?;
    let most = cluster.groups(a.ranks, None)?.n();
    let compute = model.forward() + model.backward();
    say(&format!(
        "# graccl sim: training {what} on {}, {} per iteration and rank in {:.1} ms, gradients of {:.1} MB\n\
         #{:>7}  {:<58}  {:>7}  {:>9}  {:>10}  {:>9}  algorithms\n",
        cluster.name,
        a.batch.map_or("a batch".into(), |b| format!("{b} samples")),
        compute / 1e6,
        model.bytes() as f64 / 1e6,
        "ranks",
        "how",
        "buckets",
        "time (ms)",
        "efficiency",
        "samples/s"
    ))?;
    let mut shop = Shop::new(cluster, model.bytes())?;
    let mut outcomes = Vec::new();
    let mut ranks = cluster.ranks_per_host.min(most);
    loop {
        for v in &VARIANTS {
            let groups = cluster.groups(Some(ranks as u32), None)?;
            let o = outcome(&mut shop, &model, v, &groups, a.wire)?;
            let rate =
                a.batch.map_or(String::new(), |b| format!("{:.0}", f64::from(b) * ranks as f64 / o.ns * 1e9));
            say(&format!(
                " {ranks:>7}  {:<58}  {:>7}  {:>9}  {:>9.1}%  {rate:>9}  {}\n",
                v.name,
                o.buckets,
                number(o.ns / 1e6, 9),
                100.0 * o.compute / o.ns,
                o.algorithms.join(" ")
            ))?;
            outcomes.push(o);
        }
        if ranks >= most {
            break;
        }
        ranks = (2 * ranks).min(most);
    }
    let rows: Vec<Vec<(&str, Value)>> = outcomes.iter().map(|o| row(a, what, cluster, o)).collect();
    if let Some(path) = &a.csv {
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), |s| s.replace(',', ";"));
        let line = |cells: Vec<String>| cells.join(",") + "\n";
        let head = rows.first().map_or(String::new(), |r| line(r.iter().map(|c| c.0.to_string()).collect()));
        let body: String = rows.iter().map(|r| line(r.iter().map(|c| text(&c.1)).collect())).collect();
        write(path, &(head + &body))?;
    }
    if let Some(path) = &a.json {
        let rows: Vec<Value> =
            rows.iter().map(|r| r.iter().map(|(k, v)| (k.to_string(), v.clone())).collect()).collect();
        write(path, &format!("{:#}\n", json!({ "version": 1, "results": rows })))?;
    }
    if let Some(path) = &a.svg {
        write(path, &picture(what, cluster, &outcomes))?;
    }
    Ok(())
}

fn outcome(
    shop: &mut Shop,
    model: &Model,
    v: &Variant,
    groups: &Groups,
    wire: Option<Wire>,
) -> Result<Outcome> {
    // Those with names are as they were in 2018.
    let wire = wire.filter(|_| v.algorithms.is_empty());
    // Within one host there is no hierarchy: a ring takes its place.
    let algorithms = match groups.len() {
        1 if !v.algorithms.is_empty() => &["ring"][..],
        _ => v.algorithms,
    };
    let all_reduce = shop.prices(Collective::AllReduce, groups, algorithms, wire)?;
    let halves = match v.fusion {
        Fusion::Modes => Some((
            shop.prices(Collective::ReduceScatter, groups, &[], None)?,
            shop.prices(Collective::AllGather, groups, &[], None)?,
        )),
        _ => None,
    };
    let halves = halves.as_ref().map(|(r, g)| (r as &dyn Prices, g as &dyn Prices));
    let costs = Costs { all_reduce: &all_reduce, whole: None, halves };
    let plan = match v.fusion {
        Fusion::Rule(rule) => {
            let found = alternatives(model, &costs)?.into_iter().find(|r: &Alternative| r.name == rule);
            found.ok_or_else(|| Error::internal(format!("there is no rule {rule}")))?.plan
        }
        Fusion::Plan => plan(model, &costs, &Options { modes: vec![Mode::AllReduce], cut: 0 })?,
        Fusion::Modes => plan(model, &costs, &Options { modes: Mode::ALL.to_vec(), cut: 0 })?,
    };
    let mut algorithms: Vec<String> = Vec::new();
    for b in &plan.buckets {
        for span in std::iter::once(b.reduce).chain(b.gather) {
            let name = how(&span);
            if !algorithms.contains(&name) {
                algorithms.push(name);
            }
        }
    }
    let compute = plan.forward + plan.backward;
    Ok(Outcome {
        ranks: groups.n(),
        variant: v.name,
        buckets: plan.buckets.len(),
        ns: plan.ns,
        compute,
        algorithms,
    })
}

fn row(a: &SimArgs, what: &str, cluster: &Cluster, o: &Outcome) -> Vec<(&'static str, Value)> {
    let rate = a.batch.map(|b| f64::from(b) * o.ranks as f64 / o.ns * 1e9);
    vec![
        ("model", json!(what)),
        ("cluster", json!(cluster.name)),
        ("ranks", json!(o.ranks)),
        ("how", json!(o.variant)),
        ("batch", json!(a.batch)),
        ("compute_ms", json!(o.compute / 1e6)),
        ("buckets", json!(o.buckets)),
        ("iteration_ms", json!(o.ns / 1e6)),
        ("efficiency", json!(o.compute / o.ns)),
        ("samples_per_s", json!(rate)),
        ("algorithms", json!(o.algorithms.join(" "))),
    ]
}

fn picture(what: &str, cluster: &Cluster, outcomes: &[Outcome]) -> String {
    let line = |v: &Variant| Line {
        name: v.name.into(),
        points: outcomes
            .iter()
            .filter(|o| o.variant == v.name)
            .map(|o| (o.ranks as f64, 100.0 * o.compute / o.ns))
            .collect(),
        marks: false,
    };
    let mut lines: Vec<Line> = VARIANTS.iter().map(line).collect();
    if (what, cluster.name.as_str()) == ("resnet50", "p40-100g") {
        let points = vec![(1024.0, 99.0), (2048.0, 97.0)];
        lines.push(Line { name: "published in 2018".into(), points, marks: true });
    }
    chart::svg(&Chart {
        title: format!("{what} on {}: simulated scaling efficiency", cluster.name),
        x: "ranks".into(),
        y: "efficiency, % of one rank's rate".into(),
        lines,
    })
}

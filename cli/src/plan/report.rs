//! The plan as text and as JSON.

use std::fmt::Write;

use graccl::plan::{Bucket, Plan, Share};
use graccl::reduce::Wire;
use serde_json::{Value, json};

use super::{Outcome, how};

fn ms(ns: f64) -> String {
    format!("{:.3}", ns / 1e6)
}

/// Forward and backward as a share of the iteration, per cent.
fn efficiency(p: &Plan) -> f64 {
    100.0 * p.bound.compute / p.ns
}

/// First and last tensor in forward order, counted from 1: "77-161".
pub(super) fn span(b: &Bucket, tensors: usize) -> String {
    let (first, last) = (tensors - b.last, tensors - b.first);
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// Where a plan of few buckets cuts, in forward order: "20|21".
fn cuts(p: &Plan, tensors: usize) -> String {
    let cut = |b: &Bucket| format!("{}|{}", tensors - b.last - 1, tensors - b.last);
    let all: Vec<String> = p.buckets.iter().rev().skip(1).map(cut).collect();
    if all.len() <= 3 { all.join(" ") } else { String::new() }
}

fn when(share: Share) -> &'static str {
    match share {
        Share::Backward => "backward",
        Share::Forward => "after it",
        Share::Both => "both",
    }
}

pub(super) fn text(o: &Outcome) -> String {
    let (p, m) = (&o.plan, &o.model);
    let n = m.tensors().len();
    let mut t = format!(
        "# {}: {n} gradients, {} bytes, forward {} ms, backward {} ms\n# {}\n#\n",
        o.model_name,
        m.bytes(),
        ms(m.forward()),
        ms(m.backward()),
        o.network
    );
    // Writing to a string cannot fail.
    let _ = writeln!(
        t,
        "# plan: {}, {} buckets, in the order in which they become ready; gradients by number in forward order; times in ms",
        p.mode.name(),
        p.buckets.len()
    );
    let _ = writeln!(
        t,
        "# {:>6}  {:>9}  {:>12}  {:>9}  {:>9}  {:>9}  {:>9}  {:<24}  when",
        "bucket", "gradients", "bytes", "ready", "start", "end", "gathered", "algorithm"
    );
    for (i, b) in p.buckets.iter().enumerate() {
        let row = format!(
            "  {:>6}  {:>9}  {:>12}  {:>9}  {:>9}  {:>9}  {:>9}  {:<24}  {:<8}",
            i + 1,
            span(b, n),
            b.bytes,
            ms(b.ready),
            ms(b.reduce.start),
            ms(b.reduce.end),
            b.gather.map_or("-".into(), |g| ms(g.end)),
            how(&b.reduce),
            when(b.share)
        );
        let _ = writeln!(t, "{}", row.trim_end());
    }
    let _ = writeln!(
        t,
        "#\n# {:<31}  {:>7}  {:>12}  {:>10}  {:>9}  cut",
        "compared", "buckets", "iteration ms", "efficiency", "slower by"
    );
    let chosen = o.others.iter().position(|a| a.plan.mode == p.mode).unwrap_or(0);
    for (i, a) in o.others.iter().enumerate() {
        let slower = 100.0 * (a.plan.ns / p.ns - 1.0);
        let last = if i == chosen { "the plan".to_string() } else { format!("{slower:.1} %") };
        let row = format!(
            "  {:<31}  {:>7}  {:>12}  {:>8.1} %  {last:>9}  {}",
            a.name,
            a.plan.buckets.len(),
            ms(a.plan.ns),
            efficiency(&a.plan),
            cuts(&a.plan, n)
        );
        let _ = writeln!(t, "{}", row.trim_end());
    }
    t.push_str("#\n");
    for line in p.why(m) {
        let _ = writeln!(t, "# {line}");
    }
    t
}

pub(super) fn json(o: &Outcome) -> String {
    let m = &o.model;
    let buckets = |p: &Plan| -> Vec<Value> {
        let one = |b: &Bucket| {
            json!({
                "first": m.tensors()[b.first].name,
                "last": m.tensors()[b.last].name,
                "first_index": b.first,
                "last_index": b.last,
                "offset": b.offset,
                "bytes": b.bytes,
                "when": when(b.share),
                "algorithm": b.reduce.algorithm,
                "wire": b.reduce.wire.map(Wire::name),
                "ready_us": b.ready / 1e3,
                "start_us": b.reduce.start / 1e3,
                "end_us": b.reduce.end / 1e3,
                "gather_start_us": b.gather.map(|g| g.start / 1e3),
                "gather_end_us": b.gather.map(|g| g.end / 1e3),
            })
        };
        p.buckets.iter().map(one).collect()
    };
    let p = &o.plan;
    let value = json!({
        "version": 1,
        "model": o.model_name,
        "network": o.network,
        "gradients": m.tensors().len(),
        "bytes": m.bytes(),
        "forward_us": m.forward() / 1e3,
        "backward_us": m.backward() / 1e3,
        "mode": p.mode.name(),
        "iteration_us": p.ns / 1e3,
        "bound_us": {
            "compute": p.bound.compute / 1e3,
            "lane": p.bound.lane / 1e3,
            "last": p.bound.last / 1e3,
        },
        "exact": p.exact,
        "buckets": buckets(p),
        "compared": o.others.iter().map(|a| json!({
            "name": a.name,
            "mode": a.plan.mode.name(),
            "buckets": a.plan.buckets.len(),
            "iteration_us": a.plan.ns / 1e3,
        })).collect::<Vec<_>>(),
        "why": p.why(m),
    });
    format!("{value:#}\n")
}

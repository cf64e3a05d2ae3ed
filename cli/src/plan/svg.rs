//! The plan as a picture: what computes and what communicates, over time.

use std::fmt::Write;

use super::{Outcome, report};

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 30.0;
const HEIGHT: f64 = 300.0;
/// Upper edges and height of the lanes.
const COMPUTE: f64 = 70.0;
const LANE: f64 = 150.0;
const BAR: f64 = 48.0;
const AXIS: f64 = 222.0;

/// Neighbours differ: hues a golden angle apart.
fn color(bucket: usize, lightness: u32) -> String {
    format!("hsl({:.0},55%,{lightness}%)", (bucket as f64 * 137.508 + 210.0) % 360.0)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A round step of which there are about ten in `range`.
fn step(range: f64) -> f64 {
    let rough = range / 10.0;
    let ten = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|f| f * ten).find(|s| *s >= rough).unwrap_or(rough)
}

pub(super) fn timeline(o: &Outcome) -> String {
    let p = &o.plan;
    let end = p.buckets.iter().map(|b| b.gather.unwrap_or(b.reduce).end).fold(p.ns, f64::max).max(1.0);
    let x = |ns: f64| LEFT + ns / end * (WIDTH - LEFT - RIGHT);
    let mut s = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
<text x="{LEFT}" y="24" font-size="15">{}</text>
<text x="{LEFT}" y="44" fill="#555">{}: {} buckets, an iteration takes {:.2} ms; forward and backward alone {:.2} ms</text>
<text x="10" y="{:.1}">compute</text>
<text x="10" y="{:.1}">communication</text>
"##,
        escape(&format!("{}, {}", o.model_name, o.network)),
        p.mode.name(),
        p.buckets.len(),
        p.ns / 1e6,
        p.bound.compute / 1e6,
        COMPUTE + BAR / 2.0 + 4.0,
        LANE + BAR / 2.0 + 4.0
    );
    // Writing to a string cannot fail.
    let mut bar = |from: f64, to: f64, top: f64, bucket: usize, lightness: u32, label: &str, title: &str| {
        let width = x(to) - x(from);
        if to <= from {
            return;
        }
        let _ = write!(
            s,
            r##"<g><title>{}</title><rect x="{:.2}" y="{top}" width="{width:.2}" height="{BAR}" fill="{}" stroke="white" stroke-width="{}"/>"##,
            escape(title),
            x(from),
            color(bucket, lightness),
            if width > 3.0 { 0.5 } else { 0.0 }
        );
        if width > 8.0 * label.len() as f64 {
            let (at, y) = (x(from) + width / 2.0, top + BAR / 2.0 + 4.0);
            let _ = write!(s, r##"<text x="{at:.2}" y="{y}" text-anchor="middle">{label}</text>"##);
        }
        s.push_str("</g>\n");
    };
    let mut before = 0.0;
    for (k, b) in p.buckets.iter().enumerate() {
        let number = (k + 1).to_string();
        let what = format!(
            "bucket {number}: gradients {}, {} bytes",
            report::span(b, o.model.tensors().len()),
            b.bytes
        );
        let about = |name: &str, from: f64, to: f64| {
            format!("{what}; {name} {:.3} to {:.3} ms", from / 1e6, to / 1e6)
        };
        bar(before, b.ready, COMPUTE, k, 78, &number, &about("backward", before, b.ready));
        before = b.ready;
        let (from, to) = p.layers[k];
        bar(from, to, COMPUTE, k, 90, &number, &about("next forward", from, to));
        let (r, name) = (b.reduce, super::how(&b.reduce));
        let first = if b.gather.is_some() { "reduce_scatter" } else { "all_reduce" };
        bar(r.start, r.end, LANE, k, 60, &number, &about(&format!("{first} ({name})"), r.start, r.end));
        if let Some(g) = b.gather {
            let title = about(&format!("all_gather ({})", g.algorithm), g.start, g.end);
            bar(g.start, g.end, LANE, k, 72, &number, &title);
        }
    }
    let mut line = |ns: f64, text: &str, dash: &str| {
        let at = x(ns);
        let _ = writeln!(
            s,
            r##"<line x1="{at:.2}" y1="{:.1}" x2="{at:.2}" y2="{AXIS}" stroke="#333" stroke-dasharray="{dash}"/><text x="{:.2}" y="{:.1}" text-anchor="end" fill="#333">{text}</text>"##,
            COMPUTE - 6.0,
            at - 4.0,
            COMPUTE - 8.0
        );
    };
    line(p.backward, "backward ends", "2,3");
    if p.ns > 1.02 * p.bound.compute {
        line(p.bound.compute, "compute alone", "6,3");
    }
    let _ = writeln!(
        s,
        r##"<line x1="{LEFT}" y1="{AXIS}" x2="{:.1}" y2="{AXIS}" stroke="black"/>"##,
        WIDTH - RIGHT
    );
    let every = step(end / 1e6);
    let mut tick = 0.0;
    while tick <= end / 1e6 {
        let at = x(tick * 1e6);
        let digits = if every < 1.0 { 2 } else { 0 };
        let _ = writeln!(
            s,
            r##"<line x1="{at:.2}" y1="{AXIS}" x2="{at:.2}" y2="{:.1}" stroke="black"/><text x="{at:.2}" y="{:.1}" text-anchor="middle">{tick:.digits$}</text>"##,
            AXIS + 5.0,
            AXIS + 20.0
        );
        tick += every;
    }
    let _ = writeln!(
        s,
        r##"<text x="{:.1}" y="{:.1}" text-anchor="middle">ms from the start of the backward pass</text>"##,
        (LEFT + WIDTH - RIGHT) / 2.0,
        AXIS + 40.0
    );
    let legend = if p.buckets.iter().any(|b| b.gather.is_some()) {
        "Colours and numbers are buckets. Compute: backward darker, next forward lighter. Communication: reduce_scatter darker, all_gather lighter."
    } else {
        "Colours and numbers are buckets. Compute: backward darker, next forward lighter."
    };
    let _ = writeln!(s, r##"<text x="{LEFT}" y="{:.1}" fill="#555">{legend}</text>"##, AXIS + 62.0);
    s.push_str("</svg>\n");
    s
}

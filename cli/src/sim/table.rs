//! What `graccl sim` shows: rows on stdout, and the same as JSON and CSV.

use std::path::Path;

use graccl::schedule::Groups;
use graccl::sim::{Choice, Report};
use graccl::{Collective, Error, Result};
use serde_json::{Value, json};

use crate::perf::number;
use crate::verify::say;

pub struct Table {
    cluster: String,
    collective: Collective,
    ranks: usize,
    hosts: usize,
    rows: Vec<Value>,
    csv: String,
}

const COLUMNS: [&str; 22] = [
    "cluster",
    "collective",
    "ranks",
    "hosts",
    "bytes",
    "algorithm",
    "message",
    "tiles",
    "ways",
    "time_us",
    "algbw",
    "busbw",
    "steps",
    "core_us",
    "latency_us",
    "link_us",
    "queued_us",
    "waited_us",
    "across_busy",
    "inside_busy",
    "core_busy",
    "played",
];

impl Table {
    pub fn new(cluster: &str, groups: &Groups, collective: Collective) -> Table {
        Table {
            cluster: cluster.into(),
            collective,
            ranks: groups.n(),
            hosts: groups.len(),
            rows: Vec::new(),
            csv: COLUMNS.join(",") + "\n",
        }
    }

    pub fn head(&self) -> Result<()> {
        say(&format!(
            "# graccl sim: {} on {}, {} ranks on {} hosts\n\
             #{:>11}  {:<26}  {:>9}  {:>7}  {:>7}  {:>6}  {:^19}  {:^18}  {:>7}  {:>7}\n\
             #{:>11}  {:<26}  {:>9}  {:>7}  {:>7}  {:>6}  {:>4} {:>4} {:>4} {:>4}  {:>6} {:>6} {:>4}  {:>7}  {:>7}\n",
            self.collective.name(),
            self.cluster,
            self.ranks,
            self.hosts,
            "size",
            "algorithm x tiles / ways",
            "time",
            "algbw",
            "busbw",
            "steps",
            "% of the time",
            "% busy, most",
            "played",
            "took",
            "(B)",
            "",
            "(us)",
            "(GB/s)",
            "(GB/s)",
            "",
            "core",
            "lat",
            "link",
            "wait",
            "across",
            "inside",
            "core",
            "(ranks)",
            "(s)"
        ))
    }

    pub fn row(&mut self, bytes: u64, choice: &Choice) -> Result<()> {
        let (r, p) = (&choice.report, &choice.price);
        let us = p.ns / 1000.0;
        let algbw = if p.ns > 0.0 { bytes as f64 / p.ns } else { 0.0 };
        let busbw = algbw * self.collective.bus_factor(self.ranks);
        // What was played may be fewer tiles than there are: shares hold for all of them.
        let played = r.ends.iter().copied().fold(0.0, f64::max);
        let share = |ns: f64| if played > 0.0 { ns / played } else { 0.0 };
        let percent = |ns: f64| format!("{:.0}", 100.0 * share(ns));
        let busiest = |across: bool| links(r, across).fold(0.0, f64::max);
        let core = r.cores.iter().copied().fold(0.0, f64::max);
        let form = format!("{} x{} /{}", p.algorithm, choice.shape.tiles, choice.shape.ways);
        let path = r.path;
        say(&format!(
            " {bytes:>11}  {form:<26}  {:>9}  {:>7}  {:>7}  {:>6}  {:>4} {:>4} {:>4} {:>4}  {:>6} {:>6} {:>4}  {:>7}  {:>7.3}\n",
            number(us, 9),
            number(algbw, 7),
            number(busbw, 7),
            path.messages,
            percent(path.core),
            percent(path.latency),
            percent(path.link),
            percent(path.queued + path.waited),
            percent(busiest(true)),
            percent(busiest(false)),
            percent(core),
            r.ends.len(),
            choice.took.as_secs_f64(),
        ))?;
        let values = [
            json!(self.cluster),
            json!(self.collective.name()),
            json!(self.ranks),
            json!(self.hosts),
            json!(bytes),
            json!(p.algorithm),
            json!(p.message),
            json!(choice.shape.tiles),
            json!(choice.shape.ways),
            json!(us),
            json!(algbw),
            json!(busbw),
            json!(path.messages),
            json!(path.core / 1000.0),
            json!(path.latency / 1000.0),
            json!(path.link / 1000.0),
            json!(path.queued / 1000.0),
            json!(path.waited / 1000.0),
            json!(share(busiest(true))),
            json!(share(busiest(false))),
            json!(share(core)),
            json!(r.ends.len()),
        ];
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
        self.csv += &(values.iter().map(text).collect::<Vec<_>>().join(",") + "\n");
        self.rows.push(COLUMNS.iter().map(|c| c.to_string()).zip(values).collect());
        Ok(())
    }

    pub fn write(&self, json: Option<&Path>, csv: Option<&Path>) -> Result<()> {
        if let Some(path) = json {
            write(path, &format!("{:#}\n", json!({ "version": 1, "results": self.rows })))?;
        }
        csv.map_or(Ok(()), |path| write(path, &self.csv))
    }
}

/// How long each link was busy in its busier direction.
fn links(r: &Report, across: bool) -> impl Iterator<Item = f64> {
    r.links.iter().filter(move |l| l.across == across).map(|l| l.out_ns.max(l.in_ns))
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io(format!("cannot write {}", path.display()), &e))
}

//! What rank 0 shows: text on stdout, a progress bar on stderr when a person watches, and JSON.

use std::cell::Cell;
use std::io::{ErrorKind, IsTerminal, Write};

use graccl::{Config, Error, Result, TransportChoice};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::args::{Memory, PerfArgs};
use super::choice::{Tally, Verdict};
use super::job::{Job, Spread};
use super::table::{self, Row, Timing};

/// The layout of nccl-tests' JSON that ours follows.
const JSON_VERSION: u32 = 2;

pub struct Report {
    /// Only rank 0 shows anything.
    speaks: bool,
    /// Whoever read our output has seen enough, as `head` does.
    closed: Cell<bool>,
    bar: ProgressBar,
    json: Map<String, Value>,
    results: Vec<Value>,
    busbw: (f64, usize),
    tally: Tally,
    pub wrong: usize,
}

impl Report {
    pub fn new(speaks: bool, steps: u64) -> Report {
        let shown = speaks && std::io::stderr().is_terminal() && steps > 0;
        let bar = if shown { ProgressBar::new(steps) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}, {eta} left  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let mut json = Map::new();
        json.insert("version".into(), JSON_VERSION.into());
        json.insert("start_time".into(), table::now().into());
        json.insert(
            "args".into(),
            std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().into(),
        );
        json.insert("graccl_version".into(), env!("CARGO_PKG_VERSION").into());
        Report {
            speaks,
            closed: Cell::new(false),
            bar,
            json,
            results: Vec::new(),
            busbw: (0.0, 0),
            tally: Tally::default(),
            wrong: 0,
        }
    }

    /// Prints lines. A closed output is no error: see [`Report::unread`].
    pub fn say(&self, text: &str) -> Result<()> {
        if !self.speaks || self.closed.get() {
            return Ok(());
        }
        let print = || {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        };
        match self.bar.suspend(print) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.closed.set(true),
            other => return other.map_err(|e| Error::io("cannot write to standard output", &e)),
        }
        Ok(())
    }

    /// Whether nobody will see further results, so that all ranks end here. Collective.
    pub fn unread(&self, a: &PerfArgs, job: &Job) -> Result<bool> {
        Ok(job.total(usize::from(self.closed.get() && a.output_file.is_none()))? > 0)
    }

    /// Says what comes next, in the progress bar.
    pub fn next(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Versions, settings, and the ranks. Collective.
    pub fn header(&mut self, a: &PerfArgs, job: &Job, config: &Config, cpu: Option<usize>) -> Result<()> {
        let own = format!(
            "{}\t{}\t{}",
            std::process::id(),
            host_name(),
            cpu.map_or(String::new(), |c| c.to_string())
        );
        let ranks = job.gather(&own)?;
        let (step, unit) = match a.stepbytes {
            Some(bytes) => (bytes as u64, "bytes"),
            None => (a.stepfactor.unwrap_or(2), "factor"),
        };
        let (transport, memory) = (transport_name(config.transport), memory_name(a.memory));
        let algo = a.algo.clone().or(config.algorithm.clone()).unwrap_or("auto".into());
        let mut text = format!(
            "# graccl version {}, cpu kernels: {}\n# Collective test starting: {}\n\
             # ranks {} transport: {transport} algorithm: {algo} memory: {memory}\n",
            env!("CARGO_PKG_VERSION"),
            graccl::reduce::level(),
            a.operation.name(),
            job.size,
        );
        if a.tensors.is_none() {
            text += &format!("# minBytes {} maxBytes {} step: {step}({unit}) ", a.minbytes, a.maxbytes);
        } else {
            text += "# ";
        }
        text += &format!(
            "warmup iters: {} iters: {} agg iters: {} validation: {} time of: {}\n",
            a.warmup_iters,
            a.iters,
            a.agg_iters,
            a.check,
            match a.average {
                _ if a.tensors.is_some() => "slowest rank",
                0 => "rank 0",
                1 => "average rank",
                2 => "fastest rank",
                _ => "slowest rank",
            }
        );
        let ignored = a.ignored();
        if !ignored.is_empty() {
            text += &format!("# ignored, without effect here: {}\n", ignored.join(" "));
        }
        text += "#\n# Using ranks\n";
        let mut devices = Vec::new();
        for (rank, line) in ranks.iter().enumerate() {
            let mut part = line.split('\t');
            let (pid, name, cpu) =
                (part.next().unwrap_or(""), part.next().unwrap_or(""), part.next().unwrap_or(""));
            let group = job.comm.hosts().get(rank).copied().unwrap_or(0);
            let at = if cpu.is_empty() { String::new() } else { format!(" cpu {cpu:>2}") };
            text += &format!("#  Rank {rank:2} Group {group:2} Pid {pid:>6} on {name:>10}{at}\n");
            devices.push(json!({
                "rank": rank, "group": group, "pid": pid.parse::<u32>().ok(), "hostname": name,
                "cpu": cpu.parse::<usize>().ok(),
            }));
        }
        let mut c = Map::new();
        c.insert("nthreads".into(), 1.into());
        c.insert("ngpus".into(), 1.into());
        c.insert("minimum_bytes".into(), a.minbytes.into());
        c.insert("maximum_bytes".into(), a.maxbytes.into());
        c.insert(format!("step_{unit}"), step.into());
        c.insert("warmup_iters".into(), a.warmup_iters.into());
        c.insert("iterations".into(), a.iters.into());
        c.insert("aggregated_iterations".into(), a.agg_iters.into());
        c.insert("validation".into(), a.check.into());
        c.insert("average".into(), a.average.into());
        c.insert("ranks".into(), job.size.into());
        c.insert("transport".into(), transport.into());
        c.insert("algorithm".into(), algo.into());
        c.insert("memory".into(), memory.into());
        c.insert("simd".into(), graccl::reduce::level().into());
        c.insert("devices".into(), devices.into());
        self.json.insert("config".into(), c.into());
        self.say(&text)
    }

    /// The rows of one point: the choice, and what was measured beside it.
    pub fn rows(&mut self, rows: &[Row], choice: Option<&Verdict>, cpu_time: bool) -> Result<()> {
        let mut text = String::new();
        for row in rows {
            for r in std::iter::once(&row.out_of_place).chain(&row.in_place) {
                if row.beside.is_none() {
                    self.busbw = (self.busbw.0 + r.busbw, self.busbw.1 + 1);
                }
                self.wrong += r.wrong.unwrap_or(0);
            }
            let (apart, in_place) = match row.in_place {
                None => (Some(&row.spread), None),
                Some(_) => (None, Some(&row.spread)),
            };
            let mut result = json!({
                "size": row.bytes, "count": row.count, "type": row.dtype, "redop": row.op,
                "root": row.root_name(),
                "out_of_place": placement(&row.out_of_place, cpu_time),
                "in_place": row.in_place.as_ref().map(|r| placement(r, cpu_time)),
                "in_place_per_iter": in_place.map(spread),
                "plan": row.plan,
            });
            if let Some(apart) = apart {
                result["out_of_place_per_iter"] = spread(apart);
            }
            if let Some(verdict) = choice {
                result["algorithm"] = row.beside.unwrap_or("auto").into();
                if row.beside.is_none() {
                    result["choice"] = verdict.json();
                }
            }
            self.results.push(result);
            text += &row.line();
        }
        if let Some(verdict) = choice {
            text += &verdict.line();
            self.tally.add(verdict);
        }
        self.bar.inc(1);
        self.say(&text)
    }

    /// A result that is not a row.
    pub fn other(&mut self, result: Value, wrong: usize) {
        self.wrong += wrong;
        self.results.push(result);
    }

    /// The last lines, and the JSON file.
    pub fn finish(mut self, a: &PerfArgs) -> Result<usize> {
        self.bar.finish_and_clear();
        let busbw = if self.busbw.1 > 0 { self.busbw.0 / self.busbw.1 as f64 } else { 0.0 };
        self.say(&table::foot(self.wrong, a.tensors.is_none().then_some(busbw)))?;
        if a.tensors.is_none() {
            let mean = json!({ "bandwidth": busbw, "okay": "unchecked" });
            self.json.insert("average_bus_bandwidth".into(), mean);
        }
        if self.tally.points > 0 {
            self.say(&self.tally.line())?;
            self.json.insert("choice".into(), self.tally.json());
        }
        self.say(&format!("# Collective test concluded: {}\n", a.operation.name()))?;
        self.json.insert("results".into(), std::mem::take(&mut self.results).into());
        let okay = (self.wrong == 0).to_string();
        self.json.insert("out_of_bounds".into(), json!({ "count": self.wrong, "okay": okay }));
        self.json.insert("end_time".into(), table::now().into());
        if let Some(path) = a.output_file.as_ref().filter(|_| self.speaks) {
            let text = format!("{:#}\n", Value::Object(self.json));
            std::fs::write(path, text)
                .map_err(|e| Error::io(format!("cannot write {}", path.display()), &e))?;
        }
        Ok(self.wrong)
    }
}

fn placement(r: &Timing, cpu_time: bool) -> Value {
    let time = if cpu_time { "cpu_time" } else { "time" };
    json!({ time: r.time_us, "alg_bw": r.algbw, "bus_bw": r.busbw, "nwrong": r.wrong })
}

fn spread(s: &Spread) -> Value {
    json!({ "min_us": s.min, "p50_us": s.median, "p99_us": s.p99, "max_us": s.max, "avg_us": s.average })
}

fn transport_name(t: TransportChoice) -> &'static str {
    match t {
        TransportChoice::Auto => "auto",
        TransportChoice::Shm => "shm",
        TransportChoice::Tcp => "tcp",
    }
}

fn memory_name(m: Memory) -> &'static str {
    match m {
        Memory::Host => "host",
        Memory::Registered => "registered",
    }
}

fn host_name() -> String {
    let mut name = [0u8; 65];
    // SAFETY: the pointer and length are those of `name`, whose last byte stays zero.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    String::from_utf8_lossy(&name).trim_end_matches('\0').to_string()
}

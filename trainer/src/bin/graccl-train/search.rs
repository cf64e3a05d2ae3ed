//! `graccl-train search`.

use std::path::PathBuf;

use burn::tensor::Device;
use graccl::{Communicator, Error, Result};
use graccl_trainer::device;
use graccl_trainer::optim::Schedule;
use graccl_trainer::search::{self, Grid, Search, Setting, Trial};
use graccl_trainer::state::State;
use graccl_trainer::trainer::Trainer;

use crate::job::{Job, Work, communicator};

/// Looks for the learning rate, the warm-up and LARS's trust coefficient of a training, by short ones.
///
/// All settings of a grid train for --steps; the best third trains anew for three times as many, and so on. Then the
/// grid is narrowed around the best. The loss that decides is the mean of a training's last quarter.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub job: Job,
    /// Highest learning rates, ascending
    #[arg(long, value_delimiter = ',', default_value = "0.01,0.1,1")]
    rates: Vec<f64>,
    /// Parts of the steps in which the rate rises, ascending
    #[arg(long, value_delimiter = ',', default_value = "0,0.2")]
    warm_ups: Vec<f64>,
    /// LARS's coefficients, ascending
    #[arg(long, value_delimiter = ',', default_value = "0.001,0.01")]
    trusts: Vec<f64>,
    /// Of the shortest trainings
    #[arg(long, default_value_t = 10)]
    steps: u64,
    /// Lengths of training
    #[arg(long, default_value_t = 3)]
    rungs: usize,
    /// Times that the grid is narrowed
    #[arg(long, default_value_t = 1)]
    refinements: usize,
    /// Trainings at the same time, for which the ranks are shared out; default: one for each rank
    #[arg(long)]
    groups: Option<usize>,
    /// Write all trials here, as a table
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a picture here: loss over learning rate
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let work = args.job.work()?;
    let comm = communicator()?;
    let device = device::of_rank(&comm)?;
    let grid = Grid {
        rate: args.rates.clone(),
        warmup: args.warm_ups.clone(),
        // SGD has none: one setting, whatever it is.
        trust: if args.job.lars() { args.trusts.clone() } else { vec![1.0] },
    };
    let groups = args.groups.unwrap_or(comm.size());
    let (steps, rungs, refinements) = (args.steps, args.rungs, args.refinements);
    let search = Search { grid, refinements, steps, rungs, groups };
    let trials = search::run(&comm, &search, |group, setting, steps| {
        let loss = train(&work, group, &device, setting, steps)?;
        if group.rank() == 0 {
            eprintln!("{}: loss {loss:.4} after {steps} steps", flags(args, setting));
        }
        Ok(loss)
    })?;
    if comm.rank() == 0 {
        for (file, text) in [(&args.csv, search::csv(&trials)), (&args.svg, search::svg(&trials))] {
            if let Some(file) = file {
                std::fs::write(file, text)
                    .map_err(|e| Error::io(format!("cannot write {}", file.display()), &e))?;
            }
        }
        print(args, &trials);
    }
    comm.barrier()
}

/// A short training on the ranks of `group`; the mean loss of its last quarter.
fn train(work: &Work, group: &Communicator, device: &Device, setting: &Setting, steps: u64) -> Result<f64> {
    let job = work.job;
    let loader = work.training(group.rank(), group.size())?;
    let warm_up = (setting.warmup * steps as f64).round() as usize;
    let schedule = Schedule { base: setting.rate as f32, end: 0.0, warm_up, steps: steps as usize };
    let own = (group.rank() == 0).then(|| State::new(&work.model, job.seed, job.loss_scale()));
    let state = State::shared(group, &work.model, job.loss_scale(), own)?;
    let setup = job.setup(setting.trust as f32);
    let mut trainer = Trainer::new(group.duplicate()?, work.model.clone(), setup, state, device.clone())?;
    let mut losses = Vec::new();
    for (step, input) in loader.prefetch(0..steps, trainer.inputs()).enumerate() {
        let report = trainer.step(&input?, schedule.rate(step))?;
        // All ranks of the group see the same.
        if report.lost.is_some() {
            return Ok(f64::INFINITY);
        }
        losses.push(report.loss);
    }
    let last = &losses[losses.len() - losses.len().div_ceil(4)..];
    Ok(last.iter().sum::<f64>() / last.len() as f64)
}

/// All trials, the longest first and of those the best, and what to give to a training.
fn print(args: &Args, trials: &[Trial]) {
    let lars = args.job.lars();
    let mut order: Vec<&Trial> = trials.iter().collect();
    order.sort_by(|a, b| b.steps.cmp(&a.steps).then(a.loss.total_cmp(&b.loss)));
    println!("# {:>8} {:>9} {:>9} {:>6} {:>6} {:>9}", "rate", "warm-up", "trust", "round", "steps", "loss");
    for t in order {
        let s = &t.setting;
        let trust = if lars { format!("{:.3e}", s.trust) } else { "-".to_string() };
        println!(
            "  {:>8.5} {:>9.3} {trust:>9} {:>6} {:>6} {:>9.4}",
            s.rate, s.warmup, t.round, t.steps, t.loss
        );
    }
    let best = search::best(trials);
    if best.loss.is_finite() {
        println!("best: {}", flags(args, &best.setting));
    } else {
        println!("every training diverged: try lower --rates");
    }
}

/// A setting as flags of a training.
fn flags(args: &Args, s: &Setting) -> String {
    let warm_up = s.warmup * args.job.epochs as f64;
    let common = format!("--rate {} --warm-up {}", short(s.rate), short(warm_up));
    if args.job.lars() {
        format!("--update lars {common} --trust {}", short(s.trust))
    } else {
        format!("--update sgd {common}")
    }
}

/// Four digits that count.
fn short(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

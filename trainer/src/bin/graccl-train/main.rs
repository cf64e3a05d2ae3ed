//! `graccl-train`: trains AlexNet or ResNet-50 on any number of ranks.

mod job;
mod metrics;
mod search;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use graccl::{Error, Result};
use graccl_trainer::optim::Schedule;
use graccl_trainer::trainer::{State, Trainer};
use graccl_trainer::{checkpoint, device, launch};

use job::{Job, communicator};
use metrics::{Line, Metrics};

/// Trains AlexNet or ResNet-50 on several ranks, whose gradients graccl averages.
///
/// --np starts the ranks here; with srun, mpirun, torchrun or graccl run leave it out. Every rank computes with one
/// thread, so use as many ranks as cores. The same command gives the same bits.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    // None with a subcommand, which has a job of its own.
    #[command(flatten)]
    job: Option<Job>,
    #[command(flatten)]
    training: Training,
}

#[derive(Subcommand)]
enum Command {
    Search(search::Args),
}

#[derive(Args)]
struct Training {
    /// Highest learning rate
    #[arg(long, default_value_t = 0.1)]
    rate: f32,
    /// Epochs in which the rate rises
    #[arg(long, default_value_t = 0.0)]
    warm_up: f32,
    /// LARS's coefficient
    #[arg(long, default_value_t = 0.001)]
    trust: f32,
    /// Stop after this many steps in all (the schedule stays that of --epochs)
    #[arg(long, value_name = "N")]
    stop: Option<usize>,
    /// Write the run here at the end, and every --every steps
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    every: usize,
    /// Go on with this run, on any number of ranks that divides the batch
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Write a line for each step here (CSV): loss, images/s, rate, shares of communication, and test results
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// A line for each step: loss with all digits
    #[arg(long)]
    log: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (np, checkpoint) = match (&cli.command, &cli.job) {
        (Some(Command::Search(args)), _) => (args.job.np, None),
        (None, job) => (job.as_ref().and_then(|j| j.np), cli.training.checkpoint.as_deref()),
    };
    let started = std::env::var_os("GRACCL_RANK").is_some();
    let result = match (np, &cli.command, &cli.job) {
        (Some(n), _, _) if !started => launch::ranks(usize::from(n)),
        (_, Some(Command::Search(args)), _) => search::run(args).map(|()| 0),
        (_, None, Some(job)) => train(job, &cli.training).map(|()| 0),
        (_, None, None) => Err(Error::argument("nothing to train").hint("give --model and --data")),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            complain(&e, checkpoint);
            ExitCode::FAILURE
        }
    }
}

fn complain(e: &Error, checkpoint: Option<&Path>) {
    let rank = std::env::var("GRACCL_RANK").unwrap_or_default();
    eprintln!("graccl-train: {}{e}", if rank.is_empty() { String::new() } else { format!("rank {rank}: ") });
    if let Some(file) = checkpoint {
        eprintln!("graccl-train: go on from the last checkpoint with --resume {}", file.display());
    }
}

fn train(job: &Job, args: &Training) -> Result<()> {
    let work = job.work()?;
    let comm = communicator()?;
    let device = device::of_rank(&comm)?;
    let (rank, ranks) = (comm.rank(), comm.size());
    let loader = work.training(rank, ranks)?;
    let evaluation = work.evaluation(rank, ranks)?;

    let per_epoch = loader.steps_per_epoch() as usize;
    let steps = per_epoch * job.epochs;
    let warm_up = (args.warm_up * per_epoch as f32) as usize;
    let schedule = Schedule { base: args.rate, end: 0.0, warm_up, steps };
    let scale = job.loss_scale();
    let model = work.model;
    let state = match &args.resume {
        Some(file) => checkpoint::load(file, &model, scale)?,
        None => State::new(&model, job.seed, scale),
    };
    let (began, until) = (state.step, args.stop.unwrap_or(steps).min(steps));
    let classes = model.classes;
    let mut trainer = Trainer::new(comm, model, job.setup(args.trust), state, device)?;
    if rank == 0 {
        let (tensors, parameters) = (trainer.model.specs.len(), trainer.model.parameters());
        println!(
            "# {tensors} tensors, {parameters} parameters; {} images, {classes} classes; {ranks} ranks, batch {}, \
             {steps} steps",
            work.images.len(),
            job.batch
        );
        println!(
            "# {:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>8}",
            "step", "epoch", "loss", "acc %", "images/s", "comm %", "hidden %"
        );
    }
    let mut metrics = match &args.metrics {
        Some(file) if rank == 0 => Some(Metrics::open(file, args.resume.is_some())?),
        _ => None,
    };
    let mut window = Window::new();
    for (step, batch) in (began..until).zip(loader.steps(began as u64..until.max(began) as u64)) {
        let report = trainer.step(&batch?, schedule.rate(step))?;
        if !report.loss.is_finite() && !report.skipped {
            return Err(Error::usage(format!("the loss is {} after step {step}", report.loss))
                .hint("lower --rate, or warm up longer"));
        }
        if args.log && rank == 0 {
            let skipped = if report.skipped { " skipped" } else { "" };
            println!("step {step} loss {:.17e}{skipped}", report.loss);
        }
        window.add(&report, job.batch);
        let (done, last) = (step + 1, step + 1 == until);
        let epoch = done as f64 / per_epoch as f64;
        let epoch_ends = done % per_epoch == 0;
        if let Some(metrics) = &mut metrics {
            let (rate, loss_scale) = (schedule.rate(step), trainer.state.scale.scale);
            metrics.step(&Line {
                step: done,
                epoch,
                images: job.batch,
                report: &report,
                rate,
                loss_scale,
            })?;
        }
        if rank == 0 && (window.seconds() > 5.0 || last || epoch_ends) {
            window.print(done, epoch);
            window = Window::new();
        }
        if let Some(file) = &args.checkpoint
            && (last || (args.every > 0 && done % args.every == 0))
        {
            trainer.share_statistics()?;
            if rank == 0 {
                checkpoint::save(file, &trainer.model, &trainer.state)?;
            }
        }
        let mut test = None;
        if epoch_ends || last {
            trainer.share_statistics()?;
            let (loss, accuracy) = trainer.evaluate(evaluation.epoch(0))?;
            if rank == 0 {
                println!("test after epoch {epoch:.2}: loss {loss:.4}, accuracy {:.2} %", 100.0 * accuracy);
            }
            window = Window::new();
            test = Some((loss, accuracy));
        }
        if let Some(metrics) = &mut metrics {
            metrics.finish(test)?;
            metrics.begin();
        }
    }
    if rank == 0 {
        for line in trainer.describe().lines() {
            println!("# {line}");
        }
    }
    trainer.comm().barrier()
}

/// What the progress line is made of.
struct Window {
    began: Instant,
    steps: f64,
    images: usize,
    loss: f64,
    accuracy: f64,
    step: f64,
    busy: f64,
    waited: f64,
    skipped: usize,
}

impl Window {
    fn new() -> Window {
        Window {
            began: Instant::now(),
            steps: 0.0,
            images: 0,
            loss: 0.0,
            accuracy: 0.0,
            step: 0.0,
            busy: 0.0,
            waited: 0.0,
            skipped: 0,
        }
    }

    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn add(&mut self, r: &graccl_trainer::trainer::Report, images: usize) {
        self.steps += 1.0;
        self.images += images;
        self.loss += r.loss;
        self.accuracy += r.accuracy;
        self.step += r.times.step;
        self.busy += r.times.busy;
        self.waited += r.times.waited;
        self.skipped += usize::from(r.skipped);
    }

    /// Share of the time in which the rank waited for buckets, and part of the buckets' time in which it did not.
    fn print(&self, step: usize, epoch: f64) {
        let hidden = if self.busy > 0.0 { 100.0 * (1.0 - self.waited / self.busy).max(0.0) } else { 100.0 };
        println!(
            "  {step:>6} {epoch:>6.2} {:>9.4} {:>9.2} {:>9.1} {:>9.1} {hidden:>8.1}{}",
            self.loss / self.steps,
            100.0 * self.accuracy / self.steps,
            self.images as f64 / self.seconds(),
            100.0 * self.waited / self.step,
            if self.skipped > 0 {
                format!("  ({} steps skipped: overflow)", self.skipped)
            } else {
                String::new()
            },
        );
    }
}

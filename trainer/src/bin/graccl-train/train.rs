//! A training, from its first step or a checkpoint's to its last.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use graccl::Result;
use graccl_trainer::checkpoint::{self, Run};
use graccl_trainer::device;
use graccl_trainer::optim::Schedule;
use graccl_trainer::state::{State, on_rank_0};
use graccl_trainer::trainer::Trainer;

use crate::flags::{at_least_0, at_least_1, positive};
use crate::job::{Job, communicator};
use crate::metrics::{Line, Metrics};
use crate::progress::Progress;

#[derive(Args)]
pub struct Training {
    /// Highest learning rate
    #[arg(long, default_value_t = 0.1, value_parser = positive, allow_negative_numbers = true)]
    rate: f32,
    /// Epochs in which the rate rises
    #[arg(long, default_value_t = 0.0, value_parser = at_least_0, allow_negative_numbers = true)]
    warm_up: f32,
    /// LARS's coefficient
    #[arg(long, default_value_t = 0.001, value_parser = positive, allow_negative_numbers = true)]
    trust: f32,
    /// Stop after this many steps in all (the schedule stays that of --epochs)
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    stop: Option<usize>,
    /// Write the run here at the end, and every --every steps
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    #[arg(long, value_name = "STEPS", value_parser = at_least_1, requires = "checkpoint")]
    every: Option<usize>,
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

/// Trains. `last` becomes the checkpoint from which the run could go on.
pub fn train(job: &Job, args: &Training, last: &mut Option<PathBuf>) -> Result<()> {
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
    let until = args.stop.unwrap_or(steps).min(steps);
    let (scale, setup) = (job.loss_scale(), job.setup(args.trust));
    let model = work.model.clone();
    let mut settings = work.settings();
    settings.extend([("--rate", args.rate.to_string()), ("--warm-up", args.warm_up.to_string())]);
    if job.lars() {
        settings.push(("--trust", args.trust.to_string()));
    }
    let run = Run { precision: setup.precision, settings };
    // All that can fail on rank 0 alone, before the first step.
    let start = on_rank_0(&comm, || {
        let state = match &args.resume {
            Some(file) => checkpoint::load(file, &model, scale, &run)?,
            None => State::new(&model, job.seed, scale),
        };
        if let Some(file) = &args.checkpoint {
            checkpoint::can_be_written(file)?;
        }
        let from = args.resume.is_some().then_some(state.step);
        let metrics = args.metrics.as_ref().map(|file| Metrics::open(file, from)).transpose()?;
        Ok((state, metrics))
    })?;
    let (state, mut metrics) = start.map_or((None, None), |(state, metrics)| (Some(state), metrics));
    let state = State::shared(&comm, &model, scale, state)?;
    *last = args.resume.clone();

    let began = state.step;
    if began >= until {
        if rank == 0 {
            println!(
                "# nothing is left to do: the checkpoint is of step {began}, and the run ends with step {until}"
            );
        }
        return comm.barrier();
    }
    let (tensors, parameters, classes) = (model.specs.len(), model.parameters(), model.classes);
    let mut trainer = Trainer::new(comm, model, setup, state, device)?;
    let mut progress = (rank == 0).then(|| {
        println!(
            "# {tensors} tensors, {parameters} parameters; {} images, {classes} classes; {ranks} ranks, batch {}, \
             {steps} steps",
            work.images.len(),
            job.batch
        );
        Progress::begin()
    });
    let mut inputs = loader.prefetch(began as u64..until as u64, trainer.inputs());
    for step in began..until {
        let begin = Instant::now();
        let input = inputs.next().expect("there is one for every step")?;
        let rate = schedule.rate(step);
        let report = trainer.step(&input, rate)?;
        let seconds = begin.elapsed().as_secs_f64();
        if args.log && rank == 0 {
            let skipped = if report.skipped { " skipped" } else { "" };
            println!("step {step} loss {:.17e}{skipped}", report.loss);
        }
        report.check(step)?;
        let (done, ends) = (step + 1, step + 1 == until);
        let epoch = done as f64 / per_epoch as f64;
        let epoch_ends = done % per_epoch == 0;
        if let Some(progress) = &mut progress {
            progress.step(&report, job.batch, seconds, (done, epoch), ends || epoch_ends);
        }
        if let Some(file) = &args.checkpoint
            && (ends || args.every.is_some_and(|n| done % n == 0))
        {
            trainer.share_statistics()?;
            if rank == 0 {
                checkpoint::save(file, &trainer.model, &trainer.state, &run)?;
            }
            *last = args.checkpoint.clone();
        }
        let mut test = None;
        if let Some(evaluation) = &evaluation
            && (epoch_ends || ends)
        {
            trainer.share_statistics()?;
            let n = evaluation.steps_per_epoch();
            let (loss, accuracy) = trainer.evaluate(evaluation.prefetch(0..n, trainer.inputs()))?;
            if let Some(progress) = &mut progress {
                progress.tested(epoch, loss, accuracy);
            }
            test = Some((loss, accuracy));
        }
        if let Some(metrics) = &mut metrics {
            let loss_scale = trainer.state.scale.scale;
            metrics.line(&Line {
                step: done,
                epoch,
                images: job.batch,
                seconds,
                report: &report,
                rate,
                loss_scale,
                test,
            })?;
        }
    }
    if let Some(progress) = &progress {
        for line in trainer.describe().lines() {
            println!("# {line}");
        }
        progress.end(inputs.worked(), inputs.waited());
    }
    trainer.comm().barrier()
}

//! `graccl-train`: trains AlexNet or ResNet-50 on any number of ranks.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::Device;
use clap::{Parser, ValueEnum};
use graccl::bucket::Fusion;
use graccl::{Communicator, Config, Error, Result};
use graccl_trainer::input::{self, Augment, Loader, LoaderConfig, Split};
use graccl_trainer::model::{AlexNorms, Model, alexnet, resnet50};
use graccl_trainer::optim::{LossScale, Optimiser, Rule, Schedule};
use graccl_trainer::trainer::{Precision, Setup, State, Trainer};
use graccl_trainer::{checkpoint, launch};

#[derive(Clone, Copy, ValueEnum)]
enum Net {
    Alexnet,
    /// After the last pooling layer: what makes it fit for large batches
    AlexnetBn5,
    AlexnetBn,
    Resnet50,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Update {
    Sgd,
    Lars,
}

#[derive(Clone, Copy, ValueEnum)]
enum Buckets {
    Planned,
    PerTensor,
    One,
}

/// Trains AlexNet or ResNet-50 on several ranks, whose gradients graccl averages.
///
/// --np starts the ranks here; with srun, mpirun, torchrun or graccl run leave it out. Every rank computes with one
/// thread, so use as many ranks as cores. The same command gives the same bits.
#[derive(Parser)]
struct Args {
    #[arg(long, value_enum)]
    model: Net,
    /// Folder with MNIST's four files, with train and val folders of classes, or with train.records and val.records
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Start this many ranks on this machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    np: Option<u16>,
    /// Channels: 64 is the original; even
    #[arg(long, default_value_t = 64)]
    width: usize,
    /// Images of all ranks together in a step
    #[arg(long, default_value_t = 256)]
    batch: usize,
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 0.1)]
    rate: f32,
    /// Epochs in which the rate rises
    #[arg(long, default_value_t = 0.0)]
    warm_up: f32,
    #[arg(long, value_enum, default_value = "sgd")]
    update: Update,
    /// LARS's coefficient
    #[arg(long, default_value_t = 0.001)]
    trust: f32,
    #[arg(long, default_value_t = 0.9)]
    momentum: f32,
    #[arg(long, default_value_t = 5e-4)]
    decay: f32,
    #[arg(long, default_value_t = 0.0)]
    smoothing: f32,
    /// What forward and backward passes compute in, and what travels
    #[arg(long, value_enum, default_value = "f32")]
    precision: Type,
    /// Factor on the loss; default: dynamic for f16, else 1
    #[arg(long)]
    loss_scale: Option<f32>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, value_enum, default_value = "planned")]
    buckets: Buckets,
    /// Height and width of images; default: 28 for grey ones, 224 for coloured ones
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
    /// Random windows that stick out by at most this
    #[arg(long, value_name = "PIXELS")]
    crop: Option<usize>,
    /// Mirror every second image
    #[arg(long)]
    flip: bool,
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
    /// A line for each step: loss with all digits
    #[arg(long)]
    log: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let started = std::env::var_os("GRACCL_RANK").is_some();
    let result = match args.np {
        Some(n) if !started => launch::ranks(usize::from(n)),
        _ => train(&args).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            let rank = std::env::var("GRACCL_RANK").unwrap_or_default();
            eprintln!(
                "graccl-train: {}{e}",
                if rank.is_empty() { String::new() } else { format!("rank {rank}: ") }
            );
            if let Some(file) = &args.checkpoint {
                eprintln!("graccl-train: go on from the last checkpoint with --resume {}", file.display());
            }
            ExitCode::FAILURE
        }
    }
}

fn train(args: &Args) -> Result<()> {
    let train = input::open(&args.data, Split::Train)?;
    let test = input::open(&args.data, Split::Test)?;
    let (channels, classes) = (train.channels(), train.classes());
    let side = args.size.unwrap_or(if channels == 1 { 28 } else { 224 });
    let model = model(args, [channels, side, side], classes)?;
    // The same bits whatever the buckets, which depend on times.
    let config = Config { deterministic: true, ..Config::from_env()? };
    let comm = Communicator::init_env(&config)?;
    let (rank, ranks) = (comm.rank(), comm.size());
    if args.batch == 0 || !args.batch.is_multiple_of(ranks) {
        return Err(Error::argument(format!("a batch of {} images for {ranks} ranks", args.batch))
            .hint("--batch must be a multiple of the number of ranks"));
    }
    let plain = Augment::none(channels);
    let mut augment = plain.clone();
    augment.crop = args.crop;
    augment.flip = args.flip;
    let own = args.batch / ranks;
    let loader = LoaderConfig::training(own, (side, side), augment, args.seed).of_rank(rank, ranks);
    let loader = Loader::new(train.clone(), loader)?;
    let evaluation = LoaderConfig::evaluation(250, (side, side), plain).of_rank(rank, ranks);
    let evaluation = Loader::new(test, evaluation)?;

    let per_epoch = loader.steps_per_epoch() as usize;
    let steps = per_epoch * args.epochs;
    let warm_up = (args.warm_up * per_epoch as f32) as usize;
    let schedule = Schedule { base: args.rate, end: 0.0, warm_up, steps };
    let scale = loss_scale(args);
    let state = match &args.resume {
        Some(file) => checkpoint::load(file, &model, scale)?,
        None => State::new(&model, args.seed, scale),
    };
    let (began, until) = (state.step, args.stop.unwrap_or(steps).min(steps));
    let mut trainer = Trainer::new(comm, model, setup(args), state, device())?;
    if rank == 0 {
        let (tensors, parameters) = (trainer.model.specs.len(), trainer.model.parameters());
        println!(
            "# {tensors} tensors, {parameters} parameters; {} images, {classes} classes; {ranks} ranks, batch {}, \
             {steps} steps",
            train.len(),
            args.batch
        );
        println!(
            "# {:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>8}",
            "step", "epoch", "loss", "acc %", "images/s", "comm %", "hidden %"
        );
    }
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
        window.add(&report, args.batch);
        let (done, last) = (step + 1, step + 1 == until);
        let epoch = done as f64 / per_epoch as f64;
        let epoch_ends = done % per_epoch == 0;
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
        if epoch_ends || last {
            trainer.share_statistics()?;
            let (loss, accuracy) = trainer.evaluate(evaluation.epoch(0))?;
            if rank == 0 {
                println!("test after epoch {epoch:.2}: loss {loss:.4}, accuracy {:.2} %", 100.0 * accuracy);
            }
            window = Window::new();
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

fn model(args: &Args, input: [usize; 3], classes: usize) -> Result<Model> {
    if args.width == 0 || !args.width.is_multiple_of(2) {
        return Err(Error::argument(format!("a width of {}", args.width))
            .hint("give an even number; 64 is the original"));
    }
    let alex = |norms| alexnet(input, classes, args.width, norms);
    Ok(match args.model {
        Net::Alexnet => alex(AlexNorms::None),
        Net::AlexnetBn5 => alex(AlexNorms::Pool5),
        Net::AlexnetBn => alex(AlexNorms::All),
        Net::Resnet50 => resnet50(input, classes, args.width),
    })
}

fn setup(args: &Args) -> Setup {
    let rule = match args.update {
        Update::Sgd => Rule::Sgd,
        Update::Lars => Rule::Lars { trust: args.trust },
    };
    Setup {
        precision: match args.precision {
            Type::F32 => Precision::F32,
            Type::F16 => Precision::F16,
            Type::Bf16 => Precision::Bf16,
        },
        optimiser: Optimiser { rule, momentum: args.momentum, decay: args.decay },
        smoothing: args.smoothing,
        fusion: match args.buckets {
            Buckets::Planned => Fusion::Planned,
            Buckets::PerTensor => Fusion::PerTensor,
            Buckets::One => Fusion::OneBucket,
        },
    }
}

fn loss_scale(args: &Args) -> LossScale {
    match (args.loss_scale, args.precision) {
        (Some(scale), _) => LossScale::new(scale, 0),
        (None, Type::F16) => LossScale::new(65536.0, 200),
        (None, _) => LossScale::new(1.0, 0),
    }
}

#[cfg(feature = "cuda")]
fn device() -> Device {
    Device::cuda(0)
}

#[cfg(not(feature = "cuda"))]
fn device() -> Device {
    Device::flex()
}

//! `graccl-train`: trains AlexNet or ResNet-50 on any number of ranks.

mod flags;
mod job;
mod metrics;
mod progress;
mod search;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use graccl::{Code, Error, Result};
use graccl_trainer::input::{self, Records, Split};
use graccl_trainer::launch;

use job::Job;
use train::{Training, train};

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
    Search(Box<search::Args>),
    Pack(Pack),
}

/// Writes all images of a split into one file, for storage that is slow at opening many.
///
/// A folder with train.records and val.records is data to train with.
#[derive(Args)]
struct Pack {
    /// What --data of a training takes
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The test images, not the training images
    #[arg(long)]
    test: bool,
}

impl Pack {
    fn run(&self) -> Result<()> {
        let images = input::open(&self.data, if self.test { Split::Test } else { Split::Train })?;
        Records::pack(&*images, &self.to)?;
        println!("{}: {} images of {} classes", self.to.display(), images.len(), images.classes());
        Ok(())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let np = match (&cli.command, &cli.job) {
        (Some(Command::Search(args)), _) => args.job.np,
        (None, Some(job)) => job.np,
        _ => None,
    };
    let started = std::env::var_os("GRACCL_RANK").is_some();
    let mut last = None;
    let result = match (np, &cli.command, &cli.job) {
        (Some(n), _, _) if !started => launch::ranks(usize::from(n)),
        (_, Some(Command::Search(args)), _) => search::run(args).map(|()| 0),
        (_, Some(Command::Pack(args)), _) => args.run().map(|()| 0),
        (_, None, Some(job)) => train(job, &cli.training, &mut last).map(|()| 0),
        (_, None, None) => Err(Error::argument("nothing to train").hint("give --model and --data")),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            complain(&e, last.as_deref());
            ExitCode::FAILURE
        }
    }
}

/// `checkpoint` is one that this run wrote, or began with.
fn complain(e: &Error, checkpoint: Option<&Path>) {
    let rank = std::env::var("GRACCL_RANK").unwrap_or_default();
    let mut text = format!(
        "graccl-train: {}{e}\n",
        if rank.is_empty() { String::new() } else { format!("rank {rank}: ") }
    );
    // A run that diverged would do so again.
    if let Some(file) = checkpoint
        && file.exists()
        && e.code != Code::InvalidUsage
    {
        text += &format!("graccl-train: go on from the last checkpoint with --resume {}\n", file.display());
    }
    launch::say(&text);
}

//! What to train, and how: flags that a training and a search have in common.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use graccl::bucket::Fusion;
use graccl::{Communicator, Config, Error, Result};
use graccl_trainer::input::{self, Augment, Dataset, Loader, LoaderConfig, Split};
use graccl_trainer::model::{AlexNorms, Model, alexnet, resnet50};
use graccl_trainer::optim::{LossScale, Optimiser, Rule};
use graccl_trainer::trainer::{Norms, Precision, Setup};

use crate::flags::{at_least_0, at_least_1, part, positive};

#[derive(Clone, Copy, ValueEnum)]
pub enum Net {
    Alexnet,
    /// After the last pooling layer: what makes it fit for large batches
    AlexnetBn5,
    AlexnetBn,
    Resnet50,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Type {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Update {
    Sgd,
    Lars,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Buckets {
    Planned,
    PerTensor,
    One,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Norm {
    Local,
    Global,
}

#[derive(Args)]
pub struct Job {
    #[arg(long, value_enum)]
    pub model: Net,
    /// Folder with MNIST's four files, with train and val folders of classes, or with train.records and val.records
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Start this many ranks on this machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub np: Option<u16>,
    /// Channels: 64 is the original; even
    #[arg(long, default_value_t = 64)]
    pub width: usize,
    /// Images of all ranks together in a step
    #[arg(long, default_value_t = 256, value_parser = at_least_1)]
    pub batch: usize,
    #[arg(long, default_value_t = 1, value_parser = at_least_1)]
    pub epochs: usize,
    #[arg(long, value_enum, default_value = "sgd")]
    pub update: Update,
    #[arg(long, default_value_t = 0.9, value_parser = part, allow_negative_numbers = true)]
    pub momentum: f32,
    #[arg(long, default_value_t = 5e-4, value_parser = at_least_0, allow_negative_numbers = true)]
    pub decay: f32,
    /// Part of the target that is spread over all classes, in training
    #[arg(long, default_value_t = 0.0, value_parser = part, allow_negative_numbers = true)]
    pub smoothing: f32,
    /// What forward and backward passes compute in, and what travels
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Type,
    /// Factor on the loss; default: dynamic for f16, else 1
    #[arg(long, value_parser = positive, allow_negative_numbers = true)]
    pub loss_scale: Option<f32>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[arg(long, value_enum, default_value = "planned")]
    pub buckets: Buckets,
    /// Batch normalisation by the statistics of each rank's part of the batch, or of the whole batch
    #[arg(long, value_enum, default_value = "local")]
    pub norm: Norm,
    /// Height and width of images; default: 28 for grey ones, 224 for coloured ones
    #[arg(long, value_name = "PIXELS", value_parser = at_least_1)]
    pub size: Option<usize>,
    /// Random windows that stick out by at most this
    #[arg(long, value_name = "PIXELS")]
    pub crop: Option<usize>,
    /// Mirror every second image
    #[arg(long)]
    pub flip: bool,
    /// Threads that read and decode images, for each rank
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1)]
    pub workers: usize,
}

/// A job with its images and its network.
pub struct Work<'a> {
    pub job: &'a Job,
    pub images: Arc<dyn Dataset>,
    pub model: Model,
    side: usize,
}

impl Job {
    pub fn work(&self) -> Result<Work<'_>> {
        let images = input::open(&self.data, Split::Train)?;
        let channels = images.channels();
        let side = self.size.unwrap_or(if channels == 1 { 28 } else { 224 });
        let model = self.model([channels, side, side], images.classes())?;
        Ok(Work { job: self, images, model, side })
    }

    fn model(&self, input: [usize; 3], classes: usize) -> Result<Model> {
        if self.width == 0 || !self.width.is_multiple_of(2) {
            return Err(Error::argument(format!("a width of {}", self.width))
                .hint("give an even number; 64 is the original"));
        }
        let alex = |norms| alexnet(input, classes, self.width, norms);
        match self.model {
            Net::Alexnet => alex(AlexNorms::None),
            Net::AlexnetBn5 => alex(AlexNorms::Pool5),
            Net::AlexnetBn => alex(AlexNorms::All),
            Net::Resnet50 => Ok(resnet50(input, classes, self.width)),
        }
    }

    pub fn lars(&self) -> bool {
        matches!(self.update, Update::Lars)
    }

    /// `trust` is for LARS only.
    pub fn setup(&self, trust: f32) -> Setup {
        let rule = match self.update {
            Update::Sgd => Rule::Sgd,
            Update::Lars => Rule::Lars { trust },
        };
        Setup {
            precision: match self.precision {
                Type::F32 => Precision::F32,
                Type::F16 => Precision::F16,
                Type::Bf16 => Precision::Bf16,
            },
            optimiser: Optimiser { rule, momentum: self.momentum, decay: self.decay },
            smoothing: self.smoothing,
            fusion: match self.buckets {
                Buckets::Planned => Fusion::Planned,
                Buckets::PerTensor => Fusion::PerTensor,
                Buckets::One => Fusion::OneBucket,
            },
            norms: match self.norm {
                Norm::Local => Norms::Local,
                Norm::Global => Norms::Global,
            },
        }
    }

    pub fn loss_scale(&self) -> LossScale {
        match (self.loss_scale, self.precision) {
            (Some(scale), _) => LossScale::new(scale, 0),
            (None, Type::F16) => LossScale::new(65536.0, 200),
            (None, _) => LossScale::new(1.0, 0),
        }
    }
}

impl Work<'_> {
    /// This rank's share of the training images.
    pub fn training(&self, rank: usize, ranks: usize) -> Result<Loader> {
        let batch = self.job.batch;
        if !batch.is_multiple_of(ranks) {
            return Err(Error::argument(format!("a batch of {batch} images for {ranks} ranks"))
                .hint("--batch must be a multiple of the number of ranks that train together"));
        }
        let mut augment = Augment::none(self.images.channels());
        augment.crop = self.job.crop;
        augment.flip = self.job.flip;
        let config = LoaderConfig::training(batch / ranks, (self.side, self.side), augment, self.job.seed);
        Loader::new(self.images.clone(), config.of_rank(rank, ranks).workers(self.job.workers))
    }

    /// This rank's share of the test images, if there are any.
    pub fn evaluation(&self, rank: usize, ranks: usize) -> Result<Option<Loader>> {
        let Some(images) = input::open_test(&self.job.data, &*self.images)? else { return Ok(None) };
        let plain = Augment::none(self.images.channels());
        let config = LoaderConfig::evaluation(250, (self.side, self.side), plain);
        Loader::new(images, config.of_rank(rank, ranks).workers(self.job.workers)).map(Some)
    }

    /// What decides, beside a schedule, what a step computes. Not the number of ranks, and not what they compute in.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let job = self.job;
        vec![
            ("--model", name(&job.model)),
            ("--width", job.width.to_string()),
            ("--size", self.side.to_string()),
            ("images", self.images.len().to_string()),
            ("classes", self.images.classes().to_string()),
            ("--batch", job.batch.to_string()),
            ("--epochs", job.epochs.to_string()),
            ("--seed", job.seed.to_string()),
            ("--crop", job.crop.map_or("none".into(), |n| n.to_string())),
            ("--flip", job.flip.to_string()),
            ("--update", name(&job.update)),
            ("--momentum", job.momentum.to_string()),
            ("--decay", job.decay.to_string()),
            ("--smoothing", job.smoothing.to_string()),
        ]
    }
}

/// The flag's value.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |v| v.get_name().to_string())
}

/// The job's communicator: the same bits whatever the buckets, which depend on times.
pub fn communicator() -> Result<Communicator> {
    Communicator::init_env(&Config { deterministic: true, ..Config::from_env()? })
}

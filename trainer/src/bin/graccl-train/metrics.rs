//! `--metrics`: a line for each step, in a file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use graccl::{Error, Result};
use graccl_trainer::trainer::Report;

const NAMES: &str = "step,epoch,images_per_second,loss,accuracy,rate,loss_scale,comm_share,hidden_share,\
                     test_loss,test_accuracy";

/// The file, and when the step that is under way began.
pub struct Metrics {
    file: File,
    path: PathBuf,
    began: Instant,
}

/// What a line is made of, but for the times.
pub struct Line<'a> {
    pub step: usize,
    pub epoch: f64,
    /// Of all ranks.
    pub images: usize,
    pub report: &'a Report,
    pub rate: f32,
    pub loss_scale: f32,
}

impl Metrics {
    /// A new file; or, for a run that goes on, the end of the one that is there.
    pub fn open(path: &Path, goes_on: bool) -> Result<Metrics> {
        let mut options = File::options();
        options.create(true).write(true).append(goes_on).truncate(!goes_on);
        let file = options.open(path).map_err(|e| cannot(path, &e))?;
        let mut metrics = Metrics { file, path: path.to_path_buf(), began: Instant::now() };
        let empty = metrics.file.metadata().map_err(|e| cannot(path, &e))?.len() == 0;
        if empty {
            metrics.write(&format!("{NAMES}\n"))?;
        }
        Ok(metrics)
    }

    /// The next step begins now.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// The step that [`Metrics::begin`] began is over; `finish` ends its line.
    pub fn step(&mut self, line: &Line) -> Result<()> {
        let (seconds, report) = (self.began.elapsed().as_secs_f64(), line.report);
        let times = &report.times;
        let hidden = if times.busy > 0.0 { (1.0 - times.waited / times.busy).max(0.0) } else { 1.0 };
        self.write(&format!(
            "{},{:.4},{:.1},{},{},{},{},{:.4},{hidden:.4}",
            line.step,
            line.epoch,
            line.images as f64 / seconds,
            report.loss,
            report.accuracy,
            line.rate,
            line.loss_scale,
            (times.waited / seconds).min(1.0)
        ))
    }

    /// With loss and accuracy of a test that was made after the step.
    pub fn finish(&mut self, test: Option<(f64, f64)>) -> Result<()> {
        let test = test.map_or(",,".to_string(), |(loss, accuracy)| format!(",{loss},{accuracy}"));
        self.write(&format!("{test}\n"))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).map_err(|e| cannot(&self.path, &e))
    }
}

fn cannot(path: &Path, cause: &std::io::Error) -> Error {
    Error::io(format!("cannot write {}", path.display()), cause).hint("check the path and its permissions")
}

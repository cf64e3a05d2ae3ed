//! `--metrics`: a line for each step, in a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use graccl::{Error, Result};
use graccl_trainer::trainer::Report;

use crate::progress::Sums;

const NAMES: &str = "step,epoch,images_per_second,loss,accuracy,rate,loss_scale,comm_share,hidden_share,\
                     test_loss,test_accuracy\n";

pub struct Metrics {
    file: File,
    path: PathBuf,
}

/// What a line is made of.
pub struct Line<'a> {
    pub step: usize,
    pub epoch: f64,
    /// Of all ranks.
    pub images: usize,
    pub seconds: f64,
    pub report: &'a Report,
    pub rate: f32,
    pub loss_scale: f32,
    /// Loss and accuracy of a test after the step.
    pub test: Option<(f64, f64)>,
}

impl Metrics {
    /// A new file. For a run that goes on from step `from`: the file that is there, without what comes after that step,
    /// and without the half line that a killed run may have left.
    pub fn open(path: &Path, from: Option<usize>) -> Result<Metrics> {
        let fails = |e: std::io::Error| cannot(path, &e);
        let mut options = File::options();
        let mut file =
            options.create(true).read(true).write(true).truncate(from.is_none()).open(path).map_err(fails)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(fails)?;
        let keep = match from {
            Some(step) if !text.is_empty() => kept(&text, step).ok_or_else(|| {
                Error::argument(format!("{} has other columns than this program writes", path.display()))
                    .hint("give --metrics another file")
            })?,
            _ => 0,
        };
        file.set_len(keep as u64).map_err(fails)?;
        file.seek(SeekFrom::End(0)).map_err(fails)?;
        let mut metrics = Metrics { file, path: path.to_path_buf() };
        if keep == 0 {
            metrics.write(NAMES)?;
        }
        Ok(metrics)
    }

    /// Whole, in one write: whoever reads meanwhile sees no half lines.
    pub fn line(&mut self, l: &Line) -> Result<()> {
        let mut one = Sums::default();
        one.add(l.report, l.images, l.seconds);
        let test = l.test.map_or(",".to_string(), |(loss, accuracy)| format!("{loss},{accuracy}"));
        self.write(&format!(
            "{},{:.4},{:.1},{},{},{},{},{:.4},{:.4},{test}\n",
            l.step,
            l.epoch,
            one.images_per_second(),
            l.report.loss,
            l.report.accuracy,
            l.rate,
            l.loss_scale,
            one.comm_share(),
            one.hidden_share(),
        ))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).map_err(|e| cannot(&self.path, &e))
    }
}

/// Bytes of the whole lines up to that of `step`. `None`: another table.
fn kept(text: &str, step: usize) -> Option<usize> {
    let lines = text.strip_prefix(NAMES)?.split_inclusive('\n');
    let earlier = |l: &&str| {
        let number = l.split(',').next().and_then(|n| n.parse::<usize>().ok());
        l.ends_with('\n') && number.is_some_and(|n| n <= step)
    };
    Some(NAMES.len() + lines.take_while(earlier).map(str::len).sum::<usize>())
}

fn cannot(path: &Path, cause: &std::io::Error) -> Error {
    Error::io(format!("cannot write {}", path.display()), cause).hint("check the path and its permissions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_keeps_what_came_before_its_checkpoint() {
        let table = format!("{NAMES}1,a\n2,b\n3,c\n4,half");
        let keeps = |text: &str, step| kept(text, step).map(|n| text[NAMES.len()..n].to_string());
        assert_eq!(keeps(&table, 2).unwrap(), "1,a\n2,b\n");
        assert_eq!(keeps(&table, 9).unwrap(), "1,a\n2,b\n3,c\n");
        assert_eq!(keeps(&table, 0).unwrap(), "");
        assert_eq!(keeps("step,other\n1,2\n", 1), None);
    }
}

//! A training run in a safetensors file: weights by their names, and all that going on needs.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use graccl::{Error, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::model::Model;
use crate::optim::LossScale;
use crate::state::State;
use crate::trainer::Precision;

/// The file's notes are one text, a line for each: as several they would be in another order in every file.
const NOTES: &str = "graccl-train";

/// What a run is, beside its network.
#[derive(Clone, Debug)]
pub struct Run {
    pub precision: Precision,
    /// Names and values: whatever decides what a step computes. A run goes on only with the same.
    pub settings: Vec<(&'static str, String)>,
}

/// Writes it, all or nothing: the file is complete, and on the disk, when it gets its name.
///
/// # Errors
/// The system's.
pub fn save(path: &Path, model: &Model, state: &State, run: &Run) -> Result<()> {
    let mut arrays: Vec<(String, Vec<usize>, &[f32])> = Vec::new();
    for (i, spec) in model.specs.iter().enumerate() {
        arrays.push((spec.name.clone(), spec.shape.clone(), &state.weights[i]));
        arrays.push((format!("momentum/{}", spec.name), spec.shape.clone(), &state.velocity[i]));
    }
    for ((name, n), (mean, variance)) in model.norms.iter().zip(&state.statistics) {
        arrays.push((format!("{name}.running_mean"), vec![*n], mean));
        arrays.push((format!("{name}.running_var"), vec![*n], variance));
    }
    let bytes: Vec<Vec<u8>> =
        arrays.iter().map(|(_, _, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = arrays.iter().zip(&bytes).map(|((name, shape, _), b)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), b).expect("a tensor's values fill its shape"))
    });
    let LossScale { scale, interval, good } = state.scale;
    let mut notes = format!(
        "step {}\nprecision {:?}\nloss_scale {scale}\nloss_scale_interval {interval}\nloss_scale_good {good}\n",
        state.step, run.precision
    );
    run.settings.iter().for_each(|(name, value)| notes += &format!("{name} {value}\n"));
    let file = safetensors::serialize(views, Some(HashMap::from([(NOTES.to_string(), notes)])))
        .map_err(|e| Error::internal(format!("cannot make a checkpoint: {e}")))?;
    let new = unfinished(path);
    let write = || {
        let mut out = File::create(&new)?;
        out.write_all(&file)?;
        out.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|e| cannot_write(path, &e))
}

/// Fails if [`save`] would: better before hours of training than after.
///
/// # Errors
/// The system's.
pub fn can_be_written(path: &Path) -> Result<()> {
    let new = unfinished(path);
    let attempt = || {
        if path.is_dir() {
            return Err(std::io::ErrorKind::IsADirectory.into());
        }
        File::create(&new)?;
        std::fs::remove_file(&new)
    };
    attempt().map_err(|e| cannot_write(path, &e))
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

fn cannot_write(path: &Path, cause: &std::io::Error) -> Error {
    Error::io(format!("cannot write the checkpoint {}", path.display()), cause)
        .hint("check its folder, permissions and space")
}

/// Reads what [`save`] wrote for the same model and the same run. `scale` says how the loss scale goes on; where
/// it changes by itself, and the run computes in what it did, it goes on from where it was.
///
/// # Errors
/// The system's; `InvalidArgument` for a file of another model or run, or one that is damaged.
pub fn load(path: &Path, model: &Model, scale: LossScale, run: &Run) -> Result<State> {
    let bytes = std::fs::read(path).map_err(|e| {
        Error::io(format!("cannot read {}", path.display()), &e).hint("check the path and its permissions")
    })?;
    let bad = |what: String| {
        Error::argument(what).who(path.display().to_string()).hint(
            "give the model, data and flags that the checkpoint was made with; ranks, precision, norms and buckets \
             may be others",
        )
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    let notes = header.metadata().as_ref().and_then(|m| m.get(NOTES));
    let notes: HashMap<&str, &str> = notes
        .ok_or_else(|| bad("not a checkpoint of graccl-train".into()))?
        .lines()
        .filter_map(|l| l.split_once(' '))
        .collect();
    let note = |name: &str| -> Result<&str> {
        notes.get(name).copied().ok_or_else(|| bad(format!("the checkpoint does not say its {name}")))
    };
    for (name, value) in &run.settings {
        let was = note(name)?;
        if was != value {
            return Err(bad(format!(
                "the checkpoint is of a run with {name} {was}, and this one has {name} {value}"
            )));
        }
    }
    let array = |name: String, shape: &[usize]| -> Result<Vec<f32>> {
        let view = file.tensor(&name).map_err(|e| bad(e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            return Err(bad(format!("{name} is {:?} {:?}, not F32 {shape:?}", view.dtype(), view.shape())));
        }
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let number = |name: &str| parse::<u32>(name, note(name)?).map_err(bad);
    let step = parse("step", note("step")?).map_err(bad)?;
    let mut state = State { weights: vec![], velocity: vec![], statistics: vec![], scale, step };
    for spec in &model.specs {
        state.weights.push(array(spec.name.clone(), &spec.shape)?);
        state.velocity.push(array(format!("momentum/{}", spec.name), &spec.shape)?);
    }
    for (name, n) in &model.norms {
        let statistics =
            (array(format!("{name}.running_mean"), &[*n])?, array(format!("{name}.running_var"), &[*n])?);
        state.statistics.push(statistics);
    }
    let same_kind = note("precision")? == format!("{:?}", run.precision)
        && number("loss_scale_interval")? == scale.interval;
    if same_kind && scale.interval > 0 {
        let was: f32 = parse("loss_scale", note("loss_scale")?).map_err(bad)?;
        let good = number("loss_scale_good")?;
        if !was.is_finite() || was <= 0.0 || good >= scale.interval {
            return Err(bad(format!("a loss scale cannot be {was} after {good} good steps")));
        }
        (state.scale.scale, state.scale.good) = (was, good);
    }
    Ok(state)
}

fn parse<T: FromStr>(name: &str, text: &str) -> std::result::Result<T, String> {
    text.parse().map_err(|_| format!("the checkpoint's {name} is {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AlexNorms, alexnet};

    fn run(precision: Precision, batch: u32) -> Run {
        Run { precision, settings: vec![("--seed", "1".into()), ("--batch", batch.to_string())] }
    }

    fn model() -> Model {
        alexnet([1, 28, 28], 3, 2, AlexNorms::All).unwrap()
    }

    fn state(scale: LossScale) -> State {
        let mut s = State::new(&model(), 1, scale);
        (s.step, s.scale.scale, s.scale.good) = (77, 512.0, 4);
        s.velocity[0].fill(0.25);
        s
    }

    #[test]
    fn what_was_saved_is_loaded_and_a_file_is_the_same_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("run.safetensors"), dir.path().join("run"));
        let scale = LossScale::new(65536.0, 200);
        for path in [&a, &b] {
            can_be_written(path).unwrap();
            save(path, &model(), &state(scale), &run(Precision::F16, 64)).unwrap();
        }
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left over");
        assert_eq!(load(&a, &model(), scale, &run(Precision::F16, 64)).unwrap(), state(scale));
        // In another precision, or with a scale that stays, the flags decide.
        let other = load(&a, &model(), scale, &run(Precision::Bf16, 64)).unwrap();
        assert_eq!((other.step, other.scale), (77, scale));
        let stays = LossScale::new(128.0, 0);
        assert_eq!(load(&a, &model(), stays, &run(Precision::F16, 64)).unwrap().scale, stays);
    }

    #[test]
    fn another_run_and_damaged_notes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let scale = LossScale::new(65536.0, 200);
        save(&path, &model(), &state(scale), &run(Precision::F16, 64)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let refused = |run: &Run| load(&path, &model(), scale, run).unwrap_err().to_string();
        let e = refused(&run(Precision::F16, 32));
        assert!(e.contains("--batch 64") && e.contains("--batch 32") && e.contains(" -> "), "{e}");
        let mut more = run(Precision::F16, 64);
        more.settings.push(("--crop", "2".into()));
        assert!(refused(&more).contains("does not say its --crop"));
        let bigger = alexnet([1, 28, 28], 3, 4, AlexNorms::All).unwrap();
        let e = load(&path, &bigger, scale, &run(Precision::F16, 64)).unwrap_err().to_string();
        assert!(e.contains("conv1.weight is F32 [3, 1, 5, 5], not"), "{e}");
        // Of the same length, as the header's is written in it.
        for (from, to) in [
            ("step 77", "step -7"),
            ("step 77", "step 7."),
            ("loss_scale 512", "loss_scale NaN"),
            ("loss_scale 512", "loss_scale -51"),
            ("loss_scale_good 4", "loss_scale_good -"),
        ] {
            let text = whole.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bytes = whole.clone();
            bytes[text..text + to.len()].copy_from_slice(to.as_bytes());
            std::fs::write(&path, bytes).unwrap();
            let e = refused(&run(Precision::F16, 64));
            assert!(
                e.contains(
                    from.split(' ').next().unwrap().trim_end_matches("_good").trim_start_matches("loss_")
                ),
                "{to}: {e}"
            );
        }
        for cut in [0, 7, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(refused(&run(Precision::F16, 64)).contains(" -> "));
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let e = can_be_written(dir.path()).unwrap_err().to_string();
        assert!(e.contains("cannot write the checkpoint") && e.contains(" -> "), "{e}");
        assert!(can_be_written(&dir.path().join("none/run")).is_err());
    }
}

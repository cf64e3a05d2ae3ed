//! A training run in a safetensors file: weights by their names, and all that going on needs.

use std::collections::HashMap;
use std::path::Path;

use graccl::{Code, Error, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::model::Model;
use crate::optim::LossScale;
use crate::trainer::State;

/// Writes it, all or nothing: the file is complete when it gets its name.
///
/// # Errors
/// The system's.
pub fn save(path: &Path, model: &Model, state: &State) -> Result<()> {
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
    let notes = HashMap::from([
        ("step".to_string(), state.step.to_string()),
        ("loss_scale".to_string(), state.scale.scale.to_string()),
        ("loss_scale_good".to_string(), state.scale.good.to_string()),
    ]);
    let file = safetensors::serialize(views, Some(notes))
        .map_err(|e| Error::internal(format!("cannot make a checkpoint: {e}")))?;
    let new = path.with_extension("new");
    std::fs::write(&new, file)
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(|e| Error::io(format!("cannot write {}", path.display()), &e))
}

/// Reads what [`save`] wrote for the same model. `scale` says how the loss scale goes on.
///
/// # Errors
/// The system's; `InvalidArgument` for a file of another model, or one that is damaged.
pub fn load(path: &Path, model: &Model, scale: LossScale) -> Result<State> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(format!("cannot read {}", path.display()), &e))?;
    let bad = |what: String| {
        Error::new(Code::InvalidArgument, what)
            .who(path.display().to_string())
            .hint("resume with the model and the size that the checkpoint was made with")
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    let array = |name: String, shape: &[usize]| -> Result<Vec<f32>> {
        let view = file.tensor(&name).map_err(|e| bad(e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            return Err(bad(format!("{name} is {:?} {:?}, not F32 {shape:?}", view.dtype(), view.shape())));
        }
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let note = |name: &str| header.metadata().as_ref().and_then(|m| m.get(name)).map(String::as_str);
    let missing = |name: &str| bad(format!("the checkpoint has no {name}"));
    let mut state = State { weights: vec![], velocity: vec![], statistics: vec![], scale, step: 0 };
    for spec in &model.specs {
        state.weights.push(array(spec.name.clone(), &spec.shape)?);
        state.velocity.push(array(format!("momentum/{}", spec.name), &spec.shape)?);
    }
    for (name, n) in &model.norms {
        let statistics =
            (array(format!("{name}.running_mean"), &[*n])?, array(format!("{name}.running_var"), &[*n])?);
        state.statistics.push(statistics);
    }
    let number = |name: &str| note(name).and_then(|t| t.parse::<f64>().ok()).ok_or_else(|| missing(name));
    state.step = number("step")? as usize;
    state.scale.scale = number("loss_scale")? as f32;
    state.scale.good = number("loss_scale_good")? as u32;
    Ok(state)
}

//! All that a training run remembers, and how every rank comes by it.

use graccl::{Communicator, Error, Result};

use crate::model::Model;
use crate::optim::LossScale;

/// All that a training run remembers. The same on all ranks, but for running statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub weights: Vec<Vec<f32>>,
    pub velocity: Vec<Vec<f32>>,
    /// Running mean and variance of each norm.
    pub statistics: Vec<(Vec<f32>, Vec<f32>)>,
    pub scale: LossScale,
    /// Steps done, skipped ones too.
    pub step: usize,
}

impl State {
    /// Where training begins.
    pub fn new(model: &Model, seed: u64, scale: LossScale) -> State {
        State { weights: model.initial(seed), ..State::empty(model, scale) }
    }

    /// The shape of one.
    fn empty(model: &Model, scale: LossScale) -> State {
        let zeros: Vec<Vec<f32>> = model.specs.iter().map(|s| vec![0.0; s.elements()]).collect();
        State {
            velocity: zeros.clone(),
            weights: zeros,
            statistics: model.norms.iter().map(|(_, n)| (vec![0.0; *n], vec![1.0; *n])).collect(),
            scale,
            step: 0,
        }
    }

    /// That of rank 0, which alone gives one: other machines need not have its files, and round otherwise where they have
    /// another mathematical library. Collective. `scale` says on all ranks how the loss scale goes on.
    ///
    /// # Errors
    /// Those of [`Communicator::call`].
    pub fn shared(
        comm: &Communicator,
        model: &Model,
        scale: LossScale,
        of_rank_0: Option<State>,
    ) -> Result<State> {
        let mut state = of_rank_0.unwrap_or_else(|| State::empty(model, scale));
        let LossScale { scale, good, .. } = state.scale;
        let mut numbers = [state.step as u64, scale.to_bits().into(), good.into()];
        comm.broadcast(&mut numbers, 0)?;
        let [step, scale, good] = numbers;
        state.step = step as usize;
        (state.scale.scale, state.scale.good) = (f32::from_bits(scale as u32), good as u32);
        let statistics = state.statistics.iter_mut().flat_map(|(m, v)| [m, v]);
        for values in state.weights.iter_mut().chain(&mut state.velocity).chain(statistics) {
            comm.broadcast(values, 0)?;
        }
        Ok(state)
    }
}

/// What rank 0 alone does, such as to read a file. `None` on the others. Collective.
///
/// # Errors
/// Those of `work` on all ranks, so that nobody waits for what will not come; those of [`Communicator::call`].
pub fn on_rank_0<T>(comm: &Communicator, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    let done = (comm.rank() == 0).then(work).transpose();
    let mut words = done.as_ref().err().map_or(vec![], |e| e.to_string().into_bytes());
    let told = tell(comm, &mut words);
    let done = done?;
    told?;
    if comm.rank() > 0 && !words.is_empty() {
        return Err(Error::remote(format!("rank 0 failed: {}", String::from_utf8_lossy(&words))));
    }
    Ok(done)
}

/// Gives rank 0's words to all.
fn tell(comm: &Communicator, words: &mut Vec<u8>) -> Result<()> {
    let mut length = [words.len() as u64];
    comm.broadcast(&mut length, 0)?;
    if length[0] == 0 {
        return Ok(());
    }
    words.resize(length[0] as usize, 0);
    comm.broadcast(words, 0)?;
    // Rank 0 is about to end: not before all have its words.
    comm.barrier()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AlexNorms, alexnet};
    use graccl::Config;

    #[test]
    fn all_ranks_get_rank_0s_state_or_its_error() {
        let model = alexnet([1, 28, 28], 10, 2, AlexNorms::All).unwrap();
        let scale = LossScale::new(8.0, 5);
        let mut own = State::new(&model, 7, scale);
        (own.step, own.scale.scale, own.scale.good) = (12, 4.0, 3);
        own.velocity[3].fill(0.5);
        own.statistics[1].1.fill(2.5);
        let comms = Communicator::init_all(3, &Config::default()).unwrap();
        std::thread::scope(|s| {
            let all: Vec<_> = (comms.into_iter())
                .map(|comm| {
                    let (model, own) = (&model, &own);
                    s.spawn(move || {
                        let given = on_rank_0(&comm, || Ok(own.clone())).unwrap();
                        assert_eq!(given.is_some(), comm.rank() == 0);
                        assert_eq!(State::shared(&comm, model, scale, given).unwrap(), *own);
                        let failed = on_rank_0::<()>(&comm, || Err(Error::argument("no such file")));
                        let e = failed.unwrap_err().to_string();
                        assert!(e.contains("no such file"), "{e}");
                        assert_eq!(e.contains("rank 0 failed"), comm.rank() > 0);
                    })
                })
                .collect();
            all.into_iter().for_each(|t| t.join().unwrap());
        });
    }
}

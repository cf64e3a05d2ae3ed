//! Which learning rate, warm-up and trust coefficient: coarse to fine, by short trainings.
//!
//! A round tries all settings of a grid for a few steps, keeps the best third, trains these for three times as many
//! steps, and so on (successive halving: the hopeless cost little). Then the grid is narrowed around the best setting,
//! and the next round begins. The ranks are split into groups, each of which trains another setting at the same time.

mod report;

use graccl::{Call, Collective, Communicator, DataType, Error, RedOp, Result};

pub use report::{csv, svg};

/// Of the settings tried, one in so many goes on, for so many times as many steps.
const THIN: usize = 3;

/// What a training is tried with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    pub rate: f64,
    /// Part of the steps.
    pub warmup: f64,
    pub trust: f64,
}

/// All combinations of these, each list ascending. Rates and trust coefficients are above 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    pub rate: Vec<f64>,
    pub warmup: Vec<f64>,
    pub trust: Vec<f64>,
}

/// How to search.
#[derive(Clone, Debug)]
pub struct Search {
    pub grid: Grid,
    /// Times that the grid is narrowed.
    pub refinements: usize,
    /// Of the first, shortest trainings.
    pub steps: u64,
    /// Lengths of training in a round.
    pub rungs: usize,
    /// Into which the ranks are split; their number must be a multiple.
    pub groups: usize,
}

/// One training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// 0 is the coarse one.
    pub round: usize,
    pub rung: usize,
    pub setting: Setting,
    pub steps: u64,
    /// What `train` returned; infinite for what is no number.
    pub loss: f64,
}

/// Searches. Collective: all ranks with the same `search`. `train` trains from the beginning for so many steps, on the
/// ranks of the communicator that it is given, and returns a loss, of which that of their first rank counts. All ranks
/// get the same trials, in the order in which they were begun; [`best`] picks the winner.
///
/// # Errors
/// `InvalidArgument` for a search that tries nothing, those of `train` and of communication. If `train` fails on a rank,
/// the others learn of it when that rank destroys its communicator.
pub fn run(
    comm: &Communicator,
    search: &Search,
    mut train: impl FnMut(&Communicator, &Setting, u64) -> Result<f64>,
) -> Result<Vec<Trial>> {
    search.check(comm.size())?;
    let per_group = comm.size() / search.groups;
    let group = comm.rank() / per_group;
    let own = comm.split(Some(group as u32), comm.rank() as i32)?;
    let own = own.ok_or_else(|| Error::internal("a group without a communicator"))?;
    let mut grid = search.grid.clone();
    let mut trials: Vec<Trial> = Vec::new();
    for round in 0..=search.refinements {
        let mut left = grid.settings();
        for rung in 0..search.rungs {
            let steps = search.steps * (THIN as u64).pow(rung as u32);
            let mut losses = vec![0.0; left.len()];
            for i in (group..left.len()).step_by(search.groups) {
                let loss = train(&own, &left[i], steps)?;
                if own.rank() == 0 {
                    losses[i] = if loss.is_nan() { f64::INFINITY } else { loss };
                }
            }
            sum(comm, &mut losses)?;
            let new = left.iter().zip(&losses);
            trials.extend(new.map(|(&setting, &loss)| Trial { round, rung, setting, steps, loss }));
            let mut order: Vec<usize> = (0..left.len()).collect();
            // Stable: of equals, the first.
            order.sort_by(|&a, &b| losses[a].total_cmp(&losses[b]));
            order.truncate(left.len().div_ceil(THIN));
            left = order.into_iter().map(|i| left[i]).collect();
        }
        grid = grid.around(&best(&trials).setting);
    }
    Ok(trials)
}

/// The trial with the least loss, of those that trained the longest.
///
/// # Panics
/// If there are none.
pub fn best(trials: &[Trial]) -> &Trial {
    let longest = trials.iter().map(|t| t.steps).max().expect("at least one trial");
    let all = trials.iter().filter(|t| t.steps == longest);
    all.min_by(|a, b| a.loss.total_cmp(&b.loss)).expect("the longest is one of them")
}

/// Adds up over all ranks, in place.
fn sum(comm: &Communicator, values: &mut [f64]) -> Result<()> {
    let p = values.as_mut_ptr().cast::<u8>();
    let call = Call::new(Collective::AllReduce, p, p, values.len(), DataType::F64, RedOp::Sum);
    // SAFETY: the slice is ours for the call.
    unsafe { comm.call(&call) }
}

impl Search {
    fn check(&self, ranks: usize) -> Result<()> {
        let g = &self.grid;
        let lists = [&g.rate, &g.warmup, &g.trust];
        let ascending = lists.iter().all(|l| !l.is_empty() && l.windows(2).all(|w| w[0] < w[1]));
        let sensible = [&g.rate, &g.trust].iter().all(|l| l.iter().all(|&v| v > 0.0 && v.is_finite()))
            && g.warmup.iter().all(|w| (0.0..1.0).contains(w));
        if !ascending || !sensible {
            return Err(Error::argument(format!("a search cannot have {g:?}")).hint(
                "give ascending lists: rates and trust coefficients above 0, warm-ups from 0 to below 1",
            ));
        }
        if self.steps == 0
            || self.rungs == 0
            || self.rungs > 12
            || self.groups == 0
            || !ranks.is_multiple_of(self.groups)
        {
            let what = format!(
                "a search with {} steps, {} rungs and {} groups of {ranks} ranks",
                self.steps, self.rungs, self.groups
            );
            return Err(
                Error::argument(what).hint("give 1 step or more, 1 to 12 rungs, and groups of one size")
            );
        }
        Ok(())
    }
}

impl Grid {
    fn settings(&self) -> Vec<Setting> {
        let mut all = Vec::new();
        for &rate in &self.rate {
            for &warmup in &self.warmup {
                all.extend(self.trust.iter().map(|&trust| Setting { rate, warmup, trust }));
            }
        }
        all
    }

    /// Half as coarse, around a setting.
    fn around(&self, s: &Setting) -> Grid {
        let geometric = |list: &[f64], at: f64| -> Vec<f64> {
            let logs: Vec<f64> = list.iter().map(|v| v.ln()).collect();
            // The middle as it was, to the last bit.
            narrow(&logs, at.ln()).into_iter().map(|v| if v == at.ln() { at } else { v.exp() }).collect()
        };
        let mut warmup = narrow(&self.warmup, s.warmup);
        warmup.retain(|w| (0.0..1.0).contains(w));
        Grid { rate: geometric(&self.rate, s.rate), warmup, trust: geometric(&self.trust, s.trust) }
    }
}

/// `at`, and what lies half a step of the list below and above it, also beyond its ends. A list of one stays.
fn narrow(list: &[f64], at: f64) -> Vec<f64> {
    if list.len() == 1 {
        return list.to_vec();
    }
    // The best of an earlier round need not be in this list: the nearest says how long a step is.
    let far = |i: &usize| (list[*i] - at).abs();
    let i = (0..list.len()).min_by(|a, b| far(a).total_cmp(&far(b))).expect("it is not empty");
    let (last, step) = (list.len() - 1, |i: usize| (list[i + 1] - list[i]) / 2.0);
    let (below, above) = (step(i.saturating_sub(1)), step(i.min(last - 1)));
    vec![at - below, at, at + above]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_narrowed_to_half_its_steps() {
        let grid = Grid { rate: vec![0.01, 0.04, 0.64], warmup: vec![0.0, 0.2], trust: vec![0.5] };
        let near = |a: &[f64], b: &[f64]| {
            assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9), "{a:?} {b:?}")
        };
        let finer = grid.around(&Setting { rate: 0.04, warmup: 0.0, trust: 0.5 });
        near(&finer.rate, &[0.02, 0.04, 0.16]);
        near(&finer.warmup, &[0.0, 0.1]);
        near(&finer.trust, &[0.5]);
        // At an end it looks beyond.
        near(&grid.around(&Setting { rate: 0.64, warmup: 0.2, trust: 0.5 }).rate, &[0.16, 0.64, 2.56]);
    }

    #[test]
    fn the_best_is_one_that_trained_to_the_end() {
        let setting = Setting { rate: 1.0, warmup: 0.0, trust: 1.0 };
        let trial = |steps, loss| Trial { round: 0, rung: 0, setting, steps, loss };
        let all = [trial(1, 0.1), trial(3, f64::INFINITY), trial(3, 0.5), trial(3, 0.7)];
        assert_eq!(best(&all), &all[2]);
    }
}

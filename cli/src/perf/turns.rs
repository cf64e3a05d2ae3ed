//! Turns: several ways to do the same are compared while the machine's speed changes.

/// The order of a round among `n`. Every second round has the order of the one before backwards, so what changes
/// steadily meets all alike; and every pair of rounds begins with another one.
pub fn order(n: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..n).map(move |i| if round.is_multiple_of(2) { i } else { n - 1 - i }).map(move |i| (i + round / 2) % n)
}

/// What a call took in each round, of `turn` calls, on one rank, but for the slowest calls of a long turn, one in fifty:
/// interruptions. Not what it usually took: a rank that sends to others may be ahead of them, and then most of its calls
/// are short and some make up for it. Rounds are compared by what it took on the slowest. (Not by the slowest rank of
/// each call: of two ranks whose calls begin `d` apart and whose messages take `l`, one takes `l - d` and the other `l + d`,
/// and in the next call the other way round. So turns are of an even number of calls.)
pub fn rounds(times: &[f64], turn: usize) -> Vec<f64> {
    let of = |turn: &[f64]| {
        let mut turn = turn.to_vec();
        turn.sort_by(f64::total_cmp);
        let counted = &turn[..turn.len() - turn.len() / 50];
        counted.iter().sum::<f64>() / counted.len() as f64
    };
    times.chunks(turn.max(1)).map(of).collect()
}

/// The mean of the middle half of at least one number. Where ranks share cores a turn is often fast or slow as a whole,
/// by how the ranks' times on a core fell: the median of such turns is one or the other, by chance.
fn usual(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    let cut = of.len() / 4;
    let half = &of[cut..of.len() - cut];
    half.iter().sum::<f64>() / half.len() as f64
}

/// A time for each, from its times in each round: the usual one of what it took in times of the round's mean, so
/// only those of one round are compared. Who left early has fewer rounds, and counts in no mean.
pub fn paired(times: &[Vec<f64>]) -> Vec<f64> {
    let rounds = times.iter().map(Vec::len).max().unwrap_or(0);
    let full: Vec<&Vec<f64>> = times.iter().filter(|t| t.len() == rounds).collect();
    let mean = |r: usize| (full.iter().map(|t| t[r].max(1e-9).ln()).sum::<f64>() / full.len() as f64).exp();
    let means: Vec<f64> = (0..rounds).map(mean).collect();
    let mean = usual(means.clone());
    times.iter().map(|t| mean * usual(t.iter().zip(&means).map(|(t, m)| t / m).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs all of `work` for `rounds`; what one takes is its work in times of what the clock's `state` says.
    fn run(work: &[f64], count: usize, state: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut times = vec![Vec::new(); work.len()];
        let mut now = 0.0;
        for round in 0..count {
            for i in order(work.len(), round) {
                let took = work[i] * state(now);
                now += took;
                times[i].push(took);
            }
        }
        paired(&times)
    }

    #[test]
    fn everyone_has_a_turn_in_every_round() {
        for (n, round) in [(1, 0), (1, 7), (4, 0), (4, 1), (5, 3), (5, 40)] {
            let mut all: Vec<usize> = order(n, round).collect();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }

    /// The same work at the beginning, in the middle and at the end comes out the same.
    #[test]
    fn the_place_in_the_order_does_not_matter() {
        let work = [10.0, 8.0, 10.0, 30.0, 9.0, 10.0];
        let steady: fn(f64) -> f64 = |now| 1.0 + now / 500.0;
        let sudden: fn(f64) -> f64 = |now| if (150.0..400.0).contains(&now) { 3.0 } else { 1.0 };
        let waves: fn(f64) -> f64 = |now| 1.5 + 0.5 * (now / 90.0).sin();
        for (what, state, within) in
            [("steady", steady, 0.01), ("sudden", sudden, 0.01), ("waves", waves, 0.06)]
        {
            let t = run(&work, 10, state);
            for same in [2, 5] {
                assert!((t[same] / t[0] - 1.0).abs() < within, "{what}: {t:?}");
            }
            // A call that is half of a round meets another state within itself.
            assert!((t[3] / t[0] / 3.0 - 1.0).abs() < 0.03, "{what}: {t:?}");
        }
    }

    #[test]
    fn who_left_early_is_compared_with_those_of_its_rounds() {
        let t = paired(&[vec![1.0, 2.0, 4.0], vec![2.0, 4.0, 8.0], vec![3.0]]);
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-12;
        assert!(near(t[1] / t[0], 2.0) && near(t[2] / t[0], 3.0) && near(t[0], 7.0 / 3.0), "{t:?}");
    }

    /// Turns that are fast or slow: who is fast more often is faster, and not by the whole difference.
    #[test]
    fn what_has_two_speeds_counts_by_how_often() {
        let two = |fast: usize, step: usize| -> Vec<f64> {
            (0..20).map(|i| if i * step % 20 < fast { 4.0 } else { 6.0 }).collect()
        };
        let t = paired(&[two(5, 1), two(15, 3)]);
        assert!((1.1..1.3).contains(&(t[0] / t[1])), "{t:?}");
    }

    #[test]
    fn rounds_in_short() {
        assert_eq!(rounds(&[1.0, 9.0, 2.0, 5.0, 7.0], 3), [4.0, 6.0]);
        // Calls that begin 4 apart on two ranks.
        assert_eq!(rounds(&[14.0, 6.0, 14.0, 6.0, 14.0, 6.0, 14.0, 6.0], 8), [10.0]);
        // Of three calls two only fill channels; and an interruption.
        let mut ahead: Vec<f64> = (0..99).map(|i| if i % 3 == 2 { 28.0 } else { 1.0 }).collect();
        ahead.push(5000.0);
        let took = rounds(&ahead, 100)[0];
        assert!((took - 10.0).abs() < 0.3, "{took}");
    }
}

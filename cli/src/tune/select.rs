//! The choices for one collective: priced by the simulator, and measured where it cannot tell.

use graccl::tune::{self, Choice, Place, Predictor, Table};
use graccl::{Collective, Result};

use super::bench::{Bench, Effort};

/// Candidates that are measured for a size.
const MOST: usize = 16;
/// A choice this near to the best is kept from one size to the next: fewer rows, and no rows that only noise
/// made.
const SAME: f64 = 1.03;

/// From this size on, bytes, a choice that took so many times as long as the best for the size before has lost.
const LARGE: u64 = 4 << 20;
const LOST: f64 = 1.5;

/// Chooses for sizes up to `most`, in about as many seconds.
pub fn choose(
    bench: &mut Bench,
    predictor: &mut Predictor,
    collective: Collective,
    most: u64,
    uncertain: f64,
    seconds: f64,
) -> Result<Table> {
    let mut table = Table::default();
    let Some(place) = Place::of(collective, &bench.layout) else { return Ok(table) };
    if bench.job.size < 2 {
        return Ok(table);
    }
    let mut sizes = Vec::new();
    let mut bytes = 4u64;
    while bytes <= most {
        let exact = bench.what(collective, bytes as usize).1;
        if sizes.last() != Some(&exact) {
            sizes.push(exact);
        }
        bytes *= 4;
    }
    let end = bench.left()? - seconds;
    let mut chosen: Vec<(u64, Choice)> = Vec::new();
    let mut lost = Vec::new();
    for &bytes in &sizes {
        let left = bench.left()? - end;
        if left < 0.0 && !chosen.is_empty() {
            bench.say(format_args!("# no time for {} of {bytes} bytes and more", collective.name()));
            break;
        }
        let last = chosen.last().map(|c| c.1);
        let mut candidates = candidates(bench, predictor, collective, bytes, last, uncertain)?;
        if bytes > LARGE {
            candidates.retain(|c| !lost.contains(c));
        }
        let times = race(bench, collective, bytes, &candidates, left)?;
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        lost.extend(candidates.iter().zip(&times).filter(|(_, t)| **t > LOST * least).map(|(c, _)| *c));
        chosen.push((bytes, best(&candidates, &times, last)));
    }
    // Between two sizes with different choices there may be room for a better border.
    let mut rows: Vec<(u64, Choice)> = Vec::new();
    for (i, &(bytes, choice)) in chosen.iter().enumerate() {
        if let Some(&(before, earlier)) = i.checked_sub(1).and_then(|i| chosen.get(i))
            && earlier != choice
        {
            let (_, between) = bench.what(collective, (before * 2) as usize);
            let left = bench.left()? - end;
            if between > before && between < bytes && left > 0.0 {
                let both = [earlier, choice];
                let better = best(&both, &race(bench, collective, between, &both, left)?, None);
                if better == earlier {
                    rows.push((between, earlier));
                }
            }
        }
        rows.push((bytes, choice));
    }
    let last = rows.len() - 1;
    for (i, &(bytes, choice)) in rows.iter().enumerate() {
        let ends = i == last || rows[i + 1].1 != choice;
        // Sizes between the measured ones go with the larger: the border is half way to the next.
        let up_to = if i == last { u64::MAX } else { (bytes + bytes / 2).min(rows[i + 1].0 - 1).max(bytes) };
        if ends && table.push(place, up_to, choice) {
            let size = if up_to == u64::MAX { "more".to_string() } else { up_to.to_string() };
            let Choice { algorithm, ways, message } = choice;
            bench.say(format_args!(
                "   {:<14} {size:>10}  {:<22} {ways:>4} {message:>9}",
                collective.name(),
                algorithm.name
            ));
        }
    }
    Ok(table)
}

/// What may be the best for a size: what the simulator prices near the cheapest, the best form of every algorithm
/// that is not far off, what is built in, and what was chosen for the size before. The same on all ranks.
fn candidates(
    bench: &mut Bench,
    predictor: &mut Predictor,
    collective: Collective,
    bytes: u64,
    last: Option<Choice>,
    uncertain: f64,
) -> Result<Vec<Choice>> {
    let mut list: Vec<Choice> = vec![tune::choose(collective, &bench.layout, Some(bytes as usize))];
    list.extend(last);
    if bench.rank() == 0 {
        let priced = predictor.candidates(collective, bytes)?;
        let cheapest = priced.first().map_or(0.0, |c| c.ns);
        let mut algorithms = Vec::new();
        let (mut first, mut more) = (Vec::new(), Vec::new());
        for c in priced {
            let new = !algorithms.contains(&c.choice.algorithm.name);
            algorithms.push(c.choice.algorithm.name);
            // Either may be off, in either direction.
            if c.ns <= cheapest * uncertain * uncertain {
                if new { &mut first } else { &mut more }.push(c.choice);
            }
        }
        list.extend(first);
        list.extend(more);
    }
    let mut unlike: Vec<Choice> = Vec::new();
    for c in list {
        if !unlike.contains(&c) && unlike.len() < MOST {
            unlike.push(c);
        }
    }
    share(bench, collective, unlike)
}

/// Rank 0's list on all ranks.
fn share(bench: &Bench, collective: Collective, list: Vec<Choice>) -> Result<Vec<Choice>> {
    let all: Vec<_> = graccl::schedule::algorithms_of(collective).collect();
    let mut numbers = [0i64; 3 * MOST + 1];
    if bench.rank() == 0 {
        numbers[0] = list.len() as i64;
        for (slot, c) in numbers[1..].chunks_mut(3).zip(&list) {
            let index = all.iter().position(|a| std::ptr::eq(*a, c.algorithm)).unwrap_or(0);
            slot.copy_from_slice(&[index as i64, i64::from(c.ways), c.message as i64]);
        }
    }
    bench.job.comm.broadcast(&mut numbers, 0)?;
    let choices = numbers[1..].chunks(3).take(numbers[0] as usize);
    Ok(choices
        .map(|c| Choice { algorithm: all[c[0] as usize], ways: c[1] as u32, message: c[2] as usize })
        .collect())
}

/// What they take, ns. A third of the seconds that are `left` is for the rounds.
fn race(
    bench: &mut Bench,
    collective: Collective,
    bytes: u64,
    choices: &[Choice],
    left: f64,
) -> Result<Vec<f64>> {
    bench.compare(collective, bytes as usize, choices, Effort { seconds: left.max(0.0) / 3.0, race: true })
}

/// The fastest of them; `last` if that is as good.
fn best(candidates: &[Choice], times: &[f64], last: Option<Choice>) -> Choice {
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let near = |c: &Choice| {
        let at = candidates.iter().position(|x| x == c)?;
        (times[at] <= least * SAME).then_some(*c)
    };
    let fastest = times.iter().position(|t| *t == least).unwrap_or(0);
    last.as_ref().and_then(near).unwrap_or(candidates[fastest])
}

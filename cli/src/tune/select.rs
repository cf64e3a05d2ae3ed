//! The choices for one collective: priced by the simulator, and measured where it cannot tell.

use graccl::tune::{self, Candidate, Choice, Place, Predictor, Table};
use graccl::{Collective, Result};

use super::bench::{Bench, Effort};

/// What is priced within so many times of the cheapest is measured, however good predictions seem to be.
const FAR: f64 = 3.0;
/// Candidates in a race.
const MOST: usize = 20;
/// A choice this near to the best is kept from one size to the next: fewer rows, and no rows that only noise
/// made.
const SAME: f64 = 1.03;

/// From this size on, bytes, a choice that took so many times as long as the best is not tried for larger ones.
const LARGE: u64 = 4 << 20;
const LOST: f64 = 1.5;

/// Of a first race the best algorithms, so many and so near to the best, race again in all their forms.
const BEST: usize = 3;
const NEAR: f64 = 1.2;
/// Of the time that is left for a collective, a race's rounds have so much.
const SHARE: f64 = 0.2;

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
        let priced = match bench.rank() {
            0 => predictor.candidates(collective, bytes)?,
            _ => Vec::new(),
        };
        let mut first = candidates(bench, &priced, collective, bytes, last, uncertain)?;
        first.retain(|c| !lost.contains(c));
        let times = race(bench, collective, bytes, &first, left)?;
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        if bytes >= LARGE {
            lost.extend(first.iter().zip(&times).filter(|(_, t)| **t > LOST * least).map(|(c, _)| *c));
        }
        let second = forms(bench, &priced, collective, &first, &times)?;
        let left = bench.left()? - end;
        chosen.push((
            bytes,
            match second.len() > 1 && left > 0.0 {
                true => best(&second, &race(bench, collective, bytes, &second, left)?, last),
                false => best(&first, &times, last),
            },
        ));
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
    // Fewer bytes than one element has: there is nothing to choose.
    let Some(last) = rows.len().checked_sub(1) else { return Ok(table) };
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

/// What may be the best for a size: what is built in, what was chosen for the size before, the best form of every
/// algorithm that the simulator does not price far off, and the form that an algorithm has where it is named. The
/// same on all ranks.
fn candidates(
    bench: &Bench,
    priced: &[Candidate],
    collective: Collective,
    bytes: u64,
    last: Option<Choice>,
    uncertain: f64,
) -> Result<Vec<Choice>> {
    let mut list: Vec<Choice> = vec![tune::choose(collective, &bench.layout, Some(bytes as usize))];
    list.extend(last);
    let cheapest = priced.first().map_or(0.0, |c| c.ns);
    // Either may be off, in either direction.
    let far = (uncertain * uncertain).max(FAR) * cheapest;
    let near = || priced.iter().filter(|c| c.ns <= far);
    let mut algorithms = Vec::new();
    for c in near() {
        if !algorithms.contains(&c.choice.algorithm.name) {
            algorithms.push(c.choice.algorithm.name);
            list.push(c.choice);
        }
    }
    for c in near() {
        let named = tune::forced(&bench.layout, c.choice.algorithm);
        // Where there are few tiles, it is one of the others.
        list.extend((c.choice == named).then_some(named));
    }
    share(bench, collective, list)
}

/// The best of a race, in all the forms that are priced for them. The same on all ranks.
fn forms(
    bench: &Bench,
    priced: &[Candidate],
    collective: Collective,
    raced: &[Choice],
    times: &[f64],
) -> Result<Vec<Choice>> {
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let mut order: Vec<(Choice, f64)> = raced.iter().copied().zip(times.iter().copied()).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    order.retain(|o| o.1 <= NEAR * least);
    let mut algorithms: Vec<&str> = Vec::new();
    for (c, _) in &order {
        if algorithms.len() < BEST && !algorithms.contains(&c.algorithm.name) {
            algorithms.push(c.algorithm.name);
        }
    }
    order.retain(|o| algorithms.contains(&o.0.algorithm.name));
    let others = priced.iter().map(|c| c.choice).filter(|c| algorithms.contains(&c.algorithm.name));
    share(bench, collective, order.iter().map(|o| o.0).chain(others).collect())
}

/// Rank 0's list on all ranks: what differs, and not more than [`MOST`].
fn share(bench: &Bench, collective: Collective, list: Vec<Choice>) -> Result<Vec<Choice>> {
    let mut unlike: Vec<Choice> = Vec::new();
    for c in list {
        if !unlike.contains(&c) && unlike.len() < MOST {
            unlike.push(c);
        }
    }
    let list = unlike;
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

/// What they take, ns.
fn race(
    bench: &mut Bench,
    collective: Collective,
    bytes: u64,
    choices: &[Choice],
    left: f64,
) -> Result<Vec<f64>> {
    bench.compare(collective, bytes as usize, choices, Effort { seconds: left.max(0.0) * SHARE, race: true })
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

//! `graccl verify` and `graccl show`.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use clap::Args;
use graccl::schedule::{Algorithm, Groups, algorithms, cases, goal, picture, prove};
use graccl::{Error, Result};
use indicatif::ProgressBar;

use crate::perf::parse_size;
use crate::schedules;

#[derive(Args)]
#[command(after_help = "\
For every number of ranks (and, for hierarchies, every way of grouping them into hosts: equal groups
of every size that divides, several unequal ones, and interleaved ones; where there is a root, with
the first, the middle and the last rank as root) the schedule is played, not timed, and refused unless:
  every rank gets what the collective says, with every contribution exactly once; ranks that get the
  same fold in the same order and so get the same bits; sends match receives; nothing deadlocks when
  channels hold `depth` messages; no two accesses to the same memory are unordered, in place and out of
  place; all this also when blocks are left out; and what the algorithm declares besides holds: `ref`
  messages may be read in the sender's memory, `reply` answers may be written into it.
Where depth is more than 1, one less must be seen to deadlock.

Exit status: 0 if all is proved, 1 at the first refusal.")]
pub struct VerifyArgs {
    /// Prove for 1 to N ranks
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    ranks: u32,
    /// Prove only this collective's algorithms
    #[arg(long, value_name = "NAME")]
    collective: Option<String>,
    /// Prove only algorithms of this name
    #[arg(long, value_name = "NAME")]
    algo: Option<String>,
}

#[derive(Args)]
pub struct ShowArgs {
    /// Collective
    #[arg(long, value_name = "NAME", default_value = "all_reduce")]
    collective: String,
    /// Algorithm
    #[arg(long, value_name = "NAME")]
    algo: String,
    /// Number of ranks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    np: u32,
    /// Split the ranks over H hosts, in blocks
    #[arg(long, value_name = "H", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    hosts: u32,
    /// Root, for collectives that have one
    #[arg(long, value_name = "R", default_value_t = 0)]
    root: u32,
    /// Only this rank
    #[arg(long, value_name = "R", conflicts_with = "goal")]
    rank: Option<u32>,
    /// Print GOAL, which LogGOPSim reads, for blocks of this many bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    goal: Option<usize>,
}

/// What was proved of one algorithm.
#[derive(Default)]
struct Tally {
    schedules: usize,
    /// Most schedules for one number of ranks: groupings times roots.
    cases: usize,
    ops: usize,
    messages: usize,
    /// Schedules seen to deadlock at one less than the declared depth.
    refused: usize,
}

/// Proves one algorithm for 1..=`ranks` ranks; the first refusal is the error.
fn prove_all(a: &'static Algorithm, ranks: usize, bar: &ProgressBar) -> Result<Tally> {
    let mut t = Tally::default();
    for n in 1..=ranks {
        bar.set_message(format!("{a:?} on {n} ranks"));
        let all = cases(a, n);
        t.cases = t.cases.max(all.len());
        for (groups, root) in all {
            let (proof, refused) = prove(a, &groups, root)?;
            t.schedules += 1;
            t.ops += proof.ops;
            t.messages += proof.messages;
            t.refused += usize::from(refused);
            bar.tick();
        }
    }
    // Small jobs may do with less; some must not, or the declaration is wrong.
    if a.min_depth > 1 && t.refused == 0 && ranks > 2 {
        return Err(Error::internal(format!("{a:?} declares depth {}, but less is enough", a.min_depth)));
    }
    Ok(t)
}

/// The algorithms that the flags name; at least one.
fn choose(collective: Option<&str>, algo: Option<&str>) -> Result<Vec<&'static Algorithm>> {
    let collective = collective.map(schedules::collective).transpose()?;
    if let (Some(c), Some(name)) = (collective, algo) {
        return Ok(vec![schedules::find(c, name)?]);
    }
    let named = |a: &&Algorithm| {
        collective.is_none_or(|c| a.collective == c) && algo.is_none_or(|name| a.name == name)
    };
    let chosen: Vec<&'static Algorithm> = algorithms().iter().filter(named).collect();
    match algo {
        Some(name) if chosen.is_empty() => {
            let mut names: Vec<&str> = algorithms().iter().map(|a| a.name).collect();
            names.sort_unstable();
            names.dedup();
            Err(Error::argument(format!("unknown algorithm `{name}`"))
                .hint(format!("use one of: {}", names.join(", "))))
        }
        _ => Ok(chosen),
    }
}

/// `graccl verify`.
pub fn verify(args: VerifyArgs) -> Result<u8> {
    let ranks = args.ranks as usize;
    let chosen = choose(args.collective.as_deref(), args.algo.as_deref())?;
    let watched = std::io::stderr().is_terminal();
    let bar = if watched { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let print = |text: String| bar.suspend(|| say(&text));
    print(format!(
        "# schedules for 1 to {ranks} ranks\n# {:<14} {:<21} {:>5} {:>9} {:>9} {:>9} {:>5} {:>7}  {:<9} {:>6}\n",
        "collective",
        "algorithm",
        "cases",
        "schedules",
        "ops",
        "messages",
        "depth",
        "refused",
        "declared",
        "time s"
    ))?;
    let (mut schedules, mut ops, start) = (0, 0, Instant::now());
    for a in chosen {
        let began = Instant::now();
        let t = prove_all(a, ranks, &bar)?;
        schedules += t.schedules;
        ops += t.ops;
        let declared = match (a.ref_safe, a.reply_safe) {
            (true, true) => "ref reply",
            (true, false) => "ref",
            _ => "-",
        };
        let refused = if a.min_depth > 1 { t.refused.to_string() } else { "-".into() };
        print(format!(
            "  {:<14} {:<21} {:>5} {:>9} {:>9} {:>9} {:>5} {refused:>7}  {declared:<9} {:>6.2}\n",
            a.collective.name(),
            a.name,
            t.cases,
            t.schedules,
            t.ops,
            t.messages,
            a.min_depth,
            began.elapsed().as_secs_f64()
        ))?;
    }
    bar.finish_and_clear();
    say(&format!(
        "# Proved: {schedules} schedules, {ops} ops, in {:.2} s: exact, same bits on all ranks, no deadlock at\n\
         # depth, no race in place or out of place. refused: schedules that deadlock at depth - 1, as they must.\n",
        start.elapsed().as_secs_f64()
    ))?;
    Ok(0)
}

/// `graccl show`.
pub fn show(args: ShowArgs) -> Result<u8> {
    let a = schedules::find(schedules::collective(&args.collective)?, &args.algo)?;
    let (ranks, hosts, root) = (args.np as usize, args.hosts as usize, args.root as usize);
    if root >= ranks || root > 0 && !a.collective.rooted() {
        let (what, hint) = match a.collective.rooted() {
            true => (format!("there is no rank {root} of {ranks}"), format!("use --root 0 to {}", ranks - 1)),
            false => (format!("{} has no root", a.collective.name()), "leave --root out".into()),
        };
        return Err(Error::argument(what).hint(hint));
    }
    let groups = Groups::new(&crate::launch::hosts_of_ranks(ranks, hosts)?);
    if let Some(bytes) = args.goal {
        say(&goal(&a.programs(&groups, root), bytes as u64, 1))?;
        return Ok(0);
    }
    let shown = match args.rank {
        Some(r) if r as usize >= ranks => {
            return Err(Error::argument(format!("there is no rank {r} of {ranks}"))
                .hint(format!("use --rank 0 to {}", ranks - 1)));
        }
        Some(r) => r as usize..r as usize + 1,
        None => 0..ranks,
    };
    say(&format!("# {a:?}: {}\n", a.about))?;
    for rank in shown {
        say(&picture(&a.program(rank, &groups, root), rank))?;
    }
    Ok(0)
}

/// Writes to stdout. Whoever closes it early has seen enough: that ends the program quietly.
pub fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|e| Error::io("cannot write to standard output", &e)),
    }
}

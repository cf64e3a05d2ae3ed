//! `graccl verify` and `graccl show`.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use clap::Args;
use graccl::schedule::{Algorithm, Groups, algorithms, goal, groupings, live_at, picture, verify as prove};
use graccl::{Error, Result};
use indicatif::ProgressBar;

use crate::perf::parse_size;
use crate::schedules;

#[derive(Args)]
#[command(after_help = "\
For every number of ranks (and, for hierarchies, every way of grouping them into hosts: equal groups
of every size that divides, several unequal ones, and interleaved ones) the schedule is played, not
timed, and refused unless:
  every contribution reaches every rank exactly once; all ranks fold in the same order and so get
  the same bits; sends match receives; nothing deadlocks when channels hold `depth` messages; no two
  accesses to the same memory are unordered, in place and out of place; and what the algorithm
  declares besides holds: `ref` messages may be read in the sender's memory, `reply` answers may be
  written into it.
Where depth is more than 1, one less must be seen to deadlock.

Exit status: 0 if all is proved, 1 at the first refusal.")]
pub struct VerifyArgs {
    /// Prove for 1 to N ranks
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    ranks: u32,
    /// Prove only this algorithm
    #[arg(long, value_name = "NAME")]
    algo: Option<String>,
}

#[derive(Args)]
pub struct ShowArgs {
    /// Algorithm
    #[arg(long, value_name = "NAME")]
    algo: String,
    /// Number of ranks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    np: u32,
    /// Split the ranks over H hosts, in blocks
    #[arg(long, value_name = "H", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    hosts: u32,
    /// Only this rank
    #[arg(long, value_name = "R", conflicts_with = "goal")]
    rank: Option<u32>,
    /// Print GOAL, which LogGOPSim reads, for a buffer of this many bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    goal: Option<usize>,
}

/// What was proved of one algorithm.
#[derive(Default)]
struct Tally {
    schedules: usize,
    groupings: usize,
    ops: usize,
    messages: usize,
    /// Schedules seen to deadlock at one less than the declared depth.
    refused: usize,
}

/// Proves one algorithm for 1..=`ranks` ranks; the first refusal is the error.
fn prove_all(a: &'static Algorithm, ranks: usize, bar: &ProgressBar) -> Result<Tally> {
    let mut t = Tally::default();
    for n in 1..=ranks {
        bar.set_message(format!("{} on {n} ranks", a.name));
        let all = if a.hierarchical { groupings(n) } else { vec![Groups::flat(n)] };
        t.groupings = t.groupings.max(all.len());
        for groups in all {
            let proof = prove(a, &groups, 0).map_err(|fault| {
                Error::internal(format!("refused: {fault}")).who(format!(
                    "{} on {n} ranks, host of each: {:?}",
                    a.name,
                    groups.numbers()
                ))
            })?;
            t.schedules += 1;
            t.ops += proof.ops;
            t.messages += proof.messages;
            if a.min_depth > 1 && live_at(&a.programs(&groups, 0), a.min_depth - 1).is_err() {
                t.refused += 1;
            }
            bar.tick();
        }
    }
    // Small jobs may do with less; some must not, or the declaration is wrong.
    if a.min_depth > 1 && t.refused == 0 && ranks > 2 {
        return Err(Error::internal(format!(
            "{} declares depth {}, but less is enough",
            a.name, a.min_depth
        )));
    }
    Ok(t)
}

/// `graccl verify`.
pub fn verify(args: VerifyArgs) -> Result<u8> {
    let ranks = args.ranks as usize;
    let chosen: Vec<&'static Algorithm> = match &args.algo {
        Some(name) => vec![schedules::by_name(name)?],
        None => algorithms().iter().collect(),
    };
    let watched = std::io::stderr().is_terminal();
    let bar = if watched { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let print = |text: String| bar.suspend(|| say(&text));
    print(format!(
        "# allreduce schedules for 1 to {ranks} ranks\n# {:<18} {:>9} {:>9} {:>9} {:>9} {:>5} {:>7}  {:<9} {:>6}\n",
        "algorithm", "groupings", "schedules", "ops", "messages", "depth", "refused", "declared", "time s"
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
            "  {:<18} {:>9} {:>9} {:>9} {:>9} {:>5} {refused:>7}  {declared:<9} {:>6.2}\n",
            a.name,
            t.groupings,
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
    let a = schedules::by_name(&args.algo)?;
    let (ranks, hosts) = (args.np as usize, args.hosts as usize);
    let groups = Groups::new(&crate::launch::hosts_of_ranks(ranks, hosts)?);
    if let Some(bytes) = args.goal {
        say(&goal(&a.programs(&groups, 0), bytes as u64, 1))?;
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
    say(&format!("# {}: {}\n", a.name, a.about))?;
    for rank in shown {
        say(&picture(&a.program(rank, &groups, 0), rank))?;
    }
    Ok(0)
}

/// Writes to stdout. Whoever closes it early has seen enough: that ends the program quietly.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|e| Error::io("cannot write to standard output", &e)),
    }
}

//! `graccl tune`: measures the machine for the job's own ranks, chooses algorithms for it, and writes both into
//! a profile.

mod bench;
mod probe;
mod select;
mod show;

use std::path::PathBuf;

use clap::Args;
use graccl::bootstrap::launched;
use graccl::tune::{Predictor, Profile, Table};
use graccl::{Collective, Communicator, Config, Error, Result, TransportChoice};

use crate::launch;
use crate::perf::{self, args::Transport, parse_size};
use crate::schedules;
use bench::Bench;

/// The runs that the model is fitted to have so much of the time that is left, unless nothing comes after them.
const FITTING: f64 = 0.3;

#[derive(Args)]
#[command(after_help = "\
First what the parts of the machine cost: kernels, messages inside a host and across hosts. Then some calls, to
which the machine's numbers are fitted, and others, to see how good they predict: the first table. Then, for every
collective and size, the simulator prices all algorithms with tiles and ways, and those that it cannot tell apart
race in turns: the second table. The result is a profile; GRACCL_PROFILE=FILE makes jobs use it.
docs/cost-model.md explains it. All this takes at most about 30 seconds for each rank: 60 with two. Where it would
take longer, the largest sizes have the choices of smaller ones.

A profile may serve several jobs: what FILE has for other numbers of ranks and hosts stays in it.
Under a launcher (graccl run, mpirun, srun, torchrun) it joins that job; else it starts --np ranks.

Exit status: 0 if the profile was written, 1 if not, 2 for wrong flags.")]
pub struct TuneArgs {
    /// Ranks to start here [default: number of cores, at least 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    np: Option<u32>,
    /// Split the ranks over H emulated hosts, in blocks
    #[arg(long, value_name = "H", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    hosts: u32,
    /// Profile to write
    #[arg(short = 'o', long = "output", value_name = "FILE", default_value = "graccl.toml")]
    output: PathBuf,
    /// Collectives to choose for; all, or none to measure the machine only
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "all")]
    collective: Vec<String>,
    /// Largest size to choose for, bytes; K, M and G mean 2^10, 2^20 and 2^30
    #[arg(short = 'e', long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    maxbytes: usize,
    /// How ranks reach each other [default: GRACCL_TRANSPORT, or auto]
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Bind rank r to core r mod cores
    #[arg(long)]
    pin: bool,
}

impl TuneArgs {
    fn collectives(&self) -> Result<Vec<Collective>> {
        match &self.collective[..] {
            [one] if one == "all" => Ok(Collective::ALL.to_vec()),
            [one] if one == "none" => Ok(Vec::new()),
            names => names.iter().map(|n| schedules::collective(n)).collect(),
        }
    }
}

/// `graccl tune`.
pub fn main(a: &TuneArgs) -> Result<u8> {
    a.collectives()?;
    let Some((rank, size)) = launched()? else { return start(a) };
    if let Some(np) = a.np.filter(|&np| np as usize != size) {
        return Err(Error::argument(format!("--np {np}, but the launcher started {size} ranks"))
            .hint("leave --np out under a launcher"));
    }
    run(a, rank).map_err(|e| if size > 1 { perf::prefix(e, rank) } else { e })
}

/// Starts the ranks: this program again, with the same arguments.
fn start(a: &TuneArgs) -> Result<u8> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let ranks = a.np.map_or(cores.max(2).max(a.hosts as usize), |n| n as usize);
    perf::check_memory(ranks, a.maxbytes)?;
    launch::again("tune", ranks, a.hosts as usize)
}

fn run(a: &TuneArgs, rank: usize) -> Result<u8> {
    if a.pin {
        perf::run::pin(rank)?;
    }
    // What is in the file already is kept; a file that is none is not overwritten.
    let mut profile = match a.output.exists() && rank == 0 {
        true => Profile::load(&a.output)?,
        false => Profile::default(),
    };
    if rank == 0 {
        // What cannot be written should not be measured. A file that is there keeps what it says.
        profile.save(&a.output)?;
    }
    // Neither an old profile nor a fixed algorithm counts.
    let env = Config::from_vars(&|name| match name {
        "GRACCL_PROFILE" | "GRACCL_ALGO" => None,
        _ => std::env::var(name).ok(),
    })?;
    let config = Config {
        transport: match a.transport {
            None => env.transport,
            Some(Transport::Auto) => TransportChoice::Auto,
            Some(Transport::Shm) => TransportChoice::Shm,
            Some(Transport::Tcp) => TransportChoice::Tcp,
        },
        ..env
    };
    let mut bench = Bench::new(Communicator::init_env(&config)?, a.maxbytes)?;
    show::head(&bench);
    let machine = probe::machine(&mut bench)?;
    let mut predictor = Predictor::new(bench.layout.clone(), machine);
    let collectives = a.collectives()?;
    let share = if collectives.is_empty() { 1.0 } else { FITTING };
    let runs = probe::fit(&mut bench, &mut predictor, share)?;
    show::runs(&bench, &runs);
    let uncertain = probe::uncertainty(&runs);
    let mut table = Table::default();
    if !collectives.is_empty() {
        bench.say(format_args!("#\n#  collective   up to bytes  algorithm              ways   message"));
    }
    for (i, &collective) in collectives.iter().enumerate() {
        bench.progress(format_args!("choices for {}", collective.name()));
        let seconds = bench.left()?.max(0.0) / (collectives.len() - i) as f64;
        let most = a.maxbytes as u64;
        let chosen = select::choose(&mut bench, &mut predictor, collective, most, uncertain, seconds)?;
        table.merge(chosen);
    }
    if rank == 0 {
        let mut runs = [runs.fitted, runs.checks].concat();
        runs.sort_by_key(|r| (r.bytes, r.choice.algorithm.name));
        profile.about = show::about(&bench);
        profile.model = Some(predictor.model.clone());
        profile.runs.retain(|old| {
            runs.iter().all(|new| {
                (new.place.ranks, new.place.hosts, new.place.transport)
                    != (old.place.ranks, old.place.hosts, old.place.transport)
            })
        });
        profile.runs.extend(runs);
        profile.table.merge(table);
        profile.save(&a.output)?;
        let digest = profile.table.digest();
        bench.say(format_args!("# profile: {}, choices {digest:016x}", a.output.display()));
    }
    // Nobody leaves before rank 0 has written everything: a launcher ends the others of a failed job.
    bench.job.comm.barrier()?;
    Ok(0)
}

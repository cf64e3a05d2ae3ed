//! `graccl`: measures, launches, watches and proves collectives. A library only so that what it reads from files can be
//! fuzzed.

mod launch;
mod perf;
mod plan;
mod schedules;
mod sim;
mod status;
mod stress;
mod tune;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
#[doc(hidden)]
pub use sim::fuzz_cluster;

/// Measure, launch, watch and prove collectives.
#[derive(Parser)]
#[command(name = "graccl", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start N copies of a program on this machine as the ranks of one job.
    Run(launch::RunArgs),
    /// Time a collective and check its results (the flags and rows of nccl-tests).
    Perf(Box<perf::PerfArgs>),
    /// Measure the machine and choose algorithms for it: a profile.
    Tune(tune::TuneArgs),
    /// Plan which gradients to send together, and compare with what others do.
    Plan(Box<plan::PlanArgs>),
    /// Show what the processes on this host do, and whom they wait for.
    Status(status::StatusArgs),
    /// Run random calls under injected faults, and check every result.
    Stress(stress::StressArgs),
    /// Prove that the schedules of all algorithms are right, and say what was proved.
    Verify(verify::VerifyArgs),
    /// Simulate collectives on a described cluster, up to 100 000 ranks.
    Sim(sim::SimArgs),
    /// Print one schedule.
    Show(verify::ShowArgs),
}

/// The program.
pub fn main() -> ExitCode {
    let (name, result) = match Cli::parse().command {
        Command::Run(a) => ("run", launch::main(a)),
        Command::Perf(a) => ("perf", perf::main(&a)),
        Command::Tune(a) => ("tune", tune::main(&a)),
        Command::Plan(a) => ("plan", plan::main(*a)),
        Command::Status(a) => ("status", status::main(&a)),
        Command::Stress(a) => ("stress", stress::main(&a)),
        Command::Verify(a) => ("verify", verify::verify(a)),
        Command::Sim(a) => ("sim", sim::main(a)),
        Command::Show(a) => ("show", verify::show(a)),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            eprintln!("graccl {name}: {e}");
            ExitCode::from(if e.code == graccl::Code::InvalidArgument { 2 } else { 1 })
        }
    }
}

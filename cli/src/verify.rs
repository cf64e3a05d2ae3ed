//! `graccl verify` and `graccl show`.

use clap::Args;
use graccl::{Error, Result};

use crate::schedules;

#[derive(Args)]
pub struct VerifyArgs {
    /// Prove for 1..=N ranks
    #[arg(long, value_name = "N", default_value_t = 64)]
    ranks: usize,
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
    #[arg(long, value_name = "N")]
    np: usize,
}

pub fn verify(a: VerifyArgs) -> Result<u8> {
    let _ = a.ranks;
    if let Some(name) = &a.algo {
        schedules::check_name(name)?;
    }
    Err(Error::internal("not built yet"))
}

pub fn show(a: ShowArgs) -> Result<u8> {
    schedules::check_name(&a.algo)?;
    let _ = a.np;
    Err(Error::internal("not built yet"))
}

use super::{args::PerfArgs, job::Job, report::Report};
use graccl::{DataType, Result};
pub fn load(_: &str, _: DataType) -> Result<()> {
    Ok(())
}
pub fn run(_: &PerfArgs, _: &mut Job, _: &mut Report, _: &()) -> Result<()> {
    Ok(())
}

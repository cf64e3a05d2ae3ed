//! What the command line asks of the library's schedules. All of it goes through here.

use graccl::{Error, Result};

/// Names of the algorithms for allreduce.
pub fn names() -> Vec<&'static str> {
    vec![
        "ring",
        "one_shot",
        "direct",
        "recursive_doubling",
        "halving_doubling",
        "double_tree",
        "hier_2d",
        "hier_leader",
    ]
}

/// An error that lists the names, unless `name` is one of them.
pub fn check_name(name: &str) -> Result<()> {
    if names().contains(&name) {
        return Ok(());
    }
    Err(Error::argument(format!("unknown algorithm `{name}`"))
        .hint(format!("use one of: {}", names().join(", "))))
}

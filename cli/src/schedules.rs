//! The algorithms' names, as the flags need them.

use graccl::schedule::{Algorithm, Collective, algorithms_of};
use graccl::{Error, Result};

/// Names of the algorithms for allreduce.
pub fn names() -> Vec<&'static str> {
    algorithms_of(Collective::AllReduce).map(|a| a.name).collect()
}

/// The algorithm of this name, or an error that lists the names.
pub fn by_name(name: &str) -> Result<&'static Algorithm> {
    Algorithm::by_name(Collective::AllReduce, name).ok_or_else(|| {
        Error::argument(format!("unknown algorithm `{name}`"))
            .hint(format!("use one of: {}", names().join(", ")))
    })
}

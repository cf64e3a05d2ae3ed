//! The algorithms' names, as the flags need them.

use graccl::schedule::{Algorithm, algorithms_of};
use graccl::{Collective, Error, Result};

/// Names of a collective's algorithms.
pub fn names_of(collective: Collective) -> Vec<&'static str> {
    algorithms_of(collective).map(|a| a.name).collect()
}

/// The algorithm of this name for a collective, or an error that lists the names.
pub fn find(collective: Collective, name: &str) -> Result<&'static Algorithm> {
    Algorithm::by_name(collective, name).ok_or_else(|| {
        Error::argument(format!("unknown algorithm `{name}`")).hint(format!(
            "use one of: {} (for {})",
            names_of(collective).join(", "),
            collective.name()
        ))
    })
}

/// The collective of this name, or an error that lists the names.
pub fn collective(name: &str) -> Result<Collective> {
    Collective::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = Collective::ALL.iter().map(|c| c.name()).collect();
        Error::argument(format!("unknown collective `{name}`"))
            .hint(format!("use one of: {}", names.join(", ")))
    })
}

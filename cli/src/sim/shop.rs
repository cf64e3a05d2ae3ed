//! Prices of collectives on a cluster, by simulation, for planners.

use std::collections::HashMap;

use graccl::cost::{Cheapest, PriceList};
use graccl::reduce::Wire;
use graccl::schedule::Groups;
use graccl::sim::{Noise, Pricer};
use graccl::{Collective, Error, Result};

use super::Cluster;

/// What costs too much to simulate on thousands of ranks, and is nowhere much better than the others.
const UNTRIED: [&str; 1] = ["double_tree"];

/// Prices that were asked for are kept.
pub(crate) struct Shop<'a> {
    cluster: &'a Cluster,
    /// Sizes at which collectives are priced: doublings, from 256 bytes to all gradients.
    sizes: Vec<u64>,
    lists: HashMap<Key, PriceList>,
}

/// Collective, ranks, hosts, names of algorithms, form.
type Key = (Collective, usize, usize, Vec<String>, Option<Wire>);

impl<'a> Shop<'a> {
    /// For calls of up to `bytes`. `InvalidArgument` for a cluster with noise.
    pub fn new(cluster: &'a Cluster, bytes: u64) -> Result<Shop<'a>> {
        if cluster.noise != Noise::default() {
            return Err(Error::argument("a price is one number, and this cluster has [noise]")
                .who(&cluster.name)
                .hint("take [noise] out of its file: training and plans are simulated without"));
        }
        let mut sizes: Vec<u64> = (8..).map(|i| 1u64 << i).take_while(|&b| b < bytes).collect();
        sizes.push(bytes);
        Ok(Shop { cluster, sizes, lists: HashMap::new() })
    }

    /// Of the cheapest of `algorithms` (empty: all), as they are, and with messages between hosts in the form `wire`.
    pub fn prices(
        &mut self,
        collective: Collective,
        groups: &Groups,
        algorithms: &[&str],
        wire: Option<Wire>,
    ) -> Result<Cheapest<PriceList>> {
        let mut lists = Vec::new();
        // Nothing is packed inside a host.
        let wire = wire.filter(|_| collective == Collective::AllReduce && groups.len() > 1);
        for wire in std::iter::once(None).chain(wire.map(Some)) {
            match self.list(collective, groups, algorithms, wire)? {
                Some(list) => lists.push(list),
                None if wire.is_none() => {
                    return Err(Error::argument(format!("no such algorithm: {}", algorithms.join(", ")))
                        .who(collective.name())
                        .hint("graccl verify lists them"));
                }
                None => {}
            }
        }
        Ok(Cheapest(lists))
    }

    fn list(
        &mut self,
        collective: Collective,
        groups: &Groups,
        names: &[&str],
        wire: Option<Wire>,
    ) -> Result<Option<PriceList>> {
        let algorithms = names.iter().map(|n| n.to_string()).collect();
        let key = (collective, groups.n(), groups.len(), algorithms, wire);
        if let Some(list) = self.lists.get(&key) {
            return Ok(Some(list.clone()));
        }
        let mut candidates = self.cluster.candidates(collective, groups);
        candidates.algorithms.retain(|a| match names {
            [] => !UNTRIED.contains(&a.name),
            names => names.contains(&a.name),
        });
        if let Some(wire) = wire {
            candidates = candidates.packed(wire);
        }
        if candidates.algorithms.is_empty() {
            return Ok(None);
        }
        let list = Pricer::new(collective, groups, &self.cluster.model, candidates)?.list(&self.sizes)?;
        self.lists.insert(key, list.clone());
        Ok(Some(list))
    }
}

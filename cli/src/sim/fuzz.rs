//! Entry for fuzzing: cluster files may hold any numbers.

use graccl::Collective;
use graccl::reduce::Wire;
use graccl::sim::{Candidates, Pricer};

use super::Cluster;

/// What the parser takes can be played: each collective in finite time, on a few ranks. The length of the text says which
/// collective.
#[doc(hidden)]
pub fn fuzz_cluster(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let cluster = match Cluster::read("fuzz".into(), text) {
        Ok(cluster) => cluster,
        Err(e) => return assert!(!e.who.is_empty() && !e.hint.is_empty(), "{e}"),
    };
    let collective = Collective::ALL[data.len() % Collective::ALL.len()];
    let ranks = cluster.ranks_per_host.saturating_mul(cluster.hosts).min(8);
    let hosts = cluster.hosts.min(ranks).min(4);
    let groups = cluster.groups(Some(ranks as u32), Some(hosts as u32)).expect("few ranks");
    let all = Candidates::of(collective, &groups);
    let mut pricers = vec![
        Pricer::new(collective, &groups, &cluster.model, all.clone()),
        Pricer::in_full((collective, ranks - 1), &groups, &cluster.model, all.clone(), cluster.noise.clone()),
    ];
    if collective == Collective::AllReduce {
        pricers.push(Pricer::new(collective, &groups, &cluster.model, all.packed(Wire::Int8)));
    }
    let shallow = cluster.model.machine.inside.depth.min(cluster.model.machine.across.depth) < 4;
    for pricer in pricers {
        let pricer = pricer.expect("algorithms for few ranks");
        for bytes in [4, 1 << 20] {
            match pricer.cheapest(bytes) {
                Ok(choice) => assert!(choice.price.ns.is_finite(), "{} ns", choice.price.ns),
                Err(e) => assert!(e.who == "noise" || shallow && e.what.contains("deadlock"), "{e}"),
            }
        }
    }
}

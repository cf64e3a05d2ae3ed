//! Planning for 500 gradients: the search alone, without reading a model.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use graccl::DataType;
use graccl::plan::{Mode, Model, Network, Options, Tensor, plan};

/// Sizes as in a convolutional network: many small, few large; 1.2 GB in all.
fn model() -> Model {
    let tensors = (0..500u64).map(|i| Tensor {
        name: String::new(),
        elements: 1 << (i * 2654435761 % 22),
        dtype: DataType::F32,
        ready: i as f64 * 4e5,
        forward: 2e5,
    });
    Model::new(tensors.collect()).expect("a model")
}

fn plans(c: &mut Criterion) {
    let m = model();
    for mode in Mode::ALL {
        let mut g = c.benchmark_group(format!("plan {}", mode.name()));
        // Bound by the network, by neither, and by compute; closed forms, and a list of 20 prices.
        for (network, ranks) in [("1gbe", 64), ("10gbe", 64), ("ib56", 16), ("10gbe-osu", 8)] {
            let prices = Network::built_in(network).expect("a network").prices(ranks, ranks, None, &[], None);
            let prices = prices.expect("prices");
            let options = Options { modes: vec![mode], cut: 0 };
            g.sample_size(10);
            g.bench_function(BenchmarkId::new(network, ranks), |b| {
                b.iter(|| plan(&m, &prices.costs(), &options).expect("a plan"))
            });
        }
        g.finish();
    }
}

criterion_group!(benches, plans);
criterion_main!(benches);

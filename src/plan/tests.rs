//! The search against all partitions, and against everybody's rules on published traces and networks.

use super::*;
use crate::DataType;
use crate::cost::{Cheapest, Linear, Price, PriceList};

/// xorshift64*: numbers that are the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn model(r: &mut Random, n: usize) -> Model {
    let mut ready = 0.0;
    let types = if r.below(4) == 0 { [DataType::F32, DataType::F16] } else { [DataType::F32; 2] };
    let tensors = (0..n).map(|i| {
        ready += [0, r.below(50), r.below(300)][r.below(3) as usize] as f64;
        Tensor {
            name: i.to_string(),
            elements: 1 + r.below(40),
            dtype: types[r.below(2) as usize],
            ready,
            forward: [0, r.below(200)][r.below(2) as usize] as f64,
        }
    });
    Model::new(tensors.collect()).unwrap()
}

/// A line, the least of several lines, or steps and kinks, which may also fall.
fn prices(r: &mut Random) -> Box<dyn Prices> {
    match r.below(4) {
        0 => Box::new(Linear::new("line", r.below(60) as f64, r.below(8) as f64 / 4.0)),
        1 => {
            let line = |r: &mut Random| Linear::new("line", r.below(200) as f64, r.below(8) as f64 / 2.0);
            Box::new(Cheapest(vec![line(r), line(r), line(r)]))
        }
        kind => {
            let (mut bytes, mut ns) = (1 + r.below(20), r.below(40) as f64);
            let mut points = Vec::new();
            for _ in 0..6 {
                points.push((bytes, Price::new(ns, "list")));
                bytes += 1 + r.below(80);
                let more = [r.below(20), r.below(200)][r.below(2) as usize] as f64;
                ns = if kind == 2 { ns + more } else { more };
            }
            Box::new(PriceList::new(points).unwrap())
        }
    }
}

/// A bucket as the brute force sees it.
struct Part {
    bytes: u64,
    ready: f64,
    /// Forward time of the layers that wait for it first.
    forward: f64,
}

/// All partitions of the model, in pieces of at most `cut` bytes.
fn partitions(m: &Model, cut: u64) -> Vec<Vec<Part>> {
    // Pieces: elements, type, ready, forward.
    let mut pieces: Vec<(u64, DataType, f64, f64)> = Vec::new();
    for t in m.tensors() {
        let parts = if cut == 0 { 1 } else { t.bytes().div_ceil(cut) };
        for p in 0..parts {
            let elements = t.elements * (p + 1) / parts - t.elements * p / parts;
            pieces.push((elements, t.dtype, t.ready, if p == 0 { t.forward } else { 0.0 }));
        }
    }
    let n = pieces.len();
    (0..1u32 << (n - 1))
        .filter_map(|mask| {
            let mut parts: Vec<Part> = Vec::new();
            for (i, p) in pieces.iter().enumerate() {
                let bytes = p.0 * p.1.size() as u64;
                if i == 0 || mask >> (i - 1) & 1 == 1 {
                    parts.push(Part { bytes, ready: p.2, forward: p.3 });
                } else if pieces[i - 1].1 != p.1 {
                    return None;
                } else {
                    let last = parts.last_mut().unwrap();
                    (last.bytes, last.ready) = (last.bytes + bytes, p.2);
                    last.forward += p.3;
                }
            }
            Some(parts)
        })
        .collect()
}

/// When each bucket is there if the lane takes them in this order, each as soon as it is ready.
fn in_turn(parts: &[Part], order: &[usize], price: &dyn Prices) -> Vec<f64> {
    let mut lane: f64 = 0.0;
    let mut there = vec![0.0; parts.len()];
    for &k in order {
        lane = lane.max(parts[k].ready) + price.price(parts[k].bytes).ns;
        there[k] = lane;
    }
    there
}

/// End of the next forward pass, in which the last bucket's layers come first.
fn forward_ends(parts: &[Part], backward: f64, there: &[f64]) -> f64 {
    parts.iter().zip(there).rev().fold(backward, |t, (p, &at)| t.max(at) + p.forward)
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(n - 1);
    shorter
        .iter()
        .flat_map(|p| {
            (0..n).map(move |at| {
                let mut p = p.clone();
                p.insert(at, n - 1);
                p
            })
        })
        .collect()
}

fn least(times: impl Iterator<Item = f64>) -> f64 {
    times.fold(f64::INFINITY, f64::min)
}

fn same(x: f64, y: f64) -> bool {
    (x - y).abs() <= 2e-6 * x.abs().max(1.0)
}

/// What no plan may get wrong, whatever the search did.
fn consistent(p: &Plan, m: &Model) {
    assert_eq!(p.buckets.iter().map(|b| b.bytes).sum::<u64>(), m.bytes());
    let mut spans: Vec<Span> = p.buckets.iter().flat_map(|b| [Some(b.reduce), b.gather]).flatten().collect();
    spans.sort_by(|x, y| x.start.total_cmp(&y.start).then(x.end.total_cmp(&y.end)));
    assert!(spans.windows(2).all(|w| w[0].end <= w[1].start), "the lane does one thing at a time");
    for (b, &(start, end)) in p.buckets.iter().zip(&p.layers) {
        assert!(b.reduce.start >= b.ready && b.gather.is_none_or(|g| g.start >= b.reduce.end));
        assert!(start >= b.gather.unwrap_or(b.reduce).end && start >= p.backward && end <= p.ns);
        assert_eq!(b.ready, m.tensors()[b.last].ready);
    }
    assert!(p.bound.ns() <= p.ns * (1.0 + 1e-12), "{:?} {}", p.bound, p.ns);
}

#[test]
fn as_good_as_the_best_of_all_partitions() {
    let mut r = Random(7);
    for round in 0..1500 {
        let n = 1 + r.below(8) as usize;
        let m = model(&mut r, n);
        let (all, rs, ag) = (prices(&mut r), prices(&mut r), prices(&mut r));
        let cut = [0, 0, 60 + r.below(200)][r.below(3) as usize];
        let cases = partitions(&m, cut);
        if cases.iter().any(|c| c.len() > 11) {
            continue;
        }
        let costs = Costs { all_reduce: &*all, whole: None, halves: Some((&*rs, &*ag)) };
        let found = |mode| {
            let p = plan(&m, &costs, &Options { modes: vec![mode], cut }).unwrap();
            assert!(p.exact);
            consistent(&p, &m);
            p.ns
        };
        let (forward, backward) = (m.forward(), m.backward());
        let barrier = least(cases.iter().map(|c| {
            let order: Vec<usize> = (0..c.len()).collect();
            in_turn(c, &order, &*all).into_iter().fold(backward, f64::max) + forward
        }));
        assert!(same(found(Mode::AllReduce), barrier), "round {round}");
        let halves = least(cases.iter().map(|c| {
            let order: Vec<usize> = (0..c.len()).collect();
            let over = in_turn(c, &order, &*rs).into_iter().fold(backward, f64::max);
            let late: Vec<Part> = c.iter().map(|p| Part { ready: over, ..*p }).collect();
            let there = in_turn(&late, &order.into_iter().rev().collect::<Vec<_>>(), &*ag);
            forward_ends(c, backward, &there)
        }));
        assert!(same(found(Mode::ReduceScatterAllGather), halves), "round {round}");
    }
}

#[test]
fn priority_is_as_good_as_any_order_of_any_partition() {
    let mut r = Random(11);
    let orders: Vec<_> = (0..6).map(permutations).collect();
    let mut cut_short = 0;
    for round in 0..600 {
        let n = 1 + r.below(5) as usize;
        let m = model(&mut r, n);
        let all = prices(&mut r);
        let costs = Costs { all_reduce: &*all, whole: None, halves: None };
        let want = least(partitions(&m, 0).iter().flat_map(|c| {
            let all = &*all;
            let m = &m;
            orders[c.len()].iter().map(move |o| forward_ends(c, m.backward(), &in_turn(c, o, all)))
        }));
        let p = plan(&m, &costs, &Options { modes: vec![Mode::Priority], cut: 0 }).unwrap();
        consistent(&p, &m);
        if p.exact {
            assert!(same(p.ns, want), "round {round}: {} for {want}", p.ns);
        } else {
            cut_short += 1;
            assert!(p.ns > want * (1.0 - 1e-6) && p.ns < want * 1.05, "round {round}: {} for {want}", p.ns);
        }
    }
    assert!(cut_short < 30, "{cut_short}");
}

#[test]
fn cutting_pays_only_where_prices_rise_faster_than_sizes() {
    let tensor =
        |elements, ready| Tensor { name: String::new(), elements, dtype: DataType::F32, ready, forward: 0.0 };
    let m = Model::new(vec![tensor(10, 0.0), tensor(1000, 10.0), tensor(10, 20.0)]).unwrap();
    let time = |prices: &dyn Prices, cut| {
        let costs = Costs { all_reduce: prices, whole: None, halves: None };
        plan(&m, &costs, &Options { modes: vec![Mode::AllReduce], cut }).unwrap().ns
    };
    let line = Linear::new("line", 5.0, 1.0);
    assert_eq!(time(&line, 0), time(&line, 400));
    let at = |ns| Price::new(ns, "knee");
    let knee =
        PriceList::new(vec![(1, at(10.0)), (2048, at(1000.0)), (2049, at(4000.0)), (8192, at(9000.0))]);
    let knee = knee.unwrap();
    assert!(time(&knee, 2000) < 0.7 * time(&knee, 0));
}

#[test]
fn plans_that_cannot_be() {
    let m = Model::built_in("alexnet").unwrap();
    let line = Linear::new("line", 1e3, 1.0);
    let costs = Costs { all_reduce: &line, whole: None, halves: None };
    let e = plan(&m, &costs, &Options { modes: vec![Mode::AllReduce], cut: 1 }).unwrap_err().to_string();
    assert!(e.contains("more than 4096 gradients, or parts, to plan"), "{e}");
    let e = plan(&m, &costs, &Options { modes: vec![], cut: 0 }).unwrap_err().to_string();
    assert!(e.contains("no mode"), "{e}");
    let modes = vec![Mode::ReduceScatterAllGather];
    let e = plan(&m, &costs, &Options { modes, cut: 0 }).unwrap_err().to_string();
    assert!(e.contains("not known"), "{e}");
}

/// Layers: what becomes ready with a weight that is not a normalization's, biases and normalization before
/// it. The granularity of the published traces.
fn by_layer(m: &Model) -> Model {
    let mut layers = Vec::new();
    let (mut elements, mut forward) = (0, 0.0);
    for t in m.tensors() {
        elements += t.elements;
        forward += t.forward;
        let normalizes = ["bn", "downsample.1"].iter().any(|n| t.name.contains(n));
        if t.name.ends_with(".weight") && !normalizes {
            layers.push(Tensor { elements, forward, ..t.clone() });
            (elements, forward) = (0, 0.0);
        }
    }
    Model::new(layers).unwrap()
}

fn published(name: &str, ranks: u32) -> NetworkPrices {
    Network::built_in(name).unwrap().prices(ranks, ranks, None, &["ring"], None).unwrap()
}

/// Iterations in ms, simulated by others' code on the same traces: wfbp, one group, 25 MiB, 64 MiB, MG-WFBP,
/// best.
#[test]
fn published_traces_give_known_times() {
    let rows: [(&str, DataType, &str, u32, [f64; 6]); 7] = [
        ("resnet50", DataType::F32, "10gbe", 64, [661.6, 549.0, 467.2, 483.4, 450.5, 450.5]),
        ("resnet50", DataType::F32, "10gbe", 16, [444.4, 519.9, 457.2, 469.6, 444.4, 444.4]),
        ("alexnet", DataType::F32, "10gbe", 64, [337.3, 328.0, 303.5, 303.5, 305.5, 296.5]),
        ("alexnet", DataType::F16, "10gbe", 64, [219.5, 210.2, 185.7, 181.7, 187.7, 178.6]),
        ("alexnet", DataType::F32, "ib56", 16, [146.4, 184.8, 146.6, 146.6, 145.2, 145.2]),
        ("vgg16", DataType::F32, "10gbe", 64, [880.8, 1213.3, 804.1, 790.0, 787.6, 787.6]),
        ("googlenet", DataType::F32, "10gbe", 64, [604.2, 362.8, 333.9, 362.8, 311.3, 311.3]),
    ];
    for (name, dtype, network, ranks, want) in rows {
        let m = by_layer(&Model::built_in(name).unwrap().sent_as(dtype));
        let prices = published(network, ranks);
        let others = alternatives(&m, &prices.costs()).unwrap();
        let p = plan(&m, &prices.costs(), &Options { modes: vec![Mode::AllReduce], cut: 0 }).unwrap();
        let other = |n: &str| others.iter().find(|a| a.name == n).unwrap().plan.ns;
        let rules = ["wfbp", "one_bucket", "25MiB", "64MiB", "mg_wfbp"].map(other);
        let got: Vec<f64> = rules.into_iter().chain([p.ns]).map(|ns| ns / 1e6).collect();
        let close = got.iter().zip(want).all(|(g, w)| (g - w).abs() < 0.1);
        assert!(close, "{name} on {network} x {ranks}: {got:.1?} for {want:?}");
    }
}

/// Every model on every network and number of ranks: no rule is better than the plan.
#[test]
fn no_rule_is_better() {
    let mut cases = 0;
    for name in Model::names() {
        let tensors = Model::built_in(name).unwrap();
        let layers = by_layer(&tensors);
        let half = layers.clone().sent_as(DataType::F16);
        for network in Network::names() {
            let net = Network::built_in(network).unwrap();
            let mut ranks = net.measured();
            if network != "10gbe-osu" {
                ranks.extend([16, 64, 1024]);
            }
            // The least of all lines; and the ring alone, which most measurements are of.
            let known: &[&[&str]] = if network == "10gbe-osu" { &[&[]] } else { &[&[], &["ring"]] };
            for (n, algorithms) in ranks.iter().flat_map(|n| known.iter().map(|k| (*n, *k))) {
                let prices = net.prices(n, n, None, algorithms, None).unwrap();
                let case = format!("{name} on {network} x {n}, {algorithms:?}");
                for (m, cut) in [(&tensors, 0), (&layers, 0), (&layers, 16 << 20), (&half, 0)] {
                    let p = never_worse(m, &prices.costs(), cut, &case);
                    if cut == 0 && m.tensors().len() < 100 {
                        let options = Options { modes: vec![Mode::Priority], cut };
                        let priority = plan(m, &prices.costs(), &options).unwrap();
                        consistent(&priority, m);
                        assert!(priority.ns <= p.ns, "{case}");
                    }
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 2000, "{cases}");
}

/// Returns the plan with plain allreduces.
fn never_worse(m: &Model, costs: &Costs, cut: u64, case: &str) -> Plan {
    let one = |mode| plan(m, costs, &Options { modes: vec![mode], cut }).unwrap();
    let (barrier, halves) = (one(Mode::AllReduce), one(Mode::ReduceScatterAllGather));
    for p in [&barrier, &halves] {
        consistent(p, m);
        assert!(p.exact, "{case}");
    }
    for a in alternatives(m, costs).unwrap() {
        consistent(&a.plan, m);
        let best = if a.plan.mode == Mode::AllReduce { &barrier } else { &halves };
        assert!(best.ns <= a.plan.ns * (1.0 + 2e-6), "{case}: {} {} {}", a.name, a.plan.ns, best.ns);
    }
    barrier
}

/// 500 gradients of all sizes, ready at even distances.
fn many() -> Model {
    let mut r = Random(3);
    let tensors = (0..500).map(|i| Tensor {
        name: i.to_string(),
        elements: 1 << r.below(22),
        dtype: DataType::F32,
        ready: f64::from(i) * 4e5,
        forward: 2e5,
    });
    Model::new(tensors.collect()).unwrap()
}

/// Allreduces in order take less than 1 ms, optimized. `cargo bench --bench plan` has the times; the other bounds are far above them.
#[test]
fn plans_are_quick() {
    // Of this thread: others may run too.
    let busy = || {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a place for the result.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) }, 0);
        std::time::Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    };
    let m = many();
    for (network, ranks) in [("10gbe", 64), ("roce100", 1024), ("10gbe-osu", 8)] {
        let prices = Network::built_in(network).unwrap().prices(ranks, ranks, None, &[], None).unwrap();
        let in_order = if cfg!(debug_assertions) { 20 } else { 1 };
        for (mode, ms) in Mode::ALL.into_iter().zip([in_order, 2000, 200]) {
            let mut took = [(); 5].map(|()| {
                let start = busy();
                plan(&m, &prices.costs(), &Options { modes: vec![mode], cut: 0 }).unwrap();
                busy() - start
            });
            took.sort_unstable();
            assert!(took[2].as_millis() < ms, "{network} {}: {took:?}", mode.name());
        }
    }
}

/// 1024 P40 on 128 hosts, 64 images each, half precision: assumptions of docs/plan.md.
fn p40(name: &str, compute_ms: f64, algorithms: &[&str]) -> (Model, NetworkPrices) {
    let m = Model::built_in(name).unwrap().sent_as(DataType::F16).in_time(compute_ms * 1e6).unwrap();
    let (out, inside) = (Network::built_in("roce100").unwrap(), Network::built_in("pcie3").unwrap());
    (m, out.prices(1024, 128, Some(&inside), algorithms, None).unwrap())
}

/// The splits in two that were found by hand for these networks in 2018: AlexNet 20|21, ResNet-50 76|77.
#[test]
fn published_splits() {
    for algorithms in [&["ring", "hier_leader"][..], &[]] {
        let (m, prices) = p40("alexnet-bn", 28.2, algorithms);
        let options = Options { modes: vec![Mode::AllReduce], cut: 0 };
        let p = plan(&m, &prices.costs(), &options).unwrap();
        assert_eq!(p.buckets.len(), 2);
        // The 6 tensors of the fully connected layers, by a ring; the other 20 through leaders, or in 2 levels.
        assert_eq!((p.buckets[0].first, p.buckets[0].last), (0, 5));
        assert_eq!(p.buckets[0].reduce.algorithm, "ring");
        assert_ne!(p.buckets[1].reduce.algorithm, "ring");
    }
    for algorithms in [&["ring"][..], &["ring", "hier_leader"], &[]] {
        let (m, prices) = p40("resnet50", 293.6, algorithms);
        let atoms = search::Atoms::new(&m, 0).unwrap();
        let costs = prices.costs();
        let least = Work::new(&atoms, &costs, Mode::AllReduce).least(&atoms);
        let limit = bound(&atoms, Mode::AllReduce, &least);
        let two =
            |first: usize| rules::by_ends(&atoms, &costs, Mode::AllReduce, &[161 - first, 161], limit).ns;
        let best = (1..161).map(two).fold(f64::INFINITY, f64::min);
        // Tensors 1 to 76 in the second bucket. The optimum is flat.
        assert!(two(76) < best * 1.01, "{} {best}", two(76));
    }
}

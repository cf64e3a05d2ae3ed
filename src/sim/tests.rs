use super::*;
use crate::cost::{Curve, Level, Linear, OnCore, Prices, Trunk};
use crate::schedule::{algorithms, groupings};

const ALPHA: f64 = 5000.0;
const BETA: f64 = 0.1;
const GAMMA: f64 = 0.02;

fn find(name: &str) -> &'static Algorithm {
    Algorithm::by_name(Collective::AllReduce, name).unwrap()
}

fn shape(block: u64, tiles: u32, ways: u32) -> Shape {
    Shape { block, tiles, ways, in_place: true }
}

fn run(name: &str, groups: &Groups, machine: &Machine, shape: Shape) -> Report {
    simulate(&find(name).programs(groups, 0), groups, machine, shape, &Noise::default()).unwrap()
}

#[track_caller]
fn close(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-9 * want.abs().max(1.0), "{got} is not {want}");
}

#[test]
fn closed_forms_hold_exactly() {
    let machine = Machine::alpha_beta(ALPHA, BETA, GAMMA);
    for n in 2..=32u32 {
        // Divides evenly, in cache lines.
        let bytes = u64::from(n) * 64 * 32;
        let time = |name| run(name, &Groups::flat(n as usize), &machine, shape(bytes, 1, 1)).ns;
        close(time("ring"), Linear::ring(n, ALPHA, BETA, GAMMA).price(bytes).ns);
        close(time("direct"), Linear::direct(n, ALPHA, BETA, GAMMA).price(bytes).ns);
        let doubling = Linear::doubling(n, ALPHA, BETA, GAMMA).price(bytes).ns;
        if n.is_power_of_two() {
            close(time("recursive_doubling"), doubling);
            close(time("halving_doubling"), Linear::halving_doubling(n, ALPHA, BETA, GAMMA).price(bytes).ns);
        } else {
            assert!(time("recursive_doubling") <= doubling * (1.0 + 1e-9));
        }
    }
}

/// A hierarchy: direct stages inside a host, and a ring of the ranks with the same place across.
#[test]
fn two_levels_hold_exactly() {
    let (inside, across, gamma) = ((700.0, 0.1), (9000.0, 0.8), 0.03);
    let mut m = Machine::alpha_beta(0.0, 0.0, gamma);
    m.inside = Level::alpha_beta(inside.0, inside.1);
    m.across = Level::alpha_beta(across.0, across.1);
    for (k, hosts) in [(1, 9), (2, 2), (2, 9), (4, 2), (4, 12), (8, 3), (3, 16), (8, 8), (8, 64), (4, 1)] {
        let n = k * hosts;
        let bytes = u64::from(n) * 64 * 40;
        let groups = Groups::blocks(n as usize, k as usize);
        let got = run("hier_2d", &groups, &m, shape(bytes, 1, 1)).ns;
        let ring = Linear::two_level(k, hosts, inside, across, gamma).price(bytes).ns;
        // Few hosts send to each other directly.
        let direct = if (2..=8).contains(&hosts) { 2.0 * f64::from(hosts - 2) * across.0 } else { 0.0 };
        close(got, ring - direct);
    }
}

/// With a core for every rank each of many calls takes what one alone takes.
#[test]
fn calls_in_a_row_take_what_one_takes() {
    let machine = Machine { call: 50.0, ..Machine::alpha_beta(ALPHA, BETA, GAMMA) };
    for name in ["ring", "direct", "recursive_doubling", "halving_doubling"] {
        let sim = Sim::of(find(name), &Groups::flat(8), 0, Symmetry::None).unwrap();
        let shape = shape(8 * 6400, 2, 2);
        let alone = sim.play(&machine, shape, &Noise::default()).unwrap().ns;
        let all = sim.in_a_row(&machine, shape, &Noise::default(), 5).unwrap();
        assert_eq!(all.len(), 5);
        all.into_iter().zip(1..).for_each(|(ns, calls)| close(ns, f64::from(calls) * alone));
    }
}

/// Two ranks on one core that exchange a message: who gets the core ends two calls, of which the first waited for the
/// other rank's turn. So a turn is a call, but for the first one.
#[test]
fn calls_in_a_row_on_one_core() {
    let machine = Machine { cores: Some(1), switch: 1000.0, ..Machine::alpha_beta(0.0, 0.0, 0.0) };
    let sim = Sim::of(find("recursive_doubling"), &Groups::flat(2), 0, Symmetry::None).unwrap();
    let all = sim.in_a_row(&machine, shape(64, 1, 1), &Noise::default(), 6).unwrap();
    all.into_iter().zip(2..).for_each(|(ns, turns)| close(ns, 1000.0 * f64::from(turns)));
}

#[test]
fn the_path_counts_steps_and_adds_up() {
    let machine = Machine::alpha_beta(ALPHA, BETA, GAMMA);
    for (name, steps) in [("ring", 14), ("direct", 2), ("recursive_doubling", 3), ("halving_doubling", 6)] {
        let r = run(name, &Groups::flat(8), &machine, shape(8 * 6400, 1, 1));
        assert_eq!(r.path.messages, steps, "{name}");
        close(r.path.latency, f64::from(steps) * ALPHA);
        close(r.path.core + r.path.latency, r.ns);
        close(r.path.waited, 0.0);
    }
}

#[test]
fn trees_and_chains() {
    let mut machine = Machine::alpha_beta(ALPHA, BETA, GAMMA);
    machine.inside.depth = 16;
    let time = |collective, name, n, tiles, block| {
        let a = Algorithm::by_name(collective, name).unwrap();
        let groups = Groups::flat(n);
        let shape = Shape { block, tiles, ways: 1, in_place: true };
        simulate(&a.programs(&groups, 0), &groups, &machine, shape, &Noise::default()).unwrap().ns
    };
    let b = 64_000.0;
    // A broadcast in a binary tree of 2^d - 1 ranks: the last child of every one is served second.
    for depth in 1..6u32 {
        let ns = time(Collective::Broadcast, "tree", (1 << depth) - 1, 1, 64_000);
        close(ns, f64::from(depth - 1) * (ALPHA + 2.0 * BETA * b));
    }
    // A scan is a chain: a message and a sum at each rank; m tiles follow each other through it.
    for n in 2..12 {
        for tiles in [1, 2, 5] {
            let m = b / f64::from(tiles);
            let hops = (n - 1) as f64;
            let (send, fold) = (BETA * m, GAMMA * m);
            // The slowest part: an inner rank folds and sends every tile.
            let slowest = if n > 2 { send + fold } else { send };
            let want = hops * (ALPHA + send + fold) + f64::from(tiles - 1) * slowest;
            close(time(Collective::Scan, "chain", n as usize, tiles, 64_000), want);
        }
    }
    // Gathered by the root: all send at once, and nothing is shared.
    close(time(Collective::Gather, "direct", 9, 1, 64_000), ALPHA + BETA * b);
    close(time(Collective::Scatter, "direct", 9, 1, 64_000), ALPHA + 8.0 * BETA * b);
}

/// One message at a time: everything that it meets, added up by hand.
#[test]
fn a_message_costs_the_sum_of_its_parts() {
    let level = Level {
        send: Curve::line(10.0, 0.5),
        recv: Curve::line(20.0, 0.25),
        latency: 1000.0,
        link: Curve::line(30.0, 2.0),
        links: 1,
        depth: 2,
        credits: 0,
        on_core: None,
    };
    let machine = Machine {
        inside: Level { latency: 7.0, ..level.clone() },
        across: level,
        call: 100.0,
        op: 3.0,
        copy: Curve::line(5.0, 0.125),
        fold: Curve::line(1.0, 1.0),
        trunk: Some(Trunk { hosts: 1, oversubscription: 4.0, latency: 50.0 }),
        ..Machine::alpha_beta(0.0, 0.0, 0.0)
    };
    let b = 640.0;
    let pair = |groups: &Groups, machine: &Machine, in_place| {
        let a = Algorithm::by_name(Collective::Broadcast, "direct").unwrap();
        let shape = Shape { block: 640, tiles: 1, ways: 1, in_place };
        simulate(&a.programs(groups, 0), groups, machine, shape, &Noise::default()).unwrap()
    };
    let send = 10.0 + 0.5 * b;
    let (link, copy) = (30.0 + 2.0 * b, 5.0 + 0.125 * b);
    // The receiver's call is long over when the message comes, but it is counted with its first op.
    let receive = 100.0 + 3.0 + 20.0 + 0.25 * b + copy;
    let inside = pair(&Groups::flat(2), &machine, true);
    close(inside.ns, 100.0 + 3.0 + send + 7.0 + link + receive);
    // Out of place the root keeps a copy, when it has sent.
    let apart = pair(&Groups::flat(2), &machine, false);
    close(apart.ns, inside.ns);
    close(apart.cores[0], inside.cores[0] + copy);
    // Across hosts the trunk is the bottleneck: its part is 4 times the link's.
    let across = pair(&Groups::blocks(2, 1), &machine, true);
    close(across.ns, 100.0 + 3.0 + send + 50.0 + 1000.0 + 4.0 * link + receive);
    close(across.path.link, link);
    close(across.path.queued, 3.0 * link);
    close(across.trunk_ns, 4.0 * link);
    let free = Machine { trunk: None, ..machine.clone() };
    close(pair(&Groups::blocks(2, 1), &free, true).ns, 100.0 + 3.0 + send + 1000.0 + link + receive);
    assert_eq!(across.links.len(), 2);
    let out = across.links[0];
    assert_eq!((out.across, out.host, out.out_ns, out.in_ns, out.out_bytes), (true, 0, link, 0.0, b));
}

#[test]
fn ranks_share_the_link_of_their_host() {
    // 4 hosts of 4, hier_2d on a fast host: what is left is a ring or direct of the hosts over their links.
    let mut machine = Machine::alpha_beta(1000.0, 0.0, 0.0);
    machine.across.link = Curve::line(0.0, 0.2);
    let groups = Groups::blocks(16, 4);
    let bytes = 64u64 << 20;
    // Every rail moves 2 * 3/4 of its quarter; the link carries all four.
    let bound = 2.0 * 0.75 * bytes as f64 * 0.2;
    let one = run("hier_2d", &groups, &machine, shape(bytes, 64, 2)).ns;
    assert!(one > bound && one < 1.02 * bound, "{one} for {bound}");
    machine.across.links = 4;
    let four = run("hier_2d", &groups, &machine, shape(bytes, 64, 2));
    assert!(four.ns > bound / 4.0 && four.ns < 1.08 * bound / 4.0, "{} for {bound} / 4", four.ns);
    let out: f64 = four.links.iter().map(|l| l.out_bytes).sum();
    close(out, 4.0 * 2.0 * 0.75 * bytes as f64);
    // A ring crosses once in every direction, whatever the hosts' size: one link is enough for it.
    let ring = run("ring", &groups, &machine, shape(bytes, 1, 1)).ns;
    machine.across.links = 1;
    close(run("ring", &groups, &machine, shape(bytes, 1, 1)).ns, ring);
}

#[test]
fn tiles_and_ways_hide_latency_and_cost_it() {
    // The ring of facts: a tile loop around a ring shows alpha once per step and tile, ways hide it.
    let machine = Machine::alpha_beta(5000.0, 0.1, 0.0);
    let groups = Groups::flat(16);
    let time = |tiles, ways| run("ring", &groups, &machine, shape(64_000_000, tiles, ways)).ns / 1000.0;
    let bound = 12_000.0;
    assert!((time(1, 1) / (bound + 150.0) - 1.0).abs() < 1e-3);
    assert!(time(64, 1) > 1.7 * bound);
    assert!(time(64, 2) < 1.01 * bound);
}

#[test]
fn fewer_cores_than_ranks() {
    let mut machine = Machine::alpha_beta(0.0, 0.0, 0.0);
    machine.op = 100.0;
    let groups = Groups::flat(4);
    // Everything waits for everything: with two cores for four ranks no time is lost but by sharing.
    let ops: usize = find("direct").programs(&groups, 0).iter().map(|p| p.lanes[0].ops.len()).sum();
    let free = run("direct", &groups, &machine, shape(4096, 1, 1));
    close(free.ns, 100.0 * ops as f64 / 4.0);
    machine.cores = Some(2);
    let shared = run("direct", &groups, &machine, shape(4096, 1, 1));
    assert!(shared.ns >= 2.0 * free.ns - 1e-6, "{} with half the cores, {} with all", shared.ns, free.ns);
    machine.switch = 1000.0;
    let switched = run("direct", &groups, &machine, shape(4096, 1, 1));
    // Each of two cores goes to its other rank and back at least once.
    assert!(switched.ns >= shared.ns + 2000.0, "{} {}", switched.ns, shared.ns);
    close(switched.cores.iter().sum::<f64>() % 100.0, 0.0);
    // Two hosts that one machine plays have no more cores than one host.
    machine.core_hosts = 2;
    let played = run("direct", &Groups::blocks(4, 2), &machine, shape(4096, 1, 1));
    close(played.ns, switched.ns);
    machine.core_hosts = 1;
    assert!(run("direct", &Groups::blocks(4, 2), &machine, shape(4096, 1, 1)).ns < switched.ns);
    machine.cores = Some(4);
    close(run("direct", &groups, &machine, shape(4096, 1, 1)).ns, free.ns);
    // Ranks keep to their cores: the first has two of three ranks, though the other one is idle half of the time.
    let three = Groups::flat(3);
    machine.cores = None;
    let free = run("direct", &three, &machine, shape(4096, 1, 1));
    (machine.cores, machine.switch) = (Some(2), 0.0);
    let bound = run("direct", &three, &machine, shape(4096, 1, 1));
    assert!(bound.ns >= 2.0 * free.ns - 1e-6, "{} {}", bound.ns, free.ns);
}

/// A message between ranks of one core costs what such messages do, and nobody waits for it on its way; one between cores
/// costs what others do. A broadcast is one message to each.
#[test]
fn messages_on_a_core_have_their_own_costs() {
    let broadcast = Algorithm::by_name(Collective::Broadcast, "direct").unwrap();
    let mut machine = Machine::alpha_beta(1000.0, 1.0, 0.0);
    machine.inside.recv = Curve::constant(30.0);
    (machine.cores, machine.switch) = (Some(2), 7.0);
    let time = |n: usize, machine: &Machine| {
        let (groups, shape) = (Groups::flat(n), shape(64, 1, 1));
        simulate(&broadcast.programs(&groups, 0), &groups, machine, shape, &Noise::default()).unwrap().ends
    };
    // Ranks 0 and 2 have the same core.
    let both = time(3, &machine);
    machine.inside.on_core = Some(OnCore { send: Curve::constant(5.0), recv: Curve::constant(3.0) });
    let own = time(3, &machine);
    close(both[1], 64.0 + 1000.0 + 30.0);
    close(both[2], 128.0 + 1000.0 + 7.0 + 30.0);
    close(own[1], 64.0 + 1000.0 + 30.0);
    close(own[2], 64.0 + 5.0 + 7.0 + 3.0);
    // A link takes what it takes, on a core as well.
    machine.inside.link = Curve::line(0.0, 2.0);
    let linked = time(3, &machine);
    close(linked[1], 64.0 + 128.0 + 1000.0 + 30.0);
    // Behind the first message.
    close(linked[2], 64.0 + 2.0 * 128.0 + 7.0 + 3.0);
    machine.inside.link = Curve::default();
    // With a core for each they are all alike.
    machine.cores = None;
    close(time(3, &machine)[2], 128.0 + 1000.0 + 30.0);
}

/// Where messages go one way only, a message of its own says that there is room; else it rides on what goes back.
#[test]
fn credits_cost_where_nothing_goes_back() {
    let mut machine = Machine::alpha_beta(1000.0, 0.0, 0.0);
    machine.inside.send = Curve::line(10.0, 0.25);
    machine.inside.recv = Curve::line(4.0, 0.125);
    let two = Groups::flat(2);
    let cores = |machine: &Machine, credits: u32, collective: Collective, name: &str| {
        let mut machine = machine.clone();
        machine.inside.credits = credits;
        let a = Algorithm::by_name(collective, name).unwrap();
        let r = simulate(&a.programs(&two, 0), &two, &machine, shape(64 * 6, 6, 1), &Noise::default());
        r.unwrap().cores
    };
    let (send, recv) = (10.0 + 0.25 * 64.0, 4.0 + 0.125 * 64.0);
    let [root, other] = cores(&machine, 0, Collective::Broadcast, "direct")[..] else { panic!() };
    close(root, 6.0 * send);
    close(other, 6.0 * recv);
    // After the second, fourth and sixth message the receiver says so. A channel holds four: the root's last message waits
    // for the first of these, the others come later.
    let [root, other] = cores(&machine, 2, Collective::Broadcast, "direct")[..] else { panic!() };
    close(other, 6.0 * recv + 3.0 * 10.0);
    close(root, 6.0 * send + 4.0);
    let exchanged =
        [0, 2].map(|credits| cores(&machine, credits, Collective::AllReduce, "recursive_doubling"));
    assert_eq!(exchanged[0], exchanged[1]);
    // A root that never waits takes the first two while it sends.
    (machine.inside.depth, machine.inside.latency) = (100, 1.0);
    let [root, _] = cores(&machine, 2, Collective::Broadcast, "direct")[..] else { panic!() };
    close(root, 6.0 * send + 2.0 * 4.0);
}

#[test]
fn all_algorithms_play_on_all_groupings() {
    let mut machine = Machine::alpha_beta(1000.0, 0.1, 0.01);
    // Empty messages occupy these for no time at all.
    machine.across.link = Curve::line(0.0, 0.3);
    machine.inside.link = Curve::line(0.0, 0.01);
    for a in algorithms() {
        for n in 1..=9 {
            for groups in groupings(n) {
                for (root, bytes, tiles, ways) in [(0, 4, 1, 1), (n / 2, 100_000, 3, 2), (n - 1, 1000, 7, 4)]
                {
                    let programs = a.programs(&groups, root);
                    for depth in [a.min_depth, 5] {
                        machine.inside.depth = depth;
                        machine.across.depth = depth;
                        let r = simulate(
                            &programs,
                            &groups,
                            &machine,
                            shape(bytes, tiles, ways),
                            &Noise::default(),
                        );
                        let r = r.unwrap_or_else(|e| panic!("{a:?} {n} {groups:?} {e}"));
                        let sum = r.path.core + r.path.latency + r.path.link + r.path.queued + r.path.waited;
                        close(sum, r.ns);
                        let sends: usize = programs
                            .iter()
                            .flat_map(|p| &p.lanes)
                            .flat_map(|l| l.ops.iter().flat_map(|o| l.dsts(o)))
                            .map(|d| d.count as usize)
                            .sum();
                        assert_eq!(r.messages, sends as u64 * u64::from(tiles));
                    }
                }
            }
        }
    }
}

#[test]
fn a_deadlock_is_an_error() {
    let mut machine = Machine::alpha_beta(1000.0, 0.1, 0.0);
    machine.inside.depth = 1;
    let groups = Groups::flat(3);
    let programs = find("ring").programs(&groups, 0);
    let played = simulate(&programs, &groups, &machine, shape(1000, 1, 1), &Noise::default());
    assert!(played.unwrap_err().to_string().contains("deadlocks"));
}

#[test]
fn programs_that_make_no_sense_are_errors() {
    let groups = Groups::flat(3);
    let machine = Machine::alpha_beta(1000.0, 0.1, 0.0);
    let good = find("ring").programs(&groups, 0);
    let refused = |change: &dyn Fn(&mut Vec<Program>)| {
        let mut programs = good.clone();
        change(&mut programs);
        simulate(&programs, &groups, &machine, shape(1000, 1, 1), &Noise::default()).unwrap_err().to_string()
    };
    assert!(refused(&|p| p[1].lanes[0].peers[0] = 7).contains("a peer that is not there"));
    assert!(refused(&|p| p[1].lanes[0].peers[0] = 1).contains("a peer that is not there"));
    assert!(refused(&|p| p[2].lanes[0].ops[0].arg = 9000).contains("operands that are not there"));
    assert!(refused(&|p| p[2].lanes[0].ops[0].len = 4).contains("leaves its block"));
    assert!(refused(&|p| p[0].chunks = 0).contains("no chunks"));
    assert!(refused(&|p| p[1].lanes.clear()).contains("of which 0 are received"));
    assert!(refused(&|p| p.truncate(2)).contains("2 programs for 3 ranks"));
    let no_tiles = simulate(&good, &groups, &machine, shape(1000, 0, 1), &Noise::default());
    assert!(no_tiles.unwrap_err().to_string().contains("0 tiles"));
    let more = refused(&|p| {
        let op = p[0].lanes[0].ops[0];
        p[0].lanes[0].ops.push(op);
    });
    assert!(more.contains("sends 5 messages of which 4 are received"), "{more}");
}

/// Every host does what the first one does: all of them are compared, and the times are the same.
#[test]
fn symmetric_runs_equal_full_ones() {
    let mut machine = Machine::alpha_beta(1000.0, 0.05, 0.01);
    machine.inside.link = Curve::line(10.0, 0.01);
    machine.across.latency = 9000.0;
    (machine.across.recv, machine.across.credits) = (Curve::constant(70.0), 2);
    let mut found = Vec::new();
    for (link, trunk) in [(0.0, None), (0.2, None), (0.2, Some(2))] {
        machine.across.link = Curve::line(0.0, link);
        machine.trunk = trunk.map(|hosts| Trunk { hosts, oversubscription: 2.0, latency: 300.0 });
        for a in algorithms() {
            for (hosts, each) in [(4, 1), (6, 2), (4, 4), (8, 2), (10, 3)] {
                let groups = Groups::blocks(hosts * each, each);
                let unit = each * trunk.unwrap_or(1) as usize;
                let symmetry = Symmetry::find(a, &groups, unit);
                if symmetry == Symmetry::None {
                    continue;
                }
                let (others, ranks): (Vec<_>, Vec<_>) =
                    ((1..hosts * each / unit).collect(), (0..unit).collect());
                assert!(symmetry.holds(a, &groups, &others, &ranks), "{a:?} {hosts} x {each}");
                found.push((a.collective.name(), a.name));
                let block = Shape::block_of(a.collective, hosts * each, (hosts * each) as u64 * 64 * 36);
                let shape = shape(block.next_multiple_of(64 * 6 * (hosts * each) as u64), 6, 2);
                let quiet = Noise::default();
                let full =
                    Sim::of(a, &groups, 0, Symmetry::None).unwrap().play(&machine, shape, &quiet).unwrap();
                let part = Sim::of(a, &groups, 0, symmetry).unwrap().play(&machine, shape, &quiet).unwrap();
                assert_eq!(part.ends.len(), unit);
                let off = part.ns / full.ns - 1.0;
                assert!(off.abs() < 1e-9, "{a:?} {hosts} x {each}, link {link}, {trunk:?}: {off}");
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    let of = |c: &str| found.iter().filter(|f| f.0 == c).map(|f| f.1).collect::<Vec<_>>();
    let all = [
        "direct",
        "halving_doubling",
        "hier_2d",
        "hier_direct",
        "hier_leader",
        "one_shot",
        "recursive_doubling",
        "ring",
    ];
    assert_eq!(of("all_reduce"), all);
    assert_eq!(of("reduce_scatter"), ["direct", "hier_2d", "ring"]);
    assert_eq!(of("all_gather"), ["bruck", "direct", "hier_2d", "ring"]);
    assert_eq!(of("all_to_all"), ["direct"]);
    assert_eq!(found.len(), 16, "{found:?}");
}

#[test]
fn estimates_agree_with_full_runs() {
    let mut machine = Machine::alpha_beta(2000.0, 0.05, 0.02);
    machine.across.latency = 10_000.0;
    machine.across.link = Curve::line(100.0, 0.1);
    machine.op = 20.0;
    for a in algorithms().iter().filter(|a| a.collective == Collective::AllReduce) {
        for groups in [Groups::flat(7), Groups::blocks(16, 4), Groups::blocks(12, 2)] {
            let sim = Sim::of(a, &groups, 0, Symmetry::None).unwrap();
            for ways in [1, 3] {
                let shape = shape(200 << 20, 400, ways);
                let full = sim.play(&machine, shape, &Noise::default()).unwrap();
                let estimate = sim.estimate(&machine, shape).unwrap();
                let off = estimate.ns / full.ns - 1.0;
                // Its ways go on finding a better step with each other for hundreds of tiles.
                let most = if a.name == "halving_doubling" && ways > 1 { 0.06 } else { 0.01 };
                assert!(off.abs() < most, "{a:?} on {} ranks, {ways} ways: {off}", groups.n());
                assert!(estimate.events * 2 < full.events, "{a:?}: {} events", estimate.events);
            }
        }
    }
}

#[test]
fn noise_only_delays_and_is_repeatable() {
    let mut machine = Machine::alpha_beta(2000.0, 0.05, 0.02);
    machine.across.link = Curve::line(100.0, 0.1);
    let groups = Groups::blocks(8, 2);
    let programs = find("hier_2d").programs(&groups, 0);
    let time =
        |noise: Noise| simulate(&programs, &groups, &machine, shape(1 << 20, 8, 2), &noise).unwrap().ns;
    let quiet = time(Noise::default());
    let jitter = Noise { seed: 7, core: 0.1, wire: 0.5, ..Noise::default() };
    let noisy = time(jitter.clone());
    assert!(noisy > quiet && noisy == time(jitter.clone()));
    assert_ne!(noisy, time(Noise { seed: 8, ..jitter }));
    assert_eq!(time(Noise { late: vec![(0, -0.0)], ..Noise::default() }), quiet);
    let late = time(Noise { late: vec![(5, 1e6)], ..Noise::default() });
    assert!(late > 1e6 && late < 1e6 + 1.1 * quiet, "{late}");
    let slow = time(Noise { slow: vec![(5, 3.0)], ..Noise::default() });
    assert!(slow > 1.2 * quiet, "{slow} {quiet}");
    let wrong = simulate(
        &programs,
        &groups,
        &machine,
        shape(1, 1, 1),
        &Noise { late: vec![(8, 1.0)], ..Noise::default() },
    );
    assert!(wrong.unwrap_err().to_string().contains("rank 8 of 8"));
}

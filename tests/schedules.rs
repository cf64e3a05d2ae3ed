//! Schedules: proofs of all algorithms, faults that must be found, and mutants whose acceptance is
//! checked by running them in a small interpreter that shares nothing with the verifier.

mod schedules {
    pub mod interpreter;
    pub mod mutate;
}

use std::collections::BTreeMap;

use graccl::schedule::{
    Algorithm, Arg, ArgKind, Claims, Collective, FaultKind, Groups, Program, algorithms, algorithms_of,
    cases, check, groupings, is_canonical, live_at, verify, verify_up_to,
};
use schedules::interpreter::{Run, Setting};
use schedules::mutate::{Kind, Step, pack, unpack};

/// splitmix64
pub struct Rng(pub u64);

impl Rng {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n.max(1) as u64) as usize
    }
    pub fn coin(&mut self) -> bool {
        self.word() & 1 == 1
    }
}

fn claims(a: &Algorithm) -> Claims {
    Claims { depth: a.min_depth, ref_safe: a.ref_safe, reply_safe: a.reply_safe }
}

fn by_name(name: &str) -> &'static Algorithm {
    Algorithm::by_name(Collective::AllReduce, name).expect("an algorithm of this name")
}

#[test]
fn all_are_proved_to_64_ranks() {
    let max = if cfg!(debug_assertions) { 16 } else { 64 };
    let sum = verify_up_to(max, &mut |line| println!("{line}")).unwrap();
    println!("{sum:?}");
    let schedules = |a: &Algorithm| -> usize {
        let groupings = |n| if a.hierarchical { groupings(n).len() } else { 1 };
        let roots = |n: usize| if a.collective.rooted() { n.min(3) } else { 1 };
        (1..=max).map(|n| groupings(n) * roots(n)).sum()
    };
    assert_eq!(sum.schedules, algorithms().iter().map(schedules).sum::<usize>());
}

#[test]
fn every_collective_has_a_flat_and_most_have_a_hierarchical_algorithm() {
    for c in Collective::ALL {
        assert!(algorithms_of(c).any(|a| a.name == "direct" && !a.hierarchical), "{c:?}");
        let flat_only = matches!(c, Collective::AllToAll | Collective::Scan | Collective::Exscan);
        assert_eq!(algorithms_of(c).any(|a| a.hierarchical), !flat_only, "{c:?}");
    }
}

#[test]
fn one_less_than_the_declared_depth_deadlocks() {
    for a in algorithms().iter().filter(|a| a.min_depth > 1) {
        for n in 3..=24 {
            for (groups, root) in cases(a, n) {
                // A single group needs no ring of leaders.
                if a.name == "hier_leader" && groups.len() == 1 {
                    continue;
                }
                let programs = a.programs(&groups, root);
                let fault = live_at(a.collective, root, &programs, a.min_depth - 1).unwrap_err();
                assert_eq!(fault.kind, FaultKind::Deadlock, "{a:?} {groups:?}: {fault}");
            }
        }
    }
}

#[test]
fn what_is_not_declared_safe_is_not() {
    for a in algorithms().iter().filter(|a| !a.ref_safe) {
        let claimed = Claims { ref_safe: true, ..claims(a) };
        let fault = check(a.collective, 0, &a.programs(&Groups::flat(4), 0), claimed).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Race, "{a:?}: {fault}");
    }
    assert!(algorithms().iter().all(|a| a.ref_safe || !a.reply_safe));
}

/// What the deterministic mode relies on: for every number of ranks, something is folded in pairs.
#[test]
fn direct_is_canonical_everywhere_and_chains_are_not() {
    let holds = |a: &Algorithm, n: usize| {
        let all = cases(a, n);
        all.iter().all(|(g, root)| is_canonical(a.collective, *root, &a.programs(g, *root)))
    };
    for a in algorithms() {
        for n in 1..=17 {
            let pairs = matches!(a.name, "direct" | "one_shot") || !a.collective.reduces() || n == 1;
            assert!(!pairs || a.hierarchical || holds(a, n), "{a:?} on {n} ranks");
        }
        if matches!(a.name, "ring" | "chain" | "tree" | "double_tree") && a.collective.reduces() {
            assert!(!holds(a, 7), "{a:?}");
        }
    }
    for name in ["recursive_doubling", "halving_doubling"] {
        let canonical: Vec<usize> = (1..=17).filter(|&n| holds(by_name(name), n)).collect();
        assert_eq!(canonical, [1, 2, 3, 4, 6, 7, 8, 12, 14, 15, 16], "{name}");
    }
    let hier = by_name("hier_2d");
    for (ranks, size, canonical) in [(8, 2, true), (8, 4, true), (6, 2, true), (6, 3, false), (12, 4, true)] {
        let groups = Groups::blocks(ranks, size);
        let got = is_canonical(Collective::AllReduce, 0, &hier.programs(&groups, 0));
        assert_eq!(got, canonical, "{ranks} ranks in groups of {size}");
    }
}

#[test]
fn direct_has_the_shape_that_the_executor_relies_on() {
    let direct = by_name("direct");
    for rank in 0..2u32 {
        let lane = &direct.program(rank as usize, &Groups::flat(2), 0).lanes[0];
        let fold = lane.ops[1];
        let arg = |kind, count| Arg { kind, port: 0, ix: 0, count };
        let (mine, theirs) = (arg(ArgKind::In, 0), arg(ArgKind::Recv, 0));
        let in_order = if rank == 0 { [mine, theirs] } else { [theirs, mine] };
        assert_eq!(lane.srcs(&fold), in_order);
        assert_eq!((fold.at, lane.dsts(&fold)), (rank, &[arg(ArgKind::Out, 0), arg(ArgKind::Send, 1)][..]));
        assert_eq!((lane.ops.len(), fold.complete, &lane.peers), (3, true, &vec![1 - rank]));
    }
    for n in 3..20usize {
        for rank in 0..n {
            let lane = &direct.program(rank, &Groups::flat(n), 0).lanes[0];
            assert_eq!(lane.ops.len(), 2 * (n - 1) + 1);
            assert_eq!(lane.peers, (1..n).map(|d| ((rank + d) % n) as u32).collect::<Vec<_>>());
            let fold = &lane.ops[n - 1];
            assert_eq!((fold.nsrc as usize, fold.ndst, fold.complete), (n, 2, true));
            assert_eq!(lane.dsts(fold)[1].count as usize, n - 1);
        }
    }
}

#[test]
fn one_rank_copies_its_input_in_one_op() {
    for a in algorithms() {
        let p = a.program(0, &Groups::flat(1), 0);
        if a.collective == Collective::Exscan {
            assert!(p.lanes.is_empty());
            continue;
        }
        let op = p.lanes[0].ops[0];
        assert_eq!((p.lanes.len(), p.lanes[0].ops.len()), (1, 1), "{a:?}");
        let complete = a.collective.completes();
        assert_eq!((op.len, op.nsrc, op.ndst, op.complete), (p.chunks, 1, 1, complete), "{a:?}");
    }
}

/// No two ranks send to the same one first, where everyone sends to everyone.
#[test]
fn first_targets_are_spread() {
    for (c, name) in [
        (Collective::AllReduce, "direct"),
        (Collective::ReduceScatter, "direct"),
        (Collective::AllGather, "direct"),
        (Collective::AllToAll, "direct"),
    ] {
        let programs = Algorithm::by_name(c, name).unwrap().programs(&Groups::flat(8), 0);
        let first = |p: &Program| {
            let lane = &p.lanes[0];
            let sends = lane.ops.iter().flat_map(|op| lane.dsts(op)).find(|d| d.kind == ArgKind::Send);
            lane.peers[sends.expect("it sends").ix as usize]
        };
        let mut targets: Vec<u32> = programs.iter().map(first).collect();
        targets.sort_unstable();
        assert_eq!(targets, (0..8).collect::<Vec<_>>(), "{c:?} {name}");
    }
}

#[test]
fn large_jobs_are_proved_too() {
    if cfg!(debug_assertions) {
        return;
    }
    for (name, groups) in [
        ("double_tree", Groups::flat(300)),
        ("halving_doubling", Groups::flat(500)),
        ("recursive_doubling", Groups::flat(1000)),
        ("hier_2d", Groups::blocks(256, 8)),
        ("hier_leader", Groups::blocks(500, 7)),
        ("ring", Groups::flat(150)),
    ] {
        verify(by_name(name), &groups, 0).unwrap_or_else(|f| panic!("{name}: {f}"));
    }
    for (c, name, groups, root) in [
        (Collective::AllToAll, "direct", Groups::flat(150), 0),
        (Collective::AllGather, "bruck", Groups::flat(200), 0),
        (Collective::AllGather, "hier_2d", Groups::blocks(200, 7), 0),
        (Collective::ReduceScatter, "hier_2d", Groups::blocks(200, 7), 0),
        (Collective::Broadcast, "tree", Groups::flat(1000), 77),
        (Collective::Reduce, "hier_leader", Groups::blocks(1000, 9), 500),
        (Collective::Scan, "doubling", Groups::flat(1000), 0),
    ] {
        let a = Algorithm::by_name(c, name).unwrap();
        verify(a, &groups, root).unwrap_or_else(|f| panic!("{a:?}: {f}"));
    }
}

// ---- seeded faults ----

/// Applies `change` to rank 1's only lane and returns the kind of fault that is found.
fn seeded(name: &str, n: usize, change: impl Fn(&mut Vec<Step>)) -> FaultKind {
    seeded_in(by_name(name), n, 0, change)
}

fn seeded_in(a: &Algorithm, n: usize, root: usize, change: impl Fn(&mut Vec<Step>)) -> FaultKind {
    let mut programs = a.programs(&Groups::flat(n), root);
    assert!(check(a.collective, root, &programs, claims(a)).is_ok());
    let mut steps = unpack(&programs[1].lanes[0]);
    change(&mut steps);
    programs[1].lanes[0] = pack(&steps, &programs[1].lanes[0].peers);
    match check(a.collective, root, &programs, claims(a)) {
        Ok(_) => panic!("{a:?}: the fault was not found"),
        Err(fault) => fault.kind,
    }
}

#[test]
fn seeded_faults_are_found() {
    use FaultKind::*;
    // Dropped steps.
    assert_eq!(seeded("ring", 4, |s| drop(s.remove(3))), Unmatched);
    assert_eq!(seeded("direct", 4, |s| drop(s.remove(6))), Unmatched);
    assert_eq!(seeded("ring", 4, |s| s[6].dsts.clear()), Malformed);
    // Dependent ops in the wrong order: what is sent is overwritten, in place; the result is awaited
    // before the contribution is sent.
    assert_eq!(seeded("one_shot", 4, |s| s.swap(0, 1)), Complete);
    assert_eq!(seeded("recursive_doubling", 4, |s| s.swap(0, 1)), Complete);
    assert_eq!(seeded("hier_leader", 4, |s| s.swap(0, 1)), Deadlock);
    assert_eq!(seeded("recursive_doubling", 3, |s| s.swap(0, 1)), Deadlock);
    // The chunk that is sent on is stored only afterwards.
    assert_eq!(
        seeded("ring", 4, |s| {
            let store = s[4].dsts.remove(0);
            let (from, to) = (s[4].srcs[0], s[4].dsts[0]);
            s[4] = Step { srcs: vec![store], dsts: vec![to], ..s[4].clone() };
            s.insert(5, Step { srcs: vec![from], dsts: vec![store], ..s[4].clone() });
        }),
        Value
    );
    // Doubled contribution; a sum instead of a copy; a missing contribution.
    assert_eq!(
        seeded("one_shot", 4, |s| {
            let mine = s[1].srcs[1];
            s[1].srcs.push(mine);
        }),
        Complete
    );
    assert_eq!(
        seeded("ring", 4, |s| {
            let mine = s[3].srcs[1];
            s[5].srcs.push(mine);
        }),
        Complete
    );
    assert_eq!(seeded("ring", 4, |s| s[2].srcs.truncate(1)), Complete);
    assert_eq!(seeded("direct", 4, |s| s[3].srcs.truncate(3)), Unmatched);
    // Wrong peer, shorter span, wrong chunk.
    assert_eq!(seeded("direct", 4, |s| s[0].dsts[0].ix = 1), Unmatched);
    assert_eq!(seeded("halving_doubling", 8, |s| s[0].len -= 1), Unmatched);
    assert_eq!(seeded("direct", 4, |s| s[0].at = 0), Unmatched);
    // Another order of operands: right sums, but not the same bits everywhere.
    assert_eq!(seeded("one_shot", 4, |s| s[1].srcs.swap(0, 2)), Tree);
    assert_eq!(seeded("recursive_doubling", 4, |s| s[1].srcs.swap(0, 1)), Tree);
    // Completion marked where it is not, and not where it is.
    assert_eq!(seeded("ring", 4, |s| s[2].complete = true), Complete);
    assert_eq!(seeded("ring", 4, |s| s[3].complete = false), Complete);
    assert_eq!(seeded("ring", 4, |s| s[4].complete = true), Complete);
    // A sum that does not come from where the running value is: In after Out was written.
    assert_eq!(
        seeded("recursive_doubling", 4, |s| s[2].srcs.iter_mut().for_each(|a| {
            if a.kind == ArgKind::Out {
                a.kind = ArgKind::In;
            }
        })),
        Complete
    );
}

#[test]
fn seeded_faults_of_other_collectives_are_found() {
    use Collective::*;
    use FaultKind::*;
    let a = |c, name| Algorithm::by_name(c, name).unwrap();
    // The own block is not kept; a block is not passed on, or not kept.
    assert_eq!(seeded_in(a(AllGather, "direct"), 4, 0, |s| drop(s.remove(1))), Value);
    assert_eq!(seeded_in(a(AllToAll, "direct"), 4, 0, |s| drop(s.remove(3))), Value);
    assert_eq!(seeded_in(a(Broadcast, "direct"), 4, 1, |s| drop(s.remove(1))), Value);
    assert_eq!(seeded_in(a(AllGather, "ring"), 4, 0, |s| _ = s[2].dsts.remove(1)), Unmatched);
    assert_eq!(seeded_in(a(AllGather, "ring"), 4, 0, |s| _ = s[2].dsts.remove(0)), Value);
    // Another rank's block: not in the input, not in the output.
    assert_eq!(seeded_in(a(AllGather, "direct"), 4, 0, |s| s[0].at = 2), Malformed);
    assert_eq!(seeded_in(a(Scatter, "direct"), 4, 0, |s| s[0].at = 2), Malformed);
    assert_eq!(seeded_in(a(Gather, "direct"), 4, 0, |s| s[0].at = 2), Malformed);
    let store = Arg { kind: ArgKind::Out, port: 0, ix: 0, count: 0 };
    assert_eq!(seeded_in(a(Reduce, "direct"), 4, 0, |s| s[0].dsts.push(store)), Malformed);
    // Two blocks at once; a port that is not for schedules.
    assert_eq!(seeded_in(a(ReduceScatter, "direct"), 4, 0, |s| s[0].len = 2), Malformed);
    assert_eq!(seeded_in(a(ReduceScatter, "direct"), 4, 0, |s| s[0].dsts[0].port = 7), Malformed);
    // A sum where nothing is to be summed; a completed prefix.
    let input = Arg { kind: ArgKind::In, port: 0, ix: 0, count: 0 };
    assert_eq!(seeded_in(a(AllGather, "ring"), 4, 0, |s| s[1].srcs.push(input)), Complete);
    assert_eq!(seeded_in(a(Broadcast, "tree"), 4, 1, |s| s[0].complete = true), Malformed);
    assert_eq!(seeded_in(a(Scan, "chain"), 4, 0, |s| s[0].complete = true), Malformed);
    // A prefix without one's own value, or with it where it does not belong.
    assert_eq!(seeded_in(a(Scan, "direct"), 4, 0, |s| _ = s[1].srcs.remove(1)), Complete);
    assert_eq!(seeded_in(a(Exscan, "direct"), 4, 0, |s| s[1].srcs.push(input)), Complete);
    // In place, the prefix goes over the value before that was sent.
    assert_eq!(seeded_in(a(Exscan, "direct"), 4, 0, |s| s.swap(0, 1)), Complete);
    // A sum that lacks a value; messages in another order.
    assert_eq!(seeded_in(a(ReduceScatter, "ring"), 4, 0, |s| _ = s[2].srcs.remove(1)), Complete);
    assert_eq!(seeded_in(a(ReduceScatter, "ring"), 4, 0, |s| s.swap(1, 2)), Unmatched);
    assert_eq!(seeded_in(a(Gather, "direct"), 4, 1, |s| s[1].srcs[0].ix = 1), Unmatched);
}

#[test]
fn a_channel_with_two_lanes_at_one_end_is_refused() {
    let ring = by_name("ring");
    let mut programs = ring.programs(&Groups::flat(3), 0);
    let lane = programs[0].lanes[0].clone();
    let steps = unpack(&lane);
    programs[0].lanes = vec![pack(&steps[..2], &lane.peers), pack(&steps[2..], &lane.peers)];
    let fault = check(ring.collective, 0, &programs, claims(ring)).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unmatched);
    assert!(fault.text.contains("another lane"), "{fault}");
}

// ---- running them ----

/// (algorithm, groups, root)
fn small_cases() -> Vec<(&'static Algorithm, Groups, usize)> {
    let of = |a| (1..=8).flat_map(move |n| cases(a, n).into_iter().map(move |(g, root)| (a, g, root)));
    algorithms().iter().flat_map(of).collect()
}

/// Runs a schedule under several orders, sizes of blocks, tiles, depths, in place and apart.
fn run_all_ways(
    (collective, root): (Collective, usize),
    programs: &[Program],
    claims: Claims,
    rounds: usize,
    rng: &mut Rng,
) -> Result<(), String> {
    let blocks = collective.blocks(programs.len());
    for round in 0..rounds {
        for in_place in [false, true] {
            if in_place && collective == Collective::AllToAll {
                continue;
            }
            // Blocks of the same number of tiles, and, every other time, each of its own: some have none.
            let same = if rng.coin() { 1 } else { 3 };
            let each = round % 4 >= 2;
            let mut block = || {
                let tiles = if each { rng.below(4) as u64 } else { same };
                let count = if tiles == 0 { 0 } else { rng.below(4 * programs[0].chunks as usize + 3) };
                (count, tiles)
            };
            let sizes = (0..blocks).map(|_| block()).collect();
            let setting = Setting {
                in_place,
                by_ref: claims.ref_safe && round % 2 == 1,
                reply: claims.reply_safe && round % 4 == 3,
                blocks: sizes,
                depth: claims.depth as usize + rng.below(3),
            };
            Run::new(collective, root, programs, setting.clone(), rng.word())
                .check()
                .map_err(|e| format!("{e} with {setting:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn all_compute_the_result_in_any_order() {
    let mut rng = Rng(1);
    for (a, groups, root) in small_cases() {
        run_all_ways((a.collective, root), &a.programs(&groups, root), claims(a), 8, &mut rng)
            .unwrap_or_else(|e| panic!("{a:?}, root {root}, {groups:?}: {e}"));
    }
}

/// What the verifier's text says of dropping blocks, for waiting: with any of them dropped, at the same depth.
#[test]
fn dropping_blocks_never_deadlocks() {
    let mut rng = Rng(3);
    for (a, groups, root) in small_cases() {
        let blocks = a.collective.blocks(groups.n());
        for _ in 0..if blocks > 1 { 8 } else { 0 } {
            let mut programs = a.programs(&groups, root);
            let dropped: Vec<bool> = (0..blocks).map(|_| rng.below(3) == 0).collect();
            for program in &mut programs {
                let chunks = program.chunks;
                for lane in &mut program.lanes {
                    lane.ops.retain(|op| !dropped[(op.at / chunks) as usize]);
                }
                program.lanes.retain(|lane| !lane.ops.is_empty());
            }
            live_at(a.collective, root, &programs, a.min_depth)
                .unwrap_or_else(|f| panic!("{a:?}, root {root}, {groups:?} without {dropped:?}: {f}"));
        }
    }
}

/// A race that only another block's messages prevent is found, since any block may be dropped.
#[test]
fn an_order_that_another_block_makes_does_not_count() {
    let arg = |kind, port, count| Arg { kind, port, ix: 0, count };
    let (input, out) = (arg(ArgKind::In, 0, 0), arg(ArgKind::Out, 0, 0));
    let (recv, send) = (|port| arg(ArgKind::Recv, port, 0), |port| arg(ArgKind::Send, port, 1));
    let step = |at, src: Arg, dsts: &[Arg]| Step {
        at,
        len: 1,
        complete: false,
        srcs: vec![src],
        dsts: dsts.to_vec(),
    };
    let programs = |one: &[&[Step]]| {
        let zero = [step(0, input, &[send(0)]), step(1, recv(0), &[out, send(1)]), step(0, recv(2), &[out])];
        let program = |peer: u32, lanes: &[&[Step]]| Program {
            lanes: lanes.iter().map(|steps| pack(steps, &[peer])).collect(),
            blocks: 2,
            chunks: 1,
            scratch: 0,
        };
        vec![program(1, &[&zero]), program(0, one)]
    };
    // Rank 1 stores block 0 and sends block 1; when that comes back, its second lane sends block 0 back.
    let first = [step(0, recv(0), &[out]), step(1, input, &[send(0)])];
    let second = [step(1, recv(1), &[out]), step(0, out, &[send(2)])];
    let claims = Claims { depth: 1, ref_safe: false, reply_safe: false };
    let gather = Collective::AllGather;
    let two_lanes = programs(&[&first, &second]);
    let fault = check(gather, 0, &two_lanes, claims).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Race | FaultKind::Value), "{fault}");
    assert!(run_all_ways((gather, 0), &two_lanes, claims, 100, &mut Rng(7)).is_err());
    // In one lane, block 0 itself makes the order.
    let one_lane = programs(&[&[first, second].concat()]);
    check(gather, 0, &one_lane, claims).unwrap();
    run_all_ways((gather, 0), &one_lane, claims, 100, &mut Rng(7)).unwrap();
}

/// The interpreter must be able to see what the verifier warns of.
#[test]
fn unsafe_references_really_give_wrong_results() {
    for (c, name) in [
        (Collective::AllReduce, "one_shot"),
        (Collective::AllReduce, "recursive_doubling"),
        (Collective::Scan, "doubling"),
        (Collective::Exscan, "chain"),
    ] {
        let a = Algorithm::by_name(c, name).unwrap();
        let programs = a.programs(&Groups::flat(4), 0);
        let claimed = Claims { ref_safe: true, ..claims(a) };
        assert!(run_all_ways((c, 0), &programs, claimed, 200, &mut Rng(7)).is_err(), "{name}");
    }
    for c in [Collective::AllReduce, Collective::AllGather, Collective::ReduceScatter] {
        let ring = Algorithm::by_name(c, "ring").unwrap();
        let (programs, shallow) = (ring.programs(&Groups::flat(4), 0), Claims { depth: 1, ..claims(ring) });
        let error = run_all_ways((c, 0), &programs, shallow, 100, &mut Rng(7)).unwrap_err();
        assert!(error.contains("deadlock"), "{error}");
    }
}

/// Changes schedules at random; what the verifier still accepts must compute the right result.
#[test]
fn mutants_are_refused_or_harmless() {
    let per_kind = if cfg!(debug_assertions) { 1 } else { 4 };
    let mut rng = Rng(20);
    let mut count: BTreeMap<(Kind, bool), [usize; 2]> = BTreeMap::new();
    for (a, groups, root) in small_cases() {
        if groups.n() == 1 {
            continue;
        }
        let programs = a.programs(&groups, root);
        for (kind, everywhere) in Kind::ALL.iter().flat_map(|&k| [(k, false), (k, true)]) {
            for _ in 0..per_kind {
                let Some(mutant) = kind.mutate(&programs, everywhere, &mut rng) else { continue };
                let accepted = check(a.collective, root, &mutant, claims(a)).is_ok();
                let tally = count.entry((kind, everywhere)).or_default();
                tally[usize::from(accepted)] += 1;
                if accepted {
                    run_all_ways((a.collective, root), &mutant, claims(a), 8, &mut rng).unwrap_or_else(|e| {
                        panic!("{a:?}, root {root}, {groups:?}, {kind:?}, everywhere {everywhere}: accepted, but {e}")
                    });
                    assert!(
                        everywhere || !kind.always_wrong(),
                        "{a:?}, root {root}, {groups:?}: {kind:?} on one rank is never harmless"
                    );
                }
            }
        }
    }
    let (mut refused, mut accepted) = (0, 0);
    for ((kind, everywhere), [no, yes]) in &count {
        let place = if *everywhere { "on all ranks" } else { "on one rank" };
        println!("{:14} {place:12} {no:6} refused {yes:6} accepted", format!("{kind:?}"));
        (refused, accepted) = (refused + no, accepted + yes);
    }
    println!("{refused} refused, {accepted} accepted and run");
    assert!(refused > 10_000 && accepted > 500, "{refused} + {accepted}");
    let tried = count.values().filter(|c| c[0] + c[1] > 50).count();
    assert_eq!(tried, 2 * Kind::ALL.len(), "every kind of change was tried often");
}

//! Schedules: proofs of all algorithms, faults that must be found, and mutants whose acceptance is
//! checked by running them in a small interpreter that shares nothing with the verifier.

mod schedules {
    pub mod interpreter;
    pub mod mutate;
}

use std::collections::BTreeMap;

use graccl::schedule::{
    Algorithm, Arg, ArgKind, Claims, Collective, FaultKind, Groups, Program, algorithms, check, groupings,
    live_at, verify, verify_up_to,
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
    let max = if cfg!(debug_assertions) { 20 } else { 64 };
    let sum = verify_up_to(max, &mut |line| println!("{line}")).unwrap();
    println!("{sum:?}");
    let hierarchical = (1..=max).map(|n| groupings(n).len()).sum::<usize>();
    assert_eq!(sum.schedules, 6 * max + 2 * hierarchical);
}

#[test]
fn one_less_than_the_declared_depth_deadlocks() {
    for a in algorithms().iter().filter(|a| a.min_depth > 1) {
        for n in 2..=24 {
            for groups in if a.hierarchical { groupings(n) } else { vec![Groups::flat(n)] } {
                // A single group needs no ring of leaders.
                if a.name == "hier_leader" && groups.len() == 1 {
                    continue;
                }
                let fault = live_at(&a.programs(&groups, 0), a.min_depth - 1).unwrap_err();
                assert_eq!(fault.kind, FaultKind::Deadlock, "{} {groups:?}: {fault}", a.name);
            }
        }
    }
}

#[test]
fn what_is_not_declared_safe_is_not() {
    for a in algorithms().iter().filter(|a| !a.ref_safe) {
        let fault = check(
            Collective::AllReduce,
            0,
            &a.programs(&Groups::flat(4), 0),
            Claims { ref_safe: true, ..claims(a) },
        )
        .unwrap_err();
        assert_eq!(fault.kind, FaultKind::Race, "{}: {fault}", a.name);
    }
    assert!(algorithms().iter().all(|a| a.ref_safe || !a.reply_safe));
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
        let op = p.lanes[0].ops[0];
        assert_eq!((p.lanes.len(), p.lanes[0].ops.len()), (1, 1), "{}", a.name);
        assert_eq!((op.len, op.nsrc, op.ndst, op.complete), (p.chunks, 1, 1, true), "{}", a.name);
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
}

// ---- seeded faults ----

/// Applies `change` to rank 1's only lane and returns the kind of fault that is found.
fn seeded(name: &str, n: usize, change: impl Fn(&mut Vec<Step>)) -> FaultKind {
    let a = by_name(name);
    let mut programs = a.programs(&Groups::flat(n), 0);
    assert!(check(Collective::AllReduce, 0, &programs, claims(a)).is_ok());
    let mut steps = unpack(&programs[1].lanes[0]);
    change(&mut steps);
    programs[1].lanes[0] = pack(&steps, &programs[1].lanes[0].peers);
    match check(Collective::AllReduce, 0, &programs, claims(a)) {
        Ok(_) => panic!("{name}: the fault was not found"),
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
fn a_channel_with_two_lanes_at_one_end_is_refused() {
    let ring = by_name("ring");
    let mut programs = ring.programs(&Groups::flat(3), 0);
    let lane = programs[0].lanes[0].clone();
    let steps = unpack(&lane);
    programs[0].lanes = vec![pack(&steps[..2], &lane.peers), pack(&steps[2..], &lane.peers)];
    let fault = check(Collective::AllReduce, 0, &programs, claims(ring)).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unmatched);
    assert!(fault.text.contains("another lane"), "{fault}");
}

// ---- running them ----

fn small_cases() -> Vec<(&'static Algorithm, Groups)> {
    let mut cases = Vec::new();
    for a in algorithms() {
        for n in 1..=8 {
            let all = if a.hierarchical { groupings(n) } else { vec![Groups::flat(n)] };
            cases.extend(all.into_iter().map(|g| (a, g)));
        }
    }
    cases
}

/// Runs a schedule under several orders, sizes, tiles, depths, in place and apart.
fn run_all_ways(programs: &[Program], claims: Claims, rounds: usize, rng: &mut Rng) -> Result<(), String> {
    for round in 0..rounds {
        for in_place in [false, true] {
            let setting = Setting {
                in_place,
                by_ref: claims.ref_safe && round % 2 == 1,
                reply: claims.reply_safe && round % 4 == 3,
                tiles: if rng.coin() { 1 } else { 3 },
                depth: claims.depth as usize + rng.below(3),
                count: rng.below(4 * programs[0].chunks as usize + 3),
            };
            Run::new(programs, setting, rng.word()).check().map_err(|e| format!("{e} with {setting:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn all_compute_the_sum_in_any_order() {
    let mut rng = Rng(1);
    for (a, groups) in small_cases() {
        run_all_ways(&a.programs(&groups, 0), claims(a), 16, &mut rng)
            .unwrap_or_else(|e| panic!("{} {groups:?}: {e}", a.name));
    }
}

/// The interpreter must be able to see what the verifier warns of.
#[test]
fn unsafe_references_really_give_wrong_sums() {
    for name in ["one_shot", "recursive_doubling"] {
        let a = by_name(name);
        let programs = a.programs(&Groups::flat(4), 0);
        let claimed = Claims { ref_safe: true, ..claims(a) };
        assert!(run_all_ways(&programs, claimed, 200, &mut Rng(7)).is_err(), "{name}");
    }
    let ring = by_name("ring");
    let shallow = Claims { depth: 1, ..claims(ring) };
    let error = run_all_ways(&ring.programs(&Groups::flat(4), 0), shallow, 100, &mut Rng(7)).unwrap_err();
    assert!(error.contains("deadlock"), "{error}");
}

/// Changes schedules at random; what the verifier still accepts must compute the right sum.
#[test]
fn mutants_are_refused_or_harmless() {
    let per_kind = if cfg!(debug_assertions) { 4 } else { 12 };
    let mut rng = Rng(20);
    let mut count: BTreeMap<(Kind, bool), [usize; 2]> = BTreeMap::new();
    for (a, groups) in small_cases() {
        if groups.n() == 1 {
            continue;
        }
        let programs = a.programs(&groups, 0);
        for (kind, everywhere) in Kind::ALL.iter().flat_map(|&k| [(k, false), (k, true)]) {
            for _ in 0..per_kind {
                let Some(mutant) = kind.mutate(&programs, everywhere, &mut rng) else { continue };
                let accepted = check(Collective::AllReduce, 0, &mutant, claims(a)).is_ok();
                count.entry((kind, everywhere)).or_default()[usize::from(accepted)] += 1;
                if accepted {
                    run_all_ways(&mutant, claims(a), 8, &mut rng).unwrap_or_else(|e| {
                        panic!("{} {groups:?}, {kind:?}, everywhere {everywhere}: accepted, but {e}", a.name)
                    });
                }
            }
        }
    }
    let (mut refused, mut accepted) = (0, 0);
    for ((kind, everywhere), [no, yes]) in &count {
        let place = if *everywhere { "on all ranks" } else { "on one rank" };
        println!("{:14} {place:12} {no:6} refused {yes:6} accepted", format!("{kind:?}"));
        (refused, accepted) = (refused + no, accepted + yes);
        if kind.always_wrong() && !everywhere {
            assert_eq!(*yes, 0, "{kind:?} on one rank is never harmless");
        }
    }
    println!("{refused} refused, {accepted} accepted and run");
    assert!(refused > 10_000 && accepted > 500, "{refused} + {accepted}");
    let tried = count.values().filter(|c| c[0] + c[1] > 50).count();
    assert_eq!(tried, 2 * Kind::ALL.len(), "every kind of change was tried often");
}

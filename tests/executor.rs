//! The real executor on virtual-time links: all ranks in one thread, every run decided by its seed.

mod world;

use graccl::Collective::{AllReduce, AllToAll};
use graccl::reduce::Wire;
use graccl::schedule::{Algorithm, Groups, algorithms, algorithms_of, groupings, live_at};
use graccl::transport::virtual_time::Options;
use graccl::{DataType, RedOp};
use world::hand::HAND;
use world::{Call, Case, End, Random, Schedule, Size, run};

const RANKS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24];
const COUNTS: [usize; 13] = [0, 1, 2, 3, 5, 16, 17, 63, 64, 65, 1000, 1003, 70000];

/// Debug builds are slow: they do a part.
fn times(release: u64) -> u64 {
    if cfg!(debug_assertions) { release.div_ceil(20) } else { release }
}

/// Everything that runs: all algorithms of all collectives, and some schedules written by hand.
fn all() -> Vec<Schedule> {
    algorithms().iter().map(Schedule::from).chain(HAND).collect()
}

/// The collective that is used most: one draw in three.
fn any(r: &mut Random) -> Schedule {
    let all = all();
    match r.below(3) {
        0 => {
            let list: Vec<&Algorithm> = algorithms_of(AllReduce).collect();
            let i = r.below(list.len() as u64) as usize;
            Schedule::from(algorithms_of(AllReduce).nth(i).expect("counted"))
        }
        _ => *r.pick(&all),
    }
}

fn groups_for(s: &Schedule, n: usize) -> Vec<Groups> {
    if s.hierarchical { groupings(n) } else { vec![Groups::flat(n)] }
}

/// Blocks of one size, or of any.
fn random_blocks(r: &mut Random, n: usize, blocks: usize) -> Vec<Size> {
    let tiles = *r.pick(&[1, 2, 3, 7]);
    let count = |r: &mut Random| {
        // Large counts cost most of the time.
        let count = *r.pick(&COUNTS);
        if blocks > 16 {
            r.below(40) as usize
        } else if count > 1003 && (n > 9 || blocks > 1 || r.below(4) != 0) {
            1 + r.below(3000 / blocks as u64) as usize
        } else {
            count
        }
    };
    if blocks == 1 || r.flip() {
        return vec![Size { count: count(r), tiles }; blocks];
    }
    let skip = r.below(6);
    let one = |_| {
        let count = if r.below(4) == 0 { 0 } else { count(r) };
        // What is empty is skipped or has empty messages; what is skipped may have elements.
        let tiles = if skip == 0 && r.below(3) == 0 { 0 } else { r.below(u64::from(tiles) + 1) as u32 };
        Size { count, tiles: if count == 0 || skip == 0 { tiles } else { tiles.max(1) } }
    };
    (0..blocks).map(one).collect()
}

fn random_call(r: &mut Random, schedule: Schedule, n: usize, o: &Options) -> Call {
    let blocks = random_blocks(r, n, schedule.collective.blocks(n));
    let in_place = r.flip() && schedule.collective != AllToAll;
    // A reply into memory that was read by reference would go over the input.
    let ref_ok = schedule.ref_safe && (in_place || !(o.reply && o.reply_by_ref));
    Call {
        schedule,
        root: if schedule.collective.rooted() && !HAND.iter().any(|h| h.name == schedule.name) {
            r.below(n as u64) as usize
        } else {
            0
        },
        blocks,
        // Without 8-bit floats where values are computed: they do not hold these data.
        dtype: *r.pick(&DataType::ALL[..if schedule.collective.reduces() { 10 } else { 12 }]),
        // Prefixes are not averaged.
        op: *r.pick(&RedOp::ALL.map(|op| match op {
            RedOp::Avg if !schedule.collective.completes() => RedOp::Sum,
            op => op,
        })),
        ways: *r.pick(&[1u32, 2, 4]),
        in_place,
        by_ref: ref_ok && o.by_ref,
        stream: !in_place && r.flip(),
        rough: r.below(4) == 0,
        shift: if r.flip() { 0 } else { r.below(64) as usize },
        shuffled: r.flip(),
        pack: None,
        residual: false,
        leave: r.flip().then(|| 1 + r.below(5) as u32),
    }
}

fn random_options(r: &mut Random, depth: u32) -> Options {
    Options {
        seed: r.next(),
        latency: *r.pick(&[0, 1, 1000]),
        bandwidth: *r.pick(&[0, 10, 10_000]),
        jitter: *r.pick(&[0, 100, 5000]),
        depth: depth + *r.pick(&[0, 0, 1, 3]),
        ack_lag: *r.pick(&[1, 1, 2, 3]),
        by_ref: r.flip(),
        reply: r.flip(),
        reply_by_ref: r.flip(),
        land: r.flip(),
        capacity: 1 << 20,
    }
}

fn random_case(seed: u64, schedule: Schedule, groups: &Groups) -> Case {
    let mut r = Random(seed);
    let options = random_options(&mut r, 2);
    let mut calls = vec![];
    for i in 0..*r.pick(&[1, 1, 2, 3]) {
        let s = if i == 0 { schedule } else { any(&mut r) };
        calls.push(random_call(&mut r, s, groups.n(), &options));
    }
    let depth = calls.iter().map(|c| c.schedule.min_depth).max().expect("at least one");
    let options = Options { depth: options.depth - 2 + depth, ..options };
    Case { seed, groups: groups.clone(), calls, options, cuts: vec![], corrupt: None, shm: false }
}

/// Runs it; all ranks must finish with the right result.
fn must_finish(case: &Case) -> u64 {
    let out = run(case);
    for (rank, end) in out.ends.iter().enumerate() {
        assert!(matches!(end, End::Finished), "rank {rank}: {end:?}\n{case:#?}");
    }
    out.time
}

#[test]
fn results_are_exact_and_the_same_everywhere() {
    let mut seed = 0;
    for _ in 0..times(12) {
        for schedule in all() {
            for n in RANKS {
                for groups in groups_for(&schedule, n) {
                    seed += 1;
                    must_finish(&random_case(seed, schedule, &groups));
                }
            }
        }
    }
}

/// Small jobs have the odd cases and are quick: many of them.
#[test]
fn small_jobs_in_all_manners() {
    for seed in 1_000_000..1_000_000 + times(6000) {
        let mut r = Random(!seed);
        let schedule = any(&mut r);
        let n = 2 + r.below(4) as usize;
        let groups = groups_for(&schedule, n);
        must_finish(&random_case(seed, schedule, r.pick(&groups)));
    }
}

/// The same on links of shared memory, with buffers that peers read and write in place.
#[test]
fn shared_memory_in_one_thread() {
    for seed in 2_000_000..2_000_000 + times(1500) {
        let mut r = Random(!seed);
        let schedule = any(&mut r);
        let n = 2 + r.below(if seed % 8 == 0 { 8 } else { 4 }) as usize;
        let groups = groups_for(&schedule, n);
        let mut case = random_case(seed, schedule, r.pick(&groups));
        for c in &mut case.calls {
            c.by_ref = c.in_place && c.schedule.ref_safe && r.below(4) != 0;
            // Often long enough to go by reference; never longer than a slot.
            let each = if c.blocks.len() > 1 { 20_000 } else { 200_000 };
            for b in &mut c.blocks {
                b.count = (*r.pick(&[0, 1, 57, 5000, 70_000, 200_000])).min(each) / c.dtype.size();
                b.tiles = b.tiles.max(1);
            }
        }
        case.shm = true;
        must_finish(&case);
    }
}

/// Messages between hosts in forms that round: the same bits everywhere, errors within the bounds.
#[test]
fn packed_messages_round_alike_everywhere() {
    let packing: Vec<Schedule> = all().into_iter().filter(|s| s.packs).collect();
    assert!(packing.len() >= 2);
    for seed in 3_000_000..3_000_000 + times(1500) {
        let mut r = Random(!seed);
        let schedule = *r.pick(&packing);
        let n = 1 + r.below(if seed % 8 == 0 { 24 } else { 6 }) as usize;
        let groups = groups_for(&schedule, n);
        let mut case = random_case(seed, schedule, r.pick(&groups));
        case.calls.truncate(1);
        let call = &mut case.calls[0];
        call.pack = Some(*r.pick(&Wire::ALL));
        call.residual = r.flip();
        (call.dtype, call.rough) = (DataType::F32, true);
        call.op = if r.flip() { RedOp::Sum } else { RedOp::Avg };
        must_finish(&case);
    }
}

#[test]
fn runs_repeat_to_the_nanosecond() {
    for schedule in all() {
        let case = random_case(77, schedule, &Groups::blocks(6, 3));
        assert_eq!(must_finish(&case), must_finish(&case), "{}", schedule.name);
    }
}

/// With one message less than declared, the executor deadlocks exactly where the verifier says so.
#[test]
fn declared_depth_is_enough_and_needed() {
    for schedule in all() {
        let mut dead = 0;
        for n in 2..=9 {
            for groups in groups_for(&schedule, n) {
                let mut r = Random(n as u64);
                let options = Options { reply: false, ..random_options(&mut r, 0) };
                let mut call = random_call(&mut r, schedule, n, &options);
                call.blocks = vec![Size { count: 1000, tiles: 3 }; call.blocks.len()];
                let options = Options { depth: schedule.min_depth, ack_lag: 1, ..options };
                let mut case = Case {
                    seed: 5,
                    groups,
                    calls: vec![call],
                    options,
                    cuts: vec![],
                    corrupt: None,
                    shm: false,
                };
                must_finish(&case);
                if schedule.min_depth > 1 {
                    case.options.depth -= 1;
                    let call = &case.calls[0];
                    let programs: Vec<_> =
                        (0..n).map(|rank| schedule.program(rank, &case.groups, call.root)).collect();
                    let said =
                        live_at(schedule.collective, call.root, &programs, case.options.depth).is_err();
                    let out = run(&case);
                    let found = out.ends.iter().any(|e| matches!(e, End::Deadlock(_)));
                    assert_eq!(said, found, "{:?}\n{case:#?}", out.ends);
                    dead += u32::from(found);
                }
            }
        }
        assert_eq!(dead > 0, schedule.min_depth > 1, "{}", schedule.name);
    }
}

/// A rank dies or a connection breaks: every rank finishes or gets an error, at a finite time.
#[test]
fn cuts_end_every_rank() {
    let (mut broken, mut finished) = (0, 0);
    for seed in 0..times(3000) {
        let mut r = Random(seed ^ 0xc075);
        let schedule = any(&mut r);
        let n = 2 + r.below(8) as usize;
        let groups = groups_for(&schedule, n);
        let mut case = random_case(seed, schedule, r.pick(&groups));
        let time = must_finish(&case);
        for _ in 0..=r.below(2) {
            let rank = r.below(n as u64) as u32;
            let peer = (rank + 1 + r.below(n as u64 - 1) as u32) % n as u32;
            case.cuts.push((r.below(time + 2), rank, r.flip().then_some(peer)));
        }
        for end in run(&case).ends {
            match end {
                End::Finished => finished += 1,
                End::Failed(text) => {
                    assert!(text.contains("Broken"), "{text}\n{case:#?}");
                    broken += 1;
                }
                End::Deadlock(text) => panic!("{text}\n{case:#?}"),
            }
        }
    }
    assert!(broken > 0 && finished > 0, "{broken} broken, {finished} finished");
}

/// A message of another call is noticed by its receiver, and nobody waits for ever.
#[test]
fn wrong_fingerprints_are_noticed() {
    for seed in 0..times(500) {
        let mut r = Random(seed ^ 0xf1f1);
        let schedule = any(&mut r);
        let n = 2 + r.below(6) as usize;
        let groups = groups_for(&schedule, n);
        let mut case = random_case(seed, schedule, r.pick(&groups));
        let from = r.below(n as u64) as u32;
        let to = (from + 1) % n as u32;
        case.corrupt = Some((from, to, r.below(3) as u32));
        let out = run(&case);
        let noticed = |e: &End| matches!(e, End::Failed(t) if t.contains("Fingerprint"));
        let by: Vec<usize> = (0..n).filter(|&rank| noticed(&out.ends[rank])).collect();
        assert!(!out.ends.iter().any(|e| matches!(e, End::Deadlock(_))), "{:?}\n{case:#?}", out.ends);
        // That message may not exist.
        if by.is_empty() {
            assert!(out.ends.iter().all(|e| matches!(e, End::Finished)), "{:?}\n{case:#?}", out.ends);
        } else {
            assert_eq!(by, [to as usize], "{case:#?}");
        }
    }
}

/// Ranks that call with different counts: an error, not a wrong result and not a hang.
#[test]
fn a_message_of_another_length_is_an_error() {
    let algorithm = Algorithm::by_name(AllReduce, "ring").expect("built in");
    let mut case = random_case(3, algorithm.into(), &Groups::flat(3));
    case.calls.truncate(1);
    case.calls[0].blocks = vec![Size { count: 1000, tiles: 1 }];
    let out = world::run_with(&case, &|rank, call| {
        if rank == 1 {
            call.blocks[0].count = 500;
        }
    });
    assert!(out.ends.iter().all(|e| matches!(e, End::Failed(_))), "{:?}", out.ends);
    assert!(out.ends.iter().any(|e| matches!(e, End::Failed(t) if t.contains("Length"))), "{:?}", out.ends);
}

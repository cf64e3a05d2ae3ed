//! The real executor on virtual-time links: all ranks in one thread, every run decided by its seed.

mod world;

use graccl::Collective::AllReduce;
use graccl::schedule::{Algorithm, Groups, algorithms_of, groupings, live_at};
use graccl::transport::virtual_time::Options;
use graccl::{DataType, RedOp};
use world::{Call, Case, End, Random, run};

const RANKS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24];
const COUNTS: [usize; 13] = [0, 1, 2, 3, 5, 16, 17, 63, 64, 65, 1000, 1003, 70000];

/// Debug builds are slow: they do a part.
fn times(release: u64) -> u64 {
    if cfg!(debug_assertions) { release.div_ceil(20) } else { release }
}

fn all() -> Vec<&'static Algorithm> {
    algorithms_of(AllReduce).collect()
}

fn groups_for(a: &Algorithm, n: usize) -> Vec<Groups> {
    if a.hierarchical { groupings(n) } else { vec![Groups::flat(n)] }
}

fn random_call(r: &mut Random, algorithm: &'static Algorithm, n: usize, o: &Options) -> Call {
    // Large counts cost most of the time.
    let mut count = *r.pick(&COUNTS);
    if count > 1003 && (n > 9 || r.below(4) != 0) {
        count = 1 + r.below(3000) as usize;
    }
    let in_place = r.flip();
    // A reply into memory that was read by reference would go over the input.
    let ref_ok = algorithm.ref_safe && (in_place || !(o.reply && o.reply_by_ref));
    let tiles = *r.pick(&[1, 2, 3, 7]);
    Call {
        algorithm,
        count,
        // Without 8-bit floats, which do not hold these data.
        dtype: *r.pick(&DataType::ALL[..10]),
        op: *r.pick(&RedOp::ALL),
        tiles,
        ways: *r.pick(&[1u32, 2, 4]),
        in_place,
        by_ref: ref_ok && o.by_ref,
        stream: !in_place && r.flip(),
        rough: r.below(4) == 0,
        shift: if r.flip() { 0 } else { r.below(64) as usize },
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

fn random_case(seed: u64, algorithm: &'static Algorithm, groups: &Groups) -> Case {
    let mut r = Random(seed);
    let options = random_options(&mut r, 2);
    let mut calls = vec![];
    for i in 0..*r.pick(&[1, 1, 2, 3]) {
        let a = if i == 0 { algorithm } else { *r.pick(&all()) };
        calls.push(random_call(&mut r, a, groups.n(), &options));
    }
    let depth = calls.iter().map(|c| c.algorithm.min_depth).max().expect("at least one");
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
        for algorithm in all() {
            for n in RANKS {
                for groups in groups_for(algorithm, n) {
                    seed += 1;
                    must_finish(&random_case(seed, algorithm, &groups));
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
        let algorithm = *r.pick(&all());
        let n = 2 + r.below(4) as usize;
        let groups = groups_for(algorithm, n);
        must_finish(&random_case(seed, algorithm, r.pick(&groups)));
    }
}

/// The same on links of shared memory, with buffers that peers read and write in place.
#[test]
fn shared_memory_in_one_thread() {
    for seed in 2_000_000..2_000_000 + times(1500) {
        let mut r = Random(!seed);
        let algorithm = *r.pick(&all());
        let n = 2 + r.below(if seed % 8 == 0 { 8 } else { 4 }) as usize;
        let groups = groups_for(algorithm, n);
        let mut case = random_case(seed, algorithm, r.pick(&groups));
        for c in &mut case.calls {
            c.by_ref = c.in_place && c.algorithm.ref_safe && r.below(4) != 0;
            // Often long enough to go by reference; never longer than a slot.
            c.count = (*r.pick(&[0, 1, 57, 5000, 70_000, 200_000])) / c.dtype.size();
        }
        case.shm = true;
        must_finish(&case);
    }
}

#[test]
fn runs_repeat_to_the_nanosecond() {
    for algorithm in all() {
        let case = random_case(77, algorithm, &Groups::blocks(6, 3));
        assert_eq!(must_finish(&case), must_finish(&case), "{}", algorithm.name);
    }
}

/// With one message less than declared, the executor deadlocks exactly where the verifier says so.
#[test]
fn declared_depth_is_enough_and_needed() {
    for algorithm in all() {
        let mut dead = 0;
        for n in 2..=9 {
            for groups in groups_for(algorithm, n) {
                let mut r = Random(n as u64);
                let options = Options { reply: false, ..random_options(&mut r, 0) };
                let mut call = random_call(&mut r, algorithm, n, &options);
                call.count = 1000;
                let options = Options { depth: algorithm.min_depth, ack_lag: 1, ..options };
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
                if algorithm.min_depth > 1 {
                    case.options.depth -= 1;
                    let said =
                        live_at(AllReduce, 0, &algorithm.programs(&case.groups, 0), case.options.depth)
                            .is_err();
                    let out = run(&case);
                    let found = out.ends.iter().any(|e| matches!(e, End::Deadlock(_)));
                    assert_eq!(said, found, "{:?}\n{case:#?}", out.ends);
                    dead += u32::from(found);
                }
            }
        }
        assert_eq!(dead > 0, algorithm.min_depth > 1, "{}", algorithm.name);
    }
}

/// A rank dies or a connection breaks: every rank finishes or gets an error, at a finite time.
#[test]
fn cuts_end_every_rank() {
    let (mut broken, mut finished) = (0, 0);
    for seed in 0..times(3000) {
        let mut r = Random(seed ^ 0xc075);
        let algorithm = *r.pick(&all());
        let n = 2 + r.below(8) as usize;
        let groups = groups_for(algorithm, n);
        let mut case = random_case(seed, algorithm, r.pick(&groups));
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
        let algorithm = *r.pick(&all());
        let n = 2 + r.below(6) as usize;
        let groups = groups_for(algorithm, n);
        let mut case = random_case(seed, algorithm, r.pick(&groups));
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
    let mut case = random_case(3, algorithm, &Groups::flat(3));
    case.calls.truncate(1);
    case.calls[0].count = 1000;
    case.calls[0].tiles = 1;
    let out = world::run_with(&case, &|rank, call| {
        if rank == 1 {
            call.count = 500;
        }
    });
    assert!(out.ends.iter().all(|e| matches!(e, End::Failed(_))), "{:?}", out.ends);
    assert!(out.ends.iter().any(|e| matches!(e, End::Failed(t) if t.contains("Length"))), "{:?}", out.ends);
}

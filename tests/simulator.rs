//! The simulator against a second one: the schedules' GOAL text, played by an interpreter that shares nothing
//! with it and was written from the definition of LogGOPS (Hoefler, Schneider, Lumsdaine: LogGOPSim, 2010).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use graccl::cost::{Curve, Level, Machine};
use graccl::schedule::{Groups, algorithms, goal, groupings};
use graccl::sim::{Noise, Shape, simulate};

/// LogGOPS parameters: ns, and ns per byte. `S`, the rendezvous threshold, is infinite.
#[derive(Clone, Copy)]
struct LogGops {
    l: u64,
    /// Of a send; receives have none.
    o: u64,
    /// Per byte, in 1/1024 ns.
    cpu_per_byte: u64,
    nic_per_byte: u64,
}

#[derive(Debug)]
enum What {
    Calc(u64),
    Send { bytes: u64, to: usize, tag: u32 },
    Recv { from: usize, tag: u32 },
}

struct Task {
    what: What,
    missing: usize,
    then: Vec<usize>,
}

/// Reads GOAL: `num_ranks N`, `rank R {`, `L: calc N`, `L: send Nb to R tag T`, `L: recv Nb from R tag T`,
/// `L requires M`, `}`.
fn parse(text: &str) -> Vec<Vec<Task>> {
    let mut ranks: Vec<Vec<Task>> = Vec::new();
    let mut labels: HashMap<String, usize> = HashMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] | ["}"] => {}
            ["num_ranks", _] => {}
            ["rank", r, "{"] => {
                assert_eq!(r.parse::<usize>().unwrap(), ranks.len());
                ranks.push(Vec::new());
                labels.clear();
            }
            [label, "requires", other] => {
                let tasks = ranks.last_mut().unwrap();
                let (me, before) = (labels[label], labels[other]);
                tasks[before].then.push(me);
                tasks[me].missing += 1;
            }
            [label, ref rest @ ..] => {
                let number = |w: &str| w.trim_end_matches('b').parse::<u64>().unwrap();
                let what = match *rest {
                    ["calc", n] => What::Calc(number(n)),
                    ["send", n, "to", r, "tag", t] => {
                        What::Send { bytes: number(n), to: number(r) as usize, tag: number(t) as u32 }
                    }
                    ["recv", _, "from", r, "tag", t] => {
                        What::Recv { from: number(r) as usize, tag: number(t) as u32 }
                    }
                    _ => panic!("not GOAL: {line}"),
                };
                let tasks = ranks.last_mut().unwrap();
                labels.insert(label.trim_end_matches(':').to_string(), tasks.len());
                tasks.push(Task { what, missing: 0, then: Vec::new() });
            }
        }
    }
    ranks
}

/// In units of 1/1024 ns, so that everything is whole.
const UNIT: u64 = 1024;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    /// A task may start: everything that it requires is done.
    Ready(usize),
    Done(usize),
    /// A message wants its sender's network interface, then its receiver's.
    Out {
        bytes: u64,
        to: usize,
        tag: u32,
    },
    In {
        bytes: u64,
        from: usize,
        tag: u32,
    },
    Arrived {
        from: usize,
        tag: u32,
    },
}

/// When the last task of the last rank is done, ns.
fn play(text: &str, p: LogGops) -> f64 {
    let mut ranks = parse(text);
    let n = ranks.len();
    let mut heap: BinaryHeap<Reverse<(u64, u64, usize, Happens)>> = BinaryHeap::new();
    let mut order = 0;
    let mut push = |heap: &mut BinaryHeap<_>, time: u64, rank: usize, what: Happens| {
        order += 1;
        heap.push(Reverse((time, order, rank, what)));
    };
    for (r, tasks) in ranks.iter().enumerate() {
        for (t, task) in tasks.iter().enumerate() {
            if task.missing == 0 {
                push(&mut heap, 0, r, Happens::Ready(t));
            }
        }
    }
    let (mut cpu, mut out, mut into) = (vec![0u64; n], vec![0u64; n], vec![0u64; n]);
    let mut arrived: HashMap<(usize, usize, u32), u64> = HashMap::new();
    let mut posted: HashMap<(usize, usize, u32), VecDeque<usize>> = HashMap::new();
    let mut end = 0;
    while let Some(Reverse((now, _, r, what))) = heap.pop() {
        match what {
            Happens::Ready(t) => match ranks[r][t].what {
                What::Calc(ns) => {
                    cpu[r] = cpu[r].max(now) + ns * UNIT;
                    push(&mut heap, cpu[r], r, Happens::Done(t));
                }
                What::Send { bytes, to, tag } => {
                    cpu[r] = cpu[r].max(now) + p.o * UNIT + p.cpu_per_byte * bytes;
                    push(&mut heap, cpu[r], r, Happens::Done(t));
                    push(&mut heap, cpu[r], r, Happens::Out { bytes, to, tag });
                }
                What::Recv { from, tag } => {
                    let waiting = arrived.entry((r, from, tag)).or_default();
                    if *waiting > 0 {
                        *waiting -= 1;
                        push(&mut heap, now, r, Happens::Done(t));
                    } else {
                        posted.entry((r, from, tag)).or_default().push_back(t);
                    }
                }
            },
            Happens::Out { bytes, to, tag } => {
                let start = out[r].max(now);
                out[r] = start + p.nic_per_byte * bytes;
                push(&mut heap, start + p.l * UNIT, to, Happens::In { bytes, from: r, tag });
            }
            Happens::In { bytes, from, tag } => {
                into[r] = into[r].max(now) + p.nic_per_byte * bytes;
                push(&mut heap, into[r], r, Happens::Arrived { from, tag });
            }
            Happens::Arrived { from, tag } => match posted.entry((r, from, tag)).or_default().pop_front() {
                Some(t) => push(&mut heap, now, r, Happens::Done(t)),
                None => *arrived.entry((r, from, tag)).or_default() += 1,
            },
            Happens::Done(t) => {
                end = end.max(now);
                let then = std::mem::take(&mut ranks[r][t].then);
                for next in then {
                    ranks[r][next].missing -= 1;
                    if ranks[r][next].missing == 0 {
                        push(&mut heap, now, r, Happens::Ready(next));
                    }
                }
            }
        }
    }
    let left: usize = posted.values().map(VecDeque::len).sum();
    assert_eq!(left, 0, "receives without messages");
    end as f64 / UNIT as f64
}

fn machine(p: LogGops) -> Machine {
    let level = Level {
        send: Curve::line(p.o as f64, p.cpu_per_byte as f64 / UNIT as f64),
        recv: Curve::default(),
        latency: p.l as f64,
        link: Curve::line(0.0, p.nic_per_byte as f64 / UNIT as f64),
        links: 0,
        depth: 1000,
        credits: 0,
        on_core: None,
    };
    // GOAL text counts a fold at 8 bytes per ns, and copies as nothing.
    Machine { inside: level.clone(), across: level, ..Machine::alpha_beta(0.0, 0.0, 0.125) }
}

#[track_caller]
fn agree(name: &str, groups: &Groups, p: LogGops, block: u64, tiles: u32) {
    for a in algorithms().iter().filter(|a| name.is_empty() || a.name == name) {
        // With links, a message within a host would have others than one across; here ranks have one.
        if a.hierarchical && p.nic_per_byte > 0 && groups.len() > 1 && groups.len() < groups.n() {
            continue;
        }
        let programs = a.programs(groups, 0);
        let shape = Shape { block, tiles, ways: 1, in_place: true };
        let ours = simulate(&programs, groups, &machine(p), shape, &Noise::default()).unwrap().ns;
        let theirs = play(&goal(&programs, block, tiles), p);
        // Lanes share a core, and GOAL does not say which goes first: there times only agree roughly.
        let lanes = programs.iter().map(|p| p.lanes.len()).max().unwrap_or(0);
        let most = if lanes > 1 && tiles > 1 { 0.1 } else { 1e-9 };
        assert!(
            (ours - theirs).abs() <= most * theirs.max(1.0),
            "{a:?}, {} ranks on {} hosts, {block} B in {tiles} tiles: {ours} here, {theirs} from its GOAL text",
            groups.n(),
            groups.len()
        );
    }
}

#[test]
fn goal_text_takes_the_same_time() {
    let cores = LogGops { l: 2000, o: 300, cpu_per_byte: 100, nic_per_byte: 0 };
    for n in 1..=12 {
        for groups in groupings(n) {
            for (block, tiles) in [(64 * 8 * 60, 1), (640, 1), (64 * 8 * 600, 5)] {
                agree("", &groups, cores, block, tiles);
            }
        }
    }
}

#[test]
fn goal_text_takes_the_same_time_over_links() {
    let links = LogGops { l: 2000, o: 300, cpu_per_byte: 0, nic_per_byte: 200 };
    for n in 2..=16 {
        agree("", &Groups::flat(n), links, 64 * 8 * 60 * n as u64, 1);
        agree("", &Groups::flat(n), links, 64 * 8 * 60 * n as u64, 3);
    }
}

/// The interpreter itself, by hand.
#[test]
fn the_interpreter_adds_up() {
    let p = LogGops { l: 1000, o: 10, cpu_per_byte: 512, nic_per_byte: 2048 };
    let text = "num_ranks 2\nrank 0 {\nl1: calc 100\nl2: send 64b to 1 tag 0\nl2 requires l1\n\
                l3: send 64b to 1 tag 0\nl3 requires l1\n}\nrank 1 {\nl1: recv 64b from 0 tag 0\n\
                l2: recv 64b from 0 tag 0\nl3: calc 7\nl3 requires l1\nl3 requires l2\n}\n";
    // The second message waits for the first one's bytes: 100 + 42, and 128 + 128 ns on the link.
    assert_eq!(play(text, p), 100.0 + 42.0 + 128.0 + 128.0 + 1000.0 + 7.0);
}

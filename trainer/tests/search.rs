//! The search, on a problem whose best setting is known, and by the program.

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{images, text};

use graccl::{Call, Collective, Communicator, Config, DataType, Error, RedOp, Result};
use graccl_trainer::search::{Grid, Search, Setting, Trial, best, run};

/// Least for a rate of 0.2, a warm-up of 0.15 and a trust coefficient of 0.02. It comes down with the steps, and large
/// rates diverge.
fn loss(s: &Setting, steps: u64) -> f64 {
    if s.rate > 5.0 {
        return f64::NAN;
    }
    let far = (s.rate / 0.2).ln().powi(2) + (s.trust / 0.02).ln().powi(2) + 30.0 * (s.warmup - 0.15).powi(2);
    far + 1.0 / steps as f64
}

fn coarse(groups: usize) -> Search {
    let grid = Grid {
        rate: vec![0.001, 0.01, 0.1, 1.0, 10.0],
        warmup: vec![0.0, 0.3],
        trust: vec![0.0001, 0.001, 0.01],
    };
    Search { grid, refinements: 4, steps: 4, rungs: 3, groups }
}

/// Runs on ranks that are threads; steps of all trainings of each rank.
fn on(ranks: usize, search: &Search) -> Vec<(Vec<Trial>, u64)> {
    let comms = Communicator::init_all(ranks, &Config::default()).unwrap();
    let rank = |comm: Communicator| {
        let work = AtomicU64::new(0);
        let trials = run(&comm, search, |own: &Communicator, setting, steps| {
            assert_eq!(own.size(), ranks / search.groups);
            work.fetch_add(steps, Ordering::Relaxed);
            // A training talks to the others of its group.
            let mut parts = [loss(setting, steps) / own.size() as f64];
            let p = parts.as_mut_ptr().cast::<u8>();
            let call = Call::new(Collective::AllReduce, p, p, 1, DataType::F64, RedOp::Sum);
            // SAFETY: the array is ours for the call.
            unsafe { own.call(&call)? };
            Ok(parts[0])
        });
        (trials.unwrap(), work.into_inner())
    };
    std::thread::scope(|s| {
        let all: Vec<_> = comms.into_iter().map(|c| s.spawn(move || rank(c))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn the_known_best_is_found_and_all_ranks_agree() {
    let alone = on(1, &coarse(1));
    let found = best(&alone[0].0).setting;
    assert!((found.rate / 0.2).ln().abs() < 0.15, "{found:?}");
    assert!((found.trust / 0.02).ln().abs() < 0.15, "{found:?}");
    assert!((found.warmup - 0.15).abs() < 0.02, "{found:?}");
    // Better than the coarse grid alone.
    let first: Vec<Trial> = alone[0].0.iter().filter(|t| t.round == 0).copied().collect();
    assert!(best(&alone[0].0).loss < 0.2 * best(&first).loss);
    for (ranks, groups) in [(2, 2), (4, 2), (4, 1)] {
        for (trials, _) in on(ranks, &coarse(groups)) {
            let same = |(a, b): (&Trial, &Trial)| {
                (a.setting, a.steps) == (b.setting, b.steps)
                    && (a.loss == b.loss || (a.loss - b.loss).abs() < 1e-12)
            };
            assert!(trials.len() == alone[0].0.len() && trials.iter().zip(&alone[0].0).all(same));
        }
    }
}

#[test]
fn the_hopeless_stop_early_and_groups_share_the_work() {
    let search = Search { refinements: 0, ..coarse(1) };
    let (trials, work) = on(1, &search).remove(0);
    let of_rung = |r| trials.iter().filter(|t| t.rung == r).count();
    // 30, a third of them, a third of these; 4, 12 and 36 steps.
    assert_eq!([of_rung(0), of_rung(1), of_rung(2)], [30, 10, 4]);
    assert_eq!(work, 30 * 4 + 10 * 12 + 4 * 36);
    // What diverged is infinitely bad, and goes no further.
    assert!(trials.iter().filter(|t| t.setting.rate == 10.0).all(|t| t.loss == f64::INFINITY && t.rung == 0));
    let shared = on(2, &Search { groups: 2, ..search });
    assert_eq!(shared[0].1, work / 2);
    assert_eq!(shared[1].1, work / 2);
}

#[test]
fn a_search_that_makes_no_sense_is_refused_and_failures_are_passed_on() {
    let comm = Communicator::init_all(1, &Config::default()).unwrap().remove(0);
    let refused = |s: Search| run(&comm, &s, |_, _, _| Ok(0.0)).unwrap_err().to_string();
    let grid = coarse(1).grid;
    assert!(refused(Search { groups: 2, ..coarse(1) }).contains("2 groups of 1 ranks"));
    assert!(refused(Search { steps: 0, ..coarse(1) }).contains("0 steps"));
    for bad in [vec![], vec![1.0, 0.1], vec![0.0, 1.0], vec![f64::NAN]] {
        assert!(
            refused(Search { grid: Grid { rate: bad, ..grid.clone() }, ..coarse(1) }).contains("cannot have")
        );
    }
    let failed: Result<_> = run(&comm, &coarse(1), |_, _, _| Err(Error::argument("no data")));
    assert!(failed.unwrap_err().to_string().contains("no data"));
}

#[test]
fn the_program_searches_on_two_ranks_and_says_what_to_train_with() {
    let data = images("search");
    let (csv, svg) = (data.join("search.csv"), data.join("search.svg"));
    let search = |more: &str| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_graccl-train"));
        c.arg("search").arg("--data").arg(&data).args([
            "--model",
            "alexnet-bn",
            "--width",
            "4",
            "--batch",
            "32",
        ]);
        c.args(more.split(' ')).output().unwrap()
    };
    let files = format!("--csv {} --svg {}", csv.display(), svg.display());
    // The first rate moves nothing, the last one diverges.
    let o =
        search(&format!("--np 2 --rates 0.000001,0.05,1000000 --warm-ups 0.2 --rungs 2 --epochs 5 {files}"));
    let said = text(&o);
    assert!(o.status.success(), "{said}");
    let table = std::fs::read_to_string(&csv).unwrap();
    let trials: Vec<Vec<f64>> =
        table.lines().skip(1).map(|l| l.split(',').map(|w| w.parse().unwrap()).collect()).collect();
    // Of 3, one goes on; twice.
    assert_eq!(trials.iter().map(|t| t[5] as u64).collect::<Vec<_>>(), [10, 10, 10, 30, 10, 10, 10, 30]);
    assert_eq!(trials[3][2], 0.05);
    assert!(trials[3][6] < trials[0][6], "{table}");
    assert_eq!(trials[2][6], f64::INFINITY, "{table}");
    let best = said.lines().find(|l| l.starts_with("best: ")).unwrap();
    assert!(std::fs::read_to_string(&svg).unwrap().contains("</svg>"));
    // The line is what a training takes.
    let mut train = Command::new(env!("CARGO_BIN_EXE_graccl-train"));
    train.args(["--model", "alexnet-bn", "--width", "4", "--batch", "32", "--epochs", "5", "--stop", "2"]);
    let o = train.arg("--data").arg(&data).args(best["best: ".len()..].split(' ')).output().unwrap();
    assert!(
        o.status.success() && best.contains("--update sgd --rate 0.0") && best.contains("--warm-up 1"),
        "{best}"
    );
    // One group of both ranks, and LARS.
    let o =
        search("--np 2 --groups 1 --update lars --rates 1 --warm-ups 0 --rungs 1 --steps 3 --refinements 0");
    assert!(text(&o).contains("best: --update lars --rate 1 --warm-up 0 --trust 0.0"), "{}", text(&o));
    let said = text(&search("--np 2 --groups 3"));
    assert!(said.contains("3 groups of 2 ranks"), "{said}");
}

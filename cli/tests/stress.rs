//! `graccl stress`: short rounds of every kind. Longer ones are for whoever has the time.

mod common;

use std::process::Output;
use std::time::Duration;

use common::*;
use serde_json::Value;

/// Rounds of all kinds, and of all settings.
const SEEDS: [u64; 12] = [20000, 20002, 20004, 20005, 20006, 20008, 20010, 20016, 20017, 21000, 21002, 21004];
/// A round lasts some seconds; a hang in it is found after half a minute.
const DEADLINE: Duration = Duration::from_secs(150);

fn stress(seed: u64, more: &[&str]) -> Output {
    let seed = seed.to_string();
    let child = graccl(&[&["stress", "--seed", &seed, "--json"], more].concat()).spawn().unwrap();
    finish_within(child, DEADLINE)
}

fn result(o: &Output) -> Value {
    serde_json::from_str(&out(o)).unwrap_or_else(|e| panic!("{e}: {}\n{}", out(o), err(o)))
}

/// One round each: nothing breaks, kills, cuts with and without return, aborts.
#[test]
fn rounds_of_all_kinds_are_right() {
    let mut faults = std::collections::BTreeMap::<String, u64>::new();
    let mut calls = 0;
    for seed in SEEDS {
        let o = stress(seed, &["--time", "1"]);
        let v = result(&o);
        assert!(o.status.success(), "{}", err(&o));
        assert_eq!(v["rounds"], 1);
        for what in ["wrong", "hangs", "leaks", "errors"] {
            assert_eq!(v[what], 0, "{what}: {v}");
        }
        for (name, n) in v["faults"].as_object().unwrap() {
            *faults.entry(name.clone()).or_default() += n.as_u64().unwrap();
        }
        calls += v["calls"].as_u64().unwrap();
    }
    for kind in ["delay", "stop", "kill", "cut", "abort"] {
        assert!(faults.contains_key(kind), "no {kind} in {faults:?}");
    }
    assert!(calls > 1000, "{calls} calls");
}

#[test]
fn the_number_of_ranks_can_be_chosen() {
    let o = stress(SEEDS[0], &["--time", "1", "--np", "3"]);
    assert!(o.status.success(), "{}", err(&o));
    assert!(err(&o).contains(": 3 ranks on "), "{}", err(&o));
    let o = run(&["stress", "--np", "1"]);
    assert_eq!(o.status.code(), Some(2), "{}", err(&o));
}

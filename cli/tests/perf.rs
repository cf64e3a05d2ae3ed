//! `graccl perf`, `verify` and `show`, as far as one rank goes.

mod common;

use common::{err, finish, graccl, out, run};

/// The table's rows, as fields.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(|l| l.split_whitespace().collect()).collect()
}

#[test]
fn the_table_is_that_of_nccl_tests() {
    let o =
        run(&["perf", "all_reduce", "--np", "1", "-b", "8", "-e", "64K", "-f", "8", "-n", "3", "-G", "1"]);
    assert!(o.status.success(), "{}", err(&o));
    let text = out(&o);
    let rows = rows(&text);
    let sizes: Vec<_> = rows.iter().map(|r| r[0]).collect();
    assert_eq!(sizes, ["8", "64", "512", "4096", "32768"]);
    for row in &rows {
        assert_eq!(row[2..5], ["float", "sum", "-1"]);
        assert_eq!((row[8], row[12]), ("0", "0"), "#wrong");
        for number in &row[5..17] {
            assert!(number.parse::<f64>().is_ok(), "{row:?}");
        }
    }
    for line in [
        "# Collective test starting: all_reduce",
        "# ignored, without effect here: -G",
        "# Out of bounds values : 0 OK",
        "# Avg bus bandwidth    : ",
        "# Collective test concluded: all_reduce",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.contains("#  Rank  0 Group  0 Pid "));
    assert!(!err(&o).contains('\r'), "no progress bar where nobody watches");
}

#[test]
fn all_types_and_operations() {
    let o = run(&[
        "perf",
        "all_reduce",
        "--np",
        "1",
        "-b",
        "64",
        "-e",
        "64",
        "-n",
        "1",
        "-o",
        "all",
        "-d",
        "all",
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let text = out(&o);
    let mut kinds: Vec<_> = rows(&text).iter().map(|r| format!("{} {} {}", r[2], r[3], r[12])).collect();
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds.len(), 60);
    assert!(kinds.iter().all(|k| k.ends_with(" 0")), "{kinds:?}");
}

#[test]
fn unchecked_results_say_so_and_registered_memory_works() {
    let o = run(&[
        "perf",
        "all_reduce",
        "--np",
        "1",
        "-e",
        "8",
        "-n",
        "1",
        "-c",
        "0",
        "--memory",
        "registered",
        "--pin",
    ]);
    assert!(o.status.success(), "{}", err(&o));
    let text = out(&o);
    assert_eq!((rows(&text)[0][8], rows(&text)[0][12]), ("N/A", "N/A"));
    assert!(text.contains("memory: registered") && text.contains(" cpu "), "{text}");
}

#[test]
fn json_has_the_keys_of_nccl_tests() {
    let path = std::env::temp_dir().join(format!("graccl-perf-{}.json", std::process::id()));
    let file = path.to_str().unwrap();
    let o = run(&["perf", "all_reduce", "--np", "1", "-b", "8", "-e", "16", "-n", "2", "-J", file]);
    assert!(o.status.success(), "{}", err(&o));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["version"], 2);
    assert_eq!(json["config"]["minimum_bytes"], 8);
    assert_eq!(json["config"]["step_factor"], 2);
    assert_eq!(json["config"]["devices"][0]["rank"], 0);
    assert_eq!(json["results"].as_array().unwrap().len(), 2);
    let row = &json["results"][1];
    assert_eq!(
        (&row["size"], &row["count"], &row["type"], &row["redop"]),
        (&16.into(), &4.into(), &"float".into(), &"sum".into())
    );
    for place in ["out_of_place", "in_place"] {
        assert_eq!(row[place]["nwrong"], 0);
        for key in ["time", "alg_bw", "bus_bw"] {
            assert!(row[place][key].is_number(), "{place} {key}");
        }
    }
    assert!(row["in_place_per_iter"]["p99_us"].is_number());
    assert_eq!(json["out_of_bounds"]["count"], 0);
    assert_eq!(json["out_of_bounds"]["okay"], "true");
    assert!(json["average_bus_bandwidth"]["bandwidth"].is_number());
}

#[test]
fn under_a_launcher_it_joins() {
    let args = ["perf", "all_reduce", "-e", "8", "-n", "1"];
    let launched =
        graccl(&args).env("OMPI_COMM_WORLD_RANK", "0").env("OMPI_COMM_WORLD_SIZE", "1").spawn().unwrap();
    let pid = launched.id();
    let o = finish(launched);
    assert!(o.status.success(), "{}", err(&o));
    let text = out(&o);
    assert!(text.contains(&format!("Pid {pid:>6} ")), "this very process is the rank\n{text}");
    let o = finish(
        graccl(&["perf", "all_reduce", "--np", "4"]).env("RANK", "0").env("WORLD_SIZE", "1").spawn().unwrap(),
    );
    assert_eq!(o.status.code(), Some(2));
    assert!(err(&o).contains("--np 4, but the launcher started 1 ranks"), "{}", err(&o));
}

#[test]
fn tensors_of_a_model_and_of_a_file() {
    let o = run(&["perf", "all_reduce", "--np", "1", "-n", "1", "--tensors", "resnet50"]);
    assert!(o.status.success(), "{}", err(&o));
    let text = out(&o);
    assert!(text.contains("resnet50: 161 tensors, 25557032 elements, 102.2 MB"), "{text}");
    assert!(text.contains("one call per tensor") && text.contains("fused"), "{text}");
    let path = std::env::temp_dir().join(format!("graccl-tensors-{}.csv", std::process::id()));
    std::fs::write(&path, "tensor,elements,type,ready_us\na,1000,f32,1\nb,24,half,2\nc,3,f32,2\n").unwrap();
    let o = run(&["perf", "all_reduce", "--np", "1", "-n", "1", "--tensors", path.to_str().unwrap()]);
    std::fs::write(&path, "tensor,elements,type,ready_us\na,1000,f32,1\nb,many,f32,1\n").unwrap();
    let bad = run(&["perf", "all_reduce", "--np", "1", "-n", "1", "--tensors", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert!(out(&o).contains("3 tensors, 1027 elements"), "{}", out(&o));
    assert!(!bad.status.success());
    assert!(
        err(&bad).contains("`many` is not a number of elements [line 3 of a model file"),
        "{}",
        err(&bad)
    );
}

#[test]
fn wrong_flags_are_explained() {
    for (flags, text) in [
        (&["-t", "2"][..], "-t and -g can only be 1 -> start more ranks with --np"),
        (&["-b", "1X"], "not a size in bytes"),
        (&["-b", "2M", "-e", "1M"], "larger than -e"),
        (&["-f", "1"], "1 is not in 2"),
        (&["-i", "8", "-f", "2"], "cannot be used with"),
        (&["-d", "f4"], "graccl has int8"),
        (&["-o", "mulsum"], "graccl has sum"),
        (&["-a", "4"], "4 is not in 0..=3"),
        (&["--algo", "fastest"], "unknown algorithm `fastest` -> use one of: "),
        (&["--transport", "ib"], "possible values: auto, shm, tcp"),
        (&["-e", "8T"], "not a size in bytes"),
        (&["-e", "16000G"], "free -> use smaller buffers"),
        (&["--np", "2", "--hosts", "3"], "--hosts 3 is more than the 2 ranks"),
        (&["--tensors", "no-such-model"], "cannot read the model file no-such-model"),
        (&["-r", "x"], "not a rank, -1 or all"),
        (&["--np", "1", "-b", "2", "-e", "2"], "-e 2 is less than one element of each block"),
    ] {
        let o = run(&[&["perf", "all_reduce"], flags].concat());
        assert_eq!(o.status.code(), Some(2), "{flags:?}: {}", err(&o));
        assert!(err(&o).contains(text), "{flags:?}: {}", err(&o));
        assert_eq!(out(&o), "", "{flags:?}");
    }
}

#[test]
fn what_a_collective_has_not_is_explained() {
    for (flags, text) in [
        (&["send_recv", "--np", "1"][..], "a rank cannot send to itself -> start two ranks or more"),
        (&["send_recv", "--algo", "direct"], "send_recv has no algorithms"),
        (&["broadcast", "--np", "1", "-r", "1"], "there is no rank 1"),
        (&["scan", "-o", "avg"], "scan has no avg"),
        (&["gather", "--tensors", "alexnet"], "--tensors with gather -> it is for all_reduce"),
        (
            &["gather", "--algo", "ring"],
            "unknown algorithm `ring` -> use one of: direct, hier_leader (for gather)",
        ),
        (&["all_gathr"], "possible values: all_reduce, reduce_scatter, all_gather, "),
    ] {
        let o = run(&[&["perf"], flags].concat());
        assert_eq!(o.status.code(), Some(2), "{flags:?}: {}", err(&o));
        assert!(err(&o).contains(text), "{flags:?}: {}", err(&o));
        assert_eq!(out(&o), "", "{flags:?}");
    }
}

#[test]
fn verify_says_what_it_proved() {
    let o = run(&["verify", "--ranks", "5"]);
    assert!(o.status.success(), "{}", err(&o));
    let text = out(&o);
    for a in graccl::schedule::algorithms() {
        let name = [a.collective.name(), a.name];
        let row = text.lines().find(|l| l.split_whitespace().take(2).eq(name));
        assert!(row.is_some(), "{a:?}\n{text}");
    }
    assert!(text.contains("# Proved: "), "{text}");
    let o = run(&["verify", "--ranks", "4", "--algo", "ring"]);
    assert!(out(&o).contains("# Proved: 12 schedules"), "{}", out(&o));
    let o = run(&["verify", "--ranks", "4", "--collective", "all_gather", "--algo", "ring"]);
    assert!(out(&o).contains("# Proved: 4 schedules"), "{}", out(&o));
    let o = run(&["verify", "--collective", "all_gathr"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(err(&o).contains("unknown collective `all_gathr`"), "{}", err(&o));
    let o = run(&["verify", "--algo", "rong"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(err(&o).contains("unknown algorithm `rong`"), "{}", err(&o));
}

#[test]
fn show_prints_pictures_and_goal() {
    let o = run(&["show", "--algo", "ring", "--np", "3"]);
    assert!(o.status.success(), "{}", err(&o));
    assert_eq!(out(&o).lines().filter(|l| l.starts_with("rank ")).count(), 3);
    let o = run(&["show", "--algo", "ring", "--np", "3", "--rank", "2"]);
    assert_eq!(out(&o).lines().filter(|l| l.starts_with("rank ")).count(), 1);
    let o = run(&["show", "--algo", "hier_2d", "--np", "4", "--hosts", "2", "--goal", "1K"]);
    assert!(out(&o).starts_with("num_ranks 4\n"), "{}", out(&o));
    let o = run(&["show", "--collective", "broadcast", "--algo", "direct", "--np", "3", "--root", "2"]);
    assert!(out(&o).contains("copy recv r2 -> Out[0]"), "{}", out(&o));
    let o = run(&["show", "--algo", "ring", "--np", "3", "--root", "1"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(err(&o).contains("all_reduce has no root"), "{}", err(&o));
    let o = run(&["show", "--algo", "ring", "--np", "3", "--rank", "3"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(err(&o).contains("there is no rank 3 of 3"), "{}", err(&o));
}

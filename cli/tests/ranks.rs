//! `graccl perf` with several ranks: that it comes to its end, that every result is right, and how
//! it ends when nobody reads on.

mod common;

use std::io::{BufRead, BufReader};

use common::{err, finish, graccl, out, run};

const SIZES: [&str; 5] = ["8", "64", "512", "4096", "32768"];

/// Runs `graccl perf` over [`SIZES`] with these flags as well; its output, if nothing is wrong.
fn perf(flags: &[&str]) -> String {
    let o = run(&[&["perf", "all_reduce", "-b", "8", "-e", "64K", "-f", "8", "-n", "3"], flags].concat());
    assert_eq!(o.status.code(), Some(0), "{flags:?}: {}", err(&o));
    assert_eq!(err(&o), "", "{flags:?}");
    let text = out(&o);
    assert!(text.contains("# Out of bounds values : 0 OK\n"), "{flags:?}\n{text}");
    text
}

fn sizes(text: &str) -> Vec<&str> {
    rows(text).iter().map(|r| r[0]).collect()
}

#[test]
fn over_shared_memory() {
    let text = perf(&["--np", "2"]);
    assert_eq!(sizes(&text), SIZES);
    assert!(text.contains(" shm\n") && !text.contains("tcp"), "{text}");
}

#[test]
fn over_shared_memory_and_tcp() {
    let text = perf(&["--np", "4", "--hosts", "2"]);
    assert_eq!(sizes(&text), SIZES);
    assert!(text.contains("shm+tcp\n"), "{text}");
}

#[test]
fn over_tcp() {
    let text = perf(&["--np", "2", "--transport", "tcp"]);
    assert_eq!(sizes(&text), SIZES);
    assert!(text.contains(" tcp\n") && !text.contains("shm"), "{text}");
}

#[test]
fn with_registered_memory() {
    let text = perf(&["--np", "2", "--memory", "registered"]);
    assert_eq!(sizes(&text), SIZES);
    assert!(text.contains("memory: registered\n"), "{text}");
}

/// The columns of all rows.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter(|l| !l.starts_with('#'));
    rows.map(|l| l.split_whitespace().collect()).collect()
}

/// Every collective on `np` ranks: odd sizes, several types, the roots; (name, sizes, rows for a size).
fn every_collective(np: usize) {
    let n = np.to_string();
    let prefixes = ["scan", "exscan"];
    let moving = ["all_gather", "broadcast", "gather", "scatter", "all_to_all", "send_recv"];
    let rooted = ["broadcast", "reduce", "gather", "scatter"];
    let wide = ["reduce_scatter", "all_gather", "gather", "scatter", "all_to_all"];
    let names = graccl::Collective::ALL.iter().map(|c| c.name()).chain(["send_recv", "barrier"]);
    for name in names.filter(|name| np > 1 || *name != "send_recv") {
        let mut got = Vec::new();
        for (dtype, size) in [("float", 4), ("bfloat16", 2), ("int8", 1), ("double", 8)] {
            if name == "barrier" && dtype != "float" {
                continue;
            }
            let flags =
                ["-b", "19", "-e", "71000", "-f", "61", "-n", "2", "-r", "all", "-o", "all", "-d", dtype];
            let o = run(&[&["perf", name, "--np", &n], &flags[..]].concat());
            assert_eq!((o.status.code(), err(&o).as_str()), (Some(0), ""), "{name} {np} {dtype}");
            let text = out(&o);
            assert!(text.contains("# Out of bounds values : 0 OK\n"), "{text}");
            let rows = rows(&text);
            let blocks = if wide.contains(&name) { np } else { 1 };
            let roots = if rooted.contains(&name) { np } else { 1 };
            let ops = match name {
                _ if prefixes.contains(&name) => 4,
                _ if moving.contains(&name) || name == "barrier" => 1,
                _ => 5,
            };
            let unit = size * blocks;
            let counts: Vec<usize> = if name == "barrier" {
                vec![0]
            } else {
                [19, 19 * 61, 19 * 61 * 61].iter().map(|b| b / unit).filter(|&c| c > 0).collect()
            };
            assert_eq!(rows.len(), counts.len() * roots * ops, "{name} {np} {dtype}\n{text}");
            for (i, row) in rows.iter().enumerate() {
                let count = counts[i % counts.len()];
                assert_eq!((row[0], row[1]), (&*(count * unit).to_string(), &*count.to_string()), "{name}");
                let root = i / counts.len() % roots;
                let root = if rooted.contains(&name) { root.to_string() } else { "-1".into() };
                assert_eq!(row[4], root, "{name}");
                let in_place = !["all_to_all", "send_recv", "barrier"].contains(&name);
                assert_eq!((row[8], row[12]), ("0", if in_place { "0" } else { "N/A" }), "{name}");
                got.push(row[3].to_string());
            }
        }
        got.sort();
        got.dedup();
        let want: &[&str] = match name {
            _ if prefixes.contains(&name) => &["max", "min", "prod", "sum"],
            _ if moving.contains(&name) || name == "barrier" => &["none"],
            _ => &["avg", "max", "min", "prod", "sum"],
        };
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn every_collective_on_one_rank() {
    every_collective(1);
}

#[test]
fn every_collective_on_two_ranks() {
    every_collective(2);
}

#[test]
fn every_collective_on_three_ranks() {
    every_collective(3);
}

#[test]
fn every_collective_on_four_ranks() {
    every_collective(4);
}

#[test]
fn busbw_is_algbw_times_the_collective_s_factor() {
    for (name, factor) in [("all_gather", 0.5), ("all_to_all", 0.5), ("reduce", 1.0), ("sendrecv", 1.0)] {
        let path = std::env::temp_dir().join(format!("graccl-ranks-{name}-{}.json", std::process::id()));
        let file = path.to_str().unwrap();
        let o = run(&["perf", name, "--np", "2", "-b", "64K", "-e", "64K", "-n", "3", "-r", "1", "-J", file]);
        assert_eq!((o.status.code(), err(&o).as_str()), (Some(0), ""), "{name}");
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let row = &json["results"][0];
        let number = |key: &str| row["out_of_place"][key].as_f64().unwrap();
        assert!((number("bus_bw") / number("alg_bw") - factor).abs() < 1e-9, "{name}: {row}");
        let algbw = 65536.0 / number("time") / 1e3;
        assert!((number("alg_bw") / algbw - 1.0).abs() < 1e-9, "{name}: {row}");
        let (rooted, in_place) = (name == "reduce", name == "all_gather" || name == "reduce");
        assert_eq!(row["root"], if rooted { "1" } else { "-1" });
        assert_eq!(row["in_place"].is_null(), !in_place);
        let spread = if in_place { "in_place_per_iter" } else { "out_of_place_per_iter" };
        assert!(row[spread]["p50_us"].is_number(), "{row}");
    }
}

#[test]
fn every_algorithm_is_measured_beside_the_choice() {
    for name in ["all_reduce", "all_gather"] {
        let path = std::env::temp_dir().join(format!("graccl-ranks-all-{name}-{}.json", std::process::id()));
        let flags = ["-b", "8", "-e", "64K", "-f", "16", "-n", "7", "--np", "2", "--algo", "all", "-J"];
        let o = run(&[&["perf", name], &flags[..], &[path.to_str().unwrap()]].concat());
        assert_eq!((o.status.code(), err(&o).as_str()), (Some(0), ""), "{name}");
        let text = out(&o);
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let results = json["results"].as_array().unwrap();
        assert_eq!(rows(&text).len(), results.len());
        let collective = graccl::Collective::by_name(name).unwrap();
        let points: Vec<_> = results.chunk_by(|_, next| next["algorithm"] != "auto").collect();
        assert_eq!(points.len(), 4, "{text}");
        let mut near = 0;
        for point in points {
            let plans: Vec<&str> = point.iter().map(|r| r["plan"].as_str().unwrap()).collect();
            let names: Vec<&str> = plans.iter().filter_map(|p| p.split_whitespace().next()).collect();
            for a in graccl::schedule::algorithms_of(collective) {
                assert!(names.contains(&a.name), "{}: {text}", a.name);
            }
            assert!(point.iter().all(|r| r["size"] == point[0]["size"]));
            // By times beside each other, round by round: not those of the rows.
            let choice = &point[0]["choice"];
            let us = |name: &str| choice[name].as_f64().unwrap();
            let best = us("best_us");
            assert_eq!(choice["chosen"], point[0]["plan"]);
            assert!(plans.contains(&choice["best"].as_str().unwrap()), "{choice}");
            assert!(best > 0.0 && best <= us("chosen_us"), "{choice}");
            let ratio = choice["ratio"].as_f64().unwrap();
            assert!((ratio / (choice["chosen_us"].as_f64().unwrap() / best) - 1.0).abs() < 1e-9, "{choice}");
            near += usize::from(ratio <= 1.1);
            let line = format!("# {} bytes: chosen {} ", point[0]["size"], plans[0]);
            assert!(text.contains(&line) && text.contains(&format!("chosen/best {ratio:.2}\n")), "{text}");
        }
        assert_eq!(json["choice"]["within_10_percent"], near);
        assert!(text.contains(&format!("within 10 % of the best at {near} of 4 points")), "{text}");
    }
}

#[test]
fn of_a_list_of_tensors() {
    let path = std::env::temp_dir().join(format!("graccl-ranks-{}.csv", std::process::id()));
    std::fs::write(&path, "tensor,elements,type,ready_us\na,1000,f32,1\nb,24,half,2\nc,3,f32,2\n").unwrap();
    let text = perf(&["--np", "2", "--tensors", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    let rows: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).map(str::trim_start).collect();
    assert_eq!(rows.len(), 3, "{text}");
    for (row, (name, wrong)) in
        rows.iter().zip([("one call per tensor", "0"), ("fused", "0"), ("fused, with both copies", "N/A")])
    {
        assert!(row.starts_with(name) && row.ends_with(&format!(" {wrong}")), "{text}");
    }
}

#[test]
fn an_output_that_nobody_reads_ends_it_quietly() {
    // It would repeat the table for ever.
    let flags = ["perf", "all_reduce", "--np", "2", "-e", "1K", "-n", "3", "-N", "0"];
    let mut child = graccl(&flags).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.starts_with('#'), "{line}");
    }
    drop(lines);
    let o = finish(child);
    assert_eq!((o.status.code(), err(&o).as_str()), (Some(0), ""));
}

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
    let rows = text.lines().filter(|l| !l.starts_with('#'));
    rows.map(|l| l.split_whitespace().next().unwrap_or("")).collect()
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

#[test]
fn with_every_algorithm() {
    let text = perf(&["--np", "2", "--algo", "all"]);
    let tables: Vec<_> = text.split("# Algorithm: ").skip(1).collect();
    let names: Vec<_> = tables.iter().filter_map(|t| t.lines().next()).collect();
    let all: Vec<_> =
        graccl::schedule::algorithms_of(graccl::Collective::AllReduce).map(|a| a.name).collect();
    assert_eq!(names, all, "{text}");
    for table in tables {
        assert_eq!(sizes(table)[1..], SIZES, "{table}");
    }
}

#[test]
fn of_a_list_of_tensors() {
    let path = std::env::temp_dir().join(format!("graccl-ranks-{}.csv", std::process::id()));
    std::fs::write(&path, "a,1000\nb,24,half\nc,3\n").unwrap();
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

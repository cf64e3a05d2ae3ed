//! `graccl tune`, and jobs that use its profiles.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{err, finish, finish_within, graccl, out};

/// A file of this test that is removed in the end.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("graccl-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Two choices for allreduce on `ranks` ranks of a host.
fn profile(ranks: u32, small: &str, large: &str) -> String {
    let job = format!("collective = \"all_reduce\"\nranks = {ranks}\nhosts = 1\ntransport = \"shm\"\n");
    format!(
        "version = 1\n[[choice]]\n{job}up_to = 1000\nalgorithm = \"{small}\"\nways = 1\nmessage = 65536\n\
         [[choice]]\n{job}algorithm = \"{large}\"\nways = 2\nmessage = 65536\n"
    )
}

/// Size and plan of every row of a small `graccl perf`.
fn plans(np: &str, profile: &str, algo: &[&str]) -> Vec<(String, String)> {
    let flags = ["perf", "all_reduce", "--np", np, "-b", "512", "-e", "512K", "-f", "1024", "-n", "2"];
    let o = finish(graccl(&[&flags, algo].concat()).env("GRACCL_PROFILE", profile).spawn().unwrap());
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    let text = out(&o);
    assert!(text.contains("# Out of bounds values : 0 OK\n"), "{text}");
    let rows = text.lines().filter(|l| !l.starts_with('#'));
    rows.map(|l| {
        let columns: Vec<&str> = l.split_whitespace().collect();
        (columns[0].into(), columns[columns.len() - 3..].join(" "))
    })
    .collect()
}

#[test]
fn a_profile_chooses_for_its_jobs() {
    let file = File::new("chooses", &profile(3, "double_tree", "ring"));
    let row = |bytes: &str, plan: &str| (bytes.to_string(), plan.to_string());
    let got = plans("3", file.path(), &[]);
    // Messages of at most 64 KiB: a third of the block in three tiles.
    assert_eq!(got, [row("512", "double_tree x1 shm"), row("524288", "ring x3 shm")]);
    // A named algorithm counts more, and another job is not meant.
    assert_eq!(plans("3", file.path(), &["--algo", "direct"])[0], row("512", "direct x1 shm"));
    assert_eq!(plans("2", file.path(), &[])[0], row("512", "one_shot x1 shm"));
}

/// Three ranks, of which the last has another profile.
fn job(last: &str, first: &str) -> (Option<i32>, String) {
    let script = format!(
        "if [ $RANK = 2 ]; then export GRACCL_PROFILE={last}; else export GRACCL_PROFILE={first}; fi; \
         exec {} perf all_reduce -b 8 -e 8 -n 1",
        env!("CARGO_BIN_EXE_graccl")
    );
    let o = finish(graccl(&["run", "-n", "3", "--", "sh", "-c", &script]).spawn().unwrap());
    (o.status.code(), err(&o) + &out(&o))
}

#[test]
fn ranks_with_different_choices_are_named() {
    let one = File::new("one", &profile(3, "direct", "ring"));
    let other = File::new("other", &profile(3, "direct", "direct"));
    for last in [other.path(), "''"] {
        let (code, text) = job(last, one.path());
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("ranks disagree about their settings"), "{text}");
        assert!(text.contains("GRACCL_PROFILE=") && text.contains("rank 2 ("), "{text}");
    }
    // Other words for the same choices are no difference.
    let same = File::new("same", &format!("# by hand\n{}", profile(3, "direct", "ring")));
    let (code, text) = job(same.path(), one.path());
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_bad_profile_is_an_error_with_its_line() {
    let file = File::new("bad", &profile(2, "direct", "rign"));
    let o = finish(
        graccl(&["perf", "all_reduce", "--np", "2"]).env("GRACCL_PROFILE", file.path()).spawn().unwrap(),
    );
    assert_eq!(o.status.code(), Some(2));
    let text = err(&o);
    assert!(text.contains("all_reduce has no algorithm rign"), "{text}");
    assert!(text.contains(&format!("[{}, line 16] -> use one of", file.path())), "{text}");
}

#[test]
fn tune_writes_what_jobs_can_use() {
    let file = File::new("tuned", &profile(3, "direct", "ring"));
    let flags = ["tune", "--np", "2", "-e", "4K", "--collective", "all_reduce,broadcast", "-o", file.path()];
    // It may take half a minute for each rank.
    let mut tune = graccl(&flags);
    // What other jobs go by does not count here, and need not be there.
    tune.env("GRACCL_PROFILE", "/no/such/profile");
    let o = finish_within(tune.spawn().unwrap(), Duration::from_secs(120));
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    let text = out(&o);
    assert!(text.contains("mean error") && text.contains("# profile:"), "{text}");
    let written = std::fs::read_to_string(&file.0).unwrap();
    let p = graccl::tune::Profile::parse("tuned", &written).unwrap();
    assert!(p.model.is_some() && !p.runs.is_empty());
    // What was there for other jobs is there still.
    assert_eq!(p.table.rows().filter(|(place, ..)| place.ranks == 3).count(), 2);
    for name in ["all_reduce", "broadcast"] {
        let rows = p.table.rows().filter(|(p, ..)| p.ranks == 2 && p.collective.name() == name);
        assert_eq!(rows.last().unwrap().1, u64::MAX, "{name}");
    }
    assert_eq!(plans("2", file.path(), &[]).len(), 2);
    // A file that is no profile is not overwritten.
    std::fs::write(&file.0, "precious").unwrap();
    let o = finish(graccl(&flags).spawn().unwrap());
    assert_eq!((o.status.code(), std::fs::read_to_string(&file.0).unwrap()), (Some(2), "precious".into()));
}

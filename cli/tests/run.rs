//! `graccl run` with real processes.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{err, finish, graccl, out, run, until, watch};

/// Runs a shell script as every rank.
fn sh(n: usize, flags: &[&str], script: &str) -> std::process::Output {
    run(&[&["run", "-n", &n.to_string()], flags, &["--", "sh", "-c", script]].concat())
}

fn sorted(text: String) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines.sort();
    lines
}

/// Processes whose command line has the word, zombies apart.
fn processes_with(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|p| {
        let line = std::fs::read(p.path().join("cmdline")).unwrap_or_default();
        line.split(|&b| b == 0).any(|w| w == word.as_bytes())
    })
    .count()
}

/// A sleep that no other test or process has: "sleep WORD" lasts long enough.
fn unique_sleep(test: u32) -> String {
    format!("{}.{test}", 40000 + std::process::id() % 10000)
}

fn signal(child: &Child, signal: i32) {
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// Starts ranks that print "ready", and waits until all have.
fn started(n: usize, script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = graccl(&["run", "-n", &n.to_string(), "--", "sh", "-c", script]);
    // Ignored signals are inherited (under nohup, or in the background), and a shell cannot trap them.
    // SAFETY: both calls are safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..n {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.ends_with("ready\n"), "{line}");
    }
    (child, lines)
}

#[test]
fn ranks_get_their_environment() {
    let script = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE ${GRACCL_HOST_ID-none} $MASTER_ADDR";
    let o = sh(5, &["--hosts", "2"], script);
    assert!(o.status.success(), "{}", err(&o));
    assert_eq!(
        sorted(out(&o)),
        [
            "[0] 0 5 0 2 h0 127.0.0.1",
            "[1] 1 5 1 2 h0 127.0.0.1",
            "[2] 2 5 0 3 h1 127.0.0.1",
            "[3] 3 5 1 3 h1 127.0.0.1",
            "[4] 4 5 2 3 h1 127.0.0.1",
        ]
    );
    // What another job had set would count more than what is set here.
    let script =
        "echo ${GRACCL_HOST_ID-none} $LOCAL_RANK/$LOCAL_WORLD_SIZE $GRACCL_RANK $GRACCL_SIZE $GRACCL_PORT.";
    let mut c = graccl(&["run", "-n", "2", "--", "sh", "-c", script]);
    c.envs([("GRACCL_RANK", "0"), ("GRACCL_SIZE", "1"), ("GRACCL_PORT", "7000")]);
    let o = finish(c.spawn().unwrap());
    assert_eq!(sorted(out(&o)), ["[0] none 0/2 .", "[1] none 1/2 ."]);
}

#[test]
fn ranks_share_a_key_and_a_port_that_differ_between_jobs() {
    let job = || {
        let lines = sorted(out(&sh(2, &["--no-prefix"], "echo $GRACCL_KEY $MASTER_PORT")));
        assert_eq!(lines[0], lines[1]);
        let (key, port) = lines[0].split_once(' ').unwrap();
        assert_eq!(key.len(), 64);
        assert!(key.chars().all(|c| c.is_ascii_hexdigit()));
        assert!(port.parse::<u16>().unwrap() > 0);
        key.to_string()
    };
    assert_ne!(job(), job());
}

#[test]
fn lines_stay_whole_when_ranks_write_at_once() {
    let script = "i=0; while [ $i -lt 200 ]; do printf a$RANK; printf b$RANK; echo c$RANK; i=$((i+1)); done";
    let o = sh(4, &[], script);
    let text = out(&o);
    for rank in 0..4 {
        let line = format!("[{rank}] a{rank}b{rank}c{rank}");
        assert_eq!(text.lines().filter(|l| *l == line).count(), 200);
    }
    assert_eq!(text.lines().count(), 800);
}

#[test]
fn outputs_keep_apart_and_the_last_line_needs_no_newline() {
    let o = sh(2, &[], "echo to-err >&2; printf 'one\\n\\ntwo'");
    assert_eq!(sorted(out(&o)), ["[0] ", "[0] one", "[0] two", "[1] ", "[1] one", "[1] two"]);
    assert_eq!(sorted(err(&o)), ["[0] to-err", "[1] to-err"]);
    let o = sh(2, &["--no-prefix"], "echo x");
    assert_eq!(out(&o), "x\nx\n");
}

#[test]
fn input_goes_to_rank_0_only() {
    let mut child = graccl(&["run", "-n", "3", "--", "sh", "-c", "cat; echo end"]);
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(sorted(out(&finish(child))), ["[0] end", "[0] hello", "[1] end", "[2] end"]);
}

#[test]
fn a_failure_ends_the_others_and_its_status_is_ours() {
    let nap = unique_sleep(1);
    // The shell waits for sleep, so that sleep is a grandchild of the launcher.
    let script = format!("[ $RANK = 1 ] && exit 7; sleep {nap}; true");
    let start = Instant::now();
    let o = sh(3, &[], &script);
    assert_eq!(o.status.code(), Some(7));
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(err(&o).contains("rank 1 exited with status 7; ending the other 2"), "{}", err(&o));
    assert_eq!(processes_with(&nap), 0);
}

#[test]
fn a_signal_is_named_and_its_status_is_128_more() {
    let o = sh(2, &[], "[ $RANK = 1 ] && kill -SEGV $$; sleep 100; true");
    assert_eq!(o.status.code(), Some(128 + libc::SIGSEGV));
    assert!(err(&o).contains("rank 1 was ended by signal 11 (SIGSEGV"), "{}", err(&o));
}

#[test]
fn of_two_that_fail_together_the_one_ended_by_a_signal_is_the_cause() {
    let flag = std::env::temp_dir().join(format!("graccl-run-{}", std::process::id()));
    let flag = flag.to_str().unwrap();
    let script = format!(
        "if [ $RANK = 0 ]; then while ! [ -e {flag} ]; do sleep 0.001; done; exit 5; fi
         if [ $RANK = 1 ]; then : >{flag}; kill -ABRT $$; fi
         sleep 100; true"
    );
    let o = sh(3, &[], &script);
    std::fs::remove_file(flag).unwrap();
    assert_eq!(o.status.code(), Some(128 + libc::SIGABRT));
    let said = "rank 1 was ended by signal 6 (SIGABRT: abort); then rank 0 (5); ending the other 1";
    assert!(err(&o).contains(said), "{}", err(&o));
}

#[test]
fn ranks_that_ignore_sigterm_are_killed() {
    let nap = unique_sleep(2);
    let start = Instant::now();
    let o =
        sh(2, &[], &format!("[ $RANK = 0 ] && {{ sleep 0.3; exit 4; }}; trap '' TERM; sleep {nap}; true"));
    assert_eq!(o.status.code(), Some(4));
    assert!(start.elapsed() > Duration::from_secs(2));
    assert_eq!(processes_with(&nap), 0);
}

#[test]
fn processes_that_a_rank_leaves_behind_are_killed() {
    let nap = unique_sleep(3);
    let start = Instant::now();
    let o = sh(2, &[], &format!("sleep {nap} & echo started"));
    assert!(o.status.success());
    assert_eq!(sorted(out(&o)), ["[0] started", "[1] started"]);
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(processes_with(&nap), 0);
}

#[test]
fn signals_are_passed_on() {
    for (number, name) in [(libc::SIGTERM, "TERM"), (libc::SIGINT, "INT"), (libc::SIGHUP, "HUP")] {
        let script =
            format!("trap 'echo got {name}; exit 0' {name}; echo ready; while :; do sleep 0.05; done");
        let (child, lines) = started(2, &script);
        let watchdog = watch(&child);
        signal(&child, number);
        let said: Vec<String> = lines.lines().map(Result::unwrap).collect();
        drop(watchdog);
        assert_eq!(said.iter().filter(|l| l.ends_with(&format!("got {name}"))).count(), 2, "{said:?}");
        assert_eq!(finish(child).status.code(), Some(0));
    }
}

#[test]
fn a_second_interrupt_kills() {
    let (mut child, lines) = started(2, "trap 'echo got INT' INT; echo ready; while :; do sleep 0.05; done");
    let watchdog = watch(&child);
    signal(&child, libc::SIGINT);
    let mut lines = lines.lines();
    assert!(lines.next().unwrap().unwrap().ends_with("got INT"));
    assert!(lines.next().unwrap().unwrap().ends_with("got INT"));
    drop(watchdog);
    assert!(child.try_wait().unwrap().is_none(), "one interrupt that the ranks survive ends nothing");
    signal(&child, libc::SIGINT);
    let o = finish(child);
    assert_eq!(o.status.code(), Some(128 + libc::SIGKILL), "{}", err(&o));
}

#[test]
fn ranks_die_with_a_killed_launcher() {
    let nap = unique_sleep(4);
    let (mut child, _lines) = started(3, &format!("echo ready; exec sleep {nap}"));
    until("the ranks sleep", || processes_with(&nap) == 3);
    child.kill().unwrap();
    child.wait().unwrap();
    until("the ranks are gone", || processes_with(&nap) == 0);
}

#[test]
fn a_reader_that_leaves_ends_the_job() {
    let mut child = graccl(&["run", "-n", "2", "--", "yes"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with("] y\n"));
    // `yes` ends by SIGPIPE, or with an error where that is ignored.
    assert!(!finish(child).status.success());
}

#[test]
fn what_cannot_be_started_is_said() {
    let o = run(&["run", "-n", "2", "--", "./no/such/program"]);
    assert_eq!(o.status.code(), Some(127));
    assert!(err(&o).contains("`./no/such/program` not found"), "{}", err(&o));
    let o = run(&["run", "-n", "2", "--", "/etc/passwd"]);
    assert_eq!(o.status.code(), Some(126));
    assert!(err(&o).contains("may not be run"), "{}", err(&o));
}

#[test]
fn wrong_flags_are_explained() {
    for (args, text) in [
        (&["run", "-n", "0", "--", "true"][..], "0 is not in 1"),
        (&["run", "-n", "x", "--", "true"], "invalid digit"),
        (&["run", "--", "true"], "-n"),
        (&["run", "-n", "2"], "PROGRAM"),
        (&["run", "-n", "2", "--hosts", "3", "--", "true"], "--hosts 3 is more than the 2 ranks"),
    ] {
        let o = run(args);
        assert_eq!(o.status.code(), Some(2), "{args:?}");
        assert!(err(&o).contains(text), "{args:?}: {}", err(&o));
    }
}

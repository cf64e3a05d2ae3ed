//! `graccl status` and `GRACCL_TRACE`, with processes that only pretend to reduce: each writes its record
//! as a communicator would, and then sleeps, spins, is stopped or is killed.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use graccl::record::{Identity, Position, Recorder, Shape, State};
use serde_json::Value;

const HELPER: &str = "GRACCL_TEST_RANK";

/// A process of a job of its own; killed when dropped.
struct Rank(Child);

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Rank {
    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn signal(&self, signal: i32) {
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }
}

/// A job's number that no other run has, whose last bits are these.
fn job_id(id: u64) -> u64 {
    u64::from(std::process::id()) << 32 | id
}

/// This program again, as one rank that does what `script` says (see `helper`).
fn helper_command(job: u64, rank: usize, size: usize, script: &str) -> Command {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(["helper", "--exact", "--nocapture", "--test-threads=1"])
        .env(HELPER, format!("{job} {rank} {size} {script}"))
        .env_remove("GRACCL_TRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // No rank outlives a test that is killed.
    unsafe {
        c.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    };
    c
}

fn start(job: u64, rank: usize, size: usize, script: &str) -> Rank {
    let mut child = helper_command(job, rank, size, script).spawn().unwrap();
    let off = watch(&child);
    // It says when everything is recorded.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.any(|l| l.unwrap().ends_with("recorded"));
    drop(off);
    assert!(ready, "the helper has ended early");
    Rank(child)
}

/// One rank for each script.
fn job(id: u64, scripts: &[&str]) -> Vec<Rank> {
    scripts.iter().enumerate().map(|(r, s)| start(id, r, scripts.len(), s)).collect()
}

/// Not a test but a rank, when started by one: its script is a list of
/// `call N TEXT`, `end N`, `start N TEXT`, `finish N`, `wait N PEER` (for 12 s already), `mismatch N PEER`,
/// `fail TEXT`, `join` (nobody comes), `split` (a second communicator, in the other order), `elsewhere N PEER`
/// (a wait there), `spin`, `sleep MS`, `quit` (in order), `exit` (at once), separated by `;`.
#[test]
fn helper() {
    let Ok(script) = std::env::var(HELPER) else { return };
    let mut words = script.splitn(4, ' ');
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let (job, rank, size) = (number(), number() as usize, number() as usize);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host = host.trim();
    // The last rank of jobs with an odd id is on another host.
    let mut hosts = vec![host; size];
    if job % 2 == 1 {
        hosts[size - 1] = "faraway";
    }
    let mut me = Identity { job, context: 0xc0, parent: None, rank, size, world: &[], hosts: &hosts };
    let r = Recorder::open(&me);
    let world = [1, 0];
    let mut split = None;
    let mut plans = std::collections::HashMap::new();
    let mut spin = false;
    let shape =
        |text, algorithm| Shape { text, algorithm, tiles: 1, bytes: 1 << 20, bus: 1.5, collective: true };
    let (mut joined, mut failed) = (true, false);
    for step in words.next().unwrap().split(';').map(str::trim) {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        let (n, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let seq = n.parse().unwrap_or(0);
        let of = |r: &Recorder, peer: u32, text: &str| {
            let (waited, limit) = (Duration::from_secs(12), Some(Duration::from_secs(300)));
            let text = &|| format!("direct, tile 0 of 1, step 3: {text}");
            r.stuck(&Position { seq, lane: 0, tile: 0, op: 3, peers: &[peer], waited, limit, text });
        };
        match verb {
            "call" => {
                let plan = r.plan(&shape(text, "direct"));
                plans.insert(seq, plan);
                r.begin(seq, plan, true);
            }
            "start" => {
                let plan = r.plan(&shape(text, "ring"));
                plans.insert(seq, plan);
                r.start(seq, plan, false);
            }
            "end" => r.end(seq, plans[&seq]),
            "finish" => r.finish(seq, plans[&seq]),
            "wait" => {
                let peer = text.parse().unwrap();
                of(&r, peer, &format!("waits for chunk 1 from rank {peer}"));
            }
            "fail" => {
                r.failed(&graccl::Error::timeout(rest));
                failed = true;
            }
            "mismatch" => r.mismatch(seq, text.parse().unwrap()),
            "join" => {
                r.identify(&Identity { job: 0, hosts: &[], ..me });
                joined = false;
            }
            "split" => {
                me = Identity { context: 0xc1, parent: Some(0xc0), world: &world, rank: 1 - rank, ..me };
                let s = Recorder::open(&me);
                s.state(State::Ready);
                split = Some(s);
            }
            "elsewhere" => {
                let s = split.as_ref().unwrap();
                s.begin(seq, s.plan(&shape("all_reduce of 3 float (sum)", "direct")), false);
                let peer = text.parse().unwrap();
                of(s, peer, &format!("waits for chunk 0 from rank {peer}"));
            }
            "spin" => spin = true,
            "sleep" => std::thread::sleep(Duration::from_millis(u64::from(seq))),
            "quit" => return,
            "exit" => std::process::exit(0),
            "" => {}
            other => panic!("no such step: {other}"),
        }
    }
    if joined && !failed {
        r.state(State::Ready);
    }
    println!("recorded");
    loop {
        if !spin {
            std::thread::sleep(Duration::from_secs(100));
        }
    }
}

fn status(args: &[&str]) -> String {
    let o = run(&[&["status"], args].concat());
    assert!(o.status.success(), "{}", err(&o));
    out(&o)
}

fn of_job(id: u64) -> (String, Value) {
    let id = format!("{id:016x}");
    let text = status(&["--job", &id]);
    let json: Value = serde_json::from_str(&status(&["--job", &id, "--json"])).unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["jobs"][0]["job"], id);
    (text, json["jobs"][0].clone())
}

/// The diagnosis as (kind, ranks, waiting), and its text.
fn diagnosis(job: &Value) -> Vec<(String, String, String, String)> {
    let list = job["diagnosis"].as_array().unwrap().iter();
    let s = |v: &Value| v.as_str().map_or(v.to_string(), str::to_string);
    list.map(|f| (s(&f["kind"]), s(&f["ranks"]), s(&f["waiting"]), s(&f["text"]))).collect()
}

fn one(job: &Value) -> (String, String, String, String) {
    let mut all = diagnosis(job);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

const SUM: &str = "all_reduce of 10 float (sum)";

#[test]
fn a_rank_that_did_not_come() {
    let id = job_id(0x110);
    let call = format!("call 16 {SUM}; end 16; call 17 {SUM}");
    let ranks = job(
        id,
        &[
            &format!("{call}; wait 17 3"),
            &format!("{call}; wait 17 0"),
            &format!("{call}; wait 17 3"),
            &format!("call 16 {SUM}; end 16"),
        ],
    );
    let (text, json) = of_job(id);
    print!("{text}");
    let (kind, who, waiting, what) = one(&json);
    assert_eq!((&kind[..], &who[..], &waiting[..]), ("not_entered", "[3]", "[0,1,2]"));
    let start = "rank 3 has not entered call 17 of communicator c0; \
                 ranks 0-2 wait for it, directly or through each other, for 1";
    let end =
        format!(" s. Its last was call 16, {SUM}, which is over. Its process {} (status-", ranks[3].pid());
    assert!(what.starts_with(start) && what.contains(&end), "{what}");
    assert!(what.contains("uses no processor time: thread \""), "{what}");
    assert!(text.contains(start), "{text}");
    let c = &json["communicators"][0];
    assert_eq!(c["size"], 4);
    let states: Vec<_> = c["ranks"].as_array().unwrap().iter().map(|r| r["state"].clone()).collect();
    assert_eq!(states, ["waits", "waits", "waits", "outside"]);
    let r1 = &c["ranks"][1];
    assert_eq!(r1["waits"]["text"], "direct, tile 0 of 1, step 3: waits for chunk 1 from rank 0");
    assert_eq!(r1["waits"]["ranks"], serde_json::json!([0]));
    assert_eq!((&r1["open"][0]["text"], &r1["open"][0]["number"]), (&SUM.into(), &17.into()));
    assert!(r1["waits"]["seconds"].as_f64().unwrap() >= 12.0);
    assert!(r1["waits"]["deadline_seconds"].as_f64().unwrap() < 288.1);
    assert_eq!((&r1["calls"], &r1["pid"]), (&2.into(), &ranks[1].pid().into()));
    let row = text.lines().find(|l| l.contains("from rank 0")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..4], ["1", &ranks[1].pid().to_string(), "waits", "17"]);

    // One process alone.
    let alone = status(&["--pid", &ranks[0].pid().to_string()]);
    assert!(alone.contains("1 of 4 ranks here") && !alone.contains(&ranks[1].pid().to_string()), "{alone}");
}

#[test]
fn a_rank_that_computes() {
    let id = job_id(0x120);
    let _ranks = job(id, &[&format!("call 1 {SUM}; wait 1 1"), "spin"]);
    let (text, json) = of_job(id);
    print!("{text}");
    let (kind, who, _, what) = one(&json);
    assert_eq!((&kind[..], &who[..]), ("not_entered", "[1]"));
    assert!(
        what.starts_with("rank 1 has not entered call 1 of communicator c0; rank 0 waits for it for 1"),
        "{what}"
    );
    let (_, busy) = what.split_once(") uses ").unwrap();
    assert!(busy.contains("% of a core outside of graccl, mostly in thread \""), "{what}");
}

#[test]
fn a_stopped_rank() {
    let id = job_id(0x130);
    // It waits itself, but that is not why the others do.
    let call = format!("call 5 {SUM}");
    let ranks = job(id, &[&format!("{call}; wait 5 1"), &format!("{call}; wait 5 0")]);
    let (_, json) = of_job(id);
    assert_eq!(one(&json).0, "circle");
    ranks[1].signal(libc::SIGSTOP);
    until("the rank is stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", ranks[1].pid())).unwrap();
        stat.contains(") T ")
    });
    let (text, json) = of_job(id);
    print!("{text}");
    let (kind, who, waiting, what) = one(&json);
    assert_eq!((&kind[..], &who[..], &waiting[..]), ("stopped", "[1]", "[0]"));
    assert!(what.contains(&format!("kill -CONT {}", ranks[1].pid())), "{what}");
    assert_eq!(json["communicators"][0]["ranks"][1]["state"], "stopped");
}

/// No pretence: two ranks of `graccl perf`, one of them stopped in the middle of its calls.
#[test]
fn a_real_job_that_stands_still() {
    let args = ["perf", "all_reduce", "--np", "2", "-b", "1M", "-e", "1M", "-n", "100000000"];
    let child = Command::new(env!("CARGO_BIN_EXE_graccl"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _off = watch(&child);
    let launcher = Rank(child);
    let children = format!("/proc/{0}/task/{0}/children", launcher.pid());
    let pids = || std::fs::read_to_string(&children).unwrap();
    until("ranks", || pids().split_whitespace().count() == 2);
    let pids = pids();
    let last = pids.split_whitespace().last().unwrap();
    let shown = |args: &[&str], words: &[&str]| {
        let mut text = String::new();
        for _ in 0..100 {
            text = out(&run(args));
            if words.iter().all(|w| text.contains(w)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{words:?} are never shown: {text}");
    };
    shown(&["status", "--pid", last], &["all_reduce of 262144 float (sum)"]);
    let stopped: i32 = last.parse().unwrap();
    assert_eq!(unsafe { libc::kill(stopped, libc::SIGSTOP) }, 0);
    shown(
        &["status"],
        &[&format!("is stopped (process {stopped})"), &format!("kill -CONT {stopped}"), "waits for chunk"],
    );
    assert_eq!(unsafe { libc::kill(stopped, libc::SIGKILL) }, 0);
}

#[test]
fn a_killed_rank() {
    let id = job_id(0x140);
    let call = format!("call 5 {SUM}");
    let mut ranks = job(id, &[&format!("{call}; wait 5 2"), &call, &call]);
    drop(ranks.pop());
    let (text, json) = of_job(id);
    print!("{text}");
    let (kind, who, waiting, what) = one(&json);
    assert_eq!((&kind[..], &who[..], &waiting[..]), ("missing", "[2]", "[0]"));
    assert!(
        what.starts_with("rank 2 is missing; rank 0 waits for it for 1")
            && what.contains("No process of this host"),
        "{what}"
    );
    // Another one, for which nobody waits.
    drop(ranks.pop());
    let (_, json) = of_job(id);
    let kinds: Vec<_> = diagnosis(&json).into_iter().map(|f| (f.0, f.1)).collect();
    assert_eq!(kinds, [("missing".into(), "[2]".into()), ("missing".into(), "[1]".to_string())]);
}

#[test]
fn a_rank_on_another_host() {
    let id = job_id(0x151);
    let _ranks = [start(id, 0, 2, &format!("call 5 {SUM}; wait 5 1"))];
    let (kind, who, _, what) = one(&of_job(id).1);
    assert_eq!((&kind[..], &who[..]), ("remote", "[1]"));
    assert!(
        what.contains("rank 1 is on faraway; rank 0 waits") && what.contains("Run `graccl status` there"),
        "{what}"
    );
}

#[test]
fn ranks_that_disagree() {
    let id = job_id(0x160);
    let odd = "all_reduce of 11 float (sum)";
    let call = format!("call 5 {SUM}; wait 5 1");
    let _ranks = job(id, &[&call, &format!("call 5 {odd}; wait 5 0"), &call]);
    let (text, json) = of_job(id);
    print!("{text}");
    let all = diagnosis(&json);
    assert_eq!((&all[0].0[..], &all[0].1[..]), ("mismatch", "[1]"));
    assert_eq!(
        all[0].3,
        "call 5 of communicator c0 is not the same on all ranks: \
         all_reduce of 10 float (sum) by direct on ranks 0, 2; all_reduce of 11 float (sum) by direct on rank 1"
    );
}

/// Rank 0 waits for 1 in the first communicator, and 1 for 0 in the second.
#[test]
fn crossed_communicators() {
    let id = job_id(0x170);
    let _ranks = job(id, &[&format!("split; call 5 {SUM}; wait 5 1"), "split; elsewhere 2 1"]);
    let (text, json) = of_job(id);
    print!("{text}");
    let (kind, who, _, what) = one(&json);
    assert_eq!((&kind[..], &who[..]), ("circle", "[0,1]"));
    assert!(
        what.contains(
            "rank 0 in call 5 of communicator c0 for rank 1; rank 1 in call 2 of communicator c1 for rank 0"
        ),
        "{what}"
    );
}

#[test]
fn a_failed_communicator() {
    let id = job_id(0x180);
    let _ranks = job(id, &[&format!("call 5 {SUM}; fail nothing moved"), "call 5 x; end 5"]);
    let (text, json) = of_job(id);
    print!("{text}");
    let all = diagnosis(&json);
    let failed = all.iter().find(|f| f.0 == "failed").unwrap();
    assert_eq!((&failed.1[..], &failed.3[..]), ("[0]", "rank 0 has failed: nothing moved"));
    assert_eq!(json["communicators"][0]["ranks"][0]["failure"]["text"], "nothing moved");
}

#[test]
fn a_job_that_does_not_join() {
    let rank = start(job_id(0x190), 0, 2, "join");
    let pid = rank.pid().to_string();
    until("a second has passed", || status(&["--pid", &pid]).contains("diagnosis\n- rank 0 of 2 waits"));
    let text = status(&["--pid", &pid]);
    assert!(text.starts_with("not joined yet: 1 process on "), "{text}");
    assert!(text.contains("for the others to join, for "), "{text}");
}

#[test]
fn nothing_to_see() {
    let e = |args: &[&str]| {
        let o = run(&[&["status"], args].concat());
        assert_eq!(o.status.code(), Some(1), "{}", out(&o));
        err(&o)
    };
    let me = std::process::id().to_string();
    assert!(e(&["--pid", &me]).contains(&format!("process {me} does not use graccl now")));
    assert!(e(&["--pid", "2147483647"]).contains("there is no process 2147483647"));
    assert!(e(&["--job", "deadbeef"]).contains("no process of a job deadbeef"));
    let json: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert!(json["jobs"].is_array());
}

/// Of another user, as that user sees it.
#[test]
fn a_process_of_another_user() {
    if unsafe { libc::geteuid() } != 0 {
        return skip("only root can look as another user");
    }
    let rank = start(job_id(0x1a0), 0, 1, "");
    let mut c = graccl(&["status", "--pid", &rank.pid().to_string()]);
    // The program must be reachable for nobody: a copy where everybody may look.
    let copy = std::env::temp_dir().join(format!("graccl-status-{}", std::process::id()));
    std::fs::copy(c.get_program(), &copy).unwrap();
    c = Command::new(&copy);
    c.args(["status", "--pid", &rank.pid().to_string()]);
    c.uid(65534).gid(65534).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let o = finish(c.spawn().unwrap());
    let mut all = Command::new(&copy);
    all.arg("status").uid(65534).gid(65534).stdin(Stdio::null());
    all.stdout(Stdio::piped()).stderr(Stdio::piped());
    let all = finish(all.spawn().unwrap());
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(o.status.code(), Some(1));
    let e = err(&o);
    assert!(
        e.contains("may not be read") && e.contains("it is user 0's: run this as that user, or as root"),
        "{e}"
    );
    assert!(all.status.success());
    assert!(out(&all).starts_with("no process of this user on "), "{}", out(&all));
}

#[test]
fn watching() {
    let id = job_id(0x1b0);
    let _ranks = job(id, &["call 1 x; end 1"]);
    let mut child = graccl(&["status", "--watch", "--json", "--job", &format!("{id:016x}")]).spawn().unwrap();
    let off = watch(&child);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.take(2) {
        let v: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(v["jobs"].as_array().unwrap().len(), 1);
    }
    // It ends when nobody reads any more, at the next picture.
    drop(off);
    let o = finish(child);
    assert!(o.status.success(), "{}", err(&o));
}

/// The trace of a rank that runs `script` with `GRACCL_TRACE=folder/trace`, by the rules of Chrome's format.
fn trace(name: &str, script: &str) -> Vec<Value> {
    let folder = std::env::temp_dir().join(format!("graccl-trace-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut c = helper_command(job_id(0x1c0), 1, 2, script);
    c.env("GRACCL_TRACE", folder.join("trace")).stderr(Stdio::piped());
    let mut child = c.spawn().unwrap();
    let file = folder.join("trace.1.json");
    until("the trace is written", || file.exists());
    let _ = child.kill();
    finish(child);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "one file");
    std::fs::remove_dir_all(&folder).unwrap();
    let v: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(v["displayTimeUnit"], "ns");
    let events = v["traceEvents"].as_array().unwrap().clone();
    for e in &events {
        assert_eq!(e["pid"], 1, "the rank");
        assert!(e["name"].is_string() && e["tid"].is_u64() && e["args"].is_object(), "{e}");
        let ph = e["ph"].as_str().unwrap();
        assert!(["X", "B", "b", "e", "i", "M"].contains(&ph), "{e}");
        assert_eq!(e["ts"].is_f64(), ph != "M");
        assert_eq!(e["dur"].is_f64(), ph == "X");
        assert_eq!(e["id"].is_string(), ph == "b" || ph == "e");
        assert_eq!(e["s"] == "t", ph == "i");
    }
    events
}

#[test]
fn a_trace() {
    let script = format!(
        "call 1 {SUM}; sleep 5; end 1; start 2 other \"x\"; call 3 {SUM}; wait 3 0; end 3; finish 2; mismatch 4 0; quit"
    );
    let events = trace("whole", &script);
    let named = |ph: &str, name: &str| -> Vec<&Value> {
        events.iter().filter(|e| e["ph"] == ph && e["name"] == name).collect()
    };
    let calls = named("X", SUM);
    assert_eq!(calls.len(), 2);
    assert_eq!((&calls[0]["args"]["call"], &calls[1]["args"]["call"]), (&1.into(), &3.into()));
    let (args, dur) = (&calls[0]["args"], calls[0]["dur"].as_f64().unwrap());
    assert!(dur >= 5000.0, "{dur} us");
    assert_eq!(
        (&args["bytes"], &args["algorithm"], &args["tiles"]),
        (&(1 << 20).into(), &"direct".into(), &1.into())
    );
    let busbw = args["busbw_gbs"].as_f64().unwrap();
    assert!((busbw - (1 << 20) as f64 / dur / 1e3 * 1.5).abs() < 0.001, "{busbw}");
    let (b, e) = (named("b", "other \"x\""), named("e", "other \"x\""));
    assert_eq!((b.len(), e.len()), (1, 1));
    assert!(b[0]["id"] == e[0]["id"] && b[0]["ts"].as_f64() < calls[1]["ts"].as_f64());
    assert!(
        e[0]["ts"].as_f64().unwrap() > calls[1]["ts"].as_f64().unwrap() + calls[1]["dur"].as_f64().unwrap()
    );
    assert_eq!(named("i", "stuck")[0]["args"]["peer"], 0);
    assert_eq!(named("i", "mismatch")[0]["args"], serde_json::json!({ "call": 4, "peer": 0 }));
    assert_eq!(named("M", "thread_name")[0]["args"]["name"], "communicator c0: rank 1 of 2");
    assert!(named("M", "process_name")[0]["args"]["name"].as_str().unwrap().starts_with("rank 1 ("));
    assert_eq!(named("i", "destroy").len(), 1);
}

/// With a communicator still there, and with one that failed in a call.
#[test]
fn traces_of_processes_that_end_otherwise() {
    let events = trace("exit", &format!("call 1 {SUM}; end 1; exit"));
    assert!(events.iter().any(|e| e["ph"] == "X") && !events.iter().any(|e| e["name"] == "destroy"));
    let events = trace("fail", &format!("call 1 {SUM}; fail something"));
    let open = events.iter().find(|e| e["ph"] == "B").unwrap();
    assert_eq!((&open["name"], &open["args"]["call"]), (&SUM.into(), &1.into()));
    assert!(events.iter().any(|e| e["name"] == "fail"));
}

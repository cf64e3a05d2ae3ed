//! Real jobs: ranks as processes, started as launchers start them, that meet, connect and fail.
//!
//! The processes are this test program again, told by `GRACCL_TEST_JOB` what to do.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use graccl::bootstrap::{Bootstrap, UniqueId, from_env};

const LONG: Duration = Duration::from_secs(20);

/// [`Bootstrap::rendezvous`] that nobody cancels.
fn join(id: &UniqueId, rank: usize, size: usize, wait: Duration) -> graccl::Result<Bootstrap> {
    Bootstrap::rendezvous(id, rank, size, "", wait, &AtomicBool::new(false))
}

/// What a process of a job does; the result is its last line, "ok ..." or "error ...".
fn act(job: &str) -> graccl::Result<String> {
    let wait = std::env::var("GRACCL_TEST_WAIT").ok().and_then(|w| w.parse().ok());
    let wait = wait.map_or(LONG, Duration::from_millis);
    match job {
        // Joins as the environment says, twice, and connects to all.
        "join" => {
            // Something else holds a port of rank 0's host, and keeps silent.
            let rank0 = std::env::var("RANK").is_ok_and(|r| r == "0");
            let port = std::env::var("GRACCL_TEST_HOLD").ok().and_then(|p| p.parse::<u16>().ok());
            let _held = port.filter(|_| rank0).map(|p| std::net::TcpListener::bind(("0.0.0.0", p)).unwrap());
            let mut text = String::new();
            for _ in 0..2 {
                let job = from_env()?;
                let b = join(&job.id, job.rank, job.size, wait)?;
                mesh(&b, 0, false, wait)?;
                if std::env::var("GRACCL_TEST_NO_TCP").is_err() {
                    mesh(&b, 1, true, wait)?;
                }
                text = format!("ok {} {}/{} {:?}", job.launcher, b.rank, b.size, b.hosts);
            }
            Ok(text)
        }
        // Makes an id, prints it and waits to be killed.
        "root" => {
            println!("id {}", UniqueId::create()?.to_hex());
            std::thread::sleep(LONG);
            Ok("ok".into())
        }
        // Makes an id; children made by fork are the ranks.
        "fork" => {
            let id = UniqueId::create()?;
            let children: Vec<i32> = (0..3)
                .map(|rank| {
                    // SAFETY: the child only uses what graccl promises to work after fork, and leaves
                    // by _exit.
                    let pid = unsafe { libc::fork() };
                    assert!(pid >= 0);
                    if pid == 0 {
                        let b = join(&id, rank, 3, LONG);
                        let ok = b.and_then(|b| mesh(&b, 0, false, wait)).is_ok();
                        // SAFETY: ends the process.
                        unsafe { libc::_exit(if ok { 0 } else { 1 }) };
                    }
                    pid
                })
                .collect();
            for pid in children {
                let mut status = 0;
                // SAFETY: waits for a child of this process.
                assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
                assert_eq!(status, 0);
            }
            Ok("ok".into())
        }
        // Eight ranks in a process that may open too few files.
        "few files" => {
            let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
            let limit = libc::rlimit { rlim_cur: used + 12, rlim_max: used + 12 };
            // SAFETY: sets a limit of this process from a valid struct.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
            let id = UniqueId::create()?;
            let rank = |r| join(&id, r, 8, wait).and_then(|b| mesh(&b, 0, false, wait));
            std::thread::scope(|s| {
                let all: Vec<_> = (0..8).map(|r| s.spawn(move || rank(r))).collect();
                let results: Vec<_> = all.into_iter().map(|t| t.join().unwrap()).collect();
                let plain =
                    results.iter().filter_map(|r| r.as_ref().err()).find(|e| e.hint.contains("ulimit"));
                plain.map_or_else(|| panic!("{results:?}"), |e| Err(e.clone()))
            })
        }
        // Two ranks, and how many descriptors stay for a program that is started from here.
        "descriptors" => {
            let list = || -> Vec<i32> {
                let all = std::fs::read_dir("/proc/self/fd").unwrap();
                let all: Vec<i32> =
                    all.filter_map(|f| f.unwrap().file_name().to_str()?.parse().ok()).collect();
                // The directory that was listed is closed again.
                // SAFETY: plain system call.
                all.into_iter().filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).collect()
            };
            let before = list();
            let id = UniqueId::create()?;
            let meet = |r| {
                let b = join(&id, r, 2, wait).unwrap();
                let arena = graccl::memory::arena().unwrap();
                let fd = Some(arena.fd());
                let unix = b.start(1 - r, 0, b"", fd, false).unwrap().wait(Instant::now() + wait).unwrap();
                let tcp = b.start(1 - r, 1, b"", None, true).unwrap().wait(Instant::now() + wait).unwrap();
                assert!(unix.fd.is_some() && tcp.fd.is_none());
                (b, unix, tcp)
            };
            let ends: Vec<_> = std::thread::scope(|s| {
                let all = [s.spawn(|| meet(0)), s.spawn(|| meet(1))];
                all.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let new = || list().into_iter().filter(|fd| !before.contains(fd)).collect::<Vec<_>>();
            // SAFETY: plain system call.
            let kept = |fd: &&i32| unsafe { libc::fcntl(**fd, libc::F_GETFD) } & libc::FD_CLOEXEC == 0;
            let (many, inherited) = (new().len(), new().iter().filter(kept).count());
            drop(ends);
            Ok(format!("ok {many} while they meet, {} after, {inherited} inherited", new().len()))
        }
        // Two ranks while strangers hold more connections than a process takes at a time.
        "flood" => {
            let first = UniqueId::create()?;
            let ranks = |id: UniqueId| -> Vec<Bootstrap> {
                let both = std::thread::scope(|s| {
                    let both = [0, 1].map(|r| s.spawn(move || join(&id, r, 2, wait).unwrap()));
                    both.map(|t| t.join().unwrap())
                });
                both.into()
            };
            let port = ranks(first)[0].members[0].port;
            let flood: Vec<_> =
                (0..300).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
            std::thread::sleep(Duration::from_millis(100));
            let start = Instant::now();
            let both = ranks(UniqueId::create()?);
            let local = start.elapsed();
            std::thread::scope(|s| {
                both.iter().for_each(|b| drop(s.spawn(|| mesh(b, 0, true, wait).unwrap())))
            });
            let all = start.elapsed();
            drop(flood);
            // Strangers have a second when others wait, and do not touch those of this host at all.
            assert!(
                local < Duration::from_millis(500) && all < Duration::from_millis(3500),
                "{local:?} {all:?}"
            );
            Ok("ok".into())
        }
        // Another user's process finds the root's Unix socket.
        "other user" => {
            let name = {
                UniqueId::create()?;
                // Of this process, and not of another test's.
                common::unix_listeners(&[std::process::id()]).pop().expect("a Unix listener")
            };
            // The plain system call changes this thread alone, so the service thread stays who it is.
            // SAFETY: takes no pointers.
            let rc = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(rc, 0);
            use std::os::linux::net::SocketAddrExt;
            let addr = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
            let mut s = std::os::unix::net::UnixStream::connect_addr(&addr).unwrap();
            s.set_read_timeout(Some(LONG)).unwrap();
            let mut answer = [0; 72];
            s.read_exact(&mut answer).unwrap();
            Ok(format!("ok refused as {}", answer[7]))
        }
        _ => panic!("unknown job {job}"),
    }
}

fn mesh(b: &Bootstrap, purpose: u32, tcp: bool, wait: Duration) -> graccl::Result<()> {
    let pending = (1..b.size).map(|d| (b.rank + d) % b.size);
    let pending: Vec<_> = pending
        .map(|p| Ok((p, b.start(p, purpose, &[b.rank as u8], None, tcp)?)))
        .collect::<graccl::Result<_>>()?;
    let mut streams = Vec::new();
    for (p, pending) in pending {
        let c = pending.wait(Instant::now() + wait)?;
        assert_eq!(c.hello, [p as u8]);
        assert_eq!(c.local, b.hosts[p] == b.hosts[b.rank] && !tcp, "rank {} and {p}", b.rank);
        streams.push(std::fs::File::from(c.stream));
    }
    streams.iter_mut().for_each(|s| s.write_all(b"x").unwrap());
    streams.iter_mut().for_each(|s| s.read_exact(&mut [0]).unwrap());
    Ok(())
}

/// Does nothing as a test; is the main function of a job's processes.
#[test]
fn process() {
    let Ok(job) = std::env::var("GRACCL_TEST_JOB") else { return };
    match act(&job) {
        Ok(text) => println!("\nresult {text}"),
        Err(e) => println!("\nresult error {e}"),
    }
}

/// This program, about to do `job`, with nothing of a launcher in its environment.
fn program(job: &str) -> Command {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(["process", "--exact", "--nocapture"]);
    prepare(c, job)
}

/// `launcher` with its arguments, followed by this program.
fn launched(launcher: &[&str], job: &str) -> Command {
    let mut c = Command::new(launcher[0]);
    c.args(&launcher[1..]).arg(std::env::current_exe().unwrap()).args(["process", "--exact", "--nocapture"]);
    prepare(c, job)
}

fn prepare(mut c: Command, job: &str) -> Command {
    let launcher =
        ["GRACCL_", "OMPI_", "PMI", "MPI_", "SLURM_", "MASTER_", "RANK", "WORLD_", "LOCAL_", "TORCH"];
    for (name, _) in std::env::vars().filter(|(n, _)| launcher.iter().any(|l| n.starts_with(l))) {
        c.env_remove(name);
    }
    c.env("GRACCL_TEST_JOB", job).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

fn results_of(child: Child) -> Vec<String> {
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let mut lines: Vec<String> =
        text.lines().filter_map(|l| Some(l.split_once("result ")?.1.to_string())).collect();
    lines.sort();
    assert!(!lines.is_empty(), "no result in\n{text}\n{}", String::from_utf8_lossy(&out.stderr));
    lines
}

/// Runs one process per list of variables at once; the result of each.
fn run(all: &[Vec<(&str, String)>]) -> Vec<String> {
    let children: Vec<Child> =
        all.iter().map(|vars| program("join").envs(vars.iter().cloned()).spawn().unwrap()).collect();
    children.into_iter().flat_map(results_of).collect()
}

#[test]
fn ranks_by_our_own_variables() {
    let vars = |r: usize| vec![("GRACCL_RANK", r.to_string()), ("GRACCL_SIZE", "3".into())];
    let got = run(&[vars(0), vars(1), vars(2)]);
    assert_eq!(got, ["ok graccl 0/3 [0, 0, 0]", "ok graccl 1/3 [0, 0, 0]", "ok graccl 2/3 [0, 0, 0]"]);
}

#[test]
fn several_hosts_on_one_machine() {
    let id = UniqueId::create().unwrap().to_hex();
    let vars = |r: usize| {
        vec![
            ("GRACCL_RANK", r.to_string()),
            ("GRACCL_SIZE", "5".into()),
            ("GRACCL_HOST_ID", ["a", "b"][r % 2].into()),
            ("GRACCL_ID", id.clone()),
        ]
    };
    let got = run(&[vars(0), vars(1), vars(2), vars(3), vars(4)]);
    for (r, line) in got.iter().enumerate() {
        assert_eq!(*line, format!("ok graccl {r}/5 [0, 1, 0, 1, 0]"));
    }
}

#[test]
fn keys_that_differ() {
    let free = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap().local_addr().unwrap().port();
    let vars = |r: usize, key: &str| {
        vec![
            ("RANK", r.to_string()),
            ("WORLD_SIZE", "2".into()),
            ("MASTER_ADDR", "127.0.0.1".into()),
            ("GRACCL_PORT", free.to_string()),
            ("GRACCL_KEY", key.into()),
            ("GRACCL_TEST_WAIT", "1500".into()),
        ]
    };
    let got = run(&[vars(0, "one"), vars(1, "other")]);
    assert!(got[0].contains("rank 1 of 2 did not join within 1."), "{got:?}");
    assert!(got[1].contains("rank 0 did not answer within 1.5 s"), "{got:?}");
    assert!(got[1].contains("does not know this communicator's key"), "{got:?}");
}

/// Whether a program can be run here; says so if not.
fn there(c: &mut Command) -> bool {
    let there = c.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !there {
        common::skip(&format!("cannot run {c:?}"));
    }
    there
}

#[test]
fn mpi_launchers() {
    let open_mpi = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", "3"];
    let mpich = ["mpiexec.mpich", "-n", "3"];
    for (name, launcher) in [("Open MPI", &open_mpi[..]), ("MPICH", &mpich[..])] {
        if there(Command::new(launcher[0]).arg("--version")) {
            // Two of Open MPI's that start at once trip over each other's folder in /tmp.
            let own = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bootstrap_mpi");
            std::fs::create_dir_all(&own).unwrap();
            let got = results_of(launched(launcher, "join").env("TMPDIR", own).spawn().unwrap());
            let want: Vec<_> = (0..3).map(|r| format!("ok {name} {r}/3 [0, 0, 0]")).collect();
            assert_eq!(got, want);
        }
    }
}

#[test]
fn one_host_needs_no_network() {
    let unshare = ["unshare", "--map-root-user", "-n"];
    if !there(Command::new(unshare[0]).args(&unshare[1..]).arg("true")) {
        return;
    }
    // Loopback is down in the new namespace, so only Unix sockets work there.
    let script = r#"for r in 0 1 2; do GRACCL_RANK=$r GRACCL_SIZE=3 "$0" "$@" & done; wait"#;
    let mut shell = unshare.to_vec();
    shell.extend(["sh", "-c", script]);
    let got = results_of(launched(&shell, "join").env("GRACCL_TEST_NO_TCP", "1").spawn().unwrap());
    assert_eq!(got, ["ok graccl 0/3 [0, 0, 0]", "ok graccl 1/3 [0, 0, 0]", "ok graccl 2/3 [0, 0, 0]"]);
}

#[test]
fn two_hosts_by_torchrun() {
    // A private mount and network namespace is one host, a second network namespace the other.
    let unshare = ["unshare", "--mount", "--net"];
    let script = r#"
        mount -t tmpfs none /run && ip netns add b &&
        ip link add v0 type veth peer name v1 netns b &&
        ip addr add 10.77.0.1/24 dev v0 && ip link set v0 up && ip link set lo up &&
        ip -n b addr add 10.77.0.2/24 dev v1 && ip -n b link set v1 up && ip -n b link set lo up || exit 1
        for r in 2 3; do RANK=$r ip netns exec b "$0" "$@" & done
        for r in 0 1; do RANK=$r "$0" "$@" & done
        wait"#;
    let mut shell = unshare.to_vec();
    shell.extend(["sh", "-c", script]);
    if !there(Command::new(shell[0]).args(&shell[1..]).arg("true")) {
        return;
    }
    let job = [
        ("WORLD_SIZE", "4"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "10.77.0.1"),
        ("MASTER_PORT", "29500"),
        ("GRACCL_TEST_HOLD", "29501"),
    ];
    let got = results_of(launched(&shell, "join").envs(job).spawn().unwrap());
    let want: Vec<_> = (0..4).map(|r| format!("ok torchrun {r}/4 [0, 0, 1, 1]")).collect();
    assert_eq!(got, want);
}

/// A process that is the root of an id, and the id.
fn root() -> (Child, UniqueId) {
    let mut child = program("root").spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let hex = lines.find_map(|l| Some(l.unwrap().split_once("id ")?.1.to_string()));
    (child, UniqueId::from_hex(&hex.unwrap()).unwrap())
}

#[test]
fn a_root_that_dies() {
    let (mut child, id) = root();
    let (start, kill) = (Instant::now(), Duration::from_millis(300));
    let errors: Vec<_> = std::thread::scope(|s| {
        let ranks: Vec<_> = (0..2).map(|r| s.spawn(move || join(&id, r, 3, LONG))).collect();
        std::thread::sleep(kill);
        child.kill().unwrap();
        ranks.into_iter().map(|t| t.join().unwrap().unwrap_err()).collect()
    });
    child.wait().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    errors.iter().for_each(|e| assert!(e.what.contains("root process ended"), "{e}"));
    let e = join(&id, 2, 3, LONG).unwrap_err();
    assert!(e.what.contains("cannot reach the root") && e.hint.contains("must still run"), "{e}");
}

#[test]
fn a_rank_that_dies_while_it_waits() {
    let id = UniqueId::create().unwrap();
    let vars = [("GRACCL_RANK", "1"), ("GRACCL_SIZE", "3"), ("GRACCL_ID", &id.to_hex())];
    let mut child = program("join").envs(vars).spawn().unwrap();
    let start = Instant::now();
    let e = std::thread::scope(|s| {
        let rank = s.spawn(|| join(&id, 0, 3, LONG).unwrap_err());
        std::thread::sleep(Duration::from_millis(500));
        child.kill().unwrap();
        rank.join().unwrap()
    });
    let pid = child.id();
    child.wait().unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(e.what.contains(&format!("rank 1 (pid {pid} on ")) && e.what.contains("gave up"), "{e}");
}

#[test]
fn fork_without_exec() {
    assert_eq!(results_of(program("fork").spawn().unwrap()), ["ok"]);
}

#[test]
fn another_user_is_refused() {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return common::skip("only root can pose as another user");
    }
    assert_eq!(results_of(program("other user").spawn().unwrap()), ["ok refused as 3"]);
}

#[test]
fn descriptors_are_few_and_not_inherited() {
    // For the process: an eventfd, two listeners and the arena. For each rank: two streams and the arena's
    // duplicate that it was given.
    let got = results_of(program("descriptors").spawn().unwrap());
    assert_eq!(got, ["ok 10 while they meet, 4 after, 0 inherited"]);
}

#[test]
fn a_flood_of_silent_strangers() {
    assert_eq!(results_of(program("flood").spawn().unwrap()), ["ok"]);
}

#[test]
fn too_few_files() {
    let got = results_of(program("few files").env("GRACCL_TEST_WAIT", "2000").spawn().unwrap());
    assert!(got[0].starts_with("error") && got[0].contains("ulimit -n"), "{got:?}");
}

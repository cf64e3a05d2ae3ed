//! Jobs as other launchers start them: Open MPI's and MPICH's mpirun, and the variables of torchrun and
//! Slurm; and `graccl run`.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Job, case, join, secret_and_port, skip, sum_f32};

const DEADLINE: Duration = Duration::from_secs(60);

/// The command line program that belongs to this test's build.
fn graccl() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // target/PROFILE/deps/this-test
        let exe = std::env::current_exe().unwrap();
        let folder = exe.parent().and_then(Path::parent).expect("the build's folder").to_owned();
        let program = folder.join("graccl");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "-p", "graccl-cli"]);
        cargo.arg("--target-dir").arg(folder.parent().expect("the target folder"));
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        // Quick when it is there and current.
        assert!(cargo.status().expect("cargo").success(), "graccl-cli does not build");
        assert!(program.exists(), "{program:?}");
        program
    })
}

/// Waits for the end; kills and fails at the deadline.
fn finish(mut child: Child) -> Output {
    let start = Instant::now();
    let pid = child.id() as i32;
    let end = std::thread::spawn({
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        move || {
            let read = |mut pipe: Box<dyn std::io::Read + Send>| {
                std::thread::spawn(move || {
                    let mut text = Vec::new();
                    pipe.read_to_end(&mut text).unwrap();
                    text
                })
            };
            let (out, err) = (read(Box::new(out)), read(Box::new(err)));
            (out.join().unwrap(), err.join().unwrap())
        }
    });
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > DEADLINE {
            // SAFETY: our child, the leader of its process group, not waited for.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
            child.wait().unwrap();
            let (out, err) = end.join().unwrap();
            panic!(
                "still runs after {DEADLINE:?}\n{}{}",
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(&err)
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (stdout, stderr) = end.join().unwrap();
    Output { status, stdout, stderr }
}

/// Runs a command to its end, which must be good; its standard output.
fn succeed(c: &mut Command) -> String {
    use std::os::unix::process::CommandExt;
    c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let o = finish(c.spawn().unwrap_or_else(|e| panic!("{c:?}: {e}")));
    let (out, err) = (String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    assert!(o.status.success(), "{c:?}: {}\n{out}{err}", o.status);
    out.into_owned()
}

/// A launcher of MPI jobs, if it is here and is of that make.
fn mpirun(program: &str, make: &str) -> Option<Command> {
    let version = Command::new(program).arg("--version").output();
    let there = version.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(make));
    if !there {
        skip(&format!("there is no {program}"));
        return None;
    }
    let mut c = Command::new(program);
    if make == "open-mpi.org" {
        // As root in containers, with more ranks than cores.
        c.env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .arg("--oversubscribe");
        // Two mpiruns that start at once trip over each other's folder in /tmp.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let own = format!("mpi{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let own = Path::new(env!("CARGO_TARGET_TMPDIR")).join(own);
        std::fs::create_dir_all(&own).unwrap();
        c.env("TMPDIR", own);
    }
    Some(c)
}

const LAUNCHERS: [(&str, &str); 2] = [("mpirun.openmpi", "open-mpi.org"), ("mpiexec.mpich", "HYDRA")];

/// The table of a benchmark: sizes, and that nothing was wrong.
fn check_table(out: &str, ranks: usize) {
    let rows: Vec<Vec<&str>> =
        out.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_whitespace().collect()).collect();
    let rows: Vec<_> = rows.iter().filter(|r| !r.is_empty()).collect();
    let sizes: Vec<&str> = rows.iter().map(|r| r[0]).collect();
    assert_eq!(sizes, ["8", "64", "512", "4096", "32768"], "one table of {ranks} ranks:\n{out}");
    assert!(out.contains("# Out of bounds values : 0 OK"), "{out}");
}

const PERF: [&str; 9] = ["perf", "all_reduce", "-b", "8", "-e", "64K", "-f", "8", "-n5"];

#[test]
fn benchmark_under_mpirun() {
    for (program, make) in LAUNCHERS {
        for ranks in [2, 4] {
            let Some(mut c) = mpirun(program, make) else { break };
            let out = succeed(c.args(["-n", &ranks.to_string()]).arg(graccl()).args(PERF));
            check_table(&out, ranks);
        }
    }
}

#[test]
fn two_jobs_at_once_do_not_meet() {
    for (program, make) in LAUNCHERS {
        std::thread::scope(|s| {
            for ranks in [2, 3] {
                let Some(mut c) = mpirun(program, make) else { return };
                s.spawn(move || {
                    let out = succeed(c.args(["-n", &ranks.to_string()]).arg(graccl()).args(PERF));
                    check_table(&out, ranks);
                });
            }
        });
    }
}

#[test]
fn c_program_under_mpirun() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = graccl().with_file_name("libgraccl.so");
    if !library.exists() {
        return skip("libgraccl.so is not built");
    }
    if !Command::new("cc").arg("--version").output().is_ok_and(|o| o.status.success()) {
        return skip("there is no cc");
    }
    let program = scratch.join("launchers_all_reduce");
    // By the name that programs ask for at run time.
    let folder = scratch.join("launchers_lib");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    for name in ["libgraccl.so", "libgraccl.so.0"] {
        std::os::unix::fs::symlink(&library, folder.join(name)).unwrap();
    }
    succeed(
        Command::new("cc")
            .arg(root.join("c_examples/all_reduce.c"))
            .arg("-I")
            .arg(root.join("include"))
            .arg("-L")
            .arg(&folder)
            .arg(format!("-Wl,-rpath,{}", folder.display()))
            .args(["-lgraccl", "-lm", "-o"])
            .arg(&program),
    );
    for (launcher, make) in LAUNCHERS {
        if let Some(mut c) = mpirun(launcher, make) {
            succeed(c.args(["-n", "3"]).arg(&program));
        }
    }
    succeed(Command::new(graccl()).args(["run", "-n", "3", "--"]).arg(&program));
}

#[test]
fn graccl_run_emulates_hosts() {
    const TEST: &str = "graccl_run_emulates_hosts";
    if case().is_some() {
        let c = join();
        assert_eq!(c.hosts(), [0, 0, 1, 1]);
        let mut v = [c.rank() as f32; 10_000];
        sum_f32(&c, &mut v).unwrap();
        assert_eq!(v, [6.0; 10_000]);
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let mut c = Command::new(graccl());
    c.args(["run", "-n", "4", "--hosts", "2", "--"]).arg(exe).args([TEST, "--exact", "--nocapture"]);
    let out = succeed(c.env("GRACCL_TEST_CASE", ""));
    assert_eq!(out.matches("1 passed").count(), 4, "{out}");
}

/// A rank of the tests below.
fn sum_of_ranks() {
    let c = join();
    let n = c.size();
    assert_eq!(c.rank().to_string(), std::env::var("EXPECT_RANK").unwrap());
    for _ in 0..3 {
        let mut v = [c.rank() as f32; 1000];
        sum_f32(&c, &mut v).unwrap();
        assert_eq!(v, [(n * (n - 1) / 2) as f32; 1000]);
    }
}

/// Without GRACCL_KEY, and with a port that torchrun's own store holds.
#[test]
fn torchrun() {
    if case().is_some() {
        return sum_of_ranks();
    }
    for hosts in [1, 2] {
        let store = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = store.local_addr().unwrap().port();
        // It answers nobody and keeps whoever comes.
        let mut job = Job::new("torchrun", 4).hosts(hosts);
        for r in 0..4 {
            job = job.env_of(r, "EXPECT_RANK", &r.to_string());
        }
        let job = job.env("MASTER_PORT", &port.to_string()).env("GRACCL_KEY", "");
        let job = job.env("TORCHELASTIC_RUN_ID", &secret_and_port().0).env("TORCHELASTIC_RESTART_COUNT", "0");
        job.succeed();
        drop(store);
    }
}

#[test]
fn torchrun_with_a_busy_next_port() {
    if case().is_some() {
        return sum_of_ranks();
    }
    // The ports after MASTER_PORT are taken as well, by something that is silent.
    let (held, port) = (0..100)
        .find_map(|_| {
            let port = secret_and_port().1;
            let held: Vec<_> =
                (0..3).map_while(|i| std::net::TcpListener::bind(("0.0.0.0", port + i)).ok()).collect();
            (held.len() == 3).then_some((held, port))
        })
        .expect("three free ports in a row");
    let mut job =
        Job::new("torchrun_with_a_busy_next_port", 2).hosts(2).env("MASTER_PORT", &port.to_string());
    for r in 0..2 {
        job = job.env_of(r, "EXPECT_RANK", &r.to_string());
    }
    let ended = job.succeed();
    assert!(ended.iter().all(|e| e.took < Duration::from_secs(10)));
    drop(held);
}

/// What srun sets; on one node, and on "two" with the first one's name resolved to this machine.
#[test]
fn slurm() {
    if case().is_some() {
        return sum_of_ranks();
    }
    for nodes in [1, 2] {
        let mut job = Job::new("slurm", 4);
        if nodes == 2 {
            job = job.on(&[0, 0, 1, 1]);
        }
        for r in 0..4 {
            job = job.env_of(r, "SLURM_PROCID", &r.to_string()).env_of(r, "EXPECT_RANK", &r.to_string());
            job = job.env_of(r, "SLURM_LOCALID", &(r % (4 / nodes)).to_string());
        }
        // Not torchrun's.
        for name in [
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
            "GRACCL_KEY",
        ] {
            job = job.env(name, "");
        }
        let job = job
            .env("SLURM_NTASKS", "4")
            .env("SLURM_STEP_NUM_TASKS", "4")
            .env("SLURM_STEP_NUM_NODES", &nodes.to_string())
            .env("SLURM_JOB_ID", &(std::process::id() * 10 + nodes as u32).to_string())
            .env("SLURM_STEP_ID", "0")
            .env("SLURM_STEP_NODELIST", "localhost,elsewhere");
        job.succeed();
    }
}

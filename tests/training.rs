//! Real training over graccl: `graccl run` starts `graccl-train`, whose gradients travel through shared memory, and between
//! emulated hosts over TCP. `trainer/tests` has all else that training has to do.

mod common;

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::skip;

const DEADLINE: Duration = Duration::from_secs(120);

/// `graccl` and `graccl-train` of this test's build. `None` in debug builds, in which training takes too long.
fn programs() -> Option<[PathBuf; 2]> {
    static PROGRAMS: OnceLock<[PathBuf; 2]> = OnceLock::new();
    // target/PROFILE/deps/this-test
    let exe = std::env::current_exe().unwrap();
    let folder = exe.parent().and_then(Path::parent).expect("the build's folder");
    if !folder.ends_with("release") {
        skip("training is tested in release builds");
        return None;
    }
    let build = || {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--release"]);
        // What scripts/test has built: features are those of the whole workspace.
        cargo.args(["--workspace", "--bins", "--target-dir"]);
        // Quick when they are there and current.
        assert!(cargo.arg(folder.parent().unwrap()).status().expect("cargo").success(), "they do not build");
        ["graccl", "graccl-train"].map(|name| folder.join(name))
    };
    Some(PROGRAMS.get_or_init(build).clone())
}

/// A folder like MNIST's: every class is a pattern of its own, under noise.
fn images(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("training").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 57) as u8
    };
    let patterns: Vec<Vec<u8>> = (0..10).map(|_| (0..784).map(|_| byte()).collect()).collect();
    for (which, n) in [("train", 512u32), ("t10k", 128)] {
        let labels: Vec<u8> = (0..n).map(|_| byte() % 10).collect();
        let head = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|w| w.to_be_bytes()).collect() };
        let mut file = head(&[0x803, n, 28, 28]);
        for &l in &labels {
            file.extend(patterns[l as usize].iter().map(|p| p + byte()));
        }
        std::fs::write(dir.join(format!("{which}-images-idx3-ubyte")), file).unwrap();
        let file = [head(&[0x801, n]), labels].concat();
        std::fs::write(dir.join(format!("{which}-labels-idx1-ubyte")), file).unwrap();
    }
    dir
}

/// A job of `graccl run`, whose output goes to a file.
struct Job {
    child: Child,
    output: PathBuf,
}

impl Job {
    /// `launch` are flags of `graccl run`.
    fn start(data: &Path, launch: &str, train: &str) -> Option<Job> {
        let [graccl, graccl_train] = programs()?;
        let output = data.join(format!("output.{}", launch.replace(' ', "")));
        let file = File::create(&output).unwrap();
        let mut c = Command::new(graccl);
        c.arg("run").args(launch.split(' ')).arg("--").arg(graccl_train).arg("--data").arg(data);
        c.args("--model alexnet-bn --width 4 --batch 32 --rate 0.05 --log".split(' ')).args(train.split(' '));
        c.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).process_group(0);
        Some(Job { child: c.spawn().unwrap(), output })
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    /// Tries until it has something to say; fails at the deadline.
    fn wait<T>(&mut self, mut attempt: impl FnMut(&mut Job) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(t) = attempt(self) {
                return t;
            }
            if start.elapsed() > DEADLINE {
                // SAFETY: our child, the leader of its process group, not waited for.
                unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
                self.child.wait().unwrap();
                panic!("still runs after {DEADLINE:?}\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) -> (ExitStatus, String) {
        let status = self.wait(|job| job.child.try_wait().unwrap());
        (status, self.said())
    }

    /// Runs to its good end; the losses of all steps, as they were printed.
    fn losses(mut self) -> Vec<String> {
        let (status, said) = self.end();
        assert!(status.success(), "{status}\n{said}");
        losses_in(&said)
    }
}

/// `graccl run` may put the rank before a line.
fn losses_in(said: &str) -> Vec<String> {
    let loss = |l: &str| {
        let (step, loss) = l.split_once("step ")?.1.split_once(" loss ")?;
        step.parse::<u32>().is_ok().then(|| loss.to_string())
    };
    said.lines().filter_map(loss).collect()
}

fn numbers(losses: &[String]) -> Vec<f64> {
    losses.iter().map(|l| l.parse().unwrap()).collect()
}

#[test]
fn ranks_learn_the_same_over_shared_memory_and_between_hosts() {
    let data = images("links");
    // Norms over the whole batch: so one rank computes the same, but for rounding.
    let run = |launch: &str| Some(Job::start(&data, launch, "--epochs 3 --norm global")?.losses());
    let Some(one) = run("-n 1") else { return };
    let [alone, together] = [one, run("-n 2").unwrap()];
    assert_eq!(alone.len(), 48);
    for (a, b) in numbers(&alone).iter().zip(numbers(&together)).take(20) {
        assert!((a / b - 1.0).abs() < 1e-4, "{a} and {b}: {alone:?} {together:?}");
    }
    let l = numbers(&together);
    assert!(l[47] < 0.2 * l[0], "it does not learn: {l:?}");
    // Two ranks have the same bits wherever they are.
    assert_eq!(together, run("-n 2 --hosts 2").unwrap());
    // And four, two on each host, close ones.
    for (a, b) in numbers(&alone).iter().zip(numbers(&run("-n 4 --hosts 2").unwrap())).take(20) {
        assert!((a / b - 1.0).abs() < 1e-4, "{a} and {b}");
    }
}

#[test]
fn a_killed_rank_ends_the_job_which_goes_on_with_fewer() {
    for launch in ["-n 2", "-n 2 --hosts 2"] {
        let data = images(&launch.replace(' ', ""));
        let file = data.join("run.safetensors");
        let _ = std::fs::remove_file(&file);
        let mut flags = format!("--epochs 1000 --every 5 --checkpoint {}", file.display());
        let Some(mut job) = Job::start(&data, launch, &flags) else { return };
        job.wait(|_| file.exists().then_some(()));
        // The kernel lists the launcher's children in the order of their start.
        let path = format!("/proc/{0}/task/{0}/children", job.child.id());
        let children = std::fs::read_to_string(path).unwrap();
        let ranks: Vec<i32> = children.split_whitespace().map(|w| w.parse().unwrap()).collect();
        assert_eq!(ranks.len(), 2, "{children}");
        // SAFETY: a signal to a process that this test started through the launcher.
        assert_eq!(unsafe { libc::kill(ranks[1], libc::SIGKILL) }, 0);
        let (status, said) = job.end();
        // What rank 0 says of it is looked at in trainer/tests/resume.rs: this launcher does not wait long for it.
        assert!(!status.success() && said.contains("rank 1 was ended by signal 9"), "{status}\n{said}");
        let done = losses_in(&said).len();
        let _ = write!(flags, " --resume {} --stop {}", file.display(), done + 5);
        let (status, said) = Job::start(&data, "-n 1", &flags).unwrap().end();
        assert!(status.success() && said.contains("summary: "), "{status}\n{said}");
        let rest = losses_in(&said).len();
        // From the last checkpoint, which is at most 5 steps and the one under way behind.
        assert!((5..=11).contains(&rest), "{done} steps, then {rest}\n{said}");
    }
}

//! Hosts of their own, in network namespaces, and what happens when one of them is cut off.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;

/// After so long all ranks have their errors; it takes about two seconds. Machines that are busy are slow.
const NOTICED: f64 = 5.0;

/// Four ranks on two hosts call; then the second host's link goes down, and no process ends and no connection closes.
#[test]
fn a_host_that_is_cut_off_is_noticed_by_all_ranks() {
    let dir = std::env::temp_dir().join(format!("graccl-cut-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    struct Gone(PathBuf);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
    let _gone = Gone(dir.clone());
    // The first rank to end has the script end the others; they are to say what they saw by themselves.
    let rank = "trap '' TERM; cd $1
        if [ $RANK = 3 ]; then (sleep 2; date +%s.%N > cut; ip link set e0 down) & fi
        \"$2\" perf all_reduce -b 1M -e 1M -n 10000000 > out.$RANK 2>&1
        date +%s.%N > end.$RANK; exit 1";
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let child = Command::new(root.join("benches/hosts/run"))
        .args(["--np", "4", "--hosts", "2", "--rate", "none", "--", "sh", "-c", rank, "sh"])
        .args([dir.as_os_str(), env!("CARGO_BIN_EXE_graccl").as_ref()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let o = finish_within(child, Duration::from_secs(60));
    if out(&o).contains("skipped") {
        return;
    }
    let read = |name: String| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    let cut: f64 = read("cut".into()).trim().parse().unwrap_or_else(|_| panic!("{}{}", out(&o), err(&o)));
    let mut times = Vec::new();
    for rank in 0..4 {
        let said = read(format!("out.{rank}"));
        let end: f64 = read(format!("end.{rank}")).trim().parse().unwrap_or_else(|_| panic!("{said}"));
        assert!(said.contains("the peer's host does not answer any more"), "rank {rank}: {said}");
        times.push(end - cut);
    }
    eprintln!("errors after, s: {times:.2?}");
    assert!(times.iter().all(|t| (0.5..NOTICED).contains(t)), "{times:?}");
}

//! Jobs with `GRACCL_ENCRYPT=1`: nothing of them can be read on the wire, and what is changed there ends
//! them with an error that says so.

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use common::{Job, case, join, report, skip, sum_f32, try_join};
use graccl::{Communicator, Config, Result, TransportChoice};

/// Bytes of the layer before the first record of frames: who it is, and the handshake.
const HELLO: usize = 16 + 2 + 48;

/// `tests/wire/shim.c`, built; `None` where that is not possible.
fn shim() -> Option<&'static str> {
    static SHIM: OnceLock<Option<String>> = OnceLock::new();
    let build = || {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire/shim.c");
        // One name for all runs, which another may be using.
        let (new, to) = (file("shim.so"), file("").with_file_name("encrypt-shim.so"));
        let args =
            ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", new.to_str()?, source, "-ldl"];
        match Command::new("cc").args(args).output() {
            Ok(o) => {
                assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
                std::fs::rename(new, &to).unwrap();
                Some(to.to_str()?.to_string())
            }
            Err(e) => {
                skip(&format!("no C compiler to stand between ranks with: {e}"));
                None
            }
        }
    };
    SHIM.get_or_init(build).as_deref()
}

/// A path that only this run uses.
fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("encrypt-{}-{name}", std::process::id()))
}

/// What nobody may read, 48 bytes.
const SECRET: &[u8; 48] = b"the weights of the 7th layer are nobody's affair";

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|w| w == part)
}

#[test]
fn nothing_of_a_job_can_be_read() {
    if case().is_some() {
        let c = join();
        for times in [1, 80, 4000] {
            let mine = SECRET.repeat(times);
            let mut all = vec![0u8; mine.len() * c.size()];
            c.all_gather(&mine, &mut all).unwrap();
            assert!(all.chunks(mine.len()).all(|part| part == mine));
        }
        return;
    }
    let Some(shim) = shim() else { return };
    for encrypt in ["0", "1"] {
        let kept = |rank: usize| file(&format!("wire-{encrypt}-{rank}"));
        let mut job = Job::new("nothing_of_a_job_can_be_read", 2).hosts(2).env("GRACCL_ENCRYPT", encrypt);
        for rank in 0..2 {
            let _ = std::fs::remove_file(kept(rank));
            job =
                job.env_of(rank, "LD_PRELOAD", shim).env_of(rank, "WIRE_KEEP", kept(rank).to_str().unwrap());
        }
        job.succeed();
        for rank in 0..2 {
            let wire = std::fs::read(kept(rank)).unwrap();
            std::fs::remove_file(kept(rank)).unwrap();
            assert!(wire.len() > 4081 * SECRET.len(), "rank {rank} sent {} bytes", wire.len());
            // Any piece that would tell: a part of the data, or of a frame's or word's text.
            let readable = SECRET.chunks(12).any(|part| contains(&wire, part));
            assert_eq!(readable, encrypt == "0", "rank {rank}, GRACCL_ENCRYPT={encrypt}");
        }
    }
}

/// All-reduces until one fails.
fn again_and_again() -> Result<()> {
    let c = try_join()?;
    let mut data = vec![1.0f32; 2000];
    for _ in 0..200 {
        sum_f32(&c, &mut data)?;
    }
    Ok(())
}

#[test]
fn what_is_changed_or_repeated_on_the_wire_ends_the_job() {
    if case().is_some() {
        return report(again_and_again());
    }
    let Some(shim) = shim() else { return };
    const RECORD: &str = "an encrypted record does not authenticate: it was changed on its way";
    for (what, at, says) in [
        ("WIRE_FLIP", 3, "no encryption handshake, but something else"),
        ("WIRE_FLIP", 40, "the encryption handshake does not authenticate"),
        ("WIRE_FLIP", HELLO + 2, RECORD),
        ("WIRE_FLIP", 100_000, RECORD),
        ("WIRE_AGAIN", HELLO, RECORD),
        ("WIRE_AGAIN", 100_000, RECORD),
    ] {
        for liar in 0..2 {
            let job = Job::new("what_is_changed_or_repeated_on_the_wire_ends_the_job", 2).hosts(2);
            let job = job.env("GRACCL_ENCRYPT", "1").env_of(liar, "LD_PRELOAD", shim);
            let job = job.env_of(liar, what, &at.to_string()).deadline(Duration::from_secs(15));
            let ended = job.run();
            ended[1 - liar].fault().says("RemoteError", &[&format!("rank {liar}"), says]);
            // Whose words were changed sees the end of the connection.
            ended[liar].fault().says("RemoteError", &[&format!("rank {}", 1 - liar)]);
        }
    }
}

/// The first message is given to connections whose keys are not agreed on. A root that returned then, and calls
/// no more, would keep it from the others.
#[test]
fn a_root_that_calls_no_more_has_sent_its_broadcast() {
    let timeout = Duration::from_secs(10);
    let config = Config { transport: TransportChoice::Tcp, encrypt: true, timeout, ..Config::default() };
    for root in 0..3 {
        let all = Communicator::init_all(3, &config).unwrap();
        std::thread::scope(|s| {
            for c in &all {
                s.spawn(move || {
                    let mut data = [if c.rank() == root { 7 } else { 0 }; 100];
                    c.broadcast(&mut data, root).unwrap();
                    assert_eq!(data, [7u32; 100], "rank {} of root {root}", c.rank());
                });
            }
        });
    }
}

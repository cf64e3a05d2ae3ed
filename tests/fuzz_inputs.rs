//! What the fuzzer starts from, and what it has found: every file of `fuzz/seeds` and `fuzz/artifacts` once more.

use graccl::bootstrap::{fuzz_accept, fuzz_dial, fuzz_env, fuzz_id, fuzz_wire};
use graccl::comm::fuzz_words;
use graccl::plan::fuzz_model;
use graccl::record::fuzz_patches;
use graccl::transport::shm::fuzz_shm;
use graccl::transport::tcp::{fuzz_feed, fuzz_feed_sealed};

/// A seed from which the fuzzer cannot get anywhere would be worth little.
#[test]
fn seeds_are_whole_conversations() {
    let seed =
        |name: &str| std::fs::read(format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for (name, given) in
        [("peer_waits", 1), ("rank_waits", 1), ("two_join", 0), ("wrong_key", 0), ("closes", 0)]
    {
        assert_eq!(fuzz_accept(&seed(&format!("accept/{name}"))), given, "{name}");
    }
    for (name, done) in
        [("verdict", true), ("error", true), ("peer", true), ("second_try", true), ("wrong_key", false)]
    {
        assert_eq!(fuzz_dial(&seed(&format!("dial/{name}"))), done, "{name}");
    }
    assert!(fuzz_wire(&seed("wire/hello")) && fuzz_wire(&seed("wire/hello_answer")), "of another version");
}

#[test]
fn every_input_is_survived() {
    type Target = (&'static str, fn(&[u8]));
    let targets: [Target; 12] = [
        ("accept", |b| {
            fuzz_accept(b);
        }),
        ("dial", |b| {
            fuzz_dial(b);
        }),
        ("env", fuzz_env),
        ("frames", fuzz_feed),
        ("id", fuzz_id),
        ("model", fuzz_model),
        ("profile", graccl::tune::fuzz_profile),
        ("record", fuzz_patches),
        ("sealed", fuzz_feed_sealed),
        ("shm", fuzz_shm),
        ("wire", |b| {
            fuzz_wire(b);
        }),
        ("words", fuzz_words),
    ];
    let mut sources: Vec<String> =
        std::fs::read_dir(format!("{}/fuzz/fuzz_targets", env!("CARGO_MANIFEST_DIR")))
            .expect("the targets")
            .map(|f| f.expect("an entry").file_name().to_string_lossy().trim_end_matches(".rs").into())
            .collect();
    // That of the command line, which has a test like this one.
    sources.retain(|s| s != "cluster");
    sources.sort();
    assert_eq!(sources, targets.map(|t| t.0), "every target is in the list above");
    for (name, run) in targets {
        let mut count = 0;
        for kind in ["seeds", "artifacts"] {
            let folder = format!("{}/fuzz/{kind}/{name}", env!("CARGO_MANIFEST_DIR"));
            for file in std::fs::read_dir(folder).into_iter().flatten() {
                let path = file.expect("an entry").path();
                println!("{}", path.display());
                run(&std::fs::read(path).expect("a readable file"));
                count += 1;
            }
        }
        assert!(count > 0, "no seeds for {name}");
    }
}

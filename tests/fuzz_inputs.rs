//! What the fuzzer starts from, and what it has found: every file of `fuzz/seeds` and `fuzz/artifacts` once more.

use graccl::bootstrap::{fuzz_accept, fuzz_dial, fuzz_env, fuzz_id, fuzz_wire};

#[test]
fn every_input_is_survived() {
    type Target = (&'static str, fn(&[u8]));
    let targets: [Target; 5] = [
        ("accept", fuzz_accept),
        ("dial", fuzz_dial),
        ("env", fuzz_env),
        ("id", fuzz_id),
        ("wire", fuzz_wire),
    ];
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

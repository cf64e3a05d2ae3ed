//! What the fuzzer starts from, and what it has found, for what the command line reads (see the library's
//! `tests/fuzz_inputs.rs`).

#[test]
fn every_input_is_survived() {
    let mut count = 0;
    for kind in ["seeds", "artifacts"] {
        let folder = format!("{}/../fuzz/{kind}/cluster", env!("CARGO_MANIFEST_DIR"));
        for file in std::fs::read_dir(folder).into_iter().flatten() {
            let path = file.expect("an entry").path();
            println!("{}", path.display());
            graccl_cli::fuzz_cluster(&std::fs::read(path).expect("a readable file"));
            count += 1;
        }
    }
    assert!(count > 0, "no seeds");
}

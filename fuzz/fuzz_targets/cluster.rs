#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| graccl_cli::fuzz_cluster(data));

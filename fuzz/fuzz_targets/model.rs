#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| graccl::plan::fuzz_model(data));

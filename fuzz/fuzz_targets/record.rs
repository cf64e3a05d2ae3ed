#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| graccl::record::fuzz_patches(data));

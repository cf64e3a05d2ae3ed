#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| graccl::tune::fuzz_profile(data));

#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| graccl::comm::fuzz_words(data));

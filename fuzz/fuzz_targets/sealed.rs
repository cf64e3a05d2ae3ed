#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| graccl::transport::tcp::fuzz_feed_sealed(data));

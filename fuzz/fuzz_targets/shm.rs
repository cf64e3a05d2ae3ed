#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| graccl::transport::shm::fuzz_shm(data));

#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    graccl::bootstrap::fuzz_wire(data);
});

#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| meshward_datapath::fuzzing::coalescing(data));

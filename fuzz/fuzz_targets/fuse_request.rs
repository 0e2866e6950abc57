//! `soci_fuse::fuzz::request`; the property tests of `fuse` run it under `cargo test`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| soci_fuse::fuzz::request(data));

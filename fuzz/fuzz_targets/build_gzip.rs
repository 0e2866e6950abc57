//! `soci_ztoc::fuzz::build_gzip`; `crates/ztoc/tests/it/fuzz_seeds.rs` runs it under `cargo test`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| soci_ztoc::fuzz::build_gzip(data));

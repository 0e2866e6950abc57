//! `soci_bolt::fuzz::database`; `crates/bolt/tests/it/damaged.rs` runs it under `cargo test`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| soci_bolt::fuzz::database(data));

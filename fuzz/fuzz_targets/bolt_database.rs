//! `bolt::fuzz::database`; `crates/bolt/tests/damaged.rs` runs it under `cargo test`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bolt::fuzz::database(data));

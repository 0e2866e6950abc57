//! The fuzz targets in one program. `FUZZ_TARGET` names the one that libFuzzer runs; `fuzz/run` sets it.

#![no_main]

mod documents;
#[path = "../../crates/soci/src/commands/check/elf.rs"]
mod elf;
mod layer;
mod tar_program;
mod targets;

libfuzzer_sys::fuzz_target!(init: targets::chosen(), |data: &[u8]| targets::chosen()(data));

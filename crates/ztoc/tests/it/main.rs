//! zTOCs and SOCI indexes of golden layers: building, reading, extracting, bad input.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod build;
mod codec;
mod extract;
mod fuzz_seeds;
mod golden;
mod index;
mod layers;
mod verify;

//! Reading bbolt files of the reference, whole and damaged.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod damaged;
mod golden;
mod reading;

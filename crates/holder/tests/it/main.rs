//! A holder and its clients in one process. Needs root: a holder accepts no other peer.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod holding;
mod keeper;

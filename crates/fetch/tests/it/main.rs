//! The span scheduler over a scripted registry: reading, failures, registries that misbehave.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod disk;
mod disturbed;
mod failing;
mod filling;
mod halves;
mod misbehaving;
mod neighbours;
mod playing;
mod reading;
mod support;

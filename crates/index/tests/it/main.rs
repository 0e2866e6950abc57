//! Building, converting and pushing indexed images, compared with golden data. Needs docker-registry.

#![allow(
    clippy::panic,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too, and removes what it made"
)]

mod bad_input;
mod convert;
mod golden;
mod images;
mod odd_entries;
mod registry;
mod sinks;

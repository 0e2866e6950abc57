//! The command line tool, alone and with containerd, nerdctl and registries. Needs root.

#![allow(
    clippy::panic,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too, and removes what it made"
)]

mod artifacts;
mod command_line;
mod convert;
mod hostile_text;
mod index_builder;
mod interop;
mod lazy_pull;
mod nerdctl;
mod profile;
mod pull;
mod push;
mod reference_suite;
mod remote;
mod support;
mod surroundings;

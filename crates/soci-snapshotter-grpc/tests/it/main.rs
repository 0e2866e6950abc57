//! The daemon as a program: its command line, sockets, signals, metrics and start.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod activation;
mod commands;
mod daemon;
mod observing;
mod serving;
mod startup;

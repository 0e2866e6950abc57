//! The daemon's word about itself: the gRPC service behind `soci status`, its client, and its JSON.
//!
//! The daemon puts the answer together from [`StatusSource`]s, each of which knows a part of it.

#![forbid(unsafe_code)]

pub mod api;
mod client;
mod service;
mod words;

pub use client::{StatusError, collect, fill, get};
pub use service::{Collector, Filler, SourceError, Sources, StatusSource};

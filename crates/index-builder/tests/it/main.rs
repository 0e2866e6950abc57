//! The index builder: events, the queue and its workers, images at a registry, the service. Needs
//! docker-registry.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod disk;
mod events;
mod indexer;
mod queue;
mod service;

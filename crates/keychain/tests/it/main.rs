//! Credentials from a cluster's secrets and from the kubelet's pulls.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod cluster;
mod ecr;
mod image_service;
mod providers;

//! The client against servers on the loopback interface: one that plays a registry with scripted
//! faults, and the real `docker-registry`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod authentication;
mod blobs;
mod caches;
mod certificates;
mod docker_registry;
mod fake;
mod faults;
mod foreign;
mod host_headers;
mod hosts_files;
mod manifests;
mod mirrors;
mod nginx;
mod peers;
mod reach;
mod redirects;
mod referrers;
mod secrets;
mod tls;
mod uploads;

//! The whole system: both programs with a real containerd, runc, registry and kernel. Needs root, FUSE,
//! containerd, runc, docker-registry, skopeo, mmdebstrap and systemd; `make test` builds the programs first.

#![forbid(unsafe_code)]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too, and removes what it made"
)]

mod abort_mounts;
mod as_people_build;
mod bad_labels;
mod check_agrees;
mod clock;
mod concurrency;
mod content_store;
mod crash;
mod credentials;
mod cri;
mod deep_folders;
mod eager;
mod eager_cri;
mod eager_faults;
mod eager_trouble;
mod faults;
mod filling;
mod first_light;
mod hand_over;
mod implied_directories;
mod index_builder;
mod install;
mod keep;
mod keychains;
mod local_layers;
mod memory;
mod mirrors;
mod node_install;
mod observe;
mod outages;
mod packages;
mod poisoning;
mod privilege;
mod profiles;
mod restart;
mod shared_layers;
mod soak;
mod start_hints;
mod support;
mod survival;
mod survival_parts;
mod survival_trouble;
mod systemd;
mod transfer;
mod upgrade;
mod upgrade_from_previous;
mod user_namespaces;

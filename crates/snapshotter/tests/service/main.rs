//! The Snapshots service over a real unix socket, with a real tonic client and real mounts. Needs
//! root and overlayfs (bind and overlay mounts are made below a temporary directory).

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy does not know what helpers of tests are for, nor that they remove what they made"
)]

mod client;
mod comparing;
mod conformance;
mod conformance_flat;
mod conformance_layers;
mod conformance_names;
mod double;
mod eager_prepare;
mod fixture;
mod foreign_client;
mod id_maps;
mod layer_states;
mod lazy_prepare;
mod lazy_use;
mod listing;
mod local_prepare;
mod mounting;
mod outcome_log;
mod removal;
mod restart;
mod status_codes;
mod upgrade;

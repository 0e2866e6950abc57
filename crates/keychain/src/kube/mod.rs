//! The secrets of type `kubernetes.io/dockerconfigjson` of a cluster, kept up to date by a watch.
//!
//! A client of our own instead of kube-rs: it makes two requests with the HTTP client that we have.

mod access;
mod api;
mod known;
mod kubeconfig;
mod plugin;
mod secrets;
mod settings;
mod sync;

pub use secrets::KubeSecrets;
pub use settings::KubeSettings;

/// Reads a text as a kubeconfig, for a fuzz target.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_kubeconfig(text: &str) {
    kubeconfig::Kubeconfig::fuzz(text);
}

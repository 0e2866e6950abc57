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

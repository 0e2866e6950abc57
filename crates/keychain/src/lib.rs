//! Credentials for registries that somebody else keeps: the image pull secrets of a Kubernetes
//! cluster ([`KubeSecrets`], `[kubeconfig_keychain]`), and what the kubelet sends with its pulls
//! ([`CriKeychain`], `[cri_keychain]`). Both are [`soci_registry::Credentials`].
//!
//! Nothing secret is in a `Debug`, an error or a log line of this crate.

#![forbid(unsafe_code)]

mod cri;
mod error;
mod kube;

pub use cri::{CriKeychain, ImageServiceProxy, Vault};
pub use error::KeychainError;
pub use kube::{KubeSecrets, KubeSettings};

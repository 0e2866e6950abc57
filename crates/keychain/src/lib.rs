//! Credentials for registries from Kubernetes: the image pull secrets of a cluster
//! ([`KubeSecrets`], `[kubeconfig_keychain]`), and the credentials of the kubelet's pulls
//! ([`CriKeychain`], `[cri_keychain]`). Both are [`soci_registry::Credentials`].
//!
//! No `Debug`, error or log line of this crate shows a secret.

#![forbid(unsafe_code)]

mod cri;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod kube;

pub use cri::{CriKeychain, ImageServiceProxy, Vault};
pub use error::KeychainError;
pub use kube::{KubeSecrets, KubeSettings};

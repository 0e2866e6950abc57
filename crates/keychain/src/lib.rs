//! Credentials for registries from Kubernetes and clouds: the image pull secrets of a cluster
//! ([`KubeSecrets`], `[kubeconfig_keychain]`), the credentials of the kubelet's pulls
//! ([`CriKeychain`], `[cri_keychain]`), the kubelet's credential provider plugins
//! ([`CredentialProviders`], `[kubelet_credential_providers]`), and Amazon ECR with the role of the
//! node or pod ([`EcrKeychain`], `[ecr_keychain]`). Each is a [`soci_registry::Credentials`].
//!
//! No `Debug`, error or log line of this crate shows a secret.

#![forbid(unsafe_code)]

mod cri;
mod ecr;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod kube;
mod providers;

pub use cri::{CriKeychain, ImageServiceProxy, ImagesInUse, Vault};
pub use ecr::{AwsEnvironment, AwsFailure, EcrError, EcrKeychain};
pub use error::{ApiDefect, KeychainError, KubeconfigDefect};
pub use kube::{KubeSecrets, KubeSettings};
pub use providers::{
    CredentialProviderError, CredentialProviders, ProviderConfigDefect, ProviderDefect,
    ProviderSettings, ResponseDefect,
};

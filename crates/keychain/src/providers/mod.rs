//! The kubelet's credential provider plugins (`[kubelet_credential_providers]`): programs that print
//! credentials for images, as the kubelet runs them (`--image-credential-provider-config` and
//! `--image-credential-provider-bin-dir`).

mod cache;
mod config;
mod exec;
mod keychain;

pub use keychain::{CredentialProviders, ProviderSettings};

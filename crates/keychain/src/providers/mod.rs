//! The kubelet's credential provider plugins (`[kubelet_credential_providers]`): programs that print
//! credentials for images, as the kubelet runs them (`--image-credential-provider-config` and
//! `--image-credential-provider-bin-dir`).

mod cache;
mod config;
mod error;
mod exec;
mod keychain;

pub use error::{CredentialProviderError, ProviderConfigDefect, ProviderDefect, ResponseDefect};
pub use keychain::{CredentialProviders, ProviderSettings};

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(data: &[u8]) {
    let versions = ["v1", "v1beta1", "v1alpha1"];
    for version in versions.map(|version| format!("credentialprovider.kubelet.k8s.io/{version}")) {
        // What is wrong is said by a type without text: nothing that was printed can be in it.
        let _: Result<_, ResponseDefect> = exec::parse_response(data, &version);
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for provider in config::parse(text).into_iter().flatten() {
        let file = std::path::Path::new(&provider.name);
        assert_eq!(
            file.file_name(),
            Some(file.as_os_str()),
            "{}",
            provider.name
        );
    }
}

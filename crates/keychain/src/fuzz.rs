//! Entry points of the fuzz targets.

/// A `CredentialProviderConfig`, and the response of a credential provider: any text is read or refused; a
/// provider that is read is a file of the configured folder, and no error repeats what was printed.
pub fn credential_providers(data: &[u8]) {
    crate::providers::fuzz(data);
}

/// A kubeconfig: any text is read or refused, and what is read names its cluster and user or says why not.
pub fn kubeconfig(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        crate::kube::fuzz_kubeconfig(text);
    }
}

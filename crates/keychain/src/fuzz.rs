//! Entry points of the fuzz targets.

/// A kubeconfig: any text is read or refused, and what is read names its cluster and user or says why not.
pub fn kubeconfig(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        crate::kube::fuzz_kubeconfig(text);
    }
}

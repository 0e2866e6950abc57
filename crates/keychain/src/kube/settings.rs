//! Where the configuration of the cluster is.

use std::path::PathBuf;
use std::time::Duration;

/// Location of the configuration of the cluster.
#[derive(Debug, Clone, Default)]
pub struct KubeSettings {
    /// `[kubeconfig_keychain] kubeconfig_path`. It may not exist yet. Without one: the files of
    /// `$KUBECONFIG`, `~/.kube/config`, or the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// Interval between attempts to find a configuration that does not exist yet; 10 s by default.
    pub period: Option<Duration>,
}

impl KubeSettings {
    /// Returns the kubeconfig files, in order of precedence.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        if let Some(path) = &self.kubeconfig {
            return vec![path.clone()];
        }
        if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
            return std::env::split_paths(&list).collect();
        }
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        vec![home.join(".kube/config")]
    }
}

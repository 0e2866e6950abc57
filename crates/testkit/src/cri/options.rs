//! containerd's CRI plugin, configured for tests: no CNI, everything below a private root.

use std::path::Path;

/// What the CRI plugin is like.
#[derive(Debug, Clone)]
pub struct CriOptions {
    /// The snapshotter that it uses.
    pub snapshotter: String,
    /// The image of the process that holds a pod's namespaces; pulled with the first pod.
    pub sandbox_image: String,
}

impl CriOptions {
    /// With the snapshotter `soci`, and the labels that it needs.
    #[must_use]
    pub fn with_soci(sandbox_image: &str) -> Self {
        Self {
            snapshotter: "soci".to_owned(),
            sandbox_image: sandbox_image.to_owned(),
        }
    }

    /// The tables of containerd's configuration (version 2). Without a table `runtimes` containerd
    /// 2.x would silently ignore what stands beside it, `snapshotter` above all. Pods must be on the host's network:
    /// there is no CNI plugin.
    pub(crate) fn config_text(&self, root: &Path) -> String {
        let at = |name: &str| root.join(name).display().to_string();
        let plugin = "plugins.\"io.containerd.grpc.v1.cri\"";
        format!(
            "[{plugin}]\n  sandbox_image = {:?}\n  restrict_oom_score_adj = true\n  \
             stream_server_port = \"0\"\n\
             [{plugin}.containerd]\n  snapshotter = {:?}\n  disable_snapshot_annotations = false\n\
             [{plugin}.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\
             [{plugin}.cni]\n  bin_dir = {:?}\n  conf_dir = {:?}\n",
            self.sandbox_image,
            self.snapshotter,
            at("cni/bin"),
            at("cni/conf"),
        )
    }
}

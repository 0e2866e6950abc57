//! containerd's CRI plugin, configured for tests, with everything below a private root.

use std::path::Path;

/// Below containerd's folder: plugins of pods' networks, and the networks.
pub(crate) const CNI_BIN: &str = "cni/bin";
pub(crate) const CNI_CONF: &str = "cni/conf";

/// What the CRI plugin is like.
#[derive(Debug, Clone)]
pub struct CriOptions {
    /// The snapshotter that it uses.
    pub snapshotter: String,
    /// The image of the process that holds a pod's namespaces; pulled with the first pod.
    pub sandbox_image: String,
    /// Which part of containerd pulls.
    pub pull: CriPull,
}

/// The part of containerd that pulls images for CRI. Before 2.1 there is only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CriPull {
    /// The CRI plugin, which containerd 2.1 falls back to when it is to send labels itself.
    #[default]
    Local,
    /// The transfer service, the default of containerd 2.1.
    Transfer,
}

impl CriOptions {
    /// With the snapshotter `soci`, and the labels that it needs.
    #[must_use]
    pub fn with_soci(sandbox_image: &str) -> Self {
        Self {
            snapshotter: "soci".to_owned(),
            sandbox_image: sandbox_image.to_owned(),
            pull: CriPull::default(),
        }
    }

    /// The tables of containerd's configuration. Those of version 2 have a table `runtimes`, without
    /// which containerd 2.x would silently ignore what stands beside it, `snapshotter` above all.
    pub(crate) fn config_text(&self, root: &Path, version_3: bool) -> String {
        let at = |name: &str| root.join(name).display().to_string();
        let (image, snapshotter) = (&self.sandbox_image, &self.snapshotter);
        // What is not said makes containerd 2.1 pull through its transfer service.
        let annotations = match self.pull {
            CriPull::Local => "disable_snapshot_annotations = false\n",
            CriPull::Transfer => "",
        };
        // 2.1 knows both keys, 2.4 the latter only.
        let (programs, networks) = (at(CNI_BIN), at(CNI_CONF));
        let cni = match version_3 {
            false => format!("  bin_dir = {programs:?}\n  conf_dir = {networks:?}\n"),
            true => format!("  bin_dirs = [{programs:?}]\n  conf_dir = {networks:?}\n"),
        };
        let runtime = "runtime_type = \"io.containerd.runc.v2\"";
        if version_3 {
            let (images, pods) = (
                "io.containerd.cri.v1.images",
                "io.containerd.cri.v1.runtime",
            );
            return format!(
                "[plugins.{images:?}]\n  snapshotter = {snapshotter:?}\n  {annotations}\
                 [plugins.{images:?}.pinned_images]\n  sandbox = {image:?}\n\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\n  stream_server_port = \"0\"\n\
                 [plugins.{pods:?}]\n  restrict_oom_score_adj = true\n\
                 [plugins.{pods:?}.containerd]\n  default_runtime_name = \"runc\"\n\
                 [plugins.{pods:?}.containerd.runtimes.runc]\n  {runtime}\n\
                 [plugins.{pods:?}.cni]\n{cni}"
            );
        }
        let plugin = "plugins.\"io.containerd.grpc.v1.cri\"";
        format!(
            "[{plugin}]\n  sandbox_image = {image:?}\n  restrict_oom_score_adj = true\n  \
             stream_server_port = \"0\"\n\
             [{plugin}.containerd]\n  snapshotter = {snapshotter:?}\n  {annotations}\
             [{plugin}.containerd.runtimes.runc]\n  {runtime}\n\
             [{plugin}.cni]\n{cni}"
        )
    }
}

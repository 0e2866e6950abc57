//! What this machine's snapshotter is configured to do.

use std::path::Path;

use soci_config::Config;

use crate::remote::How;

/// Where the daemon listens unless told otherwise.
const SOCKET: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";

/// What matters here.
pub(super) struct Here {
    config: Config,
    /// What is in the way of every lazy layer.
    pub(super) obstacles: Vec<String>,
}

impl Here {
    /// Reads the configuration and looks around.
    pub(super) fn look(path: &Path) -> anyhow::Result<Self> {
        let config = Config::load(path)?.config;
        let mut obstacles = Vec::new();
        if !Path::new("/dev/fuse").exists() {
            obstacles.push("/dev/fuse is missing: load the kernel module fuse".to_owned());
        }
        if !Path::new(SOCKET).exists() {
            obstacles.push(format!(
                "the snapshotter does not run here, or not at its usual socket {SOCKET}"
            ));
        }
        Ok(Self { config, obstacles })
    }

    /// Why an index that was found like this is not used; nothing if it is.
    pub(super) fn refuses(&self, how: How) -> Option<String> {
        let modes = &self.config.pull_modes;
        let parallel = &modes.parallel_pull_unpack;
        if parallel.enable && !parallel.experimental_parallel_pull_as_fallback {
            return Some(
                "[pull_modes.parallel_pull_unpack] is enabled, which looks for no index".to_owned(),
            );
        }
        let (enabled, mode) = match how {
            How::Given => (true, ""),
            How::Annotation => (modes.soci_v2.enable, "soci_v2"),
            How::Referrers => (modes.soci_v1.enable, "soci_v1"),
        };
        (!enabled).then(|| format!("[pull_modes.{mode}] is disabled in the configuration"))
    }

    /// Layers with fewer bytes are unpacked as usual.
    pub(super) fn min_layer_size(&self) -> u64 {
        self.config.snapshotter.min_layer_size
    }
}

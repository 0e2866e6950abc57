//! How the snapshotter of this machine is configured, and whether it can work.

use std::path::Path;

use soci_config::Config;
use soci_discovery::{LazyRegistries, Policy};

/// Default address of the daemon.
const SOCKET: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";

/// This machine, as far as it decides which layers are lazy.
pub(super) struct Machine {
    config: Config,
    /// Reasons why no layer can be lazy.
    pub(super) obstacles: Vec<String>,
}

impl Machine {
    /// Reads the configuration file of the snapshotter and looks for FUSE and the daemon.
    pub(super) fn inspect(config: &Path) -> anyhow::Result<Self> {
        let config = Config::load(config)?.config;
        let mut obstacles = Vec::new();
        if !Path::new("/dev/fuse").exists() {
            obstacles.push("/dev/fuse is missing: load the kernel module fuse".to_owned());
        }
        if !Path::new(SOCKET).exists() {
            obstacles.push(format!(
                "the snapshotter is not running, or not at its default address {SOCKET}"
            ));
        }
        Ok(Self { config, obstacles })
    }

    /// Returns the kinds of index that the daemon looks for.
    pub(super) fn policy(&self) -> Policy {
        let modes = &self.config.pull_modes;
        Policy {
            soci_v1: modes.soci_v1.enable,
            soci_v2: modes.soci_v2.enable,
            explicit_index: self.config.trust.explicit_index,
        }
    }

    /// Returns the registries whose images may be lazy.
    pub(super) fn lazy_registries(&self) -> LazyRegistries {
        LazyRegistries::new(self.config.trust.lazy_registries.clone())
    }

    /// The snapshotter's configuration.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }
}

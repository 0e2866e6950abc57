//! A network for pods that are not on the host's: none but an address that leads nowhere.

use std::path::Path;

use anyhow::{Context, Result};

use crate::program::write_program;

/// A CNI plugin (`cni.dev/docs/spec`), also for the loopback interface, that changes nothing.
const PLUGIN: &str = "#!/bin/sh\n\
    cat >/dev/null\n\
    case $CNI_COMMAND in\n\
    VERSION) echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\"]}' ;;\n\
    ADD) echo '{\"cniVersion\":\"0.4.0\",\"interfaces\":[{\"name\":\"'$CNI_IFNAME'\",\"sandbox\":\"'$CNI_NETNS'\"}],\
    \"ips\":[{\"version\":\"4\",\"interface\":0,\"address\":\"192.0.2.2/24\"}]}' ;;\n\
    esac\n";

const NETWORK: &str = r#"{"cniVersion":"0.4.0","name":"nothing","plugins":[{"type":"nothing"}]}"#;

/// Writes plugin and configuration into the folders that CRI's configuration names.
pub(crate) fn write(bin: &Path, conf: &Path) -> Result<()> {
    for folder in [bin, conf] {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    for name in ["nothing", "loopback"] {
        write_program(&bin.join(name), PLUGIN)?;
    }
    std::fs::write(conf.join("10-nothing.conflist"), NETWORK).context("write a network")
}

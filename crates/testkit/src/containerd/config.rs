//! containerd's configuration file.

use std::path::Path;

use anyhow::Result;

use super::ContainerdOptions;

/// The CRI plugins of every version, of which each containerd ignores those it does not have.
const CRI_PLUGINS: &str = "\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
    \"io.containerd.cri.v1.runtime\"";

/// The text of the file, in the version that the release writes itself.
pub(super) fn text(root: &Path, address: &Path, options: &ContainerdOptions) -> Result<String> {
    let at = |name: &str| root.join(name).display().to_string();
    let version_3 = options.release.is_2()?;
    let disabled = match options.cri {
        Some(_) => "",
        None => CRI_PLUGINS,
    };
    let mut text = format!(
        "version = {}\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [{disabled}]\n\
         [grpc]\n  address = {:?}\n[ttrpc]\n  address = {:?}\n[debug]\n  level = \"warn\"\n",
        if version_3 { 3 } else { 2 },
        at("root"),
        at("state"),
        address.display().to_string(),
        at("c.ttrpc"),
    );
    text.push_str(&snapshotters(options, version_3));
    if let Some(cri) = &options.cri {
        text.push_str(&cri.config_text(root, version_3));
    }
    text.push_str(&options.extra_config);
    Ok(text)
}

fn snapshotters(options: &ContainerdOptions, version_3: bool) -> String {
    let mut text = String::new();
    for (name, socket) in &options.snapshotters {
        let socket = socket.display().to_string();
        text.push_str(&format!(
            "[proxy_plugins.{name:?}]\n  type = \"snapshot\"\n  address = {socket:?}\n"
        ));
        if !options.without_capabilities {
            // For runs by hand: our docs advise against it.
            let rebase = if rebases() { ", \"rebase\"" } else { "" };
            text.push_str(&format!(
                "  capabilities = [\"remap-ids\", \"multi-remap-ids\"{rebase}]\n"
            ));
        }
        if options.transfer.annotations {
            text.push_str(&format!(
                "  [proxy_plugins.{name:?}.exports]\n    \
                 enable_remote_snapshot_annotations = \"true\"\n"
            ));
        }
    }
    if version_3 {
        // Its socket is the machine's, one containerd's only.
        text.push_str("[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n");
        if rebases() {
            // Without it containerd prepares one layer after the other, each on its parent.
            text.push_str(
                "[plugins.\"io.containerd.transfer.v1.local\"]\n  max_concurrent_unpacks = 4\n",
            );
        }
        let own = options.snapshotters.iter().map(|(name, _)| name.as_str());
        let own = own.filter(|_| options.transfer.unpack);
        for name in own.chain(["overlayfs"]) {
            text.push_str(&format!(
                "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  \
                 platform = \"linux\"\n  snapshotter = {name:?}\n"
            ));
        }
    }
    text
}

/// Whether containerd 2.2 and later shall prepare all layers of an image at once.
fn rebases() -> bool {
    std::env::var_os("SOCI_TEST_REBASE").is_some()
}

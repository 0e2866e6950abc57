//! What registries and programs as they are cost a node: a mirror that ends its connections, one that drops
//! one, and walks that list extended attributes.

pub mod attributes;
pub mod dropped;
pub mod goaway;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use soci_testkit::{
    Content, ImageBuilder, Layer, LocalPort, OciImage, SociCli, SociDaemonOptions, Stack,
    StackOptions, TestRoot,
};

const NAMESPACE: &str = "nodes";
/// What is fetched is what readers request.
const ON_DEMAND: &str = "[fetch]\nmax_readahead_bytes = 0\n[start_hints]\nenable = false\n\
    [background_fetch]\ndisable = true\n";

/// An image that is reached by a mirror alone: at the registry that it is named for nothing listens.
struct Mirrored {
    stack: Stack,
    repository: String,
    /// The folder of the `hosts.toml` files.
    hosts: PathBuf,
    _closed: LocalPort,
}

impl Mirrored {
    /// Starts a daemon with this configuration and indexes an image into the registry behind the mirror.
    fn start(image: &OciImage, config: &str, options: &[&str]) -> Result<Self> {
        let closed = LocalPort::claim()?;
        // Beside the image's blobs, and removed with them.
        let hosts = image.dir.join(format!("certs.d-{}", closed.number()));
        std::fs::create_dir_all(&hosts).context("make a folder for hosts.toml")?;
        let resolver = format!("[resolver]\nconfig_path = '{}'\n", hosts.display());
        let stack = Stack::start(StackOptions {
            daemon: SociDaemonOptions {
                log_level: "info".to_owned(),
                ..SociDaemonOptions::with_config(&format!("{config}{resolver}"))
            },
            ..StackOptions::default()
        })?;
        let target = stack.registry.docker_reference("files:soci");
        let source = image.dir.display().to_string();
        SociCli::standalone()?.convert(options, &source, &target)?;
        Ok(Self {
            stack,
            repository: format!("{}/files", closed.address()),
            hosts,
            _closed: closed,
        })
    }

    /// Names the mirror by a table of `hosts.toml`.
    fn mirror(&self, table: &str) -> Result<()> {
        let registry = self.repository.split('/').next().unwrap_or_default();
        let folder = self.hosts.join(registry);
        std::fs::create_dir_all(&folder).context("make a folder for hosts.toml")?;
        let text = format!("server = \"http://{registry}\"\n{table}");
        std::fs::write(folder.join("hosts.toml"), text).context("write hosts.toml")
    }

    /// The table of a mirror without TLS.
    fn plain_host(address: SocketAddr) -> String {
        format!("[host.\"http://{address}\"]\n")
    }

    /// Pulls the image, and returns the folder `data` of its lazy layer.
    fn pull(&self) -> Result<PathBuf> {
        let hosts = self.hosts.display().to_string();
        let reference = format!("{}:soci", self.repository);
        let soci = self.stack.soci(NAMESPACE)?;
        soci.output(["pull", "--hosts-dir", &hosts, &reference])
            .with_context(|| self.stack.log_tails())?;
        lazy_data(&self.stack.daemon.root())
    }
}

/// Writes an image of one layer whose folder `data` has files that are named by their numbers.
fn image_of_files(root: &TestRoot, files: u64, content: fn(u64) -> Content) -> Result<OciImage> {
    let mut layer = Layer::new().dir("data");
    for number in 0..files {
        layer = layer.file(&format!("data/{number}"), content(number));
    }
    let layout = root.dir("files")?;
    ImageBuilder::new().layer(layer).write(&layout, "files")
}

/// The folder `data` of the only lazy layer that has one.
fn lazy_data(root: &Path) -> Result<PathBuf> {
    let folder = root.join("snapshotter/snapshots");
    let snapshots = std::fs::read_dir(&folder).context("list the snapshots")?;
    let mut found = snapshots
        .filter_map(|entry| Some(entry.ok()?.path().join("fs/data")))
        .filter(|path| path.exists());
    let data = found.next().context("no layer has /data")?;
    ensure!(found.next().is_none(), "more than one layer has /data");
    ensure!(
        soci_testkit::process::lazy_mounts_below(root)? > 0,
        "no layer is lazy"
    );
    Ok(data)
}

//! `soci mount`: an image at a registry as a folder, read on demand.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::mount::{MountFlags, UnmountFlags};
use soci_discovery::Policy;
use soci_fetch::{FetchConfig, LayerData, LazyLayer, SpanFetcher};
use soci_layerfs::{MountOptions, MountedLayer, mount_layer};
use soci_oci::{Digest, Reference};
use soci_store::{LayerStore, LayerStoreConfig};
use tokio::runtime::Handle;

use crate::global::Global;
use crate::interrupt::{interrupted, limited};
use crate::output;
use crate::remote::{RemoteArgs, RemoteImage, RemoteLayer, open_all, reason};

/// Interval of the check whether the directory was unmounted.
const LOOK: Duration = Duration::from_millis(500);

/// Mount an image at a registry on a folder, read-only, until interrupted or unmounted
///
/// Files are fetched when they are read, and kept until the end. Needs root; containerd and the
/// snapshotter are not involved.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  soci mount registry.example/app:1-soci /mnt/app")]
pub(crate) struct Mount {
    /// The image
    #[arg(value_name = "REF")]
    reference: Reference,

    /// The folder
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Keep what is fetched in a new folder below this one (default: the system's temporary folder)
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

impl Mount {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting needs root (soci ls and soci cat do not)");
        }
        let directory = std::fs::canonicalize(&self.directory)
            .with_context(|| format!("cannot mount on {}", self.directory.display()))?;
        if !directory.is_dir() {
            bail!(
                "cannot mount on {}: it is not a directory",
                directory.display()
            );
        }
        let mounted = limited(global.timeout, Box::pin(self.mount(&directory))).await?;
        output::line(format!(
            "{} is mounted on {} ({} layers)",
            self.reference,
            directory.display(),
            mounted.layers.len()
        ));
        let signal = tokio::select! {
            signal = interrupted() => Some(signal),
            () = gone(&directory) => None,
        };
        tracing::debug!(?signal, "unmounting");
        mounted.end().await
    }

    async fn mount(&self, directory: &Path) -> anyhow::Result<Mounted> {
        let image = RemoteImage::open(&self.remote, &self.reference).await?;
        let explicit = self.remote.soci_index_digest;
        let index = image
            .find_index(explicit, Policy::ALL)
            .await
            .map_err(|none| anyhow::anyhow!(reason(&none.into())))?;
        let layers = open_all(&image, Some(&index)).await?;
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("soci-");
        let state = match &self.cache {
            Some(dir) => builder.tempdir_in(dir),
            None => builder.tempdir(),
        }
        .context("cannot make a folder for what is fetched")?;
        let mut mounted = Mounted::new(state)?;
        for (at, layer) in layers.into_iter().enumerate() {
            mounted.layer(at, layer)?;
        }
        mounted.overlay(directory)?;
        Ok(mounted)
    }
}

/// What is mounted, and what serves it. Dropping it takes everything down.
struct Mounted {
    /// In the order of taking down.
    overlay: Option<PathBuf>,
    layers: Vec<(MountedLayer, Arc<LazyLayer>)>,
    pool: soci_fuse::Pool,
    fetcher: Arc<SpanFetcher>,
    store: LayerStore,
    state: tempfile::TempDir,
}

impl Mounted {
    fn new(state: tempfile::TempDir) -> anyhow::Result<Self> {
        let store = LayerStore::open(&state.path().join("layers"), LayerStoreConfig::default())?;
        let mut config = FetchConfig::default();
        config.background.disable = true;
        let threads = std::thread::available_parallelism().map_or(4, std::num::NonZero::get);
        Ok(Self {
            overlay: None,
            layers: Vec::new(),
            pool: soci_fuse::Journal::create()
                .and_then(|journal| soci_fuse::Pool::new(threads.clamp(4, 16), journal))
                .context("cannot start the threads that serve file systems")?,
            fetcher: SpanFetcher::new(config, Handle::current()),
            store,
            state,
        })
    }

    fn place(&self, at: usize) -> PathBuf {
        self.state.path().join(at.to_string())
    }

    fn layer(&mut self, at: usize, layer: RemoteLayer) -> anyhow::Result<()> {
        let place = self.place(at);
        std::fs::create_dir(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let ztoc = Digest::of(&layer.ztoc);
        let stored = self
            .store
            .create_or_open(layer.digest, ztoc, Some(&layer.ztoc))?;
        let data = self.fetcher.add_layer(stored, layer.source);
        let served = mount_layer(
            &self.pool,
            Arc::new(layer.tree),
            Arc::clone(&data) as Arc<dyn LayerData>,
            &place,
            MountOptions::default(),
        )
        .with_context(|| format!("layer {} cannot be mounted", layer.digest))?;
        self.layers.push((served, data));
        Ok(())
    }

    /// The layers over each other. An empty one below them: overlay wants at least two.
    fn overlay(&mut self, directory: &Path) -> anyhow::Result<()> {
        let empty = self.state.path().join("e");
        std::fs::create_dir(&empty).with_context(|| format!("cannot make {}", empty.display()))?;
        let mut lower: Vec<String> = (0..self.layers.len())
            .rev()
            .map(|at| self.place(at).display().to_string())
            .collect();
        lower.push(empty.display().to_string());
        let options = format!("lowerdir={}", lower.join(":"));
        if options.len() >= 4096 {
            bail!(
                "the image has more layers than overlay takes at {}: choose a shorter --cache",
                self.state.path().display()
            );
        }
        let options = CString::new(options).context("a path holds a zero byte")?;
        rustix::mount::mount(
            "soci",
            directory,
            "overlay",
            MountFlags::RDONLY,
            Some(options.as_c_str()),
        )
        .with_context(|| format!("cannot mount on {}", directory.display()))?;
        self.overlay = Some(directory.to_owned());
        Ok(())
    }

    /// Unmounts everything and removes what was fetched.
    async fn end(mut self) -> anyhow::Result<()> {
        let result = self.unmount();
        self.fetcher.shutdown().await;
        let pool = self.pool.clone();
        soci_task::run(move || pool.shutdown()).await?;
        result
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        let mut first = Ok(());
        if let Some(directory) = self.overlay.take()
            && is_mounted(&directory)
        {
            first = rustix::mount::unmount(&directory, UnmountFlags::DETACH)
                .with_context(|| format!("cannot unmount {}", directory.display()));
        }
        for (layer, data) in self.layers.drain(..).rev() {
            data.close();
            if let Err(error) = layer.unmount() {
                first = first.and(Err(error.into()));
            }
        }
        first
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            output::warning(&output::reason(&error));
        }
    }
}

/// Resolves when the folder is not mounted any more.
async fn gone(directory: &Path) {
    while is_mounted(directory) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Is an image of ours mounted on the folder? If that cannot be told, yes.
fn is_mounted(directory: &Path) -> bool {
    let Ok(table) = soci_mountinfo::Table::read() else {
        return true;
    };
    let mut mounts = table.mounts();
    mounts.any(|mount| mount.point == directory && mount.is("overlay", "soci"))
}

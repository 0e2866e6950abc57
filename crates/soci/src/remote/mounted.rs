//! An image at a registry, mounted: its layers are served by this process.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustix::mount::{MountFlags, UnmountFlags};
use soci_discovery::Found;
use soci_fetch::{FetchConfig, LayerData, LazyLayer, SpanFetcher};
use soci_layerfs::{LayerMountOptions, MountedLayer, mount_layer};
use soci_oci::Digest;
use soci_store::{LayerKey, LayerStore, LayerStoreConfig};
use tokio::runtime::Handle;

use super::{RemoteImage, RemoteLayer, open_all};
use crate::output;

/// A mounted image, and what serves it. Dropping it takes everything down.
pub(crate) struct MountedImage {
    /// Taken down first, then the others in their order.
    overlay: Option<PathBuf>,
    layers: Vec<(MountedLayer, Arc<LazyLayer>)>,
    keys: Vec<LayerKey>,
    pool: soci_fuse::Pool,
    fetcher: Arc<SpanFetcher>,
    store: LayerStore,
    state: tempfile::TempDir,
}

impl MountedImage {
    /// Mounts the layers of an image, each in a folder of its own. What is fetched is kept in a new
    /// folder below `cache`, or below the system's temporary folder.
    pub(crate) async fn open(
        image: &RemoteImage,
        index: Option<&Found>,
        cache: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let layers = open_all(image, index).await?;
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("soci-");
        let state = match cache {
            Some(dir) => builder.tempdir_in(dir),
            None => builder.tempdir(),
        }
        .context("cannot make a folder for what is fetched")?;
        let mut mounted = Self::new(state)?;
        for (at, layer) in layers.into_iter().enumerate() {
            mounted.layer(at, layer)?;
        }
        Ok(mounted)
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The folder of what is fetched.
    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// The layers, the lowest first.
    pub(crate) fn data(&self) -> impl Iterator<Item = (LayerKey, &Arc<LazyLayer>)> {
        let data = self.layers.iter().map(|(_, data)| data);
        self.keys.iter().copied().zip(data)
    }

    fn new(state: tempfile::TempDir) -> anyhow::Result<Self> {
        let store = LayerStore::open(&state.path().join("layers"), LayerStoreConfig::default())?;
        let mut config = FetchConfig::default();
        config.background.disable = true;
        let threads = std::thread::available_parallelism().map_or(4, std::num::NonZero::get);
        Ok(Self {
            overlay: None,
            layers: Vec::new(),
            keys: Vec::new(),
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
            LayerMountOptions::default(),
        )
        .with_context(|| format!("layer {} cannot be mounted", layer.digest))?;
        self.layers.push((served, data));
        self.keys.push(LayerKey {
            layer: layer.digest,
            ztoc,
        });
        Ok(())
    }

    /// Mounts the layers over each other, with an empty one below them: overlay wants at least two.
    /// They can be written to if there is a folder for that (with `upper` and `work` in it).
    pub(crate) fn overlay(&mut self, directory: &Path, write: Option<&Path>) -> anyhow::Result<()> {
        let empty = self.state.path().join("e");
        std::fs::create_dir(&empty).with_context(|| format!("cannot make {}", empty.display()))?;
        let mut lower: Vec<String> = (0..self.layers.len())
            .rev()
            .map(|at| self.place(at).display().to_string())
            .collect();
        lower.push(empty.display().to_string());
        let mut options = format!("lowerdir={}", lower.join(":"));
        let mut flags = MountFlags::RDONLY;
        if let Some(write) = write {
            let write = write.display();
            options.push_str(&format!(",upperdir={write}/upper,workdir={write}/work"));
            flags = MountFlags::empty();
        }
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
            flags,
            Some(options.as_c_str()),
        )
        .with_context(|| format!("cannot mount on {}", directory.display()))?;
        self.overlay = Some(directory.to_owned());
        Ok(())
    }

    /// Unmounts everything and removes what was fetched.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let result = self.unmount();
        self.fetcher.shutdown().await;
        let pool = self.pool.clone();
        soci_task::run(move || pool.shutdown()).await?;
        result
    }

    /// Unmounts what shows the layers as one.
    pub(crate) fn unmount_overlay(&mut self) -> anyhow::Result<()> {
        if let Some(directory) = self.overlay.take()
            && is_mounted(&directory)
        {
            rustix::mount::unmount(&directory, UnmountFlags::DETACH)
                .with_context(|| format!("cannot unmount {}", directory.display()))?;
        }
        Ok(())
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        let mut first = self.unmount_overlay();
        for (layer, data) in self.layers.drain(..).rev() {
            data.close();
            if let Err(error) = layer.unmount() {
                first = first.and(Err(error.into()));
            }
        }
        first
    }
}

impl Drop for MountedImage {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            output::warning(&output::reason(&error));
        }
    }
}

/// Returns whether an image of ours is mounted on the folder, also if that cannot be determined.
pub(crate) fn is_mounted(directory: &Path) -> bool {
    let Ok(table) = soci_mountinfo::Table::read() else {
        return true;
    };
    let mut mounts = table.mounts();
    mounts.any(|mount| mount.point == directory && mount.is("overlay", "soci"))
}

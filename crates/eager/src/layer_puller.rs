//! Pulls layers: from containerd's content store where it has them, or else from their registry,
//! through the pipeline of the crate `unpack`.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use soci_containerd::{Containerd, ContainerdError, Content, Namespace, labels, within};
use soci_layer::{OverlayXattr, UnpackedSize};
use soci_oci::Digest;
use soci_registry::Client;
use soci_unpack::{
    ApplyOptions, CompressedSink, ImageLayers, ImageLimits, ImageShare, LayerBlob, LayerOfImage,
    LayerProgress, Pipeline, PipelineRequest, UnpackError, UnpackLimits,
};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::CancellationToken;

use crate::content_sink::{self, ContentSink};
use crate::error::EagerError;
use crate::folder::Folder;
use crate::image::{ImageToPull, PlannedLayer, plan};
use crate::puller::{ImagePull, PulledLayer, Puller};

/// Longest time that containerd may take to say what it has; after that the registry is asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lifetime of the lease on kept layers if this process dies. As long as containerd keeps those of
/// its own pulls.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// How layers are pulled.
pub struct PullConfig {
    /// The registry client.
    pub client: Client,
    /// The pipeline of the daemon.
    pub pipeline: Arc<Pipeline>,
    /// Requests and unpacks of one image at a time, and the size of a request.
    pub limits: ImageLimits,
    /// What one layer may take.
    pub unpack: UnpackLimits,
    /// Address of the containerd whose content store is read, and has the compressed layers if they
    /// are kept.
    pub containerd: Option<String>,
    /// Keep the compressed layers in containerd's content store.
    pub keep: bool,
    /// An existing folder on the file system of the snapshots.
    pub scratch: PathBuf,
    /// The attributes in which overlayfs looks for its marks.
    pub overlay_xattr: OverlayXattr,
}

/// Pulls images from containerd's content store and from registries.
pub(crate) struct RegistryPuller {
    shared: Arc<PullContext>,
}

struct PullContext {
    config: PullConfig,
    images: ImageLayers,
    containerd: Option<Containerd>,
}

/// One image.
struct RegistryPull {
    shared: Arc<PullContext>,
    image: ImageToPull,
    share: ImageShare,
    /// The namespace under a lease that keeps what is written to its content store.
    leased: OnceCell<Namespace>,
}

impl RegistryPuller {
    pub(crate) fn new(config: PullConfig) -> Self {
        let images = ImageLayers::new(config.client.clone(), config.containerd.clone());
        let containerd = config.containerd.as_deref().map(Containerd::new);
        Self {
            shared: Arc::new(PullContext {
                config,
                images,
                containerd,
            }),
        }
    }
}

#[async_trait]
impl Puller for RegistryPuller {
    async fn describe(&self, image: &ImageToPull) -> Result<Vec<PlannedLayer>, EagerError> {
        let of_image = LayerOfImage {
            namespace: image.namespace.clone(),
            reference: image.reference.clone(),
            manifest: image.manifest,
            layer: image.manifest,
        };
        // Boxed: a request to a registry is a large future.
        let described = Box::pin(self.shared.images.of(&of_image)).await;
        let described = described.map_err(|source| EagerError::Describe {
            manifest: image.manifest,
            source: Arc::new(source),
        })?;
        let layers = described.iter();
        Ok(plan(
            layers.map(|layer| (layer.descriptor.clone(), layer.diff_id)),
        ))
    }

    fn begin(&self, image: &ImageToPull) -> Arc<dyn ImagePull> {
        Arc::new(RegistryPull {
            share: self.shared.config.pipeline.image(self.shared.config.limits),
            shared: Arc::clone(&self.shared),
            image: image.clone(),
            leased: OnceCell::new(),
        })
    }
}

#[async_trait]
impl ImagePull for RegistryPull {
    async fn pull(
        &self,
        layer: &PlannedLayer,
        progress: &Arc<LayerProgress>,
        cancel: &CancellationToken,
    ) -> Result<PulledLayer, EagerError> {
        let scratch = self.shared.config.scratch.clone();
        let folder = soci_task::blocking(move || Folder::new(&scratch)).await?;
        let digest = layer.descriptor.digest;
        let local = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(EagerError::Cancelled),
            local = self.local(layer) => local,
        };
        let mut unpacked = None;
        if let Some(bytes) = local {
            let blob = LayerBlob::Local(bytes);
            match self.unpack(layer, blob, &folder, progress, cancel).await {
                Ok(layer) => unpacked = Some(layer),
                Err(EagerError::Cancelled) => return Err(EagerError::Cancelled),
                Err(error) => {
                    let error = soci_errors::chain(&error);
                    tracing::warn!(
                        layer = %digest,
                        error,
                        "cannot unpack a layer from containerd's content store, falling back to the registry"
                    );
                }
            }
            if unpacked.is_some() {
                self.label(layer).await;
            }
        }
        let unpacked = match unpacked {
            Some(unpacked) => unpacked,
            None => {
                let client = &self.shared.config.client;
                let blob = client.blob(&self.image.reference, &layer.descriptor);
                let blob = LayerBlob::Remote(blob);
                self.unpack(layer, blob, &folder, progress, cancel).await?
            }
        };
        let fs = folder.fs();
        let measured = soci_task::blocking(move || {
            soci_dirtree::measure(&fs).map_err(crate::error::folder(fs, "measure it"))
        });
        let measured = measured.await?;
        soci_faults::point("eager-layer-pulled");
        let timings = unpacked.timings;
        tracing::info!(
            layer = %digest,
            size = unpacked.compressed_size,
            uncompressed = unpacked.uncompressed_size,
            milliseconds = timings.total.as_millis(),
            downloaded_after_ms = timings.download.as_millis(),
            queued_ms = timings.queued.as_millis(),
            sync_ms = timings.sync.as_millis(),
            entered = progress.entered.load(Ordering::Relaxed),
            guessed = progress.guessed.load(Ordering::Relaxed),
            "pulled and unpacked a layer"
        );
        Ok(PulledLayer {
            folder,
            implied: unpacked.implied,
            unpacked_for: timings.total.saturating_sub(timings.queued),
            size: UnpackedSize {
                inodes: measured.inodes,
                bytes: measured.bytes,
            },
        })
    }
}

impl RegistryPull {
    /// Unpacks a layer into a folder, and keeps its compressed bytes if they come from elsewhere than
    /// containerd.
    async fn unpack(
        &self,
        layer: &PlannedLayer,
        blob: LayerBlob,
        folder: &Folder,
        progress: &Arc<LayerProgress>,
        cancel: &CancellationToken,
    ) -> Result<soci_unpack::UnpackedLayer, EagerError> {
        let config = &self.shared.config;
        let remote = matches!(blob, LayerBlob::Remote(_));
        let store = match config.keep && remote {
            true => Some(self.sink(layer).await?),
            false => None,
        };
        let request = PipelineRequest {
            blob,
            descriptor: layer.descriptor.clone(),
            diff_id: layer.diff_id,
            order: layer.order,
            directory: folder.fs(),
            options: ApplyOptions {
                overlay_xattr: config.overlay_xattr,
                lower: Vec::new(),
                limits: config.unpack,
            },
            store,
            progress: Arc::clone(progress),
            first_byte: None,
        };
        let unpacked = Box::pin(self.share.unpack(request, cancel)).await;
        unpacked.map_err(|error| match error {
            UnpackError::Cancelled => EagerError::Cancelled,
            source => EagerError::Layer {
                layer: layer.descriptor.digest,
                source: Arc::new(source),
            },
        })
    }

    /// Opens a layer that containerd's content store has.
    async fn local(&self, layer: &PlannedLayer) -> Option<Box<dyn Read + Send>> {
        let containerd = self.shared.containerd.as_ref()?;
        let (digest, size) = (layer.descriptor.digest, layer.descriptor.size);
        let open = async {
            let content = Content::new(&containerd.namespace(&self.image.namespace)?);
            let known = content.info(&digest).await?.map(|known| known.size);
            if known != Some(size) && !(known.is_none() && self.share(layer).await?) {
                return Ok(None);
            }
            if let Some(file) = content.file(&digest, size).await {
                return Ok(Some(Box::new(file) as Box<dyn Read + Send>));
            }
            let stream = content.stream(&digest, 0, 0).await?;
            let reader = SyncIoBridge::new(StreamReader::new(stream));
            Ok(Some(Box::new(reader) as Box<dyn Read + Send>))
        };
        let opened: Result<_, ContainerdError> = within(PATIENCE, Box::pin(open)).await;
        opened.unwrap_or_else(|error| {
            let error = soci_errors::chain(&error);
            tracing::debug!(layer = %digest, error, "cannot look for a layer in containerd's content store");
            None
        })
    }

    /// If layers are kept: has containerd store a layer that it keeps for another namespace in that of
    /// the image.
    async fn share(&self, layer: &PlannedLayer) -> Result<bool, ContainerdError> {
        if !self.shared.config.keep {
            return Ok(false);
        }
        let content = Content::new(self.leased().await?);
        content_sink::share(&content, &layer.descriptor, self.labels(layer)).await
    }

    /// The labels of a kept layer.
    fn labels(&self, layer: &PlannedLayer) -> HashMap<String, String> {
        HashMap::from([
            uncompressed(&layer.diff_id),
            labels::source(&self.image.reference),
        ])
    }

    /// The image's namespace under the lease of this pull.
    async fn leased(&self) -> Result<&Namespace, ContainerdError> {
        let leased = self.leased.get_or_try_init(|| async {
            let address = self.shared.config.containerd.as_deref().unwrap_or_default();
            let containerd = within(PATIENCE, Containerd::connect(address)).await?;
            let namespace = containerd.namespace(&self.image.namespace)?;
            let leased = namespace.leased(LEASE).await?;
            soci_faults::point("eager-lease-made");
            Ok(leased)
        });
        leased.await
    }

    /// Labels a layer of containerd's content store with its diff ID, as unpacking by containerd does.
    async fn label(&self, layer: &PlannedLayer) {
        let Some(containerd) = &self.shared.containerd else {
            return;
        };
        let digest = layer.descriptor.digest;
        let labels = HashMap::from([uncompressed(&layer.diff_id)]);
        let label = async {
            let content = Content::new(&containerd.namespace(&self.image.namespace)?);
            content.add_labels(&digest, labels).await
        };
        if let Err(error) = within(PATIENCE, Box::pin(label)).await {
            let error = soci_errors::chain(&error);
            tracing::debug!(layer = %digest, error, "cannot label a layer in containerd's content store");
        }
    }

    /// Makes the way by which a layer gets into containerd's content store.
    async fn sink(&self, layer: &PlannedLayer) -> Result<Box<dyn CompressedSink>, EagerError> {
        let keep = |error: ContainerdError| EagerError::Keep {
            source: Arc::new(error),
        };
        let content = Content::new(self.leased().await.map_err(keep)?);
        let labels = self.labels(layer);
        let sink = ContentSink::new(Handle::current(), content, &layer.descriptor, labels);
        Ok(Box::new(sink))
    }
}

fn uncompressed(diff_id: &Digest) -> (String, String) {
    (labels::UNCOMPRESSED.to_owned(), diff_id.to_string())
}

impl Drop for RegistryPull {
    fn drop(&mut self) {
        let Some(leased) = self.leased.take() else {
            return;
        };
        // The manifest, which the client has written under its own lease, keeps the layers now.
        let release = async move {
            soci_faults::point("eager-layers-kept");
            if let Err(error) = within(PATIENCE, leased.release_lease()).await {
                let error = soci_errors::chain(&error);
                tracing::warn!(error, "cannot release the lease on kept layers: it expires");
            }
            soci_faults::point("eager-lease-released");
        };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(release);
        }
    }
}

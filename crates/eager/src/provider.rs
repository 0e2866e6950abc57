//! Eager pulls as a [`LayerProvider`] in front of that of lazy layers.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use soci_containerd::labels::EAGER;
use soci_layer::{
    Announcement, ChainUse, CommittedLayers, Interest, LayerProvider, LayerRefusal, LayerRequest,
    LayerUses, LowerLayer, MountedInfo, ParentLayer, ProviderError, Purpose, Restored,
    UnpackOutcome, UnpackRequest, UnpackedSize, UseRefusal,
};
use soci_telemetry::Meters;
use soci_telemetry::metrics::count;
use tokio_util::sync::CancellationToken;

use crate::error::EagerError;
use crate::image::check_parent;
use crate::job::Destination;
use crate::jobs::Jobs;
use crate::labels;
use crate::layer_puller::{PullConfig, RegistryPuller};
use crate::report::{EagerTotals, ImageProgress};

/// Which images are pulled eagerly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EagerMode {
    /// None.
    #[default]
    Off,
    /// All, and no index is looked up: `enable`.
    All,
    /// Those without an index: `experimental_parallel_pull_as_fallback`.
    WithoutIndex,
}

/// How images are pulled eagerly.
pub struct EagerConfig {
    /// Which images are.
    pub mode: EagerMode,
    /// How their layers are pulled.
    pub pull: PullConfig,
    /// Reads the layers below one that is unpacked.
    pub lower: LowerLayers,
    /// Counts layers that could not be unpacked.
    pub meters: Arc<Meters>,
}

/// Opens the layers below one that is unpacked, lazy ones among them.
pub type LowerLayers =
    Arc<dyn Fn(&[ParentLayer]) -> Result<Vec<Box<dyn LowerLayer>>, LayerRefusal> + Send + Sync>;

/// Pulls images eagerly, and leaves all other requests to the provider of lazy layers.
pub struct EagerLayers {
    inner: Arc<dyn LayerProvider>,
    mode: EagerMode,
    jobs: Arc<Jobs>,
    lower: LowerLayers,
    meters: Arc<Meters>,
}

impl EagerLayers {
    /// Puts eager pulls in front of `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn LayerProvider>, config: EagerConfig) -> Arc<Self> {
        let by_namespace = config.pull.keep;
        let puller = Arc::new(RegistryPuller::new(config.pull));
        Arc::new(Self {
            inner,
            mode: config.mode,
            jobs: Arc::new(Jobs::new(puller, by_namespace)),
            lower: config.lower,
            meters: config.meters,
        })
    }

    /// Ends all pulls, and waits (a limited time) until nothing is written any more.
    pub async fn close(&self) {
        self.jobs.close().await;
    }

    /// Reports the images that are being pulled.
    #[must_use]
    pub fn progress(&self) -> Vec<ImageProgress> {
        self.jobs.progress()
    }

    /// Returns what was done since the start.
    #[must_use]
    pub fn totals(&self) -> EagerTotals {
        self.jobs.totals()
    }

    /// How the image of a Prepare is pulled: as configured, or as its client wishes.
    fn mode(&self, labels: &BTreeMap<String, String>) -> EagerMode {
        match self.mode {
            EagerMode::Off if labels.get(EAGER).is_some_and(|value| value == "true") => {
                EagerMode::WithoutIndex
            }
            mode => mode,
        }
    }

    /// Pulls the layer with those above it, and moves it to the directory of its snapshot. The job lasts until
    /// that is committed: another image would pull the layer again.
    async fn pull(
        &self,
        request: UnpackRequest,
        committed: Arc<dyn CommittedLayers>,
        cancel: &CancellationToken,
    ) -> Result<UnpackOutcome, LayerRefusal> {
        let UnpackRequest { layer, .. } = request;
        let (image, wanted) = labels::read(&layer.namespace, &layer.labels)?;
        let join = self.jobs.join(&image, &wanted, committed);
        let joined = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(EagerError::Cancelled),
            joined = Box::pin(join) => joined,
        };
        let (client, at) = joined?;
        check_parent(at, layer.parent.as_deref()).inspect_err(|_| client.give_up())?;
        let to = Destination {
            lower: (self.lower)(&layer.parents)?,
            directory: layer.mountpoint,
        };
        let delivered = client.job.deliver(at, to, cancel).await;
        if matches!(delivered, Err(EagerError::Cancelled)) {
            client.give_up();
        }
        Ok(UnpackOutcome {
            size: Some(delivered?),
            interest: Some(Box::new(client)),
        })
    }

    /// Turns the refusal of an image without an index into that of an image that is pulled eagerly,
    /// if its layers can be described.
    async fn eagerly(&self, request: &LayerRequest, refusal: LayerRefusal) -> LayerRefusal {
        if !refusal.falls_back_to_parallel() {
            return refusal;
        }
        let Ok((image, _)) = labels::read(&request.namespace, &request.labels) else {
            return refusal;
        };
        match self.jobs.describe(&image).await {
            Ok(_) => LayerRefusal::Eager {
                reason: soci_errors::chain(&refusal),
            },
            Err(error) => {
                tracing::warn!(
                    image = %image.reference,
                    error = soci_errors::chain(&error),
                    "cannot pull the layers of an image in parallel: they are left to the client"
                );
                refusal
            }
        }
    }
}

#[async_trait]
impl LayerProvider for EagerLayers {
    async fn mount(&self, request: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        // A layer that was mounted before stays lazy, whatever the configuration is now.
        let of_image = request.purpose == Purpose::ImageLayer;
        match self.mode(&request.labels) {
            EagerMode::All if of_image => {
                labels::read(&request.namespace, &request.labels)?;
                Err(LayerRefusal::Eager {
                    reason: "pull_modes.parallel_pull_unpack.enable = true".to_owned(),
                })
            }
            EagerMode::WithoutIndex if of_image => match self.inner.mount(request.clone()).await {
                Ok(root) => Ok(root),
                Err(refusal) => Err(self.eagerly(&request, refusal).await),
            },
            _ => self.inner.mount(request).await,
        }
    }

    async fn unpack(
        &self,
        mut request: UnpackRequest,
        cancel: CancellationToken,
    ) -> Result<UnpackOutcome, LayerRefusal> {
        match request.eager.take() {
            Some(committed) => {
                let pulled = self.pull(request, committed, &cancel).await;
                if pulled.is_err() && !cancel.is_cancelled() {
                    self.meters.count(count::LOCAL_MOUNT_FAILURE, "", 1);
                }
                pulled
            }
            None => self.inner.unpack(request, cancel).await,
        }
    }

    async fn announce(&self, announcement: Announcement) -> Option<Interest> {
        let Announcement {
            namespace,
            labels,
            committed,
        } = announcement;
        let mode = self.mode(&labels);
        if mode == EagerMode::Off {
            return None;
        }
        let (image, wanted) = labels::read(&namespace, &labels).ok()?;
        // Errors are reported when the layer is unpacked.
        let joined = match mode {
            EagerMode::All => Some(self.jobs.join(&image, &wanted, committed).await.ok()?),
            _ => self.jobs.join_running(&image, &wanted).ok()?,
        };
        let (client, _) = joined?;
        Some(Box::new(client))
    }

    fn removed(&self, labels: &BTreeMap<String, String>) {
        if let Ok((image, wanted)) = labels::read("", labels) {
            self.jobs.removed(image.manifest, &wanted);
        }
        self.inner.removed(labels);
    }

    fn uses(&self, uses: &LayerUses) {
        self.inner.uses(uses);
    }

    fn disk_usage(&self, mountpoint: &Path) -> Option<UnpackedSize> {
        self.inner.disk_usage(mountpoint)
    }

    async fn vet_labels(
        &self,
        request: &LayerRequest,
    ) -> Result<BTreeMap<String, String>, LayerRefusal> {
        match self.mode(&request.labels) {
            // The chain ID is compared with the image when its layers are known.
            EagerMode::All => Ok(request.labels.clone()),
            _ => self.inner.vet_labels(request).await,
        }
    }

    async fn restore(&self, request: LayerRequest) -> Result<Restored, LayerRefusal> {
        self.inner.restore(request).await
    }

    async fn unmount(&self, mountpoint: &Path) -> Result<(), ProviderError> {
        self.inner.unmount(mountpoint).await
    }

    async fn admit(&self, use_of: ChainUse) -> Result<(), UseRefusal> {
        self.inner.admit(use_of).await
    }

    async fn check(
        &self,
        mountpoint: &Path,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ProviderError> {
        self.inner.check(mountpoint, labels).await
    }
}

//! The unpacker: single layers of images that are lazy otherwise, from their registry into a directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use soci_dirtree::Space;
use soci_oci::Digest;
use soci_registry::Client;
use tokio_util::sync::CancellationToken;

use crate::ahead::Ahead;
use crate::apply::ApplyOptions;
use crate::downloads::{DownloadConfig, Downloads, Slot};
use crate::error::{ApplyError, UnpackError};
use crate::image::{ImageLayers, LayerDescription, LayerOfImage};
use crate::pipeline::{
    Beginning, Begun, ImageLimits, ImageShare, LayerBlob, LayerProgress, Pipeline, PipelineConfig,
    PipelineRequest,
};
use crate::scratch::prepare_folder;

/// Largest layer that is fetched ahead, in compressed bytes.
const AHEAD_AT_MOST: u64 = 64 << 20;
/// Requests for one layer.
const REQUESTS: usize = 4;

/// How layers are unpacked.
#[derive(Debug, Clone)]
pub struct UnpackConfig {
    /// A folder of our own for layers on their way. Emptied at the start.
    pub scratch: PathBuf,
    /// Address of the containerd whose content store has manifests and configurations; without one,
    /// and for what it does not have, the registry is asked.
    pub containerd: Option<String>,
    /// How layers are downloaded.
    pub downloads: DownloadConfig,
    /// The limits of the pipeline; `speed` is that of `downloads`.
    pub pipeline: PipelineConfig,
}

impl UnpackConfig {
    /// The usual limits, with this scratch folder and no containerd.
    #[must_use]
    pub fn new(scratch: PathBuf) -> Self {
        Self {
            scratch,
            containerd: None,
            downloads: DownloadConfig::default(),
            pipeline: PipelineConfig::default(),
        }
    }
}

/// The target of unpacking.
pub struct Target {
    /// An existing, empty directory.
    pub directory: PathBuf,
    /// How the layer is applied.
    pub options: ApplyOptions,
}

/// A layer that was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of the compressed layer.
    pub compressed_size: u64,
    /// The digest of the uncompressed layer, as the image configuration says.
    pub diff_id: Digest,
}

/// A layer that is being fetched.
pub(crate) struct Fetched {
    described: LayerDescription,
    share: ImageShare,
    progress: Arc<LayerProgress>,
    begun: Begun,
}

/// Fetches and unpacks layers.
pub struct Unpacker {
    fetcher: Arc<Fetcher>,
    ahead: Ahead,
    /// Number of the next download ahead.
    begun: AtomicU64,
}

struct Fetcher {
    images: ImageLayers,
    downloads: Downloads,
    pipeline: Arc<Pipeline>,
    config: PipelineConfig,
}

impl Unpacker {
    /// Makes and empties the scratch folder.
    ///
    /// # Errors
    /// It cannot be made or emptied.
    pub fn new(client: Client, config: UnpackConfig) -> Result<Self, UnpackError> {
        prepare_folder(&config.scratch)?;
        let pipeline = PipelineConfig {
            speed: config.downloads.speed(),
            ..config.pipeline
        };
        Ok(Self {
            fetcher: Arc::new(Fetcher {
                images: ImageLayers::new(client, config.containerd),
                downloads: Downloads::new(config.downloads),
                pipeline: Pipeline::new(pipeline.clone()),
                config: pipeline,
            }),
            ahead: Ahead::default(),
            begun: AtomicU64::new(0),
        })
    }

    /// The pipeline, for whole images.
    #[must_use]
    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.fetcher.pipeline
    }

    /// Starts to fetch a layer that [`Unpacker::unpack`] will soon be called for; otherwise it is dropped
    /// after a while. Large layers are not fetched ahead.
    pub fn fetch_ahead(&self, layer: LayerOfImage) {
        let (fetcher, wanted) = (Arc::clone(&self.fetcher), layer.clone());
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        self.ahead.begin(layer, number, |started| async move {
            let turn = fetcher.downloads.turn_ahead().await;
            started.store(true, Ordering::Release);
            // Boxed: a request to a registry is a large future.
            let fetched = fetcher.fetch(&wanted, AHEAD_AT_MOST, |slot| slot.ahead = turn);
            Box::pin(fetched).await
        });
    }

    /// Fetches a layer and unpacks it into the target. Compressed and uncompressed digest are right
    /// and the files are on disk when this returns `Ok`. After an error the target is empty.
    ///
    /// `cancel` ends it early; only then, and not when the future is dropped, is it certain that
    /// nothing is written any more.
    ///
    /// # Errors
    /// The layer cannot be fetched, verified or written.
    pub async fn unpack(
        &self,
        layer: &LayerOfImage,
        target: Target,
        cancel: &CancellationToken,
    ) -> Result<Unpacked, UnpackError> {
        let fetched = async {
            if let Some(begun) = self.ahead.take(layer)
                && let Some(fetched) = begun.fetched().await
                && fetched.begun.has_started().await
            {
                return Ok(fetched);
            }
            self.fetcher.fetch(layer, u64::MAX, |_| {}).await
        };
        let Fetched {
            described,
            share,
            progress,
            begun,
        } = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(UnpackError::Cancelled),
            fetched = Box::pin(fetched) => fetched?,
        };
        self.fetcher
            .check_space(described.descriptor.size, &target.directory)?;
        let request = PipelineRequest {
            blob: LayerBlob::Local(Box::new(std::io::empty())),
            descriptor: described.descriptor,
            diff_id: described.diff_id,
            order: 0,
            directory: target.directory,
            options: target.options,
            store: None,
            progress,
            first_byte: None,
        };
        let unpacked = Box::pin(share.unpack_begun(request, begun, cancel)).await?;
        Ok(Unpacked {
            compressed_size: unpacked.compressed_size,
            diff_id: unpacked.diff_id,
        })
    }
}

impl Fetcher {
    /// Begins to download a layer of at most `most` bytes.
    async fn fetch(
        &self,
        layer: &LayerOfImage,
        most: u64,
        change: impl FnOnce(&mut Slot),
    ) -> Result<Fetched, UnpackError> {
        let patience = self.downloads.patience();
        let described = patience
            .describe(Box::pin(self.images.describe(layer)))
            .await?;
        if described.descriptor.size > most {
            return Err(UnpackError::Cancelled);
        }
        let mut slot = self.downloads.slot(&layer.reference, patience).await?;
        change(&mut slot);
        let share = self.pipeline.image(ImageLimits {
            downloads: REQUESTS,
            ..ImageLimits::default()
        });
        let progress = Arc::<LayerProgress>::default();
        let beginning = Beginning {
            blob: self
                .images
                .client
                .blob(&layer.reference, &described.descriptor),
            size: described.descriptor.size,
            order: 0,
            first_byte: Some(patience.deadline()),
            slot: Some(slot),
        };
        let begun = share.begin(beginning, Arc::clone(&progress));
        Ok(Fetched {
            described,
            share,
            progress,
            begun,
        })
    }

    /// Refuses a layer for which the disk has no room but the reserve.
    fn check_space(&self, size: u64, directory: &Path) -> Result<(), UnpackError> {
        let reserve = self.config.limits.reserve;
        if reserve.percent == 0 {
            return Ok(());
        }
        match Space::at(directory) {
            Ok(space) if space.spare(reserve) < size => Err(ApplyError::Reserve {
                percent: reserve.percent,
                free: space.free,
            }
            .into()),
            // What cannot be asked is left to ENOSPC.
            _ => Ok(()),
        }
    }
}

//! The unpacker: a layer from a registry, verified, in a directory.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use soci_dirtree::{Reserve, Space};
use soci_meter::Meter;
use soci_oci::Digest;
use soci_registry::Client;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ahead::Ahead;
use crate::apply::limits::UnpackLimits;
use crate::apply::{ApplyOptions, apply_metered};
use crate::decompress::Blob;
use crate::downloads::{DownloadConfig, Downloads};
use crate::error::{ApplyError, UnpackError};
use crate::image::{Described, Images, LayerOfImage};

/// Mode of the scratch folder.
const SCRATCH_MODE: u32 = 0o700;
/// Largest layer that is fetched ahead, in compressed bytes.
const AHEAD_AT_MOST: u64 = 64 << 20;
/// Ratio of uncompressed to compressed size that no gzip stream exceeds.
const MAX_RATIO: u64 = 1100;
/// Memory for zstd's windows of all layers, in MiB.
const WINDOWS: usize = 256;
/// How long a fetched layer waits for others to be unpacked.
const UNPACK_PATIENCE: Duration = Duration::from_secs(300);

/// How layers are unpacked.
#[derive(Debug, Clone)]
pub struct UnpackConfig {
    /// A folder of our own for compressed layers on their way. Emptied at the start.
    pub scratch: PathBuf,
    /// Address of the containerd whose content store has manifests and configurations; without one,
    /// and for what it does not have, the registry is asked.
    pub containerd: Option<String>,
    /// How layers are downloaded.
    pub downloads: DownloadConfig,
    /// What one layer may take, and how much of the disk is reserved.
    pub limits: UnpackLimits,
    /// Limit of layers that are decompressed and written concurrently.
    pub unpacks: usize,
}

impl UnpackConfig {
    /// The usual limits, with this scratch folder and no containerd.
    #[must_use]
    pub fn new(scratch: PathBuf) -> Self {
        Self {
            scratch,
            containerd: None,
            downloads: DownloadConfig::default(),
            limits: UnpackLimits::default(),
            unpacks: std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8)),
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

/// A fetched layer, compressed and verified.
pub(crate) struct Fetched {
    described: Described,
    /// Without a name: it is gone with this.
    file: Arc<File>,
}

/// Fetches and unpacks layers.
pub struct Unpacker {
    fetcher: Arc<Fetcher>,
    unpacks: Semaphore,
    /// Mebibytes for windows of zstd.
    windows: Arc<Semaphore>,
    limits: UnpackLimits,
    ahead: Ahead,
    /// Number of the next download ahead.
    begun: AtomicU64,
}

struct Fetcher {
    images: Images,
    scratch: PathBuf,
    downloads: Downloads,
    reserve: Reserve,
}

impl Unpacker {
    /// Makes and empties the scratch folder.
    ///
    /// # Errors
    /// It cannot be made or emptied.
    pub fn new(client: Client, config: UnpackConfig) -> Result<Self, UnpackError> {
        empty(&config.scratch)?;
        Ok(Self {
            fetcher: Arc::new(Fetcher {
                images: Images::new(client, config.containerd),
                scratch: config.scratch,
                downloads: Downloads::new(config.downloads),
                reserve: config.limits.reserve,
            }),
            unpacks: Semaphore::new(config.unpacks.max(1)),
            windows: Arc::new(Semaphore::new(WINDOWS)),
            limits: config.limits,
            ahead: Ahead::default(),
            begun: AtomicU64::new(0),
        })
    }

    /// Starts to fetch a layer that [`Unpacker::unpack`] will soon be called for; otherwise it is dropped
    /// after a while. Large layers are not fetched ahead.
    pub fn fetch_ahead(&self, layer: LayerOfImage) {
        let (fetcher, wanted) = (Arc::clone(&self.fetcher), layer.clone());
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        self.ahead.begin(layer, number, |started| async move {
            let _turn = fetcher.downloads.turn_ahead().await;
            started.store(true, Ordering::Release);
            // Boxed: a request to a registry is a large future.
            Box::pin(fetcher.fetch(&wanted, AHEAD_AT_MOST)).await
        });
    }

    /// Fetches a layer and unpacks it into the target. Compressed and uncompressed digest are right
    /// and the files are on disk when this returns `Ok`.
    ///
    /// `cancel` ends it early; only then, and not when the future is dropped, is it certain that
    /// nothing is written any more.
    ///
    /// # Errors
    /// The layer cannot be fetched, verified or written. The content of the target is then undefined.
    pub async fn unpack(
        &self,
        layer: &LayerOfImage,
        target: Target,
        cancel: &CancellationToken,
    ) -> Result<Unpacked, UnpackError> {
        let fetched = async {
            let fetched = self.fetched(layer).await?;
            let slot = timeout(UNPACK_PATIENCE, self.unpacks.acquire()).await;
            // Never closed.
            let slot = slot.map_err(|_| UnpackError::Slot {
                what: "unpack the layer",
                waited: UNPACK_PATIENCE,
                key: None,
            })?;
            Ok::<_, UnpackError>((fetched, slot.ok()))
        };
        let (Fetched { described, file }, _slot) = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(UnpackError::Cancelled),
            fetched = Box::pin(fetched) => fetched?,
        };
        // If the caller drops this future, the thread ends soon.
        let stop = cancel.child_token();
        let _dropped = stop.clone().drop_guard();
        let Target {
            directory,
            mut options,
        } = target;
        options.limits = self.limits;
        let (blob, meter, _window) = self.window(file).await?;
        let compressed = described.descriptor.size;
        let sane = compressed
            .saturating_mul(MAX_RATIO)
            .max(self.limits.any_output);
        options.limits.output = sane.min(self.limits.output);
        let actual = spawn_blocking(move || {
            let window_log = blob.window_log().unwrap_or(0);
            let tar = blob.read(window_log).map_err(ApplyError::Decompress)?;
            apply_metered(tar, &directory, &options, meter, &|| stop.is_cancelled())
        })
        .await?
        .map_err(|error| match error {
            ApplyError::Cancelled => UnpackError::Cancelled,
            ApplyError::TooLarge { limit } if limit < self.limits.output => {
                UnpackError::Apply(ApplyError::Bomb {
                    ratio: MAX_RATIO,
                    least: self.limits.any_output,
                })
            }
            error => UnpackError::Apply(error),
        })?;
        if actual != described.diff_id {
            return Err(UnpackError::DiffId {
                expected: described.diff_id,
                actual,
            });
        }
        Ok(Unpacked {
            compressed_size: described.descriptor.size,
            diff_id: actual,
        })
    }

    async fn fetched(&self, layer: &LayerOfImage) -> Result<Fetched, UnpackError> {
        if let Some(begun) = self.ahead.take(layer)
            && let Some(fetched) = begun.fetched().await
        {
            return Ok(fetched);
        }
        self.fetcher.fetch(layer, u64::MAX).await
    }

    /// Reads a layer's first bytes, and takes the memory that decompressing it needs.
    async fn window(
        &self,
        file: Arc<File>,
    ) -> Result<(Blob<Compressed>, Meter, Option<OwnedSemaphorePermit>), UnpackError> {
        let blob = Blob::open(Compressed { file, at: 0 }).map_err(ApplyError::Decompress)?;
        let mut meter = self.limits.meter();
        let Some(log) = blob.window_log() else {
            return Ok((blob, meter, None));
        };
        let bytes = 1_u64.checked_shl(log).unwrap_or(u64::MAX);
        meter.charge(bytes).map_err(ApplyError::OverLimit)?;
        let mebibytes = u32::try_from((bytes >> 20).clamp(1, WINDOWS as u64)).unwrap_or(1);
        // Never closed.
        let permit = Arc::clone(&self.windows).acquire_many_owned(mebibytes);
        Ok((blob, meter, permit.await.ok()))
    }
}

impl Fetcher {
    /// A layer of at most `most` bytes, verified.
    async fn fetch(&self, layer: &LayerOfImage, most: u64) -> Result<Fetched, UnpackError> {
        let patience = self.downloads.patience();
        let described = patience
            .describe(Box::pin(self.images.describe(layer)))
            .await?;
        if described.descriptor.size > most {
            return Err(UnpackError::Cancelled);
        }
        self.check_space(described.descriptor.size)?;
        let _slot = self.downloads.slot(&layer.reference, patience).await?;
        let scratch = self.scratch.clone();
        let file = spawn_blocking(move || {
            tempfile::tempfile_in(&scratch).map_err(failed(&scratch, "make a file in it"))
        });
        let file = Arc::new(file.await??);
        let blob = &described.descriptor;
        let client = &self.images.client;
        let limits = self.downloads.limits(patience);
        let fetched = client.blob_to_file_within(&layer.reference, blob, Arc::clone(&file), limits);
        Box::pin(fetched)
            .await
            .map_err(|source| UnpackError::Registry {
                what: "cannot fetch the layer",
                source,
            })?;
        Ok(Fetched { described, file })
    }

    /// Refuses a layer for which the disk has no room but the reserve.
    fn check_space(&self, size: u64) -> Result<(), UnpackError> {
        if self.reserve.percent == 0 {
            return Ok(());
        }
        match Space::at(&self.scratch) {
            Ok(space) if space.spare(self.reserve) < size => Err(ApplyError::Reserve {
                percent: self.reserve.percent,
                free: space.free,
            }
            .into()),
            // What cannot be asked is left to ENOSPC.
            _ => Ok(()),
        }
    }
}

/// Reads a file from its start, whatever others do with its position.
pub(crate) struct Compressed {
    file: Arc<File>,
    at: u64,
}

impl Read for Compressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// Makes the folder, and removes what an earlier run left in it.
fn empty(scratch: &Path) -> Result<(), UnpackError> {
    DirBuilder::new()
        .recursive(true)
        .mode(SCRATCH_MODE)
        .create(scratch)
        .map_err(failed(scratch, "make it"))?;
    fs::set_permissions(scratch, Permissions::from_mode(SCRATCH_MODE))
        .map_err(failed(scratch, "set its mode"))?;
    let entries = fs::read_dir(scratch).map_err(failed(scratch, "read it"))?;
    for entry in entries {
        let entry = entry.map_err(failed(scratch, "read it"))?;
        soci_dirtree::remove_path(&entry.path()).map_err(failed(scratch, "empty it"))?;
    }
    Ok(())
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Scratch {
        path,
        action,
        source,
    }
}

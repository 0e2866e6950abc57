//! The unpacker: a layer from a registry, verified, in a directory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use soci_oci::Digest;
use soci_registry::Client;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::ahead::Ahead;
use crate::apply::{ApplyOptions, apply};
use crate::decompress::decompress;
use crate::error::{ApplyError, UnpackError};
use crate::image::{Described, Images, LayerOfImage};

/// Largest layer that is fetched ahead, in compressed bytes.
const AHEAD_AT_MOST: u64 = 64 << 20;

/// How layers are unpacked.
#[derive(Debug, Clone)]
pub struct UnpackConfig {
    /// A folder of our own for compressed layers on their way. Emptied at the start.
    pub scratch: PathBuf,
    /// Address of the containerd whose content store has manifests and configurations; without one,
    /// and for what it does not have, the registry is asked.
    pub containerd: Option<String>,
    /// Limit of concurrent downloads; each requests several ranges concurrently.
    pub downloads: usize,
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
            downloads: 4,
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
    ahead: Ahead,
    /// Number of the next download ahead.
    begun: AtomicU64,
}

struct Fetcher {
    images: Images,
    scratch: PathBuf,
    downloads: Semaphore,
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
                downloads: Semaphore::new(config.downloads.max(1)),
            }),
            unpacks: Semaphore::new(config.unpacks.max(1)),
            ahead: Ahead::default(),
            begun: AtomicU64::new(0),
        })
    }

    /// Starts to fetch a layer that [`Unpacker::unpack`] will soon be called for; otherwise it is dropped
    /// after a while. Large layers are not fetched ahead.
    pub fn fetch_ahead(&self, layer: LayerOfImage) {
        let (fetcher, wanted) = (Arc::clone(&self.fetcher), layer.clone());
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        self.ahead.begin(layer, number, async move {
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
            // Never closed.
            let slot = self.unpacks.acquire().await.ok();
            Ok::<_, UnpackError>((fetched, slot))
        };
        let (Fetched { described, file }, _slot) = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(UnpackError::Cancelled),
            fetched = Box::pin(fetched) => fetched?,
        };
        // If the caller drops this future, the thread ends soon.
        let stop = cancel.child_token();
        let _dropped = stop.clone().drop_guard();
        let actual = spawn_blocking(move || {
            let tar = decompress(&*file).map_err(ApplyError::Decompress)?;
            let Target { directory, options } = target;
            apply(tar, &directory, &options, &|| stop.is_cancelled())
        })
        .await?
        .map_err(|error| match error {
            ApplyError::Cancelled => UnpackError::Cancelled,
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
            && let Ok(Ok(fetched)) = begun.await
        {
            return Ok(fetched);
        }
        self.fetcher.fetch(layer, u64::MAX).await
    }
}

impl Fetcher {
    /// A layer of at most `most` bytes, verified.
    async fn fetch(&self, layer: &LayerOfImage, most: u64) -> Result<Fetched, UnpackError> {
        let described = self.images.describe(layer).await?;
        if described.descriptor.size > most {
            return Err(UnpackError::Cancelled);
        }
        // Never closed.
        let _slot = self.downloads.acquire().await.ok();
        let scratch = self.scratch.clone();
        let file = spawn_blocking(move || {
            tempfile::tempfile_in(&scratch).map_err(failed(&scratch, "make a file in it"))
        });
        let file = Arc::new(file.await??);
        let blob = &described.descriptor;
        let client = &self.images.client;
        client
            .blob_to_file(&layer.reference, blob, Arc::clone(&file))
            .await
            .map_err(|source| UnpackError::Registry {
                what: "cannot fetch the layer",
                source,
            })?;
        Ok(Fetched { described, file })
    }
}

/// Makes the folder, and removes what an earlier run left in it.
fn empty(scratch: &Path) -> Result<(), UnpackError> {
    fs::create_dir_all(scratch).map_err(failed(scratch, "make it"))?;
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

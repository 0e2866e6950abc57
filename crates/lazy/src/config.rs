//! The subsystems that lazy layers are built from, and their configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The subsystems that lazy layers bring together.
pub struct Components {
    /// The registry client.
    pub client: soci_registry::Client,
    /// The layer store: spans on disk.
    pub layers: soci_store::LayerStore,
    /// The content store on disk that keeps the SOCI indexes of images in use.
    pub content: soci_store::content::OciLayout,
    /// An existing or new directory that records which index belongs to which image.
    pub index_notes: PathBuf,
    /// An existing or new directory for start-up profiles.
    pub profiles: PathBuf,
    /// Unpacks layers that cannot be lazy.
    pub unpacker: soci_unpack::Unpacker,
    /// The store that is searched for indexes and zTOCs before the registry.
    pub artifacts: crate::Artifacts,
    /// The image store of the containerd that uses this snapshotter.
    pub images: crate::ImageStore,
    /// Fetches spans from registries into the layer store.
    pub fetcher: Arc<soci_fetch::SpanFetcher>,
    /// Serves the FUSE connections.
    pub pool: soci_fuse::Pool,
    /// Keeps the connections open when this process ends; `None` if no process does.
    pub keeper: Option<Arc<soci_holder::Keeper>>,
    /// The descriptors that the holder kept for an earlier process.
    pub held: Vec<soci_holder::HeldFd>,
    /// The metrics.
    pub meters: Arc<soci_telemetry::Meters>,
    /// Switches and times.
    pub config: LazyConfig,
}

/// Switches and times. [`Default`] is the effect of an empty configuration file.
#[derive(Debug, Clone)]
pub struct LazyConfig {
    /// Which kinds of SOCI index are looked for.
    pub policy: soci_discovery::Policy,
    /// The registries whose images may be lazy.
    pub lazy_registries: soci_discovery::LazyRegistries,
    /// Admits the use of layers that are not verified if containerd's image store does not answer.
    pub allow_without_image_store: bool,
    /// A layer serves an image only once the image's registry has confirmed that the image's
    /// repository has it.
    pub isolated: bool,
    /// Compressed size in bytes below which layers are not mounted lazily.
    pub min_layer_size: u64,
    /// Longest time for finding the index and for fetching a layer's zTOC, together.
    pub mount_timeout: Duration,
    /// How long the kernel may cache attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may cache names that exist.
    pub entry_timeout: Duration,
    /// How long the kernel may cache names that do not exist.
    pub negative_timeout: Duration,
    /// Time for which the absence of an image's index is cached.
    pub retry_after: Duration,
    /// Bytes of zTOCs that are fetched and read at a time; a larger zTOC is handled alone.
    pub ztoc_memory: u64,
    /// Limits of memory that layers of images take.
    pub limits: crate::MemoryLimits,
    /// Compare a file's tar header with its entry in the zTOC at the first read.
    pub check_headers: bool,
    /// Number of layers that are opened at a time; `None`: no limit.
    pub max_concurrency: Option<usize>,
    /// Disables the background fetch of spans that no reader has requested.
    pub disable_background: bool,
    /// Whether the kernel resends the requests that were in flight when a server died, where it can
    /// (Linux 6.9); otherwise they are answered from the journal.
    pub resend: bool,
    /// Overlays are mounted with `userxattr`: they look for `user.overlay.*`.
    pub userxattr: bool,
    /// Time after an image's first mount at which its operations are counted and logged.
    pub operation_count_wait: Duration,
    /// Logs each FUSE operation, with names of files.
    pub log_fuse_operations: bool,
    /// Recording and playing of start-up profiles.
    pub profiles: crate::ProfileConfig,
    /// What is fetched and read ahead for starts without a profile.
    pub hints: crate::HintConfig,
}

impl Default for LazyConfig {
    fn default() -> Self {
        Self {
            policy: soci_discovery::Policy {
                soci_v1: false,
                soci_v2: true,
                explicit_index: false,
            },
            lazy_registries: soci_discovery::LazyRegistries::default(),
            allow_without_image_store: false,
            isolated: false,
            min_layer_size: 0,
            mount_timeout: Duration::from_secs(30),
            attr_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            negative_timeout: Duration::from_secs(1),
            retry_after: Duration::from_secs(60),
            ztoc_memory: 64 << 20,
            limits: crate::MemoryLimits::default(),
            check_headers: true,
            max_concurrency: Some(100),
            disable_background: false,
            resend: true,
            userxattr: false,
            operation_count_wait: Duration::from_secs(60),
            log_fuse_operations: false,
            profiles: crate::ProfileConfig::default(),
            hints: crate::HintConfig::default(),
        }
    }
}

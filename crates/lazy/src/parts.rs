//! What lazy layers are made of, and how they are configured.

use std::sync::Arc;
use std::time::Duration;

/// The subsystems that lazy layers bring together.
pub struct Parts {
    /// Access to registries.
    pub client: soci_registry::Client,
    /// The spans on disk.
    pub layers: soci_store::LayerStore,
    /// SOCI indexes in use, on disk.
    pub content: soci_store::content::OciLayout,
    /// Unpacks layers that cannot be lazy.
    pub unpacker: soci_unpack::Unpacker,
    /// Where indexes and zTOCs are looked for before the registry.
    pub artifacts: crate::Artifacts,
    /// Gets spans from registries into the layer store.
    pub fetcher: Arc<soci_fetch::SpanFetcher>,
    /// Serves the FUSE connections.
    pub pool: soci_fuse::Pool,
    /// Keeps the connections alive when this process ends; `None`: nobody does.
    pub keeper: Option<Arc<soci_holder::Keeper>>,
    /// What it has kept of an earlier process.
    pub held: Vec<soci_holder::HeldFd>,
    /// Where it is told what happens and how long it takes.
    pub meters: Arc<soci_telemetry::Meters>,
    /// Switches and times.
    pub config: LazyConfig,
}

/// Switches and times. [`Default`] is what an empty configuration file gives.
#[derive(Debug, Clone)]
pub struct LazyConfig {
    /// Look for SOCI index v1 through the registry's referrers.
    pub soci_v1: bool,
    /// Look for SOCI index v2 through the image manifest's annotation.
    pub soci_v2: bool,
    /// Layers below this compressed size in bytes are not mounted lazily.
    pub min_layer_size: u64,
    /// How long finding and fetching the index and a layer's zTOC may take.
    pub mount_timeout: Duration,
    /// How long the kernel may keep attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may keep names that exist.
    pub entry_timeout: Duration,
    /// How long the kernel may keep names that do not exist.
    pub negative_timeout: Duration,
    /// For how long "this image has no index" is believed before it is looked for again.
    pub retry_after: Duration,
    /// How many bytes of zTOCs may be fetched and read at once; a larger one is handled alone.
    pub ztoc_memory: u64,
    /// How many layers are prepared at once; `None`: no limit.
    pub max_concurrency: Option<usize>,
    /// Do not fetch what nobody has read.
    pub disable_background: bool,
    /// Let the kernel send again what was in flight when a server died, where it can (Linux 6.9);
    /// otherwise it is answered from the journal.
    pub resend: bool,
    /// Overlays are mounted with `userxattr`: they look for `user.overlay.*`.
    pub userxattr: bool,
    /// How long after its first mount the operations of an image are counted and logged.
    pub operation_count_wait: Duration,
    /// Log each FUSE operation, with names of files.
    pub log_fuse_operations: bool,
}

impl Default for LazyConfig {
    fn default() -> Self {
        Self {
            soci_v1: false,
            soci_v2: true,
            min_layer_size: 0,
            mount_timeout: Duration::from_secs(30),
            attr_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            negative_timeout: Duration::from_secs(1),
            retry_after: Duration::from_secs(60),
            ztoc_memory: 64 << 20,
            max_concurrency: Some(100),
            disable_background: false,
            resend: true,
            userxattr: false,
            operation_count_wait: Duration::from_secs(60),
            log_fuse_operations: false,
        }
    }
}

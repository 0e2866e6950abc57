//! The daemon's own parts: mounts, fetching, stores, keychains, snapshots.

use std::time::Duration;

use super::MAX;
use crate::schema::{Broken, Section, Unit, Visitor};
use crate::values::{ContentStoreType, DropPolicy, Pause, Sharing};

const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// `[directory_cache]`: v0.15's span cache. Without effect: there is one layer store.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectoryCache {
    /// Spans kept in memory; 0 prints as 0 and means 10.
    pub max_lru_cache_entry: u64,
    /// Open files kept; 0 prints as 0 and means 10.
    pub max_cache_fds: u64,
    /// Write spans before they are served.
    pub sync_add: bool,
    /// Bypass the memory cache.
    pub direct: bool,
}

impl Default for DirectoryCache {
    fn default() -> Self {
        Self {
            max_lru_cache_entry: 0,
            max_cache_fds: 0,
            sync_add: false,
            direct: true,
        }
    }
}

impl Section for DirectoryCache {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.count("max_lru_cache_entry", &mut self.max_lru_cache_entry);
        v.count("max_cache_fds", &mut self.max_cache_fds);
        v.flag("sync_add", &mut self.sync_add);
        v.flag("direct", &mut self.direct);
    }
}

/// `[fuse]`: lower bounds of what the kernel may cache; a layer is immutable, so longer is right too.
#[derive(Debug, Clone, PartialEq)]
pub struct Fuse {
    /// Attributes.
    pub attr_timeout: Duration,
    /// Names that exist.
    pub entry_timeout: Duration,
    /// Names that do not exist.
    pub negative_timeout: Duration,
    /// Log every FUSE request. Shows file names of images.
    pub log_fuse_operations: bool,
}

impl Default for Fuse {
    fn default() -> Self {
        Self {
            attr_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            negative_timeout: Duration::from_secs(1),
            log_fuse_operations: false,
        }
    }
}

impl Section for Fuse {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.timeout("attr_timeout", Unit::Seconds, &mut self.attr_timeout);
        v.timeout("entry_timeout", Unit::Seconds, &mut self.entry_timeout);
        v.timeout(
            "negative_timeout",
            Unit::Seconds,
            &mut self.negative_timeout,
        );
        v.flag("log_fuse_operations", &mut self.log_fuse_operations);
    }
}

/// `[background_fetch]`: filling layers while no reader waits.
#[derive(Debug, Clone, PartialEq)]
pub struct BackgroundFetch {
    /// Do not.
    pub disable: bool,
    /// Rest after a mount or a read from the network. Not set: until a start is over.
    pub silence_period: Pause,
    /// Pause between fetches. Not set: none.
    pub fetch_period: Pause,
    /// Layers that may wait; `None` is no limit.
    pub max_queue_size: Option<u64>,
    /// Which layer goes when the queue is full.
    pub drop_policy: DropPolicy,
    /// How often the queue's length is reported.
    pub emit_metric_period: Duration,
}

impl Default for BackgroundFetch {
    fn default() -> Self {
        Self {
            disable: false,
            silence_period: Pause::not_set(Duration::from_millis(30_000)),
            fetch_period: Pause::not_set(Duration::from_millis(500)),
            max_queue_size: Some(300),
            drop_policy: DropPolicy::Newest,
            emit_metric_period: Duration::from_secs(10),
        }
    }
}

impl Section for BackgroundFetch {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("disable", &mut self.disable);
        v.pause_if_set(
            "silence_period_msec",
            Unit::Milliseconds,
            &mut self.silence_period,
        );
        v.pause_if_set(
            "fetch_period_msec",
            Unit::Milliseconds,
            &mut self.fetch_period,
        );
        v.limit("max_queue_size", &mut self.max_queue_size);
        v.choice("drop_policy", &mut self.drop_policy);
        v.pause(
            "emit_metric_period_sec",
            Unit::Seconds,
            &mut self.emit_metric_period,
        );
    }
}

/// `[content_store]`: where SOCI artifacts are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct ContentStore {
    /// `type`
    pub kind: ContentStoreType,
    /// containerd's socket: a path or `unix://PATH`.
    pub containerd_address: String,
}

impl Default for ContentStore {
    fn default() -> Self {
        Self {
            kind: ContentStoreType::Soci,
            containerd_address: CONTAINERD.to_owned(),
        }
    }
}

impl Section for ContentStore {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.choice("type", &mut self.kind);
        // The namespace of each request counts; v0.15 takes the key and does not use it either.
        v.ignored("namespace");
        v.text_or_default("containerd_address", &mut self.containerd_address);
    }

    fn check(&self) -> Vec<Broken> {
        socket(
            "containerd_address",
            &self.containerd_address,
            self.kind == ContentStoreType::Containerd,
        )
    }
}

/// `[prefetch]`: fetching what the prefetch artifacts of an image's index list, at mount. `[profile] index` does
/// so as well, and is on by default.
#[derive(Debug, Clone, PartialEq)]
pub struct Prefetch {
    /// Whether to.
    pub enable: bool,
    /// Layers at once; both `Some(0)`, the default, and `None` are no limit.
    pub max_concurrency: Option<u64>,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            enable: false,
            max_concurrency: Some(0),
        }
    }
}

impl Section for Prefetch {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("enable", &mut self.enable);
        v.limit("max_concurrency", &mut self.max_concurrency);
    }
}

/// `[kubeconfig_keychain]`: credentials from Kubernetes secrets.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KubeconfigKeychain {
    /// Whether to.
    pub enable_keychain: bool,
    /// Empty: `$KUBECONFIG`, then `~/.kube/config`, then the pod's service account.
    pub kubeconfig_path: String,
}

impl Section for KubeconfigKeychain {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("enable_keychain", &mut self.enable_keychain);
        v.text("kubeconfig_path", &mut self.kubeconfig_path);
    }
}

/// `[cri_keychain]`: credentials seen in the kubelet's pulls.
#[derive(Debug, Clone, PartialEq)]
pub struct CriKeychain {
    /// Whether to.
    pub enable_keychain: bool,
    /// Socket of the real CRI image service: a path or `unix://PATH`.
    pub image_service_path: String,
}

impl Default for CriKeychain {
    fn default() -> Self {
        Self {
            enable_keychain: false,
            image_service_path: CONTAINERD.to_owned(),
        }
    }
}

impl Section for CriKeychain {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("enable_keychain", &mut self.enable_keychain);
        v.text_or_default("image_service_path", &mut self.image_service_path);
    }

    fn check(&self) -> Vec<Broken> {
        socket(
            "image_service_path",
            &self.image_service_path,
            self.enable_keychain,
        )
    }
}

/// `[snapshotter]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshotter {
    /// Layers with fewer compressed bytes are unpacked, not mounted.
    pub min_layer_size: u64,
    /// (v0.15) Start even if a layer of an earlier run cannot be mounted again. This daemon always does,
    /// unless [`Holder::require_all_mounts`] is set.
    pub allow_invalid_mounts_on_restart: bool,
}

impl Section for Snapshotter {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.count("min_layer_size", &mut self.min_layer_size);
        v.flag(
            "allow_invalid_mounts_on_restart",
            &mut self.allow_invalid_mounts_on_restart,
        );
    }
}

/// `[fetch]`, not in v0.15: the span fetcher.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetch {
    /// Most bytes of layer data that the fetcher holds in memory at once, at least 1 MiB.
    pub memory_budget_bytes: u64,
    /// Most compressed bytes that are fetched ahead of a sequential reader; 0 is none.
    pub max_readahead_bytes: u64,
}

impl Default for Fetch {
    fn default() -> Self {
        Self {
            memory_budget_bytes: 64 << 20,
            max_readahead_bytes: 32 << 20,
        }
    }
}

impl Section for Fetch {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.number(
            "memory_budget_bytes",
            &mut self.memory_budget_bytes,
            (1 << 20)..=MAX,
        );
        v.number(
            "max_readahead_bytes",
            &mut self.max_readahead_bytes,
            0..=MAX,
        );
    }
}

/// `[layer_store]`, not in v0.15: fetched layer data on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerStore {
    /// Most bytes on disk of layers, lazy and unpacked ones; 0 is no limit. Layers that could not be
    /// mounted again at the start are kept and do not count.
    pub max_size_bytes: u64,
    /// The same limit as a percentage of the disk; 0 is no limit. The lower one counts.
    pub max_size_percent: u64,
    /// Percentage of the disk that is kept free of layers, 16 GiB per 10 percent at most; 0 is none.
    pub min_free_percent: u64,
    /// Whom a layer on this node serves.
    pub sharing: Sharing,
    /// Wait until the files of an unpacked layer are on disk before it counts as unpacked.
    pub sync_unpacked: bool,
}

impl Default for LayerStore {
    fn default() -> Self {
        Self {
            max_size_bytes: 0,
            max_size_percent: 80,
            min_free_percent: 10,
            sharing: Sharing::Shared,
            sync_unpacked: true,
        }
    }
}

impl Section for LayerStore {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.number("max_size_bytes", &mut self.max_size_bytes, 0..=MAX);
        v.number("max_size_percent", &mut self.max_size_percent, 0..=100);
        v.number("min_free_percent", &mut self.min_free_percent, 0..=60);
        v.choice("sharing", &mut self.sharing);
        v.flag("sync_unpacked", &mut self.sync_unpacked);
    }
}

/// `[holder]`, not in v0.15: the process that keeps the mounts while the daemon is replaced.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// Have one. Without, containers on lazy layers do not survive the daemon.
    pub enable: bool,
    /// How long the mounts may be without a daemon before they are given up, so that containers on
    /// them can end.
    pub abandon_after: Duration,
    /// Have the kernel send again what was in flight when a daemon died, where it can (Linux 6.9).
    pub resend: bool,
    /// Do not start if a layer of an earlier run cannot be mounted again.
    pub require_all_mounts: bool,
}

impl Default for Holder {
    fn default() -> Self {
        Self {
            enable: true,
            abandon_after: Duration::from_secs(600),
            resend: true,
            require_all_mounts: false,
        }
    }
}

impl Section for Holder {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("enable", &mut self.enable);
        v.duration("abandon_after_sec", Unit::Seconds, &mut self.abandon_after);
        v.flag("resend", &mut self.resend);
        v.flag("require_all_mounts", &mut self.require_all_mounts);
    }
}

/// A socket's address matters only where the feature that uses it is on.
fn socket(key: &'static str, address: &str, used: bool) -> Vec<Broken> {
    if !used
        || address
            .strip_prefix("unix://")
            .unwrap_or(address)
            .starts_with('/')
    {
        return Vec::new();
    }
    vec![Broken::new(
        key,
        format!("{address:?}"),
        "the absolute path of a socket, or unix://PATH",
    )]
}

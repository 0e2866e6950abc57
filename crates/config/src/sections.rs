//! The tables of the file, one struct each. The defaults are v0.15's; a count or duration of 0 in
//! the file means the default, unless the field says otherwise.

mod access;
mod hints;
mod keychains;
mod limits;
mod profile;
mod pull;
mod service;
mod trust;

pub use access::{Blob, Host, Http, Mirror, Resolver};
pub use hints::StartHints;
pub use keychains::{EcrKeychain, KubeletCredentialProviders};
pub use limits::Limits;
pub use profile::Profile;
pub use pull::{DecompressStream, ParallelPullUnpack, PullMode, PullModes};
pub use service::{
    BackgroundFetch, ContentStore, CriKeychain, DirectoryCache, Fetch, Fuse, Holder,
    KubeconfigKeychain, LayerStore, Prefetch, Snapshotter,
};

pub use trust::Trust;

use std::time::Duration;

use crate::schema::{Broken, Section, Unit, Visitor};
use crate::values::{MetadataStoreType, MetricsNetwork};

/// The whole file.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// v0.15's HTTP cache kind. Without effect: there is one layer store.
    pub http_cache_type: String,
    /// v0.15's file-system cache kind. Without effect: there is one layer store.
    pub filesystem_cache_type: String,
    /// v0.15's size of the resolver cache; 0 prints as 0 and means 30. Without effect.
    pub resolve_result_entry: u64,
    /// v0.15's log of FUSE traffic. Without effect; see [`Fuse::log_fuse_operations`].
    pub debug: bool,
    /// Trust zTOCs about names, modes and owners: the first read of a file does not compare its tar
    /// header with its entry.
    pub disable_verification: bool,
    /// How many layers may be prepared at once; `None` is no limit.
    pub max_concurrency: Option<u64>,
    /// How long the mount of one layer may take.
    pub mount_timeout: Duration,
    /// How long after a mount its image's FUSE operation counts are logged.
    pub fuse_metrics_emit_wait_duration: Duration,
    /// Where metrics are served; empty is nowhere.
    pub metrics_address: String,
    /// What `metrics_address` is an address of.
    pub metrics_network: MetricsNetwork,
    /// Collect no metrics.
    pub no_prometheus: bool,
    /// Where debug end points are served; empty is nowhere.
    pub debug_address: String,
    /// v0.15's layer metadata database. Without effect.
    pub metadata_store: MetadataStoreType,
    /// v0.15's layer metadata database. Without effect.
    pub metadata_db_no_sync: bool,
    /// v0.15's layer metadata database. Without effect.
    pub metadata_insertion_chunk_size: u64,
    /// Start even if the check for FUSE fails.
    pub skip_check_snapshotter_supported: bool,
    /// `[http]`
    pub http: Http,
    /// `[blob]`
    pub blob: Blob,
    /// `[directory_cache]`
    pub directory_cache: DirectoryCache,
    /// `[fuse]`
    pub fuse: Fuse,
    /// `[background_fetch]`
    pub background_fetch: BackgroundFetch,
    /// `[content_store]`
    pub content_store: ContentStore,
    /// `[prefetch]`
    pub prefetch: Prefetch,
    /// `[pull_modes.*]`
    pub pull_modes: PullModes,
    /// `[kubeconfig_keychain]`
    pub kubeconfig_keychain: KubeconfigKeychain,
    /// `[cri_keychain]`
    pub cri_keychain: CriKeychain,
    /// `[resolver]`
    pub resolver: Resolver,
    /// `[snapshotter]`
    pub snapshotter: Snapshotter,
    /// `[fetch]`, ours
    pub fetch: Fetch,
    /// `[layer_store]`, ours
    pub layer_store: LayerStore,
    /// `[holder]`, ours
    pub holder: Holder,
    /// `[profile]`, ours
    pub profile: Profile,
    /// `[start_hints]`, ours
    pub start_hints: StartHints,
    /// `[trust]`, ours
    pub trust: Trust,
    /// `[limits]`, ours
    pub limits: Limits,
    /// `[kubelet_credential_providers]`, ours
    pub kubelet_credential_providers: KubeletCredentialProviders,
    /// `[ecr_keychain]`, ours
    pub ecr_keychain: EcrKeychain,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http_cache_type: String::new(),
            filesystem_cache_type: String::new(),
            resolve_result_entry: 0,
            debug: false,
            disable_verification: false,
            max_concurrency: Some(100),
            mount_timeout: Duration::from_secs(30),
            fuse_metrics_emit_wait_duration: Duration::from_secs(60),
            metrics_address: String::new(),
            metrics_network: MetricsNetwork::Tcp,
            no_prometheus: false,
            debug_address: String::new(),
            metadata_store: MetadataStoreType::Db,
            metadata_db_no_sync: false,
            metadata_insertion_chunk_size: 0,
            skip_check_snapshotter_supported: false,
            http: Http::default(),
            blob: Blob::default(),
            directory_cache: DirectoryCache::default(),
            fuse: Fuse::default(),
            background_fetch: BackgroundFetch::default(),
            content_store: ContentStore::default(),
            prefetch: Prefetch::default(),
            pull_modes: PullModes::default(),
            kubeconfig_keychain: KubeconfigKeychain::default(),
            cri_keychain: CriKeychain::default(),
            resolver: Resolver::default(),
            snapshotter: Snapshotter::default(),
            fetch: Fetch::default(),
            layer_store: LayerStore::default(),
            holder: Holder::default(),
            profile: Profile::default(),
            start_hints: StartHints::default(),
            trust: Trust::default(),
            limits: Limits::default(),
            kubelet_credential_providers: KubeletCredentialProviders::default(),
            ecr_keychain: EcrKeychain::default(),
        }
    }
}

/// The largest whole number that TOML can hold.
pub(crate) const MAX: u64 = i64::MAX.unsigned_abs();

impl Section for Config {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.text("http_cache_type", &mut self.http_cache_type);
        v.text("filesystem_cache_type", &mut self.filesystem_cache_type);
        v.count("resolve_result_entry", &mut self.resolve_result_entry);
        v.flag("debug", &mut self.debug);
        v.flag("disable_verification", &mut self.disable_verification);
        v.limit("max_concurrency", &mut self.max_concurrency);
        v.timeout("mount_timeout_sec", Unit::Seconds, &mut self.mount_timeout);
        v.pause(
            "fuse_metrics_emit_wait_duration_sec",
            Unit::Seconds,
            &mut self.fuse_metrics_emit_wait_duration,
        );
        v.text("metrics_address", &mut self.metrics_address);
        v.choice("metrics_network", &mut self.metrics_network);
        v.flag("no_prometheus", &mut self.no_prometheus);
        v.text("debug_address", &mut self.debug_address);
        v.choice("metadata_store", &mut self.metadata_store);
        v.flag("metadata_db_no_sync", &mut self.metadata_db_no_sync);
        v.count(
            "metadata_insertion_chunk_size",
            &mut self.metadata_insertion_chunk_size,
        );
        v.flag(
            "skip_check_snapshotter_supported",
            &mut self.skip_check_snapshotter_supported,
        );
        v.table("http", &mut self.http);
        v.table("blob", &mut self.blob);
        v.table("directory_cache", &mut self.directory_cache);
        v.table("fuse", &mut self.fuse);
        v.table("background_fetch", &mut self.background_fetch);
        v.table("content_store", &mut self.content_store);
        v.table("prefetch", &mut self.prefetch);
        v.table("pull_modes", &mut self.pull_modes);
        v.table("kubeconfig_keychain", &mut self.kubeconfig_keychain);
        v.table("cri_keychain", &mut self.cri_keychain);
        v.table("resolver", &mut self.resolver);
        v.table("snapshotter", &mut self.snapshotter);
        v.table("fetch", &mut self.fetch);
        v.table("layer_store", &mut self.layer_store);
        v.table("holder", &mut self.holder);
        v.table("profile", &mut self.profile);
        v.table("start_hints", &mut self.start_hints);
        v.table("trust", &mut self.trust);
        v.table("limits", &mut self.limits);
        v.table(
            "kubelet_credential_providers",
            &mut self.kubelet_credential_providers,
        );
        v.table("ecr_keychain", &mut self.ecr_keychain);
    }

    fn check(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        if let Some(allowed) = self.bad_metrics_address() {
            broken.push(Broken::new(
                "metrics_address",
                format!("{:?}", self.metrics_address),
                allowed,
            ));
        }
        let debug = self.debug_address.as_str();
        if !(debug.is_empty() || debug.starts_with('/') || is_host_and_port(debug)) {
            broken.push(Broken::new(
                "debug_address",
                format!("{debug:?}"),
                "an absolute path, or HOST:PORT (or \"\" for none)",
            ));
        }
        broken
    }
}

impl Config {
    fn bad_metrics_address(&self) -> Option<&'static str> {
        let address = self.metrics_address.as_str();
        let good = match self.metrics_network {
            _ if address.is_empty() || self.no_prometheus => true,
            MetricsNetwork::Tcp => is_host_and_port(address),
            MetricsNetwork::Unix => address.starts_with('/'),
        };
        match self.metrics_network {
            _ if good => None,
            MetricsNetwork::Tcp => {
                Some("HOST:PORT, because metrics_network is \"tcp\" (or \"\" for no metrics)")
            }
            MetricsNetwork::Unix => Some(
                "an absolute path, because metrics_network is \"unix\" (or \"\" for no metrics)",
            ),
        }
    }
}

/// The host may be empty: every address of the machine.
fn is_host_and_port(address: &str) -> bool {
    let port = address.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| port.parse::<u16>().is_ok())
}

//! What the configuration file means to each subsystem.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use soci_config::Config;
use soci_dirtree::Reserve;
use soci_eager::{EagerMode, PullConfig};
use soci_fetch::{BackgroundConfig, DropPolicy, FetchConfig};
use soci_layer::OverlayXattr;
use soci_lazy::LazyConfig;
use soci_registry::{ClientConfig, HostHeaders, HostsConfig, Mirror, RetryPolicy};
use soci_store::LayerStoreConfig;
use soci_unpack::{
    Decompressor, Decompressors, DownloadConfig, ImageLimits, Pipeline, PipelineConfig,
    UnpackConfig, UnpackLimits,
};

/// Time after which the retries for a manifest or an index end: a pull waits, and the client can do
/// without them.
const DOCUMENT_PATIENCE: Duration = Duration::from_millis(1500);
/// How long a program that decompresses may do nothing while there is something to do.
const DECOMPRESSOR_STALL: Duration = Duration::from_secs(60);
/// Concurrent requests or unpacks of one image where the configuration sets no limit: the budget of
/// memory is one.
const NO_CONCURRENCY_LIMIT: usize = 1024;
/// A request without a time limit: a century.
const NO_LIMIT: Duration = Duration::from_secs(100 * 365 * 86_400);

pub(crate) fn client(config: &Config) -> ClientConfig {
    let http = &config.http;
    ClientConfig {
        retries: RetryPolicy {
            max_retries: retries(http.max_retries),
            min_wait: http.min_wait,
            max_wait: http.max_wait,
        },
        dial_timeout: http.dial_timeout,
        response_header_timeout: http.response_header_timeout,
        request_timeout: http.request_timeout,
        span_retries: Some(RetryPolicy {
            max_retries: retries(config.blob.max_retries),
            min_wait: config.blob.min_wait,
            max_wait: config.blob.max_wait,
        }),
        document_patience: Some(DOCUMENT_PATIENCE),
        hosts: hosts(config),
        hosts_dirs: hosts_dirs(config),
        plain_http_redirects: config.resolver.plain_http_redirects,
        ..ClientConfig::default()
    }
}

fn retries(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The folders with containerd's registry configuration that exist.
pub(crate) fn hosts_dirs(config: &Config) -> Vec<PathBuf> {
    std::env::split_paths(&config.resolver.config_path)
        .filter(|folder| folder.is_dir())
        .collect()
}

fn hosts(config: &Config) -> HostsConfig {
    let mirror = |mirror: &soci_config::Mirror| Mirror {
        host: mirror.host.clone(),
        insecure: mirror.insecure,
        request_timeout: match mirror.request_timeout_sec {
            Some(0) => None,
            Some(seconds) => Some(Duration::from_secs(seconds).min(NO_LIMIT)),
            None => Some(NO_LIMIT),
        },
        headers: HostHeaders::default(),
    };
    config
        .resolver
        .host
        .iter()
        .map(|(name, host)| (name.clone(), host.mirrors.iter().map(mirror).collect()))
        .collect()
}

pub(crate) fn fetch(config: &Config) -> FetchConfig {
    let background = &config.background_fetch;
    FetchConfig {
        memory_budget: config.fetch.memory_budget_bytes,
        max_readahead: config.fetch.max_readahead_bytes,
        max_span_verification_retries: u32::try_from(config.blob.max_span_verification_retries)
            .unwrap_or(u32::MAX),
        background: BackgroundConfig {
            disable: background.disable,
            silence_period: background.silence_period.if_set(),
            fetch_period: background.fetch_period.if_set(),
            max_queue_size: background.max_queue_size.map(size),
            drop_policy: match background.drop_policy {
                soci_config::DropPolicy::Oldest => DropPolicy::Oldest,
                _ => DropPolicy::Newest,
            },
        },
        ..FetchConfig::default()
    }
}

pub(crate) fn layer_store(config: &Config) -> LayerStoreConfig {
    let most = config.layer_store.max_size_bytes;
    LayerStoreConfig {
        budget_bytes: (most > 0).then_some(most),
        budget_percent: u8::try_from(config.layer_store.max_size_percent).unwrap_or(100),
        reserve: reserve(config),
        ..LayerStoreConfig::default()
    }
}

pub(crate) fn lazy(config: &Config) -> LazyConfig {
    LazyConfig {
        policy: soci_lazy::Policy {
            soci_v1: config.pull_modes.soci_v1.enable,
            soci_v2: config.pull_modes.soci_v2.enable,
            explicit_index: config.trust.explicit_index,
        },
        lazy_registries: soci_lazy::LazyRegistries::new(config.trust.lazy_registries.clone()),
        allow_without_image_store: config.trust.without_image_store
            == soci_config::WithoutImageStore::Allow,
        isolated: config.layer_store.sharing == soci_config::Sharing::Isolated,
        min_layer_size: config.snapshotter.min_layer_size,
        mount_timeout: config.mount_timeout,
        attr_timeout: config.fuse.attr_timeout,
        entry_timeout: config.fuse.entry_timeout,
        negative_timeout: config.fuse.negative_timeout,
        ztoc_memory: config.fetch.memory_budget_bytes,
        limits: soci_lazy::MemoryLimits {
            ztoc: config.limits.ztoc_bytes,
            tree: config.limits.tree_bytes,
            image_trees: config.limits.image_tree_bytes,
            total_trees: config.limits.total_tree_bytes,
        },
        check_headers: !config.disable_verification,
        max_concurrency: config.max_concurrency.map(size),
        disable_background: config.background_fetch.disable,
        resend: config.holder.resend,
        operation_count_wait: config.fuse_metrics_emit_wait_duration,
        log_fuse_operations: config.fuse.log_fuse_operations,
        profiles: soci_lazy::ProfileConfig {
            enable: config.profile.enable,
            max_size_bytes: config.profile.max_size_bytes,
            referrers: config.profile.referrers,
            publish: config.profile.publish,
            min_link_rate: config.profile.min_link_bytes_per_sec,
            prefetch: config.prefetch.enable || (config.profile.enable && config.profile.index),
            layers_at_once: config.prefetch.max_concurrency.filter(|n| *n > 0).map(size),
            ..soci_lazy::ProfileConfig::default()
        },
        hints: hints(config),
        ..LazyConfig::default()
    }
}

fn hints(config: &Config) -> soci_lazy::HintConfig {
    let hints = &config.start_hints;
    soci_lazy::HintConfig {
        enable: hints.enable,
        max_unread_bytes: hints.max_unread_bytes,
        max_unread_percent: hints.max_unread_percent,
        min_link_rate: hints.min_link_bytes_per_sec,
        page_cache: hints.fill_page_cache.then(|| soci_lazy::PageCacheProgram {
            // This program, also after another one was installed in its place.
            program: "/proc/self/exe".into(),
            argument: crate::args::PAGE_CACHE_ARGUMENT.to_owned(),
        }),
    }
}

pub(crate) fn unpack(config: &Config, scratch: PathBuf) -> UnpackConfig {
    let address = &config.content_store.containerd_address;
    let limits = &config.limits;
    let defaults = UnpackConfig::new(scratch);
    UnpackConfig {
        downloads: DownloadConfig {
            first_byte: limits.unpack_first_byte,
            floor: limits.unpack_floor_bytes_per_sec,
            ..defaults.downloads
        },
        pipeline: pipeline(config),
        containerd: (!address.is_empty()).then(|| address.clone()),
        ..defaults
    }
}

/// Which images are pulled eagerly.
pub(crate) fn eager_mode(config: &Config) -> EagerMode {
    let parallel = &config.pull_modes.parallel_pull_unpack;
    match (
        parallel.enable,
        parallel.experimental_parallel_pull_as_fallback,
    ) {
        (true, _) => EagerMode::All,
        (false, true) => EagerMode::WithoutIndex,
        (false, false) => EagerMode::Off,
    }
}

/// The limits of the pipeline that unpacks layers. Keys of eager pulls have no effect while no image
/// is pulled so.
pub(crate) fn pipeline(config: &Config) -> PipelineConfig {
    let parallel = &config.pull_modes.parallel_pull_unpack;
    let usual = PipelineConfig {
        memory: Some(config.limits.eager_memory_bytes).filter(|bytes| *bytes > 0),
        limits: unpack_limits(config),
        durable: config.layer_store.sync_unpacked,
        ..PipelineConfig::default()
    };
    if eager_mode(config) == EagerMode::Off {
        return usual;
    }
    let program = |name: &str| {
        let stream = parallel.decompress_streams.get(name)?;
        Some(Decompressor {
            path: stream.path.clone().into(),
            args: stream.args.clone(),
        })
    };
    PipelineConfig {
        downloads: parallel.max_concurrent_downloads.map(size),
        unpacks: parallel.max_concurrent_unpacks.map(size),
        decompressors: Decompressors {
            gzip: program("gzip"),
            zstd: program("zstd"),
            stall: Some(DECOMPRESSOR_STALL),
        },
        ..usual
    }
}

/// How the layers of an image are pulled.
pub(crate) fn pulls(
    config: &Config,
    client: soci_registry::Client,
    pipeline: &Arc<Pipeline>,
    root: &Path,
    userxattr: bool,
) -> PullConfig {
    let parallel = &config.pull_modes.parallel_pull_unpack;
    let address = &config.content_store.containerd_address;
    let chunk = parallel.concurrent_download_chunk_size.as_ref();
    let limit = |limit: Option<u64>| limit.map_or(NO_CONCURRENCY_LIMIT, size);
    PullConfig {
        client,
        pipeline: pipeline.clone(),
        limits: match eager_mode(config) {
            // Of pulls that request it themselves.
            EagerMode::Off => ImageLimits {
                downloads: 16,
                unpacks: 4,
                chunk: Some(8 << 20),
            },
            _ => ImageLimits {
                downloads: limit(parallel.max_concurrent_downloads_per_image),
                unpacks: limit(parallel.max_concurrent_unpacks_per_image),
                chunk: chunk.map(|chunk| chunk.bytes()),
            },
        },
        unpack: unpack_limits(config),
        containerd: (!address.is_empty()).then(|| address.clone()),
        keep: !parallel.discard_unpacked_layers,
        scratch: root.join("unpack"),
        overlay_xattr: OverlayXattr::for_mount(userxattr),
    }
}

fn unpack_limits(config: &Config) -> UnpackLimits {
    UnpackLimits {
        memory: config.limits.unpack_memory_bytes,
        output: config.limits.unpack_output_bytes,
        reserve: reserve(config),
        ..UnpackLimits::default()
    }
}

fn reserve(config: &Config) -> Reserve {
    let percent = config.layer_store.min_free_percent;
    Reserve {
        percent: u8::try_from(percent).unwrap_or(u8::MAX),
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("config.toml"))
            .unwrap()
            .config
    }

    /// An operator without a configuration file gets what each subsystem takes for normal.
    #[test]
    fn the_files_defaults_are_the_subsystems_defaults() {
        let config = Config::default();
        let (ours, theirs) = (client(&config), ClientConfig::default());
        assert_eq!(ours.retries, theirs.retries);
        assert_eq!(ours.dial_timeout, theirs.dial_timeout);
        assert_eq!(ours.response_header_timeout, theirs.response_header_timeout);
        assert_eq!(ours.request_timeout, theirs.request_timeout);
        let mut ours = lazy(&config);
        // The program is this one.
        assert!(ours.hints.page_cache.take().is_some());
        assert_eq!(format!("{ours:?}"), format!("{:?}", LazyConfig::default()));
        let background = |config: &FetchConfig| format!("{:?}", config.background);
        assert_eq!(
            background(&fetch(&config)),
            background(&FetchConfig::default())
        );
        assert_eq!(
            fetch(&config).memory_budget,
            FetchConfig::default().memory_budget
        );
    }

    #[test]
    fn mirrors_keep_their_order_and_their_time_limits() {
        let config = parse(
            "[[resolver.host.'docker.io'.mirrors]]\nhost = 'a'\nrequest_timeout_sec = 7\ninsecure = true\n\
             [[resolver.host.'docker.io'.mirrors]]\nhost = 'b'\n\
             [[resolver.host.'docker.io'.mirrors]]\nhost = 'c'\nrequest_timeout_sec = -1\n",
        );
        let hosts = hosts(&config);
        let mirrors = &hosts["docker.io"];
        assert_eq!(
            mirrors.iter().map(|m| m.host.as_str()).collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        assert_eq!(
            mirrors.iter().map(|m| m.insecure).collect::<Vec<_>>(),
            [true, false, false]
        );
        let limits: Vec<_> = mirrors.iter().map(|m| m.request_timeout).collect();
        assert_eq!(limits, [Some(Duration::from_secs(7)), None, Some(NO_LIMIT)]);
    }

    #[test]
    fn unpacked_layers_are_synced_unless_that_is_off() {
        let eager =
            "[pull_modes.parallel_pull_unpack]\nenable = true\ndiscard_unpacked_layers = true\n";
        for pulls in ["", eager] {
            assert!(pipeline(&parse(pulls)).durable);
            let off = format!("{pulls}[layer_store]\nsync_unpacked = false\n");
            assert!(!pipeline(&parse(&off)).durable);
        }
    }

    #[test]
    fn a_store_of_size_0_is_a_store_without_limit() {
        assert_eq!(layer_store(&parse("")).budget_bytes, None);
        let config = parse("[layer_store]\nmax_size_bytes = 5");
        assert_eq!(layer_store(&config).budget_bytes, Some(5));
        assert_eq!(layer_store(&config).budget_percent, 80);
    }

    #[test]
    fn store_and_unpacking_leave_the_space_of_the_file() {
        for (text, percent) in [("", 10), ("[layer_store]\nmin_free_percent = 7\n", 7)] {
            let config = parse(text);
            assert_eq!(layer_store(&config).reserve.percent, percent);
            assert_eq!(pipeline(&config).limits.reserve.percent, percent);
        }
    }

    #[test]
    fn layers_are_shared_unless_the_file_says_otherwise() {
        assert!(!lazy(&parse("")).isolated);
        assert!(lazy(&parse("[layer_store]\nsharing = 'isolated'")).isolated);
    }

    #[test]
    fn no_limit_in_the_file_is_no_limit_in_the_subsystem() {
        let config = parse(
            "max_concurrency = -1\n[background_fetch]\nmax_queue_size = -1\ndrop_policy = 'oldest'",
        );
        assert_eq!(lazy(&config).max_concurrency, None);
        assert_eq!(fetch(&config).background.max_queue_size, None);
        assert_eq!(fetch(&config).background.drop_policy, DropPolicy::Oldest);
    }
}

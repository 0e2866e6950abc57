//! Lazy layers over a real registry and real FUSE mounts, with images that soci v0.15 indexed.
//! Needs root, /dev/fuse and docker-registry.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use soci_discovery::{LazyRegistries, Policy};
use soci_fetch::SpanFetcher;
use soci_layer::{
    IdMaps, IdRange, LayerProvider, LayerRefusal, LayerRequest, MountedInfo, ParentLayer, Purpose,
    UnpackRequest, View,
};
use soci_lazy::{Artifacts, Components, LazyConfig, LazyLayers};
use soci_oci::{Digest, Index, Manifest, Reference, annotations, media_types};
use soci_registry::{Client, ClientConfig, Credentials, NoCredentials};
use soci_store::content::OciLayout;
use soci_store::{LayerStore, LayerStoreConfig};
use soci_testkit::{Fault, Proxy, Registry, Rule, TestRoot};
use tokio_util::sync::CancellationToken;

/// A golden image in a registry, and a daemon's worth of lazy layers.
pub(crate) struct World {
    pub(crate) root: TestRoot,
    pub(crate) registry: Registry,
    pub(crate) proxy: Proxy,
    pub(crate) reference: Reference,
    pub(crate) image: GoldenImage,
    pub(crate) meters: Arc<soci_telemetry::Meters>,
    /// The layer store of the daemon that was started last.
    pub(crate) store: parking_lot::Mutex<Option<LayerStore>>,
}

/// What the labels of a Prepare say about an image.
pub(crate) struct GoldenImage {
    pub(crate) manifest: Digest,
    pub(crate) layers: Vec<Digest>,
    pub(crate) sizes: Vec<u64>,
}

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(case)
}

/// Puts together the layout that `soci convert` wrote: it left out the blobs that stand elsewhere.
fn assemble(case: &str, part: &str, into: &Path) {
    let target = into.join("blobs/sha256");
    fs::create_dir_all(&target).unwrap();
    for part in ["image", "soci-v1", "soci-v2", part] {
        for blob in fs::read_dir(golden(case).join(part).join("blobs/sha256")).unwrap() {
            let blob = blob.unwrap();
            fs::copy(blob.path(), target.join(blob.file_name())).unwrap();
        }
    }
    fs::copy(
        golden(case).join(part).join("index.json"),
        into.join("index.json"),
    )
    .unwrap();
}

fn read_manifest(layout: &Path, digest: Digest) -> Vec<u8> {
    fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap()
}

/// The image manifest behind a layout's entry.
fn image_of(layout: &Path) -> GoldenImage {
    let index: Index =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let mut entry = index.manifests[0].clone();
    if media_types::is_index(&entry.media_type) {
        let inner: Index = serde_json::from_slice(&read_manifest(layout, entry.digest)).unwrap();
        entry = inner
            .manifests
            .into_iter()
            .find(|manifest| manifest.artifact_type.is_none())
            .unwrap();
    }
    let manifest: Manifest = serde_json::from_slice(&read_manifest(layout, entry.digest)).unwrap();
    GoldenImage {
        manifest: entry.digest,
        layers: manifest.layers.iter().map(|layer| layer.digest).collect(),
        sizes: manifest.layers.iter().map(|layer| layer.size).collect(),
    }
}

impl World {
    /// `part`: `soci-v2` for the SOCI-enabled image, `image` for the one without an index.
    pub(crate) fn new(case: &str, part: &str) -> Self {
        let root = TestRoot::new().unwrap();
        let layout = root.dir("layout").unwrap();
        assemble(case, part, &layout);
        let image = image_of(&layout);
        let registry = Registry::start().unwrap();
        registry.push_layout(&layout, case, case).unwrap();
        let proxy = Proxy::start(registry.address()).unwrap();
        let reference = proxy.reference(&format!("{case}:{case}")).parse().unwrap();
        Self {
            root,
            registry,
            proxy,
            reference,
            image,
            meters: Arc::new(soci_telemetry::Meters::new().unwrap()),
            store: parking_lot::Mutex::default(),
        }
    }

    /// Runs a test in a runtime that is gone before registry and proxy (which have their own) are.
    pub(crate) fn test(mut self, test: impl AsyncFnOnce(&mut Self)) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(test(&mut self));
    }

    pub(crate) fn client() -> Client {
        Self::client_with(Arc::new(NoCredentials))
    }

    pub(crate) fn client_with(credentials: Arc<dyn Credentials>) -> Client {
        let mut config = ClientConfig::default();
        config.retries.max_retries = 1;
        config.retries.min_wait = Duration::from_millis(5);
        config.retries.max_wait = Duration::from_millis(20);
        Client::new(config, credentials).unwrap()
    }

    pub(crate) fn lazy(&self, config: LazyConfig) -> Arc<LazyLayers> {
        self.lazy_and_fetcher(config).0
    }

    fn lazy_and_fetcher(&self, config: LazyConfig) -> (Arc<LazyLayers>, Arc<SpanFetcher>) {
        self.lazy_fetching(config, soci_fetch::FetchConfig::default())
    }

    fn lazy_fetching(
        &self,
        config: LazyConfig,
        fetch: soci_fetch::FetchConfig,
    ) -> (Arc<LazyLayers>, Arc<SpanFetcher>) {
        self.lazy_through(Self::client(), config, fetch)
    }

    pub(crate) fn lazy_through(
        &self,
        client: Client,
        config: LazyConfig,
        fetch: soci_fetch::FetchConfig,
    ) -> (Arc<LazyLayers>, Arc<SpanFetcher>) {
        self.lazy_beside(soci_lazy::ImageStore::default(), client, config, fetch)
    }

    /// Lazy layers beside a containerd with these images.
    pub(crate) fn lazy_beside(
        &self,
        images: soci_lazy::ImageStore,
        client: Client,
        config: LazyConfig,
        fetch: soci_fetch::FetchConfig,
    ) -> (Arc<LazyLayers>, Arc<SpanFetcher>) {
        let root = self.root.dir("daemon").unwrap();
        let fetcher = SpanFetcher::new(fetch, tokio::runtime::Handle::current());
        let layers =
            LayerStore::open(&root.join("soci/layers"), LayerStoreConfig::default()).unwrap();
        *self.store.lock() = Some(layers.clone());
        let components = Components {
            client: client.clone(),
            layers,
            artifacts: Artifacts::Layout(OciLayout::open(&root.join("content")).unwrap()),
            images,
            content: OciLayout::open(&root.join("content")).unwrap(),
            index_notes: root.join("soci/images"),
            profiles: root.join("soci/profiles"),
            unpacker: soci_unpack::Unpacker::new(
                client,
                soci_unpack::UnpackConfig::new(root.join("unpack")),
            )
            .unwrap(),
            fetcher: fetcher.clone(),
            pool: soci_fuse::Pool::new(2, soci_fuse::Journal::create().unwrap()).unwrap(),
            keeper: None,
            held: Vec::new(),
            meters: self.meters.clone(),
            config: LazyConfig {
                disable_background: true,
                hints: soci_lazy::HintConfig {
                    enable: false,
                    ..config.hints
                },
                ..config
            },
        };
        (LazyLayers::new(components).unwrap(), fetcher)
    }

    pub(crate) fn request(&self, layer: usize, mountpoint: &str) -> LayerRequest {
        let list = |values: Vec<String>| values.join(",");
        let above = self.image.layers[layer..].iter().map(ToString::to_string);
        let sizes = self.image.sizes[layer..].iter().map(ToString::to_string);
        let labels = [
            (
                "containerd.io/snapshot/cri.image-ref",
                self.reference.to_string(),
            ),
            (
                "containerd.io/snapshot/cri.manifest-digest",
                self.image.manifest.to_string(),
            ),
            (
                "containerd.io/snapshot/cri.layer-digest",
                self.image.layers[layer].to_string(),
            ),
            (
                "containerd.io/snapshot/cri.image-layers",
                list(above.collect()),
            ),
            (
                "containerd.io/snapshot/remote/soci.size",
                self.image.sizes[layer].to_string(),
            ),
            (
                "containerd.io/snapshot/remote/image.layers.size",
                list(sizes.collect()),
            ),
        ];
        let mountpoint = self.root.dir(mountpoint).unwrap();
        LayerRequest {
            purpose: Purpose::ImageLayer,
            namespace: "test".to_owned(),
            snapshot: mountpoint.with_extension("snapshot"),
            parents: Vec::new(),
            mountpoint,
            labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
            view: View::default(),
            parent: None,
        }
    }

    pub(crate) fn stored(&self) -> usize {
        fs::read_dir(self.root.path().join("daemon/soci/layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .count()
    }
}

/// Blocking reads go to other threads, so that they cannot keep the fetcher from running.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Every file of the first layer of `kinds` has the content that containerd unpacked.
pub(crate) async fn check_contents(mountpoint: PathBuf) {
    blocking(move || {
        let sums = fs::read_to_string(golden("kinds").join("unpacked/layer-1.sha256")).unwrap();
        assert!(sums.lines().count() > 10);
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            let Some(name) = name.strip_prefix("./") else {
                continue; // a name that sha256sum escapes
            };
            let content = fs::read(mountpoint.join(name)).unwrap();
            assert_eq!(Digest::of(&content).hex(), sum, "{name}");
        }
    })
    .await;
}

pub(crate) async fn unmount(lazy: &LazyLayers, mountpoint: &Path) {
    lazy.unmount(mountpoint).await.unwrap();
}

/// Waits until what was read is stored: readers are answered before.
pub(crate) async fn is_stored(fetcher: &SpanFetcher) {
    let idle = || {
        let stats = fetcher.stats();
        stats.requests_in_flight == 0 && stats.memory_in_use == 0
    };
    until("what was read is stored", idle).await;
}

#[test]
fn an_indexed_image_is_mounted_and_reads_right() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let first = world.request(0, "a");
        let info = lazy.mount(first.clone()).await.unwrap();
        assert_eq!(
            info,
            MountedInfo {
                uid: 0,
                gid: 0,
                mode: 0o755
            }
        );
        let second = world.request(1, "b");
        lazy.mount(second.clone()).await.unwrap();
        check_contents(first.mountpoint.clone()).await;
        lazy.check(&first.mountpoint, &BTreeMap::new())
            .await
            .unwrap();
        lazy.check(Path::new("/nowhere"), &BTreeMap::new())
            .await
            .unwrap_err();

        assert_eq!(world.stored(), 2);
        unmount(&lazy, &first.mountpoint).await;
        assert_eq!(world.stored(), 1, "a layer goes with its last mount");
        unmount(&lazy, &second.mountpoint).await;
        assert_eq!(world.stored(), 0);
        unmount(&lazy, &second.mountpoint).await; // again: no error
        let notes = fs::read_dir(world.root.path().join("daemon/soci/images")).unwrap();
        assert_eq!(notes.count(), 0, "nothing is kept of an image that is gone");
    });
}

#[test]
fn an_image_that_its_tag_no_longer_names_is_mounted_as_the_client_has_it() {
    World::new("kinds", "soci-v2").test(async |world| {
        // The tag is that of an image without an index now.
        let other = world.root.dir("other").unwrap();
        assemble("kinds", "image", &other);
        world
            .registry
            .push_layout(&other, "kinds", "kinds")
            .unwrap();
        let lazy = world.lazy(LazyConfig::default());
        world.proxy.reset_stats();
        let first = world.request(0, "a");
        lazy.mount(first.clone()).await.unwrap();
        check_contents(first.mountpoint.clone()).await;
        let paths = world.proxy.stats().by_path();
        assert!(
            !paths.contains_key("/v2/kinds/manifests/kinds"),
            "{paths:?}"
        );
        unmount(&lazy, &first.mountpoint).await;
    });
}

#[test]
fn thirty_mounts_at_once_fetch_everything_once() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        world.proxy.reset_stats();
        let requests: Vec<_> = (0..30)
            .map(|n| world.request(n % 2, &format!("m{n}")))
            .collect();
        let mounts = requests.iter().map(|request| lazy.mount(request.clone()));
        for mounted in futures::future::join_all(mounts).await {
            mounted.unwrap();
        }
        for (path, stats) in world.proxy.stats().by_path() {
            assert_eq!(stats.requests, 1, "{path}");
        }
        check_contents(requests[0].mountpoint.clone()).await;
        for request in &requests {
            unmount(&lazy, &request.mountpoint).await;
        }
        assert_eq!(world.stored(), 0);
    });
}

#[test]
fn the_next_process_needs_no_registry_for_what_is_stored() {
    World::new("kinds", "soci-v2").test(async |world| {
        let request = world.request(0, "a");
        let (before, fetcher) = world.lazy_and_fetcher(LazyConfig::default());
        before.mount(request.clone()).await.unwrap();
        check_contents(request.mountpoint.clone()).await;
        is_stored(&fetcher).await;
        before.leave();
        unmount(&before, &request.mountpoint).await;
        fetcher.shutdown().await;
        before.flush().await;
        drop(before);
        assert_eq!(world.stored(), 2, "leaving keeps what is stored");

        world.registry.kill().unwrap();
        // What is mounted stays lazy, also under a threshold that it would not pass today.
        let after = world.lazy(LazyConfig {
            min_layer_size: 1 << 30,
            ..LazyConfig::default()
        });
        after
            .restore(LayerRequest {
                purpose: Purpose::Restore,
                ..request.clone()
            })
            .await
            .unwrap();
        check_contents(request.mountpoint.clone()).await;
        // The second layer was prepared ahead by the process before, and no snapshot wants it now.
        after.sweep().await;
        assert_eq!(world.stored(), 1);
        check_contents(request.mountpoint.clone()).await;
        unmount(&after, &request.mountpoint).await;
    });
}

#[test]
fn an_image_without_an_index_is_refused_with_a_reason_and_looked_up_again() {
    World::new("kinds", "image").test(async |world| {
        let lazy = world.lazy(LazyConfig {
            retry_after: Duration::ZERO,
            ..LazyConfig::default()
        });
        let refusal = lazy.mount(world.request(0, "a")).await.unwrap_err();
        assert!(
            matches!(refusal, LayerRefusal::NotIndexed { .. }),
            "{refusal}"
        );
        assert!(
            soci_errors::chain(&refusal).contains(annotations::INDEX_DIGEST),
            "{refusal}"
        );
        let asked = world.proxy.stats().total().requests;
        lazy.mount(world.request(0, "a")).await.unwrap_err();
        assert!(world.proxy.stats().total().requests > asked);
    });
}

#[test]
fn an_index_of_version_1_is_found_among_the_referrers_where_that_is_enabled() {
    World::new("kinds", "image").test(async |world| {
        let layout = world.root.path().join("layout");
        let digest = fs::read_to_string(golden("kinds").join("soci-v1/index-digest")).unwrap();
        let digest: Digest = digest.trim().parse().unwrap();
        let index = read_manifest(&layout, digest);
        let client = World::client();
        let manifest: Manifest = serde_json::from_slice(&index).unwrap();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            let bytes = read_manifest(&layout, blob.digest);
            let body = soci_registry::BlobBody::from(bytes::Bytes::from(bytes));
            client
                .push_blob(&world.reference, blob, body, None, None)
                .await
                .unwrap();
        }
        let at = world.reference.at(digest);
        client
            .push_manifest(&at, media_types::OCI_MANIFEST, index.into())
            .await
            .unwrap();

        let refused = world
            .lazy(LazyConfig::default())
            .mount(world.request(0, "a"))
            .await;
        assert!(
            matches!(refused, Err(LayerRefusal::NotIndexed { .. })),
            "v1 is off by default"
        );
        let lazy = world.lazy(LazyConfig {
            policy: Policy::ALL,
            ..LazyConfig::default()
        });
        let request = world.request(0, "b");
        lazy.mount(request.clone()).await.unwrap();
        check_contents(request.mountpoint.clone()).await;
        unmount(&lazy, &request.mountpoint).await;

        // A client that names the index itself gets it with both switched off, where that is allowed.
        let lazy = world.lazy(LazyConfig {
            policy: Policy {
                soci_v1: false,
                soci_v2: false,
                explicit_index: true,
            },
            ..LazyConfig::default()
        });
        let mut request = world.request(0, "c");
        let label = "containerd.io/snapshot/remote/soci.index.digest".to_owned();
        request.labels.insert(label, digest.to_string());
        lazy.mount(request.clone()).await.unwrap();
        unmount(&lazy, &request.mountpoint).await;
    });
}

#[test]
fn an_image_that_may_not_be_lazy_causes_no_request() {
    World::new("kinds", "soci-v2").test(async |world| {
        let off = LazyConfig {
            policy: Policy {
                soci_v1: false,
                soci_v2: false,
                explicit_index: false,
            },
            ..LazyConfig::default()
        };
        let elsewhere = LazyConfig {
            lazy_registries: LazyRegistries::new(["registry.example".to_owned()]),
            ..LazyConfig::default()
        };
        for (config, code) in [(off, "disabled"), (elsewhere, "untrusted-registry")] {
            let lazy = world.lazy(config);
            world.proxy.reset_stats();
            let mut request = world.request(0, "a");
            // Layers above would be fetched to be unpacked.
            let above = "containerd.io/snapshot/cri.image-layers";
            request.labels.remove(above);
            let refusal = lazy.mount(request.clone()).await.unwrap_err();
            assert_eq!(refusal.code(), code);
            let label = "containerd.io/snapshot/remote/soci.index.digest".to_owned();
            let index = Digest::of(b"index").to_string();
            request.labels.insert(label, index);
            let refusal = lazy.mount(request).await.unwrap_err();
            assert_eq!(refusal.code(), code);
            assert_eq!(world.proxy.stats().total().requests, 0, "{code}");
        }
    });
}

#[test]
fn a_layer_without_a_ztoc_and_a_small_layer_are_refused_each_with_its_reason() {
    World::new("zstd-mixed", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let refusals = [
            lazy.mount(world.request(0, "a")).await,
            lazy.mount(world.request(1, "b")).await,
        ];
        let refused = refusals
            .iter()
            .filter(|r| matches!(r, Err(LayerRefusal::NoZtoc { .. })));
        assert_eq!(refused.count(), 1, "{refusals:?}");
        let mounted = refusals.iter().position(Result::is_ok).unwrap();
        unmount(&lazy, &world.root.dir(["a", "b"][mounted]).unwrap()).await;

        let lazy = world.lazy(LazyConfig {
            min_layer_size: 1 << 30,
            ..LazyConfig::default()
        });
        world.proxy.reset_stats();
        let refusal = lazy.mount(world.request(mounted, "c")).await.unwrap_err();
        assert!(
            matches!(refusal, LayerRefusal::BelowMinSize { .. }),
            "{refusal}"
        );
        assert_eq!(
            world.proxy.stats().total().requests,
            0,
            "the index is not even requested"
        );
    });
}

#[test]
fn a_damaged_or_missing_ztoc_leaves_nothing_mounted_and_is_tried_again() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        for fault in [Fault::Corrupt(100), Fault::status(404), Fault::status(403)] {
            let all_blobs = Rule::always(fault).method("GET").path("/blobs/").unwrap();
            world.proxy.inject(all_blobs);
            let request = world.request(0, "a");
            let refusal = lazy.mount(request.clone()).await.unwrap_err();
            assert!(matches!(refusal, LayerRefusal::Failed { .. }), "{refusal}");
            assert!(soci_errors::chain(&refusal).contains("zTOC"), "{refusal}");
            assert_eq!(fs::read_dir(&request.mountpoint).unwrap().count(), 0);
            world.proxy.clear_faults();
        }
        let request = world.request(0, "a");
        lazy.mount(request.clone()).await.unwrap();
        check_contents(request.mountpoint.clone()).await;
        unmount(&lazy, &request.mountpoint).await;
    });
}

#[test]
fn a_registry_that_hangs_costs_no_more_than_the_mount_timeout() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig {
            mount_timeout: Duration::from_millis(300),
            ..LazyConfig::default()
        });
        world.proxy.inject(Rule::always(Fault::Hang).method("GET"));
        let refusal = lazy.mount(world.request(0, "a")).await.unwrap_err();
        assert!(
            soci_errors::chain(&refusal).contains("mount_timeout_sec"),
            "{refusal}"
        );
        assert!(refusal.leaves_to_client(), "{refusal}");
    });
}

#[test]
fn a_layer_that_cannot_be_mounted_leaves_nothing_stored() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let mut request = world.request(0, "a");
        // Nothing else is opened ahead.
        request
            .labels
            .remove("containerd.io/snapshot/cri.image-layers");
        let mountpoint = request.mountpoint.clone();
        request.mountpoint = mountpoint.join("missing");
        let refusal = lazy.mount(request.clone()).await.unwrap_err();
        assert!(matches!(refusal, LayerRefusal::Failed { .. }), "{refusal}");
        assert_eq!(world.stored(), 0);

        // What was stored for another image stays.
        request.mountpoint = mountpoint;
        lazy.mount(request.clone()).await.unwrap();
        let mut other = request.clone();
        other.mountpoint = request.mountpoint.with_file_name("missing");
        lazy.mount(other).await.unwrap_err();
        assert_eq!(world.stored(), 1);
        check_contents(request.mountpoint.clone()).await;
        unmount(&lazy, &request.mountpoint).await;
        assert_eq!(world.stored(), 0);
    });
}

#[test]
fn a_layer_of_two_repositories_is_read_from_the_one_that_is_there() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let first = world.request(0, "a");
        lazy.mount(first.clone()).await.unwrap();
        // The same registry, but not through the proxy, so that it counts as another.
        let mut second = world.request(0, "b");
        let elsewhere = world.reference.to_string().replace(
            &world.proxy.reference(""),
            &format!("{}/", world.registry.address()),
        );
        assert_ne!(elsewhere, world.reference.to_string());
        second
            .labels
            .insert("containerd.io/snapshot/cri.image-ref".to_owned(), elsewhere);
        lazy.mount(second.clone()).await.unwrap();
        world.proxy.inject(Rule::always(Fault::status(403)));
        check_contents(second.mountpoint.clone()).await;
        check_contents(first.mountpoint.clone()).await;
        unmount(&lazy, &first.mountpoint).await;
        unmount(&lazy, &second.mountpoint).await;
    });
}

#[test]
fn a_layer_whose_spans_need_much_memory_is_refused_unless_it_was_mounted_before() {
    World::new("kinds", "soci-v2").test(async |world| {
        let fetch = soci_fetch::FetchConfig {
            memory_budget: 1000,
            ..soci_fetch::FetchConfig::default()
        };
        let (lazy, _) = world.lazy_fetching(LazyConfig::default(), fetch);
        let mut request = world.request(0, "a");
        // Nothing else is opened ahead.
        request
            .labels
            .remove("containerd.io/snapshot/cri.image-layers");
        let refusal = lazy.mount(request.clone()).await.unwrap_err();
        assert_eq!(refusal.code(), "span-too-large");
        assert!(
            refusal.to_string().contains("memory_budget_bytes"),
            "{refusal}"
        );
        assert!(!refusal.leaves_to_client());
        assert_eq!(world.stored(), 0);
        // What a container uses stays.
        request.purpose = Purpose::Restore;
        lazy.restore(request.clone()).await.unwrap();
        check_contents(request.mountpoint.clone()).await;
        unmount(&lazy, &request.mountpoint).await;
    });
}

/// A configuration in which the recording of a start ends soon, and not while a busy machine rests between two reads.
fn recording() -> LazyConfig {
    LazyConfig {
        profiles: soci_lazy::ProfileConfig {
            quiet: Duration::from_secs(3),
            ..soci_lazy::ProfileConfig::default()
        },
        ..LazyConfig::default()
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
    assert!(waited.is_ok(), "{what}");
}

#[test]
fn a_start_is_recorded_and_the_next_cold_start_plays_it() {
    World::new("kinds", "soci-v2").test(async |world| {
        let config = recording();
        let request = world.request(0, "a");
        {
            let lazy = world.lazy(config.clone());
            lazy.mount(request.clone()).await.unwrap();
            check_contents(request.mountpoint.clone()).await;
            until("recorded", || lazy.profile_counts().recorded > 0).await;
            assert_eq!(lazy.profile_counts().played, 0);
            unmount(&lazy, &request.mountpoint).await;
        }
        fs::remove_dir_all(world.root.path().join("daemon/soci/layers")).unwrap();

        let (lazy, fetcher) = world.lazy_and_fetcher(config.clone());
        lazy.mount(request.clone()).await.unwrap();
        until("played", || {
            let stats = fetcher.stats();
            stats.profile.spans > 0 && stats.requests_in_flight == 0
        })
        .await;
        assert_eq!(lazy.profile_counts().played, 1);
        // Everything that the start reads is there.
        world.proxy.inject(Rule::always(Fault::status(403)));
        check_contents(request.mountpoint.clone()).await;
        assert_eq!(fetcher.stats().demand.requests, 0);
        world.proxy.clear_faults();
        unmount(&lazy, &request.mountpoint).await;

        // The switch turns both off.
        let off = LazyConfig {
            profiles: soci_lazy::ProfileConfig {
                enable: false,
                ..config.profiles.clone()
            },
            ..config
        };
        let off = world.lazy(off);
        // A start ends with its mount; the control is a later one that is recorded.
        for (lazy, recorded) in [(&off, 0), (&lazy, 1)] {
            until("recorded", || lazy.profile_counts().recorded == recorded).await;
            lazy.mount(request.clone()).await.unwrap();
            check_contents(request.mountpoint.clone()).await;
            unmount(lazy, &request.mountpoint).await;
        }
        until("recorded", || lazy.profile_counts().recorded == 2).await;
        assert_eq!(off.profile_counts(), soci_lazy::ProfileCounts::default());
    });
}

#[test]
fn a_container_whose_image_lost_spans_has_what_was_recorded_played() {
    World::new("kinds", "soci-v2").test(async |world| {
        let config = recording();
        let request = world.request(0, "a");
        let (lazy, fetcher) = world.lazy_and_fetcher(config.clone());
        let store = || world.store.lock().clone().unwrap();
        let stored = || {
            let store = store();
            let layers = store.layers().unwrap().into_iter();
            let layers = layers.filter_map(|key| store.get(key.layer, key.ztoc));
            layers.map(|layer| layer.stored_spans()).sum::<u64>()
        };
        let evict = async || {
            let store = store();
            let evicting = move || {
                for key in store.layers().unwrap() {
                    if let Some(layer) = store.get(key.layer, key.ztoc) {
                        layer.release().unwrap();
                    }
                }
            };
            blocking(evicting).await;
            assert_eq!(stored(), 0);
        };
        let start_container = async |lazy: &LazyLayers| {
            let layer = soci_layer::UsedLayer {
                name: "test/1/sha256:abc".to_owned(),
                mountpoint: Some(request.mountpoint.clone()),
            };
            let use_of = soci_layer::ChainUse {
                namespace: None,
                layers: vec![layer],
                admitted_before: true,
            };
            lazy.admit(use_of).await.unwrap();
        };
        // Without a profile nothing is known of the start.
        lazy.mount(request.clone()).await.unwrap();
        check_contents(request.mountpoint.clone()).await;
        is_stored(&fetcher).await;
        let read = stored();
        until("recorded", || lazy.profile_counts().recorded == 1).await;
        // With everything stored there is nothing to play.
        start_container(&lazy).await;
        evict().await;
        assert_eq!(lazy.profile_counts().played, 0);

        start_container(&lazy).await;
        until("played", || stored() == read).await;
        assert_eq!(lazy.profile_counts().played, 1);
        assert_eq!(fetcher.stats().profile.spans, read);
        // What is in the kernel's page cache is not read again: this is no start to be recorded.
        until("over", || lazy.profile_counts().playing == 0).await;
        assert_eq!(lazy.profile_counts().recorded, 1);
        unmount(&lazy, &request.mountpoint).await;
        drop((lazy, fetcher));
        world.store.lock().take();
        fs::remove_dir_all(world.root.path().join("daemon/soci/layers")).unwrap();

        // An image that was pulled ahead, and lost its spans before its first container.
        let (lazy, fetcher) = world.lazy_and_fetcher(config);
        lazy.mount(request.clone()).await.unwrap();
        until("played at the pull", || stored() == read).await;
        is_stored(&fetcher).await;
        let ended = async {
            while lazy.profiles().await.playing.iter().any(|one| !one.ended) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended)
            .await
            .unwrap();
        evict().await;
        start_container(&lazy).await;
        until("played again", || stored() == read).await;
        assert_eq!(lazy.profile_counts().played, 1);
        world.proxy.inject(Rule::always(Fault::status(403)));
        check_contents(request.mountpoint.clone()).await;
        assert_eq!(fetcher.stats().demand.requests, 0);
        world.proxy.clear_faults();
        until("recorded", || lazy.profile_counts().recorded == 1).await;
        unmount(&lazy, &request.mountpoint).await;
    });
}

#[test]
fn a_recorded_start_is_published_once_and_another_node_plays_it() {
    World::new("kinds", "soci-v2").test(async |world| {
        let mut config = recording();
        config.profiles.publish = true;
        let request = world.request(0, "a");
        let profiles = world.root.path().join("daemon/soci/profiles");
        let puts = || {
            let stats = world.proxy.stats();
            let manifests = stats
                .of(|r| r.method == "PUT" && r.path.contains("/manifests/") && r.status == 201);
            manifests.requests
        };
        let forget = || {
            fs::remove_dir_all(&profiles).unwrap();
            fs::remove_dir_all(world.root.path().join("daemon/soci/layers")).unwrap();
        };
        let start = async |lazy: &Arc<LazyLayers>| {
            let before = lazy.profile_counts().recorded;
            lazy.mount(request.clone()).await.unwrap();
            check_contents(request.mountpoint.clone()).await;
            until("recorded", || lazy.profile_counts().recorded > before).await;
        };
        // A registry that takes nothing: the start is recorded all the same, and serves this node.
        world
            .proxy
            .inject(Rule::always(Fault::status(403)).method("POST"));
        let lazy = world.lazy(config.clone());
        start(&lazy).await;
        until("refused", || {
            let stats = world.proxy.stats();
            stats.of(|request| request.method == "POST").requests > 0
        })
        .await;
        unmount(&lazy, &request.mountpoint).await;
        drop(lazy);
        forget();
        world.proxy.clear_faults();
        assert_eq!(puts(), 0);

        // The artifact, and the list of referrers under a tag, as the registry has no API for it.
        let lazy = world.lazy(config.clone());
        start(&lazy).await;
        until("published", || puts() == 2).await;
        unmount(&lazy, &request.mountpoint).await;
        drop(lazy);
        forget();

        let lazy = world.lazy(config);
        world.proxy.reset_stats();
        start(&lazy).await;
        until("found at the registry", || {
            lazy.profile_counts().played == 1
        })
        .await;
        // At the pull, and before anything would be published.
        until("looked for twice", || {
            let stats = world.proxy.stats();
            stats.of(|r| r.path.contains("/referrers/")).requests == 2
        })
        .await;
        unmount(&lazy, &request.mountpoint).await;
        assert_eq!(puts(), 0, "one is there");
    });
}

#[test]
fn what_v0_15_lists_for_prefetching_is_fetched_before_it_is_read() {
    World::new("kinds", "soci-v2-prefetch").test(async |world| {
        let (lazy, fetcher) = world.lazy_and_fetcher(LazyConfig::default());
        let request = world.request(0, "a");
        lazy.mount(request.clone()).await.unwrap();
        // Two spans of the first layer, and one of the second, which is opened ahead.
        let played = async {
            while fetcher.stats().profile.spans < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), played)
            .await
            .unwrap();
        assert_eq!(lazy.profile_counts().played, 1);
        world.proxy.inject(Rule::always(Fault::status(403)));
        let sums = fs::read_to_string(golden("kinds").join("unpacked/layer-1.sha256")).unwrap();
        let path = request.mountpoint.join("data/text");
        let content = blocking(move || fs::read(path).unwrap()).await;
        let line = format!("{}  ./data/text", Digest::of(&content).hex());
        assert!(sums.lines().any(|known| known == line));
        let stats = fetcher.stats();
        assert_eq!((stats.demand.requests, stats.profile.spans), (0, 3));
        unmount(&lazy, &request.mountpoint).await;
    });
}

#[test]
fn a_start_that_the_end_of_the_daemon_interrupts_is_played_and_recorded_by_the_next() {
    World::new("kinds", "soci-v2").test(async |world| {
        let config = recording();
        let request = world.request(0, "a");
        let first = world.lazy(config.clone());
        first.mount(request.clone()).await.unwrap();
        check_contents(request.mountpoint.clone()).await;
        until("recorded", || first.profile_counts().recorded == 1).await;
        unmount(&first, &request.mountpoint).await;
        drop(first);
        fs::remove_dir_all(world.root.path().join("daemon/soci/layers")).unwrap();

        // Pulled, and the daemon ends before a container reads, and before all of it is fetched.
        let layer = world.image.layers[0];
        world
            .proxy
            .inject(Rule::always(Fault::Hang).method("GET").blob(layer));
        let (before, fetcher) = world.lazy_and_fetcher(config.clone());
        before.mount(request.clone()).await.unwrap();
        until("played", || before.profile_counts().played == 1).await;
        before.leave();
        unmount(&before, &request.mountpoint).await;
        fetcher.shutdown().await;
        // Closes the layer that was opened ahead as well.
        before.flush().await;
        // Long enough to notice that all its layers are closed, which must not end the start: no event
        // shows that it does not.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        drop((before, fetcher));
        world.proxy.clear_faults();

        let after = world.lazy(config);
        let restore = LayerRequest {
            purpose: Purpose::Restore,
            ..request.clone()
        };
        after.restore(restore).await.unwrap();
        until("played again", || after.profile_counts().played == 1).await;
        check_contents(request.mountpoint.clone()).await;
        until("recorded again", || after.profile_counts().recorded == 1).await;
        unmount(&after, &request.mountpoint).await;
    });
}

#[test]
fn a_request_whose_reader_was_killed_is_given_up() {
    World::new("kinds", "soci-v2").test(async |world| {
        let (lazy, fetcher) = world.lazy_and_fetcher(LazyConfig::default());
        let request = world.request(0, "a");
        lazy.mount(request.clone()).await.unwrap();
        world.proxy.inject(Rule::always(Fault::Hang).method("GET"));
        let sums = fs::read_to_string(golden("kinds").join("unpacked/layer-1.sha256")).unwrap();
        let largest = sums
            .lines()
            .filter_map(|line| line.split_once("  ")?.1.strip_prefix("./"))
            .filter(|name| !name.contains('\\'))
            .map(|name| request.mountpoint.join(name))
            .max_by_key(|path| fs::metadata(path).map_or(0, |file| file.len()))
            .unwrap();
        // Reads through the page cache are the kernel's own: it does not report that their readers
        // are gone.
        let mut reader = std::process::Command::new("dd")
            .arg(format!("if={}", largest.display()))
            .args(["of=/dev/null", "iflag=direct", "bs=4096", "count=1"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let in_flight = async |some: bool| {
            while (fetcher.stats().requests_in_flight > 0) != some {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let patience = Duration::from_secs(40);
        tokio::time::timeout(patience, in_flight(true))
            .await
            .unwrap();
        reader.kill().unwrap();
        blocking(move || reader.wait().unwrap()).await;
        tokio::time::timeout(patience, in_flight(false))
            .await
            .unwrap();
        assert_eq!(fetcher.stats().spans_failed, 0, "it ended by itself");
        world.proxy.clear_faults();
        check_contents(request.mountpoint.clone()).await;
        unmount(&lazy, &request.mountpoint).await;
    });
}

#[test]
fn under_userxattr_the_opaque_mark_is_the_users() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig {
            userxattr: true,
            ..LazyConfig::default()
        });
        let request = world.request(1, "a");
        lazy.mount(request.clone()).await.unwrap();
        let etc = request.mountpoint.join("etc");
        let (users, trusted) = blocking(move || {
            let mark = |name: &str| rustix::fs::getxattr(&etc, name, &mut [0_u8; 8][..]);
            (mark("user.overlay.opaque"), mark("trusted.overlay.opaque"))
        })
        .await;
        assert_eq!(users, Ok(1));
        assert_eq!(trusted, Err(rustix::io::Errno::NODATA));
        unmount(&lazy, &request.mountpoint).await;
    });
}

#[test]
fn owners_are_translated_through_the_mount() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let plain = world.request(0, "plain");
        lazy.mount(plain.clone()).await.unwrap();
        let range = |container, host, length| IdRange {
            container,
            host,
            length,
        };
        let mut mapped = world.request(0, "mapped");
        mapped.purpose = Purpose::SecondView;
        mapped.view.id_maps = Some(IdMaps {
            uid: vec![range(0, 100_000, 1000), range(1000, 7, 1)],
            gid: vec![range(0, 200_000, 3000)],
        });
        let root = lazy.mount(mapped.clone()).await.unwrap();
        assert_eq!((root.uid, root.gid), (100_000, 200_000));
        // One layer, seen twice; also when an earlier process had mounted it.
        let hex = world.image.layers[0].hex();
        let folders = world.root.path().join("daemon/soci/layers");
        let stored = || {
            let names = fs::read_dir(&folders).unwrap();
            names
                .filter(|name| {
                    name.as_ref()
                        .unwrap()
                        .file_name()
                        .to_str()
                        .unwrap()
                        .starts_with(&hex)
                })
                .count()
        };
        assert_eq!(stored(), 1);
        for _ in 0..2 {
            let owner = |mountpoint: &Path, name: &str| {
                let path = mountpoint.join(name);
                blocking(move || {
                    let stat = fs::symlink_metadata(path).unwrap();
                    (stat.uid(), stat.gid())
                })
            };
            for (name, seen, translated) in [
                ("etc/hostname", (1000, 2000), (7, 202_000)),
                ("bin/tool", (0, 0), (100_000, 200_000)),
                ("data", (0, 0), (100_000, 200_000)),
                ("big-id", (3_000_000_000, 3_000_000_001), (65534, 65534)),
            ] {
                assert_eq!(owner(&plain.mountpoint, name).await, seen, "{name}");
                assert_eq!(owner(&mapped.mountpoint, name).await, translated, "{name}");
            }
            check_contents(mapped.mountpoint.clone()).await;
            lazy.restore(LayerRequest {
                purpose: Purpose::Restore,
                ..mapped.clone()
            })
            .await
            .unwrap();
        }
        unmount(&lazy, &plain.mountpoint).await;
        lazy.check(&mapped.mountpoint, &mapped.labels)
            .await
            .unwrap();
        unmount(&lazy, &mapped.mountpoint).await;
        assert_eq!(stored(), 0);
    });
}

#[test]
fn a_layer_is_unpacked_onto_a_lazy_one_without_a_look_at_its_mount() {
    World::new("kinds", "soci-v2").test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let below = world.request(0, "a");
        lazy.mount(below.clone()).await.unwrap();
        let above = world.request(1, "b");
        let folder = above.mountpoint.clone();
        let request = |lazy: bool| UnpackRequest {
            layer: LayerRequest {
                parents: vec![ParentLayer {
                    directory: below.mountpoint.clone(),
                    lazy,
                }],
                ..above.clone()
            },
            eager: None,
        };
        lazy.unpack(request(true), CancellationToken::new())
            .await
            .unwrap();
        let files = fs::read_dir(folder.join("etc")).unwrap().count();
        assert_eq!(files, 2);
        // Implied there, and described as 0755 below.
        assert_eq!(
            fs::metadata(folder.join("bin")).unwrap().mode() & 0o7777,
            0o755
        );
        unmount(&lazy, &below.mountpoint).await;
        // A lazy layer that is not mounted any more is a reason not to.
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        let refusal = lazy
            .unpack(request(true), CancellationToken::new())
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), "unpack-failed");
        assert!(fs::read_dir(&folder).unwrap().next().is_none());
    });
}

/// Two indexes name the same zTOC, and one of them hides the layer's attributes.
#[test]
fn disabled_xattrs_of_one_index_hide_nothing_from_another() {
    World::new("kinds", "soci-v2").test(async |world| {
        let plain = world.request(0, "plain");
        let client = World::client();
        let manifest = client
            .manifest(&world.reference, world.image.manifest)
            .await
            .unwrap();
        let manifest: Manifest = serde_json::from_slice(&manifest.1).unwrap();
        let index: Digest = manifest.annotations[annotations::INDEX_DIGEST]
            .parse()
            .unwrap();
        let (_, bytes) = client.manifest(&world.reference, index).await.unwrap();
        let mut index: Manifest = serde_json::from_slice(&bytes).unwrap();
        for ztoc in &mut index.layers {
            let key = "com.amazon.soci.disable-xattrs".to_owned();
            ztoc.annotations.insert(key, "true".to_owned());
        }
        let bytes = soci_oci::json::to_vec(&index).unwrap();
        let tag = world.proxy.reference("kinds:hidden").parse().unwrap();
        let hiding = client
            .push_manifest(&tag, media_types::OCI_MANIFEST, bytes.into())
            .await
            .unwrap();
        let mut hidden = world.request(0, "hidden");
        hidden.labels.insert(
            "containerd.io/snapshot/remote/soci.index.digest".to_owned(),
            hiding.to_string(),
        );
        let lazy = world.lazy(LazyConfig::default());
        lazy.mount(hidden.clone()).await.unwrap();
        lazy.mount(plain.clone()).await.unwrap();
        let value = |request: &LayerRequest| {
            let file = request.mountpoint.join("xattr/file");
            blocking(move || rustix::fs::getxattr(file, "user.note", &mut [0_u8; 64][..]))
        };
        assert_eq!(value(&plain).await, Ok(5));
        let refused = value(&hidden).await.unwrap_err();
        let nothing = [rustix::io::Errno::NODATA, rustix::io::Errno::NOTSUP];
        assert!(nothing.contains(&refused), "{refused}");
        unmount(&lazy, &plain.mountpoint).await;
        unmount(&lazy, &hidden.mountpoint).await;
    });
}

//! Images at a real registry (Debian's `docker-registry`), and damaged ones behind a proxy.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use soci_index::{ConvertOptions, Image, Platforms, RegistrySource};
use soci_index_builder::{
    Failure, ImageIndexer as _, IndexSettings, Indexer, Outcome, PoolSettings, Push, Queue,
    Versions, WorkerPool,
};
use soci_oci::{Digest, Platform, Reference, media_types};
use soci_registry::{Client, ClientConfig, NoCredentials, RetryPolicy};
use soci_testkit::image::{OciImage, small_image};
use soci_testkit::{Fault, ImageBuilder, Layer, Proxy, Registry, Rule};
use tokio_util::sync::CancellationToken;

fn client() -> Client {
    client_with(RetryPolicy {
        max_retries: 1,
        ..RetryPolicy::default()
    })
}

fn client_with(retries: RetryPolicy) -> Client {
    let config = ClientConfig {
        retries,
        ..ClientConfig::default()
    };
    Client::new(config, Arc::new(NoCredentials)).unwrap()
}

fn settings() -> IndexSettings {
    IndexSettings {
        versions: Versions::V2,
        suffix: "-soci".to_owned(),
        min_image_size: 0,
        convert: ConvertOptions {
            min_layer_size: 0,
            span_size: 128 << 10,
            platforms: Platforms::All,
            ..ConvertOptions::default()
        },
    }
}

fn indexer(settings: IndexSettings) -> Indexer {
    Indexer::new(client(), settings)
}

/// A registry with [`small_image`] as `app:1`.
struct Bench {
    registry: Registry,
    layout: tempfile::TempDir,
    image: OciImage,
    digest: Digest,
}

impl Bench {
    fn start() -> Self {
        let (registry, layout) = (Registry::start().unwrap(), tempfile::tempdir().unwrap());
        let image = small_image(layout.path(), "1").unwrap();
        let pushed = registry.push_layout(layout.path(), "1", "app").unwrap();
        Self {
            registry,
            layout,
            image,
            digest: pushed.digest,
        }
    }

    fn push(&self) -> Push {
        push(&self.registry.address().to_string(), "1", self.digest)
    }

    async fn load(&self, name: &str) -> Image {
        let reference: Reference = self.registry.reference(name).parse().unwrap();
        Image::load(&RegistrySource::new(client(), reference))
            .await
            .unwrap()
    }
}

/// For tests with a proxy, which has a runtime of its own.
fn wait(work: impl Future<Output = Result<Outcome, Failure>>) -> Result<Outcome, Failure> {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

fn push(registry: &str, tag: &str, digest: Digest) -> Push {
    Push::new(registry, "app", Some(tag), Some(digest)).unwrap()
}

fn layers(image: &Image) -> Vec<Digest> {
    let manifests = image
        .entries
        .iter()
        .filter_map(|entry| match &entry.content {
            soci_index::EntryContent::Image { manifest, .. } => Some(manifest),
            _ => None,
        });
    manifests
        .flat_map(|manifest| manifest.layers.iter().map(|layer| layer.digest))
        .collect()
}

#[tokio::test]
async fn an_image_is_indexed_under_its_tag_with_the_suffix_and_a_second_time_only_looked_at() {
    let bench = Bench::start();
    let indexer = indexer(settings());
    let first = indexer.index(&bench.push()).await.unwrap();
    assert_eq!(first.layers, 3);
    assert_eq!(first.bytes, bench.image.compressed_size());
    assert_eq!(
        first.image.as_deref(),
        Some(&*bench.registry.reference("app:1-soci"))
    );
    let indexed = bench.load("app:1-soci").await;
    assert_eq!(layers(&indexed), layers(&bench.load("app:1").await));
    assert_eq!(indexed.entries.len(), 2, "the image and its index");
    let again = indexer.index(&bench.push()).await.unwrap();
    assert_eq!(
        again,
        Outcome {
            layers: 0,
            bytes: 0,
            ..first
        }
    );
    // Its own result, and what is not an image, are left alone.
    let result = push(&bench.push().registry, "other", again.image_digest.unwrap());
    let left = indexer.index(&result).await.unwrap_err();
    assert!(matches!(left, Failure::NotWanted(_)), "{left}");
}

#[tokio::test]
async fn both_versions_are_made_from_one_reading_of_the_layers() {
    let bench = Bench::start();
    let both = IndexSettings {
        versions: Versions::Both,
        ..settings()
    };
    let outcome = indexer(both.clone()).index(&bench.push()).await.unwrap();
    assert_eq!(outcome.bytes, bench.image.compressed_size());
    assert!(outcome.image_digest.is_some());
    assert_eq!(outcome.indexes.len(), 1);
    let reference: Reference = bench.registry.reference("app:1").parse().unwrap();
    let kind = Some(media_types::SOCI_INDEX_V1);
    let list = client()
        .referrers(&reference, bench.digest, kind)
        .await
        .unwrap();
    assert_eq!(
        list.iter().map(|one| one.digest).collect::<Vec<_>>(),
        outcome.indexes
    );
    let only = IndexSettings {
        versions: Versions::V1,
        ..both
    };
    let again = indexer(only).index(&bench.push()).await.unwrap();
    assert_eq!((again.bytes, again.indexes), (0, outcome.indexes));
}

#[tokio::test]
async fn the_digest_of_the_event_counts_wherever_its_tag_points() {
    let bench = Bench::start();
    let other = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new().layer(Layer::new().text("a", "newer"));
    image.write(other.path(), "1").unwrap();
    bench
        .registry
        .push_layout(other.path(), "1", "app")
        .unwrap();
    indexer(settings()).index(&bench.push()).await.unwrap();
    let indexed = bench.load("app:1-soci").await;
    assert_eq!(layers(&indexed).len(), 3, "the older image");
}

/// What a builder with a queue of its own makes of an event: the state of its job, and the reason.
async fn alone(indexer: Indexer, push: Push) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path()).unwrap();
    queue.add(&[push]).unwrap();
    let settings = PoolSettings {
        workers: NonZeroUsize::MIN,
        until_empty: true,
        ..PoolSettings::default()
    };
    let pool = WorkerPool::new(queue.clone(), Arc::new(indexer), settings);
    let pool = Arc::new(pool.await.unwrap());
    pool.run(CancellationToken::new()).await.unwrap();
    let job = queue.list(None, 1).unwrap().pop().unwrap();
    let reason = job.reason.unwrap_or_default();
    (job.state.name().to_owned(), reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn builders_without_a_common_queue_leave_the_tag_at_its_last_image() {
    let bench = Bench::start();
    let (old, folder) = (bench.push(), tempfile::tempdir().unwrap());
    let image = ImageBuilder::new().layer(Layer::new().text("a", "newer"));
    image.write(folder.path(), "1").unwrap();
    let moved = bench.registry.push_layout(folder.path(), "1", "app");
    let new = push(&old.registry, "1", moved.unwrap().digest);
    let last = layers(&bench.load("app:1").await);

    // The event of the older image is worked on when the tag has moved.
    let older = alone(indexer(settings()), old.clone()).await;
    assert_eq!(older, ("done".to_owned(), String::new()));
    assert_eq!(layers(&bench.load("app:1-soci").await), last);
    assert_eq!(alone(indexer(settings()), new).await.0, "done");
    // It comes once more, or late.
    let (state, reason) = alone(indexer(settings()), old.clone()).await;
    assert_eq!(state, "skipped");
    assert!(reason.contains("a later push of the tag"), "{reason}");
    assert_eq!(layers(&bench.load("app:1-soci").await), last);

    // Indexes of version 1 belong to one image each, so that the older one gets its own.
    let v1 = IndexSettings {
        versions: Versions::V1,
        ..settings()
    };
    assert_eq!(alone(indexer(v1), old).await.0, "done");
    let reference: Reference = bench.registry.reference("app:1").parse().unwrap();
    let kind = Some(media_types::SOCI_INDEX_V1);
    let list = client().referrers(&reference, bench.digest, kind).await;
    assert_eq!(list.unwrap().len(), 1);
}

#[test]
fn a_tag_that_moves_while_its_image_is_indexed_gets_both_images_one_after_the_other() {
    let bench = Bench::start();
    let proxy = Proxy::start(bench.registry.address()).unwrap();
    let layer = bench.image.layers.get(1).unwrap();
    // Until the tag has moved, a layer of the older image cannot be read to its end.
    let busy = Rule::always(Fault::status(503)).method("GET");
    proxy.inject(busy.blob(layer.digest));
    let patient = client_with(RetryPolicy {
        max_retries: 1_000_000,
        min_wait: Duration::from_millis(5),
        max_wait: Duration::from_millis(20),
    });
    let host = proxy.address().to_string();
    let old = push(&host, "1", bench.digest);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let job = runtime.spawn(alone(Indexer::new(patient, settings()), old));
    let deadline = Instant::now() + Duration::from_secs(120);
    while proxy.faults_injected() == 0 {
        assert!(Instant::now() < deadline, "the layer is not requested");
        std::thread::sleep(Duration::from_millis(5));
    }

    let folder = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new().layer(Layer::new().text("a", "newer"));
    image.write(folder.path(), "1").unwrap();
    let moved = bench.registry.push_layout(folder.path(), "1", "app");
    let new = push(&host, "1", moved.unwrap().digest);
    assert!(!job.is_finished());
    proxy.clear_faults();
    let ended = runtime.block_on(job).unwrap();
    assert_eq!(ended, ("done".to_owned(), String::new()));

    let stats = proxy.stats();
    assert!(stats.blob(layer.digest).bytes >= layer.size, "read whole");
    let puts = stats.of(|request| {
        request.method == "PUT"
            && request.path.ends_with("/manifests/1-soci")
            && request.status < 300
    });
    assert_eq!(
        puts.requests, 2,
        "the image of the event, and the newer one"
    );
    let (last, indexed) = runtime.block_on(async {
        let last = layers(&bench.load("app:1").await);
        (last, layers(&bench.load("app:1-soci").await))
    });
    assert_eq!(indexed, last);
    // The event of the newer image comes when its work is done.
    let outcome = runtime.block_on(indexer(settings()).index(&new)).unwrap();
    assert_eq!((outcome.bytes, outcome.layers), (0, 0));
}

#[tokio::test]
async fn small_images_and_other_platforms_are_left_alone() {
    let bench = Bench::start();
    let large = IndexSettings {
        min_image_size: 1 << 30,
        ..settings()
    };
    let error = indexer(large).index(&bench.push()).await.unwrap_err();
    assert!(
        matches!(&error, Failure::NotWanted(why) if why.contains("bytes")),
        "{error}"
    );
    let platforms = |names: &[&str]| {
        let mut settings = settings();
        let platforms: Vec<Platform> = names.iter().map(|name| name.parse().unwrap()).collect();
        settings.convert.platforms = Platforms::These(platforms);
        indexer(settings)
    };
    let error = platforms(&["linux/s390x"])
        .index(&bench.push())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Failure::NotWanted(why) if why.contains("linux/s390x")),
        "{error}"
    );
    // What the image has of the chosen platforms is indexed.
    let host = Platform::host().to_string();
    platforms(&["linux/s390x", &host])
        .index(&bench.push())
        .await
        .unwrap();
}

#[test]
fn a_poisoned_image_is_given_up_with_its_reason() {
    let bench = Bench::start();
    let proxy = Proxy::start(bench.registry.address()).unwrap();
    let layer = bench.image.layers.get(1).unwrap();
    let behind = push(&proxy.address().to_string(), "1", bench.digest);

    proxy.inject(Rule::always(Fault::CorruptBlob(layer.size / 2)).blob(layer.digest));
    let error = wait(indexer(settings()).index(&behind)).unwrap_err();
    assert!(matches!(&error, Failure::Permanent(_)), "{error}");

    // A layer whose zTOC takes far more than its size.
    let mut bomb = settings();
    bomb.convert.max_ztoc_size = Some(1 << 20);
    let folder = tempfile::tempdir().unwrap();
    let empty = |layer: Layer, number: u32| layer.text(&format!("directory/{number}"), "");
    let image = ImageBuilder::new().layer((0..20_000).fold(Layer::new(), empty));
    image.write(folder.path(), "bomb").unwrap();
    let pushed = bench
        .registry
        .push_layout(folder.path(), "bomb", "app")
        .unwrap();
    let event = push(&bench.registry.address().to_string(), "bomb", pushed.digest);
    let error = wait(indexer(bomb).index(&event)).unwrap_err();
    assert!(
        matches!(&error, Failure::Permanent(why) if why.contains("limit of 1048576")),
        "{error}"
    );

    let missing = push(
        &bench.registry.address().to_string(),
        "1",
        Digest::of(b"none"),
    );
    let error = wait(indexer(settings()).index(&missing)).unwrap_err();
    assert!(
        matches!(&error, Failure::Permanent(why) if why.contains("404")),
        "{error}"
    );
    drop(bench.layout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_does_not_end_is_given_up_and_holds_no_other_image_up() {
    use soci_testkit::fake::{Fake, With as _, status};
    let bench = Bench::start();
    let blobs = bench.layout.path().join("blobs/sha256");
    let manifest: Digest = bench.digest;
    let layers: Vec<Digest> = bench.image.layers.iter().map(|one| one.digest).collect();
    // A registry that has the image and does not stop after the last byte of a layer.
    let fake = Fake::start(move |_, request| {
        let (_, name) = request.path.rsplit_once('/')?;
        let digest: Option<Digest> = name.parse().ok();
        let reads = request.method == "GET" || request.method == "HEAD";
        let Some(digest) = digest.filter(|_| reads) else {
            return Some(status(404));
        };
        let content = bytes::Bytes::from(std::fs::read(blobs.join(digest.hex())).ok()?);
        if layers.contains(&digest) && request.method == "GET" {
            let endless = futures::stream::repeat(bytes::Bytes::from_static(&[0; 4096]));
            let body = futures::stream::once(std::future::ready(content)).chain(endless);
            let body = body.map(Ok::<_, std::io::Error>);
            return Some(status(200).body(axum::body::Body::from_stream(body)));
        }
        let kind = if digest == manifest {
            media_types::OCI_MANIFEST
        } else {
            "application/octet-stream"
        };
        Some(status(200).with("content-type", kind).body(content))
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path()).unwrap();
    let pushes = [push(&fake.host(), "1", bench.digest), bench.push()];
    queue.add(&pushes).unwrap();
    let pool_settings = PoolSettings {
        workers: NonZeroUsize::MIN,
        max_attempts: NonZeroU32::new(2).unwrap(),
        min_pause: Duration::from_millis(1),
        until_empty: true,
        ..PoolSettings::default()
    };
    let indexer = indexer(settings());
    let pool = WorkerPool::new(queue.clone(), Arc::new(indexer), pool_settings);
    let pool = Arc::new(pool.await.unwrap());
    pool.run(CancellationToken::new()).await.unwrap();
    let jobs = queue.list(None, 2).unwrap();
    let (good, endless) = (&jobs[0], &jobs[1]);
    assert_eq!(good.state.name(), "done", "{good:?}");
    assert_eq!(endless.state.name(), "dead");
    let reason = endless.reason.as_deref().unwrap();
    assert!(reason.contains("longer than announced"), "{reason}");
}

#[test]
fn a_registry_that_is_down_or_refuses_credentials_is_tried_again() {
    let mut bench = Bench::start();
    let proxy = Proxy::start(bench.registry.address()).unwrap();
    let behind = push(&proxy.address().to_string(), "1", bench.digest);
    for status in [401, 403, 429, 500, 503] {
        proxy.clear_faults();
        proxy.inject(Rule::always(Fault::status(status)));
        let error = wait(indexer(settings()).index(&behind)).unwrap_err();
        assert!(matches!(error, Failure::Transient(_)), "{status}: {error}");
    }
    bench.registry.kill().unwrap();
    let error = wait(indexer(settings()).index(&bench.push())).unwrap_err();
    assert!(matches!(error, Failure::Transient(_)), "{error}");
    bench.registry.start_again().unwrap();
    wait(indexer(settings()).index(&bench.push())).unwrap();
}

/// As distribution's registry does while another worker uploads the same zTOC.
#[test]
fn a_registry_that_does_not_see_an_uploaded_blob_yet_is_tried_again() {
    let bench = Bench::start();
    let proxy = Proxy::start(bench.registry.address()).unwrap();
    let unknown = Fault::Status {
        status: 400,
        headers: Vec::new(),
        body:
            r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#
                .to_owned(),
    };
    let put = |rule: Rule| rule.method("PUT").path("/manifests/").unwrap();
    proxy.inject(put(Rule::always(unknown.clone()).times(2)));
    let behind = push(&proxy.address().to_string(), "1", bench.digest);
    let outcome = wait(indexer(settings()).index(&behind)).unwrap();
    assert_eq!(outcome.bytes, bench.image.compressed_size(), "read once");
    proxy.inject(put(Rule::always(unknown)));
    let mut again = settings();
    again.convert.force = true;
    let error = wait(indexer(again).index(&behind)).unwrap_err();
    assert!(matches!(error, Failure::Transient(_)), "{error}");
}

#[test]
fn a_token_that_expires_in_the_middle_is_replaced() {
    use soci_testkit::proxy::Auth;
    let bench = Bench::start();
    let proxy = Proxy::start(bench.registry.address()).unwrap();
    proxy.demand(Auth::Bearer {
        user: None,
        uses: Some(2),
    });
    let behind = push(&proxy.address().to_string(), "1", bench.digest);
    let outcome = wait(indexer(settings()).index(&behind)).unwrap();
    assert_eq!(outcome.layers, 3);
    let tokens = proxy.stats().of(|request| request.path.contains("token"));
    assert!(tokens.requests > 3, "{tokens:?}");
}

#[tokio::test]
async fn catalogs_and_tags_are_polled() {
    use std::collections::{BTreeMap, BTreeSet};
    let bench = Bench::start();
    bench
        .registry
        .push_layout(bench.layout.path(), "1", "team/other")
        .unwrap();
    let host = bench.registry.address().to_string();
    let policy = soci_index_builder::PushPolicy {
        filters: "app:*,team/*:1".parse().unwrap(),
        registries: BTreeSet::from([host.clone()]),
        aliases: BTreeMap::new(),
        suffix: "-soci".to_owned(),
    };
    indexer(settings()).index(&bench.push()).await.unwrap();
    let found = soci_index_builder::poll(&client(), &host, &policy)
        .await
        .unwrap();
    let mut names: Vec<String> = found.iter().map(ToString::to_string).collect();
    names.sort();
    let expected = ["app:1", "team/other:1"].map(|name| format!("{host}/{name}@{}", bench.digest));
    assert_eq!(names, expected);
}

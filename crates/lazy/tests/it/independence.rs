//! What is stored needs no registry, whatever becomes of the registry, the tag or the credentials.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use soci_fetch::{FetchConfig, SpanFetcher};
use soci_layer::{LayerProvider as _, LayerRequest, Purpose};
use soci_lazy::{LazyConfig, LazyLayers};
use soci_oci::{Digest, media_types};
use soci_registry::NoCredentials;
use soci_testkit::{Content, Fault, Rule};
use soci_ztoc::{BuildOptions, Compression, Ztoc, build};

use crate::large_ztoc::{alone, world};
use crate::provider::{World, check_contents, is_stored, unmount};

pub(crate) const FILES: u64 = 8;
const FILE: u64 = 300_000;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn content(file: u64) -> Vec<u8> {
    let noise = Content::Noise {
        seed: file + 1,
        length: FILE,
    };
    noise.to_vec()
}

/// A layer of files of several spans each.
pub(crate) fn layer() -> (Vec<u8>, Ztoc) {
    layer_of(0..FILES, 64 << 10)
}

fn layer_of(files: impl Iterator<Item = u64>, span_size: u64) -> (Vec<u8>, Ztoc) {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(FILE);
        header.set_mode(0o644);
        let (name, content) = (format!("f{file}"), content(file));
        builder
            .append_data(&mut header, name, &content[..])
            .unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let options = BuildOptions {
        span_size,
        ..BuildOptions::default()
    };
    let built = build(&tar[..], Compression::Uncompressed, options).unwrap();
    (tar, built.ztoc)
}

/// A process that fetches nothing ahead of reads.
pub(crate) fn process(world: &World) -> (Arc<LazyLayers>, Arc<SpanFetcher>) {
    process_with(world, Duration::from_secs(60))
}

/// The same with this time for a read.
fn process_with(world: &World, read_timeout: Duration) -> (Arc<LazyLayers>, Arc<SpanFetcher>) {
    let mut config = LazyConfig::default();
    config.profiles.enable = false;
    let fetch = FetchConfig {
        max_readahead: 0,
        read_timeout,
        negative_backoff: Duration::ZERO,
        ..FetchConfig::default()
    };
    let client = World::client_with(Arc::new(NoCredentials));
    world.lazy_through(client, config, fetch)
}

/// Ends a process and its mounts as a reboot does.
pub(crate) async fn end(
    lazy: Arc<LazyLayers>,
    fetcher: Arc<SpanFetcher>,
    mounted: &[&LayerRequest],
) {
    is_stored(&fetcher).await;
    lazy.leave();
    for request in mounted {
        unmount(&lazy, &request.mountpoint).await;
    }
    fetcher.shutdown().await;
    lazy.flush().await;
}

pub(crate) async fn restore(lazy: &LazyLayers, request: &LayerRequest) {
    let request = LayerRequest {
        purpose: Purpose::Restore,
        ..request.clone()
    };
    lazy.restore(request).await.unwrap();
}

pub(crate) async fn read(path: PathBuf) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    })
    .await
    .unwrap()
}

/// Publishes another manifest of the image under its tag. Returns its digest.
async fn move_tag(world: &World) -> Digest {
    let client = World::client_with(Arc::new(NoCredentials));
    let (_, manifest) = client
        .manifest(&world.reference, world.image.manifest)
        .await
        .unwrap();
    let moved = [&manifest[..], b"\n"].concat();
    let digest = Digest::of(&moved);
    let moved = client.push_manifest(&world.reference, media_types::OCI_MANIFEST, moved.into());
    moved.await.unwrap();
    digest
}

/// Faults of a registry that is away, or does not serve the image any more.
fn troubles() -> [(&'static str, Fault); 5] {
    let busy = Fault::Status {
        status: 429,
        headers: vec![("Retry-After".to_owned(), "120".to_owned())],
        body: String::new(),
    };
    [
        ("it is away", Fault::Reset),
        ("the credentials have expired", Fault::status(401)),
        ("the account was revoked", Fault::status(403)),
        ("the image was removed there", Fault::status(404)),
        ("it throttles", busy),
    ]
}

/// Reads a file from the daemon: the kernel forgets what it has of it.
async fn read_uncached(path: PathBuf) -> std::io::Result<Vec<u8>> {
    let file = File::open(&path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    read(path).await
}

#[test]
fn an_image_whose_tag_has_moved_is_mounted_as_the_client_resolved_it() {
    world(vec![layer()]).test(async |world| {
        move_tag(world).await;
        world.proxy.reset_stats();
        let request = alone(world, 0, "a");
        let (lazy, fetcher) = process(world);
        lazy.mount(request.clone()).await.unwrap();
        assert!(read(request.mountpoint.join("f0")).await.unwrap() == content(0));
        let tag = format!("/manifests/{}", world.reference.tag().unwrap());
        let log = world.proxy.stats().log;
        assert!(
            !log.iter().any(|request| request.path.ends_with(&tag)),
            "{log:?}"
        );
        end(lazy, fetcher, &[&request]).await;
    });
}

#[test]
fn a_complete_image_is_served_by_the_same_mount_whatever_becomes_of_its_registry_and_tag() {
    world(vec![layer()]).test(async |world| {
        let (lazy, _fetcher) = process(world);
        let request = alone(world, 0, "a");
        lazy.mount(request.clone()).await.unwrap();
        let all = async |mountpoint: &Path, case: &str| {
            for file in 0..FILES {
                let read = read_uncached(mountpoint.join(format!("f{file}"))).await;
                assert!(read.unwrap() == content(file), "{case}");
            }
        };
        all(&request.mountpoint, "at first").await;
        let stored = async {
            while lazy.mounts()[0].fetched < lazy.mounts()[0].size {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, stored).await.unwrap();
        let device = || fs::metadata(&request.mountpoint).unwrap().dev();
        let mounted = device();
        let undisturbed = async |case: &str| {
            world.proxy.reset_stats();
            all(&request.mountpoint, case).await;
            let stats = world.proxy.stats();
            assert_eq!(stats.total().requests, 0, "{case}: {:?}", stats.log);
            let mount = lazy.mounts().into_iter().next().unwrap();
            assert_eq!(mount.mountpoint, request.mountpoint, "{case}");
            assert_eq!((mount.error, mount.is_served), (None, true), "{case}");
            assert_eq!(device(), mounted, "{case}: it was mounted again");
        };
        for (case, fault) in troubles() {
            world.proxy.inject(Rule::always(fault));
            undisturbed(case).await;
            world.proxy.clear_faults();
            undisturbed("it is back").await;
        }

        // The tag moves, and is pulled: another image, with the same layer.
        let moved = move_tag(world).await;
        undisturbed("its tag has moved").await;
        let mut other = alone(world, 0, "b");
        let label = "containerd.io/snapshot/cri.manifest-digest".to_owned();
        other.labels.insert(label, moved.to_string());
        lazy.mount(other.clone()).await.unwrap();
        let log = world.proxy.stats().log;
        assert!(log.iter().all(|request| request.range.is_none()), "{log:?}");
        all(&other.mountpoint, "the image that the tag names now").await;
        undisturbed("the tag was pulled again").await;
        world.proxy.inject(Rule::always(Fault::status(401)));
        undisturbed("and the credentials have expired").await;
        // That image goes.
        unmount(&lazy, &other.mountpoint).await;
        undisturbed("the other image was removed").await;
        unmount(&lazy, &request.mountpoint).await;
    });
}

#[test]
fn what_is_stored_is_read_whatever_becomes_of_the_registry_and_the_rest_once_it_is_back() {
    world(vec![layer()]).test(async |world| {
        let request = alone(world, 0, "a");
        let path = |file: u64| request.mountpoint.join(format!("f{file}"));
        let (lazy, fetcher) = process(world);
        lazy.mount(request.clone()).await.unwrap();
        assert!(read(path(0)).await.unwrap() == content(0));
        end(lazy, fetcher, &[&request]).await;

        move_tag(world).await;
        for (unread, (case, fault)) in (1..).zip(troubles()) {
            world.proxy.inject(Rule::always(fault));
            world.proxy.reset_stats();
            // A registry that throttles is waited for until then.
            let (lazy, fetcher) = process_with(world, Duration::from_secs(5));
            restore(&lazy, &request).await;
            assert!(read(path(0)).await.unwrap() == content(0), "{case}");
            let stats = world.proxy.stats();
            assert_eq!(stats.total().requests, 0, "{case}: {:?}", stats.log);

            let error = read(path(unread)).await.unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(rustix::io::Errno::IO.raw_os_error()),
                "{case}: {error}"
            );
            assert!(read(path(0)).await.unwrap() == content(0), "{case}");
            // The same mount serves the rest once the registry does.
            world.proxy.clear_faults();
            let again = async || {
                loop {
                    if let Ok(bytes) = read(path(unread)).await {
                        return bytes;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let bytes = tokio::time::timeout(PATIENCE, again()).await.expect(case);
            assert!(bytes == content(unread), "{case}");
            end(lazy, fetcher, &[&request]).await;
        }
    });
}

/// The index of two images goes with the last of them, also from memory: it is found for the next
/// pull of either, and stored again.
#[test]
fn an_index_of_two_images_goes_with_the_last_and_is_stored_again_for_the_next() {
    let world = World::new("kinds", "soci-v2");
    let layout = world.root.path().join("layout");
    let registry = &world.registry;
    registry.push_layout(&layout, "kinds", "other").unwrap();
    world.test(async |world| {
        let (lazy, fetcher) = process(world);
        let single = |mountpoint: &str| alone(world, 0, mountpoint);
        let of_other = |mountpoint: &str| {
            let mut request = single(mountpoint);
            let label = "containerd.io/snapshot/cri.image-ref".to_owned();
            let reference = world.proxy.reference("other:kinds");
            request.labels.insert(label, reference);
            request
        };
        let stored = || {
            let root = world.root.path().join("daemon");
            let entries = |path: &str| {
                let entries = fs::read_dir(root.join(path)).into_iter().flatten();
                entries
                    .map(|entry| entry.unwrap().path())
                    .collect::<Vec<_>>()
            };
            (entries("soci/images"), entries("content/blobs/sha256"))
        };
        for order in [[0, 1], [1, 0]] {
            let both = [single("a"), of_other("b")];
            for request in &both {
                lazy.mount(request.clone()).await.unwrap();
            }
            assert_eq!((stored().0.len(), stored().1.len()), (2, 1));
            unmount(&lazy, &both[order[0]].mountpoint).await;
            assert_eq!(stored().1.len(), 1, "the other image uses it");
            unmount(&lazy, &both[order[1]].mountpoint).await;
            assert_eq!(stored(), (Vec::new(), Vec::new()));
        }

        // Either is complete after that, and starts without a registry.
        let both = [single("c"), of_other("d")];
        for request in &both {
            lazy.mount(request.clone()).await.unwrap();
        }
        check_contents(both[0].mountpoint.clone()).await;
        end(lazy, fetcher, &[&both[0], &both[1]]).await;
        world.proxy.inject(Rule::always(Fault::Reset));
        world.proxy.reset_stats();
        let (lazy, _fetcher) = process(world);
        for request in &both {
            restore(&lazy, request).await;
            check_contents(request.mountpoint.clone()).await;
        }
        let stats = world.proxy.stats();
        assert_eq!(stats.total().requests, 0, "{:?}", stats.log);
        // One is removed, and restored layers of the other stay.
        unmount(&lazy, &both[0].mountpoint).await;
        check_contents(both[1].mountpoint.clone()).await;
        unmount(&lazy, &both[1].mountpoint).await;
        assert_eq!(stored(), (Vec::new(), Vec::new()));
    });
}

/// An image that is stored is mounted again, for another namespace, a tag or after its profile is
/// gone: the registry is not asked what is to be fetched first either.
#[test]
fn an_image_that_is_stored_is_mounted_again_without_a_request() {
    world(vec![layer(), layer_of_other()]).test(async |world| {
        let mut config = LazyConfig::default();
        // A start ends with its first read.
        config.profiles.quiet = Duration::ZERO;
        let client = World::client_with(Arc::new(NoCredentials));
        let (lazy, _fetcher) = world.lazy_through(client, config, FetchConfig::default());
        let looked_up = || {
            let log = world.proxy.stats().log;
            let mut requests = log.iter();
            requests.any(|request| request.path.contains("/referrers/"))
        };
        let until = async |what: &str, done: &dyn Fn() -> bool| {
            let wait = async {
                while !done() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, wait).await.expect(what);
        };
        let both = [0, 1].map(|at| alone(world, at, &format!("first-{at}")));
        for request in &both {
            lazy.mount(request.clone()).await.unwrap();
        }
        // The control: it is asked at the first pull.
        until("a look-up of a profile", &looked_up).await;
        for request in &both {
            for file in 0..FILES {
                read(request.mountpoint.join(format!("f{file}")))
                    .await
                    .unwrap();
            }
        }
        let complete = || {
            lazy.mounts()
                .iter()
                .all(|mount| mount.fetched == mount.size)
        };
        until("stored", &complete).await;
        let recorded = async || {
            while lazy.profiles().await.counts.recorded == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, recorded()).await.unwrap();

        // Without what was recorded.
        let profiles = world.root.path().join("daemon/soci/profiles");
        let recordings = fs::read_dir(&profiles).unwrap();
        let recordings = recordings.map(|file| file.unwrap().path());
        for file in recordings.filter(|path| path.is_file()) {
            fs::remove_file(file).unwrap();
        }
        world.proxy.reset_stats();
        let again = [0, 1].map(|at| {
            let mut request = alone(world, at, &format!("again-{at}"));
            request.namespace = "other".to_owned();
            let label = "containerd.io/snapshot/cri.image-ref".to_owned();
            let reference = world.reference.to_string().replace(":large", ":moved");
            request.labels.insert(label, reference);
            request
        });
        for request in &again {
            lazy.mount(request.clone()).await.unwrap();
            let first = read(request.mountpoint.join("f0")).await.unwrap();
            assert_eq!(first.len() as u64, FILE);
        }
        // Its start has ended as well: no request of it can follow.
        let recorded_again = async || {
            while lazy.profiles().await.counts.recorded < 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, recorded_again())
            .await
            .unwrap();
        let stats = world.proxy.stats();
        assert_eq!(stats.total().requests, 0, "{:?}", stats.log);
        for request in both.iter().chain(&again) {
            unmount(&lazy, &request.mountpoint).await;
        }
    });
}

/// A layer with the same files in another order.
fn layer_of_other() -> (Vec<u8>, Ztoc) {
    let other = layer_of((0..FILES).rev(), BuildOptions::default().span_size);
    assert_ne!(Digest::of(&other.0), Digest::of(&layer().0));
    other
}

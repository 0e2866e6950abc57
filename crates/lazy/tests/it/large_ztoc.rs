//! Layers whose zTOC is large or hostile: what they cost is limited, and they hold up no other.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use soci_layer::{IdMaps, IdRange, LayerProvider, LayerRequest, Purpose, View};
use soci_lazy::{LazyConfig, LazyLayers, MemoryLimits};
use soci_oci::{Descriptor, Digest, annotations, media_types};
use soci_testkit::{Proxy, Registry, TestRoot};
use soci_ztoc::soci_index::{IndexVersion, SociIndex, ZtocDescriptor};
use soci_ztoc::{BuildOptions, Checkpoints, Compression, TarZinfo, Ztoc, build};

use crate::provider::{GoldenImage, World};

const SPAN: u64 = 4 << 20;
/// How often a moment in the middle of other work is tried to be met.
const ATTEMPTS: usize = 20;

/// A tar of one file, and its zTOC.
pub(crate) fn small(name: &str) -> (Vec<u8>, Ztoc) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, name, &b"data"[..])
        .unwrap();
    let tar = builder.into_inner().unwrap();
    let options = BuildOptions::default();
    let ztoc = build(&tar[..], Compression::Uncompressed, options)
        .unwrap()
        .ztoc;
    (tar, ztoc)
}

/// The zTOC of a tar of empty files that takes long to read. The layer itself is never read.
fn large(files: u64) -> (Vec<u8>, Ztoc) {
    let (tar, mut ztoc) = small("file");
    let entry = ztoc.toc[0].clone();
    ztoc.toc = (0..files)
        .map(|at| {
            let mut entry = entry.clone();
            entry.name = format!("folder{}/file{at}", at % 1000).into_bytes();
            entry.uncompressed_offset = (at + 1) * 512;
            entry.uncompressed_size = 0;
            entry
        })
        .collect();
    let size = (files + 2) * 512;
    ztoc.uncompressed_archive_size = size;
    ztoc.compressed_archive_size = size;
    ztoc.compression.span_digests = (0..size.div_ceil(SPAN))
        .map(|at| Digest::of(&at.to_le_bytes()))
        .collect();
    ztoc.compression.checkpoints = Checkpoints::Tar(TarZinfo {
        version: 2,
        span_size: SPAN,
        size,
    });
    (tar, ztoc)
}

/// An image of these layers, with a SOCI index of these zTOCs, in a registry.
pub(crate) fn world(layers: Vec<(Vec<u8>, Ztoc)>) -> World {
    let root = TestRoot::new().unwrap();
    let layout = root.dir("layout").unwrap();
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let descriptor = Descriptor::of(media_type, bytes);
        fs::write(blobs.join(descriptor.digest.hex()), bytes).unwrap();
        descriptor
    };
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    let (mut descriptors, mut ztocs) = (Vec::new(), Vec::new());
    for (tar, ztoc) in layers {
        let layer = put(TAR, &tar);
        let blob = ztoc.encode();
        put(media_types::ZTOC, &blob);
        ztocs.push(ZtocDescriptor::new(&blob, layer.digest, TAR, SPAN, false));
        descriptors.push(layer);
    }
    // A second zTOC of a layer is ignored.
    let mut again = ztocs.last().unwrap().clone();
    again.descriptor.digest = Digest::of(b"nowhere");
    let listed = ztocs.iter().cloned().chain([again]).collect();
    let index = SociIndex::new(IndexVersion::V2, listed, Vec::new(), None, [].into());
    assert_eq!(index.unused_ztocs(), 1);
    put("application/vnd.amazon.soci.index.v2+json", b"{}");
    // The registry would not take an index of a blob that it does not have.
    put(media_types::ZTOC, b"nowhere");
    let index = put(media_types::OCI_MANIFEST, &index.encode());
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config = put("application/vnd.oci.image.config.v1+json", config);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_types::OCI_MANIFEST,
        "config": config,
        "layers": descriptors,
        "annotations": {annotations::INDEX_DIGEST: index.digest.to_string()},
    });
    let manifest = put(media_types::OCI_MANIFEST, manifest.to_string().as_bytes());
    let list = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest, index],
    });
    let list = put(
        "application/vnd.oci.image.index.v1+json",
        list.to_string().as_bytes(),
    );
    let top = serde_json::json!({"schemaVersion": 2, "manifests": [list]});
    fs::write(layout.join("index.json"), top.to_string()).unwrap();
    let registry = Registry::start().unwrap();
    registry.push_layout(&layout, "large", "large").unwrap();
    let proxy = Proxy::start(registry.address()).unwrap();
    World {
        reference: proxy.reference("large:large").parse().unwrap(),
        root,
        registry,
        proxy,
        image: GoldenImage {
            manifest: manifest.digest,
            sizes: descriptors.iter().map(|layer| layer.size).collect(),
            layers: descriptors.iter().map(|layer| layer.digest).collect(),
        },
        meters: Arc::new(soci_telemetry::Meters::new().unwrap()),
        store: parking_lot::Mutex::default(),
    }
}

/// The request of one layer, which names none above it.
pub(crate) fn alone(world: &World, layer: usize, mountpoint: &str) -> LayerRequest {
    let mut request = world.request(layer, mountpoint);
    let own = world.image.layers[layer].to_string();
    let key = "containerd.io/snapshot/cri.image-layers".to_owned();
    request.labels.insert(key, own);
    let key = "containerd.io/snapshot/remote/image.layers.size".to_owned();
    let own = world.image.sizes[layer].to_string();
    request.labels.insert(key, own);
    request
}

#[test]
fn a_layer_that_takes_long_to_build_holds_up_no_other() {
    let layers = vec![large(200_000), small("b"), small("c")];
    world(layers).test(async |world| {
        let lazy = world.lazy(LazyConfig {
            mount_timeout: Duration::from_secs(600),
            ..LazyConfig::default()
        });
        let mount = |lazy: &Arc<LazyLayers>, request: LayerRequest| {
            let lazy = lazy.clone();
            tokio::spawn(async move { lazy.mount(request).await })
        };
        // On a busy machine the others may happen to take longer than it. Had they waited for it, they always would.
        let mut held_up_none = false;
        for _ in 0..ATTEMPTS {
            let before = alone(world, 2, "before");
            lazy.mount(before.clone()).await.unwrap();
            let slow = mount(&lazy, alone(world, 0, "slow"));
            // Its folder is there before its tree is built.
            while world.stored() < 2 && !slow.is_finished() {
                tokio::task::yield_now().await;
            }
            // A removal and an opening beside it.
            lazy.unmount(&before.mountpoint).await.unwrap();
            let quick = alone(world, 1, "quick");
            lazy.mount(quick.clone()).await.unwrap();
            held_up_none = !slow.is_finished();
            slow.await.unwrap().unwrap();
            for mountpoint in [quick.mountpoint, world.root.path().join("slow")] {
                lazy.unmount(&mountpoint).await.unwrap();
            }
            // What is opened ahead of its Prepare, or looked at, is closed a moment later.
            let closed = async {
                while world.stored() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            let closed = tokio::time::timeout(Duration::from_secs(60), closed);
            closed.await.expect("layers stay stored");
            if held_up_none {
                break;
            }
        }
        assert!(held_up_none, "the others waited for it");
    });
}

#[test]
fn a_layer_that_an_index_lists_twice_is_opened_once_ahead_of_its_prepare() {
    world(vec![small("a"), small("b")]).test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let (below, above) = (world.request(0, "a"), alone(world, 1, "b"));
        lazy.mount(below.clone()).await.unwrap();
        while world.stored() < 2 {
            tokio::task::yield_now().await;
        }
        lazy.mount(above.clone()).await.unwrap();
        let log = world.proxy.stats().log;
        let requests: Vec<_> = log.iter().map(|request| &request.path).collect();
        let second = Digest::of(b"nowhere").to_string();
        assert!(
            !requests.iter().any(|path| path.ends_with(&second)),
            "{requests:?}"
        );
        for request in [below, above] {
            lazy.unmount(&request.mountpoint).await.unwrap();
        }
        assert_eq!(world.stored(), 0);
    });
}

#[test]
fn work_on_this_machine_may_take_longer_than_the_registry() {
    world(vec![large(20_000)]).test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let before = alone(world, 0, "before");
        lazy.mount(before.clone()).await.unwrap();
        // As if it had been killed: what it has stored is there, and the tree is built again.
        drop(lazy);
        let lazy = world.lazy(LazyConfig {
            mount_timeout: Duration::from_millis(1),
            ..LazyConfig::default()
        });
        let request = alone(world, 0, "after");
        lazy.mount(request.clone()).await.unwrap();
        lazy.unmount(&request.mountpoint).await.unwrap();
    });
}

/// The number of file trees of layers in use that were built to their end.
fn trees_built(world: &World) -> u64 {
    let text = world.meters.text(&[]).unwrap();
    let counts = text.lines().filter(|line| {
        line.contains("operation_type=\"init_metadata_store\"") && line.contains("_count{")
    });
    let count = |line: &str| -> u64 { line.rsplit(' ').next().unwrap().parse().unwrap() };
    counts.map(count).sum()
}

#[test]
fn a_mount_that_is_given_up_ends_its_work_and_leaves_nothing_stored() {
    world(vec![large(200_000)]).test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        let mut has_ended = false;
        for _ in 0..ATTEMPTS {
            let request = alone(world, 0, "slow");
            let mount = lazy.mount(request.clone());
            let was_given_up = {
                tokio::pin!(mount);
                loop {
                    tokio::select! {
                        biased;
                        mounted = &mut mount => {
                            mounted.unwrap();
                            break false;
                        }
                        () = tokio::task::yield_now() => {}
                    }
                    if world.stored() > 0 {
                        break true;
                    }
                }
            };
            // On a busy machine this thread may not look while it is under way.
            if !was_given_up {
                lazy.unmount(&request.mountpoint).await.unwrap();
                continue;
            }
            // Begins when the work that was given up has ended, one way or the other.
            let again = alone(world, 0, "again");
            lazy.mount(again.clone()).await.unwrap();
            // It may have been given up too late.
            has_ended = trees_built(world) == 1;
            lazy.unmount(&again.mountpoint).await.unwrap();
            assert_eq!(world.stored(), 0);
            if has_ended {
                break;
            }
        }
        assert!(has_ended, "its tree was built although no caller was left");
    });
}

#[test]
fn a_layer_over_a_limit_is_refused_with_the_key_and_leaves_nothing() {
    world(vec![large(20_000)]).test(async |world| {
        let limits = MemoryLimits::default();
        for (limits, key) in [
            (
                MemoryLimits {
                    ztoc: 1 << 20,
                    ..limits
                },
                "limits.ztoc_bytes",
            ),
            (
                MemoryLimits {
                    tree: 512 << 10,
                    ..limits
                },
                "limits.tree_bytes",
            ),
            (
                MemoryLimits {
                    image_trees: 512 << 10,
                    ..limits
                },
                "limits.image_tree_bytes",
            ),
            (
                MemoryLimits {
                    total_trees: 512 << 10,
                    ..limits
                },
                "limits.total_tree_bytes",
            ),
        ] {
            let lazy = world.lazy(LazyConfig {
                limits,
                ..LazyConfig::default()
            });
            let request = alone(world, 0, "a");
            let refusal = lazy.mount(request.clone()).await.unwrap_err();
            let why = soci_errors::chain(&refusal);
            assert_eq!(refusal.code(), "failed", "{why}");
            assert!(why.contains(key), "{why}");
            assert_eq!(world.stored(), 0, "{key}");
        }
        let lazy = world.lazy(LazyConfig::default());
        let request = alone(world, 0, "a");
        lazy.mount(request.clone()).await.unwrap();
        lazy.unmount(&request.mountpoint).await.unwrap();
    });
}

#[test]
fn a_layer_with_a_damaged_ztoc_counts_as_a_failed_read() {
    let damaged = |name: &str| {
        let (tar, mut ztoc) = small(name);
        ztoc.toc[0].uncompressed_size = i64::MAX as u64;
        (tar, ztoc)
    };
    world(vec![damaged("a"), damaged("b"), small("c")]).test(async |world| {
        let lazy = world.lazy(LazyConfig::default());
        for layer in [0, 1] {
            let refusal = lazy.mount(alone(world, layer, "damaged")).await;
            let why = soci_errors::chain(&refusal.unwrap_err());
            assert!(why.contains("the zTOC is damaged"), "{why}");
        }
        let sound = alone(world, 2, "sound");
        lazy.mount(sound.clone()).await.unwrap();
        let text = world.meters.text(&[]).unwrap();
        let count = |layer: &str, operation: &str| {
            let labels = format!("layer=\"{layer}\",operation_type=\"{operation}\"}} ");
            let line = text.lines().find(|line| line.contains(&labels));
            line.map(|line| line.rsplit(' ').next().unwrap().to_owned())
        };
        for (layer, times) in [(0, Some("1")), (1, Some("1")), (2, None)] {
            let digest = world.image.layers[layer].to_string();
            let counted = count(&digest, "fuse_file_read_failure_count");
            assert_eq!(counted.as_deref(), times, "{text}");
        }
        let period = count("", "fuse_failure_state");
        assert_eq!(period.as_deref(), Some("1"), "{text}");
        lazy.unmount(&sound.mountpoint).await.unwrap();
    });
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib * 1024
}

/// Environment variable of the process in which the memory is measured.
const ALONE: &str = "SOCI_TEST_TREES_ALONE";

/// Runs in a process of its own: tests beside it build trees as well.
#[test]
fn fifty_containers_in_user_namespaces_share_the_tree_of_a_layer() {
    if std::env::var_os(ALONE).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("large_ztoc::fifty_containers_in_user_namespaces_share_the_tree_of_a_layer")
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{output:?}");
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    const FILES: u64 = 200_000;
    // What one tree takes at least: 40 bytes and a name for each file.
    const TREE: u64 = FILES * 50;
    world(vec![large(FILES)]).test(async |world| {
        let lazy = world.lazy(LazyConfig {
            mount_timeout: Duration::from_secs(600),
            ..LazyConfig::default()
        });
        let own = alone(world, 0, "own");
        lazy.mount(own.clone()).await.unwrap();
        let mapped = |number: u32| {
            let range = IdRange {
                container: 0,
                host: 100_000 * (number + 1),
                length: 65_536,
            };
            let id_maps = Some(IdMaps {
                uid: vec![range],
                gid: vec![range],
            });
            LayerRequest {
                purpose: Purpose::SecondView,
                view: View {
                    id_maps,
                    ..View::default()
                },
                snapshot: own.snapshot.clone(),
                ..alone(world, 0, &format!("pod-{number}"))
            }
        };
        let before = resident();
        let pods: Vec<LayerRequest> = (0..50).map(mapped).collect();
        for (number, pod) in pods.iter().enumerate() {
            lazy.mount(pod.clone()).await.unwrap();
            let folder = pod.mountpoint.join("folder7");
            let owner = tokio::task::spawn_blocking(move || {
                assert_eq!(fs::read_dir(&folder).unwrap().count(), 200);
                folder.join("file7").metadata().unwrap().uid()
            });
            let host = 100_000 * (u32::try_from(number).unwrap() + 1);
            assert_eq!(owner.await.unwrap(), host);
        }
        // Fifty copies would be far more.
        let grown = resident().saturating_sub(before);
        assert!(grown < 20 * TREE, "{} KiB more", grown >> 10);
        for request in pods.iter().chain([&own]) {
            lazy.unmount(&request.mountpoint).await.unwrap();
        }
        assert_eq!(world.stored(), 0);
    });
}

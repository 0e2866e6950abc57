//! Layers from a real registry, also one that misbehaves, into a directory. Needs root,
//! docker-registry and containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use soci_oci::{Descriptor, Digest, Index, Manifest};
use soci_registry::{Client, ClientConfig, NoCredentials};
use soci_testkit::image::OciImage;
use soci_testkit::{
    Containerd, ContainerdOptions, Content, Fault, ImageBuilder, Layer, LayerCompression, Proxy,
    Registry, Rule, TestRoot, Throttle,
};
use soci_unpack::{
    ApplyOptions, LayerOfImage, Target, UnpackConfig, UnpackError, Unpacked, Unpacker,
};
use tokio_util::sync::CancellationToken;

pub(crate) struct World {
    pub(crate) image: OciImage,
    pub(crate) proxy: Proxy,
    registry: Registry,
    pub(crate) root: TestRoot,
}

/// More than one part of a download, of bytes that do not compress.
const LARGE: u64 = 20 << 20;

impl World {
    pub(crate) fn new(image: ImageBuilder) -> Self {
        let root = TestRoot::new().unwrap();
        let image = image.write(&root.dir("layout").unwrap(), "t").unwrap();
        Self::with(root, image)
    }

    fn with(root: TestRoot, image: OciImage) -> Self {
        let registry = Registry::start().unwrap();
        registry.push_layout(&image.dir, "t", "image").unwrap();
        let proxy = Proxy::start(registry.address()).unwrap();
        Self {
            image,
            proxy,
            registry,
            root,
        }
    }

    fn large() -> Self {
        let layer = Layer::new()
            .file(
                "large",
                Content::Noise {
                    seed: 7,
                    length: LARGE,
                },
            )
            .text("last", "last");
        Self::new(ImageBuilder::new().layer(layer))
    }

    fn unpacker(&self, containerd: Option<&Containerd>) -> Unpacker {
        self.unpacker_with(containerd, |_| {})
    }

    pub(crate) fn unpacker_with(
        &self,
        containerd: Option<&Containerd>,
        change: impl FnOnce(&mut UnpackConfig),
    ) -> Unpacker {
        let mut config = ClientConfig::default();
        config.retries.max_retries = 2;
        config.retries.min_wait = Duration::from_millis(5);
        config.retries.max_wait = Duration::from_millis(20);
        let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
        let mut config = UnpackConfig {
            containerd: containerd.map(|c| c.address().display().to_string()),
            ..UnpackConfig::new(self.root.path().join("unpack"))
        };
        change(&mut config);
        Unpacker::new(client, config).unwrap()
    }

    pub(crate) fn layer(&self, number: usize) -> LayerOfImage {
        LayerOfImage {
            namespace: "default".to_owned(),
            reference: self.proxy.reference("image:t").parse().unwrap(),
            manifest: self.image.manifest.digest,
            layer: self.image.layers[number].digest,
        }
    }

    /// Nothing is left of what was on its way.
    pub(crate) fn scratch_is_empty(&self) -> bool {
        fs::read_dir(self.root.path().join("unpack"))
            .unwrap()
            .next()
            .is_none()
    }
}

pub(crate) fn target(directory: &Path) -> Target {
    Target {
        directory: directory.to_owned(),
        options: ApplyOptions::default(),
    }
}

pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn unpack(world: &World, number: usize, into: &Path) -> Result<Unpacked, UnpackError> {
    let unpacker = world.unpacker(None);
    run(unpacker.unpack(
        &world.layer(number),
        target(into),
        &CancellationToken::new(),
    ))
}

#[test]
fn a_large_layer_is_fetched_in_parallel_ranges_and_verified() {
    let world = World::large();
    let folder = world.root.dir("fs").unwrap();
    let unpacked = unpack(&world, 0, &folder).unwrap();
    assert_eq!(unpacked.compressed_size, world.image.layers[0].size);
    let content = fs::read(folder.join("large")).unwrap();
    assert_eq!(content.len() as u64, LARGE);
    assert_eq!(fs::read(folder.join("last")).unwrap(), b"last");
    let asked = world.proxy.stats().blob(world.image.layers[0].digest);
    assert!(asked.requests > 1, "{asked:?}");
    assert!(world.scratch_is_empty());
}

#[test]
fn gzip_zstd_and_plain_layers_are_unpacked() {
    let plain = ImageBuilder::new()
        .layer_with(Layer::new().text("a", "plain"), LayerCompression::Plain)
        .layer(Layer::new().text("b", "gzip"));
    let world = World::new(plain);
    for (number, name, text) in [(0, "a", "plain"), (1, "b", "gzip")] {
        let folder = world.root.dir(name).unwrap();
        unpack(&world, number, &folder).unwrap();
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), text);
    }

    let layout =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/zstd-mixed/image");
    let read = |digest: Digest| fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap();
    let index: Index =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = index.manifests[0].clone();
    let parsed: Manifest = serde_json::from_slice(&read(manifest.digest)).unwrap();
    let root = TestRoot::new().unwrap();
    let tag = manifest
        .annotation(soci_oci::annotations::REF_NAME)
        .unwrap()
        .to_owned();
    let image = OciImage {
        dir: layout,
        tag: tag.clone(),
        manifest,
        layers: parsed.layers,
    };
    let registry = Registry::start().unwrap();
    registry.push_layout(&image.dir, &tag, "image").unwrap();
    let proxy = Proxy::start(registry.address()).unwrap();
    let world = World {
        image,
        proxy,
        registry,
        root,
    };
    let is_zstd = |layer: &Descriptor| layer.media_type.ends_with("+zstd");
    let zstd = world.image.layers.iter().position(is_zstd).unwrap();
    let folder = world.root.dir("fs").unwrap();
    // What is unpacked has the digest that the configuration says, or this is an error.
    unpack(&world, zstd, &folder).unwrap();
    assert!(fs::read_dir(&folder).unwrap().next().is_some());
}

#[test]
fn bytes_that_are_not_the_layers_are_never_unpacked() {
    let world = World::large();
    let digest = world.image.layers[0].digest;
    // Damaged once: fetched again.
    let folder = world.root.dir("once").unwrap();
    world.proxy.inject(
        Rule::always(Fault::CorruptBlob(9_000_000))
            .blob(digest)
            .times(3),
    );
    unpack(&world, 0, &folder).unwrap();
    assert_eq!(fs::metadata(folder.join("large")).unwrap().len(), LARGE);
    // Damaged for good: an error, and nothing is unpacked.
    let folder = world.root.dir("always").unwrap();
    world
        .proxy
        .inject(Rule::always(Fault::CorruptBlob(9_000_000)).blob(digest));
    let error = unpack(&world, 0, &folder).unwrap_err();
    assert!(error.to_string().contains("digest"), "{error}");
    assert!(fs::read_dir(&folder).unwrap().next().is_none());
    world.proxy.clear_faults();
    // A body that ends early is resumed where it broke off.
    let folder = world.root.dir("cut").unwrap();
    world
        .proxy
        .inject(Rule::always(Fault::Truncate(1 << 20)).blob(digest).times(3));
    unpack(&world, 0, &folder).unwrap();
    assert!(world.scratch_is_empty());
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let root = TestRoot::new().unwrap();
    let layer = |text: &str| ImageBuilder::new().layer(Layer::new().text("f", text));
    let dir = root.dir("layout").unwrap();
    let right = layer("right").write(&dir, "right").unwrap();
    let other = layer("other").write(&dir, "other").unwrap();
    // The manifest of one image with the configuration of the other.
    let read = |digest: Digest| fs::read(dir.join("blobs/sha256").join(digest.hex())).unwrap();
    let mut manifest: Manifest = serde_json::from_slice(&read(right.manifest.digest)).unwrap();
    let stranger: Manifest = serde_json::from_slice(&read(other.manifest.digest)).unwrap();
    manifest.config = stranger.config;
    let bytes = soci_oci::json::to_vec(&manifest).unwrap();
    let descriptor = Descriptor::of(soci_oci::media_types::OCI_MANIFEST, &bytes);
    fs::write(
        dir.join("blobs/sha256").join(descriptor.digest.hex()),
        &bytes,
    )
    .unwrap();
    let mut index: Index =
        serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    let mut entry = descriptor.clone();
    entry.annotations = [(soci_oci::annotations::REF_NAME.to_owned(), "t".to_owned())].into();
    index.manifests = vec![entry];
    fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    let image = OciImage {
        tag: "t".to_owned(),
        manifest: descriptor,
        ..right
    };
    let world = World::with(root, image);
    let folder = world.root.dir("fs").unwrap();
    let error = unpack(&world, 0, &folder).unwrap_err();
    assert!(matches!(error, UnpackError::DiffId { .. }), "{error}");
}

#[test]
fn a_full_disk_is_an_error_and_no_scratch_is_needed() {
    let world = World::large();
    let small = world.root.dir("small").unwrap();
    let mount = |source: &str, target: &Path| {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", source])
            .arg(target)
            .status();
        assert!(status.unwrap().success());
    };
    mount("small", &small);
    let error = unpack(&world, 0, &small).unwrap_err();
    assert!(matches!(error, UnpackError::Apply(_)), "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(fs::read_dir(&small).unwrap().next().is_none());
    // A compressed layer is never stored: room for the files is enough.
    let scratch = world.root.dir("unpack").unwrap();
    mount("scratch", &scratch);
    let folder = world.root.dir("fs").unwrap();
    unpack(&world, 0, &folder).unwrap();
    assert_eq!(fs::metadata(folder.join("large")).unwrap().len(), LARGE);
    assert!(world.scratch_is_empty());
}

#[test]
fn a_cancelled_download_ends_at_once_and_leaves_nothing() {
    let world = World::large();
    world.proxy.throttle(Throttle {
        per_response: Some(100_000),
        ..Throttle::default()
    });
    let folder = world.root.dir("fs").unwrap();
    let unpacker = Arc::new(world.unpacker(None));
    let (layer, into) = (world.layer(0), target(&folder));
    let digest = world.image.layers[0].digest;
    run(async {
        let cancel = CancellationToken::new();
        let unpacking = {
            let (unpacker, cancel) = (Arc::clone(&unpacker), cancel.clone());
            tokio::spawn(async move { unpacker.unpack(&layer, into, &cancel).await })
        };
        while world.proxy.stats().blob(digest).requests == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
        // At this rate the layer would take minutes.
        let ended = tokio::time::timeout(Duration::from_secs(100), unpacking).await;
        let error = ended.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, UnpackError::Cancelled), "{error}");
    });
    assert!(world.scratch_is_empty());
    assert!(fs::read_dir(&folder).unwrap().next().is_none());
}

#[test]
fn manifest_and_configuration_come_from_containerd_where_it_has_them() {
    let world = World::new(ImageBuilder::new().layer(Layer::new().text("f", "f")));
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let folder = world.root.dir("registry").unwrap();
    let unpacker = world.unpacker(Some(&containerd));
    // It has nothing yet: the registry is asked.
    let cancel = CancellationToken::new();
    run(unpacker.unpack(&world.layer(0), target(&folder), &cancel)).unwrap();
    let manifests = world.proxy.stats().manifests().requests;
    assert!(manifests > 0);

    let reference = world.registry.reference("image:t");
    containerd
        .ctr("default")
        .pull(&reference, "overlayfs")
        .unwrap();
    let folder = world.root.dir("containerd").unwrap();
    let unpacker = world.unpacker(Some(&containerd));
    run(unpacker.unpack(&world.layer(0), target(&folder), &cancel)).unwrap();
    assert_eq!(fs::read(folder.join("f")).unwrap(), b"f");
    assert_eq!(world.proxy.stats().manifests().requests, manifests);
}

#[test]
fn what_an_earlier_run_left_in_the_scratch_folder_is_removed_at_the_start() {
    let world = World::new(ImageBuilder::new().layer(Layer::new().text("f", "f")));
    let scratch = world.root.dir("unpack").unwrap();
    fs::create_dir(scratch.join("folder")).unwrap();
    fs::write(scratch.join("folder/file"), "left").unwrap();
    fs::write(scratch.join("file"), "left").unwrap();
    drop(world.unpacker(None));
    assert!(world.scratch_is_empty());
}

#[test]
fn a_layer_that_was_fetched_ahead_is_not_fetched_again() {
    let images = ["one", "two", "three"].map(|text| Layer::new().text("f", text));
    let image = images
        .into_iter()
        .fold(ImageBuilder::new(), ImageBuilder::layer);
    let world = World::new(image);
    let unpacker = world.unpacker(None);
    let asked = |number: usize| world.proxy.stats().blob(world.image.layers[number].digest);
    run(async {
        // More often than needed, and one that will fail.
        for _ in 0..3 {
            unpacker.fetch_ahead(world.layer(1));
        }
        let digest = world.image.layers[2].digest;
        world
            .proxy
            .inject(Rule::always(Fault::status(404)).blob(digest).times(1));
        unpacker.fetch_ahead(world.layer(2));
        let waiting = async {
            while asked(1).bytes < world.image.layers[1].size || asked(2).requests < 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting)
            .await
            .unwrap();
        for (number, text) in [(0, "one"), (1, "two"), (2, "three")] {
            let folder = world.root.dir(text).unwrap();
            unpacker
                .unpack(
                    &world.layer(number),
                    target(&folder),
                    &CancellationToken::new(),
                )
                .await
                .unwrap();
            assert_eq!(fs::read_to_string(folder.join("f")).unwrap(), text);
        }
    });
    assert_eq!((asked(0).requests, asked(1).requests), (1, 1));
    assert!(world.scratch_is_empty());
}

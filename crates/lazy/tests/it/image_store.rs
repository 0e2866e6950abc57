//! Lazy layers beside a containerd whose image store decides who may use them. Needs containerd.

use std::fs;

use serde_json::{Value, json};
use soci_containerd::{Content, Images, Namespace};
use soci_discovery::LazyRegistries;
use soci_fetch::FetchConfig;
use soci_layer::{LayerProvider as _, LayerRefusal, LayerRequest, UseRefusal};
use soci_lazy::{ImageStore, LazyConfig, LazyLayers};
use soci_oci::{Descriptor, Digest, annotations, media_types};
use soci_testkit::{Containerd, ContainerdOptions, Fault, Rule};

use crate::large_ztoc::{alone, small, world};
use crate::provider::{World, blocking};
use crate::verdict::{forged, use_of};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TARGET: &str = "containerd.io/snapshot.ref";
const EXPLICIT_INDEX: &str = "containerd.io/snapshot/remote/soci.index.digest";

/// A namespace of a private containerd.
struct Store {
    content: Content,
    images: Images,
}

impl Store {
    async fn new(containerd: &Containerd, namespace: &str) -> Self {
        let address = containerd.address().to_str().unwrap();
        let client = soci_containerd::Containerd::connect(address).await.unwrap();
        let space: Namespace = client.namespace(namespace).unwrap();
        Self {
            content: Content::new(&space),
            images: Images::new(&space),
        }
    }

    async fn put(&self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let blob = Descriptor::of(media_type, &bytes);
        // Kept although nothing refers to it.
        let labels = [("containerd.io/gc.root".to_owned(), "test".to_owned())];
        let put = self.content.put("blob", &blob, labels.into(), bytes.into());
        put.await.unwrap();
        blob
    }

    async fn put_json(&self, media_type: &str, value: &Value) -> Descriptor {
        self.put(media_type, value.to_string().into_bytes()).await
    }

    /// Stores an image of these layers, which are not compressed.
    async fn image(&self, layers: &[Value], annotations: Value) -> Descriptor {
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.put_json(CONFIG, &config).await;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_types::OCI_MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": annotations,
        });
        self.put_json(media_types::OCI_MANIFEST, &manifest).await
    }

    async fn index(&self, manifests: Vec<Descriptor>) -> Descriptor {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.put_json(INDEX, &index).await
    }
}

/// The layers of the image in the registry.
fn layers(world: &World) -> Vec<Value> {
    let layers = world.image.layers.iter().zip(&world.image.sizes);
    let layer = |(digest, size): (&Digest, &u64)| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest,
            "size": size,
        })
    };
    layers.map(layer).collect()
}

/// The digest of the index that the image in the registry names.
fn index_of(world: &World) -> String {
    let blobs = world.root.path().join("layout/blobs/sha256");
    let manifest = fs::read(blobs.join(world.image.manifest.hex())).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let index = &manifest["annotations"][annotations::INDEX_DIGEST];
    index.as_str().unwrap().to_owned()
}

fn beside(
    world: &World,
    containerd: &Containerd,
    config: LazyConfig,
) -> std::sync::Arc<LazyLayers> {
    let images = ImageStore::new(containerd.address().to_str().unwrap());
    let fetch = FetchConfig::default();
    world.lazy_beside(images, World::client(), config, fetch).0
}

/// Mounts the layer, which is forged, and tries to use it. Returns whether an image vouched for it.
async fn is_vouched_for(world: &World, containerd: &Containerd, config: LazyConfig) -> bool {
    let lazy = beside(world, containerd, config);
    let request = alone(world, 0, "a");
    lazy.mount(request.clone()).await.unwrap();
    let admitted = lazy.admit(use_of(&request, world.image.layers[0])).await;
    lazy.unmount(&request.mountpoint).await.unwrap();
    let is_forged = matches!(admitted, Err(UseRefusal::Forged { .. }));
    assert!(is_forged || admitted.is_ok(), "{admitted:?}");
    !is_forged
}

/// Pushes the image to the repository `other` as well, and starts a containerd.
async fn second_repository(world: &World) -> (Containerd, Store) {
    let layout = world.root.path().join("layout");
    let registry = &world.registry;
    registry.push_layout(&layout, "large", "other").unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let store = Store::new(&containerd, "test").await;
    (containerd, store)
}

/// The same image as in the registry's repository `large`, but for an annotation, in repository `other`.
async fn vouching_image(world: &World, store: &Store, padding: usize) -> Descriptor {
    let annotations = json!({
        annotations::INDEX_DIGEST: index_of(world),
        "padding": "x".repeat(padding),
    });
    store.image(&layers(world), annotations).await
}

#[test]
fn an_image_of_a_registry_that_is_not_listed_vouches_for_no_layer() {
    world(vec![forged()]).test(async |world| {
        let (containerd, store) = second_repository(world).await;
        let image = vouching_image(world, &store, 0).await;
        let name = world.proxy.reference("other:1");
        store.images.record(&name, &image).await.unwrap();
        for (prefixes, vouches) in [
            (vec![], true),
            (vec!["large", "other"], true),
            (vec!["large"], false),
        ] {
            let prefixes = prefixes.into_iter();
            let prefixes = prefixes.map(|repository| world.proxy.reference(repository));
            let config = LazyConfig {
                lazy_registries: LazyRegistries::new(prefixes),
                ..LazyConfig::default()
            };
            assert_eq!(is_vouched_for(world, &containerd, config).await, vouches);
        }
    });
}

#[test]
fn manifests_over_the_limits_of_number_depth_and_size_are_not_read() {
    world(vec![forged()]).test(async |world| {
        let (containerd, store) = second_repository(world).await;
        let image = vouching_image(world, &store, 0).await;
        let missing = |at: usize| Descriptor::of(media_types::OCI_MANIFEST, &at.to_le_bytes());
        let after = |count: usize| {
            let before = (0..count).map(missing);
            before.chain([image.clone()]).collect::<Vec<_>>()
        };
        let nested = async |depth: usize| {
            let mut target = image.clone();
            for _ in 0..depth {
                target = store.index(vec![target]).await;
            }
            target
        };
        for (what, target, is_read) in [
            ("an image", image.clone(), true),
            ("after 200", store.index(after(200)).await, true),
            ("after 300", store.index(after(300)).await, false),
            ("4 deep", nested(4).await, true),
            ("5 deep", nested(5).await, false),
            ("7 MiB", vouching_image(world, &store, 7 << 20).await, true),
            ("9 MiB", vouching_image(world, &store, 9 << 20).await, false),
        ] {
            let name = world.proxy.reference("other:1");
            store.images.record(&name, &target).await.unwrap();
            let vouched = is_vouched_for(world, &containerd, LazyConfig::default()).await;
            assert_eq!(vouched, is_read, "{what}");
        }
    });
}

#[test]
fn labels_lead_to_what_containerd_has_from_that_repository_at_that_position() {
    world(vec![small("a"), small("b")]).test(async |world| {
        let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
        let store = Store::new(&containerd, "test").await;
        let index = index_of(world);
        let mut layers = layers(world);
        layers[1]["annotations"] = json!({EXPLICIT_INDEX: index});
        let image = store.image(&layers, json!({})).await;
        // A new one each time: what it has read it keeps.
        let vetted = async |request: &LayerRequest| {
            let lazy = beside(world, &containerd, LazyConfig::default());
            lazy.vet_labels(request).await
        };
        let refused = async |request: &LayerRequest, part: &str| {
            let refusal = vetted(request).await.unwrap_err();
            assert!(
                matches!(refusal, LayerRefusal::ForeignLabels { .. }),
                "{refusal}"
            );
            assert!(refusal.to_string().contains(part), "{refusal}");
        };
        let request = |layer: usize| {
            let mut request = alone(world, layer, "a");
            let label = "containerd.io/snapshot/cri.manifest-digest".to_owned();
            request.labels.insert(label, image.digest.to_string());
            request
        };

        let unknown = alone(world, 0, "a");
        refused(&unknown, "it has no image manifest").await;
        refused(&request(0), "is not from").await;
        let elsewhere = world.proxy.reference("other:1");
        store.images.record(&elsewhere, &image).await.unwrap();
        refused(&request(0), "is not from").await;
        let name = world.proxy.reference("large:1");
        store.images.record(&name, &image).await.unwrap();
        vetted(&request(0)).await.unwrap();

        // At the place of the lowest layer.
        for (layer, fits) in [(0, true), (1, false)] {
            let mut request = request(layer);
            let lowest = format!("test/1/{}", world.image.layers[0]);
            request.labels.insert(TARGET.to_owned(), lowest);
            match fits {
                true => drop(vetted(&request).await.unwrap()),
                false => refused(&request, "at this position").await,
            }
        }

        // An index that the client names counts, one that the image's annotation names does not.
        for (layer, counts) in [(0, true), (1, false)] {
            let mut request = request(layer);
            request
                .labels
                .insert(EXPLICIT_INDEX.to_owned(), index.clone());
            let labels = vetted(&request).await.unwrap();
            assert_eq!(labels.contains_key(EXPLICIT_INDEX), counts);
        }
    });
}

#[test]
fn a_file_of_containerd_is_read_only_for_a_namespace_that_has_the_blob() {
    world(vec![small("file")]).test(async |world| {
        let containerd = Containerd::start(&ContainerdOptions {
            extra_config: "[plugins.\"io.containerd.metadata.v1.bolt\"]\n\
                           content_sharing_policy = \"isolated\"\n"
                .to_owned(),
            ..ContainerdOptions::default()
        })
        .unwrap();
        let blobs = world.root.path().join("layout/blobs/sha256");
        let blob = fs::read(blobs.join(world.image.layers[0].hex())).unwrap();
        for (namespace, is_own) in [("neighbour", false), ("test", true)] {
            let store = Store::new(&containerd, namespace).await;
            let stored = store.put("layer", blob.clone()).await;
            assert_eq!(stored.digest, world.image.layers[0]);
            let lazy = beside(world, &containerd, LazyConfig::default());
            let request = alone(world, 0, "a");
            assert_eq!(request.namespace, "test");
            lazy.mount(request.clone()).await.unwrap();
            let layer = Rule::always(Fault::status(403)).blob(world.image.layers[0]);
            world.proxy.inject(layer);
            let file = request.mountpoint.join("file");
            let read = blocking(move || fs::read(file)).await;
            assert_eq!(read.ok(), is_own.then(|| b"data".to_vec()), "{namespace}");
            world.proxy.clear_faults();
            lazy.unmount(&request.mountpoint).await.unwrap();
        }
    });
}

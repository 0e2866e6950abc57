//! Eager pulls behind the port of the snapshotter.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use soci_containerd::labels::{IMAGE_REF, LAYER_DIGEST, MANIFEST_DIGEST, TARGET};
use soci_layer::{
    LayerProvider, LayerRefusal, LayerRequest, MountedInfo, ProviderError, Purpose, UnpackOutcome,
    UnpackRequest, View,
};
use soci_telemetry::Meters;
use tokio_util::sync::CancellationToken;

use super::{EagerLayers, EagerMode};
use crate::image::ImageToPull;
use crate::jobs::Jobs;
use crate::jobs::double::{Committed, World, content};

/// Finds no index of any image.
struct WithoutIndex;

#[async_trait]
impl LayerProvider for WithoutIndex {
    async fn mount(&self, _: LayerRequest) -> Result<MountedInfo, LayerRefusal> {
        Err(LayerRefusal::not_indexed("there is none"))
    }

    async fn unmount(&self, _: &Path) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn check(&self, _: &Path, _: &BTreeMap<String, String>) -> Result<(), ProviderError> {
        Ok(())
    }
}

fn provider(world: &World, mode: EagerMode) -> EagerLayers {
    EagerLayers {
        inner: Arc::new(WithoutIndex),
        mode,
        jobs: Arc::new(Jobs::new(world.puller.clone(), false)),
        lower: Arc::new(|_| Ok(Vec::new())),
        meters: Arc::new(Meters::new().unwrap()),
    }
}

/// The Prepare of a layer.
fn request(world: &World, image: &ImageToPull, at: usize, name: &str) -> LayerRequest {
    let wanted = world.wanted(image, at);
    let labels = [
        (TARGET, wanted.chain_id.unwrap().to_string()),
        (IMAGE_REF, image.reference.to_string()),
        (MANIFEST_DIGEST, image.manifest.to_string()),
        (LAYER_DIGEST, wanted.layer.to_string()),
    ];
    let directory = world.directory(name);
    LayerRequest {
        purpose: Purpose::ImageLayer,
        namespace: image.namespace.clone(),
        snapshot: directory.parent().unwrap().to_owned(),
        mountpoint: directory,
        labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
        view: View::default(),
        parent: None,
        parents: Vec::new(),
    }
}

async fn unpack(layers: &EagerLayers, layer: LayerRequest) -> UnpackOutcome {
    let refusal = layers.mount(layer.clone()).await.unwrap_err();
    assert!(refusal.is_eager(), "{refusal}");
    let request = UnpackRequest {
        layer,
        eager: Some(Arc::new(Committed::default())),
    };
    let unpacked = layers.unpack(request, CancellationToken::new()).await;
    unpacked.unwrap()
}

#[tokio::test]
async fn the_last_layer_of_an_image_without_index_is_not_pulled_again_before_it_is_committed() {
    let mut world = World::new();
    let one = world.image("one", &["base"]);
    let two = world.image("two", &["base", "two"]);
    let layers = provider(&world, EagerMode::WithoutIndex);
    let first = request(&world, &one, 0, "first");
    let (unpacked, ()) = tokio::join!(unpack(&layers, first), async {
        for layer in world.begun(1).await {
            layer.succeed();
        }
    });
    assert!(unpacked.size.is_some());
    assert_eq!(
        layers.progress().len(),
        1,
        "it lasts until the layer is committed"
    );
    // Another image joins before that. Its own Prepare of the layer waits for that of the first one.
    let wanted = world.wanted(&two, 0);
    let joined = layers
        .jobs
        .join(&two, &wanted, Arc::new(Committed::default()));
    let _second = joined.await.unwrap();
    assert_eq!(world.begun(1).await[0].layer.chain_id, world.chain(&two, 1));
    world.nothing_begins();
    drop(unpacked);
    let progress = layers.progress();
    assert_eq!(progress.len(), 1);
    assert_eq!(progress[0].manifest, two.manifest);
    assert!(!content(&world.directory("first")).is_empty());
}

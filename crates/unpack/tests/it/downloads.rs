//! Slots and time limits of downloads, with registries that trickle, hang or ask to wait. Needs
//! docker-registry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use soci_testkit::{Content, Fault, ImageBuilder, Layer, Rule, Throttle};
use soci_unpack::{FIRST_BYTE_KEY, UnpackError, Unpacker};
use tokio_util::sync::CancellationToken;

use crate::unpacker::{World, run, target};

/// More than any of these waits takes on a loaded machine, and less than a registry can.
const PATIENCE: Duration = Duration::from_secs(150);

fn image(layers: u64) -> ImageBuilder {
    (0..layers).fold(ImageBuilder::new(), |image, seed| {
        let content = Content::Noise {
            seed,
            length: 4 << 20,
        };
        image.layer(Layer::new().file(&format!("file-{seed}"), content))
    })
}

async fn unpack(unpacker: &Unpacker, world: &World, number: usize) -> Result<(), UnpackError> {
    let folder = world.root.dir(&format!("fs-{number}")).unwrap();
    let (cancel, layer) = (CancellationToken::new(), world.layer(number));
    let unpacked = unpacker.unpack(&layer, target(&folder), &cancel);
    tokio::time::timeout(PATIENCE, unpacked)
        .await
        .unwrap()
        .map(drop)
}

#[test]
fn a_trickling_registry_holds_up_no_other_and_its_layers_are_given_up() {
    let slow = Arc::new(World::new(image(8)));
    let healthy = World::new(image(1));
    slow.proxy.throttle(Throttle {
        per_response: Some(5_000),
        ..Throttle::default()
    });
    let unpacker = Arc::new(slow.unpacker_with(None, |config| {
        // One slot is left for other registries, and each slow layer has time for its turn.
        config.downloads.slots = 3;
        config.downloads.slots_per_registry = 2;
        config.downloads.first_byte = Duration::from_secs(90);
        // The healthy registry has twice this long to be done on a loaded machine.
        config.downloads.period = Duration::from_secs(15);
    }));
    run(async {
        let trickling: Vec<_> = (0..3)
            .map(|number| {
                let (unpacker, slow) = (Arc::clone(&unpacker), Arc::clone(&slow));
                tokio::spawn(async move { unpack(&unpacker, &slow, number).await })
            })
            .collect();
        // The others of the image are fetched ahead: they take no slot of other registries either.
        for number in 4..8 {
            unpacker.fetch_ahead(slow.layer(number));
        }
        // Its manifest comes as slowly: the layers come after it.
        let requested = |number: &usize| {
            let digest = slow.image.layers[*number].digest;
            slow.proxy.stats().blob(digest).requests > 0
        };
        while (0..8).filter(requested).count() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unpack(&unpacker, &healthy, 0).await.unwrap();
        assert!(trickling.iter().any(|download| !download.is_finished()));
        for download in trickling {
            let error = download.await.unwrap().unwrap_err();
            assert!(matches!(error, UnpackError::Registry { .. }), "{error}");
        }
    });
    assert!(slow.scratch_is_empty());
}

#[test]
fn waiting_for_a_slot_counts_and_the_layer_is_given_up() {
    let world = World::new(image(2));
    let hangs = world.image.layers[0].digest;
    world
        .proxy
        .inject(Rule::always(Fault::HangAfter(1 << 20)).blob(hangs));
    let unpacker = world.unpacker_with(None, |config| {
        config.downloads.slots_per_registry = 1;
        // The first one has this long for its first byte on a loaded machine.
        config.downloads.first_byte = Duration::from_secs(15);
        config.downloads.period = Duration::from_secs(60);
    });
    run(async {
        let first = async {
            let _ = unpack(&unpacker, &world, 0).await;
        };
        let second = async {
            while world.proxy.stats().blob(hangs).requests == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            unpack(&unpacker, &world, 1).await
        };
        let error = tokio::select! {
            () = first => panic!("the first has ended"),
            second = second => second.unwrap_err(),
        };
        assert!(matches!(error, UnpackError::Slot { .. }), "{error}");
        assert!(error.to_string().contains(FIRST_BYTE_KEY), "{error}");
    });
}

#[test]
fn a_registry_that_asks_to_wait_for_too_long_is_not_waited_for() {
    let world = World::new(image(1));
    let busy = Fault::Status {
        status: 429,
        headers: vec![("Retry-After".to_owned(), "200".to_owned())],
        body: String::new(),
    };
    world
        .proxy
        .inject(Rule::always(busy).blob(world.image.layers[0].digest));
    let unpacker = world.unpacker_with(None, |config| {
        config.downloads.first_byte = Duration::from_secs(20);
    });
    let started = Instant::now();
    let error = run(unpack(&unpacker, &world, 0)).unwrap_err();
    assert!(started.elapsed() < PATIENCE, "{error}");
    assert!(matches!(error, UnpackError::Registry { .. }), "{error}");
}

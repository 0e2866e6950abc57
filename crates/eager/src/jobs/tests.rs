//! Jobs with a puller whose layers are complete when the test says so.

use std::sync::Arc;

use parking_lot::Mutex;
use soci_layer::CommittedLayers;
use soci_oci::Digest;
use tokio_util::sync::CancellationToken;

use super::double::{Committed, World, content};
use super::{Client, Jobs};
use crate::error::EagerError;
use crate::image::ImageToPull;
use crate::job::Destination;

impl World {
    fn jobs(&self) -> Arc<Jobs> {
        Arc::new(Jobs::new(self.puller.clone(), false))
    }

    async fn join(&self, jobs: &Arc<Jobs>, image: &ImageToPull, at: usize) -> Client {
        let wanted = self.wanted(image, at);
        let committed = Arc::new(Committed::default());
        let (client, found) = jobs.join(image, &wanted, committed).await.unwrap();
        assert_eq!(found, at);
        client
    }

    fn to(&self, name: &str) -> Destination {
        Destination {
            directory: self.directory(name),
            lower: Vec::new(),
        }
    }
}

async fn deliver(client: &Client, at: usize, to: Destination) -> Result<(), EagerError> {
    let cancel = CancellationToken::new();
    client.job.deliver(at, to, &cancel).await.map(drop)
}

fn digest(layer: &str) -> String {
    Digest::of(layer.as_bytes()).to_string()
}

#[tokio::test]
async fn the_first_prepare_starts_all_layers_from_its_own_upwards_but_for_committed_ones() {
    let mut world = World::new();
    let image = world.image("app", &["a", "b", "c", "d"]);
    let jobs = world.jobs();
    let committed = Arc::new(Committed(vec![world.chain(&image, 2)]));
    let wanted = world.wanted(&image, 1);
    let (client, at) = jobs.join(&image, &wanted, committed).await.unwrap();
    assert_eq!(at, 1);
    let mut begun = world.begun(2).await;
    let names: Vec<usize> = begun.iter().map(|begun| begun.layer.order).collect();
    assert_eq!(names, [1, 3]);
    world.nothing_begins();
    // The upper layer is complete first, and waits for its Prepare.
    begun.pop().unwrap().succeed();
    begun.pop().unwrap().succeed();
    deliver(&client, 1, world.to("1")).await.unwrap();
    assert_eq!(content(&world.directory("1")), digest("b"));
    let second = world.join(&jobs, &image, 3).await;
    deliver(&second, 3, world.to("2")).await.unwrap();
    assert_eq!(content(&world.directory("2")), digest("d"));
    drop((client, second));
    assert!(jobs.progress().is_empty());
    assert_eq!(jobs.totals().layers, 2);
    world.scratch_is_empty().await;
}

#[tokio::test]
async fn a_failure_ends_the_other_layers_and_the_next_prepare_begins_again() {
    let mut world = World::new();
    let image = world.image("app", &["a", "b", "c"]);
    let jobs = world.jobs();
    let client = world.join(&jobs, &image, 0).await;
    let mut begun = world.begun(3).await;
    begun.remove(1).fail();
    let error = deliver(&client, 0, world.to("1")).await.unwrap_err();
    assert!(error.to_string().contains("it failed"), "{error}");
    for _ in 0..2 {
        world.ended.recv().await.unwrap();
    }
    world.scratch_is_empty().await;
    drop(client);
    let again = world.join(&jobs, &image, 0).await;
    let begun = world.begun(3).await;
    for layer in begun {
        layer.succeed();
    }
    deliver(&again, 0, world.to("1")).await.unwrap();
}

#[tokio::test]
async fn two_clients_share_the_work_and_only_the_last_that_gives_up_ends_it() {
    let mut world = World::new();
    let image = world.image("app", &["a", "b"]);
    let jobs = world.jobs();
    let first = world.join(&jobs, &image, 0).await;
    let second = world.join(&jobs, &image, 0).await;
    let _begun = world.begun(2).await;
    world.nothing_begins();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error = first.job.deliver(0, world.to("1"), &cancel).await;
    assert!(matches!(error, Err(EagerError::Cancelled)));
    first.give_up();
    drop(first);
    assert!(second.job.end_reason().is_none());
    drop(second);
    for _ in 0..2 {
        world.ended.recv().await.unwrap();
    }
    assert!(jobs.progress().is_empty());
    world.scratch_is_empty().await;
}

#[tokio::test]
async fn images_that_share_layers_pull_them_once() {
    let mut world = World::new();
    let [one, two] = ["one", "two"].map(|name| world.image(name, &["base", name]));
    let jobs = world.jobs();
    let first = world.join(&jobs, &one, 0).await;
    let second = world.join(&jobs, &two, 0).await;
    let begun = world.begun(3).await;
    world.nothing_begins();
    for layer in begun {
        layer.succeed();
    }
    deliver(&first, 0, world.to("base")).await.unwrap();
    // The second client finds the snapshot of the first, and prepares its own layer.
    deliver(&second, 1, world.to("two")).await.unwrap();
    deliver(&first, 1, world.to("one")).await.unwrap();
    assert_eq!(content(&world.directory("two")), digest("two"));
    // The snapshot was removed: the layer is pulled again.
    let again = deliver(&second, 0, world.to("base again"));
    let (delivered, ()) = tokio::join!(again, async {
        for layer in world.begun(1).await {
            layer.succeed();
        }
    });
    delivered.unwrap();
}

#[tokio::test]
async fn a_layer_whose_snapshot_is_about_to_be_committed_is_not_pulled_again() {
    let mut world = World::new();
    let [one, two] = ["one", "two"].map(|name| world.image(name, &["base", name]));
    let jobs = world.jobs();
    let first = world.join(&jobs, &one, 0).await;
    for layer in world.begun(2).await {
        layer.succeed();
    }
    deliver(&first, 0, world.to("base")).await.unwrap();
    // Its Prepare has not committed it yet when the other image begins.
    let second = world.join(&jobs, &two, 0).await;
    for layer in world.begun(1).await {
        assert_eq!(layer.layer.chain_id, world.chain(&two, 1));
        layer.succeed();
    }
    world.nothing_begins();
    // It was not committed: now the layer is pulled again.
    let again = deliver(&second, 0, world.to("base again"));
    let (delivered, ()) = tokio::join!(again, async {
        for layer in world.begun(1).await {
            layer.succeed();
        }
    });
    delivered.unwrap();
    // Nothing keeps a third image from a layer that was taken long ago and is gone.
    first.give_up();
    second.give_up();
    drop((first, second));
    let third = world.image("three", &["base"]);
    let _third = world.join(&jobs, &third, 0).await;
    assert_eq!(world.begun(1).await.len(), 1);
}

/// A look-up that finds no layer, and during which the first image commits its own and ends.
#[derive(Debug)]
struct CommittedMeanwhile(Mutex<Option<Client>>);

impl CommittedLayers for CommittedMeanwhile {
    fn contains(&self, _target: &str) -> bool {
        drop(self.0.lock().take());
        false
    }
}

#[tokio::test]
async fn a_layer_that_is_committed_while_another_image_looks_it_up_is_not_pulled_again() {
    let mut world = World::new();
    let one = world.image("one", &["base"]);
    let two = world.image("two", &["base", "two"]);
    let jobs = world.jobs();
    let first = world.join(&jobs, &one, 0).await;
    for layer in world.begun(1).await {
        layer.succeed();
    }
    deliver(&first, 0, world.to("base")).await.unwrap();
    let committed = Arc::new(CommittedMeanwhile(Mutex::new(Some(first))));
    let wanted = world.wanted(&two, 0);
    let _second = jobs.join(&two, &wanted, committed).await.unwrap();
    assert_eq!(world.begun(1).await[0].layer.chain_id, world.chain(&two, 1));
    world.nothing_begins();
}

#[tokio::test]
async fn a_shared_layer_outlives_the_image_that_began_it() {
    let mut world = World::new();
    let [one, two] = ["one", "two"].map(|name| world.image(name, &["base", name]));
    let jobs = world.jobs();
    let first = world.join(&jobs, &one, 0).await;
    let second = world.join(&jobs, &two, 0).await;
    let mut begun = world.begun(3).await;
    first.give_up();
    let chain = world.chain(&one, 1);
    drop(first);
    assert_eq!(world.ended.recv().await.unwrap(), chain);
    begun.remove(0).succeed();
    deliver(&second, 0, world.to("base")).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_an_image_has_twice_is_delivered_twice() {
    let mut world = World::new();
    let image = world.image("app", &["a", "empty", "empty"]);
    let jobs = world.jobs();
    let client = world.join(&jobs, &image, 0).await;
    for layer in world.begun(3).await {
        layer.succeed();
    }
    for at in 0..3 {
        deliver(&client, at, world.to(&at.to_string()))
            .await
            .unwrap();
    }
    assert_eq!(
        content(&world.directory("1")),
        content(&world.directory("2"))
    );
}

#[tokio::test]
async fn removing_a_snapshot_that_the_work_has_made_ends_it() {
    let mut world = World::new();
    let image = world.image("app", &["a", "b", "c"]);
    let jobs = world.jobs();
    let client = world.join(&jobs, &image, 0).await;
    let mut begun = world.begun(3).await;
    begun.remove(0).succeed();
    deliver(&client, 0, world.to("1")).await.unwrap();
    let layer = |at| world.wanted(&image, at);
    jobs.removed(image.manifest, &layer(1));
    assert!(client.job.end_reason().is_none());
    jobs.removed(Digest::of(b"another"), &layer(0));
    assert!(client.job.end_reason().is_none());
    let waiting = deliver(&client, 1, world.to("2"));
    let (error, ()) = tokio::join!(waiting, async {
        jobs.removed(image.manifest, &layer(0));
    });
    assert!(error.unwrap_err().to_string().contains("was removed"));
    world.scratch_is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn layers_whose_client_is_gone_are_given_up_after_a_while() {
    let mut world = World::new();
    let image = world.image("app", &["a", "b"]);
    let jobs = world.jobs();
    let client = world.join(&jobs, &image, 0).await;
    let mut begun = world.begun(2).await;
    begun.remove(0).succeed();
    deliver(&client, 0, world.to("1")).await.unwrap();
    drop(client);
    // The clock advances by itself while all wait.
    let chain = world.chain(&image, 1);
    assert_eq!(world.ended.recv().await.unwrap(), chain);
    assert!(jobs.progress().is_empty());
}

#[tokio::test]
async fn a_layer_at_another_place_of_the_image_is_refused() {
    let world = World::new();
    let image = world.image("app", &["a", "b"]);
    let jobs = world.jobs();
    let mut wanted = world.wanted(&image, 1);
    wanted.chain_id = Some(Digest::of(b"another image's"));
    let joined = jobs
        .join(&image, &wanted, Arc::new(Committed::default()))
        .await;
    assert!(matches!(joined.err(), Some(EagerError::Labels { .. })));
    assert!(jobs.progress().is_empty());
}

#[tokio::test]
async fn closing_ends_all_work_and_leaves_nothing() {
    let mut world = World::new();
    let image = world.image("app", &["a", "b"]);
    let jobs = world.jobs();
    let client = world.join(&jobs, &image, 0).await;
    let _begun = world.begun(2).await;
    jobs.close().await;
    let error = deliver(&client, 0, world.to("1")).await.unwrap_err();
    assert!(error.to_string().contains("shutting down"), "{error}");
    world.scratch_is_empty().await;
}

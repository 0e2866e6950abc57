//! Concurrent calls, and calls that are given up: through a real daemon and a real registry, whose
//! requests the proxy counts. Needs root, FUSE, docker-registry and the two programs.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::node::{Client, Image, Node, lower_directories};
use crate::support::{NO_BACKGROUND, lazy_mounts_below, left_below, wait_until};
use futures::future::join_all;
use soci_testkit::{Content, Fault, ImageBuilder, Layer, Rule, TestRoot};
use tonic::Code;

/// Generous: the machine may be busy. Hanging for ever is what these tests look for.
const PATIENCE: Duration = Duration::from_secs(120);
const LAYERS: usize = 3;

/// Nothing is given up or tried again because the machine is busy.
fn config() -> String {
    format!(
        "mount_timeout_sec = 120\n\
         [http]\nDialTimeoutMsec = 60000\nResponseHeaderTimeoutMsec = 60000\n\
         [profile]\nreferrers = false\n{NO_BACKGROUND}"
    )
}

/// An image whose layers no other image has: each holds one file of noise.
fn image(node: &Node, number: usize) -> Image {
    let layout = TestRoot::new().unwrap();
    let mut builder = ImageBuilder::new();
    for layer in 0..LAYERS {
        let name = format!("file-{layer}");
        builder = builder.layer(Layer::new().file(&name, noise(number, layer)));
    }
    builder.write(layout.path(), "small").unwrap();
    node.publish(layout.path(), &format!("image-{number}"), true)
}

fn noise(image: usize, layer: usize) -> Content {
    Content::Noise {
        seed: (image * LAYERS + layer) as u64,
        length: 300_000,
    }
}

/// Pulls all layers of an image, one after another as containerd does.
async fn pull(client: &Client, image: &Image) {
    for layer in 0..LAYERS {
        let answer = client.pull_layer(image, layer).await;
        assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
    }
}

/// The directories of an image's layers, the lowest first.
async fn directories(client: &Client, image: &Image) -> Vec<PathBuf> {
    let key = format!("look {}", image.top());
    let mounts = client.view(&key, &image.top()).await.unwrap();
    client.remove(&key).await.unwrap();
    let mut directories = lower_directories(&mounts);
    directories.reverse();
    directories
}

/// Reads every file of an image through its mounts.
fn read_all(directories: &[PathBuf], number: usize) {
    for (layer, directory) in directories.iter().enumerate() {
        let read = std::fs::read(directory.join(format!("file-{layer}"))).unwrap();
        assert!(read == noise(number, layer).to_vec(), "wrong bytes");
    }
}

async fn remove(client: &Client, image: &Image) {
    for layer in (0..LAYERS).rev() {
        client.remove(&image.target(layer)).await.unwrap();
    }
    client.cleanup().await.unwrap();
}

fn wait_for_nothing_left(node: &Node) {
    wait_until("nothing is left", PATIENCE, || {
        match left_below(&node.daemon.root()) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
}

/// The daemon's threads and open files. Sockets do not count: connections to the registry stay open
/// for a while.
fn resources(node: &Node) -> (usize, usize) {
    let process = PathBuf::from(format!("/proc/{}", node.daemon.daemon().pid()));
    let threads = std::fs::read_dir(process.join("task")).unwrap().count();
    let files = std::fs::read_dir(process.join("fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| !target.to_string_lossy().starts_with("socket:"))
        .count();
    (threads, files)
}

/// Waits until the daemon has as many threads and files as before.
fn wait_for_resources(node: &Node, before: (usize, usize)) {
    wait_until("threads and files are released", PATIENCE, || {
        let (threads, files) = resources(node);
        match threads <= before.0 && files <= before.1 {
            true => Ok(()),
            false => Err(format!(
                "{threads} threads, {files} files; before: {before:?}"
            )),
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_concurrent_pulls_of_the_same_and_of_other_images_request_everything_once_and_leak_nothing()
 {
    const IMAGES: usize = 10;
    const CLIENTS: usize = 5;
    let node = Node::start(&config());
    let images: Vec<Image> = (0..IMAGES).map(|number| image(&node, number)).collect();
    let client = node.client().await;
    let before = resources(&node);
    for _ in 0..2 {
        node.proxy.reset_stats();
        let pulls = (0..IMAGES * CLIENTS).map(|n| pull(&client, &images[n % IMAGES]));
        tokio::time::timeout(PATIENCE, join_all(pulls))
            .await
            .unwrap();
        let root = node.daemon.root();
        assert_eq!(lazy_mounts_below(&root), IMAGES * LAYERS);
        for (path, stats) in node.proxy.stats().by_path() {
            assert_eq!(stats.requests, 1, "{path}");
        }

        // Containers of all images start, several of each, and read everything.
        let mut readers = Vec::new();
        for (number, image) in images.iter().enumerate() {
            let directories = directories(&client, image).await;
            for _ in 0..CLIENTS {
                let directories = directories.clone();
                readers.push(tokio::task::spawn_blocking(move || {
                    read_all(&directories, number);
                }));
            }
        }
        for reader in join_all(readers).await {
            reader.unwrap();
        }
        let stats = node.proxy.stats();
        for layer in images.iter().flat_map(|image| &image.layers) {
            let fetched = stats.blob(layer.digest);
            // All but the header of the gzip stream, and nothing twice: neighbouring spans may share
            // one byte.
            let once = layer.size - 100..=layer.size + fetched.requests;
            assert!(once.contains(&fetched.bytes), "{fetched:?} of {layer:?}");
        }
        join_all(images.iter().map(|image| remove(&client, image))).await;
        wait_for_nothing_left(&node);
    }
    wait_for_resources(&node, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_of_an_image_are_made_ready_at_the_same_time() {
    let node = Node::start(&config());
    let image = image(&node, 0);
    let client = node.client().await;
    node.proxy.reset_stats();
    let slow = Rule::always(Fault::Delay(Duration::from_secs(5)));
    node.proxy.inject(slow.path("/blobs/").unwrap());
    // Requested one after another, the first one names the others.
    pull(&client, &image).await;
    let stats = node.proxy.stats();
    assert_eq!(stats.blobs().requests, LAYERS as u64, "one zTOC for each");
    assert_eq!(stats.peak_in_flight, LAYERS as u64, "all in parallel");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_removed_while_it_is_read_is_released_when_the_reader_has_ended() {
    let node = Node::start(&config());
    let image = image(&node, 0);
    let client = node.client().await;
    pull(&client, &image).await;
    let directories = directories(&client, &image).await;
    // For longer than the removals take on a busy machine.
    let slow = Rule::always(Fault::Delay(Duration::from_secs(30)));
    node.proxy.inject(slow.path("/blobs/").unwrap());
    node.proxy.reset_stats();
    let reader = tokio::task::spawn_blocking(move || read_all(&directories[..1], 0));
    wait_until("the registry is asked", PATIENCE, || {
        match node.proxy.stats().blobs().requests {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    });
    // Neither waits for the reader.
    tokio::time::timeout(PATIENCE, remove(&client, &image))
        .await
        .unwrap();
    assert!(client.list().await.unwrap().is_empty());
    assert!(!reader.is_finished(), "the reader still waits");
    reader.await.unwrap();
    wait_for_nothing_left(&node);

    // And it can be pulled again.
    node.proxy.clear_faults();
    pull(&client, &image).await;
    remove(&client, &image).await;
    wait_for_nothing_left(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_that_are_given_up_leave_a_consistent_state_and_later_ones_succeed() {
    let node = Node::start(&config());
    let image = image(&node, 0);
    let client = node.client().await;
    let before = resources(&node);
    for what in ["/manifests/", "/blobs/"] {
        let slow = Rule::always(Fault::Delay(Duration::from_millis(700)));
        node.proxy.inject(slow.path(what).unwrap());
        let given_up = (0..50).map(|n| {
            let (client, image) = (client.clone(), &image);
            async move {
                let limit = Duration::from_millis(n * 20);
                // Some have an answer by then, others do not.
                let _ = tokio::time::timeout(limit, client.pull_layer(image, 0)).await;
            }
        });
        join_all(given_up).await;
        node.proxy.clear_faults();
        tokio::time::timeout(PATIENCE, pull(&client, &image))
            .await
            .unwrap();
        let all = client.list().await.unwrap();
        assert_eq!(all.len(), LAYERS, "{all:#?}");
        remove(&client, &image).await;
        wait_for_nothing_left(&node);
    }
    wait_for_resources(&node, before);
}

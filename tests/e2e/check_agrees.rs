//! `soci check` and the daemon agree, whatever the configuration and the kind of image. Needs root,
//! FUSE, docker-registry and the two programs.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use soci_containerd::labels;
use soci_oci::{Digest, Manifest, annotations};
use soci_testkit::{Content, Fault, ImageBuilder, Layer, Rule, SociCli, TestRoot};
use tonic::Code;

use crate::support::node::{Client, Image, Node, fetch_manifest};
use crate::support::{NO_BACKGROUND, wait_for_lines};

/// Time within which a log line arrives.
const LIMIT: Duration = Duration::from_secs(60);

/// An image in a registry.
struct Kind {
    name: &'static str,
    image: Image,
    /// Its index of version 2, else of version 1, else a digest that the registry does not have.
    index: Digest,
}

fn json(arguments: &[&str]) -> Value {
    let output = SociCli::standalone().unwrap().output(arguments).unwrap();
    serde_json::from_str(&output).unwrap()
}

fn check(image: &Image, config: &Path, explicit: Option<Digest>) -> Value {
    let explicit = explicit.map(|digest| digest.to_string());
    let mut arguments = vec!["check", "--json", "--no-estimate", "--config"];
    arguments.push(config.to_str().unwrap());
    if let Some(digest) = &explicit {
        arguments.extend(["--soci-index-digest", digest]);
    }
    arguments.push(&image.reference);
    json(&arguments)
}

/// Returns `lazy`, or the code of the reason why a layer is not lazy.
fn predicted(report: &Value) -> String {
    let layer = &report["layers"][0];
    match layer["lazy"].as_bool().unwrap() {
        true => "lazy".to_owned(),
        false => layer["code"].as_str().unwrap().to_owned(),
    }
}

/// Predicts the outcome for each kind, without and with an explicit digest, all at the same time:
/// the command retries the requests that fail.
fn predict_all(kinds: &[Kind], config: &Path) -> Vec<[String; 2]> {
    std::thread::scope(|scope| {
        let threads = kinds.iter().map(|kind| {
            [None, Some(kind.index)].map(|explicit| {
                scope.spawn(move || predicted(&check(&kind.image, config, explicit)))
            })
        });
        let threads: Vec<_> = threads.collect();
        let joined = threads.into_iter();
        let joined = joined.map(|pair| pair.map(|thread| thread.join().unwrap()));
        joined.collect()
    })
}

/// Prepares the lowest layer with the daemon, and returns the outcome in the form of [`predicted`].
async fn prepared(node: &Node, client: &Client, kind: &Kind, explicit: Option<Digest>) -> String {
    let mark = node.daemon.log().mark();
    let mut labels = kind.image.labels(0);
    let target = format!("{}-{}", kind.name, explicit.is_some());
    labels.insert(labels::TARGET.to_owned(), target.clone());
    if let Some(digest) = explicit {
        labels.insert(labels::INDEX_DIGEST.to_owned(), digest.to_string());
    }
    let key = format!("extract {target}");
    match client.prepare_with(&key, "", labels).await {
        Ok(_) => client.remove(&key).await.unwrap(),
        Err(status) => {
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            client.remove(&target).await.unwrap();
        }
    }
    let outcome = "remote-snapshot-prepared";
    let parallel = "preparing snapshot with parallel pull/unpack";
    let line = node.daemon.log().wait_for(mark, LIMIT, |line| {
        line.contains(outcome) || line.contains(parallel)
    });
    let line: Value = serde_json::from_str(&line.expect(&target)).unwrap();
    match line[outcome].as_str() {
        None => "parallel-pull".to_owned(),
        Some("true") => "lazy".to_owned(),
        Some(_) => line["reason"].as_str().unwrap().to_owned(),
    }
}

/// Pushes an image of each kind. The faults of the registry stay until the end.
fn push_all(node: &Node, v1_enabled: &Path) -> Vec<Kind> {
    let kind = |name: &'static str, v1: bool, v2| {
        // A layer of its own, so that no index of another image is used.
        let layout = TestRoot::new().unwrap();
        let mut layer = Layer::new().dir("data").text("data/name", name);
        if name == "large-span" {
            let (seed, length) = (1, 400 << 10);
            layer = layer.file("data/noise", Content::Noise { seed, length });
        }
        let image = ImageBuilder::new().layer(layer);
        image.write(layout.path(), "small").unwrap();
        let image = node.publish(layout.path(), name, v2);
        if v1 {
            let reference = format!("docker://{}", image.reference);
            let create = ["create", "--min-layer-size", "0", &reference];
            SociCli::standalone().unwrap().output(create).unwrap();
        }
        let manifest = fetch_manifest(&node.registry, name, &image.manifest.to_string());
        let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
        let found = match manifest.annotations.get(annotations::INDEX_DIGEST) {
            Some(digest) => Some(digest.clone()),
            None => check(&image, v1_enabled, None)["index"]["digest"]
                .as_str()
                .map(ToOwned::to_owned),
        };
        let index = found.map_or(Digest::of(b"nothing"), |text| text.parse().unwrap());
        Kind { name, image, index }
    };
    let mut kinds = vec![
        kind("plain", false, false),
        kind("v1", true, false),
        kind("v2", false, true),
        kind("both", true, true),
        kind("large-span", true, true),
        kind("without-ztoc", true, true),
        kind("ztoc-unreachable", true, true),
    ];
    for (kind, fault) in kinds.iter().rev().zip([Fault::Reset, Fault::status(404)]) {
        // Both indexes list the same zTOC.
        let report = check(&kind.image, v1_enabled, None);
        let ztoc = report["layers"][0]["ztoc"].as_str().unwrap();
        let path = format!("/v2/{}/blobs/{ztoc}", kind.name);
        node.proxy.inject(Rule::always(fault).path(&path).unwrap());
    }
    for (name, fault) in [
        ("dangling", Fault::status(404)),
        ("unreadable", Fault::Corrupt(20)),
        ("unauthorised", Fault::status(401)),
        ("failing", Fault::status(500)),
        ("unreachable", Fault::Reset),
    ] {
        let kind = kind(name, true, true);
        // The index of version 2; for the failures of a registry the referrers as well.
        let mut path = format!("/v2/{name}/manifests/{}", kind.index);
        if !matches!(name, "dangling" | "unreadable") {
            path = format!("{path}|/v2/{name}/referrers/|/v2/{name}/manifests/sha256-");
        }
        node.proxy.inject(Rule::always(fault).path(&path).unwrap());
        kinds.push(kind);
    }
    kinds
}

/// The outcome for a kind of image, without and with an explicit digest.
fn expected(
    kind: &str,
    (v1, v2, always): (bool, bool, bool),
    parallel: Option<&str>,
) -> [&'static str; 2] {
    let found = match kind {
        "unauthorised" | "failing" | "unreachable" => "index-unavailable",
        "large-span" => "span-too-large",
        "without-ztoc" => "failed",
        "ztoc-unreachable" => "registry-unavailable",
        _ => "lazy",
    };
    let without = match (kind, v1, v2) {
        (_, false, false) => "disabled",
        ("plain", ..) | ("v1", false, _) | ("v2", _, false) => "no-index",
        ("dangling" | "unreadable", _, true) => "no-index",
        _ => found,
    };
    let explicitly = match kind {
        _ if !v1 && !v2 && !always => "disabled",
        "plain" | "dangling" | "unreadable" => "no-index",
        _ => found,
    };
    [without, explicitly].map(|outcome| match (parallel, outcome) {
        (Some("enable"), _) | (Some(_), "disabled" | "no-index" | "registry-unavailable") => {
            "parallel-pull"
        }
        (Some(_), "index-unavailable") if kind != "unauthorised" => "parallel-pull",
        _ => outcome,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_the_daemon_then_does() {
    let root = TestRoot::new().unwrap();
    let file = root.path().join("config.toml");
    let v1_enabled = root.path().join("v1.toml");
    std::fs::write(&v1_enabled, "[pull_modes.soci_v1]\nenable = true\n").unwrap();
    let as_fallback = Some("experimental_parallel_pull_as_fallback");
    for (modes, parallel) in [
        ((false, false, false), None),
        ((false, false, true), None),
        ((true, false, false), None),
        ((false, true, false), None),
        ((true, true, false), None),
        ((false, false, true), as_fallback),
        ((true, true, false), as_fallback),
        ((true, true, false), Some("enable")),
    ] {
        let (v1, v2, always) = modes;
        let parallel_keys = parallel.map_or(String::new(), |key| {
            // There is no containerd whose content store could keep them.
            let keep = "discard_unpacked_layers = true";
            format!("[pull_modes.parallel_pull_unpack]\n{key} = true\n{keep}\n")
        });
        // A key that the daemon ignores, and that check must ignore as well.
        let config = format!(
            "[http]\nMaxRetries = 1\nMaxWaitMsec = 50\n[fetch]\nmemory_budget_bytes = 1048576\n\
             [trust]\nexplicit_index = {always}\n[pull_modes.soci_v1]\nenable = {v1}\n\
             [pull_modes.soci_v2]\nenable = {v2}\n{parallel_keys}\
             [snapshotter]\nallow_invalid_mounts_on_restart = true\n\
             {NO_BACKGROUND}"
        );
        std::fs::write(&file, &config).unwrap();
        let node = Node::start(&config);
        let client = node.client().await;
        let kinds = tokio::task::block_in_place(|| push_all(&node, &v1_enabled));
        let predictions = tokio::task::block_in_place(|| predict_all(&kinds, &file));
        for (kind, checks) in kinds.iter().zip(predictions) {
            let outcomes = expected(kind.name, modes, parallel);
            let explicit = [None, Some(kind.index)];
            for ((explicit, check), expected) in explicit.into_iter().zip(checks).zip(outcomes) {
                let case = format!(
                    "{}, (v1, v2, always) {modes:?}, parallel {parallel:?}, explicit {explicit:?}",
                    kind.name
                );
                assert_eq!(check, expected, "check, {case}");
                let daemon = prepared(&node, &client, kind, explicit).await;
                assert_eq!(daemon, expected, "daemon, {case}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_and_daemon_unpack_images_of_registries_that_are_not_listed() {
    let root = TestRoot::new().unwrap();
    let file = root.path().join("config.toml");
    let node = Node::start(&format!(
        "[trust]\nlazy_registries = [\"registry.example\"]\n{NO_BACKGROUND}"
    ));
    std::fs::copy(node.daemon.config_file(), &file).unwrap();
    let client = node.client().await;
    let image = node.small("small", true);
    let kind = Kind {
        name: "small",
        index: Digest::of(b"nothing"),
        image,
    };
    let check = tokio::task::block_in_place(|| predicted(&check(&kind.image, &file, None)));
    assert_eq!(check, "untrusted-registry");
    // The layer is unpacked by the daemon: what `prepared` returns is a layer that exists.
    let daemon = prepared(&node, &client, &kind, None).await;
    assert_eq!(daemon, "untrusted-registry");
    let unpacked = |line: &Value| line["local-snapshot-prepared"] == "true";
    wait_for_lines(&node.daemon, 1, unpacked);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_modes_off_no_label_causes_a_request() {
    // A size below the minimum would have the layer unpacked by us.
    let node = Node::start(&format!(
        "[snapshotter]\nmin_layer_size = 10\n[pull_modes.soci_v2]\nenable = false\n{NO_BACKGROUND}"
    ));
    let client = node.client().await;
    let image = node.small("small", true);
    node.proxy.reset_stats();
    let index = (labels::INDEX_DIGEST, Digest::of(b"any").to_string());
    let size = (labels::LAYER_SIZE, "1".to_owned());
    for (number, more) in [
        vec![],
        vec![index.clone()],
        vec![size.clone()],
        vec![index, size],
    ]
    .into_iter()
    .enumerate()
    {
        let mut labels = image.labels(0);
        labels.insert(labels::TARGET.to_owned(), format!("t{number}"));
        labels.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
        let key = format!("extract {number}");
        client.prepare_with(&key, "", labels).await.unwrap();
    }
    assert_eq!(node.proxy.stats().total().requests, 0);
}

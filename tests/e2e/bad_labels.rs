//! Labels that contradict each other, the image or reason: whatever a client sends, Prepare answers
//! with mounts that the client can unpack into, or is lazy all the same. Needs root, FUSE,
//! docker-registry and the two programs.

use std::time::Duration;

use crate::support::NO_BACKGROUND;
use crate::support::node::Node;
use soci_containerd::labels;
use soci_oci::Digest;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(180);
/// Ends the reason of a layer that the daemon unpacks itself.
const BY_US: &str = ", by us";

#[tokio::test(flavor = "multi_thread")]
async fn absurd_labels_are_ignored_or_have_the_layer_unpacked_with_a_reason() {
    let config =
        format!("[http]\nMaxRetries = 0\n[snapshotter]\nmin_layer_size = 10\n{NO_BACKGROUND}");
    let node = Node::start(&config);
    let image = node.small("small", true);
    let other = node.small("other", false);
    let client = node.client().await;
    let unknown = Digest::of(b"a blob of no registry").to_string();
    let long = "x".repeat(3000);
    let (unknown_key, long_key) = (
        format!("{}/no-such-key", labels::REMOTE),
        format!("{long}/key"),
    );

    // With the logged reason and the process that unpacks the layer then; `None`: lazy all the same.
    let cases: Vec<(&str, String, Option<&str>)> = vec![
        (
            labels::IMAGE_REF,
            "NOT/A:reference:".into(),
            Some("invalid-label"),
        ),
        (
            labels::IMAGE_REF,
            "../../etc/passwd".into(),
            Some("invalid-label"),
        ),
        (labels::IMAGE_REF, long.clone(), Some("invalid-label")),
        (
            labels::IMAGE_REF,
            "127.0.0.1:1/small:soci".into(),
            Some("index-unavailable"),
        ),
        (
            labels::MANIFEST_DIGEST,
            "md5:0".into(),
            Some("invalid-label"),
        ),
        (
            labels::MANIFEST_DIGEST,
            "sha256:../../..".into(),
            Some("invalid-label"),
        ),
        (labels::MANIFEST_DIGEST, unknown.clone(), Some("no-index")),
        // Another image's manifest: it is not in this repository.
        (
            labels::MANIFEST_DIGEST,
            Digest::of(b"x").to_string(),
            Some("no-index"),
        ),
        (
            labels::LAYER_DIGEST,
            "sha256:/".into(),
            Some("invalid-label"),
        ),
        (labels::LAYER_DIGEST, unknown.clone(), Some("no-ztoc")),
        // The manifest as a layer.
        (
            labels::LAYER_DIGEST,
            image.manifest.to_string(),
            Some("no-ztoc"),
        ),
        (labels::IMAGE_LAYERS, String::new(), None),
        (labels::IMAGE_LAYERS, ",,sha256:,\u{fffd}, x".into(), None),
        (labels::IMAGE_LAYERS, long.clone(), None),
        // Contradicts `layer-digest`.
        (labels::IMAGE_LAYERS, unknown.clone(), None),
        (labels::LAYER_SIZE, "-1".into(), None),
        (labels::LAYER_SIZE, "1e9".into(), None),
        (labels::LAYER_SIZE, "18446744073709551616".into(), None),
        (labels::LAYER_SIZE, "18446744073709551615".into(), None),
        (
            labels::LAYER_SIZE,
            "0".into(),
            Some("below-min-size, by us"),
        ),
        (labels::IMAGE_LAYER_SIZES, "1,2,-3,x".into(), None),
        (
            labels::INDEX_DIGEST,
            "sha256:0".into(),
            Some("invalid-label"),
        ),
        (labels::INDEX_DIGEST, unknown, Some("no-index")),
        // An image manifest, which is no index.
        (
            labels::INDEX_DIGEST,
            image.manifest.to_string(),
            Some("no-index"),
        ),
        (&unknown_key, "x".into(), None),
        (&long_key, "x".into(), None),
        (labels::UID_MAP, "0:-1:x".into(), None),
    ];
    assert_ne!(other.manifest, image.manifest);
    for (number, (key, value, reason)) in cases.into_iter().enumerate() {
        let mark = node.daemon.log().mark();
        let target = format!("target-{number}");
        let mut labels = image.labels(0);
        labels.insert(labels::TARGET.to_owned(), target.clone());
        labels.insert(key.to_owned(), value.clone());
        let shown = format!("{key:.60} = {value:.60}");
        let answer = client
            .prepare_with(&format!("key-{number}"), "", labels)
            .await;
        match reason {
            None => {
                let status = answer.expect_err(&shown);
                assert_eq!(status.code(), Code::AlreadyExists, "{shown}: {status:?}");
                client.remove(&target).await.unwrap();
            }
            Some(reason) if reason.ends_with(BY_US) => {
                let status = answer.expect_err(&shown);
                assert_eq!(status.code(), Code::AlreadyExists, "{shown}: {status:?}");
                let said = format!("\"reason\":\"{}\"", reason.trim_end_matches(BY_US));
                let prepared = "\"local-snapshot-prepared\":\"true\"";
                for text in [said.as_str(), prepared] {
                    let log = node.daemon.log();
                    let logged = log.wait_for(mark, PATIENCE, |line| line.contains(text));
                    assert!(logged.is_some(), "{shown}: not {text}\n{}", log.tail(5));
                }
                client.remove(&target).await.unwrap();
            }
            Some(reason) => {
                let mounts = answer.expect(&shown);
                assert_eq!(mounts[0].r#type, "bind", "{shown}");
                let entries = std::fs::read_dir(&mounts[0].source).unwrap();
                assert_eq!(entries.count(), 0, "{shown}");
                let said = format!("\"reason\":\"{reason}\"");
                let logged = node.daemon.log().wait_for(mark, PATIENCE, |line| {
                    line.contains("defer-snapshot-runtime") && line.contains(&said)
                });
                let log = node.daemon.log().tail(5);
                assert!(logged.is_some(), "{shown}: not {said}\n{log}");
                client.remove(&format!("key-{number}")).await.unwrap();
            }
        }
    }
    client.cleanup().await.unwrap();
    assert!(client.list().await.unwrap().is_empty());
}

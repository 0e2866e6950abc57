//! The referrers API and the referrers tag.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use parking_lot::Mutex;
use soci_oci::{Descriptor, Digest, media_types};

use crate::fake::{Fake, With, client, status};

fn entry(name: &str, kind: &str) -> String {
    let digest = Digest::of(name.as_bytes());
    format!(r#"{{"mediaType":"m/t","digest":"{digest}","size":3,"artifactType":"{kind}"}}"#)
}

fn list(entries: &[String]) -> String {
    format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    )
}

#[tokio::test]
async fn the_api_is_listed_page_by_page_and_filtered_by_us_too() {
    let subject = Digest::of(b"image");
    let fake = Fake::start(|_, request| {
        Some(if request.query.contains("page=2") {
            status(200).body(list(&[entry("three", "want/this")]))
        } else {
            status(200)
                .with("link", &format!("<{}?page=2>; rel=\"next\"", request.path))
                .body(list(&[entry("one", "want/this"), entry("two", "not/this")]))
        })
    })
    .await;
    let found = client()
        .referrers(&fake.reference("a/b:t"), subject, Some("want/this"))
        .await
        .unwrap();
    let digests: Vec<Digest> = found.iter().map(|d| d.digest).collect();
    assert_eq!(digests, [Digest::of(b"one"), Digest::of(b"three")]);
    let first = &fake.requests()[0];
    assert_eq!(first.path, format!("/v2/a/b/referrers/{subject}"));
    assert_eq!(first.query, "artifactType=want%2Fthis");
}

#[tokio::test]
async fn without_the_api_the_referrers_tag_is_read() {
    let subject = Digest::of(b"image");
    let tag = format!("/v2/a/b/manifests/sha256-{}", subject.hex());
    for refusal in [404, 405, 400, 200] {
        let tag = tag.clone();
        let fake = Fake::start(move |_, request| {
            Some(if request.path == tag {
                status(200).body(list(&[entry("one", "a"), entry("two", "b")]))
            } else {
                status(refusal).body("<html>no such page</html>")
            })
        })
        .await;
        let found = client()
            .referrers(&fake.reference("a/b:t"), subject, Some("b"))
            .await
            .unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].digest, Digest::of(b"two"));
    }
    let fake = Fake::start(|_, _| Some(status(404))).await;
    let found = client()
        .referrers(&fake.reference("a/b:t"), subject, None)
        .await
        .unwrap();
    assert!(found.is_empty(), "neither: nothing refers to it");
}

#[tokio::test]
async fn an_endless_list_ends() {
    let fake = Fake::start(|number, request| {
        let link = format!("<{}?n={number}>; rel=next", request.path);
        Some(status(200).with("link", &link).body(list(&[])))
    })
    .await;
    let error = client()
        .referrers(&fake.reference("a/b:t"), Digest::of(b"image"), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), soci_registry::ErrorKind::TooLarge);
}

/// Manifests by path.
type Kept = Arc<Mutex<BTreeMap<String, Bytes>>>;

async fn keeping(kept: &Kept, knows_subjects: bool) -> Fake {
    let kept = Arc::clone(kept);
    Fake::start(move |_, request| {
        let mut kept = kept.lock();
        Some(if request.method == Method::PUT {
            kept.insert(request.path.clone(), request.body.clone());
            let created = status(201);
            if knows_subjects {
                created.with("oci-subject", "yes")
            } else {
                created
            }
        } else {
            match kept.get(&request.path) {
                Some(bytes) => status(200)
                    .with("content-type", media_types::OCI_INDEX)
                    .body(bytes.clone()),
                None => status(404),
            }
        })
    })
    .await
}

fn manifest_about(subject: &Descriptor, name: &str) -> Bytes {
    let config = Descriptor::of("want/this", b"{}");
    let mut manifest = soci_oci::Manifest {
        schema_version: 2,
        media_type: media_types::OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config,
        layers: Vec::new(),
        subject: Some(subject.clone()),
        annotations: BTreeMap::new(),
    };
    manifest
        .annotations
        .insert("name".to_owned(), name.to_owned());
    soci_oci::json::to_vec(&manifest).unwrap().into()
}

#[tokio::test]
async fn pushing_about_a_subject_updates_the_tag_of_registries_that_do_not() {
    let subject = Descriptor::of(media_types::OCI_MANIFEST, b"image");
    let kept = Kept::default();
    let fake = keeping(&kept, false).await;
    let client = client();
    let mut pushed = Vec::new();
    for name in ["one", "two", "one"] {
        let bytes = manifest_about(&subject, name);
        let reference = fake.reference("a/b:t").at(Digest::of(&bytes));
        let digest = client
            .push_manifest(&reference, media_types::OCI_MANIFEST, bytes)
            .await
            .unwrap();
        pushed.push(digest);
    }
    let found = client
        .referrers(&fake.reference("a/b:t"), subject.digest, Some("want/this"))
        .await
        .unwrap();
    let digests: Vec<Digest> = found.iter().map(|d| d.digest).collect();
    assert_eq!(digests, pushed[..2], "each once");
    assert_eq!(found[1].annotation("name"), Some("two"));
}

#[tokio::test]
async fn the_tag_is_left_alone_where_the_registry_keeps_referrers_or_there_is_no_subject() {
    let subject = Descriptor::of(media_types::OCI_MANIFEST, b"image");
    let kept = Kept::default();
    let fake = keeping(&kept, true).await;
    let reference = fake.reference("a/b:t");
    let about = manifest_about(&subject, "one");
    client()
        .push_manifest(&reference, media_types::OCI_MANIFEST, about)
        .await
        .unwrap();
    assert_eq!(
        kept.lock().keys().collect::<Vec<_>>(),
        ["/v2/a/b/manifests/t"]
    );
    let kept = Kept::default();
    let fake = keeping(&kept, false).await;
    let reference = fake.reference("a/b:t");
    let plain = Bytes::from_static(b"{}");
    client()
        .push_manifest(&reference, media_types::OCI_MANIFEST, plain)
        .await
        .unwrap();
    assert_eq!(fake.requests().len(), 1);
}

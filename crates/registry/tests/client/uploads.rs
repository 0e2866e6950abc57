//! Pushing blobs and manifests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use soci_oci::Digest;
use soci_registry::{BlobBody, ErrorKind, PushOutcome, StaticCredentials};

use crate::fake::{
    Fake, Received, With, basic, client, client_with, descriptor, noise, redirect, status,
};

/// A registry that takes anything; sessions are at `/session/<n>` with a query of their own.
fn take(number: usize, request: &Received) -> Response {
    match request.method {
        Method::HEAD => status(404),
        Method::POST => status(202).with("location", &format!("/session/{number}?state=a%2Fb")),
        Method::PATCH => status(202).with("location", "/patched?state=c"),
        _ => status(201),
    }
}

fn methods(fake: &Fake) -> Vec<String> {
    fake.requests()
        .iter()
        .map(|r| format!("{} {}", r.method, r.path))
        .collect()
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_transferred() {
    let fake = Fake::start(|_, _| Some(status(200))).await;
    let outcome = client()
        .push_blob(
            &fake.reference("a/b:t"),
            &descriptor(b"abc"),
            Bytes::from("abc").into(),
            None,
            None,
        )
        .await
        .unwrap();
    assert_eq!(outcome, PushOutcome::Exists);
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_small_blob_goes_in_one_put_to_the_relative_location() {
    let fake = Fake::start(|number, request| Some(take(number, request))).await;
    let data = noise(5000);
    let wanted = descriptor(&data);
    let sent = AtomicU64::new(0);
    let outcome = client()
        .push_blob(
            &fake.reference("a/b:t"),
            &wanted,
            data.clone().into(),
            None,
            Some(&|bytes| sent.store(bytes, Ordering::SeqCst)),
        )
        .await
        .unwrap();
    assert_eq!(outcome, PushOutcome::Uploaded);
    let requests = fake.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[1].path, "/v2/a/b/blobs/uploads/");
    let put = &requests[2];
    assert_eq!(put.path, "/session/1");
    let digest = wanted.digest.to_string().replace(':', "%3A");
    assert_eq!(put.query, format!("state=a%2Fb&digest={digest}"));
    assert_eq!(put.header("content-length"), Some("5000"));
    assert!(put.body == data);
    assert_eq!(sent.load(Ordering::SeqCst), 5000);
}

#[tokio::test]
async fn a_large_file_is_streamed_with_patch_and_closed_with_put() {
    let data = noise(9 << 20);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer");
    std::fs::write(&path, &data).unwrap();
    let fake = Fake::start(|number, request| Some(take(number, request))).await;
    client()
        .push_blob(
            &fake.reference("a/b:t"),
            &descriptor(&data),
            path.into(),
            None,
            None,
        )
        .await
        .unwrap();
    assert_eq!(
        methods(&fake)[1..],
        [
            "POST /v2/a/b/blobs/uploads/",
            "PATCH /session/1",
            "PUT /patched"
        ]
    );
    let requests = fake.requests();
    assert!(requests[2].body == data);
    assert!(requests[3].body.is_empty() && requests[3].query.starts_with("state=c&digest=sha256"));
    assert_eq!(requests[3].header("content-length"), Some("0"));
}

#[tokio::test]
async fn an_interrupted_upload_starts_over_with_the_body_from_its_start() {
    let data = noise(9 << 20);
    let body = data.clone();
    let opened = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&opened);
    let body = BlobBody::stream(move || {
        count.fetch_add(1, Ordering::SeqCst);
        let pieces: Vec<_> = body
            .chunks(1 << 20)
            .map(|c| Ok(Bytes::copy_from_slice(c)))
            .collect();
        futures::stream::iter(pieces).boxed()
    });
    let fake = Fake::start(|number, request| {
        Some(if number == 2 {
            status(503)
        } else {
            take(number, request)
        })
    })
    .await;
    let outcome = client()
        .push_blob(
            &fake.reference("a/b:t"),
            &descriptor(&data),
            body,
            None,
            None,
        )
        .await
        .unwrap();
    assert_eq!(outcome, PushOutcome::Uploaded);
    assert_eq!(opened.load(Ordering::SeqCst), 2);
    assert_eq!(
        methods(&fake)[1..],
        [
            "POST /v2/a/b/blobs/uploads/",
            "PATCH /session/1",
            "POST /v2/a/b/blobs/uploads/",
            "PATCH /session/3",
            "PUT /patched"
        ]
    );
    assert!(fake.requests()[4].body == data);
}

#[tokio::test]
async fn a_blob_is_mounted_from_another_repository_where_the_registry_can() {
    let data = noise(100);
    let wanted = descriptor(&data);
    for can in [true, false] {
        let fake = Fake::start(move |number, request| {
            Some(if can && request.method == Method::POST {
                status(201)
            } else {
                take(number, request)
            })
        })
        .await;
        let outcome = client()
            .push_blob(
                &fake.reference("a/b:t"),
                &wanted,
                data.clone().into(),
                Some("c/d"),
                None,
            )
            .await
            .unwrap();
        let expected = if can {
            PushOutcome::Mounted
        } else {
            PushOutcome::Uploaded
        };
        assert_eq!(outcome, expected);
        let digest = wanted.digest.to_string().replace(':', "%3A");
        assert_eq!(
            fake.requests()[1].query,
            format!("mount={digest}&from=c%2Fd")
        );
    }
}

#[tokio::test]
async fn uploads_follow_a_307_and_an_absolute_location_without_leaking_credentials() {
    let data = noise(9 << 20);
    let other = Fake::start(|number, request| Some(take(number, request))).await;
    let uploads = other.url("/uploads");
    let fake = Fake::start(move |_, request| {
        Some(if !request.headers.contains_key("authorization") {
            status(401).with("www-authenticate", "Basic realm=x")
        } else if request.method == Method::HEAD {
            status(404)
        } else {
            redirect(307, &uploads)
        })
    })
    .await;
    let client = client_with(StaticCredentials::new(fake.host(), basic("me", "hunter2")));
    client
        .push_blob(
            &fake.reference("a/b:t"),
            &descriptor(&data),
            data.clone().into(),
            None,
            None,
        )
        .await
        .unwrap();
    assert_eq!(
        methods(&other),
        ["POST /uploads", "PATCH /session/0", "PUT /patched"]
    );
    let requests = other.requests();
    assert!(
        requests
            .iter()
            .all(|r| !r.headers.contains_key("authorization"))
    );
    assert!(requests[1].body == data);
}

#[tokio::test]
async fn a_redirected_body_is_sent_again_in_full() {
    let data = noise(5000);
    let fake = Fake::start(|number, request| {
        Some(if request.path.starts_with("/session") {
            redirect(307, "/elsewhere?x=1")
        } else {
            take(number, request)
        })
    })
    .await;
    client()
        .push_blob(
            &fake.reference("a/b:t"),
            &descriptor(&data),
            data.clone().into(),
            None,
            None,
        )
        .await
        .unwrap();
    let last = fake.requests().pop().unwrap();
    assert_eq!(
        (last.method, last.path.as_str()),
        (Method::PUT, "/elsewhere")
    );
    assert!(last.body == data);
}

#[tokio::test]
async fn a_body_of_another_size_is_never_committed() {
    for (length, said) in [(100, "less"), (10_000, "more")] {
        let data = noise(5000);
        let fake = Fake::start(|number, request| Some(take(number, request))).await;
        let wrong = noise(length);
        let error = client()
            .push_blob(
                &fake.reference("a/b:t"),
                &descriptor(&data),
                wrong.into(),
                None,
                None,
            )
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    let fake = Fake::start(|number, request| Some(take(number, request))).await;
    let missing = BlobBody::File("/nonexistent/layer".into());
    let error = client()
        .push_blob(
            &fake.reference("a/b:t"),
            &descriptor(b"abc"),
            missing,
            None,
            None,
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/layer"), "{error}");
}

#[tokio::test]
async fn manifests_are_pushed_by_tag_or_digest() {
    let fake = Fake::start(|_, _| Some(status(201))).await;
    let bytes = Bytes::from_static(b"{}");
    let digest = Digest::of(&bytes);
    let reference = fake.reference("a/b:t");
    for reference in [reference.clone(), reference.at(digest)] {
        let pushed = client()
            .push_manifest(&reference, "m/t", bytes.clone())
            .await
            .unwrap();
        assert_eq!(pushed, digest);
    }
    assert_eq!(
        methods(&fake),
        [
            "PUT /v2/a/b/manifests/t".to_owned(),
            format!("PUT /v2/a/b/manifests/{digest}")
        ]
    );
    assert_eq!(fake.requests()[0].header("content-type"), Some("m/t"));
    let wrong = reference.at(Digest::of(b"x"));
    let error = client()
        .push_manifest(&wrong, "m/t", bytes)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_registry_that_stored_something_else_is_noticed() {
    let fake = Fake::start(|_, _| {
        let other = Digest::of(b"other").to_string();
        Some(status(201).with("docker-content-digest", &other))
    })
    .await;
    let error = client()
        .push_manifest(&fake.reference("a/b:t"), "m/t", Bytes::from_static(b"{}"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch);
}

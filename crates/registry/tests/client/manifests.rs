//! Resolving references and reading manifests.

use axum::body::Body;
use bytes::Bytes;
use http::Method;
use soci_oci::{Digest, media_types};
use soci_registry::ErrorKind;

use crate::fake::{Fake, With, client, status};

const MANIFEST: &[u8] = br#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

#[tokio::test]
async fn resolving_takes_one_head_request() {
    let digest = Digest::of(MANIFEST);
    let fake = Fake::start(move |_, _| {
        Some(
            status(200)
                .with("content-type", media_types::OCI_MANIFEST)
                .with("docker-content-digest", &digest.to_string())
                .with("content-length", &MANIFEST.len().to_string())
                .body(MANIFEST),
        )
    })
    .await;
    let found = client().resolve(&fake.reference("a/b:t")).await.unwrap();
    assert_eq!(
        found,
        soci_oci::Descriptor::of(media_types::OCI_MANIFEST, MANIFEST)
    );
    let requests = fake.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        (&requests[0].method, requests[0].path.as_str()),
        (&Method::HEAD, "/v2/a/b/manifests/t")
    );
    assert!(
        requests[0]
            .header("accept")
            .unwrap()
            .contains(media_types::OCI_INDEX)
    );
    let by_digest = fake.reference(&format!("a/b:t@{digest}"));
    assert_eq!(client().resolve(&by_digest).await.unwrap().digest, digest);
    assert_eq!(
        fake.requests()[1].path,
        format!("/v2/a/b/manifests/{digest}")
    );
}

#[tokio::test]
async fn where_head_is_refused_or_says_too_little_get_resolves() {
    for refusal in [405, 403, 400, 200] {
        let fake = Fake::start(move |_, request| {
            Some(if request.method == Method::HEAD {
                status(refusal)
            } else {
                // No media type and no digest: both are found in the bytes.
                status(200)
                    .with("content-type", "application/json")
                    .body(MANIFEST)
            })
        })
        .await;
        let found = client().resolve(&fake.reference("a/b:t")).await.unwrap();
        assert_eq!(
            found,
            soci_oci::Descriptor::of(media_types::OCI_MANIFEST, MANIFEST)
        );
        assert_eq!(fake.requests().len(), 2);
    }
}

#[tokio::test]
async fn what_does_not_exist_is_requested_once() {
    let fake = Fake::start(|_, _| Some(status(404))).await;
    let error = client()
        .resolve(&fake.reference("a/b:t"))
        .await
        .unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn manifests_that_are_not_what_their_digest_says_are_refused() {
    let digest = Digest::of(b"something else");
    let fake = Fake::start(move |_, request| {
        Some(
            status(200)
                .with("content-type", media_types::OCI_MANIFEST)
                .with("content-length", &MANIFEST.len().to_string())
                .with(
                    "docker-content-digest",
                    &Digest::of(request.path.as_bytes()).to_string(),
                )
                .body(MANIFEST),
        )
    })
    .await;
    let client = client();
    let reference = fake.reference("a/b:t");
    let error = client.manifest(&reference, digest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error}");
    // By tag, the registry's own word about the digest has to fit.
    let error = client.manifest(&reference, "t").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error}");
    let error = client.resolve(&reference.at(digest)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error}");
}

#[tokio::test]
async fn a_huge_manifest_is_refused_whether_or_not_it_says_how_large_it_is() {
    let fake = Fake::start(|number, _| {
        let piece = Bytes::from(vec![b' '; 1 << 20]);
        Some(if number == 0 {
            status(200).body(vec![b' '; 9 << 20])
        } else {
            let endless =
                futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
            status(200).body(Body::from_stream(endless))
        })
    })
    .await;
    let client = client();
    for _ in 0..2 {
        let error = client
            .manifest(&fake.reference("a/b:t"), "t")
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    }
    assert_eq!(fake.requests().len(), 2);
}

#[tokio::test]
async fn a_huge_error_page_is_cut_short() {
    let fake = Fake::start(|_, _| {
        let piece = Bytes::from(vec![b'x'; 1 << 16]);
        let endless = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
        Some(status(403).body(Body::from_stream(endless)))
    })
    .await;
    let error = client()
        .manifest(&fake.reference("a/b:t"), "t")
        .await
        .unwrap_err();
    assert!(error.to_string().len() < 1000);
}

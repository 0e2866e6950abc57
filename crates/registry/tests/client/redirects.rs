//! Redirects to object storage: remembered, followed without our credentials, resolved again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use soci_registry::{BlobSource, Deadline, ErrorKind, StaticCredentials};

use crate::fake::{
    Fake, With, basic, client, client_with, descriptor, noise, pass, redirect, serve, status,
};

/// Object storage that takes only the signature that `valid` counts, and answers others with
/// `refusal`.
async fn storage(data: &Bytes, valid: &Arc<AtomicUsize>, refusal: u16) -> Fake {
    let (data, valid) = (data.clone(), Arc::clone(valid));
    Fake::start(move |_, request| {
        let wanted = format!("sig={}", valid.load(Ordering::SeqCst));
        Some(if request.query == wanted {
            serve(request, &data)
        } else {
            status(refusal)
        })
    })
    .await
}

#[tokio::test]
async fn another_host_never_sees_our_credentials_and_is_remembered() {
    let data = noise(1000);
    let valid = Arc::new(AtomicUsize::new(0));
    let storage = storage(&data, &valid, 403).await;
    let target = storage.url("/bucket/x?sig=0");
    let registry = Fake::start(move |_, request| {
        Some(if request.headers.contains_key("authorization") {
            redirect(307, &target)
        } else {
            status(401).with("www-authenticate", "Basic realm=x")
        })
    })
    .await;
    let client = client_with(StaticCredentials::new(
        registry.host(),
        basic("me", "hunter2"),
    ));
    let blob = client.blob(&registry.reference("a/b:t"), &descriptor(&data));
    for (from, to) in [(0, 10), (10, 20), (990, 1000)] {
        let got = blob
            .read_range(from as u64..to as u64, Deadline::far())
            .await
            .unwrap();
        assert_eq!(got, data.slice(from..to));
    }
    assert_eq!(registry.requests().len(), 2, "asked once, with a challenge");
    let seen = storage.requests();
    assert_eq!(seen.len(), 3);
    for request in seen {
        assert!(!request.headers.contains_key("authorization"));
        assert!(!request.headers.contains_key("cookie"));
        assert!(!request.headers.contains_key("referer"));
        assert_eq!(request.path, "/bucket/x");
    }
}

#[tokio::test]
async fn an_expired_signed_url_is_resolved_again() {
    for refusal in [400, 401, 403, 404, 410] {
        let data = noise(1000);
        let valid = Arc::new(AtomicUsize::new(0));
        let storage = storage(&data, &valid, refusal).await;
        let base = storage.url("/x");
        let now = Arc::clone(&valid);
        let registry = Fake::start(move |_, _| {
            Some(redirect(
                302,
                &format!("{base}?sig={}", now.load(Ordering::SeqCst)),
            ))
        })
        .await;
        let blob = client().blob(&registry.reference("a/b:t"), &descriptor(&data));
        assert_eq!(
            blob.read_range(0..9, Deadline::far()).await.unwrap(),
            data.slice(0..9)
        );
        valid.store(1, Ordering::SeqCst);
        assert_eq!(
            blob.read_range(9..20, Deadline::far()).await.unwrap(),
            data.slice(9..20)
        );
        assert_eq!(registry.requests().len(), 2);
        assert_eq!(storage.requests().len(), 3);
    }
}

#[tokio::test]
async fn a_signed_url_that_says_when_it_ends_is_not_used_after_that() {
    let data = noise(1000);
    let served = data.clone();
    let storage = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let base = storage.url("/x");
    let registry = Fake::start(move |_, _| {
        // 20 s before its end it is not used any more.
        let end = SystemTime::now() + Duration::from_secs(80);
        let end = end
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        Some(redirect(307, &format!("{base}?Expires={end}&Signature=s")))
    })
    .await;
    let blob = client().blob(&registry.reference("a/b:t"), &descriptor(&data));
    blob.read_range(0..9, Deadline::far()).await.unwrap();
    pass(Duration::from_secs(60)).await;
    blob.read_range(9..20, Deadline::far()).await.unwrap();
    assert_eq!(registry.requests().len(), 2);
}

#[tokio::test]
async fn a_blob_that_storage_refuses_for_good_is_an_error_without_the_signature() {
    let storage = Fake::start(|_, _| {
        Some(status(403).body(
            "<Error><Code>SignatureDoesNotMatch</Code><StringToSign>s3cret</StringToSign></Error>",
        ))
    })
    .await;
    let target = storage.url("/x?sig=s3cret");
    let registry = Fake::start(move |_, _| Some(redirect(307, &target))).await;
    let blob = client().blob(&registry.reference("a/b:t"), &descriptor(b"abc"));
    let error = blob.read_range(0..2, Deadline::far()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    let text = format!("{error} {error:?}");
    assert!(text.contains("SignatureDoesNotMatch"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let fake = Fake::start(|_, request| Some(redirect(307, &request.path))).await;
    let reference = fake.reference("a/b:t");
    for error in [
        client().resolve(&reference).await.unwrap_err(),
        client()
            .blob_bytes(&reference, &descriptor(b"x"))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
    assert!(fake.requests().len() < 40);
}

#[tokio::test]
async fn redirects_to_nowhere_are_protocol_errors() {
    for target in ["file:///etc/passwd", "http://", "ftp://x/y"] {
        let fake = Fake::start(move |_, _| Some(redirect(307, target))).await;
        let blob = client().blob(&fake.reference("a/b:t"), &descriptor(b"abc"));
        let error = blob.read_range(0..2, Deadline::far()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
    let fake = Fake::start(|_, _| Some(status(307))).await;
    let blob = client().blob(&fake.reference("a/b:t"), &descriptor(b"abc"));
    let error = blob.read_range(0..2, Deadline::far()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn a_redirect_back_to_the_registry_keeps_our_credentials() {
    let data = noise(100);
    let served = data.clone();
    let fake = Fake::start(move |_, request| {
        Some(if !request.headers.contains_key("authorization") {
            status(401).with("www-authenticate", "Basic realm=x")
        } else if request.path.starts_with("/v2/") {
            redirect(307, "/files/x")
        } else {
            serve(request, &served)
        })
    })
    .await;
    let client = client_with(StaticCredentials::new(fake.host(), basic("me", "hunter2")));
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&data));
    assert_eq!(
        blob.read_range(0..9, Deadline::far()).await.unwrap(),
        data.slice(0..9)
    );
    assert_eq!(
        blob.read_range(3..9, Deadline::far()).await.unwrap(),
        data.slice(3..9)
    );
    let last = fake.requests().pop().unwrap();
    assert_eq!(last.path, "/files/x");
}

//! Mirrors are asked before the origin, for everything that is read.

use std::sync::Arc;
use std::time::Duration;

use soci_oci::{Descriptor, Digest, media_types};
use soci_registry::{BlobSource, Client, Deadline, HostHeaders, Mirror, StaticCredentials};

use crate::fake::{Fake, With, basic, config, descriptor, noise, read_everything, serve, status};

fn mirrored(origin: &Fake, mirrors: &[String]) -> Client {
    let mut config = config();
    let mirrors = mirrors
        .iter()
        .map(|host| Mirror {
            host: host.clone(),
            insecure: true,
            request_timeout: Some(Duration::from_secs(2)),
            headers: HostHeaders::default(),
        })
        .collect();
    config.hosts.insert(origin.host(), mirrors);
    let credentials = StaticCredentials::new(origin.host(), basic("me", "hunter2"));
    Client::new(config, Arc::new(credentials)).unwrap()
}

#[tokio::test]
async fn a_mirror_is_used_for_manifests_referrers_and_blobs_under_its_own_path() {
    let data = noise(1000);
    let served = data.clone();
    let origin = Fake::start(|_, _| Some(status(500))).await;
    let mirror = Fake::start(move |_, request| {
        Some(if request.path.contains("/blobs/") {
            serve(request, &served)
        } else if request.path.contains("/referrers/") {
            status(200).body(r#"{"schemaVersion":2,"manifests":[]}"#)
        } else {
            status(200)
                .with("content-type", media_types::OCI_MANIFEST)
                .body("{}")
        })
    })
    .await;
    let client = mirrored(&origin, &[mirror.url("/cache/v2")]);
    let reference = origin.reference("a/b:t");
    let found = read_everything(&client, &reference, &data).await;
    assert_eq!(found, Descriptor::of(media_types::OCI_MANIFEST, b"{}"));
    assert!(origin.requests().is_empty());
    let ns = format!("ns={}", origin.host().replace(':', "%3A"));
    for request in mirror.requests() {
        assert!(
            request.path.starts_with("/cache/v2/a/b/"),
            "{}",
            request.path
        );
        assert_eq!(request.query, ns);
    }
}

#[tokio::test]
async fn mirrors_that_are_down_or_do_not_have_it_are_passed_over() {
    let data = noise(1000);
    let served = data.clone();
    let origin = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let without = Fake::start(|_, _| Some(status(404))).await;
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    // Bare names will do.
    let client = mirrored(&origin, &[gone, without.host()]);
    let reference = origin.reference("a/b:t");
    let blob = client.blob(&reference, &descriptor(&data));
    for from in [0_usize, 100, 200] {
        let got = blob
            .read_range(from as u64..from as u64 + 50, Deadline::far())
            .await
            .unwrap();
        assert_eq!(got, data.slice(from..from + 50));
    }
    assert_eq!(
        without.requests().len(),
        1,
        "where the blob is, is remembered"
    );
    assert_eq!(origin.requests().len(), 3);
}

#[tokio::test]
async fn damaged_content_of_a_mirror_is_fetched_from_the_origin() {
    let data = noise(1000);
    let served = data.clone();
    let origin = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let damaged = noise(999).iter().chain(b"?").copied().collect::<Vec<u8>>();
    let mirror = Fake::start(move |_, request| Some(serve(request, &damaged.clone().into()))).await;
    let reference = origin.reference("a/b:t");
    let client = mirrored(&origin, &[mirror.host()]);
    let got = client
        .blob_bytes(&reference, &descriptor(&data))
        .await
        .unwrap();
    assert!(got == data);
    let client = mirrored(&origin, &[mirror.host()]);
    let (_, bytes) = client
        .manifest(&reference, Digest::of(&data))
        .await
        .unwrap();
    assert!(bytes == data);
}

#[tokio::test]
async fn a_mirror_that_breaks_off_is_replaced_at_the_offset_reached() {
    let data = noise(10_000);
    let served = data.clone();
    let origin = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let start = data.slice(0..4000);
    let mirror = Fake::start(move |number, _| {
        Some(if number == 0 {
            crate::fake::broken(status(200), 10_000, start.clone())
        } else {
            status(503)
        })
    })
    .await;
    let client = mirrored(&origin, &[mirror.host()]);
    let got = client
        .blob_bytes(&origin.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    assert!(got == data);
    assert_eq!(origin.requests().len(), 1);
    assert!(
        origin.requests()[0]
            .range()
            .is_some_and(|(_, last)| last == 9_999)
    );
}

#[tokio::test]
async fn the_origins_credentials_do_not_go_to_its_mirrors() {
    let data = noise(10);
    let served = data.clone();
    let origin = Fake::start(move |_, request| {
        Some(if request.headers.contains_key("authorization") {
            serve(request, &served)
        } else {
            status(401).with("www-authenticate", "Basic realm=x")
        })
    })
    .await;
    let mirror =
        Fake::start(|_, _| Some(status(401).with("www-authenticate", "Basic realm=x"))).await;
    let client = mirrored(&origin, &[mirror.host()]);
    client
        .blob_bytes(&origin.reference("a/b:t"), &descriptor(&data))
        .await
        .unwrap();
    assert!(!mirror.requests().is_empty());
    assert!(
        mirror
            .requests()
            .iter()
            .all(|r| !r.headers.contains_key("authorization"))
    );
}

//! Mirrors that serve what they have, as peers of a cluster do, caches, and what stands in their place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use soci_oci::{Digest, Reference, media_types};
use soci_registry::{
    BlobSource as _, Candidate, Client, CredentialError, CredentialScope, Credentials, Deadline,
    HostHeaders, Mirror, NoCredentials,
};

use crate::fake::{
    Fake, Received, With as _, basic, config, descriptor, noise, pass, serve, status,
};

fn mirrored(origin: &Fake, mirror: &Fake, credentials: impl Credentials + 'static) -> Client {
    let mut config = config();
    let mirror = Mirror {
        host: mirror.host(),
        insecure: true,
        request_timeout: None,
        headers: HostHeaders::default(),
    };
    config.hosts.insert(origin.host(), vec![mirror]);
    Client::new(config, Arc::new(credentials)).unwrap()
}

async fn serving(data: &Bytes) -> Fake {
    let data = data.clone();
    Fake::start(move |_, request| Some(serve(request, &data))).await
}

#[tokio::test]
async fn a_peer_serves_the_ranges_that_it_has_and_is_tried_again_for_the_others() {
    let (has, lacks) = (noise(1000), noise(900));
    let complete = Arc::new(AtomicBool::new(false));
    let (at_peer, later, now) = (has.clone(), lacks.clone(), complete.clone());
    let peer = Fake::start(move |_, request| {
        let is = |data: &Bytes| request.path.ends_with(&Digest::of(data).to_string());
        Some(match () {
            () if is(&at_peer) => serve(request, &at_peer),
            () if is(&later) && now.load(Ordering::SeqCst) => serve(request, &later),
            () => status(404),
        })
    })
    .await;
    let (one, two) = (has.clone(), lacks.clone());
    let origin = Fake::start(move |_, request| {
        let is_one = request.path.ends_with(&Digest::of(&one).to_string());
        Some(serve(request, if is_one { &one } else { &two }))
    })
    .await;
    let client = mirrored(&origin, &peer, NoCredentials);
    let reference = origin.reference("a/b:t");
    let (first, second) = (
        client.blob(&reference, &descriptor(&has)),
        client.blob(&reference, &descriptor(&lacks)),
    );
    let far = Deadline::far;
    for from in [0_u64, 100, 200] {
        let at = usize::try_from(from).unwrap();
        let got = first.read_range(from..from + 9, far()).await.unwrap();
        assert_eq!(got, has.slice(at..at + 9));
        let got = second.read_range(from..from + 9, far()).await.unwrap();
        assert_eq!(got, lacks.slice(at..at + 9));
    }
    // The peer was asked once for what it lacks, and stays first for what it has.
    assert_eq!((peer.requests().len(), origin.requests().len()), (4, 3));
    complete.store(true, Ordering::SeqCst);
    pass(Duration::from_secs(301)).await;
    assert_eq!(
        second.read_range(1..9, far()).await.unwrap(),
        lacks.slice(1..9)
    );
    assert_eq!((peer.requests().len(), origin.requests().len()), (5, 3));
}

#[tokio::test]
async fn a_mirror_that_answers_with_a_page_is_passed_over_for_every_object() {
    let data = noise(1000);
    let manifest: Bytes = Bytes::from_static(br#"{"schemaVersion":2}"#);
    for chunked in [false, true] {
        let page = Fake::start(move |_, _| {
            let text = "<html><body>please log in</body></html>";
            let body = match chunked {
                false => Body::from(text),
                true => Body::from_stream(futures::stream::iter([Ok::<_, std::io::Error>(text)])),
            };
            Some(
                status(200)
                    .with("content-type", "text/html; charset=utf-8")
                    .body(body),
            )
        })
        .await;
        let (served, said) = (data.clone(), manifest.clone());
        let origin = Fake::start(move |_, request| {
            Some(match () {
                () if request.path.contains("/blobs/") => serve(request, &served),
                () => status(200)
                    .with("content-type", media_types::OCI_MANIFEST)
                    .body(said.clone()),
            })
        })
        .await;
        let client = mirrored(&origin, &page, NoCredentials);
        let reference = origin.reference("a/b:t");
        let found = client.resolve(&reference).await.unwrap();
        assert_eq!(found.digest, Digest::of(&manifest));
        let (_, got) = client
            .manifest(&reference, Digest::of(&manifest))
            .await
            .unwrap();
        assert_eq!(got, manifest);
        let got = client
            .blob_bytes(&reference, &descriptor(&data))
            .await
            .unwrap();
        assert!(got == data);
        let blob = client.blob(&reference, &descriptor(&data));
        let got = blob.read_range(5..50, Deadline::far()).await.unwrap();
        assert_eq!(got, data.slice(5..50));
    }
}

#[tokio::test]
async fn a_mirror_whose_bodies_break_off_again_and_again_is_left_for_the_registry() {
    let data = noise(10_000);
    let start = data.slice(0..100);
    let mirror =
        Fake::start(move |_, _| Some(crate::fake::broken(status(200), 10_000, start.clone())))
            .await;
    let origin = serving(&data).await;
    let client = mirrored(&origin, &mirror, NoCredentials);
    let blob = client.blob(&origin.reference("a/b:t"), &descriptor(&data));
    let got = blob
        .read_range(2_000..9_000, Deadline::far())
        .await
        .unwrap();
    assert_eq!(got, data.slice(2_000..9_000));
    assert_eq!(origin.requests().len(), 1);
    // A part with a wrong digest is not a broken body: the caller says so.
    let wrong: Bytes = data.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>().into();
    let (origin, wrong) = (serving(&data).await, serving(&wrong).await);
    let client = mirrored(&origin, &wrong, NoCredentials);
    let blob = client.blob(&origin.reference("a/b:t"), &descriptor(&data));
    let read = async || blob.read_range(0..10_000, Deadline::far()).await.unwrap();
    assert!(read().await != data);
    blob.served_damage();
    assert!(read().await == data);
}

/// Credentials by host.
struct ByHost(BTreeMap<String, &'static str>);

#[async_trait]
impl Credentials for ByHost {
    async fn candidates(
        &self,
        host: &str,
        _: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let user = self.0.get(host).copied();
        let candidate = |user| Candidate::new(basic(user, "pw"), CredentialScope::Host);
        Ok(user.map(candidate).into_iter().collect())
    }
}

#[tokio::test]
async fn a_mirror_that_wants_credentials_gets_its_own_and_the_registry_its_own() {
    let data = noise(1000);
    let private = |data: &Bytes| {
        let data = data.clone();
        move |_: usize, request: &Received| {
            Some(match request.headers.contains_key("authorization") {
                true => serve(request, &data),
                false => status(401).with("www-authenticate", "Basic realm=x"),
            })
        }
    };
    let mirror = Fake::start(private(&data)).await;
    let origin = Fake::start(private(&data)).await;
    let users = BTreeMap::from([(mirror.host(), "of-mirror"), (origin.host(), "of-origin")]);
    let client = mirrored(&origin, &mirror, ByHost(users));
    let reference = origin.reference("a/b:t");
    let got = client
        .blob_bytes(&reference, &descriptor(&data))
        .await
        .unwrap();
    assert!(got == data);
    // Existence is asked at the registry itself.
    assert!(
        client
            .blob_exists(&reference, &descriptor(&data))
            .await
            .unwrap()
    );
    let sent = |fake: &Fake| -> Vec<String> {
        let requests = fake.requests().into_iter();
        let header = |r: Received| r.headers.get("authorization").cloned();
        let values = requests.filter_map(header);
        values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    };
    // base64 of `of-mirror:pw` and `of-origin:pw`
    let (of_mirror, of_origin) = (sent(&mirror), sent(&origin));
    assert!(!of_mirror.is_empty() && of_mirror.iter().all(|one| one == "Basic b2YtbWlycm9yOnB3"));
    assert!(!of_origin.is_empty() && of_origin.iter().all(|one| one == "Basic b2Ytb3JpZ2luOnB3"));
}

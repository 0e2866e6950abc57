//! TLS. Loopback registries are spoken to in plain HTTP, so TLS is reached through a redirect.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::Version;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use soci_registry::{
    BlobSource, Client, ClientConfig, Deadline, ErrorKind, NoCredentials, RegistryError,
    RemoteBlob, TlsSettings,
};
use soci_testkit::Https;

use crate::fake::{Fake, With, config, descriptor, noise, redirect, status};

/// Settings with these authorities beside the system's.
fn trusting_too(extra_ca: Vec<Vec<u8>>) -> Arc<TlsSettings> {
    Arc::new(TlsSettings {
        extra_ca,
        ..TlsSettings::default()
    })
}

/// Serves the whole of `data` at `https://localhost:<port>`, offering `protocols`.
struct Secure {
    https: Https,
    versions: Arc<Mutex<Vec<Version>>>,
}

impl Secure {
    async fn start(data: Bytes, protocols: &[&str]) -> Self {
        let versions: Arc<Mutex<Vec<Version>>> = Arc::default();
        let seen = Arc::clone(&versions);
        let app = Router::new().fallback(move |request: Request| {
            seen.lock().push(request.version());
            let data = data.clone();
            async move { status(200).body(data) }
        });
        Self {
            https: Https::start(protocols, app).await.unwrap(),
            versions,
        }
    }

    fn authority(&self) -> Vec<u8> {
        self.https.certificate().as_bytes().to_vec()
    }

    /// A blob whose registry redirects to this server, read with `config`.
    async fn blob(&self, data: &Bytes, config: ClientConfig) -> (Fake, RemoteBlob) {
        let target = format!("https://localhost:{}/x", self.https.port());
        let fake = Fake::start(move |_, _| Some(redirect(307, &target))).await;
        let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
        let blob = client.blob(&fake.reference("a/b:t"), &descriptor(data));
        (fake, blob)
    }
}

#[tokio::test]
async fn a_configured_authority_is_trusted_and_h2_used_where_offered() {
    let data = noise(1000);
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
    ] {
        let server = Secure::start(data.clone(), protocols).await;
        let mut config = config();
        config.tls = trusting_too(vec![server.authority()]);
        let (_fake, blob) = server.blob(&data, config).await;
        assert_eq!(
            blob.read_range(0..1000, Deadline::far()).await.unwrap(),
            data
        );
        assert_eq!(*server.versions.lock(), [version]);
    }
}

#[tokio::test]
async fn an_unknown_authority_is_refused_unless_verification_is_off() {
    let data = noise(1000);
    let server = Secure::start(data.clone(), &["h2"]).await;
    let other = Secure::start(data.clone(), &["h2"]).await;
    let mut wrong = config();
    wrong.tls = trusting_too(vec![other.authority()]);
    let (_fake, blob) = server.blob(&data, wrong).await;
    let error = blob.read_range(0..1000, Deadline::far()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("--tlscacert"), "{error}");
    assert!(!error.is_transient(), "{error}");
    assert!(server.versions.lock().is_empty());
    let mut trusting = config();
    trusting.tls = Arc::new(TlsSettings {
        skip_verify: true,
        ..TlsSettings::default()
    });
    let (_fake, blob) = server.blob(&data, trusting).await;
    assert_eq!(
        blob.read_range(0..1000, Deadline::far()).await.unwrap(),
        data
    );
}

#[tokio::test]
async fn a_broken_certificate_file_is_a_configuration_error() {
    let data = noise(10);
    let server = Secure::start(data.clone(), &["h2"]).await;
    let mut broken = config();
    broken.tls = trusting_too(vec![
        b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n".to_vec(),
    ]);
    let (_fake, blob) = server.blob(&data, broken).await;
    let error = blob.read_range(0..10, Deadline::far()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    let mut none = config();
    none.tls = trusting_too(vec![b"root:x:0:0\n".to_vec()]);
    let (_fake, blob) = server.blob(&data, none).await;
    let error = blob.read_range(0..10, Deadline::far()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test]
async fn plain_http_behind_an_https_address_is_named_and_not_tried_again() {
    let plain = Fake::start(|_, _| Some(status(200).body(noise(10)))).await;
    let target = format!("https://{}/x", plain.host());
    let fake = Fake::start(move |_, _| Some(redirect(307, &target))).await;
    let client = Client::new(config(), Arc::new(NoCredentials)).unwrap();
    let blob = client.blob(&fake.reference("a/b:t"), &descriptor(&noise(10)));
    let error = blob.read_range(0..10, Deadline::far()).await.unwrap_err();
    let RegistryError::Tls { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(source.is_not_tls(), "{error}");
    assert!(error.to_string().contains("--plain-http"), "{error}");
    assert!(!error.is_transient(), "{error}");
}

#[tokio::test]
async fn responses_that_are_not_read_hold_up_no_other_of_the_connection() {
    let (unread, wanted) = (noise(8 << 20), noise(1 << 20));
    let (large, name) = (unread.clone(), descriptor(&wanted).digest.to_string());
    let small = wanted.clone();
    let app = Router::new().fallback(move |request: Request| {
        let body = match request.uri().path().ends_with(&name) {
            true => small.clone(),
            false => large.clone(),
        };
        async move { status(200).body(body) }
    });
    let https = Https::start(&["h2"], app).await.unwrap();
    let mut config = config();
    config.tls = trusting_too(vec![https.certificate().as_bytes().to_vec()]);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let reference = format!("localhost:{}/a/b:t", https.port()).parse().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let blob = client.blob(&reference, &descriptor(&unread));
        let size = unread.len() as u64;
        let mut body = blob.stream_range(0..size, Deadline::far()).await.unwrap();
        body.next().await.unwrap().unwrap();
        waiting.push(body);
    }
    let blob = client.blob(&reference, &descriptor(&wanted));
    let size = wanted.len() as u64;
    let read = blob.read_range(0..size, Deadline::far());
    let read = tokio::time::timeout(Duration::from_secs(60), read).await;
    assert_eq!(read.expect("it waits for the others").unwrap(), wanted);
    // Those can be read on.
    for mut body in waiting {
        let mut more = 0;
        while let Some(piece) = body.next().await {
            more += piece.unwrap().len();
        }
        assert!(more > 4 << 20, "{more} bytes");
    }
}

#[tokio::test]
async fn a_loopback_registry_with_tls_is_found_out_and_one_without_stays_plain() {
    let data = noise(1000);
    let server = Secure::start(data.clone(), &["h2"]).await;
    let mut config = config();
    config.tls = trusting_too(vec![server.authority()]);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let reference = format!("localhost:{}/a/b:t", server.https.port())
        .parse()
        .unwrap();
    for _ in 0..2 {
        let (_, bytes) = client.manifest(&reference, "t").await.unwrap();
        assert_eq!(bytes, data);
        let blob = client.blob(&reference, &descriptor(&data));
        let got = blob.read_range(1..9, Deadline::far()).await.unwrap();
        assert_eq!(got, data.slice(1..9));
    }
    let untrusting = Client::new(crate::fake::config(), Arc::new(NoCredentials)).unwrap();
    let error = untrusting.manifest(&reference, "t").await.unwrap_err();
    assert!(error.to_string().contains("trusts no authority"), "{error}");
    let plain = Fake::start(|_, _| Some(status(400))).await;
    let error = client
        .manifest(&plain.reference("a/b:t"), "t")
        .await
        .unwrap_err();
    assert_eq!(error.status(), Some(400), "{error}");
}

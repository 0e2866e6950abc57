//! Clients with settings that fail fast; the scripted server is the test kit's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use soci_oci::{Descriptor, Reference};
use soci_registry::{
    BlobSource as _, Client, ClientConfig, Credential, Credentials, Deadline, NoCredentials,
    RetryPolicy,
};
pub(crate) use soci_testkit::fake::{Fake, Received, With, broken, noise, redirect, serve, status};

/// Advances the client's time, without waiting for it.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Settings that fail fast.
pub(crate) fn config() -> ClientConfig {
    ClientConfig {
        retries: RetryPolicy {
            max_retries: 3,
            min_wait: Duration::from_millis(1),
            max_wait: Duration::from_millis(20),
        },
        // A busy machine may take longer than the defaults of 3 s; tests of time-outs set their own.
        dial_timeout: Duration::from_secs(60),
        response_header_timeout: Duration::from_secs(60),
        ..ClientConfig::default()
    }
}

pub(crate) fn client() -> Client {
    Client::new(config(), Arc::new(NoCredentials)).unwrap()
}

pub(crate) fn client_with(credentials: impl Credentials + 'static) -> Client {
    Client::new(config(), Arc::new(credentials)).unwrap()
}

pub(crate) fn basic(user: &str, password: &str) -> Credential {
    Credential::Basic {
        user: user.to_owned(),
        password: password.to_owned(),
    }
}

pub(crate) fn descriptor(data: &[u8]) -> Descriptor {
    Descriptor::of("application/octet-stream", data)
}

/// Requests a manifest by its tag and by its digest, for what refers to it, and for a part of a blob.
pub(crate) async fn read_everything(
    client: &Client,
    reference: &Reference,
    data: &Bytes,
) -> Descriptor {
    let found = client.resolve(reference).await.unwrap();
    client.manifest(reference, found.digest).await.unwrap();
    client
        .referrers(reference, found.digest, None)
        .await
        .unwrap();
    let blob = client.blob(reference, &descriptor(data));
    assert_eq!(
        blob.read_range(5..10, Deadline::far()).await.unwrap(),
        data.slice(5..10)
    );
    found
}

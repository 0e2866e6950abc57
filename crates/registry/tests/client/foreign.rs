//! Layers that their manifest says are elsewhere.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use soci_oci::{Descriptor, Reference};
use soci_registry::{
    BlobSource as _, Candidate, Client, CredentialError, CredentialScope, Credentials, Deadline,
};
use soci_testkit::fake::network_address;

use crate::fake::{Fake, With, basic, config, descriptor, noise, serve, status};

/// Credentials for every host.
struct Generous;

#[async_trait]
impl Credentials for Generous {
    async fn candidates(
        &self,
        _: &str,
        _: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let known = basic("user", "secret");
        Ok(vec![Candidate::new(known, CredentialScope::Host)])
    }
}

/// A client that has credentials, and may do without TLS.
fn client() -> Client {
    let mut config = config();
    config.plain_http = true;
    Client::new(config, Arc::new(Generous)).unwrap()
}

fn foreign(data: &Bytes, urls: &[String]) -> Descriptor {
    Descriptor {
        urls: urls.to_vec(),
        ..descriptor(data)
    }
}

async fn server(data: &Bytes) -> Fake {
    let data = data.clone();
    Fake::start_at(network_address(), move |_, request| {
        Some(serve(request, &data))
    })
    .await
}

#[tokio::test]
async fn a_layer_comes_from_the_urls_of_its_manifest_without_credentials() {
    let data = noise(100);
    let storage = server(&data).await;
    let gone = Fake::start_at(network_address(), |_, _| Some(status(404))).await;
    // What is at the registry's own host gets no credentials either.
    let registry = Fake::start_at(network_address(), |_, _| {
        Some(status(401).with("www-authenticate", "Basic realm=x"))
    })
    .await;
    let urls = [
        "ftp://host/layer".to_owned(),
        registry.url("/admin"),
        gone.url("/layer"),
        storage.url("/some/layer?version=2"),
    ];
    let reference = registry.reference("a/b:t");
    let blob = client().blob(&reference, &foreign(&data, &urls));
    for range in [1..9, 20..30] {
        let read = blob.read_range(range.clone(), Deadline::far()).await;
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert_eq!(read.unwrap(), data.slice(range));
    }
    let requests = storage.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].path, "/some/layer");
    assert_eq!(requests[0].query, "version=2");
    // The second time the place is known.
    assert_eq!((registry.requests().len(), gone.requests().len()), (1, 1));
    for request in [storage, registry, gone].iter().flat_map(Fake::requests) {
        assert_eq!(request.header("authorization"), None);
    }
}

#[tokio::test]
async fn the_registry_is_tried_last_and_the_reason_is_that_of_the_urls() {
    let data = noise(100);
    let broken = Fake::start_at(network_address(), |_, _| Some(status(403))).await;
    let urls = [broken.url("/layer")];
    let has_it = server(&data).await;
    let blob = client().blob(&has_it.reference("a/b:t"), &foreign(&data, &urls));
    let read = blob.read_range(1..9, Deadline::far()).await.unwrap();
    assert_eq!(read, data.slice(1..9));
    let has_not = Fake::start_at(network_address(), |_, _| Some(status(404))).await;
    let blob = client().blob(&has_not.reference("a/b:t"), &foreign(&data, &urls));
    let error = blob.read_range(1..9, Deadline::far()).await.unwrap_err();
    assert_eq!(error.status(), Some(403), "{error}");
}

#[tokio::test]
async fn the_urls_of_a_manifest_lead_neither_to_this_machine_nor_away_from_tls() {
    let data = noise(100);
    let served = data.clone();
    let admin = Fake::start(move |_, request| Some(serve(request, &served))).await;
    // Also where the registry is on this machine: an image is not the registry's word.
    let registry = Fake::start(|_, _| Some(status(404))).await;
    let reference = registry.reference("a/b:t");
    let port = admin.host().rsplit(':').next().unwrap().to_owned();
    for url in [
        admin.url("/x"),
        format!("http://localhost:{port}/x"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
    ] {
        let blob = client().blob(&reference, &foreign(&data, std::slice::from_ref(&url)));
        let error = blob.read_range(1..9, Deadline::far()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("refused to follow"), "{url}: {text}");
    }
    assert_eq!(admin.requests().len(), 0);

    let storage = server(&data).await;
    let client = crate::fake::client();
    let blob = client.blob(&reference, &foreign(&data, &[storage.url("/x")]));
    let error = blob.read_range(1..9, Deadline::far()).await.unwrap_err();
    assert_eq!(error.status(), Some(404), "{error}");
    assert_eq!(storage.requests().len(), 0);
}

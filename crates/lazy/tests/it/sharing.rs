//! Two repositories of one registry, each with credentials of its own, have a layer in common.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use soci_fetch::{FetchConfig, SpanFetcher};
use soci_layer::{LayerProvider as _, LayerRequest, Purpose};
use soci_lazy::{LazyConfig, LazyLayers};
use soci_oci::Reference;
use soci_registry::{Candidate, Credential, CredentialError, CredentialScope, Credentials};
use soci_testkit::{Auth, Fault, Rule};

use crate::provider::{World, check_contents, is_stored, unmount};

const LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

fn accounts() -> BTreeMap<String, (String, String)> {
    let account = |of: &str| (format!("{of}-user"), format!("{of}-password"));
    ["kinds", "other"]
        .map(|repository| (repository.to_owned(), account(repository)))
        .into()
}

/// The account of the image's repository, and no other.
struct Accounts;

#[async_trait]
impl Credentials for Accounts {
    async fn candidates(
        &self,
        _registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let account = reference.and_then(|image| accounts().remove(image.repository()));
        let candidate = |(user, password)| {
            let credential = Credential::Basic { user, password };
            Candidate::new(credential, CredentialScope::Image)
        };
        Ok(account.into_iter().map(candidate).collect())
    }
}

/// The golden image in the repositories `kinds` and `other`.
fn world() -> World {
    let world = World::new("kinds", "soci-v2");
    let layout = world.root.path().join("layout");
    world
        .registry
        .push_layout(&layout, "kinds", "other")
        .unwrap();
    world.proxy.demand(Auth::BasicByRepository(accounts()));
    world
}

fn lazy(world: &World, isolated: bool) -> (Arc<LazyLayers>, Arc<SpanFetcher>) {
    let config = LazyConfig {
        isolated,
        ..LazyConfig::default()
    };
    let client = World::client_with(Arc::new(Accounts));
    world.lazy_through(client, config, FetchConfig::default())
}

/// A Prepare of a layer of the image in `kinds`, after which nothing is opened ahead.
fn alone(world: &World, mountpoint: &str) -> LayerRequest {
    let mut request = world.request(0, mountpoint);
    request.labels.remove(LAYERS);
    request
}

/// The same for the image in `other`.
fn of_other(world: &World, mut request: LayerRequest) -> LayerRequest {
    let other = world.proxy.reference("other:kinds");
    let label = "containerd.io/snapshot/cri.image-ref".to_owned();
    request.labels.insert(label, other);
    request
}

/// Answers requests of `other` for a layer.
fn refuse(world: &World, layer: usize, status: u16) {
    let path = format!("^/v2/other/blobs/{}", world.image.layers[layer]);
    let rule = Rule::always(Fault::status(status)).path(&path).unwrap();
    world.proxy.inject(rule);
}

/// Requests of `other` for a layer: those that ask whether it is there, and those that read it.
fn requests_of_other(world: &World, layer: usize) -> (usize, usize) {
    let path = format!("/v2/other/blobs/{}", world.image.layers[layer]);
    let log = world.proxy.stats().log;
    // What is sent without credentials first is not an answer.
    let answered = log
        .iter()
        .filter(|request| request.path == path && request.authorized);
    let (asking, reading): (Vec<_>, Vec<_>) = answered.partition(|request| {
        request.method == "HEAD" || request.range.as_deref() == Some("bytes=0-0")
    });
    (asking.len(), reading.len())
}

#[test]
fn an_isolated_layer_serves_a_repository_that_is_confirmed_to_have_it() {
    world().test(async |world| {
        let (lazy, _) = lazy(world, true);
        let first = alone(world, "a");
        lazy.mount(first.clone()).await.unwrap();
        for status in [401, 403, 404] {
            refuse(world, 0, status);
            let request = of_other(world, alone(world, "b"));
            let refusal = lazy.mount(request.clone()).await.unwrap_err();
            assert_eq!(refusal.code(), "unconfirmed", "{status}: {refusal}");
            assert!(refusal.leaves_to_client());
            let text = soci_errors::chain(&refusal);
            assert!(
                text.contains("/other") && text.contains("isolated"),
                "{text}"
            );
            assert!(
                status == 404 || text.contains(&status.to_string()),
                "{text}"
            );
            assert_eq!(fs::read_dir(&request.mountpoint).unwrap().count(), 0);
            world.proxy.clear_faults();
        }
        check_contents(first.mountpoint.clone()).await;
        assert_eq!(requests_of_other(world, 0).1, 0, "it is not a source");

        world.proxy.reset_stats();
        let mounts = ["b", "c", "d"].map(|name| of_other(world, alone(world, name)));
        let mounted = mounts.iter().map(|request| lazy.mount(request.clone()));
        for mounted in futures::future::join_all(mounted).await {
            mounted.unwrap();
        }
        assert_eq!(requests_of_other(world, 0).0, 1, "it is asked once");
        for request in mounts.iter().chain([&first]) {
            check_contents(request.mountpoint.clone()).await;
            unmount(&lazy, &request.mountpoint).await;
        }
        assert_eq!(world.stored(), 0);
    });
}

#[test]
fn a_layer_that_is_opened_ahead_is_confirmed_as_well() {
    world().test(async |world| {
        let (lazy, _) = lazy(world, true);
        refuse(world, 1, 404);
        let other = of_other(world, world.request(0, "a"));
        lazy.mount(other.clone()).await.unwrap();
        let refused = async || {
            while requests_of_other(world, 1).0 == 0 || world.stored() != 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, refused()).await.unwrap();

        let first = world.request(1, "b");
        lazy.mount(first.clone()).await.unwrap();
        let above = of_other(world, world.request(1, "c"));
        let refusal = lazy.mount(above).await.unwrap_err();
        assert_eq!(refusal.code(), "unconfirmed");
        unmount(&lazy, &other.mountpoint).await;
        unmount(&lazy, &first.mountpoint).await;
    });
}

#[test]
fn what_was_mounted_before_a_restart_needs_no_confirmation() {
    world().test(async |world| {
        let request = alone(world, "a");
        let (before, fetcher) = lazy(world, true);
        before.mount(request.clone()).await.unwrap();
        check_contents(request.mountpoint.clone()).await;
        is_stored(&fetcher).await;
        before.leave();
        unmount(&before, &request.mountpoint).await;
        fetcher.shutdown().await;
        before.flush().await;
        drop(before);

        world.proxy.reset_stats();
        let (after, _) = lazy(world, true);
        let restore = LayerRequest {
            purpose: Purpose::Restore,
            ..request.clone()
        };
        after.restore(restore).await.unwrap();
        assert_eq!(world.proxy.stats().total().requests, 0);
        // Others are asked, whatever is stored.
        refuse(world, 0, 404);
        let other = of_other(world, alone(world, "b"));
        let refusal = after.mount(other).await.unwrap_err();
        assert_eq!(refusal.code(), "unconfirmed");
        check_contents(request.mountpoint.clone()).await;
        unmount(&after, &request.mountpoint).await;
    });
}

#[test]
fn a_shared_layer_needs_no_confirmation() {
    world().test(async |world| {
        let (lazy, _) = lazy(world, false);
        let first = alone(world, "a");
        lazy.mount(first.clone()).await.unwrap();
        refuse(world, 0, 404);
        let second = of_other(world, alone(world, "b"));
        lazy.mount(second.clone()).await.unwrap();
        assert_eq!(requests_of_other(world, 0), (0, 0));
        unmount(&lazy, &first.mountpoint).await;
        unmount(&lazy, &second.mountpoint).await;
    });
}

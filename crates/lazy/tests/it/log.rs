//! The log lines about registries: an operator sees which image and layer they are about. Those of reads
//! are tested in `fetch`.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use soci_fetch::FetchConfig;
use soci_layer::LayerProvider as _;
use soci_lazy::LazyConfig;
use soci_oci::Reference;
use soci_registry::{
    Candidate, ChainedCredentials, Credential, CredentialError, Credentials, StaticCredentials,
};
use soci_telemetry::JsonLog;
use soci_testkit::{Auth, CapturedLog};

use crate::provider::World;

const WARNING: &str = "credential source failed";

/// A source of credentials that is out of order.
struct Broken;

#[async_trait]
impl Credentials for Broken {
    async fn candidates(
        &self,
        _registry_host: &str,
        _reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let cause = std::io::Error::other("out of order");
        Err(CredentialError::from_source(cause))
    }
}

#[test]
fn a_warning_about_a_registry_names_image_and_layer_in_a_mount() {
    let log = CapturedLog::through(JsonLog::new);
    let world = World::new("kinds", "soci-v2");
    let (user, password) = ("user".to_owned(), "password".to_owned());
    let credential = Credential::Basic {
        user: user.clone(),
        password: password.clone(),
    };
    world.proxy.demand(Auth::Basic { user, password });
    let host = world.proxy.address().to_string();
    let working = StaticCredentials::new(host, credential);
    let credentials = ChainedCredentials::new(vec![Arc::new(Broken), Arc::new(working)]);
    let client = World::client_with(Arc::new(credentials));
    let mut config = LazyConfig::default();
    config.profiles.referrers = false;
    // What makes requests runs on this thread, as the log does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (lazy, fetcher) = world.lazy_through(client, config, FetchConfig::default());
        let request = world.request(0, "a");
        lazy.mount(request.clone()).await.unwrap();
        let layers = world.image.layers.iter().map(ToString::to_string);
        let layers: Vec<Value> = layers.map(Value::from).collect();
        let in_mount = log.json(WARNING);
        assert!(!in_mount.is_empty());
        for line in in_mount {
            assert_eq!(line["image"], world.reference.to_string(), "{line}");
            assert!(layers.contains(&line["layer"]), "{line}");
        }
        lazy.unmount(&request.mountpoint).await.unwrap();
        fetcher.shutdown().await;
    });
}

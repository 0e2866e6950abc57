//! Readers of a layer that is filled at the same time, while a real registry drops connections, breaks bodies
//! off, has too many requests and revokes tokens. Needs Debian's package `docker-registry`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use soci_fetch::LazyLayer;
use soci_oci::{Descriptor, Digest, Reference};
use soci_registry::{
    BlobBody, Candidate, Client, ClientConfig, Credential, CredentialError, CredentialScope,
    Credentials,
};
use soci_testkit::{Auth, Fault, Proxy, Registry, Rule, Throttle};

use crate::support::{Rig, Sample, quick, read};

const READERS: u64 = 8;
/// Reads of each.
const READS: u64 = 40;
const ROUNDS: u64 = 2;

struct Account;

#[async_trait]
impl Credentials for Account {
    async fn candidates(
        &self,
        _registry_host: &str,
        _reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let credential = Credential::Basic {
            user: "u".to_owned(),
            password: "p".to_owned(),
        };
        Ok(vec![Candidate::new(credential, CredentialScope::Image)])
    }
}

fn throttled() -> Fault {
    Fault::Status {
        status: 503,
        headers: vec![("Retry-After".to_owned(), "0".to_owned())],
        body: String::new(),
    }
}

/// Disturbs three of each twelve requests for blobs until `stop` is set, and revokes tokens now and then.
fn disturb(proxy: &Proxy, stop: &AtomicBool) {
    let kinds = [
        Fault::Reset,
        Fault::ResetAfter(9_000),
        throttled(),
        Fault::Truncate(30_000),
        Fault::status(429),
        Fault::status(500),
    ];
    for (number, fault) in kinds.iter().cycle().enumerate() {
        let met = proxy.faults_injected();
        let rule = Rule::always(fault.clone()).path("/blobs/").unwrap();
        proxy.inject(rule.from_nth(9).times(3));
        if number.is_multiple_of(4) {
            proxy.revoke_tokens();
        }
        while proxy.faults_injected() < met + 3 {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        proxy.clear_faults();
    }
}

/// Reads parts of the layer, not in order; returns the errors.
fn read_parts(layer: &LazyLayer, tar: &[u8], reader: u64) -> Vec<String> {
    let steps = tar.len() as u64 / 20_000;
    let mut errors = Vec::new();
    for step in 0..READS {
        // Filling has its turns between reads.
        std::thread::sleep(Duration::from_millis(7 * (step % 5)));
        let at = (step * 37 + reader * 11) % steps * 20_000;
        let start = usize::try_from(at).unwrap();
        match read(layer, at, 1_000) {
            Ok(bytes) => assert!(bytes == tar[start..start + 1_000], "byte {at}"),
            Err(error) => errors.push(format!("byte {at}: {error}")),
        }
    }
    errors
}

#[test]
fn readers_get_every_byte_while_a_layer_is_filled_from_a_registry_that_is_disturbed() {
    let sample = Sample::gzip(100, 50_000);
    let registry = Registry::start().unwrap();
    let proxy = Proxy::start(registry.address()).unwrap();
    let blob = Descriptor::new(
        "application/octet-stream",
        Digest::of(&sample.blob),
        sample.blob.len() as u64,
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let anonymous = Arc::new(soci_registry::NoCredentials);
    let pusher = Client::new(ClientConfig::default(), anonymous).unwrap();
    let target: Reference = registry.reference("a/b:t").parse().unwrap();
    let body = BlobBody::from(sample.blob.clone());
    runtime
        .block_on(pusher.push_blob(&target, &blob, body, None, None))
        .unwrap();
    proxy.demand(Auth::Bearer {
        user: Some(("u".to_owned(), "p".to_owned())),
        uses: None,
    });
    proxy.throttle(Throttle {
        first_byte: Duration::from_millis(5),
        ..Throttle::unlimited()
    });
    let reference: Reference = proxy.reference("a/b:t").parse().unwrap();
    for round in 0..ROUNDS {
        let mut config = quick();
        config.background.silence_period = Some(Duration::ZERO);
        config.max_readahead = 0;
        // Many requests, so that many are disturbed.
        config.max_request_bytes = 100_000;
        let rig = Rig::new(config);
        let client = {
            let _inside = rig.enter();
            let mut config = ClientConfig::default();
            config.retries.min_wait = Duration::from_millis(5);
            config.retries.max_wait = Duration::from_millis(50);
            Client::new(config, Arc::new(Account)).unwrap()
        };
        let layer = rig.open(&sample, client.blob(&reference, &blob));
        layer.start_background(Digest::of(b"image"));
        let stop = AtomicBool::new(false);
        let errors: Vec<String> = std::thread::scope(|scope| {
            scope.spawn(|| disturb(&proxy, &stop));
            let readers: Vec<_> = (0..READERS)
                .map(|reader| {
                    let (layer, sample) = (&layer, &sample);
                    scope.spawn(move || read_parts(layer, &sample.tar, reader))
                })
                .collect();
            let errors = readers.into_iter().flat_map(|one| one.join().unwrap());
            let errors = errors.collect();
            stop.store(true, Ordering::Relaxed);
            errors
        });
        proxy.clear_faults();
        assert!(
            errors.is_empty(),
            "round {round}: {} errors: {errors:#?}",
            errors.len()
        );
        assert!(rig.fetcher.stats().background.requests > 0);
        assert!(proxy.faults_injected() > 0);
    }
}

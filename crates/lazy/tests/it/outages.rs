//! Registries that cannot be reached, or do not work: a pull waits for one once.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use soci_fetch::FetchConfig;
use soci_layer::{LayerProvider as _, LayerRequest, UnpackRequest};
use soci_lazy::{LazyConfig, LazyLayers};
use soci_registry::{Client, ClientConfig, NoCredentials};
use soci_testkit::{Fault, LocalPort, Rule};
use tokio_util::sync::CancellationToken;

use crate::provider::{World, check_contents, unmount};

/// A daemon's worth of lazy layers whose client waits as the daemon's does: for a response for less time where
/// `impatient`, else for as long as a busy machine may take.
fn lazy(world: &World, impatient: bool) -> Arc<LazyLayers> {
    let response_header_timeout = match impatient {
        true => Duration::from_millis(500),
        false => Duration::from_secs(120),
    };
    let mut config = ClientConfig {
        dial_timeout: Duration::from_millis(500),
        response_header_timeout,
        document_patience: Some(Duration::from_millis(200)),
        ..ClientConfig::default()
    };
    config.retries.max_wait = Duration::from_secs(300);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    let mut config = LazyConfig {
        mount_timeout: Duration::from_secs(600),
        ..LazyConfig::default()
    };
    // It is looked for beside the mounts, whenever that is.
    config.profiles.referrers = false;
    world.lazy_through(client, config, FetchConfig::default()).0
}

/// Faults that a registry as a whole has.
fn outages() -> [(&'static str, Fault); 5] {
    let busy = Fault::Status {
        status: 429,
        headers: vec![("Retry-After".to_owned(), "120".to_owned())],
        body: String::new(),
    };
    [
        ("hangs", Fault::Hang),
        ("closes", Fault::Reset),
        ("503", Fault::status(503)),
        ("500", Fault::status(500)),
        ("429", busy),
    ]
}

/// Prepares both layers; each is left to the client. Only the first may cause requests.
async fn both_are_left_to_the_client(world: &World, lazy: &LazyLayers, case: &str) {
    let prepare = async |layer: usize| {
        let mut request = world.request(layer, &format!("layer-{layer}"));
        // Nothing is opened ahead.
        let above = "containerd.io/snapshot/cri.image-layers";
        request.labels.remove(above);
        let waited = tokio::time::timeout(Duration::from_secs(60), lazy.mount(request.clone()));
        let refusal = waited.await.unwrap().unwrap_err();
        assert!(refusal.leaves_to_client(), "{case}: {refusal}");
        request
    };
    prepare(0).await;
    let requests = || world.proxy.stats().total().requests;
    let before = requests();
    let second: LayerRequest = prepare(1).await;
    // What the image's other layers are refused for does not lead to a request either.
    let unpack = UnpackRequest {
        eager: None,
        layer: second,
    };
    let unpacked = lazy.unpack(unpack, CancellationToken::new());
    let unpacked = tokio::time::timeout(Duration::from_secs(60), unpacked);
    unpacked.await.unwrap().unwrap_err();
    assert_eq!(requests(), before, "{case}");
}

#[test]
fn a_registry_that_fails_gets_one_look_up_for_an_images_index() {
    for (case, fault) in outages() {
        World::new("kinds", "soci-v2").test(async |world| {
            let lazy = lazy(world, fault == Fault::Hang);
            world.proxy.inject(Rule::always(fault.clone()));
            both_are_left_to_the_client(world, &lazy, case).await;
        });
    }
}

#[test]
fn a_registry_that_fails_gets_one_look_up_for_an_images_ztocs() {
    for (case, fault) in outages() {
        World::new("kinds", "soci-v2").test(async |world| {
            let lazy = lazy(world, fault == Fault::Hang);
            let blobs = Rule::always(fault.clone()).path("/blobs/").unwrap();
            world.proxy.inject(blobs);
            both_are_left_to_the_client(world, &lazy, case).await;
            // What is stored needs no registry, also while it does not work.
            let other = self::lazy(world, false);
            world.proxy.clear_faults();
            let first = world.request(0, "a");
            other.mount(first.clone()).await.unwrap();
            world.proxy.inject(Rule::always(fault.clone()));
            let second = world.request(0, "b");
            other.mount(second.clone()).await.unwrap();
            for request in [first, second] {
                unmount(&other, &request.mountpoint).await;
            }
        });
    }
}

/// A port of this machine whose SYNs are dropped, as long as the connections are kept.
fn black_hole() -> (TcpListener, Vec<std::net::TcpStream>) {
    use rustix::net::{
        AddressFamily, SocketAddrAny, SocketType, bind, getsockname, listen, socket,
    };
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    bind(&listener, &address).unwrap();
    listen(&listener, 0).unwrap();
    let address: SocketAddrAny = getsockname(&listener).unwrap();
    let address = std::net::SocketAddr::try_from(address).unwrap();
    // The backlog is full when one cannot be made.
    let mut full = Vec::new();
    while let Ok(connection) =
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300))
    {
        full.push(connection);
        assert!(full.len() < 64, "the backlog takes every connection");
    }
    (TcpListener::from(listener), full)
}

#[test]
fn a_registry_that_is_not_there_costs_one_time_out() {
    World::new("kinds", "soci-v2").test(async |world| {
        let (hole, _full) = black_hole();
        let address = hole.local_addr().unwrap();
        let closed = LocalPort::claim().unwrap();
        for name in [
            address.to_string(),
            closed.address().to_string(),
            "registry.invalid".to_owned(),
        ] {
            world.reference = format!("{name}/kinds:kinds").parse().unwrap();
            let lazy = lazy(world, true);
            both_are_left_to_the_client(world, &lazy, &name).await;
        }
    });
}

#[test]
fn a_registry_that_is_slow_but_works_is_waited_for() {
    World::new("kinds", "soci-v2").test(async |world| {
        // Each answer takes longer than retries may, and less than one answer may.
        let slow = Fault::Delay(Duration::from_millis(300));
        world.proxy.inject(Rule::always(slow));
        let config = ClientConfig {
            response_header_timeout: Duration::from_secs(60),
            document_patience: Some(Duration::from_millis(100)),
            ..ClientConfig::default()
        };
        let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
        let (lazy, _) = world.lazy_through(client, LazyConfig::default(), FetchConfig::default());
        let request = world.request(0, "a");
        lazy.mount(request.clone()).await.unwrap();
        check_contents(request.mountpoint.clone()).await;
        unmount(&lazy, &request.mountpoint).await;
    });
}

#[test]
fn a_read_during_an_outage_fails_or_waits_as_its_retries_say() {
    World::new("kinds", "soci-v2").test(async |world| {
        for (max_retries, fails) in [(1, true), (1_000, false)] {
            let mut config = ClientConfig::default();
            config.retries.max_wait = Duration::from_millis(100);
            config.span_retries = Some(soci_registry::RetryPolicy {
                max_retries,
                ..config.retries
            });
            let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
            let (lazy, fetcher) =
                world.lazy_through(client, LazyConfig::default(), FetchConfig::default());
            let mut request = world.request(0, "a");
            let above = "containerd.io/snapshot/cri.image-layers";
            request.labels.remove(above);
            lazy.mount(request.clone()).await.unwrap();
            world.proxy.inject(Rule::always(Fault::status(503)));
            world.proxy.reset_stats();
            let reading = tokio::spawn(check_contents(request.mountpoint.clone()));
            if fails {
                assert!(reading.await.unwrap_err().is_panic(), "EIO");
                world.proxy.clear_faults();
            } else {
                // The network comes back only after more attempts than the other could make.
                while world.proxy.stats().total().requests < 10 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                world.proxy.clear_faults();
                reading.await.unwrap();
            }
            unmount(&lazy, &request.mountpoint).await;
            fetcher.shutdown().await;
            assert_eq!(world.stored(), 0);
        }
    });
}

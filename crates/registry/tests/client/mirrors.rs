//! Mirrors are asked before the origin, for everything that is read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use soci_oci::{Descriptor, Digest, media_types};
use soci_registry::{
    BlobSource, Client, Deadline, HostHeaders, Mirror, NoCredentials, Origin, StaticCredentials,
};
use soci_testkit::{CapturedLog, LocalPort};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::Level;

use crate::fake::{Fake, With, basic, config, descriptor, noise, read_everything, serve, status};

fn mirrored(origin: &Fake, mirrors: &[String]) -> Client {
    let mut config = config();
    let mirrors = mirrors
        .iter()
        .map(|host| Mirror {
            host: host.clone(),
            insecure: true,
            request_timeout: Some(Duration::from_secs(60)),
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
    let closed = LocalPort::claim().unwrap();
    let gone = closed.address().to_string();
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

/// Passes connections on to a server, and breaks a given number of them, each at its next request.
struct Front {
    address: SocketAddr,
    breaks: Arc<AtomicUsize>,
    _task: tokio::task::JoinSet<()>,
}

impl Front {
    async fn start(behind: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let breaks: Arc<AtomicUsize> = Arc::default();
        let (left, mut task) = (Arc::clone(&breaks), tokio::task::JoinSet::new());
        task.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass_on(client, behind.clone(), Arc::clone(&left)));
            }
        });
        Self {
            address,
            breaks,
            _task: task,
        }
    }

    fn break_next(&self, count: usize) {
        self.breaks.store(count, Ordering::SeqCst);
    }
}

async fn pass_on(client: TcpStream, behind: String, breaks: Arc<AtomicUsize>) {
    let server = TcpStream::connect(behind).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    let requests = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            let left = |left: usize| left.checked_sub(1);
            if breaks
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
                .is_ok()
            {
                return;
            }
            to_server.write_all(&buffer[..length]).await.unwrap();
        }
    };
    tokio::select! { () = answers => {}, () = requests => {} }
}

fn only_mirror(registry: &str, mirror: &Front) -> Client {
    let mut config = config();
    let mirror = Mirror {
        host: mirror.address.to_string(),
        insecure: true,
        request_timeout: None,
        headers: HostHeaders::default(),
    };
    config.hosts.insert(registry.to_owned(), vec![mirror]);
    Client::new(config, Arc::new(NoCredentials)).unwrap()
}

#[tokio::test]
async fn a_mirror_that_drops_connections_is_tried_again_while_the_registry_is_down() {
    let data = noise(1000);
    let served = data.clone();
    let behind = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let front = Front::start(behind.host()).await;
    // It cannot be reached.
    let closed = LocalPort::claim().unwrap();
    let registry = closed.address().to_string();
    let client = only_mirror(&registry, &front);
    let reference = format!("{registry}/a/b:t").parse().unwrap();
    let blob = client.blob(&reference, &descriptor(&data));
    for breaks in [0, 1, 2, 3] {
        // What lies where is known from the second round on.
        front.break_next(breaks);
        let got = blob.read_range(1..9, Deadline::far()).await.unwrap();
        assert_eq!(got, data.slice(1..9));
        front.break_next(breaks);
        let (_, bytes) = client
            .manifest(&reference, Digest::of(&data))
            .await
            .unwrap();
        assert_eq!(bytes, data);
        front.break_next(breaks);
        let bytes = client.blob_bytes(&reference, &descriptor(&data)).await;
        assert_eq!(bytes.unwrap(), data);
    }
}

/// Kinds of registries that this node cannot read from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Beyond {
    /// Nothing listens.
    Closed,
    /// What listens does not speak TLS, as where a proxy or a captive portal intercepts.
    NoTls,
    /// It refuses.
    Refuses(u16),
}

#[tokio::test]
async fn a_mirror_that_fails_for_a_moment_is_waited_for_whatever_the_registry_does() {
    for beyond in [Beyond::Closed, Beyond::NoTls] {
        let data = noise(1000);
        let served = data.clone();
        // Each object fails twice: the mirror is the last to be asked at the second attempt.
        let failing = Mutex::new(std::collections::HashMap::<_, usize>::new());
        let mirror = Fake::start(move |_, request| {
            let mut failing = failing.lock();
            let asked = failing.entry(request.path.clone()).or_default();
            *asked += 1;
            Some(match *asked {
                1 => status(503),
                2 => crate::fake::broken(status(200), 1000, served.slice(0..0)),
                _ => serve(request, &served),
            })
        })
        .await;
        let (client, registry, _origin) = beyond_mirror(beyond, &mirror).await;
        let reference = format!("{registry}/a/b:t").parse().unwrap();
        let blob = client.blob(&reference, &descriptor(&data));
        let got = blob.read_range(1..9, Deadline::far()).await;
        assert_eq!(got.unwrap(), data.slice(1..9), "{beyond:?}");
        let (_, bytes) = client
            .manifest(&reference, Digest::of(&data))
            .await
            .unwrap();
        assert_eq!(bytes, data, "{beyond:?}");
        assert_eq!(mirror.requests().len(), 6, "{beyond:?}");
    }
}

#[tokio::test]
async fn a_mirror_that_failed_lately_is_asked_when_the_registry_refuses() {
    for beyond in [Beyond::NoTls, Beyond::Refuses(401), Beyond::Refuses(403)] {
        let data = noise(1000);
        let served = data.clone();
        let mirror = Fake::start(move |number, request| {
            Some(match number {
                0 => crate::fake::broken(status(200), 1000, served.slice(0..0)),
                _ => serve(request, &served),
            })
        })
        .await;
        let (client, registry, _origin) = beyond_mirror(beyond, &mirror).await;
        let reference = format!("{registry}/a/b:t").parse().unwrap();
        // Makes the mirror the last.
        let first = client.manifest(&reference, Digest::of(&data)).await;
        assert_eq!(first.is_ok(), beyond == Beyond::NoTls, "{first:?}");
        let (_, bytes) = client
            .manifest(&reference, Digest::of(&data))
            .await
            .unwrap();
        assert_eq!(bytes, data, "{beyond:?}");
    }
}

/// A client of a registry behind a mirror, with the registry's name.
async fn beyond_mirror(
    beyond: Beyond,
    mirror: &Fake,
) -> (Client, String, (Option<Fake>, LocalPort)) {
    let origin = match beyond {
        Beyond::Refuses(code) => Some(Fake::start(move |_, _| Some(status(code))).await),
        Beyond::NoTls => Some(Fake::start(|_, _| None).await),
        Beyond::Closed => None,
    };
    let closed = LocalPort::claim().unwrap();
    let host = origin
        .as_ref()
        .map_or_else(|| closed.address().to_string(), Fake::host);
    let scheme = match beyond {
        Beyond::NoTls => "https",
        Beyond::Closed | Beyond::Refuses(_) => "http",
    };
    let mut config = config();
    let registry = "registry.test".to_owned();
    let url = format!("{scheme}://{host}/v2").parse().unwrap();
    let headers = HostHeaders::default();
    config
        .origins
        .insert(registry.clone(), Origin { url, headers });
    let mirror = Mirror {
        host: mirror.host(),
        insecure: true,
        request_timeout: None,
        headers: HostHeaders::default(),
    };
    config.hosts.insert(registry.clone(), vec![mirror]);
    let client = Client::new(config, Arc::new(NoCredentials)).unwrap();
    (client, registry, (origin, closed))
}

#[tokio::test]
async fn a_mirror_is_preferred_again_soon_after_it_works_again() {
    let log = CapturedLog::text(Level::INFO);
    let data = noise(1000);
    let served = data.clone();
    let serving = move |_: usize, request: &crate::fake::Received| Some(serve(request, &served));
    let (origin, behind) = (
        Fake::start(serving.clone()).await,
        Fake::start(serving).await,
    );
    let front = Front::start(behind.host()).await;
    let client = only_mirror(&origin.host(), &front);
    let blob = client.blob(&origin.reference("a/b:t"), &descriptor(&data));
    let read = async || {
        let got = blob.read_range(1..9, Deadline::far()).await.unwrap();
        assert_eq!(got, data.slice(1..9));
    };
    read().await;
    assert_eq!((origin.requests().len(), behind.requests().len()), (0, 1));
    // One broken connection changes nothing.
    front.break_next(1);
    read().await;
    assert_eq!((origin.requests().len(), behind.requests().len()), (0, 2));
    assert_eq!(log.about("mirror does not work").len(), 0);
    front.break_next(usize::MAX);
    read().await;
    assert_eq!((origin.requests().len(), behind.requests().len()), (1, 2));
    // One line, however many reads go to the registry.
    read().await;
    assert_eq!(log.about("mirror does not work").len(), 1);
    assert_eq!(log.about("mirror works again").len(), 0);
    front.break_next(0);
    let deadline = Deadline::after(Duration::from_secs(60));
    while behind.requests().len() == 2 {
        assert!(deadline.remaining() > Duration::ZERO);
        read().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = origin.requests().len();
    read().await;
    assert_eq!(origin.requests().len(), before);
    assert_eq!(log.about("mirror does not work").len(), 1);
    assert_eq!(log.about("mirror works again").len(), 1);
}

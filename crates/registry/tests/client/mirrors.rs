//! Mirrors are asked before the origin, for everything that is read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use soci_oci::{Descriptor, Digest, media_types};
use soci_registry::{
    BlobSource, Client, Deadline, HostHeaders, Mirror, NoCredentials, StaticCredentials,
};
use soci_testkit::LocalPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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

/// The lines that are logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        let lines = self.clone();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(move || lines.clone())
            .finish()
    }

    /// Number of lines with this text.
    fn about(&self, text: &str) -> usize {
        let log = String::from_utf8(self.0.lock().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }
}

#[tokio::test]
async fn a_mirror_is_preferred_again_soon_after_it_works_again() {
    let log = Lines::default();
    // While there is only one dispatcher, tracing disables call sites that another thread meets
    // first: the other tests have none.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _logging = tracing::subscriber::set_default(log.subscriber());
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
    assert_eq!(log.about("mirror does not work"), 0);
    front.break_next(usize::MAX);
    read().await;
    assert_eq!((origin.requests().len(), behind.requests().len()), (1, 2));
    // One line, however many reads go to the registry.
    read().await;
    assert_eq!(log.about("mirror does not work"), 1);
    assert_eq!(log.about("mirror works again"), 0);
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
    assert_eq!(log.about("mirror does not work"), 1);
    assert_eq!(log.about("mirror works again"), 1);
}

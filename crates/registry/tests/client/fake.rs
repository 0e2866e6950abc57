//! A server whose answers a test scripts and which remembers everything that it was sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use soci_oci::{Descriptor, Reference};
use soci_registry::{
    BlobSource as _, Client, ClientConfig, Credential, Credentials, Deadline, NoCredentials,
    RetryPolicy,
};

/// One request as the server got it.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The range asked for: first and last byte.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

pub(crate) struct Fake {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Received>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// `answer` is asked with each request and its number, from 0; `None` means never to answer.
    pub(crate) async fn start(
        answer: impl Fn(usize, &Received) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Received>>> = Arc::default();
        let seen = Arc::clone(&log);
        let answer = Arc::new(answer);
        let app = axum::Router::new().fallback(move |request: Request| {
            let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let received = Received {
                    method: parts.method,
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    headers: parts.headers,
                    body: to_bytes(body, usize::MAX).await.unwrap_or_default(),
                };
                let number = {
                    let mut seen = seen.lock();
                    seen.push(received.clone());
                    seen.len() - 1
                };
                match answer(number, &received) {
                    Some(response) => response,
                    None => std::future::pending().await,
                }
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, log, task }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Received> {
        self.log.lock().clone()
    }
}

/// Lets `time` pass for the client, without waiting for it.
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

/// Bytes without a pattern that a misplaced range could hide in.
pub(crate) fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub(crate) fn descriptor(data: &[u8]) -> Descriptor {
    Descriptor::of("application/octet-stream", data)
}

pub(crate) fn status(status: u16) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

pub(crate) trait With: Sized {
    fn with(self, name: &'static str, value: &str) -> Self;
    fn body(self, body: impl Into<Body>) -> Self;
}

impl With for Response {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers_mut().append(name, value.parse().unwrap());
        self
    }

    fn body(mut self, body: impl Into<Body>) -> Self {
        *Self::body_mut(&mut self) = body.into();
        self
    }
}

/// What an honest server answers to a GET of `data`.
pub(crate) fn serve(request: &Received, data: &Bytes) -> Response {
    match request.range() {
        None => status(200).body(data.clone()),
        Some((first, last)) => {
            let last = last.min(data.len() - 1);
            status(206)
                .with(
                    "content-range",
                    &format!("bytes {first}-{last}/{}", data.len()),
                )
                .body(data.slice(first..=last))
        }
    }
}

/// A body that announces `announced` bytes, gives `data` and then breaks the connection.
pub(crate) fn broken(response: Response, announced: usize, data: Bytes) -> Response {
    use futures::StreamExt;
    let data = futures::stream::iter([Ok(data)]);
    let end = futures::stream::once(async {
        // Without a pause the server drops what it has not flushed yet.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(std::io::Error::other("scripted break in the connection"))
    });
    response
        .with("content-length", &announced.to_string())
        .body(Body::from_stream(data.chain(end)))
}

pub(crate) fn redirect(code: u16, to: &str) -> Response {
    status(code).with("location", to)
}

/// Asks for a manifest by its tag and by its digest, for what refers to it, and for a part of a blob.
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

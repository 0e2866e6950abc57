//! An HTTP server with scripted responses that records its requests: a registry, a token server or
//! an object store for tests. Unlike the rest of this crate it does not need root.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use futures::StreamExt as _;
use parking_lot::Mutex;
use soci_oci::Reference;

/// A request as the server received it.
#[derive(Debug, Clone)]
pub struct Received {
    /// The method.
    pub method: Method,
    /// The path of the URL.
    pub path: String,
    /// The query of the URL; empty if it has none.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Received {
    /// Returns a header, if it is there and text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the requested range: first and last byte.
    #[must_use]
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// An HTTP server on 127.0.0.1 with scripted responses. It stops when it is dropped.
#[derive(Debug)]
pub struct Fake {
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
    /// Starts a server that responds to each request, numbered from 0, with what `answer` returns;
    /// `None` means no response at all.
    ///
    /// # Panics
    /// No port can be bound.
    pub async fn start(
        answer: impl Fn(usize, &Received) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), answer).await
    }

    /// As [`Fake::start`], at another address of this machine.
    ///
    /// # Panics
    /// No port can be bound.
    pub async fn start_at(
        address: IpAddr,
        answer: impl Fn(usize, &Received) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind((address, 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
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
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Self { address, log, task }
    }

    /// Returns the server as `host:port`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns the URL of a path at the server.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Returns an image reference at the server.
    ///
    /// # Panics
    /// `rest` is not the rest of an image reference.
    #[must_use]
    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address)
            .parse()
            .expect("an image reference")
    }

    /// Returns the requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Received> {
        self.log.lock().clone()
    }
}

/// Returns an address of this machine that is not a loopback address: what a server in the network
/// has. On a machine without a network the loopback interface gets one, which needs root.
///
/// # Panics
/// There is no such address, and none can be added.
#[must_use]
pub fn network_address() -> IpAddr {
    // Connecting a datagram socket sends nothing.
    let routed = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("198.51.100.1:9")?;
        socket.local_addr()
    });
    if let Ok(address) = routed
        && !address.ip().is_loopback()
    {
        return address.ip();
    }
    let added = "198.18.0.1";
    let _ = std::process::Command::new("ip")
        .args(["address", "add", "198.18.0.1/32", "dev", "lo"])
        .output();
    let address = added.parse().expect("an address");
    UdpSocket::bind((address, 0)).expect("an address beside loopback");
    address
}

/// Returns bytes without a pattern that a misplaced range could hide in.
#[must_use]
pub fn noise(length: usize) -> Bytes {
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

/// Returns a response with a status and an empty body.
///
/// # Panics
/// `status` is not an HTTP status.
#[must_use]
pub fn status(status: u16) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).expect("an HTTP status");
    response
}

/// Adds to a response.
pub trait With: Sized {
    /// Adds a header.
    #[must_use]
    fn with(self, name: &'static str, value: &str) -> Self;
    /// Replaces the body.
    #[must_use]
    fn body(self, body: impl Into<Body>) -> Self;
}

impl With for Response {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers_mut()
            .append(name, value.parse().expect("a header value"));
        self
    }

    fn body(mut self, body: impl Into<Body>) -> Self {
        *Self::body_mut(&mut self) = body.into();
        self
    }
}

/// Returns the correct response to a GET of `data`, whole or a range.
#[must_use]
pub fn serve(request: &Received, data: &Bytes) -> Response {
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

/// Replaces the body by one that announces `announced` bytes, sends `data` and then breaks the
/// connection.
#[must_use]
pub fn broken(response: Response, announced: usize, data: Bytes) -> Response {
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

/// Returns a redirect to a URL.
#[must_use]
pub fn redirect(code: u16, to: &str) -> Response {
    status(code).with("location", to)
}

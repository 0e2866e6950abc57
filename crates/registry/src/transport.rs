//! One request over the wire, with its time-outs. Redirects, credentials and retries are decided
//! above, where their meaning is known.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderValue;
use http::header::{CONTENT_LENGTH, RANGE};
use reqwest::{RequestBuilder, Response};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use crate::body::{BlobBody, Meter};
use crate::connection_error::connection_error;
use crate::connection_pool::ConnectionPools;
use crate::dial_clock::DialClock;
use crate::endpoint::Endpoint;
use crate::reach::{Reach, Zone};
use crate::request::{Payload, Progress, RequestSpec};
use crate::response::Incoming;
use crate::{ClientConfig, RegistryError, RequestLine, dump};

/// Interval at which the progress of an upload is checked.
const TICK: Duration = Duration::from_millis(100);

pub(crate) struct Transport {
    config: Arc<ClientConfig>,
    pools: ConnectionPools,
}

impl Transport {
    pub(crate) fn new(config: ClientConfig) -> Self {
        Self {
            config: Arc::new(config),
            pools: ConnectionPools::default(),
        }
    }

    pub(crate) fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// Sends one request and waits for the head of the response, whatever its status. `endpoint`
    /// is the server that the request is about, although the URL may lead elsewhere.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        spec: &RequestSpec<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Incoming, RegistryError> {
        let line = spec.line(endpoint);
        let headers = spec.headers_for(endpoint, authorization);
        let waits = self.waits(endpoint, spec);
        let reach = if endpoint.owns(&spec.url) {
            Reach::Anywhere
        } else {
            spec.reach
        };
        reach
            .check(&spec.url)
            .map_err(|error| RegistryError::Misdirected {
                request: line.clone(),
                source: error.into(),
            })?;
        let started = Instant::now();
        let mut request = self
            .pools
            .for_url(&spec.url, endpoint, reach, &self.config)?
            .request(spec.method.clone(), spec.url.clone())
            .headers(headers.clone());
        let response = match &spec.payload {
            Payload::Empty => {
                if !spec.is_read() {
                    request = request.header(CONTENT_LENGTH, 0);
                }
                self.head(endpoint, request, &line, waits).await?
            }
            Payload::Bytes(bytes) => {
                let request = request.body(bytes.clone());
                self.head(endpoint, request, &line, waits).await?
            }
            Payload::Blob {
                body,
                size,
                progress,
            } => {
                let request = request.header(CONTENT_LENGTH, *size);
                self.upload(
                    endpoint,
                    request,
                    &line,
                    waits.whole,
                    (body, *size),
                    *progress,
                )
                .await?
            }
        };
        tracing::trace!(
            target: "soci_registry::http",
            request = %line,
            range = spec.headers.get(RANGE).and_then(|r| r.to_str().ok()),
            status = response.status().as_u16(),
            milliseconds = started.elapsed().as_millis(),
            "request"
        );
        dump::exchange(&line, &headers, &response);
        Ok(Incoming::new(
            (self.zone(&spec.url, &response), reach),
            response,
            line,
            self.config.idle_timeout,
            endpoint.request_timeout,
        ))
    }

    /// The zone of the server that a response came from: of the peer, not of what its name resolves
    /// to now. Behind a proxy only a stated address counts.
    fn zone(&self, url: &Url, response: &Response) -> Zone {
        Zone::stated(url)
            .or_else(|| {
                let peer = response.remote_addr()?;
                (!self.pools.uses_proxy(url)).then(|| Zone::of(peer.ip()))
            })
            .unwrap_or(Zone::Network)
    }

    /// Sends a request whose payload is in memory.
    async fn head(
        &self,
        endpoint: &Endpoint,
        request: RequestBuilder,
        line: &RequestLine,
        waits: Waits,
    ) -> Result<Response, RegistryError> {
        let (started, dial) = (Instant::now(), endpoint.dial_timeout);
        let clock = Arc::<DialClock>::default();
        let mut sending = pin!(clock.observe(request.send()));
        loop {
            let end = clock.end(started, dial, waits.head);
            let end = end.min(started + waits.whole);
            match timeout_at(end, &mut sending).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(connection_error(line.clone(), error, dial)),
                Err(_) => {}
            }
            let end = clock.end(started, dial, waits.head);
            if end.min(started + waits.whole) <= Instant::now() {
                return Err(no_response(line, waits.head.min(waits.whole)));
            }
        }
    }

    /// Sends a request with a streamed body. Each piece that is sent restarts the time limit.
    async fn upload(
        &self,
        endpoint: &Endpoint,
        request: RequestBuilder,
        line: &RequestLine,
        limit: Duration,
        (body, size): (&BlobBody, u64),
        progress: Option<Progress<'_>>,
    ) -> Result<Response, RegistryError> {
        let meter = Meter::shared();
        let stream = reqwest::Body::wrap_stream(body.open(size, &meter).await?);
        let mut response = pin!(request.body(stream).send());
        let mut reported = 0;
        let mut active = Instant::now();
        loop {
            let outcome = timeout(TICK.min(limit), &mut response).await;
            let sent = meter.sent.load(Ordering::Relaxed);
            if sent != reported {
                reported = sent;
                active = Instant::now();
                if let Some(progress) = progress {
                    progress(sent);
                }
            }
            match outcome {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => {
                    let dial_timeout = endpoint.dial_timeout;
                    return Err(meter
                        .take_failure()
                        .unwrap_or_else(|| connection_error(line.clone(), error, dial_timeout)));
                }
                Err(_) if active.elapsed() >= limit => return Err(no_response(line, limit)),
                Err(_) => {}
            }
        }
    }

    /// Longest waits for the head of a response. A healthy registry answers reads without delay;
    /// after a write it may have to hash and move what it received.
    fn waits(&self, endpoint: &Endpoint, spec: &RequestSpec<'_>) -> Waits {
        let config = &self.config;
        let head = if spec.is_read() {
            config.response_header_timeout
        } else {
            config.request_timeout
        };
        Waits {
            head,
            whole: (endpoint.dial_timeout + head).min(endpoint.request_timeout),
        }
    }
}

/// Longest waits for the head of a response.
#[derive(Clone, Copy)]
struct Waits {
    /// Once there is a connection.
    head: Duration,
    /// With the time for the connection.
    whole: Duration,
}

fn no_response(line: &RequestLine, limit: Duration) -> RegistryError {
    RegistryError::Timeout {
        request: line.clone(),
        phase: "response",
        after: limit,
    }
}

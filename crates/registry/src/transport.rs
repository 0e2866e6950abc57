//! One request over the wire: TLS, connections, time-outs. No redirects, no credentials, no
//! retries: those are decided above, where it is known what they mean.

use std::pin::pin;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, RANGE};
use http::{HeaderMap, HeaderValue, Method};
use soci_errors::chain;
use url::Url;

use crate::body::{BlobBody, Meter};
use crate::endpoint::{Endpoint, is_loopback};
use crate::response::Incoming;
use crate::{ClientConfig, RegistryError, RequestLine, dump};

/// How often a running upload is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What a request carries.
#[derive(Clone)]
pub(crate) enum Payload<'a> {
    Empty,
    Bytes(Bytes),
    Body {
        body: &'a BlobBody,
        size: u64,
        progress: Option<&'a (dyn Fn(u64) + Send + Sync)>,
    },
}

/// A request to send.
#[derive(Clone)]
pub(crate) struct Outgoing<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload<'a>,
    /// The server that it is about, although the URL may lead elsewhere.
    pub(crate) endpoint: &'a Endpoint,
}

impl Outgoing<'_> {
    /// How messages call it.
    pub(crate) fn line(&self) -> RequestLine {
        RequestLine::new(&self.method, &self.url, &self.endpoint.credential_host)
    }

    /// What goes over the wire: an endpoint's headers never leave for another host, and what the
    /// request says itself counts.
    fn all_headers(&self, authorization: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = if self.endpoint.owns(&self.url) {
            self.endpoint.headers.below(&self.headers)
        } else {
            self.headers.clone()
        };
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        headers
    }
}

/// Connection pools that differ in how they connect. Built when first used: TLS roots take time
/// and memory, and a machine without any must still reach its local registry.
#[derive(Debug)]
enum Lane {
    /// Plain HTTP to this machine: never through a proxy.
    Loopback,
    /// Plain HTTP.
    Plain,
    /// TLS.
    Tls,
}

pub(crate) struct Transport {
    config: ClientConfig,
    loopback: OnceLock<Result<reqwest::Client, RegistryError>>,
    plain: OnceLock<Result<reqwest::Client, RegistryError>>,
    tls: OnceLock<Result<reqwest::Client, RegistryError>>,
}

impl Transport {
    pub(crate) fn new(config: ClientConfig) -> Self {
        Self {
            config,
            loopback: OnceLock::new(),
            plain: OnceLock::new(),
            tls: OnceLock::new(),
        }
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Sends one request and waits for the head of its answer, whatever its status.
    pub(crate) async fn send(
        &self,
        outgoing: &Outgoing<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Incoming, RegistryError> {
        let line = outgoing.line();
        let client = self.lane(&outgoing.url)?;
        let headers = outgoing.all_headers(authorization);
        let mut request = client
            .request(outgoing.method.clone(), outgoing.url.clone())
            .headers(headers.clone());
        let meter = Meter::shared();
        let mut progress: Option<&(dyn Fn(u64) + Send + Sync)> = None;
        match &outgoing.payload {
            Payload::Empty if matches!(outgoing.method, Method::GET | Method::HEAD) => {}
            Payload::Empty => request = request.header(CONTENT_LENGTH, 0),
            Payload::Bytes(bytes) => request = request.body(bytes.clone()),
            Payload::Body {
                body,
                size,
                progress: report,
            } => {
                progress = *report;
                let stream = body.open(*size, &meter).await?;
                request = request
                    .header(CONTENT_LENGTH, *size)
                    .body(reqwest::Body::wrap_stream(stream));
            }
        }
        let limit = self.head_limit(outgoing);
        let started = Instant::now();
        let mut answer = pin!(request.send());
        let mut last_sent = 0;
        let mut active = Instant::now();
        loop {
            let outcome = tokio::time::timeout(TICK.min(limit), &mut answer).await;
            let sent = meter.sent.load(Ordering::Relaxed);
            if sent != last_sent {
                last_sent = sent;
                active = Instant::now();
                if let Some(progress) = progress {
                    progress(sent);
                }
            }
            match outcome {
                Ok(Ok(response)) => {
                    tracing::trace!(
                        target: "soci_registry::http",
                        request = %line,
                        range = outgoing.headers.get(RANGE).and_then(|r| r.to_str().ok()),
                        status = response.status().as_u16(),
                        milliseconds = started.elapsed().as_millis(),
                        "request"
                    );
                    dump::exchange(&line, &headers, &response);
                    let whole = outgoing.endpoint.request_timeout;
                    return Ok(Incoming::new(
                        response,
                        line,
                        self.config.idle_timeout,
                        whole,
                    ));
                }
                Ok(Err(error)) => {
                    return Err(match meter.take_failure() {
                        Some(failure) => failure,
                        None => failed(line, error, self.config.dial_timeout),
                    });
                }
                Err(_) if active.elapsed() >= limit => {
                    return Err(RegistryError::Timeout {
                        request: line,
                        phase: "answer",
                        after: limit,
                    });
                }
                Err(_) => {}
            }
        }
    }

    /// Longest wait for the head of an answer. Reads are answered at once by a healthy registry;
    /// after a write it may have to hash and move what it was given.
    fn head_limit(&self, outgoing: &Outgoing<'_>) -> Duration {
        let config = &self.config;
        let head = if matches!(outgoing.method, Method::GET | Method::HEAD) {
            config.dial_timeout + config.response_header_timeout
        } else {
            config.request_timeout
        };
        head.min(outgoing.endpoint.request_timeout)
    }

    fn lane(&self, url: &Url) -> Result<&reqwest::Client, RegistryError> {
        let (cell, lane) = match url.scheme() {
            "http" if is_loopback(url) => (&self.loopback, Lane::Loopback),
            "http" => (&self.plain, Lane::Plain),
            _ => (&self.tls, Lane::Tls),
        };
        cell.get_or_init(|| self.build(&lane))
            .as_ref()
            .map_err(Clone::clone)
    }

    fn build(&self, lane: &Lane) -> Result<reqwest::Client, RegistryError> {
        // Fails only when a provider is installed already, which then is the one to use.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = &self.config;
        let mut builder = reqwest::Client::builder()
            .user_agent(&config.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(config.dial_timeout)
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30));
        let bad = |what: &str, error: &(dyn std::error::Error + 'static)| {
            RegistryError::Config(format!("{what}: {}", chain(error)))
        };
        match lane {
            // No certificates: these lanes never use TLS.
            Lane::Loopback => builder = builder.tls_certs_only([]).no_proxy(),
            Lane::Plain => builder = builder.tls_certs_only([]),
            Lane::Tls => {
                // h2's default windows hold a fast link back.
                // A connection that died silently is noticed, not used for request after request.
                builder = builder
                    .http2_adaptive_window(true)
                    .http2_keep_alive_interval(Duration::from_secs(10))
                    .http2_keep_alive_timeout(Duration::from_secs(10))
                    .tls_danger_accept_invalid_certs(config.skip_verify);
                let mut extra = Vec::new();
                for pem in &config.extra_ca {
                    let found = reqwest::Certificate::from_pem_bundle(pem)
                        .map_err(|e| bad("certificate authority", &e))?;
                    if found.is_empty() {
                        return Err(RegistryError::Config(
                            "certificate authority: the file holds no certificate in PEM"
                                .to_owned(),
                        ));
                    }
                    extra.extend(found);
                }
                if !extra.is_empty() {
                    builder = builder.tls_certs_merge(extra);
                }
                if let Some(identity) = &config.identity {
                    builder = builder.identity(
                        reqwest::Identity::from_pem(&identity.pem)
                            .map_err(|e| bad("client certificate", &e))?,
                    );
                }
            }
        }
        builder
            .build()
            .map_err(|error| bad("set up HTTP and TLS", &error.without_url()))
    }
}

/// What went wrong below HTTP, without the URL that reqwest puts into its messages.
pub(crate) fn failed(
    request: RequestLine,
    error: reqwest::Error,
    dial_timeout: Duration,
) -> RegistryError {
    let error = error.without_url();
    if error.is_timeout() {
        return RegistryError::Timeout {
            request,
            phase: "connection",
            after: dial_timeout,
        };
    }
    let reason = chain(&error);
    if error.is_builder() {
        return RegistryError::Config(format!("{request}: {reason}"));
    }
    if error.is_body() || error.is_decode() {
        return RegistryError::BadBody { request, reason };
    }
    match tls_advice(&error) {
        Some(advice) => RegistryError::Tls {
            request,
            reason,
            advice,
        },
        None => RegistryError::Unreachable { request, reason },
    }
}

/// What helps against a handshake that will fail again.
fn tls_advice(error: &reqwest::Error) -> Option<&'static str> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(mut error) = cause {
        // The source of an I/O error is that of the error in it, not the error itself.
        while let Some(inner) = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            error = inner;
        }
        match error.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(_)) => {
                return Some(
                    "check the certificate's name and dates, and that the system knows its authority \
                     (soci also takes --tlscacert, and --skip-verify to do without)",
                );
            }
            Some(rustls::Error::InvalidMessage(_)) => {
                return Some(
                    "it does not seem to speak TLS: check the port (soci takes --plain-http for \
                     a registry without TLS)",
                );
            }
            _ => cause = error.source(),
        }
    }
    None
}

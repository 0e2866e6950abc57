//! Where one blob is (endpoint and redirect), and one ranged request for it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method};
use parking_lot::Mutex;
use soci_oci::{Digest, Reference};
use tokio::time::Instant;
use url::Url;

use crate::auth::AuthTarget;
use crate::endpoint::{Endpoint, Need};
use crate::engine::{Engine, note};
use crate::error::ErrorKind;
use crate::manifest::refuse_page;
use crate::range::parse_content_range;
use crate::range_support::Ranges;
use crate::reach::{Reach, Zone};
use crate::request::RequestSpec;
use crate::response::Incoming;
use crate::signed_url;
use crate::{BodyDefect, Misconfiguration, ProtocolViolation, RegistryError, RequestLine};

/// Time after which a blob is requested again from a mirror that did not have it.
const ASK_AGAIN: Duration = Duration::from_secs(300);

/// Most URLs of a manifest that are tried for one blob.
const MOST_URLS: usize = 4;

/// One blob, and the location that last served it.
pub(crate) struct BlobLocator {
    pub(crate) engine: Arc<Engine>,
    reference: Reference,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Servers that the manifest names for the blob, and its URL there.
    foreign: Vec<Arc<Endpoint>>,
    /// Number of requests that were retried.
    pub(crate) retries: Arc<AtomicU64>,
    location: Mutex<Option<Location>>,
}

/// The endpoint that last served the blob, and where it redirected to.
#[derive(Clone)]
struct Location {
    endpoint: Arc<Endpoint>,
    url: Url,
    /// How far the URL may lead.
    reach: Reach,
    /// When a signed URL expires.
    until: Option<Instant>,
    /// Mirrors that do not have the blob, by base URL, until they are asked again.
    without: Vec<Url>,
    ask_again: Instant,
}

impl Location {
    /// Whether no endpoint before this one may have the blob.
    fn is_best_of(&self, endpoints: &[Arc<Endpoint>], without: &[Url]) -> bool {
        endpoints
            .iter()
            .take_while(|endpoint| endpoint.base() != self.endpoint.base())
            .all(|endpoint| without.contains(endpoint.base()))
            && endpoints
                .iter()
                .any(|endpoint| endpoint.base() == self.endpoint.base())
    }
}

/// A body that holds the wanted bytes, after `skip` others.
pub(crate) struct OpenBody {
    pub(crate) response: Incoming,
    /// Number of bytes before the wanted ones; not 0 if the host ignores ranges.
    pub(crate) skip: u64,
    /// Number of wanted bytes left in this body; may be fewer than requested.
    pub(crate) left: u64,
    /// Whether bytes follow that were not requested.
    pub(crate) overlong: bool,
    /// Whether more bytes came than were announced.
    pub(crate) surplus: bool,
}

impl BlobLocator {
    pub(crate) fn new(
        engine: Arc<Engine>,
        reference: Reference,
        digest: Digest,
        size: u64,
    ) -> Self {
        Self {
            engine,
            reference,
            digest,
            size,
            foreign: Vec::new(),
            retries: Arc::default(),
            location: Mutex::default(),
        }
    }

    /// The same blob, which its manifest says is at these URLs. As containerd's, they are asked before the
    /// registry, without credentials. URLs without TLS are ignored, unless the configuration allows to do
    /// without.
    pub(crate) fn also_at(mut self, urls: &[String]) -> Self {
        let urls = urls.iter().filter_map(|url| Url::parse(url).ok());
        let config = self.engine.config();
        let plain = config.plain_http || config.plain_http_redirects;
        let usable = |url: &Url| {
            (url.scheme() == "https" || (plain && url.scheme() == "http"))
                && url.username().is_empty()
                && url.password().is_none()
        };
        self.foreign = urls
            .filter(usable)
            .take(MOST_URLS)
            .map(|url| Arc::new(Endpoint::foreign(config, &url)))
            .collect();
        self
    }

    /// The URL of the blob at an endpoint, and how far it may lead. What a manifest names comes from the
    /// image's author: it leads to the network only.
    fn url_at(&self, endpoint: &Endpoint) -> (Url, Reach) {
        if endpoint.is_foreign() {
            return (endpoint.base().clone(), Reach::NamedFrom(Zone::Network));
        }
        let digest = self.digest.to_string();
        let url = endpoint.url(self.reference.repository(), &["blobs", &digest]);
        (url, Reach::Anywhere)
    }

    /// Names the blob for messages, without secrets.
    pub(crate) fn describe(&self) -> String {
        format!("{}@{}", self.reference.name(), self.digest)
    }

    /// Whether the location of the blob is known.
    pub(crate) fn is_located(&self) -> bool {
        self.location.lock().is_some()
    }

    /// Whether the host that serves the blob honours ranges; `None` if that is not known yet.
    pub(crate) fn honours_ranges(&self) -> Option<bool> {
        let location = self.location.lock().clone()?;
        let ranges = self.engine.ranges.of(&location.url)?;
        Some(ranges == Ranges::Honoured)
    }

    /// Forgets the location: it served damaged data.
    pub(crate) fn distrust(&self, error: &RegistryError) {
        if let Some(location) = self.location.lock().take() {
            self.engine.health.failed(&location.endpoint, error);
        }
    }

    /// The same for a part whose digest is wrong: a mirror is asked last for a while.
    pub(crate) fn distrust_bytes(&self) {
        let what = self.describe();
        let request = self.location.lock().as_ref().map(|location| {
            RequestLine::new(&Method::GET, &location.url, self.reference.registry())
        });
        tracing::debug!(blob = what, "looking for another place of a blob");
        if let Some(request) = request {
            self.distrust(&RegistryError::BadBody {
                request,
                source: BodyDefect::WrongBytes,
            });
        }
    }

    /// Makes one attempt to open a body with the bytes of `range`, or the first of them.
    pub(crate) async fn open(&self, range: &Range<u64>) -> Result<OpenBody, RegistryError> {
        let engine = &self.engine;
        let of_registry = engine.endpoints(self.reference.registry(), Need::Pull);
        let endpoints = [self.foreign.clone(), of_registry.await?].concat();
        let now = Instant::now();
        let known = self.location.lock().clone();
        let mut without = Vec::new();
        if let Some(known) = &known
            && known.ask_again > now
        {
            without.clone_from(&known.without);
        }
        if let Some(known) = known.filter(|known| {
            known.until.is_none_or(|until| until > now) && known.is_best_of(&endpoints, &without)
        }) {
            let (endpoint, place) = (&known.endpoint, (known.url, known.reach));
            let once = || self.request(endpoint, place.clone(), range).boxed();
            match engine.ask(endpoint, once).await {
                Ok(body) => return Ok(body),
                Err(error) => {
                    let busy = matches!(
                        error.kind(),
                        ErrorKind::TooManyRequests | ErrorKind::ServerError
                    );
                    if busy && !known.endpoint.is_mirror() {
                        return Err(error);
                    }
                    // The signed URL has expired, the mirror lost the blob, the host is gone.
                    let blob = self.describe();
                    tracing::debug!(blob, %error, "known location failed, trying all endpoints");
                    self.location.lock().take();
                }
            }
        }
        let (mut failure, mut elsewhere) = (None, None);
        for endpoint in endpoints {
            if without.contains(endpoint.base()) {
                continue;
            }
            let place = self.url_at(&endpoint);
            let once = || self.request(&endpoint, place.clone(), range).boxed();
            match engine.ask(&endpoint, once).await {
                Ok(body) => {
                    let url = body.response.url().clone();
                    let reach = body.response.reach();
                    let until = signed_url::usable_for(&url, SystemTime::now())
                        .and_then(|left| Instant::now().checked_add(left));
                    *self.location.lock() = Some(Location {
                        endpoint,
                        url,
                        reach,
                        until,
                        without,
                        ask_again: now + ASK_AGAIN,
                    });
                    return Ok(body);
                }
                Err(error) => {
                    if endpoint.is_mirror() && !error.is_transient() {
                        without.push(endpoint.base().clone());
                    }
                    if endpoint.is_foreign() {
                        elsewhere = Some(error);
                    } else if note(&mut failure, &endpoint, error) {
                        break;
                    }
                }
            }
        }
        let failure = failure.map(|(error, _)| error);
        // A registry need not have what its manifest says is elsewhere.
        if let (Some(error), true) = (elsewhere, failure.as_ref().is_none_or(is_absent)) {
            return Err(error);
        }
        Err(failure.unwrap_or_else(|| {
            let blob = self.describe();
            Misconfiguration::NoEndpointForBlob { blob }.into()
        }))
    }

    /// Requests the bytes from one URL; everything, if the answers of its host to ranges cannot be used.
    async fn request(
        &self,
        endpoint: &Endpoint,
        (url, reach): (Url, Reach),
        range: &Range<u64>,
    ) -> Result<OpenBody, RegistryError> {
        let ranges = &self.engine.ranges;
        let target = AuthTarget::pull(endpoint, &self.reference);
        let mut ranged = *range != (0..self.size) && ranges.of(&url) != Some(Ranges::Unusable);
        loop {
            let mut headers = HeaderMap::new();
            // A proxy that compresses on its own would break offsets and digests.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if ranged {
                let last = range.end.saturating_sub(1);
                let value = HeaderValue::try_from(format!("bytes={}-{last}", range.start))
                    .map_err(|error| Misconfiguration::Header {
                        name: "Range",
                        source: Arc::new(error),
                    })?;
                headers.insert(RANGE, value);
            }
            let spec = RequestSpec::get(url.clone(), headers).within(reach);
            let response = self.engine.exchange(&target, spec).await?;
            let place = response.url().clone();
            match self.accept(response, range, ranged) {
                Ok(body) => return Ok(body),
                Err(error) if ranged => {
                    ranged = false;
                    ranges.note(&place, Ranges::Unusable);
                    tracing::warn!(
                        host = %place.origin().ascii_serialization(),
                        %error,
                        "answers to range requests cannot be used; requesting whole blobs"
                    );
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Checks that the head of the response announces what was requested.
    fn accept(
        &self,
        response: Incoming,
        range: &Range<u64>,
        ranged: bool,
    ) -> Result<OpenBody, RegistryError> {
        let protocol = |source| {
            Err(RegistryError::Protocol {
                request: response.line().clone(),
                source,
            })
        };
        let (length, size, wanted) = (
            response.content_length(),
            self.size,
            range.end - range.start,
        );
        if let Some(encoding) = response.header(CONTENT_ENCODING)
            && encoding != "identity"
        {
            return protocol(ProtocolViolation::Encoded(encoding.to_owned()));
        }
        refuse_page(&response)?;
        match response.status().as_u16() {
            200 => {
                if let Some(announced) = length.filter(|length| *length != size) {
                    return protocol(ProtocolViolation::OtherSize {
                        announced,
                        wanted: size,
                    });
                }
                if ranged {
                    self.engine.ranges.note(response.url(), Ranges::Ignored);
                }
                Ok(OpenBody {
                    response,
                    skip: range.start,
                    left: wanted,
                    overlong: range.end < size,
                    surplus: false,
                })
            }
            206 => {
                let given = response.header(CONTENT_RANGE).unwrap_or_default();
                let multipart = response
                    .header(CONTENT_TYPE)
                    .is_some_and(|kind| kind.starts_with("multipart/"));
                let left = match parse_content_range(given) {
                    // As long as what was requested, if nothing says otherwise: the digest decides.
                    None if !multipart && length == Some(wanted) => wanted,
                    Some(content)
                        if content.bytes.start == range.start && content.bytes.end <= range.end =>
                    {
                        content.bytes.end - content.bytes.start
                    }
                    None if multipart => return protocol(ProtocolViolation::Multipart),
                    None => {
                        return protocol(ProtocolViolation::InvalidContentRange(given.to_owned()));
                    }
                    Some(_) => {
                        return protocol(ProtocolViolation::OtherRange {
                            wanted: range.clone(),
                            size,
                            given: given.to_owned(),
                        });
                    }
                };
                if let Some(length) = length.filter(|length| *length != left) {
                    return protocol(ProtocolViolation::RangeAndLength {
                        given: given.to_owned(),
                        length,
                    });
                }
                self.engine.ranges.note(response.url(), Ranges::Honoured);
                Ok(OpenBody {
                    response,
                    skip: 0,
                    left,
                    overlong: false,
                    surplus: false,
                })
            }
            status => protocol(ProtocolViolation::UnexpectedStatus(status)),
        }
    }
}

/// Whether a registry says that it does not have a blob.
fn is_absent(error: &RegistryError) -> bool {
    error.status() == Some(404)
}

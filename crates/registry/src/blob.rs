//! One blob at a registry: where it is, and one ranged request for it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use futures::StreamExt;
use http::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use soci_oci::{Digest, Reference};
use url::Url;

use crate::auth::Purpose;
use crate::endpoint::Endpoint;
use crate::error::ErrorKind;
use crate::exchange::{Ask, Shared, pull_scope};
use crate::range::parse_content_range;
use crate::reader::RangeReader;
use crate::response::Incoming;
use crate::signed_url;
use crate::source::ByteStream;
use crate::{BlobSource, Deadline, RegistryError};

/// A blob at a registry. Remembers which endpoint has it and where that redirects to, and asks
/// again when the redirect's target has expired.
#[derive(Clone)]
pub struct RemoteBlob {
    pub(crate) place: Arc<Place>,
}

/// Where one blob is.
pub(crate) struct Place {
    pub(crate) shared: Arc<Shared>,
    reference: Reference,
    digest: Digest,
    pub(crate) size: u64,
    scope: String,
    located: Mutex<Option<Located>>,
}

/// The place that last gave it.
#[derive(Clone)]
struct Located {
    endpoint: Arc<Endpoint>,
    url: Url,
    /// When a signed URL ends.
    until: Option<Instant>,
}

/// A body that holds the wanted bytes, after `skip` others.
pub(crate) struct Opened {
    pub(crate) response: Incoming,
    /// Bytes before the wanted ones: the host ignores ranges.
    pub(crate) skip: u64,
    /// Wanted bytes in this body; may be fewer than asked for.
    pub(crate) left: u64,
    /// Does more follow, that we did not ask for?
    pub(crate) overlong: bool,
    /// Did more come than was promised?
    pub(crate) surplus: bool,
}

impl RemoteBlob {
    pub(crate) fn new(
        shared: Arc<Shared>,
        reference: Reference,
        digest: Digest,
        size: u64,
    ) -> Self {
        let scope = pull_scope(reference.repository());
        Self {
            place: Arc::new(Place {
                shared,
                reference,
                digest,
                size,
                scope,
                located: Mutex::default(),
            }),
        }
    }
}

impl RemoteBlob {
    /// Is it known where the blob is (which mirror, which redirect)? Then the next request goes
    /// straight there.
    #[must_use]
    pub fn is_located(&self) -> bool {
        self.place.located.lock().is_some()
    }
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteBlob({})", self.describe())
    }
}

#[async_trait]
impl BlobSource for RemoteBlob {
    fn size(&self) -> u64 {
        self.place.size
    }

    async fn stream_range(
        &self,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<ByteStream, RegistryError> {
        if range.start > range.end || range.end > self.place.size {
            return Err(RegistryError::OutOfRange {
                what: self.describe(),
                range,
                size: self.place.size,
            });
        }
        let mut reader = RangeReader::new(Arc::clone(&self.place), range, deadline);
        reader.open().await?;
        Ok(reader.into_stream().boxed())
    }

    fn ignores_ranges(&self) -> bool {
        self.place.honours_ranges() == Some(false)
    }

    fn retry_count(&self) -> u64 {
        self.place.shared.retry_count()
    }

    fn describe(&self) -> String {
        self.place.describe()
    }
}

impl Place {
    pub(crate) fn describe(&self) -> String {
        format!("{}@{}", self.reference.name(), self.digest)
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// Does the host that gives the blob honour ranges? `None`: not known yet.
    pub(crate) fn honours_ranges(&self) -> Option<bool> {
        let located = self.located.lock().clone()?;
        self.shared.honours_ranges(&located.url)
    }

    /// What this place gave was damaged: ask elsewhere next time.
    pub(crate) fn distrust(&self, error: &RegistryError) {
        if let Some(located) = self.located.lock().take() {
            self.shared.note_failure(&located.endpoint, error);
        }
    }

    /// One attempt at getting a body with the bytes of `range`, or the first of them.
    pub(crate) async fn open(&self, range: &Range<u64>) -> Result<Opened, RegistryError> {
        let known = self.located.lock().clone();
        if let Some(known) = known.filter(|l| l.until.is_none_or(|until| until > Instant::now())) {
            match self.ask(&known.endpoint, known.url, range).await {
                Ok((opened, _)) => return Ok(opened),
                Err(error) => {
                    let busy = matches!(
                        error.kind(),
                        ErrorKind::TooManyRequests | ErrorKind::ServerError
                    );
                    if busy && !known.endpoint.is_mirror() {
                        return Err(error);
                    }
                    // The signed URL has expired, the mirror lost the blob, the host is gone.
                    tracing::debug!(blob = %self.describe(), %error, "looking for the blob anew");
                    self.located.lock().take();
                    self.shared.note_failure(&known.endpoint, &error);
                }
            }
        }
        let mut failure = None;
        for endpoint in self.shared.endpoints(self.reference.registry())? {
            let url = endpoint.url(
                self.reference.repository(),
                &["blobs", &self.digest.to_string()],
            );
            match self.ask(&endpoint, url, range).await {
                Ok((opened, url)) => {
                    let until = signed_url::usable_for(&url, SystemTime::now())
                        .and_then(|left| Instant::now().checked_add(left));
                    *self.located.lock() = Some(Located {
                        endpoint,
                        url,
                        until,
                    });
                    return Ok(opened);
                }
                Err(error) => {
                    self.shared.note_failure(&endpoint, &error);
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            RegistryError::Config(format!("{} has no endpoint", self.describe()))
        }))
    }

    /// Asks one URL; also tells where the answer came from.
    async fn ask(
        &self,
        endpoint: &Endpoint,
        url: Url,
        range: &Range<u64>,
    ) -> Result<(Opened, Url), RegistryError> {
        let purpose = Purpose {
            endpoint,
            reference: &self.reference,
            scope: &self.scope,
        };
        let mut headers = HeaderMap::new();
        // A proxy that compresses on its own would break offsets and digests.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if *range != (0..self.size) {
            let last = range.end.saturating_sub(1);
            let value = HeaderValue::try_from(format!("bytes={}-{last}", range.start))
                .map_err(|error| RegistryError::Config(error.to_string()))?;
            headers.insert(RANGE, value);
        }
        let response = self
            .shared
            .exchange(purpose, Ask::get(url, headers))
            .await?;
        let url = response.url().clone();
        Ok((self.check(response, range)?, url))
    }

    /// Does the head of the answer promise what was asked for?
    fn check(&self, response: Incoming, range: &Range<u64>) -> Result<Opened, RegistryError> {
        let protocol = |reason: String| {
            Err(RegistryError::Protocol {
                request: response.line().clone(),
                reason,
            })
        };
        let length = response.content_length();
        let size = self.size;
        match response.status().as_u16() {
            200 => {
                if length.is_some_and(|length| length != size) {
                    return protocol(format!(
                        "the blob has {} bytes there, not {size}",
                        length.unwrap_or_default()
                    ));
                }
                let whole = *range == (0..size);
                if !whole {
                    self.shared.learn_ranges(response.url(), false);
                }
                Ok(Opened {
                    response,
                    skip: range.start,
                    left: range.end - range.start,
                    overlong: range.end < size,
                    surplus: false,
                })
            }
            206 => {
                let said = response.header(CONTENT_RANGE).unwrap_or_default();
                let Some(content) = parse_content_range(said) else {
                    return protocol(format!("a 206 answer with Content-Range {said:?}"));
                };
                if content.bytes.start != range.start
                    || content.bytes.end > range.end
                    || content.total.is_some_and(|total| total != size)
                {
                    return protocol(format!(
                        "asked for bytes {}-{} of {size}, got Content-Range {said:?}",
                        range.start,
                        range.end.saturating_sub(1)
                    ));
                }
                let left = content.bytes.end - content.bytes.start;
                if length.is_some_and(|length| length != left) {
                    return protocol(format!(
                        "Content-Range {said:?} with {} bytes",
                        length.unwrap_or_default()
                    ));
                }
                self.shared.learn_ranges(response.url(), true);
                Ok(Opened {
                    response,
                    skip: 0,
                    left,
                    overlong: false,
                    surplus: false,
                })
            }
            status => protocol(format!("status {status} in answer to a GET")),
        }
    }
}

//! A request before it is sent: method, URL, headers and what it carries.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use url::Url;

use crate::body::BlobBody;
use crate::endpoint::Endpoint;
use crate::error::RequestLine;
use crate::reach::{Reach, Zone};

/// Receives the number of bytes sent so far.
pub(crate) type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// A request to a registry or to a server that it names.
#[derive(Clone)]
pub(crate) struct RequestSpec<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload<'a>,
    /// How far the URL may lead, if it is not the endpoint's own.
    pub(crate) reach: Reach,
}

/// The body of a request.
#[derive(Clone)]
pub(crate) enum Payload<'a> {
    Empty,
    Bytes(Bytes),
    Blob {
        body: &'a BlobBody,
        size: u64,
        progress: Option<Progress<'a>>,
    },
}

impl RequestSpec<'_> {
    pub(crate) fn get(url: Url, headers: HeaderMap) -> Self {
        Self {
            method: Method::GET,
            url,
            headers,
            payload: Payload::Empty,
            reach: Reach::NamedFrom(Zone::Network),
        }
    }

    pub(crate) fn head(url: Url, headers: HeaderMap) -> Self {
        Self {
            method: Method::HEAD,
            ..Self::get(url, headers)
        }
    }

    /// The same request, whose URL a server in another zone may have named.
    pub(crate) fn within(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// Whether the request reads only, so that a healthy server answers without delay.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    /// The request as messages name it.
    pub(crate) fn line(&self, endpoint: &Endpoint) -> RequestLine {
        RequestLine::new(&self.method, &self.url, &endpoint.credential_host)
    }

    /// The headers to send: those of the endpoint never leave for another host, and those of the
    /// request replace them.
    pub(crate) fn headers_for(
        &self,
        endpoint: &Endpoint,
        authorization: Option<&HeaderValue>,
    ) -> HeaderMap {
        let mut headers = if endpoint.owns(&self.url) {
            endpoint.headers.below(&self.headers)
        } else {
            self.headers.clone()
        };
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        headers
    }
}

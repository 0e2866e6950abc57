//! Failures below HTTP: connecting, TLS, and broken connections.

use std::sync::Arc;
use std::time::Duration;

use soci_errors::find;

use crate::reach::OutOfReach;
use crate::{ConnectionFailure, Misconfiguration, RegistryError, RequestLine, TlsFailure};

/// Maps an error of reqwest to ours, without the URL that reqwest puts into its messages.
pub(crate) fn connection_error(
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
    if error.is_builder() {
        let source = Arc::new(error);
        return Misconfiguration::Request { request, source }.into();
    }
    let tls = find::<rustls::Error>(&error).and_then(TlsFailure::new);
    let out_of_reach = find::<OutOfReach>(&error).copied();
    let (body, connect) = (error.is_body() || error.is_decode(), error.is_connect());
    let source = ConnectionFailure::Client(Arc::new(error));
    match (out_of_reach, tls) {
        _ if body => RegistryError::BadBody {
            request,
            source: source.into(),
        },
        (Some(place), _) => RegistryError::Misdirected {
            request,
            source: place.into(),
        },
        (None, Some(source)) => RegistryError::Tls { request, source },
        (None, None) if connect => RegistryError::Unreachable { request, source },
        (None, None) => RegistryError::Dropped { request, source },
    }
}

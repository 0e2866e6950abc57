//! Failures below HTTP: connecting, TLS, and broken connections.

use std::error::Error;
use std::time::Duration;

use soci_errors::chain;

use crate::reach::OutOfReach;
use crate::tls_failure::explain;
use crate::{RegistryError, RequestLine};

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
    let reason = chain(&error);
    if error.is_builder() {
        return RegistryError::Config(format!("{request}: {reason}"));
    }
    if error.is_body() || error.is_decode() {
        return RegistryError::BadBody { request, reason };
    }
    if let Some(refusal) = find::<OutOfReach>(&error) {
        return RegistryError::Misdirected {
            request,
            reason: refusal.to_string(),
        };
    }
    match find::<rustls::Error>(&error).and_then(explain) {
        Some((reason, advice)) => RegistryError::Tls {
            request,
            reason,
            advice,
        },
        None if error.is_connect() => RegistryError::Unreachable { request, reason },
        None => RegistryError::Dropped { request, reason },
    }
}

/// Returns the first cause of this type.
fn find<T: Error + 'static>(error: &reqwest::Error) -> Option<&T> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(mut error) = cause {
        // The source of an I/O error is that of the error in it, not the error itself.
        while let Some(inner) = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            error = inner;
        }
        match error.downcast_ref() {
            Some(found) => return Some(found),
            None => cause = error.source(),
        }
    }
    None
}

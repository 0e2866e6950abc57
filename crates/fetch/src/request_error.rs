//! Errors of requests, and what each says about the origin.

use std::time::Duration;

use soci_registry::{ErrorKind, RegistryError};

use crate::ReadError;
use crate::pace::FLOOR;
use crate::read_error::Cause;
use crate::schedule::Health;

/// An error of a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("nothing arrived for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("the body ended before its last byte")]
    EndedEarly,
    #[error("less than {} KiB/s arrived for {} s", FLOOR >> 10, .0.as_secs_f32())]
    TooSlow(Duration),
}

impl RequestError {
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Stalled(_) | Self::EndedEarly | Self::TooSlow(_) => true,
        }
    }

    pub(crate) fn is_overload(&self) -> bool {
        match self {
            Self::Registry(error) => {
                matches!(
                    error.kind(),
                    ErrorKind::TooManyRequests | ErrorKind::Timeout
                )
            }
            Self::Stalled(_) | Self::TooSlow(_) => true,
            Self::EndedEarly => false,
        }
    }

    /// The wait that an origin requests that has too many requests; `None` if it is another error.
    pub(crate) fn throttle(&self) -> Option<Option<Duration>> {
        match self {
            Self::Registry(error) if error.is_throttle() => Some(error.retry_after()),
            _ => None,
        }
    }

    /// What the error says about the origin. Refusals are answers: they concern the blob.
    pub(crate) fn health(&self) -> fn(&Cause) -> Health {
        let failing = |cause: &Cause| Health::Failing(cause.clone());
        let error = match self {
            Self::Registry(error) => error,
            Self::Stalled(_) | Self::EndedEarly | Self::TooSlow(_) => return failing,
        };
        match error.kind() {
            ErrorKind::Timeout
            | ErrorKind::Unreachable
            | ErrorKind::ServerError
            | ErrorKind::BadBody => failing,
            _ if error.status().is_some() => |_| Health::Answering,
            _ => |_| Health::Unknown,
        }
    }
}

/// The error for the readers of spans that are missing because of a request's error.
pub(crate) fn read_error(source: Cause, blob: String) -> impl Fn(u32) -> ReadError {
    move |span| ReadError::Source {
        blob: blob.clone(),
        span,
        source: source.clone(),
    }
}

//! Asking a daemon.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use tonic::Code;

use crate::api::status_client::StatusClient;
use crate::api::{
    CollectRequest, CollectResponse, FillRequest, FillResponse, GetRequest, GetResponse,
};
use crate::service::MAX_MESSAGE;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// No daemon answers.
    #[error(
        "no snapshotter answers at {}: {reason}; is soci-snapshotter-grpc running, and is \
         --snapshotter-address right?",
        path.display()
    )]
    NotThere {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The socket is not for us.
    #[error("no permission to use the socket {}: run this as root", .0.display())]
    Denied(PathBuf),
    /// The peer does not know the method.
    #[error(
        "the snapshotter at {} is older than this program, or another one: it does not know \
         `soci status`",
        .0.display()
    )]
    Unknown(PathBuf),
    /// The daemon has no answer.
    #[error("the snapshotter at {} does not report its status: {message} ({code:?})", path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// Its words.
        message: String,
        /// The gRPC code.
        code: Code,
    },
}

/// Asks the daemon that listens on the socket `path`.
///
/// # Errors
/// The daemon does not answer, or its answer is malformed.
pub async fn get(path: &Path) -> Result<GetResponse, StatusError> {
    let channel = soci_grpc::connect(path)
        .await
        .map_err(|error| not_there(path, &error))?;
    let mut client = StatusClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    match client.get(GetRequest {}).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(failure(path, &status)),
    }
}

/// Requests that the daemon on the socket `path` fills an image before all others, for the next
/// seconds. Returns how far it is; `None` if the daemon has no layer of it.
///
/// # Errors
/// The daemon does not answer, or its answer is malformed.
pub async fn fill(
    path: &Path,
    image: &str,
    namespace: &str,
) -> Result<Option<FillResponse>, StatusError> {
    let channel = soci_grpc::connect(path)
        .await
        .map_err(|error| not_there(path, &error))?;
    let mut client = StatusClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let request = FillRequest {
        image: image.to_owned(),
        namespace: namespace.to_owned(),
    };
    match client.fill(request).await {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(failure(path, &status)),
    }
}

/// Requests that the daemon on the socket `path` finds, and unless it is a dry run frees, what
/// nothing uses.
///
/// # Errors
/// The daemon does not answer, or its answer is malformed.
pub async fn collect(path: &Path, dry_run: bool) -> Result<CollectResponse, StatusError> {
    let channel = soci_grpc::connect(path)
        .await
        .map_err(|error| not_there(path, &error))?;
    let mut client = StatusClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    match client.collect(CollectRequest { dry_run }).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(failure(path, &status)),
    }
}

fn failure(path: &Path, status: &tonic::Status) -> StatusError {
    let path = path.to_owned();
    match status.code() {
        Code::Unimplemented => StatusError::Unknown(path),
        code => StatusError::Failed {
            path,
            message: status.message().to_owned(),
            code,
        },
    }
}

fn not_there(path: &Path, error: &(dyn Error + 'static)) -> StatusError {
    let denied = soci_errors::causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
    if denied {
        return StatusError::Denied(path.to_owned());
    }
    StatusError::NotThere {
        path: path.to_owned(),
        reason: soci_errors::causes(error)
            .last()
            .unwrap_or(error)
            .to_string(),
    }
}

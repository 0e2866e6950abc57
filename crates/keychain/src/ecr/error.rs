//! Why there is no password for a registry of Amazon ECR. No text holds a key, a token or a query.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use soci_errors::chain;

/// Why there is no password for a registry of Amazon ECR.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EcrError {
    /// HTTP and TLS cannot be set up.
    #[error("cannot set up HTTP and TLS: {}", chain(&**.0))]
    Setup(#[source] Arc<reqwest::Error>),
    /// Nothing in the environment names a role, and the instance must not be asked.
    #[error(
        "no role of AWS: neither keys, a web identity nor a container's role in the environment, \
         and AWS_EC2_METADATA_DISABLED is set"
    )]
    NoRole,
    /// A service of AWS did not give what was requested.
    #[error("{service}: {source}")]
    Service {
        /// The service, in words.
        service: &'static str,
        /// The cause.
        source: AwsFailure,
    },
}

/// Why a service of AWS did not give what was requested.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AwsFailure {
    /// The service cannot be reached, or the response breaks off. The cause holds no URL.
    #[error("{}", chain(&**.0))]
    Request(#[source] Arc<reqwest::Error>),
    /// The service answered with an error.
    #[error("status {status}{}", .code.as_ref().map_or(String::new(), |code| format!(" ({code})")))]
    Status {
        /// The HTTP status.
        status: u16,
        /// The code in the body, such as `AccessDeniedException`.
        code: Option<String>,
    },
    /// More bytes than are accepted.
    #[error("the response has more than {0} bytes")]
    TooLarge(usize),
    /// A response without the password.
    #[error("the response has no token")]
    NoToken,
    /// A response without the keys of the role.
    #[error("the response has no keys")]
    NoKeys,
    /// The address of the service is not a URL.
    #[error("its address is not a URL")]
    Address,
    /// The address of the container's credential service is one that must not receive its token.
    #[error("{host:?} is neither this machine, an agent of ECS or EKS, nor reached by https")]
    UntrustedHost {
        /// The host in the address.
        host: String,
    },
    /// A variable of the environment is missing.
    #[error("{0} is not set")]
    Unset(&'static str),
    /// A file with a token cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The instance has no role.
    #[error("the instance has no profile")]
    NoProfile,
}

impl AwsFailure {
    /// Names the service.
    pub(super) fn of(self, service: &'static str) -> EcrError {
        EcrError::Service {
            service,
            source: self,
        }
    }

    /// A failure below HTTP.
    pub(super) fn request(error: reqwest::Error) -> Self {
        // The URL may hold a token in its query.
        Self::Request(Arc::new(error.without_url()))
    }
}

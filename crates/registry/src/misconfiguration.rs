//! What is wrong with the configuration, an argument or a local file, as types.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::header::InvalidHeaderValue;
use rustls::client::VerifierBuilderError;
use soci_errors::chain;
use soci_oci::{Digest, Reference, ReferenceError};

use crate::{HostsDirError, RequestLine};

/// What is wrong with the configuration, an argument or a local file. The request would fail again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Misconfiguration {
    /// A name that cannot be part of an image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A configured host is not one.
    #[error(
        "{what} {host:?} is not a host name, optionally with a port (and, for a mirror, a path)"
    )]
    Host {
        /// `host`, `mirror`, `registry`: where the name stands.
        what: &'static str,
        /// The name, without a password in it.
        host: String,
    },
    /// The `hosts.toml` of a registry cannot be used.
    #[error(transparent)]
    Hosts(Arc<HostsDirError>),
    /// No host in the `hosts.toml` of a registry has the capability.
    #[error("no host of {registry} may be used for this; see the capabilities in its hosts.toml")]
    NoCapableHost {
        /// The registry, as in image references.
        registry: String,
    },
    /// No host in the `hosts.toml` of a registry takes uploads.
    #[error("no host of {registry} in its hosts.toml may be pushed to")]
    NoHostToPushTo {
        /// The registry, as in image references.
        registry: String,
    },
    /// A registry without an endpoint.
    #[error("registry {registry:?} has no endpoint")]
    NoEndpoint {
        /// The registry, as in image references.
        registry: String,
    },
    /// No endpoint of the registry may serve a blob.
    #[error("{blob} has no endpoint")]
    NoEndpointForBlob {
        /// The blob, in words.
        blob: String,
    },
    /// No image is known that a blob could be read from.
    #[error("no repository is known to have {0}")]
    NoRepository(Digest),
    /// A configured file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// A configured file does not hold certificate authorities.
    #[error("{}: {source}", .path.display())]
    AuthorityFile {
        /// The file.
        path: PathBuf,
        /// The defect.
        source: AuthorityDefect,
    },
    /// A certificate authority of the client's configuration is invalid.
    #[error("certificate authority: {0}")]
    Authority(#[source] AuthorityDefect),
    /// Certificate and key of the client cannot be used.
    #[error("client certificate: {0}")]
    ClientCertificate(#[source] ClientCertificateDefect),
    /// There is no authority that a server's certificate could be verified with.
    #[error("cannot verify TLS certificates: no trusted authorities: {0}")]
    NoAuthorities(#[source] VerifierBuilderError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// The HTTP client cannot be set up. The cause holds no URL.
    #[error("cannot set up HTTP and TLS: {}", chain(&**.0))]
    Http(#[source] Arc<reqwest::Error>),
    /// A request that cannot be expressed in HTTP. The cause holds no URL.
    #[error("{request}: {}", chain(&**.source))]
    Request {
        /// The request.
        request: RequestLine,
        /// The cause.
        source: Arc<reqwest::Error>,
    },
    /// A header of a request cannot be sent.
    #[error("cannot send the header {name}: {source}")]
    Header {
        /// The header's name.
        name: &'static str,
        /// The cause.
        source: Arc<InvalidHeaderValue>,
    },
    /// A user name or password with bytes that a header cannot carry.
    #[error("cannot send user name or password in a header")]
    UnsendableUser,
    /// The media type of a manifest to push.
    #[error("invalid media type {media_type:?}")]
    MediaType {
        /// The media type.
        media_type: String,
        /// The cause.
        source: Arc<InvalidHeaderValue>,
    },
    /// The manifest to push is not that of the reference.
    #[error("the manifest to push as {reference} has digest {actual}, not {wanted}")]
    OtherManifest {
        /// The reference, with the digest that is wanted.
        reference: Reference,
        /// The digest of the manifest.
        actual: Digest,
        /// The digest in the reference.
        wanted: Digest,
    },
    /// A list of referrers that cannot be written as JSON.
    #[error("cannot write the referrers: {0}")]
    Referrers(#[source] Arc<serde_json::Error>),
    /// The program ends while the configuration is read.
    #[error(transparent)]
    Interrupted(Arc<soci_task::Interrupted>),
}

/// Why a file of certificate authorities is not one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityDefect {
    /// It is not PEM.
    #[error(transparent)]
    Pem(Arc<rustls::pki_types::pem::Error>),
    /// It is PEM, and holds no certificate.
    #[error("the file holds no certificate in PEM")]
    Empty,
    /// One of its certificates cannot be parsed.
    #[error(transparent)]
    Certificate(Arc<x509_cert::der::Error>),
}

/// Why certificate and key of a client cannot be used. Its texts quote neither.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ClientCertificateDefect {
    /// The text holds no certificate or no key in PEM.
    Pem(Arc<rustls::pki_types::pem::Error>),
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    Tls(rustls::Error),
    /// The HTTP client refuses them. The cause holds no URL.
    Http(Arc<reqwest::Error>),
}

impl fmt::Display for ClientCertificateDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pem(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::Http(error) => f.write_str(&chain(&**error)),
        }
    }
}

impl Error for ClientCertificateDefect {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match self {
            Self::Pem(error) => &**error,
            Self::Tls(error) => error,
            Self::Http(error) => &**error,
        })
    }
}

impl From<rustls::pki_types::pem::Error> for AuthorityDefect {
    fn from(error: rustls::pki_types::pem::Error) -> Self {
        Self::Pem(Arc::new(error))
    }
}

impl From<rustls::pki_types::pem::Error> for ClientCertificateDefect {
    fn from(error: rustls::pki_types::pem::Error) -> Self {
        Self::Pem(Arc::new(error))
    }
}

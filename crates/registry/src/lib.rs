//! The registry client: resolving, credentials, mirrors, redirects, ranged reads, retries and
//! uploads (OCI distribution specification 1.1). [`BlobSource`] is the interface for reading parts
//! of one blob.

#![forbid(unsafe_code)]

mod auth;
mod blob;
mod blob_locator;
mod body;
mod bounded;
mod candidate_memory;
mod cause;
mod challenge;
mod client;
mod config;
mod connection_error;
mod connection_pool;
mod credential_error;
mod credential_program;
mod credential_scope;
mod credentials;
mod deadline;
mod dial_clock;
mod docker_config;
mod docker_helper;
mod dump;
mod endpoint;
mod engine;
mod error;
mod exists;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod go_duration;
mod host_headers;
mod host_health;
mod hosts_dir;
mod hosts_files;
mod hosts_toml;
mod list_page;
mod listing;
mod manifest;
mod misconfiguration;
mod names;
mod p521;
mod p521_exchange;
mod range;
mod range_reader;
mod range_support;
mod reach;
mod redirect;
mod referrers;
mod registry_report;
mod request;
mod response;
mod retry;
mod signed_url;
mod source;
#[cfg(feature = "test-doubles")]
pub mod testing;
mod tls_authority_leaf;
mod tls_failure;
mod tls_verifier;
mod token;
mod transport;
mod upload;
mod whole_blob;

pub use blob::RemoteBlob;
pub use body::BlobBody;
pub use cause::{BodyDefect, ConnectionFailure, Misdirection, ProtocolViolation, TlsFailure};
pub use client::Client;
pub use config::{
    ClientConfig, ClientIdentity, HostsConfig, Mirror, Origin, RetryPolicy, TlsSettings,
};
pub use credential_error::{CredentialError, DockerConfigError};
pub use credential_program::{ProgramFailure, ProgramLimits, run_credential_program};
pub use credential_scope::CredentialScope;
pub use credentials::{
    Candidate, ChainedCredentials, Credential, Credentials, NoCredentials, StaticCredentials,
};
pub use deadline::Deadline;
pub use docker_config::{DockerConfigCredentials, same_registry};
pub use error::{ErrorKind, RegistryError, RequestLine};
pub use go_duration::go_duration;
pub use host_headers::{HeaderError, HostHeaders};
pub use hosts_dir::HostsDirError;
pub use hosts_toml::{HostsTomlError, RegistryHost, RegistryHosts};
pub use manifest::ManifestKey;
pub use misconfiguration::{AuthorityDefect, ClientCertificateDefect, Misconfiguration};
pub use names::listen_addresses;
pub use p521::install_cryptography;
pub use reach::{OutOfReach, resolver};
pub use registry_report::{HostReport, RegistryReport};
pub use source::{BlobSource, ByteStream};
pub use upload::PushOutcome;

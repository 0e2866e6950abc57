//! The one registry client of this project: resolving, credentials, mirrors, redirects, ranged
//! reads, retries and uploads (OCI distribution specification 1.1), behind [`BlobSource`] for
//! everything that only reads one blob.

#![forbid(unsafe_code)]

mod blob;
mod body;
mod client;
mod config;
mod credentials;
mod docker_config;
mod error;
mod source;
#[cfg(feature = "test-doubles")]
pub mod testing;
mod upload;

pub use blob::RemoteBlob;
pub use body::BlobBody;
pub use client::{Client, ManifestKey};
pub use config::{ClientConfig, ClientIdentity, HostsConfig, Mirror, RetryPolicy};
pub use credentials::{
    ChainedCredentials, Credential, CredentialError, Credentials, DockerConfigCredentials,
    NoCredentials, StaticCredentials,
};
pub use error::{ErrorKind, RegistryError, RequestLine};
pub use source::{BlobSource, ByteStream};
pub use upload::PushOutcome;

//! The request of CRI's image service (`runtime.v1`) that the proxy decodes, with the fields that it
//! needs. The message itself is forwarded unchanged.

use std::fmt;

use prost::Message;

/// `PullImageRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub(super) auth: Option<AuthConfig>,
}

/// `ImageSpec`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ImageSpec {
    /// The reference as in the pod's specification.
    #[prost(string, tag = "1")]
    pub(super) image: String,
}

/// `AuthConfig`. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub(super) struct AuthConfig {
    #[prost(string, tag = "1")]
    pub(super) username: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
    /// base64 of `user:password`.
    #[prost(string, tag = "3")]
    pub(super) auth: String,
    /// The registry of the credentials; if empty, that of the image.
    #[prost(string, tag = "4")]
    pub(super) server_address: String,
    #[prost(string, tag = "5")]
    pub(super) identity_token: String,
    #[prost(string, tag = "6")]
    pub(super) registry_token: String,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthConfig(…)")
    }
}

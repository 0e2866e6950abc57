//! The vocabulary of images: digests, references, descriptors, manifests, media types.
//!
//! The shapes follow the OCI image specification 1.1; [`json`] writes them the way Go's encoder
//! does, because other programs re-encode what they fetch and compare digests.

#![forbid(unsafe_code)]

pub mod annotations;
mod descriptor;
mod digest;
pub mod json;
mod manifest;
pub mod media_types;
mod platform;
mod redacted;
mod reference;

pub use descriptor::Descriptor;
pub use digest::{Digest, DigestError, Hasher};
pub use manifest::{ImageConfig, Index, Manifest, RootFs};
pub use platform::{Platform, PlatformError};
pub use redacted::RedactedUrl;
pub use reference::{Reference, ReferenceError};

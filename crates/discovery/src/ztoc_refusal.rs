//! Why a layer is not lazy whose zTOC cannot be fetched.

use std::sync::Arc;

use soci_layer::{Cause, LayerRefusal};
use soci_oci::Digest;
use soci_registry::RegistryError;

/// A zTOC cannot be fetched.
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch zTOC {digest}")]
struct FetchError {
    digest: Digest,
    source: RegistryError,
}

/// The refusal of a layer whose zTOC the registry did not deliver: the registry does not work, or
/// it does not have this zTOC, or has another under its digest.
#[must_use]
pub fn refusal_without_ztoc(digest: Digest, source: RegistryError) -> LayerRefusal {
    let outage = source.is_outage();
    let source: Cause = Arc::new(FetchError { digest, source });
    match outage {
        true => LayerRefusal::RegistryUnavailable { source },
        false => LayerRefusal::Failed { source },
    }
}

//! Why a client must not use a mounted layer.

use crate::refusal::Cause;

/// The reason why a snapshot must not be stacked on a lazy layer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UseRefusal {
    /// The layer is not what its digests say.
    #[error("{reason}")]
    Forged {
        /// Which layer, the images that are concerned, and the remedy.
        reason: String,
    },
    /// No image that the client has vouches for the layer, and it cannot be verified now.
    #[error("{reason}")]
    Unverified {
        /// Which layer, why it must be verified, and the remedy.
        reason: String,
        /// Why it cannot be verified.
        source: Cause,
    },
}

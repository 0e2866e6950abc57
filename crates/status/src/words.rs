//! The words for states, in JSON and tables. They never change.

use serde::Serializer;

use crate::api::{Health, Image, Layer, LayerState};

impl LayerState {
    /// The word, empty for what the daemon did not say.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "",
            Self::Lazy => "lazy",
            Self::Local => "local",
            Self::Deferred => "deferred",
        }
    }
}

impl Health {
    /// The word, empty for what the daemon did not say.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "",
            Self::Healthy => "healthy",
            Self::Broken => "broken",
            Self::Forged => "forged",
        }
    }
}

impl Layer {
    /// The stored share of a lazy layer, 0 to 100.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a percentage needs no 64 bits of precision"
    )]
    pub fn fetched_percent(&self) -> Option<f64> {
        match (self.fetched_bytes?, self.size_bytes?) {
            (_, 0) => Some(100.0),
            (fetched, size) => Some(fetched as f64 * 100.0 / size as f64),
        }
    }
}

impl Image {
    /// The stored share of its lazy layers, 0 to 100.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a percentage needs no 64 bits of precision"
    )]
    pub fn stored_percent(&self) -> f64 {
        match self.lazy_bytes {
            0 => 100.0,
            lazy => self.stored_bytes as f64 * 100.0 / lazy as f64,
        }
    }
}

/// A state that this program does not know yet is an empty word.
pub(crate) fn state<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    let state = LayerState::try_from(*value).unwrap_or_default();
    serializer.serialize_str(state.word())
}

pub(crate) fn health<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    let health = Health::try_from(*value).unwrap_or_default();
    serializer.serialize_str(health.word())
}

//! Why a layer is not mounted lazily: one vocabulary for logs, metrics, status and the CLI.

use std::error::Error;
use std::sync::Arc;

use soci_containerd::labels::LabelError;

/// The cause of a refusal, shared because refusals are cached.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Where the fault of a layer lies that cannot be fetched and unpacked: what its client can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnpackFault {
    /// The image: its layer is damaged, over a limit, or not what its digests say. The same image
    /// fails again.
    Image,
    /// The disk of this node, which is full.
    Space,
    /// The registry, the network, this node or this program: another try may succeed.
    Passing,
}

/// The reason why a layer is not mounted lazily.
///
/// Each has a sentence for people and a stable [`code`](LayerRefusal::code) for logs, metrics and
/// `soci status`. The sentence does not repeat the causes: use `soci_errors::chain`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LayerRefusal {
    /// The configuration allows no look-up of an index.
    #[error("lazy loading is disabled: {reason}")]
    Disabled {
        /// The keys that disable it.
        reason: String,
    },
    /// The image has no SOCI index, or a dangling or unreadable one.
    #[error("no valid SOCI index found: {reason}")]
    NotIndexed {
        /// Where it was looked for and what was found.
        reason: String,
        /// Why an index that exists cannot be used.
        source: Option<Cause>,
    },
    /// The look-up failed, so that it is unknown whether the image has an index.
    #[error("cannot look up the image's SOCI index")]
    IndexUnavailable {
        /// The failure of the registry or the content store.
        source: Cause,
        /// Whether the registry could not be reached or did not work: fetching the layer would fail as
        /// well.
        unreachable: bool,
    },
    /// The registry did not work when a part of the image was fetched, this time or a moment ago.
    #[error("the image's registry cannot be reached or does not work")]
    RegistryUnavailable {
        /// The failure of the registry.
        source: Cause,
    },
    /// The index has no zTOC for this layer.
    #[error("the SOCI index has no zTOC for this layer: {reason}")]
    NoZtoc {
        /// Which index, which layer.
        reason: String,
    },
    /// The layer is smaller than the configured `[snapshotter] min_layer_size`.
    #[error("the layer has {size} bytes, fewer than min_layer_size = {minimum}")]
    BelowMinSize {
        /// Compressed size in bytes, from the label.
        size: u64,
        /// The configured limit in bytes.
        minimum: u64,
    },
    /// Images of this repository are not mounted lazily.
    #[error(
        "no prefix in lazy_registries of [trust] covers {repository}: its layers are verified and \
         unpacked before they are used"
    )]
    UntrustedRegistry {
        /// Registry and repository of the image.
        repository: String,
    },
    /// All layers of the image are pulled and unpacked in parallel.
    #[error("the image's layers are pulled and unpacked in parallel: {reason}")]
    Eager {
        /// The key that has them pulled so, and why the image is not lazy if that was looked up.
        reason: String,
    },
    /// Layers are isolated, and the image's registry did not say that the image's repository has
    /// this one.
    #[error(
        "{repository} has not confirmed that it has the layer, which [layer_store] sharing = \
         \"isolated\" requires before what is on this node is used"
    )]
    Unconfirmed {
        /// Registry and repository of the image.
        repository: String,
        /// The refusal or failure of the registry; `None`: it does not have the layer.
        source: Option<Cause>,
    },
    /// A span of the layer needs more memory than one span may have.
    #[error(
        "span {span} of the layer needs {bytes} bytes of memory, more than {limit}, a quarter of \
         [fetch] memory_budget_bytes: index the image with a smaller span size, or raise the budget"
    )]
    SpanTooLarge {
        /// Number of the span.
        span: u32,
        /// Compressed and inflated size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The layer was verified before, and is not what its digests say.
    #[error("the lazy layer is forged: {reason}")]
    Forged {
        /// What differs.
        reason: String,
    },
    /// The labels contradict the names of the snapshots, or name an image that the client does not
    /// have, or one with other layers: they may come from the image that is pulled.
    #[error("the labels disagree with {reason}")]
    ForeignLabels {
        /// With what, and what does not agree.
        reason: String,
    },
    /// The client prepares a layer without those below it, and could not be told that it exists.
    #[error(
        "the layer is prepared without the layers below it, and cannot be lazy: remove \"rebase\" from \
         capabilities of [proxy_plugins.soci] in containerd's configuration"
    )]
    WithoutParent,
    /// The client did not send a label that is needed.
    #[error(
        "the label {label} is missing: the client must pass snapshot annotations \
         (CRI: disable_snapshot_annotations = false)"
    )]
    MissingLabel {
        /// The key of the label.
        label: String,
    },
    /// The client sent a malformed label.
    #[error("the label {label} is malformed: {reason}")]
    InvalidLabel {
        /// The key of the label.
        label: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The layer cannot be fetched and unpacked either.
    #[error("unpacking the layer failed")]
    UnpackFailed {
        /// The cause.
        source: Cause,
        /// Where the fault lies.
        fault: UnpackFault,
    },
    /// Registry, disk, zTOC or mount failed.
    #[error("mounting the layer failed")]
    Failed {
        /// The cause.
        source: Cause,
    },
}

impl From<LabelError> for LayerRefusal {
    fn from(error: LabelError) -> Self {
        match error {
            LabelError::Missing(label) => Self::missing_label(label),
            LabelError::Invalid { label, source } => Self::invalid_label(label, source),
            other => Self::failed(other),
        }
    }
}

impl LayerRefusal {
    /// All codes, in the order of the variants.
    pub const CODES: [&'static str; 17] = [
        "disabled",
        "no-index",
        "index-unavailable",
        "registry-unavailable",
        "no-ztoc",
        "below-min-size",
        "untrusted-registry",
        "parallel-pull",
        "unconfirmed",
        "span-too-large",
        "forged",
        "foreign-labels",
        "without-parent",
        "missing-label",
        "invalid-label",
        "unpack-failed",
        "failed",
    ];

    /// Returns a word that never changes, for logs, metrics and status output.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Disabled { .. } => "disabled",
            Self::NotIndexed { .. } => "no-index",
            Self::IndexUnavailable { .. } => "index-unavailable",
            Self::RegistryUnavailable { .. } => "registry-unavailable",
            Self::NoZtoc { .. } => "no-ztoc",
            Self::BelowMinSize { .. } => "below-min-size",
            Self::UntrustedRegistry { .. } => "untrusted-registry",
            Self::Eager { .. } => "parallel-pull",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::SpanTooLarge { .. } => "span-too-large",
            Self::Forged { .. } => "forged",
            Self::ForeignLabels { .. } => "foreign-labels",
            Self::WithoutParent => "without-parent",
            Self::MissingLabel { .. } => "missing-label",
            Self::InvalidLabel { .. } => "invalid-label",
            Self::UnpackFailed { .. } => "unpack-failed",
            Self::Failed { .. } => "failed",
        }
    }

    /// Creates [`LayerRefusal::NotIndexed`] for an image without any index.
    pub fn not_indexed(reason: impl Into<String>) -> Self {
        Self::NotIndexed {
            reason: reason.into(),
            source: None,
        }
    }

    /// Creates [`LayerRefusal::NoZtoc`].
    pub fn no_ztoc(reason: impl Into<String>) -> Self {
        Self::NoZtoc {
            reason: reason.into(),
        }
    }

    /// Creates [`LayerRefusal::MissingLabel`] for the label with this key.
    pub fn missing_label(label: impl Into<String>) -> Self {
        Self::MissingLabel {
            label: label.into(),
        }
    }

    /// Creates [`LayerRefusal::InvalidLabel`] for the label with this key.
    pub fn invalid_label(label: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::InvalidLabel {
            label: label.into(),
            reason: reason.to_string(),
        }
    }

    /// Creates [`LayerRefusal::Failed`] from its cause: an error, or a text.
    pub fn failed(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed {
            source: Cause::from(cause.into()),
        }
    }

    /// Creates [`LayerRefusal::UnpackFailed`] from its cause, an error or a text: another try may
    /// succeed.
    pub fn unpack_failed(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::UnpackFailed {
            source: Cause::from(cause.into()),
            fault: UnpackFault::Passing,
        }
    }

    /// Creates [`LayerRefusal::Failed`] for a zTOC that is larger than the configuration allows.
    #[must_use]
    pub fn ztoc_too_large(size: u64, largest: u64) -> Self {
        Self::failed(format!(
            "its zTOC has {size} bytes, more than limits.ztoc_bytes = {largest}; \
             index the image with a larger span size"
        ))
    }

    /// Whether the image's layers are pulled in parallel instead, where the configuration wants that
    /// of images without an index: the image has none that is used, or its registry does not work.
    #[must_use]
    pub const fn falls_back_to_parallel(&self) -> bool {
        matches!(
            self,
            Self::Disabled { .. }
                | Self::NotIndexed { .. }
                | Self::RegistryUnavailable { .. }
                | Self::IndexUnavailable {
                    unreachable: true,
                    ..
                }
        )
    }

    /// Whether the layer is pulled with all layers of its image: a failure of that is the client's,
    /// because it would fetch everything once more.
    #[must_use]
    pub const fn is_eager(&self) -> bool {
        matches!(self, Self::Eager { .. })
    }

    /// Whether the client unpacks the layer, instead of the snapshotter: the image has no index, or
    /// its registry cannot be reached or refuses the layer, so that fetching it would fail as well,
    /// or the labels do not say for sure which layer it is, or where it belongs.
    #[must_use]
    pub const fn leaves_to_client(&self) -> bool {
        self.falls_back_to_parallel()
            || matches!(
                self,
                Self::ForeignLabels { .. } | Self::WithoutParent | Self::Unconfirmed { .. }
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_code_in_the_list() {
        let every = [
            LayerRefusal::Disabled {
                reason: String::new(),
            },
            LayerRefusal::not_indexed(""),
            LayerRefusal::IndexUnavailable {
                source: Cause::from(Box::<dyn Error + Send + Sync>::from("")),
                unreachable: false,
            },
            LayerRefusal::RegistryUnavailable {
                source: Cause::from(Box::<dyn Error + Send + Sync>::from("")),
            },
            LayerRefusal::no_ztoc(""),
            LayerRefusal::BelowMinSize {
                size: 1,
                minimum: 2,
            },
            LayerRefusal::UntrustedRegistry {
                repository: String::new(),
            },
            LayerRefusal::Eager {
                reason: String::new(),
            },
            LayerRefusal::Unconfirmed {
                repository: String::new(),
                source: None,
            },
            LayerRefusal::SpanTooLarge {
                span: 0,
                bytes: 2,
                limit: 1,
            },
            LayerRefusal::Forged {
                reason: String::new(),
            },
            LayerRefusal::ForeignLabels {
                reason: String::new(),
            },
            LayerRefusal::WithoutParent,
            LayerRefusal::missing_label(""),
            LayerRefusal::invalid_label("", ""),
            LayerRefusal::unpack_failed(""),
            LayerRefusal::failed(""),
        ];
        assert_eq!(every.map(|refusal| refusal.code()), LayerRefusal::CODES);
    }

    #[test]
    fn a_refusal_keeps_its_causes() {
        let refusal = LayerRefusal::failed(std::io::Error::other("no space"));
        assert_eq!(
            soci_errors::chain(&refusal),
            "mounting the layer failed: no space"
        );
    }
}

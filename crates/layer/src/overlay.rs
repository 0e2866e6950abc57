//! The extended attributes in which overlayfs keeps its marks.

/// The namespace of overlayfs' extended attributes (Documentation/filesystems/overlayfs.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OverlayXattr {
    /// `trusted.overlay.*`.
    #[default]
    Trusted,
    /// `user.overlay.*`, where overlay is mounted with `userxattr`.
    User,
}

impl OverlayXattr {
    /// Returns the namespace that an overlay uses, by whether it is mounted with `userxattr`.
    #[must_use]
    pub const fn for_mount(userxattr: bool) -> Self {
        match userxattr {
            true => Self::User,
            false => Self::Trusted,
        }
    }

    /// The name of the attribute of an opaque directory; its value is `y`.
    #[must_use]
    pub const fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }

    /// Whether an image must not set this attribute, because it would forge a mark of overlayfs.
    ///
    /// `trusted.*` of an image is dropped in any case, so this is about `user.overlay.*`.
    #[must_use]
    pub fn is_forged(self, name: &[u8]) -> bool {
        self == Self::User && name.starts_with(b"user.overlay.")
    }
}

//! Which kinds of SOCI index are looked for.

/// The kinds of SOCI index that the configuration allows.
///
/// With none of them, nothing makes a layer lazy: a label that names an index may come from an
/// annotation of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `[pull_modes.soci_v1] enable`: an index among the referrers of the image manifest.
    pub soci_v1: bool,
    /// `[pull_modes.soci_v2] enable`: an index that an annotation of the image manifest names.
    pub soci_v2: bool,
    /// `[trust] explicit_index`: an index that the client names is used even if both kinds
    /// above are disabled.
    pub explicit_index: bool,
}

impl Policy {
    /// Allows every kind.
    pub const ALL: Self = Self {
        soci_v1: true,
        soci_v2: true,
        explicit_index: true,
    };

    /// Whether an index may be looked for; `explicit` says that the client names one.
    #[must_use]
    pub const fn allows_look_up(self, explicit: bool) -> bool {
        self.soci_v1 || self.soci_v2 || (explicit && self.explicit_index)
    }
}

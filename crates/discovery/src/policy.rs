//! Which kinds of SOCI index are looked for.

/// The kinds of SOCI index that the configuration allows. An index that the client names itself is
/// used whatever the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `[pull_modes.soci_v1] enable`: an index among the referrers of the image manifest.
    pub soci_v1: bool,
    /// `[pull_modes.soci_v2] enable`: an index that an annotation of the image manifest names.
    pub soci_v2: bool,
}

impl Policy {
    /// Allows both kinds.
    pub const ALL: Self = Self {
        soci_v1: true,
        soci_v2: true,
    };
}

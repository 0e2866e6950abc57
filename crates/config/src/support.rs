//! Which keys were set to something else than the default although this version does nothing with
//! them yet: the daemon says so once.

use crate::Config;

/// Keys whose feature is still to come. A name that ends in a dot stands for all keys below it.
/// An entry goes when its feature lands.
const NOT_YET: &[&str] = &["blob.fetching_timeout_sec"];

/// Keys of parts that v0.15 has and this daemon has no use for, now or later.
const NO_EFFECT: &[&str] = &[
    "http_cache_type",
    "filesystem_cache_type",
    "resolve_result_entry",
    "debug",
    "metadata_store",
    "metadata_db_no_sync",
    "metadata_insertion_chunk_size",
    "blob.valid_interval",
    "blob.check_always",
    "blob.force_single_range_mode",
    "directory_cache.",
    "background_fetch.emit_metric_period_sec",
    "resolver.auth_client_ttl_sec",
    "resolver.enable_auth_client_sharing",
    "snapshotter.allow_invalid_mounts_on_restart",
];

impl Config {
    /// Dotted names of the keys (or, with a dot at the end, of the tables) that are not at their
    /// default and whose feature does not exist yet.
    #[must_use]
    pub fn not_yet_supported(&self) -> Vec<&'static str> {
        self.changed_among(NOT_YET)
    }

    /// Dotted names of the keys that are not at their default and have no effect here, because
    /// the part of v0.15 that they tune does not exist in this design.
    #[must_use]
    pub fn without_effect(&self) -> Vec<&'static str> {
        self.changed_among(NO_EFFECT)
    }

    fn changed_among(&self, names: &[&'static str]) -> Vec<&'static str> {
        let changed = crate::dump::changed(self, &Self::default());
        names
            .iter()
            .copied()
            .filter(|name| {
                changed
                    .iter()
                    .any(|key| key == name || (name.ends_with('.') && key.starts_with(name)))
            })
            .collect()
    }
}

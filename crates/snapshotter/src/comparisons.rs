//! The views that containerd makes to compare snapshots.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// The views that exist for a comparison, by id, with the names of their parents.
#[derive(Debug, Default)]
pub(crate) struct Comparisons(Mutex<BTreeMap<u64, String>>);

impl Comparisons {
    /// Whether a view of this name is for a comparison: `<parent>-parent-view-<random>` and
    /// `<snapshot>-view-<random>` (containerd's rootfs/diff.go). Other views are mounts of images.
    pub(crate) fn is_comparison(name: &str) -> bool {
        name.contains("-view-")
    }

    /// Adds a view of this parent.
    pub(crate) fn begin(&self, view: u64, parent: &str) {
        self.0.lock().insert(view, parent.to_owned());
    }

    /// Removes a view. Other snapshots are ignored.
    pub(crate) fn end(&self, snapshot: u64) {
        self.0.lock().remove(&snapshot);
    }

    /// Whether a view of this parent exists, so that snapshots on it are about to be compared.
    pub(crate) fn involve(&self, parent: &str) -> bool {
        self.0.lock().values().any(|other| other == parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_for_comparisons_are_known_by_the_names_that_containerd_uses() {
        for (name, is_comparison) in [
            ("default/7/sha256:ab-parent-view-123456-AbC_", true),
            ("default/7/sha256:ab-view-123456-AbC_", true),
            ("default/7/app", false),
            ("default/8//tmp/nerdctl-volumes-81", false),
        ] {
            assert_eq!(Comparisons::is_comparison(name), is_comparison, "{name}");
        }
        let comparisons = Comparisons::default();
        comparisons.begin(3, "base");
        assert!(comparisons.involve("base") && !comparisons.involve("other"));
        comparisons.end(3);
        assert!(!comparisons.involve("base"));
    }
}

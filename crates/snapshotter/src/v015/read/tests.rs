//! Reading v0.15's metadata. Its import is tested through the service
//! (`tests/service/upgrade.rs`).

use std::path::Path;

use super::*;

fn golden(name: &str) -> String {
    format!(
        "{}/../../tests/golden/v0.15-root/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
}

#[test]
fn ids_kinds_times_and_usage_are_read_as_v0_15_wrote_them() {
    let database = soci_bolt::Database::open(Path::new(&golden("metadata.db"))).unwrap();
    let snapshots = snapshots(&database).unwrap();
    let of = |id: u64| snapshots.iter().find(|snapshot| snapshot.id == id).unwrap();
    assert_eq!(snapshots.len(), 4);
    assert_eq!(of(5).kind, Kind::Active);
    assert!(of(5).name.starts_with("default/5/"));
    assert_eq!(of(5).parent, of(3).name);
    for (id, parent) in [(1, ""), (2, &*of(1).name), (3, &*of(2).name)] {
        assert_eq!(of(id).kind, Kind::Committed);
        assert_eq!(of(id).parent, parent);
        assert_eq!(of(id).labels.contains_key(crate::labels::REMOTE), id != 3);
        assert!(of(id).created_at > UNIX_EPOCH);
    }
    // Lazy snapshots take no space of their own, the unpacked one does.
    assert_eq!(of(1).usage, Usage { size: 0, inodes: 0 });
    assert!(
        of(3).usage.size > 0 && of(3).usage.inodes > 0,
        "{:?}",
        of(3)
    );
}

//! The database across processes, and what v0.15 left.

use std::time::{SystemTime, UNIX_EPOCH};

use soci_oci::media_types;
use soci_ztoc::soci_index::SociIndex;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

fn ztoc(name: &str, span_size: u64) -> Artifact {
    Artifact {
        digest: Digest::of(name.as_bytes()),
        kind: ArtifactKind::Ztoc,
        size: 7,
        original_digest: Digest::of(b"layer"),
        image_digest: None,
        platform: String::new(),
        location: String::new(),
        media_type: media_types::ZTOC.to_owned(),
        artifact_type: String::new(),
        span_size,
        created_at: SystemTime::now(),
    }
}

fn sorted(mut artifacts: Vec<Artifact>) -> Vec<Artifact> {
    artifacts.sort_by_key(|artifact| artifact.digest.to_string());
    artifacts
}

/// `soci-v1/index-digest` of `kinds` is the index that the golden database lists.
fn golden_index() -> (Digest, Vec<u8>, SociIndex) {
    let folder = golden("kinds/soci-v1");
    let digest = std::fs::read_to_string(folder.join("index-digest")).unwrap();
    let digest: Digest = digest.trim().parse().unwrap();
    let bytes = std::fs::read(folder.join("blobs/sha256").join(digest.hex())).unwrap();
    let index = SociIndex::parse(&bytes).unwrap();
    (digest, bytes, index)
}

#[test]
fn entries_are_added_found_replaced_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let artifacts = ArtifactDb::new(&root.path().join("new"));
    let (a, b) = (ztoc("a", 1), ztoc("b", 2));
    artifacts.add(&[a.clone(), b.clone()]).unwrap();
    assert_eq!(
        artifacts.list().unwrap(),
        sorted(vec![a.clone(), b.clone()])
    );
    assert_eq!(artifacts.get(&a.digest).unwrap(), Some(a.clone()));
    assert_eq!(artifacts.get(&Digest::of(b"c")).unwrap(), None);
    let larger = Artifact {
        size: 8,
        ..a.clone()
    };
    artifacts.add(std::slice::from_ref(&larger)).unwrap();
    assert_eq!(artifacts.get(&a.digest).unwrap(), Some(larger.clone()));
    let removed = artifacts.remove(&[Digest::of(b"c"), a.digest]).unwrap();
    assert_eq!(removed, [larger]);
    assert_eq!(artifacts.list().unwrap(), [b]);
}

#[test]
fn a_ztoc_is_found_by_its_layer_and_span_size() {
    let root = tempfile::tempdir().unwrap();
    let artifacts = ArtifactDb::new(root.path());
    let old = Artifact {
        created_at: UNIX_EPOCH,
        ..ztoc("old", 1)
    };
    artifacts
        .add(&[old, ztoc("new", 1), ztoc("other", 2)])
        .unwrap();
    let layer = Digest::of(b"layer");
    let found = artifacts.ztoc_of(&layer, 1).unwrap().unwrap();
    assert_eq!(found.digest, Digest::of(b"new"));
    assert_eq!(artifacts.ztoc_of(&layer, 3).unwrap(), None);
    assert_eq!(artifacts.ztoc_of(&Digest::of(b"x"), 1).unwrap(), None);
}

#[test]
fn looking_at_nothing_makes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let artifacts = ArtifactDb::new(root.path());
    assert_eq!(artifacts.list().unwrap(), []);
    assert_eq!(artifacts.get(&Digest::of(b"a")).unwrap(), None);
    assert_eq!(artifacts.remove(&[Digest::of(b"a")]).unwrap(), []);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn the_database_of_v0_15_is_taken_over_once_and_kept() {
    let root = tempfile::tempdir().unwrap();
    let old = root.path().join("artifacts.db");
    std::fs::copy(golden("v0.15-root/artifacts.db"), &old).unwrap();
    let before = std::fs::read(&old).unwrap();
    let artifacts = ArtifactDb::new(root.path());

    // What v0.15 recorded is what we would of the same index, but for the times.
    let (digest, bytes, index) = golden_index();
    let manifest = index.subject.as_ref().unwrap().digest;
    let image = IndexedImage {
        manifest,
        image: manifest,
        platform: "linux/amd64".to_owned(),
        created_at: UNIX_EPOCH,
    };
    let taken = artifacts.list().unwrap();
    assert!(taken.iter().all(|one| one.created_at > UNIX_EPOCH));
    let timeless = taken.iter().map(|one| Artifact {
        created_at: UNIX_EPOCH,
        ..one.clone()
    });
    assert_eq!(
        timeless.collect::<Vec<_>>(),
        sorted(Artifact::of_index(
            digest,
            bytes.len() as u64,
            &index,
            &image
        ))
    );
    assert_eq!(std::fs::read(&old).unwrap(), before);

    // What is removed does not come back from the old file.
    artifacts.remove(&[digest]).unwrap();
    assert_eq!(artifacts.get(&digest).unwrap(), None);
    assert_eq!(artifacts.list().unwrap().len(), taken.len() - 1);
    assert_eq!(std::fs::read(&old).unwrap(), before);
}

#[test]
fn a_damaged_database_of_v0_15_is_reported_and_kept_and_rebuilding_continues_without_it() {
    let root = tempfile::tempdir().unwrap();
    let old = root.path().join("artifacts.db");
    std::fs::write(&old, [0x5a; 8192]).unwrap();
    let artifacts = ArtifactDb::new(root.path());
    for _ in 0..2 {
        let error = artifacts.list().unwrap_err();
        assert!(matches!(error, StoreError::OldArtifacts { .. }), "{error}");
        assert!(error.to_string().contains("rebuild-db"), "{error}");
    }
    let rebuilt = artifacts.rebuild(&[ztoc("a", 1)]).unwrap();
    assert_eq!((rebuilt.removed, rebuilt.added), (0, 1));
    assert_eq!(artifacts.list().unwrap().len(), 1);
    assert_eq!(std::fs::read(&old).unwrap(), [0x5a; 8192]);
}

#[test]
fn rebuilding_keeps_what_is_there_and_when_it_was_made() {
    let root = tempfile::tempdir().unwrap();
    let artifacts = ArtifactDb::new(root.path());
    let kept = Artifact {
        created_at: UNIX_EPOCH + Duration::from_secs(1),
        ..ztoc("kept", 1)
    };
    artifacts.add(&[kept.clone(), ztoc("gone", 1)]).unwrap();
    let found = [ztoc("kept", 1), ztoc("new", 1)];
    let rebuilt = artifacts.rebuild(&found).unwrap();
    assert_eq!((rebuilt.removed, rebuilt.added), (1, 1));
    assert_eq!(
        artifacts.list().unwrap(),
        sorted(vec![kept, found[1].clone()])
    );
}

#[test]
fn many_at_once_wait_for_each_other() {
    let root = tempfile::tempdir().unwrap();
    let old = root.path().join("artifacts.db");
    std::fs::copy(golden("v0.15-root/artifacts.db"), old).unwrap();
    let artifacts = ArtifactDb {
        patience: Duration::from_secs(120),
        ..ArtifactDb::new(root.path())
    };
    std::thread::scope(|scope| {
        for one in 0..8 {
            let artifacts = &artifacts;
            scope.spawn(move || {
                for round in 0..3 {
                    let name = format!("{one}-{round}");
                    artifacts.add(&[ztoc(&name, 1)]).unwrap();
                }
            });
        }
    });
    assert_eq!(artifacts.list().unwrap().len(), 3 + 8 * 3);
}

#[test]
fn one_that_keeps_it_for_too_long_is_named() {
    let root = tempfile::tempdir().unwrap();
    let artifacts = ArtifactDb {
        patience: Duration::from_millis(100),
        ..ArtifactDb::new(root.path())
    };
    artifacts.add(&[ztoc("a", 1)]).unwrap();
    let _other = redb::Database::open(root.path().join(FILE_NAME)).unwrap();
    let error = artifacts.list().unwrap_err();
    assert!(
        matches!(error, StoreError::ArtifactDbInUse { .. }),
        "{error}"
    );
    assert!(error.to_string().contains(FILE_NAME), "{error}");
}

#[test]
fn the_database_is_readable_to_its_owner_only_also_if_it_was_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("artifacts.redb");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    let database = ArtifactDb::new(root.path());
    database.add(&[ztoc("a", 1)]).unwrap();
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    database.add(&[ztoc("b", 1)]).unwrap();
    assert_eq!(mode(), 0o600);
}

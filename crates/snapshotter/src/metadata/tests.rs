//! The database across restarts, and its indexes under change.

use std::collections::BTreeMap;
use std::io;

use super::*;
use crate::api::v1::{Info, Kind};
use crate::file_error::FileError;
use crate::filter::Filters;
use crate::labels;
use soci_layer::MountedInfo;

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("metadata.redb")
    }

    fn open(&self) -> Metadata {
        let metadata = Metadata::open(&self.path()).unwrap();
        if metadata.import_state().unwrap() == ImportState::Undecided {
            metadata.begin().unwrap();
        }
        metadata
    }
}

fn new<'a>(id: u64, name: &'a str, parent: &'a str) -> NewSnapshot<'a> {
    NewSnapshot {
        id,
        name,
        kind: Kind::Active,
        parent,
        labels: BTreeMap::new(),
        fallback: None,
        id_maps: None,
    }
}

fn committed(metadata: &Metadata, id: u64, name: &str, parent: &str) {
    let key = format!("{name}-key");
    metadata.insert(new(id, &key, parent), |_| Ok(())).unwrap();
    metadata
        .commit(Commit {
            id,
            key: &key,
            name,
            parent: "",
            labels: BTreeMap::new(),
            usage: Usage::default(),
        })
        .unwrap();
}

fn names(metadata: &Metadata, filter: &str) -> Vec<String> {
    let mut names = Vec::new();
    let filters = Filters::parse(&[filter]).unwrap();
    metadata
        .list(&filters, |info| {
            names.push(<Info as prost::Message>::decode(info).unwrap().name);
            true
        })
        .unwrap();
    names
}

#[test]
fn an_id_is_never_given_twice_even_after_removal_and_restart() {
    let fixture = Fixture::new();
    let metadata = fixture.open();
    assert_eq!(metadata.next_id().unwrap(), 1);
    metadata.insert(new(7, "a", ""), |_| Ok(())).unwrap();
    metadata.remove("a").unwrap();
    drop(metadata);
    assert_eq!(fixture.open().next_id().unwrap(), 8);
}

#[test]
fn a_failed_transaction_leaves_no_trace() {
    let fixture = Fixture::new();
    let metadata = fixture.open();
    let failure = metadata.insert(new(1, "a", ""), |_| {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        Err(FileError::at("create", Path::new("/a"))(full))
    });
    assert!(matches!(failure, Err(MetadataError::Directory(_))));
    assert!(metadata.get("a").is_err());
    assert_eq!(metadata.next_id().unwrap(), 1);
}

#[test]
fn a_database_of_another_schema_is_refused_and_kept() {
    let fixture = Fixture::new();
    let metadata = fixture.open();
    committed(&metadata, 1, "a", "");
    metadata
        .write(|tables| {
            tables.meta.insert(SCHEMA_KEY, SCHEMA + 1)?;
            Ok(())
        })
        .unwrap();
    drop(metadata);
    let Err(error) = Metadata::open(&fixture.path()) else {
        panic!("opened a database of an unknown schema");
    };
    assert!(error.to_string().contains("schema version 2"), "{error}");
    assert!(std::fs::metadata(fixture.path()).unwrap().len() > 0);
}

#[test]
fn a_file_that_is_no_database_is_refused_and_kept() {
    let fixture = Fixture::new();
    let garbage = vec![0x5a; 8192];
    std::fs::write(fixture.path(), &garbage).unwrap();
    assert!(matches!(
        Metadata::open(&fixture.path()),
        Err(MetadataError::Database { .. })
    ));
    assert_eq!(std::fs::read(fixture.path()).unwrap(), garbage);
}

#[test]
fn a_second_opener_of_the_same_database_is_refused() {
    let fixture = Fixture::new();
    let _first = fixture.open();
    assert!(matches!(
        Metadata::open(&fixture.path()),
        Err(MetadataError::Database { .. })
    ));
}

#[test]
fn indexes_follow_commits_updates_and_removals() {
    let fixture = Fixture::new();
    let metadata = fixture.open();
    committed(&metadata, 1, "base", "");
    let mut child = new(2, "key", "base");
    child
        .labels
        .insert(labels::TARGET.to_owned(), "T".to_owned());
    let child_labels = child.labels.clone();
    metadata
        .insert(child, |parents| {
            assert_eq!(parents.iter().map(|p| p.id).collect::<Vec<_>>(), [1]);
            Ok(())
        })
        .unwrap();
    let by_target = "labels.\"containerd.io/snapshot.ref\"==T,parent==\"base\"";
    assert_eq!(names(&metadata, by_target), ["key"]);
    assert_eq!(names(&metadata, "parent==base"), ["key"]);
    // An active snapshot is not the target.
    assert_eq!(metadata.target("T", "base").unwrap(), None);

    metadata
        .commit(Commit {
            id: 2,
            key: "key",
            name: "child",
            parent: "",
            labels: child_labels,
            usage: Usage::default(),
        })
        .unwrap();
    assert_eq!(names(&metadata, by_target), ["child"]);
    assert_eq!(names(&metadata, "parent==base"), ["child"]);
    assert_eq!(
        metadata.target("T", "base").unwrap().as_deref(),
        Some("child")
    );
    assert_eq!(metadata.target("T", "").unwrap(), None);

    metadata.update("child", &BTreeMap::new(), &[]).unwrap();
    assert!(names(&metadata, by_target).is_empty());
    metadata.remove("child").unwrap();
    assert!(names(&metadata, "parent==base").is_empty());
    assert!(names(&metadata, "parent==absent").is_empty());
    metadata.remove("base").unwrap();
    assert!(names(&metadata, "").is_empty());
}

#[test]
fn a_target_that_is_taken_on_another_parent_gets_a_name_of_its_own() {
    let fixture = Fixture::new();
    let metadata = fixture.open();
    committed(&metadata, 1, "parent-1", "");
    committed(&metadata, 2, "parent-2", "");
    let lazy = |id, parent| {
        metadata.insert_layer(LayerCommit {
            id,
            target: "T",
            parent,
            labels: [(labels::TARGET.to_owned(), "T".to_owned())].into(),
            made: NewLayer::Lazy(LazyRecord::new(
                "ns".to_owned(),
                BTreeMap::new(),
                MountedInfo::default(),
            )),
        })
    };
    let committed_as = |name: &str| LayerOutcome::Committed(name.to_owned());
    assert_eq!(lazy(3, "parent-1").unwrap(), committed_as("T"));
    assert_eq!(lazy(4, "parent-2").unwrap(), committed_as("T#4"));
    assert_eq!(
        lazy(5, "parent-1").unwrap(),
        LayerOutcome::Exists("T".to_owned())
    );
    assert_eq!(
        lazy(6, "parent-2").unwrap(),
        LayerOutcome::Exists("T#4".to_owned())
    );
    assert_eq!(metadata.lazy().unwrap().len(), 2);
    let (record, lazy) = metadata.remove("T").unwrap();
    assert_eq!((record.id, lazy), (3, true));
    assert_eq!(metadata.lazy().unwrap().len(), 1);
}

#[test]
fn a_commit_of_a_key_that_was_prepared_again_is_refused() {
    let fixture = Fixture::new();
    let metadata = fixture.open();
    metadata.insert(new(1, "key", ""), |_| Ok(())).unwrap();
    metadata.remove("key").unwrap();
    metadata.insert(new(2, "key", ""), |_| Ok(())).unwrap();
    let commit = metadata.commit(Commit {
        id: 1,
        key: "key",
        name: "name",
        parent: "",
        labels: BTreeMap::new(),
        usage: Usage::default(),
    });
    assert!(matches!(commit, Err(MetadataError::NotFound { .. })));
}

#[test]
fn the_database_is_readable_to_its_owner_only_also_if_it_was_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.redb");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    drop(Metadata::open(&path).unwrap());
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    drop(Metadata::open(&path).unwrap());
    assert_eq!(mode(), 0o600);
}

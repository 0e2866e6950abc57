//! What bbolt wrote is read as it was written.

use soci_bolt::{BoltError, Bucket, Database, Entry, values};

fn names<'a>(bucket: &Bucket<'a>) -> Vec<&'a str> {
    bucket
        .entries()
        .map(|entry| std::str::from_utf8(entry.unwrap().0).unwrap())
        .collect()
}

#[test]
fn trees_of_several_levels_are_read_in_order() {
    let database = Database::open(&crate::golden::path("bbolt/pages-1024.db")).unwrap();
    assert_eq!(names(&database.root()), ["many", "nested", "overflow"]);
    let many = database.root().bucket(b"many").unwrap().unwrap();
    let mut expected = (0..400_u32).filter(|i| i % 2 == 1);
    for entry in many.entries() {
        let (key, Entry::Value(value)) = entry.unwrap() else {
            panic!("a bucket among the values");
        };
        let i = expected.next().unwrap();
        assert_eq!(
            key,
            format!("key-{i:04}-abcdefghijklmnopqrstuvwxyz0123456789").as_bytes()
        );
        assert_eq!(value, format!("value-{}", i * i).as_bytes());
    }
    assert_eq!(expected.next(), None);
}

#[test]
fn values_larger_than_a_page_are_read() {
    let database = Database::open(&crate::golden::path("bbolt/pages-1024.db")).unwrap();
    let bucket = database.root().bucket(b"overflow").unwrap().unwrap();
    let large: Vec<u8> = (0..5000_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
    assert_eq!(bucket.value(b"large").unwrap(), Some(large.as_slice()));
    assert_eq!(bucket.value(b"small").unwrap(), Some(&b"x"[..]));
    assert_eq!(bucket.value(b"medium").unwrap(), None);
    assert!(bucket.bucket(b"small").unwrap().is_none());
}

#[test]
fn inline_buckets_are_read() {
    let database = Database::open(&crate::golden::path("bbolt/pages-1024.db")).unwrap();
    let nested = database.root().bucket(b"nested").unwrap().unwrap();
    for i in 0..3 {
        let inner = nested
            .bucket(format!("in-{i}").as_bytes())
            .unwrap()
            .unwrap();
        assert_eq!(names(&inner), ["empty", "id"]);
        assert_eq!(
            inner.value(b"id").unwrap().and_then(values::uvarint),
            Some(i * 1000)
        );
        let empty = inner.bucket(b"empty").unwrap().unwrap();
        assert_eq!(empty.entries().count(), 0);
    }
}

/// The listing of v0.15 itself, of the same database.
#[test]
fn what_v0_15_left_is_read_as_v0_15_listed_it() {
    let path = crate::golden::path("v0.15-root/metadata.db");
    let database = Database::open(&path).unwrap();
    let last = Database::last_transaction(&path).unwrap();
    assert_eq!(last, database.transaction());
    let version = database.root().bucket(b"v1").unwrap().unwrap();
    assert_eq!(names(&version), ["parents", "snapshots"]);
    let snapshots = version.bucket(b"snapshots").unwrap().unwrap();
    let listed =
        std::fs::read_to_string(crate::golden::path("v0.15-root/snapshots.jsonl")).unwrap();
    let mut listed: Vec<serde_json::Value> = listed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    listed.sort_by_key(|snapshot| snapshot["Name"].as_str().unwrap().to_owned());
    assert_eq!(
        names(&snapshots),
        listed
            .iter()
            .map(|snapshot| snapshot["Name"].as_str().unwrap())
            .collect::<Vec<_>>()
    );
    for snapshot in &listed {
        let name = snapshot["Name"].as_str().unwrap();
        let bucket = snapshots.bucket(name.as_bytes()).unwrap().unwrap();
        let parent = bucket.value(b"parent").unwrap().unwrap_or_default();
        assert_eq!(
            std::str::from_utf8(parent).unwrap(),
            snapshot["Parent"].as_str().unwrap_or_default()
        );
        let labels = bucket.bucket(b"labels").unwrap();
        let expected = snapshot["Labels"].as_object();
        assert_eq!(
            labels.map_or(0, |labels| labels.entries().count()),
            expected.map_or(0, serde_json::Map::len)
        );
        for (key, value) in expected.into_iter().flatten() {
            let found = labels.unwrap().value(key.as_bytes()).unwrap().unwrap();
            assert_eq!(std::str::from_utf8(found).unwrap(), value.as_str().unwrap());
        }
    }
}

/// bbolt holds its lock as long as a database is open.
#[test]
fn a_database_that_its_program_has_open_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    std::fs::copy(crate::golden::path("bbolt/pages-1024.db"), &path).unwrap();
    let writer = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = Database::open(&path).unwrap_err();
    assert!(matches!(error, BoltError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("a.db"), "{error}");
    drop(writer);
    Database::open(&path).unwrap();
}

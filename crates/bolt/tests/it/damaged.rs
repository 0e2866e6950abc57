//! Damaged files: an error that names what is wrong, whatever the damage.

use proptest::prelude::*;
use soci_bolt::{BoltError, Bucket, Database, Entry};

const FILES: [&str; 3] = [
    "bbolt/pages-1024.db",
    "v0.15-root/metadata.db",
    "v0.15-root/artifacts.db",
];
const PAGE: usize = 1024;

fn golden() -> Vec<u8> {
    std::fs::read(crate::golden::path("bbolt/pages-1024.db")).unwrap()
}

fn walk(bucket: Bucket<'_>) -> Result<usize, BoltError> {
    let mut count = 0;
    for entry in bucket.entries() {
        count += 1;
        if let (_, Entry::Bucket(inner)) = entry? {
            count += walk(inner)?;
        }
    }
    Ok(count)
}

fn transaction(bytes: &[u8], page: usize) -> u64 {
    let at = page * PAGE + 16 + 48;
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn the_newer_meta_counts_and_either_alone_is_enough() {
    let whole = golden();
    let (newer, older) = if transaction(&whole, 0) > transaction(&whole, 1) {
        (0, 1)
    } else {
        (1, 0)
    };
    let entries = walk(Database::from_bytes(whole.clone()).unwrap().root()).unwrap();
    let mut one = whole.clone();
    one[older * PAGE + 40] ^= 1;
    let alone = Database::from_bytes(one).unwrap();
    assert_eq!(walk(alone.root()).unwrap(), entries);
    // Without the newer one the transaction before it is what there is.
    let mut one = whole.clone();
    one[newer * PAGE + 40] ^= 1;
    let before = Database::from_bytes(one).unwrap();
    assert!(before.root().bucket(b"nested").ok().flatten().is_none());
    let mut none = whole;
    none[40] ^= 1;
    none[PAGE + 40] ^= 1;
    let error = Database::from_bytes(none).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn a_file_that_is_cut_short_is_an_error_and_never_half_read() {
    let whole = golden();
    let entries = walk(Database::from_bytes(whole.clone()).unwrap().root()).unwrap();
    for length in (0..whole.len()).step_by(PAGE / 2) {
        match Database::from_bytes(whole[..length].to_vec()) {
            Err(BoltError::NoDatabase { .. }) => assert!(length < 2 * PAGE),
            Err(error) => panic!("{error}"),
            Ok(database) => match walk(database.root()) {
                // bbolt grows its files beyond the last page in use.
                Ok(count) => assert_eq!(count, entries),
                Err(error) => assert!(matches!(error, BoltError::Damaged { .. }), "{error}"),
            },
        }
    }
}

#[test]
fn a_tree_that_leads_back_to_itself_ends_in_an_error() {
    let mut bytes = golden();
    let mut branches = 0;
    for start in (2 * PAGE..bytes.len()).step_by(PAGE) {
        let flags = u16::from_le_bytes(bytes[start + 8..start + 10].try_into().unwrap());
        let id = u64::from_le_bytes(bytes[start..start + 8].try_into().unwrap());
        if flags == 1 && id == (start / PAGE) as u64 {
            branches += 1;
            // Its first child becomes itself.
            bytes[start + 16 + 8..start + 16 + 16].copy_from_slice(&id.to_le_bytes());
        }
    }
    assert!(branches > 0);
    let error = walk(Database::from_bytes(bytes).unwrap().root()).unwrap_err();
    assert!(matches!(error, BoltError::Damaged { .. }), "{error}");
}

#[test]
fn a_file_that_is_none_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.db");
    let error = Database::open(&path).unwrap_err();
    assert!(error.to_string().contains("none.db"), "{error}");
    for content in [&b""[..], b"short", &[0x5a; 8192]] {
        std::fs::write(&path, content).unwrap();
        let error = Database::open(&path).unwrap_err();
        assert!(matches!(error, BoltError::NoDatabase { .. }), "{error}");
    }
}

/// The entry point of the fuzz target `bolt_database`, over golden data and mutations of it.
#[test]
fn bolt_database_holds() {
    for file in FILES {
        let seed = std::fs::read(crate::golden::path(file)).unwrap();
        soci_bolt::fuzz::database(&seed);
        let config = ProptestConfig {
            cases: 1000,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let mutation = (any::<prop::sample::Index>(), any::<u32>(), 1..5_usize);
        let mutations = prop::collection::vec(mutation, 1..6);
        proptest::test_runner::TestRunner::new(config)
            .run(&mutations, |mutations| {
                let mut data = seed.clone();
                for (at, word, length) in mutations {
                    // The headers of pages are where damage leads furthest.
                    let at = at.index(2 * data.len());
                    let at = if at < data.len() {
                        at
                    } else {
                        let in_page = (at - data.len()) % 128;
                        (at - data.len()) / PAGE * PAGE + in_page
                    };
                    let word = (word >> (word & 31)).to_le_bytes();
                    data.iter_mut()
                        .skip(at)
                        .zip(&word[..length.min(4)])
                        .for_each(|(to, from)| *to = *from);
                }
                soci_bolt::fuzz::database(&data);
                Ok(())
            })
            .unwrap();
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(data in prop::collection::vec(any::<u8>(), 0..4096)) {
        soci_bolt::fuzz::database(&data);
    }
}

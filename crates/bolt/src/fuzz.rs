//! What must hold for any input whatever; entry point of the fuzz target and of its test.

use crate::{Bucket, Database, Entry, values};

/// Nested buckets that are walked; a caller walks a few that it knows by name.
const DEPTH: usize = 4;
/// Keys that are looked at: buckets may share pages in a damaged file.
const KEYS: usize = 10_000;

/// Any bytes are walked to an end or to an error, keys ascend, and what is listed is found.
///
/// # Panics
/// When that does not hold.
pub fn database(data: &[u8]) {
    if let Ok(database) = Database::from_bytes(data.to_vec()) {
        let mut left = KEYS;
        walk(database.root(), DEPTH, &mut left);
    }
}

fn walk(bucket: Bucket<'_>, depth: usize, left: &mut usize) {
    let mut last: Option<&[u8]> = None;
    for entry in bucket.entries() {
        let Ok((key, entry)) = entry else { return };
        if *left == 0 {
            return;
        }
        *left -= 1;
        assert!(last.is_none_or(|last| last < key), "keys must ascend");
        last = Some(key);
        match entry {
            Entry::Value(value) => {
                let _ = (
                    values::uvarint(value),
                    values::varint(value),
                    values::time(value),
                );
                if *left > KEYS - 64 {
                    let found = bucket.value(key);
                    assert!(matches!(found, Ok(Some(again)) if again == value));
                }
            }
            Entry::Bucket(inner) if depth > 0 => walk(inner, depth - 1, left),
            Entry::Bucket(_) => {}
        }
    }
}

//! v0.15's artifact database: `soci_artifacts` → digest → fields.

use std::time::UNIX_EPOCH;

use soci_bolt::{BoltError, Bucket, Entry, values};
use soci_oci::Digest;

use super::{Artifact, ArtifactKind};

/// All entries that are understood; others are logged.
pub(super) fn read(database: &soci_bolt::Database) -> Result<Vec<Artifact>, BoltError> {
    let Some(all) = database.root().bucket(b"soci_artifacts")? else {
        return Ok(Vec::new());
    };
    let mut artifacts = Vec::new();
    for entry in all.entries() {
        let (key, Entry::Bucket(fields)) = entry? else {
            continue;
        };
        let key = String::from_utf8_lossy(key);
        match artifact(&key, fields)? {
            Some(artifact) => artifacts.push(artifact),
            None => {
                tracing::warn!(digest = %key, "an entry of v0.15's artifact database cannot be read: it is left out");
            }
        }
    }
    Ok(artifacts)
}

fn artifact(digest: &str, fields: Bucket<'_>) -> Result<Option<Artifact>, BoltError> {
    let text = |key: &str| -> Result<String, BoltError> {
        let value = fields.value(key.as_bytes())?.unwrap_or_default();
        Ok(String::from_utf8_lossy(value).into_owned())
    };
    let number = |key: &str| -> Result<Option<u64>, BoltError> {
        let value = fields.value(key.as_bytes())?;
        Ok(value
            .and_then(values::varint)
            .and_then(|number| number.try_into().ok()))
    };
    let kind = match text("type")?.as_str() {
        "soci_index" => ArtifactKind::Index,
        "soci_layer" => ArtifactKind::Ztoc,
        "soci_prefetch" => ArtifactKind::Prefetch,
        _ => return Ok(None),
    };
    let (Ok(digest), Ok(original_digest), Some(size)) = (
        digest.parse::<Digest>(),
        text("oci_digest")?.parse::<Digest>(),
        number("size")?,
    ) else {
        return Ok(None);
    };
    let created = fields.value(b"created_at")?.and_then(values::time);
    Ok(Some(Artifact {
        digest,
        kind,
        size,
        original_digest,
        image_digest: text("image_digest")?.parse().ok(),
        platform: text("platform")?,
        location: text("location")?,
        media_type: text("media_type")?,
        artifact_type: text("artifact_type")?,
        span_size: number("span_size")?.unwrap_or_default(),
        // Go's zero time, the year 1, stands for "not known".
        created_at: created.unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH),
    }))
}

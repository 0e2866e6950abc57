//! Copies of an image with the owners of a user namespace, which containerd 2.x makes itself for a
//! snapshotter that is configured without the capability `remap-ids`.
//!
//! It prepares `<name>-remap` on the image, changes every owner in it, which copies and so downloads
//! all files, commits it as `<name>`, and prepares the container's snapshot on that, with the maps as
//! labels again. The name was `<parent>-<uid>-<gid>`; since 2.1 it is a digest.

use soci_layer::IdMaps;

use crate::error::SnapshotterError;
use crate::labels::{CLIENT_COPY, Labels};
use crate::metadata::Link;

const SUFFIX: &str = "-remap";

/// The name that a client gave: containerd puts the namespace and a number in front.
fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Marks what is committed if it is such a copy.
pub(crate) fn mark(name: &str, key: &str, labels: &mut Labels) {
    if last(key).strip_suffix(SUFFIX) == Some(last(name)) {
        labels.insert(CLIENT_COPY.to_owned(), "true".to_owned());
    }
}

/// Refuses a copy of lazy layers that is begun, and a container whose owners would be translated a
/// second time.
pub(crate) fn refuse(
    key: &str,
    maps: Option<&IdMaps>,
    parents: &[Link],
    of_parent: &Labels,
) -> Result<(), SnapshotterError> {
    let parent = || {
        parents
            .first()
            .map(|parent| parent.name.clone())
            .unwrap_or_default()
    };
    let Some(maps) = maps else {
        let is_lazy = parents.iter().any(|parent| parent.lazy.is_some());
        if is_lazy && is_named_by_digest(key) {
            return Err(SnapshotterError::ClientCopy { parent: parent() });
        }
        return Ok(());
    };
    if of_parent.contains_key(CLIENT_COPY) || is_named_for(parents, maps) {
        return Err(SnapshotterError::RemappedTwice { parent: parent() });
    }
    Ok(())
}

/// Whether the key is that of a copy since 2.1: earlier ones are also made for clients that then use
/// them without maps.
fn is_named_by_digest(key: &str) -> bool {
    last(key)
        .strip_suffix(SUFFIX)
        .and_then(|name| name.strip_prefix("sha256:"))
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether the nearest parent is named as a copy of the next one, for these ids of root.
fn is_named_for(parents: &[Link], maps: &IdMaps) -> bool {
    let [copy, original, ..] = parents else {
        return false;
    };
    let (uid, gid) = maps.map(0, 0);
    last(&copy.name) == format!("{}-{uid}-{gid}", last(&original.name))
}

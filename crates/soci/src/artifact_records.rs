//! Writes to and queries of the artifact database, off the async threads.

use std::time::SystemTime;

use anyhow::{Context as _, bail};
use soci_oci::{Descriptor, Digest, Platform, media_types};
use soci_store::StoreError;
use soci_store::artifacts::{Artifact, ArtifactDb, ArtifactKind, IndexedImage};

use crate::containerd::KnownZtocs;
use crate::output;

/// Runs an operation of the database, which waits for the disk.
pub(crate) async fn with_db<T: Send + 'static>(
    db: &ArtifactDb,
    operation: impl FnOnce(&ArtifactDb) -> Result<T, StoreError> + Send + 'static,
) -> anyhow::Result<T> {
    let db = db.clone();
    soci_task::blocking(move || Ok(operation(&db)?)).await
}

/// All entries, of one kind if given.
pub(crate) async fn list(
    db: &ArtifactDb,
    kind: Option<ArtifactKind>,
) -> anyhow::Result<Vec<Artifact>> {
    let mut all = with_db(db, ArtifactDb::list).await?;
    all.retain(|artifact| kind.is_none_or(|kind| artifact.kind == kind));
    Ok(all)
}

/// Prints a digest per line, for scripts.
pub(crate) fn print_digests(artifacts: &[Artifact]) {
    for artifact in artifacts {
        output::line(artifact.digest.to_string());
    }
}

/// The entry of a digest.
pub(crate) async fn entry(db: &ArtifactDb, digest: Digest) -> anyhow::Result<Artifact> {
    with_db(db, move |db| db.get(&digest))
        .await?
        .with_context(|| {
            format!("{digest} is not in the artifact database: not found (try soci rebuild-db)")
        })
}

/// The entry of a digest, which must be of this kind.
pub(crate) async fn entry_of(
    db: &ArtifactDb,
    digest: Digest,
    kind: ArtifactKind,
) -> anyhow::Result<Artifact> {
    let name = |kind| match kind {
        ArtifactKind::Index => ("SOCI index", "index"),
        ArtifactKind::Ztoc => ("zTOC", "ztoc"),
        ArtifactKind::Prefetch => ("prefetch artifact", "prefetch"),
    };
    let found = entry(db, digest).await?;
    let ((is, command), (wanted, _)) = (name(found.kind), name(kind));
    if found.kind != kind {
        bail!("{digest} is a {is}, not a {wanted}: see `soci {command} info`");
    }
    Ok(found)
}

/// The zTOCs that were made before; of several for one layer the newest.
pub(crate) async fn known_ztocs(db: &ArtifactDb) -> anyhow::Result<KnownZtocs> {
    let mut ztocs = list(db, Some(ArtifactKind::Ztoc)).await?;
    ztocs.sort_by_key(|ztoc| ztoc.created_at);
    let known = ztocs.into_iter().map(|ztoc| {
        let descriptor = Descriptor::new(media_types::ZTOC, ztoc.digest, ztoc.size);
        ((ztoc.original_digest, ztoc.span_size), descriptor)
    });
    Ok(known.collect())
}

/// Enters an index and all that it lists.
pub(crate) async fn add_index(
    db: &ArtifactDb,
    written: &soci_index::WrittenIndex,
    manifest: Digest,
    image: Digest,
    platform: &Platform,
) -> anyhow::Result<()> {
    let of = IndexedImage {
        manifest,
        image,
        platform: platform.to_string(),
        created_at: SystemTime::now(),
    };
    let (digest, size) = (written.descriptor.digest, written.descriptor.size);
    let artifacts = Artifact::of_index(digest, size, &written.index, &of);
    with_db(db, move |db| db.add(&artifacts)).await
}

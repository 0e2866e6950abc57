//! Which indexes are pushed: the newest of version 1 for each platform.

use anyhow::bail;
use soci_index::{EntryContent, Image, ImageSource, Platforms};
use soci_oci::{Digest, media_types};
use soci_store::artifacts::{ArtifactDb, ArtifactKind};

use crate::artifact_records::list;
use crate::output;

/// An index to push.
pub(super) struct Chosen {
    pub(super) manifest: Digest,
    pub(super) index: Digest,
}

/// Chooses the indexes to push.
pub(super) async fn choose(
    source: &dyn ImageSource,
    platforms: &Platforms,
    db: &ArtifactDb,
) -> anyhow::Result<Vec<Chosen>> {
    let image = Image::load(source).await?;
    let selected = image.select(platforms)?;
    let indexes = list(db, Some(ArtifactKind::Index)).await?;
    let mut chosen = Vec::new();
    let mut second = false;
    for entry in selected.into_iter().filter_map(|at| image.entries.get(at)) {
        let EntryContent::Image { platform, .. } = &entry.content else {
            continue;
        };
        let manifest = entry.descriptor.digest;
        let (first, others): (Vec<_>, Vec<_>) = indexes
            .iter()
            .filter(|index| index.original_digest == manifest)
            .partition(|index| index.artifact_type != media_types::SOCI_INDEX_V2);
        if !others.is_empty() && !second {
            second = true;
            output::line(
                "[WARN] a SOCI index of version 2 is part of its image: push the whole image, for \
                 example with nerdctl, finch or ctr",
            );
        }
        match first.into_iter().max_by_key(|index| index.created_at) {
            Some(newest) => chosen.push(Chosen {
                manifest,
                index: newest.digest,
            }),
            None => bail!(
                "could not find any soci index manifest v1 to push for platform {platform} (make \
                 one with `soci create`; `soci rebuild-db` finds those that the database lost)"
            ),
        }
    }
    Ok(chosen)
}

//! `soci index remove`.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::Args;
use soci_oci::Digest;
use soci_store::artifacts::{ArtifactDb, ArtifactKind};
use soci_ztoc::soci_index::SociIndex;

use crate::artifact_records::{entry, list, with_db};
use crate::artifact_store::ArtifactStore;
use crate::containerd;
use crate::global::Global;
use crate::interrupt::committing;

/// Remove SOCI indexes
///
/// In containerd's content store the zTOCs of a removed index are collected later (`soci rebuild-db`
/// then forgets them); in the snapshotter's own store those that no other index lists go with it.
#[derive(Debug, Args)]
#[command(visible_alias = "rm")]
pub(crate) struct Remove {
    /// Remove the indexes of this image
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,

    /// The indexes
    #[arg(value_name = "DIGEST")]
    digests: Vec<Digest>,
}

impl Remove {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let db = global.artifacts();
        let digests = match &self.reference {
            Some(_) if !self.digests.is_empty() => {
                bail!("give either digests of indexes or --ref, not both");
            }
            Some(reference) => {
                let containerd = global.connect().await?;
                let image = containerd::image(&containerd, reference).await?;
                let of_image = Some(image.target.digest);
                list(&db, Some(ArtifactKind::Index))
                    .await?
                    .into_iter()
                    .filter(|index| index.image_digest == of_image)
                    .map(|index| index.digest)
                    .collect()
            }
            None => self.digests,
        };
        for digest in &digests {
            if entry(&db, *digest).await?.kind != ArtifactKind::Index {
                bail!("the digest {digest} does not correspond to an index");
            }
        }
        let store = global.artifact_store().await?;
        committing();
        for digest in digests {
            remove(&db, &store, digest).await?;
        }
        Ok(())
    }
}

/// The content is removed first: should that fail, the entry still names what is to be removed.
async fn remove(db: &ArtifactDb, store: &ArtifactStore, digest: Digest) -> anyhow::Result<()> {
    let mut gone = vec![digest];
    if let ArtifactStore::Layout(..) = store {
        let alone = parts_of_no_other(db, store, digest).await?;
        for part in &alone {
            store.delete(part).await?;
        }
        gone.extend(alone);
    }
    store.delete(&digest).await?;
    with_db(db, move |db| db.remove(&gone)).await?;
    Ok(())
}

/// What the index lists and no other index does.
async fn parts_of_no_other(
    db: &ArtifactDb,
    store: &ArtifactStore,
    digest: Digest,
) -> anyhow::Result<Vec<Digest>> {
    let parts = |bytes: &[u8]| -> Vec<Digest> {
        let index = SociIndex::parse(bytes);
        index.map_or_else(
            |_| Vec::new(),
            |index| {
                index
                    .manifest
                    .layers
                    .iter()
                    .map(|part| part.digest)
                    .collect()
            },
        )
    };
    let Some(_) = store.size(&digest).await? else {
        return Ok(Vec::new());
    };
    let own = parts(&store.bytes(&digest).await?);
    let mut others = BTreeSet::new();
    for index in list(db, Some(ArtifactKind::Index)).await? {
        if index.digest != digest && store.size(&index.digest).await?.is_some() {
            others.extend(parts(&store.bytes(&index.digest).await?));
        }
    }
    Ok(own
        .into_iter()
        .filter(|part| !others.contains(part))
        .collect())
}

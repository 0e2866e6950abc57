//! `soci ztoc list`.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;
use soci_index::Platforms;
use soci_oci::Digest;
use soci_store::artifacts::{Artifact, ArtifactKind};
use soci_ztoc::soci_index::SociIndex;

use crate::artifact_records::{list, print_digests};
use crate::containerd;
use crate::global::Global;
use crate::output;
use crate::table::table;

/// List zTOCs
#[derive(Debug, Args)]
#[command(visible_alias = "ls")]
pub(crate) struct List {
    /// Only this zTOC
    #[arg(long, value_name = "DIGEST")]
    ztoc_digest: Option<Digest>,

    /// Only the zTOCs of this image
    #[arg(long, value_name = "REF")]
    image_ref: Option<String>,

    /// Print the digests only
    #[arg(short, long)]
    quiet: bool,

    /// Print a JSON array
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

/// A row, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    digest: Digest,
    size: u64,
    layer_digest: Digest,
}

impl List {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let mut ztocs = list(&global.artifacts(), Some(ArtifactKind::Ztoc)).await?;
        if let Some(reference) = &self.image_ref {
            let of_image = of_image(reference, global).await?;
            ztocs.retain(|ztoc| of_image.contains(&ztoc.digest));
        }
        if let Some(wanted) = self.ztoc_digest {
            ztocs.retain(|ztoc| ztoc.digest == wanted);
            if ztocs.is_empty() && self.image_ref.is_some() {
                bail!("zTOC {wanted} does not exist or does not belong to the image");
            }
        }
        if self.quiet {
            print_digests(&ztocs);
            return Ok(());
        }
        if self.json {
            let rows: Vec<Row> = ztocs
                .iter()
                .map(|ztoc| Row {
                    digest: ztoc.digest,
                    size: ztoc.size,
                    layer_digest: ztoc.original_digest,
                })
                .collect();
            return output::json(&rows);
        }
        let cells = |ztoc: &Artifact| {
            [
                ztoc.digest.to_string(),
                ztoc.size.to_string(),
                ztoc.original_digest.to_string(),
            ]
        };
        let rows: Vec<[String; 3]> = ztocs.iter().map(cells).collect();
        output::page(&table(["DIGEST", "SIZE", "LAYER DIGEST"], &rows));
        Ok(())
    }
}

/// The zTOCs that the indexes of an image list.
async fn of_image(reference: &str, global: &Global) -> anyhow::Result<BTreeSet<Digest>> {
    let connection = global.connect().await?;
    let manifests = containerd::manifests(&connection, reference, &Platforms::All).await?;
    let store = global.artifact_store().await?;
    let mut ztocs = BTreeSet::new();
    for index in list(&global.artifacts(), Some(ArtifactKind::Index)).await? {
        if !manifests.contains(&index.original_digest) {
            continue;
        }
        // The database may know an index that has been collected.
        if store.size(&index.digest).await?.is_none() {
            continue;
        }
        let bytes = store.bytes(&index.digest).await?;
        let parsed =
            SociIndex::parse(&bytes).with_context(|| format!("SOCI index {}", index.digest))?;
        ztocs.extend(parsed.ztocs.iter().map(|ztoc| ztoc.descriptor.digest));
    }
    Ok(ztocs)
}

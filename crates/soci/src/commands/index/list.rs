//! `soci index list`.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde::Serialize;
use soci_containerd::Images;
use soci_index::Platforms;
use soci_oci::{Digest, Platform, media_types};
use soci_store::artifacts::{Artifact, ArtifactKind};

use crate::age::{ago, rfc3339};
use crate::artifact_records::{list, print_digests};
use crate::containerd;
use crate::global::Global;
use crate::output;
use crate::table::table;

/// List SOCI indexes, newest first
#[derive(Debug, Args)]
#[command(visible_alias = "ls")]
pub(crate) struct List {
    /// Only the indexes of this image
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,

    /// Print the digests only
    #[arg(short, long)]
    quiet: bool,

    /// Only the indexes for these platforms
    #[arg(short, long, value_name = "OS/ARCH", value_delimiter = ',')]
    platform: Vec<Platform>,

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
    image_ref: String,
    platform: String,
    media_type: String,
    manifest_version: &'static str,
    created_at: String,
}

impl List {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let mut indexes = list(&global.artifacts(), Some(ArtifactKind::Index)).await?;
        if let Some(reference) = &self.reference {
            let platforms = match self.platform.as_slice() {
                [] => Platforms::All,
                these => Platforms::These(these.to_vec()),
            };
            let connection = global.connect().await?;
            let manifests = containerd::manifests(&connection, reference, &platforms).await?;
            indexes.retain(|index| manifests.contains(&index.original_digest));
        } else if !self.platform.is_empty() {
            indexes.retain(|index| {
                let platform = index.platform.parse::<Platform>();
                platform.is_ok_and(|of| self.platform.iter().any(|wanted| wanted.matches(&of)))
            });
        }
        indexes.sort_by_key(|index| std::cmp::Reverse(index.created_at));
        if self.quiet {
            print_digests(&indexes);
            return Ok(());
        }
        let names = names(&indexes, global).await?;
        let mut rows = Vec::new();
        for index in &indexes {
            let of = index.image_digest.and_then(|image| names.get(&image));
            match of.map(Vec::as_slice).unwrap_or_default() {
                [] => rows.push((index, String::new())),
                names => rows.extend(names.iter().map(|name| (index, name.clone()))),
            }
        }
        if self.json {
            let rows: Vec<Row> = rows
                .into_iter()
                .map(|(index, image_ref)| Row {
                    digest: index.digest,
                    size: index.size,
                    image_ref,
                    platform: index.platform.clone(),
                    media_type: index.media_type.clone(),
                    manifest_version: version(index),
                    created_at: rfc3339(index.created_at),
                })
                .collect();
            return output::json(&rows);
        }
        let rows: Vec<[String; 7]> = rows
            .into_iter()
            .map(|(index, name)| {
                [
                    index.digest.to_string(),
                    index.size.to_string(),
                    name,
                    index.platform.clone(),
                    index.media_type.clone(),
                    version(index).to_owned(),
                    ago(index.created_at),
                ]
            })
            .collect();
        output::page(&table(
            [
                "DIGEST",
                "SIZE",
                "IMAGE REF",
                "PLATFORM",
                "MEDIA TYPE",
                "MANIFEST VERSION",
                "CREATED",
            ],
            &rows,
        ));
        Ok(())
    }
}

fn version(index: &Artifact) -> &'static str {
    match index.artifact_type.as_str() {
        media_types::SOCI_INDEX_V1 => "v1",
        media_types::SOCI_INDEX_V2 => "v2",
        _ => "",
    }
}

/// The images that the indexes were made of, by what their names stand for. Without containerd
/// they have no names.
async fn names(
    indexes: &[Artifact],
    global: &Global,
) -> anyhow::Result<BTreeMap<Digest, Vec<String>>> {
    let targets: BTreeSet<Digest> = indexes
        .iter()
        .filter_map(|index| index.image_digest)
        .collect();
    let mut names = BTreeMap::new();
    if targets.is_empty() {
        return Ok(names);
    }
    let images = match global.connect().await {
        Ok(containerd) => Images::new(&containerd),
        Err(error) => {
            output::warning(&format!("image names are not shown: {error}"));
            return Ok(names);
        }
    };
    for target in targets {
        let of_target = images.with_target(&target.to_string()).await?;
        names.insert(target, of_target);
    }
    Ok(names)
}

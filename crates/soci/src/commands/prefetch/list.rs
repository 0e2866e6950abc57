//! `soci prefetch list`.

use clap::Args;
use serde::Serialize;
use soci_oci::Digest;
use soci_store::artifacts::ArtifactKind;
use soci_ztoc::prefetch::Prefetch;

use crate::age::{ago, rfc3339};
use crate::artifact_records::list;
use crate::artifact_store::ArtifactStore;
use crate::global::Global;
use crate::output;
use crate::table::table;

/// List prefetch artifacts
#[derive(Debug, Args)]
#[command(visible_alias = "ls")]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A row, for programs; the names are v0.15's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    digest: Digest,
    layer_digest: Digest,
    /// -1 when the artifact cannot be read.
    total_spans: i64,
    created_at: String,
}

impl List {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let artifacts = list(&global.artifacts(), Some(ArtifactKind::Prefetch)).await?;
        let mut counted = Vec::new();
        if !artifacts.is_empty() {
            let store = global.artifact_store().await?;
            for artifact in artifacts {
                let spans = count(&store, &artifact.digest).await;
                counted.push((artifact, spans));
            }
        }
        if self.json {
            let rows: Vec<Row> = counted
                .iter()
                .map(|(artifact, spans)| Row {
                    digest: artifact.digest,
                    layer_digest: artifact.original_digest,
                    total_spans: spans.and_then(|spans| spans.try_into().ok()).unwrap_or(-1),
                    created_at: rfc3339(artifact.created_at),
                })
                .collect();
            // An empty list has always been null here.
            return output::json(&(!rows.is_empty()).then_some(rows));
        }
        let rows: Vec<[String; 4]> = counted
            .iter()
            .map(|(artifact, spans)| {
                [
                    artifact.digest.to_string(),
                    artifact.original_digest.to_string(),
                    spans.map_or_else(|| "N/A".to_owned(), |spans| spans.to_string()),
                    ago(artifact.created_at),
                ]
            })
            .collect();
        output::page(&table(
            ["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"],
            &rows,
        ));
        Ok(())
    }
}

/// The spans that an artifact lists; `None` if it cannot be read.
async fn count(store: &ArtifactStore, digest: &Digest) -> Option<u64> {
    let bytes = store.bytes(digest).await.ok()?;
    Some(super::span_count::spans(&Prefetch::parse(&bytes).ok()?))
}

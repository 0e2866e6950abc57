//! `soci prefetch info`.

use anyhow::{Context as _, bail};
use clap::Args;
use soci_oci::Digest;
use soci_store::artifacts::ArtifactKind;
use soci_ztoc::prefetch::Prefetch;

use crate::age::rfc3339;
use crate::artifact_records::entry;
use crate::global::Global;
use crate::output;

/// Print a prefetch artifact
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// The prefetch artifact
    #[arg(value_name = "DIGEST")]
    digest: Digest,

    /// Print the artifact's JSON after the summary
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let entry = entry(&global.artifacts(), self.digest).await?;
        if entry.kind != ArtifactKind::Prefetch {
            let kind = match entry.kind {
                ArtifactKind::Index => "soci_index",
                ArtifactKind::Ztoc | ArtifactKind::Prefetch => "soci_layer",
            };
            bail!("{} is not a prefetch artifact (type: {kind})", self.digest);
        }
        let store = global.artifact_store().await?;
        let bytes = store.bytes(&self.digest).await?;
        let artifact = Prefetch::parse(&bytes)
            .with_context(|| format!("prefetch artifact {}", self.digest))?;
        let created: String = rfc3339(entry.created_at)
            .replace('T', " ")
            .chars()
            .take(19)
            .collect();
        output::line(format!("Digest:        {}", self.digest));
        output::line(format!("Version:       {}", artifact.version));
        output::line(format!("Span Ranges:   {}", artifact.prefetch_spans.len()));
        output::line(format!("Layer Digest:  {}", entry.original_digest));
        output::line(format!("Size:          {} bytes", entry.size));
        output::line(format!("Created:       {created}"));
        output::line("");
        output::line("Prefetch Spans:");
        for (at, span) in artifact.prefetch_spans.iter().enumerate() {
            let count = u64::from(span.end_span.saturating_sub(span.start_span)) + 1;
            output::line(format!(
                "  [{at}] StartSpan: {}, EndSpan: {} (covers {count} spans)",
                span.start_span, span.end_span
            ));
            if span.priority != 0 {
                output::line(format!("      Priority: {}", span.priority));
            }
        }
        output::line("");
        output::line(format!(
            "Total spans to prefetch: {}",
            super::span_count::spans(&artifact)
        ));
        if self.json {
            output::line("");
            output::line("Raw JSON:");
            output::json(&artifact)?;
        }
        Ok(())
    }
}

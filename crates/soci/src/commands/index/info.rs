//! `soci index info`.

use anyhow::{Context as _, bail};
use clap::Args;
use soci_oci::Digest;
use soci_store::artifacts::ArtifactKind;

use crate::artifact_records::entry;
use crate::global::Global;
use crate::output;

/// Print a SOCI index
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// The index
    #[arg(value_name = "DIGEST")]
    digest: Digest,
}

impl Info {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let entry = entry(&global.artifacts(), self.digest).await?;
        match entry.kind {
            ArtifactKind::Index => {}
            ArtifactKind::Ztoc => bail!(
                "{} is a zTOC, not a SOCI index: see `soci ztoc info`",
                self.digest
            ),
            ArtifactKind::Prefetch => bail!(
                "{} is a prefetch artifact, not a SOCI index: see `soci prefetch info`",
                self.digest
            ),
        }
        let store = global.artifact_store().await?;
        let bytes = store.bytes(&self.digest).await?;
        output::document(&indented(&bytes).with_context(|| format!("SOCI index {}", self.digest))?);
        Ok(())
    }
}

/// The document as it is, indented by two spaces.
fn indented(bytes: &[u8]) -> anyhow::Result<String> {
    let index: soci_oci::Manifest = serde_json::from_slice(bytes)?;
    Ok(String::from_utf8(soci_oci::json::to_vec_pretty(&index)?)?)
}

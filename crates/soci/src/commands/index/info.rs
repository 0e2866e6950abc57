//! `soci index info`.

use anyhow::Context as _;
use clap::Args;
use soci_oci::Digest;
use soci_store::artifacts::ArtifactKind;

use crate::artifact_records::entry_of;
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
        entry_of(&global.artifacts(), self.digest, ArtifactKind::Index).await?;
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

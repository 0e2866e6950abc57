//! `soci ztoc info`.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use soci_oci::Digest;
use soci_store::artifacts::ArtifactKind;
use soci_ztoc::{FileMetadata, SpanTable, Ztoc};

use crate::artifact_records::entry_of;
use crate::global::Global;
use crate::output;

/// Print what a zTOC holds, as JSON
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// The zTOC
    #[arg(value_name = "DIGEST")]
    digest: Digest,
}

/// What is printed; the names are v0.15's.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    version: &'a str,
    build_tool: &'a str,
    size: u64,
    span_size: u64,
    num_spans: u32,
    num_files: usize,
    num_multi_span_files: usize,
    /// `null` when there is none.
    files: Option<Vec<File>>,
}

#[derive(Debug, Serialize)]
struct File {
    filename: String,
    offset: u64,
    size: u64,
    r#type: &'static str,
    start_span: u32,
    end_span: u32,
}

impl Info {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        entry_of(&global.artifacts(), self.digest, ArtifactKind::Ztoc).await?;
        let store = global.artifact_store().await?;
        let blob = store.bytes(&self.digest).await?;
        output::document(&shown(&blob).with_context(|| format!("zTOC {}", self.digest))?);
        Ok(())
    }
}

/// The zTOC's description as v0.15 prints it.
fn shown(blob: &[u8]) -> anyhow::Result<String> {
    let ztoc = Ztoc::parse(blob)?;
    let spans = ztoc.span_table();
    let files: Vec<File> = ztoc.toc.iter().map(|entry| file(entry, &spans)).collect();
    let shown = Shown {
        version: &ztoc.version,
        build_tool: &ztoc.build_tool_identifier,
        size: blob.len() as u64,
        span_size: ztoc.compression.checkpoints.span_size(),
        num_spans: spans.len(),
        num_files: files.len(),
        num_multi_span_files: files
            .iter()
            .filter(|file| file.start_span != file.end_span)
            .count(),
        files: (!files.is_empty()).then_some(files),
    };
    Ok(String::from_utf8(soci_oci::json::to_vec_pretty(&shown)?)?)
}

/// The last span is that of the byte behind the file, as v0.15 has it.
fn file(entry: &FileMetadata, spans: &SpanTable) -> File {
    let last = spans.len().saturating_sub(1);
    let span = |offset: u64| spans.at_uncompressed(offset).map_or(last, |span| span.0);
    let end = entry
        .uncompressed_offset
        .saturating_add(entry.uncompressed_size);
    File {
        filename: String::from_utf8_lossy(&entry.name).into_owned(),
        offset: entry.uncompressed_offset,
        size: entry.uncompressed_size,
        r#type: entry.file_type.as_str(),
        start_span: span(entry.uncompressed_offset),
        end_span: span(end),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::shown;

    #[test]
    fn every_golden_ztoc_is_described_in_the_words_of_soci() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let mut seen = 0;
        for case in std::fs::read_dir(golden).unwrap() {
            let case = case.unwrap().path();
            for said in std::fs::read_dir(case.join("ztoc-info"))
                .into_iter()
                .flatten()
            {
                let said = said.unwrap().path();
                let hex = said.file_stem().unwrap();
                let blob = std::fs::read(case.join("soci-v1/blobs/sha256").join(hex)).unwrap();
                let text = std::fs::read_to_string(&said).unwrap();
                assert_eq!(
                    shown(&blob).unwrap().trim_end(),
                    text.trim_end(),
                    "{said:?}"
                );
                seen += 1;
            }
        }
        assert!(seen > 8, "{seen}");
    }
}

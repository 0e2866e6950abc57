//! `soci profile show`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use indicatif::BinaryBytes;
use serde::Serialize;
use soci_oci::Digest;
use soci_profile::{BLOCK, Merged, Profile, ProfiledLayer};

use crate::global::Global;
use crate::output;
use crate::profiles::{self, ProfileName};
use crate::table::table;

/// Show what the starts of an image have in common
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci profile show registry.example/app:1-soci
  soci profile show --file app.profile --json")]
pub(crate) struct Show {
    /// The image, or the digest of its manifest
    #[arg(value_name = "REF", required_unless_present = "file")]
    name: Option<ProfileName>,

    /// Show a profile in a file instead
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    file: Option<PathBuf>,

    /// Print JSON, with each span
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    manifest: Digest,
    image: String,
    recordings: usize,
    layers: Vec<Layer>,
    /// Spans in the order of first use.
    spans: Vec<Span>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    layer: Digest,
    ztoc: Digest,
    spans: usize,
    /// Uncompressed bytes that were read, in blocks of 64 KiB.
    read_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    layer: usize,
    span: u32,
}

impl Show {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let profile = match (&self.file, &self.name) {
            (Some(file), _) => profiles::read(file)?,
            (None, name) => {
                let name = name.as_ref().context("name an image or a file")?;
                profiles::known(global, name)?.profile
            }
        };
        let document = document(&profile, &profile.merged());
        if self.json {
            return output::json(&document);
        }
        output::line(format!("image      {}", document.image));
        output::line(format!("manifest   {}", document.manifest));
        output::line(format!("recordings {}", document.recordings));
        output::line(format!("spans      {}", document.spans.len()));
        output::line("");
        let rows: Vec<_> = document
            .layers
            .iter()
            .map(|layer| {
                [
                    layer.layer.to_string(),
                    layer.ztoc.to_string(),
                    layer.spans.to_string(),
                    BinaryBytes(layer.read_bytes).to_string(),
                ]
            })
            .collect();
        output::page(&table(
            ["LAYER DIGEST", "ZTOC DIGEST", "SPANS", "READ"],
            &rows,
        ));
        Ok(())
    }
}

fn document(profile: &Profile, merged: &Merged) -> Document {
    let mut layers: Vec<ProfiledLayer> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    let mut spans = Vec::new();
    for span in merged.spans() {
        let known = layers.iter().position(|known| *known == span.layer);
        let layer = known.unwrap_or_else(|| {
            layers.push(span.layer);
            counts.push(0);
            layers.len() - 1
        });
        if let Some(count) = counts.get_mut(layer) {
            *count += 1;
        }
        spans.push(Span {
            layer,
            span: span.span,
        });
    }
    let of = |(layer, spans): (&ProfiledLayer, usize)| Layer {
        layer: layer.layer,
        ztoc: layer.ztoc,
        spans,
        read_bytes: merged
            .blocks(layer)
            .map_or(0, |blocks| blocks.count() * BLOCK),
    };
    Document {
        manifest: profile.manifest,
        image: profile.image.clone(),
        recordings: profile.recordings(),
        layers: layers.iter().zip(counts).map(of).collect(),
        spans,
    }
}

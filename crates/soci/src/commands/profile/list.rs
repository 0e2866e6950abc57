//! `soci profile list`.

use clap::Args;
use indicatif::BinaryBytes;
use serde::Serialize;
use soci_oci::Digest;

use crate::age::{ago, rfc3339};
use crate::global::Global;
use crate::output;
use crate::profiles;
use crate::table::table;

/// List the start-up profiles of this node
#[derive(Debug, Args)]
#[command(visible_alias = "ls")]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    manifest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    recordings: usize,
    spans: usize,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<String>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl List {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        let mut lines = Vec::new();
        for (manifest, stored) in profiles::list(global)? {
            let row = match stored {
                Ok(stored) => {
                    let profile = &stored.profile;
                    lines.push([
                        manifest.to_string(),
                        profile.image.clone(),
                        profile.recordings().to_string(),
                        profile.merged().spans().len().to_string(),
                        BinaryBytes(stored.size).to_string(),
                        ago(stored.changed),
                    ]);
                    Row {
                        manifest,
                        image: Some(profile.image.clone()),
                        recordings: profile.recordings(),
                        spans: profile.merged().spans().len(),
                        size: stored.size,
                        changed: Some(rfc3339(stored.changed)),
                        error: None,
                    }
                }
                Err(error) => {
                    let error = soci_errors::chain(&error);
                    if !self.json {
                        output::warning(&error);
                    }
                    Row {
                        manifest,
                        image: None,
                        recordings: 0,
                        spans: 0,
                        size: 0,
                        changed: None,
                        error: Some(error),
                    }
                }
            };
            rows.push(row);
        }
        if self.json {
            return output::json(&rows);
        }
        let header = [
            "MANIFEST",
            "IMAGE REF",
            "RECORDINGS",
            "SPANS",
            "SIZE",
            "CHANGED",
        ];
        output::page(&table(header, &lines));
        Ok(())
    }
}

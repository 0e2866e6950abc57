//! `soci gc`: shows and frees what an interrupted past left below the daemon's root folder.

use std::path::Path;

use anyhow::Context as _;
use clap::Args;
use indicatif::BinaryBytes;
use soci_errors::printable;
use soci_status::StatusError;
use soci_status::api::{CollectResponse, Leftover};
use soci_store::{LeftoverKind, Owner, RootLock};

use crate::global::Global;
use crate::output::{self, Page};
use crate::snapshotter_args::SnapshotterArgs;

/// Free what nothing uses below the daemon's root folder
///
/// A daemon removes at its start what no snapshot uses, and afterwards with its last user. This is
/// for what could not be removed then, and for what other programs left there: stored layers and
/// directories of snapshots without a snapshot, names that the daemon does not give, and caches of
/// v0.15. The daemon does it. Without one, half-written and half-removed data is freed; what no
/// snapshot uses is then freed by the next start.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soci gc --dry-run
  soci gc --json | jq '[.leftovers[].bytes] | add'")]
pub(crate) struct Gc {
    /// Show what would be freed, and free nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    snapshotter: SnapshotterArgs,

    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

impl Gc {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let found = match soci_status::collect(self.snapshotter.socket(), self.dry_run).await {
            Ok(found) => found,
            Err(error @ StatusError::NotThere { .. }) => {
                if !global.root.is_dir() {
                    return Err(error.into());
                }
                without_daemon(&global.root, self.dry_run)?
            }
            Err(error) => return Err(error.into()),
        };
        if self.json {
            return output::json(&found);
        }
        output::page(&render(&found, self.dry_run));
        Ok(())
    }
}

/// Frees what is certainly of no use, while no daemon may start.
fn without_daemon(root: &Path, dry_run: bool) -> anyhow::Result<CollectResponse> {
    let owner = Owner {
        supervisor: None,
        server: std::process::id(),
    };
    let _lock = RootLock::acquire(root, owner)
        .context("no daemon answers at its socket, but one has the root folder")?;
    let listed = soci_store::find_leftovers(root, false)
        .with_context(|| format!("cannot list {}", root.display()))?;
    let mut leftovers = Vec::new();
    for left in listed {
        if matches!(left.kind, LeftoverKind::Layer(_)) {
            continue;
        }
        let bytes = soci_dirtree::measure(&left.path).map_or(0, |usage| usage.bytes);
        if !dry_run {
            soci_dirtree::remove_path(&left.path)
                .with_context(|| format!("cannot remove {}", left.path.display()))?;
        }
        leftovers.push(Leftover {
            path: left.path.display().to_string(),
            kind: left.kind.word().to_owned(),
            bytes,
            removed: !dry_run,
        });
    }
    output::note("no daemon serves: what no snapshot uses is freed when one starts");
    Ok(CollectResponse { leftovers })
}

fn render(found: &CollectResponse, dry_run: bool) -> Page {
    let mut page = Page::default();
    for left in &found.leftovers {
        let not = if left.removed || dry_run {
            ""
        } else {
            "  (not removed, see the daemon's log)"
        };
        page.line(format!(
            "{:>10}  {:<15}  {}{not}",
            BinaryBytes(left.bytes).to_string(),
            left.kind,
            printable(&left.path)
        ));
    }
    let freed = found.leftovers.iter();
    let freed = freed.filter(|left| left.removed || dry_run);
    let bytes: u64 = freed.map(|left| left.bytes).sum();
    page.line(match (found.leftovers.is_empty(), dry_run) {
        (true, _) => "nothing is left behind".to_owned(),
        (false, true) => format!("{} can be freed", BinaryBytes(bytes)),
        (false, false) => format!("{} freed", BinaryBytes(bytes)),
    });
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_and_kept_files_are_reported() {
        let left = |path: &str, removed| Leftover {
            path: path.to_owned(),
            kind: "unknown".to_owned(),
            bytes: 1 << 20,
            removed,
        };
        let found = CollectResponse {
            leftovers: vec![left("/a", true), left("/b", false)],
        };
        let text = render(&found, false);
        assert!(
            text.as_str().contains("/b  (not removed"),
            "{}",
            text.as_str()
        );
        assert!(
            text.as_str().ends_with("1.00 MiB freed\n"),
            "{}",
            text.as_str()
        );
        let text = render(&found, true);
        assert!(
            text.as_str().ends_with("2.00 MiB can be freed\n"),
            "{}",
            text.as_str()
        );
        let text = render(&CollectResponse::default(), false);
        assert_eq!(text.as_str(), "nothing is left behind\n");
    }

    #[test]
    fn without_a_daemon_half_done_work_goes_and_layers_stay() {
        let root = tempfile::tempdir().unwrap();
        let layer = format!("soci/layers/{}-{}", "1".repeat(64), "2".repeat(64));
        for path in [layer.as_str(), "soci/layers/.removed/1", "unpack/3"] {
            let path = root.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("data"), "x").unwrap();
        }
        let shown = without_daemon(root.path(), true).unwrap();
        assert_eq!(shown.leftovers.len(), 2);
        assert!(root.path().join("unpack/3").exists());
        let freed = without_daemon(root.path(), false).unwrap();
        assert!(freed.leftovers.iter().all(|left| left.removed));
        assert!(!root.path().join("unpack/3").exists());
        assert!(root.path().join(layer).exists());
    }
}

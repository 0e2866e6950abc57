//! `soci ztoc get-file`: a file out of a layer that is in containerd, through its zTOC.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use soci_containerd::Content;
use soci_oci::Digest;
use soci_registry::BlobSource as _;
use soci_store::artifacts::ArtifactKind;
use soci_ztoc::{Ztoc, find_file};

use crate::artifact_records::entry;
use crate::containerd::LayerBlob;
use crate::global::Global;
use crate::output;
use crate::remote::SpanReader;

/// Print a file of a layer that is in containerd, through the layer's zTOC
#[derive(Debug, Args)]
pub(crate) struct GetFile {
    /// The zTOC
    #[arg(value_name = "DIGEST")]
    digest: Digest,

    /// The file's path in the layer
    #[arg(value_name = "FILE")]
    file: String,

    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl GetFile {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let entry = entry(&global.artifacts(), self.digest).await?;
        if entry.kind != ArtifactKind::Ztoc {
            bail!("{} is not a zTOC", self.digest);
        }
        let store = global.artifact_store().await?;
        let blob = store.bytes(&self.digest).await?;
        let ztoc = Ztoc::parse(&blob).with_context(|| format!("zTOC {}", self.digest))?;
        let file = find_file(&ztoc.toc, self.file.as_bytes())
            .with_context(|| format!("cannot read file {:?}", self.file))?;
        let containerd = global.connect().await?;
        let layer = LayerBlob::open(Content::new(&containerd), entry.original_digest).await?;
        let spans = ztoc.span_table();
        if layer.size() != spans.compressed_size() {
            bail!(
                "layer {} has {} bytes where its zTOC says {}",
                entry.original_digest,
                layer.size(),
                spans.compressed_size()
            );
        }
        let mut out = Target::open(self.output)?;
        let start = file.uncompressed_offset;
        let range = start..start.saturating_add(file.content_len());
        let reader = SpanReader::new(spans, blob.clone(), Arc::new(layer));
        reader.read(range, |piece| out.write(piece)).await?;
        out.finish()
    }
}

/// Where the content goes. A file appears when it is complete.
enum Target {
    Stdout,
    File {
        part: tempfile::NamedTempFile,
        path: PathBuf,
    },
}

impl Target {
    fn open(path: Option<PathBuf>) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let Some(path) = path else {
            return Ok(Self::Stdout);
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => std::path::Path::new("."),
        };
        let part = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(parent)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::File { part, path })
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout => output::contents()
                .write_all(bytes)
                .context("cannot write to stdout"),
            Self::File { part, path } => part
                .write_all(bytes)
                .with_context(|| format!("cannot write {}", path.display())),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Stdout => output::contents().flush().context("cannot write to stdout"),
            Self::File { part, path } => {
                part.persist(&path)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(())
            }
        }
    }
}

//! `soci cat`: a file of an image at a registry.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::output;
use crate::remote::{ImagePath, Node, RemoteArgs, View, open_image};

/// Print a file of an image at a registry, without pulling the image
///
/// Of layers with a zTOC only the spans that hold the file are fetched. Layers without one are
/// downloaded into a temporary file first.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  soci cat registry.example/app:1-soci:/etc/os-release")]
pub(crate) struct Cat {
    /// The image and the file's path in it
    #[arg(value_name = "REF:PATH")]
    image: ImagePath,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

impl Cat {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Some(path) = &self.image.path else {
            bail!(
                "give a path after the image: {}:/PATH",
                self.image.reference
            );
        };
        let layers = open_image(&self.remote, &self.image.reference).await?;
        let view = View::new(&layers);
        let Node::File(at) = view.find(path.as_bytes(), true)? else {
            bail!("{path}: it is a directory (soci ls lists it)");
        };
        let layer = view.layer(at)?;
        let (offset, length) = layer
            .tree
            .extent(at.ino)
            .with_context(|| format!("{path}: it is not a regular file"))?;
        let mut out = output::contents();
        layer
            .reader
            .read(offset..offset.saturating_add(length), |piece| {
                out.write_all(piece).context("cannot write to stdout")
            })
            .await?;
        out.flush().context("cannot write to stdout")
    }
}

//! `soci convert`: an image becomes a SOCI-enabled image.

mod in_containerd;

use std::sync::Arc;

use clap::{Args, ValueEnum};
use soci_index::{ConvertOptions, Destination, IndexError, Source};

use crate::global::Global;
use crate::index_args::IndexingArgs;
use crate::interrupt::limited;
use crate::output;
use crate::progress::{ClearAtEnd, ConvertProgress};
use crate::registry_args::UserPassword;

/// Convert an image to a SOCI-enabled image
///
/// The result is the same image with an index (zTOCs) of its layers beside it, so that
/// a snapshotter can mount the layers without downloading them first.
#[derive(Debug, Args)]
#[command(after_help = "\
SRC and DST are images in containerd; DST has a tag. With --standalone, or when one of them is
docker://REFERENCE, containerd is not used: SRC is then docker://REFERENCE, an OCI layout directory,
or a tar of one (oci-archive); DST is docker://REPOSITORY:TAG, or the path of a new directory or
file (see --format).
Layers smaller than --min-layer-size are left to be unpacked as usual.

Examples:
  soci convert registry.example/app:1 registry.example/app:1-soci
  soci convert docker://registry.example/app:1 docker://registry.example/app:1-soci
  soci convert --profile app.profile docker://registry.example/app:1 docker://registry.example/app:1-soci
  soci convert --standalone --format oci-dir ./image ./image-soci
  soci convert --standalone --all-platforms image.tar image-soci.tar")]
pub(crate) struct Convert {
    /// The image to convert
    #[arg(value_name = "SRC")]
    source: String,

    /// Where the converted image goes
    #[arg(value_name = "DST")]
    destination: String,

    /// Work without containerd, on OCI layouts and registries
    #[arg(long)]
    standalone: bool,

    /// What to write when DST is a path
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    #[command(flatten)]
    pub(crate) indexing: IndexingArgs,

    /// Credentials for SRC when DST is at another registry (--user is for DST then)
    #[arg(long, value_name = "USER:PASSWORD", help_heading = "Registry options")]
    src_user: Option<UserPassword>,
}

/// What to write when the destination is a path.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    /// A tar of an OCI layout
    #[default]
    OciArchive,
    /// An OCI layout directory
    OciDir,
}

impl Convert {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = self.indexing.options(global)?;
        let elsewhere = |text: &str| text.starts_with("docker://");
        if self.standalone || elsewhere(&self.source) || elsewhere(&self.destination) {
            return limited(global.timeout, Box::pin(self.without_containerd(&options))).await;
        }
        let (source, destination) = (&self.source, &self.destination);
        let work = in_containerd::run(source, destination, &options, self.indexing.quiet, global);
        Box::pin(work).await
    }

    async fn without_containerd(&self, options: &ConvertOptions) -> anyhow::Result<()> {
        let source: Source = self.source.parse()?;
        let destination: Destination = self.destination.parse()?;
        let (source_user, destination_user) = self.users(&source, &destination);
        let client = |reference: Option<&soci_oci::Reference>, user: Option<&UserPassword>| {
            let reference = reference
                .ok_or_else(|| IndexError::Options("no registry is involved".to_owned()))?;
            self.indexing
                .registry
                .client(reference, user)
                .map_err(|e| IndexError::Options(output::reason(&e)))
        };
        let image = source.open(|| client(source.reference(), source_user))?;
        let format = match self.format {
            Format::OciArchive => soci_index::Format::OciArchive,
            Format::OciDir => soci_index::Format::OciDir,
        };
        let sink =
            destination.create(format, || client(destination.reference(), destination_user))?;
        let progress = Arc::new(ConvertProgress::new(self.indexing.quiet));
        let clear = ClearAtEnd(Arc::clone(&progress));
        let converted =
            soci_index::convert(&image, sink, options, Arc::clone(&progress) as Arc<_>).await?;
        drop(clear);
        if !self.indexing.quiet {
            output::line(format!("{} {}", self.destination, converted.index.digest));
        }
        Ok(())
    }

    /// The credentials for source and destination. One registry means one account, but no
    /// password goes to a registry that it was not given for.
    fn users(
        &self,
        source: &Source,
        destination: &Destination,
    ) -> (Option<&UserPassword>, Option<&UserPassword>) {
        let user = self.indexing.registry.user.as_ref();
        let for_both = match (source.reference(), destination.reference()) {
            (Some(from), Some(to)) => from.registry() == to.registry(),
            (_, to) => to.is_none(),
        };
        (self.src_user.as_ref().or(user.filter(|_| for_both)), user)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        convert: Convert,
    }

    #[test]
    fn a_password_goes_to_no_registry_that_it_was_not_given_for() {
        let (source, path) = ("docker://one.example/a:1", "/tmp/out.tar");
        let (same, other) = ("docker://one.example/b:1", "docker://two.example/a:1");
        for (destination, src_user, expected) in [
            (path, None, Some("dst:pw")),
            (same, None, Some("dst:pw")),
            (other, None, None),
            (other, Some("src:pw"), Some("src:pw")),
            (same, Some("src:pw"), Some("src:pw")),
        ] {
            let mut line = vec!["convert", "--user", "dst:pw", source, destination];
            line.extend(
                src_user
                    .iter()
                    .copied()
                    .flat_map(|user| ["--src-user", user]),
            );
            let convert = CommandLine::parse_from(line).convert;
            let (from, to) = (source.parse().unwrap(), destination.parse().unwrap());
            let (source_user, destination_user) = convert.users(&from, &to);
            assert_eq!(
                source_user.map(UserPassword::given),
                expected,
                "{destination} {src_user:?}"
            );
            assert_eq!(destination_user.map(UserPassword::given), Some("dst:pw"));
        }
    }
}

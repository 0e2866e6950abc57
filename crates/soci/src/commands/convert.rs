//! `soci convert`: an image becomes a SOCI-enabled image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use index::{ConvertOptions, Destination, IndexError, Platforms, Source};
use oci::Platform;

use crate::output;
use crate::progress::ConvertProgress;
use crate::registry_args::{RegistryArgs, UserPassword};

/// Convert an image to a SOCI-enabled image
///
/// The result is the same image with an index (zTOCs) of its layers beside it, so that
/// a snapshotter can mount the layers without downloading them first.
#[derive(Debug, Args)]
#[command(after_help = "\
SRC is docker://REFERENCE, an OCI layout directory, or a tar of one (oci-archive).
DST is docker://REPOSITORY:TAG, or the path of a new directory or file (see --format).
Layers smaller than --min-layer-size are left to be unpacked as usual.

Examples:
  soci convert --standalone docker://registry.example/app:1 docker://registry.example/app:1-soci
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

    /// Print neither progress nor a line per layer
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    platforms: PlatformArgs,

    #[command(flatten)]
    ztoc: ZtocArgs,

    #[command(flatten)]
    registry: RegistryArgs,

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

/// Which platforms are indexed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Index options")]
struct PlatformArgs {
    /// Index the images of these platforms (default: this machine's, or the only one)
    #[arg(
        short,
        long = "platform",
        value_name = "OS/ARCH",
        value_delimiter = ','
    )]
    platforms: Vec<Platform>,

    /// Index the images of all platforms
    #[arg(long)]
    all_platforms: bool,
}

/// How zTOCs are built.
#[derive(Debug, Args)]
#[command(next_help_heading = "Index options")]
struct ZtocArgs {
    /// Bytes of uncompressed data between two points that reading can start from
    #[arg(long, value_name = "BYTES", value_parser = bytes,
        default_value_t = ConvertOptions::default().span_size)]
    span_size: u64,

    /// Build no zTOC for layers with fewer compressed bytes
    #[arg(long, value_name = "BYTES", value_parser = bytes,
        default_value_t = index::DEFAULT_MIN_LAYER_SIZE)]
    min_layer_size: u64,

    /// Optional optimizations: xattr marks layers that have no extended attributes
    #[arg(long, value_enum, value_delimiter = ',')]
    optimizations: Vec<Optimization>,

    /// Build zTOCs anew even if the source has them
    #[arg(short, long)]
    force: bool,

    /// A file in the image to prefetch when it is mounted (can be given several times)
    #[arg(long = "prefetch-file", value_name = "PATH", value_delimiter = ',')]
    prefetch_files: Vec<String>,

    /// A JSON file with an array of paths to prefetch
    #[arg(long, value_name = "FILE")]
    prefetch_files_json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Optimization {
    /// Layers without extended attributes and opaque directories answer none
    Xattr,
}

impl Convert {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if !self.standalone {
            bail!(
                "convert works without containerd only, so far: add --standalone and give SRC and \
                 DST as docker://REFERENCE or as paths of OCI layouts (see soci convert --help)"
            );
        }
        let options = self.options()?;
        let source: Source = self.source.parse()?;
        let destination: Destination = self.destination.parse()?;
        let (source_user, destination_user) = self.users(&source, &destination);
        let client = |reference: Option<&oci::Reference>, user: Option<&UserPassword>| {
            let reference = reference
                .ok_or_else(|| IndexError::Options("no registry is involved".to_owned()))?;
            self.registry
                .client(reference, user)
                .map_err(|e| IndexError::Options(output::reason(&e)))
        };
        let image = source.open(|| client(source.reference(), source_user))?;
        let format = match self.format {
            Format::OciArchive => index::Format::OciArchive,
            Format::OciDir => index::Format::OciDir,
        };
        let sink =
            destination.create(format, || client(destination.reference(), destination_user))?;
        let progress = Arc::new(ConvertProgress::new(self.quiet));
        let clear = ClearAtEnd(Arc::clone(&progress));
        let converted =
            index::convert(&image, sink, &options, Arc::clone(&progress) as Arc<_>).await?;
        drop(clear);
        if !self.quiet {
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
        let user = self.registry.user.as_ref();
        let for_both = match (source.reference(), destination.reference()) {
            (Some(from), Some(to)) => from.registry() == to.registry(),
            (_, to) => to.is_none(),
        };
        (self.src_user.as_ref().or(user.filter(|_| for_both)), user)
    }

    fn options(&self) -> anyhow::Result<ConvertOptions> {
        let platforms = if self.platforms.all_platforms {
            Platforms::All
        } else if self.platforms.platforms.is_empty() {
            Platforms::Default
        } else {
            Platforms::These(self.platforms.platforms.clone())
        };
        let mut prefetch_files = self.ztoc.prefetch_files.clone();
        if let Some(path) = &self.ztoc.prefetch_files_json {
            prefetch_files.extend(read_list(path)?);
        }
        let prefetch_files = prefetch_files
            .iter()
            .map(|path| path.trim().to_owned())
            .filter(|path| !path.is_empty())
            .collect();
        Ok(ConvertOptions {
            span_size: self.ztoc.span_size,
            min_layer_size: self.ztoc.min_layer_size,
            optimize_xattrs: self.ztoc.optimizations.contains(&Optimization::Xattr),
            force: self.ztoc.force,
            platforms,
            prefetch_files,
            ..ConvertOptions::default()
        })
    }
}

/// Takes the bars off the screen, also when the work is dropped in its middle.
struct ClearAtEnd(Arc<ConvertProgress>);

impl Drop for ClearAtEnd {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// A number of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "expected a number of bytes, such as 4194304".to_owned())
}

/// The paths in a JSON array of strings.
fn read_list(path: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not a JSON array of paths", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
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
            let convert = Line::parse_from(line).convert;
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

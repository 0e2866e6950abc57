//! How an image is brought in: through an index of either kind, or eagerly in parallel.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::schema::{Broken, Section, Visitor};
use crate::values::ByteSize;

/// `[pull_modes]`
#[derive(Debug, Clone, PartialEq)]
pub struct PullModes {
    /// Find an index through the referrers of the image.
    pub soci_v1: PullMode,
    /// Find an index through the annotation of the image.
    pub soci_v2: PullMode,
    /// Download and unpack whole layers in parallel.
    pub parallel_pull_unpack: ParallelPullUnpack,
}

impl Default for PullModes {
    fn default() -> Self {
        Self {
            soci_v1: PullMode { enable: false },
            soci_v2: PullMode { enable: true },
            parallel_pull_unpack: ParallelPullUnpack::default(),
        }
    }
}

impl Section for PullModes {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.table("soci_v1", &mut self.soci_v1);
        v.table("soci_v2", &mut self.soci_v2);
        v.table("parallel_pull_unpack", &mut self.parallel_pull_unpack);
    }
}

/// `[pull_modes.soci_v1]`, `[pull_modes.soci_v2]`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PullMode {
    /// Whether this way is tried.
    pub enable: bool,
}

impl Section for PullMode {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("enable", &mut self.enable);
    }
}

/// `[pull_modes.parallel_pull_unpack]`; a limit of `None` is no limit.
#[derive(Debug, Clone, PartialEq)]
pub struct ParallelPullUnpack {
    /// Downloads at once, in all.
    pub max_concurrent_downloads: Option<u64>,
    /// Downloads at once for one image.
    pub max_concurrent_downloads_per_image: Option<u64>,
    /// Size of one ranged request; `None` fetches a layer in one.
    pub concurrent_download_chunk_size: Option<ByteSize>,
    /// Unpacks at once, in all.
    pub max_concurrent_unpacks: Option<u64>,
    /// Unpacks at once for one image.
    pub max_concurrent_unpacks_per_image: Option<u64>,
    /// Keep no compressed layer in the content store.
    pub discard_unpacked_layers: bool,
    /// Whether images are pulled this way.
    pub enable: bool,
    /// Pull this way only images that have no index.
    pub experimental_parallel_pull_as_fallback: bool,
    /// `[….decompress_streams.gzip]`, `.zstd`: programs that decompress instead of ours.
    pub decompress_streams: BTreeMap<String, DecompressStream>,
}

impl Default for ParallelPullUnpack {
    fn default() -> Self {
        Self {
            max_concurrent_downloads: None,
            max_concurrent_downloads_per_image: Some(3),
            concurrent_download_chunk_size: None,
            max_concurrent_unpacks: None,
            max_concurrent_unpacks_per_image: Some(1),
            discard_unpacked_layers: false,
            enable: false,
            experimental_parallel_pull_as_fallback: false,
            decompress_streams: BTreeMap::new(),
        }
    }
}

impl Section for ParallelPullUnpack {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.limit(
            "max_concurrent_downloads",
            &mut self.max_concurrent_downloads,
        );
        v.limit(
            "max_concurrent_downloads_per_image",
            &mut self.max_concurrent_downloads_per_image,
        );
        v.size(
            "concurrent_download_chunk_size",
            &mut self.concurrent_download_chunk_size,
        );
        v.limit("max_concurrent_unpacks", &mut self.max_concurrent_unpacks);
        v.limit(
            "max_concurrent_unpacks_per_image",
            &mut self.max_concurrent_unpacks_per_image,
        );
        v.flag("discard_unpacked_layers", &mut self.discard_unpacked_layers);
        v.flag("enable", &mut self.enable);
        v.flag(
            "experimental_parallel_pull_as_fallback",
            &mut self.experimental_parallel_pull_as_fallback,
        );
        v.named_tables("decompress_streams", &mut self.decompress_streams);
    }

    fn check(&self) -> Vec<Broken> {
        // A disabled mode is not validated.
        if !self.enable && !self.experimental_parallel_pull_as_fallback {
            return Vec::new();
        }
        let mut broken = Vec::new();
        for (key, per_image, all, global) in [
            (
                "max_concurrent_downloads_per_image",
                self.max_concurrent_downloads_per_image,
                self.max_concurrent_downloads,
                "max_concurrent_downloads",
            ),
            (
                "max_concurrent_unpacks_per_image",
                self.max_concurrent_unpacks_per_image,
                self.max_concurrent_unpacks,
                "max_concurrent_unpacks",
            ),
        ] {
            if let (Some(per_image), Some(all)) = (per_image, all)
                && per_image > all
            {
                let allowed = format!("at most {global}, which is {all}");
                broken.push(Broken::new(key, per_image.to_string(), allowed));
            }
        }
        for (name, stream) in &self.decompress_streams {
            if !matches!(name.as_str(), "gzip" | "zstd") {
                let allowed = "tables named gzip or zstd";
                let unknown = Broken::new("decompress_streams", format!("{name:?}"), allowed);
                broken.push(Broken {
                    stops: false,
                    ..unknown
                });
            } else if !stream.is_executable() {
                broken.push(Broken::new(
                    format!("decompress_streams.{name:?}.path"),
                    format!("{:?}", stream.path),
                    "the absolute path of an existing executable file",
                ));
            }
        }
        broken
    }
}

/// `[pull_modes.parallel_pull_unpack.decompress_streams.gzip]`: a program that reads compressed
/// data on stdin and writes plain data to stdout. It is run without a shell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DecompressStream {
    /// Absolute path of an existing executable.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Section for DecompressStream {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.text("path", &mut self.path);
        v.texts("args", &mut self.args);
    }
}

impl DecompressStream {
    fn is_executable(&self) -> bool {
        let path = Path::new(&self.path);
        // `metadata` follows symbolic links, as running the program will.
        path.is_absolute()
            && path
                .metadata()
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    }
}

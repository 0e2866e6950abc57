//! The configuration file of the daemon: every key that v0.15 knows, with its default, its check
//! and its text form. Each key is declared once, in a `schema::Section`; reading, dumping and
//! comparing are three walks over that one declaration.

#![forbid(unsafe_code)]

mod dump;
mod error;
mod read;
mod schema;
mod sections;
mod support;
mod values;

use std::path::Path;

pub use error::{ConfigError, Problem};
pub use sections::{
    BackgroundFetch, Blob, Config, ContentStore, CriKeychain, DecompressStream, DirectoryCache,
    EcrKeychain, Fetch, Fuse, Holder, Host, Http, KubeconfigKeychain, KubeletCredentialProviders,
    LayerStore, Limits, Mirror, ParallelPullUnpack, Prefetch, Profile, PullMode, PullModes,
    Resolver, Snapshotter, StartHints, Trust,
};
pub use values::{
    ByteSize, ContentStoreType, DropPolicy, MetadataStoreType, MetricsNetwork, Pause, Sharing,
    WithoutImageStore,
};

/// The default path of the configuration file; only there may the file be missing.
pub const DEFAULT_PATH: &str = "/etc/soci-snapshotter-grpc/config.toml";

/// The file that `make install` puts there: every key with its default, and what it is for.
pub const SHIPPED: &str = include_str!("../../../config/config.toml");

/// A configuration and what is worth telling the operator about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The effective configuration.
    pub config: Config,
    /// One line each, with file and line: unknown keys, a key given twice in different case.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads `path`. A missing file means the defaults if `path` is [`DEFAULT_PATH`], and is an
    /// error otherwise.
    ///
    /// # Errors
    /// Unreadable or missing file, TOML syntax error, or the list of all bad values.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(e)
                if e.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) =>
            {
                Ok(Loaded {
                    config: Self::default(),
                    warnings: Vec::new(),
                })
            }
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads the text of a file; `path` is only named in messages.
    ///
    /// # Errors
    /// TOML syntax error, or the list of all bad values.
    pub fn parse(text: &str, path: &Path) -> Result<Loaded, ConfigError> {
        read::parse(text, path)
    }

    /// The configuration as TOML, every key printed, in v0.15's order and layout; our own tables
    /// come last, where v0.15 ignores them.
    #[must_use]
    pub fn to_toml(&self) -> String {
        dump::to_toml(self)
    }
}

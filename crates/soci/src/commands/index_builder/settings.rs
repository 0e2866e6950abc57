//! The flags about what is indexed and how, which all ways to run the builder share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use soci_index::{ConvertOptions, Platforms};
use soci_index_builder::{Filters, IndexSettings, Indexer, PoolSettings, PushPolicy, Versions};
use soci_keychain::{AwsEnvironment, CredentialProviders, EcrKeychain, ProviderSettings};
use soci_oci::Platform;
use soci_registry::{Client, Credentials};

use crate::duration::FlagDuration;
use crate::global::Global;
use crate::index_args::ZtocArgs;
use crate::profiles::ProfileArgs;
use crate::registry_args::RegistryArgs;

/// What is indexed and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image options")]
pub(crate) struct Settings {
    /// Index images of which one of these is REPOSITORY:TAG; * stands for any text
    #[arg(
        long,
        value_name = "REPOSITORY:TAG,…",
        env = "SOCI_INDEX_BUILDER_FILTERS",
        hide_env_values = true,
        default_value_t
    )]
    filters: Filters,

    /// Index images of these registries only (default: whatever an event names)
    #[arg(
        long = "registry",
        value_name = "HOST",
        value_delimiter = ',',
        env = "SOCI_INDEX_BUILDER_REGISTRIES",
        hide_env_values = true
    )]
    registries: Vec<String>,

    /// Reach the registry that events call FROM under the name TO
    #[arg(long = "registry-alias", value_name = "FROM=TO", value_parser = alias)]
    aliases: Vec<(String, String)>,

    /// The versions of SOCI indexes to make
    ///
    /// Version 2 is a copy of the image under another tag (its layers are not stored twice);
    /// version 1 is found through the referrers of the image.
    #[arg(
        long,
        value_enum,
        env = "SOCI_INDEX_BUILDER_VERSION",
        hide_env_values = true,
        default_value_t
    )]
    index_version: IndexVersion,

    /// What is appended to the tag of the indexed image (version 2); tags that end with it are not indexed
    #[arg(
        long,
        value_name = "TEXT",
        env = "SOCI_INDEX_BUILDER_TAG_SUFFIX",
        hide_env_values = true,
        default_value = soci_index_builder::DEFAULT_TAG_SUFFIX,
        value_parser = suffix,
        allow_hyphen_values = true
    )]
    tag_suffix: String,

    /// Leave images alone whose layers have fewer compressed bytes together
    #[arg(
        long,
        value_name = "BYTES",
        env = "SOCI_INDEX_BUILDER_MIN_IMAGE_SIZE",
        hide_env_values = true,
        default_value_t = 0
    )]
    min_image_size: u64,

    /// Index the images of these platforms only (default: all)
    #[arg(
        short,
        long = "platform",
        value_name = "OS/ARCH",
        value_delimiter = ',',
        env = "SOCI_INDEX_BUILDER_PLATFORMS",
        hide_env_values = true
    )]
    platforms: Vec<Platform>,

    /// Layers of one image worked on at a time
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    layers_at_a_time: std::num::NonZeroUsize,

    /// Give up on layers whose index is larger than this
    ///
    /// It bounds the memory for layers that unpack to far more than their size: each 4 MiB of a layer
    /// take 32 KiB of it. The snapshotter takes no index of a layer over 128 MiB.
    #[arg(long, value_name = "BYTES", default_value_t = soci_config::Limits::default().ztoc_bytes)]
    max_ztoc_size: u64,

    #[command(flatten)]
    ztoc: ZtocArgs,

    #[command(flatten)]
    profile: ProfileArgs,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,

    /// The kubelet's configuration of credential provider plugins, to use those too
    #[arg(
        long,
        value_name = "PATH",
        requires = "credential_provider_bin_dir",
        help_heading = "Registry options"
    )]
    credential_provider_config: Option<PathBuf>,

    /// The folder of these plugins
    #[arg(
        long,
        value_name = "DIR",
        requires = "credential_provider_config",
        help_heading = "Registry options"
    )]
    credential_provider_bin_dir: Option<PathBuf>,
}

/// The versions of SOCI indexes to make.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum IndexVersion {
    /// Beside the image
    V1,
    /// In a copy of the image
    #[default]
    V2,
    /// Both of them
    Both,
}

/// How jobs are carried out.
#[derive(Debug, Args)]
#[command(next_help_heading = "Worker options")]
pub(crate) struct WorkerArgs {
    /// Images indexed at a time
    #[arg(
        long,
        value_name = "NUMBER",
        env = "SOCI_INDEX_BUILDER_WORKERS",
        hide_env_values = true,
        default_value_t = PoolSettings::default().workers
    )]
    workers: std::num::NonZeroUsize,

    /// Attempts after which an image is given up
    #[arg(long, value_name = "NUMBER", default_value_t = PoolSettings::default().max_attempts)]
    max_attempts: std::num::NonZeroU32,

    /// Pause after the first failure; it doubles with each further one
    #[arg(long, value_name = "DURATION", default_value_t = FlagDuration(PoolSettings::default().min_pause))]
    retry_after: FlagDuration,

    /// Longest pause between two attempts
    #[arg(long, value_name = "DURATION", default_value_t = FlagDuration(PoolSettings::default().max_pause))]
    max_retry_after: FlagDuration,

    /// Longest time for one attempt at one image
    #[arg(long, value_name = "DURATION", default_value_t = FlagDuration(PoolSettings::default().job_timeout))]
    job_timeout: FlagDuration,

    /// Time for images under way when the program is asked to end
    #[arg(long, value_name = "DURATION", default_value_t = FlagDuration(PoolSettings::default().grace))]
    grace: FlagDuration,
}

impl Settings {
    /// Which pushes are indexed.
    pub(crate) fn policy(&self) -> PushPolicy {
        PushPolicy {
            filters: self.filters.clone(),
            registries: self.registries.iter().cloned().collect(),
            aliases: self.aliases.iter().cloned().collect::<BTreeMap<_, _>>(),
            suffix: self.tag_suffix.clone(),
        }
    }

    /// What indexes them.
    pub(crate) fn indexer(&self, global: &Global) -> anyhow::Result<Indexer> {
        let platforms = match &self.platforms[..] {
            [] => Platforms::All,
            these => Platforms::These(these.to_vec()),
        };
        let convert = ConvertOptions {
            profile: self.profile.merged(global)?,
            parallelism: self.layers_at_a_time,
            max_ztoc_size: Some(self.max_ztoc_size),
            ..self.ztoc.options(platforms)?
        };
        let settings = IndexSettings {
            versions: match self.index_version {
                IndexVersion::V1 => Versions::V1,
                IndexVersion::V2 => Versions::V2,
                IndexVersion::Both => Versions::Both,
            },
            suffix: self.tag_suffix.clone(),
            min_image_size: self.min_image_size,
            convert,
        };
        Ok(Indexer::new(self.client()?, settings))
    }

    /// The client for all registries: what `--user` is goes to the only one of `--registry`.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        soci_registry::install_cryptography();
        let mut sources: Vec<Arc<dyn Credentials>> =
            vec![Arc::new(EcrKeychain::new(AwsEnvironment::of_process()))];
        if let (Some(config), Some(bin_dir)) = (
            &self.credential_provider_config,
            &self.credential_provider_bin_dir,
        ) {
            sources.push(Arc::new(CredentialProviders::new(ProviderSettings {
                config: config.clone(),
                bin_dir: bin_dir.clone(),
                run_limit: None,
            })));
        }
        let only = match &self.registries[..] {
            [only] => Some(only.as_str()),
            _ => None,
        };
        self.registry.client_with(only, sources)
    }
}

impl WorkerArgs {
    pub(crate) fn pool(&self) -> PoolSettings {
        PoolSettings {
            workers: self.workers,
            max_attempts: self.max_attempts,
            min_pause: self.retry_after.0,
            max_pause: self.max_retry_after.0,
            job_timeout: self.job_timeout.0,
            grace: self.grace.0,
            ..PoolSettings::default()
        }
    }
}

fn alias(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => {
            Ok((from.to_owned(), to.to_owned()))
        }
        _ => Err("expected FROM=TO, such as registry:5000=registry.example".to_owned()),
    }
}

/// An empty one would replace the image itself.
fn suffix(text: &str) -> Result<String, String> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !text.is_empty() && text.len() < 64 && text.bytes().all(fine) {
        Ok(text.to_owned())
    } else {
        Err("expected the end of a tag, such as -soci".to_owned())
    }
}

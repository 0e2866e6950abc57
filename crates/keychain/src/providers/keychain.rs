//! The programs as a source of credentials: read from their configuration, and run when needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use soci_oci::Reference;
use soci_registry::{Candidate, CredentialError, CredentialScope, Credentials};
use tokio::time::Instant;

use super::cache::{self, Cache};
use super::config::{self, Provider};
use super::error::CredentialProviderError;
use super::exec;

/// Time for which the configuration is taken for unchanged.
const CHECK_AFTER: Duration = Duration::from_secs(10);
/// Longest run of a program: a pull waits for it.
const RUN_LIMIT: Duration = Duration::from_secs(20);

/// Where the programs are, as the kubelet's flags name them.
#[derive(Debug, Clone)]
pub struct ProviderSettings {
    /// A `CredentialProviderConfig`, or a folder of them.
    pub config: PathBuf,
    /// The folder of the programs.
    pub bin_dir: PathBuf,
    /// Longest run of a program; `None` is 20 s.
    pub run_limit: Option<Duration>,
}

/// Credentials from the kubelet's credential provider plugins.
pub struct CredentialProviders {
    settings: ProviderSettings,
    loaded: tokio::sync::Mutex<Option<Loaded>>,
}

struct Loaded {
    checked: Instant,
    stamp: Stamp,
    providers: Result<Vec<Arc<Plugin>>, CredentialProviderError>,
}

/// The state of the files of the configuration.
type Stamp = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

/// A program, which runs once at a time.
struct Plugin {
    provider: Provider,
    cache: tokio::sync::Mutex<Cache>,
}

impl std::fmt::Debug for CredentialProviders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CredentialProviders({})", self.settings.config.display())
    }
}

impl CredentialProviders {
    /// Creates the source. The configuration is read when credentials are needed, and again when it
    /// changes.
    #[must_use]
    pub fn new(settings: ProviderSettings) -> Self {
        Self {
            settings,
            loaded: tokio::sync::Mutex::default(),
        }
    }

    async fn plugins(&self) -> Result<Vec<Arc<Plugin>>, CredentialProviderError> {
        let mut loaded = self.loaded.lock().await;
        if let Some(loaded) = loaded.as_ref()
            && loaded.checked.elapsed() < CHECK_AFTER
        {
            return loaded.providers.clone();
        }
        let path = self.settings.config.clone();
        let before = loaded.take();
        let read = soci_task::run(move || {
            let stamp = stamp(&path);
            match before {
                Some(before) if before.stamp == stamp => before,
                _ => Loaded {
                    checked: Instant::now(),
                    providers: load(&path, &stamp),
                    stamp,
                },
            }
        });
        let mut read = read
            .await
            .map_err(|error| CredentialProviderError::Interrupted(Arc::new(error)))?;
        read.checked = Instant::now();
        let providers = read.providers.clone();
        *loaded = Some(read);
        providers
    }
}

impl Plugin {
    async fn credentials(
        &self,
        settings: &ProviderSettings,
        registry_host: &str,
        image: &str,
    ) -> Result<cache::Credentials, CredentialProviderError> {
        let mut cache = self.cache.lock().await;
        if let Some(known) = cache.get(registry_host, image, Instant::now()) {
            return known;
        }
        let limit = settings.run_limit.unwrap_or(RUN_LIMIT);
        let run = exec::run(&settings.bin_dir, &self.provider, image, limit).await;
        let now = Instant::now();
        match run {
            Ok(response) => {
                let default = self.provider.default_cache;
                Ok(cache.put(registry_host, image, &response, default, now))
            }
            Err(error) => {
                cache.fail(image, &error, now);
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Credentials for CredentialProviders {
    async fn candidates(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let Some(reference) = reference else {
            return Ok(Vec::new());
        };
        let image = format!("{registry_host}/{}", reference.repository());
        let (mut found, mut failure) = (Vec::new(), None);
        let plugins = self.plugins().await;
        for plugin in plugins.map_err(CredentialError::from_source)? {
            if !plugin.provider.is_for(registry_host, reference) {
                continue;
            }
            let credentials = plugin.credentials(&self.settings, registry_host, &image);
            match credentials.await {
                // What is printed for other images or hosts does not count.
                Ok(credentials) => {
                    found.extend(credentials.iter().filter_map(|(key, credential)| {
                        let scope = CredentialScope::of_key(key, registry_host, Some(reference))?;
                        Some(Candidate::new(credential.clone(), scope))
                    }))
                }
                Err(error) => {
                    failure.get_or_insert(CredentialError::from_source(error));
                }
            }
        }
        match failure {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }
}

/// The files of a configuration: itself, or those of the folder in the order of their names.
fn files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return vec![path.to_owned()];
    };
    let kinds = ["yaml", "yml", "json"];
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|e| kinds.iter().any(|kind| e == *kind))
        })
        .collect();
    files.sort();
    files
}

fn stamp(path: &Path) -> Stamp {
    let state = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    let files = files(path).into_iter();
    files.map(|path| (path.clone(), state(&path))).collect()
}

fn load(path: &Path, stamp: &Stamp) -> Result<Vec<Arc<Plugin>>, CredentialProviderError> {
    let mut plugins = Vec::new();
    for (file, _) in stamp {
        let text =
            fs::read_to_string(file).map_err(|error| CredentialProviderError::Unreadable {
                path: file.clone(),
                source: Arc::new(error),
            })?;
        let providers =
            config::parse(&text).map_err(|source| CredentialProviderError::Invalid {
                path: file.clone(),
                source,
            })?;
        plugins.extend(providers.into_iter().map(|provider| {
            Arc::new(Plugin {
                provider,
                cache: tokio::sync::Mutex::default(),
            })
        }));
    }
    let names: Vec<&str> = plugins
        .iter()
        .map(|one| one.provider.name.as_str())
        .collect();
    tracing::info!(config = %path.display(), providers = ?names, "credential providers of the kubelet");
    Ok(plugins)
}

//! The `hosts.toml` files of containerd, read when they are needed and again when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bounded::Bounded;
use crate::endpoint::{Endpoint, from_hosts_file};
use crate::{ClientConfig, Misconfiguration, RegistryError, RegistryHosts};

/// Time for which a registry's files are taken for unchanged.
const CHECK_AFTER: Duration = Duration::from_secs(1);
/// Most registries that are remembered.
const MAX_REGISTRIES: usize = 1024;

/// The endpoints of a registry by its files; `None` if it has none.
pub(crate) type FileEndpoints = Option<Arc<Vec<Arc<Endpoint>>>>;

/// What the files of the registries say.
pub(crate) struct HostsFiles(Mutex<Bounded<String, Entry>>);

#[derive(Clone)]
struct Entry {
    checked: Instant,
    stamp: Stamp,
    /// With an error: why the files cannot be used now.
    endpoints: Result<FileEndpoints, RegistryError>,
    /// Why the files cannot be used now, while earlier endpoints are in force.
    rejected: Option<String>,
}

/// The state of the files that the endpoints were made of.
type Stamp = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

impl Default for HostsFiles {
    fn default() -> Self {
        Self(Mutex::new(Bounded::new(MAX_REGISTRIES)))
    }
}

impl HostsFiles {
    /// Lists the registries that have files: their hosts, and why the files cannot be used.
    pub(crate) fn known(&self) -> Vec<(String, Vec<Arc<Endpoint>>, Option<String>)> {
        let known = self.0.lock();
        let known = known.iter().filter_map(|(registry, entry)| {
            let (hosts, error) = match &entry.endpoints {
                Ok(None) => return None,
                Ok(Some(hosts)) => (hosts.to_vec(), entry.rejected.clone()),
                Err(error) => (Vec::new(), Some(error.to_string())),
            };
            Some((registry.clone(), hosts, error))
        });
        known.collect()
    }

    /// Returns the endpoints that the folders of the configuration give a registry. Files that become
    /// unusable leave what they said before in force.
    pub(crate) async fn endpoints(
        &self,
        config: &Arc<ClientConfig>,
        registry: &str,
    ) -> Result<FileEndpoints, RegistryError> {
        if config.hosts_dirs.is_empty() {
            return Ok(None);
        }
        let known = self.0.lock().get(registry).cloned();
        if let Some(known) = &known
            && known.checked.elapsed() < CHECK_AFTER
        {
            return known.endpoints.clone();
        }
        let (config, name) = (Arc::clone(config), registry.to_owned());
        let before = known.clone();
        let read = move || match before {
            Some(entry) if entry.stamp.iter().all(|(path, at)| state(path) == *at) => entry,
            before => read(&config, &name, before),
        };
        let entry = soci_task::run(read)
            .await
            .map_err(|error| Misconfiguration::Interrupted(Arc::new(error)))?;
        let entry = Entry {
            checked: Instant::now(),
            ..entry
        };
        let endpoints = entry.endpoints.clone();
        self.0.lock().insert(registry.to_owned(), entry);
        endpoints
    }
}

/// Reads the files of a registry.
fn read(config: &ClientConfig, registry: &str, before: Option<Entry>) -> Entry {
    let mut watched = RegistryHosts::places(&config.hosts_dirs, registry);
    // Before they are read: a change in between is noticed the next time.
    let mut stamp: Stamp = watched
        .iter()
        .map(|path| (path.clone(), state(path)))
        .collect();
    let found = RegistryHosts::look_up(&config.hosts_dirs, registry)
        .map_err(|error| Misconfiguration::Hosts(Arc::new(error)).into())
        .and_then(|found| match found {
            None => Ok(None),
            Some(hosts) => {
                watched = hosts.files();
                stamp.extend(watched.iter().map(|path| (path.clone(), state(path))));
                from_hosts_file(config, registry, &hosts).map(|endpoints| Some(Arc::new(endpoints)))
            }
        });
    let mut rejected = None;
    let endpoints = match found {
        Ok(endpoints) => {
            if before.is_some() || endpoints.is_some() {
                let hosts: Vec<String> = endpoints
                    .iter()
                    .flat_map(|all| all.iter())
                    .map(|endpoint| endpoint.base().to_string())
                    .collect();
                tracing::info!(registry, ?hosts, "hosts of a registry, by its hosts.toml");
            }
            Ok(endpoints)
        }
        Err(error) => match before {
            Some(Entry {
                endpoints: Ok(endpoints),
                ..
            }) => {
                tracing::warn!(registry, reason = %error, "keeping the earlier hosts of a registry");
                rejected = Some(error.to_string());
                Ok(endpoints)
            }
            _ => {
                tracing::warn!(registry, reason = %error, "cannot use the hosts of a registry");
                Err(error)
            }
        },
    };
    Entry {
        checked: Instant::now(),
        stamp,
        endpoints,
        rejected,
    }
}

/// When a file or folder was changed, and its size; `None` if it is not there.
fn state(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

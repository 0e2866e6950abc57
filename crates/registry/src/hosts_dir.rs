//! Folders with registry configuration as containerd has it: `<dir>/<registry>/hosts.toml`, and
//! Docker's older form, a folder of certificates.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::hosts_toml::{self, HostsTomlError, RegistryHost, RegistryHosts};

/// Why the configuration of a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsDirError {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A `hosts.toml` is refused.
    #[error("cannot use {}: {source}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: HostsTomlError,
    },
}

impl RegistryHosts {
    /// Returns the files and folders that decide what [`look_up`](Self::look_up) finds.
    pub(crate) fn places(dirs: &[PathBuf], registry: &str) -> Vec<PathBuf> {
        let mut places = Vec::new();
        for dir in dirs {
            for name in folder_names(registry) {
                let folder = dir.join(name);
                places.push(folder.join("hosts.toml"));
                places.push(folder);
            }
        }
        places
    }

    /// Returns the files of certificates and keys that the hosts name.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let of_host = |host: &RegistryHost| {
            let client = host
                .client
                .iter()
                .flat_map(|(certificate, key)| [certificate, key]);
            host.ca.iter().chain(client).cloned().collect::<Vec<_>>()
        };
        self.hosts.iter().flat_map(of_host).collect()
    }

    /// Looks a registry up in folders such as `/etc/containerd/certs.d`. The first folder that has
    /// an entry for it counts; `None` if there is none.
    ///
    /// # Errors
    /// The entry cannot be read, or its `hosts.toml` is refused.
    pub fn look_up(dirs: &[PathBuf], registry: &str) -> Result<Option<Self>, HostsDirError> {
        for dir in dirs {
            for name in folder_names(registry) {
                let folder = dir.join(name);
                let path = folder.join("hosts.toml");
                match fs::read_to_string(&path) {
                    Ok(text) => {
                        return hosts_toml::parse(&text, &folder, registry)
                            .map(Some)
                            .map_err(|source| HostsDirError::Invalid { path, source });
                    }
                    Err(error) if is_missing(&error) => {}
                    Err(source) => return Err(HostsDirError::Read { path, source }),
                }
                if let Some(host) = certificates(&folder)? {
                    return Ok(Some(Self { hosts: vec![host] }));
                }
            }
        }
        Ok(None)
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The folders that may be a registry's, in containerd's order. Not every file system allows a
/// colon in a name: `host:port` may be written `host_port_`.
fn folder_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

/// Reads Docker's form: `*.crt` are authorities, `NAME.cert` and `NAME.key` a client's.
fn certificates(folder: &Path) -> Result<Option<RegistryHost>, HostsDirError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(source) => {
            return Err(HostsDirError::Read {
                path: folder.to_owned(),
                source,
            });
        }
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let of_kind = |kind: &'static str| {
        files
            .iter()
            .filter(move |path| path.extension().is_some_and(|e| e == kind))
    };
    let ca: Vec<PathBuf> = of_kind("crt").cloned().collect();
    let client = of_kind("cert")
        .map(|certificate| (certificate.clone(), certificate.with_extension("key")))
        .next();
    let found = !ca.is_empty() || client.is_some();
    Ok(found.then_some(RegistryHost {
        pull: true,
        push: true,
        resolve: true,
        ca,
        client,
        ..RegistryHost::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_registry_is_found_under_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("nowhere"), dir.path().to_owned()];
        let url = |registry: &str| {
            let found = RegistryHosts::look_up(&dirs, registry).unwrap()?;
            Some(found.hosts.last()?.url.clone()?.to_string())
        };
        assert_eq!(url("r.example:5000"), None);
        for (folder, server) in [
            ("_default", "http://default.example"),
            ("r.example:5000", "http://colon.example"),
            ("r.example_5000_", "http://underscore.example"),
        ] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            let file = dir.path().join(folder).join("hosts.toml");
            fs::write(file, format!("server = \"{server}\"")).unwrap();
            assert_eq!(url("r.example:5000"), Some(format!("{server}/")));
        }
        assert_eq!(
            url("other.example"),
            Some("http://default.example/".to_owned())
        );
    }

    #[test]
    fn a_folder_of_certificates_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("r.example");
        fs::create_dir(&folder).unwrap();
        for name in ["ca.crt", "me.cert", "me.key"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let found = RegistryHosts::look_up(&[dir.path().to_owned()], "r.example")
            .unwrap()
            .unwrap();
        assert_eq!(found.hosts.len(), 1);
        assert_eq!(found.hosts[0].ca, [folder.join("ca.crt")]);
        assert_eq!(
            found.hosts[0].client,
            Some((folder.join("me.cert"), folder.join("me.key")))
        );
    }
}

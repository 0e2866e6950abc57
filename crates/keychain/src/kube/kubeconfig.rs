//! The kubeconfig file: a cluster and a user. Several files are merged as kubectl does it: the first
//! definition of a name wins.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::{KeychainError, KubeconfigDefect};

/// One file, or several merged. Holds secrets: no `Debug`.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Kubeconfig {
    current_context: String,
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
    contexts: Vec<NamedContext>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

/// The API server and how it is authenticated.
#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Cluster {
    pub(super) server: String,
    pub(super) insecure_skip_tls_verify: bool,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    pub(super) proxy_url: Option<String>,
}

/// The user and its credentials.
#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    pub(super) token: Option<String>,
    #[serde(rename = "tokenFile")]
    pub(super) token_file: Option<PathBuf>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) exec: Option<Exec>,
}

/// A program that prints credentials.
#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Exec {
    pub(super) api_version: String,
    pub(super) command: String,
    pub(super) args: Option<Vec<String>>,
    pub(super) env: Option<Vec<ExecVariable>>,
}

/// An environment variable of such a program.
#[derive(Deserialize, Default, Clone)]
#[serde(default)]
pub(super) struct ExecVariable {
    pub(super) name: String,
    pub(super) value: String,
}

impl Kubeconfig {
    /// Reads one file; paths in it are relative to its folder.
    pub(super) fn read(path: &Path) -> Result<Self, KeychainError> {
        let text = std::fs::read_to_string(path).map_err(|source| KeychainError::File {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Self::parse(&text).map_err(|source| KeychainError::Kubeconfig {
            path: path.to_owned(),
            source,
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let resolve = |path: &mut Option<PathBuf>| {
            if let Some(path) = path.as_mut().filter(|path| path.is_relative()) {
                *path = folder.join(&*path);
            }
        };
        for named in &mut config.clusters {
            resolve(&mut named.cluster.certificate_authority);
        }
        for user in config
            .users
            .iter_mut()
            .filter_map(|named| named.user.as_mut())
        {
            resolve(&mut user.client_certificate);
            resolve(&mut user.client_key);
            resolve(&mut user.token_file);
            // A bare name is searched for in PATH.
            if let Some(exec) = user.exec.as_mut()
                && exec.command.contains('/')
            {
                let command = folder.join(&exec.command);
                exec.command = command.to_string_lossy().into_owned();
            }
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, KubeconfigDefect> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // The message of the parser may quote a secret; the position is enough.
        serde_saphyr::from_str(text).map_err(|error| match error.location() {
            Some(at) => KubeconfigDefect::Syntax {
                line: at.line(),
                column: at.column(),
            },
            None => KubeconfigDefect::NotYaml,
        })
    }

    /// Reads the text of a file as a fuzz target does.
    #[cfg(feature = "fuzzing")]
    pub(super) fn fuzz(text: &str) {
        if let Ok(mut config) = Self::parse(text) {
            config.merge(Self::parse(text).unwrap_or_default());
            let _ = config.current();
        }
    }

    /// Adds the definitions of another file that this one does not have.
    pub(super) fn merge(&mut self, other: Self) {
        if self.current_context.is_empty() {
            self.current_context = other.current_context;
        }
        self.clusters.extend(other.clusters);
        self.users.extend(other.users);
        self.contexts.extend(other.contexts);
    }

    /// Returns the cluster and the user of the current context.
    pub(super) fn current(&self) -> Result<(Cluster, User), KubeconfigDefect> {
        let wanted = &self.current_context;
        if wanted.is_empty() {
            return Err(KubeconfigDefect::NoCurrentContext);
        }
        let context = &self
            .contexts
            .iter()
            .find(|named| named.name == *wanted)
            .ok_or_else(|| KubeconfigDefect::UnknownContext(wanted.clone()))?
            .context;
        let cluster = &self
            .clusters
            .iter()
            .find(|named| named.name == context.cluster)
            .ok_or_else(|| KubeconfigDefect::UnknownCluster(context.cluster.clone()))?
            .cluster;
        if cluster.server.is_empty() {
            return Err(KubeconfigDefect::NoServer(context.cluster.clone()));
        }
        let user = match context.user.as_str() {
            "" => User::default(),
            wanted => self
                .users
                .iter()
                .find(|named| named.name == wanted)
                .ok_or_else(|| KubeconfigDefect::UnknownUser(wanted.to_owned()))?
                .user
                .clone()
                .unwrap_or_default(),
        };
        Ok((cluster.clone(), user))
    }
}

impl Cluster {
    /// Returns the authorities for the server's certificate, as PEM.
    pub(super) fn authority(&self) -> Result<Option<Vec<u8>>, KeychainError> {
        data_or_file(
            "certificate-authority-data",
            self.certificate_authority_data.as_deref(),
            self.certificate_authority.as_deref(),
        )
    }
}

impl User {
    /// Returns certificate and key for TLS, as PEM.
    pub(super) fn identity(&self) -> Result<Option<Vec<u8>>, KeychainError> {
        let certificate = data_or_file(
            "client-certificate-data",
            self.client_certificate_data.as_deref(),
            self.client_certificate.as_deref(),
        )?;
        let key = data_or_file(
            "client-key-data",
            self.client_key_data.as_deref(),
            self.client_key.as_deref(),
        )?;
        Ok(certificate
            .zip(key)
            .map(|(certificate, key)| [certificate, b"\n".to_vec(), key].concat()))
    }
}

/// Decodes a base64 field, or else reads the file that another field names.
fn data_or_file(
    field: &'static str,
    data: Option<&str>,
    file: Option<&Path>,
) -> Result<Option<Vec<u8>>, KeychainError> {
    match (data.filter(|data| !data.is_empty()), file) {
        (Some(data), _) => {
            STANDARD
                .decode(data.trim())
                .map(Some)
                .map_err(|_| KeychainError::Kubeconfig {
                    path: PathBuf::new(),
                    source: KubeconfigDefect::NotBase64(field),
                })
        }
        (None, Some(path)) => std::fs::read(path)
            .map(Some)
            .map_err(|source| KeychainError::File {
                path: path.to_owned(),
                source,
            }),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(folder: &Path, name: &str, text: &str) -> Result<Kubeconfig, KeychainError> {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        Kubeconfig::read(&path)
    }

    #[test]
    fn the_current_context_names_cluster_and_user() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), "authority").unwrap();
        let config = read(
            folder.path(),
            "config",
            "apiVersion: v1\nkind: Config\ncurrent-context: b\npreferences: {}\n\
             contexts:\n- name: a\n  context: {cluster: x, user: y}\n\
             - name: b\n  context: {cluster: c, user: u, namespace: n}\n\
             clusters:\n- name: c\n  cluster: {server: 'https://s:6443', certificate-authority: ca.pem}\n\
             users:\n- name: u\n  user:\n    client-certificate-data: Y2VydA==\n    client-key-data: a2V5\n    token: t\n",
        )
        .unwrap();
        let (cluster, user) = config.current().unwrap();
        assert_eq!(cluster.server, "https://s:6443");
        assert_eq!(cluster.authority().unwrap().unwrap(), b"authority");
        assert_eq!(user.identity().unwrap().unwrap(), b"cert\nkey");
        assert_eq!(user.token.as_deref(), Some("t"));
    }

    #[test]
    fn the_first_of_several_files_wins() {
        let folder = tempfile::tempdir().unwrap();
        let cluster =
            |server: &str| format!("clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n");
        let mut first = read(folder.path(), "1", &cluster("https://one")).unwrap();
        let context = "current-context: c\ncontexts: [{name: c, context: {cluster: c}}]\n";
        let second = read(folder.path(), "2", &(cluster("https://two") + context)).unwrap();
        first.merge(second);
        assert_eq!(first.current().unwrap().0.server, "https://one");
    }

    #[test]
    fn what_is_wrong_is_named_without_quoting_it() {
        let folder = tempfile::tempdir().unwrap();
        for (text, names) in [
            ("users: hunter2", "line 1"),
            ("users: [{name: u, user: {token: [hunter2]}}]", "line 1"),
            ("{ hunter2", "line"),
        ] {
            let error = read(folder.path(), "config", text)
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(names) && error.contains("config"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for (text, names) in [
            ("", "no current-context"),
            ("current-context: a", "\"a\""),
            (
                "current-context: a\ncontexts: [{name: a, context: {cluster: c}}]",
                "\"c\"",
            ),
        ] {
            let config = read(folder.path(), "config", text).unwrap();
            let error = config.current().err().unwrap().to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}

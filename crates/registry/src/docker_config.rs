//! Credentials from Docker's `config.json`, which is read at each look-up: a `docker login` or a
//! rotated secret takes effect immediately.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use soci_oci::Reference;

use crate::credential_scope::is_hub;
use crate::docker_helper;
use crate::{
    Candidate, Credential, CredentialError, CredentialScope, Credentials, DockerConfigError,
};

/// The name of Docker's registry in Docker's files.
const HUB: &str = "https://index.docker.io/v1/";

/// Credentials from `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`: `credHelpers`,
/// `credsStore`, then `auths`.
#[derive(Debug, Clone, Default)]
pub struct DockerConfigCredentials {
    path: Option<PathBuf>,
}

impl DockerConfigCredentials {
    /// Creates a source that reads Docker's file; the environment is read at each look-up.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a source that reads the file at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: Some(path.into()),
        }
    }

    /// Returns the candidates for a repository from the `auths` of a Docker configuration. For texts
    /// from elsewhere, such as the secrets of a cluster: no credential helper is run.
    ///
    /// # Errors
    /// The text is not a Docker configuration.
    pub fn auths_in(
        json: &[u8],
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, DockerConfigError> {
        File::parse(json)?.entries_for(registry_host, reference)
    }

    fn path(&self) -> Option<PathBuf> {
        match &self.path {
            Some(path) => Some(path.clone()),
            None => path_by(|name| std::env::var_os(name)),
        }
    }
}

/// Returns the path of Docker's configuration, by the environment.
fn path_by(environment: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| {
        let value = environment(name).filter(|value| !value.is_empty())?;
        Some(PathBuf::from(value))
    };
    let docker = folder("DOCKER_CONFIG").or_else(|| Some(folder("HOME")?.join(".docker")));
    Some(docker?.join("config.json"))
}

#[async_trait]
impl Credentials for DockerConfigCredentials {
    async fn candidates(
        &self,
        registry_host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, CredentialError> {
        let Some(path) = self.path() else {
            return Ok(Vec::new());
        };
        let file = match tokio::fs::read(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Vec::new());
            }
            Err(error) => Err(DockerConfigError::Unreadable(Arc::new(error))),
            Ok(text) => File::parse(&text),
        };
        match file {
            Ok(file) => file
                .candidates(registry_host, reference)
                .await
                .map_err(|error| CredentialError::Docker {
                    path,
                    source: Box::new(error),
                }),
            // As in v0.15, a file that cannot be read means anonymous access: public images must
            // not depend on it.
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "ignoring unreadable Docker configuration");
                Ok(Vec::new())
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl File {
    fn parse(json: &[u8]) -> Result<Self, DockerConfigError> {
        serde_json::from_slice(json).map_err(|error| DockerConfigError::Invalid {
            line: error.line(),
            column: error.column(),
        })
    }

    async fn candidates(
        &self,
        host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, DockerConfigError> {
        let helper = self
            .cred_helpers
            .iter()
            .flatten()
            .find(|(key, _)| same_registry(key, host))
            .map(|(_, helper)| helper)
            .or(self.creds_store.as_ref())
            .filter(|helper| !helper.is_empty());
        let (mut all, mut failure) = (Vec::new(), None);
        if let Some(helper) = helper {
            let server = if is_hub(host) { HUB } else { host };
            match docker_helper::get(helper, server).await {
                Ok(found) => all.extend(found.map(|c| Candidate::new(c, CredentialScope::Host))),
                Err(error) => failure = Some(error),
            }
        }
        match self.entries_for(host, reference) {
            Ok(entries) => all.extend(entries),
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
        match failure {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    /// The entries whose key is for the repository. One that is malformed is an error if there is no
    /// other.
    fn entries_for(
        &self,
        host: &str,
        reference: Option<&Reference>,
    ) -> Result<Vec<Candidate>, DockerConfigError> {
        let exact = if is_hub(host) { HUB } else { host };
        let (mut all, mut failure) = (Vec::new(), None);
        for (key, entry) in self.auths.iter().flatten() {
            let Some(scope) = CredentialScope::of_key(key, host, reference) else {
                continue;
            };
            match entry.credential(host) {
                Ok(None) => {}
                Ok(Some(credential)) => {
                    let candidate = Candidate::new(credential, scope);
                    // The name that Docker itself writes comes before its other forms.
                    let at = if key == exact { 0 } else { all.len() };
                    all.insert(at, candidate);
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all),
        }
    }
}

impl Entry {
    fn credential(&self, host: &str) -> Result<Option<Credential>, DockerConfigError> {
        let given = |field: &Option<String>| field.clone().filter(|value| !value.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credential::BearerToken(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let bad = || DockerConfigError::Entry {
                host: host.to_owned(),
            };
            let text = auth.trim().trim_end_matches('=');
            let decoded = STANDARD_NO_PAD
                .decode(text)
                .or_else(|_| STANDARD.decode(auth.trim()))
                .map_err(|_| bad())?;
            let text = String::from_utf8(decoded).map_err(|_| bad())?;
            let (user, password) = text.split_once(':').ok_or_else(bad)?;
            return Ok(Some(Credential::Basic {
                user: user.to_owned(),
                // Docker pads what it writes with zero bytes.
                password: password.trim_matches('\0').to_owned(),
            }));
        }
        match (given(&self.username), given(&self.password)) {
            (Some(user), Some(password)) => Ok(Some(Credential::Basic { user, password })),
            _ => Ok(None),
        }
    }
}

/// Returns whether a key of the file (a host, or a URL as older versions wrote) names `host`. All
/// names of Docker's registry are the same.
#[must_use]
pub fn same_registry(key: &str, host: &str) -> bool {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let bare = bare.split('/').next().unwrap_or_default();
    bare == host || (is_hub(bare) && is_hub(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lookup_in(json: &str, host: &str) -> Result<Option<Credential>, DockerConfigError> {
        let found = File::parse(json.as_bytes())?.candidates(host, None).await?;
        Ok(found.into_iter().next().map(|found| found.credential))
    }

    async fn look(json: &str, host: &str) -> Option<Credential> {
        lookup_in(json, host).await.unwrap()
    }

    fn basic(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Basic {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    #[tokio::test]
    async fn auths_are_found_under_every_name_docker_writes() {
        let auth = STANDARD.encode("me:pa:ss");
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "index.docker.io",
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
            assert_eq!(
                look(&json, "docker.io").await,
                basic("me", "pa:ss"),
                "{key}"
            );
            assert_eq!(look(&json, "ghcr.io").await, None);
        }
        for key in [
            "r.example:5000",
            "https://r.example:5000",
            "http://r.example:5000/v2/",
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
            assert_eq!(
                look(&json, "r.example:5000").await,
                basic("me", "pa:ss"),
                "{key}"
            );
            assert_eq!(look(&json, "r.example").await, None, "{key}");
        }
    }

    #[test]
    fn a_text_from_elsewhere_runs_no_helper() {
        let json = br#"{"credHelpers":{"a":"there-is-none"},"credsStore":"there-is-none",
            "auths":{"b":{"username":"u","password":"p"}}}"#;
        let auths = |host| DockerConfigCredentials::auths_in(json, host, None).unwrap();
        assert_eq!(auths("a"), []);
        let expected = Candidate::new(basic("u", "p").unwrap(), CredentialScope::Host);
        assert_eq!(auths("b"), [expected]);
    }

    #[tokio::test]
    async fn every_form_of_an_entry_is_read() {
        let json = r#"{"auths":{
            "a":{"auth":"eDp5","identitytoken":"id"}, "b":{"registrytoken":"rt"},
            "c":{"username":"u","password":"p"}, "d":{}}, "credHelpers":null}"#;
        assert_eq!(
            look(json, "a").await,
            Some(Credential::IdentityToken("id".to_owned()))
        );
        assert_eq!(
            look(json, "b").await,
            Some(Credential::BearerToken("rt".to_owned()))
        );
        assert_eq!(look(json, "c").await, basic("u", "p"));
        assert_eq!(look(json, "d").await, None);
        assert_eq!(look("{}", "d").await, None);
    }

    #[tokio::test]
    async fn a_broken_file_is_an_error_that_shows_no_secret() {
        for json in [
            r#"{"auths":{"a":{"auth":["hunter2"]}}}"#,
            r#"{"auths":"hunter2"}"#,
            r#"{"auths":{"a":{"auth":"hunter2!!"}}}"#,
        ] {
            let error = lookup_in(json, "a").await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_helper_is_used_for_its_registry_only_and_auths_for_the_others() {
        let json = r#"{"credHelpers":{"a":"there-is-none","b":"there-is-none"},
            "auths":{"a":{"username":"u","password":"p"}}}"#;
        assert_eq!(look(json, "a").await, basic("u", "p"));
        assert_eq!(look(json, "c").await, None);
        let error = lookup_in(json, "b").await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("docker-credential-there-is-none"),
            "{error}"
        );
        let store = r#"{"credsStore":"there-is-none"}"#;
        let lookup = lookup_in(store, "a");
        assert!(lookup.await.is_err());
    }

    #[test]
    fn docker_config_wins_over_home() {
        let path = |variables: &[(&str, &str)]| {
            path_by(|name| {
                let (_, value) = variables.iter().find(|(n, _)| *n == name)?;
                Some(OsString::from(value))
            })
        };
        let home = ("HOME", "/h");
        assert_eq!(
            path(&[home, ("DOCKER_CONFIG", "/d")]),
            Some("/d/config.json".into())
        );
        assert_eq!(
            path(&[home, ("DOCKER_CONFIG", "")]),
            Some("/h/.docker/config.json".into())
        );
        assert_eq!(path(&[]), None);
    }

    #[tokio::test]
    async fn the_file_is_read_again_each_time_and_may_be_missing_or_broken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let credentials = DockerConfigCredentials::at(&path);
        assert_eq!(credentials.lookup("a", None).await.unwrap(), None);
        std::fs::write(&path, "{ broken").unwrap();
        assert_eq!(credentials.lookup("a", None).await.unwrap(), None);
        for password in ["one", "two"] {
            let auth = STANDARD.encode(format!("me:{password}"));
            std::fs::write(&path, format!(r#"{{"auths":{{"a":{{"auth":"{auth}"}}}}}}"#)).unwrap();
            assert_eq!(
                credentials.lookup("a", None).await.unwrap(),
                basic("me", password)
            );
        }
    }
}

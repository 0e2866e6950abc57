//! `CredentialProviderConfig` (`kubelet.config.k8s.io`): which programs there are, and for which
//! images.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use soci_oci::Reference;
use soci_registry::{CredentialScope, go_duration};

use super::error::{ProviderConfigDefect, ProviderDefect};

/// The group and versions of the file.
pub(super) const FILE_GROUP: &str = "kubelet.config.k8s.io/";
/// The group of the programs' protocol.
const PROTOCOL_GROUP: &str = "credentialprovider.kubelet.k8s.io/";
/// The versions of both that are understood.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
/// Most programs in a file.
const MAX_PROVIDERS: usize = 64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    #[serde(default)]
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

/// One program. No `Debug`: its environment may hold secrets.
pub(super) struct Provider {
    /// The file name of the program.
    pub(super) name: String,
    match_images: Vec<String>,
    /// Time for which a response counts that states none.
    pub(super) default_cache: Duration,
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

impl Provider {
    /// Whether the program is for an image, by the rules of the kubelet.
    pub(super) fn is_for(&self, registry_host: &str, image: &Reference) -> bool {
        let mut patterns = self.match_images.iter();
        patterns
            .any(|pattern| CredentialScope::of_key(pattern, registry_host, Some(image)).is_some())
    }
}

/// Parses a file. A program that needs a pod's token is left out: no pod is known here.
pub(super) fn parse(text: &str) -> Result<Vec<Provider>, ProviderConfigDefect> {
    let file: File = serde_saphyr::from_str(text).map_err(|_| ProviderConfigDefect::Syntax)?;
    if file.kind != "CredentialProviderConfig" || !is_version(&file.api_version, FILE_GROUP) {
        return Err(ProviderConfigDefect::OtherKind {
            kind: file.kind,
            api_version: file.api_version,
        });
    }
    if file.providers.len() > MAX_PROVIDERS {
        return Err(ProviderConfigDefect::TooMany(MAX_PROVIDERS));
    }
    let mut providers = Vec::new();
    for entry in file.providers {
        let name = entry.name.clone();
        let wrong = |source| {
            let name = name.clone();
            Err(ProviderConfigDefect::Provider { name, source })
        };
        if name.is_empty() || name.contains(['/', '\0', ' ']) || name == "." || name == ".." {
            return wrong(ProviderDefect::Name);
        }
        if !is_version(&entry.api_version, PROTOCOL_GROUP) {
            return wrong(ProviderDefect::ApiVersion);
        }
        if entry.match_images.is_empty() {
            return wrong(ProviderDefect::NoImages);
        }
        if entry.token_attributes.is_some() {
            tracing::warn!(
                provider = name,
                "ignoring a credential provider that needs the token of a pod's service account"
            );
            continue;
        }
        let default_cache = match entry.default_cache_duration.as_deref() {
            None => return wrong(ProviderDefect::NoCacheDuration),
            Some(text) => match go_duration(text) {
                Some(duration) => duration,
                None => return wrong(ProviderDefect::CacheDuration),
            },
        };
        let env = entry.env.into_iter().flatten();
        providers.push(Provider {
            name: entry.name,
            match_images: entry.match_images,
            default_cache,
            api_version: entry.api_version,
            args: entry.args.unwrap_or_default(),
            env: env.map(|one| (one.name, one.value)).collect(),
        });
    }
    Ok(providers)
}

fn is_version(text: &str, group: &str) -> bool {
    text.strip_prefix(group)
        .is_some_and(|version| VERSIONS.contains(&version))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: one
  matchImages: ["*.example", "*.dkr.ecr.*.example/team"]
  defaultCacheDuration: "1h30m"
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: ["get"]
  env: [{name: KEY, value: hunter2}]
- name: needs-a-token
  matchImages: ["*"]
  defaultCacheDuration: "1h"
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  tokenAttributes: {serviceAccountTokenAudience: x, requireServiceAccount: true}
"#;

    #[test]
    fn providers_are_for_the_images_that_the_kubelet_runs_them_for() {
        let providers = parse(GOOD).unwrap();
        assert_eq!(providers.len(), 1);
        let one = &providers[0];
        assert_eq!(one.default_cache, Duration::from_secs(5400));
        assert_eq!(one.env, [("KEY".to_owned(), "hunter2".to_owned())]);
        for (image, expected) in [
            ("r.example/a:1", true),
            ("r.example:5000/a:1", false),
            ("x.r.example/a:1", false),
            ("1.dkr.ecr.eu.example/team/a", true),
            ("1.dkr.ecr.eu.example/other/a", false),
        ] {
            let image: Reference = image.parse().unwrap();
            assert_eq!(one.is_for(image.registry(), &image), expected, "{image}");
        }
        let json = r#"{"apiVersion":"kubelet.config.k8s.io/v1beta1","kind":"CredentialProviderConfig","providers":[]}"#;
        assert!(parse(json).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_refused_says_why_without_its_secrets() {
        for (from, to, part) in [
            ("kind: CredentialProviderConfig", "kind: Pod", "Pod"),
            ("kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v7", "v7"),
            ("name: one", "name: ../one", "file name"),
            ("\"1h30m\"", "\"soon\"", "defaultCacheDuration"),
            ("k8s.io/v1\n  args", "k8s.io/v9\n  args", "apiVersion"),
            ("providers:", "providers: {", "YAML"),
            (
                "[\"*.example\", \"*.dkr.ecr.*.example/team\"]",
                "[]",
                "matchImages",
            ),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let error = parse(&text).err().unwrap().to_string();
            assert!(error.contains(part), "{from}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

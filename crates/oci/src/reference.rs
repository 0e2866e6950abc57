//! Image references in Docker's form.
//!
//! The grammar is that of the distribution project's package `reference`. Its regular expression, which `oci-spec`
//! uses, costs each process that parses one 12 MB and 30 ms of processor time: names are matched by hand.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// The registry of references without one.
const DOCKER_HUB: &str = "docker.io";
/// Its name in old references.
const DOCKER_HUB_INDEX: &str = "index.docker.io";
/// The namespace of Docker Hub's repositories whose name is a single component.
const OFFICIAL: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest name of a repository, in bytes.
const MAX_NAME: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// An image reference: registry, repository, and a tag, a digest or both.
/// `alpine` means `docker.io/library/alpine:latest`, as Docker has it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: String,
}

impl Reference {
    /// Returns the registry as in the reference (`docker.io`, `localhost:5000`, …).
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository within the registry (`library/alpine`).
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, if there is one.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns registry and repository, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry(), self.repository())
    }

    /// Returns the same repository with this digest, without a tag.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Returns the last segment of `/v2/<repository>/manifests/<key>`: the digest if there is one,
    /// else the tag.
    #[must_use]
    pub fn manifest_key(&self) -> String {
        match self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or(DEFAULT_TAG).to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = |reason: String| ReferenceError {
            text: text.to_owned(),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse::<Digest>();
                (rest, Some(digest.map_err(|e| error(e.to_string()))?))
            }
            None => (text, None),
        };
        // A colon before a slash begins a port.
        let tagged = rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
        let (name, tag) = match tagged {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        if !is_name(name) || !tag.is_none_or(is_tag) {
            return Err(error("invalid reference format".to_owned()));
        }
        let (registry, repository) = split_name(name);
        // The grammar takes `Upper/name` for registry and repository.
        if repository.contains(|c: char| c.is_ascii_uppercase()) {
            return Err(error(format!(
                "the name of repository {repository:?} is not in lower case"
            )));
        }
        if repository.len() > MAX_NAME {
            return Err(error(format!(
                "the name of the repository has {} characters; at most {MAX_NAME} are allowed",
                repository.len()
            )));
        }
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG),
            _ => tag,
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.map(ToOwned::to_owned),
            digest,
        })
    }
}

/// Splits a name into registry and repository.
fn split_name(name: &str) -> (&str, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    match registry {
        DOCKER_HUB | DOCKER_HUB_INDEX if !repository.contains('/') => {
            (DOCKER_HUB, format!("{OFFICIAL}/{repository}"))
        }
        DOCKER_HUB_INDEX => (DOCKER_HUB, repository.to_owned()),
        _ => (registry, repository.to_owned()),
    }
}

/// Components that slashes separate; the first may be a domain if others follow.
fn is_name(name: &str) -> bool {
    match name.split_once('/') {
        Some((first, rest)) => {
            (is_domain(first) || is_component(first)) && rest.split('/').all(is_component)
        }
        None => is_component(name),
    }
}

/// Host name or IPv4 address, with a port or without.
fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(inner)
    };
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    is_port && host.split('.').all(is_label)
}

/// Lower-case letters and digits, with separators between them: one dot, one or two underscores, or hyphens.
fn is_component(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator =
        |between: &str| matches!(between, "." | "_" | "__") || between.bytes().all(|b| b == b'-');
    text.starts_with(inner) && text.ends_with(inner) && text.split(inner).all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text
            .bytes()
            .all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_what_docker_means() {
        let r: Reference = "alpine".parse().unwrap();
        assert_eq!(r.to_string(), "docker.io/library/alpine:latest");
        assert_eq!(
            (r.registry(), r.repository()),
            ("docker.io", "library/alpine")
        );
        let r: Reference = "localhost:5000/a/b:c".parse().unwrap();
        assert_eq!(
            (r.registry(), r.repository(), r.tag()),
            ("localhost:5000", "a/b", Some("c"))
        );
        assert_eq!(r.manifest_key(), "c");
        let digest = Digest::of(b"x");
        assert_eq!(
            r.at(digest).to_string(),
            format!("localhost:5000/a/b@{digest}")
        );
        for bad in [
            "",
            "a/UPPER",
            "UPPER/a",
            "a:t\u{111}g",
            "a b",
            "a@sha256:zz",
            ":tag",
            "a:",
            "a:-tag",
            "a:b:c",
            "a//b",
            "a/",
            "/a",
            "a___b",
            "a..b",
            "a.-b",
            "-a",
            "a-",
            "host:/a",
            "host:port/a",
            "-host.example/a",
            "host..example/a",
            "[::1]:5000/a",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        let with_tag = |length| format!("a:{}", "t".repeat(length)).parse::<Reference>();
        assert!(with_tag(MAX_TAG).is_ok() && with_tag(MAX_TAG + 1).is_err());
        let named = |length| format!("h.example/{}", "n".repeat(length)).parse::<Reference>();
        assert!(named(MAX_NAME).is_ok() && named(MAX_NAME + 1).is_err());
    }

    #[test]
    fn registry_repository_tag_and_digest_are_split_as_docker_does() {
        let digest = Digest::of(b"x");
        for (text, whole) in [
            ("index.docker.io/alpine:3", "docker.io/library/alpine:3"),
            ("index.docker.io/me/app", "docker.io/me/app:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("test.example:5000", "docker.io/library/test.example:5000"),
            ("a/b.c/d__e:T_1.x-y", "docker.io/a/b.c/d__e:T_1.x-y"),
            ("foo_bar.example/a--b", "foo_bar.example/a--b:latest"),
            ("Host.Example:443/a", "Host.Example:443/a:latest"),
            ("10.0.0.1:5000/a/b", "10.0.0.1:5000/a/b:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), whole);
            let r: Reference = format!("{whole}@{digest}").parse().unwrap();
            assert_eq!(r.to_string(), format!("{whole}@{digest}"));
            assert_eq!((r.digest(), r.tag().is_some()), (Some(digest), true));
        }
        let r: Reference = format!("a@{digest}").parse().unwrap();
        assert_eq!((r.tag(), r.manifest_key()), (None, digest.to_string()));
    }
}

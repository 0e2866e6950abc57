//! Image references in Docker's form, with `oci-spec`'s parser.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference as Parsed;

use crate::Digest;

/// An image reference: registry, repository, and a tag, a digest or both.
/// `alpine` means `docker.io/library/alpine:latest`, as Docker has it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    parsed: Parsed,
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
        self.parsed.registry()
    }

    /// Returns the repository within the registry (`library/alpine`).
    #[must_use]
    pub fn repository(&self) -> &str {
        self.parsed.repository()
    }

    /// Returns the tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.parsed.tag()
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
            parsed: Parsed::with_digest(
                self.registry().to_owned(),
                self.repository().to_owned(),
                digest.to_string(),
            ),
            digest: Some(digest),
        }
    }

    /// Returns the last segment of `/v2/<repository>/manifests/<key>`: the digest if there is one,
    /// else the tag.
    #[must_use]
    pub fn manifest_key(&self) -> String {
        match self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or("latest").to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.parsed, f)
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
        // The parser's `\w` takes letters of any script; the grammar of references has ASCII only.
        if !text.is_ascii() {
            return Err(error("invalid reference format".to_owned()));
        }
        let parsed: Parsed = text.parse().map_err(|e| error(format!("{e}")))?;
        // The parser takes `Upper/name` for a repository of Docker Hub, whose name no registry takes.
        if parsed
            .repository()
            .contains(|c: char| c.is_ascii_uppercase())
        {
            return Err(error(format!(
                "the name of repository {:?} is not in lower case",
                parsed.repository()
            )));
        }
        let digest = match parsed.digest() {
            Some(digest) => Some(digest.parse::<Digest>().map_err(|e| error(e.to_string()))?),
            None => None,
        };
        Ok(Self { parsed, digest })
    }
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
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}

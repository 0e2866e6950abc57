//! Platforms: an operating system, an architecture, and their variants.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The platform that an image is for (OCI image spec, `image-index.md`), with Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// The architecture under Go's name: `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// The operating system under Go's name: `linux`, …
    #[serde(default)]
    pub os: String,
    /// The version of the operating system.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Required features of the operating system.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// The variant of the architecture: `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform {0:?} is not of the form OS/ARCH[/VARIANT] (for example linux/amd64)")]
pub struct PlatformError(String);

impl Platform {
    /// Creates a platform in its normal form: `x86_64` is `amd64`, `aarch64` is `arm64`, and default
    /// variants (`arm64/v8`, `amd64/v1`) are left out.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant
            .map(str::to_ascii_lowercase)
            .filter(|v| !v.is_empty());
        let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant) {
            ("x86_64" | "x86-64" | "amd64", variant) => {
                ("amd64".to_owned(), variant.filter(|v| v != "v1"))
            }
            ("aarch64" | "arm64", variant) => (
                "arm64".to_owned(),
                variant.filter(|v| v != "8" && v != "v8"),
            ),
            ("armhf", _) => ("arm".to_owned(), Some("v7".to_owned())),
            ("armel", _) => ("arm".to_owned(), Some("v6".to_owned())),
            ("arm", variant) => (
                "arm".to_owned(),
                Some(match variant.as_deref() {
                    None | Some("7") => "v7".to_owned(),
                    Some("5" | "6" | "8") => format!("v{}", variant.unwrap_or_default()),
                    Some(other) => other.to_owned(),
                }),
            ),
            ("i386", _) => ("386".to_owned(), None),
            (other, variant) => (other.to_owned(), variant),
        };
        Self {
            architecture,
            os,
            os_version: None,
            os_features: Vec::new(),
            variant,
        }
    }

    /// Returns the platform that this program runs on.
    #[must_use]
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// Returns whether an image for `other` satisfies a request for this platform.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let [a, b] = [self, other].map(|p| Self::new(&p.os, &p.architecture, p.variant.as_deref()));
        a == b
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(PlatformError(text.to_owned()));
        }
        match parts.as_slice() {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_compared_by_meaning() {
        let parse = |text: &str| text.parse::<Platform>().unwrap();
        assert_eq!(parse("linux/x86_64"), parse("linux/amd64"));
        assert_eq!(parse("linux/arm64/v8").to_string(), "linux/arm64");
        assert_eq!(parse("linux/arm").to_string(), "linux/arm/v7");
        assert!(parse("linux/arm64").matches(&Platform {
            variant: Some("v8".into()),
            ..parse("linux/arm64")
        }));
        assert!(!parse("linux/amd64").matches(&parse("linux/arm64")));
        for bad in ["", "linux", "linux/", "a/b/c/d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}

//! What events report.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use soci_oci::{Digest, Reference};

/// Longest name of a registry, repository or tag in bytes.
const MAX_NAME: usize = 512;

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Push {
    /// The registry as in image references.
    pub registry: String,
    /// The repository within the registry.
    pub repository: String,
    /// The tag, if it was pushed with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The manifest; events of Quay do not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// What the registry calls the event: a second one of that name is the same event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
}

impl Push {
    /// Creates a push; checks that the names are those of an image.
    ///
    /// # Errors
    /// They are not.
    pub fn new(
        registry: &str,
        repository: &str,
        tag: Option<&str>,
        digest: Option<Digest>,
    ) -> Result<Self, EventError> {
        let push = Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.filter(|tag| !tag.is_empty()).map(str::to_owned),
            digest,
            event: None,
        };
        let longest = [registry, repository, tag.unwrap_or_default()];
        if longest.iter().any(|name| name.len() > MAX_NAME) {
            return Err(EventError::new(format!(
                "a name in it is longer than {MAX_NAME} bytes"
            )));
        }
        let name = push.tagged_name();
        let parsed: Result<Reference, _> = name.parse();
        match parsed {
            Ok(reference)
                if reference.registry() == registry
                    && reference.repository() == repository
                    && reference.digest().is_none() =>
            {
                Ok(push)
            }
            Ok(_) => Err(EventError::new(format!(
                "{name:?} is not the name of an image with its registry"
            ))),
            Err(error) => Err(EventError::new(error.to_string())),
        }
    }

    /// The same with the name of the event.
    #[must_use]
    pub(crate) fn of_event(mut self, event: Option<&str>) -> Self {
        self.event = event
            .filter(|event| !event.is_empty() && event.len() <= MAX_NAME)
            .map(str::to_owned);
        self
    }

    /// Returns `registry/repository:tag`, or `registry/repository` without a tag.
    #[must_use]
    pub fn tagged_name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}/{}:{tag}", self.registry, self.repository),
            None => format!("{}/{}", self.registry, self.repository),
        }
    }

    /// Returns `repository:tag`, which filters are about.
    #[must_use]
    pub fn in_registry(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{tag}", self.repository),
            None => self.repository.clone(),
        }
    }
}

impl std::fmt::Display for Push {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.tagged_name())?;
        match self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// One thing that an event reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// An image was pushed.
    Push(Push),
    /// Something that is not the push of an image.
    Other(String),
}

/// Why an event cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the event: {reason}")]
pub struct EventError {
    reason: String,
}

impl EventError {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

/// Reads an event; an error names the field.
pub(super) fn read_event<T: DeserializeOwned>(event: Value) -> Result<T, EventError> {
    serde_path_to_error::deserialize(event).map_err(|error| EventError::new(error.to_string()))
}

/// Reads the part of an event in the field `of`; an error names the field.
pub(super) fn read_in<T: DeserializeOwned>(of: &str, part: Value) -> Result<T, EventError> {
    serde_path_to_error::deserialize(part)
        .map_err(|error| EventError::new(format!("{of}: {error}")))
}

/// A digest, which an event must spell correctly.
pub(super) fn digest(text: &str) -> Result<Digest, EventError> {
    text.parse()
        .map_err(|_| EventError::new(format!("{text:?} is not a digest")))
}

//! The two requests to the API server: list the secrets, and watch them from that version on.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::access::{Access, Login};
use crate::error::{ApiDefect, KeychainError};

/// Selects the type of secrets.
const SELECTOR: &str = "type=kubernetes.io/dockerconfigjson";
/// The key in such a secret.
const KEY: &str = ".dockerconfigjson";
/// Secrets per response.
const PAGE: &str = "500";
/// Seconds after which the server ends a watch; the next one continues from its version.
const WATCH_SECONDS: &str = "300";
/// Largest response, in bytes: 500 secrets of at most 1 MiB, most of them far smaller.
const MAX_RESPONSE: usize = 64 << 20;

/// A secret: namespace and name, and the Docker configuration in it, if it has one. No `Debug`.
pub(super) struct Secret {
    pub(super) name: String,
    pub(super) docker_config: Option<Vec<u8>>,
}

/// An event of a watch.
pub(super) enum Change {
    /// A secret was added or changed.
    Set(Secret),
    /// A secret was removed.
    Removed(String),
    /// Nothing changed up to the version of the event.
    Nothing,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Option<Vec<Object>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    r#continue: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Object {
    metadata: ObjectMetadata,
    data: Option<BTreeMap<String, String>>,
    /// The code of a status, which an error event carries instead of a secret.
    code: Option<u16>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ObjectMetadata {
    name: String,
    namespace: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Object,
}

impl Object {
    fn name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    fn secret(&self) -> Secret {
        let encoded = self.data.as_ref().and_then(|data| data.get(KEY));
        Secret {
            name: self.name(),
            docker_config: encoded.and_then(|text| STANDARD.decode(text).ok()),
        }
    }
}

impl Access {
    /// Lists all secrets, with the version of the cluster that the list shows.
    pub(super) async fn list(&self) -> Result<(Vec<Secret>, String), KeychainError> {
        let mut secrets = Vec::new();
        let mut from = String::new();
        loop {
            let mut query = vec![("fieldSelector", SELECTOR), ("limit", PAGE)];
            if !from.is_empty() {
                query.push(("continue", &from));
            }
            let answer = self.get(&query).await?;
            let bytes = self.whole(answer).await?;
            let list: List = self.parse(&bytes)?;
            secrets.extend(list.items.iter().flatten().map(Object::secret));
            from = list.metadata.r#continue;
            if from.is_empty() {
                return Ok((secrets, list.metadata.resource_version));
            }
        }
    }

    /// Follows the changes after `version`, which is kept up to date, until the server ends the watch.
    /// Returns false if the version is too old: everything has to be listed again.
    pub(super) async fn watch(
        &self,
        version: &mut String,
        mut notify: impl FnMut(Change),
    ) -> Result<bool, KeychainError> {
        let query = [
            ("fieldSelector", SELECTOR),
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", WATCH_SECONDS),
            ("resourceVersion", version),
        ];
        let answer = match self.get(&query).await {
            Err(KeychainError::Refused { status: 410, .. }) => return Ok(false),
            answer => answer?,
        };
        let mut stream = answer.bytes_stream();
        let mut rest = BytesMut::new();
        while let Some(piece) = stream.next().await {
            rest.extend_from_slice(&piece.map_err(|source| self.failed(source))?);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end.saturating_add(1));
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let event: Event = self.parse(&line)?;
                match event.r#type.as_str() {
                    "ADDED" | "MODIFIED" => notify(Change::Set(event.object.secret())),
                    "DELETED" => notify(Change::Removed(event.object.name())),
                    "ERROR" if event.object.code == Some(410) => return Ok(false),
                    "ERROR" => {
                        return Err(KeychainError::Refused {
                            server: self.server.to_string(),
                            status: event.object.code.unwrap_or_default(),
                        });
                    }
                    _ => notify(Change::Nothing),
                }
                if !event.object.metadata.resource_version.is_empty() {
                    version.clone_from(&event.object.metadata.resource_version);
                }
            }
            if rest.len() > MAX_RESPONSE {
                return Err(self.invalid(ApiDefect::LargeEvent));
            }
        }
        Ok(true)
    }

    async fn get(&self, query: &[(&str, &str)]) -> Result<Response, KeychainError> {
        let mut url = self
            .server
            .join("api/v1/secrets")
            .map_err(|_| self.invalid(ApiDefect::Url))?;
        url.query_pairs_mut().extend_pairs(query);
        let request = self.client.request(Method::GET, url);
        let answer = self
            .logged_in(request)
            .await?
            .header("Accept", "application/json")
            .send()
            .await
            .map_err(|source| self.failed(source))?;
        match answer.status().as_u16() {
            200 => Ok(answer),
            status => Err(KeychainError::Refused {
                server: self.server.to_string(),
                status,
            }),
        }
    }

    async fn logged_in(&self, request: RequestBuilder) -> Result<RequestBuilder, KeychainError> {
        Ok(match &self.login {
            Login::None => request,
            Login::Token(token) => request.bearer_auth(token),
            Login::Basic { user, password } => request.basic_auth(user, Some(password)),
            Login::TokenFile(path) => {
                let token = tokio::fs::read_to_string(path).await.map_err(|source| {
                    KeychainError::File {
                        path: path.clone(),
                        source,
                    }
                })?;
                request.bearer_auth(token.trim())
            }
        })
    }

    async fn whole(&self, answer: Response) -> Result<BytesMut, KeychainError> {
        let mut stream = answer.bytes_stream();
        let mut whole = BytesMut::new();
        while let Some(piece) = stream.next().await {
            whole.extend_from_slice(&piece.map_err(|source| self.failed(source))?);
            if whole.len() > MAX_RESPONSE {
                return Err(self.invalid(ApiDefect::LargeList));
            }
        }
        Ok(whole)
    }

    /// Parses a response. The message of the parser is dropped: it may quote a secret.
    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, KeychainError> {
        serde_json::from_slice(bytes).map_err(|_| self.invalid(ApiDefect::NotAnObject))
    }

    fn invalid(&self, source: ApiDefect) -> KeychainError {
        KeychainError::Answer {
            server: self.server.to_string(),
            source,
        }
    }

    fn failed(&self, source: reqwest::Error) -> KeychainError {
        KeychainError::Request {
            server: self.server.to_string(),
            source: source.without_url(),
        }
    }
}

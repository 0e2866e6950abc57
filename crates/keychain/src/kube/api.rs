//! The two requests to the API server: list the secrets, and watch them from there on.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::access::{Access, Login};
use crate::KeychainError;

/// The type of secrets that is asked for.
const SELECTOR: &str = "type=kubernetes.io/dockerconfigjson";
/// The key in such a secret.
const KEY: &str = ".dockerconfigjson";
/// Secrets in one answer.
const PAGE: &str = "500";
/// The server ends a watch after this many seconds; the next one goes on where it ended.
const WATCH_SECONDS: &str = "300";
/// One answer of a list: 500 secrets of at most 1 MiB, most of them far smaller.
const MOST: usize = 64 << 20;

/// A secret: its name with its namespace, and the Docker configuration in it, if it has one.
/// Holds secrets: no `Debug`.
pub(super) struct Secret {
    pub(super) name: String,
    pub(super) docker_config: Option<Vec<u8>>,
}

/// What a watch tells.
pub(super) enum Change {
    /// It is there, or has changed.
    Set(Secret),
    Removed(String),
    /// Nothing changed up to the version that came along.
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
    /// Of a status, which an error event carries instead of a secret.
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
    /// All secrets, and the version of the cluster that the list is of.
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

    /// Follows the changes after a version until the server ends the watch; `version` is kept up
    /// to date. `Ok(false)`: the version is too old, everything has to be listed again.
    pub(super) async fn watch(
        &self,
        version: &mut String,
        mut seen: impl FnMut(Change),
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
                    "ADDED" | "MODIFIED" => seen(Change::Set(event.object.secret())),
                    "DELETED" => seen(Change::Removed(event.object.name())),
                    "ERROR" if event.object.code == Some(410) => return Ok(false),
                    "ERROR" => {
                        return Err(KeychainError::Refused {
                            server: self.server.to_string(),
                            status: event.object.code.unwrap_or_default(),
                        });
                    }
                    _ => seen(Change::Nothing),
                }
                if !event.object.metadata.resource_version.is_empty() {
                    version.clone_from(&event.object.metadata.resource_version);
                }
            }
            if rest.len() > MOST {
                return Err(self.wrong("an event of a watch has no end"));
            }
        }
        Ok(true)
    }

    async fn get(&self, query: &[(&str, &str)]) -> Result<Response, KeychainError> {
        let mut url = self
            .server
            .join("api/v1/secrets")
            .map_err(|_| self.wrong("its URL cannot be used"))?;
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
            if whole.len() > MOST {
                return Err(self.wrong("the list of secrets is larger than 64 MiB"));
            }
        }
        Ok(whole)
    }

    /// The parser's message may quote a secret.
    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, KeychainError> {
        serde_json::from_slice(bytes).map_err(|_| self.wrong("the answer is none of Kubernetes"))
    }

    fn wrong(&self, reason: &str) -> KeychainError {
        KeychainError::Answer {
            server: self.server.to_string(),
            reason: reason.to_owned(),
        }
    }

    fn failed(&self, source: reqwest::Error) -> KeychainError {
        KeychainError::Request {
            server: self.server.to_string(),
            source: source.without_url(),
        }
    }
}

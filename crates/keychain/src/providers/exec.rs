//! One run of a credential provider plugin: a request on its standard input, a response on its
//! standard output (`credentialprovider.kubelet.k8s.io`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use soci_registry::{Credential, ProgramLimits, go_duration, run_credential_program};
use tokio::process::Command;

use super::config::Provider;
use super::error::{CredentialProviderError, ResponseDefect};

/// Largest response in bytes.
const MAX_RESPONSE: usize = 1 << 20;

/// For what a response counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum CacheKey {
    Image,
    Registry,
    Global,
}

/// The credentials of a response, by the images that they are for. No `Debug`.
#[derive(Clone)]
pub(super) struct Response {
    pub(super) key: CacheKey,
    /// `None`: the provider's default.
    pub(super) keep_for: Option<Duration>,
    pub(super) auth: Vec<(String, Credential)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Printed {
    kind: String,
    api_version: String,
    cache_key_type: CacheKey,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Runs the program, without a shell, for one image.
pub(super) async fn run(
    folder: &Path,
    provider: &Provider,
    image: &str,
    limit: Duration,
) -> Result<Response, CredentialProviderError> {
    let program = folder.join(&provider.name);
    let request = serde_json::json!({
        "apiVersion": provider.api_version,
        "kind": "CredentialProviderRequest",
        "image": image,
    });
    let mut command = Command::new(&program);
    command
        .args(&provider.args)
        .envs(provider.env.iter().map(|(name, value)| (name, value)));
    let limits = ProgramLimits {
        time: limit,
        output: MAX_RESPONSE,
    };
    let request = request.to_string();
    let run = run_credential_program(command, Some(request.as_bytes()), limits).await;
    let image = || image.to_owned();
    match run {
        Err(source) => Err(CredentialProviderError::Program { program, source }),
        Ok((status, _)) if !status.success() => Err(CredentialProviderError::Failed {
            program,
            status,
            image: image(),
        }),
        Ok((_, printed)) => parse_response(&printed, &provider.api_version).map_err(|source| {
            CredentialProviderError::Response {
                program,
                source,
                image: image(),
            }
        }),
    }
}

/// Parses what a program printed.
pub(super) fn parse_response(
    printed: &[u8],
    api_version: &str,
) -> Result<Response, ResponseDefect> {
    let printed: Printed = serde_json::from_slice(printed).map_err(|_| ResponseDefect::Syntax)?;
    if printed.kind != "CredentialProviderResponse" || printed.api_version != api_version {
        return Err(ResponseDefect::OtherKind);
    }
    let keep_for = match printed.cache_duration.as_deref() {
        None => None,
        Some(text) => Some(go_duration(text).ok_or(ResponseDefect::CacheDuration)?),
    };
    let auth = printed.auth.into_iter().flatten();
    Ok(Response {
        key: printed.cache_key_type,
        keep_for,
        auth: auth
            .map(|(pattern, auth)| {
                let credential = Credential::Basic {
                    user: auth.username,
                    password: auth.password,
                };
                (pattern, credential)
            })
            .collect(),
    })
}

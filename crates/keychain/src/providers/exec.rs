//! One run of a credential provider plugin: a request on its standard input, a response on its
//! standard output (`credentialprovider.kubelet.k8s.io`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use soci_registry::{Credential, go_duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::config::Provider;

/// Largest response in bytes.
const MAX_RESPONSE: u64 = 1 << 20;

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

/// A failed run.
#[derive(Debug)]
pub(super) struct ExecFailure {
    /// Does not quote the program's output, which may hold a secret.
    pub(super) reason: String,
    /// Whether other images would fail as well.
    pub(super) of_all_images: bool,
}

/// Runs the program, without a shell, for one image.
pub(super) async fn run(
    folder: &Path,
    provider: &Provider,
    image: &str,
    limit: Duration,
) -> Result<Response, ExecFailure> {
    let program = folder.join(&provider.name);
    let failed = |of_all_images: bool, what: String| ExecFailure {
        reason: format!("credential provider {} {what}", program.display()),
        of_all_images,
    };
    let request = serde_json::json!({
        "apiVersion": provider.api_version,
        "kind": "CredentialProviderRequest",
        "image": image,
    });
    let mut child = Command::new(&program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(true, format!("cannot be started: {error}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        let ask = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read it says so by its status.
                let _ = stdin.write_all(request.to_string().as_bytes()).await;
            }
        };
        let mut printed = Vec::new();
        let listen = async {
            if let Some(stdout) = stdout {
                let _ = stdout
                    .take(MAX_RESPONSE + 1)
                    .read_to_end(&mut printed)
                    .await;
            }
        };
        tokio::join!(ask, listen);
        if printed.len() as u64 > MAX_RESPONSE {
            return (None, printed);
        }
        (Some(child.wait().await), printed)
    };
    let (status, printed) = tokio::time::timeout(limit, talk).await.map_err(|_| {
        failed(
            true,
            format!("did not end within {} s", limit.as_secs_f32()),
        )
    })?;
    match status {
        None => {
            return Err(failed(
                false,
                format!("printed more than {MAX_RESPONSE} bytes"),
            ));
        }
        Some(Err(error)) => return Err(failed(true, error.to_string())),
        Some(Ok(status)) if !status.success() => {
            return Err(failed(false, format!("failed ({status}) for {image}")));
        }
        Some(Ok(_)) => {}
    }
    parse_response(&printed, &provider.api_version)
        .map_err(|what| failed(false, format!("printed {what} for {image}")))
}

/// Parses what a program printed. The error names what was printed instead, without quoting it.
pub(super) fn parse_response(printed: &[u8], api_version: &str) -> Result<Response, &'static str> {
    let printed: Printed =
        serde_json::from_slice(printed).map_err(|_| "no CredentialProviderResponse")?;
    if printed.kind != "CredentialProviderResponse" || printed.api_version != api_version {
        return Err("a response of another kind or version");
    }
    let keep_for = match printed.cache_duration.as_deref() {
        None => None,
        Some(text) => Some(go_duration(text).ok_or("a wrong cacheDuration")?),
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

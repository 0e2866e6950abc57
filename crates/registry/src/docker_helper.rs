//! Docker's credential helpers: programs named `docker-credential-<name>` that read a server from
//! their standard input and print JSON.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::{Credential, CredentialError};

/// Longest run of a helper, which may ask a cloud API.
const LIMIT: Duration = Duration::from_secs(30);
/// Largest output in bytes.
const MAX_ANSWER: u64 = 256 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Runs the helper `name` for the credential of `server`; `None` if it has none.
pub(crate) async fn get(name: &str, server: &str) -> Result<Option<Credential>, CredentialError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(fine) {
        return Err(CredentialError::new(format!(
            "{name:?} is not the name of a credential helper"
        )));
    }
    run(
        Path::new(&format!("docker-credential-{name}")),
        server,
        LIMIT,
    )
    .await
}

async fn run(
    program: &Path,
    server: &str,
    limit: Duration,
) -> Result<Option<Credential>, CredentialError> {
    let shown = program.display();
    let failed = |what: &str| CredentialError::new(format!("credential helper {shown} {what}"));
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&format!("cannot be started: {error}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(mut stdin) = stdin {
            // A helper that does not read its input reports that by its status.
            let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(MAX_ANSWER).read_to_end(&mut answer).await;
        }
        (child.wait().await, answer)
    };
    let (status, answer) = tokio::time::timeout(limit, talk)
        .await
        .map_err(|_| failed(&format!("did not answer within {} s", limit.as_secs_f32())))?;
    let status = status.map_err(|error| failed(&error.to_string()))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        // The text that docker-credential-helpers define for a missing credential.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(&format!("failed with {status}")));
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| failed("did not print valid JSON"))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        ("<token>", secret) => Some(Credential::IdentityToken(secret)),
        (user, secret) => Some(Credential::Basic {
            user: user.to_owned(),
            password: secret,
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn with_script(
        body: &str,
        limit: Duration,
    ) -> Result<Option<Credential>, CredentialError> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        loop {
            let result = run(&program, "r.example", limit).await;
            // Another test's fork may hold the script open for writing for a moment (ETXTBSY).
            match &result {
                Err(error) if error.to_string().contains("os error 26") => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                _ => return result,
            }
        }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn helpers_receive_the_server_and_answer_in_json() {
        let answer = r#"read s; echo "{\"Username\":\"$1-$s\",\"Secret\":\"pw\"}""#;
        assert_eq!(
            with_script(answer, LONG).await,
            Ok(Some(Credential::Basic {
                user: "get-r.example".to_owned(),
                password: "pw".to_owned()
            }))
        );
        let token = r#"echo '{"Username":"<token>","Secret":"id"}'"#;
        assert_eq!(
            with_script(token, LONG).await,
            Ok(Some(Credential::IdentityToken("id".to_owned())))
        );
        let none = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(with_script(none, LONG).await, Ok(None));
    }

    #[tokio::test]
    async fn failures_of_helpers_are_errors_without_their_output() {
        for body in ["echo hunter2; exit 1", "echo hunter2"] {
            let error = with_script(body, LONG).await.unwrap_err().to_string();
            assert!(error.contains("docker-credential-test"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = with_script("exec sleep 600", Duration::from_millis(200)).await;
        assert!(error.unwrap_err().to_string().contains("did not answer"));
        assert!(get("../evil", "r").await.is_err());
        assert!(get("there-is-no-such-helper", "r").await.is_err());
    }
}

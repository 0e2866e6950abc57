//! Docker's credential helpers: programs named `docker-credential-<name>` that read a server from
//! their standard input and print JSON.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use crate::{Credential, DockerConfigError, ProgramFailure, ProgramLimits, run_credential_program};

/// Longest run of a helper, which may ask a cloud API.
const LIMIT: Duration = Duration::from_secs(30);
/// Largest output in bytes.
const MAX_ANSWER: usize = 256 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Runs the helper `name` for the credential of `server`; `None` if it has none.
pub(crate) async fn get(name: &str, server: &str) -> Result<Option<Credential>, DockerConfigError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(fine) {
        return Err(DockerConfigError::HelperName(name.to_owned()));
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
) -> Result<Option<Credential>, DockerConfigError> {
    let failed = |failure: ProgramFailure| match failure {
        ProgramFailure::TimedOut(after) => DockerConfigError::HelperTimedOut {
            program: program.to_owned(),
            after,
        },
        source => DockerConfigError::Helper {
            program: program.to_owned(),
            source,
        },
    };
    let mut command = Command::new(program);
    command.arg("get");
    let limits = ProgramLimits {
        time: limit,
        output: MAX_ANSWER,
    };
    let input = format!("{server}\n");
    let (status, answer) = run_credential_program(command, Some(input.as_bytes()), limits)
        .await
        .map_err(failed)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        // The text that docker-credential-helpers define for a missing credential.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(ProgramFailure::Failed(status)));
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| DockerConfigError::HelperOutput {
            program: program.to_owned(),
        })?;
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
    ) -> Result<Option<Credential>, DockerConfigError> {
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

    /// Only ends a test that hangs.
    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn helpers_receive_the_server_and_answer_in_json() {
        let answer = r#"read s; echo "{\"Username\":\"$1-$s\",\"Secret\":\"pw\"}""#;
        assert_eq!(
            with_script(answer, LONG).await.unwrap(),
            Some(Credential::Basic {
                user: "get-r.example".to_owned(),
                password: "pw".to_owned()
            })
        );
        let token = r#"echo '{"Username":"<token>","Secret":"id"}'"#;
        assert_eq!(
            with_script(token, LONG).await.unwrap(),
            Some(Credential::IdentityToken("id".to_owned()))
        );
        let none = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(with_script(none, LONG).await.unwrap(), None);
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

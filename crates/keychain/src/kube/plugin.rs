//! Credential programs of a kubeconfig (`users[].user.exec`, `client.authentication.k8s.io`): cloud
//! clusters issue tokens that way.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::kubeconfig::Exec;
use crate::KeychainError;

/// Longest run of such a program, which may ask a cloud API but not a user.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The output of such a program. Holds secrets: no `Debug`.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ExecCredential {
    pub(super) token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

#[derive(Deserialize)]
struct Printed {
    #[serde(default)]
    status: ExecCredential,
}

impl ExecCredential {
    /// Returns certificate and key for TLS, as PEM.
    pub(super) fn identity(&self) -> Option<Vec<u8>> {
        let (certificate, key) = self
            .client_certificate_data
            .as_ref()
            .zip(self.client_key_data.as_ref())?;
        Some(format!("{certificate}\n{key}").into_bytes())
    }
}

/// Runs the program, without a shell.
pub(super) async fn run(exec: &Exec) -> Result<ExecCredential, KeychainError> {
    let failed = |reason: String| KeychainError::Plugin {
        command: exec.command.clone(),
        reason,
    };
    let information = serde_json::json!({
        "apiVersion": exec.api_version,
        "kind": "ExecCredential",
        "spec": { "interactive": false },
    });
    let variables = exec.env.iter().flatten();
    let running = Command::new(&exec.command)
        .args(exec.args.iter().flatten())
        .envs(variables.map(|variable| (&variable.name, &variable.value)))
        .env("KUBERNETES_EXEC_INFO", information.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(TIMEOUT, running)
        .await
        .map_err(|_| failed(format!("did not end within {} s", TIMEOUT.as_secs())))?
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    if !output.status.success() {
        return Err(failed(format!("failed ({})", output.status)));
    }
    // The output is not quoted: it may hold a secret.
    serde_json::from_slice::<Printed>(&output.stdout)
        .map(|printed| printed.status)
        .map_err(|_| failed("printed no ExecCredential".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Exec {
        Exec {
            api_version: "client.authentication.k8s.io/v1".to_owned(),
            command: "sh".to_owned(),
            args: Some(vec!["-c".to_owned(), script.to_owned()]),
            env: None,
        }
    }

    #[tokio::test]
    async fn a_program_receives_the_scope_and_prints_a_token() {
        let script = r#"case "$KUBERNETES_EXEC_INFO" in *'"interactive":false'*) ;; *) exit 1;; esac
            echo '{"kind":"ExecCredential","status":{"token":"t"}}'"#;
        let credential = run(&shell(script)).await.unwrap();
        assert_eq!(credential.token.as_deref(), Some("t"));
        assert_eq!(credential.identity(), None);
    }

    #[tokio::test]
    async fn a_program_that_fails_is_named_and_what_it_printed_is_not() {
        for script in ["echo hunter2; exit 3", "echo hunter2"] {
            let error = run(&shell(script)).await.err().unwrap().to_string();
            assert!(error.contains("\"sh\""), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

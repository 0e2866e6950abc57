//! Credential programs of a kubeconfig (`users[].user.exec`, `client.authentication.k8s.io`): cloud
//! clusters issue tokens that way.

use std::time::Duration;

use serde::Deserialize;
use soci_registry::{ProgramFailure, ProgramLimits, run_credential_program};
use tokio::process::Command;

use super::kubeconfig::Exec;
use crate::KeychainError;

/// Such a program may ask a cloud API, but not a user; it prints a token, or a certificate and a key.
const LIMITS: ProgramLimits = ProgramLimits {
    time: Duration::from_secs(60),
    output: 1 << 20,
};

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
    let failed = |source| KeychainError::Plugin {
        command: exec.command.clone(),
        source,
    };
    let information = serde_json::json!({
        "apiVersion": exec.api_version,
        "kind": "ExecCredential",
        "spec": { "interactive": false },
    });
    let variables = exec.env.iter().flatten();
    let mut command = Command::new(&exec.command);
    command
        .args(exec.args.iter().flatten())
        .envs(variables.map(|variable| (&variable.name, &variable.value)))
        .env("KUBERNETES_EXEC_INFO", information.to_string());
    let (status, printed) = run_credential_program(command, None, LIMITS)
        .await
        .map_err(failed)?;
    if !status.success() {
        return Err(failed(ProgramFailure::Failed(status)));
    }
    // The parser's error is left out: it may quote a secret.
    serde_json::from_slice::<Printed>(&printed)
        .map(|printed| printed.status)
        .map_err(|_| KeychainError::PluginOutput {
            command: exec.command.clone(),
        })
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

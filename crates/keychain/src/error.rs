//! Why credentials of a cluster cannot be had. No message holds a secret.

use std::io;
use std::path::PathBuf;

/// What went wrong on the way to the secrets of a cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeychainError {
    /// There is no configuration yet.
    #[error(
        "no kubeconfig at {}, and this is no pod with a service account; \
         set [kubeconfig_keychain] kubeconfig_path", .path.display()
    )]
    NoConfiguration {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A kubeconfig says something that cannot be.
    #[error("kubeconfig {}: {reason}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong, without quoting it.
        reason: String,
    },
    /// The program that a kubeconfig names for its credentials failed.
    #[error("the credential program {command:?} of the kubeconfig {reason}")]
    Plugin {
        /// The program.
        command: String,
        /// What happened.
        reason: String,
    },
    /// The API server cannot be reached, or the answer breaks off.
    #[error("API server {server}: {source}")]
    Request {
        /// Its URL.
        server: String,
        /// The cause.
        source: reqwest::Error,
    },
    /// The API server refuses.
    #[error("API server {server} answers {status} for secrets{}", advice(*.status))]
    Refused {
        /// Its URL.
        server: String,
        /// The HTTP status.
        status: u16,
    },
    /// The API server's answer is not what Kubernetes answers.
    #[error("API server {server}: {reason}")]
    Answer {
        /// Its URL.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn advice(status: u16) -> &'static str {
    match status {
        401 => "; the credentials of the kubeconfig are not accepted",
        403 => {
            "; the user of the kubeconfig must be allowed to list and watch secrets in all namespaces"
        }
        _ => "",
    }
}

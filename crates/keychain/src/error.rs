//! The error of reading the secrets of a cluster. No message holds a secret.

use std::io;
use std::path::PathBuf;

use soci_registry::ProgramFailure;

/// Why the secrets of a cluster cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeychainError {
    /// There is no configuration yet.
    #[error(
        "no kubeconfig at {}, and not in a pod with a service account; \
         set [kubeconfig_keychain] kubeconfig_path", .path.display()
    )]
    NoConfiguration {
        /// The file that does not exist.
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
    /// A kubeconfig is invalid.
    #[error("kubeconfig {}: {reason}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The defect, without quoting the file.
        reason: String,
    },
    /// The program that a kubeconfig names for its credentials failed.
    #[error("the credential program {command:?} of the kubeconfig {source}")]
    Plugin {
        /// The program.
        command: String,
        /// The failure.
        source: ProgramFailure,
    },
    /// The program that a kubeconfig names for its credentials printed something else.
    #[error("the credential program {command:?} of the kubeconfig printed no ExecCredential")]
    PluginOutput {
        /// The program.
        command: String,
    },
    /// The API server cannot be reached, or the response breaks off.
    #[error("API server {server}: {source}")]
    Request {
        /// Its URL.
        server: String,
        /// The cause.
        source: reqwest::Error,
    },
    /// The API server responds with an error status.
    #[error("API server {server} responds with {status} to a request for secrets{}", advice(*.status))]
    Refused {
        /// Its URL.
        server: String,
        /// The HTTP status.
        status: u16,
    },
    /// The response of the API server is invalid.
    #[error("API server {server}: {reason}")]
    Answer {
        /// Its URL.
        server: String,
        /// The defect.
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

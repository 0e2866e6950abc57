//! The error of reading the secrets of a cluster. No message holds a secret.

use std::io;
use std::path::PathBuf;

use soci_registry::ProgramFailure;
use soci_task::Interrupted;

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
    #[error("kubeconfig {}: {source}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The defect.
        source: KubeconfigDefect,
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
    #[error("API server {server}: {source}")]
    Answer {
        /// Its URL.
        server: String,
        /// The defect.
        source: ApiDefect,
    },
    /// A file could not be read because the program ends.
    #[error("cannot read the configuration of the cluster")]
    Interrupted(#[from] Interrupted),
}

/// A defect of a kubeconfig. Nothing of the file is quoted except the names of its parts: the messages
/// of parsers may quote a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeconfigDefect {
    /// The YAML is invalid, or a field has another type.
    #[error("error at line {line}, column {column}")]
    Syntax {
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
    },
    /// The YAML is invalid, at an unknown position.
    #[error("not valid YAML of a kubeconfig")]
    NotYaml,
    /// It does not say which context is used.
    #[error("it has no current-context")]
    NoCurrentContext,
    /// The current context is not defined.
    #[error("its current-context {0:?} is not among its contexts")]
    UnknownContext(String),
    /// The cluster of the context is not defined.
    #[error("it has no cluster {0:?}")]
    UnknownCluster(String),
    /// A cluster does not say where its API server is.
    #[error("its cluster {0:?} has no server")]
    NoServer(String),
    /// The user of the context is not defined.
    #[error("it has no user {0:?}")]
    UnknownUser(String),
    /// The value of a field is not base64.
    #[error("{0} is not base64")]
    NotBase64(&'static str),
    /// The server is not a URL.
    #[error("the server is not a URL")]
    ServerUrl(#[source] url::ParseError),
    /// The server has another scheme.
    #[error("the server is not an https URL")]
    ServerScheme,
    /// The certificate authority cannot be used.
    #[error("its certificate authority is not a PEM certificate")]
    Authority,
    /// The client's certificate cannot be used.
    #[error("its client certificate and key are not PEM")]
    Identity,
    /// The proxy is not a URL.
    #[error("its proxy-url is not a URL")]
    ProxyUrl,
}

/// A defect of what an API server sent. Nothing of it is quoted: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiDefect {
    /// The list of secrets exceeds the limit.
    #[error("the list of secrets is larger than 64 MiB")]
    LargeList,
    /// An event of a watch exceeds the limit.
    #[error("an event of a watch is larger than 64 MiB")]
    LargeEvent,
    /// The response is not JSON of the expected form.
    #[error("the response is not a Kubernetes object")]
    NotAnObject,
    /// The path of the request cannot be appended to the URL.
    #[error("its URL cannot be used")]
    Url,
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

//! Settings of the client. The defaults are those of the section `[http]` of the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::HostHeaders;

/// Settings of a [`crate::Client`].
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The `User-Agent` header.
    pub user_agent: String,
    /// When and how often a failed request is retried.
    pub retries: RetryPolicy,
    /// The same for parts of layers that readers wait for; `None` is the same.
    pub span_retries: Option<RetryPolicy>,
    /// Longest wait for a connection.
    pub dial_timeout: Duration,
    /// Longest wait for the head of a response after the request was sent. Each piece of an upload
    /// that is sent restarts it.
    pub response_header_timeout: Duration,
    /// Longest wait for the next bytes of a body.
    pub idle_timeout: Duration,
    /// Longest time for a whole request. It does not cut off streamed blobs that make progress.
    pub request_timeout: Duration,
    /// Mirrors by registry name.
    pub hosts: HostsConfig,
    /// Folders with registry configuration as containerd has it, for registries without an entry in
    /// `hosts`.
    pub hosts_dirs: Vec<PathBuf>,
    /// Locations of registries that are not at their name, by name.
    pub origins: BTreeMap<String, Origin>,
    /// Whether plain HTTP is used for the registry itself.
    pub plain_http: bool,
    /// TLS settings of hosts that have none of their own.
    pub tls: Arc<TlsSettings>,
    /// Whether a registry or mirror with TLS may redirect to a host without.
    pub plain_http_redirects: bool,
    /// Longest time without progress for the retries of what a pull waits for: a manifest, an index, a
    /// list, a blob that is read into memory. `None` is the retry budget.
    pub document_patience: Option<Duration>,
    /// Largest manifest in bytes.
    pub max_manifest_size: u64,
    /// Largest blob, in bytes, that is read into memory as a whole.
    pub max_blob_in_memory: u64,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            user_agent: concat!("soci-rs/", env!("CARGO_PKG_VERSION")).to_owned(),
            retries: RetryPolicy::default(),
            span_retries: None,
            dial_timeout: Duration::from_secs(3),
            response_header_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(300),
            hosts: HostsConfig::new(),
            hosts_dirs: Vec::new(),
            origins: BTreeMap::new(),
            plain_http: false,
            tls: Arc::default(),
            plain_http_redirects: false,
            document_patience: None,
            max_manifest_size: 8 << 20,
            max_blob_in_memory: 1 << 30,
        }
    }
}

/// When and how often a failed request is retried: exponential backoff with full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Most retries after the first attempt.
    pub max_retries: u32,
    /// Shortest wait.
    pub min_wait: Duration,
    /// Longest wait, also for `Retry-After`.
    pub max_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: 8,
            min_wait: Duration::from_millis(30),
            max_wait: Duration::from_secs(300),
        }
    }
}

/// Mirrors by the name of the mirrored registry (`docker.io`, `host:port`), in the order in which
/// they are tried.
pub type HostsConfig = BTreeMap<String, Vec<Mirror>>;

/// A server that is tried before the registry itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// A URL whose path replaces `/v2`, or a bare host name.
    pub host: String,
    /// Whether plain HTTP is used instead of TLS.
    pub insecure: bool,
    /// Longest time for a whole request to this mirror, instead of the general one.
    pub request_timeout: Option<Duration>,
    /// Headers of every request to it.
    pub headers: HostHeaders,
}

/// Location of a registry itself. Uploads go there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// A URL with the scheme to use and a path that replaces `/v2`.
    pub url: url::Url,
    /// Headers of every request to it.
    pub headers: HostHeaders,
}

/// How the certificates of servers are verified, and what a server sees of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// Whether certificates are not verified.
    pub skip_verify: bool,
    /// Additional certificate authorities, PEM.
    pub extra_ca: Vec<Vec<u8>>,
    /// Client certificate.
    pub identity: Option<ClientIdentity>,
}

impl TlsSettings {
    /// Returns a number that differs for different settings.
    pub(crate) fn id(&self) -> u64 {
        if !self.skip_verify && self.extra_ca.is_empty() && self.identity.is_none() {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// A client certificate with its key, PEM. `Debug` does not show the key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClientIdentity {
    /// The certificate chain followed by the private key.
    pub pem: Vec<u8>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity(…)")
    }
}

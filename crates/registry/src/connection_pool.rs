//! Connection pools by kind of connection, and their TLS settings.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use url::Url;

use crate::dial_clock::ObserveDial;
use crate::endpoint::{Endpoint, is_loopback};
use crate::reach::{GuardedResolver, Proxies, Reach};
use crate::tls_verifier::{authorities, client_config};
use crate::{
    AuthorityDefect, ClientCertificateDefect, ClientConfig, Misconfiguration, RegistryError,
    TlsSettings,
};

/// Most pools of a client; a client with more registries with settings of their own starts over.
const MAX_POOLS: usize = 256;

/// Bytes that may wait in one HTTP/2 response until they are read: a fast link over 30 ms has as many
/// under way.
const STREAM_WINDOW: u32 = 4 << 20;
/// Bytes that may wait in all responses of a connection, the most that HTTP/2 allows: responses that are
/// not read for now, each with its own window full, must leave room for one that is.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// What pools differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PoolKey {
    kind: PoolKind,
    /// Which addresses it connects to.
    reach: Reach,
    /// The TLS settings, by [`TlsSettings::id`].
    tls: u64,
    dial_timeout: Duration,
}

/// How the connections of a pool are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum PoolKind {
    /// Plain HTTP, never through a proxy.
    PlainDirect,
    /// Plain HTTP, through a proxy if the environment has one.
    Plain,
    /// TLS, never through a proxy.
    TlsDirect,
    /// TLS, through a proxy if the environment has one.
    Tls,
}

/// The pools of a client. Each is built when first used: TLS roots take time and memory, and a
/// machine without any must still reach its local registry.
#[derive(Default)]
pub(crate) struct ConnectionPools {
    pools: Mutex<HashMap<PoolKey, Result<reqwest::Client, RegistryError>>>,
    proxies: Proxies,
}

impl ConnectionPools {
    /// Whether requests for `url` go through a proxy.
    pub(crate) fn uses_proxy(&self, url: &Url) -> bool {
        !(url.scheme() == "http" && is_loopback(url)) && self.proxies.serve(url)
    }

    /// Returns the pool for connections to the host of `url`, which `reach` allows.
    pub(crate) fn for_url(
        &self,
        url: &Url,
        endpoint: &Endpoint,
        reach: Reach,
        config: &ClientConfig,
    ) -> Result<reqwest::Client, RegistryError> {
        let proxied = self.uses_proxy(url);
        let plain = url.scheme() == "http";
        // Only addresses that this process resolves can be checked; a proxy's own is configured.
        let reach = if proxied { Reach::Anywhere } else { reach };
        let key = PoolKey {
            kind: match (plain, proxied || reach == Reach::Anywhere) {
                (true, _) if is_loopback(url) => PoolKind::PlainDirect,
                (true, true) => PoolKind::Plain,
                (true, false) => PoolKind::PlainDirect,
                (false, true) => PoolKind::Tls,
                (false, false) => PoolKind::TlsDirect,
            },
            reach,
            tls: if plain { 0 } else { endpoint.tls.id() },
            dial_timeout: endpoint.dial_timeout,
        };
        let mut pools = self.pools.lock();
        if pools.len() >= MAX_POOLS && !pools.contains_key(&key) {
            pools.clear();
        }
        pools
            .entry(key)
            .or_insert_with(|| build(key, &endpoint.tls, config))
            .clone()
    }
}

fn build(
    key: PoolKey,
    tls: &TlsSettings,
    config: &ClientConfig,
) -> Result<reqwest::Client, RegistryError> {
    crate::p521::install_cryptography();
    let mut builder = reqwest::Client::builder()
        .user_agent(&config.user_agent)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(key.dial_timeout)
        .connector_layer(ObserveDial)
        .dns_resolver(Arc::new(GuardedResolver(key.reach)))
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30));
    if matches!(key.kind, PoolKind::PlainDirect | PoolKind::TlsDirect) {
        builder = builder.no_proxy();
    }
    match key.kind {
        // No certificates: these pools never use TLS.
        PoolKind::PlainDirect | PoolKind::Plain => builder.tls_certs_only([]),
        PoolKind::TlsDirect | PoolKind::Tls => with_tls(builder, tls)?,
    }
    .build()
    .map_err(|error| Misconfiguration::Http(Arc::new(error.without_url())).into())
}

fn with_tls(
    builder: reqwest::ClientBuilder,
    tls: &TlsSettings,
) -> Result<reqwest::ClientBuilder, RegistryError> {
    // The keep-alive notices a connection that died silently before request after request is sent over
    // it.
    let builder = builder
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .http2_keep_alive_timeout(Duration::from_secs(10));
    if !tls.skip_verify {
        return Ok(builder.tls_backend_preconfigured(client_config(tls)?));
    }
    let builder = builder.tls_danger_accept_invalid_certs(true);
    let Some(identity) = &tls.identity else {
        return Ok(builder);
    };
    let identity = reqwest::Identity::from_pem(&identity.pem).map_err(|error| {
        let defect = ClientCertificateDefect::Http(Arc::new(error.without_url()));
        Misconfiguration::ClientCertificate(defect)
    })?;
    Ok(builder.identity(identity))
}

/// Checks that a file of certificate authorities is one.
pub(crate) fn check_authorities(pem: &[u8]) -> Result<(), AuthorityDefect> {
    authorities(pem).map(|_| ())
}

//! Connection pools by kind of connection, and their TLS settings.

use std::error::Error;
use std::sync::OnceLock;
use std::time::Duration;

use soci_errors::chain;
use url::Url;

use crate::endpoint::is_loopback;
use crate::{ClientConfig, RegistryError};

/// Pools that differ in how they connect.
#[derive(Debug, Clone, Copy)]
enum PoolKind {
    /// Plain HTTP to this machine: never through a proxy.
    Loopback,
    /// Plain HTTP.
    Plain,
    /// TLS.
    Tls,
}

/// The pools of a client. Each is built when first used: TLS roots take time and memory, and a
/// machine without any must still reach its local registry.
#[derive(Default)]
pub(crate) struct ConnectionPools {
    loopback: OnceLock<Result<reqwest::Client, RegistryError>>,
    plain: OnceLock<Result<reqwest::Client, RegistryError>>,
    tls: OnceLock<Result<reqwest::Client, RegistryError>>,
}

impl ConnectionPools {
    /// Returns the pool for connections to the host of `url`.
    pub(crate) fn for_url(
        &self,
        url: &Url,
        config: &ClientConfig,
    ) -> Result<&reqwest::Client, RegistryError> {
        let (cell, kind) = match url.scheme() {
            "http" if is_loopback(url) => (&self.loopback, PoolKind::Loopback),
            "http" => (&self.plain, PoolKind::Plain),
            _ => (&self.tls, PoolKind::Tls),
        };
        cell.get_or_init(|| build(kind, config))
            .as_ref()
            .map_err(Clone::clone)
    }
}

fn build(kind: PoolKind, config: &ClientConfig) -> Result<reqwest::Client, RegistryError> {
    // Fails only when a provider is installed already, which then is the one to use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .user_agent(&config.user_agent)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(config.dial_timeout)
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30));
    match kind {
        // No certificates: these pools never use TLS.
        PoolKind::Loopback => builder.tls_certs_only([]).no_proxy(),
        PoolKind::Plain => builder.tls_certs_only([]),
        PoolKind::Tls => with_tls(builder, config)?,
    }
    .build()
    .map_err(|error| refused("cannot set up HTTP and TLS", &error.without_url()))
}

fn with_tls(
    builder: reqwest::ClientBuilder,
    config: &ClientConfig,
) -> Result<reqwest::ClientBuilder, RegistryError> {
    // h2's default windows hold a fast link back. The keep-alive notices a connection that died
    // silently before request after request is sent over it.
    let mut builder = builder
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .tls_danger_accept_invalid_certs(config.skip_verify);
    let mut authorities = Vec::new();
    for pem in &config.extra_ca {
        let found = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|error| refused("certificate authority", &error))?;
        if found.is_empty() {
            return Err(RegistryError::Config(
                "certificate authority: the file holds no certificate in PEM".to_owned(),
            ));
        }
        authorities.extend(found);
    }
    if !authorities.is_empty() {
        builder = builder.tls_certs_merge(authorities);
    }
    if let Some(identity) = &config.identity {
        let identity = reqwest::Identity::from_pem(&identity.pem)
            .map_err(|error| refused("client certificate", &error))?;
        builder = builder.identity(identity);
    }
    Ok(builder)
}

fn refused(what: &str, error: &(dyn Error + 'static)) -> RegistryError {
    RegistryError::Config(format!("{what}: {}", chain(error)))
}

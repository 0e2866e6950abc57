//! The endpoints of a registry: its mirrors and its origin, as base URLs.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::connection_pool::check_authorities;
use crate::{
    ClientConfig, ClientIdentity, HostHeaders, Mirror, Misconfiguration, RegistryError,
    RegistryHost, RegistryHosts, TlsSettings,
};

/// The capabilities of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capabilities {
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) push: bool,
}

impl Capabilities {
    const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
    const MIRROR: Self = Self {
        push: false,
        ..Self::ALL
    };

    /// Whether they include what is needed.
    pub(crate) const fn include(self, need: Need) -> bool {
        match need {
            Need::Pull => self.pull,
            Need::Resolve => self.resolve,
        }
    }
}

/// What a read needs of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Content that a digest verifies.
    Pull,
    /// To be believed which content belongs to a name.
    Resolve,
}

/// One server of a registry.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// The URL that replaces `/v2`, without a slash at its end.
    base: Url,
    /// The host by which credentials are looked up.
    pub(crate) credential_host: String,
    /// The registry name that a mirror receives (containerd's `?ns=`); `None` for an origin.
    namespace: Option<String>,
    /// Whether it is asked before the registry itself.
    mirror: bool,
    /// Whether a manifest named it: it never gets credentials.
    foreign: bool,
    /// Whether plain HTTP was chosen because the host is a loopback address, not by configuration.
    assumed_plain: bool,
    /// Its capabilities.
    pub(crate) capabilities: Capabilities,
    /// Longest time for a whole request.
    pub(crate) request_timeout: Duration,
    /// Longest wait for a connection.
    pub(crate) dial_timeout: Duration,
    /// TLS settings for this server and those that it redirects to.
    pub(crate) tls: Arc<TlsSettings>,
    /// Headers of every request to this server, and to no other.
    pub(crate) headers: HostHeaders,
}

impl Endpoint {
    /// Returns `<base>/<repository>/<segments…>`; each segment is percent-encoded.
    pub(crate) fn url(&self, repository: &str, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            path.extend(repository.split('/'));
            path.extend(segments);
        }
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether this endpoint serves the URL, and may see our credentials and its headers.
    pub(crate) fn owns(&self, url: &Url) -> bool {
        !self.foreign && self.base.origin() == url.origin()
    }

    /// The server of a URL that a manifest names, asked before the registry.
    pub(crate) fn foreign(config: &ClientConfig, url: &Url) -> Self {
        Self {
            base: url.clone(),
            credential_host: authority(url),
            namespace: None,
            mirror: true,
            foreign: true,
            assumed_plain: false,
            capabilities: Capabilities::MIRROR,
            request_timeout: config.request_timeout,
            dial_timeout: config.dial_timeout,
            tls: Arc::clone(&config.tls),
            headers: HostHeaders::default(),
        }
    }

    /// The same server with TLS, if plain HTTP is only assumed of it.
    pub(crate) fn with_tls(&self) -> Option<Self> {
        if !self.assumed_plain {
            return None;
        }
        // Parsed again, since the default port differs.
        let rest = self.base.as_str().strip_prefix("http://")?;
        let port = self.base.port_or_known_default()?;
        let mut base = Url::parse(&format!("https://{rest}")).ok()?;
        base.set_port(Some(port)).ok()?;
        Some(Self {
            base,
            assumed_plain: false,
            ..self.clone()
        })
    }

    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    pub(crate) const fn is_mirror(&self) -> bool {
        self.mirror
    }

    /// Whether a manifest named the server.
    pub(crate) const fn is_foreign(&self) -> bool {
        self.foreign
    }
}

/// Lists the endpoints of a registry: its mirrors in order, then the registry itself.
pub(crate) fn endpoints(
    config: &ClientConfig,
    registry: &str,
) -> Result<Vec<Endpoint>, RegistryError> {
    let mut all = Vec::new();
    for mirror in config.hosts.get(registry).into_iter().flatten() {
        all.push(mirror_endpoint(config, registry, mirror)?);
    }
    all.push(origin(config, registry)?);
    Ok(all)
}

/// Returns the registry itself, which receives uploads.
pub(crate) fn origin(config: &ClientConfig, registry: &str) -> Result<Endpoint, RegistryError> {
    if let Some(origin) = config.origins.get(registry) {
        return Ok(Endpoint {
            base: moved(&origin.url).ok_or_else(|| bad_host("registry", registry))?,
            credential_host: registry.to_owned(),
            namespace: None,
            mirror: false,
            foreign: false,
            assumed_plain: false,
            capabilities: Capabilities::ALL,
            request_timeout: config.request_timeout,
            dial_timeout: config.dial_timeout,
            tls: Arc::clone(&config.tls),
            headers: origin.headers.clone(),
        });
    }
    // Docker's own registry is not served at the name that image references use.
    let host = match registry {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    };
    let base =
        base_url(host, "/v2", config.plain_http).ok_or_else(|| bad_host("registry", registry))?;
    Ok(Endpoint {
        assumed_plain: base.scheme() == "http" && !config.plain_http,
        base,
        credential_host: registry.to_owned(),
        namespace: None,
        mirror: false,
        foreign: false,
        capabilities: Capabilities::ALL,
        request_timeout: config.request_timeout,
        dial_timeout: config.dial_timeout,
        tls: Arc::clone(&config.tls),
        headers: HostHeaders::default(),
    })
}

/// Returns the base URL of an origin at another location, without a slash at its end.
fn moved(url: &Url) -> Option<Url> {
    if !matches!(url.scheme(), "http" | "https")
        || !url.username().is_empty()
        || url.query().is_some()
    {
        return None;
    }
    let mut base = url.clone();
    let path = url.path().trim_end_matches('/');
    base.set_path(if path.is_empty() { "/v2" } else { path });
    Some(base)
}

fn mirror_endpoint(
    config: &ClientConfig,
    registry: &str,
    mirror: &Mirror,
) -> Result<Endpoint, RegistryError> {
    let bad = || bad_host("mirror", &mirror.host);
    let (scheme, rest) = match mirror.host.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, mirror.host.as_str()),
    };
    // `insecure` decides, as in v0.15, and without it an `https://` that is written out.
    let secure = match scheme {
        None | Some("http") => false,
        Some("https") => !mirror.insecure,
        Some(_) => return Err(bad()),
    };
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let path = match path.trim_end_matches('/') {
        "" => "/v2",
        path => path,
    };
    Ok(Endpoint {
        base: if secure {
            Url::parse(&format!("https://{host}{path}"))
                .ok()
                .filter(|_| is_plain_host(host))
        } else {
            base_url(host, path, mirror.insecure)
        }
        .ok_or_else(bad)?,
        credential_host: host.to_owned(),
        namespace: Some(registry.to_owned()),
        mirror: true,
        foreign: false,
        assumed_plain: false,
        capabilities: Capabilities::MIRROR,
        request_timeout: mirror.request_timeout.unwrap_or(config.request_timeout),
        dial_timeout: config.dial_timeout,
        tls: Arc::clone(&config.tls),
        headers: mirror.headers.clone(),
    })
}

/// Lists the endpoints that a `hosts.toml` gives a registry; the last is the registry itself.
pub(crate) fn from_hosts_file(
    config: &ClientConfig,
    registry: &str,
    hosts: &RegistryHosts,
) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
    let own = origin(config, registry)?;
    let last = hosts.hosts.len().saturating_sub(1);
    let mut all = Vec::new();
    for (position, host) in hosts.hosts.iter().enumerate() {
        let base = match &host.url {
            Some(url) => moved(url).ok_or_else(|| bad_host("host", url.as_str()))?,
            None => own.base.clone(),
        };
        let is_origin = position == last;
        // As containerd: a server with another name learns which registry is meant.
        let (name, host_name) = (authority(&own.base), authority(&base));
        let credential_host = if is_origin || name == host_name {
            registry.to_owned()
        } else {
            host_name.clone()
        };
        all.push(Arc::new(Endpoint {
            namespace: (name != host_name).then(|| registry.to_owned()),
            base,
            credential_host,
            mirror: !is_origin,
            foreign: false,
            assumed_plain: false,
            capabilities: Capabilities {
                pull: host.pull,
                resolve: host.resolve,
                push: host.push,
            },
            request_timeout: config.request_timeout,
            dial_timeout: host.dial_timeout.unwrap_or(config.dial_timeout),
            tls: tls_of(config, host)?,
            headers: host.headers.clone(),
        }));
    }
    Ok(all)
}

/// Host and port of a URL.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The TLS settings of a host: those of the client with its own.
fn tls_of(config: &ClientConfig, host: &RegistryHost) -> Result<Arc<TlsSettings>, RegistryError> {
    if !host.skip_verify && host.ca.is_empty() && host.client.is_none() {
        return Ok(Arc::clone(&config.tls));
    }
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| {
            let (path, source) = (path.to_owned(), Arc::new(error));
            RegistryError::from(Misconfiguration::File { path, source })
        })
    };
    let mut tls = TlsSettings::clone(&config.tls);
    tls.skip_verify |= host.skip_verify;
    for path in &host.ca {
        let pem = read(path)?;
        check_authorities(&pem).map_err(|source| {
            let path = path.clone();
            Misconfiguration::AuthorityFile { path, source }
        })?;
        tls.extra_ca.push(pem);
    }
    if let (None, Some((certificate, key))) = (&tls.identity, &host.client) {
        let mut pem = read(certificate)?;
        if certificate != key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        tls.identity = Some(ClientIdentity { pem });
    }
    Ok(Arc::new(tls))
}

fn bad_host(what: &'static str, host: &str) -> RegistryError {
    // A host may have been written with a password in it.
    let host = host.rsplit('@').next().unwrap_or_default().to_owned();
    Misconfiguration::Host { what, host }.into()
}

fn is_plain_host(host: &str) -> bool {
    !host.is_empty() && !host.contains(['@', '?', '#'])
}

fn base_url(host: &str, path: &str, insecure: bool) -> Option<Url> {
    if !is_plain_host(host) {
        return None;
    }
    let url = Url::parse(&format!("https://{host}{path}")).ok()?;
    if insecure || is_loopback(&url) {
        // Parsed again, since the default port differs.
        return Url::parse(&format!("http://{host}{path}")).ok();
    }
    Some(url)
}

/// Whether the host is `localhost`, in `127.0.0.0/8`, or `::1`.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(url::Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(config: &ClientConfig, registry: &str) -> Vec<String> {
        endpoints(config, registry)
            .unwrap()
            .iter()
            .map(|e| e.base.to_string())
            .collect()
    }

    #[test]
    fn names_lead_where_docker_leads_them() {
        let config = ClientConfig::default();
        for (name, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("ghcr.io", "https://ghcr.io/v2"),
            ("host.example:8443", "https://host.example:8443/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.8.0.1", "http://127.8.0.1/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
        ] {
            assert_eq!(bases(&config, name), [base]);
        }
        let plain = ClientConfig {
            plain_http: true,
            ..ClientConfig::default()
        };
        assert_eq!(bases(&plain, "r.example:443"), ["http://r.example:443/v2"]);
    }

    #[test]
    fn mirrors_come_first_and_their_path_replaces_v2() {
        let mirror = |host: &str, insecure| Mirror {
            host: host.to_owned(),
            insecure,
            request_timeout: None,
            headers: HostHeaders::default(),
        };
        let mut config = ClientConfig::default();
        config.hosts.insert(
            "docker.io".to_owned(),
            vec![
                mirror("https://one.example/cache/v2/", false),
                mirror("two.example:80", true),
                mirror("http://three.example", false),
                mirror("https://127.0.0.1:5001", false),
                mirror("127.0.0.1:5001", false),
                mirror("https://127.0.0.1:5001", true),
            ],
        );
        assert_eq!(
            bases(&config, "docker.io"),
            [
                "https://one.example/cache/v2",
                "http://two.example/v2",
                "https://three.example/v2",
                "https://127.0.0.1:5001/v2",
                "http://127.0.0.1:5001/v2",
                "http://127.0.0.1:5001/v2",
                "https://registry-1.docker.io/v2"
            ]
        );
        let url = endpoints(&config, "docker.io").unwrap()[0].url("a/b", &["manifests", "x?y"]);
        assert_eq!(
            url.as_str(),
            "https://one.example/cache/v2/a/b/manifests/x%3Fy?ns=docker.io"
        );
    }

    #[test]
    fn an_origin_may_be_elsewhere() {
        let mut config = ClientConfig::default();
        let at = |url: &str| crate::Origin {
            url: url.parse().unwrap(),
            headers: HostHeaders::default(),
        };
        for (url, base) in [
            ("https://localhost:5000", "https://localhost:5000/v2"),
            (
                "http://cache.example/v2/hub/",
                "http://cache.example/v2/hub",
            ),
        ] {
            config.origins.insert("docker.io".to_owned(), at(url));
            assert_eq!(bases(&config, "docker.io"), [base]);
        }
        for bad in ["ftp://x.example", "https://me:pw@x.example"] {
            config.origins.insert("docker.io".to_owned(), at(bad));
            assert!(origin(&config, "docker.io").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_mirror_is_refused_without_showing_its_password() {
        let mut config = ClientConfig::default();
        config.hosts.insert(
            "r.example".to_owned(),
            vec![Mirror {
                host: "https://me:hunter2@mirror".to_owned(),
                insecure: false,
                request_timeout: None,
                headers: HostHeaders::default(),
            }],
        );
        let error = endpoints(&config, "r.example").unwrap_err().to_string();
        assert!(
            error.contains("mirror") && !error.contains("hunter2"),
            "{error}"
        );
    }
}

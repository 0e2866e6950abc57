//! The hosts of registries and how they are, for people.

use std::time::Duration;

use crate::endpoint::{Endpoint, endpoints};
use crate::engine::Engine;

/// A registry that a configuration gives hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReport {
    /// Its name, as in image references.
    pub registry: String,
    /// Hosts in the order of the configuration; the last is the registry itself.
    pub hosts: Vec<HostReport>,
    /// Why its `hosts.toml` cannot be used; the hosts are those that it gave before.
    pub error: Option<String>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReport {
    /// The URL that replaces `/v2`.
    pub url: String,
    /// Its capabilities: `pull`, `resolve`, `push`.
    pub capabilities: Vec<&'static str>,
    /// Failures since it last worked.
    pub failures: u32,
    /// Time for which the other hosts are asked first.
    pub asked_last_for: Option<Duration>,
}

/// Lists the registries of `[resolver.host]`, and those whose `hosts.toml` was read, by name.
pub(crate) fn report(engine: &Engine) -> Vec<RegistryReport> {
    let config = engine.config();
    let configured = config.hosts.keys().map(|registry| {
        let hosts = endpoints(config, registry).unwrap_or_default();
        (registry.clone(), hosts, None)
    });
    let mut all: Vec<_> = configured.collect();
    for (registry, hosts, error) in engine.hosts_files().known() {
        let hosts = hosts.iter().map(|host| Endpoint::clone(host)).collect();
        all.push((registry, hosts, error));
    }
    all.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let hosts = |endpoints: Vec<Endpoint>| endpoints.iter().map(|one| host(engine, one)).collect();
    all.into_iter()
        .map(|(registry, endpoints, error)| RegistryReport {
            registry,
            hosts: hosts(endpoints),
            error,
        })
        .collect()
}

fn host(engine: &Engine, endpoint: &Endpoint) -> HostReport {
    let can = &endpoint.capabilities;
    let capabilities = [
        (can.pull, "pull"),
        (can.resolve, "resolve"),
        (can.push, "push"),
    ];
    let health = engine.health.of(endpoint);
    HostReport {
        url: endpoint.base().to_string(),
        capabilities: capabilities
            .into_iter()
            .filter_map(|(can, word)| can.then_some(word))
            .collect(),
        failures: health.map_or(0, |(failures, _)| failures),
        asked_last_for: health.map(|(_, left)| left).filter(|left| !left.is_zero()),
    }
}

//! One registry's `hosts.toml` (containerd, `docs/hosts.md`): its servers, in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::{HeaderError, HostHeaders, go_duration};

/// The servers of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryHosts {
    /// Hosts in the order in which they are asked; the last one is the registry itself.
    pub hosts: Vec<RegistryHost>,
}

/// One server of a registry: a mirror, or the registry itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryHost {
    /// Its URL, whose path replaces `/v2`; `None` where only certificates are given.
    pub url: Option<Url>,
    /// Whether it may be pulled from.
    pub pull: bool,
    /// Whether it may say which manifest a tag is.
    pub resolve: bool,
    /// Whether it may be pushed to.
    pub push: bool,
    /// Whether its TLS certificate is not verified.
    pub skip_verify: bool,
    /// Files of certificate authorities, PEM.
    pub ca: Vec<PathBuf>,
    /// Files of a client's certificate and its key, PEM, which may be one file.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Headers of every request to it.
    pub headers: HostHeaders,
    /// Longest wait for a connection to it.
    pub dial_timeout: Option<Duration>,
}

/// Why a `hosts.toml` is refused. No message repeats the value of a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostsTomlError {
    /// Not TOML, or a key has a value of another type.
    #[error("{0}")]
    Syntax(String),
    /// A host is neither a host name nor an HTTP URL.
    #[error("{0:?} is not a host or URL")]
    Host(String),
    /// `client` lists more than a certificate and its key.
    #[error("host {0:?}: client must be a certificate, or a certificate and its key")]
    Client(String),
    /// `dial_timeout` is not a length of time.
    #[error("host {0:?}: dial_timeout is not a length of time such as \"3s\"")]
    DialTimeout(String),
    /// `header` is not a table.
    #[error("host {0:?}: header is not a table")]
    HeaderTable(String),
    /// A header is neither a string nor a list of strings.
    #[error("host {host:?}: header {header:?} is neither a string nor a list of strings")]
    HeaderType {
        /// The host.
        host: String,
        /// The header's name.
        header: String,
    },
    /// A header cannot be sent.
    #[error("host {host:?}: cannot send header {header:?}: {source}")]
    Header {
        /// The host.
        host: String,
        /// The header's name.
        header: String,
        /// The cause.
        source: HeaderError,
    },
}

// No Debug: headers are secrets.
#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, HostTable>,
    #[serde(flatten)]
    own: HostTable,
}

#[derive(Default, Deserialize)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Clients>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    header: Option<toml::Value>,
    dial_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Many(Vec<OneOrMany>),
}

/// Parses the `hosts.toml` of `registry`; relative paths in it are relative to `folder`.
pub(crate) fn parse(
    text: &str,
    folder: &Path,
    registry: &str,
) -> Result<RegistryHosts, HostsTomlError> {
    // One line: the error's own text shows the file's lines.
    let file: HostsFile = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map(|before| format!("line {}: ", before.matches('\n').count() + 1));
        let message = error.message().replace('\n', " ");
        HostsTomlError::Syntax(line.unwrap_or_default() + &message)
    })?;
    let mut named: Vec<(&String, &HostTable)> = file.host.iter().collect();
    // Hosts are asked in the order of the file, which a map has lost.
    named.sort_by_key(|(name, _)| text.find(&format!("\"{name}\"")).unwrap_or(usize::MAX));
    let mut hosts = Vec::new();
    for (name, table) in named {
        hosts.push(host(name, table, folder)?);
    }
    let server = match file.server.as_deref() {
        Some(server) => server.to_owned(),
        None if matches!(registry, "docker.io" | "index.docker.io") => {
            "registry-1.docker.io".to_owned()
        }
        None => registry.to_owned(),
    };
    hosts.push(host(&server, &file.own, folder)?);
    Ok(RegistryHosts { hosts })
}

fn host(name: &str, table: &HostTable, folder: &Path) -> Result<RegistryHost, HostsTomlError> {
    let with_scheme = if name.contains("://") {
        name.to_owned()
    } else {
        format!("https://{name}")
    };
    let mut url = Url::parse(&with_scheme)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
        .ok_or_else(|| HostsTomlError::Host(name.to_owned()))?;
    let path = url.path().trim_end_matches('/').to_owned();
    if !path.is_empty() && !table.override_path && !path.ends_with("/v2") {
        url.set_path(&format!("{path}/v2"));
    }
    let can = |what: &str| {
        let given = table.capabilities.as_ref();
        given.is_none_or(|all| all.iter().any(|one| one.eq_ignore_ascii_case(what)))
    };
    let at = |path: &String| folder.join(path);
    let client = match &table.client {
        None => None,
        Some(Clients::One(path)) => Some((at(path), at(path))),
        Some(Clients::Many(all)) => match all.first() {
            None => None,
            Some(OneOrMany::One(path)) => Some((at(path), at(path))),
            Some(OneOrMany::Many(pair)) => match pair.as_slice() {
                [certificate] => Some((at(certificate), at(certificate))),
                [certificate, key] => Some((at(certificate), at(key))),
                _ => return Err(HostsTomlError::Client(name.to_owned())),
            },
        },
    };
    Ok(RegistryHost {
        url: Some(url),
        pull: can("pull"),
        resolve: can("resolve"),
        push: can("push"),
        skip_verify: table.skip_verify,
        ca: match &table.ca {
            None => Vec::new(),
            Some(OneOrMany::One(path)) => vec![at(path)],
            Some(OneOrMany::Many(paths)) => paths.iter().map(at).collect(),
        },
        client,
        headers: match &table.header {
            None => HostHeaders::default(),
            Some(given) => headers(name, given, folder)?,
        },
        dial_timeout: match table.dial_timeout.as_deref() {
            None => None,
            Some(text) => Some(
                go_duration(text).ok_or_else(|| HostsTomlError::DialTimeout(name.to_owned()))?,
            ),
        },
    })
}

/// The table `header`: names with a string or a list of strings.
fn headers(host: &str, given: &toml::Value, folder: &Path) -> Result<HostHeaders, HostsTomlError> {
    let host = || host.to_owned();
    let table = given
        .as_table()
        .ok_or_else(|| HostsTomlError::HeaderTable(host()))?;
    let mut headers = HostHeaders::default();
    for (name, value) in table {
        let values: Option<Vec<&str>> = match value {
            toml::Value::String(text) => Some(vec![text]),
            toml::Value::Array(all) => all.iter().map(toml::Value::as_str).collect(),
            _ => None,
        };
        let values = values.ok_or_else(|| HostsTomlError::HeaderType {
            host: host(),
            header: name.clone(),
        })?;
        for value in values {
            match headers.append(name, value) {
                Ok(()) => {}
                Err(reason @ HeaderError::Reserved) => {
                    let file = folder.join("hosts.toml");
                    let file = file.display();
                    tracing::warn!(%file, header = name, %reason, "ignoring reserved header");
                }
                Err(source) => {
                    return Err(HostsTomlError::Header {
                        host: host(),
                        header: name.clone(),
                        source,
                    });
                }
            }
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_in_the_order_of_the_file_and_the_server_comes_last() {
        let text = r#"
server = "https://origin.example"
ca = "own.pem"
[host."http://z-mirror.example:5000"]
  capabilities = ["pull", "resolve"]
[host."a-mirror.example/cache"]
  ca = ["one.pem", "/two.pem"]
  client = [["cert.pem", "key.pem"]]
  skip_verify = true
[host."https://exact.example/registry"]
  override_path = true
"#;
        let found = parse(text, Path::new("/certs"), "origin.example").unwrap();
        let urls: Vec<_> = found
            .hosts
            .iter()
            .map(|host| host.url.as_ref().unwrap().as_str())
            .collect();
        assert_eq!(
            urls,
            [
                "http://z-mirror.example:5000/",
                "https://a-mirror.example/cache/v2",
                "https://exact.example/registry",
                "https://origin.example/"
            ]
        );
        assert!(found.hosts[0].pull && !found.hosts[0].push);
        let second = &found.hosts[1];
        assert!(second.push && second.skip_verify);
        assert_eq!(
            second.ca,
            [PathBuf::from("/certs/one.pem"), "/two.pem".into()]
        );
        assert_eq!(
            second.client,
            Some(("/certs/cert.pem".into(), "/certs/key.pem".into()))
        );
        assert_eq!(found.hosts[3].ca, [PathBuf::from("/certs/own.pem")]);
        assert!(parse("host = 3", Path::new("/"), "x").is_err());
        assert!(parse("server = \"ftp://x\"", Path::new("/"), "x").is_err());
    }

    #[test]
    fn an_error_names_its_line_and_times_are_those_of_go() {
        let text = "server = \"https://x\"\n\n[host.\"https://m\"]\n  capabilities = 3\n";
        let error = parse(text, Path::new("/"), "x").unwrap_err().to_string();
        assert!(error.starts_with("line 4: "), "{error}");
        let error = parse("server = \n", Path::new("/"), "x").unwrap_err();
        assert!(error.to_string().starts_with("line 1: "), "{error}");
        for (text, expected) in [
            ("3s", Some(3_000)),
            ("1m30s", Some(90_000)),
            ("1.5s500ms", Some(2_000)),
            ("", None),
            ("3", None),
            ("s", None),
            ("3d", None),
        ] {
            assert_eq!(
                go_duration(text),
                expected.map(Duration::from_millis),
                "{text}"
            );
        }
        let text = "[host.\"https://m\"]\ndial_timeout = \"200ms\"\n";
        let found = parse(text, Path::new("/"), "x").unwrap();
        assert_eq!(
            found.hosts[0].dial_timeout,
            Some(Duration::from_millis(200))
        );
    }

    #[test]
    fn headers_are_texts_or_lists_of_them_and_are_their_hosts_alone() {
        let text = r#"
[header]
x-own = "origin"
[host."https://mirror.example"]
[host."https://mirror.example".header]
x-key = ["one", "two"]
content-length = "3"
"#;
        let found = parse(text, Path::new("/certs"), "origin.example").unwrap();
        let with = |pairs: &[(&str, &str)]| {
            let mut headers = HostHeaders::default();
            for (name, value) in pairs {
                headers.append(name, value).unwrap();
            }
            headers
        };
        assert_eq!(
            found.hosts[0].headers,
            with(&[("x-key", "one"), ("x-key", "two")])
        );
        assert_eq!(found.hosts[1].headers, with(&[("x-own", "origin")]));
    }

    #[test]
    fn a_header_that_cannot_be_sent_is_named_without_its_value() {
        for (table, expected) in [
            ("header = 'hunter2'", "header is not a table"),
            ("header.x-key = 77231", "\"x-key\" is neither"),
            ("header.x-key = ['hunter2', 77231]", "\"x-key\" is neither"),
            ("header.x-key = { hunter2 = 1 }", "\"x-key\" is neither"),
            (
                "header.x-key = \"hunter2\\n\"",
                "cannot send header \"x-key\"",
            ),
            ("header.'x key' = 'hunter2'", "cannot send header \"x key\""),
        ] {
            let text = format!("[host.'m.example']\n{table}\n");
            let error = parse(&text, Path::new("/"), "r.example").unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("m.example") && error.contains(expected),
                "{error}"
            );
            assert!(
                !error.contains("hunter2") && !error.contains("77231"),
                "{error}"
            );
        }
        // Where the file is no TOML, its lines are not shown either.
        let error = parse("[header]\nx-key = hunter2\n", Path::new("/"), "r.example").unwrap_err();
        assert!(!format!("{error}").contains("hunter2"), "{error}");
    }
}

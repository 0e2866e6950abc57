//! containerd's registry configuration: `<dir>/<registry>/hosts.toml` (containerd, `docs/hosts.md`),
//! and Docker's older form, a folder of certificates.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use soci_registry::{HeaderError, HostHeaders};
use url::Url;

/// The servers of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RegistryHosts {
    /// In the order in which they are asked; the last one is the registry itself.
    pub(crate) hosts: Vec<Host>,
}

/// One server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// Its URL, whose path stands for `/v2`; `None` where only certificates are given.
    pub(crate) url: Option<Url>,
    pub(crate) pull: bool,
    pub(crate) push: bool,
    pub(crate) skip_verify: bool,
    /// Files of certificate authorities.
    pub(crate) ca: Vec<PathBuf>,
    /// Files of a client's certificate and its key, which may be one.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    /// What it gets with every request.
    pub(crate) headers: HostHeaders,
}

// No Debug: headers are secrets.
#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: std::collections::BTreeMap<String, HostTable>,
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

/// What the folders say about a registry; the first that says something counts.
pub(crate) fn look_up(dirs: &[PathBuf], registry: &str) -> anyhow::Result<Option<RegistryHosts>> {
    for dir in dirs {
        for name in folder_names(registry) {
            let folder = dir.join(name);
            match fs::read_to_string(folder.join("hosts.toml")) {
                Ok(text) => {
                    let parsed = parse(&text, &folder, registry);
                    return parsed.map(Some).with_context(|| {
                        format!("{} cannot be used", folder.join("hosts.toml").display())
                    });
                }
                Err(error) if missing(&error) => {}
                Err(error) => {
                    let path = folder.join("hosts.toml");
                    return Err(error).with_context(|| format!("cannot read {}", path.display()));
                }
            }
            if let Some(host) = certificates(&folder)? {
                return Ok(Some(RegistryHosts { hosts: vec![host] }));
            }
        }
    }
    Ok(None)
}

fn missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The folders that may be a registry's, in containerd's order. A colon is no character for a file
/// name everywhere, so that `host:port` may be written `host_port_`.
fn folder_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

fn parse(text: &str, folder: &Path, registry: &str) -> anyhow::Result<RegistryHosts> {
    // One line: the error's own text shows the file's lines.
    let file: HostsFile = toml::from_str(text)
        .map_err(|error| anyhow::anyhow!("{}", error.message().replace('\n', " ")))?;
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

fn host(name: &str, table: &HostTable, folder: &Path) -> anyhow::Result<Host> {
    let with_scheme = if name.contains("://") {
        name.to_owned()
    } else {
        format!("https://{name}")
    };
    let mut url =
        Url::parse(&with_scheme).map_err(|_| anyhow::anyhow!("{name:?} is not a host or URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        bail!("{name:?} is not a host or URL");
    }
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
                _ => bail!("host {name:?}: client is a certificate, or a certificate and its key"),
            },
        },
    };
    Ok(Host {
        url: Some(url),
        pull: can("pull"),
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
            Some(given) => headers(given, folder).with_context(|| format!("host {name:?}"))?,
        },
    })
}

/// The table `header`: names with a text or a list of texts. Messages do not repeat values.
fn headers(given: &toml::Value, folder: &Path) -> anyhow::Result<HostHeaders> {
    let table = given.as_table().context("header is not a table")?;
    let mut headers = HostHeaders::default();
    for (name, value) in table {
        let texts: Option<Vec<&str>> = match value {
            toml::Value::String(text) => Some(vec![text]),
            toml::Value::Array(all) => all.iter().map(toml::Value::as_str).collect(),
            _ => None,
        };
        let texts = texts
            .with_context(|| format!("header {name:?} is neither a text nor a list of texts"))?;
        for text in texts {
            match headers.append(name, text) {
                Ok(()) => {}
                Err(reason @ HeaderError::Reserved) => {
                    let file = folder.join("hosts.toml");
                    let file = file.display();
                    tracing::warn!(%file, header = name, %reason, "a header is not sent");
                }
                Err(reason) => bail!("header {name:?} cannot be sent: {reason}"),
            }
        }
    }
    Ok(headers)
}

/// Docker's form: `*.crt` are authorities, `NAME.cert` and `NAME.key` a client's.
fn certificates(folder: &Path) -> anyhow::Result<Option<Host>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if missing(&error) => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", folder.display()));
        }
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let of_kind = |kind: &str| {
        let kind = kind.to_owned();
        files
            .iter()
            .filter(move |path| path.extension().is_some_and(|e| e == kind.as_str()))
    };
    let ca: Vec<PathBuf> = of_kind("crt").cloned().collect();
    let client = of_kind("cert")
        .map(|certificate| (certificate.clone(), certificate.with_extension("key")))
        .next();
    let found = !ca.is_empty() || client.is_some();
    Ok(found.then_some(Host {
        pull: true,
        push: true,
        ca,
        client,
        ..Host::default()
    }))
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
        for (table, told) in [
            ("header = 'hunter2'", "header is not a table"),
            ("header.x-key = 77231", "\"x-key\" is neither"),
            ("header.x-key = ['hunter2', 77231]", "\"x-key\" is neither"),
            ("header.x-key = { hunter2 = 1 }", "\"x-key\" is neither"),
            ("header.x-key = \"hunter2\\n\"", "\"x-key\" cannot be sent"),
            ("header.'x key' = 'hunter2'", "\"x key\" cannot be sent"),
        ] {
            let text = format!("[host.'m.example']\n{table}\n");
            let error = parse(&text, Path::new("/"), "r.example").unwrap_err();
            let error = format!("{error:#}");
            assert!(
                error.contains("m.example") && error.contains(told),
                "{error}"
            );
            assert!(
                !error.contains("hunter2") && !error.contains("77231"),
                "{error}"
            );
        }
        // Where the file is no TOML, its lines are not shown either.
        let error = parse("[header]\nx-key = hunter2\n", Path::new("/"), "r.example").unwrap_err();
        assert!(!format!("{error:#}").contains("hunter2"), "{error:#}");
    }

    #[test]
    fn the_folder_of_a_registry_is_found_under_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("nowhere"), dir.path().to_owned()];
        let url = |registry: &str| {
            let found = look_up(&dirs, registry).unwrap()?;
            Some(found.hosts.last()?.url.clone()?.to_string())
        };
        assert_eq!(url("r.example:5000"), None);
        for (folder, server) in [
            ("_default", "http://default.example"),
            ("r.example:5000", "http://colon.example"),
            ("r.example_5000_", "http://underscore.example"),
        ] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            let file = dir.path().join(folder).join("hosts.toml");
            fs::write(file, format!("server = \"{server}\"")).unwrap();
            assert_eq!(url("r.example:5000"), Some(format!("{server}/")));
        }
        assert_eq!(
            url("other.example"),
            Some("http://default.example/".to_owned())
        );
    }

    #[test]
    fn a_folder_of_certificates_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("r.example");
        fs::create_dir(&folder).unwrap();
        for name in ["ca.crt", "me.cert", "me.key"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let found = look_up(&[dir.path().to_owned()], "r.example")
            .unwrap()
            .unwrap();
        assert_eq!(found.hosts.len(), 1);
        assert_eq!(found.hosts[0].ca, [folder.join("ca.crt")]);
        assert_eq!(
            found.hosts[0].client,
            Some((folder.join("me.cert"), folder.join("me.key")))
        );
    }
}

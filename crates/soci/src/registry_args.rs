//! The flags about registries, and the client that they describe.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, bail};
use clap::Args;
use soci_oci::Reference;
use soci_registry::{
    ChainedCredentials, Client, ClientConfig, ClientIdentity, Credential, Credentials,
    DockerConfigCredentials, StaticCredentials,
};

use crate::output;

/// Flags about registries.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry options")]
pub(crate) struct RegistryArgs {
    /// Credentials as USER:PASSWORD, or USER with --password-stdin (otherwise those of `docker login` are used)
    ///
    /// Every user of this machine can read a password on a command line: prefer --password-stdin.
    #[arg(short, long, value_name = "USER:PASSWORD")]
    pub(crate) user: Option<UserPassword>,

    /// Read the password of --user from stdin
    #[arg(long, requires = "user")]
    password_stdin: bool,

    #[arg(skip)]
    password: OnceLock<Secret>,

    /// Speak plain HTTP to the registry
    #[arg(long)]
    plain_http: bool,

    /// Do not verify the registry's TLS certificate
    #[arg(short = 'k', long)]
    skip_verify: bool,

    /// Certificate authorities to trust as well, PEM
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,

    /// Client certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tlskey")]
    tlscert: Option<PathBuf>,

    /// Key of the client certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    tlskey: Option<PathBuf>,

    /// Refresh token for the registry's token service, instead of a password
    #[arg(long, value_name = "TOKEN")]
    refresh: Option<Secret>,

    /// Folders with registry configuration as containerd has it (REGISTRY/hosts.toml)
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    hosts_dir: Vec<PathBuf>,

    /// Show the headers of all HTTP requests and answers, without secrets, on stderr
    #[arg(long)]
    http_dump: bool,

    /// Show a line per HTTP request on stderr
    #[arg(long)]
    http_trace: bool,
}

/// No password is longer than this (bytes): tokens are, by far, the longest.
const MAX_PASSWORD: u64 = 64 << 10;

/// A secret. `Debug` shows nothing.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// `USER:PASSWORD`, taken apart only when it is used: a message about a wrong argument would
/// repeat it. `Debug` shows nothing.
#[derive(Clone)]
pub(crate) struct UserPassword(String);

impl fmt::Debug for UserPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserPassword(…)")
    }
}

impl From<String> for UserPassword {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl UserPassword {
    #[cfg(test)]
    pub(crate) fn given(&self) -> &str {
        &self.0
    }

    fn credential(&self) -> anyhow::Result<Credential> {
        match self.0.split_once(':') {
            Some((user, password)) if !user.is_empty() => Ok(Credential::Basic {
                user: user.to_owned(),
                password: password.to_owned(),
            }),
            _ => bail!(
                "the credentials given are not of the form USER:PASSWORD (for --user USER, give \
                 --password-stdin too)"
            ),
        }
    }
}

impl RegistryArgs {
    /// Reads the password if it is on stdin. Returns the log targets that show what the flags request.
    pub(crate) fn prepare(&self) -> anyhow::Result<&'static [&'static str]> {
        let in_arguments = self.user.as_ref().is_some_and(|user| user.0.contains(':'));
        if self.password_stdin {
            if in_arguments {
                bail!("--password-stdin needs --user USER, without a password");
            }
            let mut line = String::new();
            std::io::stdin()
                .take(MAX_PASSWORD)
                .read_to_string(&mut line)
                .context("cannot read the password from stdin")?;
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                bail!("--password-stdin: there is no password on stdin");
            }
            // It is read once.
            let _ = self.password.set(Secret(line.to_owned()));
        } else if in_arguments && output::stderr_is_terminal() {
            output::warning(
                "every user of this machine can read the password on the command line: use \
                 --user USER --password-stdin",
            );
        }
        Ok(self.http_log())
    }

    /// The credentials that `user` stands for. The password on stdin is that of `--user`, and of no other flag.
    fn credential(&self, user: &UserPassword) -> anyhow::Result<Credential> {
        let own = self
            .user
            .as_ref()
            .is_some_and(|own| std::ptr::eq(own, user));
        match self.password.get() {
            Some(Secret(password)) if own => Ok(Credential::Basic {
                user: user.0.clone(),
                password: password.clone(),
            }),
            _ => user.credential(),
        }
    }

    fn http_log(&self) -> &'static [&'static str] {
        match (self.http_dump, self.http_trace) {
            (false, false) => &[],
            (false, true) => &["soci_registry::http"],
            (true, _) => &["soci_registry::http", "soci_registry::http::dump"],
        }
    }

    /// The client for reading from the registry of `reference`; `user` is sent to no other registry.
    pub(crate) fn client(
        &self,
        reference: &Reference,
        user: Option<&UserPassword>,
    ) -> anyhow::Result<Client> {
        self.client_for(reference, user)
    }

    /// The client for writing to the registry of `reference`.
    pub(crate) fn push_client(
        &self,
        reference: &Reference,
        user: Option<&UserPassword>,
    ) -> anyhow::Result<Client> {
        self.client_for(reference, user)
    }

    fn client_for(
        &self,
        reference: &Reference,
        user: Option<&UserPassword>,
    ) -> anyhow::Result<Client> {
        self.client_of(Some(reference.registry()), user, Vec::new())
    }

    /// The client for many registries, with further sources of credentials. What `--user` and `--refresh`
    /// give is for `registry`.
    pub(crate) fn client_with(
        &self,
        registry: Option<&str>,
        sources: Vec<Arc<dyn Credentials>>,
    ) -> anyhow::Result<Client> {
        self.client_of(registry, self.user.as_ref(), sources)
    }

    fn client_of(
        &self,
        registry: Option<&str>,
        user: Option<&UserPassword>,
        mut sources: Vec<Arc<dyn Credentials>>,
    ) -> anyhow::Result<Client> {
        sources.insert(0, Arc::new(DockerConfigCredentials::new()));
        let given = match (user, &self.refresh) {
            (Some(user), _) => Some(self.credential(user)?),
            (None, Some(token)) => Some(Credential::IdentityToken(token.0.clone())),
            (None, None) => None,
        };
        match (given, registry) {
            (None, _) => {}
            (Some(credential), Some(registry)) => {
                sources.insert(0, Arc::new(StaticCredentials::new(registry, credential)));
            }
            (Some(_), None) => {
                bail!("--user and --refresh need the one --registry that they are for")
            }
        }
        let credentials = Arc::new(ChainedCredentials::new(sources));
        let mut config = ClientConfig {
            plain_http: self.plain_http,
            ..ClientConfig::default()
        };
        let tls = Arc::make_mut(&mut config.tls);
        tls.skip_verify = self.skip_verify;
        if let Some(path) = &self.tlscacert {
            tls.extra_ca.push(read(path)?);
        }
        match (&self.tlscert, &self.tlskey) {
            (Some(certificate), Some(key)) => tls.identity = Some(identity(certificate, key)?),
            (None, None) => {}
            _ => bail!("--tlscert and --tlskey belong together"),
        }
        config.hosts_dirs.clone_from(&self.hosts_dir);
        Ok(Client::new(config, credentials)?)
    }
}

fn identity(certificate: &Path, key: &Path) -> anyhow::Result<ClientIdentity> {
    let mut pem = read(certificate)?;
    if certificate != key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    Ok(ClientIdentity { pem })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        registry: RegistryArgs,
    }

    #[test]
    fn the_password_on_stdin_goes_with_no_other_user() {
        let words = ["soci", "--user", "a", "--password-stdin"];
        let arguments = Command::try_parse_from(words).unwrap().registry;
        let read = arguments.password.set(Secret("of a".to_owned()));
        read.unwrap();
        let shown = |credential: Credential| match credential {
            Credential::Basic { user, password } => format!("{user} {password}"),
            other => panic!("{other:?}"),
        };
        let own = arguments.credential(arguments.user.as_ref().unwrap());
        assert_eq!(shown(own.unwrap()), "a of a");
        let other = arguments.credential(&UserPassword("b:of b".to_owned()));
        assert_eq!(shown(other.unwrap()), "b of b");
        for without in ["b", "a"] {
            let other = UserPassword(without.to_owned());
            assert!(arguments.credential(&other).is_err(), "{without}");
        }
    }
}

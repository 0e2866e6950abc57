//! The flags about registries, and the client that they describe.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use oci::Reference;
use registry::{
    ChainedCredentials, Client, ClientConfig, ClientIdentity, Credential, Credentials,
    DockerConfigCredentials, StaticCredentials,
};

/// Flags about registries.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry options")]
pub(crate) struct RegistryArgs {
    /// Credentials as USER:PASSWORD (otherwise those of `docker login` are used)
    #[arg(short, long, value_name = "USER:PASSWORD")]
    pub(crate) user: Option<UserPassword>,

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
            _ => bail!("the credentials given are not of the form USER:PASSWORD"),
        }
    }
}

impl RegistryArgs {
    /// The client for the registry of `reference`; `user` is sent to no other registry.
    pub(crate) fn client(
        &self,
        reference: &Reference,
        user: Option<&UserPassword>,
    ) -> anyhow::Result<Client> {
        let docker: Arc<dyn Credentials> = Arc::new(DockerConfigCredentials::new());
        let credentials = match user {
            None => docker,
            Some(user) => {
                let given = StaticCredentials::new(reference.registry(), user.credential()?);
                Arc::new(ChainedCredentials::new(vec![Arc::new(given), docker]))
            }
        };
        let mut config = ClientConfig {
            plain_http: self.plain_http,
            skip_verify: self.skip_verify,
            ..ClientConfig::default()
        };
        if let Some(path) = &self.tlscacert {
            config.extra_ca.push(read(path)?);
        }
        match (&self.tlscert, &self.tlskey) {
            (Some(certificate), Some(key)) => {
                let mut pem = read(certificate)?;
                pem.push(b'\n');
                pem.extend(read(key)?);
                config.identity = Some(ClientIdentity { pem });
            }
            (None, None) => {}
            _ => bail!("--tlscert and --tlskey belong together"),
        }
        Ok(Client::new(config, credentials)?)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

//! The HTTP client of the API server, from a kubeconfig, the files of `KUBECONFIG`,
//! `~/.kube/config`, or the service account of the pod.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::kubeconfig::{Cluster, Kubeconfig, User};
use super::plugin;
use super::settings::KubeSettings;
use crate::error::{KeychainError, KubeconfigDefect};

/// Folder of a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Longest wait for a connection to the API server.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of the API server, which ends each watch itself before that.
const READ_TIMEOUT: Duration = Duration::from_secs(600);

/// An API server and our login there. Holds secrets: no `Debug`.
pub(super) struct Access {
    pub(super) client: reqwest::Client,
    pub(super) server: Url,
    pub(super) login: Login,
}

/// The configuration that is in force, with the content of its files. Holds secrets: no `Debug`.
enum Configuration {
    File(Box<ContextOfFile>),
    ServiceAccount(Access),
}

/// The current context of a kubeconfig, and the files that it names. Holds secrets: no `Debug`.
struct ContextOfFile {
    path: PathBuf,
    cluster: Cluster,
    user: User,
    authority: Option<Vec<u8>>,
    identity: Option<Vec<u8>>,
}

impl Configuration {
    /// Reads the files of the configuration. Blocks on the disk.
    fn find(settings: &KubeSettings) -> Result<Self, KeychainError> {
        let files = settings.files();
        let mut config: Option<Kubeconfig> = None;
        let mut first = None;
        for file in files.iter().filter(|file| file.exists()) {
            let read = Kubeconfig::read(file)?;
            first.get_or_insert(file);
            match config.as_mut() {
                Some(config) => config.merge(read),
                None => config = Some(read),
            }
        }
        match (config, first) {
            (Some(config), Some(path)) => ContextOfFile::read(path, &config)
                .map(|file| Self::File(Box::new(file)))
                .map_err(in_file(path)),
            _ => match in_cluster(settings) {
                Some(access) => access.map(Self::ServiceAccount),
                None => Err(KeychainError::NoConfiguration {
                    path: files.into_iter().next().unwrap_or_default(),
                }),
            },
        }
    }
}

impl ContextOfFile {
    fn read(path: &Path, config: &Kubeconfig) -> Result<Self, KeychainError> {
        let current = config.current();
        let (cluster, user) = current.map_err(|source| KeychainError::Kubeconfig {
            path: path.to_owned(),
            source,
        })?;
        let identity = user.identity()?;
        let authority = cluster.authority()?;
        Ok(Self {
            path: path.to_owned(),
            cluster,
            user,
            authority,
            identity,
        })
    }
}

/// The authentication of each request.
pub(super) enum Login {
    /// Nothing, or a certificate in TLS.
    None,
    Token(String),
    /// A file whose content is replaced before it expires.
    TokenFile(PathBuf),
    Basic {
        user: String,
        password: String,
    },
}

impl Access {
    /// Reads the current configuration.
    pub(super) async fn find(settings: &KubeSettings) -> Result<Self, KeychainError> {
        let settings = settings.clone();
        let found = soci_task::blocking(move || Configuration::find(&settings)).await?;
        match found {
            Configuration::ServiceAccount(access) => Ok(access),
            Configuration::File(file) => {
                let path = file.path.clone();
                Self::from_file(*file).await.map_err(in_file(&path))
            }
        }
    }

    async fn from_file(file: ContextOfFile) -> Result<Self, KeychainError> {
        let ContextOfFile {
            cluster,
            user,
            authority,
            mut identity,
            ..
        } = file;
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let login = if let Some(token) = given(&user.token) {
            Login::Token(token)
        } else if let Some(file) = &user.token_file {
            Login::TokenFile(file.clone())
        } else if let Some(user_name) = given(&user.username) {
            Login::Basic {
                user: user_name,
                password: user.password.clone().unwrap_or_default(),
            }
        } else if let Some(exec) = &user.exec {
            let credential = plugin::run(exec).await?;
            identity = credential.identity().or(identity);
            credential.token.map_or(Login::None, Login::Token)
        } else {
            Login::None
        };
        Self::new(
            &cluster.server,
            authority,
            identity,
            cluster.insecure_skip_tls_verify,
            cluster.proxy_url.as_deref(),
            login,
        )
    }

    /// Creates a client for the API server at a URL.
    pub(super) fn new(
        server: &str,
        authority: Option<Vec<u8>>,
        identity: Option<Vec<u8>>,
        skip_verify: bool,
        proxy: Option<&str>,
        login: Login,
    ) -> Result<Self, KeychainError> {
        let wrong = |source| KeychainError::Kubeconfig {
            path: PathBuf::new(),
            source,
        };
        let mut base =
            Url::parse(server).map_err(|source| wrong(KubeconfigDefect::ServerUrl(source)))?;
        if !matches!(base.scheme(), "https" | "http") {
            return Err(wrong(KubeconfigDefect::ServerScheme));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let mut builder = reqwest::Client::builder()
            .dns_resolver(Arc::new(soci_registry::resolver()))
            .connect_timeout(DIAL_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tls_danger_accept_invalid_certs(skip_verify);
        if let Some(pem) = authority {
            let authorities = reqwest::Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|authorities| !authorities.is_empty())
                .ok_or_else(|| wrong(KubeconfigDefect::Authority))?;
            builder = builder.tls_certs_only(authorities);
        }
        if let Some(pem) = identity {
            let identity =
                reqwest::Identity::from_pem(&pem).map_err(|_| wrong(KubeconfigDefect::Identity))?;
            builder = builder.identity(identity);
        }
        if let Some(proxy) = proxy.filter(|proxy| !proxy.is_empty()) {
            let proxy =
                reqwest::Proxy::all(proxy).map_err(|_| wrong(KubeconfigDefect::ProxyUrl))?;
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(|source| KeychainError::Request {
            server: base.to_string(),
            source,
        })?;
        Ok(Self {
            client,
            server: base,
            login,
        })
    }
}

/// Returns the access of the service account, in a pod and if no file is configured.
fn in_cluster(settings: &KubeSettings) -> Option<Result<Access, KeychainError>> {
    if settings.kubeconfig.is_some() {
        return None;
    }
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?;
    Some(service_account(&host, &port, Path::new(SERVICE_ACCOUNT)))
}

fn service_account(host: &str, port: &str, folder: &Path) -> Result<Access, KeychainError> {
    let authority = folder.join("ca.crt");
    let pem = std::fs::read(&authority).map_err(|source| KeychainError::File {
        path: authority.clone(),
        source,
    })?;
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    Access::new(
        &format!("https://{host}:{port}"),
        Some(pem),
        None,
        false,
        None,
        // The kubelet replaces it before it expires.
        Login::TokenFile(folder.join("token")),
    )
    .map_err(in_file(&authority))
}

/// Names the file in the error of a defect that is in the file itself.
fn in_file(path: &Path) -> impl FnOnce(KeychainError) -> KeychainError {
    let path = path.to_owned();
    move |error| match error {
        KeychainError::Kubeconfig { source, .. } => KeychainError::Kubeconfig { path, source },
        other => other,
    }
}

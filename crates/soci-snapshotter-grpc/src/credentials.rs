//! The sources of credentials for registries, in the order in which they are asked: Docker's
//! configuration, the secrets of the cluster, the kubelet's pulls.

use std::path::PathBuf;
use std::sync::Arc;

use soci_config::Config;
use soci_holder::Keeper;
use soci_keychain::{CriKeychain, ImageServiceProxy, KubeSecrets, KubeSettings};
use soci_registry::{ChainedCredentials, Credentials, DockerConfigCredentials};

use crate::credential_memfd;

/// Refuses this daemon as the image service behind its own proxy: each call would go round for ever.
pub(crate) fn check(config: &Config, own_address: &str) -> anyhow::Result<()> {
    let cri = &config.cri_keychain;
    let real = cri.image_service_path.trim_start_matches("unix://");
    anyhow::ensure!(
        !cri.enable_keychain || real != own_address.trim_start_matches("unix://"),
        "[cri_keychain] image_service_path = {real:?} is this daemon's own socket; it must be that of the \
         real CRI image service, such as /run/containerd/containerd.sock"
    );
    Ok(())
}

/// The sources that the configuration names.
pub(crate) struct CredentialSources {
    pub(crate) chain: Arc<dyn Credentials>,
    /// To be served on the daemon's socket: it sees the credentials of the kubelet's pulls.
    pub(crate) image_service: Option<ImageServiceProxy>,
}

impl CredentialSources {
    /// Sets up the sources, and starts to follow the cluster's secrets if they are wanted.
    ///
    /// Credentials of the kubelet's pulls are stored with the holder; `stored` are those of an earlier
    /// server.
    pub(crate) fn new(
        config: &Config,
        keeper: Option<&Arc<Keeper>>,
        stored: Option<&[u8]>,
    ) -> Self {
        let mut sources: Vec<Arc<dyn Credentials>> = vec![Arc::new(DockerConfigCredentials::new())];
        let kube = &config.kubeconfig_keychain;
        if kube.enable_keychain {
            let path = &kube.kubeconfig_path;
            sources.push(Arc::new(KubeSecrets::follow(KubeSettings {
                kubeconfig: (!path.is_empty()).then(|| PathBuf::from(path)),
                ..KubeSettings::default()
            })));
        }
        let cri = &config.cri_keychain;
        let mut image_service = None;
        if cri.enable_keychain {
            let seen = match keeper {
                Some(keeper) => {
                    CriKeychain::with_vault(credential_memfd::with_holder(keeper), stored)
                }
                None => CriKeychain::default(),
            };
            sources.push(Arc::new(seen.clone()));
            let proxy = ImageServiceProxy::new(&cri.image_service_path, seen);
            tracing::info!(
                path = %proxy.image_service().display(),
                "serving the CRI image service in front of the real one"
            );
            image_service = Some(proxy);
        }
        Self {
            chain: Arc::new(ChainedCredentials::new(sources)),
            image_service,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_image_service_behind_us_is_not_ourselves() {
        let text =
            "[cri_keychain]\nenable_keychain = true\nimage_service_path = 'unix:///run/a.sock'";
        let config = Config::parse(text, Path::new("config.toml"))
            .unwrap()
            .config;
        let error = check(&config, "/run/a.sock").unwrap_err().to_string();
        assert!(error.contains("image_service_path"), "{error}");
        check(&config, "/run/b.sock").unwrap();
        check(&Config::default(), "/run/containerd/containerd.sock").unwrap();
    }
}

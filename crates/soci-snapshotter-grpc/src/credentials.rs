//! The sources of credentials for registries, in the order in which they are asked: Docker's
//! configuration, the secrets of the cluster, the kubelet's plugins, Amazon ECR, the kubelet's pulls.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use soci_config::Config;
use soci_holder::Keeper;
use soci_keychain::{
    AwsEnvironment, CredentialProviders, CriKeychain, EcrKeychain, ImageServiceProxy, ImagesInUse,
    KubeSecrets, KubeSettings, ProviderSettings,
};
use soci_lazy::LazyLayers;
use soci_oci::Reference;
use soci_registry::{ChainedCredentials, Credentials, DockerConfigCredentials};

use crate::credential_memfd;

/// containerd's namespace of what the kubelet pulls.
const CRI_NAMESPACE: &str = "k8s.io";
/// Time after which credentials are looked at again that something needed.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// The same shortly after an image was removed, and how often.
const SOON: Duration = Duration::from_secs(3);
const SOON_TIMES: u32 = 5;

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
    /// Those credentials.
    pub(crate) cri: Option<CriKeychain>,
}

/// The images whose credentials are needed: those that containerd has, and what is mounted.
struct LazyImages(Arc<LazyLayers>);

#[async_trait]
impl ImagesInUse for LazyImages {
    async fn needs(&self, image: &Reference) -> bool {
        soci_lazy::needs_repository(&self.0, CRI_NAMESPACE, image).await
    }
}

/// Forgets credentials of the kubelet's pulls once nothing needs them, as long as the daemon runs.
pub(crate) async fn forget_unneeded(keychain: CriKeychain, lazy: Arc<LazyLayers>) {
    let in_use = LazyImages(lazy);
    let mut soon = 0;
    loop {
        keychain.forget_unneeded(&in_use).await;
        let pause = if soon > 0 { SOON } else { FORGET_AFTER };
        soon = match tokio::time::timeout(pause, keychain.removal()).await {
            // What is mounted ends some time after its image.
            Ok(()) => SOON_TIMES,
            Err(_) => u32::saturating_sub(soon, 1),
        };
    }
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
        let plugins = &config.kubelet_credential_providers;
        if !plugins.config_path.is_empty() {
            sources.push(Arc::new(CredentialProviders::new(ProviderSettings {
                config: PathBuf::from(&plugins.config_path),
                bin_dir: PathBuf::from(&plugins.bin_dir),
                run_limit: None,
            })));
        }
        if config.ecr_keychain.enable_keychain {
            let environment = AwsEnvironment::of_process();
            sources.push(Arc::new(EcrKeychain::new(environment)));
        }
        let cri = &config.cri_keychain;
        let (mut image_service, mut cri_keychain) = (None, None);
        if cri.enable_keychain {
            let seen = match keeper {
                Some(keeper) => {
                    CriKeychain::with_vault(credential_memfd::with_holder(keeper), stored)
                }
                None => CriKeychain::default(),
            };
            sources.push(Arc::new(seen.clone()));
            let proxy = ImageServiceProxy::new(&cri.image_service_path, seen.clone());
            cri_keychain = Some(seen);
            tracing::info!(
                path = %proxy.image_service().display(),
                "serving the CRI image service in front of the real one"
            );
            image_service = Some(proxy);
        }
        Self {
            chain: Arc::new(ChainedCredentials::new(sources)),
            image_service,
            cri: cri_keychain,
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

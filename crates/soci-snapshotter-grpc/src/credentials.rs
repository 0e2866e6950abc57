//! Where credentials for registries come from, in the order in which they are asked: Docker's
//! configuration, the secrets of the cluster, the kubelet's pulls.

use std::path::PathBuf;
use std::sync::Arc;

use config::Config;
use keychain::{CriKeychain, ImageServiceProxy, KubeSecrets, KubeSettings};
use registry::{ChainedCredentials, Credentials, DockerConfigCredentials};

/// The places that the configuration names.
pub(crate) struct Places {
    pub(crate) chain: Arc<dyn Credentials>,
    /// To be served on our socket: it is how the kubelet's credentials come here.
    pub(crate) image_service: Option<ImageServiceProxy>,
}

impl Places {
    /// Starts to follow the cluster's secrets if they are wanted.
    pub(crate) fn of(config: &Config) -> Self {
        let mut places: Vec<Arc<dyn Credentials>> = vec![Arc::new(DockerConfigCredentials::new())];
        let kube = &config.kubeconfig_keychain;
        if kube.enable_keychain {
            let path = &kube.kubeconfig_path;
            places.push(Arc::new(KubeSecrets::follow(KubeSettings {
                kubeconfig: (!path.is_empty()).then(|| PathBuf::from(path)),
                ..KubeSettings::default()
            })));
        }
        let cri = &config.cri_keychain;
        let mut image_service = None;
        if cri.enable_keychain {
            let seen = CriKeychain::default();
            places.push(Arc::new(seen.clone()));
            let proxy = ImageServiceProxy::new(&cri.image_service_path, seen);
            tracing::info!(
                path = %proxy.image_service().display(),
                "serving the CRI image service in front of the real one"
            );
            image_service = Some(proxy);
        }
        Self {
            chain: Arc::new(ChainedCredentials::new(places)),
            image_service,
        }
    }
}

//! `[kubelet_credential_providers]` and `[ecr_keychain]`: further sources of credentials.

use crate::schema::{Broken, Section, Visitor};

/// `[kubelet_credential_providers]`: the kubelet's credential provider plugins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KubeletCredentialProviders {
    /// A `CredentialProviderConfig` or a folder of them; empty: none.
    pub config_path: String,
    /// The folder of the plugins.
    pub bin_dir: String,
}

impl Section for KubeletCredentialProviders {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.text("config_path", &mut self.config_path);
        v.text("bin_dir", &mut self.bin_dir);
    }

    fn check(&self) -> Vec<Broken> {
        let (config, folder) = (self.config_path.as_str(), self.bin_dir.as_str());
        let mut broken = Vec::new();
        if !(config.is_empty() || config.starts_with('/')) {
            let allowed = "an absolute path (or \"\" for none)";
            broken.push(Broken::new("config_path", format!("{config:?}"), allowed));
        }
        if !config.is_empty() && !folder.starts_with('/') {
            let allowed = "the absolute path of the plugins' folder, because config_path is set";
            broken.push(Broken::new("bin_dir", format!("{folder:?}"), allowed));
        }
        broken
    }
}

/// `[ecr_keychain]`: passwords for Amazon ECR with the role of the node or pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EcrKeychain {
    /// Whether to.
    pub enable_keychain: bool,
}

impl Section for EcrKeychain {
    fn visit(&mut self, v: &mut impl Visitor) {
        v.flag("enable_keychain", &mut self.enable_keychain);
    }
}

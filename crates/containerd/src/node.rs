//! What a containerd consists of and what runs on it: its plugins, and the containers of a snapshotter.

use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::PluginsRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;

use crate::client::{Containerd, Namespace};
use crate::error::ContainerdError;

/// Greatest size of a list of containers in bytes.
const MAX_LIST: usize = 64 << 20;

/// A plugin that containerd has loaded, or tried to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// Type, such as `io.containerd.snapshotter.v1`.
    pub kind: String,
    /// Name within its type.
    pub id: String,
    /// Why it could not be initialised.
    pub error: Option<String>,
}

impl Containerd {
    /// Lists the plugins. Those that are disabled are not among them.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn plugins(&self) -> Result<Vec<Plugin>, ContainerdError> {
        let any = self.namespace("default")?;
        let mut client = IntrospectionClient::new(any.channel.clone());
        let answer = client.plugins(any.request(PluginsRequest::default())).await;
        let answer = answer.map_err(any.failed("list the plugins"))?.into_inner();
        let plugins = answer.plugins.into_iter().map(|plugin| Plugin {
            kind: plugin.r#type,
            id: plugin.id,
            error: plugin.init_err.map(|status| status.message),
        });
        Ok(plugins.collect())
    }
}

impl Namespace {
    /// Lists the ids of the containers whose root is a snapshot of a snapshotter, sorted.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn containers_on(&self, snapshotter: &str) -> Result<Vec<String>, ContainerdError> {
        let mut client =
            ContainersClient::new(self.channel.clone()).max_decoding_message_size(MAX_LIST);
        let answer = client
            .list(self.request(ListContainersRequest::default()))
            .await;
        let answer = answer.map_err(self.failed("list the containers"))?;
        let containers = answer.into_inner().containers.into_iter();
        let mut ids: Vec<String> = containers
            .filter(|container| container.snapshotter == snapshotter)
            .map(|container| container.id)
            .collect();
        ids.sort();
        Ok(ids)
    }
}

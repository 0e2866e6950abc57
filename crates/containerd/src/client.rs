//! The connection to containerd, and requests in one of its namespaces.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::{GetNamespaceRequest, ListNamespacesRequest};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status};

use crate::error::{ContainerdError, Refusal};

/// A connection to containerd's socket. Clones share it.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    address: Arc<str>,
}

impl Containerd {
    /// A connection to the socket at `address` (a path, or `unix://PATH`) that is made on first use.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let path = soci_grpc::socket_path(address);
        Self {
            channel: soci_grpc::lazy_channel(path),
            address: path.to_string_lossy().into(),
        }
    }

    /// Connects to the socket at `address`, a path or `unix://PATH`.
    ///
    /// # Errors
    /// No process answers on the socket.
    pub async fn connect(address: &str) -> Result<Self, ContainerdError> {
        let path = soci_grpc::socket_path(address);
        let address: Arc<str> = path.to_string_lossy().into();
        match soci_grpc::connect(path).await {
            Ok(channel) => Ok(Self { channel, address }),
            Err(source) => Err(ContainerdError::Connect { address, source }),
        }
    }

    /// Address of the socket.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the names of all namespaces.
    ///
    /// # Errors
    /// containerd refuses or fails.
    pub async fn namespaces(&self) -> Result<Vec<String>, ContainerdError> {
        let any = self.namespace("default")?;
        let mut client = NamespacesClient::new(self.channel.clone());
        let listed = client.list(ListNamespacesRequest::default()).await;
        let listed = listed
            .map_err(any.failed("list the namespaces"))?
            .into_inner();
        Ok(listed.namespaces.into_iter().map(|of| of.name).collect())
    }

    /// Returns the namespace of this name; whether it exists is not asked.
    ///
    /// # Errors
    /// The name has characters that no request can carry.
    pub fn namespace(&self, name: &str) -> Result<Namespace, ContainerdError> {
        let header = name.parse();
        Ok(Namespace {
            channel: self.channel.clone(),
            address: Arc::clone(&self.address),
            name: header.map_err(|_| ContainerdError::Namespace(name.to_owned()))?,
            lease: None,
        })
    }
}

/// A namespace of containerd. Its requests name the lease once there is one.
#[derive(Debug, Clone)]
pub struct Namespace {
    pub(crate) channel: Channel,
    address: Arc<str>,
    name: MetadataValue<Ascii>,
    pub(crate) lease: Option<MetadataValue<Ascii>>,
}

impl Namespace {
    /// Whether containerd has this namespace: it has those that hold something.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn exists(&self) -> Result<bool, ContainerdError> {
        let request = GetNamespaceRequest {
            name: self.name.to_str().unwrap_or_default().to_owned(),
        };
        let mut client = NamespacesClient::new(self.channel.clone());
        match client.get(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.failed("look up the namespace")(status)),
        }
    }

    /// Wraps a message in a request with the headers that containerd needs.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.name.clone());
        if let Some(lease) = &self.lease {
            headers.insert("containerd-lease", lease.clone());
        }
        request
    }

    /// Returns a conversion of a status into an error; `action` is an infinitive with its object.
    pub(crate) fn failed(
        &self,
        action: impl Into<String>,
    ) -> impl FnOnce(Status) -> ContainerdError {
        let action = action.into();
        |status| {
            ContainerdError::Refused(Box::new(Refusal {
                action,
                address: Arc::clone(&self.address),
                namespace: self.name.to_str().unwrap_or_default().to_owned(),
                status,
            }))
        }
    }
}

impl Namespace {
    /// Returns the connection that it belongs to.
    #[must_use]
    pub fn containerd(&self) -> Containerd {
        Containerd {
            channel: self.channel.clone(),
            address: Arc::clone(&self.address),
        }
    }
}

/// Limits the time of a call: containerd may hang, and itself waits for the snapshotter.
///
/// # Errors
/// The error of the call, or [`ContainerdError::Timeout`].
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, ContainerdError>>,
) -> Result<T, ContainerdError> {
    let result = tokio::time::timeout(limit, call).await;
    result.unwrap_or(Err(ContainerdError::Timeout(limit)))
}

/// A size or offset as containerd's API has it. Larger ones do not exist.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

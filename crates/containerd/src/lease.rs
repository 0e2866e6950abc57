//! Leases: what is written under one is kept until it is released, or expires because its owner
//! died.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use containerd_client::tonic::Code;
use containerd_client::tonic::transport::Channel;
use soci_oci::Digest;

use crate::client::Namespace;
use crate::error::ContainerdError;
use crate::labels::gc;

impl Namespace {
    /// Creates a lease, and returns the namespace with all requests under it. The lease keeps what
    /// they write until it is released, or for `lifetime` if that never happens.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn leased(&self, lifetime: Duration) -> Result<Self, ContainerdError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = jiff::Timestamp::now();
        let lifetime =
            jiff::SignedDuration::try_from(lifetime).unwrap_or(jiff::SignedDuration::MAX);
        let id = format!(
            "soci-{}-{}-{}",
            now.as_nanosecond(),
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let header = id.parse().ok();
        let request = self.request(CreateRequest {
            id,
            labels: HashMap::from([gc::expire(now.saturating_add(lifetime).unwrap_or(now))]),
        });
        let created = self.leases().create(request).await;
        created.map_err(self.failed("create a lease"))?;
        let mut leased = self.clone();
        leased.lease = header;
        Ok(leased)
    }

    /// Makes the lease keep a snapshot that existed before.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn hold_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), ContainerdError> {
        self.hold(format!("snapshots/{snapshotter}"), key.to_owned())
            .await
    }

    /// Makes the lease keep content that existed before.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn hold_content(&self, digest: &Digest) -> Result<(), ContainerdError> {
        self.hold("content".to_owned(), digest.to_string()).await
    }

    async fn hold(&self, kind: String, id: String) -> Result<(), ContainerdError> {
        let Some(lease) = self.lease_id() else {
            return Ok(());
        };
        let failed = self.failed(format!("add {kind} {id} to the lease"));
        let request = self.request(AddResourceRequest {
            id: lease,
            resource: Some(Resource { id, r#type: kind }),
        });
        let added = self.leases().add_resource(request).await;
        added.map(drop).map_err(failed)
    }

    /// Releases the lease: what nothing else refers to may be collected.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn release_lease(&self) -> Result<(), ContainerdError> {
        let Some(id) = self.lease_id() else {
            return Ok(());
        };
        let request = self.request(DeleteRequest { id, sync: false });
        match self.leases().delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.failed("delete the lease")(status)),
        }
    }

    fn lease_id(&self) -> Option<String> {
        self.lease.as_ref()?.to_str().ok().map(ToOwned::to_owned)
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }
}

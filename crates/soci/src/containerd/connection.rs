//! A connection to containerd: every request names the namespace, and the lease once there is one.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use containerd_client::Client;
use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::{Code, Request, Status};
use soci_containerd::labels::gc;
use soci_oci::Digest;

/// A command that was killed holds on to its content no longer than this.
const LEASE_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection to containerd.
pub(crate) struct Containerd {
    client: Client,
    namespace: MetadataValue<Ascii>,
    lease: Option<Lease>,
}

struct Lease {
    id: String,
    value: MetadataValue<Ascii>,
}

impl Containerd {
    /// Connects to the socket at `address`, a path or `unix://PATH`.
    pub(crate) async fn connect(address: &str, namespace: &str) -> anyhow::Result<Self> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let client = Client::from_path(path).await.map_err(|e| {
            let cause = std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source())
                .last()
                .map(ToString::to_string)
                .unwrap_or_default();
            anyhow!(
                "cannot connect to containerd at {path}: {cause}; is it running, is --address \
                 right, and may you access the socket?"
            )
        })?;
        let value = namespace
            .parse()
            .with_context(|| format!("namespace {namespace:?} is not a valid name"))?;
        Ok(Self {
            client,
            namespace: value,
            lease: None,
        })
    }

    /// The services.
    pub(crate) fn services(&self) -> &Client {
        &self.client
    }

    /// A request with the headers that containerd needs.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            headers.insert("containerd-lease", lease.value.clone());
        }
        request
    }

    /// Takes a lease that keeps everything made from now on until it is released.
    pub(crate) async fn take_lease(&mut self) -> anyhow::Result<()> {
        let now = jiff::Timestamp::now();
        let expire = now
            .checked_add(jiff::SignedDuration::try_from(LEASE_TIME)?)
            .context("the clock is wrong")?;
        let id = format!("soci-{}-{}", now.as_nanosecond(), std::process::id());
        let request = self.request(CreateRequest {
            id: id.clone(),
            labels: HashMap::from([(
                gc::EXPIRE.to_owned(),
                expire.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            )]),
        });
        self.client
            .leases()
            .create(request)
            .await
            .map_err(|status| failed("create a lease", &status))?;
        self.lease = Some(Lease {
            value: id.parse()?,
            id,
        });
        Ok(())
    }

    /// Makes the lease hold a snapshot that was there before.
    pub(crate) async fn hold_snapshot(&self, snapshotter: &str, key: &str) -> anyhow::Result<()> {
        self.hold(&format!("snapshots/{snapshotter}"), key).await
    }

    /// Makes the lease hold content that was there before.
    pub(crate) async fn hold_content(&self, digest: &Digest) -> anyhow::Result<()> {
        self.hold("content", &digest.to_string()).await
    }

    async fn hold(&self, kind: &str, id: &str) -> anyhow::Result<()> {
        let Some(lease) = &self.lease else {
            return Ok(());
        };
        let request = self.request(AddResourceRequest {
            id: lease.id.clone(),
            resource: Some(Resource {
                id: id.to_owned(),
                r#type: kind.to_owned(),
            }),
        });
        self.client
            .leases()
            .add_resource(request)
            .await
            .map_err(|status| failed(&format!("add {kind} {id} to the lease"), &status))?;
        Ok(())
    }

    /// Gives the lease back: what nothing else refers to may be collected.
    pub(crate) async fn release_lease(&self) -> anyhow::Result<()> {
        let Some(lease) = &self.lease else {
            return Ok(());
        };
        let request = self.request(DeleteRequest {
            id: lease.id.clone(),
            sync: false,
        });
        match self.client.leases().delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failed("delete the lease", &status)),
        }
    }
}

/// What a snapshotter refused, and what to look at when it cannot be reached at all.
pub(crate) fn snapshotter_failed(
    action: &str,
    snapshotter: &str,
    status: &Status,
) -> anyhow::Error {
    let error = failed(action, status);
    let advice = match status.code() {
        Code::Unavailable => format!(
            "is the daemon of snapshotter {snapshotter:?} running, at the address that containerd's \
             configuration has under [proxy_plugins.{snapshotter}]?"
        ),
        Code::InvalidArgument if status.message().contains("not loaded") => format!(
            "containerd's configuration needs it under [proxy_plugins.{snapshotter}], and \
             containerd a restart after that (see soci pull --help)"
        ),
        _ => return error,
    };
    anyhow!("{error}; {advice}")
}

/// What containerd refused, in its own words.
pub(crate) fn failed(action: &str, status: &Status) -> anyhow::Error {
    anyhow!(
        "containerd: cannot {action}: {} ({:?})",
        status.message(),
        status.code()
    )
}

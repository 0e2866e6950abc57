//! containerd's content store, through its API: blobs of one namespace, with labels that tell
//! containerd's garbage collector what to keep.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest,
    WriteAction, WriteContentRequest,
};
use hyper_util::rt::TokioIo;
use soci_oci::{Descriptor, Digest};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::StoreError;

/// The label that makes a blob a root of the garbage collector: it and what it refers to stays.
pub const GC_ROOT: &str = "containerd.io/gc.root";
/// What labels start with by which a blob keeps another one.
pub const GC_REFERENCE: &str = "containerd.io/gc.ref.content";

/// Bytes in one message; containerd takes up to 16 MiB.
const CHUNK: usize = 1 << 20;
/// Longest time for one call: containerd may be stuck, and itself waits for our answer to a Prepare.
const PATIENCE: Duration = Duration::from_secs(10);
/// After this a lease of a process that died is given up by containerd.
const LEASE: Duration = Duration::from_secs(3600);
/// As much is read as fits twice into one message of containerd's.
const MESSAGE: usize = 32 << 20;

/// A connection to containerd's content store, made when it is needed. Clones are the same.
#[derive(Debug, Clone)]
pub struct ContainerdContent {
    channel: Channel,
    address: String,
}

/// What a call is about, for its errors.
struct Call<'a> {
    action: &'static str,
    namespace: &'a str,
    digest: &'a Digest,
    address: &'a str,
}

impl Call<'_> {
    fn failed(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Containerd {
            action: self.action,
            digest: *self.digest,
            address: self.address.to_owned(),
            namespace: self.namespace.to_owned(),
            reason: reason.to_string(),
        }
    }

    fn refused(&self, status: &Status) -> StoreError {
        self.failed(format_args!("{} ({:?})", status.message(), status.code()))
    }

    fn request<T>(&self, message: T, lease: Option<&str>) -> Result<Request<T>, StoreError> {
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        let headers = request.metadata_mut();
        let namespace = self.namespace.parse();
        headers.insert(
            "containerd-namespace",
            namespace.map_err(|_| self.failed("no namespace can be called so"))?,
        );
        if let Some(lease) = lease.and_then(|lease| lease.parse().ok()) {
            headers.insert("containerd-lease", lease);
        }
        Ok(request)
    }

    /// Nothing in here may wait for ever, whatever containerd does.
    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        tokio::time::timeout(PATIENCE, work)
            .await
            .unwrap_or_else(|_| {
                Err(self.failed(format_args!("no answer within {} s", PATIENCE.as_secs())))
            })
    }
}

impl ContainerdContent {
    /// The content store of the containerd at this socket, a path or `unix://PATH`. Must be called on
    /// a tokio runtime.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(&path).await;
                stream.map(TokioIo::new)
            }
        });
        // The name is never resolved: the connector knows where to go.
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(PATIENCE);
        Self {
            channel: endpoint.connect_with_connector_lazy(connector),
            address: address.to_owned(),
        }
    }

    /// A whole blob of at most `most` bytes, checked against its digest; none if it is not there.
    ///
    /// # Errors
    /// containerd does not answer, or the blob is larger or damaged.
    pub async fn get(
        &self,
        namespace: &str,
        digest: &Digest,
        most: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        let call = self.call("read", namespace, digest);
        call.within(self.get_whole(&call, most)).await
    }

    async fn get_whole(&self, call: &Call<'_>, most: u64) -> Result<Option<Bytes>, StoreError> {
        let request = call.request(
            ReadContentRequest {
                digest: call.digest.to_string(),
                ..ReadContentRequest::default()
            },
            None,
        )?;
        let mut stream = match self.content().read(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(call.refused(&status)),
        };
        let mut whole = BytesMut::new();
        loop {
            match stream.message().await {
                Ok(Some(piece)) => whole.extend_from_slice(&piece.data),
                Ok(None) => break,
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(call.refused(&status)),
            }
            if whole.len() as u64 > most {
                return Err(call.failed(format_args!("it has more than {most} bytes")));
            }
        }
        let actual = Digest::of(&whole);
        if actual != *call.digest {
            return Err(StoreError::DigestMismatch {
                what: format!("a blob in containerd's content store at {}", self.address),
                expected: *call.digest,
                actual,
            });
        }
        Ok(Some(whole.freeze()))
    }

    /// Stores a blob with these labels; if it is there, it gets the labels.
    ///
    /// # Errors
    /// containerd does not answer or refuses.
    pub async fn put(
        &self,
        namespace: &str,
        descriptor: &Descriptor,
        bytes: &Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), StoreError> {
        let call = self.call("write", namespace, &descriptor.digest);
        let work = async {
            // Without a lease the collector could take it before anything refers to it.
            let lease = self.lease(&call).await?;
            let written = self.write(&call, &lease, bytes, labels).await;
            let request = call.request(
                DeleteRequest {
                    id: lease,
                    sync: false,
                },
                None,
            )?;
            let released = LeasesClient::new(self.channel.clone())
                .delete(request)
                .await;
            written?;
            released.map(drop).map_err(|status| call.refused(&status))
        };
        call.within(work).await
    }

    async fn lease(&self, call: &Call<'_>) -> Result<String, StoreError> {
        let now = jiff::Timestamp::now();
        let expires = jiff::SignedDuration::try_from(LEASE)
            .ok()
            .and_then(|lease| now.checked_add(lease).ok())
            .ok_or_else(|| call.failed("the clock is wrong"))?;
        let id = unique("lease");
        let label = ("containerd.io/gc.expire".to_owned(), seconds(expires));
        let request = CreateRequest {
            id: id.clone(),
            labels: HashMap::from([label]),
        };
        let request = call.request(request, None)?;
        match LeasesClient::new(self.channel.clone())
            .create(request)
            .await
        {
            Ok(_) => Ok(id),
            Err(status) => Err(call.refused(&status)),
        }
    }

    async fn write(
        &self,
        call: &Call<'_>,
        lease: &str,
        bytes: &Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), StoreError> {
        let total = i64::try_from(bytes.len()).map_err(|error| call.failed(error))?;
        // A name of its own: nothing that an earlier attempt left is gone on with.
        let name = unique(&call.digest.hex());
        let mut messages = Vec::new();
        let mut offset = 0;
        for piece in bytes.chunks(CHUNK) {
            messages.push(WriteContentRequest {
                action: WriteAction::Write.into(),
                r#ref: name.clone(),
                total,
                expected: call.digest.to_string(),
                offset,
                data: piece.to_vec(),
                labels: HashMap::new(),
            });
            offset = offset.saturating_add(i64::try_from(piece.len()).unwrap_or(i64::MAX));
        }
        messages.push(WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: name,
            total,
            expected: call.digest.to_string(),
            offset,
            data: Vec::new(),
            labels: labels.clone(),
        });
        let request = call.request(tokio_stream::iter(messages), Some(lease))?;
        let mut answers = match self.content().write(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::AlreadyExists => {
                return self.add_labels(call, lease, labels).await;
            }
            Err(status) => return Err(call.refused(&status)),
        };
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) if status.code() == Code::AlreadyExists => {
                    return self.add_labels(call, lease, labels).await;
                }
                Err(status) => return Err(call.refused(&status)),
            }
        }
    }

    async fn add_labels(
        &self,
        call: &Call<'_>,
        lease: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), StoreError> {
        if labels.is_empty() {
            return Ok(());
        }
        self.update(call, Some(lease), labels.clone(), labels.into_keys())
            .await
    }

    /// The labels of a blob; none if it is not there.
    ///
    /// # Errors
    /// containerd does not answer or refuses.
    pub async fn labels(
        &self,
        namespace: &str,
        digest: &Digest,
    ) -> Result<Option<HashMap<String, String>>, StoreError> {
        let call = self.call("look at", namespace, digest);
        let work = async {
            let request = InfoRequest {
                digest: digest.to_string(),
            };
            let request = call.request(request, None)?;
            match self.content().info(request).await {
                Ok(answer) => Ok(answer.into_inner().info.map(|info| info.labels)),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(call.refused(&status)),
            }
        };
        call.within(work).await
    }

    /// Takes a label from a blob; one that is not there is as good.
    ///
    /// # Errors
    /// containerd does not answer or refuses.
    pub async fn remove_label(
        &self,
        namespace: &str,
        digest: &Digest,
        label: &str,
    ) -> Result<(), StoreError> {
        let call = self.call("take a label from", namespace, digest);
        let keys = std::iter::once(label.to_owned());
        call.within(self.update(&call, None, HashMap::new(), keys))
            .await
    }

    async fn update(
        &self,
        call: &Call<'_>,
        lease: Option<&str>,
        labels: HashMap<String, String>,
        keys: impl Iterator<Item = String>,
    ) -> Result<(), StoreError> {
        let paths = keys.map(|key| format!("labels.{key}")).collect();
        let request = UpdateRequest {
            info: Some(Info {
                digest: call.digest.to_string(),
                labels,
                ..Info::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        match self.content().update(call.request(request, lease)?).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(call.refused(&status)),
        }
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE)
    }

    fn call<'a>(
        &'a self,
        action: &'static str,
        namespace: &'a str,
        digest: &'a Digest,
    ) -> Call<'a> {
        Call {
            action,
            namespace,
            digest,
            address: &self.address,
        }
    }
}

/// The present time as the values of labels have it.
#[must_use]
pub fn now() -> String {
    seconds(jiff::Timestamp::now())
}

fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A name that no other process and no other call uses.
fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = jiff::Timestamp::now().as_nanosecond();
    format!(
        "soci-snapshotter-{what}-{}-{now}-{count}",
        std::process::id()
    )
}

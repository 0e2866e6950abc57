//! The registry client: its whole interface, one method per operation.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use soci_oci::{Descriptor, Digest, Reference};

use crate::auth::Authorizer;
use crate::blob_locator::BlobLocator;
use crate::endpoint::endpoints;
use crate::engine::Engine;
use crate::exists::exists;
use crate::source::ByteStream;
use crate::transport::Transport;
use crate::upload::{self, BlobUpload};
use crate::{
    BlobBody, ClientConfig, Credentials, ManifestKey, Misconfiguration, PushOutcome, RegistryError,
    RegistryReport, RemoteBlob, listing, manifest, referrers, registry_report, whole_blob,
};

/// The registry client. Clones share connections, tokens and what was learnt about hosts.
#[derive(Clone)]
pub struct Client {
    engine: Arc<Engine>,
    /// Serializes updates of referrers tags: each reads, changes and writes one.
    referrers_update: Arc<tokio::sync::Mutex<()>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("user_agent", &self.engine.config().user_agent)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Creates a client; makes no request yet.
    ///
    /// # Errors
    /// A mirror of the configuration is not a host.
    pub fn new(
        config: ClientConfig,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Self, RegistryError> {
        for registry in config.hosts.keys() {
            endpoints(&config, registry)?;
        }
        Ok(Self {
            engine: Arc::new(Engine::new(
                Transport::new(config),
                Authorizer::new(credentials),
            )),
            referrers_update: Arc::default(),
        })
    }

    /// Resolves a reference to a descriptor with media type, digest and size.
    ///
    /// # Errors
    /// It does not exist, or no endpoint serves it.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        manifest::resolve(&self.engine, reference).await
    }

    /// Fetches a manifest, and verifies it when `key` is a digest. Its size is limited by
    /// [`ClientConfig::max_manifest_size`].
    ///
    /// # Errors
    /// It does not exist, is too large, or does not have the digest.
    pub async fn manifest(
        &self,
        reference: &Reference,
        key: impl Into<ManifestKey> + Send,
    ) -> Result<(Descriptor, Bytes), RegistryError> {
        manifest::fetch(&self.engine, reference, &key.into()).await
    }

    /// Lists the manifests that refer to `subject`, of one artifact type if given: from the
    /// referrers API, or from the referrers tag if the registry does not have the API.
    ///
    /// # Errors
    /// Neither can be read, or the list is too large.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        referrers::list(&self.engine, reference, subject, artifact_type).await
    }

    /// Lists the tags of the repository. Mirrors are not asked.
    ///
    /// # Errors
    /// The repository does not exist, the list cannot be read, or it is too large.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        listing::tags(&self.engine, reference).await
    }

    /// Lists the repositories of a registry, named as in image references. Not every registry allows
    /// it.
    ///
    /// # Errors
    /// The registry refuses it, the list cannot be read, or it is too large.
    pub async fn repositories(&self, registry: &str) -> Result<Vec<String>, RegistryError> {
        // The list belongs to no repository; requests are made in the name of one.
        let any: Reference = format!("{registry}/catalog")
            .parse()
            .map_err(|error: soci_oci::ReferenceError| Misconfiguration::from(error))?;
        listing::repositories(&self.engine, &any).await
    }

    /// Returns whether the repository has the manifest that the reference names. Mirrors are not
    /// asked.
    ///
    /// # Errors
    /// The registry cannot be reached, or refuses to answer.
    pub async fn manifest_exists(&self, reference: &Reference) -> Result<bool, RegistryError> {
        let path = ["manifests", &reference.manifest_key()];
        exists(&self.engine, reference, &path, &manifest::accept()).await
    }

    /// Returns whether the repository has the blob. Mirrors are not asked.
    ///
    /// # Errors
    /// The registry cannot be reached, or refuses to answer.
    pub async fn blob_exists(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let path = ["blobs", &descriptor.digest.to_string()];
        exists(&self.engine, reference, &path, &HeaderMap::new()).await
    }

    /// Returns a blob to read in parts; makes no request yet. The bytes are *not* checked against
    /// the digest: callers that read parts have digests of parts. The `urls` of the descriptor (foreign
    /// layers) are asked before the registry, without credentials, as far as they lead to the network.
    #[must_use]
    pub fn blob(&self, reference: &Reference, descriptor: &Descriptor) -> RemoteBlob {
        let locator = self.new_locator(reference, descriptor);
        RemoteBlob {
            locator: Arc::new(locator.also_at(&descriptor.urls)),
        }
    }

    /// Reads a whole blob into memory, large ones in parallel ranges, and verifies it. The caller
    /// checks `descriptor.size`; [`ClientConfig::max_blob_in_memory`] is the last resort.
    ///
    /// # Errors
    /// The blob does not exist, is too large, or does not have the digest.
    pub async fn blob_bytes(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        whole_blob::bytes(&self.locator(reference, descriptor)).await
    }

    /// Streams a whole blob in order, resumed where it breaks off. The last item is an error if
    /// the digest is wrong: the bytes before it must not be used until the stream has ended.
    ///
    /// # Errors
    /// The blob does not exist, or no endpoint serves it.
    pub async fn blob_stream(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<ByteStream, RegistryError> {
        whole_blob::stream(self.locator(reference, descriptor)).await
    }

    /// Uploads a blob unless the registry has it. `mount_from` is another repository of the same
    /// registry that may have it. `progress` receives the total number of bytes sent so far, which
    /// falls back when an interrupted upload starts over.
    ///
    /// # Errors
    /// The registry refuses it or cannot be reached, or the body cannot be read or does not have
    /// the size of the descriptor.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        body: BlobBody,
        mount_from: Option<&str>,
        progress: Option<&(dyn Fn(u64) + Send + Sync)>,
    ) -> Result<PushOutcome, RegistryError> {
        if Box::pin(self.blob_exists(reference, descriptor)).await? {
            return Ok(PushOutcome::Exists);
        }
        let upload = BlobUpload {
            descriptor,
            body,
            mount_from,
            progress,
        };
        upload::push_blob(&self.engine, reference, &upload).await
    }

    /// Uploads a manifest under the reference's digest, or its tag. If the manifest has a `subject`
    /// and the registry does not keep referrers, the referrers tag is updated.
    ///
    /// # Errors
    /// The registry refuses it or cannot be reached, or the reference has another digest.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        if let Some(wanted) = reference.digest().filter(|wanted| *wanted != digest) {
            return Err(Misconfiguration::OtherManifest {
                reference: reference.clone(),
                actual: digest,
                wanted,
            }
            .into());
        }
        let (engine, key) = (&self.engine, reference.manifest_key());
        if !upload::put_manifest(engine, reference, &key, media_type, bytes.clone()).await? {
            let update = &self.referrers_update;
            Box::pin(referrers::add_to_tag(
                engine, update, reference, media_type, &bytes,
            ))
            .await?;
        }
        Ok(digest)
    }

    /// Lists the registries of `[resolver.host]`, and those whose `hosts.toml` was read, with the state
    /// of their hosts.
    #[must_use]
    pub fn registries(&self) -> Vec<RegistryReport> {
        registry_report::report(&self.engine)
    }

    /// Returns the folders in which `hosts.toml` files are looked for.
    #[must_use]
    pub fn hosts_folders(&self) -> &[std::path::PathBuf] {
        &self.engine.config().hosts_dirs
    }

    fn locator(&self, reference: &Reference, descriptor: &Descriptor) -> Arc<BlobLocator> {
        Arc::new(self.new_locator(reference, descriptor))
    }

    fn new_locator(&self, reference: &Reference, descriptor: &Descriptor) -> BlobLocator {
        BlobLocator::new(
            Arc::clone(&self.engine),
            reference.clone(),
            descriptor.digest,
            descriptor.size,
        )
    }
}

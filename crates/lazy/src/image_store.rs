//! The images that containerd has: which of them are made of a chain of layers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use soci_containerd::labels::SOURCE_PREFIX;
use soci_containerd::{
    Containerd, ContainerdError, Content, ImageRecord, Images, Namespace, within,
};
use soci_oci::{Digest, ImageConfig, Index, Manifest, Reference};

/// Greatest size of a manifest or configuration in bytes; containerd's clients have the same limit.
const MOST: u64 = 8 << 20;
/// Greatest number of manifests of one image that are looked at.
const MAX_MANIFESTS: usize = 256;
/// How many indexes within another are looked into.
const MAX_DEPTH: usize = 4;
/// Greatest number of images whose layers are prepared at a time. Forgetting one costs two reads.
const MAX_IMAGES: usize = 64;
/// Blobs that are read at the same time.
const AT_ONCE: usize = 16;
/// Time between two looks for a blob that containerd downloads.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Time limit of one question: containerd may hang, and itself waits for our answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Why containerd's image store does not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageStoreError {
    #[error("[content_store] containerd_address is empty")]
    NoAddress,
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error(
        "the containerd at {address} has no namespace {namespace:?}: the client is another one, whose \
         address belongs into [content_store] containerd_address"
    )]
    OtherContainerd { address: String, namespace: String },
}

/// An image manifest that containerd has, with its configuration.
#[derive(Debug)]
pub(crate) struct StoredImage {
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    /// The chain ID of each layer, lowest first.
    pub(crate) chain_ids: Vec<Digest>,
}

/// An image by its name.
#[derive(Debug, Clone)]
pub(crate) struct NamedImage {
    pub(crate) name: String,
    pub(crate) image: Arc<StoredImage>,
}

/// What an image record led to, as long as it is the same record.
struct Resolved {
    target: Digest,
    updated: (i64, i32),
    images: Arc<Vec<Arc<StoredImage>>>,
}

/// The image store of the containerd that uses this snapshotter.
#[derive(Default)]
pub struct ImageStore {
    containerd: Option<Containerd>,
    /// Images whose layers were prepared, by namespace and digest of the manifest.
    images: Mutex<HashMap<(String, Digest), Arc<StoredImage>>>,
    /// Records by namespace and name.
    records: Mutex<HashMap<(String, String), Resolved>>,
}

impl ImageStore {
    /// The image store behind a socket; none with an empty address. Connects on first use.
    #[must_use]
    pub fn new(address: &str) -> Self {
        Self {
            containerd: (!address.is_empty()).then(|| Containerd::new(address)),
            images: Mutex::default(),
            records: Mutex::default(),
        }
    }

    fn namespace(&self, name: &str) -> Result<Namespace, ImageStoreError> {
        let containerd = self.containerd.as_ref().ok_or(ImageStoreError::NoAddress)?;
        Ok(containerd.namespace(name)?)
    }

    /// Returns an image by the digest of its manifest, if containerd has manifest and configuration.
    pub(crate) async fn image(
        &self,
        namespace: &str,
        manifest: Digest,
    ) -> Result<Option<Arc<StoredImage>>, ImageStoreError> {
        let space = self.namespace(namespace)?;
        let key = (namespace.to_owned(), manifest);
        if let Some(known) = self.images.lock().get(&key) {
            return Ok(Some(known.clone()));
        }
        let read = within(LIMIT, Box::pin(read_image(Content::new(&space), manifest)));
        if let Some(image) = read.await? {
            let image = Arc::new(image);
            self.keep(key, image.clone());
            return Ok(Some(image));
        }
        if within(LIMIT, space.exists()).await? {
            return Ok(None);
        }
        let address = self.containerd.as_ref().map_or("", Containerd::address);
        Err(ImageStoreError::OtherContainerd {
            address: address.to_owned(),
            namespace: namespace.to_owned(),
        })
    }

    /// Keeps an image whose layers are prepared.
    fn keep(&self, key: (String, Digest), image: Arc<StoredImage>) {
        let mut images = self.images.lock();
        if images.len() >= MAX_IMAGES {
            images.clear();
        }
        images.insert(key, image);
    }

    /// Reads a manifest, if containerd has it.
    pub(crate) async fn manifest(
        &self,
        namespace: &str,
        digest: Digest,
    ) -> Result<Option<bytes::Bytes>, ImageStoreError> {
        let content = Content::new(&self.namespace(namespace)?);
        Ok(within(LIMIT, Box::pin(read(&content, digest))).await?)
    }

    /// Returns the image with a name whose manifest and configuration containerd has.
    pub(crate) async fn named(
        &self,
        namespace: &str,
        reference: &Reference,
    ) -> Option<Arc<StoredImage>> {
        let same = |record: &ImageRecord| reference_of(&record.name).as_ref() == Some(reference);
        let mut named = self.resolve(namespace, same).await.ok()?;
        named.pop().map(|named| named.image)
    }

    /// Reads a blob of a known size, if containerd has it.
    pub(crate) async fn blob(
        &self,
        namespace: &str,
        digest: Digest,
        size: u64,
    ) -> Option<bytes::Bytes> {
        let content = Content::new(&self.namespace(namespace).ok()?);
        let read = within(LIMIT, Box::pin(content.get(&digest, size))).await;
        read.ok()?
    }

    /// Waits until containerd has a blob. Looks rarely: to be raced against fetching it.
    pub(crate) async fn appears(&self, namespace: &str, digest: Digest, size: u64) -> bytes::Bytes {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            if let Some(blob) = Box::pin(self.blob(namespace, digest, size)).await {
                return blob;
            }
        }
    }

    /// Opens the file in which containerd stores a layer, if it does and the file is on this machine.
    pub(crate) async fn layer_file(
        &self,
        namespace: &str,
        layer: Digest,
        size: u64,
    ) -> Option<std::fs::File> {
        let content = Content::new(&self.namespace(namespace).ok()?);
        // The file of another namespace's blob is not this namespace's to read.
        let info = within(LIMIT, Box::pin(content.info(&layer))).await;
        info.ok()??;
        content.file(&layer, size).await
    }

    /// Whether a namespace has an image of the repository of `reference`.
    pub(crate) async fn has_repository(
        &self,
        namespace: &str,
        reference: &Reference,
    ) -> Result<bool, ImageStoreError> {
        let space = self.namespace(namespace)?;
        let records = within(LIMIT, Box::pin(Images::new(&space).list())).await?;
        let name = reference.name();
        let mut names = records
            .iter()
            .filter_map(|record| reference_of(&record.name));
        Ok(names.any(|stored| stored.name() == name))
    }

    /// Lists the images of a namespace that have a layer, one of each repository.
    pub(crate) async fn images_with(
        &self,
        namespace: &str,
        layer: Digest,
    ) -> Result<Vec<Reference>, ImageStoreError> {
        let named = self.resolve(namespace, |_| true).await?;
        let mut found: Vec<Reference> = Vec::new();
        for image in named {
            let mut layers = image.image.manifest.layers.iter();
            if !layers.any(|listed| listed.digest == layer) {
                continue;
            }
            // CRI keeps images under the digest of their configuration as well.
            if let Some(name) = reference_of(&image.name)
                && found.iter().all(|known| known.name() != name.name())
            {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Whether containerd has a manifest from the repository of `reference`: it was fetched from
    /// there, or is the target of an image of that name.
    pub(crate) async fn is_from(
        &self,
        namespace: &str,
        manifest: Digest,
        reference: &Reference,
    ) -> Result<bool, ImageStoreError> {
        let space = self.namespace(namespace)?;
        let content = Content::new(&space);
        let info = within(LIMIT, Box::pin(content.info(&manifest))).await?;
        if info.is_none() {
            return Ok(false);
        }
        if info.is_some_and(|info| is_source(&info.labels, reference)) {
            return Ok(true);
        }
        let name = reference.name();
        let same_name = |record: &ImageRecord| {
            record
                .name
                .parse::<Reference>()
                .is_ok_and(|other| other.name() == name)
        };
        let named = self.resolve(namespace, same_name).await?;
        Ok(named.iter().any(|named| named.image.digest == manifest))
    }

    /// Lists the images of a namespace whose layers are exactly this chain.
    pub(crate) async fn with_chain(
        &self,
        namespace: &str,
        chain: Digest,
    ) -> Result<Vec<NamedImage>, ImageStoreError> {
        let mut images = self.resolve(namespace, |_| true).await?;
        images.retain(|named| named.image.chain_ids.last() == Some(&chain));
        Ok(images)
    }

    /// Reads the manifests of images. What was read of a record is kept until the record changes.
    async fn resolve(
        &self,
        namespace: &str,
        wanted: impl Fn(&ImageRecord) -> bool,
    ) -> Result<Vec<NamedImage>, ImageStoreError> {
        let space = self.namespace(namespace)?;
        let records = within(LIMIT, Box::pin(Images::new(&space).list())).await?;
        self.forget_others(namespace, &records);
        let content = Content::new(&space);
        let records = records.into_iter().filter(wanted);
        // Collected: the compiler cannot follow borrowing futures across a spawn.
        let resolved: Vec<_> = records
            .map(|record| self.resolve_one(namespace, content.clone(), record))
            .collect();
        let resolved = stream::iter(resolved).buffer_unordered(AT_ONCE);
        let resolved = async { Ok(resolved.collect::<Vec<_>>().await) };
        let mut named = Vec::new();
        for of_record in within(LIMIT, resolved).await? {
            let (name, images) = of_record?;
            named.extend(images.iter().map(|image| NamedImage {
                name: name.clone(),
                image: image.clone(),
            }));
        }
        Ok(named)
    }

    async fn resolve_one(
        &self,
        namespace: &str,
        content: Content,
        record: ImageRecord,
    ) -> Result<(String, Arc<Vec<Arc<StoredImage>>>), ImageStoreError> {
        let key = (namespace.to_owned(), record.name.clone());
        let (target, updated) = (record.target.digest, record.updated);
        if let Some(known) = self.records.lock().get(&key)
            && known.target == target
            && known.updated == updated
        {
            return Ok((record.name, known.images.clone()));
        }
        // Boxed: calls of containerd are large futures.
        let images = Box::pin(read_target(content, target)).await?;
        let images = Arc::new(images.into_iter().map(Arc::new).collect::<Vec<_>>());
        if !images.is_empty() {
            let resolved = Resolved {
                target,
                updated,
                images: images.clone(),
            };
            self.records.lock().insert(key, resolved);
        }
        Ok((record.name, images))
    }

    fn forget_others(&self, namespace: &str, records: &[ImageRecord]) {
        let names: HashSet<&str> = records.iter().map(|record| record.name.as_str()).collect();
        let mut known = self.records.lock();
        known.retain(|(of, name), _| of != namespace || names.contains(name.as_str()));
    }
}

/// The reference that the name of an image record is, if it is one.
fn reference_of(name: &str) -> Option<Reference> {
    name.contains('/').then(|| name.parse().ok()).flatten()
}

/// Whether the labels of a manifest name the repository of `reference`.
fn is_source(labels: &HashMap<String, String>, reference: &Reference) -> bool {
    let keys = source_keys(reference);
    let sources = keys.iter().filter_map(|key| labels.get(key));
    let mut sources = sources.flat_map(|sources| sources.split(','));
    sources.any(|source| source == reference.repository())
}

/// Returns the keys of the labels that may name the repository of `reference` on a manifest:
/// containerd's clients leave the port of the registry out, `soci pull` does not.
fn source_keys(reference: &Reference) -> [String; 2] {
    let (key, _) = soci_containerd::labels::source(reference);
    let registry = reference.registry();
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    [key, format!("{SOURCE_PREFIX}{host}")]
}

/// Reads the images that are stored of a target: an image manifest, or an index of some, or of indexes.
async fn read_target(
    content: Content,
    target: Digest,
) -> Result<Vec<StoredImage>, ContainerdError> {
    let mut waiting = VecDeque::from([(target, 0)]);
    let mut seen = HashSet::new();
    let mut images = Vec::new();
    while let Some((digest, depth)) = waiting.pop_front() {
        if seen.len() > MAX_MANIFESTS {
            break;
        }
        if !seen.insert(digest) {
            continue;
        }
        let Some(bytes) = read(&content, digest).await? else {
            continue;
        };
        let index = serde_json::from_slice::<Index>(&bytes).ok();
        if let Some(index) = index.filter(|index| !index.manifests.is_empty()) {
            let children = index.manifests.into_iter();
            let children =
                children.filter(|child| depth < MAX_DEPTH && child.artifact_type.is_none());
            waiting.extend(children.map(|child| (child.digest, depth + 1)));
        } else {
            images.extend(parse_image(&content, digest, &bytes).await?);
        }
    }
    Ok(images)
}

/// Reads an image manifest and its configuration; `None` if they are not stored, or something else.
async fn read_image(
    content: Content,
    digest: Digest,
) -> Result<Option<StoredImage>, ContainerdError> {
    let Some(bytes) = read(&content, digest).await? else {
        return Ok(None);
    };
    parse_image(&content, digest, &bytes).await
}

/// Parses an image manifest and reads its configuration.
async fn parse_image(
    content: &Content,
    digest: Digest,
    manifest: &[u8],
) -> Result<Option<StoredImage>, ContainerdError> {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else {
        return Ok(None);
    };
    let Some(bytes) = read(content, manifest.config.digest).await? else {
        return Ok(None);
    };
    let config = serde_json::from_slice::<ImageConfig>(&bytes);
    Ok(config.ok().map(|config| StoredImage {
        digest,
        chain_ids: config.rootfs.chain_ids(),
        manifest,
    }))
}

/// Reads a blob. A large or damaged one counts as not stored: it is not an image that can be run.
async fn read(content: &Content, digest: Digest) -> Result<Option<bytes::Bytes>, ContainerdError> {
    match content.get(&digest, MOST).await {
        Err(ContainerdError::TooLarge { .. } | ContainerdError::Damaged { .. }) => Ok(None),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_found_as_each_client_records_it() {
        for (reference, host) in [
            ("registry.example/app:1", "registry.example"),
            ("127.0.0.1:5000/app:1", "127.0.0.1"),
            ("localhost:5000/app", "localhost"),
            ("alpine", "docker.io"),
        ] {
            let reference: Reference = reference.parse().unwrap();
            let [with_port, without] = source_keys(&reference);
            let registry = reference.registry();
            assert_eq!(with_port, format!("{SOURCE_PREFIX}{registry}"));
            assert_eq!(without, format!("{SOURCE_PREFIX}{host}"));
        }
    }

    #[test]
    fn the_images_that_are_kept_are_bounded() {
        let store = ImageStore::default();
        for number in 0..=MAX_IMAGES {
            let digest = Digest::of(&number.to_le_bytes());
            let config = soci_oci::Descriptor::of("config", b"{}");
            let config = serde_json::to_string(&config).unwrap();
            let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
            let image = StoredImage {
                digest,
                manifest: serde_json::from_str(&text).unwrap(),
                chain_ids: Vec::new(),
            };
            store.keep(("test".to_owned(), digest), Arc::new(image));
            let kept = store.images.lock().len();
            assert!((1..=MAX_IMAGES).contains(&kept), "{kept}");
        }
    }
}

//! OCI layout folders (OCI image spec, `image-layout.md`): list an image, push what is listed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use soci_oci::{Descriptor, Digest, Index, Manifest, annotations, media_types};

use crate::http1::http_request;

/// Where a blob is.
#[must_use]
pub fn blob_path(dir: &Path, digest: Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

/// Reads a JSON file.
///
/// # Errors
/// When it cannot be read or is something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}

/// Lists a manifest in `index.json` under `tag`, replacing what had the tag.
///
/// # Errors
/// When the files cannot be written.
pub fn list(dir: &Path, tag: &str, manifest: &Descriptor) -> Result<()> {
    let path = dir.join("index.json");
    let mut index = if path.exists() {
        read_json(&path)?
    } else {
        Index {
            schema_version: 2,
            media_type: media_types::OCI_INDEX.to_owned(),
            artifact_type: None,
            manifests: Vec::new(),
            subject: None,
            annotations: Default::default(),
        }
    };
    index
        .manifests
        .retain(|entry| entry.annotation(annotations::REF_NAME) != Some(tag));
    index
        .manifests
        .push(manifest.clone().annotated(annotations::REF_NAME, tag));
    std::fs::write(&path, soci_oci::json::to_vec(&index)?).context("write index.json")?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
        .context("write oci-layout")
}

/// Pushes what the layout lists under `tag` to `repository:tag`, blobs first. An index goes with
/// all its manifests. A layout with a single entry that has no name matches every tag.
///
/// # Errors
/// When the layout is broken or the registry refuses something.
pub fn push(dir: &Path, tag: &str, registry: SocketAddr, repository: &str) -> Result<Descriptor> {
    let index: Index = read_json(&dir.join("index.json"))?;
    let named = index
        .manifests
        .iter()
        .find(|entry| entry.annotation(annotations::REF_NAME) == Some(tag));
    let only = || {
        index
            .manifests
            .first()
            .filter(|_| index.manifests.len() == 1)
    };
    let entry = named
        .or_else(only)
        .with_context(|| format!("{} lists no {tag}", dir.display()))?;
    push_manifest(dir, entry, registry, repository, tag)?;
    Ok(entry.clone())
}

fn push_manifest(
    dir: &Path,
    entry: &Descriptor,
    registry: SocketAddr,
    repository: &str,
    key: &str,
) -> Result<()> {
    let path = blob_path(dir, entry.digest);
    if media_types::is_index(&entry.media_type) {
        let index: Index = read_json(&path)?;
        for child in index
            .manifests
            .iter()
            .filter(|child| blob_path(dir, child.digest).exists())
        {
            push_manifest(dir, child, registry, repository, &child.digest.to_string())?;
        }
    } else {
        let manifest: Manifest = read_json(&path)?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            push_blob(dir, blob.digest, registry, repository)?;
        }
    }
    let body = std::fs::read(&path)?;
    let target = format!("/v2/{repository}/manifests/{key}");
    let kind = [("Content-Type", entry.media_type.as_str())];
    let answer = http_request(registry, "PUT", &target, &kind, &body)?;
    ensure!(
        answer.status == 201,
        "PUT {target}: status {}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    Ok(())
}

fn push_blob(dir: &Path, digest: Digest, registry: SocketAddr, repository: &str) -> Result<()> {
    let there = format!("/v2/{repository}/blobs/{digest}");
    if http_request(registry, "HEAD", &there, &[], b"")?.status == 200 {
        return Ok(());
    }
    let start = format!("/v2/{repository}/blobs/uploads/");
    let started = http_request(registry, "POST", &start, &[], b"")?;
    let location = started
        .header("location")
        .with_context(|| format!("POST {start}: no location"))?;
    let target = location
        .strip_prefix(&format!("http://{registry}"))
        .unwrap_or(location);
    let joint = if target.contains('?') { '&' } else { '?' };
    let target = format!("{target}{joint}digest={digest}");
    let path = blob_path(dir, digest);
    let body = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let kind = [("Content-Type", "application/octet-stream")];
    let answer = http_request(registry, "PUT", &target, &kind, &body)?;
    ensure!(
        answer.status == 201,
        "upload of {digest}: status {}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    Ok(())
}

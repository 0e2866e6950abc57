//! Entry points of the fuzz targets: what registries answer and operators write, in any bytes.

use std::path::Path;

use http::HeaderMap;
use http::header::{HeaderValue, WWW_AUTHENTICATE};

use soci_oci::Reference;

use crate::docker_config::DockerConfigCredentials;
use crate::{challenge, hosts_toml, list_page, range};

/// `WWW-Authenticate`: each line of the input is a value of the header.
pub fn challenge(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let _ = challenge::choose(&headers);
}

/// `Content-Range`: what is understood lies within the whole.
///
/// # Panics
/// When that does not hold.
pub fn content_range(data: &[u8]) {
    let Some(range) = text(data).and_then(range::parse_content_range) else {
        return;
    };
    assert!(!range.bytes.is_empty());
    assert!(range.total.is_none_or(|total| range.bytes.end <= total));
}

/// `Link`: the next page is a part of the header.
///
/// # Panics
/// When that does not hold.
pub fn link(data: &[u8]) {
    let Some(header) = text(data) else { return };
    if let Some(next) = list_page::next_link(header) {
        assert!(header.contains(next));
    }
}

/// A Docker configuration of a cluster's secret, and an error that repeats no value of it.
///
/// # Panics
/// When that does not hold.
pub fn docker_config(data: &[u8]) {
    let reference: Option<Reference> = "registry.example/app:1".parse().ok();
    for (host, reference) in [
        ("registry.example", reference.as_ref()),
        ("docker.io", None),
        ("localhost:5000", None),
    ] {
        if let Err(error) = DockerConfigCredentials::auths_in(data, host, reference) {
            let said = error.to_string();
            assert!(
                !said.contains("hunter2"),
                "an error repeats a secret: {said}"
            );
        }
    }
}

/// containerd's `hosts.toml`.
pub fn hosts_toml(data: &[u8]) {
    if let Some(data) = text(data) {
        let _ = hosts_toml::parse(data, Path::new("/nonexistent"), "registry.example");
    }
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

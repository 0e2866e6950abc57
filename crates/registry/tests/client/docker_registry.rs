//! Against the real `docker-registry` (distribution). Needs that program: Debian's package
//! `docker-registry`. It listens on a loopback port of its own and keeps its data in a temporary folder.

use bytes::Bytes;
use futures::TryStreamExt;
use soci_oci::{Descriptor, Digest, Reference, media_types};
use soci_registry::{BlobSource, Deadline, PushOutcome};
use soci_testkit::Registry;

use crate::fake::{client, descriptor, noise};

/// A reference to an image in a registry.
fn image_at(server: &Registry, rest: &str) -> Reference {
    server.reference(rest).parse().unwrap()
}

/// Pushes an image of one layer and a config; returns its manifest.
async fn push_image(
    server: &Registry,
    reference: &Reference,
    layer: &Bytes,
) -> (Descriptor, Bytes) {
    let client = client();
    let config = Bytes::from_static(b"{}");
    let mut manifest = soci_oci::Manifest {
        schema_version: 2,
        media_type: media_types::OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config: Descriptor::of(media_types::OCI_CONFIG, &config),
        layers: vec![Descriptor::of(media_types::OCI_LAYER, layer)],
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    manifest
        .annotations
        .insert("from".to_owned(), server.address().to_string());
    for (descriptor, data) in [(&manifest.config, &config), (&manifest.layers[0], layer)] {
        let outcome = client
            .push_blob(reference, descriptor, data.clone().into(), None, None)
            .await
            .unwrap();
        assert_eq!(outcome, PushOutcome::Uploaded);
    }
    let bytes = Bytes::from(soci_oci::json::to_vec(&manifest).unwrap());
    let digest = client
        .push_manifest(reference, media_types::OCI_MANIFEST, bytes.clone())
        .await
        .unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    (Descriptor::of(media_types::OCI_MANIFEST, &bytes), bytes)
}

#[tokio::test]
async fn what_is_pushed_can_be_resolved_and_read_in_every_way() {
    let server = Registry::start().unwrap();
    let reference = image_at(&server, "a/b:t");
    // Large enough for PATCH and for parallel ranges.
    let layer = noise((20 << 20) + 3);
    let (image, bytes) = push_image(&server, &reference, &layer).await;
    let client = client();
    assert_eq!(client.resolve(&reference).await.unwrap(), image);
    assert_eq!(
        client.resolve(&reference.at(image.digest)).await.unwrap(),
        image
    );
    let (found, read) = client.manifest(&reference, "t").await.unwrap();
    assert_eq!((found, read), (image.clone(), bytes));
    assert!(client.manifest_exists(&reference).await.unwrap());
    assert!(
        !client
            .manifest_exists(&image_at(&server, "a/b:none"))
            .await
            .unwrap()
    );
    let wanted = Descriptor::of(media_types::OCI_LAYER, &layer);
    assert!(client.blob_bytes(&reference, &wanted).await.unwrap() == layer);
    let stream = client.blob_stream(&reference, &wanted).await.unwrap();
    let pieces: Vec<Bytes> = stream.try_collect().await.unwrap();
    assert!(pieces.concat() == layer);
    let blob = client.blob(&reference, &wanted);
    for (from, to) in [
        (0, 1),
        (1_000_000, 9_000_000),
        (layer.len() - 1, layer.len()),
    ] {
        let got = blob
            .read_range(from as u64..to as u64, Deadline::far())
            .await
            .unwrap();
        assert!(got == layer.slice(from..to));
    }
    assert!(!blob.ignores_ranges());
    let missing = client.blob_bytes(&reference, &descriptor(b"missing")).await;
    assert!(missing.unwrap_err().is_not_found());
}

#[tokio::test]
async fn blobs_are_mounted_from_other_repositories() {
    let server = Registry::start().unwrap();
    let layer = noise(1000);
    push_image(&server, &image_at(&server, "a/b:t"), &layer).await;
    let client = client();
    let other = image_at(&server, "c/d:t");
    let wanted = descriptor(&layer);
    // The registry must not need the body.
    let nothing = soci_registry::BlobBody::File("/nonexistent".into());
    let outcome = client
        .push_blob(&other, &wanted, nothing.clone(), Some("a/b"), None)
        .await
        .unwrap();
    assert_eq!(outcome, PushOutcome::Mounted);
    let again = client
        .push_blob(&other, &wanted, nothing, None, None)
        .await
        .unwrap();
    assert_eq!(again, PushOutcome::Exists);
    assert!(client.blob_bytes(&other, &wanted).await.unwrap() == layer);
}

#[tokio::test]
async fn referrers_are_kept_under_their_tag() {
    let server = Registry::start().unwrap();
    let reference = image_at(&server, "a/b:t");
    let (image, _) = push_image(&server, &reference, &noise(100)).await;
    let client = client();
    let found = client
        .referrers(&reference, image.digest, None)
        .await
        .unwrap();
    assert!(found.is_empty());
    let ztoc = noise(2000);
    let layers = vec![Descriptor::of(media_types::ZTOC, &ztoc)];
    let config = Bytes::from_static(b"{}");
    let index = soci_oci::Manifest {
        schema_version: 2,
        media_type: media_types::OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config: Descriptor::of(media_types::SOCI_INDEX_V1, &config),
        layers,
        subject: Some(image.clone()),
        annotations: std::collections::BTreeMap::new(),
    };
    client
        .push_blob(&reference, &index.layers[0], ztoc.into(), None, None)
        .await
        .unwrap();
    let bytes = Bytes::from(soci_oci::json::to_vec(&index).unwrap());
    let at = reference.at(Digest::of(&bytes));
    let digest = client
        .push_manifest(&at, media_types::OCI_MANIFEST, bytes)
        .await
        .unwrap();
    let found = client
        .referrers(&reference, image.digest, Some(media_types::SOCI_INDEX_V1))
        .await
        .unwrap();
    assert_eq!(found.iter().map(|d| d.digest).collect::<Vec<_>>(), [digest]);
}

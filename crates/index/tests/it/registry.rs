//! From and to a real registry (Debian's `docker-registry`, private, on loopback).

use std::path::Path;
use std::sync::Arc;

use crate::images::{dir_to_dir, every_layer, golden, run, top};
use soci_discovery::{LazyReport, NoIndex, RegistryManifests};
use soci_index::{DirSink, Image, LayoutSource, RegistrySink, RegistrySource, SharedSource};
use soci_layer::LayerRefusal;
use soci_oci::{Descriptor, Digest, Manifest, Reference, annotations};
use soci_registry::{Client, ClientConfig, NoCredentials};
use soci_testkit::proxy::RequestRecord;
use soci_testkit::{Fault, Proxy, Registry, Rule};

fn client() -> Client {
    Client::new(ClientConfig::default(), Arc::new(NoCredentials)).unwrap()
}

fn reference(registry: &Registry, name: &str) -> Reference {
    registry.reference(name).parse().unwrap()
}

fn source(registry: &Registry, name: &str) -> SharedSource {
    Arc::new(RegistrySource::new(client(), reference(registry, name)))
}

fn sink(registry: &Registry, name: &str) -> Box<RegistrySink> {
    Box::new(RegistrySink::create(client(), reference(registry, name)).unwrap())
}

/// The golden image `kinds` at `kinds/image:kinds`.
fn push(registry: &Registry) {
    registry
        .push_layout(&golden("kinds").join("image"), "kinds", "kinds/image")
        .unwrap();
}

fn local(dir: &Path) -> soci_index::Converted {
    dir_to_dir(
        &golden("kinds").join("image"),
        &dir.join("local"),
        &every_layer(),
    )
    .unwrap()
    .0
}

/// The image at the registry is complete: copied out to a folder it equals the local conversion.
fn assert_same_as_local(registry: &Registry, name: &str, dir: &Path) {
    let expected = local(dir);
    let fetched = dir.join("fetched");
    // Converting again reuses everything, so that it fetches each blob that the image names.
    let (converted, lines) = run(
        source(registry, name),
        Box::new(DirSink::create(&fetched).unwrap()),
        &every_layer(),
    )
    .unwrap();
    assert!(
        lines.iter().all(|line| line.ends_with("(already exists)")),
        "{lines:?}"
    );
    assert_eq!(converted, expected);
    let names = |folder: &str| crate::images::names(&dir.join(folder).join("blobs/sha256"));
    assert_eq!(names("fetched"), names("local"));
    crate::images::assert_intact(&fetched);
}

#[test]
fn from_repository_to_repository_each_layer_is_read_once_and_never_uploaded() {
    let registry = Registry::start().unwrap();
    push(&registry);
    let proxy = Proxy::start(registry.address()).unwrap();
    let seen = |name: &str| -> Reference { proxy.reference(name).parse().unwrap() };
    let (converted, lines) = run(
        Arc::new(RegistrySource::new(client(), seen("kinds/image:kinds"))),
        Box::new(RegistrySink::create(client(), seen("kinds/converted:soci")).unwrap()),
        &every_layer(),
    )
    .unwrap();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let stats = proxy.stats();
    let layout = golden("kinds").join("image");
    for layer in crate::images::manifest(&layout, top(&layout).digest).layers {
        assert_eq!(
            stats
                .of(|r| r.method == "GET" && r.path.contains(&layer.digest.hex()))
                .bytes,
            layer.size
        );
        let uploads = |r: &RequestRecord| r.method == "PUT" && r.path.contains(&layer.digest.hex());
        assert_eq!(stats.of(uploads).requests, 0);
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(converted, local(dir.path()));
    std::fs::remove_dir_all(dir.path().join("local")).unwrap();
    assert_same_as_local(&registry, "kinds/converted:soci", dir.path());
}

#[test]
fn an_image_may_be_converted_in_its_place() {
    let registry = Registry::start().unwrap();
    push(&registry);
    run(
        source(&registry, "kinds/image:kinds"),
        sink(&registry, "kinds/image:kinds"),
        &every_layer(),
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert_same_as_local(&registry, "kinds/image:kinds", dir.path());
}

#[test]
fn from_one_registry_to_another_every_blob_is_uploaded() {
    let (first, second) = (Registry::start().unwrap(), Registry::start().unwrap());
    push(&first);
    run(
        source(&first, "kinds/image:kinds"),
        sink(&second, "copy:1"),
        &every_layer(),
    )
    .unwrap();
    assert_same_as_local(&second, "copy:1", tempfile::tempdir().unwrap().path());
}

#[test]
fn a_layout_goes_to_a_registry_and_an_archive_too() {
    let registry = Registry::start().unwrap();
    let layout = Arc::new(LayoutSource::open(&golden("kinds").join("image")).unwrap());
    run(layout, sink(&registry, "from-dir:1"), &every_layer()).unwrap();
    assert_same_as_local(&registry, "from-dir:1", tempfile::tempdir().unwrap().path());

    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("image.tar");
    let status = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(golden("kinds").join("image"))
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success());
    run(
        crate::images::archive(&tar).unwrap(),
        sink(&registry, "from-tar:1"),
        &every_layer(),
    )
    .unwrap();
    assert_same_as_local(&registry, "from-tar:1", tempfile::tempdir().unwrap().path());
}

#[test]
fn the_tag_comes_last() {
    let registry = Registry::start().unwrap();
    push(&registry);
    // Every layer is below the limit: an empty index, found out after the layers were copied.
    let error = run(
        source(&registry, "kinds/image:kinds"),
        sink(&registry, "kinds/empty:1"),
        &soci_index::ConvertOptions::default(),
    )
    .unwrap_err();
    assert!(
        matches!(error, soci_index::IndexError::EmptyIndex { .. }),
        "{error}"
    );
    let resolved = tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(client().resolve(&reference(&registry, "kinds/empty:1")));
    assert!(resolved.unwrap_err().is_not_found());
}

#[test]
fn the_report_shows_which_layers_can_be_lazy_and_why_not() {
    let registry = Registry::start().unwrap();
    push(&registry);
    let options = soci_index::ConvertOptions {
        min_layer_size: 1000,
        ..every_layer()
    };
    run(
        source(&registry, "kinds/image:kinds"),
        sink(&registry, "kinds/soci:1"),
        &options,
    )
    .unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let client = client();
        let plain = reference(&registry, "kinds/image:kinds");
        let (descriptor, manifest) = read_manifest(&client, &plain).await;
        let report = lazy_report(&client, &plain, descriptor.digest, &manifest, None).await;
        assert!(matches!(
            report.index,
            Err(NoIndex::NotIndexed { source: None, .. })
        ));
        for (_, ztoc) in &report.layers {
            assert!(
                matches!(ztoc, Err(LayerRefusal::NotIndexed { .. })),
                "{ztoc:?}"
            );
        }

        let converted = reference(&registry, "kinds/soci:1");
        let (descriptor, manifest) = read_manifest(&client, &converted).await;
        let report = lazy_report(&client, &converted, descriptor.digest, &manifest, None).await;
        assert_eq!(
            report.index.as_ref().unwrap().digest.to_string(),
            manifest.annotations[annotations::INDEX_DIGEST]
        );
        assert!(report.layers[0].1.is_ok());
        let refusal = report.layers[1].1.as_ref().unwrap_err();
        assert!(refusal.to_string().contains("min-layer-size"), "{refusal}");
        // An index that is named but not there.
        let gone = Digest::of(b"nothing");
        let report = lazy_report(
            &client,
            &converted,
            descriptor.digest,
            &manifest,
            Some(gone),
        )
        .await;
        let none = report.index.unwrap_err();
        assert!(matches!(
            none,
            NoIndex::NotIndexed {
                source: Some(_),
                ..
            }
        ));
        let text = soci_errors::chain(&none);
        assert!(
            text.contains("missing SOCI index") && text.contains("404"),
            "{text}"
        );
    });
}

async fn lazy_report(
    client: &Client,
    reference: &Reference,
    digest: Digest,
    manifest: &Manifest,
    explicit: Option<Digest>,
) -> LazyReport {
    let source = RegistryManifests::new(client.clone(), reference.clone());
    soci_discovery::lazy_report(&source, digest, manifest, explicit).await
}

async fn read_manifest(client: &Client, reference: &Reference) -> (Descriptor, Manifest) {
    let source = RegistrySource::new(client.clone(), reference.clone());
    let image = Image::load(&source).await.unwrap();
    let entry = image
        .entries
        .into_iter()
        .find(|entry| entry.platform().is_some())
        .unwrap();
    let soci_index::EntryContent::Image { manifest, .. } = entry.content else {
        panic!("an image")
    };
    (entry.descriptor, manifest)
}

#[test]
fn a_layer_that_the_registry_corrupts_is_never_indexed() {
    let registry = Registry::start().unwrap();
    push(&registry);
    let layout = golden("kinds").join("image");
    let layer = crate::images::manifest(&layout, top(&layout).digest).layers[0].clone();
    let proxy = Proxy::start(registry.address()).unwrap();
    proxy.inject(Rule::always(Fault::CorruptBlob(1000)).blob(layer.digest));
    let reference: Reference = format!("{}/kinds/image:kinds", proxy.address())
        .parse()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = run(
        Arc::new(RegistrySource::new(client(), reference)),
        Box::new(DirSink::create(&dir.path().join("out")).unwrap()),
        &every_layer(),
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains(&layer.digest.to_string()), "{error}");
    assert_eq!(crate::images::names(dir.path()), Vec::<String>::new());
    assert!(proxy.faults_injected() > 0);
}

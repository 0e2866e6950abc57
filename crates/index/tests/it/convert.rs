//! What a conversion does and leaves: reuse, replacement, platforms, options, formats.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::images::{
    archive, assert_intact, blob, dir_to_dir, every_layer, golden, image_index, manifest, names,
    run, top,
};
use soci_index::{ArchiveSink, ConvertOptions, DirSink, IndexError, LayoutSource, Platforms};
use soci_oci::{Descriptor, Digest, Index, Platform, annotations, media_types};
use soci_testkit::{Content, ImageBuilder, Layer, LayerCompression};
use soci_ztoc::prefetch::Prefetch;
use soci_ztoc::soci_index::SociIndex;

/// The SOCI indexes that a converted layout lists.
fn soci_indexes(layout: &Path) -> Vec<(Descriptor, SociIndex)> {
    image_index(layout)
        .manifests
        .into_iter()
        .filter(|d| d.artifact_type.is_some())
        .map(|d| {
            let index = SociIndex::parse(&blob(layout, d.digest)).unwrap();
            (d, index)
        })
        .collect()
}

/// An image of two layers: a large one with a lot of files, and a small one.
fn two_layers(dir: &Path) -> PathBuf {
    let image = dir.join("image");
    ImageBuilder::new()
        .layer(
            Layer::new()
                .dir("usr")
                .file(
                    "usr/big",
                    Content::Noise {
                        seed: 1,
                        length: 900_000,
                    },
                )
                .file(
                    "usr/more",
                    Content::Text {
                        seed: 2,
                        length: 900_000,
                    },
                ),
        )
        .layer(
            Layer::new()
                .text("etc/small", "hello\n")
                .xattr("user.a", b"b"),
        )
        .write(&image, "v1")
        .unwrap();
    image
}

/// A layout that lists the golden image for several platforms (different configurations).
fn multi_platform(dir: &Path, platforms: &[&str]) -> PathBuf {
    let layout = dir.join("multi");
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    };
    let source = golden("kinds").join("image");
    for name in names(&source.join("blobs/sha256")) {
        let from = source.join("blobs/sha256").join(&name);
        std::fs::copy(from, layout.join("blobs/sha256").join(&name)).unwrap();
    }
    let mut list = Index {
        schema_version: 2,
        media_type: media_types::DOCKER_LIST.to_owned(),
        artifact_type: None,
        manifests: Vec::new(),
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    for text in platforms {
        let platform: Platform = text.parse().unwrap();
        let original = manifest(&source, top(&source).digest);
        let mut config: serde_json::Value =
            serde_json::from_slice(&blob(&source, original.config.digest)).unwrap();
        config["architecture"] = platform.architecture.clone().into();
        let config = serde_json::to_vec(&config).unwrap();
        put(&config);
        let mut changed = original;
        changed.media_type = media_types::DOCKER_MANIFEST.to_owned();
        changed.config = Descriptor::of(media_types::DOCKER_CONFIG, &config);
        let bytes = soci_oci::json::to_vec(&changed).unwrap();
        put(&bytes);
        let mut listed = Descriptor::of(media_types::DOCKER_MANIFEST, &bytes);
        listed.platform = Some(platform);
        list.manifests.push(listed);
    }
    let bytes = soci_oci::json::to_vec(&list).unwrap();
    put(&bytes);
    let root = Index {
        media_type: media_types::OCI_INDEX.to_owned(),
        manifests: vec![Descriptor::of(media_types::DOCKER_LIST, &bytes)],
        ..list
    };
    std::fs::write(
        layout.join("index.json"),
        soci_oci::json::to_vec(&root).unwrap(),
    )
    .unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    layout
}

#[test]
fn converting_a_converted_image_replaces_and_never_duplicates() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = ["1", "2", "3"].map(|name| dir.path().join(name));
    let (once, lines) = dir_to_dir(&golden("kinds").join("image"), &first, &every_layer()).unwrap();
    assert!(
        lines.iter().all(|line| !line.contains("already")),
        "{lines:?}"
    );
    let (twice, lines) = dir_to_dir(&first, &second, &every_layer()).unwrap();
    assert_eq!(once, twice);
    assert!(
        lines.iter().all(|line| line.ends_with("(already exists)")),
        "{lines:?}"
    );
    assert_eq!(
        names(&first.join("blobs/sha256")),
        names(&second.join("blobs/sha256"))
    );

    // Another span size: new zTOCs, and the old index is gone.
    let wider = ConvertOptions {
        span_size: 1 << 20,
        ..every_layer()
    };
    let (other, lines) = dir_to_dir(&first, &third, &wider).unwrap();
    assert!(
        lines.iter().all(|line| !line.contains("already")),
        "{lines:?}"
    );
    assert_ne!(once.index, other.index);
    let indexes = soci_indexes(&third);
    assert_eq!(indexes.len(), 1);
    assert_eq!(indexes[0].1.ztocs[0].span_size, Some(1 << 20));
    assert!(!names(&third.join("blobs/sha256")).contains(&once.images[0].soci_index.hex()));
    assert_intact(&third);
}

#[test]
fn force_builds_again_and_makes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["1", "2"].map(|name| dir.path().join(name));
    let (once, _) = dir_to_dir(&golden("kinds").join("image"), &first, &every_layer()).unwrap();
    let force = ConvertOptions {
        force: true,
        ..every_layer()
    };
    let (twice, lines) = dir_to_dir(&first, &second, &force).unwrap();
    assert_eq!(once, twice);
    assert!(
        lines.iter().all(|line| !line.contains("already")),
        "{lines:?}"
    );
}

#[test]
fn an_archive_holds_what_a_directory_holds_and_its_bytes_depend_on_the_image_alone() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("dir");
    let source = golden("kinds").join("image");
    let (expected, _) = dir_to_dir(&source, &layout, &every_layer()).unwrap();
    let mut archives = Vec::new();
    for name in ["a.tar", "b.tar"] {
        let path = dir.path().join(name);
        let sink = Box::new(ArchiveSink::create(&path).unwrap());
        let source = Arc::new(LayoutSource::open(&source).unwrap());
        let (converted, _) = run(source, sink, &every_layer()).unwrap();
        assert_eq!(converted, expected);
        archives.push(std::fs::read(&path).unwrap());
    }
    assert!(archives[0] == archives[1]);
    // Any tar program reads it.
    let unpacked = dir.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let tar = std::process::Command::new("tar")
        .args(["-xf", "a.tar", "-C", "unpacked"])
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(tar.success());
    assert_intact(&unpacked);
    for name in ["index.json", "oci-layout"] {
        assert_eq!(
            std::fs::read(unpacked.join(name)).unwrap(),
            std::fs::read(layout.join(name)).unwrap()
        );
    }
    let blobs = |layout: &Path| names(&layout.join("blobs/sha256"));
    assert_eq!(blobs(&unpacked), blobs(&layout));
    // And so do we.
    let again = dir.path().join("again");
    let sink = Box::new(DirSink::create(&again).unwrap());
    let (converted, lines) = run(
        archive(&dir.path().join("a.tar")).unwrap(),
        sink,
        &every_layer(),
    )
    .unwrap();
    assert_eq!(converted, expected);
    assert!(
        lines.iter().all(|line| line.ends_with("(already exists)")),
        "{lines:?}"
    );
    assert_eq!(blobs(&again), blobs(&layout));
    assert_eq!(
        names(dir.path()),
        ["a.tar", "again", "b.tar", "dir", "unpacked"]
    );
}

#[test]
fn small_layers_are_copied_but_get_no_ztoc() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers(dir.path());
    let out = dir.path().join("out");
    let options = ConvertOptions {
        min_layer_size: 100_000,
        ..every_layer()
    };
    let (converted, lines) = dir_to_dir(&image, &out, &options).unwrap();
    assert_eq!(converted.images[0].indexed_layers, 1);
    assert!(lines[0].contains(" -> ztoc "), "{lines:?}");
    assert!(
        lines[1].starts_with("ztoc skipped - layer sha256:"),
        "{lines:?}"
    );
    assert!(
        lines[1].ends_with("is less than min-layer-size 100000"),
        "{lines:?}"
    );
    let image_manifest = manifest(&out, converted.images[0].manifest);
    for layer in &image_manifest.layers {
        assert_eq!(blob(&out, layer.digest).len() as u64, layer.size);
    }
    let [(_, index)] = &soci_indexes(&out)[..] else {
        panic!("one index")
    };
    assert_eq!(index.ztocs.len(), 1);
    assert_eq!(index.ztocs[0].layer_digest, image_manifest.layers[0].digest);
}

#[test]
fn an_image_whose_every_layer_is_skipped_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers(dir.path());
    let out = dir.path().join("out");
    let error = dir_to_dir(&image, &out, &ConvertOptions::default()).unwrap_err();
    assert!(matches!(error, IndexError::EmptyIndex { .. }));
    assert!(error.to_string().starts_with("empty index"), "{error}");
    assert_eq!(names(dir.path()), ["image"]);
}

#[test]
fn a_zstd_layer_is_skipped_with_a_line_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (converted, lines) = dir_to_dir(
        &golden("zstd-mixed").join("image"),
        &dir.path().join("out"),
        &every_layer(),
    )
    .unwrap();
    assert_eq!(converted.images[0].indexed_layers, 1);
    assert!(
        lines[0].contains("ztoc skipped") && lines[0].contains("zstd"),
        "{lines:?}"
    );
}

#[test]
fn a_layer_that_no_ztoc_can_describe_is_left_out_of_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    // Type 'S' is GNU tar's sparse file.
    let mut sparse = tar_header("sparse", b'S');
    sparse.extend([0; 512]);
    ImageBuilder::new()
        .layer(Layer::new().text("a", "a"))
        .layer(Layer::new().raw(sparse))
        .write(&image, "v1")
        .unwrap();
    let out = dir.path().join("out");
    let (converted, lines) = dir_to_dir(&image, &out, &every_layer()).unwrap();
    assert_eq!(converted.images[0].indexed_layers, 1);
    assert!(
        lines[1].starts_with("ztoc skipped") && lines[1].contains("sparse"),
        "{lines:?}"
    );
    for layer in manifest(&out, converted.images[0].manifest).layers {
        assert_eq!(blob(&out, layer.digest).len() as u64, layer.size);
    }
    assert_intact(&out);
}

/// A ustar header (POSIX.1-1988) of an empty entry.
fn tar_header(name: &str, kind: u8) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(b"00000001000\0");
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[test]
fn the_xattr_optimization_marks_only_layers_without_any() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    ImageBuilder::new()
        .layer(Layer::new().text("plain", "a"))
        .layer(Layer::new().text("with", "b").xattr("user.a", b"b"))
        .layer(Layer::new().dir("d").opaque("d"))
        .layer(Layer::new().text("other-record", "c").pax("comment", b"x"))
        .write(&image, "v1")
        .unwrap();
    let out = dir.path().join("out");
    let options = ConvertOptions {
        optimize_xattrs: true,
        ..every_layer()
    };
    dir_to_dir(&image, &out, &options).unwrap();
    let [(_, index)] = &soci_indexes(&out)[..] else {
        panic!("one index")
    };
    let marked: Vec<bool> = index.ztocs.iter().map(|ztoc| ztoc.disable_xattrs).collect();
    assert_eq!(marked, [true, false, false, true]);
}

#[test]
fn the_files_to_prefetch_are_listed_as_spans_of_the_uppermost_layer_that_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    ImageBuilder::new()
        .layer(
            Layer::new()
                .file(
                    "opt/first",
                    Content::Noise {
                        seed: 1,
                        length: 400_000,
                    },
                )
                .file(
                    "opt/second",
                    Content::Noise {
                        seed: 2,
                        length: 400_000,
                    },
                )
                .hardlink("opt/linked", "opt/second"),
        )
        .layer(Layer::new().file(
            "opt/first",
            Content::Noise {
                seed: 3,
                length: 300_000,
            },
        ))
        .write(&image, "v1")
        .unwrap();
    let out = dir.path().join("out");
    let options = ConvertOptions {
        prefetch_files: ["/opt/first", "opt/linked", "./opt/second", "/none"]
            .map(ToOwned::to_owned)
            .to_vec(),
        ..every_layer()
    };
    let (_, lines) = dir_to_dir(&image, &out, &options).unwrap();
    let [(_, index)] = &soci_indexes(&out)[..] else {
        panic!("one index")
    };
    let layers: Vec<Digest> = index.ztocs.iter().map(|ztoc| ztoc.layer_digest).collect();
    let of: Vec<Digest> = index
        .prefetch
        .iter()
        .map(|prefetch| prefetch.layer_digest)
        .collect();
    assert_eq!(of, layers);
    let spans = |at: usize| {
        let bytes = blob(&out, index.prefetch[at].descriptor.digest);
        Prefetch::parse(&bytes).unwrap().prefetch_spans
    };
    // `second` lies behind the first 400,000 bytes: past span 2 of 131,072 bytes each.
    let [lower] = spans(0)[..] else {
        panic!("one run")
    };
    assert!(
        lower.start_span >= 2 && lower.end_span > lower.start_span,
        "{lower:?}"
    );
    assert_eq!(spans(1)[0].start_span, 0);
    let told = |text: &str| lines.iter().filter(|line| line.starts_with(text)).count();
    assert_eq!(told("prefetch "), 2, "{lines:?}");
    assert_eq!(
        told("warning: prefetch file /none not found"),
        1,
        "{lines:?}"
    );
}

#[test]
fn only_the_chosen_platforms_get_an_index_and_all_become_oci_images() {
    let dir = tempfile::tempdir().unwrap();
    let image = multi_platform(dir.path(), &["linux/amd64", "linux/arm64", "linux/riscv64"]);
    let out = dir.path().join("out");
    let options = ConvertOptions {
        platforms: Platforms::These(vec!["linux/arm64/v8".parse().unwrap()]),
        ..every_layer()
    };
    let (converted, _) = dir_to_dir(&image, &out, &options).unwrap();
    assert_intact(&out);
    let [only] = &converted.images[..] else {
        panic!("one image")
    };
    assert_eq!(only.platform.to_string(), "linux/arm64");
    let index = image_index(&out);
    assert_eq!(index.media_type, media_types::OCI_INDEX);
    assert_eq!(index.manifests.len(), 4);
    for (at, listed) in index.manifests.iter().take(3).enumerate() {
        assert_eq!(listed.media_type, media_types::OCI_MANIFEST);
        let image = manifest(&out, listed.digest);
        assert_eq!(image.media_type, media_types::OCI_MANIFEST);
        assert_eq!(image.config.media_type, media_types::OCI_CONFIG);
        assert_eq!(image.annotations, listed.annotations);
        assert_eq!(
            image.annotations.contains_key(annotations::INDEX_DIGEST),
            at == 1
        );
        blob(&out, image.config.digest);
    }
    let soci = &index.manifests[3];
    assert_eq!(soci.digest, only.soci_index);
    assert_eq!(
        soci.annotation(annotations::IMAGE_MANIFEST_DIGEST),
        Some(only.manifest.to_string().as_str())
    );

    // Then another platform: the first index stays, and still names its image.
    let more = dir.path().join("more");
    let options = ConvertOptions {
        platforms: Platforms::These(vec!["linux/riscv64".parse().unwrap()]),
        ..every_layer()
    };
    let (converted, lines) = dir_to_dir(&out, &more, &options).unwrap();
    assert_intact(&more);
    assert!(
        lines.iter().all(|line| line.ends_with("(already exists)")),
        "{lines:?}"
    );
    let index = image_index(&more);
    assert_eq!(index.manifests.len(), 5);
    let listed: BTreeSet<Digest> = index.manifests.iter().map(|d| d.digest).collect();
    for (descriptor, _) in soci_indexes(&more) {
        let image = descriptor
            .annotation(annotations::IMAGE_MANIFEST_DIGEST)
            .unwrap();
        assert!(listed.contains(&image.parse().unwrap()));
    }
    assert_eq!(converted.images[0].platform.to_string(), "linux/riscv64");
}

#[test]
fn all_platforms_means_every_image_and_an_unknown_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = multi_platform(dir.path(), &["linux/amd64", "linux/arm64"]);
    let all = ConvertOptions {
        platforms: Platforms::All,
        ..every_layer()
    };
    let out = dir.path().join("all");
    let (converted, lines) = dir_to_dir(&image, &out, &all).unwrap();
    assert_eq!(converted.images.len(), 2);
    // The images share their layers: each is indexed once.
    assert_eq!(lines.len(), 2, "{lines:?}");
    let none = ConvertOptions {
        platforms: Platforms::These(vec!["linux/s390x".parse().unwrap()]),
        ..every_layer()
    };
    let error = dir_to_dir(&image, &dir.path().join("none"), &none)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("linux/s390x") && error.contains("linux/amd64, linux/arm64"),
        "{error}"
    );
}

#[test]
fn platforms_that_a_layout_does_not_hold_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let image = multi_platform(dir.path(), &["linux/amd64", "linux/arm64"]);
    let list: Index = serde_json::from_slice(&blob(&image, top(&image).digest)).unwrap();
    let gone = list.manifests[0].digest;
    std::fs::remove_file(image.join("blobs/sha256").join(gone.hex())).unwrap();
    let out = dir.path().join("out");
    let (converted, _) = dir_to_dir(&image, &out, &every_layer()).unwrap();
    assert_eq!(converted.images[0].platform.to_string(), "linux/arm64");
    assert_eq!(image_index(&out).manifests.len(), 2);
}

#[test]
fn an_attestation_is_copied_and_still_names_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = multi_platform(dir.path(), &["linux/amd64"]);
    let put = |bytes: &[u8]| {
        std::fs::write(
            image.join("blobs/sha256").join(Digest::of(bytes).hex()),
            bytes,
        )
        .unwrap();
    };
    let mut list: Index = serde_json::from_slice(&blob(&image, top(&image).digest)).unwrap();
    let statement = br#"{"_type":"https://in-toto.io/Statement/v0.1"}"#;
    put(statement);
    // Spaces: it must come through byte for byte.
    let attestation = format!(
        r#"{{ "schemaVersion": 2, "mediaType": "{}", "config": {}, "layers": [ {} ] }}"#,
        media_types::OCI_MANIFEST,
        serde_json::to_string(&Descriptor::of(media_types::OCI_CONFIG, b"{}")).unwrap(),
        serde_json::to_string(&Descriptor::of("application/vnd.in-toto+json", statement)).unwrap(),
    );
    put(b"{}");
    put(attestation.as_bytes());
    let mut listed = Descriptor::of(media_types::OCI_MANIFEST, attestation.as_bytes())
        .annotated("vnd.docker.reference.type", "attestation-manifest")
        .annotated(
            "vnd.docker.reference.digest",
            list.manifests[0].digest.to_string(),
        );
    listed.platform = Some(Platform::new("unknown", "unknown", None));
    list.manifests.push(listed.clone());
    let bytes = soci_oci::json::to_vec(&list).unwrap();
    put(&bytes);
    let root = Index {
        manifests: vec![Descriptor::of(media_types::OCI_INDEX, &bytes)],
        ..list
    };
    std::fs::write(
        image.join("index.json"),
        soci_oci::json::to_vec(&root).unwrap(),
    )
    .unwrap();

    let out = dir.path().join("out");
    let all = ConvertOptions {
        platforms: Platforms::All,
        ..every_layer()
    };
    let (converted, lines) = dir_to_dir(&image, &out, &all).unwrap();
    assert_eq!((converted.images.len(), lines.len()), (1, 2), "{lines:?}");
    let carried = &image_index(&out).manifests[1];
    assert_eq!(carried.digest, listed.digest);
    assert_eq!(
        carried.annotation("vnd.docker.reference.digest"),
        Some(converted.images[0].manifest.to_string().as_str())
    );
    assert_eq!(blob(&out, listed.digest), attestation.as_bytes());
    assert_eq!(blob(&out, Digest::of(statement)), statement);
}

#[test]
fn a_plain_tar_layer_is_indexed_too() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    ImageBuilder::new()
        .layer_with(
            Layer::new().file(
                "f",
                Content::Noise {
                    seed: 1,
                    length: 300_000,
                },
            ),
            LayerCompression::Plain,
        )
        .write(&image, "v1")
        .unwrap();
    let (converted, _) = dir_to_dir(&image, &dir.path().join("out"), &every_layer()).unwrap();
    assert_eq!(converted.images[0].indexed_layers, 1);
}

#[test]
fn an_empty_directory_may_be_the_destination() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    dir_to_dir(&golden("kinds").join("image"), &out, &every_layer()).unwrap();
    assert_intact(&out);
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn a_conversion_that_is_given_up_leaves_nothing_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers(dir.path());
    let out = dir.path().join("out");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let source: soci_index::SharedSource = Arc::new(LayoutSource::open(&image).unwrap());
        let sink = Box::new(DirSink::create(&out).unwrap());
        let options = every_layer();
        let work = soci_index::convert(&source, sink, &options, Arc::new(soci_index::Silent));
        // Dropped at its first await, after its threads have started.
        tokio::select! {
            biased;
            _ = work => panic!("it cannot be done at once"),
            () = std::future::ready(()) => {}
        }
    });
    drop(runtime);
    assert_eq!(names(dir.path()), ["image"]);
    dir_to_dir(&image, &out, &every_layer()).unwrap();
    assert_intact(&out);
}

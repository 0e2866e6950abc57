//! Images whose index also lists other things: none of them stops the work on the images beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::images::{assert_intact, blob, every_layer, image_index, run};
use soci_index::{
    ArchiveSink, ConvertOptions, DirSink, Image, IndexError, LayoutSource, Platforms, RegistrySink,
    RegistrySource, SharedSource, Silent, Source, create,
};
use soci_oci::{Descriptor, Digest, Index, Manifest, Platform, annotations, media_types};
use soci_registry::{Client, ClientConfig, NoCredentials};
use soci_testkit::{Content, ImageBuilder, Layer, Registry};

const ARTIFACT_MANIFEST: &str = "application/vnd.oci.artifact.manifest.v1+json";
const DOCKER_V1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

struct Layout(PathBuf);

impl Layout {
    fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        Self(dir.to_owned())
    }

    fn put(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let path = self.0.join("blobs/sha256");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(Digest::of(bytes).hex()), bytes).unwrap();
        Descriptor::of(media_type, bytes)
    }

    /// An image with a layer of its own.
    fn image(&self, os: &str, architecture: &str) -> Descriptor {
        let seed = architecture.bytes().map(u64::from).sum();
        let content = Content::Noise {
            seed,
            length: 20_000,
        };
        let written = ImageBuilder::new()
            .layer(Layer::new().file(&format!("data-{architecture}"), content))
            .write(&self.0, architecture)
            .unwrap();
        Descriptor {
            platform: Some(Platform {
                variant: (architecture == "arm64").then(|| "v8".to_owned()),
                ..Platform::new(os, architecture, None)
            }),
            annotations: BTreeMap::new(),
            ..written.manifest
        }
    }

    fn index(&self, manifests: Vec<Descriptor>) -> Descriptor {
        let index = Index {
            schema_version: 2,
            media_type: media_types::OCI_INDEX.to_owned(),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        };
        self.put(
            media_types::OCI_INDEX,
            &soci_oci::json::to_vec(&index).unwrap(),
        )
    }

    /// The layout's own list.
    fn list(&self, manifests: Vec<Descriptor>) {
        let listed = self.index(manifests);
        std::fs::write(self.0.join("index.json"), blob(&self.0, listed.digest)).unwrap();
    }

    fn sbom(&self) -> Descriptor {
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_types::OCI_MANIFEST.to_owned(),
            artifact_type: Some("application/spdx+json".to_owned()),
            config: self.put("application/vnd.oci.empty.v1+json", b"{}"),
            layers: vec![self.put("application/spdx+json", br#"{"sbom":true}"#)],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes = soci_oci::json::to_vec(&manifest).unwrap();
        self.put(media_types::OCI_MANIFEST, &bytes)
    }
}

/// Whether a conversion carries the entry or leaves it out with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Carried,
    LeftOut,
    /// It is an image, which gets an index like the others of its platform.
    Indexed,
}

type Kind = (&'static str, fn(&Layout) -> Descriptor, Fate);

const KINDS: [Kind; 12] = [
    (
        "an SBOM without an architecture",
        |layout| Descriptor {
            platform: Some(Platform::new("linux", "", None)),
            ..layout.sbom()
        },
        Fate::Carried,
    ),
    ("an SBOM without a platform", Layout::sbom, Fate::Carried),
    (
        "an SBOM for an unknown platform",
        |layout| Descriptor {
            platform: Some(Platform::new("unknown", "unknown", None)),
            ..layout.sbom()
        },
        Fate::Carried,
    ),
    (
        "a signature with an image's configuration",
        |layout| {
            let config = br#"{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}"#;
            let manifest = Manifest {
                schema_version: 2,
                media_type: media_types::OCI_MANIFEST.to_owned(),
                artifact_type: None,
                config: layout.put(media_types::OCI_CONFIG, config),
                layers: vec![layout.put("application/vnd.dev.cosign.simplesigning.v1+json", b"{}")],
                subject: None,
                annotations: BTreeMap::new(),
            };
            let bytes = soci_oci::json::to_vec(&manifest).unwrap();
            layout.put(media_types::OCI_MANIFEST, &bytes)
        },
        Fate::Carried,
    ),
    (
        "an index",
        |layout| layout.index(vec![layout.image("linux", "riscv64")]),
        Fate::Carried,
    ),
    (
        "an index with a platform",
        |layout| Descriptor {
            platform: Some(Platform::new("linux", "riscv64", None)),
            ..layout.index(vec![layout.image("linux", "riscv64")])
        },
        Fate::Carried,
    ),
    (
        "an artifact manifest",
        |layout| {
            let manifest = format!(r#"{{"mediaType":"{ARTIFACT_MANIFEST}","blobs":[]}}"#);
            layout.put(ARTIFACT_MANIFEST, manifest.as_bytes())
        },
        Fate::LeftOut,
    ),
    (
        "a blob",
        |layout| layout.put("application/octet-stream", b"just bytes"),
        Fate::LeftOut,
    ),
    (
        "a manifest of Docker's first schema",
        |layout| layout.put(DOCKER_V1, br#"{"schemaVersion":1,"signatures":[]}"#),
        Fate::LeftOut,
    ),
    (
        "an absent image of another platform",
        |_| Descriptor {
            platform: Some(Platform::new("linux", "s390x", None)),
            ..Descriptor::of(media_types::OCI_MANIFEST, b"gone")
        },
        Fate::LeftOut,
    ),
    (
        "an image of another system",
        |layout| layout.image("windows", "amd64"),
        Fate::Carried,
    ),
    (
        "a second image of the platform",
        |layout| {
            let mut second = layout.image("linux", "mips");
            second.platform = Some(Platform::new("linux", "amd64", None));
            second
        },
        Fate::Indexed,
    ),
];

/// A layout with images for amd64 and arm64 and an odd entry, which is returned, in `index.json` itself or in an index.
fn layout_with(
    dir: &Path,
    odd: fn(&Layout) -> Descriptor,
    first: bool,
    nested: bool,
) -> Descriptor {
    let layout = Layout::new(dir);
    let mut entries = vec![
        layout.image("linux", "amd64"),
        layout.image("linux", "arm64"),
    ];
    let entry = odd(&layout);
    entries.insert(if first { 0 } else { 2 }, entry.clone());
    if nested {
        let top = layout.index(entries);
        entries = vec![top];
    }
    layout.list(entries);
    entry
}

fn options(platforms: Platforms) -> ConvertOptions {
    ConvertOptions {
        platforms,
        ..every_layer()
    }
}

fn amd64() -> Platforms {
    Platforms::These(vec![Platform::new("linux", "amd64", None)])
}

/// The manifests in the index that have a SOCI index, by architecture.
fn indexed(index: &Index) -> Vec<String> {
    let with = index
        .manifests
        .iter()
        .filter(|listed| listed.annotations.contains_key(annotations::INDEX_DIGEST));
    with.map(|listed| listed.platform.clone().unwrap().architecture)
        .collect()
}

#[test]
fn an_odd_entry_is_carried_or_left_out_with_a_line_wherever_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    for (at, (kind, odd, fate)) in KINDS.into_iter().enumerate() {
        for (first, nested) in [(false, false), (true, true)] {
            let from = dir.path().join(format!("{at}-{first}"));
            let entry = layout_with(&from, odd, first, nested);
            for all in [false, true] {
                let platforms = if all { Platforms::All } else { amd64() };
                let to = from.with_extension(format!("out-{all}"));
                let source: SharedSource = Arc::new(LayoutSource::open(&from).unwrap());
                let sink = Box::new(DirSink::create(&to).unwrap());
                let (_, lines) = run(source, sink, &options(platforms)).unwrap();
                let index = image_index(&to);
                let of = indexed(&index);
                let name = format!("{kind}, first: {first}, all: {all}: {lines:?} {index:?}");
                assert!(of.contains(&"amd64".to_owned()), "{name}");
                assert_eq!(of.contains(&"arm64".to_owned()), all, "{name}");
                let carried = index
                    .manifests
                    .iter()
                    .any(|listed| listed.digest == entry.digest);
                let line = lines.iter().any(|line| {
                    line.starts_with("warning: ") && line.contains(&entry.digest.to_string())
                });
                match fate {
                    Fate::Carried if kind.contains("system") && all => {}
                    Fate::Carried => assert!(carried && !line, "{name}"),
                    Fate::LeftOut => assert!(line && !carried, "{name}"),
                    Fate::Indexed => assert!(
                        of.iter().filter(|found| *found == "amd64").count() == 2,
                        "{name}"
                    ),
                }
                assert_intact(&to);
                // What is listed is there.
                for listed in index.manifests {
                    blob(&to, listed.digest);
                }
            }
            let archive = from.with_extension("tar");
            let source: SharedSource = Arc::new(LayoutSource::open(&from).unwrap());
            let sink = Box::new(ArchiveSink::create(&archive).unwrap());
            run(source, sink, &options(Platforms::All)).unwrap();
        }
    }
}

#[test]
fn an_odd_entry_at_a_registry_stops_neither_conversion_nor_look_up() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start().unwrap();
    let client = || Client::new(ClientConfig::default(), Arc::new(NoCredentials)).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (at, (kind, odd, fate)) in KINDS.into_iter().enumerate() {
        // Registries refuse to store what they do not know: it is not there, but listed.
        let from = dir.path().join(at.to_string());
        layout_with(&from, odd, true, true);
        let reference = registry.reference(&format!("odd{at}:v1")).parse().unwrap();
        let to = RegistrySink::create(client(), reference).unwrap();
        let source: SharedSource = Arc::new(LayoutSource::open(&from).unwrap());
        run(source, Box::new(to), &options(Platforms::All)).expect(kind);
        let name = registry.reference(&format!("odd{at}:v1"));
        let source: SharedSource = Arc::new(RegistrySource::new(client(), name.parse().unwrap()));
        let image = runtime.block_on(Image::load_images(&*source)).unwrap();
        let found = image.select(&amd64()).unwrap();
        assert_eq!(
            found.len(),
            if fate == Fate::Indexed { 2 } else { 1 },
            "{kind}"
        );
        let sink = RegistrySink::beside(client(), name.parse().unwrap());
        let options = ConvertOptions {
            force: true,
            ..options(amd64())
        };
        let created = create(&source, &sink, &options, Arc::new(Silent));
        runtime.block_on(created).expect(kind);
    }
}

#[test]
fn the_variant_of_a_platform_stays_as_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("image");
    let layout = Layout::new(&from);
    layout.list(vec![
        layout.image("linux", "amd64"),
        layout.image("linux", "arm64"),
    ]);
    let to = dir.path().join("out");
    let source: SharedSource = Arc::new(LayoutSource::open(&from).unwrap());
    let sink = Box::new(DirSink::create(&to).unwrap());
    run(source, sink, &options(Platforms::All)).unwrap();
    let listed = image_index(&to).manifests;
    let variants = |soci: bool| -> Vec<Option<String>> {
        listed
            .iter()
            .filter(|listed| listed.artifact_type.is_some() == soci)
            .map(|listed| listed.platform.clone().unwrap().variant)
            .collect()
    };
    assert_eq!(variants(false), [None, Some("v8".to_owned())]);
    assert_eq!(variants(true), variants(false));
}

#[test]
fn of_several_images_in_a_layout_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("image");
    let layout = Layout::new(&from);
    let index = |architecture: &str, name: &str| {
        layout
            .index(vec![layout.image("linux", architecture)])
            .annotated(annotations::REF_NAME, name)
    };
    layout.list(vec![index("amd64", "v1"), index("arm64", "v2")]);
    let open = |text: &str| -> Result<SharedSource, IndexError> {
        let source: Source = text.parse().unwrap();
        source.open(|| panic!("no registry"))
    };
    let path = from.display().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let several = runtime.block_on(open(&path).unwrap().root()).unwrap_err();
    assert!(several.to_string().contains("(v1, v2)"), "{several}");
    for (name, architecture) in [("v1", "amd64"), ("v2", "arm64")] {
        let source = open(&format!("{path}:{name}")).unwrap();
        let image = runtime.block_on(Image::load(&*source)).unwrap();
        let platform = image.entries[0].platform().unwrap();
        assert_eq!(platform.architecture, architecture);
    }
    let unknown = open(&format!("{path}:v3")).unwrap();
    let unknown = runtime.block_on(unknown.root()).unwrap_err();
    assert!(unknown.to_string().contains("\"v3\""), "{unknown}");
}

#[test]
fn spans_of_any_size_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("image");
    let layout = Layout::new(&from);
    layout.list(vec![layout.image("linux", "amd64")]);
    for span_size in [0, 1, i64::MAX.cast_unsigned()] {
        let to = dir.path().join(span_size.to_string());
        let source: SharedSource = Arc::new(LayoutSource::open(&from).unwrap());
        let sink = Box::new(DirSink::create(&to).unwrap());
        let options = ConvertOptions {
            span_size,
            ..every_layer()
        };
        let (converted, lines) = run(source, sink, &options).unwrap();
        assert_eq!(
            converted.images[0].indexed_layers, 1,
            "{span_size}: {lines:?}"
        );
    }
}

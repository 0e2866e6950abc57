//! What the tests of the CLI against containerd share: a registry, a containerd, images in it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses a part of it, and fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use soci_oci::{Descriptor, Index, Manifest};
use soci_testkit::image::three_layers;
use soci_testkit::{Containerd, ContainerdOptions, Ctr, ImageBuilder, Layer, Registry, TestRoot};

/// The namespace that the tests work in.
pub(crate) const NAMESPACE: &str = "test";

/// A containerd, a registry, and a root folder for the CLI.
pub(crate) struct Bench {
    pub(crate) containerd: Containerd,
    pub(crate) registry: Registry,
    pub(crate) root: TestRoot,
    pub(crate) layouts: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn start() -> Self {
        Self {
            containerd: Containerd::start(&ContainerdOptions::default()).unwrap(),
            registry: Registry::start().unwrap(),
            root: TestRoot::new().unwrap(),
            layouts: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn ctr(&self) -> Ctr {
        self.containerd.ctr(NAMESPACE)
    }

    /// The root folder that the CLI is given.
    pub(crate) fn soci_root(&self) -> PathBuf {
        self.root.path().join("root")
    }

    /// `soci` with the global flags as nerdctl sets them, then these arguments.
    pub(crate) fn soci(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
        command
            .arg("--address")
            .arg(self.containerd.address())
            .args(["--namespace", NAMESPACE])
            .arg("--root")
            .arg(self.soci_root())
            .args(arguments)
            .env("HOME", self.root.path())
            .env_remove("DOCKER_CONFIG");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.soci(arguments).output().unwrap()
    }

    /// Runs it to its good end; gives its stdout.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "soci {arguments:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains('\u{1b}'), "terminal codes: {text}");
        text
    }

    /// Runs it to its failure; gives its stderr, one line that starts with `soci: `.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(1),
            "soci {arguments:?}: {output:?}"
        );
        let text = String::from_utf8(output.stderr).unwrap();
        let last = text.lines().last().unwrap_or_default().to_owned();
        assert!(last.starts_with("soci: "), "soci {arguments:?}: {text}");
        last
    }

    /// [`three_layers`], pushed as `app:v1` and pulled.
    pub(crate) fn image(&self) -> String {
        let dir = self.layouts.path().join("image");
        three_layers().unwrap().write(&dir, "v1").unwrap();
        self.registry.push_layout(&dir, "v1", "app").unwrap();
        let reference = self.registry.reference("app:v1");
        self.ctr().pull(&reference, "overlayfs").unwrap();
        reference
    }

    /// The only image of an OCI layout, pushed as `repository:tag` and fetched
    /// for all platforms, without unpacking.
    pub(crate) fn import(&self, layout: &Path, repository: &str, tag: &str) -> String {
        self.registry.push_layout(layout, tag, repository).unwrap();
        let reference = self.registry.reference(&format!("{repository}:{tag}"));
        self.ctr()
            .output([
                "content",
                "fetch",
                "--plain-http",
                "--all-platforms",
                &reference,
            ])
            .unwrap();
        reference
    }

    /// Fetches an image's content for linux/amd64, without unpacking.
    pub(crate) fn fetch(&self, reference: &str) {
        let fetch = [
            "content",
            "fetch",
            "--plain-http",
            "--platform",
            "linux/amd64",
        ];
        let ctr = self.ctr();
        ctr.output(fetch.into_iter().chain([reference])).unwrap();
    }

    /// The images that containerd has.
    pub(crate) fn images(&self) -> Vec<String> {
        lines(&self.ctr().output(["images", "ls", "-q"]).unwrap())
    }

    /// The digests of all content that containerd has.
    pub(crate) fn content(&self) -> Vec<String> {
        lines(&self.ctr().output(["content", "ls", "-q"]).unwrap())
    }

    /// Runs containerd's garbage collection to its end.
    pub(crate) fn collect_garbage(&self) {
        let ctr = self.ctr();
        ctr.output(["leases", "create", "--id", "collect-garbage"])
            .unwrap();
        ctr.output(["leases", "delete", "--sync", "collect-garbage"])
            .unwrap();
    }

    /// Removes an image and runs the collector.
    pub(crate) fn remove_image(&self, name: &str) {
        self.ctr().output(["images", "rm", "--sync", name]).unwrap();
    }

    /// A blob of containerd.
    pub(crate) fn blob(&self, digest: &str) -> String {
        self.ctr().output(["content", "get", digest]).unwrap()
    }

    pub(crate) fn index(&self, digest: &str) -> Index {
        serde_json::from_str(&self.blob(digest)).unwrap()
    }

    pub(crate) fn manifest(&self, digest: &str) -> Manifest {
        serde_json::from_str(&self.blob(digest)).unwrap()
    }

    /// The digest that an image stands for.
    pub(crate) fn target(&self, name: &str) -> String {
        let text = self
            .ctr()
            .output(["images", "ls", &format!("name=={name}")])
            .unwrap();
        let line = text.lines().nth(1).unwrap();
        line.split_whitespace().nth(2).unwrap().to_owned()
    }
}

pub(crate) fn lines(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// The SOCI indexes among the manifests of an image index.
pub(crate) fn soci_indexes(index: &Index) -> Vec<&Descriptor> {
    index
        .manifests
        .iter()
        .filter(|listed| listed.artifact_type.is_some())
        .collect()
}

/// The folder of a golden case.
pub(crate) fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(case)
}

/// An image for linux/amd64 and linux/arm64 in Docker's media types, in a layout under this tag.
pub(crate) fn multi_platform(dir: &Path, tag: &str) {
    use soci_oci::media_types::{DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_LIST, DOCKER_MANIFEST};
    let put = |bytes: &[u8]| {
        let digest = soci_oci::Digest::of(bytes);
        std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    };
    let mut listed = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let image = ImageBuilder::new()
            .layer(Layer::new().text("arch", architecture))
            .write(dir, architecture)
            .unwrap();
        let blob = |digest: soci_oci::Digest| {
            std::fs::read(dir.join("blobs/sha256").join(digest.hex())).unwrap()
        };
        let mut manifest: Manifest = serde_json::from_slice(&blob(image.manifest.digest)).unwrap();
        let mut config: serde_json::Value =
            serde_json::from_slice(&blob(manifest.config.digest)).unwrap();
        config["architecture"] = architecture.into();
        let config = serde_json::to_vec(&config).unwrap();
        put(&config);
        manifest.config = Descriptor::of(DOCKER_CONFIG, &config);
        manifest.media_type = DOCKER_MANIFEST.to_owned();
        for layer in &mut manifest.layers {
            layer.media_type = DOCKER_LAYER_GZIP.to_owned();
        }
        let bytes = soci_oci::json::to_vec(&manifest).unwrap();
        put(&bytes);
        listed.push(Descriptor {
            platform: Some(soci_oci::Platform::new("linux", architecture, None)),
            ..Descriptor::of(DOCKER_MANIFEST, &bytes)
        });
    }
    let list = Index {
        schema_version: 2,
        media_type: DOCKER_LIST.to_owned(),
        artifact_type: None,
        manifests: listed,
        subject: None,
        annotations: Default::default(),
    };
    let bytes = soci_oci::json::to_vec(&list).unwrap();
    put(&bytes);
    let top = Index {
        media_type: soci_oci::media_types::OCI_INDEX.to_owned(),
        manifests: vec![
            Descriptor::of(DOCKER_LIST, &bytes).annotated(soci_oci::annotations::REF_NAME, tag),
        ],
        ..list
    };
    std::fs::write(
        dir.join("index.json"),
        soci_oci::json::to_vec(&top).unwrap(),
    )
    .unwrap();
}

/// An image with one layer of this media type, whatever its bytes are.
pub(crate) fn typed_layer(dir: &Path, tag: &str, media_type: &str) {
    let image = ImageBuilder::new()
        .layer(Layer::new().text("a", "b"))
        .write(dir, tag)
        .unwrap();
    let path = |digest: soci_oci::Digest| dir.join("blobs/sha256").join(digest.hex());
    let mut manifest: Manifest =
        serde_json::from_slice(&std::fs::read(path(image.manifest.digest)).unwrap()).unwrap();
    manifest.layers[0].media_type = media_type.to_owned();
    let bytes = soci_oci::json::to_vec(&manifest).unwrap();
    std::fs::write(path(soci_oci::Digest::of(&bytes)), &bytes).unwrap();
    let listed = Descriptor::of(soci_oci::media_types::OCI_MANIFEST, &bytes)
        .annotated(soci_oci::annotations::REF_NAME, tag);
    let index = Index {
        schema_version: 2,
        media_type: soci_oci::media_types::OCI_INDEX.to_owned(),
        artifact_type: None,
        manifests: vec![listed],
        subject: None,
        annotations: Default::default(),
    };
    std::fs::write(
        dir.join("index.json"),
        soci_oci::json::to_vec(&index).unwrap(),
    )
    .unwrap();
}

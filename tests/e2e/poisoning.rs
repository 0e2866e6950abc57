//! Images that share the chain ID of another one and would show other files there. Needs root, FUSE,
//! containerd, runc, docker-registry and the two programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use soci_containerd::labels;
use soci_oci::{Digest, Index, Manifest, annotations};
use soci_testkit::image::shell_layer;
use soci_testkit::{
    ImageBuilder, Layer, Release, Run, SociCli, SociDaemonOptions, Stack, StackOptions, TestRoot,
    TransferOptions,
};
use soci_ztoc::Ztoc;
use tonic::Code;

use crate::support::node::{Client, fetch_manifest};
use crate::support::releases::on_each_containerd;
use crate::support::{self, NAMESPACE, NO_BACKGROUND, PATIENCE, pull, stack, status, wait_until};

/// What the honest image has in its two files.
const SHOWN: &str = "open: all users read this.\nshut: only root reads this\n";
const CAT: [&str; 3] = ["/bin/cat", "/etc/open", "/etc/shut"];

/// An OCI layout on disk that is changed as an attacker would.
struct Layout {
    root: TestRoot,
}

impl Layout {
    /// The honest image of a case: its layers are those of no other case.
    fn honest(case: &str) -> Self {
        let root = TestRoot::new().unwrap();
        let source = root.dir("source").unwrap();
        let layer = Layer::new()
            .dir("etc")
            .text("etc/open", "open: all users read this.\n")
            .text("etc/shut", "shut: only root reads this\n")
            .text("etc/case", case);
        Self::build(&source, layer);
        let layout = Self { root };
        layout.convert(&source);
        layout
    }

    /// An image with other files.
    fn other(case: &str) -> Self {
        let root = TestRoot::new().unwrap();
        let source = root.dir("source").unwrap();
        let layer = Layer::new()
            .dir("etc")
            .text("etc/open", "open: this is the attacker\n")
            .text("etc/shut", "shut: and this is as well.\n")
            .text("etc/case", &case.to_uppercase());
        Self::build(&source, layer);
        Self { root }
    }

    fn build(source: &Path, layer: Layer) {
        let programs = shell_layer().unwrap().symlink("bin/cat", "busybox");
        let image = ImageBuilder::new().layer(programs).layer(layer);
        image.command(CAT).write(source, "image").unwrap();
    }

    fn source(&self) -> PathBuf {
        self.root.path().join("source")
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("converted")
    }

    fn convert(&self, source: &Path) {
        let (source, target) = (
            source.display().to_string(),
            self.dir().display().to_string(),
        );
        let convert = ["convert", "--standalone", "--format", "oci-dir"];
        let options = ["--min-layer-size", "0", source.as_str(), target.as_str()];
        let soci = SociCli::standalone().unwrap();
        soci.output(convert.into_iter().chain(options)).unwrap();
    }

    fn blobs(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(dir.join("blobs/sha256")).unwrap();
        let blob = |path: PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        };
        entries.map(|entry| blob(entry.unwrap().path())).collect()
    }

    /// Replaces blobs, and every digest of them in documents, whose digests change in turn. A blob
    /// keeps its size, so that descriptors stay right.
    fn replace(dir: &Path, mut changes: Vec<(String, Vec<u8>)>) {
        let mut blobs = Self::blobs(dir);
        let mut index = std::fs::read_to_string(dir.join("index.json")).unwrap();
        while let Some((old, new)) = changes.pop() {
            assert_eq!(blobs.remove(&old).unwrap().len(), new.len());
            let digest = Digest::of(&new).hex().to_string();
            index = index.replace(&old, &digest);
            for (name, blob) in &blobs {
                let Ok(text) = std::str::from_utf8(blob) else {
                    continue;
                };
                if text.starts_with('{') && text.contains(&old) {
                    let pending = changes.iter_mut().find(|(change, _)| change == name);
                    match pending {
                        Some((_, pending)) => {
                            let text = String::from_utf8(std::mem::take(pending)).unwrap();
                            *pending = text.replace(&old, &digest).into_bytes();
                        }
                        None => {
                            let text = text.replace(&old, &digest).into_bytes();
                            changes.insert(0, (name.clone(), text));
                        }
                    }
                }
            }
            std::fs::remove_file(dir.join("blobs/sha256").join(&old)).unwrap();
            std::fs::write(dir.join("blobs/sha256").join(&digest), &new).unwrap();
            blobs.insert(digest, new);
        }
        std::fs::write(dir.join("index.json"), index).unwrap();
    }

    /// The zTOC of the layer with the two files, parsed.
    fn ztoc(dir: &Path) -> (String, Ztoc) {
        let blobs = Self::blobs(dir).into_iter();
        let mut parsed = blobs.filter_map(|(name, blob)| Some((name, Ztoc::parse(&blob).ok()?)));
        let is_meant = |ztoc: &Ztoc| ztoc.toc.iter().any(|entry| entry.name == b"etc/shut");
        parsed.find(|(_, ztoc)| is_meant(ztoc)).unwrap()
    }

    /// Swaps the names of the two files in the zTOC, and has the shell run as root.
    fn forge_ztoc(&self) {
        let (name, mut ztoc) = Self::ztoc(&self.dir());
        for entry in &mut ztoc.toc {
            entry.name = match entry.name.as_slice() {
                b"etc/open" => b"etc/shut".to_vec(),
                b"etc/shut" => b"etc/open".to_vec(),
                _ => std::mem::take(&mut entry.name),
            };
            if entry.name == b"etc/case" {
                entry.mode |= 0o4755;
            }
        }
        Self::replace(&self.dir(), vec![(name, ztoc.encode())]);
    }

    /// Puts other diff IDs into the configuration of the unconverted image.
    fn steal_diff_ids(&self, from: &[Digest]) {
        let (dir, mut change) = (self.source(), None);
        for (name, blob) in Self::blobs(&dir) {
            let Ok(mut config) = serde_json::from_slice::<Value>(&blob) else {
                continue;
            };
            let ids = config.pointer("/rootfs/diff_ids").and_then(Value::as_array);
            let Some(ids) = ids else { continue };
            assert_eq!(ids.len(), from.len());
            config["rootfs"]["diff_ids"] = from.iter().map(ToString::to_string).collect();
            change = Some((name, config.to_string().into_bytes()));
        }
        Self::replace(&dir, vec![change.unwrap()]);
    }

    fn diff_ids(&self) -> Vec<Digest> {
        let configs = Self::blobs(&self.source()).into_values();
        let mut ids = configs.filter_map(|blob| {
            let config = serde_json::from_slice::<Value>(&blob).ok()?;
            serde_json::from_value(config.pointer("/rootfs/diff_ids")?.clone()).ok()
        });
        ids.next().unwrap()
    }

    /// Adds annotations to the layers of the unconverted image, which containerd sends as labels.
    fn annotate_layers(&self, annotations: &BTreeMap<String, String>) {
        let dir = self.source();
        let path = dir.join("index.json");
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let entry = &mut index["manifests"][0];
        let digest: Digest = serde_json::from_value(entry["digest"].clone()).unwrap();
        let blobs = dir.join("blobs/sha256");
        let manifest = std::fs::read(blobs.join(digest.hex())).unwrap();
        let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["annotations"] = serde_json::to_value(annotations).unwrap();
        }
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        entry["digest"] = digest.to_string().into();
        entry["size"] = manifest.len().into();
        std::fs::write(blobs.join(digest.hex()), manifest).unwrap();
        std::fs::write(&path, index.to_string()).unwrap();
    }

    /// Pushes the converted image, or the plain one.
    fn push(&self, stack: &Stack, name: &str, converted: bool) -> String {
        let (dir, tag) = match converted {
            true => (self.dir(), "soci"),
            false => (self.source(), "image"),
        };
        let path = dir.join("index.json");
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = tag.into();
        std::fs::write(&path, index.to_string()).unwrap();
        stack.push(&dir, tag, name).unwrap();
        stack.reference(&format!("{name}:{tag}"))
    }
}

/// Runs the image's command: its output, or the error.
fn run(stack: &Stack, reference: &str) -> Result<String, String> {
    let ctr = stack.containerd.ctr(NAMESPACE);
    let run = Run::new(reference, "soci").command(CAT);
    ctr.run_ok(&run).map_err(|error| format!("{error:#}"))
}

/// Asserts that a run showed the honest image's files, or was refused with a sentence that names
/// both images.
fn honest_or_refused(stack: &Stack, result: Result<String, String>, images: [&str; 2]) -> bool {
    match result {
        Ok(shown) => {
            assert_eq!(shown, SHOWN, "{}", stack.log_tails());
            true
        }
        Err(error) => {
            for image in images {
                assert!(
                    error.contains(image),
                    "{image} is not in {error}\n{}",
                    stack.log_tails()
                );
            }
            false
        }
    }
}

/// What the attacker has done to an image with the honest one's chain ID.
#[derive(Clone, Copy)]
enum Attack {
    /// Own files under the diff IDs of the honest image.
    StolenDiffIds,
    /// The genuine layer with a forged zTOC.
    ForgedZtoc,
    /// The genuine layer with the zTOC of another layer.
    ForeignIndex,
}

fn attack(case: &str, attack: Attack, honest: &Layout) -> Layout {
    let forged = match attack {
        Attack::StolenDiffIds => {
            let forged = Layout::other(case);
            forged.steal_diff_ids(&honest.diff_ids());
            forged.convert(&forged.source());
            return forged;
        }
        _ => Layout::honest(case),
    };
    match attack {
        Attack::ForeignIndex => {
            let other = Layout::other(case);
            other.convert(&other.source());
            let (_, foreign) = Layout::ztoc(&other.dir());
            let (name, genuine) = Layout::ztoc(&forged.dir());
            // The compressed size, which the mount compares.
            let foreign = Ztoc {
                compressed_archive_size: genuine.compressed_archive_size,
                ..foreign
            };
            Layout::replace(&forged.dir(), vec![(name, foreign.encode())]);
        }
        _ => forged.forge_ztoc(),
    }
    forged
}

fn poisoned(case: &str, what: Attack) {
    let stack = stack(NO_BACKGROUND);
    for indexed in [true, false] {
        // The forged image comes first.
        let case = format!("{case}-{indexed}");
        let honest = Layout::honest(&case);
        let forged = attack(&case, what, &honest);
        let f = forged.push(&stack, &format!("f-{case}"), true);
        let h = honest.push(&stack, &format!("h-{case}"), indexed);
        pull(&stack, &f);
        // What it shows to itself is its own affair.
        drop(run(&stack, &f));
        pull(&stack, &h);
        let shown = run(&stack, &h);
        let right = honest_or_refused(&stack, shown, [&f, &h]);
        // And once more, with the verdict known.
        let again = honest_or_refused(&stack, run(&stack, &h), [&f, &h]);
        assert_eq!(right, again);
    }
    // The honest image comes first: both show its files.
    let case = format!("{case}-after");
    let honest = Layout::honest(&case);
    let forged = attack(&case, what, &honest);
    let f = forged.push(&stack, &format!("f-{case}"), true);
    let h = honest.push(&stack, &format!("h-{case}"), true);
    pull(&stack, &h);
    assert_eq!(run(&stack, &h).unwrap(), SHOWN);
    pull(&stack, &f);
    assert_eq!(run(&stack, &f).unwrap(), SHOWN);
    assert_eq!(run(&stack, &h).unwrap(), SHOWN);
}

#[test]
fn own_files_under_stolen_diff_ids_never_show_in_the_other_image() {
    poisoned("diff", Attack::StolenDiffIds);
}

#[test]
fn a_forged_ztoc_over_the_genuine_layer_never_shows_in_the_other_image() {
    poisoned("ztoc", Attack::ForgedZtoc);
}

#[test]
fn the_ztoc_of_another_layer_never_shows_in_the_other_image() {
    poisoned("index", Attack::ForeignIndex);
}

/// The image names the forged zTOC itself, so that its layer is used as it is mounted.
#[test]
fn a_forged_file_is_eio_at_its_first_read() {
    let stack = stack(NO_BACKGROUND);
    let forged = Layout::honest("first-read");
    forged.forge_ztoc();
    let image = forged.push(&stack, "forged", true);
    pull(&stack, &image);
    // The first two have each other's names, the third has another mode. All in one container: the image is
    // refused to the next one.
    let read = "cat /etc/open; cat /etc/shut; cat /etc/case";
    let read = Run::new(&image, "soci").command(["/bin/sh", "-c", read]);
    let read = stack.containerd.ctr(NAMESPACE).run(&read).unwrap();
    assert!(read.stdout.is_empty(), "{read:?}");
    let is_refused =
        |line: &&str| line.contains("I/O error") || line.contains("Input/output error");
    assert_eq!(
        read.stderr.lines().filter(is_refused).count(),
        3,
        "{read:?}"
    );
}

#[test]
fn a_layer_of_which_everything_is_stored_is_verified_and_a_forged_one_is_refused_from_then_on() {
    let mut stack = stack("[background_fetch]\nsilence_period_msec = 10\nfetch_period_msec = 1\n");
    let honest = Layout::honest("background");
    let forged = Layout::honest("background");
    forged.forge_ztoc();
    let other = Layout::honest("genuine");
    let f = forged.push(&stack, "f", true);
    let g = other.push(&stack, "g", true);
    pull(&stack, &f);
    pull(&stack, &g);
    let health = |stack: &Stack, image: &str| -> Vec<String> {
        let status = status(&stack.daemon);
        let images = status["images"].as_array().unwrap();
        let image = images
            .iter()
            .find(|found| found["reference"] == image)
            .unwrap();
        let layers = image["layers"].as_array().unwrap().iter();
        layers
            .map(|layer| layer["health"].as_str().unwrap().to_owned())
            .collect()
    };
    wait_until("the forged layer is found", PATIENCE, || {
        let health = health(&stack, &f);
        match health.iter().any(|health| health == "forged") {
            true => Ok(()),
            false => Err(format!("{health:?}")),
        }
    });
    let layers = stack.daemon.root().join("soci/layers");
    wait_until("every layer is verified", PATIENCE, || {
        let folders = std::fs::read_dir(&layers).unwrap();
        let folders = folders.map(|folder| folder.unwrap().path());
        let folders = folders.filter(|folder| !folder.ends_with(".removed"));
        let missing = folders
            .filter(|folder| !folder.join("verdict").exists())
            .count();
        match missing {
            0 => Ok(()),
            missing => Err(format!("{missing} are not")),
        }
    });
    assert_eq!(health(&stack, &g), ["healthy", "healthy"]);
    assert_eq!(run(&stack, &g).unwrap(), SHOWN);
    // Its own containers are refused from now on, too, also after a restart.
    for restart in [false, true] {
        if restart {
            stack.daemon.terminate().unwrap();
            stack.daemon.start_again().unwrap();
            stack.wait_for_snapshotter().unwrap();
        }
        let error = run(&stack, &f).unwrap_err();
        assert!(error.contains("forged") && error.contains(&f), "{error}");
        assert!(health(&stack, &f).iter().any(|health| health == "forged"));
    }
    // The honest image of the chain is refused with both names; when the forged one is gone it is
    // unpacked or mounted again.
    let h = honest.push(&stack, "h", true);
    pull(&stack, &h);
    let error = run(&stack, &h).unwrap_err();
    assert!(error.contains(&f) && error.contains(&h), "{error}");
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.output(["images", "rm", "--sync", &f, &h]).unwrap();
    pull(&stack, &h);
    assert_eq!(run(&stack, &h).unwrap(), SHOWN);
}

/// Waits until at least as many layers were refused for a reason.
fn is_logged(stack: &Stack, reason: &str, times: usize) {
    wait_until("the reasons are logged", PATIENCE, || {
        let lines = stack.daemon.json_log();
        match lines.iter().filter(|line| line["reason"] == reason).count() {
            count if count >= times => Ok(()),
            count => Err(format!("{count} of {times}:\n{}", stack.log_tails())),
        }
    });
}

/// Labels of a Prepare that the image's annotations set.
#[tokio::test(flavor = "multi_thread")]
async fn labels_that_an_image_sets_lead_to_no_request() {
    let stack = tokio::task::block_in_place(|| stack(NO_BACKGROUND));
    let (good, own) = tokio::task::block_in_place(|| {
        let good = Layout::honest("good");
        let own = Layout::honest("own");
        let private = good.push(&stack, "private", true);
        let own_reference = own.push(&stack, "own", true);
        // The client has the attacker's image.
        let ctr = stack.containerd.ctr(NAMESPACE);
        ctr.output([
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            "native",
            &own_reference,
        ])
        .unwrap();
        ((good, private), (own, own_reference))
    });
    let manifest_of = |name: &str, tag: &str| {
        let bytes = fetch_manifest(&stack.registry, name, tag);
        let index: Index = serde_json::from_slice(&bytes).unwrap();
        let image = index
            .manifests
            .iter()
            .find(|one| one.artifact_type.is_none());
        let digest = image.unwrap().digest;
        let bytes = fetch_manifest(&stack.registry, name, &digest.to_string());
        (digest, serde_json::from_slice::<Manifest>(&bytes).unwrap())
    };
    let (private_digest, private) = manifest_of("private", "soci");
    let (own_digest, own_manifest) = manifest_of("own", "soci");
    let own_chain = own.0.diff_ids()[0];
    let labels = |reference: &str, manifest: Digest, layer: Digest| {
        let [chain, manifest, layer] = [own_chain, manifest, layer].map(|one| one.to_string());
        support::cri_labels(&chain, reference, &manifest, &layer)
    };
    let client = Client::at(stack.daemon.socket()).await;
    let (private_layer, own_layer) = (private.layers[1].digest, own_manifest.layers[0].digest);
    let cases = [
        // Another image's manifest and layer, which containerd does not have.
        labels(&good.1, private_digest, private_layer),
        // The image's own manifest, from another repository.
        labels(&good.1, own_digest, own_layer),
        // The image's own manifest and another layer of it.
        labels(&own.1, own_digest, own_manifest.layers[1].digest),
        // A layer that it does not have.
        labels(&own.1, own_digest, private_layer),
    ];
    stack.proxy.reset_stats();
    for (number, labels) in cases.into_iter().enumerate() {
        let key = format!("extract {number}");
        let mounts = client.prepare_with(&key, "", labels).await.unwrap();
        assert_eq!(mounts[0].r#type, "bind");
        client.remove(&key).await.unwrap();
    }
    assert_eq!(stack.proxy.stats().total().requests, 0);
    is_logged(&stack, "foreign-labels", 4);
    // As the client sends them they are right.
    let right = client
        .prepare_with("extract right", "", labels(&own.1, own_digest, own_layer))
        .await;
    assert_eq!(right.unwrap_err().code(), Code::AlreadyExists);
    assert!(
        own_manifest
            .annotations
            .contains_key(annotations::INDEX_DIGEST)
    );
}

on_each_containerd! {
    annotations_of_layers_lead_containerd_to_no_other_image,
}

/// Each containerd sends the annotations of layers as labels: alone, or, where the transfer service
/// is configured to, with labels of its own.
fn annotations_of_layers_lead_containerd_to_no_other_image(release: Release) {
    let with_own = release.is_2().unwrap().then_some(true);
    for sent in with_own.into_iter().chain([false]) {
        let stack = Stack::start(StackOptions {
            daemon: SociDaemonOptions::with_config(NO_BACKGROUND),
            release,
            transfer: TransferOptions {
                annotations: sent,
                ..TransferOptions::default()
            },
            ..StackOptions::default()
        })
        .unwrap();
        let (private, own) = (Layout::honest("private"), Layout::other("own"));
        let reference = private.push(&stack, "private", true);
        let bytes = fetch_manifest(&stack.registry, "private", "soci");
        let index: Index = serde_json::from_slice(&bytes).unwrap();
        let is_image = |one: &&soci_oci::Descriptor| one.artifact_type.is_none();
        let image = index.manifests.iter().find(is_image).unwrap();
        let bytes = fetch_manifest(&stack.registry, "private", &image.digest.to_string());
        let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
        let layer = manifest.layers[1].digest.to_string();
        let soci_index = &manifest.annotations[annotations::INDEX_DIGEST];
        let annotations = [
            (labels::IMAGE_REF, reference),
            (labels::MANIFEST_DIGEST, image.digest.to_string()),
            (labels::LAYER_DIGEST, layer.clone()),
            (labels::IMAGE_LAYERS, layer),
            (labels::INDEX_DIGEST, soci_index.clone()),
            (labels::UID_MAP, "0:100000:65536".to_owned()),
            (labels::GID_MAP, "0:100000:65536".to_owned()),
        ];
        own.annotate_layers(
            &annotations
                .map(|(key, value)| (key.to_owned(), value))
                .into(),
        );
        let reference = own.push(&stack, "own", false);
        stack.proxy.reset_stats();
        stack
            .containerd
            .ctr(NAMESPACE)
            .pull(&reference, "soci")
            .unwrap();
        let shown = run(&stack, &reference).unwrap();
        assert_eq!(
            shown,
            "open: this is the attacker\nshut: and this is as well.\n"
        );
        let script = ["/bin/busybox", "stat", "-c", "%u:%g", "/etc/open"];
        let owner = Run::new(&reference, "soci").command(script);
        let owner = stack.containerd.ctr(NAMESPACE).run_ok(&owner).unwrap();
        assert_eq!(owner, "0:0\n");
        let asked = stack.proxy.stats().by_path().into_keys();
        let asked: Vec<_> = asked
            .filter(|path| path.contains("/private/") || path.contains(soci_index.as_str()))
            .collect();
        assert_eq!(asked, Vec::<String>::new(), "{}", stack.log_tails());
    }
}

/// A port that accepts no connection and refuses none: its queue is full.
pub(crate) fn black_hole() -> (std::net::TcpListener, Vec<std::net::TcpStream>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let short = std::time::Duration::from_millis(200);
    let mut held = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, short) {
        held.push(stream);
    }
    (listener, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preloaded_image_needs_no_registry_that_could_be_reached() {
    let stack = tokio::task::block_in_place(|| stack(NO_BACKGROUND));
    let (silent, _held) = tokio::task::block_in_place(black_hole);
    let reference = format!("{}/app:1", silent.local_addr().unwrap());
    let layout = TestRoot::new().unwrap();
    let mut image = ImageBuilder::new();
    for number in 0..6 {
        let name = format!("f{number}");
        image = image.layer(Layer::new().text(&name, &name));
    }
    let built = image.write(layout.path(), "image").unwrap();
    let archive = layout.path().with_extension("tar");
    let tar = std::process::Command::new("tar")
        .args(["--create", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(layout.path())
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    tokio::task::block_in_place(|| {
        let ctr = stack.containerd.ctr(NAMESPACE);
        let archive = archive.display().to_string();
        let import = [
            "images",
            "import",
            "--no-unpack",
            "--index-name",
            &reference,
        ];
        ctr.output(import.into_iter().chain([archive.as_str()]))
            .unwrap();
    });
    std::fs::remove_file(&archive).unwrap();
    let client = Client::at(stack.daemon.socket()).await;
    let mut parent = String::new();
    let configs = Layout::blobs(layout.path()).into_values();
    let mut configs =
        configs.filter_map(|blob| serde_json::from_slice::<soci_oci::ImageConfig>(&blob).ok());
    let chains = configs.next().unwrap().rootfs.chain_ids();
    let prepare_all = async {
        for (number, (layer, chain)) in built.layers.iter().zip(chains).enumerate() {
            let chain = chain.to_string();
            let manifest = built.manifest.digest.to_string();
            let labels =
                support::cri_labels(&chain, &reference, &manifest, &layer.digest.to_string());
            let key = format!("extract {number}");
            client.prepare_with(&key, &parent, labels).await.unwrap();
            client.commit(&chain, &key).await.unwrap();
            parent = chain;
        }
    };
    // A wait of half a minute for each of the six layers, which once was, does not end in time.
    let prepared = tokio::time::timeout(PATIENCE, prepare_all).await;
    prepared.unwrap_or_else(|_| panic!("{}", stack.log_tails()));
    // "index-unavailable" would be the reason, had a registry been asked.
    is_logged(&stack, "no-index", 6);
}

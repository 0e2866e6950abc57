//! `soci profile`: starts recorded by real containers (runc, FUSE) without containerd, profiles shown,
//! moved, refused, pushed beside their image, and written into indexes. Needs root.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use soci_oci::{Digest, Index, Manifest};
use soci_testkit::image::shell_layer;
use soci_testkit::{Content, ImageBuilder, Layer, Registry, TestRoot, http_request};

const MEDIA_TYPE: &str = "application/vnd.soci-snapshotter.profile.v2+json";
const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";

struct ProfileBench {
    registry: Registry,
    root: TestRoot,
}

impl ProfileBench {
    /// `app:plain`, and `app:v2` with an index: a layer with busybox, and one with two files of noise.
    fn start() -> Self {
        let this = Self {
            registry: Registry::start().unwrap(),
            root: TestRoot::new().unwrap(),
        };
        let dir = this.root.dir("image").unwrap();
        let noise = |seed| Content::Noise {
            seed,
            length: 4_000_000,
        };
        ImageBuilder::new()
            .layer(shell_layer().unwrap())
            .layer(
                Layer::new()
                    .dir("data")
                    .file("data/one", noise(1))
                    .file("data/two", noise(2)),
            )
            .command(["/bin/sh"])
            .write(&dir, "plain")
            .unwrap();
        this.registry.push_layout(&dir, "plain", "app").unwrap();
        this.convert("app:v2", &[]);
        this
    }

    /// Converts `app:plain`.
    fn convert(&self, to: &str, more: &[&str]) {
        let [plain, target] = ["app:plain", to].map(|name| self.registry.docker_reference(name));
        let options = ["convert", "--min-layer-size", "0", "--span-size", "262144"];
        self.ok(&[&options[..], more, &[&plain, &target]].concat());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
        command
            .arg("--root")
            .arg(self.root.path().join("root"))
            .args(arguments)
            .env("HOME", self.root.path())
            .env("TMPDIR", self.root.path())
            .env_remove("DOCKER_CONFIG");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "soci {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    fn image(&self, name: &str) -> String {
        self.registry.reference(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Records what a shell reads that runs a script in an image.
    fn record(&self, image: &str, script: &str) -> (Output, PathBuf) {
        let file = self.path(&format!("{}.profile", Digest::of(script.as_bytes()).hex()));
        let output = file.display().to_string();
        let image = self.image(image);
        let arguments = [
            "profile", "run", "-o", &output, &image, "--", "/bin/sh", "-c", script,
        ];
        (self.run(&arguments), file)
    }

    fn recorded(&self, image: &str, script: &str) -> String {
        let (output, file) = self.record(image, script);
        assert!(output.status.success(), "{output:?}");
        file.display().to_string()
    }

    fn get(&self, path: &str) -> Vec<u8> {
        let types = "application/vnd.oci.image.manifest.v1+json, \
            application/vnd.oci.image.index.v1+json";
        let response = http_request(
            self.registry.address(),
            "GET",
            path,
            &[("accept", types)],
            b"",
        )
        .unwrap();
        assert_eq!(response.status, 200, "{path}");
        response.body
    }

    /// The digest of the image manifest, and the prefetch artifacts of its index by layer.
    fn prefetch(&self, tag: &str) -> (Digest, Vec<(Digest, Value)>) {
        let list: Index =
            serde_json::from_slice(&self.get(&format!("/v2/app/manifests/{tag}"))).unwrap();
        let of = |artifact: bool| {
            let mut listed = list.manifests.iter();
            listed
                .find(|one| one.artifact_type.is_some() == artifact)
                .unwrap()
                .digest
        };
        let index = self.get(&format!("/v2/app/manifests/{}", of(true)));
        let index: Manifest = serde_json::from_slice(&index).unwrap();
        let artifacts = index
            .layers
            .iter()
            .filter(|layer| layer.media_type == PREFETCH);
        let artifacts = artifacts.map(|layer| {
            let of = layer
                .annotation("com.amazon.soci.image-layer-digest")
                .unwrap();
            let blob = self.get(&format!("/v2/app/blobs/{}", layer.digest));
            (of.parse().unwrap(), serde_json::from_slice(&blob).unwrap())
        });
        (of(false), artifacts.collect())
    }
}

/// The spans of an artifact in their order.
fn order(artifact: &Value) -> Vec<u64> {
    let runs = artifact["prefetch_spans"].as_array().unwrap();
    let mut spans = Vec::new();
    for run in runs {
        let [start, end] = ["start_span", "end_span"].map(|key| run[key].as_u64().unwrap());
        let priority = run["priority"].as_i64().unwrap_or(0);
        spans.extend((start..=end).map(|span| (priority, span)));
    }
    spans.sort_unstable();
    spans.into_iter().map(|(_, span)| span).collect()
}

fn spans_of(shown: &Value) -> Vec<(u64, u64)> {
    let spans = shown["spans"].as_array().unwrap();
    let number = |span: &Value, key: &str| span[key].as_u64().unwrap();
    spans
        .iter()
        .map(|span| (number(span, "layer"), number(span, "span")))
        .collect()
}

#[test]
fn what_a_command_reads_is_recorded_without_containerd_and_goes_into_an_index() {
    let place = ProfileBench::start();
    // The second file first: the order is that of the reads.
    let script = "dd if=/data/two of=/dev/null bs=64k count=8; dd if=/data/one of=/dev/null bs=64k count=8; \
        echo changed > /data/one; echo done";
    let (output, file) = place.record("app:v2", script);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "done\n");
    let file = file.display().to_string();
    let shown = place.json(&["profile", "show", "--file", &file, "--json"]);
    assert_eq!(shown["image"], place.image("app:v2"));
    let layers = shown["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2, "{shown}");
    assert!(
        layers[1]["readBytes"].as_u64().unwrap() >= 1_000_000,
        "{shown}"
    );

    place.convert("app:mine", &["--profile", &file]);
    let (manifest, artifacts) = place.prefetch("mine");
    assert_eq!(artifacts.len(), 2);
    let recorded = spans_of(&shown);
    for (layer, artifact) in &artifacts {
        let number = layers
            .iter()
            .position(|one| one["layer"] == layer.to_string())
            .unwrap();
        let of_layer = recorded.iter().filter(|(of, _)| *of == number as u64);
        let expected: Vec<_> = of_layer.map(|(_, span)| *span).collect();
        assert_eq!(order(artifact), expected, "{artifact}");
    }
    let noise = order(&artifacts[1].1);
    assert!(
        noise[0] > *noise.last().unwrap(),
        "the second file comes first: {noise:?}"
    );
    // Nothing of the image has changed, and the image without a profile is the one of before.
    place.convert("app:again", &[]);
    assert_eq!(place.prefetch("again"), place.prefetch("v2"));
    assert_ne!(
        place.prefetch("v2").0,
        manifest,
        "the index is named by the manifest"
    );

    // Through another zTOC the spans are found by what they cover.
    place.convert(
        "app:coarse",
        &["--profile", &file, "--span-size", "1048576"],
    );
    let (_, coarse) = place.prefetch("coarse");
    assert_eq!(coarse.len(), 2);
    let spans = order(&coarse[1].1);
    assert!(
        spans.len() < noise.len() && spans[0] > *spans.last().unwrap(),
        "{spans:?}"
    );
    // Of an image without an index, whose layers are downloaded whole.
    let plain = place.recorded("app:plain", script);
    place.convert("app:fromplain", &["--profile", &plain]);
    let (_, artifacts) = place.prefetch("fromplain");
    let spans: BTreeSet<_> = order(&artifacts[1].1).into_iter().collect();
    // Its spans are large: the order within them is not known. How much the kernel reads ahead
    // differs from one recording to the next, what the command itself read does not.
    let read = [0, 1, 2, 15, 16, 17];
    for recorded in [&spans, &noise.iter().copied().collect()] {
        assert!(
            read.iter().all(|span| recorded.contains(span)),
            "{recorded:?}"
        );
    }
    let all = 8_000_000 / 262_144;
    assert!(spans.len() < all, "not the whole layer: {spans:?}");

    // Files that are named come first.
    place.convert(
        "app:both",
        &["--profile", &file, "--prefetch-file", "/data/one"],
    );
    let both = order(&place.prefetch("both").1[1].1);
    assert_eq!(both[0], *noise.iter().min().unwrap());
    assert!(both.len() > noise.len());
}

#[test]
fn a_command_that_waits_is_stopped_and_one_that_fails_leaves_no_profile() {
    let place = ProfileBench::start();
    let file = place.path("waits.profile").display().to_string();
    let image = place.image("app:v2");
    let run = ["profile", "run", "-o", &file, "--quiet", "500ms"];
    place.ok(&[&run[..], &[&image, "--", "/bin/sh", "-c", "sleep 10000"]].concat());
    assert!(Path::new(&file).exists());

    for (script, reason) in [
        ("exit 3", "exit status: 3"),
        ("exec /nosuch", "the command failed"),
    ] {
        let (output, file) = place.record("app:v2", script);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains("no profile is written") && error.contains(reason),
            "{error}"
        );
        assert!(!file.exists());
    }
    let arguments = [
        "profile",
        "run",
        "-o",
        &file,
        "--runtime",
        "/nosuch",
        &image,
    ];
    assert!(place.fails(&arguments).contains("cannot run /nosuch"));
    // The mounts of this test alone: others run beside it.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let own = place.root.path().display().to_string();
    assert!(!mounts.contains(&own), "{mounts}");
}

#[test]
fn profiles_are_listed_shown_exported_and_imported() {
    let place = ProfileBench::start();
    assert_eq!(
        place.json(&["profile", "list", "--json"]),
        Value::Array(Vec::new())
    );
    let image = place.image("app:v2");
    assert!(
        place
            .fails(&["profile", "export", &image])
            .contains("no start of")
    );
    let file = place.recorded("app:v2", "cat /data/one > /dev/null");
    assert!(place.ok(&["profile", "import", &file]).contains(&image));
    let rows = place.json(&["profile", "list", "--json"]);
    assert_eq!(
        (&rows[0]["image"], &rows[0]["recordings"]),
        (&image.clone().into(), &1.into())
    );
    let listed = place.ok(&["profile", "ls"]);
    assert!(
        listed.starts_with("MANIFEST") && listed.contains(&image),
        "{listed}"
    );
    let manifest = rows[0]["manifest"].as_str().unwrap();
    for name in [&image, manifest] {
        assert_eq!(
            place.ok(&["profile", "export", name]),
            std::fs::read_to_string(&file).unwrap()
        );
        assert!(
            place
                .ok(&["profile", "show", name])
                .contains("LAYER DIGEST")
        );
    }
    place.convert("app:node", &["--profile-from-daemon", &image]);
    assert_eq!(place.prefetch("node").1.len(), 2);
    let both = [
        "--profile",
        &file,
        "--profile-from-daemon",
        &image,
        "a",
        "b",
    ];
    assert!(
        place
            .fails(&[&["convert"], &both[..]].concat())
            .contains("cannot be used with")
    );

    // From stdin, for another manifest.
    let other = Digest::of(b"other").to_string();
    let mut import = place
        .command(&["profile", "import", "--manifest", &other, "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = std::fs::read(&file).unwrap();
    import.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(import.wait().unwrap().success());
    assert_eq!(
        place
            .json(&["profile", "list", "--json"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert!(place.ok(&["profile", "show", &other]).contains(&other));

    // What is not a profile of this version is refused, with what to do.
    let text = String::from_utf8(bytes).unwrap();
    for (bad, reason) in [
        (
            text.replace("\"version\":2", "\"version\":3"),
            "it has version 3",
        ),
        (" ".repeat(2 << 20), "more than the limit of 1048576"),
        ("{}".to_owned(), "missing field"),
    ] {
        let path = place.path("bad");
        std::fs::write(&path, bad).unwrap();
        let path = path.display().to_string();
        for arguments in [
            &["profile", "import", &path][..],
            &["convert", "--profile", &path, "a/b:c", "a/b:d"],
        ] {
            let error = place.fails(arguments);
            assert!(error.contains(reason), "{error}");
        }
    }
    let stored = place
        .path("root/soci/profiles")
        .join(format!("{}.json", Digest::of(b"other").hex()));
    std::fs::write(stored, "{").unwrap();
    let error = place.fails(&["profile", "show", &other]);
    assert!(
        error.contains("cannot read the start-up profile"),
        "{error}"
    );
    let rows = place.json(&["profile", "list", "--json"]);
    let broken = rows
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["error"].is_string());
    assert_eq!(broken.count(), 1, "{rows}");
}

#[test]
fn a_profile_is_pushed_beside_its_image_which_keeps_its_digest() {
    let place = ProfileBench::start();
    let file = place.recorded("app:v2", "cat /data/one > /dev/null");
    let (manifest, _) = place.prefetch("v2");
    let image = place.image("app:v2");
    let pushed = place.ok(&[
        "profile",
        "push",
        "--plain-http",
        "--profile",
        &file,
        &image,
    ]);
    let artifact = place.get(&format!("/v2/app/manifests/{}", pushed.trim()));
    let artifact: Manifest = serde_json::from_slice(&artifact).unwrap();
    assert_eq!(artifact.artifact_type.as_deref(), Some(MEDIA_TYPE));
    assert_eq!(artifact.subject.unwrap().digest, manifest);
    let profile = place.get(&format!("/v2/app/blobs/{}", artifact.layers[0].digest));
    assert_eq!(
        [&profile[..], b"\n"].concat(),
        std::fs::read(&file).unwrap()
    );
    // This registry has no referrers API: the list is under a tag.
    let tag = manifest.to_string().replace(':', "-");
    let referrers: Index =
        serde_json::from_slice(&place.get(&format!("/v2/app/manifests/{tag}"))).unwrap();
    assert_eq!(
        referrers.manifests[0].artifact_type.as_deref(),
        Some(MEDIA_TYPE)
    );

    // The profile of another image, and one of another index of this image.
    for options in [
        &["--span-size", "65536"][..],
        &["--build-tool-identifier", "x"],
    ] {
        place.convert("app:other", options);
        let error = place.fails(&[
            "profile",
            "push",
            "--plain-http",
            "--profile",
            &file,
            &place.image("app:other"),
        ]);
        assert!(error.contains("lists none of the zTOCs"), "{error}");
    }
    let error = place.fails(&["profile", "push", "--plain-http", &image]);
    assert!(error.contains("no start of"), "{error}");
}

//! `soci check`, `ls`, `cat` and `mount` of images at a real registry. `mount` needs root and FUSE.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use soci_oci::{Descriptor, Digest, annotations, media_types};
use soci_testkit::image::shell_layer;
use soci_testkit::{Content, ImageBuilder, Layer, LayerCompression, Registry, TestRoot};
use soci_ztoc::soci_index::{IndexVersion, SociIndex, ZtocDescriptor};

const NOISE: Content = Content::Noise {
    seed: 7,
    length: 3_000_000,
};

struct Remote {
    registry: Registry,
    root: TestRoot,
}

impl Remote {
    /// `app:plain` without an index, `app:v2` converted.
    /// The lowest and the middle layer are indexed, the uppermost is too small.
    fn start() -> Self {
        let this = Self {
            registry: Registry::start().unwrap(),
            root: TestRoot::new().unwrap(),
        };
        let dir = this.root.dir("image").unwrap();
        ImageBuilder::new()
            .layer(
                shell_layer()
                    .unwrap()
                    .dir("data")
                    .text("data/gone", "deleted above\n")
                    .dir("old")
                    .text("old/hidden", "under an opaque directory\n"),
            )
            .layer(Layer::new().file("data/noise", NOISE))
            .layer(
                Layer::new()
                    .dir("etc")
                    .text("etc/motd", "lazily\n")
                    .symlink("etc/link", "../data/noise")
                    .whiteout("data/gone")
                    .dir("old")
                    .opaque("old")
                    .text("old/new", "shown\n"),
            )
            .command(["/bin/sh"])
            .write(&dir, "plain")
            .unwrap();
        this.registry.push_layout(&dir, "plain", "app").unwrap();
        let plain = this.registry.docker_reference("app:plain");
        let options = ["--span-size", "262144", "--min-layer-size", "100000"];
        let v2 = this.registry.docker_reference("app:v2");
        this.ok(&[&["convert"], &options[..], &[&plain, &v2]].concat());
        this
    }

    fn soci(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
        command
            .args(arguments)
            .env("HOME", self.root.path())
            .env_remove("DOCKER_CONFIG");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.soci(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        assert!(output.status.success(), "soci {arguments:?}: {output:?}");
        output.stdout
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.ok(arguments)).unwrap()
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(1),
            "soci {arguments:?}: {output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    }

    fn image(&self, tag: &str) -> String {
        self.registry.reference(&format!("app:{tag}"))
    }
}

fn names(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8(text.to_vec()).unwrap();
    text.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn files_of_a_remote_image_are_listed_and_read_with_and_without_an_index() {
    let remote = Remote::start();
    for tag in ["v2", "plain"] {
        let image = remote.image(tag);
        assert_eq!(
            names(&remote.ok(&["ls", &image])),
            ["bin/", "data/", "etc/", "old/"]
        );
        let at = |path: &str| format!("{image}:{path}");
        assert_eq!(names(&remote.ok(&["ls", &at("/data")])), ["noise"]);
        assert_eq!(names(&remote.ok(&["ls", &at("/old/")])), ["new"]);
        assert_eq!(remote.ok(&["cat", &at("/etc/motd")]), b"lazily\n");
        assert!(remote.ok(&["cat", &at("/data/noise")]) == NOISE.to_vec());
        // Through a symbolic link that leads up and down again.
        assert!(remote.ok(&["cat", &at("/etc/link")]) == NOISE.to_vec());
        for (path, reason) in [
            ("/data/gone", "no such file"),
            ("/old/hidden", "no such file"),
            ("/etc", "directory"),
            ("/etc/motd/x", "not a directory"),
        ] {
            let error = remote.fails(&["cat", &at(path)]);
            assert!(
                error.starts_with("soci: ") && error.contains(reason),
                "{error}"
            );
        }
        let long = String::from_utf8(remote.ok(&["ls", "-l", &at("/bin")])).unwrap();
        assert!(long.contains("sh -> busybox"), "{long}");
        let all = remote.json(&["ls", "--json", "-R", &image]);
        let paths: Vec<&str> = all
            .as_array()
            .unwrap()
            .iter()
            .map(|file| file["path"].as_str().unwrap())
            .collect();
        assert!(
            paths.contains(&"/bin/busybox") && !paths.contains(&"/data/gone"),
            "{paths:?}"
        );
    }
}

/// zstd layers have no zTOC ever; they are downloaded and read all the same.
#[test]
fn files_of_zstd_layers_are_listed_and_read_too() {
    let remote = Remote::start();
    let dir = remote.root.dir("zstd").unwrap();
    let image = ImageBuilder::new()
        .layer_with(
            Layer::new().dir("data").file("data/noise", NOISE),
            LayerCompression::Plain,
        )
        .write(&dir, "plain")
        .unwrap();
    let path = |digest: Digest| dir.join("blobs/sha256").join(digest.hex());
    let put = |bytes: &[u8]| std::fs::write(path(Digest::of(bytes)), bytes).unwrap();
    let blob = std::fs::read(path(image.manifest.digest)).unwrap();
    let mut manifest: soci_oci::Manifest = serde_json::from_slice(&blob).unwrap();
    let tar = std::fs::read(path(manifest.layers[0].digest)).unwrap();
    let layer = zstd::encode_all(&tar[..], 3).unwrap();
    put(&layer);
    manifest.layers[0] = Descriptor::of(media_types::OCI_LAYER_ZSTD, &layer);
    let bytes = soci_oci::json::to_vec(&manifest).unwrap();
    put(&bytes);
    let listed = Descriptor::of(media_types::OCI_MANIFEST, &bytes);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        serde_json::to_string(&listed).unwrap()
    );
    std::fs::write(dir.join("index.json"), index).unwrap();
    remote.registry.push_layout(&dir, "zstd", "app").unwrap();
    let noise = format!("{}:/data/noise", remote.image("zstd"));
    assert!(remote.ok(&["cat", &noise]) == NOISE.to_vec());
    assert_eq!(names(&remote.ok(&["ls", &remote.image("zstd")])), ["data/"]);
    let check = remote.json(&["check", "--json", &remote.image("zstd")]);
    assert_eq!(check["layers"][0]["compression"], "zstd", "{check}");
}

#[test]
fn reading_one_file_fetches_no_more_than_its_spans() {
    let remote = Remote::start();
    let proxy = soci_testkit::Proxy::start(remote.registry.address()).unwrap();
    let image = format!("{}/app:v2:/bin/busybox", proxy.address());
    remote.ok(&["cat", &image]);
    let sent = proxy.stats().total().bytes;
    let busybox = std::fs::metadata("/bin/busybox").unwrap().len();
    assert!(
        sent < busybox + 1_000_000,
        "{sent} bytes for a file of {busybox}"
    );
}

#[test]
fn check_reports_a_ztoc_above_the_limit_and_does_not_fetch_it() {
    let remote = Remote::start();
    let proxy = soci_testkit::Proxy::start(remote.registry.address()).unwrap();
    let config = remote.root.path().join("limits.toml");
    std::fs::write(&config, "[limits]\nztoc_bytes = 100\n").unwrap();
    let config = config.to_str().unwrap();
    let image = proxy.reference("app:v2");
    let check = [
        "check",
        "--json",
        "--no-estimate",
        "--config",
        config,
        &image,
    ];
    let check = remote.json(&check);
    assert_eq!(check["lazyLayers"], 0, "{check}");
    for layer in 0..2 {
        let reason = check["layers"][layer]["reason"].as_str().unwrap();
        assert!(
            reason.contains("more than limits.ztoc_bytes = 100"),
            "{reason}"
        );
    }
    let fetched = proxy.stats().by_path().into_keys();
    let fetched: Vec<_> = fetched.filter(|path| path.contains("/blobs/")).collect();
    assert_eq!(fetched, Vec::<String>::new());
}

#[test]
fn an_index_of_version_1_is_found_through_the_referrers() {
    let remote = Remote::start();
    let plain = remote.image("plain");
    let check = remote.json(&["check", "--json", &plain]);
    assert!(
        check["reason"]
            .as_str()
            .unwrap()
            .contains("no valid SOCI index found"),
        "{check}"
    );
    assert_eq!(check["lazyLayers"], 0);
    remote.ok(&[
        "create",
        "--min-layer-size",
        "100000",
        &format!("docker://{plain}"),
    ]);
    let config = remote.root.path().join("v1.toml");
    for (text, lazy) in [("", 0), ("[pull_modes.soci_v1]\nenable = true\n", 2)] {
        std::fs::write(&config, text).unwrap();
        let check = remote.json(&[
            "check",
            "--json",
            "--config",
            config.to_str().unwrap(),
            &plain,
        ]);
        assert_eq!(check["lazyLayers"], lazy, "{check}");
        let found = check["index"]["found"].as_str().unwrap();
        assert!(found.starts_with("version 1"), "{found}");
    }
}

#[test]
fn check_says_for_each_layer_whether_it_is_lazy_and_why_not() {
    let remote = Remote::start();
    let image = remote.image("v2");
    let check = remote.json(&["check", "--json", &image]);
    let lazy: Vec<bool> = check["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["lazy"].as_bool().unwrap())
        .collect();
    assert_eq!(lazy, [true, true, false], "{check}");
    let reason = check["layers"][2]["reason"].as_str().unwrap();
    assert!(reason.contains("--min-layer-size"), "{reason}");
    // The shell is in the lowest layer; the noise is not needed to start it.
    let startup = &check["startup"];
    assert_eq!(startup["files"][0], "/bin/sh", "{startup}");
    let percent = startup["percent"].as_f64().unwrap();
    assert!(percent > 0.0 && percent < 60.0, "{startup}");

    let config = remote.root.path().join("config.toml");
    std::fs::write(&config, "[snapshotter]\nmin_layer_size = 2000000\n").unwrap();
    let text = remote.ok(&["check", "--config", config.to_str().unwrap(), &image]);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("1 of 3 layers are lazy"), "{text}");
    assert!(
        text.contains("smaller than min_layer_size = 2000000"),
        "{text}"
    );
}

#[test]
fn a_mounted_image_shows_its_files_until_it_is_interrupted() {
    let remote = Remote::start();
    let dir: PathBuf = remote.root.dir("mnt").unwrap();
    let cache = remote.root.dir("cache").unwrap();
    for how in ["interrupt", "umount"] {
        let mut child = remote
            .soci(&[
                "mount",
                "--cache",
                cache.to_str().unwrap(),
                &remote.image("v2"),
            ])
            .arg(&dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert!(
            line.contains("is mounted on"),
            "{line} {:?}",
            child.wait_with_output()
        );
        assert_eq!(std::fs::read(dir.join("etc/motd")).unwrap(), b"lazily\n");
        assert!(std::fs::read(dir.join("data/noise")).unwrap() == NOISE.to_vec());
        assert!(!dir.join("data/gone").exists() && !dir.join("old/hidden").exists());
        assert!(dir.join("old/new").exists());
        let error = std::fs::write(dir.join("etc/motd"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let ended = match how {
            "interrupt" => Command::new("kill")
                .args(["-s", "INT", &child.id().to_string()])
                .status(),
            _ => Command::new("umount").arg(&dir).status(),
        };
        assert!(ended.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{how}: {output:?}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "{how}");
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0, "{how}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(remote.root.path().to_str().unwrap()),
            "{how}: {mounts}"
        );
    }
}

#[test]
fn what_cannot_be_read_is_reported_in_one_line() {
    let remote = Remote::start();
    for (arguments, reason) in [
        (vec!["cat".to_owned(), remote.image("v2")], "give a path"),
        (vec!["ls".to_owned(), remote.image("nothing")], "404"),
        (
            vec![
                "ls".to_owned(),
                "--platform".to_owned(),
                "linux/s390x".to_owned(),
                remote.image("v2"),
            ],
            "no manifest for platform",
        ),
        (
            vec![
                "mount".to_owned(),
                remote.image("v2"),
                "/proc/self/mounts".to_owned(),
            ],
            "not a directory",
        ),
        (
            vec!["mount".to_owned(), remote.image("plain"), "/tmp".to_owned()],
            "no SOCI index",
        ),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let error = remote.fails(&arguments);
        assert!(
            error.starts_with("soci: ") && error.contains(reason),
            "{arguments:?}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_person_at_a_terminal_reads_units_and_short_digests() {
    let remote = Remote::start();
    let image = remote.image("v2");
    let on_terminal = |arguments: &str| {
        let command = format!("{} {arguments}", env!("CARGO_BIN_EXE_soci"));
        let output = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .env("HOME", remote.root.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let config = remote.root.path().join("none.toml");
    std::fs::write(&config, "").unwrap();
    let check = format!("check --no-estimate --config {} {image}", config.display());
    let shown = on_terminal(&check);
    let digests = |text: &str| -> Vec<usize> {
        let layers = text.lines().filter(|line| line.starts_with("sha256:"));
        let first = layers.filter_map(|line| line.split_whitespace().next());
        first.map(str::len).collect()
    };
    assert_eq!(digests(&shown), [19; 3], "{shown}");
    assert!(
        shown.contains("MiB") && !shown.contains(" bytes"),
        "{shown}"
    );
    let listed = on_terminal(&format!("ls -l {image}:/data"));
    assert!(listed.contains("2.86 MiB"), "{listed}");
    // Programs get exact values.
    let arguments: Vec<&str> = check.split(' ').collect();
    let exact = String::from_utf8(remote.ok(&arguments)).unwrap();
    assert_eq!(digests(&exact), [71; 3], "{exact}");
    assert!(
        exact.contains(" bytes") && !exact.contains("MiB"),
        "{exact}"
    );
    let listed = remote.ok(&["ls", "-l", &format!("{image}:/data")]);
    assert!(String::from_utf8(listed).unwrap().contains(" 3000000 "));
    let warned = on_terminal(&format!("ls --user me:pw {image}"));
    assert!(
        warned.contains("--password-stdin") && !warned.contains("pw:"),
        "{warned}"
    );
}

#[test]
fn directories_deeper_than_the_stack_are_listed() {
    const LEVELS: usize = 2000;
    let remote = Remote::start();
    // No path is longer than 4095 bytes: further levels are below a link to the deepest before them.
    let deep = vec!["d"; LEVELS].join("/");
    let layer = Layer::new()
        .dir(&deep)
        .symlink("l", &deep)
        .text(&format!("l/{deep}/f"), "found\n");
    let dir = remote.root.dir("deep").unwrap();
    let image = ImageBuilder::new().layer(layer);
    image.write(&dir, "deep").unwrap();
    remote.registry.push_layout(&dir, "deep", "app").unwrap();
    let listed = remote.soci(&["ls", "-R", &remote.image("deep")]);
    // A stack of 1 MiB has less than 300 bytes for each level.
    let output = Command::new("sh")
        .args(["-c", "ulimit -s 1024 && exec \"$0\" \"$@\""])
        .arg(listed.get_program())
        .args(listed.get_args())
        .env("HOME", remote.root.path())
        .env_remove("DOCKER_CONFIG")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = names(&output.stdout);
    let deepest = format!("{deep}/{deep}/f");
    assert_eq!(lines.len(), 2 * LEVELS + 2);
    assert!(lines.contains(&deepest));
    assert_eq!(lines.last().unwrap(), "l");
}

#[test]
fn the_ztoc_of_another_layer_is_refused() {
    let remote = Remote::start();
    let dir = remote.root.dir("foreign").unwrap();
    let image = ImageBuilder::new()
        .layer_with(Layer::new().text("own", "own\n"), LayerCompression::Plain)
        .write(&dir, "plain")
        .unwrap();
    let other = Layer::new().text("other", &"other\n".repeat(1000));
    let others = remote.root.dir("other").unwrap();
    let other = ImageBuilder::new().layer_with(other, LayerCompression::Plain);
    let other = other.write(&others, "plain").unwrap();
    let path = |dir: &PathBuf, digest: Digest| dir.join("blobs/sha256").join(digest.hex());
    let tar = std::fs::read(path(&others, other.layers[0].digest)).unwrap();
    let options = soci_ztoc::BuildOptions::default();
    let ztoc = soci_ztoc::build(&tar[..], soci_ztoc::Compression::Uncompressed, options);
    let ztoc = ztoc.unwrap().ztoc.encode();

    // The image's own manifest names an index that lists it for the image's layer.
    let put = |media_type: &str, bytes: &[u8]| {
        let descriptor = Descriptor::of(media_type, bytes);
        std::fs::write(path(&dir, descriptor.digest), bytes).unwrap();
        descriptor
    };
    put(media_types::ZTOC, &ztoc);
    put(media_types::SOCI_INDEX_V2, b"{}");
    let layer = &image.layers[0];
    let listed = ZtocDescriptor::new(&ztoc, layer.digest, &layer.media_type, 4 << 20, false);
    let index = SociIndex::new(IndexVersion::V2, vec![listed], Vec::new(), None, [].into());
    let index = put(media_types::OCI_MANIFEST, &index.encode());
    let manifest = std::fs::read(path(&dir, image.manifest.digest)).unwrap();
    let mut manifest: soci_oci::Manifest = serde_json::from_slice(&manifest).unwrap();
    let named = (
        annotations::INDEX_DIGEST.to_owned(),
        index.digest.to_string(),
    );
    manifest.annotations.extend([named]);
    let manifest = put(
        media_types::OCI_MANIFEST,
        &soci_oci::json::to_vec(&manifest).unwrap(),
    );
    let list = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_types::OCI_INDEX,
        "manifests": [manifest, index],
    });
    let list = put(media_types::OCI_INDEX, list.to_string().as_bytes());
    soci_testkit::image::layout::list(&dir, "foreign", &list).unwrap();
    remote.registry.push_layout(&dir, "foreign", "app").unwrap();
    let image = remote.image("foreign");
    for command in ["ls", "cat"] {
        let error = remote.fails(&[command, &format!("{image}:/other")]);
        let size = format!("of a layer of {} bytes, not {}", tar.len(), layer.size);
        assert!(error.contains(&size), "{error}");
    }
}

//! `soci pull` against a real containerd (private, needs root) and a real registry on loopback.

use std::process::{Command, Output};

use serde_json::Value;
use soci_testkit::image::three_layers;
use soci_testkit::{
    Containerd, ContainerdOptions, Ctr, Fault, Proxy, Registry, Rule, Run, Throttle,
};

/// The digests of an image's layers, lowest first, and where it is.
struct Image {
    layers: Vec<soci_oci::Descriptor>,
    config: soci_oci::Digest,
    dir: tempfile::TempDir,
}

impl Image {
    /// Three layers with busybox in the lowest, at `app:v1` of the registry.
    fn push(registry: &Registry) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = three_layers().unwrap();
        let image = image.write(&dir.path().join("image"), "v1").unwrap();
        registry.push_layout(&image.dir, "v1", "app").unwrap();
        let blob = image
            .dir
            .join("blobs/sha256")
            .join(image.manifest.digest.hex());
        let manifest: soci_oci::Manifest =
            serde_json::from_slice(&std::fs::read(blob).unwrap()).unwrap();
        Self {
            layers: image.layers,
            config: manifest.config.digest,
            dir,
        }
    }
}

fn soci(containerd: &Containerd, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
    command
        .arg("--address")
        .arg(containerd.address())
        .args(["--namespace", "test"])
        .args(arguments);
    command
}

fn pull(containerd: &Containerd, snapshotter: &str, reference: &str, more: &[&str]) -> Output {
    let mut arguments = vec!["pull", "--snapshotter", snapshotter];
    arguments.extend(more);
    arguments.push(reference);
    soci(containerd, &arguments).output().unwrap()
}

fn pull_ok(containerd: &Containerd, snapshotter: &str, reference: &str) -> Value {
    let output = pull(containerd, snapshotter, reference, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn states(pulled: &Value) -> Vec<(&str, bool)> {
    pulled["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| {
            (
                layer["state"].as_str().unwrap(),
                layer["alreadyPresent"].as_bool().unwrap(),
            )
        })
        .collect()
}

fn lines(ctr: &Ctr, arguments: &[&str]) -> Vec<String> {
    let text = ctr.output(arguments).unwrap();
    text.lines()
        .map(ToOwned::to_owned)
        .filter(|line| !line.is_empty())
        .collect()
}

fn no_leases(ctr: &Ctr) -> bool {
    lines(ctr, &["leases", "ls", "-q"]).is_empty()
}

#[test]
fn an_image_without_lazy_snapshotter_is_pulled_as_usual_and_runs() {
    for snapshotter in ["overlayfs", "native"] {
        let registry = Registry::start().unwrap();
        let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
        let image = Image::push(&registry);
        let reference = registry.reference("app:v1");
        let ctr = containerd.ctr("test");

        let pulled = pull_ok(&containerd, snapshotter, &reference);
        assert_eq!(states(&pulled), [("unpacked", false); 3]);
        assert_eq!(pulled["image"], reference);
        assert!(no_leases(&ctr));
        assert_eq!(
            lines(&ctr, &["images", "ls", "-q"]),
            std::slice::from_ref(&reference)
        );
        let output = ctr.run_ok(&Run::new(&reference, snapshotter)).unwrap();
        assert_eq!(output, "lazily\n");

        // containerd's own view: content complete, labels as its own pull makes them.
        let content = lines(&ctr, &["content", "ls"]);
        assert_eq!(content.len(), 1 + 5, "{content:?}");
        for line in content.iter().skip(1) {
            assert!(
                line.contains("containerd.io/distribution.source.127.0.0.1:"),
                "{line}"
            );
        }
        let line_of = |digest: &soci_oci::Digest| {
            content
                .iter()
                .find(|line| line.starts_with(&digest.to_string()))
                .unwrap()
                .clone()
        };
        assert!(line_of(&image.config).contains(&format!("gc.ref.snapshot.{snapshotter}=sha256:")));
        for layer in &image.layers {
            let line = line_of(&layer.digest);
            assert!(
                line.contains("containerd.io/uncompressed=sha256:"),
                "{line}"
            );
        }
        let manifest = pulled["manifest"].as_str().unwrap().parse().unwrap();
        for label in [
            "gc.ref.content.config",
            "gc.ref.content.l.0",
            "gc.ref.content.l.2",
        ] {
            assert!(line_of(&manifest).contains(label));
        }

        // A second pull finds everything.
        let again = pull_ok(&containerd, snapshotter, &reference);
        assert_eq!(states(&again), [("unpacked", true); 3]);

        // Removing the image frees content and snapshots.
        ctr.output(["images", "rm", "--sync", &reference]).unwrap();
        assert_eq!(lines(&ctr, &["content", "ls", "-q"]), Vec::<String>::new());
        let snapshots = lines(&ctr, &["snapshots", "--snapshotter", snapshotter, "ls"]);
        assert_eq!(snapshots.len(), 1, "{snapshots:?}");
    }
}

#[test]
fn what_ctr_pulled_is_taken_over_and_the_other_way_round() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    Image::push(&registry);
    let reference = registry.reference("app:v1");
    let ctr = containerd.ctr("test");
    ctr.pull(&reference, "overlayfs").unwrap();
    let pulled = pull_ok(&containerd, "overlayfs", &reference);
    assert_eq!(states(&pulled), [("unpacked", true); 3]);
    // Another snapshotter: the content is there, the snapshots are not.
    let pulled = pull_ok(&containerd, "native", &reference);
    assert_eq!(states(&pulled), [("unpacked", false); 3]);
    assert_eq!(
        ctr.run_ok(&Run::new(&reference, "native")).unwrap(),
        "lazily\n"
    );
    ctr.pull(&reference, "overlayfs").unwrap();
    assert_eq!(
        ctr.run_ok(&Run::new(&reference, "overlayfs")).unwrap(),
        "lazily\n"
    );
}

#[test]
fn a_converted_image_is_found_in_its_index_and_a_new_one_replaces_the_old() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let image = Image::push(&registry);
    let reference = registry.reference("app:v1");
    let before = pull_ok(&containerd, "overlayfs", &reference);
    let source = image.dir.path().join("image");
    let output = Command::new(env!("CARGO_BIN_EXE_soci"))
        .args(["convert", "--standalone", "--min-layer-size", "0"])
        .arg(&source)
        .arg(format!("docker://{reference}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let after = pull_ok(&containerd, "overlayfs", &reference);
    assert_ne!(before["digest"], after["digest"]);
    assert_eq!(states(&after), [("unpacked", true); 3]);
    let ctr = containerd.ctr("test");
    let images = lines(&ctr, &["images", "ls"]);
    assert_eq!(images.len(), 2, "{images:?}");
    assert!(
        images[1].contains(after["digest"].as_str().unwrap()),
        "{images:?}"
    );
    assert_eq!(
        ctr.run_ok(&Run::new(&reference, "overlayfs")).unwrap(),
        "lazily\n"
    );
}

#[test]
fn a_corrupt_layer_is_refused_and_nothing_of_it_stays() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let image = Image::push(&registry);
    let proxy = Proxy::start(registry.address()).unwrap();
    let reference = proxy.reference("app:v1");
    proxy.inject(Rule::always(Fault::CorruptBlob(5000)).blob(image.layers[1].digest));
    let output = pull(&containerd, "overlayfs", &reference, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains(&image.layers[1].digest.to_string()),
        "{error}"
    );
    let ctr = containerd.ctr("test");
    assert_eq!(lines(&ctr, &["images", "ls", "-q"]), Vec::<String>::new());
    assert!(no_leases(&ctr));
    let active = lines(&ctr, &["snapshots", "ls"]);
    assert!(
        active.iter().all(|line| !line.contains("extract-")),
        "{active:?}"
    );
    // And with a sound registry the same pull succeeds.
    proxy.clear_faults();
    let pulled = pull_ok(&containerd, "overlayfs", &reference);
    assert_eq!(states(&pulled).len(), 3);
    assert_eq!(
        ctr.run_ok(&Run::new(&reference, "overlayfs")).unwrap(),
        "lazily\n"
    );
}

#[test]
fn a_layer_with_another_diff_id_is_refused_and_nothing_of_it_stays() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let image = Image::push(&registry);
    // A configuration that names the layers of another image under well-known chain IDs.
    let dir = image.dir.path().join("image");
    let blob = |digest: soci_oci::Digest| dir.join("blobs/sha256").join(digest.hex());
    let read = |digest| -> Value {
        serde_json::from_slice(&std::fs::read(blob(digest)).unwrap()).unwrap()
    };
    let put = |value: &Value| {
        let bytes = value.to_string().into_bytes();
        let digest = soci_oci::Digest::of(&bytes);
        std::fs::write(blob(digest), &bytes).unwrap();
        serde_json::json!({ "digest": digest.to_string(), "size": bytes.len() })
    };
    let mut config = read(image.config);
    let genuine = config["rootfs"]["diff_ids"][1].as_str().unwrap().to_owned();
    let stolen = soci_oci::Digest::of(b"the layer of another image").to_string();
    config["rootfs"]["diff_ids"][1] = stolen.clone().into();
    let index = dir.join("index.json");
    let mut top: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    let mut manifest = read(
        top["manifests"][0]["digest"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap(),
    );
    let update = |descriptor: &mut Value, new: Value| {
        for key in ["digest", "size"] {
            descriptor[key] = new[key].clone();
        }
    };
    update(&mut manifest["config"], put(&config));
    update(&mut top["manifests"][0], put(&manifest));
    std::fs::write(&index, top.to_string()).unwrap();
    registry.push_layout(&dir, "v1", "forged").unwrap();

    let reference = registry.reference("forged:v1");
    let output = pull(&containerd, "overlayfs", &reference, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    for named in [&genuine, &stolen, &image.layers[1].digest.to_string()] {
        assert!(error.contains(named), "{error}");
    }
    let ctr = containerd.ctr("test");
    assert_eq!(lines(&ctr, &["images", "ls", "-q"]), Vec::<String>::new());
    assert!(no_leases(&ctr));
    let rootfs: soci_oci::ImageConfig = serde_json::from_value(config).unwrap();
    let chain = rootfs.rootfs.chain_ids()[1].to_string();
    let snapshots = lines(&ctr, &["snapshots", "ls"]);
    let kept = snapshots
        .iter()
        .filter(|line| line.contains(&chain) || line.contains("extract-"));
    assert_eq!(kept.count(), 0, "{snapshots:?}");
}

#[test]
fn what_an_earlier_pull_left_damaged_is_fetched_again() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let image = Image::push(&registry);
    let ctr = containerd.ctr("test");
    let layer = &image.layers[1];
    let name = format!("layer-{}", layer.digest);
    let mut left = ctr.command();
    left.args(["content", "ingest", &name])
        .args(["--expected-digest", &layer.digest.to_string()])
        .args(["--expected-size", &layer.size.to_string()])
        .stdin(std::fs::File::open("/bin/busybox").unwrap());
    assert!(!left.output().unwrap().status.success());
    assert_eq!(
        lines(&ctr, &["content", "active"]).len(),
        2,
        "a heading and the part"
    );

    let pulled = pull_ok(&containerd, "overlayfs", &registry.reference("app:v1"));
    assert_eq!(states(&pulled), [("unpacked", false); 3]);
    assert_eq!(lines(&ctr, &["content", "active"]).len(), 1, "a heading");
}

#[test]
fn a_body_continues_on_a_new_connection_when_one_breaks() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let image = Image::push(&registry);
    let proxy = Proxy::start(registry.address()).unwrap();
    proxy.inject(
        Rule::always(Fault::ResetAfter(1_000_000))
            .blob(image.layers[1].digest)
            .times(2),
    );
    let pulled = pull_ok(&containerd, "overlayfs", &proxy.reference("app:v1"));
    assert_eq!(states(&pulled), [("unpacked", false); 3]);
    assert!(proxy.faults_injected() > 0);
}

#[test]
fn an_interrupt_gives_the_lease_back() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let image = Image::push(&registry);
    let proxy = Proxy::start(registry.address()).unwrap();
    proxy.throttle(Throttle {
        per_response: Some(200_000),
        ..Throttle::unlimited()
    });
    let ctr = containerd.ctr("test");
    let reference = proxy.reference("app:v1");
    let mut child = soci(
        &containerd,
        &["pull", "--snapshotter", "overlayfs", &reference],
    )
    .spawn()
    .unwrap();
    let large = &image.layers[1];
    let active = || {
        lines(&ctr, &["content", "active"])
            .iter()
            .any(|line| line.contains(&format!("layer-{}", large.digest)))
    };
    while !active() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be interrupted"
        );
    }
    assert!(!no_leases(&ctr));
    let kill = Command::new("kill")
        .args(["-s", "INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(no_leases(&ctr));
    let snapshots = lines(&ctr, &["snapshots", "ls"]);
    assert!(
        snapshots.iter().all(|line| !line.contains("extract-")),
        "{snapshots:?}"
    );
    assert_eq!(lines(&ctr, &["images", "ls", "-q"]), Vec::<String>::new());
}

#[test]
fn what_is_missing_is_named() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    Image::push(&registry);
    let ctr = containerd.ctr("test");
    let failure = |snapshotter: &str, reference: &str, more: &[&str]| {
        let output = pull(&containerd, snapshotter, reference, more);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(no_leases(&ctr));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = failure("overlayfs", &registry.reference("app:none"), &[]);
    assert!(error.contains("404") && error.contains("app"), "{error}");
    let error = failure("nosuch", &registry.reference("app:v1"), &[]);
    assert!(
        error.contains("\"nosuch\"") && error.contains("[proxy_plugins.nosuch]"),
        "{error}"
    );
    // The reference names a manifest, not an index: the configuration says what it is for.
    let error = failure(
        "overlayfs",
        &registry.reference("app:v1"),
        &["--platform", "linux/s390x"],
    );
    assert!(
        error.contains("has no manifest for platform linux/s390x"),
        "{error}"
    );
    assert_eq!(lines(&ctr, &["images", "ls", "-q"]), Vec::<String>::new());
}

#[test]
fn the_lines_say_what_became_of_each_layer() {
    let registry = Registry::start().unwrap();
    let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
    let image = Image::push(&registry);
    let reference = registry.reference("app:v1");
    let output = pull(&containerd, "overlayfs", &reference, &[]);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (line, layer) in lines.iter().zip(&image.layers) {
        assert!(line.starts_with(&layer.digest.to_string()), "{line}");
        assert!(line.ends_with("unpacked here"), "{line}");
    }
    assert!(
        lines[3].starts_with(&reference) && lines[3].ends_with("0 of 3 layers lazy"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'));
    let quiet = pull(&containerd, "overlayfs", &reference, &["--quiet"]);
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
}

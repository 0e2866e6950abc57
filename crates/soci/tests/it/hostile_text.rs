//! What images say reaches a terminal, a pipe and a log only in a form that a terminal does not obey.

use std::path::Path;
use std::process::Output;

use soci_oci::{Descriptor, Digest, Index, Manifest, Platform, annotations, media_types};
use soci_profile::Profile;
use soci_testkit::{ImageBuilder, Layer};
use soci_ztoc::soci_index::{IndexVersion, SociIndex, ZtocDescriptor};

use crate::support::Bench;

/// Resets the terminal, starts a line that looks like ours, reverses the rest, rings.
const HOSTILE: &str = "x\u{1b}c\nsoci: all is well\u{202e}\u{9b}31m\u{7}";
/// What is printed instead.
const SHOWN: &str = r"x\u{1b}c\nsoci: all is well\u{202e}\u{9b}31m\u{7}";

/// A layout under the tag `v1`: an image whose files, links, layer type, platform and annotations are hostile.
fn hostile_image(dir: &Path) {
    let put = |bytes: &[u8]| {
        let path = dir.join("blobs/sha256").join(Digest::of(bytes).hex());
        std::fs::write(path, bytes).unwrap();
    };
    let mut listed = Vec::new();
    for (architecture, layer_type) in [
        ("amd64", media_types::OCI_LAYER_GZIP.to_owned()),
        (HOSTILE, format!("application/{HOSTILE}")),
    ] {
        // Blobs of its own: a client fetches both at a time.
        let image = ImageBuilder::new()
            .layer(
                Layer::new()
                    .dir("d")
                    .text(&format!("d/{HOSTILE}"), "content\n")
                    .symlink("d/link", HOSTILE)
                    .text("type", &layer_type),
            )
            .write(dir, "plain")
            .unwrap();
        let blob = dir.join("blobs/sha256").join(image.manifest.digest.hex());
        let mut manifest: Manifest = serde_json::from_slice(&std::fs::read(blob).unwrap()).unwrap();
        manifest.layers[0].media_type = layer_type;
        manifest
            .annotations
            .insert("org.example.note".to_owned(), HOSTILE.to_owned());
        let bytes = soci_oci::json::to_vec(&manifest).unwrap();
        put(&bytes);
        listed.push(Descriptor {
            platform: Some(Platform::new("linux", architecture, None)),
            ..Descriptor::of(media_types::OCI_MANIFEST, &bytes)
        });
    }
    let list = Index {
        schema_version: 2,
        media_type: media_types::OCI_INDEX.to_owned(),
        artifact_type: None,
        manifests: listed,
        subject: None,
        annotations: Default::default(),
    };
    let bytes = soci_oci::json::to_vec(&list).unwrap();
    put(&bytes);
    let top = Index {
        manifests: vec![
            Descriptor::of(media_types::OCI_INDEX, &bytes).annotated(annotations::REF_NAME, "v1"),
        ],
        ..list
    };
    let top = soci_oci::json::to_vec(&top).unwrap();
    std::fs::write(dir.join("index.json"), top).unwrap();
}

/// A layout under the tag `v1`: an image with an index, which has no zTOC for its layer of a hostile type.
fn unreadable_image(dir: &Path) {
    let put = |media_type: &str, bytes: &[u8]| {
        let descriptor = Descriptor::of(media_type, bytes);
        let path = dir.join("blobs/sha256").join(descriptor.digest.hex());
        std::fs::write(path, bytes).unwrap();
        descriptor
    };
    let image = ImageBuilder::new()
        .layer(Layer::new().text("f", "content\n"))
        .write(dir, "plain")
        .unwrap();
    let ztoc = put(media_types::ZTOC, b"ztoc");
    put(media_types::SOCI_INDEX_V2, b"{}");
    let other = Digest::of(b"another layer");
    let listed = ZtocDescriptor::new(b"ztoc", other, media_types::OCI_LAYER_GZIP, 4 << 20, false);
    assert_eq!(listed.descriptor.digest, ztoc.digest);
    let index = SociIndex::new(IndexVersion::V2, vec![listed], Vec::new(), None, [].into());
    let index = put(media_types::OCI_MANIFEST, &index.encode());
    let blob = dir.join("blobs/sha256").join(image.manifest.digest.hex());
    let mut manifest: Manifest = serde_json::from_slice(&std::fs::read(blob).unwrap()).unwrap();
    manifest.layers[0].media_type = format!("application/{HOSTILE}");
    manifest.annotations.insert(
        annotations::INDEX_DIGEST.to_owned(),
        index.digest.to_string(),
    );
    let manifest = soci_oci::json::to_vec(&manifest).unwrap();
    let list = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_types::OCI_INDEX,
        "manifests": [put(media_types::OCI_MANIFEST, &manifest), index],
    });
    let list = put(media_types::OCI_INDEX, list.to_string().as_bytes());
    soci_testkit::image::layout::list(dir, "v1", &list).unwrap();
}

/// Both streams hold lines of printable characters only; returns them.
fn printed(arguments: &[&str], output: &Output) -> String {
    let mut all = String::new();
    for stream in [&output.stdout, &output.stderr] {
        let text = String::from_utf8(stream.clone()).unwrap();
        for line in text.lines() {
            assert!(
                line.chars().all(soci_errors::is_printable),
                "soci {arguments:?}: {line:?}"
            );
            assert!(
                !line.starts_with("soci: all is well"),
                "soci {arguments:?}: {text}"
            );
        }
        all.push_str(&text);
    }
    all
}

/// A start-up profile names its image, and comes from a registry or a file.
fn profiles(bench: &Bench) {
    let profile = Profile::new(Digest::of(b"manifest"), HOSTILE);
    let file = bench.layouts.path().join(format!("{HOSTILE}.profile"));
    std::fs::write(&file, profile.encode()).unwrap();
    let file = file.to_str().unwrap();
    let manifest = profile.manifest.to_string();
    let damaged = bench.layouts.path().join(format!("{HOSTILE}.damaged"));
    std::fs::write(
        &damaged,
        serde_json::json!({"version": HOSTILE}).to_string(),
    )
    .unwrap();
    let damaged = damaged.to_str().unwrap();
    for (arguments, shown) in [
        (vec!["profile", "show", "--file", file], SHOWN),
        (vec!["profile", "import", file], SHOWN),
        (vec!["profile", "import", damaged], SHOWN),
        (vec!["profile", "list"], SHOWN),
        (vec!["profile", "list", "--json"], r"\u001bc\n"),
        (vec!["profile", "show", &manifest], SHOWN),
        (vec!["profile", "push", &manifest, HOSTILE], SHOWN),
        (vec!["profile", "push", HOSTILE], SHOWN),
        (vec!["profile", "run", HOSTILE], SHOWN),
        (vec!["profile", "record", HOSTILE], SHOWN),
    ] {
        let text = printed(&arguments, &bench.run(&arguments));
        assert!(text.contains(shown), "soci {arguments:?}: {text}");
    }
    // A warning for a file that the list cannot read.
    let stored = bench.soci_root().join("soci/profiles");
    let stored = std::fs::read_dir(stored).unwrap().next().unwrap().unwrap();
    std::fs::write(
        stored.path(),
        serde_json::json!({"version": HOSTILE}).to_string(),
    )
    .unwrap();
    let text = printed(&["profile", "list"], &bench.run(&["profile", "list"]));
    assert!(text.contains("warning: ") && text.contains(SHOWN), "{text}");
}

/// Events come over the network.
fn event(bench: &Bench) {
    let event = |action: &str| {
        serde_json::json!({"events": [{
            "id": HOSTILE, "action": action,
            "target": {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": Digest::of(b"manifest"), "repository": "app", "tag": HOSTILE
            },
            "request": {"host": "registry.example"}
        }]})
    };
    let file = bench.layouts.path().join("event.json");
    let arguments = ["index-builder", "run", "--event", file.to_str().unwrap()];
    for action in [HOSTILE, "push"] {
        std::fs::write(&file, event(action).to_string()).unwrap();
        let text = printed(&arguments, &bench.run(&arguments));
        assert!(text.contains(SHOWN), "{text}");
    }
}

/// Names below the daemon's root folder, and arguments: scripts pass what images are called.
fn files_of_the_daemon(bench: &Bench) {
    std::fs::create_dir_all(bench.soci_root().join("unpack").join(HOSTILE)).unwrap();
    let socket = bench.root.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    let none = bench.root.path().join(HOSTILE);
    let none = none.to_str().unwrap();
    for (arguments, shown) in [
        (
            vec!["gc", "--dry-run", "--snapshotter-address", socket],
            SHOWN,
        ),
        (vec!["gc", "--snapshotter-address", socket], SHOWN),
        (vec!["status", "--snapshotter-address", none], SHOWN),
        (vec!["wait", "--snapshotter-address", none, HOSTILE], SHOWN),
        (vec!["--root", none, "abort-mounts"], SHOWN),
        (vec!["index", "remove", HOSTILE], SHOWN),
        (vec!["index", "remove", "--ref", HOSTILE], SHOWN),
        (vec!["prefetch", "info", HOSTILE], SHOWN),
        (
            vec!["node", "status", "--containerd-config", none],
            "soci: ",
        ),
    ] {
        let text = printed(&arguments, &bench.run(&arguments));
        assert!(text.contains(shown), "soci {arguments:?}: {text}");
    }
}

#[test]
fn no_command_prints_what_a_terminal_obeys() {
    let bench = Bench::start();
    let layout = bench.layouts.path().join("image");
    hostile_image(&layout);
    bench
        .registry
        .push_layout(&layout, "v1", "hostile")
        .unwrap();
    let image = bench.registry.reference("hostile:v1");
    // containerd does not fetch a layer whose type is no value of an HTTP header.
    bench.fetch(&image);
    let remote = format!("docker://{image}");
    let converted = bench.registry.reference("hostile:v2");
    let local = bench.layouts.path().display().to_string();
    let (from, to) = (format!("{local}/image"), format!("{local}/out"));
    let all = ["--all-platforms", "--min-layer-size", "0"];
    let with = |first: &[&'static str], last: &[&'static str]| [first, last].concat();
    let indexed = with(&["--min-layer-size", "0"], &["--platform", "linux/amd64"]);
    let path = format!("{image}:/d/{HOSTILE}");
    let missing = format!("{image}:/d/{HOSTILE}/none");
    let directory = format!("{image}:/d");

    // Each with a text that shows that the hostile part was printed at all.
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["ls", &directory], SHOWN),
        (vec!["ls", "-l", "-R", &image], SHOWN),
        (vec!["ls", "--json", &directory], r"\u001bc\n"),
        (vec!["ls", "--platform", "linux/none", &image], SHOWN),
        (vec!["cat", &path], "content"),
        (vec!["cat", &missing], SHOWN),
        (vec!["check", "--platform", "linux/none", &image], SHOWN),
        (vec!["check", &image], "manifest"),
        (
            vec!["mount", "--platform", "linux/none", &image, "/mnt"],
            SHOWN,
        ),
        (
            [
                &["convert", "--standalone", "--format", "oci-dir"],
                &all[..],
                &[&from, &to],
            ]
            .concat(),
            SHOWN,
        ),
        (
            [
                &["convert"],
                &indexed[..],
                &[&remote, "docker://localhost:1/none:1"],
            ]
            .concat(),
            "soci: ",
        ),
        (
            [&["convert"], &indexed[..], &[&image, &converted]].concat(),
            "sha256:",
        ),
        ([&["create"], &indexed[..], &[&image]].concat(), "sha256:"),
        ([&["create"], &all[..], &[&remote]].concat(), SHOWN),
        (
            vec!["create", "--platform", "linux/none", &image],
            "linux/none",
        ),
        (vec!["push", "--plain-http", &image], "index"),
        (
            vec!["push", "--platform", "linux/none", &image],
            "linux/none",
        ),
        (
            vec![
                "pull",
                "--snapshotter",
                "overlayfs",
                "--platform",
                "linux/none",
                &image,
            ],
            SHOWN,
        ),
        (vec!["index", "list"], "sha256:"),
        (vec!["index", "list", "--json"], "sha256:"),
        (vec!["ztoc", "list"], "sha256:"),
        (vec!["ztoc", "list", "--image-ref", HOSTILE], SHOWN),
        (vec!["rebuild-db"], ""),
        (vec!["prefetch", "list"], "DIGEST"),
    ];
    for (arguments, shown) in &cases {
        let text = printed(arguments, &bench.run(arguments));
        assert!(text.contains(shown), "soci {arguments:?}: {text}");
        // Logs of the libraries as well.
        let logged: Vec<&str> = ["--debug"].iter().chain(arguments).copied().collect();
        printed(&logged, &bench.run(&logged));
    }
    let layout = bench.layouts.path().join("unreadable");
    unreadable_image(&layout);
    bench.registry.push_layout(&layout, "v1", "warned").unwrap();
    let warned = bench.registry.reference("warned:v1");
    let warned = ["check", warned.as_str()];
    let text = printed(&warned, &bench.run(&warned));
    let is_shown = |line: &str| line.starts_with("soci: warning: ") && line.contains(SHOWN);
    assert!(text.lines().any(is_shown), "{text}");
    profiles(&bench);
    event(&bench);
    files_of_the_daemon(&bench);
    let ztoc = bench.ok(&["ztoc", "list", "-q"]);
    let ztoc = ztoc.lines().next().unwrap();
    for arguments in [
        vec!["ztoc", "info", ztoc],
        vec!["ztoc", "get-file", ztoc, HOSTILE],
        vec!["index", "info", ztoc],
    ] {
        let text = printed(&arguments, &bench.run(&arguments));
        assert!(!text.is_empty(), "soci {arguments:?}");
    }
    let info = bench.ok(&["ztoc", "info", ztoc]);
    let parsed: serde_json::Value = serde_json::from_str(&info).unwrap();
    // JSON stays exact.
    assert!(
        parsed["files"]
            .as_array()
            .unwrap()
            .iter()
            .any(|file| file["filename"].as_str().unwrap().ends_with(HOSTILE)),
        "{info}"
    );
}

//! Through containerd: what the reference made is used, and what we make is what it would make.
//! Needs root.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Bench, golden, lines, soci_indexes};
use soci_profile::{Profile, ProfiledLayer, RecordedSpan, Recording};
use soci_testkit::ImageBuilder;

#[test]
fn converting_and_creating_give_the_same_digests_each_time_and_in_every_time_zone() {
    let bench = Bench::start();
    let image = bench.image();
    let (mut converted, mut created) = (Vec::new(), Vec::new());
    for (at, zone) in ["UTC", "Asia/Kathmandu", "America/St_Johns"]
        .iter()
        .enumerate()
    {
        let name = bench.registry.reference(&format!("app:soci{at}"));
        for arguments in [
            vec![
                "convert",
                "--force",
                "--min-layer-size",
                "100000",
                &image,
                &name,
            ],
            vec!["create", "--force", "--min-layer-size", "100000", &image],
        ] {
            let output = bench.soci(&arguments).env("TZ", zone).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        converted.push(bench.target(&name));
        created.push(lines(&bench.ok(&["index", "list", "-q", "--ref", &image])));
    }
    assert!(
        converted.iter().all(|digest| *digest == converted[0]),
        "{converted:?}"
    );
    assert!(
        created
            .iter()
            .all(|digests| digests == &created[0] && digests.len() == 1)
    );
}

#[test]
fn converting_a_converted_image_replaces_its_index_and_in_place_works() {
    let bench = Bench::start();
    let image = bench.image();
    let name = bench.registry.reference("app:soci");
    bench.ok(&["convert", "--min-layer-size", "100000", &image, &name]);
    let first = bench.target(&name);
    bench.ok(&["convert", "--min-layer-size", "100000", &name, &name]);
    assert_eq!(bench.target(&name), first);
    bench.ok(&[
        "convert",
        "--min-layer-size",
        "100000",
        "--span-size",
        "131072",
        &name,
        &name,
    ]);
    let second = bench.target(&name);
    assert_ne!(second, first);
    let index = bench.index(&second);
    assert_eq!((index.manifests.len(), soci_indexes(&index).len()), (2, 1));
    // The image's former content goes with its former target.
    bench
        .ctr()
        .output(["content", "prune", "references"])
        .unwrap();
    assert!(!bench.content().contains(&first));
}

/// Every golden image, converted and indexed through containerd, has the structure and, but for the
/// tool's name, the content of the reference's.
#[test]
fn golden_images_get_the_references_indexes_through_containerd() {
    let bench = Bench::start();
    for case in ["kinds", "gzip-multi-member", "uncompressed"] {
        let image = bench.import(&golden(case).join("image"), case, "1");
        let name = bench.registry.reference(&format!("{case}:soci"));
        let options = ["--span-size", "131072", "--min-layer-size", "0"];
        bench.ok(&[&["convert"], &options[..], &[&image, &name]].concat());
        bench.ok(&[&["create"], &options[..], &[&image]].concat());
        let index = lines(&bench.ok(&["index", "list", "-q", "--ref", &image])).remove(0);
        let ours = bench.manifest(&index);
        let theirs = std::fs::read_to_string(golden(case).join("soci-v1/index-digest")).unwrap();
        let hex = theirs.trim().strip_prefix("sha256:").unwrap().to_owned();
        let theirs = std::fs::read(golden(case).join("soci-v1/blobs/sha256").join(hex)).unwrap();
        let theirs: soci_oci::Manifest = serde_json::from_slice(&theirs).unwrap();
        assert_eq!(ours.config, theirs.config, "{case}");
        assert_eq!(ours.subject, theirs.subject, "{case}");
        let layers = |manifest: &soci_oci::Manifest| -> Vec<_> {
            let layers = manifest.layers.iter();
            layers
                .map(|l| (l.media_type.clone(), l.annotations.clone()))
                .collect()
        };
        assert_eq!(layers(&ours), layers(&theirs), "{case}");
        let converted = bench.index(&bench.target(&name));
        assert_eq!(soci_indexes(&converted).len(), 1, "{case}");
    }
}

#[test]
fn the_references_converted_image_keeps_its_local_ztocs() {
    let bench = Bench::start();
    let whole = bench.layouts.path().join("kinds");
    std::fs::create_dir_all(whole.join("blobs/sha256")).unwrap();
    for part in ["image", "soci-v1", "soci-v2"] {
        for blob in std::fs::read_dir(golden("kinds").join(part).join("blobs/sha256")).unwrap() {
            let blob = blob.unwrap();
            std::fs::copy(
                blob.path(),
                whole.join("blobs/sha256").join(blob.file_name()),
            )
            .unwrap();
        }
    }
    for file in ["index.json", "oci-layout"] {
        std::fs::copy(golden("kinds").join("soci-v2").join(file), whole.join(file)).unwrap();
    }
    let image = bench.import(&whole, "kinds", "v2");
    bench.ok(&["rebuild-db"]);
    let listed = bench.ok(&["index", "list", "--json"]);
    assert!(listed.contains("\"manifestVersion\": \"v2\""), "{listed}");
    let name = bench.registry.reference("kinds:again");
    let said = bench.ok(&[
        "convert",
        "--span-size",
        "131072",
        "--min-layer-size",
        "0",
        &image,
        &name,
    ]);
    assert_eq!(said.matches("(already exists)").count(), 2, "{said}");
}

#[test]
fn all_platforms_and_docker_media_types_are_converted() {
    let bench = Bench::start();
    let dir = bench.layouts.path().join("multi");
    crate::support::multi_platform(&dir, "multi");
    let image = bench.import(&dir, "multi", "multi");
    let name = bench.registry.reference("multi:soci");
    let fails = bench.fails(&["convert", "--platform", "linux/s390x", &image, &name]);
    assert!(
        fails.contains("linux/s390x") && fails.contains("it has linux/amd64"),
        "{fails}"
    );
    let options = ["--min-layer-size", "0"];
    bench.ok(&[
        &["convert", "--all-platforms"],
        &options[..],
        &[&image, &name],
    ]
    .concat());
    let index = bench.index(&bench.target(&name));
    assert_eq!(index.media_type, "application/vnd.oci.image.index.v1+json");
    let soci = soci_indexes(&index);
    let platforms: Vec<String> = soci
        .iter()
        .map(|listed| listed.platform.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    for listed in index.manifests.iter().filter(|m| m.artifact_type.is_none()) {
        let manifest = bench.manifest(&listed.digest.to_string());
        assert!(manifest.media_type.contains("oci") && manifest.config.media_type.contains("oci"));
    }
    // One platform of two: the other is carried along without an index.
    bench.ok(&[
        &["convert", "-p", "linux/arm64"],
        &options[..],
        &[&image, &name],
    ]
    .concat());
    let index = bench.index(&bench.target(&name));
    assert_eq!((index.manifests.len(), soci_indexes(&index).len()), (3, 1));

    // Indexes of both platforms live as long as the image, also when they are made one by one.
    for platform in ["linux/amd64", "linux/arm64"] {
        bench.ok(&[&["create", "-p", platform], &options[..], &[&image]].concat());
    }
    bench
        .ctr()
        .output(["content", "prune", "references"])
        .unwrap();
    let content = bench.content();
    let made = lines(&bench.ok(&["index", "list", "-q", "--ref", &image]));
    assert!(
        made.len() == 2 && made.iter().all(|index| content.contains(index)),
        "{made:?}"
    );
    let pushed = bench.ok(&["push", "--all-platforms", "-q", &image]);
    assert_eq!(lines(&pushed).len(), 2, "{pushed}");
}

#[test]
fn what_cannot_be_indexed_is_reported_in_one_line() {
    let bench = Bench::start();
    let image = bench.image();
    let name = bench.registry.reference("app:soci");
    let zstd = bench.layouts.path().join("zstd");
    crate::support::typed_layer(&zstd, "zstd", soci_oci::media_types::OCI_LAYER_ZSTD);
    let zstd = bench.import(&zstd, "app", "zstd");
    let bare = bench.layouts.path().join("bare");
    ImageBuilder::new().write(&bare, "bare").unwrap();
    let bare = bench.import(&bare, "app", "bare");
    let digest = soci_oci::Digest::of(b"x");
    let at_digest = format!("{}@{digest}", bench.registry.reference("app"));
    for (arguments, reason) in [
        (vec!["create", "localhost/none:1"], "not found"),
        (vec!["convert", "localhost/none:1", &name], "not found"),
        (vec!["push", "localhost/none:1"], "not found"),
        (vec!["convert", &image, "untagged/ref"], "tagged"),
        (vec!["convert", &image, &at_digest], "digest"),
        (vec!["convert", &image, ""], "destination"),
        (
            vec!["create", "--platform", "linux/s390x", &image],
            "linux/s390x",
        ),
        // All layers are below the default size.
        (vec!["create", &image], "empty index"),
        (vec!["convert", &image, &name], "empty index"),
        (
            vec!["create", "--min-layer-size", "0", &zstd],
            "empty index",
        ),
        (
            vec!["create", "--min-layer-size", "0", &bare],
            "empty index",
        ),
        (vec!["push", &image], "v1"),
    ] {
        let error = bench.fails(&arguments);
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
    for size in ["-1", "many", "99999999999999999999999"] {
        let output = bench.run(&["create", "--span-size", size, &image]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    assert_eq!(bench.ok(&["index", "list", "-q"]), "");
    assert!(!bench.images().contains(&name));
    assert!(
        bench
            .ctr()
            .output(["leases", "ls", "-q"])
            .unwrap()
            .is_empty()
    );
    // A span that is larger than the layer is one span.
    bench.ok(&[
        "create",
        "--span-size",
        "1000000000",
        "--min-layer-size",
        "100000",
        &image,
    ]);
}

#[test]
fn a_layer_that_containerd_lacks_is_named() {
    let bench = Bench::start();
    let image = bench.image();
    let target = bench.manifest(&bench.target(&image));
    let layer = target.layers[1].digest.to_string();
    bench.ctr().output(["content", "rm", &layer]).unwrap();
    let error = bench.fails(&["create", "--min-layer-size", "100000", &image]);
    assert!(
        error.contains(&layer) && error.contains("content store"),
        "{error}"
    );
}

#[test]
fn a_damaged_layer_in_containerd_is_never_indexed() {
    let bench = Bench::start();
    let image = bench.image();
    let name = bench.registry.reference("app:soci");
    let layer = bench.manifest(&bench.target(&image)).layers[1].digest;
    let path = bench
        .containerd
        .root()
        .join("root/io.containerd.content.v1.content/blobs/sha256")
        .join(layer.hex());
    let sound = std::fs::read(&path).unwrap();
    let mut flipped = sound.clone();
    flipped[1_000_000] ^= 1;
    for damaged in [&sound[..2_000_000], &flipped] {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, damaged).unwrap();
        for arguments in [vec!["create", &image], vec!["convert", &image, &name]] {
            let [command, rest @ ..] = &arguments[..] else {
                panic!("no command")
            };
            let arguments = [&[*command, "--min-layer-size", "100000"], rest].concat();
            let error = bench.fails(&arguments);
            assert!(error.contains(&layer.to_string()), "{error}");
        }
    }
    assert!(!bench.images().contains(&name));
    assert_eq!(bench.ok(&["index", "list", "-q"]), "");
}

#[test]
fn a_root_folder_that_cannot_be_written_is_named() {
    let bench = Bench::start();
    let image = bench.image();
    let options = ["--root", "/proc/none", "--min-layer-size", "100000"];
    for store in ["soci", "containerd"] {
        let arguments = [
            &["create", "--content-store", store],
            &options[..],
            &[&image],
        ]
        .concat();
        let error = bench.fails(&arguments);
        assert!(error.contains("/proc/none"), "{error}");
    }
}

#[test]
fn an_interrupted_conversion_and_push_leave_nothing_visible_and_can_be_repeated() {
    let bench = Bench::start();
    let image = bench.image();
    let name = bench.registry.reference("app:soci");
    let options = ["--span-size", "4096", "--min-layer-size", "0"];
    let arguments = [&["convert"], &options[..], &[&image, &name]].concat();
    for pause in [10, 60, 150, 300] {
        let mut child = bench
            .soci(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Another moment each time: every outcome that is allowed below may come at any of them.
        std::thread::sleep(Duration::from_millis(pause));
        let _ = Command::new("kill")
            .args(["-s", "INT", &child.id().to_string()])
            .status();
        let status = child.wait().unwrap();
        // The signal may come when the image has its name already.
        if status.success() {
            bench.remove_image(&name);
        }
        assert!(!bench.images().contains(&name));
        assert!(
            bench
                .ctr()
                .output(["leases", "ls", "-q"])
                .unwrap()
                .is_empty()
        );
    }
    bench.ok(&arguments);
    bench.ok(&[&["create"], &options[..], &[&image]].concat());

    // A registry that takes the connection and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = format!("{}/app:v1", silent.local_addr().unwrap());
    bench
        .ctr()
        .output(["images", "tag", &image, &elsewhere])
        .unwrap();
    let mut child = bench
        .soci(&["push", &elsewhere])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (_connection, _) = silent.accept().unwrap();
    let _ = Command::new("kill")
        .args(["-s", "INT", &child.id().to_string()])
        .status();
    // The registry stays silent: only the signal ends it.
    assert_eq!(child.wait().unwrap().code(), Some(1));
    bench.ok(&["push", &image]);
}

/// The signal arrives when the command has created its lease.
#[test]
fn a_command_that_is_interrupted_as_it_begins_releases_its_lease() {
    let bench = Bench::start();
    let image = bench.image();
    let name = bench.registry.reference("app:soci");
    let options = ["--span-size", "4096", "--min-layer-size", "0"];
    for arguments in [
        [&["convert", &image, &name], &options[..]].concat(),
        [&["create", &image], &options[..]].concat(),
        vec!["pull", "--snapshotter", "overlayfs", &image],
    ] {
        let output = bench
            .soci(&arguments)
            .env(soci_faults::VARIABLE, "interrupted-lease")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains("interrupted"), "{arguments:?}: {error}");
        let leases = bench.ctr().output(["leases", "ls", "-q"]).unwrap();
        assert_eq!(leases, "", "{arguments:?}");
        assert!(!bench.images().contains(&name));
    }
}

/// A start-up profile with a span of the lowest layer of an image at the registry.
fn profile_of(bench: &Bench, image: &str) -> Profile {
    let report = bench.ok(&["check", "--json", "--no-estimate", image]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let digest = |key: &str| report["layers"][0][key].as_str().unwrap().parse().unwrap();
    let span = RecordedSpan {
        layer: ProfiledLayer {
            layer: digest("digest"),
            ztoc: digest("ztoc"),
        },
        span: 0,
        millis: 0,
        extent: 0..1,
    };
    let mut profile = Profile::new(digest("digest"), image);
    profile.add(Recording {
        spans: vec![span],
        blocks: Vec::new(),
    });
    profile
}

/// The signal arrives at the step that makes the result visible: from there on the command succeeds.
#[test]
fn a_command_that_is_interrupted_while_its_result_becomes_visible_succeeds() {
    let bench = Bench::start();
    let image = bench.image();
    let interrupted = |arguments: &[&str]| {
        let output = bench
            .soci(arguments)
            .env(soci_faults::VARIABLE, "interrupted-commit")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
    };
    let options = ["--span-size", "4096", "--min-layer-size", "0"];
    let indexing = |arguments: &[&str]| interrupted(&[arguments, &options[..]].concat());
    let converted = bench.registry.reference("app:soci");
    indexing(&["convert", &image, &converted]);
    assert!(bench.images().contains(&converted));
    let from = format!("docker://{image}");
    let to = bench.registry.reference("app:standalone");
    indexing(&["convert", &from, &format!("docker://{to}")]);
    bench.ok(&["ls", &to]);
    let profile = bench.root.path().join("app.profile");
    std::fs::write(&profile, profile_of(&bench, &to).encode()).unwrap();
    let profile = profile.display().to_string();
    interrupted(&["profile", "push", "--profile", &profile, &to]);
    indexing(&["create", &from]);
    interrupted(&["push", &from, &from]);
    indexing(&["create", &image]);
    let index = lines(&bench.ok(&["index", "list", "-q"])).remove(0);
    interrupted(&["push", &image]);
    interrupted(&["index", "remove", &index]);
    assert!(!bench.ok(&["index", "list", "-q"]).contains(&index));
    interrupted(&["rebuild-db"]);
    bench.remove_image(&image);
    interrupted(&["pull", "--snapshotter", "overlayfs", &image]);
    assert!(bench.images().contains(&image));
}

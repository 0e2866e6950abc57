//! What v0.15's own integration suite looks for: texts, exit codes, absent platforms, zTOCs of pulled images.

use std::path::Path;
use std::process::Command;

use soci_testkit::image::three_layers;
use soci_testkit::{Stack, StackOptions};

use crate::support::{Bench, lines, multi_platform, soci_indexes};

const NAMESPACE: &str = "test";

#[test]
fn wrong_values_are_refused_in_its_words() {
    let over = i64::MIN.unsigned_abs().to_string();
    for command in [
        &["create", "localhost:1/a:b"][..],
        &["convert", "localhost:1/a:b", "localhost:1/a:c"],
    ] {
        for (flags, expected) in [
            (
                ["--min-layer-size", "-1", "--span-size", "0"],
                "min layer size must be >= 0",
            ),
            (
                ["--min-layer-size", "0", "--span-size", "-1"],
                "span size must be >= 0",
            ),
            (
                ["--min-layer-size", &over, "--span-size", "0"],
                "invalid value \"9223372036854775808\" for flag -min-layer-size",
            ),
            (
                ["--min-layer-size", "0", "--span-size", &over],
                "invalid value \"9223372036854775808\" for flag -span-size",
            ),
        ] {
            refused(&[command, &flags[..]].concat(), expected);
        }
    }
    let convert = ["convert", "--standalone"];
    for (arguments, expected) in [
        (
            &["/tmp/nonexistent-input", "/tmp/output.tar"][..],
            "failed to access input",
        ),
        (
            &["--format", "invalid", "/tmp/in.tar", "/tmp/out.tar"],
            "unsupported output format",
        ),
        (
            &["/tmp/some-input.tar"],
            "destination needs to be specified",
        ),
        (&[], "source image needs to be specified"),
    ] {
        refused(&[&convert, arguments].concat(), expected);
    }
}

fn refused(arguments: &[&str], expected: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_soci"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "soci {arguments:?}: {said}");
    assert!(said.contains(expected), "soci {arguments:?}: {said}");
}

#[test]
fn platforms_that_were_not_pulled_stay_listed_and_all_platforms_needs_them() {
    let bench = Bench::start();
    let layout = bench.layouts.path().join("multi");
    multi_platform(&layout, "v1");
    bench.registry.push_layout(&layout, "v1", "multi").unwrap();
    let image = bench.registry.reference("multi:v1");
    bench.fetch(&image);
    let before = bench.index(&bench.target(&image));
    let flags = ["--min-layer-size", "0", "--platform", "linux/amd64"];
    let converted = bench.registry.reference("multi:soci");
    // Also in its place.
    for name in [&converted, &image] {
        bench.ok(&[&["convert"], &flags[..], &[&image, name]].concat());
        let after = bench.index(&bench.target(name));
        assert_eq!(soci_indexes(&after).len(), 1, "{after:?}");
        let architectures: Vec<_> = after
            .manifests
            .iter()
            .map(|listed| listed.platform.clone().unwrap().architecture)
            .collect();
        assert_eq!(architectures, ["amd64", "arm64", "amd64"]);
        assert_eq!(after.manifests[1], before.manifests[1], "as it was");
    }
    for command in [
        &["create", "--all-platforms", "--min-layer-size", "0", &image][..],
        &[
            "convert",
            "--all-platforms",
            "--min-layer-size",
            "0",
            &image,
            &converted,
        ],
    ] {
        let error = bench.fails(command);
        assert!(
            error.contains("not found") && error.contains("linux/arm64"),
            "{error}"
        );
    }
}

#[test]
fn an_index_that_the_registry_has_is_reported_in_its_words() {
    let bench = Bench::start();
    let image = bench.image();
    let create = |span_size: &str| {
        let flags = [
            "create",
            "--min-layer-size",
            "0",
            "--span-size",
            span_size,
            &image,
        ];
        bench.ok(&flags);
        lines(&bench.ok(&["index", "list", "-q"])).remove(0)
    };
    let manifest = bench.target(&image);
    let first = create("262144");
    bench.ok(&["push", &image]);
    let found = format!("soci index found in remote repository with digest: {first}");
    let skipped = bench.ok(&["push", "--existing-index", "skip", &image]);
    let expected = format!("{found}: skipping pushing artifacts for image manifest: {manifest}");
    assert!(skipped.contains(&expected), "{skipped}");
    create("131072");
    let warned = bench.ok(&["push", "--existing-index", "warn", &image]);
    assert!(
        warned.contains(&format!("[WARN] {found}: pushing index anyway")),
        "{warned}"
    );
    let again = bench.ok(&["push", &image]);
    let several = "[WARN] multiple soci indices found in remote repository: pushing index anyway";
    assert!(again.contains(several), "{again}");
}

#[test]
fn the_build_tool_is_named_as_requested() {
    let bench = Bench::start();
    let image = bench.image();
    let tool = "AWS SOCI CLI v0.2";
    bench.ok(&[
        "create",
        "--build-tool-identifier",
        tool,
        "--min-layer-size",
        "0",
        &image,
    ]);
    let index = lines(&bench.ok(&["index", "list", "-q"])).remove(0);
    let index = bench.ok(&["index", "info", &index]);
    let ztoc = lines(&bench.ok(&["ztoc", "list", "-q"])).remove(0);
    let ztoc = bench.ok(&["ztoc", "info", &ztoc]);
    assert!(
        index.contains(tool) && ztoc.contains(tool),
        "{index} {ztoc}"
    );
}

#[test]
fn an_image_of_another_namespace_is_named_with_its_namespace() {
    let bench = Bench::start();
    let image = bench.image();
    let error = bench.fails(&["--namespace", "elsewhere", "create", &image]);
    assert!(error.contains("in namespace test"), "{error}");
    let error = bench.fails(&["create", "localhost:1/not/there:1"]);
    assert!(error.contains("ctr images ls"), "{error}");
}

#[test]
fn ztocs_of_a_pulled_image_are_found_where_they_are_stored() {
    let stack = Stack::start(StackOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    three_layers().unwrap().write(dir.path(), "plain").unwrap();
    stack.push(dir.path(), "plain", "app").unwrap();
    let plain = stack.registry.docker_reference("app:plain");
    let with_index = stack.registry.docker_reference("app:soci");
    let root = stack.daemon.root();
    let soci = |arguments: &[&str]| run(&stack, &root, arguments);
    soci(&["convert", "--min-layer-size", "0", &plain, &with_index]);
    soci(&["pull", &stack.reference("app:soci")]);
    let ztocs = || lines(&soci(&["--content-store", "soci", "ztoc", "list", "-q"]));
    assert_eq!(ztocs(), Vec::<String>::new());
    let said = soci(&["--content-store", "soci", "rebuild-db"]);
    assert!(said.contains("4 added"), "{said}");
    let found = ztocs();
    assert_eq!(found.len(), 3);
    for ztoc in &found {
        let info = soci(&["--content-store", "soci", "ztoc", "info", ztoc]);
        assert!(info.contains("build_tool"), "{info}");
        // Once: the layer has it, the content store does not.
        let hex = ztoc.strip_prefix("sha256:").unwrap();
        assert!(!root.join("content/blobs/sha256").join(hex).exists());
    }
    let listed = soci(&[
        "--content-store",
        "soci",
        "ztoc",
        "list",
        "--image-ref",
        &stack.reference("app:soci"),
        "-q",
    ]);
    assert_eq!(lines(&listed).len(), 3);
}

fn run(stack: &Stack, root: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_soci"))
        .arg("--address")
        .arg(stack.containerd.address())
        .args(["--namespace", NAMESPACE])
        .arg("--root")
        .arg(root)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "soci {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

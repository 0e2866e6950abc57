//! `soci pull` with our own daemon as containerd's snapshotter: real containerd, real registry,
//! FUSE. Needs root.

use std::process::Command;

use serde_json::Value;
use soci_oci::Descriptor;
use soci_testkit::image::three_layers;
use soci_testkit::process::lazy_mounts_below;
use soci_testkit::{Content, Run, Stack, StackOptions};

const NAMESPACE: &str = "test";

/// [`three_layers`] at `app:plain`, and with an index of
/// the layers from `min_layer_size` on at `app:soci`.
fn push(stack: &Stack, min_layer_size: u64) -> Vec<Descriptor> {
    let dir = tempfile::tempdir().unwrap();
    let image = three_layers().unwrap();
    let image = image.write(dir.path(), "plain").unwrap();
    stack.push(dir.path(), "plain", "app").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_soci"))
        .args(["convert", "--standalone", "--span-size", "262144"])
        .args(["--min-layer-size", &min_layer_size.to_string()])
        .arg(stack.registry.docker_reference("app:plain"))
        .arg(stack.registry.docker_reference("app:soci"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    image.layers
}

fn pull(stack: &Stack, reference: &str, more: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_soci"))
        .arg("--address")
        .arg(stack.containerd.address())
        .args(["--namespace", NAMESPACE, "pull", "--json"])
        .args(more)
        .arg(reference)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}\n{}", stack.log_tails());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn states(pulled: &Value) -> Vec<&str> {
    let layers = pulled["layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer["state"].as_str().unwrap())
        .collect()
}

fn listed(stack: &Stack, arguments: &[&str]) -> String {
    stack.containerd.ctr(NAMESPACE).output(arguments).unwrap()
}

/// The lazy mounts of the daemon.
fn mounts(stack: &Stack) -> usize {
    lazy_mounts_below(&stack.daemon.root()).unwrap()
}

#[test]
fn lazy_layers_are_not_downloaded_and_the_image_runs() {
    let stack = Stack::start(StackOptions::default()).unwrap();
    let layers = push(&stack, 0);
    let reference = stack.reference("app:soci");
    let pulled = pull(&stack, &reference, &[]);
    assert_eq!(states(&pulled), ["lazy"; 3], "{}", stack.log_tails());
    assert!(
        pulled["layers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|layer| layer["reason"].is_null())
    );
    assert!(pulled["sociIndex"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(mounts(&stack), 3);
    let content = listed(&stack, &["content", "ls"]);
    for layer in &layers {
        assert!(
            !content.contains(&format!("\n{}", layer.digest)),
            "{content}"
        );
    }
    assert!(listed(&stack, &["leases", "ls", "-q"]).is_empty());
    let ctr = stack.containerd.ctr(NAMESPACE);
    assert_eq!(
        ctr.run_ok(&Run::new(&reference, "soci")).unwrap(),
        "lazily\n"
    );
    let sum = ctr
        .run_ok(&Run::new(&reference, "soci").command(["sha256sum", "/data/noise"]))
        .unwrap();
    let noise = Content::Noise {
        seed: 1,
        length: 3_000_000,
    };
    assert!(
        sum.starts_with(&soci_oci::Digest::of(&noise.to_vec()).hex()),
        "{sum}"
    );

    // Again: everything is there, and still known to be lazy.
    let again = pull(&stack, &reference, &[]);
    assert_eq!(states(&again), ["lazy"; 3]);
    assert_eq!(again["layers"][0]["alreadyPresent"], true);

    // Without the image nothing stays.
    ctr.output(["images", "rm", "--sync", &reference]).unwrap();
    let snapshots = listed(&stack, &["snapshots", "--snapshotter", "soci", "ls"]);
    assert_eq!(snapshots.lines().count(), 1, "{snapshots}");
    assert!(listed(&stack, &["content", "ls", "-q"]).is_empty());
    assert_eq!(mounts(&stack), 0);
}

#[test]
fn a_layer_without_ztoc_is_unpacked_between_lazy_ones_and_the_reason_is_reported() {
    let stack = Stack::start(StackOptions::default()).unwrap();
    push(&stack, 10_000);
    let reference = stack.reference("app:soci");
    let pulled = pull(&stack, &reference, &[]);
    let states = states(&pulled);
    assert_eq!(states[..2], ["lazy", "lazy"], "{}", stack.log_tails());
    assert_eq!(states[2], "unpacked-by-snapshotter");
    let reason = pulled["layers"][2]["reason"].as_str().unwrap();
    assert!(reason.contains("min-layer-size"), "{reason}");
    let ctr = stack.containerd.ctr(NAMESPACE);
    assert_eq!(
        ctr.run_ok(&Run::new(&reference, "soci")).unwrap(),
        "lazily\n"
    );
}

#[test]
fn an_image_without_index_is_unpacked_and_runs_all_the_same() {
    let stack = Stack::start(StackOptions::default()).unwrap();
    push(&stack, 0);
    let reference = stack.reference("app:plain");
    let pulled = pull(&stack, &reference, &[]);
    // The daemon pulls it in parallel, without a key in the configuration.
    let expected = ["unpacked-by-snapshotter"; 3];
    assert_eq!(states(&pulled), expected, "{}", stack.log_tails());
    for layer in pulled["layers"].as_array().unwrap() {
        assert!(
            layer["reason"].as_str().unwrap().contains("no SOCI index"),
            "{layer}"
        );
    }
    assert_eq!(mounts(&stack), 0);
    let ctr = stack.containerd.ctr(NAMESPACE);
    assert_eq!(
        ctr.run_ok(&Run::new(&reference, "soci")).unwrap(),
        "lazily\n"
    );
}

#[test]
fn an_index_may_be_named_for_an_image_that_names_none() {
    let stack = Stack::start(StackOptions::default()).unwrap();
    push(&stack, 0);
    let converted = pull(
        &stack,
        &stack.reference("app:soci"),
        &["--snapshotter", "native"],
    );
    assert_eq!(states(&converted), ["unpacked"; 3]);
    let manifest = listed(
        &stack,
        &["content", "get", converted["manifest"].as_str().unwrap()],
    );
    let manifest: soci_oci::Manifest = serde_json::from_str(&manifest).unwrap();
    let index = &manifest.annotations[soci_oci::annotations::INDEX_DIGEST];
    let pulled = pull(
        &stack,
        &stack.reference("app:plain"),
        &["--soci-index-digest", index],
    );
    assert_eq!(states(&pulled), ["lazy"; 3], "{}", stack.log_tails());
    assert_eq!(pulled["sociIndex"], *index);
}

#[test]
fn a_daemon_that_does_not_run_is_named_with_where_to_look() {
    let mut stack = Stack::start(StackOptions::default()).unwrap();
    push(&stack, 0);
    stack.daemon.kill().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_soci"))
        .arg("--address")
        .arg(stack.containerd.address())
        .args(["pull", &stack.reference("app:soci")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("\"soci\" running") && error.contains("[proxy_plugins.soci]"),
        "{error}"
    );
}

/// What was converted, or given an index, in one containerd is lazy in another.
#[test]
fn what_was_indexed_in_containerd_is_lazy_after_a_push() {
    let config = "[pull_modes.soci_v1]\nenable = true\n";
    let stack = Stack::start(StackOptions {
        daemon: soci_testkit::SociDaemonOptions::with_config(config),
        ..StackOptions::default()
    })
    .unwrap();
    push(&stack, 0);
    let (plain, converted) = (stack.reference("app:plain"), stack.reference("app:v2"));
    let ctr = stack.containerd.ctr("build");
    ctr.pull(&plain, "overlayfs").unwrap();
    let root = tempfile::tempdir().unwrap();
    let soci = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_soci"))
            .arg("--address")
            .arg(stack.containerd.address())
            .args(["--namespace", "build", "--root"])
            .arg(root.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let options = ["--span-size", "262144", "--min-layer-size", "0"];
    soci(&[&["convert"], &options[..], &[&plain, &converted]].concat());
    ctr.output(["images", "push", "--plain-http", &converted])
        .unwrap();
    assert_eq!(
        states(&pull(&stack, &converted, &[])),
        ["lazy"; 3],
        "{}",
        stack.log_tails()
    );
    let ctr = stack.containerd.ctr(NAMESPACE);
    assert_eq!(
        ctr.run_ok(&Run::new(&converted, "soci")).unwrap(),
        "lazily\n"
    );

    ctr.output(["images", "rm", "--sync", &converted]).unwrap();
    soci(&[&["create"], &options[..], &[&plain]].concat());
    soci(&["push", &plain]);
    let pulled = pull(&stack, &plain, &[]);
    assert_eq!(states(&pulled), ["lazy"; 3], "{}", stack.log_tails());
    let ctr = stack.containerd.ctr(NAMESPACE);
    assert_eq!(ctr.run_ok(&Run::new(&plain, "soci")).unwrap(), "lazily\n");
}

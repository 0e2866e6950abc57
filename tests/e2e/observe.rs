//! What an operator can see of lazy images: metrics, operation counts in the log, `soci status`.
//! Needs root, FUSE, containerd, runc, docker-registry and the two programs.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::{NAMESPACE, indexed, pull, run, stack, wait_until_holds};
use serde_json::Value;
use soci_testkit::image::small_image;
use soci_testkit::{Stack, TestRoot};

pub(crate) fn metrics(socket: &Path) -> String {
    soci_testkit::metrics(socket).unwrap()
}

/// Names, labels and types of v0.15's metrics, as the golden file has them.
fn shape(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.contains("soci_fs_") && !line.starts_with("# HELP"))
        .map(|line| {
            if line.starts_with('#') {
                return line.to_owned();
            }
            let series = line.rsplit_once(' ').unwrap().0;
            let quoted: Vec<String> = series
                .split('"')
                .enumerate()
                .map(|(place, part)| match part {
                    _ if place % 2 == 0 => part.to_owned(),
                    part if part.starts_with("sha256:") => "DIGEST".to_owned(),
                    part if part.starts_with('/') => "PATH".to_owned(),
                    part => part.to_owned(),
                })
                .collect();
            quoted.join("\"")
        })
        .collect()
}

fn status(stack: &Stack, more: &[&str]) -> String {
    let socket = stack.daemon.socket().to_str().unwrap().to_owned();
    let arguments = ["status", "--snapshotter-address", &socket];
    let arguments: Vec<&str> = arguments.iter().chain(more).copied().collect();
    let soci = stack.soci(NAMESPACE).unwrap();
    soci.output(arguments).unwrap()
}

#[test]
fn a_lazy_run_shows_the_metrics_of_v0_15_in_their_exact_form() {
    let root = TestRoot::new().unwrap();
    let layout = root.dir("layout").unwrap();
    small_image(&layout, "small").unwrap();
    let socket = root.path().join("metrics.sock");
    let stack = stack(&format!(
        "metrics_network = 'unix'\nmetrics_address = '{}'\nfuse_metrics_emit_wait_duration_sec = 2\n\
         [start_hints]\nenable = false\n\
         [background_fetch]\nsilence_period_msec = 15000\nfetch_period_msec = 20\n",
        socket.display()
    ));
    let reference = indexed(&stack, &layout, "small");
    pull(&stack, &reference);
    // Every layer is listed and read.
    run(
        &stack,
        &reference,
        &["sh", "-c", "find / -xdev > /dev/null; cat /etc/passwd"],
    );
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/v0.15-root/metrics.txt");
    let golden = shape(&std::fs::read_to_string(golden).unwrap().replace('}', "} 0"));
    let value_in = |text: &str, name: &str| -> f64 {
        text.lines()
            .filter(|line| line.starts_with(name))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    };
    let mut text = String::new();
    wait_until_holds(
        &stack,
        "all of v0.15's series are there and all layers are full",
        || {
            text = metrics(&socket);
            golden.is_subset(&shape(&text))
                && value_in(&text, "soci_fs_layer_size_bytes{")
                    .total_cmp(&value_in(&text, "soci_fs_layer_fetched_size_bytes{"))
                    == std::cmp::Ordering::Equal
        },
    );
    assert_eq!(shape(&text), golden, "nothing else has a name of v0.15's");
    let value = |name: &str| value_in(&text, name);
    assert!(value("soci_fs_bytes_served{") > 1000.0, "{text}");
    assert!(value("soci_fetch_bytes_total{priority=\"demand\"}") > 0.0);
    assert!(value("soci_fetch_bytes_total{priority=\"background\"}") > 0.0);
    assert!(value("soci_layer_store_spans") > 0.0);
    assert!(value("soci_snapshot_layers{state=\"lazy\"}") > 0.0);

    // The log has the same counts, once.
    let manifest = manifest_of(&stack, &reference);
    let lines: Vec<String> = stack
        .daemon
        .json_log()
        .iter()
        .filter_map(|line| Some(line["msg"].as_str()?.to_owned()))
        .filter(|line| line.starts_with("fuse operation count for image "))
        .collect();
    assert_eq!(lines.len(), 10, "{lines:#?}");
    for line in &lines {
        let rest = line
            .strip_prefix(&format!("fuse operation count for image {manifest}: "))
            .unwrap_or_else(|| panic!("{line}"));
        let (operation, number) = rest.split_once(" = ").unwrap();
        let series = format!(
            "soci_fs_image_operation_count_key{{image=\"{manifest}\",operation_type=\"{operation}\"}} {number}"
        );
        assert!(text.lines().any(|line| line == series), "{series}\n{text}");
    }

    // With the image its series go.
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.output(["images", "rm", "--sync", &reference]).unwrap();
    wait_until_holds(&stack, "the series of the image are gone", || {
        let text = metrics(&socket);
        !text.contains("sha256:")
    });
}

fn manifest_of(stack: &Stack, reference: &str) -> String {
    let status: Value = serde_json::from_str(&status(stack, &["--json"])).unwrap();
    let images = status["images"].as_array().unwrap();
    let image = images
        .iter()
        .find(|image| image["reference"] == reference)
        .unwrap();
    image["manifestDigest"].as_str().unwrap().to_owned()
}

#[test]
fn status_shows_the_state_of_every_layer_and_its_reason() {
    let root = TestRoot::new().unwrap();
    let layout = root.dir("layout").unwrap();
    let image = small_image(&layout, "small").unwrap();
    let mut stack = stack(crate::support::NO_BACKGROUND);
    let lazy = indexed(&stack, &layout, "small");
    pull(&stack, &lazy);
    stack.push(&layout, "small", "plain").unwrap();
    let other = TestRoot::new().unwrap();
    let eager = {
        soci_testkit::ImageBuilder::new()
            .layer(soci_testkit::Layer::new().text("etc/other", "other\n"))
            .write(other.path(), "other")
            .unwrap();
        stack.push(other.path(), "other", "other").unwrap();
        stack.reference("other:other")
    };
    pull(&stack, &eager);

    let answer: Value = serde_json::from_str(&status(&stack, &["--json"])).unwrap();
    assert_eq!(
        answer["daemon"]["pid"],
        stack.daemon.daemon().pid(),
        "{answer:#}"
    );
    let of = |answer: &Value, reference: &str| -> Value {
        let images = answer["images"].as_array().unwrap();
        let image = images.iter().find(|image| image["reference"] == reference);
        image.unwrap_or_else(|| panic!("{answer:#}")).clone()
    };
    let shown = of(&answer, &lazy);
    let layers = shown["layers"].as_array().unwrap();
    assert_eq!(layers.len(), image.layers.len());
    for (shown, layer) in layers.iter().zip(&image.layers) {
        assert_eq!(shown["digest"], layer.digest.to_string(), "{shown:#}");
        assert_eq!(shown["sizeBytes"], layer.size);
        assert_eq!(shown["state"], "lazy");
        assert_eq!(shown["health"], "healthy");
        assert!(shown["fetchedBytes"].as_u64().unwrap() <= layer.size);
        assert_eq!(shown["namespace"], NAMESPACE);
        let mountpoint = shown["mountpoint"].as_str().unwrap();
        assert!(
            mountpoint.ends_with(&format!("/{}/fs", shown["snapshotId"])),
            "{mountpoint}"
        );
    }
    let shown = of(&answer, &eager);
    let layer = &shown["layers"][0];
    // soci pull requests a parallel pull of what has no index.
    assert_eq!(layer["state"], "local", "{layer:#}");
    assert_eq!(layer["reasonCode"], "parallel-pull");
    assert!(layer["reason"].as_str().unwrap().contains("SOCI index"));
    assert_eq!(answer["counts"]["lazy"], image.layers.len());
    assert_eq!(answer["counts"]["deferred"], 0);

    let table = status(&stack, &[]);
    assert!(table.contains(&lazy) && table.contains(&eager), "{table}");

    // Reasons and layers are there after a restart; without a daemon the error says so.
    assert!(stack.daemon.terminate().unwrap().success());
    let soci = stack.soci(NAMESPACE).unwrap();
    let socket = stack.daemon.socket().to_str().unwrap().to_owned();
    let error = soci
        .output(["status", "--snapshotter-address", &socket])
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("is soci-snapshotter-grpc running"),
        "{error:#}"
    );
    stack.daemon.start_again().unwrap();
    let again: Value = serde_json::from_str(&status(&stack, &["--json"])).unwrap();
    assert_eq!(again["images"], answer["images"], "{again:#}");
}

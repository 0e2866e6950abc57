//! A stack of real parts, and the steps of using it, for all end-to-end tests.

pub(crate) mod front;
pub(crate) mod memory_group;
pub(crate) mod node;
pub(crate) mod releases;
pub(crate) mod survival;
pub(crate) mod systemd;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use soci_containerd::labels;
use soci_testkit::process::unanswered_requests;
use soci_testkit::{
    OciImage, Release, Run, SociCli, SociDaemon, SociDaemonOptions, Stack, StackOptions,
};

pub(crate) const NAMESPACE: &str = "e2e";
/// How long conditions are waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// Configuration without the background fetcher and hints, which would add to what tests measure.
pub(crate) const NO_BACKGROUND: &str =
    "[start_hints]\nenable = false\n[background_fetch]\ndisable = true\n";

pub(crate) fn stack(config: &str) -> Stack {
    stack_with(SociDaemonOptions::with_config(config))
}

/// With a release of containerd that is not the installed one.
pub(crate) fn stack_under(release: Release, config: &str) -> Stack {
    Stack::start(StackOptions {
        daemon: SociDaemonOptions::with_config(config),
        release,
        ..StackOptions::default()
    })
    .unwrap()
}

pub(crate) fn stack_with(daemon: SociDaemonOptions) -> Stack {
    Stack::start(StackOptions {
        daemon,
        ..StackOptions::default()
    })
    .unwrap()
}

/// Indexes the image of a layout into the registry; returns its name seen through the proxy.
pub(crate) fn indexed(stack: &Stack, layout: &Path, name: &str) -> String {
    indexed_with(stack, layout, name, &["--min-layer-size", "0"])
}

/// The same with options of `soci convert`.
pub(crate) fn indexed_with(stack: &Stack, layout: &Path, name: &str, options: &[&str]) -> String {
    let name = format!("{name}:soci");
    let source = layout.display().to_string();
    let soci = SociCli::standalone().unwrap();
    soci.convert(options, &source, &stack.registry.docker_reference(&name))
        .unwrap();
    stack.reference(&name)
}

/// Pushes an image as `app:plain`, and as `app:soci` with an index of the layers that have at least `least`
/// bytes; returns the name of the latter seen through the proxy.
pub(crate) fn push_indexed(stack: &Stack, image: &OciImage, least: &str) -> String {
    stack.push(&image.dir, "plain", "app").unwrap();
    let at = |tag: &str| stack.registry.docker_reference(&format!("app:{tag}"));
    let soci = SociCli::standalone().unwrap();
    soci.convert(&["--min-layer-size", least], &at("plain"), &at("soci"))
        .unwrap();
    stack.reference("app:soci")
}

/// The labels of a Prepare by the kubelet's runtime, without those of the layers above.
pub(crate) fn cri_labels(
    target: &str,
    reference: &str,
    manifest: &str,
    layer: &str,
) -> BTreeMap<String, String> {
    let labels = [
        (labels::TARGET, target),
        (labels::IMAGE_REF, reference),
        (labels::MANIFEST_DIGEST, manifest),
        (labels::LAYER_DIGEST, layer),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    labels.into()
}

/// Pulls with our CLI; returns its output.
pub(crate) fn pull(stack: &Stack, reference: &str) -> String {
    let soci = stack.soci(NAMESPACE).unwrap();
    soci.output(["pull", "--plain-http", reference]).unwrap()
}

pub(crate) fn run(stack: &Stack, reference: &str, command: &[&str]) -> String {
    let run = Run::new(reference, "soci").command(command.iter().copied());
    stack.containerd.ctr(NAMESPACE).run_ok(&run).unwrap()
}

/// The output of `soci status`. Waits for a server if none serves now.
pub(crate) fn status(daemon: &SociDaemon) -> Value {
    let socket = daemon.socket().display().to_string();
    let soci = SociCli::standalone().unwrap();
    let arguments = ["status", "--snapshotter-address", &socket, "--json"];
    serde_json::from_str(&soci.output(arguments).unwrap()).unwrap()
}

/// Waits until as many lines of the daemon's log are accepted, and returns them. There may not be more. The daemon
/// writes its log on a thread of its own, perhaps after a call was answered; what it logged before is there then.
pub(crate) fn wait_for_lines(
    daemon: &SociDaemon,
    count: usize,
    wanted: impl Fn(&Value) -> bool,
) -> Vec<Value> {
    let found = || {
        let mut lines = daemon.json_log();
        lines.retain(|line| wanted(line));
        lines
    };
    wait_until("the lines are logged", PATIENCE, || {
        let lines = found().len();
        match lines >= count {
            true => Ok(()),
            false => Err(format!("{lines} of {count}:\n{}", daemon.log().tail(60))),
        }
    });
    let lines = found();
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

/// How many spans a stored layer has, and a bit for each that is recorded as durable: the file `spans` has a header of
/// 512 bytes with the number of spans at byte 12, then these bits.
fn durable_bits(layer: &Path) -> (u64, Vec<u8>) {
    // A layer that is just being made or removed has none.
    let file = std::fs::read(layer.join("spans")).unwrap_or_default();
    let Some(count) = file.get(12..16) else {
        return (0, Vec::new());
    };
    let count = u64::from(u32::from_le_bytes(count.try_into().unwrap()));
    let length = usize::try_from(count.div_ceil(8)).unwrap();
    (count, file.into_iter().skip(512).take(length).collect())
}

/// Whether a span of a stored layer survives a crash.
pub(crate) fn is_durable(layer: &Path, span: u32) -> bool {
    let (_, bits) = durable_bits(layer);
    let byte = bits.get(span as usize / 8);
    byte.is_some_and(|byte| byte >> (span % 8) & 1 == 1)
}

/// Waits until what the daemon has stored survives a crash: it makes spans durable about once a second. With `all`,
/// also until it has stored every span.
pub(crate) fn wait_until_durable(daemon: &SociDaemon, all: bool) {
    wait_until("stored spans are durable", PATIENCE, || {
        let stored = status(daemon)["store"]["spans"].as_u64().unwrap();
        let (mut durable, mut count) = (0, 0);
        for layer in std::fs::read_dir(daemon.root().join("soci/layers")).unwrap() {
            let (layer_count, bits) = durable_bits(&layer.unwrap().path());
            let bits = bits.iter().map(|byte| u64::from(byte.count_ones()));
            durable += bits.sum::<u64>();
            count += layer_count;
        }
        let enough = if all { count } else { stored };
        match stored > 0 && durable >= enough {
            true => Ok(()),
            false => Err(format!(
                "{durable} durable, {stored} stored, {count} in all"
            )),
        }
    });
}

/// The FUSE mounts of the daemon's layers.
pub(crate) fn lazy_mounts(stack: &Stack) -> usize {
    lazy_mounts_below(&stack.daemon.root())
}

/// The same for a daemon's root folder.
pub(crate) fn lazy_mounts_below(root: &Path) -> usize {
    soci_testkit::process::lazy_mounts_below(root).unwrap()
}

/// Waits until a daemon that was started again has its lazy layers mounted: on a busy machine it serves before.
pub(crate) fn wait_for_lazy_mounts(root: &Path, count: usize) {
    wait_until(
        "the lazy layers are mounted again",
        PATIENCE,
        || match lazy_mounts_below(root) {
            mounted if mounted == count => Ok(()),
            mounted => Err(format!("{mounted} of {count}")),
        },
    );
}

/// Waits until the kernel has so many requests to each of these FUSE connections, or all of them
/// together, that no server has answered.
pub(crate) fn wait_for_unanswered(connections: &[u32], enough: impl Fn(&[u32]) -> bool) {
    wait_until("requests wait for a server", PATIENCE, || {
        let waiting = connections.iter().map(|one| unanswered_requests(*one));
        let waiting: Vec<_> = waiting.collect::<Result<_, _>>().unwrap();
        match enough(&waiting) {
            true => Ok(()),
            false => Err(format!("{waiting:?}")),
        }
    });
}

/// Waits until `done` succeeds; its last error is in the failure.
pub(crate) fn wait_until(
    what: &str,
    patience: Duration,
    mut done: impl FnMut() -> Result<(), String>,
) {
    let deadline = Instant::now() + patience;
    while let Err(not_yet) = done() {
        assert!(
            Instant::now() < deadline,
            "not after {patience:?}: {what}: {not_yet}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until `holds`; the ends of the logs are in the failure.
pub(crate) fn wait_until_holds(stack: &Stack, what: &str, mut holds: impl FnMut() -> bool) {
    wait_until(what, PATIENCE, || match holds() {
        true => Ok(()),
        false => Err(stack.log_tails()),
    });
}

/// Asserts that no part of a layer went over the network twice since the statistics were reset.
/// Neighbouring spans may share one byte, so that each request may repeat one.
pub(crate) fn fetched_once(stack: &Stack, image: &OciImage) {
    let stats = stack.proxy.stats();
    let mut bytes = 0;
    for layer in &image.layers {
        let fetched = stats.blob(layer.digest);
        assert!(
            fetched.bytes <= layer.size + fetched.requests,
            "{fetched:?} of a layer of {} bytes",
            layer.size
        );
        bytes += fetched.bytes;
    }
    assert!(bytes > 0, "something must have been fetched");
}

/// Mounts, directories of snapshots, stored layers and notes about images that the daemon has now.
pub(crate) fn left_behind(stack: &Stack) -> Vec<String> {
    left_below(&stack.daemon.root())
}

/// The same for a daemon's root folder.
pub(crate) fn left_below(root: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["soci/layers", "soci/images", "snapshotter/snapshots"] {
        // `soci/images` is made when it is needed.
        for entry in std::fs::read_dir(root.join(folder)).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // `.removed` is where the layer store empties folders.
            if !name.starts_with('.') {
                left.push(format!("{folder}/{name}"));
            }
        }
    }
    for mount in soci_testkit::process::mounts_below(root).unwrap() {
        left.push(format!("mount {}", mount.display()));
    }
    left
}

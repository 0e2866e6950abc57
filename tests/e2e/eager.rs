//! Eager pulls: all layers of an image downloaded and unpacked in parallel by the daemon, with real
//! containerd, CRI, runc and registry. Needs root and the two programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{
    NAMESPACE, NO_BACKGROUND, indexed, lazy_mounts, left_behind, pull, run, stack, status,
    wait_for_lines, wait_until,
};
use soci_containerd::labels;
use soci_oci::{Descriptor, Digest, Manifest};
use soci_testkit::image::layout::{blob_path, list};
use soci_testkit::image::{busybox_layer, small_image, small_image_data};
use soci_testkit::{
    Content, Fault, ImageBuilder, Layer, LayerCompression, OciImage, Registry, Rule, Run, SociCli,
    SociDaemonOptions, Stack, StackOptions, TestRoot, Throttle,
};

/// Containers start slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// All images, and nothing of them kept.
pub(crate) const ENABLED: &str = "[pull_modes.parallel_pull_unpack]\nenable = true\n\
     max_concurrent_downloads_per_image = 20\nconcurrent_download_chunk_size = \"1mb\"\n\
     max_concurrent_unpacks_per_image = 12\ndiscard_unpacked_layers = true\n";

/// Images without an index only.
pub(crate) fn as_fallback() -> String {
    ENABLED.replace("enable =", "experimental_parallel_pull_as_fallback =")
}

/// Pulls an image without an index from this repository of the registry, under another name if it has one: the
/// daemon fetches all of its layers, with credentials of its own.
pub(crate) fn pulls_without_index(
    stack: &Stack,
    soci: &SociCli,
    options: &[&str],
    (name, repository): (&str, &str),
) -> String {
    let root = TestRoot::new().unwrap();
    let seeds = Digest::of(repository.as_bytes()).to_string().into_bytes();
    let image = seeds[10..13]
        .iter()
        .fold(ImageBuilder::new(), |image, seed| {
            let content = Content::Noise {
                seed: u64::from(*seed) + 1000 * u64::from(seeds[13]),
                length: 3 << 20,
            };
            image.layer(Layer::new().file("noise", content))
        });
    let image = image.write(root.path(), "plain").unwrap();
    stack.push(&image.dir, "plain", repository).unwrap();
    let before = logged(stack, "local-snapshot-prepared", "true");
    let reference = format!("{name}:plain");
    let pull = ["pull"].iter().chain(options).copied();
    let said = soci.output(pull.chain([reference.as_str()])).unwrap();
    is_logged(
        stack,
        "local-snapshot-prepared",
        "true",
        before + image.layers.len(),
    );
    let stats = stack.proxy.stats();
    for layer in &image.layers {
        // Once, beside refusals of expired tokens.
        let bytes = stats.blob(layer.digest).bytes;
        assert!((layer.size..2 * layer.size).contains(&bytes), "{reference}");
    }
    said
}

/// busybox, and layers of noise on top of it.
pub(crate) fn layers(root: &TestRoot, tag: &str, number: u64, bytes: u64) -> OciImage {
    let mut image = ImageBuilder::new().layer(busybox_layer().unwrap());
    for seed in 1..number {
        let content = Content::Noise {
            seed,
            length: bytes,
        };
        image = image.layer(
            Layer::new()
                .file(&format!("data/{seed}"), content)
                .text("data/top", &seed.to_string()),
        );
    }
    let dir = root.dir("layout").unwrap();
    image.write(&dir, tag).unwrap()
}

/// The same image, whose second and third layer have the media types of layers that are not to be distributed.
/// They have no URLs: the registry has them.
fn with_foreign_layers(image: &OciImage, tag: &str) -> OciImage {
    let bytes = fs::read(blob_path(&image.dir, image.manifest.digest)).unwrap();
    let mut manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
    manifest.layers[1].media_type =
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".to_owned();
    manifest.layers[2].media_type =
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned();
    let bytes = soci_oci::json::to_vec(&manifest).unwrap();
    let described = Descriptor::of(&image.manifest.media_type, &bytes);
    fs::write(blob_path(&image.dir, described.digest), &bytes).unwrap();
    list(&image.dir, tag, &described).unwrap();
    OciImage {
        dir: image.dir.clone(),
        tag: tag.to_owned(),
        manifest: described,
        layers: manifest.layers,
    }
}

/// How many lines of the daemon's log have this value so far.
fn logged(stack: &Stack, key: &str, value: &str) -> usize {
    let log = stack.daemon.json_log();
    log.iter().filter(|line| line[key] == value).count()
}

/// Waits until as many lines of the daemon's log have this value.
fn is_logged(stack: &Stack, key: &str, value: &str, times: usize) {
    wait_for_lines(&stack.daemon, times, |line| line[key] == value);
}

pub(crate) fn scratch_is_empty(stack: &Stack) {
    let scratch = stack.daemon.root().join("unpack");
    wait_until(
        "the scratch folder is empty",
        PATIENCE,
        || match fs::read_dir(&scratch).unwrap().count() {
            0 => Ok(()),
            number => Err(format!("{number} folders")),
        },
    );
}

/// Asserts that each layer came over the network exactly once.
fn pulled_once(stack: &Stack, image: &OciImage) {
    let stats = stack.proxy.stats();
    for layer in &image.layers {
        let of_layer = stats.blob(layer.digest);
        assert_eq!(of_layer.bytes, layer.size, "{of_layer:?}");
    }
}

pub(crate) fn remove(stack: &Stack, reference: &str) {
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.output(["images", "rm", "--sync", reference]).unwrap();
    wait_until(
        "nothing is left of the image",
        PATIENCE,
        || match left_behind(stack) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        },
    );
}

#[test]
fn an_image_is_pulled_in_parallel_and_each_layer_comes_once() {
    let root = TestRoot::new().unwrap();
    let image = with_foreign_layers(&layers(&root, "layers", 6, 3 << 20), "app");
    let mut stack = stack(&format!("{NO_BACKGROUND}{ENABLED}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    let lines = pull(&stack, &reference);
    let unpacked = lines.matches("unpacked by the snapshotter").count();
    assert_eq!(unpacked, 6, "{lines}\n{}", stack.log_tails());
    assert_eq!(lazy_mounts(&stack), 0);
    pulled_once(&stack, &image);
    assert!(stack.proxy.stats().blobs().requests > 6, "in chunks");
    let preparing = "preparing snapshot with parallel pull/unpack";
    is_logged(&stack, "msg", preparing, 6);
    is_logged(&stack, "local-snapshot-prepared", "true", 6);
    for key in ["remote-snapshot-prepared", "defer-snapshot-runtime"] {
        assert_eq!(logged(&stack, key, "true"), 0, "{key}");
    }
    // Nothing of the layers is in containerd.
    let ctr = stack.containerd.ctr(NAMESPACE);
    let content = ctr.output(["content", "ls"]).unwrap();
    for layer in &image.layers {
        let line = format!("\n{}", layer.digest);
        assert!(!content.contains(&line), "{content}");
    }
    let command = ["/bin/cat", "/data/top"];
    assert_eq!(run(&stack, &reference, &command), "5");
    scratch_is_empty(&stack);

    stack.daemon.kill().unwrap();
    stack.daemon.start_again().unwrap();
    stack.wait_for_snapshotter().unwrap();
    assert_eq!(run(&stack, &reference, &command), "5");
    remove(&stack, &reference);
}

#[test]
fn an_indexed_image_is_not_loaded_lazily_while_all_images_are_eager() {
    let root = TestRoot::new().unwrap();
    let image = small_image(root.path(), "small").unwrap();
    let stack = stack(&format!("{NO_BACKGROUND}{ENABLED}"));
    let reference = indexed(&stack, root.path(), "small");
    pull(&stack, &reference);
    assert_eq!(lazy_mounts(&stack), 0, "{}", stack.log_tails());
    let layers = image.layers.len();
    is_logged(&stack, "local-snapshot-prepared", "true", layers);
    assert_eq!(
        logged(
            &stack,
            "msg",
            "fetching SOCI artifacts using index descriptor"
        ),
        0
    );
}

#[test]
fn images_without_index_are_eager_beside_lazy_ones() {
    let root = TestRoot::new().unwrap();
    let plain = layers(&root, "plain", 4, 1 << 20);
    let layout = root.dir("small").unwrap();
    let small = small_image(&layout, "small").unwrap();
    let stack = stack(&format!("{NO_BACKGROUND}{}", as_fallback()));
    stack.push(&plain.dir, "plain", "plain").unwrap();
    let lazy = indexed(&stack, &layout, "small");
    pull(&stack, &lazy);
    assert_eq!(
        lazy_mounts(&stack),
        small.layers.len(),
        "{}",
        stack.log_tails()
    );
    let eager = stack.reference("plain:plain");
    pull(&stack, &eager);
    assert_eq!(lazy_mounts(&stack), small.layers.len());
    // The lowest layer is in the other image as well, and lazy.
    is_logged(&stack, "local-snapshot-prepared", "true", 3);
    let stats = stack.proxy.stats();
    for layer in &plain.layers[1..] {
        assert_eq!(stats.blob(layer.digest).bytes, layer.size);
    }
    assert_eq!(run(&stack, &eager, &["/bin/cat", "/data/top"]), "3");
    let digest = Digest::of(&small_image_data().to_vec()).hex();
    let read = run(&stack, &lazy, &["/bin/sha256sum", "/data/noise"]);
    assert!(read.starts_with(&digest), "{read}");
}

/// containerd has all layers of an image with their diff IDs; returns what `ctr content ls` prints of each.
fn kept(stack: &Stack, image: &OciImage) -> Vec<String> {
    let ctr = stack.containerd.ctr(NAMESPACE);
    let content = ctr.output(["content", "ls"]).unwrap();
    let line_of = |digest: String| {
        let line = content.lines().find(|line| line.starts_with(&digest));
        let line = line.unwrap_or_else(|| panic!("{digest} in {content}"));
        let diff_id = format!("{}=sha256:", labels::UNCOMPRESSED);
        assert!(line.contains(&diff_id), "{line}");
        line.to_owned()
    };
    let digests = image.layers.iter().map(|layer| layer.digest.to_string());
    digests.map(line_of).collect()
}

#[test]
fn kept_layers_are_in_containerd_as_after_an_ordinary_pull_and_go_with_the_image() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 4, 2 << 20);
    let keep = ENABLED.replace("discard_unpacked_layers = true", "");
    // With either type of content store.
    for kind in ["soci", "containerd"] {
        let stack = stack(&format!(
            "{NO_BACKGROUND}{keep}[content_store]\ntype = \"{kind}\"\n"
        ));
        stack.push(&image.dir, "app", "app").unwrap();
        let reference = stack.reference("app:app");
        pull(&stack, &reference);
        pulled_once(&stack, &image);
        let ctr = stack.containerd.ctr(NAMESPACE);
        for line in kept(&stack, &image) {
            let source = format!("{}{}=app", labels::SOURCE_PREFIX, stack.proxy.address());
            assert!(line.contains(&source), "{line}");
        }
        // Whole, although the garbage collector has run.
        let collect = ["leases", "create", "--id", "collect-garbage"];
        ctr.output(collect).unwrap();
        let collect = ["leases", "delete", "--sync", "collect-garbage"];
        ctr.output(collect).unwrap();
        let archive = root.path().join("app.tar");
        let path = archive.display().to_string();
        ctr.output(["images", "export", &path, &reference]).unwrap();
        assert!(fs::metadata(&archive).unwrap().len() > 6 << 20);
        // Pushed to a registry that has none of them.
        let registry = Registry::start().unwrap();
        let copy = registry.reference("copy:app");
        let push = ["images", "push", "--plain-http", &copy, &reference];
        ctr.output(push).unwrap();
        // Another snapshotter needs nothing from the registry.
        stack.proxy.reset_stats();
        ctr.pull(&reference, "overlayfs").unwrap();
        assert_eq!(stack.proxy.stats().blobs().bytes, 0);
        remove(&stack, &reference);
        wait_until("the content goes with the image", PATIENCE, || {
            let content = ctr.output(["content", "ls", "-q"]).unwrap();
            match content.trim().is_empty() {
                true => Ok(()),
                false => Err(content),
            }
        });
        let leases = ctr.output(["leases", "ls", "-q"]).unwrap();
        assert_eq!(leases.trim(), "", "no lease is left");
        // All of it was pushed.
        pull(&stack, &copy);
        assert_eq!(run(&stack, &copy, &["/bin/cat", "/data/top"]), "3");
        remove(&stack, &copy);
    }
}

#[test]
fn kept_layers_that_containerd_has_in_another_namespace_are_shared() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 3, 1 << 20);
    let keep = ENABLED.replace("discard_unpacked_layers = true", "");
    let stack = stack(&format!("{NO_BACKGROUND}{keep}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    let server = stack.daemon.server_pid().unwrap();
    let other = stack.containerd.ctr("other");
    other.pull(&reference, "overlayfs").unwrap();
    stack.proxy.reset_stats();
    pull(&stack, &reference);
    let stats = stack.proxy.stats();
    for layer in &image.layers {
        assert_eq!(stats.blob(layer.digest).bytes, 0);
    }
    kept(&stack, &image);
    assert_eq!(stack.daemon.server_pid().unwrap(), server);
    assert_eq!(run(&stack, &reference, &["/bin/cat", "/data/top"]), "2");
}

#[test]
fn two_namespaces_pull_an_image_at_the_same_time() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 4, 4 << 20);
    for keeping in ["discard_unpacked_layers = true", ""] {
        let config = ENABLED.replace("discard_unpacked_layers = true", keeping);
        let stack = Stack::start(StackOptions {
            daemon: SociDaemonOptions::with_config(&format!("{NO_BACKGROUND}{config}")),
            throttle: Throttle::cloud(),
            ..StackOptions::default()
        })
        .unwrap();
        stack.push(&image.dir, "app", "app").unwrap();
        let reference = stack.reference("app:app");
        std::thread::scope(|scope| {
            for namespace in [NAMESPACE, "other"] {
                let soci = stack.soci(namespace).unwrap();
                let reference = &reference;
                scope.spawn(move || soci.output(["pull", "--plain-http", reference]).unwrap());
            }
        });
        if !keeping.is_empty() {
            // What is kept goes into the content store of each namespace as it arrives.
            pulled_once(&stack, &image);
        }
        for namespace in [NAMESPACE, "other"] {
            let ctr = stack.containerd.ctr(namespace);
            let run = Run::new(&reference, "soci").command(["/bin/cat", "/data/top"]);
            assert_eq!(ctr.run(&run).unwrap().stdout, "3");
            let content = ctr.output(["content", "ls", "-q"]).unwrap();
            for layer in &image.layers {
                let is_kept = content.contains(&layer.digest.to_string());
                assert_eq!(is_kept, keeping.is_empty(), "{namespace}: {content}");
            }
        }
        scratch_is_empty(&stack);
    }
}

#[test]
fn layers_that_containerd_has_are_read_from_there() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 3, 1 << 20);
    let mut stack = stack(&format!("{NO_BACKGROUND}{ENABLED}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.pull(&reference, "overlayfs").unwrap();
    let soci = stack.soci(NAMESPACE).unwrap();
    stack.proxy.reset_stats();
    soci.output(["pull", "--plain-http", &reference]).unwrap();
    is_logged(&stack, "local-snapshot-prepared", "true", 3);
    let stats = stack.proxy.stats();
    for layer in &image.layers {
        assert_eq!(stats.blob(layer.digest).bytes, 0);
    }
    stack.registry.kill().unwrap();
    assert_eq!(run(&stack, &reference, &["/bin/cat", "/data/top"]), "2");
}

#[test]
fn images_that_share_layers_are_pulled_at_the_same_time_and_share_them() {
    let root = TestRoot::new().unwrap();
    let base = |seed| {
        Layer::new().file(
            "base",
            Content::Noise {
                seed,
                length: 4 << 20,
            },
        )
    };
    let build = |tag: &str, seed| {
        let own = Content::Noise {
            seed,
            length: 2 << 20,
        };
        let builder = ImageBuilder::new()
            .layer(busybox_layer().unwrap())
            .layer(base(1))
            // The same layer twice, and an empty one.
            .layer(Layer::new())
            .layer(Layer::new())
            .layer(Layer::new().file("own", own));
        builder.write(&root.dir("layout").unwrap(), tag).unwrap()
    };
    let images = [build("one", 11), build("two", 12)];
    let stack = Stack::start(StackOptions {
        daemon: SociDaemonOptions::with_config(&format!("{NO_BACKGROUND}{ENABLED}")),
        throttle: Throttle::cloud(),
        ..StackOptions::default()
    })
    .unwrap();
    for tag in ["one", "two"] {
        stack.push(&images[0].dir, tag, "app").unwrap();
    }
    let references = ["one", "two"].map(|tag| stack.reference(&format!("app:{tag}")));
    std::thread::scope(|scope| {
        // Two clients of each.
        for reference in references.iter().chain(&references) {
            scope.spawn(|| pull(&stack, reference));
        }
    });
    let stats = stack.proxy.stats();
    for image in &images {
        for layer in &image.layers {
            let of_layer = stats.blob(layer.digest);
            // The empty layer is in an image twice.
            let times = of_layer.bytes / layer.size;
            let most = if layer.size < 1000 { 4 } else { 1 };
            assert!(times <= most, "{times} times: {of_layer:?}");
        }
    }
    for reference in &references {
        run(&stack, reference, &["/bin/true"]);
    }
    scratch_is_empty(&stack);
}

#[test]
fn a_damaged_layer_is_an_error_of_the_pull_and_leaves_nothing() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 4, 1 << 20);
    let stack = stack(&format!("{NO_BACKGROUND}{ENABLED}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    let bad = image.layers[2].digest;
    stack
        .proxy
        .inject(Rule::always(Fault::CorruptBlob(5000)).blob(bad));
    let soci = stack.soci(NAMESPACE).unwrap();
    let error = soci
        .output(["pull", "--plain-http", &reference])
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains(&bad.to_string()), "{error}");
    assert_eq!(logged(&stack, "defer-snapshot-runtime", "true"), 0);
    scratch_is_empty(&stack);
    // The same pull succeeds when the registry has recovered.
    stack.proxy.clear_faults();
    pull(&stack, &reference);
    assert_eq!(run(&stack, &reference, &["/bin/cat", "/data/top"]), "3");
}

#[test]
fn a_registry_that_throttles_cuts_off_and_ignores_ranges_is_survived() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 5, 3 << 20);
    let stack = stack(&format!("{NO_BACKGROUND}{ENABLED}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let too_many = Fault::Status {
        status: 429,
        headers: vec![("Retry-After".to_owned(), "1".to_owned())],
        body: String::new(),
    };
    let faults = [
        too_many,
        Fault::ResetAfter(100_000),
        Fault::Truncate(200_000),
        Fault::IgnoreRange,
    ];
    for (fault, layer) in faults.into_iter().zip(&image.layers[1..]) {
        let rule = Rule::always(fault).blob(layer.digest);
        stack.proxy.inject(rule.from_nth(2).times(1));
    }
    let reference = stack.reference("app:app");
    pull(&stack, &reference);
    assert_eq!(run(&stack, &reference, &["/bin/cat", "/data/top"]), "4");
    scratch_is_empty(&stack);
}

/// A slow registry, so that a pull lasts.
pub(crate) fn slow(config: &str) -> Stack {
    let stack = stack(config);
    stack.proxy.throttle(Throttle {
        total: Some(1 << 20),
        ..Throttle::unlimited()
    });
    stack
}

/// Waits until layers are being pulled, and returns what `soci status` says of the image.
pub(crate) fn pulling(stack: &Stack) -> serde_json::Value {
    let mut pull = serde_json::Value::Null;
    let deadline = std::time::Instant::now() + PATIENCE;
    while pull.is_null() || pull["bytesPerSecond"].as_u64() == Some(0) {
        assert!(
            std::time::Instant::now() < deadline,
            "{}",
            stack.log_tails()
        );
        pull = status(&stack.daemon)["pulls"][0].clone();
    }
    pull
}

#[test]
fn a_kill_in_the_middle_of_a_pull_leaves_nothing_and_the_retry_succeeds() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 6, 2 << 20);
    let mut stack = slow(&format!("{NO_BACKGROUND}{ENABLED}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    let soci = stack.soci(NAMESPACE).unwrap();
    for kill in 0..2 {
        std::thread::scope(|scope| {
            let client = scope.spawn(|| soci.output(["pull", "--plain-http", &reference]));
            let pull = pulling(&stack);
            assert_eq!(pull["reference"], reference);
            let layers = pull["layers"].as_array().unwrap().len();
            assert_eq!(layers, image.layers.len(), "{pull}");
            match kill {
                0 => stack.daemon.kill_everything().unwrap(),
                _ => drop(stack.daemon.kill().unwrap()),
            }
            assert!(client.join().unwrap().is_err());
        });
        stack.daemon.start_again().unwrap();
        stack.wait_for_snapshotter().unwrap();
        scratch_is_empty(&stack);
    }
    stack.proxy.throttle(Throttle::unlimited());
    pull(&stack, &reference);
    assert_eq!(run(&stack, &reference, &["/bin/cat", "/data/top"]), "5");
    remove(&stack, &reference);
}

#[test]
fn a_client_that_gives_up_ends_the_pull_and_leaves_nothing() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 4, 4 << 20);
    let stack = slow(&format!("{NO_BACKGROUND}{ENABLED}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    let soci = stack.soci(NAMESPACE).unwrap();
    let mut client = soci
        .command(["pull", "--plain-http", &reference])
        .spawn()
        .unwrap();
    pulling(&stack);
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("the pull has ended", PATIENCE, || {
        match &status(&stack.daemon)["pulls"] {
            pulls if pulls.as_array().is_some_and(Vec::is_empty) => Ok(()),
            pulls => Err(pulls.to_string()),
        }
    });
    scratch_is_empty(&stack);
}

#[test]
fn programs_that_decompress_are_used_and_their_failure_is_clear() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 3, 1 << 20);
    let program = |path: &str, args: &str| {
        format!(
            "{NO_BACKGROUND}{ENABLED}[pull_modes.parallel_pull_unpack.decompress_streams.gzip]\n\
             path = \"{path}\"\nargs = [{args}]\n"
        )
    };
    let counted = root.path().join("used");
    let script = root.path().join("unzip");
    let text = format!(
        "#!/bin/sh\necho x >> {}\nexec gzip -d -c\n",
        counted.display()
    );
    soci_testkit::write_program(&script, &text).unwrap();
    let mut stack = stack(&program(&script.display().to_string(), ""));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    pull(&stack, &reference);
    assert_eq!(run(&stack, &reference, &["/bin/cat", "/data/top"]), "2");
    assert_eq!(fs::read_to_string(&counted).unwrap().lines().count(), 3);
    remove(&stack, &reference);

    let failing = stack.containerd.address().to_owned();
    let mut options = SociDaemonOptions::with_config(&program("/bin/sh", "\"-c\", \"exit 3\""));
    options.containerd = Some(failing);
    stack.daemon.terminate().unwrap();
    stack.daemon.start_again_with(options).unwrap();
    stack.wait_for_snapshotter().unwrap();
    let soci = stack.soci(NAMESPACE).unwrap();
    let error = soci
        .output(["pull", "--plain-http", &reference])
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("/bin/sh"), "{error}");
    scratch_is_empty(&stack);
}

#[test]
fn layers_look_as_containerd_unpacks_them_although_they_are_unpacked_at_the_same_time() {
    let root = TestRoot::new().unwrap();
    let lower = busybox_layer()
        .unwrap()
        .dir("srv")
        .mode(0o2770)
        .owner(11, 12)
        .xattr("user.note", b"n")
        .dir("old")
        .text("old/one", "1");
    let upper = Layer::new()
        .text("srv/implied/deep", "i")
        .opaque("old")
        .text("old/two", "2");
    let top = Layer::new().text("srv/top", "t").whiteout("old/two");
    let image = ImageBuilder::new()
        .layer(lower)
        .layer_with(upper, LayerCompression::Plain)
        .layer(top)
        .write(&root.dir("layout").unwrap(), "app")
        .unwrap();
    let stack = stack(&format!("{NO_BACKGROUND}{ENABLED}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    pull(&stack, &reference);
    let theirs = stack.containerd.ctr("plain");
    theirs.pull(&reference, "overlayfs").unwrap();
    let theirs = stack
        .containerd
        .root()
        .join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let ours = stack.daemon.root().join("snapshotter/snapshots");
    for layer in 1..=3 {
        let of = |folder: &Path| attributes(&folder.join(layer.to_string()).join("fs"));
        assert_eq!(of(&ours), of(&theirs), "layer {layer}");
    }
}

/// Kind, mode, owner and extended attributes of everything in a folder, by path.
fn attributes(folder: &Path) -> BTreeMap<String, String> {
    let listing = soci_testkit::listing::of(folder);
    let without_times = |line: &str| {
        let mut columns: Vec<&str> = line.split('|').collect();
        if let Some(time) = columns.get_mut(4)
            && !time.starts_with("1704067200.")
        {
            *time = "-";
        }
        columns.join("|")
    };
    listing
        .iter()
        .map(|(name, file)| (format!("{name:?}"), without_times(&file.line)))
        .collect()
}

//! Eager pulls that fail while others continue: the error that the client gets, and that nothing leaks.
//! Needs root and the two programs.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::eager::{ENABLED, layers, pulling, scratch_is_empty, slow};
use crate::observe::metrics;
use crate::support::{
    NAMESPACE, NO_BACKGROUND, PATIENCE, left_behind, pull, run, stack_with, status, wait_until,
};
use soci_oci::{Descriptor, Digest, Manifest};
use soci_testkit::image::layout::{blob_path, list};
use soci_testkit::{Fault, OciImage, Rule, SociDaemonOptions, Stack, TestRoot};

/// The same image with a configuration that lies about its second layer.
fn with_a_wrong_diff_id(image: &OciImage, tag: &str) -> OciImage {
    let read = |digest| fs::read(blob_path(&image.dir, digest)).unwrap();
    let write = |kind: &str, bytes: &[u8]| {
        let blob = Descriptor::of(kind, bytes);
        fs::write(blob_path(&image.dir, blob.digest), bytes).unwrap();
        blob
    };
    let mut manifest: Manifest = serde_json::from_slice(&read(image.manifest.digest)).unwrap();
    let config = read(manifest.config.digest);
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["rootfs"]["diff_ids"][1] = Digest::of(b"another").to_string().into();
    let config = serde_json::to_vec(&config).unwrap();
    manifest.config = write(&manifest.config.media_type, &config);
    let bytes = soci_oci::json::to_vec(&manifest).unwrap();
    let described = write(&image.manifest.media_type, &bytes);
    list(&image.dir, tag, &described).unwrap();
    OciImage {
        dir: image.dir.clone(),
        tag: tag.to_owned(),
        manifest: described,
        layers: image.layers.clone(),
    }
}

fn fails(stack: &Stack, reference: &str) -> String {
    let soci = stack.soci(NAMESPACE).unwrap();
    let error = soci.output(["pull", "--plain-http", reference]);
    format!("{:#}", error.unwrap_err())
}

/// No pull, no memory, no queue, no scratch.
fn is_idle(stack: &Stack, socket: &std::path::Path) {
    scratch_is_empty(stack);
    wait_until("nothing of the pulls is left", PATIENCE, || {
        let text = metrics(socket);
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.map(|line| line[name.len()..].trim().to_owned())
        };
        for name in [
            "soci_eager_images ",
            "soci_eager_memory_bytes ",
            "soci_eager_unpacking_layers ",
            "soci_eager_queue_layers ",
            "soci_eager_queue_requests ",
        ] {
            match value(name).as_deref() {
                Some("0") => {}
                other => return Err(format!("{name}{other:?}")),
            }
        }
        match &status(&stack.daemon)["pulls"] {
            pulls if pulls.as_array().is_some_and(Vec::is_empty) => Ok(()),
            pulls => Err(pulls.to_string()),
        }
    });
}

#[test]
fn images_that_cannot_be_pulled_are_named_while_another_comes_through_a_mirror() {
    let root = TestRoot::new().unwrap();
    let (hosts, socket) = (root.dir("certs.d").unwrap(), root.path().join("metrics"));
    // `hosts.toml` and the socket need paths of their own; the disk of the daemon is small.
    let config = format!(
        "metrics_network = 'unix'\nmetrics_address = '{}'\n{NO_BACKGROUND}{ENABLED}\
         [resolver]\nconfig_path = '{}'\n",
        socket.display(),
        hosts.display()
    );
    let stack = stack_with(SociDaemonOptions {
        root_size: Some(96 << 20),
        ..SociDaemonOptions::with_config(&config)
    });
    let host = root.dir("certs.d/registry.invalid").unwrap();
    let mirror = format!(
        "server = \"https://registry.invalid\"\n[host.\"http://{}\"]\n\
         capabilities = [\"pull\", \"resolve\"]\n",
        stack.proxy.address()
    );
    fs::write(host.join("hosts.toml"), mirror).unwrap();
    let image = |name: &str, number, bytes: u64| {
        let image = layers(&root, name, number, bytes);
        stack.push(&image.dir, name, name).unwrap();
        image
    };
    let good = image("good", 4, 2 << 20);
    let lying = with_a_wrong_diff_id(&image("honest", 3, 1 << 20), "lying");
    stack.push(&lying.dir, "lying", "lying").unwrap();
    let throttled = image("throttled", 3, 3 << 20);
    let large = image("large", 3, 80 << 20);
    let too_many = Fault::Status {
        status: 429,
        headers: vec![("Retry-After".to_owned(), "3600".to_owned())],
        body: String::new(),
    };
    let busy = throttled.layers[2].digest;
    stack.proxy.inject(Rule::always(too_many).blob(busy));

    let mirrored = "registry.invalid/good:good";
    let name = |name: &str| stack.reference(&format!("{name}:{name}"));
    let (lying_name, throttled_name) = (name("lying"), name("throttled"));
    std::thread::scope(|scope| {
        let lying = scope.spawn(|| fails(&stack, &lying_name));
        let throttled = scope.spawn(|| fails(&stack, &throttled_name));
        let soci = stack.soci(NAMESPACE).unwrap();
        let hosts = hosts.display().to_string();
        soci.output(["pull", "--hosts-dir", &hosts, mirrored])
            .unwrap();
        let lying = lying.join().unwrap();
        assert!(
            lying.contains("but the image configuration says")
                && lying.contains("(FailedPrecondition)"),
            "{lying}"
        );
        let throttled = throttled.join().unwrap();
        assert!(throttled.contains(&busy.to_string()), "{throttled}");
        assert!(
            throttled.contains("429") && throttled.contains("(Unavailable)"),
            "{throttled}"
        );
        // The daemon is there.
        assert!(!throttled.contains("running"), "{throttled}");
    });
    for layer in &good.layers[1..] {
        assert_eq!(stack.proxy.stats().blob(layer.digest).bytes, layer.size);
    }
    is_idle(&stack, &socket);
    let full = fails(&stack, &stack.reference("large:large"));
    let named = large.layers[1..]
        .iter()
        .any(|layer| full.contains(&layer.digest.to_string()));
    assert!(named, "{full}");
    assert!(
        full.contains("min_free_percent") || full.contains("No space left"),
        "{full}"
    );
    // containerd 1.6 does not know the code of a full disk.
    assert!(
        full.contains("(ResourceExhausted)") || full.contains("(Unknown)"),
        "{full}"
    );
    is_idle(&stack, &socket);
    let text = metrics(&socket);
    let failures = text
        .lines()
        .find(|line| line.contains("local_mount_failure_count"));
    let failures = failures.and_then(|line| line.rsplit(' ').next());
    let failures: u64 = failures.and_then(|count| count.parse().ok()).unwrap_or(0);
    assert!(failures >= 3, "{failures}");
    // What could not be pulled holds up nothing.
    stack.proxy.clear_faults();
    pull(&stack, &stack.reference("throttled:throttled"));
    assert_eq!(run(&stack, mirrored, &["/bin/cat", "/data/top"]), "3");
    let ctr = stack.containerd.ctr(NAMESPACE);
    let names = ctr.output(["images", "ls", "-q"]).unwrap();
    for name in names.lines() {
        ctr.output(["images", "rm", "--sync", name]).unwrap();
    }
    wait_until("nothing is left of the images", PATIENCE, || {
        let mut left = left_behind(&stack);
        // The disk of the daemon itself.
        left.retain(|what| *what != format!("mount {}", stack.daemon.root().display()));
        match left.is_empty() {
            true => Ok(()),
            false => Err(format!("{left:?}")),
        }
    });
}

#[test]
fn a_hand_over_in_the_middle_of_a_pull_leaves_nothing_and_the_retry_succeeds() {
    let root = TestRoot::new().unwrap();
    let image = layers(&root, "app", 6, 2 << 20);
    let stack = slow(&format!("{NO_BACKGROUND}{ENABLED}"));
    stack.push(&image.dir, "app", "app").unwrap();
    let reference = stack.reference("app:app");
    let soci = stack.soci(NAMESPACE).unwrap();
    let before = stack.daemon.server_pid().unwrap();
    let (ctr, upgraded) = (stack.containerd.ctr(NAMESPACE), AtomicBool::new(false));
    let snapshots = |what: &[&str]| {
        ctr.output([&["snapshots", "--snapshotter", "soci"], what].concat())
            .unwrap()
    };
    // Listing requests each snapshot from the daemon.
    snapshots(&["prepare", "other"]);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| soci.output(["pull", "--plain-http", &reference]));
        pulling(&stack);
        // Other calls are answered all the time, although that pull holds up the hand-over.
        let other = scope.spawn(|| {
            while !upgraded.load(Ordering::Relaxed) {
                assert!(snapshots(&["ls"]).contains("other"));
            }
        });
        let upgrade = stack.daemon.upgrade();
        upgraded.store(true, Ordering::Relaxed);
        upgrade.unwrap();
        other.join().unwrap();
        assert_ne!(stack.daemon.server_pid().unwrap(), before);
        // A client that requests the next layers only now gets them from the new server.
        if let Err(error) = client.join().unwrap() {
            let error = format!("{error:#}");
            // The pull was cancelled, or the request came between the two servers.
            assert!(error.contains("(Unavailable)"), "{error}");
        }
    });
    scratch_is_empty(&stack);
    stack.proxy.throttle(soci_testkit::Throttle::unlimited());
    pull(&stack, &reference);
    assert_eq!(run(&stack, &reference, &["/bin/cat", "/data/top"]), "5");
    scratch_is_empty(&stack);
}

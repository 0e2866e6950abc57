//! `[content_store] type = "containerd"`: SOCI artifacts in containerd's content store. Needs root,
//! FUSE, containerd, runc, docker-registry and the two programs.

use std::collections::HashMap;
use std::path::Path;

use crate::support::releases::on_each_containerd;
use crate::support::{
    NAMESPACE, NO_BACKGROUND, PATIENCE, indexed, lazy_mounts, pull, run, stack, stack_under,
    wait_for_lines, wait_until_holds,
};
use soci_containerd::labels::gc;
use soci_containerd::{Containerd, Content};
use soci_oci::{Descriptor, Digest, Manifest, media_types};
use soci_testkit::image::{busybox_layer, small_image};
use soci_testkit::{
    ImageBuilder, Layer, Release, SociCli, SociDaemonOptions, Stack, TestRoot, Throttle,
};

/// Restarts the daemon with containerd's content store.
fn use_containerd(stack: &mut Stack) -> Content {
    let address = stack.containerd.address().display().to_string();
    let config = format!(
        "{NO_BACKGROUND}[content_store]\ntype = \"containerd\"\ncontainerd_address = {address:?}\n"
    );
    stack.daemon.terminate().unwrap();
    let options = SociDaemonOptions::with_config(&config);
    stack.daemon.start_again_with(options).unwrap();
    stack.wait_for_snapshotter().unwrap();
    Content::new(&Containerd::new(&address).namespace(NAMESPACE).unwrap())
}

/// The SOCI index of a layout's image, converted into `to`.
fn converted(layout: &Path, to: &Path) -> (Digest, Manifest) {
    let format = ["convert", "--standalone", "--format", "oci-dir"];
    let [from, to_text] = [layout, to].map(|path| path.display().to_string());
    SociCli::standalone()
        .unwrap()
        .output(
            format
                .into_iter()
                .chain(["--min-layer-size", "0", &from, &to_text]),
        )
        .unwrap();
    let of = |digest: &Digest| {
        let path = to.join("blobs/sha256").join(digest.hex());
        std::fs::read(path).unwrap()
    };
    let root = std::fs::read(to.join("index.json")).unwrap();
    let root: soci_oci::Index = serde_json::from_slice(&root).unwrap();
    let mut index = root.manifests[0].digest;
    let image: soci_oci::Index = serde_json::from_slice(&of(&index)).unwrap();
    if let Some(soci) = image
        .manifests
        .iter()
        .find(|one| one.artifact_type.is_some())
    {
        index = soci.digest;
    }
    (index, serde_json::from_slice(&of(&index)).unwrap())
}

on_each_containerd! {
    what_the_daemon_fetches_is_kept_in_containerd_as_long_as_the_image_is_in_use,
}

fn what_the_daemon_fetches_is_kept_in_containerd_as_long_as_the_image_is_in_use(release: Release) {
    let layout = TestRoot::new().unwrap();
    let built = small_image(layout.path(), "small").unwrap();
    let mut stack = stack_under(release, "");
    let reference = indexed(&stack, layout.path(), "small");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let content = runtime.block_on(async { use_containerd(&mut stack) });
    pull(&stack, &reference);
    assert_eq!(lazy_mounts(&stack), built.layers.len());

    let fetching = "fetching SOCI artifacts using index descriptor";
    let fetched = &wait_for_lines(&stack.daemon, 1, |line| line["msg"] == fetching)[0];
    let index: Digest = fetched["digest"].as_str().unwrap().parse().unwrap();
    let get = |digest: Digest| {
        let content = content.clone();
        runtime.block_on(async move { content.get(&digest, 1 << 30).await })
    };
    let labels = |digest: Digest| {
        let content = content.clone();
        runtime.block_on(async move {
            let info = content.info(&digest).await.unwrap();
            info.map(|info| info.labels)
        })
    };
    let bytes = get(index).unwrap().unwrap();
    let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
    let kept = labels(index).unwrap();
    assert!(kept.contains_key(gc::ROOT), "{kept:?}");
    assert_eq!(manifest.layers.len(), built.layers.len());
    for (place, ztoc) in manifest.layers.iter().enumerate() {
        let label = format!("{}.ztoc.{place}", gc::CONTENT);
        assert_eq!(kept[&label], ztoc.digest.to_string());
        assert_eq!(get(ztoc.digest).unwrap().unwrap().len() as u64, ztoc.size);
        assert!(!labels(ztoc.digest).unwrap().contains_key(gc::ROOT));
    }

    // containerd's collector leaves it alone.
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.output(["content", "prune", "references"]).unwrap();
    assert!(get(index).unwrap().is_some());
    assert!(get(manifest.layers[0].digest).unwrap().is_some());
    assert!(run(&stack, &reference, &["/bin/cat", "/data/hello"]).contains("hello"));

    // Until the image goes. If it comes again before the collector, which this pull may run, the index
    // is kept again.
    let removed = || {
        ctr.output(["images", "rm", "--sync", &reference]).unwrap();
        wait_until_holds(&stack, "unmounted", || lazy_mounts(&stack) == 0);
        wait_until_holds(&stack, "released", || {
            labels(index).is_none_or(|labels| !labels.contains_key(gc::ROOT))
        });
    };
    removed();
    pull(&stack, &reference);
    assert!(labels(index).unwrap().contains_key(gc::ROOT));
    ctr.output(["content", "prune", "references"]).unwrap();
    assert!(get(index).unwrap().is_some());
    removed();
    ctr.output(["content", "prune", "references"]).unwrap();
    wait_until_holds(&stack, "collected", || {
        get(index).unwrap().is_none() && get(manifest.layers[0].digest).unwrap().is_none()
    });
}

#[test]
fn ztocs_that_the_client_downloads_as_well_are_downloaded_once() {
    let layout = TestRoot::new().unwrap();
    let mut files = Layer::new().dir("data");
    for number in 0..3000 {
        let content = soci_testkit::Content::Noise {
            seed: number,
            length: 1000,
        };
        files = files.file(&format!("data/file-with-a-long-name-{number:05}"), content);
    }
    let layer = busybox_layer().unwrap();
    ImageBuilder::new()
        .layer(layer)
        .layer(files)
        .write(layout.path(), "many")
        .unwrap();
    let (_, manifest) = converted(layout.path(), &layout.path().join("converted"));
    for containerd in [false, true] {
        let mut stack = stack(NO_BACKGROUND);
        let reference = indexed(&stack, layout.path(), "many");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        if containerd {
            runtime.block_on(async { use_containerd(&mut stack) });
        }
        // Both would be under way at the same time.
        stack.proxy.throttle(Throttle {
            total: Some(500_000),
            ..Throttle::unlimited()
        });
        stack.proxy.reset_stats();
        pull(&stack, &reference);
        assert_eq!(lazy_mounts(&stack), 2);
        let stats = stack.proxy.stats();
        for ztoc in &manifest.layers {
            let fetched = stats.blob(ztoc.digest);
            assert_eq!((fetched.requests, fetched.bytes), (1, ztoc.size));
        }
    }
}

#[test]
fn what_only_containerd_has_is_used_and_left_to_its_creator() {
    let root = TestRoot::new().unwrap();
    let (layout, target) = (root.dir("layout").unwrap(), root.path().join("target"));
    let built = small_image(&layout, "small").unwrap();
    let mut stack = stack("");
    let (index, manifest) = converted(&layout, &target);
    // The registry has the image alone.
    stack.push(&layout, "small", "plain").unwrap();
    let reference = stack.reference("plain:small");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let content = runtime.block_on(async { use_containerd(&mut stack) });
    // As `soci create` leaves it, referred to by something else: there by the image, here by a blob.
    let made = ("made.by/test".to_owned(), "yes".to_owned());
    let blobs: Vec<Digest> = manifest
        .layers
        .iter()
        .map(|ztoc| ztoc.digest)
        .chain([index])
        .collect();
    let references = blobs
        .iter()
        .enumerate()
        .map(|(place, digest)| (format!("{}.{place}", gc::CONTENT), digest.to_string()));
    let owner = bytes::Bytes::from_static(b"what keeps them");
    let descriptor = Descriptor::of("text/plain", &owner);
    let labels = references.chain([(gc::ROOT.to_owned(), "yes".to_owned())]);
    runtime
        .block_on(content.put("blob", &descriptor, labels.collect(), owner))
        .unwrap();
    for digest in blobs {
        let bytes = std::fs::read(target.join("blobs/sha256").join(digest.hex())).unwrap();
        let descriptor = Descriptor::new(media_types::OCI_MANIFEST, digest, bytes.len() as u64);
        let keep = HashMap::from([made.clone()]);
        runtime
            .block_on(content.put("blob", &descriptor, keep, bytes.into()))
            .unwrap();
    }
    let soci = stack.soci(NAMESPACE).unwrap();
    let index_text = index.to_string();
    soci.output([
        "pull",
        "--plain-http",
        "--soci-index-digest",
        &index_text,
        &reference,
    ])
    .unwrap();
    assert_eq!(
        lazy_mounts(&stack),
        built.layers.len(),
        "{}",
        stack.log_tails()
    );
    let info = runtime.block_on(content.info(&index)).unwrap();
    let labels = info.unwrap().labels;
    assert!(!labels.contains_key(gc::ROOT), "{labels:?}");
    assert_eq!(labels["made.by/test"], "yes");
    assert!(run(&stack, &reference, &["/bin/cat", "/data/hello"]).contains("hello"));
}

#[test]
fn a_containerd_that_is_away_costs_nothing_but_its_content_store() {
    let layout = TestRoot::new().unwrap();
    let built = small_image(layout.path(), "small").unwrap();
    let mut stack = stack("");
    let reference = indexed(&stack, layout.path(), "small");
    let options = SociDaemonOptions::with_config(&format!(
        "{NO_BACKGROUND}[content_store]\ntype = \"containerd\"\ncontainerd_address = \"/nowhere/c.sock\"\n"
    ));
    stack.daemon.terminate().unwrap();
    stack.daemon.start_again_with(options).unwrap();
    stack.wait_for_snapshotter().unwrap();
    pull(&stack, &reference);
    assert_eq!(
        lazy_mounts(&stack),
        built.layers.len(),
        "{}",
        stack.log_tails()
    );
    let layers = stack.daemon.root().join("soci/layers");
    let verified = || {
        let folders = std::fs::read_dir(&layers).unwrap();
        let verdicts = folders.map(|folder| folder.unwrap().path().join("verdict"));
        verdicts.filter(|verdict| verdict.exists()).count()
    };
    assert_eq!(verified(), 0);
    // It is unknown which other images have these layers: each is verified before its first use.
    assert!(run(&stack, &reference, &["/bin/cat", "/data/hello"]).contains("hello"));
    assert_eq!(verified(), built.layers.len(), "{}", stack.log_tails());
    let why = "layers are verified before they are used: containerd's image store does not answer";
    let told = |line: &str| line.contains(why);
    assert!(
        stack.daemon.log().wait_for(0, PATIENCE, told).is_some(),
        "{}",
        stack.log_tails()
    );
}

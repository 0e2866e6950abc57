//! What nerdctl 2 runs, argument by argument, against a real containerd and a real registry. Needs
//! root.

use std::process::Command;

use crate::support::{Bench, lines, soci_indexes};
use soci_testkit::Run;

#[test]
fn convert_makes_an_image_that_containerd_keeps_as_long_as_it_has_its_name() {
    let bench = Bench::start();
    let source = bench.image();
    let converted = bench.registry.reference("app:v1-soci");
    let said = bench.ok(&[
        "convert",
        "--platform",
        &soci_oci::Platform::host().to_string(),
        "--span-size",
        "262144",
        "--min-layer-size",
        "100000",
        &source,
        &converted,
    ]);
    let said = lines(&said);
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said[0].starts_with("layer sha256:") && said[0].contains(" -> ztoc sha256:"));
    assert!(
        said[2].starts_with("ztoc skipped - layer sha256:"),
        "{said:?}"
    );
    let target = bench.target(&converted);
    assert_eq!(said[3], format!("{converted} {target}"));

    let index = bench.index(&target);
    let [listed] = soci_indexes(&index)[..] else {
        panic!("{index:?}")
    };
    let image = bench.manifest(&index.manifests[0].digest.to_string());
    assert_eq!(
        image.annotations["com.amazon.soci.index-digest"],
        listed.digest.to_string()
    );
    assert!(
        bench
            .ctr()
            .output(["leases", "ls", "-q"])
            .unwrap()
            .is_empty()
    );

    // The collector runs when the source goes. Every part must still be there, and work.
    bench.remove_image(&source);
    assert_eq!(bench.images(), [converted.as_str()]);
    let content = bench.content();
    let soci_index = bench.manifest(&listed.digest.to_string());
    for part in soci_index
        .layers
        .iter()
        .chain([&soci_index.config])
        .chain(&image.layers)
    {
        assert!(content.contains(&part.digest.to_string()), "{part:?}");
    }
    bench
        .ctr()
        .output(["images", "unpack", "--snapshotter", "overlayfs", &converted])
        .ok();
    let out = bench
        .ctr()
        .run_ok(&Run::new(&converted, "overlayfs"))
        .unwrap();
    assert_eq!(out, "lazily\n");

    bench.remove_image(&converted);
    assert_eq!(bench.images(), Vec::<String>::new());
    assert_eq!(bench.content(), Vec::<String>::new());
}

#[test]
fn create_and_push_put_an_index_beside_the_image_and_it_goes_with_the_image() {
    let bench = Bench::start();
    let source = bench.image();
    bench.ok(&[
        "create",
        "--all-platforms",
        "--span-size",
        "262144",
        "--min-layer-size",
        "100000",
        &source,
    ]);
    let listed = lines(&bench.ok(&["index", "list", "--quiet", "--ref", &source]));
    let [index] = &listed[..] else {
        panic!("{listed:?}")
    };
    let hosts = bench.root.dir("certs.d").unwrap();
    let said = bench.ok(&[
        "push",
        "--all-platforms",
        "--skip-verify",
        "--plain-http",
        "--hosts-dir",
        &format!("{},/nowhere/certs.d", hosts.display()),
        &source,
    ]);
    assert!(
        said.contains(&format!(
            "successfully pushed artifact with digest: {index}"
        )),
        "{said}"
    );
    // Again: what is there is not pushed again, and is said to be there.
    let again = bench.ok(&["push", "--plain-http", &source]);
    assert!(
        again.contains("[WARN]") && again.contains(index.as_str()),
        "{again}"
    );
    assert!(!again.contains("pushing artifact"), "{again}");
    assert_eq!(
        lines(&bench.ok(&["push", "-q", "--existing-index", "allow", &source])),
        [index.as_str()]
    );
    let skipped = bench.ok(&["push", "--existing-index", "skip", &source]);
    assert!(!skipped.contains("pushing soci index"), "{skipped}");

    // The index lives as long as the image.
    bench
        .ctr()
        .output(["content", "prune", "references"])
        .unwrap();
    assert!(bench.content().contains(index));
    bench.remove_image(&source);
    assert_eq!(bench.content(), Vec::<String>::new());
}

#[test]
fn layers_are_read_from_containerds_files_where_those_can_be_seen_and_else_over_its_api() {
    let bench = Bench::start();
    let reference = bench.image();
    let result = bench.registry.reference("app:soci");
    let arguments = [
        "convert",
        "--force",
        "--min-layer-size",
        "0",
        &reference,
        &result,
    ];
    bench.ok(&arguments);
    let index = bench.target(&result);

    // The same command where `$blobs`, containerd's files, are as the script makes them.
    let blobs = bench
        .containerd
        .root()
        .join("root/io.containerd.content.v1.content/blobs/sha256");
    let with = |script: &str| {
        let soci = bench.soci(&arguments);
        let script = format!("blobs=$1; shift; {script} && exec \"$@\"");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script, "sh"])
            .arg(&blobs);
        command.arg(soci.get_program()).args(soci.get_args());
        command.env("HOME", bench.root.path()).output().unwrap()
    };
    let hidden = with("mount -t tmpfs none \"$blobs\"");
    assert!(hidden.status.success(), "{hidden:?}");
    assert_eq!(bench.target(&result), index);

    // What is in a file is not believed.
    let manifest = bench.manifest(&bench.target(&reference));
    let layer = &manifest.layers[1];
    let file = blobs.join(layer.digest.hex());
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = bench.root.path().join("damaged");
    std::fs::write(&damaged, bytes).unwrap();
    let over = format!("mount --bind {} {}", damaged.display(), file.display());
    let refused = with(&over);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains(&layer.digest.to_string()), "{message}");
    assert_eq!(bench.target(&result), index);

    // A file of another length is as good as none.
    std::fs::write(&damaged, b"short").unwrap();
    let short = with(&over);
    assert!(short.status.success(), "{short:?}");
    assert_eq!(bench.target(&result), index);
}

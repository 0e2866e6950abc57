//! Lazy pulls of images whose registry is reached through containerd's `hosts.toml` only. Needs root,
//! FUSE, containerd, runc, docker-registry and the two programs.

use crate::support::{self, NAMESPACE, NO_BACKGROUND, lazy_mounts, run};
use soci_testkit::image::{small_image, small_image_data};
use soci_testkit::{SociDaemonOptions, Stack, StackOptions, TestRoot};

#[test]
fn the_daemon_reads_an_image_through_the_mirror_that_hosts_toml_names() {
    let root = TestRoot::new().unwrap();
    let layout = root.dir("layout").unwrap();
    small_image(&layout, "small").unwrap();
    let hosts = root.dir("certs.d").unwrap();
    let config = format!(
        "{NO_BACKGROUND}\n[resolver]\nconfig_path = '{}'\n",
        hosts.display()
    );
    let stack = Stack::start(StackOptions {
        daemon: SociDaemonOptions::with_config(&config),
        ..StackOptions::default()
    })
    .unwrap();
    support::indexed(&stack, &layout, "mirrored");

    // The registry itself does not exist. The file comes after the start of the daemon.
    let registry = root.dir("certs.d/registry.invalid").unwrap();
    let text = format!(
        "server = \"https://registry.invalid\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        stack.proxy.address()
    );
    std::fs::write(registry.join("hosts.toml"), text).unwrap();
    let reference = "registry.invalid/mirrored:soci";
    let soci = stack.soci(NAMESPACE).unwrap();
    let hosts = hosts.display().to_string();
    let said = soci
        .output(["pull", "--hosts-dir", &hosts, reference])
        .unwrap();
    assert!(lazy_mounts(&stack) > 0, "{said}");
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    let output = run(&stack, reference, &["/bin/sha256sum", "/data/noise"]);
    assert!(output.starts_with(&digest), "{output}");
    assert!(
        stack
            .daemon
            .log()
            .tail(1000)
            .contains("using containerd's registry configuration"),
        "the start says which configuration counts"
    );
}

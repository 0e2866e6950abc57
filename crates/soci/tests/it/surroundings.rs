//! `soci convert --standalone` in its surroundings: on a terminal, without root, in little memory.
//! Needs root (to switch to another user) and `script`, `setpriv` and `cp` of the base system.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use soci_testkit::TestRoot;
use soci_testkit::image::large_file_image;

const MIB: u64 = 1 << 20;
const SOCI: &str = env!("CARGO_BIN_EXE_soci");

fn layout(root: &TestRoot, name: &str, bytes: u64) -> String {
    let dir = root.dir(name).unwrap();
    large_file_image(&dir, name, bytes).unwrap();
    dir.display().to_string()
}

#[test]
fn on_a_terminal_each_layer_has_a_bar_and_the_last_word_is_the_result() {
    let root = TestRoot::new().unwrap();
    let from = layout(&root, "image", 8 * MIB);
    let to = root.path().join("indexed").display().to_string();
    let convert =
        format!("{SOCI} convert --standalone --min-layer-size 0 --format oci-dir {from} {to}");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &convert, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains('\u{1b}'), "nothing was drawn: {shown}");
    for digest in std::fs::read_dir(format!("{from}/blobs/sha256")).unwrap() {
        let digest = digest.unwrap();
        if digest.metadata().unwrap().len() > MIB {
            let short = &digest.file_name().into_string().unwrap()[..12];
            assert!(shown.contains(short), "no bar for {short}: {shown}");
        }
    }
    assert!(shown.contains(" -> ztoc sha256:"), "{shown}");
    assert!(!shown.contains("panicked"), "{shown}");
}

#[test]
fn an_image_is_converted_without_root() {
    let root = TestRoot::new().unwrap();
    let from = layout(&root, "image", 2 * MIB);
    let home = root.dir("home").unwrap();
    // Where the test's folder cannot be reached by others, a copy of the program can.
    let soci = home.join("soci");
    std::fs::copy(SOCI, &soci).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    let output = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
        ])
        .arg(&soci)
        .args([
            "convert",
            "--standalone",
            "--min-layer-size",
            "0",
            "--format",
            "oci-dir",
            &from,
        ])
        .arg(home.join("indexed"))
        .env("HOME", &home)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let result = std::fs::metadata(home.join("indexed/index.json")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&result), 65534);
}

#[test]
fn images_at_registries_are_looked_into_without_root() {
    let root = TestRoot::new().unwrap();
    let from = layout(&root, "image", 2 * MIB);
    let registry = soci_testkit::Registry::start().unwrap();
    registry
        .push_layout(Path::new(&from), "image", "app")
        .unwrap();
    let image = registry.reference("app:image");
    let home = root.dir("home").unwrap();
    let soci = home.join("soci");
    std::fs::copy(SOCI, &soci).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    let unprivileged = |arguments: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg("--inh-caps=-all")
            .arg(&soci)
            .args(arguments)
            .env("HOME", &home)
            .output()
            .unwrap()
    };
    let (at, busybox) = (format!("docker://{image}"), format!("{image}:/bin/busybox"));
    for arguments in [
        vec!["create", "--min-layer-size", "0", &at],
        vec!["ls", "-R", &image],
        vec!["cat", &busybox],
        vec!["check", &image],
    ] {
        let output = unprivileged(&arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    let refused = unprivileged(&["mount", &image, "/tmp"]);
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && reason.contains("needs root"),
        "{reason}"
    );
}

/// The most memory that a conversion had resident, in bytes.
fn peak_of_converting(from: &str, to: &Path) -> u64 {
    let mut convert = Command::new(SOCI)
        .args(["convert", "--standalone", "--format", "oci-dir", from])
        .arg(to)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", convert.id());
    let mut peak = 0;
    loop {
        let ended = convert.try_wait().unwrap();
        // The peak never falls, so that the last look is the one that counts.
        let now = std::fs::read_to_string(&status).unwrap_or_default();
        let line = now.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kib) = line.and_then(|text| text.trim().strip_suffix(" kB")) {
            peak = peak.max(kib.parse::<u64>().unwrap() << 10);
        }
        if let Some(ended) = ended {
            assert!(ended.success(), "{ended}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_memory_of_a_conversion_does_not_grow_with_the_layer() {
    let root = TestRoot::new().unwrap();
    let small = layout(&root, "small", 32 * MIB);
    let large = layout(&root, "large", 384 * MIB);
    let small = peak_of_converting(&small, &root.path().join("a"));
    let large = peak_of_converting(&large, &root.path().join("b"));
    assert!(small > MIB, "{small}");
    // Checkpoints grow with the layer: 32 KiB for each span of 4 MiB, some copies at the end.
    assert!(
        large < small + 32 * MIB,
        "{small} bytes for 32 MiB, {large} for 384 MiB"
    );
}

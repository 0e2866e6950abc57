//! Damaged or impossible input is a clear error, and leaves nothing at the destination.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::images::{archive, dir_to_dir, every_layer, golden, manifest, names, run, top};
use soci_index::{ArchiveSink, DirSink, IndexError, LayoutSource};
use soci_oci::Descriptor;

/// A copy of the golden image `kinds` that may be damaged, and its lowest layer.
fn copy(dir: &Path) -> (PathBuf, Descriptor) {
    let source = golden("kinds").join("image");
    let layout = dir.join("image");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    for name in ["index.json", "oci-layout"] {
        fs::copy(source.join(name), layout.join(name)).unwrap();
    }
    for name in names(&source.join("blobs/sha256")) {
        let blob = Path::new("blobs/sha256").join(name);
        fs::copy(source.join(&blob), layout.join(&blob)).unwrap();
    }
    let layer = manifest(&layout, top(&layout).digest).layers[0].clone();
    (layout, layer)
}

fn path(layout: &Path, blob: &Descriptor) -> PathBuf {
    layout.join("blobs/sha256").join(blob.digest.hex())
}

/// Converts to a directory and to an archive; both must fail alike and leave nothing.
fn failure(layout: &Path) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = dir_to_dir(layout, &dir.path().join("out"), &every_layer()).unwrap_err();
    let sink = Box::new(ArchiveSink::create(&dir.path().join("out.tar")).unwrap());
    let source = Arc::new(LayoutSource::open(layout).unwrap());
    let of_archive = run(source, sink, &every_layer()).unwrap_err();
    assert_eq!(error.to_string(), of_archive.to_string());
    assert_eq!(names(dir.path()), Vec::<String>::new());
    error.to_string()
}

#[test]
fn a_truncated_layer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, layer) = copy(dir.path());
    let bytes = fs::read(path(&layout, &layer)).unwrap();
    fs::write(path(&layout, &layer), &bytes[..bytes.len() / 2]).unwrap();
    let error = failure(&layout);
    assert!(
        error.contains(&layer.digest.to_string()) && error.contains("truncated"),
        "{error}"
    );
}

#[test]
fn a_layer_with_a_wrong_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, layer) = copy(dir.path());
    let mut bytes = fs::read(path(&layout, &layer)).unwrap();
    let last = bytes.len() - 1;
    for at in [20, last / 2, last] {
        bytes[at] ^= 0x40;
        fs::write(path(&layout, &layer), &bytes).unwrap();
        bytes[at] ^= 0x40;
        let error = failure(&layout);
        assert!(
            error.contains(&layer.digest.to_string()),
            "byte {at}: {error}"
        );
    }
}

#[test]
fn a_damaged_layer_that_gets_no_ztoc_is_refused_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, layer) = copy(dir.path());
    let upper = manifest(&layout, top(&layout).digest).layers[1].clone();
    let mut bytes = fs::read(path(&layout, &upper)).unwrap();
    bytes[100] ^= 1;
    fs::write(path(&layout, &upper), bytes).unwrap();
    let options = soci_index::ConvertOptions {
        min_layer_size: layer.size,
        ..every_layer()
    };
    let out = dir.path().join("out");
    let error = dir_to_dir(&layout, &out, &options).unwrap_err();
    assert!(matches!(error, IndexError::Digest { .. }), "{error}");
    assert!(!out.exists());
}

#[test]
fn a_missing_layer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, layer) = copy(dir.path());
    fs::remove_file(path(&layout, &layer)).unwrap();
    let error = failure(&layout);
    assert!(
        error.contains(&format!("no blob {}", layer.digest)),
        "{error}"
    );
}

#[test]
fn a_damaged_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, _) = copy(dir.path());
    let image = top(&layout);
    let mut bytes = fs::read(path(&layout, &image)).unwrap();
    bytes[5] ^= 1;
    fs::write(path(&layout, &image), bytes).unwrap();
    let error = failure(&layout);
    assert!(
        error.contains(&image.digest.to_string()) && error.contains("damaged"),
        "{error}"
    );
}

#[test]
fn a_folder_that_is_not_a_layout_is_distinguished() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = LayoutSource::open(&empty).unwrap_err().to_string();
    assert!(error.contains("no index.json"), "{error}");
    fs::write(empty.join("manifest.json"), "[]").unwrap();
    let error = LayoutSource::open(&empty).unwrap_err().to_string();
    assert!(error.contains("docker save"), "{error}");

    let text = dir.path().join("text");
    fs::write(
        &text,
        "hello, this is not a tar archive at all\n".repeat(100),
    )
    .unwrap();
    let error = archive(&text).err().unwrap().to_string();
    assert!(error.contains("not an OCI image layout"), "{error}");
    for (magic, name) in [
        (&[0x1f, 0x8b, 8, 0][..], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    ] {
        fs::write(&text, magic).unwrap();
        let error = archive(&text).err().unwrap().to_string();
        assert!(
            error.contains(name) && error.contains("decompress"),
            "{error}"
        );
    }
}

#[test]
fn an_archive_cut_anywhere_is_refused_and_never_half_converted() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.tar");
    let source = Arc::new(LayoutSource::open(&golden("kinds").join("image")).unwrap());
    run(
        source,
        Box::new(ArchiveSink::create(&whole).unwrap()),
        &every_layer(),
    )
    .unwrap();
    let bytes = fs::read(&whole).unwrap();
    let cut = dir.path().join("cut.tar");
    for length in [0, 1, 511, 600, 3000, bytes.len() / 2, bytes.len() - 1600] {
        fs::write(&cut, &bytes[..length]).unwrap();
        let error = archive(&cut)
            .err()
            .unwrap_or_else(|| panic!("{length} bytes were taken"));
        assert!(
            matches!(error, IndexError::NotALayout { .. }),
            "{length}: {error}"
        );
    }
}

#[test]
fn a_destination_in_use_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let used = dir.path().join("used");
    fs::create_dir(&used).unwrap();
    fs::write(used.join("precious"), "1").unwrap();
    let error = DirSink::create(&used).unwrap_err();
    assert!(matches!(error, IndexError::DestinationNotEmpty { .. }));
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(names(&used), ["precious"]);
    assert!(
        ArchiveSink::create(&used)
            .unwrap_err()
            .to_string()
            .contains("is a directory")
    );
    let error = DirSink::create(&used.join("precious"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("not a directory"), "{error}");
    let error = ArchiveSink::create(Path::new("/dev/null"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn a_failed_conversion_leaves_the_archive_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, layer) = copy(dir.path());
    fs::write(path(&layout, &layer), b"short").unwrap();
    let out = dir.path().join("out.tar");
    fs::write(&out, "what was there").unwrap();
    let source = Arc::new(LayoutSource::open(&layout).unwrap());
    let sink = Box::new(ArchiveSink::create(&out).unwrap());
    run(source, sink, &every_layer()).unwrap_err();
    assert_eq!(fs::read(&out).unwrap(), b"what was there");
    assert_eq!(names(dir.path()), ["image", "out.tar"]);
}

/// Needs root: root may write everywhere but below /proc.
#[test]
fn a_destination_that_cannot_be_written_is_named() {
    let error = DirSink::create(Path::new("/proc/soci-test/out"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/proc/soci-test"), "{error}");
}

#[test]
fn what_is_written_has_the_permissions_of_ordinary_files() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    dir_to_dir(&golden("kinds").join("image"), &out, &every_layer()).unwrap();
    let tar = dir.path().join("out.tar");
    let source = Arc::new(LayoutSource::open(&golden("kinds").join("image")).unwrap());
    run(
        source,
        Box::new(ArchiveSink::create(&tar).unwrap()),
        &every_layer(),
    )
    .unwrap();
    let probe = dir.path().join("probe");
    fs::create_dir(&probe).unwrap();
    fs::write(probe.join("file"), "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&out), mode(&probe));
    assert_eq!(mode(&tar), mode(&probe.join("file")));
    assert_eq!(mode(&out.join("index.json")), mode(&probe.join("file")));
}

#[test]
fn senseless_options_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = soci_index::ConvertOptions {
        span_size: u64::MAX,
        ..every_layer()
    };
    let error = dir_to_dir(
        &golden("kinds").join("image"),
        &dir.path().join("out"),
        &options,
    );
    assert!(error.unwrap_err().to_string().contains("span size"));
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

//! Promises of the OCI layout.

use super::*;

fn layout() -> (tempfile::TempDir, OciLayout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = OciLayout::open(&dir.path().join("layout")).unwrap();
    (dir, layout)
}

fn files(layout: &OciLayout) -> usize {
    fs::read_dir(layout.blobs()).unwrap().count()
}

#[test]
fn a_private_layout_is_read_by_its_owner_only_also_if_it_was_open() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("content");
    OciLayout::open(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    OciLayout::open_private(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn a_blob_is_stored_once_and_comes_back() {
    let (_dir, layout) = layout();
    let descriptor = Descriptor::of("text/plain", b"hello");
    assert_eq!(
        layout.put(&descriptor, b"hello").unwrap(),
        PutOutcome::Written
    );
    assert_eq!(
        layout.put(&descriptor, b"hello").unwrap(),
        PutOutcome::Exists
    );
    assert_eq!(layout.get(&descriptor.digest).unwrap(), "hello");
    assert_eq!(layout.list().unwrap(), [descriptor.digest]);
    assert!(layout.delete(&descriptor.digest).unwrap());
    assert!(!layout.delete(&descriptor.digest).unwrap());
    assert!(layout.get(&descriptor.digest).unwrap_err().is_not_found());
}

#[test]
fn what_does_not_match_its_descriptor_leaves_nothing() {
    let (_dir, layout) = layout();
    let descriptor = Descriptor::of("text/plain", b"hello");
    let error = layout.put(&descriptor, b"hallo").unwrap_err();
    assert!(
        matches!(error, StoreError::DigestMismatch { .. }),
        "{error}"
    );
    for wrong in [&b"hell"[..], b"hello!", b""] {
        let error = layout.put(&descriptor, wrong).unwrap_err();
        assert!(matches!(error, StoreError::SizeMismatch { .. }), "{error}");
    }
    let mut endless = layout
        .put_reader(&descriptor, io::repeat(b'x'))
        .unwrap_err();
    assert!(
        matches!(&mut endless, StoreError::SizeMismatch { .. }),
        "{endless}"
    );
    let mut dropped = layout.writer(&descriptor).unwrap();
    dropped.append(b"he").unwrap();
    drop(dropped);
    assert_eq!(files(&layout), 0);
}

#[test]
fn a_damaged_blob_is_removed_and_never_served() {
    let (_dir, layout) = layout();
    let descriptor = Descriptor::of("text/plain", b"hello");
    layout.put(&descriptor, b"hello").unwrap();
    fs::write(layout.path(&descriptor.digest), b"hellO").unwrap();
    let error = layout.get(&descriptor.digest).unwrap_err();
    assert!(
        matches!(error, StoreError::DigestMismatch { .. }),
        "{error}"
    );
    assert!(!layout.contains(&descriptor.digest));
    layout.put(&descriptor, b"hello").unwrap();
    assert_eq!(layout.get(&descriptor.digest).unwrap(), "hello");
}

#[test]
fn layouts_of_other_programs_open_and_other_folders_are_refused() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/kinds/image");
    let layout = OciLayout::open_existing(&golden).unwrap();
    let blobs = layout.list().unwrap();
    assert!(!blobs.is_empty());
    for blob in blobs {
        let size = layout.get(&blob).unwrap().len() as u64;
        assert_eq!(layout.size(&blob), Some(size));
    }
    let dir = tempfile::tempdir().unwrap();
    let error = OciLayout::open_existing(dir.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("oci-layout") && error.contains("missing"),
        "{error}"
    );
    fs::write(
        dir.path().join("oci-layout"),
        br#"{"imageLayoutVersion":"2.0.0"}"#,
    )
    .unwrap();
    let error = OciLayout::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("2.0.0"), "{error}");
}

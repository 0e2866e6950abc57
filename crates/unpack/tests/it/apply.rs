//! A tar becomes what containerd makes of it. Needs root.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use soci_layer::LowerLayer;
use soci_layer::OverlayXattr;
use soci_oci::{Digest, Index, Manifest};
use soci_testkit::listing::{self, Listing};
use soci_testkit::{Layer, TestRoot};
use soci_unpack::{ApplyError, ApplyOptions, LowerDirectory, apply, decompress};

fn golden_layer(number: usize) -> Vec<u8> {
    let image = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/kinds/image");
    let blob = |digest: Digest| fs::read(image.join("blobs/sha256").join(digest.hex())).unwrap();
    let index: Index =
        serde_json::from_slice(&fs::read(image.join("index.json")).unwrap()).unwrap();
    let manifest: Manifest = serde_json::from_slice(&blob(index.manifests[0].digest)).unwrap();
    blob(manifest.layers[number - 1].digest)
}

fn tar(layer: &Layer) -> Vec<u8> {
    let mut tar = Vec::new();
    layer.write_tar(&mut tar).unwrap();
    tar
}

fn apply_to(root: &Path, tar: &[u8], options: &ApplyOptions) -> Result<Digest, ApplyError> {
    apply(tar, root, options, &|| false)
}

/// Unpacks a layer into a folder of its own.
fn unpacked(layer: &Layer) -> (TestRoot, PathBuf) {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    apply_to(&folder, &tar(layer), &ApplyOptions::default()).unwrap();
    (root, folder)
}

/// Whiteouts have the time of the unpacking here, and 1970 in a lazy layer.
fn without_new_times(mut listing: Listing, golden: &Listing) -> Listing {
    for (path, file) in &mut listing {
        let known: Vec<&str> = golden[path].line.split('|').collect();
        if known[4] == "-" && known[0] != "d" {
            let mut columns: Vec<&str> = file.line.split('|').collect();
            columns[4] = "0.0000000000";
            file.line = columns.join("|");
        }
    }
    listing
}

#[test]
fn golden_layers_are_unpacked_as_by_containerd() {
    for number in [1, 2] {
        let root = TestRoot::new().unwrap();
        let folder = root.dir("fs").unwrap();
        let blob = golden_layer(number);
        let mut tar = Vec::new();
        decompress(&blob[..])
            .unwrap()
            .read_to_end(&mut tar)
            .unwrap();
        let diff_id = apply_to(&folder, &tar, &ApplyOptions::default()).unwrap();
        assert_eq!(diff_id, Digest::of(&tar));
        let golden = listing::golden(number);
        let seen = without_new_times(listing::of(&folder), &golden);
        listing::assert_same(&seen, &golden);
        if number == 1 {
            let stat = |name: &str| folder.join(name).symlink_metadata().unwrap();
            assert_eq!(stat("data/a").ino(), stat("data/hard2").ino());
            assert_eq!(rustix::fs::minor(stat("dev/null").rdev()), 3);
            assert!(stat("dev/fifo").file_type().is_fifo());
        }
    }
}

/// What an entry that is applied through a link would change of a file.
fn state_of(file: &Path) -> String {
    let stat = fs::metadata(file).unwrap();
    let xattr = rustix::fs::getxattr(file, "security.x", &mut [0_u8; 64][..]);
    format!(
        "{:?} mode {:o} owner {}:{} links {} modified {:?} xattr {xattr:?}",
        fs::read_to_string(file).unwrap(),
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.nlink(),
        stat.modified().unwrap(),
    )
}

#[test]
fn no_entry_leads_out_of_the_directory() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let outside = root.dir("outside").unwrap();
    for name in ["kept", "linked"] {
        fs::write(outside.join(name), name).unwrap();
    }
    let target = outside.to_str().unwrap();
    let layer = Layer::new()
        .symlink("absolute", target)
        .text("absolute/one", "1")
        .symlink("relative", "../../../../../../../../../outside")
        .text("relative/two", "2")
        .dir("sub")
        .symlink("sub/up", "../../..")
        .text("sub/up/three", "3")
        .symlink("file", &format!("{target}/kept"))
        .text("file", "replaced")
        .symlink("loose", &format!("{target}/kept"))
        .mode(0o600)
        .owner(5, 6)
        .xattr("trusted.x", b"dropped")
        .xattr("security.x", b"of the link")
        .symlink("to-linked", &format!("{target}/linked"))
        .hardlink("hard", "to-linked");
    let mut tar = tar(&layer);
    // Names that the builder refuses to write.
    tar.truncate(tar.len() - 1024);
    for name in ["../escaped", "/../../also"] {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(0);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
    }
    tar.extend_from_slice(&[0; 1024]);
    let state = || ["kept", "linked"].map(|name| state_of(&outside.join(name)));
    let before = state();
    apply_to(&folder, &tar, &ApplyOptions::default()).unwrap();

    assert_eq!(fs::read_dir(&outside).unwrap().count(), 2);
    assert_eq!(state(), before);
    assert!(!root.path().join("escaped").exists());
    assert!(!root.path().join("also").exists());
    let inside = |path: &str| fs::read_to_string(folder.join(path)).unwrap();
    assert_eq!(
        inside(&format!("{}/one", target.trim_start_matches('/'))),
        "1"
    );
    assert_eq!(inside("outside/two"), "2");
    assert_eq!(inside("three"), "3");
    assert_eq!(inside("file"), "replaced");
    assert!(folder.join("escaped").exists() && folder.join("also").exists());
    let hard = fs::symlink_metadata(folder.join("hard")).unwrap();
    assert!(hard.is_symlink());
    let loose = folder.join("loose");
    let own = rustix::fs::lgetxattr(loose.as_path(), "security.x", &mut [0_u8; 64][..]);
    assert_eq!(own, Ok(11));
    let dropped = rustix::fs::lgetxattr(loose.as_path(), "trusted.x", &mut [0_u8; 64][..]);
    assert_eq!(dropped, Err(rustix::io::Errno::NODATA));
}

#[test]
fn hard_links_to_what_is_not_in_the_layer_are_refused() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    fs::write(root.path().join("secret"), "s").unwrap();
    let secret = root.path().join("secret");
    for target in ["../secret", secret.to_str().unwrap(), "nothing"] {
        let tar = tar(&Layer::new().hardlink("link", target));
        let error = apply_to(&folder, &tar, &ApplyOptions::default()).unwrap_err();
        assert!(matches!(error, ApplyError::LinkTarget { .. }), "{error}");
    }
    let cycle = Layer::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .text("a/file", "");
    let error = apply_to(&folder, &tar(&cycle), &ApplyOptions::default()).unwrap_err();
    assert!(matches!(error, ApplyError::TooManyLinks { .. }), "{error}");
    let below = Layer::new().text("f", "").text("f/below", "");
    let error = apply_to(&folder, &tar(&below), &ApplyOptions::default()).unwrap_err();
    assert!(matches!(error, ApplyError::NotADirectory { .. }), "{error}");
}

#[test]
fn the_last_of_several_entries_wins_also_when_the_type_changes() {
    let layer = Layer::new()
        .dir("a")
        .text("a/below", "gone")
        .text("a", "file now")
        .text("b", "file")
        .dir("b")
        .mode(0o700)
        .text("b/below", "here")
        .symlink("c", "a")
        .dir("c")
        .text("c/below", "here")
        .dir("b")
        .mode(0o750)
        .owner(7, 8);
    let (_root, folder) = unpacked(&layer);
    assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "file now");
    assert_eq!(fs::read_to_string(folder.join("b/below")).unwrap(), "here");
    assert_eq!(fs::read_to_string(folder.join("c/below")).unwrap(), "here");
    let b = fs::metadata(folder.join("b")).unwrap();
    assert_eq!((b.mode() & 0o7777, b.uid(), b.gid()), (0o750, 7, 8));
    // Its time is that of the entry although a file was made in it later.
    assert_eq!(b.mtime(), 1_704_067_200);
}

#[test]
fn a_whiteout_is_hidden_by_a_file_of_its_name_before_or_after_it() {
    let layer = Layer::new()
        .text("before", "")
        .whiteout("before")
        .whiteout("after")
        .text("after", "")
        .whiteout("implied")
        .text("implied/file", "")
        .dir("replaced")
        .whiteout("replaced/x")
        .text("replaced", "")
        .whiteout("only")
        .text(".wh..wh.plnk/1.2", "linked")
        .hardlink("link", ".wh..wh.plnk/1.2");
    let (_root, folder) = unpacked(&layer);
    let kind = |name: &str| fs::symlink_metadata(folder.join(name)).unwrap().file_type();
    assert!(kind("before").is_file() && kind("after").is_file() && kind("replaced").is_file());
    assert!(kind("implied").is_dir());
    assert!(kind("only").is_char_device());
    assert_eq!(fs::symlink_metadata(folder.join("only")).unwrap().rdev(), 0);
    assert_eq!(fs::read_to_string(folder.join("link")).unwrap(), "linked");
    assert!(
        listing::of(&folder)
            .keys()
            .all(|path| !path.contains(".wh."))
    );
}

#[test]
fn implied_parents_look_as_in_the_layers_below() {
    let root = TestRoot::new().unwrap();
    let [first, second, top] = ["first", "second", "top"].map(|name| root.dir(name).unwrap());
    let described = Layer::new()
        .dir("srv")
        .mode(0o2770)
        .owner(11, 12)
        .xattr("user.note", b"n")
        .dir("usr/lib")
        .mode(0o700)
        .symlink("lib", "usr/lib")
        .dir("file")
        .mode(0o711)
        .dir("srv/deep")
        .mode(0o1777);
    apply_to(&first, &tar(&described), &ApplyOptions::default()).unwrap();
    let above = Layer::new().text("file", "a file now");
    apply_to(&second, &tar(&above), &ApplyOptions::default()).unwrap();
    let options = ApplyOptions {
        lower: vec![
            Box::new(LowerDirectory(second)),
            Box::new(LowerDirectory(first)),
        ],
        ..ApplyOptions::default()
    };
    let layer = Layer::new()
        .text("srv/deep/new", "")
        .text("lib/new", "")
        .text("file/new", "")
        .text("elsewhere/new", "");
    apply_to(&top, &tar(&layer), &options).unwrap();
    let stat = |name: &str| {
        let stat = fs::symlink_metadata(top.join(name)).unwrap();
        (stat.mode() & 0o7777, stat.uid(), stat.gid())
    };
    assert_eq!(stat("srv"), (0o2770, 11, 12));
    assert_eq!(stat("srv/deep"), (0o1777, 0, 0));
    // `lib` is no link in this layer: it becomes the directory that the link below leads to.
    assert_eq!(stat("lib"), (0o700, 0, 0));
    assert_eq!(stat("file"), (0o755, 0, 0));
    assert_eq!(stat("elsewhere"), (0o755, 0, 0));
    assert_eq!(listing::of(&top)["./srv"].xattrs["user.note"], b"n");
}

#[test]
fn under_userxattr_the_opaque_mark_is_the_users_and_cannot_be_forged() {
    let layer = Layer::new()
        .dir("opaque")
        .opaque("opaque")
        .dir("forged")
        .xattr("user.overlay.opaque", b"y")
        .xattr("user.other", b"o");
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let options = ApplyOptions {
        overlay_xattr: OverlayXattr::User,
        ..ApplyOptions::default()
    };
    apply_to(&folder, &tar(&layer), &options).unwrap();
    let listing = listing::of(&folder);
    let names = |path: &str| listing[path].xattrs.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names("./opaque"), ["user.overlay.opaque"]);
    assert_eq!(names("./forged"), ["user.other"]);
}

#[test]
fn a_damaged_or_cancelled_tar_is_an_error() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let tar = tar(&Layer::new().text("a", "content"));
    let cut = apply_to(&folder, &tar[..514], &ApplyOptions::default()).unwrap_err();
    assert!(matches!(cut, ApplyError::Tar(_)), "{cut}");
    let cancelled = apply(&tar[..], &folder, &ApplyOptions::default(), &|| true).unwrap_err();
    assert!(matches!(cancelled, ApplyError::Cancelled), "{cancelled}");
}

/// The layers of a real image that tar(1) and build tools make: the upper ones have no entries for the
/// directories that hold their files.
fn implying_layers() -> Vec<Layer> {
    let note: (&str, &[u8]) = ("user.note", b"from-below");
    let base = Layer::new()
        .dir("tmp")
        .mode(0o1777)
        .dir("home")
        .mode(0o750)
        .owner(7, 8)
        .dir("home/app")
        .mode(0o700)
        .owner(65532, 65532)
        .dir("home/app/.cache")
        .mode(0o2770)
        .owner(65532, 10)
        .dir("srv")
        .mode(0o3771)
        .owner(33, 34)
        .xattr(note.0, note.1)
        .dir("srv/deep")
        .mode(0o711)
        .owner(35, 36)
        .xattr(note.0, note.1)
        .dir("opq")
        .mode(0o701)
        .owner(41, 42)
        .dir("opq/in")
        .mode(0o702)
        .owner(43, 44)
        .text("opq/in/old", "")
        .dir("gone")
        .mode(0o703)
        .owner(45, 46)
        .text("gone/old", "")
        .dir("once")
        .mode(0o704)
        .owner(47, 48)
        .text("filethendir", "");
    let implied = [
        "tmp/one",
        "home/app/bin/tool",
        "home/app/.cache/x",
        "srv/deep/new/file",
        "once/a",
        "brandnew/a/b/c",
    ];
    let above = [
        "gone/new",
        "opq/in/new",
        "tmp/two",
        "once/b",
        "filethendir/x",
        "brandnew/a/b/d",
    ];
    let files = |names: &[&str]| {
        names
            .iter()
            .fold(Layer::new(), |layer, name| layer.text(name, ""))
    };
    let hides = Layer::new()
        .whiteout("gone")
        .dir("opq")
        .mode(0o706)
        .owner(51, 52)
        .opaque("opq")
        .whiteout("filethendir");
    let real = Layer::new()
        .dir("once")
        .mode(0o715)
        .owner(53, 54)
        .text("srv/deep/new/file2", "")
        .dir("brandnew")
        .mode(0o707)
        .owner(55, 56)
        .text("brandnew/a/e", "");
    vec![base, files(&implied), hides, files(&above), real]
}

#[test]
fn directories_that_layers_imply_look_as_under_containerd() {
    let root = TestRoot::new().unwrap();
    let mut folders: Vec<PathBuf> = Vec::new();
    for (number, layer) in implying_layers().iter().enumerate() {
        let folder = root.dir(&format!("layer-{number}")).unwrap();
        let lower = folders
            .iter()
            .map(|folder| -> Box<dyn LowerLayer> { Box::new(LowerDirectory(folder.clone())) });
        let options = ApplyOptions {
            lower: lower.collect(),
            ..ApplyOptions::default()
        };
        apply_to(&folder, &tar(layer), &options).unwrap();
        folders.insert(0, folder);
    }
    let lower: Vec<_> = folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    let options = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
    let merged = root.dir("merged").unwrap();
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount(
        "overlay",
        &merged,
        "overlay",
        flags,
        Some(options.as_c_str()),
    )
    .unwrap();
    let seen = std::panic::catch_unwind(|| listing::of(&merged));
    let attributes = |name: &str| {
        let stat = fs::symlink_metadata(merged.join(name)).unwrap();
        (stat.mode() & 0o7777, stat.uid(), stat.gid())
    };
    // As containerd 2.2.7 with overlayfs shows it.
    let expected = [
        ("", (0o755, 0, 0)),
        ("tmp", (0o1777, 0, 0)),
        ("home", (0o750, 7, 8)),
        ("home/app", (0o700, 65532, 65532)),
        ("home/app/.cache", (0o2770, 65532, 10)),
        ("home/app/bin", (0o755, 0, 0)),
        ("srv", (0o3771, 33, 34)),
        ("srv/deep", (0o711, 35, 36)),
        ("srv/deep/new", (0o755, 0, 0)),
        ("opq", (0o706, 51, 52)),
        ("opq/in", (0o702, 43, 44)),
        ("gone", (0o755, 0, 0)),
        ("once", (0o715, 53, 54)),
        ("filethendir", (0o755, 0, 0)),
        ("brandnew", (0o707, 55, 56)),
        ("brandnew/a", (0o755, 0, 0)),
        ("brandnew/a/b", (0o755, 0, 0)),
    ];
    let found = std::panic::catch_unwind(|| expected.map(|(name, _)| (name, attributes(name))));
    let _ = rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH);
    assert_eq!(found.unwrap(), expected);
    let seen = seen.unwrap();
    for name in ["./srv", "./srv/deep"] {
        assert_eq!(seen[name].xattrs["user.note"], b"from-below", "{name}");
    }
}

#[test]
fn an_entry_for_the_root_changes_nothing() {
    use crate::hostile::{file, folder, list};
    for name in ["./", ".", "/", "a/.."] {
        let root = TestRoot::new().unwrap();
        let top = root.dir("fs").unwrap();
        let before = fs::metadata(&top).unwrap();
        let mut tar = list(vec![folder(name), file("./app/f")]);
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes).unwrap();
        // Mode 0700 of 1000:1000 in 2020, as of a folder that was packed with `tar -C FOLDER -cf - .`.
        apply_to(&top, &bytes, &ApplyOptions::default()).unwrap();
        let after = fs::metadata(&top).unwrap();
        assert_eq!(
            (after.mode(), after.uid(), after.gid()),
            (before.mode(), before.uid(), before.gid()),
            "{name}"
        );
        assert!(after.mtime() >= before.mtime(), "{name}");
        assert!(top.join("app/f").is_file(), "{name}");
    }
}

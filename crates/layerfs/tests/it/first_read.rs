//! The first read of a file compares its tar header with its entry in the zTOC.

use std::sync::Arc;

use soci_fetch::testing::{Answer, MemoryLayer};
use soci_fuse::Errno;
use soci_layerfs::{LayerMountOptions, Tree, TreeOptions};
use soci_ztoc::{FileMetadata, FileType, Ztoc};

use crate::support::direct::Direct;
use crate::support::{Layer, Mount, entry, tree_of, ztoc_of};

fn direct(ztoc: &Ztoc, tar: &[u8]) -> (Direct, MemoryLayer, Arc<Tree>) {
    let tree = Arc::new(tree_of(ztoc, TreeOptions::default()).unwrap());
    let data = MemoryLayer::new(tar.to_vec());
    let client = Direct::new(tree.clone(), Arc::new(data.clone()));
    (client, data, tree)
}

/// A layer with GNU long names and PAX records.
fn long_names() -> Vec<u8> {
    let long = format!("{}/program", "folder".repeat(40));
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("SCHILY.xattr.user.note", &b"hello"[..])])
        .unwrap();
    for (name, content) in [(long.as_str(), &b"long"[..]), ("short", b"content")] {
        let mut header = entry(tar::EntryType::Regular, 0o755);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A file whose header is too long to be read together with its content.
fn long_header() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let comment = vec![b'c'; 100 << 10];
    builder
        .append_pax_extensions([("comment", &comment[..])])
        .unwrap();
    let mut header = entry(tar::EntryType::Regular, 0o644);
    header.set_size(7);
    builder
        .append_data(&mut header, "file", &b"content"[..])
        .unwrap();
    builder.into_inner().unwrap()
}

fn files(ztoc: &Ztoc) -> Vec<(usize, String)> {
    let files = ztoc.toc.iter().enumerate();
    files
        .filter(|(_, entry)| entry.file_type == FileType::Reg && entry.uncompressed_size > 0)
        .map(|(at, entry)| (at, String::from_utf8(entry.name.clone()).unwrap()))
        .collect()
}

#[test]
fn genuine_files_are_read_however_their_headers_are_written() {
    let plain = Layer::new()
        .dir("d", 0o755)
        .file("./d/one", b"1")
        .file("/d/../two", b"22");
    for tar in [long_names(), long_header(), plain.tar()] {
        let ztoc = ztoc_of(&tar);
        for answer in [Answer::Stored, Answer::Fetched, Answer::FetchedElsewhere] {
            let (client, data, tree) = direct(&ztoc, &tar);
            data.script(answer);
            for (at, name) in files(&ztoc) {
                let file = tree.resolve(name.as_bytes(), false).unwrap();
                let size = ztoc.toc[at].uncompressed_size;
                // First in the middle: the header is not beside it.
                assert!(
                    client.read(file, size - 1, 10).unwrap().len() == 1,
                    "{name}"
                );
                let whole = client.read(file, 0, 100).unwrap();
                assert_eq!(whole.len() as u64, size, "{name}");
            }
            assert_eq!(client.fs.counters().snapshot().read_failures, 0);
        }
    }
}

type Forgery = (&'static str, fn(&mut FileMetadata));

const FORGERIES: [Forgery; 9] = [
    ("setuid", |entry| entry.mode |= 0o4000),
    ("uid", |entry| entry.uid += 1),
    ("gid", |entry| entry.gid += 1),
    ("name", |entry| entry.name = b"su".to_vec()),
    ("size", |entry| entry.uncompressed_size -= 1),
    ("time", |entry| {
        entry.mod_time = "2031-01-01T00:00:00Z".to_owned();
    }),
    ("offset", |entry| entry.uncompressed_offset += 2),
    ("device", |entry| entry.devmajor += 1),
    ("xattrs", |entry| {
        let capability = (b"SCHILY.xattr.security.capability".to_vec(), vec![1; 20]);
        entry.xattrs.push(capability);
    }),
];

#[test]
fn a_forged_entry_is_eio_and_counted_and_no_content_is_shown() {
    let tar = Layer::new()
        .file("first", b"genuine content")
        .file("second", b"genuine content")
        .tar();
    for (what, forge) in FORGERIES {
        for answer in [Answer::Stored, Answer::Fetched, Answer::FetchedElsewhere] {
            let mut ztoc = ztoc_of(&tar);
            forge(&mut ztoc.toc[1]);
            let (client, data, tree) = direct(&ztoc, &tar);
            data.script(answer);
            let name = ztoc.toc[1].name.clone();
            let file = tree.find(&name).unwrap();
            for _ in 0..2 {
                let read = client.read(file, 0, 100);
                assert_eq!(read.err(), Some(Errno::IO.raw_os_error()), "{what}");
            }
            let counters = client.fs.counters().snapshot();
            assert_eq!(
                (counters.read_failures, counters.bytes_served),
                (2, 0),
                "{what}"
            );
            // The other file is as genuine as before.
            let first = tree.find(b"first").unwrap();
            assert_eq!(client.read(first, 0, 100).unwrap(), b"genuine content");
        }
    }
}

#[test]
fn a_header_that_is_read_apart_from_its_content_is_checked_too() {
    let tar = long_header();
    let mut ztoc = ztoc_of(&tar);
    ztoc.toc[0].mode |= 0o4000;
    for answer in [Answer::Stored, Answer::Fetched, Answer::FetchedElsewhere] {
        let (client, data, tree) = direct(&ztoc, &tar);
        data.script(answer);
        let file = tree.find(b"file").unwrap();
        assert!(client.read(file, 0, 7).is_err());
        assert!(client.read(file, 3, 1).is_err());
    }
}

/// The places of two files are swapped: each of the files is genuine.
#[test]
fn swapped_files_are_not_shown() {
    let tar = Layer::new()
        .file("passwd", b"root:x:0:0")
        .file("shadow", b"root:$6$ab")
        .tar();
    let mut ztoc = ztoc_of(&tar);
    let names = (ztoc.toc[0].name.clone(), ztoc.toc[1].name.clone());
    (ztoc.toc[0].name, ztoc.toc[1].name) = (names.1, names.0);
    let (client, _, tree) = direct(&ztoc, &tar);
    for name in [b"passwd", b"shadow"] {
        let file = tree.find(name).unwrap();
        assert!(client.read(file, 0, 100).is_err());
    }
}

/// A hard link gives its file other metadata: the link's own header must say so.
#[test]
fn metadata_of_a_forged_hard_link_is_not_believed() {
    let tar = Layer::new()
        .file("bash", b"#!")
        .link("sh", "bash", 0o644)
        .link("other", "bash", 0o600)
        .tar();
    let genuine = ztoc_of(&tar);
    let (client, _, tree) = direct(&genuine, &tar);
    let file = tree.find(b"bash").unwrap();
    assert_eq!(client.read(file, 0, 10).unwrap(), b"#!");
    for link in [1, 2] {
        let mut ztoc = genuine.clone();
        ztoc.toc[link].mode = 0o4755;
        let (client, _, tree) = direct(&ztoc, &tar);
        let file = tree.find(b"bash").unwrap();
        assert!(client.read(file, 0, 10).is_err(), "{link}");
    }
}

#[test]
fn headers_are_compared_once_and_not_at_all_where_that_is_disabled() {
    let tar = Layer::new().file("f", &[b'x'; 3000]).tar();
    let mut ztoc = ztoc_of(&tar);
    let (client, data, tree) = direct(&ztoc, &tar);
    let file = tree.find(b"f").unwrap();
    data.script(Answer::Fetched);
    client.read(file, 100, 10).unwrap();
    client.read(file, 200, 10).unwrap();
    let reads = data.reads();
    assert_eq!(reads, [(0, 512), (612, 10), (712, 10)]);
    // The first block of the file and its header are read together.
    let (client, data, _) = direct(&ztoc, &tar);
    data.script(Answer::Fetched);
    client.read(file, 0, 10).unwrap();
    assert_eq!(data.reads(), [(0, 522)]);

    ztoc.toc[0].mode = 0o4755;
    for (check, shown) in [(true, false), (false, true)] {
        let options = LayerMountOptions {
            check_headers: check,
            ..LayerMountOptions::default()
        };
        let mount = Mount::new(&ztoc, tar.clone(), options);
        let read = std::fs::read(mount.path("f"));
        assert_eq!(read.is_ok(), shown, "{read:?}");
    }
}

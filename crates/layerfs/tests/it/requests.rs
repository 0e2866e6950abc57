//! What a `LayerFs` answers to single requests, without FUSE, also to those that no healthy kernel
//! sends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::support::direct::{Direct, NEGOTIATED, u32_at, u64_at};
use crate::support::{Layer, golden, noise, tree_of, ztoc_of};
use parking_lot::Mutex;
use soci_fetch::ReadError;
use soci_fetch::testing::{Answer, MemoryLayer};
use soci_fuse::{Errno, Negotiated, Operation, ROOT_ID, open_flags};
use soci_layerfs::{CacheTimes, LayerFs, Timer, Timers, Tree, TreeOptions};
use soci_testkit::CapturedLog;
use tracing::Level;

fn client(layer: Layer) -> (Direct, MemoryLayer, Arc<Tree>) {
    let tar = layer.tar();
    let tree = Arc::new(tree_of(&ztoc_of(&tar), TreeOptions::default()).unwrap());
    let data = MemoryLayer::new(tar);
    (
        Direct::new(tree.clone(), Arc::new(data.clone())),
        data,
        tree,
    )
}

fn code(errno: Errno) -> Option<i32> {
    Some(errno.raw_os_error())
}

#[test]
fn reads_end_where_the_file_ends() {
    let content = noise(1000);
    let layer = Layer::new()
        .file("before", b"x")
        .file("f", &content)
        .file("after", b"y");
    let (client, data, tree) = client(layer);
    let file = tree.find(b"f").unwrap();
    for answer in [Answer::Stored, Answer::Fetched, Answer::FetchedElsewhere] {
        data.script(answer);
        assert_eq!(client.read(file, 0, 4096).unwrap(), content);
        assert_eq!(client.read(file, 990, 4096).unwrap(), content[990..]);
        assert_eq!(client.read(file, 5, 10).unwrap(), content[5..15]);
        for (offset, size) in [(0, 0), (1000, 1), (1001, 1), (u64::MAX, u32::MAX)] {
            assert_eq!(client.read(file, offset, size).unwrap(), b"");
        }
    }
}

#[test]
fn failing_data_is_eio_whether_found_at_once_or_later() {
    let (client, data, tree) = client(Layer::new().file("f", b"content"));
    let file = tree.find(b"f").unwrap();
    data.script(Answer::Fail(ReadError::Closed));
    assert_eq!(client.read(file, 0, 10).err(), code(Errno::IO));
    assert_eq!(client.fs.counters().snapshot().read_failures, 1);
    data.script(Answer::Held);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| client.read(file, 0, 10));
        crate::support::until("the read", || data.held() == 1);
        data.close();
        assert_eq!(reader.join().unwrap().err(), code(Errno::IO));
    });
    let counters = client.fs.counters().snapshot();
    assert_eq!(
        (counters.read, counters.read_failures, counters.bytes_served),
        (2, 2, 0)
    );
}

#[test]
fn requests_for_the_wrong_kind_of_node_get_the_right_error() {
    let (client, _, tree) = client(Layer::new().file("d/f", b"x").symlink("s", "d"));
    let (directory, file) = (tree.find(b"d").unwrap(), tree.find(b"d/f").unwrap());
    let link = tree.find(b"s").unwrap();
    let listing = Operation::ReadDir {
        offset: 0,
        size: 4096,
        plus: false,
    };
    let lookup = Operation::Lookup { name: b"x" };
    let read = Operation::Read { offset: 0, size: 1 };
    for (node, operation, errno) in [
        (file, lookup, Errno::NOTDIR),
        (file, listing, Errno::NOTDIR),
        (file, Operation::ReadLink, Errno::INVAL),
        (directory, read, Errno::ISDIR),
        (link, read, Errno::INVAL),
    ] {
        assert_eq!(
            client.ask(node, operation).err(),
            code(errno),
            "{operation:?}"
        );
    }
    // Numbers that are no node: a kernel that holds them has another layer's.
    for node in [0, 1 << 40, u64::MAX] {
        for operation in [Operation::GetAttr, lookup, listing, read] {
            let error = client.ask(node, operation).err();
            assert_eq!(error, code(Errno::STALE), "{node} {operation:?}");
        }
    }
}

#[test]
fn file_handles_are_resolved_by_asking_a_node_for_itself() {
    let (client, _, tree) = client(Layer::new().file("d/f", b"x"));
    let (directory, file) = (tree.find(b"d").unwrap(), tree.find(b"d/f").unwrap());
    assert_eq!(client.lookup(file, b"."), Some(file));
    assert_eq!(client.lookup(directory, b"."), Some(directory));
    assert_eq!(client.lookup(directory, b".."), Some(ROOT_ID));
    assert_eq!(client.lookup(ROOT_ID, b".."), Some(ROOT_ID));
}

#[test]
fn changes_and_unknown_operations_are_refused() {
    let (client, _, _) = client(Layer::new());
    for number in [4, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51] {
        let error = client.ask(ROOT_ID, Operation::Change(number)).err();
        assert_eq!(error, code(Errno::ROFS));
    }
    for operation in [
        Operation::Unknown(9999),
        Operation::Lseek,
        Operation::Access,
    ] {
        assert_eq!(client.ask(ROOT_ID, operation).err(), code(Errno::NOSYS));
    }
    assert_eq!(client.fs.counters().snapshot().unknown_operations, 1);
}

#[test]
fn names_that_do_not_exist_are_remembered() {
    let (client, _, _) = client(Layer::new());
    let entry = client
        .ask(ROOT_ID, Operation::Lookup { name: b"no" })
        .unwrap();
    assert_eq!(u64_at(&entry, 0), 0);
    assert_eq!(u64_at(&entry, 16), CacheTimes::FOREVER.negative.as_secs());
}

#[test]
fn the_state_file_is_never_remembered() {
    let (client, data, tree) = client(Layer::new().file("f", b"x"));
    let digest = soci_fetch::LayerData::status(&data).digest;
    let lookup = |node, name: &[u8]| client.ask(node, Operation::Lookup { name }).unwrap();
    let directory = lookup(ROOT_ID, b".soci-snapshotter");
    let file = lookup(u64_at(&directory, 0), format!("{digest}.json").as_bytes());
    for entry in [&directory, &file] {
        // Both times, seconds and nanoseconds.
        assert_eq!(entry[16..40], [0; 24]);
        assert!(u64_at(entry, 0) > tree.len());
    }
    let attr = client.ask(u64_at(&file, 0), Operation::GetAttr).unwrap();
    assert_eq!(attr[..16], [0; 16]);
    let content = client.read(u64_at(&file, 0), 0, 4096).unwrap();
    assert_eq!(u64_at(&attr, 24), content.len() as u64);
    let wrong = Operation::Lookup {
        name: b"other.json",
    };
    assert_eq!(
        client.ask(u64_at(&directory, 0), wrong).err(),
        code(Errno::NOENT)
    );
}

#[test]
fn listings_are_the_same_in_pieces_of_any_size() {
    let mut layer = Layer::new();
    for n in 0..500 {
        layer = layer.file(&format!("file-{n}"), b"");
    }
    let (client, _, tree) = client(layer);
    let whole = client.list(ROOT_ID, 1 << 20, false);
    assert_eq!(whole.len(), 502);
    for (room, plus) in [(4096, false), (64, false), (4096, true), (200, true)] {
        assert_eq!(client.list(ROOT_ID, room, plus), whole);
    }
    for (name, ino) in &whole[2..] {
        assert_eq!(tree.lookup(ROOT_ID, name), Some(*ino));
    }
}

#[test]
fn xattrs_fit_the_buffer_and_absent_ones_are_enodata() {
    let golden = golden::layer(1);
    let tree = Arc::new(tree_of(&golden.ztoc, TreeOptions::default()).unwrap());
    let client = Direct::new(tree.clone(), Arc::new(MemoryLayer::new(golden.tar)));
    let file = tree.find(b"xattr/file").unwrap();
    let get = |name: &'static [u8], size| client.ask(file, Operation::GetXattr { name, size });
    assert_eq!(u32_at(&get(b"user.note", 0).unwrap(), 0), 5);
    assert_eq!(get(b"user.note", 4).err(), code(Errno::RANGE));
    assert_eq!(get(b"user.note", 5).unwrap(), b"hello");
    assert_eq!(get(b"user.none", 5).err(), code(Errno::NODATA));
    let list = |size| client.ask(file, Operation::ListXattr { size });
    assert_eq!(list(1).err(), code(Errno::RANGE));
    assert_eq!(list(100).unwrap(), b"security.capability\0user.note\0");
}

#[test]
fn opening_is_answered_by_what_was_negotiated() {
    let (client, data, tree) = client(Layer::new().file("f", b"x"));
    let file = tree.find(b"f").unwrap();
    for (node, operation) in [(file, Operation::Open), (ROOT_ID, Operation::OpenDir)] {
        assert_eq!(client.ask(node, operation).err(), code(Errno::NOSYS));
    }
    let older = Negotiated {
        flags: 0,
        ..NEGOTIATED
    };
    let data = Arc::new(data);
    let backing = PathBuf::from("/");
    let fs = LayerFs::new(tree.clone(), data, CacheTimes::FOREVER, backing, &older);
    let client = Direct { fs };
    let answer = client.ask(file, Operation::Open).unwrap();
    assert_eq!(
        (u64_at(&answer, 0), u32_at(&answer, 8)),
        (file, open_flags::KEEP_CACHE)
    );
    let answer = client.ask(ROOT_ID, Operation::OpenDir).unwrap();
    assert_eq!(
        u32_at(&answer, 8),
        open_flags::KEEP_CACHE | open_flags::CACHE_DIR
    );
    let state = client.ask(tree.len() + 2, Operation::Open).unwrap();
    assert_eq!(u32_at(&state, 8), 0);
    assert_eq!(client.ask(file, Operation::Release).unwrap(), b"");
}

#[test]
fn reads_that_fail_over_and_over_do_not_fill_the_log() {
    let (client, data, tree) = client(Layer::new().file("f", b"content"));
    let file = tree.find(b"f").unwrap();
    data.script(Answer::Fail(ReadError::Abandoned));
    let log = CapturedLog::text(Level::TRACE);
    for _ in 0..1000 {
        assert_eq!(
            client.read(file, 0, 10).unwrap_err(),
            Errno::IO.raw_os_error()
        );
    }
    let lines = log.lines().len();
    assert!((1..100).contains(&lines), "{lines}");
}

#[test]
fn operations_are_logged_only_with_the_option() {
    let tar = Layer::new().file("f", b"content").tar();
    let tree = Arc::new(tree_of(&ztoc_of(&tar), TreeOptions::default()).unwrap());
    let file = tree.find(b"f").unwrap();
    let counted = |log: bool| {
        let mut client = Direct::new(tree.clone(), Arc::new(MemoryLayer::new(tar.clone())));
        client.fs = client.fs.with_operation_log(log);
        let lines = CapturedLog::text(Level::TRACE);
        client.lookup(ROOT_ID, b"f").unwrap();
        client.read(file, 0, 10).unwrap();
        client.ask(file, Operation::GetAttr).unwrap();
        lines.lines().len()
    };
    assert_eq!((counted(true), counted(false)), (3, 0));
}

#[test]
fn reads_and_listings_are_measured_also_those_that_wait() {
    let tar = Layer::new().file("f", b"content").tar();
    let tree = Arc::new(tree_of(&ztoc_of(&tar), TreeOptions::default()).unwrap());
    let file = tree.find(b"f").unwrap();
    let data = MemoryLayer::new(tar);
    let timer = |durations: &Arc<Mutex<Vec<Duration>>>| {
        let durations = Arc::clone(durations);
        Some(Timer::new(move |duration| durations.lock().push(duration)))
    };
    let (read, readdir) = <(Arc<Mutex<Vec<Duration>>>, Arc<Mutex<Vec<Duration>>>)>::default();
    let mut client = Direct::new(tree, Arc::new(data.clone()));
    client.fs = client.fs.with_timers(Timers {
        read: timer(&read),
        readdir: timer(&readdir),
    });
    client.read(file, 0, 10).unwrap();
    data.script(Answer::FetchedElsewhere);
    client.read(file, 0, 10).unwrap();
    client.list(ROOT_ID, 4096, true);
    // Told after the answer: the worker of a deferred one may still be at it.
    crate::support::until("both reads are reported", || read.lock().len() == 2);
    assert!(!readdir.lock().is_empty());
    assert!(read.lock().iter().sum::<Duration>() > Duration::ZERO);
}

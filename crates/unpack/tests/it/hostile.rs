//! Layers that would take memory, disk or time without bound are refused, in a process that has
//! 256 MiB of address space and a hundred descriptors.

use std::io::{self, Read};
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};
use soci_testkit::TestRoot;
use soci_unpack::{ApplyError, ApplyOptions, UnpackLimits, apply, decompress};

/// Environment variable that names the case for the process that runs it.
const CASE: &str = "SOCI_HOSTILE_LAYER";
const MEMORY: u64 = 256 << 20;
const DESCRIPTORS: u64 = 100;

/// Runs a case in a process of its own.
fn confined(case: &str) {
    let test = std::env::current_exe().unwrap();
    let output = Command::new(test)
        .args([
            "hostile::child",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CASE, case)
        .env("MALLOC_ARENA_MAX", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{case}: {}\n{text}", output.status);
}

/// Does nothing unless a case was selected.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else {
        return;
    };
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    for (resource, limit) in [(Resource::As, MEMORY), (Resource::Nofile, DESCRIPTORS)] {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limit).unwrap();
    }
    match case.as_str() {
        "long-whiteouts" => long_whiteouts(&folder),
        "many-whiteouts" => many_whiteouts(&folder),
        "same-whiteout" => same_whiteout(&folder),
        "long-path" => long_path(&folder),
        "deep-path" => deep_path(&folder),
        "deeper-through-links" => deeper_through_links(&folder),
        "repeated-folders" => repeated_folders(&folder),
        "many-folders" => many_folders(&folder),
        "winding-links" => winding_links(&folder),
        "bombs" => bombs(&folder),
        other => panic!("there is no case {other}"),
    }
}

/// A tar whose members are made as they are read.
struct Tar<F> {
    next: F,
    member: io::Cursor<Vec<u8>>,
}

fn tar(next: impl FnMut() -> Option<Vec<u8>>) -> impl Read {
    Tar {
        next,
        member: io::Cursor::default(),
    }
}

impl<F: FnMut() -> Option<Vec<u8>>> Read for Tar<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match (self.next)() {
                Some(member) => self.member = io::Cursor::new(member),
                None => return Ok(0),
            }
        }
    }
}

fn header(name: &[u8], kind: tar::EntryType, size: usize) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header.set_entry_type(kind);
    header.set_mode(0o700);
    header.set_uid(1000);
    header.set_gid(1000);
    header.set_mtime(1_600_000_000);
    header.set_size(size as u64);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A member with a path, and a link target, of any length.
fn member(path: &str, kind: tar::EntryType, target: &str) -> Vec<u8> {
    let mut records = Vec::new();
    for (key, value) in [("path", path), ("linkpath", target)] {
        if value.is_empty() {
            continue;
        }
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        records.extend(format!("{length} {key}={value}\n").into_bytes());
    }
    let mut bytes = header(b"pax", tar::EntryType::XHeader, records.len());
    records.resize(records.len().next_multiple_of(512), 0);
    bytes.extend(records);
    bytes.extend(header(b"name", kind, 0));
    bytes
}

pub(crate) fn file(path: &str) -> Vec<u8> {
    member(path, tar::EntryType::Regular, "")
}

pub(crate) fn folder(path: &str) -> Vec<u8> {
    member(path, tar::EntryType::Directory, "")
}

fn link(path: &str, target: &str) -> Vec<u8> {
    member(path, tar::EntryType::Symlink, target)
}

/// A tar of a number of members.
fn members(count: usize, mut member: impl FnMut(usize) -> Vec<u8>) -> impl Read {
    let mut number = 0;
    tar(move || {
        number += 1;
        match number.cmp(&(count + 1)) {
            std::cmp::Ordering::Less => Some(member(number - 1)),
            std::cmp::Ordering::Equal => Some(vec![0; 1024]),
            std::cmp::Ordering::Greater => None,
        }
    })
}

pub(crate) fn list(members: Vec<Vec<u8>>) -> impl Read {
    self::members(members.len(), move |number| members[number].clone())
}

fn unpack(tar: impl Read, root: &Path, limits: UnpackLimits) -> Result<(), ApplyError> {
    let options = ApplyOptions {
        limits,
        ..ApplyOptions::default()
    };
    apply(tar, root, &options, &|| false).map(drop)
}

/// What a small machine would set.
fn limits() -> UnpackLimits {
    UnpackLimits {
        memory: 32 << 20,
        output: 2 << 30,
        ..UnpackLimits::default()
    }
}

/// Needs root: mounts a tmpfs of 200 MiB.
#[test]
fn a_reserve_of_the_disk_is_not_touched() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &folder, "tmpfs", flags, Some(c"size=200m")).unwrap();
    let size = 190 << 20;
    let tar = header(b"zeros", tar::EntryType::Regular, size);
    let limits = UnpackLimits {
        reserve: soci_dirtree::Reserve { percent: 30 },
        ..limits()
    };
    let refused = unpack(tar.chain(io::repeat(0).take(size as u64)), &folder, limits);
    let space = soci_dirtree::Space::at(&folder).unwrap();
    rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH).unwrap();
    let refused = refused.unwrap_err();
    assert!(matches!(refused, ApplyError::Reserve { .. }), "{refused}");
    assert!(refused.to_string().contains("layer_store.min_free_percent"));
    assert!(space.free >= space.total / 100 * 30, "{space:?}");
}

#[test]
fn whiteouts_of_a_megabyte_are_refused() {
    confined("long-whiteouts");
}

fn long_whiteouts(root: &Path) {
    let name = format!(".wh.{}", "A".repeat(1_000_000));
    let refused = unpack(members(150, |_| file(&name)), root, limits()).unwrap_err();
    assert!(matches!(refused, ApplyError::TooLong { .. }), "{refused}");
}

#[test]
fn more_whiteouts_than_memory_are_refused() {
    confined("many-whiteouts");
}

fn many_whiteouts(root: &Path) {
    let tail = "w".repeat(200);
    let whiteouts = members(1_000_000, |number| file(&format!(".wh.{number}{tail}")));
    let refused = unpack(whiteouts, root, limits()).unwrap_err().to_string();
    assert!(refused.contains("limits.unpack_memory_bytes"), "{refused}");
}

#[test]
fn a_whiteout_that_is_repeated_takes_memory_once() {
    confined("same-whiteout");
}

fn same_whiteout(root: &Path) {
    let name = format!(".wh.{}", "w".repeat(200));
    unpack(members(50_000, |_| file(&name)), root, limits()).unwrap();
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 1);
}

#[test]
fn a_path_of_seventeen_thousand_parts_is_refused() {
    confined("long-path");
}

fn long_path(root: &Path) {
    let path = "a/".repeat(17_000) + "f";
    let refused = unpack(list(vec![file(&path)]), root, limits()).unwrap_err();
    assert!(matches!(refused, ApplyError::TooLong { .. }), "{refused}");
    let part = format!("a/{}/f", "b".repeat(256));
    let refused = unpack(list(vec![file(&part)]), root, limits()).unwrap_err();
    assert!(matches!(refused, ApplyError::TooLong { .. }), "{refused}");
    let target = "t".repeat(4096);
    let refused = unpack(list(vec![link("l", &target)]), root, limits()).unwrap_err();
    assert!(matches!(refused, ApplyError::TooLong { .. }), "{refused}");
}

#[test]
fn the_deepest_path_takes_few_descriptors() {
    confined("deep-path");
}

fn deep_path(root: &Path) {
    let deep = "a/".repeat(2_000);
    let tar = list(vec![
        file(&format!("{deep}f")),
        folder(&deep),
        file(&format!("{deep}.wh.gone")),
        // Replaces all of it.
        file("a"),
    ]);
    unpack(tar, root, limits()).unwrap();
    assert!(root.join("a").is_file());
}

#[test]
fn links_lead_no_deeper_than_a_path_reaches() {
    confined("deeper-through-links");
}

fn deeper_through_links(root: &Path) {
    let deep = "a/".repeat(1_500);
    let tar = list(vec![
        link("l", &format!("/{deep}")),
        file(&format!("l/{deep}f")),
    ]);
    let refused = unpack(tar, root, limits()).unwrap_err();
    assert!(matches!(refused, ApplyError::TooLong { .. }), "{refused}");
}

#[test]
fn a_folder_that_is_repeated_takes_memory_once() {
    confined("repeated-folders");
}

fn repeated_folders(root: &Path) {
    let path = format!("{}{}", "d/".repeat(20), "e".repeat(200));
    unpack(members(20_000, |_| folder(&path)), root, limits()).unwrap();
}

#[test]
fn more_folders_than_memory_are_refused() {
    confined("many-folders");
}

fn many_folders(root: &Path) {
    let limits = UnpackLimits {
        memory: 96 * 1000,
        ..limits()
    };
    let refused = unpack(
        members(1_100, |number| folder(&format!("{number}"))),
        root,
        limits,
    );
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("limits.unpack_memory_bytes"), "{refused}");
}

#[test]
fn links_that_wind_through_a_layer_are_refused_after_many_steps() {
    confined("winding-links");
}

fn winding_links(root: &Path) {
    let winding = "a/../".repeat(800);
    let mut first = vec![folder("a")];
    for number in 0..39 {
        first.push(link(
            &format!("l{number}"),
            &format!("{winding}l{}", number + 1),
        ));
    }
    first.push(link("l39", "a"));
    let count = first.len();
    let tar = members(count + 1_000_000, move |number| match first.get(number) {
        Some(member) => member.clone(),
        None => file(&format!("l0/x{number}/f")),
    });
    let limits = UnpackLimits {
        steps: 500_000,
        ..limits()
    };
    let refused = unpack(tar, root, limits).unwrap_err();
    assert!(matches!(refused, ApplyError::OverLimit(_)), "{refused}");
}

#[test]
fn bombs_of_gzip_and_zstd_end_at_the_limit_of_output() {
    confined("bombs");
}

fn bombs(root: &Path) {
    const SIZE: usize = 128 << 20;
    // One file of zeros, or padding after the end of the tar: both count.
    let head = header(b"zeros", tar::EntryType::Regular, SIZE);
    let gzip = |bytes: &[u8]| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::copy(
            &mut bytes.chain(io::repeat(0).take(SIZE as u64)),
            &mut writer,
        )
        .unwrap();
        writer.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| {
        let mut writer = zstd::Encoder::new(Vec::new(), 1).unwrap();
        io::copy(
            &mut bytes.chain(io::repeat(0).take(SIZE as u64)),
            &mut writer,
        )
        .unwrap();
        writer.finish().unwrap()
    };
    for bomb in [gzip(&head), zstd(&head), gzip(&[]), zstd(&[])] {
        assert!(bomb.len() < 2 << 20);
        let limits = UnpackLimits {
            output: 16 << 20,
            ..limits()
        };
        let refused = unpack(decompress(&bomb[..]).unwrap(), root, limits).unwrap_err();
        assert!(matches!(refused, ApplyError::TooLarge { .. }), "{refused}");
        assert!(refused.to_string().contains("limits.unpack_output_bytes"));
    }
}

#[test]
fn a_scratch_folder_a_hundred_thousand_levels_deep_is_emptied_and_private() {
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    // In memory: a disk takes minutes to make as many folders.
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let scratch = root.path().join("unpack");
    std::fs::create_dir(&scratch).unwrap();
    std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o755)).unwrap();
    let open = |at: std::os::fd::BorrowedFd<'_>, name: &str| {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        rustix::fs::openat(at, name, flags, rustix::fs::Mode::empty()).unwrap()
    };
    let mut at = open(rustix::fs::CWD, scratch.to_str().unwrap());
    for _ in 0..100_000 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        at = open(at.as_fd(), "d");
    }
    drop(at);
    let client = soci_registry::Client::new(
        soci_registry::ClientConfig::default(),
        std::sync::Arc::new(soci_registry::NoCredentials),
    );
    let config = soci_unpack::UnpackConfig::new(scratch.clone());
    soci_unpack::Unpacker::new(client.unwrap(), config).unwrap();
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    let mode = std::fs::metadata(&scratch).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

//! zTOCs of many files that no layer was made for.

#![allow(unreachable_pub, reason = "several programs have it as a module")]

use soci_ztoc::{BuildOptions, Checkpoints, Compression, FileMetadata, TarZinfo, Ztoc, build};

const SPAN: u64 = 4 << 20;

/// Files whose extended attributes are beyond what a tree takes for each.
pub const ATTRIBUTES: &str = "files with attributes of their own";

/// The blob of a zTOC with so many entries, each changed by `change`; empty if it cannot be made.
pub fn large_ztoc(files: u64, change: impl Fn(u64, &mut FileMetadata)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    let append = builder.append_data(&mut header, "file", &b""[..]);
    let tar = append.and_then(|()| builder.into_inner());
    let options = BuildOptions::default();
    let Ok(built) = build(
        &tar.unwrap_or_default()[..],
        Compression::Uncompressed,
        options,
    ) else {
        return Vec::new();
    };
    let mut ztoc: Ztoc = built.ztoc;
    let Some(entry) = ztoc.toc.pop() else {
        return Vec::new();
    };
    ztoc.toc = (0..files)
        .map(|at| {
            let mut entry = entry.clone();
            entry.uncompressed_offset = (at + 1) * 512;
            entry.mod_time = format!("2024-01-01T00:00:{:02}Z", at / 7 % 60);
            change(at, &mut entry);
            entry
        })
        .collect();
    let size = (files + 2) * 512;
    (ztoc.uncompressed_archive_size, ztoc.compressed_archive_size) = (size, size);
    let digest = soci_oci::Digest::of(b"span");
    ztoc.compression.span_digests = (0..size.div_ceil(SPAN)).map(|_| digest).collect();
    ztoc.compression.checkpoints = Checkpoints::Tar(TarZinfo {
        version: 2,
        span_size: SPAN,
        size,
    });
    ztoc.encode()
}

/// Makes an entry what the kind of layer wants, by its number.
pub type Change = fn(u64, &mut FileMetadata);

/// Kinds of layers, by what makes their trees large, and the entries that they have.
pub fn kinds() -> [(&'static str, Change); 5] {
    [
        ("files", |at, entry| {
            entry.name = format!("usr/share/folder{}/file-{at}", at % 1000).into_bytes();
        }),
        ("files in folders of their own", |at, entry| {
            entry.name = format!("{at}/a/b/c/f").into_bytes();
        }),
        (ATTRIBUTES, |at, entry| {
            entry.name = format!("f{at}").into_bytes();
            let key = b"SCHILY.xattr.user.number".to_vec();
            entry.xattrs = vec![(key, at.to_le_bytes().to_vec())];
        }),
        ("files with owners of their own", |at, entry| {
            entry.name = format!("f{at}").into_bytes();
            entry.uid = u32::try_from(at).unwrap_or(0);
        }),
        ("files with owners and times of their own", |at, entry| {
            entry.name = format!("usr/{}/f{at}", at % 100).into_bytes();
            entry.uid = u32::try_from(at).unwrap_or(0);
            let (minutes, seconds) = (at / 60, at % 60);
            let (hours, minutes) = (minutes / 60, minutes % 60);
            let (day, hours) = (1 + hours / 24 % 28, hours % 24);
            entry.mod_time = format!("2024-01-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z");
        }),
    ]
}

//! Layers that are odd, damaged or empty.

use std::io::Write as _;

use flate2::write::GzEncoder;
use soci_ztoc::{BuildError, BuildOptions, Built, Compression, FileType, SpanId, Ztoc, build};

fn options() -> BuildOptions {
    BuildOptions {
        span_size: 65536,
        ..BuildOptions::default()
    }
}

fn gzip(tar: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn built(layer: &[u8], compression: Compression) -> Built {
    build(layer, compression, options()).unwrap()
}

/// Both ways to pack a tar.
fn both(tar: &[u8]) -> [(Compression, Vec<u8>); 2] {
    [
        (Compression::Gzip, gzip(tar, 6)),
        (Compression::Uncompressed, tar.to_vec()),
    ]
}

/// A header block, with the checksum filled in.
fn header(kind: u8, name: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_ustar_mut().unwrap().typeflag = [kind];
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn blocks(content: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    content.resize(content.len().next_multiple_of(512), 0);
    content
}

fn pax(kind: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let records: String = records
        .iter()
        .map(|(key, value)| {
            let rest = key.len() + value.len() + 3;
            let len = (rest..)
                .find(|len| len.to_string().len() + rest == *len)
                .unwrap();
            format!("{len} {key}={value}\n")
        })
        .collect();
    [
        header(kind, "pax", records.len() as u64),
        blocks(records.as_bytes()),
    ]
    .concat()
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

#[test]
fn an_empty_tar_has_no_entries() {
    for tar in [end(), vec![0; 10240], vec![0; 512], Vec::new()] {
        for (compression, layer) in both(&tar) {
            let built = built(&layer, compression);
            assert!(built.ztoc.toc.is_empty());
            assert_eq!(
                built.ztoc.uncompressed_archive_size,
                tar.len().min(1024) as u64
            );
            let blob = built.ztoc.encode();
            assert_eq!(Ztoc::parse(&blob).unwrap(), built.ztoc);
            let table = built.ztoc.span_table();
            let expected = u32::from(compression == Compression::Gzip || !tar.is_empty());
            assert_eq!(table.len(), expected);
        }
    }
}

#[test]
fn a_layer_of_no_bytes_is_no_gzip() {
    let refused = build(&[][..], Compression::Gzip, options()).unwrap_err();
    assert!(
        matches!(refused, BuildError::Truncated { at: 0, .. }),
        "{refused}"
    );
}

#[test]
fn a_truncated_gzip_is_refused_wherever_it_is_cut() {
    let tar = [header(b'0', "file", 3000), blocks(&[b'x'; 3000]), end()].concat();
    let layer = gzip(&tar, 6);
    for len in 0..layer.len() {
        let refused = build(&layer[..len], Compression::Gzip, options()).unwrap_err();
        assert!(
            matches!(refused, BuildError::Truncated { .. }),
            "{len}: {refused}"
        );
    }
}

#[test]
fn whatever_follows_the_last_member_is_refused_if_it_is_no_gzip() {
    let layer = gzip(&end(), 6);
    for tail in [&b"garbage garbage garbage"[..], &[0; 512]] {
        let refused =
            build(&[&layer, tail].concat()[..], Compression::Gzip, options()).unwrap_err();
        assert!(matches!(refused, BuildError::Gzip { .. }), "{refused}");
        assert!(
            refused
                .to_string()
                .contains("its last member is followed by"),
            "{refused}"
        );
    }
}

#[test]
fn a_wrong_checksum_of_a_member_is_refused() {
    let mut layer = gzip(&[header(b'0', "a", 0), end()].concat(), 6);
    let at = layer.len() - 6;
    layer[at] ^= 1;
    let refused = build(&layer[..], Compression::Gzip, options()).unwrap_err();
    assert!(matches!(refused, BuildError::Gzip { .. }), "{refused}");
}

#[test]
fn a_tar_that_ends_early_is_refused_but_not_for_its_missing_zeros() {
    let tar = [header(b'0', "file", 700), blocks(&[1; 700])].concat();
    for (len, whole) in [
        (0, true),
        (511, false),
        (512, false),
        (1211, false),
        (1212, true),
        (1536, true),
    ] {
        for (compression, layer) in both(&tar[..len]) {
            match build(&layer[..], compression, options()) {
                Ok(built) => assert!(whole && built.ztoc.uncompressed_archive_size == len as u64),
                Err(error) => {
                    assert!(
                        !whole && matches!(error, BuildError::TruncatedTar { .. }),
                        "{len}: {error}"
                    );
                }
            }
        }
    }
}

#[test]
fn input_that_is_not_a_tar_is_refused_with_its_offset() {
    let tar = [header(b'0', "a", 0), vec![b'?'; 512]].concat();
    let refused = build(&tar[..], Compression::Uncompressed, options()).unwrap_err();
    assert!(
        matches!(refused, BuildError::Tar { at: 512, .. }),
        "{refused}"
    );
}

#[test]
fn entries_that_a_ztoc_cannot_describe_leave_the_layer_without_one() {
    let sparse = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "real"),
    ];
    for (tar, word) in [
        (header(b'S', "old", 0), "sparse file \"old\""),
        (
            [pax(b'x', &sparse), header(b'0', "made-up", 512)].concat(),
            "sparse file \"real\"",
        ),
        (
            [
                pax(b'x', &[("GNU.sparse.map", "0,1")]),
                header(b'0', "f", 0),
            ]
            .concat(),
            "sparse",
        ),
        (header(b'7', "contiguous", 0), "type '7'"),
        (header(b'V', "label", 0), "type 'V'"),
    ] {
        let refused = build(
            &[tar, end()].concat()[..],
            Compression::Uncompressed,
            options(),
        )
        .unwrap_err();
        assert!(
            refused.is_unsupported() && refused.to_string().contains(word),
            "{refused}"
        );
    }
}

#[test]
fn a_global_header_is_skipped_and_changes_nothing() {
    let tar = [
        header(b'5', "d/", 0),
        pax(b'g', &[("path", "everything"), ("comment", "c")]),
        header(b'0', "a", 3),
        blocks(b"abc"),
        end(),
    ]
    .concat();
    for (compression, layer) in both(&tar) {
        let ztoc = built(&layer, compression).ztoc;
        let names: Vec<_> = ztoc.toc.iter().map(|entry| entry.name.as_slice()).collect();
        assert_eq!(names, [&b"d/"[..], b"a"]);
        assert_eq!(ztoc.toc[1].uncompressed_offset, 4 * 512);
        assert!(ztoc.toc[1].xattrs.is_empty());
        assert!(Ztoc::parse(&ztoc.encode()).is_ok());
    }
}

#[test]
fn links_and_directories_have_no_content_whatever_they_claim() {
    let tar = [
        header(b'1', "hard", 5000),
        header(b'5', "dir", 4096),
        header(b'2', "sym", 7),
        header(0, "old-dir/", 0),
        header(0, "old-file", 1),
        blocks(b"x"),
        end(),
    ]
    .concat();
    let ztoc = built(&tar, Compression::Uncompressed).ztoc;
    let seen: Vec<_> = ztoc
        .toc
        .iter()
        .map(|entry| (entry.file_type, entry.uncompressed_size))
        .collect();
    assert_eq!(
        seen,
        [
            (FileType::Hardlink, 0),
            (FileType::Dir, 0),
            (FileType::Symlink, 0),
            (FileType::Dir, 0),
            (FileType::Reg, 1)
        ]
    );
    assert!(Ztoc::parse(&ztoc.encode()).is_ok());
}

#[test]
fn pax_records_overrule_the_header_and_are_all_kept() {
    let records = [
        ("path", "a longer name"),
        ("size", "3"),
        ("uid", "3000000000"),
        ("mtime", "-1.5"),
        ("SCHILY.xattr.user.a", "1"),
        ("SCHILY.xattr.trusted.overlay.opaque", "y"),
        ("gname", ""),
    ];
    let tar = [
        pax(b'x', &records),
        header(b'0', "short", 0),
        blocks(b"abc"),
        header(b'0', "next", 0),
    ];
    let ztoc = built(&[tar.concat(), end()].concat(), Compression::Uncompressed).ztoc;
    let entry = &ztoc.toc[0];
    assert_eq!(entry.name, b"a longer name");
    assert_eq!((entry.uncompressed_size, entry.uid), (3, 3_000_000_000));
    assert_eq!(entry.mod_time, "1969-12-31T23:59:58.5Z");
    assert_eq!(entry.mtime(), Some((-2, 500_000_000)));
    assert_eq!(entry.xattrs.len(), records.len());
    assert!(entry.xattrs.is_sorted());
    assert_eq!(
        entry.posix_xattrs().collect::<Vec<_>>(),
        [(&b"user.a"[..], &b"1"[..])]
    );
    assert!(ztoc.toc[1].xattrs.is_empty(), "records are of one entry");
}

#[test]
fn metadata_that_would_fill_memory_is_refused() {
    let tar = header(b'x', "pax", 1 << 30);
    let refused = build(&tar[..], Compression::Uncompressed, options()).unwrap_err();
    assert!(matches!(refused, BuildError::Tar { .. }), "{refused}");
}

#[test]
fn names_are_any_bytes() {
    let mut odd = header(b'0', "xx", 0);
    odd[..2].copy_from_slice(b"\xff\xfe");
    let mut header = tar::Header::from_byte_slice(&odd).clone();
    header.set_cksum();
    let tar = [header.as_bytes().to_vec(), end()].concat();
    let ztoc = built(&tar, Compression::Uncompressed).ztoc;
    assert_eq!(ztoc.toc[0].name, b"\xff\xfe");
    assert_eq!(Ztoc::parse(&ztoc.encode()).unwrap(), ztoc);
}

/// A stream that is much longer than its tar has spans behind its end; no reader needs them, and they
/// are no reason to refuse the zTOC.
#[test]
fn a_stream_may_continue_behind_the_tar() {
    let mut noise = vec![0_u8; 1 << 20];
    let mut state = 1_u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24).to_le_bytes()[0];
    }
    let tar = [
        header(b'0', "f", 200_000),
        blocks(&noise[..200_000]),
        end(),
        noise,
    ]
    .concat();
    for (compression, layer) in both(&tar) {
        let ztoc = built(&layer, compression).ztoc;
        assert_eq!(ztoc.uncompressed_archive_size, 512 + 200_192 + 1024);
        let blob = ztoc.encode();
        let table = Ztoc::parse(&blob).unwrap().span_table();
        assert!(table.len() > 10);
        let at = |range: std::ops::Range<u64>| {
            usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
        };
        let (mut all, mut out) = (Vec::new(), Vec::new());
        for id in (0..table.len()).map(SpanId) {
            let window = table
                .window_at(id)
                .map_or(&[][..], |window| &blob[at(window)]);
            table
                .extract(id, &layer[at(table.span(id).compressed)], window, &mut out)
                .unwrap();
            all.extend_from_slice(&out);
        }
        assert!(all == tar[..all.len()] && all.len() as u64 == table.uncompressed_size());
    }
}

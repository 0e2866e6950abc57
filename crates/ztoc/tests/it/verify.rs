//! Full verification of a layer against its zTOC and diff ID.

use std::io::Write as _;

use proptest::prelude::*;
use soci_oci::Digest;
use soci_ztoc::{
    BuildOptions, Compression, FileMetadata, FileType, LayerIndex, SpanId, VerifyError, Ztoc,
    build, verify_entries,
};

use crate::golden::{self, Golden};

/// Verifies a stream to its end; returns whether it has this digest.
fn verify_layer(stream: &[u8], index: &LayerIndex, expected: &Digest) -> Result<bool, VerifyError> {
    Ok(verify_entries(stream, index)?.finish() == *expected)
}

/// What the layer store keeps of a layer: all spans up to the tar's end.
fn stored(index: &LayerIndex, layer: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut out = Vec::new();
    for id in (0..index.spans.len()).map(SpanId) {
        let (compressed, window) = span(index, layer, id);
        index
            .spans
            .extract(id, compressed, window, &mut out)
            .unwrap();
        tar.extend_from_slice(&out);
    }
    tar
}

fn behind_the_tar(index: &LayerIndex, layer: &[u8]) -> Vec<u8> {
    let mut tail = Vec::new();
    let mut out = Vec::new();
    for id in index.spans.behind_the_tar().map(SpanId) {
        let (compressed, window) = span(index, layer, id);
        let spans = &index.spans;
        spans
            .extract_behind_the_tar(id, compressed, window, 1 << 20, &mut out)
            .unwrap();
        tail.extend_from_slice(&out);
    }
    tail
}

fn span<'a>(index: &'a LayerIndex, layer: &'a [u8], id: SpanId) -> (&'a [u8], &'a [u8]) {
    let slice = |bytes: &'a [u8], range: std::ops::Range<u64>| {
        &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    };
    let window = index.spans.window_at(id);
    (
        slice(layer, index.spans.span(id).compressed),
        window.map_or(&[][..], |window| slice(index.blob(), window)),
    )
}

#[test]
fn every_golden_layer_is_what_its_ztoc_says() {
    for Golden {
        name,
        layer,
        compression,
        blob,
        ..
    } in golden::all()
    {
        let whole = golden::decompress(&layer, compression);
        let diff_id = Digest::of(&whole);
        let index = Ztoc::parse_index(blob).unwrap();
        let mut stream = stored(&index, &layer);
        stream.extend(behind_the_tar(&index, &layer));
        assert!(stream == whole, "{name}: the spans are not the stream");
        let verified = verify_layer(&stream[..], &index, &diff_id);
        assert!(matches!(verified, Ok(true)), "{name}: {verified:?}");
        let other = verify_layer(&stream[..], &index, &Digest::of(b"another layer"));
        assert!(matches!(other, Ok(false)), "{name}");
    }
}

#[test]
fn what_follows_the_tar_counts_and_is_found_in_its_spans() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3000);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "file", &[b'x'; 3000][..])
        .unwrap();
    let tar = builder.into_inner().unwrap();
    for more in [0, 1, 9000, 300_000] {
        let trailing: Vec<u8> = (0..=250).cycle().take(more).collect();
        let whole = [&tar[..], &trailing].concat();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(&whole).unwrap();
        let gzip = encoder.finish().unwrap();
        for (layer, compression) in [
            (gzip, Compression::Gzip),
            (whole.clone(), Compression::Uncompressed),
        ] {
            let options = BuildOptions {
                span_size: 4096,
                ..BuildOptions::default()
            };
            let ztoc = build(&layer[..], compression, options).unwrap().ztoc;
            let index = Ztoc::parse_index(ztoc.encode()).unwrap();
            let (kept, tail) = (stored(&index, &layer), behind_the_tar(&index, &layer));
            assert_eq!(kept.len() as u64, index.spans.uncompressed_size());
            let diff_id = Digest::of(&whole);
            let verify = |stream: &[u8]| verify_layer(stream, &index, &diff_id);
            assert!(verify(&[&kept[..], &tail].concat()).unwrap());
            if more > 0 {
                assert!(!verify(&kept).unwrap());
            }
            let id = SpanId(index.spans.len() - 1);
            let (compressed, window) = span(&index, &layer, id);
            let mut out = Vec::new();
            let spans = &index.spans;
            let refused = spans.extract_behind_the_tar(id, compressed, window, 0, &mut out);
            assert_eq!((refused.is_err(), out.len()), (more > 0, 0));
        }
    }
}

/// The genuine bytes of a layer under a zTOC that swaps the places of two files.
#[test]
fn a_forged_ztoc_over_genuine_bytes_fails_with_the_entry_that_is_forged() {
    let golden = golden::all().into_iter().next().unwrap();
    let whole = golden::decompress(&golden.layer, golden.compression);
    let mut ztoc = Ztoc::parse(&golden.blob).unwrap();
    let files: Vec<usize> = (0..ztoc.toc.len())
        .filter(|&at| ztoc.toc[at].file_type == FileType::Reg)
        .collect();
    let (a, b) = (files[0], files[1]);
    let names = (ztoc.toc[a].name.clone(), ztoc.toc[b].name.clone());
    (ztoc.toc[a].name, ztoc.toc[b].name) = (names.1, names.0);
    let index = Ztoc::parse_index(ztoc.encode()).unwrap();
    let refused = verify_layer(&whole[..], &index, &Digest::of(&whole)).unwrap_err();
    assert!(refused.is_verdict());
    assert!(
        matches!(refused, VerifyError::Entry { number, field: "name", .. } if number == a as u64),
        "{refused}"
    );
}

/// A way to change one field of an entry.
type Mutation = (&'static str, fn(&mut FileMetadata, u64));

/// A way to change the table.
type TableMutation = (&'static str, fn(&mut Ztoc, usize));

const MUTATIONS: [Mutation; 14] = [
    ("name", |entry, by| entry.name.push(b'a' + (by % 26) as u8)),
    ("type", |entry, by| {
        let kinds = FileType::ALL;
        let at = kinds.iter().position(|kind| *kind == entry.file_type);
        let other = at.unwrap() + 1 + usize::try_from(by).unwrap() % (kinds.len() - 1);
        entry.file_type = kinds[other % kinds.len()];
    }),
    ("offset up", |entry, by| {
        entry.uncompressed_offset += 1 + by % 512
    }),
    ("offset down", |entry, by| {
        entry.uncompressed_offset -= 1 + by % 512;
    }),
    ("size", |entry, by| {
        entry.file_type = FileType::Reg;
        entry.uncompressed_size ^= 1 + by % 1024;
    }),
    ("linkname", |entry, _| entry.linkname.push(b'x')),
    ("mode", |entry, by| entry.mode ^= 1 << (by % 16)),
    ("uid", |entry, by| entry.uid ^= 1 << (by % 32)),
    ("gid", |entry, by| entry.gid ^= 1 << (by % 32)),
    ("uname", |entry, _| entry.uname.push(b'x')),
    ("gname", |entry, _| entry.gname.push(b'x')),
    ("time", |entry, by| {
        let second = by % 60;
        let other = format!("2031-01-02T03:04:{second:02}Z");
        entry.mod_time = other;
    }),
    ("device", |entry, by| match by % 2 {
        0 => entry.devmajor += 1,
        _ => entry.devminor += 1,
    }),
    ("records", |entry, by| match entry.xattrs.first_mut() {
        Some((_, value)) if by % 2 == 0 => value.push(b'!'),
        _ => entry.xattrs.push((
            b"SCHILY.xattr.user.more".to_vec(),
            by.to_le_bytes().to_vec(),
        )),
    }),
];

const TABLE_MUTATIONS: [TableMutation; 4] = [
    ("an entry less", |ztoc, at| drop(ztoc.toc.remove(at))),
    ("an entry more", |ztoc, at| {
        let entry = ztoc.toc[at].clone();
        ztoc.toc.insert(at, entry);
    }),
    ("a longer tar", |ztoc, at| {
        ztoc.uncompressed_archive_size += 1 + at as u64;
    }),
    ("a shorter tar", |ztoc, at| {
        ztoc.uncompressed_archive_size -= 1 + at as u64 % 1024;
    }),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_change_of_one_field_makes_verification_fail(
        case in 0_usize..13,
        at in any::<prop::sample::Index>(),
        mutation in 0..MUTATIONS.len() + TABLE_MUTATIONS.len(),
        by in any::<u64>(),
    ) {
        let golden = &golden::all()[case];
        let whole = golden::decompress(&golden.layer, golden.compression);
        let genuine = Ztoc::parse(&golden.blob).unwrap();
        let mut ztoc = genuine.clone();
        let at = at.index(ztoc.toc.len());
        let name = match MUTATIONS.get(mutation) {
            Some((name, change)) => {
                change(&mut ztoc.toc[at], by);
                *name
            }
            None => {
                let (name, change) = TABLE_MUTATIONS[mutation - MUTATIONS.len()];
                change(&mut ztoc, at);
                name
            }
        };
        prop_assume!(ztoc.toc != genuine.toc
            || ztoc.uncompressed_archive_size != genuine.uncompressed_archive_size);
        // Some are refused before that.
        if let Ok(index) = Ztoc::parse_index(ztoc.encode()) {
            let verified = verify_layer(&whole[..], &index, &Digest::of(&whole));
            prop_assert!(verified.is_err(), "{}: {name} of entry {at}", golden.name);
            prop_assert!(verified.unwrap_err().is_verdict());
        }
    }
}

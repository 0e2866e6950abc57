//! Extracting spans: what comes out is what the layer holds, or an error.

use crate::golden::{Golden, SPAN_SIZE};
use proptest::prelude::*;
use soci_ztoc::{BuildOptions, Compression, SpanError, SpanId, SpanTable, Ztoc, build};

fn slice(bytes: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

fn window<'a>(table: &SpanTable, blob: &'a [u8], id: SpanId) -> &'a [u8] {
    table.window_at(id).map_or(&[], |range| slice(blob, range))
}

/// Extracts every span and compares all of them with the plain decompression.
fn every_span_is_right(name: &str, blob: &[u8], layer: &[u8], tar: &[u8]) {
    let table = Ztoc::parse(blob)
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .span_table();
    let (mut end, mut out) = (0, Vec::new());
    for id in (0..table.len()).map(SpanId) {
        let span = table.span(id);
        assert_eq!(span.uncompressed.start, end, "{name} span {id}");
        end = span.uncompressed.end;
        table
            .extract(
                id,
                slice(layer, span.compressed),
                window(&table, blob, id),
                &mut out,
            )
            .unwrap_or_else(|error| panic!("{name} span {id}: {error}"));
        assert!(out == slice(tar, span.uncompressed), "{name} span {id}");
    }
    assert_eq!(end, table.uncompressed_size(), "{name}");
}

fn built(layer: &[u8], compression: Compression, span_size: u64) -> Vec<u8> {
    let options = BuildOptions {
        span_size,
        ..BuildOptions::default()
    };
    build(layer, compression, options).unwrap().ztoc.encode()
}

#[test]
fn every_span_of_every_golden_layer_through_socis_ztoc_and_through_ours() {
    for Golden {
        name,
        layer,
        compression,
        blob,
        ..
    } in crate::golden::all()
    {
        let tar = crate::golden::decompress(&layer, compression);
        every_span_is_right(&name, &blob, &layer, &tar);
        for span_size in [1, 1 << 16, SPAN_SIZE, 1 << 20, 1 << 40] {
            if span_size == 1 && compression == Compression::Uncompressed {
                continue; // A span per byte.
            }
            let ours = built(&layer, compression, span_size);
            every_span_is_right(
                &format!("{name}, span size {span_size}"),
                &ours,
                &layer,
                &tar,
            );
        }
    }
}

#[test]
fn a_layer_smaller_than_a_span_has_one() {
    for Golden {
        layer, compression, ..
    } in crate::golden::all()
    {
        let table = Ztoc::parse(&built(&layer, compression, 1 << 40))
            .unwrap()
            .span_table();
        assert_eq!(table.len(), 1);
        assert_eq!(table.covering(0..u64::MAX), 0..1);
    }
}

#[test]
fn offsets_find_their_spans() {
    for Golden { name, blob, .. } in crate::golden::all() {
        let table = Ztoc::parse_index(blob.clone()).unwrap().spans;
        for id in (0..table.len()).map(SpanId) {
            let span = table.span(id);
            assert_eq!(
                table.at_uncompressed(span.uncompressed.start),
                Some(id),
                "{name}"
            );
            assert_eq!(
                table.at_uncompressed(span.uncompressed.end - 1),
                Some(id),
                "{name}"
            );
            assert_eq!(table.covering(span.uncompressed), id.0..id.0 + 1, "{name}");
        }
        assert_eq!(table.at_uncompressed(table.uncompressed_size()), None);
        assert_eq!(table.covering(0..table.uncompressed_size()), 0..table.len());
        assert!(table.covering(5..5).is_empty());
        assert!(table.covering(u64::MAX - 1..u64::MAX).is_empty());
        assert_eq!(table.get(SpanId(table.len())), None);
    }
}

#[test]
fn bytes_that_are_not_the_spans_are_refused() {
    for Golden { layer, blob, .. } in crate::golden::all() {
        let table = Ztoc::parse(&blob).unwrap().span_table();
        let mut out = Vec::new();
        for id in (0..table.len()).map(SpanId) {
            let span = table.span(id);
            let good = slice(&layer, span.compressed.clone());
            let window = window(&table, &blob, id);
            for len in [0, 1, good.len() - 1] {
                let short = table.extract(id, &good[..len], window, &mut out);
                assert!(matches!(short, Err(SpanError::Length { .. })));
            }
            let longer = [good, &[0]].concat();
            let long = table.extract(id, &longer, window, &mut out);
            assert!(matches!(long, Err(SpanError::Length { .. })));
            let garbage = vec![0xa5; good.len()];
            let garbage = table.extract(id, &garbage, window, &mut out);
            assert!(matches!(garbage, Err(SpanError::Digest { .. })));
            if !window.is_empty() {
                let cut = table.extract(id, good, &window[1..], &mut out);
                assert!(matches!(cut, Err(SpanError::Window { .. })));
            }
            assert!(out.is_empty());
        }
        let none = table.extract(SpanId(table.len()), &[], &[], &mut out);
        assert!(matches!(none, Err(SpanError::NoSuchSpan { .. })));
    }
}

/// A span that ends before or behind where the zTOC says is an error even when its digest fits.
#[test]
fn a_span_that_inflates_to_another_length_is_refused() {
    let golden = crate::golden::all()
        .into_iter()
        .find(|golden| golden.name.starts_with("kinds"))
        .unwrap();
    for shift in [-1_i64, 1, 1000] {
        let mut ztoc = Ztoc::parse(&golden.blob).unwrap();
        let soci_ztoc::Checkpoints::Gzip(gzip) = &mut ztoc.compression.checkpoints else {
            panic!()
        };
        gzip.points[1].output = gzip.points[1].output.checked_add_signed(shift).unwrap();
        let blob = ztoc.encode();
        let table = Ztoc::parse(&blob).unwrap().span_table();
        for id in [SpanId(0), SpanId(1)] {
            let span = table.span(id);
            let mut out = vec![1];
            let found = table.extract(
                id,
                slice(&golden.layer, span.compressed),
                window(&table, &blob, id),
                &mut out,
            );
            assert!(
                matches!(found, Err(SpanError::Inflate { .. })),
                "{shift} {id}: {found:?}"
            );
            assert!(out.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A flipped bit of a layer never gives other contents: the digest tells.
    #[test]
    fn a_flipped_bit_of_a_layer_is_noticed(case in 0..13_usize, at: prop::sample::Index, bit in 0..8_u8) {
        let Golden { layer, blob, .. } = &cases()[case];
        let table = Ztoc::parse(blob).unwrap().span_table();
        let mut damaged = layer.clone();
        let at = at.index(damaged.len());
        damaged[at] ^= 1 << bit;
        let mut out = Vec::new();
        for id in (0..table.len()).map(SpanId) {
            let span = table.span(id);
            let hit = span.compressed.contains(&(at as u64));
            let compressed = slice(&damaged, span.compressed);
            let found = table.extract(id, compressed, window(&table, blob, id), &mut out);
            prop_assert_eq!(found.is_err(), hit);
        }
    }

    /// A flipped bit of a zTOC is refused, or an error tells, or what comes out is still what the
    /// span's bytes stand for. Only the zTOC's own digest guards the windows, and the offset that
    /// the last span is said to have.
    #[test]
    fn a_flipped_bit_of_a_ztoc_never_gives_bytes_that_are_not_there(
        case in 0..13_usize,
        anywhere: prop::sample::Index,
        near_end in prop::option::of(0..4096_usize),
        bit in 0..8_u8,
    ) {
        let Golden { layer, compression, blob, .. } = &cases()[case];
        let tar = crate::golden::decompress(layer, *compression);
        let reference = Ztoc::parse(blob).unwrap().span_table();
        // Half of the flips go to where structure is dense.
        let at = match near_end {
            None => anywhere.index(blob.len()),
            Some(near) if near % 2 == 0 => near,
            Some(near) => blob.len() - 1 - near,
        };
        let in_window = |id| reference.window_at(id).is_some_and(|window| window.contains(&(at as u64)));
        let in_some_window = (0..reference.len()).map(SpanId).any(in_window);
        let mut damaged = blob.clone();
        damaged[at] ^= 1 << bit;
        let Ok(ztoc) = Ztoc::parse(&damaged) else { return Ok(()) };
        prop_assert_eq!(Ztoc::parse(&ztoc.encode()), Ok(ztoc.clone()));
        let table = ztoc.span_table();
        let mut out = Vec::new();
        for id in (0..table.len()).map(SpanId) {
            let span = table.span(id);
            let Some(compressed) = usize::try_from(span.compressed.end)
                .ok()
                .and_then(|end| layer.get(usize::try_from(span.compressed.start).unwrap()..end))
            else {
                continue;
            };
            if table.extract(id, compressed, window(&table, &damaged, id), &mut out).is_ok() {
                let truth = slice(&tar, reference.span(id).uncompressed.start..tar.len() as u64);
                prop_assert!(in_some_window || truth.starts_with(&out), "{id}");
            }
        }
    }
}

fn cases() -> &'static [Golden] {
    static CASES: std::sync::OnceLock<Vec<Golden>> = std::sync::OnceLock::new();
    CASES.get_or_init(crate::golden::all)
}

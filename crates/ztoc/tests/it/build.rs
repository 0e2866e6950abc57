//! Building zTOCs, compared with those that soci built of the same layers.

use soci_ztoc::{BuildOptions, Builder, Compression, Ztoc, build};

fn options(golden: &crate::golden::Golden) -> BuildOptions {
    let expected = Ztoc::parse(&golden.blob).unwrap();
    BuildOptions {
        span_size: crate::golden::SPAN_SIZE,
        build_tool_identifier: expected.build_tool_identifier,
        diff_id: true,
        max_size: None,
    }
}

#[test]
fn what_we_build_is_byte_for_byte_what_soci_built() {
    for golden in crate::golden::all() {
        let built = build(
            golden.layer.as_slice(),
            golden.compression,
            options(&golden),
        )
        .unwrap_or_else(|error| panic!("{}: {error}", golden.name));
        let expected = Ztoc::parse(&golden.blob).unwrap();
        // Field by field first: a difference says where.
        assert_eq!(built.ztoc.version, expected.version, "{}", golden.name);
        assert_eq!(
            built.ztoc.build_tool_identifier,
            expected.build_tool_identifier
        );
        assert_eq!(
            built.ztoc.compressed_archive_size,
            expected.compressed_archive_size
        );
        assert_eq!(
            built.ztoc.uncompressed_archive_size,
            expected.uncompressed_archive_size
        );
        assert_eq!(built.ztoc.toc.len(), expected.toc.len(), "{}", golden.name);
        for (ours, theirs) in built.ztoc.toc.iter().zip(&expected.toc) {
            assert_eq!(ours, theirs, "{}", golden.name);
        }
        let (ours, theirs) = (&built.ztoc.compression, &expected.compression);
        assert_eq!(ours.algorithm, theirs.algorithm, "{}", golden.name);
        assert_eq!(ours.span_digests, theirs.span_digests, "{}", golden.name);
        assert!(
            ours.checkpoints == theirs.checkpoints,
            "{}: checkpoints",
            golden.name
        );
        assert!(
            built.ztoc.encode() == golden.blob,
            "{}: other bytes",
            golden.name
        );
        println!("{}: the same bytes", golden.name);

        let tar = crate::golden::decompress(&golden.layer, golden.compression);
        assert_eq!(built.compressed_digest, soci_oci::Digest::of(&golden.layer));
        assert_eq!(built.diff_id, Some(soci_oci::Digest::of(&tar)));
    }
}

#[test]
fn the_size_of_the_pieces_does_not_matter() {
    for golden in crate::golden::all() {
        for piece in [1, 7, 511, 4096, 100_003] {
            // Byte by byte is slow; one case of each kind shows it.
            if piece == 1
                && !golden.name.starts_with("kinds")
                && !golden.name.starts_with("uncompressed")
            {
                continue;
            }
            let mut builder = Builder::new(golden.compression, options(&golden)).unwrap();
            golden
                .layer
                .chunks(piece)
                .for_each(|piece| builder.write(piece).unwrap());
            let built = builder.finish().unwrap();
            assert!(
                built.ztoc.encode() == golden.blob,
                "{} in pieces of {piece}",
                golden.name
            );
        }
    }
}

#[test]
fn a_span_size_that_no_checkpoint_can_state_is_refused() {
    let largest = i64::MAX.unsigned_abs();
    for (span_size, taken) in [
        (0, true),
        (largest, true),
        (largest + 1, false),
        (u64::MAX, false),
    ] {
        let options = BuildOptions {
            span_size,
            ..BuildOptions::default()
        };
        let builder = Builder::new(Compression::Gzip, options);
        assert_eq!(builder.is_ok(), taken, "{span_size}");
    }
}

//! Reading and writing zTOCs that soci wrote.

mod golden;

use ztoc::{Checkpoints, Ztoc};

#[test]
fn every_golden_ztoc_is_written_back_in_the_same_bytes() {
    for golden in golden::all() {
        assert_eq!(oci::Digest::of(&golden.blob), golden.digest, "{}", golden.name);
        let ztoc = Ztoc::parse(&golden.blob).unwrap_or_else(|error| panic!("{}: {error}", golden.name));
        assert!(!ztoc.toc.is_empty(), "{}", golden.name);
        assert!(ztoc.encode() == golden.blob, "{}: other bytes", golden.name);
    }
}

#[test]
fn sizes_are_those_of_the_layer() {
    for golden in golden::all() {
        let ztoc = Ztoc::parse(&golden.blob).unwrap();
        let tar = golden::decompress(&golden.layer, golden.compression);
        println!("{} {} {} {} {}", golden.name, ztoc.compressed_archive_size, golden.layer.len(), ztoc.uncompressed_archive_size, tar.len());
        assert_eq!(ztoc.compressed_archive_size, golden.layer.len() as u64, "{}", golden.name);
        assert!(ztoc.uncompressed_archive_size <= tar.len() as u64, "{}", golden.name);
        assert_eq!(ztoc.compression.algorithm, golden.compression);
        match &ztoc.compression.checkpoints {
            Checkpoints::Gzip(gzip) => println!("{:?}", gzip.points),
            Checkpoints::Tar(tar) => println!("{tar:?}"),
        }
    }
}

#[test]
fn windows_are_where_the_span_table_says() {
    for golden in golden::all() {
        let ztoc = Ztoc::parse(&golden.blob).unwrap();
        let table = ztoc.span_table();
        let Checkpoints::Gzip(gzip) = &ztoc.compression.checkpoints else { continue };
        for (number, id) in (0..table.len()).map(ztoc::SpanId).enumerate() {
            let stored = table.window_at(id).map(|window| {
                &golden.blob[usize::try_from(window.start).unwrap()..usize::try_from(window.end).unwrap()]
            });
            assert!(stored == gzip.window(number), "{} span {id}", golden.name);
        }
    }
}

//! Reading and writing zTOCs that soci wrote.

use soci_ztoc::{Checkpoints, FileMetadata, FileType, Ztoc};

#[test]
fn every_golden_ztoc_is_written_back_in_the_same_bytes() {
    for golden in crate::golden::all() {
        assert_eq!(
            soci_oci::Digest::of(&golden.blob),
            golden.digest,
            "{}",
            golden.name
        );
        let ztoc =
            Ztoc::parse(&golden.blob).unwrap_or_else(|error| panic!("{}: {error}", golden.name));
        assert!(!ztoc.toc.is_empty(), "{}", golden.name);
        assert!(ztoc.encode() == golden.blob, "{}: other bytes", golden.name);
    }
}

#[test]
fn sizes_are_those_of_the_layer() {
    for golden in crate::golden::all() {
        let ztoc = Ztoc::parse(&golden.blob).unwrap();
        let tar = crate::golden::decompress(&golden.layer, golden.compression);
        assert_eq!(
            ztoc.compressed_archive_size,
            golden.layer.len() as u64,
            "{}",
            golden.name
        );
        assert!(
            ztoc.uncompressed_archive_size <= tar.len() as u64,
            "{}",
            golden.name
        );
        assert_eq!(ztoc.compression.algorithm, golden.compression);
        assert_eq!(
            ztoc.compression.checkpoints.span_size(),
            crate::golden::SPAN_SIZE
        );
    }
}

#[test]
fn windows_are_where_the_span_table_says() {
    for golden in crate::golden::all() {
        let ztoc = Ztoc::parse(&golden.blob).unwrap();
        let table = ztoc.span_table();
        let Checkpoints::Gzip(gzip) = &ztoc.compression.checkpoints else {
            continue;
        };
        for (number, id) in (0..table.len()).map(soci_ztoc::SpanId).enumerate() {
            let stored = table.window_at(id).map(|window| {
                &golden.blob
                    [usize::try_from(window.start).unwrap()..usize::try_from(window.end).unwrap()]
            });
            assert!(stored == gzip.window(number), "{} span {id}", golden.name);
        }
    }
}

#[test]
fn ztoc_info_says_the_same_as_socis() {
    let mut seen = 0;
    for golden in crate::golden::all() {
        let case = golden.name.split('/').next().unwrap();
        let info = crate::golden::root().join(case).join("ztoc-info");
        let Ok(info) = std::fs::read(info.join(format!("{}.json", golden.digest.hex()))) else {
            assert!(
                golden.name.contains("soci-v1-old"),
                "{}: no ztoc-info",
                golden.name
            );
            continue;
        };
        seen += 1;
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        let ztoc = Ztoc::parse(&golden.blob).unwrap();
        let table = ztoc.span_table();
        assert_eq!(info["version"], ztoc.version);
        assert_eq!(info["build_tool"], ztoc.build_tool_identifier);
        assert_eq!(info["size"], golden.blob.len());
        assert_eq!(info["span_size"], ztoc.compression.checkpoints.span_size());
        assert_eq!(info["num_spans"], table.len());
        assert_eq!(info["num_files"], ztoc.toc.len());
        for (file, entry) in info["files"].as_array().unwrap().iter().zip(&ztoc.toc) {
            assert_eq!(
                file["filename"],
                String::from_utf8_lossy(&entry.name).into_owned()
            );
            assert_eq!(file["offset"], entry.uncompressed_offset);
            assert_eq!(file["size"], entry.uncompressed_size);
            assert_eq!(file["type"], entry.file_type.as_str());
            let start = table.at_uncompressed(entry.uncompressed_offset).unwrap();
            assert_eq!(file["start_span"], start.0, "{}", golden.name);
            // soci's end is the span of the byte behind the file.
            let end = table.at_uncompressed(entry.uncompressed_offset + entry.uncompressed_size);
            assert_eq!(file["end_span"], end.unwrap().0, "{}", golden.name);
        }
    }
    assert_eq!(seen, 11);
}

#[test]
fn bytes_that_are_no_ztoc_are_refused() {
    let golden = &crate::golden::all()[0];
    for len in [
        0,
        1,
        3,
        4,
        8,
        100,
        1000,
        golden.blob.len() / 2,
        golden.blob.len() - 100,
    ] {
        assert!(Ztoc::parse(&golden.blob[..len]).is_err(), "{len}");
        assert!(Ztoc::parse(&vec![0; len]).is_err(), "{len} zeros");
        assert!(Ztoc::parse(&vec![0xff; len]).is_err(), "{len} ones");
    }
}

/// Changes a golden zTOC and expects it to be refused when it is read back.
fn refused(change: impl Fn(&mut Ztoc)) {
    for golden in crate::golden::all() {
        let mut ztoc = Ztoc::parse(&golden.blob).unwrap();
        change(&mut ztoc);
        assert!(Ztoc::parse(&ztoc.encode()).is_err(), "{}", golden.name);
    }
}

#[test]
fn a_ztoc_that_contradicts_itself_is_refused() {
    refused(|ztoc| ztoc.version = "1.0".to_owned());
    refused(|ztoc| ztoc.compression.span_digests.truncate(0));
    refused(|ztoc| {
        ztoc.compression
            .span_digests
            .push(soci_oci::Digest::of(b""))
    });
    refused(|ztoc| ztoc.compressed_archive_size = 5);
    refused(|ztoc| ztoc.compressed_archive_size = u64::MAX);
    refused(|ztoc| ztoc.uncompressed_archive_size = 512);
    refused(|ztoc| ztoc.uncompressed_archive_size = 1 << 50);
    refused(|ztoc| ztoc.toc[1].uncompressed_offset = 1);
    refused(|ztoc| ztoc.toc[0].uncompressed_offset = u64::MAX);
    refused(|ztoc| {
        let first = ztoc.toc.iter_mut().find(|entry| entry.content_len() > 0);
        if let Some(first) = first {
            first.uncompressed_size = i64::MAX.cast_unsigned();
        } else {
            ztoc.uncompressed_archive_size = 0;
        }
    });
}

/// Entries that all refer to one and the same name are no way to make a small zTOC large.
#[test]
fn a_ztoc_that_would_grow_in_memory_is_refused() {
    const ENTRIES: usize = 10;
    let golden = crate::golden::all()
        .into_iter()
        .find(|golden| golden.name.starts_with("kinds"))
        .unwrap();
    let mut ztoc = Ztoc::parse(&golden.blob).unwrap();
    let small = ztoc.toc[0].clone();
    ztoc.toc = vec![small; ENTRIES];
    ztoc.toc[0].name = vec![b'n'; 1 << 20];
    ztoc.toc
        .iter_mut()
        .zip(1..)
        .for_each(|(entry, block)| entry.uncompressed_offset = 512 * block);
    let mut blob = ztoc.encode();
    assert_eq!(Ztoc::parse(&blob).as_ref(), Ok(&ztoc));
    // The vector of entries: their number, then the distances to tables that follow one another.
    let vector = (0..blob.len() - 4 * (ENTRIES + 1)).find(|at| {
        let targets = (1..=ENTRIES).map(|entry| at + 4 * entry + distance(&blob, at + 4 * entry));
        distance(&blob, *at) == ENTRIES
            && targets.clone().is_sorted()
            && targets.clone().min() >= Some(at + 4 * (ENTRIES + 1))
            && targets.max() < Some(blob.len())
    });
    let first = vector.expect("the entries' vector") + 4;
    let target = first + distance(&blob, first);
    for at in (first..).step_by(4).take(ENTRIES) {
        blob[at..at + 4].copy_from_slice(&u32::try_from(target - at).unwrap().to_le_bytes());
    }
    let refused = Ztoc::parse(&blob).unwrap_err();
    assert!(
        matches!(refused, soci_ztoc::ZtocError::TooMuchWork { .. }),
        "{refused}"
    );
}

/// The limit on that growth leaves room for entries that say as little as they can.
#[test]
fn a_ztoc_of_nothing_but_the_smallest_entries_is_read() {
    let golden = crate::golden::all().into_iter().next().unwrap();
    let mut ztoc = Ztoc::parse(&golden.blob).unwrap();
    let smallest = FileMetadata {
        name: b"n".to_vec(),
        file_type: FileType::Reg,
        uncompressed_offset: 0,
        uncompressed_size: 0,
        linkname: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        uname: Vec::new(),
        gname: Vec::new(),
        mod_time: String::new(),
        devmajor: 0,
        devminor: 0,
        xattrs: Vec::new(),
    };
    let count = ztoc.uncompressed_archive_size / 512;
    ztoc.toc = (1..=count)
        .map(|block| FileMetadata {
            uncompressed_offset: 512 * block,
            ..smallest.clone()
        })
        .collect();
    let blob = ztoc.encode();
    assert_eq!(Ztoc::parse(&blob).as_ref(), Ok(&ztoc));
    // Also without the room that the windows give: an entry counts as 96 bytes and its texts.
    let entries = ztoc.toc.len();
    ztoc.toc.clear();
    let each = (blob.len() - ztoc.encode().len()) / entries;
    assert!(entries > 10 && 2 * each > 96 + 1, "{entries} of {each}");
}

fn distance(blob: &[u8], at: usize) -> usize {
    u32::from_le_bytes(blob[at..at + 4].try_into().unwrap()) as usize
}

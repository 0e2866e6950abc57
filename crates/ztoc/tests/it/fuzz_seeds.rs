//! The fuzz targets' functions over golden data and mutations of it, for plain `cargo test`.

use proptest::prelude::*;

/// Bytes changed, removed, repeated: what a fuzzer tries first.
#[derive(Debug, Clone)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Set(prop::sample::Index, u8),
    Word(prop::sample::Index, u32),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        4 => (index(), any::<u8>()).prop_map(|(at, value)| Mutation::Set(at, value)),
        4 => (index(), any::<u32>()).prop_map(|(at, value)| Mutation::Word(at, value >> (value & 31))),
        1 => index().prop_map(Mutation::Cut),
        1 => (index(), 1..64_usize).prop_map(|(at, len)| Mutation::Remove(at, len)),
        1 => (index(), 1..64_usize).prop_map(|(at, len)| Mutation::Repeat(at, len)),
    ]
}

fn mutate(seed: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut data = seed.to_vec();
    for mutation in mutations {
        if data.is_empty() {
            break;
        }
        let len = data.len();
        // Both ends of the golden blobs are denser than the middle.
        let place = |at: &prop::sample::Index| {
            let at = at.index(3 * len);
            match at / len {
                0 => at,
                1 => at % len.min(2048),
                _ => len - 1 - at % len.min(16384),
            }
        };
        match mutation {
            Mutation::Flip(at, bit) => data[place(at)] ^= 1 << bit,
            Mutation::Set(at, value) => data[place(at)] = *value,
            Mutation::Word(at, value) => {
                let at = place(at) & !3;
                data[at..len.min(at + 4)]
                    .iter_mut()
                    .zip(value.to_le_bytes())
                    .for_each(|(to, from)| *to = from);
            }
            Mutation::Cut(at) => data.truncate(place(at)),
            Mutation::Remove(at, count) => drop(data.drain(place(at)..len.min(place(at) + count))),
            Mutation::Repeat(at, count) => {
                let (start, end) = (place(at), len.min(place(at) + count));
                let piece = data[start..end].to_vec();
                data.splice(start..start, piece);
            }
        }
    }
    data
}

/// The golden data that a target starts from.
fn seeds(layers: bool) -> Vec<Vec<u8>> {
    crate::golden::all()
        .into_iter()
        .map(|golden| if layers { golden.layer } else { golden.blob })
        .collect()
}

fn run(target: fn(&[u8]), seeds: &[Vec<u8>], cases: u32) {
    for seed in seeds {
        target(seed);
        let config = ProptestConfig {
            cases,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let mutations = prop::collection::vec(mutation(), 1..6);
        runner
            .run(&mutations, |mutations| {
                target(&mutate(seed, &mutations));
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn ztoc_parse_holds() {
    run(soci_ztoc::fuzz::ztoc_parse, &seeds(false), 100);
}

#[test]
fn tar_zinfo_holds() {
    let seeds: Vec<_> = crate::golden::all()
        .into_iter()
        .filter(|golden| golden.name.starts_with("uncompressed"))
        .collect();
    let soci_ztoc::Checkpoints::Tar(tar) = soci_ztoc::Ztoc::parse(&seeds[0].blob)
        .unwrap()
        .compression
        .checkpoints
    else {
        panic!()
    };
    run(
        soci_ztoc::fuzz::tar_zinfo,
        &[tar.encode(), seeds[0].blob.clone()],
        500,
    );
}

#[test]
fn gzip_checkpoints_holds() {
    let mut seed = [2_i32.to_le_bytes().to_vec(), 100_i64.to_le_bytes().to_vec()].concat();
    for (input, output, bits) in [(10_i64, 0_i64, 0_u8), (60, 300, 5)] {
        seed.extend([&input.to_le_bytes()[..], &output.to_le_bytes(), &[bits]].concat());
    }
    run(soci_ztoc::fuzz::gzip_checkpoints, &[seed], 2000);
}

#[test]
fn soci_index_holds() {
    let seeds: Vec<_> = crate::golden::v1_folders()
        .iter()
        .map(|folder| crate::golden::index(folder).1)
        .collect();
    run(soci_ztoc::fuzz::soci_index, &seeds, 300);
}

#[test]
fn prefetch_holds() {
    let seed =
        br#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":2,"priority":1}]}"#;
    run(soci_ztoc::fuzz::prefetch, &[seed.to_vec()], 2000);
}

#[test]
fn build_gzip_holds() {
    let mut seeds = seeds(true);
    // The tar inside, too: mutations of it get past the checksum of gzip.
    seeds.push(crate::golden::decompress(
        &seeds[7],
        soci_ztoc::Compression::Gzip,
    ));
    run(soci_ztoc::fuzz::build_gzip, &seeds, 12);
}

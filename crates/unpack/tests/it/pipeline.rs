//! Layers through the pipeline, from a registry that misbehaves, from this machine, and through programs
//! that fail. Needs root and docker-registry.

use std::fs;
use std::io::{self, Cursor};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use soci_layer::LowerLayer;
use soci_oci::{Descriptor, Digest, media_types};
use soci_registry::{Client, ClientConfig, NoCredentials};
use soci_testkit::{
    Content, Fault, ImageBuilder, Layer, LayerCompression, Rule, TestRoot, Throttle,
};
use soci_unpack::{
    ApplyOptions, CompressedSink, Decompressor, Decompressors, Demand, ImageLimits, ImageShare,
    LayerBlob, LayerProgress, LowerDirectory, Pipeline, PipelineConfig, PipelineRequest,
    ProgramError, SpeedLimits, Stage, StoredCheckpoints, UnpackError, UnpackedLayer, decompress,
};
use soci_ztoc::{BuildOptions, Builder, Compression, EntryPoints, Ztoc};
use tokio_util::sync::CancellationToken;

use crate::unpacker::{World, run};

/// More than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(150);
const LARGE: u64 = 20 << 20;
const CHUNK: u64 = 2 << 20;

fn large(layers: u64) -> World {
    noise(layers, LARGE)
}

/// Layers of so many bytes each.
fn noise(layers: u64, length: u64) -> World {
    let image = (0..layers).fold(ImageBuilder::new(), |image, seed| {
        let content = Content::Noise { seed, length };
        let layer = Layer::new().file("large", content).text("last", "last");
        image.layer(layer)
    });
    World::new(image)
}

pub(crate) fn client() -> Client {
    let mut config = ClientConfig::default();
    config.retries.max_retries = 3;
    config.retries.min_wait = Duration::from_millis(5);
    config.retries.max_wait = Duration::from_millis(20);
    // A test that has to wait for it fails.
    config.idle_timeout = 2 * PATIENCE;
    Client::new(config, Arc::new(NoCredentials)).unwrap()
}

fn limits() -> ImageLimits {
    ImageLimits {
        downloads: 4,
        unpacks: 2,
        chunk: Some(CHUNK),
    }
}

pub(crate) fn diff_id(world: &World, number: usize) -> Digest {
    let digest = world.image.layers[number].digest;
    let blob = fs::read(world.image.dir.join("blobs/sha256").join(digest.hex())).unwrap();
    let mut tar = Vec::new();
    io::copy(&mut decompress(&blob[..]).unwrap(), &mut tar).unwrap();
    Digest::of(&tar)
}

fn request(world: &World, number: usize, directory: &Path) -> PipelineRequest {
    let layer = world.layer(number);
    let descriptor = world.image.layers[number].clone();
    PipelineRequest {
        blob: LayerBlob::Remote(client().blob(&layer.reference, &descriptor)),
        descriptor,
        diff_id: diff_id(world, number),
        order: number,
        directory: directory.to_owned(),
        options: ApplyOptions::default(),
        store: None,
        progress: Arc::<LayerProgress>::default(),
        first_byte: None,
    }
}

pub(crate) async fn unpack(
    share: &ImageShare,
    request: PipelineRequest,
) -> Result<UnpackedLayer, UnpackError> {
    let cancel = CancellationToken::new();
    let unpacked = share.unpack(request, &cancel);
    tokio::time::timeout(PATIENCE, Box::pin(unpacked))
        .await
        .unwrap()
}

/// A layer on this machine, as gzip unless it is given otherwise.
fn local(tar: &[u8], packed: &[u8], directory: &Path) -> PipelineRequest {
    PipelineRequest {
        blob: LayerBlob::Local(Box::new(Cursor::new(packed.to_vec()))),
        descriptor: Descriptor::of(media_types::OCI_LAYER_GZIP, packed),
        diff_id: Digest::of(tar),
        order: 0,
        directory: directory.to_owned(),
        options: ApplyOptions::default(),
        store: None,
        progress: Arc::<LayerProgress>::default(),
        first_byte: None,
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    let mut packed = Vec::new();
    io::copy(&mut gzip, &mut packed).unwrap();
    packed
}

pub(crate) fn tar(layer: &Layer) -> Vec<u8> {
    let mut tar = Vec::new();
    layer.write_tar(&mut tar).unwrap();
    tar
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

/// Nothing is under way, and nothing is held.
fn is_idle(pipeline: &Pipeline) -> bool {
    let usage = pipeline.usage();
    (usage.memory, usage.requests, usage.unpacking) == (0, 0, 0)
        && (usage.requests_waiting, usage.unpacks_waiting) == (0, 0)
}

async fn becomes_idle(pipeline: &Pipeline) {
    let idle = async {
        while !is_idle(pipeline) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, idle).await.unwrap();
}

#[test]
fn requests_are_as_large_and_as_many_at_a_time_as_they_may_be() {
    let world = large(1);
    world.proxy.throttle(Throttle {
        first_byte: Duration::from_millis(50),
        ..Throttle::default()
    });
    let folder = world.root.dir("fs").unwrap();
    let pipeline = Pipeline::new(PipelineConfig::default());
    let progress = run(async {
        let request = request(&world, 0, &folder);
        let progress = Arc::clone(&request.progress);
        unpack(&pipeline.image(limits()), request).await.unwrap();
        becomes_idle(&pipeline).await;
        progress
    });
    let stats = world.proxy.stats();
    let digest = world.image.layers[0].digest.to_string();
    let blobs = || stats.log.iter().filter(|r| r.path.ends_with(&digest));
    let bounds = |range: &str| -> (u64, u64) {
        let (first, last) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        (first.parse().unwrap(), last.parse().unwrap())
    };
    for record in blobs() {
        let (first, last) = bounds(record.range.as_ref().unwrap());
        assert!(last - first < CHUNK + CHUNK / 8, "{record:?}");
    }
    assert_eq!(blobs().count() as u64, LARGE / CHUNK);
    assert!(
        (2..=4).contains(&stats.peak_in_flight),
        "{}",
        stats.peak_in_flight
    );
    let size = world.image.layers[0].size;
    let counted = progress.downloaded.load(Ordering::Relaxed);
    assert_eq!((counted, progress.stage()), (size, Stage::Done));
    assert_eq!(fs::metadata(folder.join("large")).unwrap().len(), LARGE);
}

#[test]
fn a_layer_that_must_come_in_one_request_does() {
    let world = large(1);
    let folder = world.root.dir("fs").unwrap();
    let budget = 8 << 20;
    let pipeline = Pipeline::new(PipelineConfig {
        memory: Some(budget),
        ..PipelineConfig::default()
    });
    let whole = ImageLimits {
        chunk: None,
        ..limits()
    };
    run(unpack(&pipeline.image(whole), request(&world, 0, &folder))).unwrap();
    let asked = world.proxy.stats().blob(world.image.layers[0].digest);
    assert_eq!(asked.requests, 1);
    assert!(pipeline.usage().memory_peak <= budget);
}

#[test]
fn what_goes_wrong_in_the_middle_of_a_layer_is_made_good() {
    let busy = Fault::Status {
        status: 429,
        headers: vec![("Retry-After".to_owned(), "0".to_owned())],
        body: String::new(),
    };
    let faults = [
        ("cut", Fault::Truncate(300_000), 4),
        ("reset", Fault::ResetAfter(1_000_000), 4),
        ("short", Fault::Shorten(100_000), 4),
        ("ignored", Fault::IgnoreRange, 3),
        ("elsewhere", Fault::WrongContentRange(512), 2),
        ("busy", busy, 6),
        ("damaged", Fault::CorruptBlob(9_000_000), 1),
    ];
    for (name, fault, times) in faults {
        let world = large(1);
        let digest = world.image.layers[0].digest;
        let rule = Rule::always(fault).blob(digest);
        // Damage lies in one of the answers.
        world.proxy.inject(match name {
            "damaged" => rule,
            _ => rule.times(times).from_nth(2),
        });
        let folder = world.root.dir("fs").unwrap();
        let pipeline = Pipeline::new(PipelineConfig::default());
        run(async {
            let share = pipeline.image(limits());
            if name == "damaged" {
                let error = unpack(&share, request(&world, 0, &folder))
                    .await
                    .unwrap_err();
                assert!(error.to_string().contains("digest"), "{name}: {error}");
                assert!(is_empty(&folder), "{name}");
                world.proxy.clear_faults();
            }
            let unpacked = unpack(&share, request(&world, 0, &folder)).await;
            let unpacked = unpacked.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(unpacked.compressed_size, world.image.layers[0].size);
            becomes_idle(&pipeline).await;
        });
        assert_eq!(fs::metadata(folder.join("large")).unwrap().len(), LARGE);
        assert!(world.proxy.faults_injected() > 0, "{name}");
    }
}

#[test]
fn an_image_that_comes_later_gets_half_of_the_requests_whatever_the_other_has_under_way() {
    let world = noise(4, 6 << 20);
    world.proxy.throttle(Throttle {
        per_response: Some(4 << 20),
        ..Throttle::default()
    });
    let pipeline = Pipeline::new(PipelineConfig {
        downloads: Some(4),
        ..PipelineConfig::default()
    });
    let limits = ImageLimits {
        downloads: 20,
        unpacks: 12,
        chunk: Some(512 << 10),
    };
    let begin = |share: &ImageShare, number: usize| {
        let folder = world.root.dir(&format!("fs-{number}")).unwrap();
        let (share, request) = (share.clone(), request(&world, number, &folder));
        tokio::spawn(async move { unpack(&share, request).await })
    };
    run(async {
        let first = pipeline.image(limits);
        let mut layers: Vec<_> = (0..3).map(|number| begin(&first, number)).collect();
        let filled = async {
            while pipeline.usage().requests < 4 || pipeline.usage().unpacking < 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, filled).await.unwrap();
        layers.push(begin(&pipeline.image(limits), 3));
        for layer in layers {
            layer.await.unwrap().unwrap();
        }
        becomes_idle(&pipeline).await;
    });
    // From the other's first request to its last, the first image made as many: with what each of its layers
    // wants it would have made all of them before.
    let log = world.proxy.stats().log;
    let of_other = world.image.layers[3].digest.to_string();
    let ranged = log.iter().filter(|record| record.range.is_some());
    let of_other: Vec<bool> = ranged.map(|r| r.path.ends_with(&of_other)).collect();
    let from = of_other.iter().position(|other| *other).unwrap();
    let to = of_other.iter().rposition(|other| *other).unwrap();
    let (own, all) = (of_other.iter().filter(|o| **o).count(), to - from + 1);
    assert!(all <= 3 * own && own >= 10, "{own} of {all}");
}

#[test]
fn an_image_is_unpacked_beside_another_one_whose_layers_do_not_end() {
    // More layers than are unpacked at a time on any machine.
    let (stuck, other) = (noise(26, 1 << 20), noise(1, 1 << 20));
    let hang = Fault::HangAfter(100_000);
    stuck.proxy.inject(Rule::always(hang).ranged(true));
    let pipeline = Pipeline::new(PipelineConfig {
        speed: SpeedLimits {
            period: 2 * PATIENCE,
            ..SpeedLimits::default()
        },
        ..PipelineConfig::default()
    });
    let limits = ImageLimits {
        unpacks: 30,
        chunk: Some(256 << 10),
        ..limits()
    };
    run(async {
        let (share, cancel) = (pipeline.image(limits), CancellationToken::new());
        let mut layers: Vec<_> = (0..26)
            .map(|number| {
                let folder = stuck.root.dir(&format!("fs-{number}")).unwrap();
                let (share, request) = (share.clone(), request(&stuck, number, &folder));
                let cancel = cancel.clone();
                tokio::spawn(async move { share.unpack(request, &cancel).await })
            })
            .collect();
        let waits = async {
            while pipeline.usage().unpacks_waiting == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.unwrap();
        let folder = other.root.dir("fs").unwrap();
        let later = pipeline.image(limits);
        unpack(&later, request(&other, 0, &folder)).await.unwrap();
        // Nothing waits for the silent registry: neither if a layer is cancelled, nor if its caller is gone.
        let gone = layers.split_off(13);
        gone.iter().for_each(tokio::task::JoinHandle::abort);
        cancel.cancel();
        for layer in layers {
            let error = layer.await.unwrap().unwrap_err();
            assert!(matches!(error, UnpackError::Cancelled), "{error}");
        }
        becomes_idle(&pipeline).await;
    });
}

#[test]
fn a_registry_that_fails_ends_its_layer_only() {
    let bad = large(2);
    let good = large(1);
    let digest = bad.image.layers[1].digest;
    bad.proxy
        .inject(Rule::always(Fault::status(500)).blob(digest).from_nth(1));
    let folders = ["a", "b", "c"].map(|name| bad.root.dir(name).unwrap());
    let pipeline = Pipeline::new(PipelineConfig::default());
    run(async {
        let (one, two) = (pipeline.image(limits()), pipeline.image(limits()));
        let (first, second, other) = tokio::join!(
            unpack(&one, request(&bad, 0, &folders[0])),
            unpack(&one, request(&bad, 1, &folders[1])),
            unpack(&two, request(&good, 0, &folders[2])),
        );
        first.unwrap();
        other.unwrap();
        let error = second.unwrap_err();
        assert!(matches!(error, UnpackError::Registry { .. }), "{error}");
        becomes_idle(&pipeline).await;
    });
    assert!(is_empty(&folders[1]));
}

#[test]
fn memory_stays_within_the_budget_however_many_layers_there_are() {
    let world = large(5);
    world.proxy.throttle(Throttle {
        first_byte: Duration::from_millis(10),
        ..Throttle::default()
    });
    let budget = 8 << 20;
    let pipeline = Pipeline::new(PipelineConfig {
        memory: Some(budget),
        ..PipelineConfig::default()
    });
    run(async {
        let share = pipeline.image(ImageLimits {
            downloads: 20,
            unpacks: 1,
            chunk: Some(16 << 20),
        });
        let layers = (0..5).map(|number| {
            let folder = world.root.dir(&format!("fs-{number}")).unwrap();
            let share = share.clone();
            let request = request(&world, number, &folder);
            tokio::spawn(async move { unpack(&share, request).await })
        });
        for layer in layers.collect::<Vec<_>>() {
            layer.await.unwrap().unwrap();
        }
        becomes_idle(&pipeline).await;
    });
    let peak = pipeline.usage().memory_peak;
    assert!(peak > 0 && peak <= budget, "{peak}");
}

#[test]
fn layers_that_wait_for_their_turn_never_hold_up_the_one_that_has_it() {
    let world = large(4);
    // Less than two requests take.
    let pipeline = Pipeline::new(PipelineConfig {
        memory: Some(4 << 20),
        ..PipelineConfig::default()
    });
    for chunk in [None, Some(16 << 20)] {
        run(async {
            let share = pipeline.image(ImageLimits {
                downloads: 2,
                unpacks: 1,
                chunk,
            });
            // The upper ones begin first.
            let layers = (0..4).rev().map(|number| {
                let name = format!("fs-{number}-{}", chunk.is_some());
                let folder = world.root.dir(&name).unwrap();
                let share = share.clone();
                let request = request(&world, number, &folder);
                tokio::spawn(async move { unpack(&share, request).await })
            });
            for layer in layers.collect::<Vec<_>>() {
                layer.await.unwrap().unwrap();
            }
            becomes_idle(&pipeline).await;
        });
    }
}

#[test]
fn while_readers_wait_one_request_of_the_daemon_continues() {
    let world = large(2);
    world.proxy.throttle(Throttle {
        first_byte: Duration::from_millis(30),
        ..Throttle::default()
    });
    let pipeline = Pipeline::new(PipelineConfig {
        demand: Some(Demand::new(|| true)),
        ..PipelineConfig::default()
    });
    let folders = ["a", "b"].map(|name| world.root.dir(name).unwrap());
    run(async {
        // Two images.
        let shares = [(); 2].map(|()| pipeline.image(limits()));
        let [first, second] = [0, 1].map(|layer| {
            let request = request(&world, layer, &folders[layer]);
            unpack(&shares[layer], request)
        });
        let (first, second) = tokio::join!(Box::pin(first), Box::pin(second));
        first.unwrap();
        second.unwrap();
        becomes_idle(&pipeline).await;
    });
    assert_eq!(world.proxy.stats().peak_in_flight, 1);
}

#[test]
fn what_is_under_way_when_readers_begin_to_wait_is_left_unread_but_for_one_request() {
    let world = large(3);
    world.proxy.throttle(Throttle {
        per_response: Some(4 << 20),
        ..Throttle::default()
    });
    let waiting = Arc::new(AtomicBool::new(false));
    let readers = waiting.clone();
    let pipeline = Pipeline::new(PipelineConfig {
        demand: Some(Demand::new(move || readers.load(Ordering::Relaxed))),
        ..PipelineConfig::default()
    });
    let folders = ["a", "b", "c"].map(|name| world.root.dir(name).unwrap());
    let under_way = async |most: bool| {
        let reached = async {
            while (pipeline.usage().requests > 1) != most {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap();
    };
    run(async {
        let share = pipeline.image(ImageLimits {
            // Each layer in one request.
            chunk: None,
            downloads: 4,
            unpacks: 3,
        });
        let layers = [0, 1, 2].map(|layer| {
            let request = request(&world, layer, &folders[layer]);
            Box::pin(unpack(&share, request))
        });
        let observed = async {
            under_way(true).await;
            waiting.store(true, Ordering::Relaxed);
            under_way(false).await;
            assert!(!is_idle(&pipeline), "one request continues");
            waiting.store(false, Ordering::Relaxed);
            under_way(true).await;
        };
        let (unpacked, ()) = tokio::join!(futures::future::join_all(layers), observed);
        for layer in unpacked {
            layer.unwrap();
        }
        becomes_idle(&pipeline).await;
    });
}

#[test]
fn a_layer_that_comes_too_slowly_is_given_up() {
    let world = large(1);
    let digest = world.image.layers[0].digest;
    world.proxy.inject(
        Rule::always(Fault::HangAfter(100_000))
            .blob(digest)
            .from_nth(1),
    );
    let folder = world.root.dir("fs").unwrap();
    let pipeline = Pipeline::new(PipelineConfig {
        speed: SpeedLimits {
            period: Duration::from_secs(2),
            ..SpeedLimits::default()
        },
        ..PipelineConfig::default()
    });
    let error = run(unpack(
        &pipeline.image(limits()),
        request(&world, 0, &folder),
    ))
    .unwrap_err();
    assert!(matches!(error, UnpackError::Registry { .. }), "{error}");
    assert!(is_empty(&folder));
}

#[test]
fn a_cancelled_layer_leaves_nothing() {
    let world = large(2);
    world.proxy.throttle(Throttle {
        per_response: Some(200_000),
        ..Throttle::default()
    });
    let folders = ["a", "b"].map(|name| world.root.dir(name).unwrap());
    let pipeline = Pipeline::new(PipelineConfig::default());
    run(async {
        let cancel = CancellationToken::new();
        // One is unpacked, the other one waits for its turn.
        let share = pipeline.image(ImageLimits {
            unpacks: 1,
            ..limits()
        });
        let layers: Vec<_> = (0..2)
            .map(|number| {
                let (share, cancel) = (share.clone(), cancel.clone());
                let request = request(&world, number, &folders[number]);
                tokio::spawn(async move { share.unpack(request, &cancel).await })
            })
            .collect();
        while world.proxy.stats().blobs().bytes < 1 << 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
        for layer in layers {
            let ended = tokio::time::timeout(PATIENCE, layer).await.unwrap();
            let error = ended.unwrap().unwrap_err();
            assert!(matches!(error, UnpackError::Cancelled), "{error}");
        }
        becomes_idle(&pipeline).await;
    });
    assert!(folders.iter().all(|folder| is_empty(folder)));
}

#[test]
fn a_full_disk_ends_its_layer_only() {
    let world = large(1);
    let small = world.root.dir("small").unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "small"])
        .arg(&small)
        .status();
    assert!(mounted.unwrap().success());
    let folder = world.root.dir("fs").unwrap();
    let pipeline = Pipeline::new(PipelineConfig::default());
    run(async {
        let share = pipeline.image(limits());
        let (full, other) = tokio::join!(
            unpack(&share, request(&world, 0, &small)),
            unpack(&share, request(&world, 0, &folder)),
        );
        let error = full.unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        other.unwrap();
        becomes_idle(&pipeline).await;
    });
    assert!(is_empty(&small));
    let status = std::process::Command::new("umount").arg(&small).status();
    assert!(status.unwrap().success());
}

#[test]
fn local_layers_with_a_wrong_digest_or_diff_id_leave_nothing() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let tar = tar(&Layer::new().text("a", "a").text("b", "b"));
    let packed = gzip(&tar);
    let share = Pipeline::new(PipelineConfig::default()).image(limits());
    let other = Digest::of(b"other");

    let mut wrong = local(&tar, &packed, &folder);
    wrong.descriptor.digest = other;
    let error = run(unpack(&share, wrong)).unwrap_err();
    assert!(matches!(error, UnpackError::Digest { .. }), "{error}");
    assert!(is_empty(&folder));

    let mut wrong = local(&tar, &packed, &folder);
    wrong.diff_id = other;
    let error = run(unpack(&share, wrong)).unwrap_err();
    assert!(matches!(error, UnpackError::DiffId { .. }), "{error}");
    assert!(is_empty(&folder));

    // Damaged: the digest is what is reported, not what it leads to.
    let mut damaged = packed.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let mut wrong = local(&tar, &damaged, &folder);
    wrong.descriptor = local(&tar, &packed, &folder).descriptor;
    let error = run(unpack(&share, wrong)).unwrap_err();
    assert!(matches!(error, UnpackError::Digest { .. }), "{error}");
    // The same bytes as the image's own: it is the layer that is damaged.
    let error = run(unpack(&share, local(&tar, &damaged, &folder))).unwrap_err();
    assert!(matches!(error, UnpackError::Apply(_)), "{error}");
    assert!(is_empty(&folder));

    // A plain layer has one digest only.
    let plain = run(unpack(&share, local(&tar, &tar, &folder))).unwrap();
    assert_eq!(
        (plain.diff_id, plain.uncompressed_size),
        (Digest::of(&tar), tar.len() as u64)
    );
    assert_eq!(fs::read(folder.join("b")).unwrap(), b"b");
}

/// Records what it receives.
#[derive(Clone, Default)]
struct Recorder {
    bytes: Arc<Mutex<Vec<u8>>>,
    calls: Arc<Mutex<Vec<&'static str>>>,
    fails: bool,
}

impl CompressedSink for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.fails {
            return Err(io::Error::other("no room in the store"));
        }
        self.bytes.lock().extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.bytes.lock().clear();
        self.calls.lock().push("restart");
        Ok(())
    }

    fn finish(&mut self, _: &Digest) -> io::Result<()> {
        self.calls.lock().push("finish");
        Ok(())
    }
}

#[test]
fn the_compressed_bytes_are_stored_in_order_also_if_they_come_again() {
    let world = large(1);
    let digest = world.image.layers[0].digest;
    let damage = Rule::always(Fault::CorruptBlob(9_000_000)).blob(digest);
    // The first time that the layer is fetched.
    world.proxy.inject(damage.times(LARGE / CHUNK));
    let folder = world.root.dir("fs").unwrap();
    let pipeline = Pipeline::new(PipelineConfig::default());
    let recorder = Recorder::default();
    let mut request = request(&world, 0, &folder);
    request.store = Some(Box::new(recorder.clone()));
    run(unpack(&pipeline.image(limits()), request)).unwrap();
    assert_eq!(*recorder.calls.lock(), ["restart", "finish"]);
    assert_eq!(Digest::of(&recorder.bytes.lock()), digest);
    assert_eq!(fs::metadata(folder.join("large")).unwrap().len(), LARGE);
}

#[test]
fn a_store_that_fails_fails_the_layer() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let tar = tar(&Layer::new().text("a", "a"));
    let mut request = local(&tar, &gzip(&tar), &folder);
    request.store = Some(Box::new(Recorder {
        fails: true,
        ..Recorder::default()
    }));
    let share = Pipeline::new(PipelineConfig::default()).image(limits());
    let error = run(unpack(&share, request)).unwrap_err();
    assert!(matches!(error, UnpackError::Store(_)), "{error}");
    assert!(is_empty(&folder));
}

#[test]
fn a_layer_is_the_same_with_every_inflater() {
    let root = TestRoot::new().unwrap();
    // Text, of which blocks are found, and of which many refer back.
    let text: String = (0..900_000_u32)
        .map(|n| format!("{} of {}\n", n.wrapping_mul(2_654_435_761) % 977, n % 31))
        .collect();
    let layer = Layer::new().text("text", &text).text("last", "last");
    let tar = tar(&layer);
    let packed = gzip(&tar);
    assert!(packed.len() > 3 << 20, "{}", packed.len());
    for threads in [0, 1, 4] {
        let folder = root.dir(&format!("fs-{threads}")).unwrap();
        let pipeline = Pipeline::new(PipelineConfig {
            inflate_threads: Some(threads),
            ..PipelineConfig::default()
        });
        run(unpack(
            &pipeline.image(limits()),
            local(&tar, &packed, &folder),
        ))
        .unwrap();
        assert_eq!(fs::read_to_string(folder.join("text")).unwrap(), text);
        // Cut off, it is an error with any number of threads.
        let cut = &packed[..packed.len() - 5];
        let again = root.dir(&format!("cut-{threads}")).unwrap();
        let error = run(unpack(&pipeline.image(limits()), local(&tar, cut, &again)));
        assert!(matches!(error.unwrap_err(), UnpackError::Apply(_)));
        assert!(is_empty(&again));
    }
}

/// The checkpoints of a layer's zTOC, as a store of the daemon has them.
fn entry_points(packed: &[u8]) -> EntryPoints {
    let options = BuildOptions {
        span_size: 1 << 20,
        ..BuildOptions::default()
    };
    let mut builder = Builder::new(Compression::Gzip, options).unwrap();
    builder.write(packed).unwrap();
    let ztoc = builder.finish().unwrap().ztoc;
    let index = Ztoc::parse_index(bytes::Bytes::from(ztoc.encode())).unwrap();
    let blob = index.blob().clone();
    EntryPoints::new(index.spans, move |range| {
        let at = |at| usize::try_from(at).ok();
        Some(blob.get(at(range.start)?..at(range.end)?)?.to_vec())
    })
}

#[test]
fn a_stored_ztoc_spares_the_guess_and_cannot_change_a_layer() {
    let root = TestRoot::new().unwrap();
    let text: String = (0..700_000_u32)
        .map(|n| format!("{} of {}\n", n.wrapping_mul(2_654_435_761) % 977, n % 31))
        .collect();
    let layer = Layer::new().text("text", &text);
    let tar = tar(&layer);
    let packed = gzip(&tar);
    let other = gzip(&tar.iter().rev().copied().collect::<Vec<_>>());
    let asked = Arc::new(Mutex::new(Vec::new()));
    for swapped in [false, true] {
        let known = Arc::clone(&asked);
        let indexed = if swapped { &other } else { &packed }.clone();
        let pipeline = Pipeline::new(PipelineConfig {
            inflate_threads: Some(3),
            // Room for all chunks: these blocks cannot be found, only entered.
            memory: Some(256 << 20),
            checkpoints: Some(StoredCheckpoints::new(move |layer| {
                known.lock().push(*layer);
                Some(entry_points(&indexed))
            })),
            ..PipelineConfig::default()
        });
        let folder = root.dir(&format!("fs-{swapped}")).unwrap();
        let request = local(&tar, &packed, &folder);
        let progress = Arc::clone(&request.progress);
        run(unpack(&pipeline.image(limits()), request)).unwrap();
        assert_eq!(fs::read_to_string(folder.join("text")).unwrap(), text);
        let entered = progress.entered.load(Ordering::Relaxed);
        match swapped {
            false => assert!(entered > 0, "{progress:?}"),
            true => assert_eq!(entered, 0, "a wrong zTOC was used"),
        }
        // Another layer is refused, also where the zTOC fits.
        let folder = root.dir(&format!("refused-{swapped}")).unwrap();
        let mut request = local(&tar, &other, &folder);
        request.descriptor.digest = Digest::of(&packed);
        let error = run(unpack(&pipeline.image(limits()), request)).unwrap_err();
        assert!(matches!(error, UnpackError::Digest { .. }), "{error}");
        assert!(is_empty(&folder));
    }
    assert_eq!(*asked.lock(), [Digest::of(&packed); 4]);
}

#[test]
fn directories_without_an_entry_look_as_below_once_that_is_known() {
    let root = TestRoot::new().unwrap();
    let below = root.dir("below").unwrap();
    fs::create_dir_all(below.join("opt/data/deep")).unwrap();
    fs::set_permissions(below.join("opt/data"), fs::Permissions::from_mode(0o2770)).unwrap();
    std::os::unix::fs::chown(below.join("opt/data"), Some(7), Some(8)).unwrap();
    fs::set_permissions(below.join("opt"), fs::Permissions::from_mode(0o700)).unwrap();
    let folder = root.dir("fs").unwrap();
    // One of them has an entry after all.
    let layer = Layer::new()
        .text("opt/data/deep/file", "x")
        .dir("opt")
        .mode(0o711);
    let tar = tar(&layer);
    let share = Pipeline::new(PipelineConfig::default()).image(limits());
    let unpacked = run(unpack(&share, local(&tar, &gzip(&tar), &folder))).unwrap();
    assert!(!unpacked.implied.is_empty());
    let lower: [Box<dyn LowerLayer>; 1] = [Box::new(LowerDirectory(below))];
    unpacked.implied.settle(&folder, &lower).unwrap();
    let stat = |name: &str| fs::metadata(folder.join(name)).unwrap();
    let data = stat("opt/data");
    assert_eq!(
        (data.mode() & 0o7777, data.uid(), data.gid()),
        (0o2770, 7, 8)
    );
    assert_eq!(stat("opt").mode() & 0o7777, 0o711);
}

fn program(path: &str, args: &[&str], stall: Duration) -> Arc<Pipeline> {
    let gzip = Decompressor {
        path: PathBuf::from(path),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
    };
    Pipeline::new(PipelineConfig {
        decompressors: Decompressors {
            gzip: Some(gzip),
            zstd: None,
            stall: Some(stall),
        },
        ..PipelineConfig::default()
    })
}

/// Whether a process with this word among its arguments runs.
fn runs(word: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        arguments.split('\0').any(|argument| argument == word)
    })
}

/// Waits until no process has this argument: one that was killed is listed until the kernel has taken it apart.
fn has_ended(word: &str) {
    let end = std::time::Instant::now() + PATIENCE;
    while runs(word) {
        assert!(std::time::Instant::now() < end, "it runs: {word}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_program_decompresses_instead_of_us() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let noise = Content::Noise {
        seed: 3,
        length: 3 << 20,
    };
    let tar = tar(&Layer::new().file("noise", noise).text("last", "last"));
    let packed = gzip(&tar);
    let pipeline = program("/bin/gzip", &["-d", "-c"], PATIENCE);
    run(unpack(
        &pipeline.image(limits()),
        local(&tar, &packed, &folder),
    ))
    .unwrap();
    assert_eq!(fs::read(folder.join("last")).unwrap(), b"last");
    assert_eq!(fs::metadata(folder.join("noise")).unwrap().len(), 3 << 20);
}

#[test]
fn a_program_that_fails_or_hangs_is_named_and_leaves_nothing() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let noise = Content::Noise {
        seed: 3,
        length: 3 << 20,
    };
    let tar = tar(&Layer::new().file("noise", noise));
    let packed = gzip(&tar);
    let fails = |pipeline: Arc<Pipeline>| {
        let layer = local(&tar, &packed, &folder);
        let error = run(unpack(&pipeline.image(limits()), layer)).unwrap_err();
        assert!(is_empty(&folder));
        error
    };
    let missing = fails(program("/does/not/exist", &[], PATIENCE));
    assert!(missing.to_string().contains("/does/not/exist"), "{missing}");
    let of = |error: UnpackError| match error {
        UnpackError::Program { source, .. } => source,
        other => panic!("{other}"),
    };
    assert!(matches!(of(missing), ProgramError::Start(_)));
    let script = root.path().join("script");
    let write = |text: &str| {
        soci_testkit::write_program(&script, &format!("#!/bin/sh\n{text}\n")).unwrap();
        script.to_str().unwrap().to_owned()
    };
    // It reads some, says why it stops, and fails.
    let path = write("head -c 1000 >/dev/null; echo cannot do it >&2; exit 3");
    let failed = of(fails(program(&path, &[], PATIENCE)));
    assert!(matches!(failed, ProgramError::Failed { .. }), "{failed}");
    assert!(failed.to_string().contains("cannot do it"), "{failed}");
    // It writes something else, with and without a whole block of a tar.
    let path = write("cat >/dev/null; echo this is not a tar");
    let error = fails(program(&path, &[], PATIENCE));
    assert!(matches!(error, UnpackError::DiffId { .. }), "{error}");
    let path = write("cat >/dev/null; exec head -c 4096 /bin/sh");
    let error = fails(program(&path, &[], PATIENCE));
    assert!(matches!(error, UnpackError::Apply(_)), "{error}");
    // It reads nothing, or everything and never ends; what it has started ends with it.
    let word = format!("9{:09}", std::process::id());
    for text in [
        format!("exec sleep {word}"),
        format!("cat >/dev/null; exec sleep {word}"),
        format!("sleep {word} & gzip -d -c"),
    ] {
        let path = write(&text);
        let stalled = of(fails(program(&path, &[], Duration::from_millis(500))));
        assert!(matches!(stalled, ProgramError::Stalled { .. }), "{stalled}");
        has_ended(&word);
    }
    // Cancelled while it hangs.
    let path = write(&format!("exec sleep {word}"));
    let pipeline = program(&path, &[], PATIENCE);
    run(async {
        let cancel = CancellationToken::new();
        let (share, layer) = (pipeline.image(limits()), local(&tar, &packed, &folder));
        let unpacking = {
            let cancel = cancel.clone();
            tokio::spawn(async move { share.unpack(layer, &cancel).await })
        };
        while !runs(&word) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
        let ended = tokio::time::timeout(PATIENCE / 2, unpacking).await;
        let error = ended.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, UnpackError::Cancelled), "{error}");
    });
    has_ended(&word);
    assert!(is_empty(&folder));
}

#[test]
fn many_small_files_links_and_repeated_names_are_right_with_several_threads() {
    let root = TestRoot::new().unwrap();
    let folder = root.dir("fs").unwrap();
    let mut layer = Layer::new();
    for number in 0..1500_u32 {
        let name = format!("d{}/f{number}", number % 7);
        layer = layer.text(&name, &format!("content {number}")).mode(0o640);
        if number % 5 == 0 {
            layer = layer.owner(3, 4);
        }
        if number % 11 == 0 {
            // The attributes of a link are those of its file.
            let owner = if number % 5 == 0 { (3, 4) } else { (0, 0) };
            let link = format!("links/l{number}");
            layer = layer
                .hardlink(&link, &name)
                .mode(0o640)
                .owner(owner.0, owner.1);
        }
        if number % 13 == 0 {
            // The last of a name counts.
            layer = layer.text(&name, &format!("again {number}")).mode(0o4755);
        }
        if number % 300 == 0 {
            layer = layer
                .dir(&format!("d{}", number % 7))
                .mode(0o2775)
                .owner(9, 9);
        }
    }
    let tar = tar(&layer);
    let share = Pipeline::new(PipelineConfig::default()).image(limits());
    run(unpack(&share, local(&tar, &gzip(&tar), &folder))).unwrap();
    for number in 0..1500_u32 {
        let path = folder.join(format!("d{}/f{number}", number % 7));
        let (again, stat) = (number % 13 == 0, fs::metadata(&path).unwrap());
        let word = if again { "again" } else { "content" };
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("{word} {number}")
        );
        let mode = if again { 0o4755 } else { 0o640 };
        assert_eq!(stat.mode() & 0o7777, mode, "{number}");
        let owner = if number % 5 == 0 && !again {
            (3, 4)
        } else {
            (0, 0)
        };
        assert_eq!((stat.uid(), stat.gid()), owner, "{number}");
        if number % 11 == 0 && !again {
            let link = fs::metadata(folder.join(format!("links/l{number}"))).unwrap();
            assert_eq!(link.ino(), stat.ino());
        }
    }
    assert_eq!(
        fs::metadata(folder.join("d0")).unwrap().mode() & 0o7777,
        0o2775
    );
}

#[test]
fn layers_of_every_compression_come_from_a_registry() {
    let image = ImageBuilder::new()
        .layer_with(Layer::new().text("plain", "plain"), LayerCompression::Plain)
        .layer(Layer::new().text("gzip", "gzip"));
    let world = World::new(image);
    let share = Pipeline::new(PipelineConfig::default()).image(limits());
    for (number, name) in ["plain", "gzip"].into_iter().enumerate() {
        let folder = world.root.dir(name).unwrap();
        run(unpack(&share, request(&world, number, &folder))).unwrap();
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), name);
    }
    let root = TestRoot::new().unwrap();
    let folder = root.dir("zstd").unwrap();
    let tar = tar(&Layer::new().text("zstd", "zstd"));
    let packed = zstd::encode_all(&tar[..], 3).unwrap();
    run(unpack(&share, local(&tar, &packed, &folder))).unwrap();
    assert_eq!(fs::read_to_string(folder.join("zstd")).unwrap(), "zstd");
}

//! How long layers of this machine take to be unpacked, what bounds it, and how long containerd and
//! tar take for the same.
//!
//! `cargo bench -p soci-unpack [-- LAYER.tar.gz]`, as root; `SOCI_BENCH_DIR` sets where it writes.
//! docs/benchmarks.md holds the figures.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a program for developers"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use soci_oci::{Descriptor, Digest, Hasher, media_types};
use soci_testkit::{Containerd, ContainerdOptions};
use soci_unpack::{
    ApplyOptions, ImageLimits, LayerBlob, LayerProgress, Pipeline, PipelineConfig, PipelineRequest,
    apply,
};
use soci_ztoc::{AheadMemory, BuildOptions, Compression, EntryPoints, InflatedAhead, Ztoc};
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 2;

/// A layer on disk.
struct Layer {
    name: String,
    packed: PathBuf,
    descriptor: Descriptor,
    diff_id: Digest,
    unpacked: u64,
}

/// Bytes as compressible as programs are: half of them noise.
struct Mixed(u64);

impl Mixed {
    fn fill(&mut self, into: &mut [u8]) {
        for part in into.chunks_mut(64) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let (noise, text) = part.split_at_mut(part.len() / 2);
            let mut state = self.0;
            for byte in noise {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *byte = state.to_be_bytes()[0];
            }
            for (at, byte) in text.iter_mut().enumerate() {
                *byte = b"the quick brown fox jumps over a lazy dog, and again it does"[at % 60];
            }
        }
    }
}

/// Packs `files` files of `size` bytes.
fn pack(folder: &Path, name: &str, files: usize, size: usize) -> Layer {
    let packed = folder.join(format!("{name}.tar.gz"));
    let encoder =
        flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::new(6));
    let mut builder = tar::Builder::new(encoder);
    let (mut content, mut mixed) = (vec![0; size], Mixed(7));
    for number in 0..files {
        if number % 100 == 0 {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            let path = format!("usr/share/{:04}/", number / 100);
            builder.append_data(&mut header, path, &[][..]).unwrap();
        }
        mixed.fill(&mut content);
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(size as u64);
        let path = format!("usr/share/{:04}/file-{number:06}", number / 100);
        builder
            .append_data(&mut header, path, &content[..])
            .unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap();
    describe(name, packed)
}

fn describe(name: &str, packed: PathBuf) -> Layer {
    let mut hasher = Hasher::new();
    let mut tar = flate2::read::MultiGzDecoder::new(File::open(&packed).unwrap());
    let (mut chunk, mut unpacked) = (vec![0; 1 << 20], 0);
    loop {
        let length = tar.read(&mut chunk).unwrap();
        if length == 0 {
            break;
        }
        hasher.update(&chunk[..length]);
        unpacked += length as u64;
    }
    let bytes = fs::read(&packed).unwrap();
    Layer {
        name: name.to_owned(),
        descriptor: Descriptor::of(media_types::OCI_LAYER_GZIP, &bytes),
        diff_id: hasher.finish(),
        packed,
        unpacked,
    }
}

/// Seconds of all cores that this process, or another one, has used.
fn cpu_of(process: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<f64> = fields
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    // utime, stime and those of children that have ended (proc(5)).
    fields[11..15].iter().sum::<f64>() / 100.0
}

fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib >> 10
}

/// Forgets the peak so far (proc(5), clear_refs).
fn reset_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

struct Times {
    clock: Duration,
    cpu: f64,
}

fn timed(process: &str, work: impl FnOnce()) -> Times {
    let (began, cpu) = (Instant::now(), cpu_of(process));
    work();
    Times {
        clock: began.elapsed(),
        cpu: cpu_of(process) - cpu,
    }
}

fn best(rounds: usize, mut round: impl FnMut() -> Times) -> Times {
    let all = (0..rounds).map(|_| round());
    all.min_by_key(|times| times.clock).unwrap()
}

fn row(what: &str, layer: &Layer, times: &Times, note: &str) {
    let seconds = times.clock.as_secs_f64();
    println!(
        "{:<14} {what:<44} {seconds:>7.2} s {:>7.2} s of cores {:>6.0} MB/s  {note}",
        layer.name,
        times.cpu,
        layer.unpacked as f64 / 1e6 / seconds
    );
    std::io::stdout().flush().unwrap();
}

/// A new folder. Nothing is removed between two rounds: ext4 looks for inodes that were not freed within
/// the last minutes one by one, which takes longer than the work.
fn fresh(folder: &Path) -> PathBuf {
    let folder = tempfile::tempdir_in(folder).unwrap().keep();
    // What the last round has left to write is not this one's.
    Command::new("sync").status().unwrap();
    folder
}

fn unpack(layer: &Layer, folder: &Path, config: &PipelineConfig) -> soci_unpack::UnpackedLayer {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let share = Pipeline::new(config.clone()).image(ImageLimits::default());
    let request = PipelineRequest {
        blob: LayerBlob::Local(Box::new(File::open(&layer.packed).unwrap())),
        descriptor: layer.descriptor.clone(),
        diff_id: layer.diff_id,
        order: 0,
        directory: folder.to_owned(),
        options: ApplyOptions::default(),
        store: None,
        progress: Arc::<LayerProgress>::default(),
        first_byte: None,
    };
    let cancel = CancellationToken::new();
    runtime.block_on(share.unpack(request, &cancel)).unwrap()
}

/// The checkpoints of a layer's zTOC.
fn entry_points(layer: &Layer) -> EntryPoints {
    let file = File::open(&layer.packed).unwrap();
    let built = soci_ztoc::build(file, Compression::Gzip, BuildOptions::default()).unwrap();
    let index = Ztoc::parse_index(built.ztoc.encode()).unwrap();
    let blob = index.blob().clone();
    EntryPoints::new(index.spans, move |range| {
        let at = |at| usize::try_from(at).ok();
        Some(blob.get(at(range.start)?..at(range.end)?)?.to_vec())
    })
}

/// How many chunks were inflated before their turn, of all.
fn useful(of: InflatedAhead) -> String {
    let ahead = of.from_checkpoints + of.guessed;
    format!("{ahead} of {} chunks ahead", of.chunks)
}

/// What each stage takes alone.
fn stages(layer: &Layer, folder: &Path) {
    let inflate = best(ROUNDS, || {
        timed("self", || {
            let mut stream = soci_ztoc::GzipStream::new().unwrap();
            let mut file = File::open(&layer.packed).unwrap();
            let mut chunk = vec![0; 256 << 10];
            loop {
                let length = file.read(&mut chunk).unwrap();
                if length == 0 {
                    break;
                }
                stream.write(&chunk[..length], |_| Ok(())).unwrap();
            }
            stream.finish().unwrap();
        })
    });
    row("only inflating", layer, &inflate, "");
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = 1;
    let entries = entry_points(layer);
    let memory = AheadMemory::new(u64::MAX);
    let mut guessed = InflatedAhead::default();
    // More threads than cores inflate no faster, but show how much of what they do is of use.
    while threads <= most.max(8) {
        let inflate = best(ROUNDS, || {
            timed("self", || {
                let file = File::open(&layer.packed).unwrap();
                let ahead = || true;
                guessed =
                    soci_ztoc::inflate_ahead(file, threads, &memory, None, &ahead, |_| Ok(()))
                        .unwrap();
            })
        });
        let what = format!("only inflating, {threads} threads ahead");
        row(&what, layer, &inflate, &useful(guessed));
        let inflate = best(ROUNDS, || {
            timed("self", || {
                let file = File::open(&layer.packed).unwrap();
                let (entries, ahead) = (Some(&entries), || true);
                guessed =
                    soci_ztoc::inflate_ahead(file, threads, &memory, entries, &ahead, |_| Ok(()))
                        .unwrap();
            })
        });
        row(
            "the same, from checkpoints",
            layer,
            &inflate,
            &useful(guessed),
        );
        threads *= 2;
    }
    let tar = folder.join("tar");
    {
        let mut packed = flate2::read::MultiGzDecoder::new(File::open(&layer.packed).unwrap());
        std::io::copy(&mut packed, &mut File::create(&tar).unwrap()).unwrap();
    }
    let hash = best(ROUNDS, || {
        timed("self", || {
            let mut hasher = Hasher::new();
            let mut file = File::open(&tar).unwrap();
            let mut chunk = vec![0; 256 << 10];
            loop {
                let length = file.read(&mut chunk).unwrap();
                if length == 0 {
                    break;
                }
                hasher.update(&chunk[..length]);
            }
            assert_ne!(hasher.finish(), layer.descriptor.digest);
        })
    });
    row("only hashing the tar", layer, &hash, "");
    let write = best(ROUNDS, || {
        let target = fresh(folder);
        timed("self", || {
            let options = ApplyOptions::default();
            apply(File::open(&tar).unwrap(), &target, &options, &|| false).unwrap();
        })
    });
    row("only hashing and writing, with syncfs", layer, &write, "");
}

fn baselines(layer: &Layer, folder: &Path) -> (Times, Times) {
    let tar = best(ROUNDS, || {
        let target = fresh(folder);
        timed("self", || {
            let status = Command::new("tar")
                .arg("-xzf")
                .arg(&layer.packed)
                .arg("-C")
                .arg(&target)
                .status();
            assert!(status.unwrap().success());
        })
    });
    row("GNU tar and gzip, no sync", layer, &tar, "");
    let layout = image(layer, &folder.join("layout"));
    let containerd = best(ROUNDS, || {
        let containerd = Containerd::start(&ContainerdOptions::default()).unwrap();
        let ctr = containerd.ctr("default");
        let import = ["images", "import", "--no-unpack"].map(std::ffi::OsStr::new);
        ctr.output(import.into_iter().chain([layout.as_os_str()]))
            .unwrap();
        let manifest = fs::read_to_string(folder.join("layout/manifest")).unwrap();
        Command::new("sync").status().unwrap();
        let process = containerd.daemon().pid().to_string();
        timed(&process, || {
            ctr.output([
                "snapshots",
                "--snapshotter",
                "overlayfs",
                "unpack",
                &manifest,
            ])
            .unwrap();
        })
    });
    row("containerd, overlayfs, no sync", layer, &containerd, "");
    (tar, containerd)
}

/// An OCI layout in a tar, whose only layer is this one.
fn image(layer: &Layer, folder: &Path) -> PathBuf {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let descriptor = Descriptor::of(media_type, bytes);
        fs::write(blobs.join(descriptor.digest.hex()), bytes).unwrap();
        descriptor
    };
    let _ = fs::hard_link(&layer.packed, blobs.join(layer.descriptor.digest.hex()));
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}},"config":{{}}}}"#,
        layer.diff_id
    );
    let config = put(config.as_bytes(), media_types::OCI_CONFIG);
    let text = |value: &Descriptor| serde_json::to_string(value).unwrap();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
        media_types::OCI_MANIFEST,
        text(&config),
        text(&layer.descriptor)
    );
    let mut manifest = put(manifest.as_bytes(), media_types::OCI_MANIFEST);
    fs::write(folder.join("manifest"), manifest.digest.to_string()).unwrap();
    manifest.annotations = [(
        "org.opencontainers.image.ref.name".to_owned(),
        "bench:1".to_owned(),
    )]
    .into();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, text(&manifest));
    fs::write(folder.join("index.json"), index).unwrap();
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let packed = folder.with_extension("tar");
    let status = Command::new("tar")
        .arg("-cf")
        .arg(&packed)
        .arg("-C")
        .arg(folder)
        .args(["blobs", "index.json", "oci-layout"])
        .status();
    assert!(status.unwrap().success());
    packed
}

fn bench(layer: &Layer, folder: &Path) {
    println!(
        "{}: {} MB packed, {} MB unpacked",
        layer.name,
        layer.descriptor.size / 1_000_000,
        layer.unpacked / 1_000_000
    );
    reset_peak();
    let mut sync = Duration::MAX;
    let ours = best(ROUNDS, || {
        let target = fresh(folder);
        timed("self", || {
            let unpacked = unpack(layer, &target, &PipelineConfig::default());
            sync = sync.min(unpacked.timings.sync);
        })
    });
    let note = format!(
        "sync {:.2} s of it, peak {} MiB",
        sync.as_secs_f64(),
        peak_mib()
    );
    row("the pipeline, with syncfs", layer, &ours, &note);
    let quick = PipelineConfig {
        durable: false,
        ..PipelineConfig::default()
    };
    let unsynced = best(ROUNDS, || {
        let target = fresh(folder);
        timed("self", || {
            unpack(layer, &target, &quick);
        })
    });
    row("the pipeline, no sync", layer, &unsynced, "");
    stages(layer, folder);
    let (tar, containerd) = baselines(layer, folder);
    let ratio = |to: &Times| unsynced.clock.as_secs_f64() / to.clock.as_secs_f64();
    println!(
        "{:<14} without sync: ours / tar {:.2}, ours / containerd {:.2}, of cores {:.2}",
        layer.name,
        ratio(&tar),
        ratio(&containerd),
        unsynced.cpu / containerd.cpu
    );
}

fn main() {
    let base = std::env::var_os("SOCI_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::Builder::new()
        .prefix("soci-bench-unpack-")
        .tempdir_in(base)
        .unwrap();
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if let Some(given) = given {
        bench(&describe("given", PathBuf::from(given)), folder.path());
        return;
    }
    for (name, files, size) in [
        ("100000 x 4 KiB", 100_000, 4 << 10),
        ("20 x 25 MB", 20, 25_000_000),
    ] {
        let folder = folder.path().join(files.to_string());
        fs::create_dir(&folder).unwrap();
        bench(&pack(&folder, name, files, size), &folder);
    }
}

//! A server that takes all the memory that its processes may have. Needs root, FUSE, docker-registry, the two
//! programs, and a memory controller of control groups, of version 1 or 2.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use soci_oci::{Descriptor, Digest, Manifest, annotations, media_types};
use soci_testkit::image::{OciLayer, layout};
use soci_testkit::{Content, ImageBuilder, Layer, LayerCompression, SociDaemonOptions, TestRoot};
use soci_ztoc::soci_index::{IndexVersion, SociIndex, ZtocDescriptor};
use soci_ztoc::{BuildOptions, Checkpoints, Compression, TarZinfo};
use tonic::Code;

use crate::support::NO_BACKGROUND;
use crate::support::memory_group::{MemoryGroup, supervisor_pid};
use crate::support::node::Node;

const PATIENCE: Duration = Duration::from_secs(180);
const LIMIT: u64 = 512 << 20;
/// fcntl.h: past the page cache, so that each read needs the server.
const O_DIRECT: i32 = 0o40000;

fn score(pid: u32) -> i32 {
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    score.unwrap().trim().parse().unwrap()
}

fn read_directly(path: &Path) -> std::io::Result<usize> {
    let mut options = File::options();
    let file = options.read(true).custom_flags(O_DIRECT).open(path)?;
    file.read_at(&mut [0; 4096], 0)
}

/// Reads a file past the page cache, over and over.
struct DirectReader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl DirectReader {
    fn start(file: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let reads = Arc::new(AtomicU32::new(0));
        let (stopped, count) = (stop.clone(), reads.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                assert_eq!(read_directly(&file)?, 6);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self {
            stop,
            reads,
            thread,
        }
    }

    /// Waits for more reads, none of which may have failed since the start.
    fn finish_after(self, more: u32) {
        let before = self.reads.load(Ordering::Relaxed);
        while self.reads.load(Ordering::Relaxed) < before + more && !self.thread.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_all_memory_is_killed_alone_and_readers_notice_a_delay() {
    let root = TestRoot::new().unwrap();
    let metrics = root.path().join("metrics.sock");
    let config = format!(
        "metrics_network = 'unix'\nmetrics_address = '{}'\n{NO_BACKGROUND}",
        metrics.display()
    );
    let mut node = Node::start(&config);
    let (_, _, roots) = node.mounted().await;
    let file = roots.iter().map(|root| root.join("data/hello"));
    let file = file.into_iter().find(|path| path.exists()).unwrap();
    node.daemon.terminate().unwrap();
    let mut options = SociDaemonOptions::with_config(&config);
    options.environment = vec![("SOCI_FAULT_POINT".to_owned(), "metrics-memory".to_owned())];
    node.daemon.start_again_with(options).unwrap();

    let (supervisor, server) = (
        supervisor_pid(&node.daemon),
        node.daemon.server_pid().unwrap(),
    );
    let holder = node.daemon.holder_pid().unwrap();
    // -999 where the test may lower it (CAP_SYS_RESOURCE).
    assert!(score(supervisor) <= 0 && score(holder) <= 0);
    assert_eq!(score(server), 500, "the right victim");
    let group = MemoryGroup::new(LIMIT);
    for pid in [supervisor, server, holder] {
        group.add(pid);
    }
    let reader = DirectReader::start(file);
    // The answer never comes: the server takes memory instead.
    let mut scrape = UnixStream::connect(&metrics).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n";
    scrape.write_all(request).unwrap();
    let mut answer = Vec::new();
    let _ = tokio::task::block_in_place(|| scrape.read_to_end(&mut answer));
    assert_eq!(answer, b"");

    tokio::task::block_in_place(|| node.daemon.wait_for_successor(server)).unwrap();
    let killed = |line: &str| line.contains("signal 9");
    assert!(node.daemon.log().wait_for(0, PATIENCE, killed).is_some());
    tokio::task::block_in_place(|| reader.finish_after(20));
    assert_eq!(supervisor_pid(&node.daemon), supervisor, "no other process");
    assert_eq!(node.daemon.holder_pid().unwrap(), holder);
    node.daemon.terminate().unwrap();
}

/// What a small node would set, except for the memory of a zTOC's tree, where less shows the same.
const SMALL: &str = "
[limits]
unpack_memory_bytes = 16777216
unpack_output_bytes = 67108864
tree_bytes = 33554432
";
const SPAN: u64 = 4 << 20;

fn put(dir: &Path, media_type: &str, bytes: &[u8]) -> Descriptor {
    let descriptor = Descriptor::of(media_type, bytes);
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    std::fs::write(layout::blob_path(dir, descriptor.digest), bytes).unwrap();
    descriptor
}

/// A zTOC whose tree has nine inodes for each of its entries. Its layer is one small file.
fn ztoc_bomb(layer: &[u8]) -> Vec<u8> {
    const FILES: u64 = 200_000;
    let built = soci_ztoc::build(layer, Compression::Uncompressed, BuildOptions::default());
    let mut ztoc = built.unwrap().ztoc;
    let entry = ztoc.toc[0].clone();
    let entries = (0..FILES).map(|number| {
        let mut entry = entry.clone();
        entry.name = format!("{number}/a/a/a/a/a/a/a/f").into_bytes();
        entry.uncompressed_offset = (number + 1) * 512;
        entry.uncompressed_size = 0;
        entry
    });
    ztoc.toc = entries.collect();
    let size = (FILES + 2) * 512;
    ztoc.uncompressed_archive_size = size;
    ztoc.compressed_archive_size = size;
    let spans = 0..size.div_ceil(SPAN);
    ztoc.compression.span_digests = spans.map(|at| Digest::of(&at.to_le_bytes())).collect();
    ztoc.compression.checkpoints = Checkpoints::Tar(TarZinfo {
        version: 2,
        span_size: SPAN,
        size,
    });
    ztoc.encode()
}

/// More whiteouts than memory: 120,000 names of a hundred bytes.
fn whiteouts() -> Layer {
    let mut blocks = Vec::new();
    for number in 0..120_000 {
        let mut header = [0; 512];
        header[..100].copy_from_slice(format!(".wh.{number:0>96}").as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        for (field, digits) in [(108, 7), (116, 7), (124, 11), (136, 11)] {
            header[field..field + digits].fill(b'0');
        }
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        blocks.extend(header);
    }
    Layer::new().raw(blocks)
}

/// Layers of a few kilobytes that want memory, disk or both: a zTOC with a huge tree, a file of zeros,
/// whiteouts, and a frame of zstd with a window of 2 GiB.
fn bombs(dir: &Path) -> Vec<Descriptor> {
    let zeros = Content::Bytes(vec![0; 256 << 20]);
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
    let window = OciLayer {
        descriptor: put(dir, "application/vnd.oci.image.layer.v1.tar+zstd", &frame),
        diff_id: Digest::of(b""),
        tar_size: 0,
    };
    let image = ImageBuilder::new()
        .layer_with(Layer::new().text("file", "data"), LayerCompression::Plain)
        .layer(Layer::new().file("zeros", zeros))
        .layer(whiteouts())
        .ready(window)
        .write(dir, "plain")
        .unwrap();
    let first = &image.layers[0];
    let blob = std::fs::read(layout::blob_path(dir, first.digest)).unwrap();
    let bomb = ztoc_bomb(&blob);
    put(dir, media_types::ZTOC, &bomb);
    put(dir, media_types::SOCI_INDEX_V2, b"{}");
    let listed = ZtocDescriptor::new(&bomb, first.digest, &first.media_type, SPAN, false);
    let index = SociIndex::new(IndexVersion::V2, vec![listed], Vec::new(), None, [].into());
    let index = put(dir, media_types::OCI_MANIFEST, &index.encode());
    let path = layout::blob_path(dir, image.manifest.digest);
    let mut manifest: Manifest = layout::read_json(&path).unwrap();
    let digest = index.digest.to_string();
    let annotation = (annotations::INDEX_DIGEST.to_owned(), digest);
    manifest.annotations.extend([annotation]);
    let bytes = soci_oci::json::to_vec(&manifest).unwrap();
    let manifest = put(dir, media_types::OCI_MANIFEST, &bytes);
    let list = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_types::OCI_INDEX,
        "manifests": [manifest, index],
    });
    let list = put(dir, media_types::OCI_INDEX, list.to_string().as_bytes());
    layout::list(dir, "small", &list).unwrap();
    image.layers
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_in_images_are_refused_with_their_limits_and_cost_no_process_its_life() {
    let node = Node::start(&format!("{NO_BACKGROUND}{SMALL}"));
    let (client, _, roots) = node.mounted().await;
    let file = roots.iter().map(|root| root.join("data/hello"));
    let file = file.into_iter().find(|path| path.exists()).unwrap();
    let pids = |node: &Node| {
        let (server, holder) = (node.daemon.server_pid(), node.daemon.holder_pid());
        [
            supervisor_pid(&node.daemon),
            server.unwrap(),
            holder.unwrap(),
        ]
    };
    let before = pids(&node);
    let group = MemoryGroup::new(LIMIT);
    before.iter().for_each(|pid| group.add(*pid));
    let reader = DirectReader::start(file);

    let layout = TestRoot::new().unwrap();
    let layers = tokio::task::block_in_place(|| bombs(layout.path()));
    let image = node.publish(layout.path(), "bombs", false);
    // The layer whose zTOC is refused is unpacked by the daemon; the others are left to the client.
    let refused = client.pull_layer(&image, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    for layer in 1..layers.len() {
        let deferred = client.pull_layer(&image, layer).await;
        assert!(deferred.is_ok(), "{layer}: {deferred:?}");
        let key = format!("extract {}", image.target(layer));
        client.commit(&image.target(layer), &key).await.unwrap();
    }
    let keys = [
        "limits.tree_bytes",
        "limits.unpack_output_bytes",
        "limits.unpack_memory_bytes",
        "limits.unpack_memory_bytes",
    ];
    for (layer, key) in layers.iter().zip(keys) {
        let digest = layer.digest.to_string();
        let says = |line: &str| line.contains(&digest) && line.contains(key);
        let found = node.daemon.log().wait_for(0, PATIENCE, says);
        let log = || node.daemon.log().all().join("\n");
        assert!(found.is_some(), "{key} of {digest}:\n{}", log());
    }
    tokio::task::block_in_place(|| reader.finish_after(20));
    assert_eq!(pids(&node), before, "no process was killed");
}

//! What users report, in one pull under each containerd: an image with odd parts, through a mirror
//! that drops connections, of a registry that cannot be reached. Needs root, FUSE, containerd, runc,
//! docker-registry, nginx and the two programs.

use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;
use serde_json::{Value, json};
use soci_oci::Digest;
use soci_testkit::image::shell_layer;
use soci_testkit::{
    Content, ImageBuilder, Layer, LocalPort, Nginx, Release, Run, SociCli, Stack, TestRoot,
};

use crate::outages;
use crate::support::front::Front;
use crate::support::releases::on_each_containerd;
use crate::support::{NAMESPACE, NO_BACKGROUND, PATIENCE, lazy_mounts, stack_under};

on_each_containerd! {
    an_image_with_odd_parts_is_right_behind_a_mirror_that_drops_connections,
}

/// Files of noise, of which each read fetches some.
const FILES: u64 = 8;

fn noise(file: u64) -> Content {
    Content::Noise {
        seed: file,
        length: 1_500_000,
    }
}

fn write_blob(layout: &Path, bytes: &[u8]) -> String {
    let digest = Digest::of(bytes);
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    digest.to_string()
}

/// An image with entries for the root in each layer, and directories that its upper layers only
/// imply, in a layout whose index lists something that is not an image in front of it.
fn write_image(layout: &Path) {
    let mut base = shell_layer()
        .unwrap()
        .dir("./")
        .mode(0o700)
        .owner(1000, 1000)
        .dir("tmp")
        .mode(0o1777)
        .dir("home/app")
        .mode(0o750)
        .owner(65532, 65532)
        .dir("srv")
        .mode(0o3771)
        .owner(33, 34)
        .xattr("user.note", b"below")
        .text("plain", "without extended attributes");
    for file in 0..FILES {
        base = base.file(&format!("noise/{file}"), noise(file));
    }
    let implying = Layer::new()
        .text("tmp/one", "")
        .text("home/app/tool", "")
        .owner(65532, 65532)
        .text("srv/new/file", "");
    let top = Layer::new()
        .dir("./")
        .mode(0o711)
        .owner(7, 8)
        .text("top", "");
    let image = ImageBuilder::new().layer(base).layer(implying).layer(top);
    image.write(layout, "plain").unwrap();

    let path = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let own = index["manifests"][0].clone();
    let odd = write_blob(layout, b"not a manifest");
    let inner = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": "application/vnd.example.odd",
                "digest": odd,
                "size": 14,
                "platform": { "os": "linux", "architecture": "s390x" },
            },
            {
                "mediaType": own["mediaType"],
                "digest": own["digest"],
                "size": own["size"],
                "platform": soci_oci::Platform::host(),
            },
        ],
    });
    let inner = serde_json::to_vec(&inner).unwrap();
    index["manifests"][0] = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": write_blob(layout, &inner),
        "size": inner.len(),
        "annotations": own["annotations"],
    });
    std::fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
}

/// The registry of the stack behind TLS with a certificate that is its own authority, and a relay
/// in front of that; the image's registry itself, at a port where nothing listens.
struct Mirror {
    front: Front,
    _nginx: Nginx,
    closed: LocalPort,
}

impl Mirror {
    fn start(stack: &Stack, hosts: &Path) -> Self {
        let nginx = Nginx::in_front_of(stack.registry.address(), "").unwrap();
        let front = Front::start(nginx.address());
        let closed = LocalPort::claim().unwrap();
        let folder = hosts.join(closed.address().to_string());
        std::fs::create_dir(&folder).unwrap();
        let text = format!(
            "server = \"http://{}\"\n[host.\"https://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             ca = \"{}/tls.crt\"\n",
            closed.address(),
            front.address(),
            nginx.root().display()
        );
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
        Self {
            front,
            _nginx: nginx,
            closed,
        }
    }
}

/// Pulls as this containerd's own client does: by the transfer service where there is one; `ctr` of
/// 1.x sends no labels, and `soci pull` is the client then.
fn pull(stack: &Stack, hosts: &Path, reference: &str) {
    let hosts = hosts.display().to_string();
    if stack.containerd.release().is_2().unwrap() {
        let pull = ["images", "pull", "--hosts-dir", &hosts];
        let with = ["--snapshotter", "soci", reference];
        let ctr = stack.containerd.ctr(NAMESPACE);
        ctr.output(pull.into_iter().chain(with)).unwrap();
    } else {
        let soci = stack.soci(NAMESPACE).unwrap();
        soci.output(["pull", "--hosts-dir", &hosts, reference])
            .unwrap();
    }
}

/// A file of a lazy layer, on its own mount.
fn lazy_file(stack: &Stack, name: &str) -> PathBuf {
    let mounts = soci_testkit::process::mounts_below(&stack.daemon.root()).unwrap();
    let mut files = mounts.iter().map(|mount| mount.join(name));
    files.find(|file| file.exists()).unwrap()
}

const LOOK: &str = "busybox stat -c '%a %u:%g %n' / /tmp /home/app /srv; busybox cat /plain";
const SEEN: &str = "755 0:0 /\n1777 0:0 /tmp\n750 65532:65532 /home/app\n3771 33:34 /srv\nwithout extended attributes";

fn an_image_with_odd_parts_is_right_behind_a_mirror_that_drops_connections(release: Release) {
    let root = TestRoot::new().unwrap();
    let (layout, hosts) = (root.dir("layout").unwrap(), root.dir("certs.d").unwrap());
    write_image(&layout);
    let config = format!(
        "{NO_BACKGROUND}[resolver]\nconfig_path = '{}'\n",
        hosts.display()
    );
    let stack = stack_under(release, &config);
    let target = stack.registry.docker_reference("app:soci");
    let options = ["--min-layer-size", "0", "--span-size", "65536"];
    let soci = SociCli::standalone().unwrap();
    let source = layout.display().to_string();
    soci.convert(&options, &source, &target).unwrap();
    let mirror = Mirror::start(&stack, &hosts);
    let reference = format!("{}/app:soci", mirror.closed.address());
    pull(&stack, &hosts, &reference);
    assert_eq!(lazy_mounts(&stack), 3, "{}", stack.log_tails());

    let ctr = stack.containerd.ctr(NAMESPACE);
    let look = Run::new(&reference, "soci").command(["/bin/sh", "-c", LOOK]);
    assert_eq!(ctr.run_ok(&look).unwrap(), SEEN, "{}", stack.log_tails());
    let file = lazy_file(&stack, "plain");
    let mut buffer = [0_u8; 64];
    assert_eq!(llistxattr(&file, &mut buffer), Ok(0));
    assert_eq!(lgetxattr(&file, "user.x", &mut buffer), Err(Errno::NODATA));
    let note = lgetxattr(lazy_file(&stack, "srv"), "user.note", &mut buffer).unwrap();
    assert_eq!(&buffer[..note], b"below");

    // From the end: nothing has been read ahead there. A request brings more than one file may hold.
    let mut files = (0..FILES).rev();
    for dropped in [1, 3] {
        mirror.front.break_next(dropped);
        while mirror.front.left() > 0 {
            let file = files.next().expect("the connection is in use");
            let at = lazy_file(&stack, &format!("noise/{file}"));
            let bytes = std::fs::read(at);
            let bytes =
                bytes.unwrap_or_else(|error| panic!("{dropped}: {error}\n{}", stack.log_tails()));
            assert!(bytes == noise(file).to_vec());
        }
    }

    left_to_the_client_once(&stack, &root.dir("preloaded").unwrap());
}

/// Prepares the layers of an image that containerd has without its index, and whose registry is a
/// black hole.
fn left_to_the_client_once(stack: &Stack, layout: &Path) {
    let (hole, _held) = crate::poisoning::black_hole();
    let name = format!("{}/app:1", hole.local_addr().unwrap());
    outages::image(layout);
    outages::import(stack, layout, &name);
    outages::forget(stack, &outages::manifests(layout).1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let prepared = runtime.block_on(async {
        let prepared = outages::prepare_all(stack, layout, &name);
        tokio::time::timeout(PATIENCE, prepared).await
    });
    let (lazy, _) = prepared.unwrap_or_else(|_| panic!("{}", stack.log_tails()));
    assert_eq!(lazy, 0, "{}", stack.log_tails());
}

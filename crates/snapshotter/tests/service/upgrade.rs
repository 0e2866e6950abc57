//! The root of soci-snapshotter v0.15 is imported: its database (`tests/golden/v0.15-root`), and the
//! answer of v0.15's `List` from it.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use soci_layer::{LayerRefusal, MountedInfo};
use soci_snapshotter::api::v1::{Info, Kind};
use soci_snapshotter::{LayerMode, SnapshotterError};
use tonic::Code;

use crate::client::assert_code;
use crate::double::Behaviour;
use crate::fixture::{Machine, exists};

const ACTIVE: &str = "default/5/e385a5057c310376055db4461a8aa7c3d3a14238600348e7ff39c8f4d9bf598b";
/// The layers of the snapshots 1 and 2, which were lazy.
const LAZY: [&str; 2] = [
    "sha256:69460f4b0a8c72d4ce43560b6a36531f02f3ed00d9e28b19d7796c8efb016cda",
    "sha256:766b3c74463a5152704ccd9d7af4544d9380caefbf3d6dc5b1e656669e8ee70a",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/v0.15-root")
        .join(name)
}

/// Creates the root as v0.15 left it: the database and the directories of `tree.txt`.
fn v0_15() -> Machine {
    let machine = Machine::new();
    for line in fs::read_to_string(golden("tree.txt")).unwrap().lines() {
        let mut fields = line.split(' ');
        let (kind, path) = (fields.next().unwrap(), fields.nth(2).unwrap());
        let path = path.strip_prefix("./snapshotter").unwrap();
        if kind == "d" {
            fs::create_dir_all(machine.root().join(path.trim_start_matches('/'))).unwrap();
        }
    }
    fs::copy(golden("metadata.db"), old_database(&machine)).unwrap();
    // The files of the unpacked layer and of the container.
    fs::write(machine.snapshots().join("3/fs/unpacked"), "by containerd").unwrap();
    fs::write(machine.snapshots().join("5/fs/written"), "by the container").unwrap();
    for layer in LAZY {
        machine.lazy_layer(layer);
    }
    machine
}

fn old_database(machine: &Machine) -> PathBuf {
    machine.root().join("metadata.db")
}

/// The answer of v0.15, in the order of the names.
fn listed_by_v0_15() -> Vec<Info> {
    let text = fs::read_to_string(golden("snapshots.jsonl")).unwrap();
    let mut infos: Vec<Info> = text
        .lines()
        .map(|line| {
            let snapshot: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| snapshot[key].as_str().unwrap_or_default().to_owned();
            let labels = snapshot["Labels"].as_object().into_iter().flatten();
            Info {
                name: text("Name"),
                parent: text("Parent"),
                kind: match &*text("Kind") {
                    "Active" => Kind::Active.into(),
                    "Committed" => Kind::Committed.into(),
                    other => panic!("{other}"),
                },
                created_at: Some(text("Created").parse().unwrap()),
                updated_at: Some(text("Updated").parse().unwrap()),
                labels: labels
                    .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
                    .collect(),
            }
        })
        .collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    infos
}

#[tokio::test]
async fn after_the_upgrade_list_answers_what_v0_15_answered() {
    let machine = v0_15();
    let before = fs::read(old_database(&machine)).unwrap();
    let daemon = machine.start().await;
    assert_eq!(daemon.list(&[]).await.unwrap(), listed_by_v0_15());
    // The way back: its database is unchanged.
    assert_eq!(fs::read(old_database(&machine)).unwrap(), before);

    // Later changes are ours: nothing is imported again.
    daemon.remove(ACTIVE).await.unwrap();
    daemon.prepare("new", "").await.unwrap();
    let names = daemon.names(&[]).await;
    daemon.stop(false).await;
    let daemon = machine.start().await;
    assert_eq!(daemon.names(&[]).await, names);
    assert_eq!(fs::read(old_database(&machine)).unwrap(), before);
}

#[tokio::test]
async fn lazy_layers_of_v0_15_are_mounted_again_and_its_containers_continue() {
    let machine = v0_15();
    let daemon = machine.start().await;
    let mut requests = machine.layers.requests.lock().clone();
    requests.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    assert_eq!(requests.len(), 2);
    for (request, (id, layer)) in requests.iter().zip([("1", LAZY[0]), ("2", LAZY[1])]) {
        assert_eq!(request.namespace, "default");
        assert_eq!(request.mountpoint, machine.snapshots().join(id).join("fs"));
        let label = |key: &str| request.labels[&format!("containerd.io/snapshot/{key}")].clone();
        assert_eq!(label("cri.layer-digest"), layer);
        assert_eq!(label("cri.image-ref"), "127.0.0.1:5001/py:soci");
        assert!(!request.labels.contains_key("containerd.io/snapshot/remote"));
    }
    let layers = daemon.snapshotter.layers().await.unwrap();
    let lazy = |layer: &&soci_snapshotter::LayerState| layer.mode == LayerMode::Lazy;
    assert_eq!((layers.len(), layers.iter().filter(lazy).count()), (3, 2));

    let mounts = daemon.mounts(ACTIVE).await.unwrap();
    let option = |key: &str| {
        let found = mounts[0].options.iter().find_map(|o| o.strip_prefix(key));
        found.unwrap().to_owned()
    };
    let fs = |id: &str| {
        machine
            .snapshots()
            .join(id)
            .join("fs")
            .display()
            .to_string()
    };
    assert_eq!(option("upperdir="), fs("5"));
    assert_eq!(
        option("lowerdir="),
        format!("{}:{}:{}", fs("3"), fs("2"), fs("1"))
    );
    // A new container on the same image, over real mounts.
    let base = listed_by_v0_15()
        .into_iter()
        .find(|info| info.name == ACTIVE)
        .unwrap()
        .parent;
    let mut contents = machine.contents(&daemon, &base).await;
    contents.sort();
    let mut expected = vec!["unpacked=by containerd".to_owned()];
    expected.extend(LAZY.iter().map(|layer| format!("{layer}={layer}")));
    expected.sort();
    assert_eq!(contents, expected);
    // Lazy snapshots take no space, the unpacked one what v0.15 measured.
    assert!(daemon.usage(&base).await.unwrap().size > 0);
}

#[tokio::test]
async fn new_snapshots_get_ids_that_v0_15_never_used_and_its_orphans_are_swept() {
    let machine = v0_15();
    // 4 was removed in v0.15; 9 belongs to a Prepare during which v0.15 crashed.
    for orphan in ["4/fs", "9/fs/file", "1_4/fs/file", "1_5/fs/file"] {
        fs::create_dir_all(machine.snapshots().join(orphan)).unwrap();
    }
    let daemon = machine.start().await;
    daemon.prepare("new", "").await.unwrap();
    daemon.cleanup().await;
    // The id-mapped layer of the existing container stays.
    assert_eq!(machine.directories(), ["1", "10", "1_5", "2", "3", "5"]);
    daemon.remove(ACTIVE).await.unwrap();
    daemon.cleanup().await;
    assert_eq!(machine.directories(), ["1", "10", "2", "3"]);
}

#[tokio::test]
async fn the_owner_of_a_lazy_root_that_v0_15_did_not_record_is_learnt() {
    let machine = v0_15();
    let folder = machine.lazy_layer(LAZY[1]);
    let root = MountedInfo {
        uid: 7,
        gid: 8,
        mode: 0o755,
    };
    machine.layers.set(LAZY[1], Behaviour::Lazy(folder, root));
    let daemon = machine.start().await;
    let second = &listed_by_v0_15()[1..]
        .iter()
        .find(|info| info.labels.values().any(|value| value == LAZY[1]))
        .unwrap()
        .name
        .clone();
    daemon.prepare("above", second).await.unwrap();
    let mounts = daemon.mounts("above").await.unwrap();
    let upper = mounts[0]
        .options
        .iter()
        .find_map(|o| o.strip_prefix("upperdir="));
    let owner = fs::metadata(upper.unwrap()).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((owner.uid(), owner.gid()), (7, 8));
}

/// A mount of a dead FUSE server: access to it fails with ENOTCONN.
fn dead_mount(point: &Path) {
    let fuse = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        fuse.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap();
    mount(
        "soci",
        point,
        "fuse.rawBridge",
        MountFlags::RDONLY,
        options.as_c_str(),
    )
    .unwrap();
    drop(fuse);
    assert!(fs::metadata(point).is_err(), "it is not dead");
}

#[tokio::test]
async fn dead_mounts_of_v0_15_are_taken_down_first() {
    let machine = v0_15();
    let stale = ["1/fs", "2/fs", "1_5/fs", "7/fs"].map(|name| machine.snapshots().join(name));
    for point in &stale {
        fs::create_dir_all(point).unwrap();
        dead_mount(point);
    }
    let other = machine.folder("not-ours");
    dead_mount(&other);
    let daemon = machine.start().await;
    daemon.cleanup().await;
    // The two lazy layers are mounted again; mounts outside of the root are unchanged.
    let mut mounted = machine.mounted();
    mounted.sort();
    let real = |path: &Path| fs::canonicalize(path.parent().unwrap()).unwrap().join("fs");
    let not_ours = fs::canonicalize(other.parent().unwrap())
        .unwrap()
        .join("not-ours");
    assert_eq!(mounted, [not_ours, real(&stale[0]), real(&stale[1])]);
    assert!(!exists(&machine.snapshots().join("7")));
    unmount(&other, UnmountFlags::DETACH).unwrap();
}

#[tokio::test]
async fn a_database_of_v0_15_that_cannot_be_read_is_reported_and_left_as_it_is() {
    let machine = v0_15();
    let path = old_database(&machine);
    let stale = machine.snapshots().join("1/fs");
    dead_mount(&stale);
    let whole = fs::read(&path).unwrap();
    let mut broken = whole.clone();
    // The pages that hold its buckets.
    for start in (8192..broken.len()).step_by(4096) {
        broken[start] ^= 0x55;
    }
    let mut no_parent = whole.clone();
    let parent = b"parentsha256:";
    for place in 0..whole.len() - parent.len() {
        if whole[place..].starts_with(parent) {
            no_parent[place + parent.len()] = b'!';
        }
    }
    for damaged in [
        vec![0x5a; 9000],
        broken,
        no_parent,
        whole[..9000].to_vec(),
        Vec::new(),
    ] {
        fs::write(&path, &damaged).unwrap();
        let Err(error) = machine.open(false).await else {
            panic!("started without the snapshots of v0.15");
        };
        assert!(
            matches!(error, SnapshotterError::OldMetadata { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("metadata.db"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), damaged);
        assert!(!exists(&machine.root().join("metadata.redb")));
        assert_eq!(machine.mounted().len(), 1, "the mounts are left, too");
    }
    fs::write(&path, &whole).unwrap();
    let daemon = machine.start().await;
    assert_eq!(daemon.list(&[]).await.unwrap(), listed_by_v0_15());
}

#[tokio::test]
async fn a_take_over_that_broke_off_is_done_again() {
    let machine = v0_15();
    // Killed between the creation of the file and the transaction.
    drop(redb::Database::create(machine.root().join("metadata.redb")).unwrap());
    // The layers cannot be mounted: the start fails after the transaction.
    let refusal = LayerRefusal::failed("registry unreachable");
    machine.layers.set(LAZY[0], Behaviour::Refuse(refusal));
    let Err(error) = machine.open(true).await else {
        panic!("started with a broken layer");
    };
    assert!(matches!(error, SnapshotterError::Restore { .. }), "{error}");
    machine.lazy_layer(LAZY[0]);
    let daemon = machine.start().await;
    assert_eq!(daemon.list(&[]).await.unwrap(), listed_by_v0_15());
}

#[tokio::test]
async fn a_running_v0_15_is_not_disturbed() {
    let machine = v0_15();
    let old = fs::File::options()
        .read(true)
        .write(true)
        .open(old_database(&machine))
        .unwrap();
    for _ in 0..2 {
        rustix::fs::flock(&old, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let Err(error) = machine.open(false).await else {
            panic!("started beside v0.15");
        };
        assert!(error.to_string().contains("in use"), "{error}");
        rustix::fs::flock(&old, rustix::fs::FlockOperation::Unlock).unwrap();
        // Neither before nor after the import.
        machine.start().await.stop(true).await;
    }
}

/// Changes the transaction of the newer meta page, as if v0.15 had changed something.
fn v0_15_runs_again(path: &Path) {
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut metas = [0; 8192];
    file.read_exact(&mut metas).unwrap();
    let transaction = |page: usize| {
        let at = page * 4096 + 16 + 48;
        u64::from_le_bytes(metas[at..at + 8].try_into().unwrap())
    };
    let newer = usize::from(transaction(1) > transaction(0));
    let next = transaction(newer) + 2;
    let start = newer * 4096 + 16;
    metas[start + 48..start + 56].copy_from_slice(&next.to_le_bytes());
    // FNV-1a, as in bbolt.
    let sum = metas[start..start + 56]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    metas[start + 56..start + 64].copy_from_slice(&sum.to_le_bytes());
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&metas).unwrap();
}

#[tokio::test]
async fn after_the_way_back_what_v0_15_left_counts_again() {
    let machine = v0_15();
    let daemon = machine.start().await;
    daemon.remove(ACTIVE).await.unwrap();
    daemon.prepare("ours", "").await.unwrap();
    daemon.stop(true).await;
    v0_15_runs_again(&old_database(&machine));
    let daemon = machine.start().await;
    assert_eq!(daemon.list(&[]).await.unwrap(), listed_by_v0_15());
    assert_code(&daemon.stat("ours").await, Code::NotFound);
    let created = daemon.stat(ACTIVE).await.unwrap().created_at.unwrap();
    assert!(std::time::SystemTime::try_from(created).unwrap() > UNIX_EPOCH);
}

//! What programs see through a mount: reads, errors, kills, unmounting, the state file. Needs root
//! and /dev/fuse.
//!
//! A process of its own: these tests count descriptors and threads, and start programs while mounts are
//! unanswered.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use soci_fetch::testing::{Answer, MemoryLayer};
use soci_fetch::{LayerData, ReadError};
use soci_layerfs::{FileWatch, LayerMountOptions, OwnReader, OwnReads};
use soci_registry::RegistryError;
use support::{Layer, Mount, noise, run, until, ztoc_of};

/// Tests that count descriptors or threads run alone; the others may run beside each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

fn failing() -> Answer {
    Answer::Fail(ReadError::Closed)
}

fn raw(error: &std::io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

#[test]
fn random_reads_equal_the_tar() {
    let _alone = alone();
    let content = noise(3_000_001);
    let mount = Mount::of_tar(Layer::new().file("pad", b"x").file("big", &content).tar());
    let file = File::open(mount.path("big")).unwrap();
    for answer in [Answer::Stored, Answer::FetchedElsewhere] {
        mount.data.script(answer);
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut at = 1_u64;
        for step in 0..200_u64 {
            at = (at * 48_271 + step) % 3_000_100;
            let length = usize::try_from(at % 9000).unwrap();
            let mut seen = vec![0; length];
            let got = file.read_at(&mut seen, at).unwrap();
            let start = usize::try_from(at).unwrap().min(content.len());
            let end = (start + length).min(content.len());
            assert_eq!(&seen[..got], &content[start..end]);
        }
    }
    assert_eq!(file.read_at(&mut [0; 10], 3_000_001).unwrap(), 0);
}

/// Reads by the daemon's own process, the kernel's readahead for it among them, are distinguished from
/// those of containers by the thread that sends them.
#[test]
fn reads_of_the_own_reader_are_distinguished_from_those_of_containers() {
    let _alone = alone();
    let content = noise(3_000_000);
    let tar = Layer::new()
        .file("theirs", &content)
        .file("ours", &content)
        .tar();
    let (reader, own) = (Arc::<OwnReader>::default(), MemoryLayer::new(tar.clone()));
    own.script(Answer::FetchedElsewhere);
    let watch = Arc::<FileWatch>::default();
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let watcher = watch.begin({
        let seen = seen.clone();
        move |ino| seen.lock().push(ino)
    });
    let options = LayerMountOptions {
        watch,
        own_reads: Some(OwnReads {
            reader: reader.clone(),
            data: Arc::new(own.clone()),
        }),
        ..LayerMountOptions::default()
    };
    let mount = Mount::new(&ztoc_of(&tar), tar, options);
    mount.data.script(Answer::FetchedElsewhere);
    let read = |name: &str| {
        let file = File::open(mount.path(name)).unwrap();
        for start in (0..3_000_000).step_by(512 << 10) {
            let length = std::num::NonZeroU64::new(512 << 10);
            rustix::fs::fadvise(&file, start, length, rustix::fs::Advice::WillNeed).unwrap();
        }
        let mut whole = Vec::new();
        (&file).read_to_end(&mut whole).unwrap();
        assert!(whole == content, "{name}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            reader.set(u32::try_from(thread).ok());
            read("ours");
        });
    });
    assert!(!own.reads().is_empty());
    assert_eq!(mount.data.reads(), []);
    let before = own.reads();
    read("theirs");
    assert_eq!(own.reads(), before);
    assert!(!mount.data.reads().is_empty());
    let theirs = mount.tree.find(b"theirs").unwrap();
    assert_eq!(*seen.lock(), [theirs]);
    drop(watcher);
}

#[test]
fn many_readers_at_once_get_the_right_bytes() {
    let _alone = alone();
    let mut layer = Layer::new();
    let contents: Vec<_> = (0..16).map(|n| noise(200_000 + n)).collect();
    for (n, content) in contents.iter().enumerate() {
        layer = layer.file(&format!("f{n}"), content);
    }
    let mount = Mount::of_tar(layer.tar());
    mount.data.script(Answer::FetchedElsewhere);
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (mount, contents) = (&mount, &contents);
            scope.spawn(move || {
                for n in 0..16 {
                    let n = (n + reader) % 16;
                    let seen = std::fs::read(mount.path(&format!("f{n}"))).unwrap();
                    assert!(seen == contents[n]);
                }
            });
        }
    });
}

#[test]
fn memory_maps_and_programs_work() {
    let _alone = alone();
    let program = std::fs::read("/bin/true").unwrap();
    let text = noise(300_000);
    let mount = Mount::of_tar(
        Layer::new()
            .program("true", &program)
            .file("text", &text)
            .tar(),
    );
    // The loader maps the program; Python's mmap module reads through a map.
    assert!(Command::new(mount.path("true")).status().unwrap().success());
    let script = "import mmap,sys,hashlib; f=open(sys.argv[1],'rb'); \
        print(hashlib.sha256(mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)[:]).hexdigest())";
    let path = mount.path("text");
    let sum = run("python3", &["-c", script, path.to_str().unwrap()]);
    assert_eq!(sum.trim(), soci_oci::Digest::of(&text).hex());
}

#[test]
fn a_failed_read_is_eio_and_the_next_one_succeeds() {
    let _alone = alone();
    let content = noise(50_000);
    let mount = Mount::of_tar(Layer::new().file("f", &content).tar());
    mount.data.script(failing());
    let error = std::fs::read(mount.path("f")).unwrap_err();
    assert_eq!(raw(&error), Some(Errno::IO));
    assert!(mount.layer.counters().read_failures > 0);
    mount.data.script(Answer::Fetched);
    assert!(std::fs::read(mount.path("f")).unwrap() == content);
}

#[test]
fn every_change_is_refused_as_read_only() {
    let _alone = alone();
    let mount = Mount::of_tar(Layer::new().dir("d", 0o777).file("d/f", b"x").tar());
    let errors = [
        File::create(mount.path("d/new")).unwrap_err(),
        File::options()
            .write(true)
            .open(mount.path("d/f"))
            .unwrap_err(),
        std::fs::remove_file(mount.path("d/f")).unwrap_err(),
        std::fs::create_dir(mount.path("d/e")).unwrap_err(),
        std::fs::rename(mount.path("d/f"), mount.path("d/g")).unwrap_err(),
        std::os::unix::fs::chown(mount.path("d/f"), Some(1), Some(1)).unwrap_err(),
        std::os::unix::fs::symlink("a", mount.path("d/s")).unwrap_err(),
        std::fs::hard_link(mount.path("d/f"), mount.path("d/l")).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn the_mount_is_what_other_programs_look_for() {
    let _alone = alone();
    let mount = Mount::of_tar(Layer::new().file("f", b"x").tar());
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(mount.layer.mountpoint().to_str().unwrap()))
        .unwrap();
    let columns: Vec<_> = line.split(' ').collect();
    assert_eq!((columns[0], columns[2]), ("soci", "fuse.rawBridge"));
    let options: Vec<_> = columns[3].split(',').collect();
    assert!(options.contains(&"ro") && options.contains(&"allow_other"));
    assert!(options.contains(&"default_permissions"));
    assert!(!options.contains(&"nosuid") && !options.contains(&"nodev"));
    let device = mount.layer.facts().device.clone().unwrap();
    let readahead = std::fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb"));
    assert_eq!(readahead.unwrap().trim(), "4096");
    assert!(mount.layer.facts().negotiated.no_open());
    assert_eq!(mount.layer.facts().negotiated.max_pages, 256);
}

#[test]
fn statfs_reports_the_backing_file_system() {
    let _alone = alone();
    let mount = Mount::of_tar(Layer::new().tar());
    let seen = rustix::fs::statfs(mount.path("")).unwrap();
    let backing = rustix::fs::statfs(mount.beside()).unwrap();
    assert_eq!(seen.f_blocks, backing.f_blocks);
    assert_eq!(seen.f_files, backing.f_files);
    assert_eq!(seen.f_namelen, backing.f_namelen);
}

/// What a registry that is down must not keep from being answered.
#[test]
fn everything_but_content_is_answered_while_reads_wait() {
    let _alone = alone();
    let mut layer = Layer::new().dir("d", 0o755).symlink("l", "f0");
    for number in 0..10 {
        layer = layer.file(&format!("f{number}"), &noise(3000));
    }
    let mount = Mount::of_tar(layer.tar());
    let readers: Vec<_> = (0..10)
        .map(|number| blocked_reader(&mount, &format!("f{number}")))
        .collect();
    let root = mount.layer.mountpoint().to_owned();
    let told = std::thread::spawn(move || {
        assert_eq!(std::fs::metadata(root.join("f0")).unwrap().len(), 3000);
        rustix::fs::statfs(&root).unwrap();
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 12);
        let target = std::fs::read_link(root.join("l")).unwrap();
        assert_eq!(target.to_str(), Some("f0"));
        std::fs::metadata(root.join("none")).unwrap_err();
        let state = std::fs::metadata(root.join(".soci-snapshotter")).unwrap();
        assert!(state.is_dir());
    });
    until("everything but content", || told.is_finished());
    told.join().unwrap();
    assert_eq!(mount.data.release(), 10);
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        assert!(output.stdout == noise(3000));
    }
}

#[test]
fn xattrs_of_a_layer_without_any_are_requested_once() {
    let _alone = alone();
    let mount = Mount::of_tar(Layer::new().file("f", b"x").tar());
    for _ in 0..3 {
        let mut value = [0_u8; 10];
        let got = rustix::fs::lgetxattr(mount.path("f"), "user.x", &mut value);
        assert_eq!(got, Err(Errno::OPNOTSUPP));
    }
    assert_eq!(mount.layer.counters().getxattr, 1);
}

#[test]
fn what_the_kernel_has_cached_is_not_requested_again() {
    let _alone = alone();
    let mount = Mount::of_tar(Layer::new().file("d/f", b"x").symlink("s", "d/f").tar());
    let look = || {
        assert_eq!(std::fs::read(mount.path("s")).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(mount.path("d")).unwrap().count(), 1);
        assert!(mount.path("d/missing").symlink_metadata().is_err());
        let file = File::open(mount.path("d/f")).unwrap();
        // A hole is looked for without asking us.
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
        assert_eq!(hole, 1);
    };
    look();
    look();
    let before = mount.layer.counters();
    look();
    assert_eq!(mount.layer.counters(), before);
}

#[test]
fn for_attributes_that_no_file_has_the_kernel_asks_once_or_is_answered() {
    let _alone = alone();
    let tar = || Layer::new().file("f", b"x").tar();
    let look = |mount: &Mount| {
        let mut room = [0; 16];
        let name = "security.capability";
        rustix::fs::lgetxattr(mount.path("f"), name, &mut room).unwrap_err()
    };
    let list = |mount: &Mount| rustix::fs::llistxattr(mount.path("f"), &mut [0; 16][..]);
    let mount = Mount::of_tar(tar());
    for _ in 0..3 {
        assert_eq!(look(&mount), Errno::OPNOTSUPP);
        assert_eq!(list(&mount), Ok(0));
    }
    assert_eq!(mount.layer.counters().getxattr, 1);

    let options = LayerMountOptions {
        answer_xattrs: true,
        ..LayerMountOptions::default()
    };
    let tar = tar();
    let mount = Mount::new(&ztoc_of(&tar), tar, options);
    for _ in 0..3 {
        assert_eq!(look(&mount), Errno::NODATA);
        assert_eq!(list(&mount), Ok(0));
    }
}

/// Programs that keep extended attributes list them: on overlayfs over a layer without any, they find
/// an empty list, and a walk costs no other request for attributes.
#[test]
fn an_archive_with_attributes_is_made_of_a_layer_without_any() {
    let _alone = alone();
    let mut layer = Layer::new();
    for number in 0..40 {
        layer = layer.file(&format!("d{}/f{number}", number % 4), b"x");
    }
    let mount = Mount::of_tar(layer.tar());
    let beside = |name: &str| {
        let path = mount.beside().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let (empty, merged) = (beside("empty"), beside("merged"));
    let lower = mount.path("");
    let lower = format!("lowerdir={}:{}", lower.display(), empty.display());
    let at = merged.to_str().unwrap();
    run("mount", &["-t", "overlay", "overlay", "-o", &lower, at]);
    let archive = Command::new("tar")
        .args(["--xattrs", "-C", at, "-cf", "-", "."])
        .output()
        .unwrap();
    run("umount", &[at]);
    let said = String::from_utf8_lossy(&archive.stderr);
    assert!(archive.status.success() && said.is_empty(), "{said}");
    let counts = mount.layer.counters();
    assert!(counts.listxattr >= 40, "{counts:?}");
    // ENOSYS to the first.
    assert!(counts.getxattr <= 1, "{counts:?}");
}

#[test]
fn the_state_file_is_hidden_and_never_stale() {
    let _alone = alone();
    let mount = Mount::of_tar(Layer::new().file("f", &noise(10_000)).tar());
    let directory = mount.path(".soci-snapshotter");
    let listed = std::fs::read_dir(mount.path("")).unwrap();
    assert_eq!(
        listed.map(|e| e.unwrap().file_name()).collect::<Vec<_>>(),
        ["f"]
    );
    let names: Vec<_> = std::fs::read_dir(&directory).unwrap().collect();
    assert_eq!(names.len(), 1);
    let path = names.into_iter().next().unwrap().unwrap().path();
    assert_eq!(directory.metadata().unwrap().mode() & 0o7777, 0o500);
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o400);

    let read =
        || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap() };
    let before = read();
    let digest = before["digest"].as_str().unwrap();
    assert!(path.ends_with(format!("{digest}.json")));
    assert_eq!(before["fetchedPercent"], 100.0);
    assert_eq!(before["size"], before["fetchedSize"]);
    assert_eq!(before.get("error"), None);

    // A file that stays open sees what changes, also where the length does not.
    let mut open = File::open(&path).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    let body = "admin api of node-7, key-hint=AKIA1234";
    mount.data.script(Answer::Fail(ReadError::Source {
        blob: "registry.example/app".to_owned(),
        span: 0,
        source: Arc::new(RegistryError::TooLarge {
            what: body.to_owned(),
            limit: 1,
        }),
    }));
    std::fs::read(mount.path("f")).unwrap_err();
    let after = read();
    // What hosts say, and which, is not the container's: only the class.
    assert_eq!(after["error"], "refused");
    rustix::fs::seek(&open, rustix::fs::SeekFrom::Start(0)).unwrap();
    text.clear();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text).unwrap(),
        after
    );
    mount.data.script(Answer::Fail(ReadError::Verification {
        blob: body.to_owned(),
        span: 0,
        source: Arc::new(std::io::Error::other(body)),
    }));
    std::fs::read(mount.path("f")).unwrap_err();
    assert_eq!(read()["error"], "damaged");
    let detail = LayerData::status(&mount.data).error.unwrap().detail;
    assert!(detail.contains(body), "{detail}");
}

/// A program that reads the file and waits.
fn blocked_reader(mount: &Mount, name: &str) -> std::process::Child {
    mount.data.script(Answer::Held);
    let held = mount.data.held();
    let reader = Command::new("cat")
        .arg(mount.path(name))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("the read", || mount.data.held() > held);
    reader
}

#[test]
fn a_killed_reader_dies_although_its_data_never_comes() {
    let _alone = alone();
    let content = noise(100_000);
    let mount = Mount::of_tar(Layer::new().file("f", &content).tar());
    let mut reader = blocked_reader(&mount, "f");
    reader.kill().unwrap();
    // Would hang here if it could not be killed.
    assert!(!reader.wait().unwrap().success());
    // Late replies do no harm, and the next reader gets its bytes.
    mount.data.release();
    mount.data.script(Answer::Stored);
    assert!(std::fs::read(mount.path("f")).unwrap() == content);
}

/// A program that reads past the page cache: the kernel waits for that request itself, and sends
/// INTERRUPT when a signal comes. (Readahead is waited for without a request.)
fn direct_reader(mount: &Mount, name: &str) -> std::process::Child {
    let script = "import os,signal,sys,hashlib,mmap\n\
        signal.signal(signal.SIGUSR1, lambda *a: None)\n\
        f=os.open(sys.argv[1],os.O_RDONLY|os.O_DIRECT); m=mmap.mmap(-1,4096)\n\
        n=os.readv(f,[m]); print(hashlib.sha256(m[:n]).hexdigest())";
    mount.data.script(Answer::Held);
    let reader = Command::new("python3")
        .args(["-c", script])
        .arg(mount.path(name))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("the read", || mount.data.held() > 0);
    reader
}

#[test]
fn a_reader_that_handles_a_signal_keeps_waiting() {
    let _alone = alone();
    let content = noise(3000);
    let mount = Mount::of_tar(Layer::new().file("f", &content).tar());
    let reader = direct_reader(&mount, "f");
    let pid = reader.id().to_string();
    // Longer than a round of the thread that looks at interrupted requests, which nothing shows.
    for _ in 0..3 {
        run("kill", &["-USR1", &pid]);
        std::thread::sleep(Duration::from_millis(50));
    }
    mount.data.script(Answer::Stored);
    mount.data.release();
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success());
    let sum = String::from_utf8(output.stdout).unwrap();
    assert_eq!(sum.trim(), soci_oci::Digest::of(&content).hex());
    // It was answered once, with data: Python would have read again after EINTR.
    assert_eq!(mount.layer.counters().read, 1);
}

#[test]
fn a_reader_killed_in_its_own_request_dies_also_after_a_signal_that_it_handled() {
    let _alone = alone();
    for handled in [false, true] {
        let mount = Mount::of_tar(Layer::new().file("f", &noise(3000)).tar());
        let mut reader = direct_reader(&mount, "f");
        if handled {
            run("kill", &["-USR1", &reader.id().to_string()]);
            // Nothing shows that the server has seen the interruption.
            std::thread::sleep(Duration::from_millis(50));
        }
        reader.kill().unwrap();
        // The data is still held: it would hang here.
        assert!(!reader.wait().unwrap().success());
        assert_eq!(mount.data.held(), 1);
    }
}

#[test]
fn a_mount_in_use_is_unmounted_and_its_reader_still_served() {
    let _alone = alone();
    let content = noise(5000);
    let mount = Mount::of_tar(Layer::new().file("f", &content).tar());
    let reader = blocked_reader(&mount, "f");
    mount.layer.unmount().unwrap();
    assert!(std::fs::read_dir(mount.path("")).unwrap().next().is_none());
    assert!(mount.layer.is_served());
    mount.data.script(Answer::Stored);
    mount.data.release();
    let output = reader.wait_with_output().unwrap();
    assert!(output.stdout == content);
    assert!(mount.layer.connection().wait_ended(Duration::from_secs(60)));
    assert_eq!(mount.pool.connections(), 0);
    mount.layer.unmount().unwrap();
}

#[test]
fn an_aborted_mount_fails_its_readers_and_can_be_unmounted() {
    let _alone = alone();
    let mount = Mount::of_tar(Layer::new().file("f", &noise(5000)).tar());
    let reader = blocked_reader(&mount, "f");
    mount.layer.abort();
    assert!(!reader.wait_with_output().unwrap().status.success());
    let error = std::fs::read(mount.path("other")).unwrap_err();
    assert_eq!(raw(&error), Some(Errno::NOTCONN));
    mount.data.release();
    mount.layer.unmount().unwrap();
    assert!(std::fs::read_dir(mount.path("")).unwrap().next().is_none());
}

#[test]
fn threads_descriptors_and_mounts_do_not_leak() {
    let _alone = alone();
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    // Others on this machine mount too: only our own paths count.
    let round = || {
        let mount = Mount::of_tar(Layer::new().file("f", &noise(5000)).tar());
        let mut reader = blocked_reader(&mount, "f");
        reader.kill().unwrap();
        reader.wait().unwrap();
        let path = mount.layer.mountpoint().to_str().unwrap().to_owned();
        let mounted = |path: &str| {
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            table.contains(path)
        };
        assert!(mounted(&path));
        drop(mount);
        assert!(!mounted(&path));
    };
    // What is set up once and kept.
    round();
    // Threads of the test runner come and go: ours are known by their names.
    let workers = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("fuse-"))
            .count()
    };
    let before = (count("/proc/self/fd"), workers());
    for _ in 0..10 {
        round();
    }
    // A worker that is slow to end is left to itself.
    until("nothing is left", || {
        (count("/proc/self/fd"), workers()) == before
    });
}

#[test]
fn common_tools_copy_the_layer() {
    let _alone = alone();
    let content = noise(70_000);
    let mount = Mount::of_tar(
        Layer::new()
            .dir("d", 0o1777)
            .file("d/f", &content)
            .link("d/g", "d/f", 0o644)
            .symlink("d/s", "f")
            .tar(),
    );
    let (from, to) = (mount.path(""), mount.beside().join("copy"));
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    run("cp", &["-a", from, to]);
    run("diff", &["-r", "--no-dereference", from, to]);
    let copied = std::fs::metadata(mount.beside().join("copy/d/g")).unwrap();
    assert_eq!((copied.nlink(), copied.mtime()), (2, 1_700_000_000));
    let found = run(
        "find",
        &[from, "-xdev", "-mindepth", "1", "-printf", "%P %y %n\n"],
    );
    let mut found: Vec<_> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(found, ["d d 2", "d/f f 2", "d/g f 2", "d/s l 1"]);
    let archive = mount.beside().join("a.tar");
    run("tar", &["-C", from, "-cf", archive.to_str().unwrap(), "."]);
    let listed = run("tar", &["-tf", archive.to_str().unwrap()]);
    assert_eq!(listed.lines().count(), 5);
}

#[test]
fn a_hundred_thousand_files_are_listed_and_found() {
    let _alone = alone();
    let kept = soci_testkit::kernel_caches::keep().unwrap();
    let mut layer = Layer::new();
    for n in 0..100_000 {
        layer = layer.file(&format!("d{}/f{n}", n % 7), b"");
    }
    let mount = Mount::of_tar(layer.tar());
    assert_eq!(mount.tree.len(), 100_008);
    let mut seen = 0;
    for d in 0..7 {
        let mut names = std::collections::HashSet::new();
        for entry in std::fs::read_dir(mount.path(&format!("d{d}"))).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().len(), 0);
            assert!(names.insert(entry.file_name()));
            seen += 1;
        }
    }
    assert_eq!(seen, 100_000);
    drop(kept);
    // READDIRPLUS gave the attributes: nothing was asked file by file.
    let counters = mount.layer.counters();
    assert!(
        counters.lookup < 100 && counters.file_getattr < 100,
        "{counters:?}"
    );
    assert!(Arc::strong_count(&mount.tree) >= 2);
}

#[test]
fn timeouts_are_lower_bounds_and_zero_turns_caching_off() {
    let _alone = alone();
    let tar = Layer::new().file("f", b"x").tar();
    let ztoc = ztoc_of(&tar);
    let asked = |attr_timeout| {
        let options = LayerMountOptions {
            attr_timeout,
            ..LayerMountOptions::default()
        };
        let mount = Mount::new(&ztoc, tar.clone(), options);
        mount.path("f").metadata().unwrap();
        let before = mount.layer.counters().file_getattr;
        // Longer than the timeout, which has to pass.
        std::thread::sleep(Duration::from_millis(20));
        mount.path("f").metadata().unwrap();
        mount.layer.counters().file_getattr - before
    };
    assert_eq!(asked(Duration::from_millis(1)), 0);
    assert_eq!(asked(Duration::ZERO), 1);
}

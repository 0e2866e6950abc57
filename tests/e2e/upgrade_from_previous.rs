//! State of the version before is adopted: its holder and journal, its database, its layer store, its artifact
//! database. The programs of that version come from `scripts/build-previous.sh`.

use std::path::PathBuf;
use std::time::Duration;

use soci_testkit::image::{small_image, small_image_data};
use soci_testkit::process::Signal;
use soci_testkit::{SociDaemonOptions, TestRoot, daemon_program, output_of};

use crate::hand_over::{install, scene_with};
use crate::support::{
    NAMESPACE, NO_BACKGROUND, indexed, lazy_mounts, pull, run, stack_with, status,
};

/// How long readers read on both versions together.
const TIME: Duration = Duration::from_secs(20);

/// A program of the version before.
fn previous(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/previous");
    let program = PathBuf::from(folder).join(name);
    assert!(
        program.is_file(),
        "there is no {}: run scripts/build-previous.sh (make test does)",
        program.display()
    );
    program
}

#[test]
fn it_hands_over_to_this_one_under_readers() {
    let folder = TestRoot::new().unwrap();
    let (mut scene, program) = scene_with(&previous("soci-snapshotter-grpc"), folder.path());
    let readers = scene.start_readers(TIME);
    scene.pause_at_random();
    let before = scene.daemon().server_pid().unwrap();
    install(&daemon_program().unwrap(), &program);
    scene.forget_caches();
    scene.daemon().upgrade().unwrap();
    assert_ne!(scene.daemon().server_pid().unwrap(), before);
    scene.is_served_by_another_version();
    // And the holder of the version before serves this one when a server dies.
    while readers.go_on() {
        scene.pause_at_random();
        scene.forget_caches();
        if let Ok(server) = scene.daemon().signal_server(Signal::KILL) {
            scene.wait_for_successor(server);
        }
    }
    readers.finish();
    scene.nothing_leaks();
}

#[test]
fn this_one_starts_where_it_was_stopped_under_readers() {
    let folder = TestRoot::new().unwrap();
    let (mut scene, program) = scene_with(&previous("soci-snapshotter-grpc"), folder.path());
    let readers = scene.start_readers(TIME);
    scene.pause_at_random();
    // Requests are in flight, and new ones come while no server runs.
    scene.forget_caches();
    scene.stack.daemon.terminate().unwrap();
    install(&daemon_program().unwrap(), &program);
    scene.stack.daemon.start_again().unwrap();
    scene.is_served_by_another_version();
    assert_eq!(lazy_mounts(&scene.stack), scene.layers);
    readers.finish();
    scene.nothing_leaks();
}

#[test]
fn what_it_stored_is_used_without_a_registry() {
    let root = TestRoot::new().unwrap();
    let image = small_image(root.path(), "small").unwrap();
    let mut stack = stack_with(SociDaemonOptions {
        program: Some(previous("soci-snapshotter-grpc")),
        ..SociDaemonOptions::with_config(NO_BACKGROUND)
    });
    let reference = indexed(&stack, root.path(), "small");
    pull(&stack, &reference);
    let digest = soci_oci::Digest::of(&small_image_data().to_vec()).hex();
    let read = ["/bin/sha256sum", "/data/noise"];
    let output = run(&stack, &reference, &read);
    assert!(output.starts_with(&digest), "{output:?}");

    // The artifact database of its command line tool.
    stack.push(root.path(), "small", "plain").unwrap();
    let plain = stack.registry.reference("plain:small");
    let ctr = stack.containerd.ctr(NAMESPACE);
    ctr.pull(&plain, "overlayfs").unwrap();
    let daemon_root = stack.daemon.root().display().to_string();
    let global = ["--root", daemon_root.as_str()];
    let soci = stack.soci(NAMESPACE).unwrap();
    let create = ["create", "--min-layer-size", "0", &plain];
    let by_previous = |arguments: &[&str]| {
        let new = soci.command([&global[..], arguments].concat());
        let mut command = std::process::Command::new(previous("soci"));
        command.args(new.get_args());
        output_of(command).unwrap()
    };
    by_previous(&create);
    let lists = [["index", "list"], ["ztoc", "list"]];
    let before = lists.map(|list| by_previous(&[&list[..], &["-q"]].concat()));
    assert!(!before[0].is_empty());

    stack.daemon.terminate().unwrap();
    let program = SociDaemonOptions::with_config(NO_BACKGROUND);
    stack.daemon.start_again_with(program).unwrap();
    stack.wait_for_snapshotter().unwrap();
    assert_eq!(lazy_mounts(&stack), image.layers.len());
    assert!(status(&stack.daemon).to_string().contains(&reference));
    let after = lists.map(|list| {
        let arguments = [&global[..], &list[..], &["-q"]].concat();
        soci.output(arguments).unwrap()
    });
    assert_eq!(after, before);
    soci.output([&global[..], &create[..]].concat()).unwrap();

    stack.registry.kill().unwrap();
    let output = run(&stack, &reference, &read);
    assert!(output.starts_with(&digest), "{output:?}");
}

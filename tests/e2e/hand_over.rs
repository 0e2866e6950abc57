//! Upgrades that must not happen: whatever is wrong with the new program, the old server keeps serving,
//! or another one is started.
//! Needs root, FUSE, containerd, runc, docker-registry, mmdebstrap and the two programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::survival::Scene;
use soci_testkit::process::Signal;
use soci_testkit::{SociDaemonOptions, TestRoot, copy_program, daemon_program, write_program};

/// How long readers read while upgrades are refused.
const TIME: Duration = Duration::from_secs(15);

/// Replaces a file as a package manager does.
pub(crate) fn install(source: &Path, program: &Path) {
    let new = program.with_extension("new");
    copy_program(source, &new).unwrap();
    std::fs::rename(new, program).unwrap();
}

fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    write_program(&path, text).unwrap();
    path
}

/// A scene whose daemon runs from a program of its own, which can be replaced.
fn scene(folder: &Path) -> (Scene, PathBuf) {
    scene_with(&daemon_program().unwrap(), folder)
}

/// The same with this program at first.
pub(crate) fn scene_with(first: &Path, folder: &Path) -> (Scene, PathBuf) {
    let program = folder.join("soci-snapshotter-grpc");
    install(first, &program);
    let options = SociDaemonOptions {
        program: Some(program.clone()),
        ..SociDaemonOptions::default()
    };
    (Scene::with_daemon(options), program)
}

/// An upgrade is refused for this reason, and the old server is still there and serves.
fn is_refused(scene: &Scene, reason: &str) {
    let before = scene.daemon().server_pid().unwrap();
    scene.forget_caches();
    let refused = format!("{:#}", scene.daemon().upgrade().unwrap_err());
    assert!(
        refused.contains("the old server keeps serving") && refused.contains(reason),
        "{refused}"
    );
    assert_eq!(scene.daemon().server_pid().unwrap(), before);
    scene.wait_until_served();
}

#[test]
fn a_program_that_is_broken_is_refused_and_the_old_server_stays() {
    let folder = TestRoot::new().unwrap();
    let (scene, program) = scene(folder.path());
    let readers = scene.start_readers(TIME);
    let garbage = script(folder.path(), "garbage", "\x7fELF no program");
    install(&garbage, &program);
    is_refused(&scene, "cannot start");
    for (name, text, reason) in [
        ("ends", "#!/bin/sh\nexit 3\n", "exit code 3"),
        ("crashes", "#!/bin/sh\nkill -SEGV $$\n", "signal 11"),
        (
            "is-mute",
            "#!/bin/sh\nexec >&-\nsleep 1000\n",
            "closed its control stream",
        ),
    ] {
        install(&script(folder.path(), name, text), &program);
        is_refused(&scene, reason);
    }
    std::fs::remove_file(&program).unwrap();
    is_refused(&scene, "cannot open");
    // The good one again: it is taken.
    install(&daemon_program().unwrap(), &program);
    let before = scene.daemon().server_pid().unwrap();
    scene.daemon().upgrade().unwrap();
    assert_ne!(scene.daemon().server_pid().unwrap(), before);
    readers.finish();
    scene.nothing_leaks();
}

#[test]
fn a_program_that_cannot_serve_the_stored_state_is_refused_and_the_old_server_stays() {
    let folder = TestRoot::new().unwrap();
    let (scene, _program) = scene(folder.path());
    let readers = scene.start_readers(TIME);
    let config = scene.daemon().config_file();
    let good = std::fs::read(&config).unwrap();
    std::fs::write(&config, "[holder]\nabandon_after_sec = \"soon\"\n").unwrap();
    is_refused(&scene, "exit code 1");
    std::fs::write(&config, good).unwrap();
    // The layer store is not as it should be.
    let layers = scene.daemon().root().join("soci/layers");
    let hidden = layers.with_extension("hidden");
    std::fs::rename(&layers, &hidden).unwrap();
    is_refused(&scene, "exit code 1");
    std::fs::rename(&hidden, &layers).unwrap();
    for reason in ["abandon_after_sec", "cannot open the layer"] {
        let logged = scene
            .daemon()
            .log()
            .wait_for(0, PATIENCE, |line| line.contains(reason));
        assert!(logged.is_some(), "the log says why: {reason}");
    }
    scene.daemon().upgrade().unwrap();
    readers.finish();
    scene.nothing_leaks();
}

#[test]
fn a_program_that_dies_after_the_hand_over_returns_everything() {
    let options = SociDaemonOptions {
        environment: vec![(
            "SOCI_FAULT_POINT".to_owned(),
            "hand-over-taken-up".to_owned(),
        )],
        ..SociDaemonOptions::default()
    };
    let scene = Scene::with_daemon(options);
    let readers = scene.start_readers(TIME);
    while readers.go_on() {
        scene.pause_at_random();
        is_refused(&scene, "signal 6");
    }
    let resumed = |line: &str| line.contains("hand-over failed; serving again");
    assert!(
        scene
            .daemon()
            .log()
            .wait_for(0, PATIENCE, resumed)
            .is_some()
    );
    // And what gave way is as good as before.
    let server = scene.daemon().signal_server(Signal::KILL).unwrap();
    scene.daemon().wait_for_successor(server).unwrap();
    readers.finish();
    scene.nothing_leaks();
}

#[test]
fn an_old_server_that_cannot_serve_again_is_reported_lost_and_replaced() {
    let folder = TestRoot::new().unwrap();
    let (scene, program) = scene(folder.path());
    let readers = scene.start_readers(TIME);
    let old = scene.daemon().server_pid().unwrap();
    // Proves itself, and takes the old server with it when it is to serve.
    let text = format!("#!/bin/sh\necho proved\nread word <&1\nkill -KILL {old}\nexit 3\n");
    install(&script(folder.path(), "murderer", &text), &program);
    let refused = format!("{:#}", scene.daemon().upgrade().unwrap_err());
    assert!(
        refused.contains("the old server does not serve again (it ended (signal 9)")
            && refused.contains("the new program does not serve: it ended (exit code 3)")
            && !refused.contains("keeps serving"),
        "{refused}"
    );
    // By the program that the supervisor was running, not by the one that is installed.
    scene.daemon().wait_for_successor(old).unwrap();
    scene.wait_until_served();
    readers.finish();
    scene.nothing_leaks();
}

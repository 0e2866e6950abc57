//! Containers go on while the daemon is killed, restarted, upgraded, and while parts of it are gone. Needs
//! root, FUSE, containerd, runc, docker-registry, mmdebstrap and the two programs.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::time::Duration;

use support::survival::Scene;
use testkit::process::Signal;

#[test]
fn readers_notice_nothing_when_the_server_is_killed_over_and_over() {
    let scene = Scene::new("");
    let readers = scene.start_readers(Duration::from_secs(40));
    let mut kills = 0;
    while readers.go_on() {
        scene.pause_at_random();
        scene.forget_caches();
        if let Ok(pid) = scene.daemon().signal_server(Signal::KILL) {
            kills += 1;
            scene.daemon().wait_for_successor(pid).unwrap();
        }
    }
    readers.finish();
    assert!(kills >= 30, "only {kills} kills");
    scene.nothing_leaks();
}

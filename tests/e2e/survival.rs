//! Containers keep reading while the server is killed or replaced, over and over. Needs root, FUSE, containerd, runc,
//! docker-registry, mmdebstrap and the two programs. `SOAK_SECONDS` is how long (60).

use std::time::Duration;

use crate::support::survival::Scene;
use soci_testkit::process::Signal;

fn soak() -> Duration {
    let seconds = std::env::var("SOAK_SECONDS").map_or(60, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Kills the server at random moments for this long, while containers read.
fn kill_over_and_over(config: &str, time: Duration) {
    let scene = Scene::new(config);
    let readers = scene.start_readers(time);
    let mut kills = 0;
    while readers.go_on() {
        scene.pause_at_random();
        scene.forget_caches();
        if let Ok(pid) = scene.daemon().signal_server(Signal::KILL) {
            kills += 1;
            scene.wait_for_successor(pid);
        }
    }
    readers.finish();
    scene.nothing_leaks();
    println!("{kills} kills");
    // How many there are is a matter of the machine's speed.
    assert!(kills > 0);
}

#[test]
fn readers_notice_nothing_when_the_server_is_killed_over_and_over() {
    kill_over_and_over("", soak());
}

#[test]
fn without_resend_the_journal_answers_what_was_in_flight() {
    kill_over_and_over("[holder]\nresend = false\n", soak() / 3);
}

#[test]
fn readers_notice_nothing_of_hand_overs_over_and_over() {
    let scene = Scene::new("");
    let readers = scene.start_readers(soak() / 3);
    let mut upgrades = 0;
    while readers.go_on() {
        scene.pause_at_random();
        scene.forget_caches();
        let before = scene.daemon().server_pid().unwrap();
        scene.daemon().upgrade().unwrap();
        assert_ne!(scene.daemon().server_pid().unwrap(), before);
        upgrades += 1;
    }
    readers.finish();
    scene.nothing_leaks();
    println!("{upgrades} hand-overs");
    assert!(upgrades > 0);
}

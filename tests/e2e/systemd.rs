//! Containers keep reading whatever systemd does to the daemon, with the units of v0.15 and with ours. Needs
//! root, FUSE, overlayfs, docker-registry, systemd and a cgroup2 mount.

use crate::support::systemd::{OUR_UNITS, Reader, SERVICE, SystemdNode, V0_15_UNITS};
use crate::support::wait_for_unanswered;

/// Restarts, stops and starts, and kills the daemon (its main process, then all of the unit's): the reader goes
/// on after each.
fn restart_stop_and_kill(node: &SystemdNode, reader: &Reader) {
    node.systemctl(&["restart", SERVICE]);
    reader.goes_on();
    node.systemctl(&["stop", SERVICE]);
    wait_for_unanswered(&node.connections(), |waiting| {
        waiting.iter().any(|one| *one > 0)
    });
    node.systemctl(&["start", SERVICE]);
    reader.goes_on();
    for whom in ["main", "all"] {
        let before = node.server();
        node.systemctl(&[
            "kill",
            "--signal=KILL",
            &format!("--kill-who={whom}"),
            SERVICE,
        ]);
        node.wait_for_server_after(before);
        reader.goes_on();
    }
}

#[test]
fn under_the_units_of_v0_15_readers_notice_no_restart_stop_or_kill() {
    let node = SystemdNode::start(&V0_15_UNITS);
    let reader = node.start_reader();
    let holder = node.holder();
    assert!(holder.1.contains("/soci-holder-"), "{holder:?}");
    assert!(holder.1.ends_with(".scope"), "{holder:?}");

    restart_stop_and_kill(&node, &reader);
    assert_eq!(node.holder(), holder, "the same holder the whole time");
    reader.finish();
}

#[test]
fn under_our_units_readers_notice_no_restart_stop_kill_or_reload() {
    let node = SystemdNode::start(&OUR_UNITS);
    let reader = node.start_reader();
    let holder = node.holder();
    assert!(holder.1.ends_with(".scope"), "{holder:?}");

    let status = format!("/proc/{}/status", node.server());
    let status = node.systemd.run("cat", [status]).unwrap();
    for limited in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert!(status.contains(limited), "{limited}: {status}");
    }

    let main = node.systemd.property(SERVICE, "MainPID").unwrap();
    // As systemd has read them: a key that it ignores, for a typing error, has its default.
    let set = [
        ("MemoryMax", "2147483648"),
        ("MemorySwapMax", "0"),
        ("OOMPolicy", "continue"),
        ("OOMScoreAdjust", "-999"),
        ("LimitCORE", "0"),
        ("UMask", "0077"),
        ("KeyringMode", "private"),
        ("LockPersonality", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("NoNewPrivileges", "yes"),
        ("RestrictRealtime", "yes"),
        ("SystemCallArchitectures", "native"),
    ]
    .map(|(property, value)| (property, value.to_owned()));
    let read = set.each_ref().map(|(property, _)| {
        let value = node.systemd.property(SERVICE, property);
        (*property, value.unwrap())
    });
    assert_eq!(read, set);

    let before = node.server();
    node.install_programs();
    node.systemctl(&["reload", SERVICE]);
    assert_ne!(node.server(), before, "another server serves");
    assert_eq!(node.systemd.property(SERVICE, "MainPID").unwrap(), main);
    reader.goes_on();

    restart_stop_and_kill(&node, &reader);
    assert_eq!(node.holder(), holder, "the same holder the whole time");
    reader.finish();
}

#[test]
fn a_reload_that_fails_says_why_and_the_old_server_stays() {
    let node = SystemdNode::start(&OUR_UNITS);
    let reader = node.start_reader();
    let before = node.server();
    node.install_broken_daemon();
    let refused = node.systemd.systemctl(&["reload", SERVICE]);
    assert!(refused.is_err(), "the reload of a broken program succeeded");
    assert_eq!(node.server(), before);
    assert_eq!(
        node.systemd.property(SERVICE, "ActiveState").unwrap(),
        "active"
    );
    reader.goes_on();
    reader.finish();
}

#[test]
fn with_our_units_mounts_come_back_from_systemd_when_holder_and_daemon_are_killed_together() {
    let node = SystemdNode::start(&OUR_UNITS);
    let reader = node.start_reader();
    let (holder, before) = (node.holder(), node.server());
    let stored: u32 = node
        .systemd
        .property(SERVICE, "NFileDescriptorStore")
        .unwrap()
        .parse()
        .unwrap();
    assert!(stored >= 2 * node.lazy_mounts(), "{stored}");
    let main = node.systemd.property(SERVICE, "MainPID").unwrap();
    let all = [main, before.to_string(), holder.0.to_string()];
    let arguments = std::iter::once("-KILL".to_owned()).chain(all);
    node.systemd.run("kill", arguments).unwrap();
    node.wait_for_server_after(before);
    reader.goes_on();
    let log = node.log();
    assert!(
        log.contains("using the mounts that systemd stored"),
        "{log}"
    );
    assert_ne!(node.holder().0, holder.0);
    reader.finish();
}

#[test]
fn after_a_stop_mounts_are_given_up_although_systemd_had_copies_of_them() {
    let node = SystemdNode::start(&OUR_UNITS);
    let reader = node.start_reader();
    node.systemctl(&["stop", SERVICE]);
    let stored = node
        .systemd
        .property(SERVICE, "NFileDescriptorStore")
        .unwrap();
    assert_eq!(
        stored, "0",
        "a stopped service stores nothing that the next start would find"
    );
    let told = node.systemd.run("soci", ["abort-mounts"]).unwrap();
    let count = node.lazy_mounts();
    assert!(told.contains(&format!("gave up {count} mounts")), "{told}");
    reader.fails();
    let told = node
        .systemd
        .run("soci", ["abort-mounts", "--unmount"])
        .unwrap();
    assert!(told.contains(&format!("unmounted {count}")), "{told}");
    assert_eq!(node.lazy_mounts(), 0);
}

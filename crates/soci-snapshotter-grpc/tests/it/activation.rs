//! Sockets that systemd passes, by its own tool, which hands them over at the first connection.
//! Needs root and FUSE.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, DaemonDirs, package, refusal, wrapped};
use rustix::process::Signal;

fn connect(socket: &Path) -> UnixStream {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(e) => assert!(Instant::now() < end, "{}: {e}", socket.display()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon with `--address fd://` behind `systemd-socket-activate`.
fn activated(place: &DaemonDirs, options: &[&str]) -> Command {
    let program: Vec<_> = ["systemd-socket-activate"]
        .iter()
        .chain(options)
        .copied()
        .collect();
    let mut command = place.here(wrapped(&program));
    command.args(["--address", "fd://"]);
    command
}

#[test]
fn a_passed_socket_is_served_and_stays_when_the_daemon_ends() {
    let place = DaemonDirs::new();
    let socket = place.socket();
    let path = socket.to_str().unwrap();
    let mut daemon = Daemon::spawn(activated(
        &place,
        &["--listen", path, "--fdname", "soci-snapshotter.socket"],
    ));
    let _first = connect(&socket);
    let line = daemon.wait_for("soci-snapshotter-grpc successfully started");
    assert_eq!(line["address"], path);
    drop(connect(&socket));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(socket.exists(), "the socket file is systemd's, not ours");
}

#[test]
fn descriptors_that_were_stored_are_not_taken_for_the_socket() {
    let place = DaemonDirs::new();
    let (socket, stored) = (place.socket(), place.path("stored.sock"));
    let (path, other) = (socket.to_str().unwrap(), stored.to_str().unwrap());
    let mut daemon = Daemon::spawn(activated(
        &place,
        &[
            "--listen",
            other,
            "--listen",
            path,
            "--fdname",
            "stored:soci-snapshotter.socket",
        ],
    ));
    let _first = connect(&socket);
    let line = daemon.wait_for("soci-snapshotter-grpc successfully started");
    assert_eq!(line["address"], path);
}

#[test]
fn two_passed_sockets_are_refused() {
    let place = DaemonDirs::new();
    let (socket, second) = (place.socket(), place.path("second.sock"));
    let command = activated(
        &place,
        &[
            "--listen",
            socket.to_str().unwrap(),
            "--listen",
            second.to_str().unwrap(),
        ],
    );
    let waiting = std::thread::spawn(move || connect(&socket));
    let error = refusal(command);
    assert!(error.contains("2 listening sockets"), "{error}");
    drop(waiting.join().unwrap());
}

#[test]
fn a_passed_datagram_socket_is_refused() {
    let place = DaemonDirs::new();
    let socket = place.socket();
    let command = activated(
        &place,
        &["--datagram", "--listen", socket.to_str().unwrap()],
    );
    let sending = std::thread::spawn(move || {
        let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(e) = sender.send_to(b"x", &socket) {
            assert!(Instant::now() < end, "{e}");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let error = refusal(command);
    assert!(
        error.contains("none of which is a listening unix stream socket"),
        "{error}"
    );
    sending.join().unwrap();
}

#[test]
fn without_a_passed_socket_it_listens_on_the_default_path_and_says_so() {
    let place = DaemonDirs::new();
    // A mount namespace of its own, so that no real socket is touched.
    let alone = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /run && exec \"$0\" \"$@\"",
    ];
    let mut command = place.here(wrapped(&alone));
    command.args(["--address", "fd://"]);
    let mut daemon = Daemon::spawn(command);
    let line = daemon.wait_for("soci-snapshotter-grpc successfully started");
    let default = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";
    assert_eq!(line["address"], default);
    let said = daemon
        .lines
        .iter()
        .any(|l| l["level"] == "warning" && l.get("address").is_some_and(|a| a == default));
    assert!(said, "{:#?}", daemon.lines);
}

fn unit(name: &str) -> String {
    std::fs::read_to_string(package().join("../../systemd").join(name)).unwrap()
}

#[test]
fn the_units_are_valid_and_do_not_hide_the_mounts() {
    let place = DaemonDirs::new();
    let service = unit("soci-snapshotter.service");
    let exec = "ExecStart=/usr/local/bin/soci-snapshotter-grpc --address fd://\n";
    assert!(service.contains(exec));
    for promised in [
        "Type=notify\n",
        "Restart=always\n",
        "RestartSec=5\n",
        "Before=containerd.service\n",
        // The server, a child of the main process, stores descriptors.
        "NotifyAccess=all\n",
        "FileDescriptorStoreMax=8192\n",
        "Environment=SOCI_DESCRIPTOR_STORE=1\n",
        "ExecReload=/usr/local/bin/soci-snapshotter-grpc upgrade\n",
    ] {
        assert!(service.contains(promised), "{promised}");
    }
    // systemd.exec(5): each of these gives the service a mount namespace of its own.
    let hiding = [
        "Private",
        "Protect",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "RootDirectory",
        "RootImage",
        "BindPaths",
        "BindReadOnlyPaths",
        "TemporaryFileSystem",
        "MountFlags",
        "MountImages",
        "ExtensionImages",
        "DynamicUser",
        "MountAPIVFS",
    ];
    for line in service.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            !hiding.iter().any(|option| line.starts_with(option)),
            "{line}"
        );
    }
    let socket = unit("soci-snapshotter.socket");
    for promised in [
        "ListenStream=/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock\n",
        "SocketMode=0660\n",
    ] {
        assert!(socket.contains(promised), "{promised}");
    }

    // systemd checks them itself, with a program that exists on this machine.
    let here = format!(
        "ExecStart={} --address fd://\n",
        env!("CARGO_BIN_EXE_soci-snapshotter-grpc")
    );
    std::fs::write(
        place.path("soci-snapshotter.service"),
        service.replace(exec, &here).replace(
            "/usr/local/bin/soci-snapshotter-grpc",
            env!("CARGO_BIN_EXE_soci-snapshotter-grpc"),
        ),
    )
    .unwrap();
    std::fs::write(place.path("soci-snapshotter.socket"), socket).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify
        .arg("verify")
        .arg(place.path("soci-snapshotter.service"))
        .arg(place.path("soci-snapshotter.socket"));
    let out = crate::daemon::output(&mut verify);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success() && !said.contains("soci-snapshotter"),
        "{said}"
    );
}

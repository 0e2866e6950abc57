//! Starting and ending the daemon, well and badly. Needs root and FUSE.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use crate::daemon::{Daemon, DaemonDirs, refusal, wrapped};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn the_lines_that_tools_wait_for_come_in_order_and_with_strings_only() {
    let place = DaemonDirs::new();
    place.write_config("debgu = true\nhttp_cache_type = 'memory'\n[prefetch]\nenable = true\n");
    let mut daemon = place.start();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());

    let at = |message: &str| daemon.lines.iter().position(|line| line["msg"] == message);
    let starting = at("starting soci-snapshotter-grpc").unwrap();
    let fetcher = at("constructing background fetcher").unwrap();
    let started = at("soci-snapshotter-grpc successfully started").unwrap();
    assert!(
        starting < fetcher && fetcher < started,
        "{:#?}",
        daemon.lines
    );
    assert_eq!(
        daemon.lines[starting]["version"],
        concat!("v", env!("CARGO_PKG_VERSION"))
    );
    assert!(daemon.lines[starting].contains_key("revision"));
    assert_eq!(
        daemon.lines[started]["address"],
        place.socket().to_str().unwrap()
    );
    for line in &daemon.lines {
        assert!(line.values().all(serde_json::Value::is_string), "{line:?}");
        assert!(
            ["level", "msg", "time"]
                .iter()
                .all(|key| line.contains_key(*key)),
            "{line:?}"
        );
    }

    let said = |key: &str| {
        daemon
            .lines
            .iter()
            .filter(|line| line.get("key").is_some_and(|k| k == key))
            .count()
    };
    assert_eq!(
        (said("prefetch.enable"), said("http_cache_type")),
        (0, 1),
        "{:#?}",
        daemon.lines
    );
    let warned = daemon
        .lines
        .iter()
        .filter(|l| l["msg"].as_str().unwrap().contains("did you mean debug?"));
    assert_eq!(warned.count(), 1, "{:#?}", daemon.lines);
}

#[test]
fn sigterm_and_sigint_end_the_daemon_with_status_0_and_no_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = DaemonDirs::new();
        let mut daemon = place.start();
        assert!(UnixStream::connect(place.socket()).is_ok());
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{:#?}", daemon.lines);
        assert!(!place.socket().exists());
    }
}

#[test]
fn systemd_is_notified_when_it_serves_and_when_it_stops() {
    let place = DaemonDirs::new();
    let notified = UnixDatagram::bind(place.path("notify")).unwrap();
    notified
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut command = place.command();
    command.env("NOTIFY_SOCKET", place.path("notify"));
    let mut daemon = Daemon::spawn(command);
    let receive = || {
        let mut bytes = [0; 256];
        let n = notified.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..n].to_vec()).unwrap()
    };
    assert_eq!(receive().trim(), "READY=1");
    assert!(UnixStream::connect(place.socket()).is_ok());
    daemon.signal(Signal::TERM);
    assert_eq!(receive().trim(), "STOPPING=1");
    assert!(daemon.wait().success());
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused_and_the_first_is_named() {
    let place = DaemonDirs::new();
    let first = place.start();
    let mut second = place.here(crate::daemon::program());
    second.arg("--address").arg(place.path("other.sock"));
    let error = refusal(second);
    assert!(
        error.contains(place.path("root").to_str().unwrap()),
        "{error}"
    );
    assert!(error.contains(&first.pid().to_string()), "{error}");
    assert!(
        UnixStream::connect(place.socket()).is_ok(),
        "the first daemon still answers"
    );
}

#[test]
fn an_address_on_which_a_process_answers_is_refused_and_left_alone() {
    let place = DaemonDirs::new();
    let other = UnixListener::bind(place.socket()).unwrap();
    let error = refusal(place.command());
    assert!(
        error.contains("another process is listening on") && error.contains("--address"),
        "{error}"
    );
    drop(UnixStream::connect(place.socket()).unwrap());
    drop(other);
}

#[test]
fn a_stale_socket_does_not_stop_the_start() {
    let place = DaemonDirs::new();
    drop(UnixListener::bind(place.socket()).unwrap());
    let daemon = place.start();
    assert!(UnixStream::connect(place.socket()).is_ok());
    drop(daemon);
    assert!(place.socket().exists(), "killed: the socket is stale now");
    place.start();
}

#[test]
fn a_root_that_cannot_be_written_is_refused_by_name() {
    let place = DaemonDirs::new();
    let mut command = crate::daemon::program();
    command.arg("--config").arg(place.path("config.toml"));
    command.arg("--address").arg(place.socket());
    command.args(["--root", "/proc/soci"]);
    let error = refusal(command);
    assert!(error.contains("/proc/soci"), "{error}");
    assert!(!place.socket().exists());
}

#[test]
fn a_bad_configuration_is_refused_with_file_line_and_key() {
    let place = DaemonDirs::new();
    let file = place.path("config.toml").display().to_string();
    for (text, says) in [
        (
            "\n[background_fetch]\ndrop_policy = 'x'",
            ":3: background_fetch.drop_policy = 'x' is not allowed",
        ),
        ("debug = \n", ":1: not valid TOML"),
    ] {
        place.write_config(text);
        let error = refusal(place.command());
        assert!(error.contains(&format!("{file}{says}")), "{error}");
    }
    std::fs::remove_file(place.path("config.toml")).unwrap();
    let error = refusal(place.command());
    assert!(
        error.contains(&file) && error.contains("failed to open config file"),
        "{error}"
    );
}

#[test]
fn a_bad_address_is_refused() {
    let place = DaemonDirs::new();
    let mut command = place.here(crate::daemon::program());
    command.args(["--address", "tcp://127.0.0.1:1"]);
    let error = refusal(command);
    assert!(error.contains("unix://PATH"), "{error}");
}

#[test]
fn a_machine_without_fuse_is_refused_with_what_to_do() {
    let place = DaemonDirs::new();
    // A mount namespace whose /dev has only what every program expects.
    let mut command = place.here(wrapped(&[
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec \"$0\" \"$@\"",
    ]));
    command.arg("--address").arg(place.socket());
    let error = refusal(command);
    assert!(
        error.contains("/dev/fuse") && error.contains("modprobe fuse"),
        "{error}"
    );
}

#[test]
fn a_log_without_a_reader_stops_nothing() {
    let place = DaemonDirs::new();
    let mut child = place.command().stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("successfully started") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    drop(log);
    let pid = Pid::from_child(&child);
    // Several lines are written on the way out.
    kill_process(pid, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

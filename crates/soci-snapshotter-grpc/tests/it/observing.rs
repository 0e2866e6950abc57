//! The HTTP end points: metrics and debugging. Needs root and FUSE.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::daemon::{DaemonDirs, refusal};
use rustix::process::Signal;

/// Status line and body of a GET.
fn get(mut stream: impl Read + Write, path: &str) -> (String, String) {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.lines().next().unwrap().to_owned() + head,
        body.to_owned(),
    )
}

fn over_unix(socket: &Path, path: &str) -> (String, String) {
    get(UnixStream::connect(socket).unwrap(), path)
}

#[test]
fn metrics_are_served_on_tcp_and_on_a_unix_socket_whose_stale_file_is_replaced() {
    let place = DaemonDirs::new();
    place.write_config("metrics_address = '127.0.0.1:0'\n");
    let mut daemon = place.start();
    let line = daemon
        .lines
        .iter()
        .find(|line| line["msg"] == "serving /metrics")
        .unwrap();
    let address = line["address"].as_str().unwrap();
    let (head, text) = get(TcpStream::connect(address).unwrap(), "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    for line in [
        "# TYPE soci_layer_store_size_bytes gauge",
        "soci_layer_store_size_bytes 0",
        r#"soci_fetch_bytes_total{priority="demand"} 0"#,
        r#"soci_layers_not_lazy_total{reason="no-index"} 0"#,
        r#"soci_snapshot_layers{state="lazy"} 0"#,
        r#"soci_fs_operation_count{layer="",operation_type="background_fetch_work_queue_evicted"} 0"#,
        r#"soci_fs_image_operation_count_key{image="",operation_type="background_fetch_work_queue_size"} 0"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    assert!(text.contains("soci_build_info{revision="), "{text}");
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());

    let socket = place.path("m/metrics.sock");
    std::fs::create_dir(place.path("m")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    place.write_config(&format!(
        "metrics_network = 'unix'\nmetrics_address = '{}'\n",
        socket.display()
    ));
    let mut daemon = place.start();
    let (head, text) = over_unix(&socket, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(text.contains("process_open_fds "), "{text}");
    let (head, _) = over_unix(&socket, "/else");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert!(!socket.exists(), "the file goes with the daemon");
}

#[test]
fn an_address_that_is_taken_stops_the_start_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = DaemonDirs::new();
    place.write_config(&format!("metrics_address = '{address}'\n"));
    let error = refusal(place.command());
    assert!(
        error.contains("metrics_address") && error.contains(&address) && error.contains("taken"),
        "{error}"
    );
    place.write_config(&format!("debug_address = '{address}'\n"));
    let error = refusal(place.command());
    assert!(error.contains("debug_address"), "{error}");
}

#[test]
fn no_prometheus_serves_no_metrics() {
    let place = DaemonDirs::new();
    let socket = place.path("metrics.sock");
    place.write_config(&format!(
        "no_prometheus = true\nmetrics_network = 'unix'\nmetrics_address = '{}'\n",
        socket.display()
    ));
    let daemon = place.start();
    assert!(!socket.exists());
    assert!(
        daemon.lines.iter().any(|line| line["msg"]
            .as_str()
            .unwrap()
            .contains("no_prometheus is set")),
        "{:#?}",
        daemon.lines
    );
}

#[test]
fn the_debug_address_shows_process_fetcher_and_status() {
    let place = DaemonDirs::new();
    let socket = place.path("debug.sock");
    place.write_config(&format!("debug_address = '{}'\n", socket.display()));
    let daemon = place.start();
    let (head, list) = over_unix(&socket, "/debug/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(list.contains("/debug/vars") && list.contains("/debug/status"));
    let (_, vars) = over_unix(&socket, "/debug/vars");
    let vars: serde_json::Value = serde_json::from_str(&vars).unwrap();
    assert_eq!(vars["daemon"]["pid"], daemon.pid());
    assert!(vars["process"]["threads"].as_u64().unwrap() > 1, "{vars}");
    assert_eq!(vars["fetch"]["demand"]["bytes"], 0);
    let (_, status) = over_unix(&socket, "/debug/status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["counts"]["broken"], 0, "{status}");
    assert_eq!(
        status["daemon"]["root"],
        place.path("root").display().to_string()
    );
}

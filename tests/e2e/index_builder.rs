//! The index builder's scenario: an image is pushed, and starts lazily without any other step.

use serde_json::Value;
use soci_testkit::image::small_image;
use soci_testkit::process::{Daemon, LogLines};
use soci_testkit::{
    Notify, SociDaemonOptions, Stack, StackOptions, TestRoot, binary, http_request,
};

use crate::support::{NO_BACKGROUND, PATIENCE, lazy_mounts, pull, run, wait_until};

#[test]
fn an_image_starts_lazily_after_nothing_but_its_push() {
    let root = TestRoot::new().unwrap();
    let secret = root.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123").unwrap();
    let mut builder = Daemon::spawn("index-builder", &root, binary("soci").unwrap(), |command| {
        command
            .args([
                "index-builder",
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--min-layer-size",
                "0",
            ])
            .args(["--filters", "team/*:*", "--index-version", "both"])
            .arg("--secret-file")
            .arg(&secret)
            .arg("--queue")
            .arg(root.path().join("queue"))
            .env("HOME", root.path());
    })
    .unwrap();
    let address = |log: &LogLines| {
        log.all().iter().find_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            line.get("address")?.as_str()?.parse().ok()
        })
    };
    let listens = |log: &LogLines| address(log).is_some_and(|_: std::net::SocketAddr| true);
    builder.wait_ready(PATIENCE, listens).unwrap();
    let builder_at = address(builder.log()).unwrap();
    let stack = Stack::start(StackOptions {
        daemon: SociDaemonOptions::with_config(NO_BACKGROUND),
        notify: Some(Notify {
            url: format!("http://{builder_at}/events"),
            header: (
                "Authorization".to_owned(),
                "Bearer 0123456789abcdef0123".to_owned(),
            ),
        }),
        ..StackOptions::default()
    })
    .unwrap();

    let layout = TestRoot::new().unwrap();
    small_image(layout.path(), "1").unwrap();
    stack.push(layout.path(), "1", "other/app").unwrap();
    stack.push(layout.path(), "1", "team/app").unwrap();
    let status = || -> Value {
        let answer = http_request(builder_at, "GET", "/status.json", &[], b"").unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    };
    wait_until("the pushed image is indexed", PATIENCE, || {
        let status = status();
        let done = status["counts"]["done"] == 1;
        done.then_some(()).ok_or_else(|| status.to_string())
    });

    let reference = stack.reference("team/app:1-soci");
    pull(&stack, &reference);
    assert!(lazy_mounts(&stack) > 0, "no layer is lazy");
    assert_eq!(run(&stack, &reference, &[]), "hello\n");

    // Its own push was reported as well, and started nothing.
    wait_until("the builder's own push was reported", PATIENCE, || {
        let log = builder.log().all();
        let reported = log
            .iter()
            .any(|line| line.contains("as those of indexed images do"));
        reported.then_some(()).ok_or_else(|| log.join("\n"))
    });
    let status = status();
    assert_eq!(status["jobs"].as_array().unwrap().len(), 1, "{status}");
}

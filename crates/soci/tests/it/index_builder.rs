//! `soci index-builder` as a program, with a real registry: one shot, the service and its end by
//! force, AWS Lambda's interface.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use soci_testkit::fake::{Fake, With as _, status};
use soci_testkit::image::three_layers;
use soci_testkit::process::{Daemon, LogLines};
use soci_testkit::{Fault, Proxy, Registry, Rule, TestRoot, http_request};

fn soci(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
    command.arg("index-builder").env("HOME", home);
    for variable in ["DOCKER_CONFIG", "SOCI_INDEX_BUILDER_QUEUE"] {
        command.env_remove(variable);
    }
    command
}

/// Runs it with `stdin`.
fn run(command: &mut Command, stdin: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(stdin.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A registry with [`three_layers`] as `app:<tag>` for each of the tags; its events.
fn registry(root: &TestRoot, tags: &[&str]) -> (Registry, Vec<String>) {
    let registry = Registry::start().unwrap();
    let layout = root.path().join("image");
    three_layers().unwrap().write(&layout, "image").unwrap();
    let push = |tag: &&str| {
        let pushed = registry.push_layout(&layout, tag, "app").unwrap();
        event(&registry, tag, &pushed.digest.to_string())
    };
    let events = tags.iter().map(push).collect();
    (registry, events)
}

/// As a distribution registry sends it.
fn event(registry: &Registry, tag: &str, digest: &str) -> String {
    event_at(registry.address(), tag, digest)
}

fn event_at(registry: SocketAddr, tag: &str, digest: &str) -> String {
    json!({"events": [{
        "id": format!("event of {tag}"), "action": "push",
        "target": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "repository": "app", "tag": tag
        },
        "request": {"host": registry.to_string()}
    }]})
    .to_string()
}

fn has_tag(registry: &Registry, tag: &str) -> bool {
    let target = format!("/v2/app/manifests/{tag}");
    let accept = [("Accept", "application/vnd.oci.image.index.v1+json")];
    let found = http_request(registry.address(), "GET", &target, &accept, b"").unwrap();
    found.status == 200
}

#[test]
fn one_shot_indexes_what_the_event_on_stdin_or_in_a_file_reports() {
    let root = TestRoot::new().unwrap();
    let (registry, events) = registry(&root, &["1"]);
    let arguments = ["run", "--min-layer-size", "0", "--event"];
    let output = run(soci(root.path()).args(arguments).arg("-"), &events[0]);
    assert!(output.status.success(), "{output:?}");
    let line = text(&output.stdout);
    assert!(
        line.starts_with(&registry.reference("app:1-soci sha256:")),
        "{line}"
    );
    let file = root.path().join("event.json");
    std::fs::write(&file, &events[0]).unwrap();
    let again = run(soci(root.path()).args(arguments).arg(&file), "");
    assert_eq!(text(&again.stdout), line, "found, and not made again");

    let ignored = run(
        soci(root.path())
            .args(arguments)
            .arg("-")
            .args(["--filters", "other:*"]),
        &events[0],
    );
    assert!(ignored.status.success(), "{ignored:?}");
    assert!(
        text(&ignored.stderr).contains("no filter is for it"),
        "{ignored:?}"
    );
    let malformed = run(soci(root.path()).args(arguments).arg("-"), "{");
    assert_eq!(malformed.status.code(), Some(1));
    assert!(text(&malformed.stderr).contains("cannot read the event: it is not JSON"));
    let unknown = events[0].replace("\"repository\":\"app\"", "\"repository\":\"none\"");
    let unknown = run(soci(root.path()).args(arguments).arg("-"), &unknown);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("cannot index"),
        "{unknown:?}"
    );
}

/// The service with a secret, and the address on which it listens.
fn serve(root: &TestRoot, arguments: &[&str]) -> (Daemon, SocketAddr) {
    let program = env!("CARGO_BIN_EXE_soci");
    let mut daemon = Daemon::spawn("index-builder", root, program, |command| {
        command
            .args([
                "index-builder",
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--queue",
            ])
            .arg(root.path().join("queue"))
            .args(["--min-layer-size", "0"])
            .args(arguments)
            .env("HOME", root.path());
    })
    .unwrap();
    let address = |log: &LogLines| {
        log.all().iter().find_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            line.get("address")?.as_str()?.parse().ok()
        })
    };
    let listens = |log: &LogLines| -> bool { address(log).is_some_and(|_: SocketAddr| true) };
    daemon.wait_ready(Duration::from_secs(60), listens).unwrap();
    let address = address(daemon.log()).unwrap();
    (daemon, address)
}

#[test]
fn a_killed_service_loses_no_event_and_indexes_no_image_twice() {
    let root = TestRoot::new().unwrap();
    let tags: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    let (registry, events) = registry(&root, &tags);
    let secret = root.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123\n").unwrap();
    let arguments = ["--secret-file", secret.to_str().unwrap()];
    let bearer = [("Authorization", "Bearer 0123456789abcdef0123")];
    let jobs = || jobs(&root);
    let ended = |jobs: &[Value]| {
        jobs.iter()
            .filter(|job| job["state"]["name"] == "done")
            .count()
    };
    let mut left = events.iter();
    // Each time a part of the events is acknowledged, and the process is killed at work.
    for round in 1..=3 {
        let (mut daemon, address) = serve(&root, &arguments);
        for event in left.by_ref().take(4) {
            let taken = http_request(address, "POST", "/events", &bearer, event.as_bytes());
            assert_eq!(taken.unwrap().status, 202);
        }
        while ended(&jobs()) < round {
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.kill().unwrap();
    }
    let (mut daemon, address) = serve(&root, &arguments);
    // Senders repeat what was not acknowledged in time.
    let taken = http_request(address, "POST", "/events", &bearer, events[0].as_bytes()).unwrap();
    let taken: Value = serde_json::from_slice(&taken.body).unwrap();
    assert_eq!(taken["duplicates"], json!([1]));
    while ended(&jobs()) < tags.len() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let jobs = jobs();
    assert_eq!(jobs.len(), tags.len(), "{jobs:?}");
    assert!(
        tags.iter()
            .all(|tag| has_tag(&registry, &format!("{tag}-soci")))
    );
    daemon.signal(soci_testkit::process::Signal::TERM).unwrap();
    assert!(daemon.wait(Duration::from_secs(60)).unwrap().success());
    let log = daemon.log().all().join("\n");
    assert!(
        !log.contains("0123456789abcdef"),
        "a secret in the log: {log}"
    );
}

/// The jobs of the queue of [`serve`].
fn jobs(root: &TestRoot) -> Vec<Value> {
    let mut command = soci(root.path());
    let output = command
        .args(["list", "--json", "--queue"])
        .arg(root.path().join("queue"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn three_processes_share_a_queue_and_the_jobs_of_a_killed_one_go_to_the_others() {
    let root = TestRoot::new().unwrap();
    let registry = Registry::start().unwrap();
    let proxy = Proxy::start(registry.address()).unwrap();
    // So that each process has a job when one is killed.
    let slow = Rule::always(Fault::Delay(Duration::from_secs(1))).method("GET");
    proxy.inject(slow.path("/blobs/").unwrap());
    let mut processes: Vec<_> = (0..3)
        .map(|_| serve(&root, &["--workers", "1", "--retry-after", "10ms"]))
        .collect();
    let layout = root.path().join("image");
    three_layers().unwrap().write(&layout, "image").unwrap();
    let tags: Vec<String> = (0..9).map(|n| format!("t{n}")).collect();
    for (number, tag) in tags.iter().enumerate() {
        let pushed = registry.push_layout(&layout, tag, "app").unwrap();
        let event = event_at(proxy.address(), tag, &pushed.digest.to_string());
        // Each event to one of them, and again to another, as a sender does that got no response.
        for offset in 0..2 {
            let (_, address) = &processes[(number + offset) % 3];
            let taken = http_request(*address, "POST", "/events", &[], event.as_bytes()).unwrap();
            assert_eq!(taken.status, 202);
        }
    }
    let of = |job: &Value, process: &Daemon| {
        let worker = job["state"]["worker"].as_str();
        worker.is_some_and(|worker| worker.starts_with(&format!("{}-", process.pid())))
    };
    let killed = loop {
        let jobs = jobs(&root);
        let at_work = |(process, _): &(Daemon, SocketAddr)| jobs.iter().any(|job| of(job, process));
        if processes.iter().all(at_work) {
            let (process, _) = &mut processes[0];
            process.kill().unwrap();
            break process.pid();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    proxy.clear_faults();
    let jobs = loop {
        let jobs = jobs(&root);
        assert_eq!(jobs.len(), tags.len(), "{jobs:?}");
        if jobs.iter().all(|job| job["state"]["name"] == "done") {
            break jobs;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let again: Vec<_> = jobs.iter().filter(|job| job["attempts"] != 1).collect();
    assert!(again.len() <= 1, "jobs of {killed}: {again:?}");
    for tag in &tags {
        let target = format!("/v2/app/manifests/{tag}-soci");
        // A registry may refuse a manifest that names a blob of a moment ago, and gets it again.
        let puts = proxy.stats().of(|request| {
            request.method == "PUT" && request.path == target && request.status == 201
        });
        // The killed process may have pushed and not said so.
        let of_tag = |job: &&Value| job.to_string().contains(&format!(":{tag}@"));
        let most = if again.iter().any(of_tag) { 2 } else { 1 };
        assert!((1..=most).contains(&puts.requests), "{tag}: {puts:?}");
    }
    for (process, _) in processes.iter_mut().skip(1) {
        process.signal(soci_testkit::process::Signal::TERM).unwrap();
        assert!(process.wait(Duration::from_secs(60)).unwrap().success());
    }
}

#[test]
fn a_registry_without_events_is_polled_by_one_shot_runs() {
    let root = TestRoot::new().unwrap();
    let (registry, _) = registry(&root, &["1", "2", "other"]);
    let address = registry.address().to_string();
    let poll = |arguments: &[&str]| {
        let mut command = soci(root.path());
        command
            .args(["run", "--poll", "--min-layer-size", "0"])
            .args(["--filters", "app:1,app:2"])
            .args(arguments);
        run(&mut command, "")
    };
    let without = poll(&[]);
    assert_eq!(without.status.code(), Some(1), "{without:?}");
    assert!(text(&without.stderr).contains("--registry"), "{without:?}");
    let first = poll(&["--registry", &address]);
    assert!(first.status.success(), "{first:?}");
    let line = |tag: &str| registry.reference(&format!("app:{tag}-soci sha256:"));
    let lines = text(&first.stdout);
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(
        lines.contains(&line("1")) && lines.contains(&line("2")),
        "{lines}"
    );
    assert!(!has_tag(&registry, "other-soci"));
    let again = poll(&["--registry", &address]);
    assert_eq!(text(&again.stdout), lines, "found, and not made again");
    // With a queue that stays, what was seen is not looked at again.
    let queue = root.path().join("queue").display().to_string();
    let kept = ["--registry", &address, "--queue", &queue];
    assert_eq!(text(&poll(&kept).stdout), lines);
    assert_eq!(text(&poll(&kept).stdout), "");
}

#[test]
fn jobs_are_counted_listed_and_tried_again() {
    let root = TestRoot::new().unwrap();
    let (mut registry, events) = registry(&root, &["1"]);
    registry.kill().unwrap();
    let queue = root.path().join("queue").display().to_string();
    let run_in = |arguments: &[&str], stdin: &str| {
        let mut command = soci(root.path());
        let output = run(command.args(arguments).args(["--queue", &queue]), stdin);
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let missing = run_in(&["status"], "");
    assert_eq!(missing.0, Some(1));
    assert!(missing.2.contains("cannot find a queue in"), "{missing:?}");
    let event = [
        "run",
        "--min-layer-size",
        "0",
        "--max-attempts",
        "1",
        "--event",
        "-",
    ];
    let failed = run_in(&event, &events[0]);
    assert_eq!(failed.0, Some(1), "{failed:?}");
    let counts: Value = serde_json::from_str(&run_in(&["status", "--json"], "").1).unwrap();
    assert_eq!(counts["dead"], 1);
    let listed = run_in(&["list", "--state", "dead"], "").1;
    assert!(
        listed.contains("app:1") && listed.contains("given up after 1 attempts"),
        "{listed}"
    );
    assert!(run_in(&["retry", "9"], "").2.contains("cannot find job 9"));
    registry.start_again().unwrap();
    assert_eq!(run_in(&["retry", "--all"], "").1, "1 jobs wait again\n");
    let done = run_in(&["run", "--min-layer-size", "0"], "");
    assert_eq!(done.0, Some(0), "{done:?}");
    assert!(done.1.contains("app:1-soci"), "{done:?}");
    assert!(run_in(&["status"], "").1.contains("done"));
}

#[test]
fn a_service_in_the_network_needs_a_secret() {
    let root = TestRoot::new().unwrap();
    let mut command = soci(root.path());
    command
        .args(["serve", "--listen", "0.0.0.0:0", "--queue"])
        .arg(root.path().join("queue"));
    let output = run(&mut command, "");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("without a secret"),
        "{output:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_of_aws_lambda_indexes_the_image_of_an_ecr_event_and_reports_failures() {
    let root = TestRoot::new().unwrap();
    let (registry, events) = tokio::task::block_in_place(|| registry(&root, &["1"]));
    let digest: Value = serde_json::from_str(&events[0]).unwrap();
    let ecr = |repository: &str| {
        json!({
            "version": "0", "id": repository, "detail-type": "ECR Image Action", "source": "aws.ecr",
            "account": "123456789012", "time": "2026-01-02T03:04:05Z", "region": "us-west-2",
            "resources": [],
            "detail": {
                "result": "SUCCESS", "action-type": "PUSH", "image-tag": "1",
                "repository-name": repository, "image-digest": digest["events"][0]["target"]["digest"]
            }
        })
        .to_string()
    };
    let calls = [ecr("app"), ecr("none")];
    // The interface that Lambda has for the programs of functions.
    let lambda = Fake::start(move |_, request| {
        let path = request
            .path
            .strip_prefix("/2018-06-01/runtime/invocation/")?;
        if path != "next" {
            return Some(status(202).body("{}"));
        }
        static CALLS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = CALLS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let event = calls.get(number)?;
        let response = status(200)
            .with("Lambda-Runtime-Aws-Request-Id", &format!("call-{number}"))
            .with("Lambda-Runtime-Deadline-Ms", "99999999999999")
            .with(
                "Lambda-Runtime-Invoked-Function-Arn",
                "arn:aws:lambda:us-west-2:1:function:x",
            );
        Some(response.body(event.clone()))
    })
    .await;
    let alias = format!(
        "123456789012.dkr.ecr.us-west-2.amazonaws.com={}",
        registry.address()
    );
    let daemon = Daemon::spawn("lambda", &root, env!("CARGO_BIN_EXE_soci"), |command| {
        command
            .args([
                "index-builder",
                "lambda",
                "--min-layer-size",
                "0",
                "--registry-alias",
                &alias,
            ])
            .env("AWS_LAMBDA_RUNTIME_API", lambda.host())
            .env("AWS_LAMBDA_FUNCTION_NAME", "index-builder")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_LAMBDA_LOG_GROUP_NAME", "group")
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "stream")
            .env("HOME", root.path());
    })
    .unwrap();
    let answer = |path: &str| {
        let path = format!("/2018-06-01/runtime/invocation/{path}");
        lambda
            .requests()
            .into_iter()
            .find(|request| request.path == path)
    };
    while answer("call-1/error").is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = answer("call-0/response").unwrap();
    let report: Value = serde_json::from_slice(&report.body).unwrap();
    assert_eq!(
        report["indexed"][0]["image"],
        registry.reference("app:1-soci"),
        "{report}"
    );
    let failure = text(&answer("call-1/error").unwrap().body);
    assert!(failure.contains("cannot index"), "{failure}");
    assert!(has_tag(&registry, "1-soci"));
    drop(daemon);

    let outside = run(
        soci(root.path())
            .arg("lambda")
            .env_remove("AWS_LAMBDA_RUNTIME_API"),
        "",
    );
    assert_eq!(outside.status.code(), Some(1));
    assert!(
        text(&outside.stderr).contains("AWS_LAMBDA_RUNTIME_API is not set"),
        "{outside:?}"
    );
}

//! `soci push` and its flags about registries: credentials, certificates, hosts.toml, what is there
//! already; and indexes that go from registry to registry. Needs root for containerd.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Bench, lines};
use soci_testkit::{Auth, LocalPort, Proxy, http_request};

const INDEXING: [&str; 4] = ["--span-size", "262144", "--min-layer-size", "100000"];

/// A bench with an image whose index was created, and the digest of the index.
fn created() -> (Bench, String, String) {
    let bench = Bench::start();
    let image = bench.image();
    bench.ok(&[&["create"], &INDEXING[..], &[&image]].concat());
    let index = lines(&bench.ok(&["index", "list", "-q"])).remove(0);
    (bench, image, index)
}

/// Whether the registry has the manifest.
fn is_at(registry: SocketAddr, repository: &str, digest: &str) -> bool {
    let path = format!("/v2/{repository}/manifests/{digest}");
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    http_request(registry, "GET", &path, &accept, b"")
        .unwrap()
        .status
        == 200
}

/// The image under another name.
fn tagged(bench: &Bench, image: &str, name: &str) -> String {
    bench.ctr().output(["images", "tag", image, name]).unwrap();
    name.to_owned()
}

#[test]
fn what_is_in_another_repository_is_mounted_and_what_is_there_is_skipped() {
    let (bench, image, index) = created();
    bench.ok(&["push", &image]);
    let proxy = Proxy::start(bench.registry.address()).unwrap();
    // The same registry by another name knows nothing of what was pushed before.
    let first = tagged(&bench, &image, &proxy.reference("first:v1"));
    let second = tagged(&bench, &image, &proxy.reference("second:v1"));
    let uploads = || {
        proxy
            .stats()
            .of(|r| r.method == "PUT" && r.path.contains("/blobs/"))
            .requests
    };
    bench.ok(&["push", "--max-concurrent-uploads", "1", &first]);
    assert!(uploads() >= 3, "{}", uploads());
    proxy.reset_stats();
    let said = bench.ok(&["push", &second]);
    assert!(said.contains("successfully pushed artifact"), "{said}");
    assert_eq!(
        uploads(),
        0,
        "blobs of the first repository were uploaded again"
    );
    assert!(is_at(bench.registry.address(), "second", &index));
    proxy.reset_stats();
    let said = bench.ok(&["push", "--existing-index", "allow", &second]);
    assert!(said.contains("skipped artifact with digest"), "{said}");
    assert!(!said.contains("\npushing artifact"), "{said}");
    assert_eq!(proxy.stats().of(|r| r.method == "POST").requests, 0);
}

#[test]
fn credentials_come_from_flags_and_are_never_shown() {
    let (bench, image, index) = created();
    let proxy = Proxy::start(bench.registry.address()).unwrap();
    let name = tagged(&bench, &image, &proxy.reference("app:v1"));
    proxy.demand(Auth::Basic {
        user: "me".to_owned(),
        password: "hunter2".to_owned(),
    });
    let refused = bench.run(&["push", &name]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    for log in [&["--http-trace"][..], &["--http-dump"], &["--debug"]] {
        let flags = [&["push", "-u", "me:hunter2"], log, &[&name]].concat();
        let output = bench.run(&flags);
        assert!(output.status.success(), "{output:?}");
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("/v2/app/"), "{log}");
        assert!(
            !log.contains("hunter2") && !log.contains("bWU6aHVudGVyMg"),
            "{log}"
        );
        if flags.contains(&"--http-dump") {
            assert!(log.contains("authorization: (not shown)"), "{log}");
        } else {
            assert!(!log.contains("authorization"), "{log}");
        }
    }
    assert!(is_at(bench.registry.address(), "app", &index));
    // The password is on no command line.
    for (arguments, password, works) in [
        (vec!["--user", "me", "--password-stdin"], "hunter2\n", true),
        (vec!["--user", "me", "--password-stdin"], "wrong", false),
        (vec!["--user", "me", "--password-stdin"], "\n", false),
        (
            vec!["--user", "me:hunter2", "--password-stdin"],
            "hunter2",
            false,
        ),
        (vec!["--user", "me"], "hunter2", false),
    ] {
        let mut child = bench
            .soci(&[&["push"], &arguments[..], &[&name]].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may refuse its arguments before it reads.
        let _ = child.stdin.take().unwrap().write_all(password.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.success(), works, "{arguments:?}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("hunter2"), "{said}");
    }
    proxy.demand(Auth::Bearer {
        user: Some(("me".to_owned(), "refresh-me".to_owned())),
        uses: None,
    });
    bench.ok(&["push", "--refresh", "refresh-me", &name]);
    let wrong = bench.fails(&["push", "--refresh", "wrong-one", &name]);
    assert!(!wrong.contains("wrong-one"), "{wrong}");
}

/// A registry behind TLS on localhost, with a certificate of its own making.
struct Secure {
    child: Child,
    address: SocketAddr,
    _port: LocalPort,
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Secure {
    fn start(dir: &Path) -> Self {
        let made = Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args([
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
            ])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(dir.join("key.pem"))
            .arg("-out")
            .arg(dir.join("ca.pem"))
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let port = LocalPort::claim().unwrap();
        let address = port.address();
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{ accesslog: {{ disabled: true }}, level: error }}\n\
             storage:\n  filesystem: {{ rootdirectory: {0}/storage }}\n\
             http:\n  addr: '{address}'\n  secret: x\n  tls:\n    certificate: {0}/ca.pem\n    key: {0}/key.pem\n",
            dir.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let secure = Self {
            child,
            address,
            _port: port,
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        secure
    }
}

#[test]
fn hosts_toml_says_where_a_registry_is_and_whom_to_trust() {
    let (bench, image, index) = created();
    let name = tagged(&bench, &image, "registry.invalid/app:v1");
    let certs = bench.root.dir("certs.d").unwrap();
    let host = bench.root.dir("certs.d/registry.invalid").unwrap();
    let hosts = |text: String| std::fs::write(host.join("hosts.toml"), text).unwrap();
    let dirs = format!("/nowhere,{}", certs.display());
    let push = ["push", "--hosts-dir", &dirs, &name];

    // Without it there is no such registry.
    bench.fails(&["push", &name]);
    let plain = bench.registry.address();
    hosts(format!(
        "server = \"http://{plain}\"\n[host.\"http://mirror.invalid\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    ));
    bench.ok(&push);
    assert!(is_at(plain, "app", &index));

    let tls = bench.root.dir("tls").unwrap();
    let secure = Secure::start(&tls);
    let server = format!("server = \"https://localhost:{}\"\n", secure.address.port());
    hosts(server.clone());
    let error = bench.fails(&push);
    assert!(error.contains("certificate"), "{error}");
    for trust in [
        format!("ca = \"{}/ca.pem\"\n", tls.display()),
        "skip_verify = true\n".to_owned(),
    ] {
        hosts(format!("{server}{trust}"));
        bench.ok(&push);
    }
    hosts(server);
    let ca = tls.join("ca.pem").display().to_string();
    bench.ok(&["push", "--tlscacert", &ca, "--hosts-dir", &dirs, &name]);
    bench.ok(&["push", "--skip-verify", "--hosts-dir", &dirs, &name]);

    hosts("server = 5".to_owned());
    let error = bench.fails(&push);
    assert!(error.contains("hosts.toml"), "{error}");
}

#[test]
fn headers_of_hosts_toml_let_us_in_and_are_never_shown() {
    let (bench, image, index) = created();
    let proxy = Proxy::start(bench.registry.address()).unwrap();
    proxy.demand(Auth::Basic {
        user: "me".to_owned(),
        password: "hunter2".to_owned(),
    });
    let (_, rest) = image.split_once('/').unwrap();
    let name = tagged(&bench, &image, &format!("registry.invalid/{rest}"));
    let certs = bench.root.dir("certs.d").unwrap();
    let host = bench.root.dir("certs.d/registry.invalid").unwrap();
    let hosts = |text: String| std::fs::write(host.join("hosts.toml"), text).unwrap();
    let dir = certs.display().to_string();
    let header = "authorization = \"Basic bWU6aHVudGVyMg==\"\nhost = \"bWU6aHVudGVyMg\"\n";
    let at = proxy.address();

    hosts(format!("server = \"http://{at}\"\n"));
    let push = ["push", "--hosts-dir", &dir, &name];
    bench.fails(&push);
    hosts(format!("server = \"http://{at}\"\n[header]\n{header}"));
    for log in ["--http-dump", "--debug"] {
        let output = bench.run(&[&push[..], &[log]].concat());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{log}");
        assert!(
            log.contains("ignoring reserved header") && log.contains("hosts.toml"),
            "{log}"
        );
        assert!(!log.contains("bWU6aHVudGVyMg"), "{log}");
    }
    assert!(is_at(bench.registry.address(), "app", &index));

    // A mirror's headers, for what is read.
    hosts(format!(
        "server = \"http://registry.invalid\"\n[host.\"http://{at}\".header]\n{header}"
    ));
    proxy.reset_stats();
    bench.ok(&["ls", "--hosts-dir", &dir, &name]);
    let stats = proxy.stats();
    assert!(stats.total().requests > 0);
    assert!(
        stats
            .log
            .iter()
            .all(|request| request.authorized && request.status != 401)
    );

    hosts(format!(
        "server = \"http://{at}\"\n[header]\nx-key = 77231\n"
    ));
    let error = bench.fails(&push);
    assert!(
        error.contains("hosts.toml") && error.contains("x-key"),
        "{error}"
    );
    assert!(!error.contains("77231"), "{error}");
}

#[test]
fn an_index_is_made_at_a_registry_and_copied_to_another_without_containerd() {
    let (bench, image, index) = created();
    let from = format!("docker://{image}");
    let made = bench.ok(&[&["create", "--all-platforms"], &INDEXING[..], &[&from]].concat());
    assert!(
        made.contains(&index),
        "not what containerd's content gives: {made}"
    );
    assert!(is_at(bench.registry.address(), "app", &index));

    let other = soci_testkit::Registry::start().unwrap();
    let to = other.docker_reference("copy:v1");
    let error = bench.fails(&["push", &from, &to]);
    assert!(error.contains("copy the image there first"), "{error}");
    let layout = bench.layouts.path().join("image");
    other.push_layout(&layout, "v1", "copy").unwrap();
    let said = bench.ok(&["push", &from, &to]);
    assert!(said.contains(&index), "{said}");
    assert!(is_at(other.address(), "copy", &index));
    let skipped = bench.ok(&["push", "--existing-index", "skip", &from, &to]);
    assert!(!skipped.contains("successfully"), "{skipped}");
    assert_eq!(
        lines(&bench.ok(&["push", "-q", "--existing-index", "allow", &from, &to])),
        [index]
    );

    for (arguments, reason) in [
        (vec!["push", from.as_str()], "needs a DST"),
        (vec!["push", &image, &to], "docker://REFERENCE"),
        (vec!["push", &from, "elsewhere/app:1"], "docker://REFERENCE"),
    ] {
        let error = bench.fails(&arguments);
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
}

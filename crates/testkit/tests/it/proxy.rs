//! The proxy counts, throttles, breaks and guards exactly as requested. Needs docker-registry.

use std::net::SocketAddr;
use std::time::Duration;

use soci_oci::Digest;
use soci_testkit::image::small_image;
use soci_testkit::{
    Auth, Fault, OciImage, Proxy, Registry, Rule, TestRoot, Throttle, http_request,
};

struct Set {
    image: OciImage,
    proxy: Proxy,
    registry: Registry,
    _root: TestRoot,
}

impl Set {
    fn new() -> Self {
        let root = TestRoot::new().unwrap();
        let image = small_image(root.path(), "t").unwrap();
        let registry = Registry::start().unwrap();
        registry.push_layout(root.path(), "t", "small").unwrap();
        let proxy = Proxy::start(registry.address()).unwrap();
        Self {
            image,
            proxy,
            registry,
            _root: root,
        }
    }

    fn layer(&self) -> Digest {
        self.image.layers[1].digest
    }

    fn blob(&self) -> String {
        format!("/v2/small/blobs/{}", self.layer())
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(soci_testkit::image::layout::blob_path(
            &self.image.dir,
            self.layer(),
        ))
        .unwrap()
    }

    fn get(&self, fields: &[(&str, &str)]) -> soci_testkit::HttpResponse {
        http_request(self.proxy.address(), "GET", &self.blob(), fields, b"").unwrap()
    }
}

#[test]
fn ranges_heads_and_bodies_pass_unchanged_and_are_counted() {
    let set = Set::new();
    let whole = set.bytes();
    assert_eq!(set.get(&[]).body, whole);
    let part = set.get(&[("Range", "bytes=100-199")]);
    assert_eq!((part.status, &part.body[..]), (206, &whole[100..200]));
    let head = http_request(set.proxy.address(), "HEAD", &set.blob(), &[], b"").unwrap();
    assert_eq!(
        head.header("content-length"),
        Some(whole.len().to_string().as_str())
    );
    let stats = set.proxy.stats();
    assert_eq!(stats.blob(set.layer()).requests, 3);
    assert_eq!(stats.blob(set.layer()).bytes, whole.len() as u64 + 100);
    assert_eq!(stats.total(), stats.blobs());
    assert_eq!(stats.log[1].range.as_deref(), Some("bytes=100-199"));
    set.proxy.reset_stats();
    assert_eq!(set.proxy.stats().total().requests, 0);
}

#[test]
fn uploads_work_through_the_proxy_with_lengths_and_with_chunks() {
    let set = Set::new();
    let direct = Registry::start().unwrap();
    let through = Proxy::start(direct.address()).unwrap();
    // Ours sends lengths, skopeo sends chunks.
    let image = &set.image;
    soci_testkit::image::layout::push(&image.dir, "t", through.address(), "ours").unwrap();
    let source = format!("oci:{}:t", image.dir.display());
    let target = format!("docker://{}", through.reference("skopeo:t"));
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["copy", "--dest-tls-verify=false", &source, &target]);
    let copied = skopeo.output().unwrap();
    assert!(
        copied.status.success(),
        "{}",
        String::from_utf8_lossy(&copied.stderr)
    );
    for name in ["ours", "skopeo"] {
        let blob = format!("/v2/{name}/blobs/{}", set.layer());
        assert_eq!(
            http_request(direct.address(), "GET", &blob, &[], b"")
                .unwrap()
                .body,
            set.bytes()
        );
    }
    let locations = through
        .stats()
        .of(|record| record.method == "PATCH" || record.method == "PUT");
    assert!(locations.requests > 0, "uploads went past the proxy");
}

#[test]
fn each_fault_shows_on_the_wire_as_it_is_named() {
    let set = Set::new();
    let whole = set.bytes();
    let once = |fault| {
        set.proxy.clear_faults();
        set.proxy
            .inject(Rule::always(fault).blob(set.layer()).times(1));
    };

    let headers = vec![("Retry-After".to_owned(), "1".to_owned())];
    once(Fault::Status {
        status: 429,
        headers,
        body: "slow".to_owned(),
    });
    let answer = set.get(&[]);
    assert_eq!(
        (
            answer.status,
            answer.header("retry-after"),
            &answer.body[..]
        ),
        (429, Some("1"), &b"slow"[..])
    );
    assert_eq!(
        set.get(&[]).body,
        whole,
        "a rule applies only as often as it says"
    );

    once(Fault::Redirect {
        status: 307,
        base: "http://127.0.0.1:1".to_owned(),
        query: Some("s=1".to_owned()),
    });
    let location = format!("http://127.0.0.1:1{}?s=1", set.blob());
    assert_eq!(set.get(&[]).header("location"), Some(location.as_str()));

    once(Fault::Reset);
    let reset = http_request(set.proxy.address(), "GET", &set.blob(), &[], b"");
    let reset = reset
        .unwrap_err()
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind);
    assert_eq!(reset, Some(std::io::ErrorKind::ConnectionReset));

    for fault in [Fault::ResetAfter(1000), Fault::Truncate(1000)] {
        once(fault);
        let answer = set.get(&[]);
        assert!(!answer.complete && answer.body.len() <= 1000 && whole.starts_with(&answer.body));
    }

    once(Fault::Shorten(1000));
    let answer = set.get(&[("Range", "bytes=0-1999")]);
    assert_eq!(
        (answer.status, answer.complete, answer.body.len()),
        (206, true, 1000)
    );

    once(Fault::Corrupt(10));
    let answer = set.get(&[("Range", "bytes=100-199")]);
    assert_eq!(answer.body[10], whole[110] ^ 0xff);
    assert_eq!(answer.body[11..], whole[111..200]);

    once(Fault::CorruptBlob(150));
    let answer = set.get(&[("Range", "bytes=100-199")]);
    assert_eq!(answer.body[50], whole[150] ^ 0xff);

    once(Fault::IgnoreRange);
    let answer = set.get(&[("Range", "bytes=100-199")]);
    assert_eq!((answer.status, answer.body == whole), (200, true));

    once(Fault::WrongContentRange(7));
    let answer = set.get(&[("Range", "bytes=100-199")]);
    assert_eq!(
        answer.header("content-range"),
        Some(format!("bytes 107-206/{}", whole.len()).as_str())
    );
    assert_eq!(answer.body, whole[100..200]);
    assert_eq!(set.proxy.faults_injected(), 10);
}

#[test]
fn a_hanging_response_leaves_the_others_alone() {
    let set = Set::new();
    set.proxy
        .inject(Rule::always(Fault::HangAfter(500)).times(1));
    let (address, blob): (SocketAddr, _) = (set.proxy.address(), set.blob());
    let mut hanging = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(
        &mut hanging,
        format!("GET {blob} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
    )
    .unwrap();
    let mut seen = [0; 501];
    std::io::Read::read_exact(&mut hanging, &mut seen).unwrap();
    // Other requests come to their ends while this one has neither an end nor the rest.
    assert_eq!(set.get(&[]).body, set.bytes());
    hanging
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut seen = Vec::new();
    let error = std::io::Read::read_to_end(&mut hanging, &mut seen).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    assert!(seen.len() < 500, "the head and no more of the body");
}

#[test]
fn without_the_demanded_credentials_nothing_passes() {
    let set = Set::new();
    set.proxy.demand(Auth::Basic {
        user: "u".to_owned(),
        password: "p".to_owned(),
    });
    assert_eq!(set.get(&[]).status, 401);
    // u:p
    assert_eq!(set.get(&[("Authorization", "Basic dTpw")]).status, 200);

    let user = Some(("u".to_owned(), "p".to_owned()));
    set.proxy.demand(Auth::Bearer { user, uses: None });
    let refused = set.get(&[]);
    let challenge = refused.header("www-authenticate").unwrap();
    assert!(
        challenge.contains("scope=\"repository:small:pull\""),
        "{challenge}"
    );
    let token = |fields: &[(&str, &str)]| {
        http_request(
            set.proxy.address(),
            "GET",
            "/testkit/token?service=testkit",
            fields,
            b"",
        )
        .unwrap()
    };
    assert_eq!(token(&[]).status, 401);
    let answer: serde_json::Value =
        serde_json::from_slice(&token(&[("Authorization", "Basic dTpw")]).body).unwrap();
    let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
    assert_eq!(set.get(&[("Authorization", &bearer)]).status, 200);
    set.proxy.revoke_tokens();
    assert_eq!(set.get(&[("Authorization", &bearer)]).status, 401);
}

#[test]
fn a_registry_that_is_killed_and_started_again_keeps_port_and_contents() {
    let mut set = Set::new();
    set.registry.kill().unwrap();
    assert_eq!(set.get(&[]).status, 502);
    set.registry.start_again().unwrap();
    assert_eq!(set.get(&[]).body, set.bytes());
}

#[test]
fn a_throttled_response_is_never_faster_than_its_rate() {
    // A lower bound only: a slow machine may take longer, a wrong pacer would take less.
    let set = Set::new();
    set.proxy.throttle(Throttle {
        first_byte: Duration::from_millis(50),
        per_response: Some(20_000_000),
        total: None,
    });
    let started = std::time::Instant::now();
    let length = set.get(&[]).body.len() as u64;
    let least = Duration::from_millis(50) + Duration::from_micros(length / 20);
    assert!(
        started.elapsed() >= least - Duration::from_millis(25),
        "{:?} < {least:?}",
        started.elapsed()
    );
}

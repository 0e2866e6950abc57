//! The HTTP service: what it takes, what it refuses, and what it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use soci_index_builder::service::{Identity, Listener, Metrics, Pages, Secret, Service};
use soci_index_builder::{
    Failure, ImageIndexer, Outcome, PoolSettings, Push, PushPolicy, Queue, WorkerPool,
};
use soci_oci::Digest;
use soci_testkit::{HttpResponse, http_request};
use tokio_util::sync::CancellationToken;

const SECRET: &str = "0123456789abcdef0123";

/// Waits for ever with some images, so that their jobs stay.
struct Doubles;

#[async_trait]
impl ImageIndexer for Doubles {
    async fn index(&self, push: &Push) -> Result<Outcome, Failure> {
        match push.tag.as_deref() {
            Some("slow") => std::future::pending().await,
            Some("bad") => Err(Failure::Permanent("<b>damaged</b>".to_owned())),
            _ => Ok(Outcome {
                image: Some(format!("{}-soci", push.tagged_name())),
                bytes: 3 << 20,
                ..Outcome::default()
            }),
        }
    }
}

struct Running {
    address: SocketAddr,
    queue: Queue,
    stop: CancellationToken,
    folder: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start(secret: Option<&str>, pages: Pages, tls: Option<Identity>) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(folder.path()).unwrap();
    let settings = PoolSettings {
        grace: std::time::Duration::ZERO,
        ..PoolSettings::default()
    };
    let metrics = Arc::new(Metrics::new().unwrap());
    let pool = WorkerPool::new(queue.clone(), Arc::new(Doubles), settings)
        .await
        .unwrap();
    let pool = Arc::new(pool.counted_by(Arc::clone(&metrics)));
    let stop = CancellationToken::new();
    let service = Arc::new(Service {
        queue: queue.clone(),
        policy: PushPolicy {
            filters: "app*:*".parse().unwrap(),
            registries: BTreeSet::new(),
            aliases: BTreeMap::new(),
            suffix: "-soci".to_owned(),
        },
        pool: Arc::clone(&pool),
        secret: secret.map(|secret| Secret::new(secret.as_bytes()).unwrap()),
        metrics,
    });
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), tls, pages)
        .await
        .unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(listener.serve(service, stop.clone()));
    tokio::spawn(pool.run(stop.clone()));
    Running {
        address,
        queue,
        stop,
        folder,
    }
}

impl Running {
    async fn request(
        &self,
        method: &'static str,
        path: &'static str,
        fields: &[(&'static str, &str)],
        body: &[u8],
    ) -> HttpResponse {
        let (address, body) = (self.address, body.to_vec());
        let fields: Vec<(&'static str, String)> = fields
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        let request = move || {
            let fields: Vec<(&str, &str)> = fields
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            http_request(address, method, path, &fields, &body).unwrap()
        };
        tokio::task::spawn_blocking(request).await.unwrap()
    }

    async fn post(&self, fields: &[(&'static str, &str)], body: &[u8]) -> (u16, Value) {
        let response = self.request("POST", "/events", fields, body).await;
        (
            response.status,
            serde_json::from_slice(&response.body).unwrap(),
        )
    }

    async fn get(&self, path: &'static str) -> String {
        let response = self.request("GET", path, &[], b"").await;
        assert_eq!(response.status, 200, "{path}");
        String::from_utf8(response.body).unwrap()
    }

    async fn wait_for(&self, ended: u64) {
        loop {
            let counts = self.queue.counts().unwrap();
            if counts.done + counts.dead + counts.skipped >= ended {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

fn event(repository: &str, tag: &str) -> Vec<u8> {
    json!({
        "type": "PUSH_ARTIFACT", "occur_at": 1, "operator": "robot",
        "event_data": {
            "resources": [{
                "digest": Digest::of(tag.as_bytes()).to_string(), "tag": tag,
                "resource_url": format!("harbor.example.com/{repository}:{tag}")
            }],
            "repository": {"repo_full_name": repository}
        }
    })
    .to_string()
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_queued_before_it_is_acknowledged_and_shown_with_its_result() {
    let service = start(None, Pages::All, None).await;
    let (status, taken) = service.post(&[], &event("app", "1")).await;
    assert_eq!((status, &taken["queued"]), (202, &json!([1])));
    let (status, taken) = service.post(&[], &event("other", "1")).await;
    assert_eq!((status, &taken["queued"]), (202, &json!([])));
    assert!(
        taken["ignored"][0].as_str().unwrap().contains("no filter"),
        "{taken}"
    );
    let (_, taken) = service.post(&[], &event("app", "slow")).await;
    assert_eq!(taken["queued"], json!([2]));
    let (_, taken) = service.post(&[], &event("app", "slow")).await;
    assert_eq!(
        (&taken["queued"], &taken["duplicates"]),
        (&json!([]), &json!([2]))
    );
    service.post(&[], &event("app", "bad")).await;
    service.wait_for(2).await;

    assert_eq!(service.get("/healthz").await, "ok\n");
    let status: Value = serde_json::from_str(&service.get("/status.json").await).unwrap();
    assert_eq!(status["counts"]["done"], 1);
    assert_eq!(status["jobs"][0]["state"]["name"], "dead");
    let page = service.get("/").await;
    for shown in [
        "<li class=\"done\" id=\"done\"><b>1</b> done</li>",
        "harbor.example.com/app:1-soci",
        "3.0 MiB",
        "&lt;b&gt;damaged&lt;/b&gt;",
    ] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    let metrics = service.get("/metrics").await;
    for line in [
        "soci_index_builder_pushes_total{result=\"queued\"} 3",
        "soci_index_builder_pushes_total{result=\"duplicate\"} 1",
        "soci_index_builder_pushes_total{result=\"ignored\"} 1",
        "soci_index_builder_jobs{state=\"running\"} 1",
        "soci_index_builder_attempts_total{result=\"dead\"} 1",
        "soci_index_builder_layer_bytes_total 3145728",
        "soci_index_builder_attempt_seconds_count 2",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}: {metrics}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_events_get_400_with_the_reason_and_large_ones_413() {
    let service = start(None, Pages::All, None).await;
    for (body, reason) in [
        (&b"{"[..], "not JSON"),
        (b"{}", "EventBridge"),
        (b"{\"events\":[{\"action\":1}]}", "action"),
    ] {
        let (status, problem) = service.post(&[], body).await;
        assert_eq!(status, 400);
        assert!(
            problem["error"].as_str().unwrap().contains(reason),
            "{problem}"
        );
    }
    let large = vec![b' '; (1 << 20) + 1];
    assert_eq!(service.post(&[], &large).await.0, 413);
    assert_eq!(
        service.request("GET", "/events", &[], b"").await.status,
        405
    );
    assert_eq!(service.queue.list(None, 10).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_event_gets_401_and_nothing_is_done() {
    let service = start(Some(SECRET), Pages::Events, None).await;
    let body = event("app", "1");
    for fields in [
        &[][..],
        &[("Authorization", "Bearer wrong")],
        &[("X-Soci-Signature-256", "sha256=00")],
    ] {
        assert_eq!(service.post(fields, &body).await.0, 401);
    }
    // Before the content is looked at.
    assert_eq!(service.post(&[], b"{").await.0, 401);
    assert_eq!(service.queue.list(None, 10).unwrap(), []);
    let token = format!("Bearer {SECRET}");
    assert_eq!(
        service.post(&[("Authorization", &token)], &body).await.0,
        202
    );
    // `printf '{"events":[]}' | openssl dgst -sha256 -hmac 0123456789abcdef0123`
    let signature = "sha256=61e6098d4da2a864b3f827c25839c9b83afe75200b9dc8b9498dd3dd63224b51";
    let signed = [("X-Hub-Signature-256", signature)];
    assert_eq!(service.post(&signed, b"{\"events\":[]}").await.0, 202);
    assert_eq!(service.post(&signed, b"{\"events\":[ ]}").await.0, 401);
    // The pages are elsewhere.
    assert_eq!(service.request("GET", "/", &[], b"").await.status, 404);
    assert_eq!(service.get("/healthz").await, "ok\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_be_written_has_the_sender_come_again() {
    let service = start(None, Pages::All, None).await;
    let folder = service.folder.path();
    std::fs::rename(folder.join("queue.redb"), folder.join("away")).unwrap();
    std::fs::create_dir(folder.join("queue.redb")).unwrap();
    let (status, problem) = service.post(&[], &event("app", "1")).await;
    assert_eq!(status, 503);
    let reason = problem["error"].as_str().unwrap();
    assert!(
        reason.starts_with("cannot ") && reason.contains("queue.redb"),
        "{reason}"
    );
    assert_eq!(
        service.request("GET", "/healthz", &[], b"").await.status,
        503
    );
    std::fs::remove_dir(folder.join("queue.redb")).unwrap();
    std::fs::rename(folder.join("away"), folder.join("queue.redb")).unwrap();
    assert_eq!(service.post(&[], &event("app", "1")).await.0, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let identity = Identity::read(&certificate, &key).unwrap();
    let service = start(None, Pages::All, Some(identity)).await;
    // A client that opens a connection and says nothing holds no other up.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _silent = std::net::TcpStream::connect(service.address).unwrap();
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap()])
        .build()
        .unwrap();
    let url = format!("https://localhost:{}/events", service.address.port());
    let response = client
        .post(url)
        .body(event("app", "1"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 202);
    assert!(Identity::read(&key, &certificate).is_err());
}

//! The secrets of a cluster: a fake API server over TLS, spoken to as kubeconfig files say.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, Response};
use axum::routing::get;
use futures::StreamExt as _;
use soci_keychain::{KubeSecrets, KubeSettings};
use soci_registry::{Client, ClientConfig, Credential, Credentials as _};
use soci_testkit::Https;
use soci_testkit::fake::{Fake, With as _, network_address, redirect, status};
use tokio::sync::broadcast;

const TOKEN: &str = "correct-token";
const PASSWORD: &str = "hunter2";

/// A Kubernetes API server that has secrets and nothing else.
#[derive(Clone)]
struct Cluster {
    state: Arc<parking_lot::Mutex<Secrets>>,
    events: broadcast::Sender<String>,
}

#[derive(Default)]
struct Secrets {
    /// Name → the `data` of the secret.
    all: Vec<(String, String)>,
    version: u64,
    /// Paths and queries of the requests.
    asked: Vec<String>,
    /// Number of requests without the right token.
    refused: usize,
    /// Watches from versions before this are answered with 410.
    oldest: u64,
}

struct Server {
    https: Https,
    cluster: Cluster,
    folder: tempfile::TempDir,
}

fn base64(text: &str) -> String {
    // A test needs no other way of writing it than the reader's.
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn docker_config(registry: &str, user: &str) -> String {
    let auth = base64(&format!("{user}:{PASSWORD}"));
    format!(r#"{{"auths":{{"{registry}":{{"auth":"{auth}"}}}}}}"#)
}

fn secret(name: &str, data: &str, version: u64) -> String {
    format!(
        r#"{{"kind":"Secret","type":"kubernetes.io/dockerconfigjson","metadata":{{"name":"{name}","namespace":"apps","resourceVersion":"{version}"}},"data":{data}}}"#
    )
}

fn data_of(config: &str) -> String {
    format!(r#"{{".dockerconfigjson":"{}"}}"#, base64(config))
}

impl Cluster {
    fn new() -> Self {
        Self {
            state: Arc::default(),
            events: broadcast::channel(64).0,
        }
    }

    fn set(&self, name: &str, data: &str) {
        let mut state = self.state.lock();
        state.version += 1;
        let known = state.all.iter().any(|(known, _)| known == name);
        state.all.retain(|(known, _)| known != name);
        state.all.push((name.to_owned(), data.to_owned()));
        let event = if known { "MODIFIED" } else { "ADDED" };
        let object = secret(name, data, state.version);
        let _ = self
            .events
            .send(format!(r#"{{"type":"{event}","object":{object}}}"#));
    }

    fn remove(&self, name: &str) {
        let mut state = self.state.lock();
        state.version += 1;
        state.all.retain(|(known, _)| known != name);
        let object = secret(name, "{}", state.version);
        let _ = self
            .events
            .send(format!(r#"{{"type":"DELETED","object":{object}}}"#));
    }

    fn lists(&self) -> usize {
        let state = self.state.lock();
        let watches = |asked: &&String| !asked.contains("watch=true");
        state.asked.iter().filter(watches).count()
    }
}

async fn secrets(
    State(cluster): State<Cluster>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response<Body> {
    let query = query.unwrap_or_default();
    let allowed = headers
        .get("authorization")
        .is_some_and(|value| value == &format!("Bearer {TOKEN}"));
    if !allowed {
        cluster.state.lock().refused += 1;
        return Response::builder().status(401).body(Body::empty()).unwrap();
    }
    let mut state = cluster.state.lock();
    state.asked.push(query.clone());
    assert!(
        query.contains("fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson"),
        "{query}"
    );
    if query.contains("watch=true") {
        let from = query.split("resourceVersion=").nth(1).unwrap();
        let from: u64 = from.split('&').next().unwrap().parse().unwrap();
        if from < state.oldest {
            return Response::builder().status(410).body(Body::empty()).unwrap();
        }
        let events = cluster.events.subscribe();
        let stream = tokio_stream::wrappers::BroadcastStream::new(events)
            // In pieces, as a network has them.
            .flat_map(|event| {
                let line = event.unwrap() + "\n";
                let (first, second) = line.split_at(line.len() / 2);
                let pieces = [first.to_owned(), second.to_owned()];
                futures::stream::iter(pieces.map(Ok::<_, Infallible>))
            });
        return Response::new(Body::from_stream(stream));
    }
    // One secret in each answer.
    let from: usize = query
        .split("continue=")
        .nth(1)
        .map_or(0, |from| from.split('&').next().unwrap().parse().unwrap());
    let more = match from + 1 < state.all.len() {
        true => format!(r#","continue":"{}""#, from + 1),
        false => String::new(),
    };
    let items: Vec<_> = state.all.get(from).into_iter().collect();
    let items: Vec<_> = items
        .iter()
        .map(|(name, data)| secret(name, data, 1))
        .collect();
    let text = format!(
        r#"{{"kind":"SecretList","metadata":{{"resourceVersion":"{}"{more}}},"items":[{}]}}"#,
        state.version,
        items.join(",")
    );
    Response::new(Body::from(text))
}

impl Server {
    async fn start() -> Self {
        let cluster = Cluster::new();
        let app = Router::new()
            .route("/api/v1/secrets", get(secrets))
            .with_state(cluster.clone());
        Self::serve(cluster, app).await
    }

    async fn serve(cluster: Cluster, app: Router) -> Self {
        // As the daemon does at its start.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            https: Https::start(&[], app).await.unwrap(),
            cluster,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// An API server that responds with this instead. What it was asked is counted.
    async fn answering(
        answer: impl Fn() -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> Self {
        let cluster = Cluster::new();
        let state = cluster.state.clone();
        let app = Router::new().fallback(move || {
            let (answer, state) = (answer.clone(), state.clone());
            async move {
                let answer = answer();
                state.lock().asked.push(String::new());
                answer
            }
        });
        Self::serve(cluster, app).await
    }

    /// Waits for this number of requests.
    async fn is_asked(&self, times: usize) {
        while self.cluster.lists() < times {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Writes a kubeconfig in which the user has these fields.
    fn kubeconfig(&self, user: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             contexts:\n- name: here\n  context: {{cluster: c, user: u}}\n\
             clusters:\n- name: c\n  cluster:\n    server: https://localhost:{}\n    certificate-authority-data: {}\n\
             users:\n- name: u\n  user: {user}\n",
            self.https.port(),
            base64(self.https.certificate())
        );
        std::fs::write(self.path(), text).unwrap();
    }

    fn follow(&self) -> KubeSecrets {
        KubeSecrets::follow(KubeSettings {
            kubeconfig: Some(self.path()),
            period: Some(Duration::from_millis(50)),
        })
    }
}

async fn user(secrets: &KubeSecrets, host: &str) -> Option<String> {
    match secrets.lookup(host, None).await.unwrap()? {
        Credential::Basic { user, password } => {
            assert_eq!(password, PASSWORD);
            Some(user)
        }
        other => panic!("{other:?}"),
    }
}

/// Waits until a registry has these credentials.
async fn becomes(secrets: &KubeSecrets, host: &str, expected: Option<&str>) {
    for _ in 0..600 {
        if user(secrets, host).await.as_deref() == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{host} has not become {expected:?}");
}

#[tokio::test]
async fn image_pull_secrets_are_found_and_followed() {
    let server = Server::start().await;
    server.kubeconfig(&format!("{{token: {TOKEN}}}"));
    let cluster = &server.cluster;
    cluster.set("a", &data_of(&docker_config("a.example", "one")));
    cluster.set(
        "hub",
        &data_of(&docker_config("https://index.docker.io/v1/", "hub")),
    );
    // A secret without a Docker configuration is skipped.
    cluster.set("odd", "{}");
    cluster.set("broken", r#"{".dockerconfigjson":"aHVudGVyMg=="}"#);
    let secrets = server.follow();
    // The first look-up waits for the list.
    assert_eq!(user(&secrets, "a.example").await.as_deref(), Some("one"));
    assert_eq!(user(&secrets, "docker.io").await.as_deref(), Some("hub"));
    assert_eq!(user(&secrets, "b.example").await, None);

    // The watch begins a moment after the list.
    while cluster.events.receiver_count() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.set("a", &data_of(&docker_config("a.example", "two")));
    becomes(&secrets, "a.example", Some("two")).await;
    cluster.set("b", &data_of(&docker_config("b.example", "three")));
    becomes(&secrets, "b.example", Some("three")).await;
    cluster.remove("a");
    becomes(&secrets, "a.example", None).await;
    assert_eq!(user(&secrets, "docker.io").await.as_deref(), Some("hub"));
    assert_eq!(cluster.lists(), 4, "a page for each secret, once");
    assert!(!format!("{secrets:?}").contains(PASSWORD));
}

#[tokio::test]
async fn a_watch_that_is_too_old_starts_over_with_a_list() {
    let server = Server::start().await;
    server.kubeconfig(&format!("{{token: {TOKEN}}}"));
    server
        .cluster
        .set("a", &data_of(&docker_config("a.example", "one")));
    server.cluster.state.lock().oldest = 7;
    let secrets = server.follow();
    becomes(&secrets, "a.example", Some("one")).await;
    {
        let mut state = server.cluster.state.lock();
        state.version = 9;
        state.all[0].1 = data_of(&docker_config("a.example", "two"));
    }
    becomes(&secrets, "a.example", Some("two")).await;
    assert!(server.cluster.lists() >= 2);
}

#[tokio::test]
async fn a_kubeconfig_may_come_later_and_its_token_may_be_replaced() {
    let server = Server::start().await;
    server
        .cluster
        .set("a", &data_of(&docker_config("a.example", "one")));
    let secrets = server.follow();
    // Nothing to wait for: the look-up does not take its five seconds.
    tokio::time::pause();
    let asked = tokio::time::Instant::now();
    assert_eq!(user(&secrets, "a.example").await, None);
    assert!(asked.elapsed() < Duration::from_secs(5));
    tokio::time::resume();
    let token = server.folder.path().join("token");
    std::fs::write(&token, "expired").unwrap();
    server.kubeconfig("{tokenFile: token}");
    while server.cluster.state.lock().refused == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(user(&secrets, "a.example").await, None);
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    becomes(&secrets, "a.example", Some("one")).await;
}

#[tokio::test]
async fn a_program_may_give_the_token() {
    let server = Server::start().await;
    server
        .cluster
        .set("a", &data_of(&docker_config("a.example", "one")));
    let program = server.folder.path().join("login");
    let text = "#!/bin/sh\necho '{\"status\":{\"token\":\"'$1'\"}}'\n";
    soci_testkit::write_program(&program, text).unwrap();
    server.kubeconfig(&format!(
        "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: ./login, args: [{TOKEN}]}}}}"
    ));
    let secrets = server.follow();
    becomes(&secrets, "a.example", Some("one")).await;
}

#[tokio::test]
async fn an_api_server_with_another_certificate_gets_no_token() {
    let server = Server::start().await;
    let other = Server::start().await;
    server
        .cluster
        .set("a", &data_of(&docker_config("a.example", "one")));
    server.kubeconfig(&format!("{{token: {TOKEN}}}"));
    let wrong = std::fs::read_to_string(server.path()).unwrap().replace(
        &base64(server.https.certificate()),
        &base64(other.https.certificate()),
    );
    std::fs::write(server.path(), wrong).unwrap();
    let secrets = server.follow();
    assert_eq!(user(&secrets, "a.example").await, None);
    assert!(server.cluster.state.lock().asked.is_empty());
}

#[tokio::test]
async fn the_token_follows_no_redirect() {
    let answer = |_, _: &_| Some(status(404));
    let elsewhere = Fake::start_at(network_address(), answer).await;
    let target = elsewhere.url("/api/v1/secrets");
    let server = Server::answering(move || redirect(307, &target)).await;
    server.kubeconfig(&format!("{{token: {TOKEN}}}"));
    let secrets = server.follow();
    // The first one has ended then.
    server.is_asked(2).await;
    assert_eq!(elsewhere.requests().len(), 0);
    assert_eq!(user(&secrets, "a.example").await, None);
}

#[tokio::test]
async fn a_list_of_secrets_over_64_mib_is_refused() {
    let config = data_of(&docker_config("a.example", "one"));
    let object = secret("a", &config, 1);
    for (length, found) in [(64 << 20, Some("one")), ((64 << 20) + 1, None)] {
        let start = format!(r#"{{"metadata":{{"resourceVersion":"1"}},"items":[{object}]"#);
        let list = format!("{start}{}}}", " ".repeat(length - start.len() - 1));
        let list = axum::body::Bytes::from(list);
        let server = Server::answering(move || status(200).body(list.clone())).await;
        server.kubeconfig(&format!("{{token: {TOKEN}}}"));
        let secrets = server.follow();
        // The list is used then, or requested again.
        server.is_asked(2).await;
        assert_eq!(user(&secrets, "a.example").await.as_deref(), found);
    }
}

/// Environment variables of the process that is alone with an authority of its own.
const KUBECONFIG: &str = "SOCI_TEST_KUBECONFIG";
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// Runs in a process of its own: the authorities of the system are those of a process.
#[tokio::test]
async fn only_the_authority_of_the_kubeconfig_vouches_for_the_api_server() {
    if let Some(path) = std::env::var_os(KUBECONFIG) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let secrets = KubeSecrets::follow(KubeSettings {
            kubeconfig: Some(path.into()),
            period: None,
        });
        println!("found {:?}", user(&secrets, "a.example").await);
        return;
    }
    let (server, other) = (Server::start().await, Server::start().await);
    let of_server = server.https.certificate();
    let cluster = &server.cluster;
    cluster.set("a", &data_of(&docker_config("a.example", "one")));
    let authorities = server.folder.path().join("authorities.pem");
    std::fs::write(&authorities, of_server).unwrap();
    server.kubeconfig(&format!("{{token: {TOKEN}}}"));
    let text = std::fs::read_to_string(server.path()).unwrap();
    let key = "certificate-authority-data";
    let own = format!("    {key}: {}\n", base64(of_server));
    let others = format!("    {key}: {}\n", base64(other.https.certificate()));
    // Without an authority in the kubeconfig, those of the system count.
    for (authority, found) in [
        ("", r#"found Some("one")"#),
        (others.as_str(), "found None"),
    ] {
        std::fs::write(server.path(), text.replace(&own, authority)).unwrap();
        let test = "cluster::only_the_authority_of_the_kubeconfig_vouches_for_the_api_server";
        let output = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", test])
            .env(KUBECONFIG, server.path())
            .env(AUTHORITIES, &authorities)
            .output()
            .await
            .unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.contains(found), "{authority}: {output}");
    }
}

/// A tenant's secret with a wrong password stands before the right one in every order.
#[tokio::test]
async fn a_wrong_secret_of_another_namespace_hides_no_right_one() {
    let registry = Fake::start(|_, request| {
        let right = format!("Basic {}", base64(&format!("right:{PASSWORD}")));
        Some(if request.header("authorization") == Some(&right) {
            status(200).body("{}")
        } else {
            status(401).with("www-authenticate", "Basic realm=x")
        })
    })
    .await;
    let server = Server::start().await;
    for (name, key, user) in [
        ("aaa", registry.host(), "wrong"),
        ("bbb", format!("{}/team", registry.host()), "tenant"),
        (
            "ccc",
            "127.*.0.1".to_owned() + &registry.host()["127.0.0.1".len()..],
            "right",
        ),
        ("ddd", "other.example".to_owned(), "other"),
    ] {
        server
            .cluster
            .set(name, &data_of(&docker_config(&key, user)));
    }
    server.kubeconfig(&format!("{{token: {TOKEN}}}"));
    let secrets = server.follow();
    let reference = registry.reference("team/app:1");
    let found = secrets
        .candidates(&registry.host(), Some(&reference))
        .await
        .unwrap();
    assert_eq!(found.len(), 3);
    let client = Client::new(ClientConfig::default(), Arc::new(secrets)).unwrap();
    client.manifest(&reference, "1").await.unwrap();
    let users = registry.requests().len();
    client.manifest(&reference, "1").await.unwrap();
    assert_eq!(
        registry.requests().len(),
        users + 1,
        "what worked is remembered"
    );
}

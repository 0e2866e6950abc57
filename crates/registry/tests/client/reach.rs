//! Where redirects, token realms and upload locations may lead, and what other hosts say.

use std::sync::Arc;

use soci_registry::{
    BlobBody, BlobSource, Client, ClientConfig, Deadline, ErrorKind, Misdirection, NoCredentials,
    Origin, RegistryError, TlsSettings,
};
use soci_testkit::Https;
use soci_testkit::fake::network_address;

use crate::fake::{Fake, With, config, descriptor, noise, redirect, serve, status};

const SECRET: &str = "admin api of node-7 (key-hint=AKIA1234)";

/// A client of a registry in the network, spoken to without TLS.
fn client(change: impl FnOnce(&mut ClientConfig)) -> Client {
    let mut config = config();
    config.plain_http = true;
    change(&mut config);
    Client::new(config, Arc::new(NoCredentials)).unwrap()
}

/// Whether the error is that a server led to an address that it must not lead to.
fn is_out_of_reach(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::Misdirected {
            source: Misdirection::OutOfReach(_),
            ..
        }
    )
}

/// What listens on loopback addresses for this machine alone.
async fn admin() -> Fake {
    Fake::start(|_, _| Some(status(403).body(SECRET))).await
}

/// The ways to this machine and its link, of which the resolver knows the last.
fn targets(port: &str) -> Vec<String> {
    let mut all: Vec<String> = [
        "127.0.0.1",
        "127.1",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "[::1]",
    ]
    .iter()
    .map(|host| format!("http://{host}:{port}/internal"))
    .collect();
    all.push("http://169.254.169.254/latest/meta-data/".to_owned());
    all.push("http://[::ffff:169.254.169.254]/latest/meta-data/".to_owned());
    all.push(format!("http://localhost:{port}/internal"));
    all.push(format!("https://localhost:{port}/internal"));
    all
}

fn port(fake: &Fake) -> String {
    fake.host().rsplit(':').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_registry_in_the_network_does_not_redirect_to_this_machine_or_its_link() {
    let admin = admin().await;
    for target in targets(&port(&admin)) {
        let there = target.clone();
        let registry =
            Fake::start_at(network_address(), move |_, _| Some(redirect(307, &there))).await;
        let reference = registry.reference("a/b:t");
        let client = client(|_| {});
        let blob = client.blob(&reference, &descriptor(&noise(100)));
        for error in [
            blob.read_range(1..9, Deadline::far()).await.unwrap_err(),
            client.manifest(&reference, "t").await.unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(is_out_of_reach(&error), "{target}: {text}");
            assert!(!error.is_transient() && !text.contains("AKIA"), "{text}");
        }
        assert_eq!(registry.requests().len(), 2, "{target}");
    }
    assert_eq!(admin.requests().len(), 0);
}

#[tokio::test]
async fn a_registry_in_the_network_names_no_token_server_or_upload_on_this_machine() {
    let admin = admin().await;
    for target in targets(&port(&admin)) {
        let there = target.clone();
        let registry = Fake::start_at(network_address(), move |_, request| {
            Some(if request.method == "GET" {
                let challenge = format!(r#"Bearer realm="{there}""#);
                status(401).with("www-authenticate", &challenge)
            } else if request.method == "HEAD" {
                status(404)
            } else {
                status(202).with("location", &there)
            })
        })
        .await;
        // A client each: the one that knows the token server requests a token before it pushes.
        let (puller, pusher) = (client(|_| {}), client(|_| {}));
        let reference = registry.reference("a/b:t");
        let blob = puller.blob(&reference, &descriptor(b"abc"));
        let (data, described) = (BlobBody::Bytes(noise(10)), descriptor(&noise(10)));
        let pushed = pusher.push_blob(&reference, &described, data, None, None);
        for error in [
            blob.read_range(1..2, Deadline::far()).await.unwrap_err(),
            pushed.await.unwrap_err(),
        ] {
            assert!(is_out_of_reach(&error), "{target}: {error}");
        }
    }
    assert_eq!(admin.requests().len(), 0);
}

#[tokio::test]
async fn a_registry_on_this_machine_leads_to_this_machine_but_not_to_its_link() {
    let data = noise(100);
    let served = data.clone();
    let storage = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let inner = format!("http://localhost:{}/x", port(&storage));
    let registry = Fake::start(move |_, request| {
        Some(if request.path.contains("/manifests/") {
            redirect(307, "http://169.254.169.254/latest/")
        } else {
            redirect(307, &inner)
        })
    })
    .await;
    let client = client(|_| {});
    let blob = client.blob(&registry.reference("a/b:t"), &descriptor(&data));
    for _ in 0..2 {
        // The second goes where the first was led.
        let got = blob.read_range(1..9, Deadline::far()).await.unwrap();
        assert_eq!(got, data.slice(1..9));
    }
    assert_eq!(registry.requests().len(), 1);
    let error = client
        .manifest(&registry.reference("a/b:t"), "t")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("metadata service"), "{error}");
}

#[tokio::test]
async fn what_another_host_says_is_not_repeated() {
    let address = network_address();
    let inner = Fake::start_at(address, |_, _| Some(status(403).body(SECRET))).await;
    let target = inner.url("/internal");
    let registry = Fake::start_at(address, move |_, _| Some(redirect(307, &target))).await;
    let client = client(|_| {});
    let blob = client.blob(&registry.reference("a/b:t"), &descriptor(b"abc"));
    let error = blob.read_range(0..2, Deadline::far()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert!(!format!("{error} {error:?}").contains("AKIA"), "{error}");
    assert_eq!(inner.requests().len(), 1);
}

#[tokio::test]
async fn tls_is_not_left_by_a_redirect_unless_it_is_allowed() {
    let data = noise(100);
    let served = data.clone();
    let storage = Fake::start(move |_, request| Some(serve(request, &served))).await;
    let target = storage.url("/x");
    let app = axum::Router::new().fallback(move || {
        let target = target.clone();
        async move { redirect(307, &target) }
    });
    let https = Https::start(&["http/1.1"], app).await.unwrap();
    let authority = https.certificate().as_bytes().to_vec();
    let client = |skip_verify, plain_http_redirects| {
        client(|config| {
            config.plain_http_redirects = plain_http_redirects;
            config.tls = Arc::new(TlsSettings {
                skip_verify,
                extra_ca: vec![authority.clone()],
                ..TlsSettings::default()
            });
            let url = format!("https://localhost:{}", https.port());
            let origin = Origin {
                url: url.parse().unwrap(),
                headers: soci_registry::HostHeaders::default(),
            };
            config.origins.insert("secure.example".to_owned(), origin);
        })
    };
    let reference = "secure.example/a/b:t".parse().unwrap();
    let read = async |client: Client| {
        let blob = client.blob(&reference, &descriptor(&data));
        blob.read_range(1..9, Deadline::far()).await
    };
    let error = read(client(false, false)).await.unwrap_err().to_string();
    assert!(error.contains("plain_http_redirects = true"), "{error}");
    assert_eq!(storage.requests().len(), 0);
    for (skip_verify, allowed) in [(true, false), (false, true)] {
        let got = read(client(skip_verify, allowed)).await.unwrap();
        assert_eq!(got, data.slice(1..9));
    }
}
